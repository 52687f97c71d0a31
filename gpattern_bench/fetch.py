"""Source files: from the cache, a mirror or their pinned address, never with other bytes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import pooch
import requests
from filelock import FileLock

from gpattern_bench import __version__
from gpattern_bench.errors import ChecksumError, FetchError
from gpattern_bench.files import file_sha256, replacing
from gpattern_bench.registry import SourceFile

__all__ = ["CACHE", "MIRROR", "cache_root", "fetch"]

CACHE = "GPATTERN_BENCH_DATA"
MIRROR = "GPATTERN_BENCH_MIRROR"
_TIMEOUT_S = 60


def cache_root(root: str | Path | None = None) -> Path:
    """Folder of cached datasets: `root`, else ``GPATTERN_BENCH_DATA``, else the system's cache."""
    chosen = root or os.environ.get(CACHE) or pooch.os_cache("gpattern-bench")
    return Path(chosen).expanduser().absolute()


def fetch(file: SourceFile, sources: Path, *, download: bool = True) -> Path:
    """Return the path of a source file, after fetching it if it is not there yet.

    The file is taken from the mirror (``GPATTERN_BENCH_MIRROR``: a folder, a ``file:`` address or
    an HTTP address) where one is set, else from its pinned address. It arrives beside its place,
    its size and SHA-256 are compared, and only then is it renamed; a lock lets several processes
    fetch it once. A file that is there with other bytes is fetched again.

    Parameters
    ----------
    file : SourceFile
        The registry's entry.
    sources : pathlib.Path
        Folder of source files; the file lies at ``sources / file.path``.
    download : bool
        False: only look.

    Raises
    ------
    FetchError
        The file is not there and cannot be fetched.
    ChecksumError
        What arrived has other bytes than the registry pins.
    """
    target = sources / file.path
    difference = _difference(target, file)
    if difference is None:
        return target
    address = _address(file)
    remedy = (
        f"To place it by hand, put a file of {file.bytes:,} bytes with SHA-256 {file.sha256} "
        f"at {target}. It is published at {file.url}; a mirror can be set with {MIRROR}."
    )
    if not download:
        raise FetchError(f"{target}: {difference}, and download is off. {remedy}")
    locks = sources / ".locks"  # not beside the file: some sources are whole folders
    try:
        locks.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(
            f"the cache {sources} cannot be written: {error}. Choose another folder with {CACHE}."
        ) from error
    with FileLock(locks / f"{file.sha256}.lock"):
        if _difference(target, file) is None:  # another process was faster
            return target
        with replacing(target) as arrived:
            try:
                _copy(address, arrived)
            except (OSError, ValueError, requests.RequestException) as error:
                raise FetchError(
                    f"could not fetch {file.path} from {address}: {error}. {remedy}"
                ) from error
            difference = _difference(arrived, file)
            if difference:
                raise ChecksumError(
                    f"{file.path} from {address} is not the expected file: {difference}. It was "
                    f"not kept. {remedy}"
                )
    return target


def _difference(path: Path, file: SourceFile) -> str | None:
    """How the file at `path` differs from the registry's, or None if it is the same."""
    if not path.is_file():
        return "it is not there"
    size = path.stat().st_size
    if size != file.bytes:
        html = path.read_bytes()[:512].lstrip()[:1] == b"<"
        hint = " (the server returned an HTML page)" if html else ""
        return f"expected {file.bytes:,} bytes, got {size:,}{hint}"
    digest = file_sha256(path)
    return None if digest == file.sha256 else f"expected SHA-256 {file.sha256}, got {digest}"


def _address(file: SourceFile) -> str:
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return file.url
    if urlsplit(mirror).scheme in ("http", "https", "file"):
        return f"{mirror.rstrip('/')}/{quote(file.path)}"
    return str(Path(mirror).expanduser() / file.path)


def _copy(address: str, target: Path) -> None:
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        download = pooch.HTTPDownloader(
            progressbar=sys.stderr.isatty(),
            timeout=_TIMEOUT_S,
            headers={"User-Agent": f"gpattern-bench/{__version__}"},
        )
        download(address, str(target), None)
    else:
        local = Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(address)
        shutil.copyfile(local, target)
