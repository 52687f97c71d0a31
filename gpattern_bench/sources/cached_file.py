"""A source file in the cache: its paths, its record, and whether its bytes are the expected."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from gpattern_bench.base.arrays import arrays_sha256, read_arrays
from gpattern_bench.base.files import write_text
from gpattern_bench.sources.http import is_html
from gpattern_bench.sources.registry import SourceFile

__all__ = ["CachedFile", "Record", "measure"]

LARGE = 16 << 20
"""Bytes up to which a file is hashed at every use."""
_CHUNK = 1 << 20
_HDF5 = (b"\x89HDF\r\n\x1a\n", "an HDF5 file")
_MAGIC = {
    ".parquet": (b"PAR1", "a Parquet file"),
    ".h5ad": _HDF5,
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".gz": (b"\x1f\x8b", "a gzip file"),
}

_log = logging.getLogger(__name__)


class Record(BaseModel):
    """Size, hashes, modification time, address and date of a fetched file."""

    bytes: int
    sha256: str
    git_blob: str | None = None
    mtime_ns: int
    address: str | None = None
    date: str


class CachedFile:
    """Paths of one source file in the cache: the file, its part, its lock and its record."""

    def __init__(self, file: SourceFile, sources: Path) -> None:
        self.file, self.sources = file, sources
        self.target = sources / file.path
        beside = sources / ".fetch" / file.path  # outside its folder: some sources are folders
        self.lock = beside.with_name(f"{beside.name}.lock")
        self.part = beside.with_name(f"{beside.name}.part")
        self.record_path = beside.with_name(f"{beside.name}.json")

    def record(self) -> Record | None:
        """Read the record; None if there is none."""
        try:
            return Record.model_validate_json(self.record_path.read_bytes())
        except (OSError, ValidationError):
            return None

    def difference(self) -> str | None:
        """Say how the cached file differs from the expected one; None if it does not."""
        if not self.target.is_file():
            return "it is not there"
        stat, known = self.target.stat(), self.record()
        unchanged = (
            known is not None
            and (stat.st_size, stat.st_mtime_ns) == (known.bytes, known.mtime_ns)
            and (known.git_blob is not None or self.file.git_blob is None)
        )
        if known is None or not unchanged or stat.st_size <= LARGE:
            found = measure(self.target, self.file)
        else:
            found = known
        difference = self.mismatch(self.target, found)
        if difference is None and not unchanged:
            with suppress(OSError):  # a read-only cache works too
                self.write_record(found)
        return difference

    def mismatch(self, path: Path, found: Record) -> str | None:
        """Say how a file, measured as `found`, differs from the expected one; None if not."""
        file, hint = self.file, _hint(path)
        if file.bytes is not None and found.bytes != file.bytes:
            got = f"expected {file.bytes:,} bytes, got {found.bytes:,}"
        elif file.sha256 and found.sha256 != file.sha256:
            got = f"expected SHA-256 {file.sha256}, got {found.sha256}"
        elif file.git_blob and found.git_blob != file.git_blob:
            got = f"expected Git blob id {file.git_blob}, got {found.git_blob}"
        elif file.arrays_sha256 and (other := _of_arrays(path)) != file.arrays_sha256:
            got = f"expected SHA-256 {file.arrays_sha256} over its arrays, got {other}"
        elif file.checksum:
            return None
        elif hint or found.bytes == 0:
            return hint or "it is empty"
        elif (first := self.record()) and first.sha256 != found.sha256:
            return (
                f"the first one, recorded on {first.date}, had {first.bytes:,} bytes and SHA-256 "
                f"{first.sha256}; this one has {found.bytes:,} bytes and SHA-256 {found.sha256}. "
                "No checksum is published: the publisher changed the file, or it is damaged. To "
                f"accept the new one, remove {self.record_path}; its numbers are not comparable "
                "with those of the first"
            )
        else:
            return None
        return f"{got} ({hint})" if hint else got

    def write_record(self, found: Record) -> None:
        """Record a correct file if a later check will read the record; keep the first date."""
        if self.file.checksum and found.bytes <= LARGE:
            return
        first = self.record()
        if first and first.sha256 == found.sha256:
            found = found.model_copy(update={"address": first.address, "date": first.date})
        elif not self.file.checksum:
            _log.info("%s: recorded as the first, with SHA-256 %s", self.target, found.sha256)
        self.record_path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.record_path, found.model_dump_json(indent=1) + "\n")


def measure(path: Path, file: SourceFile) -> Record:
    """Measure a file: size, time and hashes."""
    stat = path.stat()
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % stat.st_size, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            sha256.update(chunk)
            if file.git_blob:
                blob.update(chunk)
    return Record(
        bytes=stat.st_size,
        sha256=sha256.hexdigest(),
        git_blob=blob.hexdigest() if file.git_blob else None,
        mtime_ns=stat.st_mtime_ns,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _of_arrays(path: Path) -> str:
    """Hash the values of an archive of arrays, or say why it is none."""
    try:
        return arrays_sha256(read_arrays(path))
    except ValueError as error:
        return f"none: {error}"


def _hint(path: Path) -> str | None:
    """Say why the first bytes (and the last, of Parquet) contradict the format; else None."""
    name = path.name.removesuffix(".part")
    with path.open("rb") as file:
        head = file.read(512)
        if is_html(head):
            return "the server returned an HTML page"
        magic, what = _MAGIC.get(Path(name).suffix, (b"", ""))
        file.seek(max(0, path.stat().st_size - len(magic)))
        whole = magic != b"PAR1" or file.read() == magic
    return None if head.startswith(magic) and whole else f"it is not {what}"
