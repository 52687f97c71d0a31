"""Untrusted tar archives, streamed: one pass, nothing written to disk."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, Self, cast

from gpattern_bench.errors import SourceError

__all__ = ["members"]

_MAX_BYTES = 64 << 30
_MAX_RATIO = 200  # label images of whole fields of view reach 100 to 150
_ALWAYS = 1 << 30  # bytes allowed at any ratio
_MAX_HEADER = 1 << 20  # extended headers (long names and the like) go into memory
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_CHUNK = 1 << 20
_OPEN: dict[bytes, Callable[..., Any]] = {  # by the first two bytes
    b"\x1f\x8b": gzip.open,
    b"BZ": bz2.open,
    b"\xfd7": lzma.open,
}
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)  # what decompressors raise

_log = logging.getLogger(__name__)


def members(
    path: Path, *, max_bytes: int = _MAX_BYTES, max_ratio: int = _MAX_RATIO
) -> Iterator[tuple[str, BinaryIO]]:
    """Yield the files of a tar archive (plain, gzip, bzip2 or xz), in its order and one pass.

    Writes nothing to disk and needs a few MiB of memory at any size. Skips folders; skips links,
    devices and pipes with a warning. The last step reads to the archive's end, which compares
    the compression's checksum.

    Parameters
    ----------
    path : pathlib.Path
    max_bytes : int
        Limit of the unpacked size.
    max_ratio : int
        Limit of unpacked bytes per archive byte, above 1 GiB unpacked.

    Yields
    ------
    name : str
        Relative, parts joined by ``/``, no ``..`` and no leading ``./``.
    file : binary file
        Valid until the next file; cannot seek.

    Raises
    ------
    SourceError
        Not a tar archive, truncated or damaged; a name points outside the archive; the unpacked
        size exceeds a limit. Reading a file may raise it too.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(2)
        limit = min(max_bytes, max(_ALWAYS, max_ratio * path.stat().st_size))
        raw = _OPEN[magic](path, "rb") if magic in _OPEN else path.open("rb")
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error}") from error
    with raw:
        stream = _Limited(path, raw, limit)
        try:
            yield from _members(path, stream, limit)
        except tarfile.TarError as error:
            raise SourceError(
                f"{path} is not a whole tar archive ({error}): fetch it again."
            ) from error


def _members(path: Path, stream: _Limited, limit: int) -> Iterator[tuple[str, BinaryIO]]:
    total = 0
    archive = tarfile.open(  # noqa: SIM115 - closed by the with statement below
        fileobj=cast("BinaryIO", stream), mode="r|", bufsize=_CHUNK, tarinfo=_Header
    )
    with archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            name = _safe_name(path, member.name)
            total += member.size  # of a sparse file, more than the stream holds
            if total > limit:
                raise _too_large(path, limit)
            if member.isfile():
                yield name, cast("BinaryIO", archive.extractfile(member))
            elif not member.isdir():
                _log.warning("%s: %s is a link or a device; skipped", path, name)
        stream.at_end = True
        while stream.read(_CHUNK):  # what follows the end mark, and the compression's checksum
            pass


class _Header(tarfile.TarInfo):
    """A tar header that refuses damage, which tarfile ignores, and oversized extensions."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the archive's end mark
            raise
        except tarfile.HeaderError as error:  # tarfile takes it for the end
            raise tarfile.ReadError(str(error)) from error
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{header.name!r} is a sparse file")
        if header.size < 0 or (header.type in _EXTENDED and header.size > _MAX_HEADER):
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


class _Limited:
    """Unpacked bytes of an archive, up to a limit; damage raises SourceError."""

    def __init__(self, path: Path, file: BinaryIO, limit: int) -> None:
        self._path, self._file = path, file
        self._limit = self._left = limit
        self.at_end = False  # past the end mark

    def read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
            if not data and not self.at_end:
                raise EOFError("it ends too early")
        except _DAMAGED as error:
            raise SourceError(
                f"{self._path} is cut or damaged ({error or type(error).__name__}): fetch it again."
            ) from error
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._path, self._limit)
        return data


def _safe_name(path: Path, name: str) -> str:
    parts = PureWindowsPath(name)  # takes / and \ as separators, and knows drives
    if parts.anchor or ".." in parts.parts:
        raise SourceError(
            f"{path}: the member {name!r} points outside the archive; no data release has such "
            "a name. The archive is not read."
        )
    return parts.as_posix()


def _too_large(path: Path, limit: int) -> SourceError:
    return SourceError(
        f"{path} unpacks to more than {limit:,} bytes; no data release of its size does. The "
        "archive is not read."
    )
