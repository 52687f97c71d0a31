"""Fetch source files from the cache, a mirror or their publishers; never wrong bytes."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from gpattern_bench.base.files import MANIFEST
from gpattern_bench.errors import ChecksumError, FetchError
from gpattern_bench.sources import http as http
from gpattern_bench.sources.cache import CACHE
from gpattern_bench.sources.cached_file import CachedFile, measure
from gpattern_bench.sources.http import NotFetched
from gpattern_bench.sources.registry import FinishedTables, SourceFile

__all__ = ["MIRROR", "OFFLINE", "fetch", "fetch_tables", "provenance"]

MIRROR = "GPATTERN_BENCH_MIRROR"
OFFLINE = "GPATTERN_BENCH_OFFLINE"
TRIES = 4
"""Rounds over addresses with temporary failures."""
LONGEST_WAIT_S = 60.0
"""Longest wait between rounds, whatever a server asks."""
LONGEST_STRANGER_S = 60.0
"""Time after which no further round asks a stranger's address."""
_CHUNK = 1 << 20

_log = logging.getLogger(__name__)


def fetch(file: SourceFile, sources: Path, *, download: bool = True, public: bool = False) -> Path:
    """Return the path of a source file; fetch it first if needed.

    With ``GPATTERN_BENCH_MIRROR`` (a folder, a ``file:`` or an HTTP address), the mirror is the
    only source; without, the published addresses in their order. Temporary failures (a failed
    connection, HTTP 429 or 5xx) are retried, :data:`TRIES` rounds with growing waits.
    ``GPATTERN_BENCH_OFFLINE=1`` allows only the cache and folders.

    The file arrives in ``sources/.fetch`` and moves to its path once size, checksum and first
    bytes are right; a lock makes processes fetch it once. A later call resumes a partial file and
    replaces a wrong one.

    Without a published checksum, ``sources/.fetch/<path>.json`` records the first download, and
    later ones must equal it. The record also saves hashing large files again while their size and
    time stay the same.

    Parameters
    ----------
    file : SourceFile
        The registry's entry.
    sources : pathlib.Path
        Folder of source files; the file's path is ``sources / file.path``. May be read-only if
        the file is there.
    download : bool
        False: do not fetch.
    public : bool
        The addresses are a stranger's: ask public servers only, over https, and say nothing of
        other bytes than that they are others. A mirror is the user's own and asked as ever.

    Raises
    ------
    FetchError
        The file is missing and cannot be fetched. The text gives every address with the reason,
        and where to put the file by hand.
    ChecksumError
        An address gave other bytes than the registry or the first download pins.
    """
    cached = CachedFile(file, sources)
    try:
        difference = cached.difference()
        if difference is None:
            return cached.target
        if not download:
            raise FetchError(
                f"{cached.target}: {difference}, and download is off. {_remedy(cached)}"
            )
        cached.lock.parent.mkdir(parents=True, exist_ok=True)
        cached.target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cached.lock):
            if cached.difference() is not None:  # not fetched by another process meanwhile
                _obtain(cached, public)
    except OSError as error:
        raise _unusable(cached, error) from error
    return cached.target


def fetch_tables(
    tables: FinishedTables, path: str, sources: Path, *, download: bool = True
) -> Path:
    """Return the folder of finished tables; fetch missing files first.

    Fetches the manifest, whose SHA-256 the registry pins, then the files in it by their size and
    SHA-256.

    Parameters
    ----------
    tables : FinishedTables
        Addresses of the folder, and SHA-256 of its manifest.
    path : str
        The folder below a mirror and below `sources`, such as ``tables/<name>/<version>``.
    sources, download
        As for :func:`fetch`.

    Returns
    -------
    pathlib.Path
        ``sources / path``, complete.

    Raises
    ------
    FetchError
        A file cannot be fetched, or the manifest names no files.
    ChecksumError
        An address gave other bytes.
    """

    def file(name: str, size: int | None, sha256: str) -> SourceFile:
        urls = tuple(f"{url.rstrip('/')}/{quote(name)}" for url in tables.urls)
        return SourceFile(path=f"{path}/{name}", urls=urls, bytes=size, sha256=sha256)

    manifest = fetch(file(MANIFEST, None, tables.sha256), sources, download=download)
    try:
        named = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        files = [file(name, facts["bytes"], facts["sha256"]) for name, facts in named.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FetchError(
            f"{manifest} does not name its files with bytes and sha256 ({error!r}): the folder at "
            f"{', '.join(tables.urls)} is not what `gpattern-bench export` writes."
        ) from error
    for each in files:
        fetch(each, sources, download=download)
    return sources / path


def provenance(file: SourceFile, sources: Path) -> dict[str, Any]:
    """Describe a fetched source file for the manifest: path, addresses, bytes, checksum.

    Without a published checksum, bytes and SHA-256 are those of the first download, and
    ``checksum`` says so.
    """
    facts = file.model_dump(mode="json")
    if file.checksum:
        return facts | {"checksum": "published"}
    cached = CachedFile(file, sources)
    record = cached.record() or measure(cached.target, file)  # no record in a read-only cache
    return facts | {"bytes": record.bytes, "sha256": record.sha256, "checksum": "first download"}


def _obtain(cached: CachedFile, public: bool) -> None:
    """Try every address; retry after temporary failures."""
    asked = _addresses(cached.file)
    public = public and not os.environ.get(MIRROR)
    reasons: dict[str, str] = {}
    if _offline():
        reasons = {str(a): f"not asked, {OFFLINE} is set" for a in asked if _local(a) is None}
        asked = [address for address in asked if _local(address) is not None]
    wrong_content = False
    began = time.monotonic()
    for tries in range(1, TRIES + 1):
        wait = http.BACKOFF_S * 2 ** (tries - 1)
        for address in tuple(asked):
            _log.info("fetching %s from %s", cached.file.path, address)
            try:
                _take(cached, address, public)
            except NotFetched as failure:
                reasons[str(address)] = str(failure)
                if tries > 1:
                    reasons[str(address)] += f", asked {tries} times"
                wrong_content = wrong_content or failure.wrong_content
                if failure.temporary:
                    wait = max(wait, failure.wait_s)
                else:
                    asked.remove(address)
            else:
                return
        if not asked:
            break
        if public and time.monotonic() - began + wait > LONGEST_STRANGER_S:
            break
        if tries < TRIES:
            time.sleep(min(wait, LONGEST_WAIT_S))
    tried = "; ".join(f"{address} ({reason})" for address, reason in reasons.items())
    tried = tried or "nothing, for nobody publishes it"
    there = cached.difference()
    was = "" if there == "it is not there" else f" (the cached file is wrong: {there})"
    kept = cached.part.stat().st_size if cached.part.is_file() else 0
    then = f" {kept:,} bytes are kept, to be continued." if kept else ""
    error = ChecksumError if wrong_content else FetchError
    raise error(f"could not fetch {cached.file.path}{was}. Tried: {tried}.{then} {_remedy(cached)}")


def _take(cached: CachedFile, address: str | Path, public: bool) -> None:
    """Fetch the file from one address and move it to its path."""
    file, local, resumed = cached.file, None if public else _local(address), False
    if local is not None:
        _copy(local, cached.part)
    else:
        pinned = file.checksum is not None
        resumed = http.download(
            str(address), cached.part, size=file.bytes, pinned=pinned, public=public
        )
    found = measure(cached.part, file)
    difference = cached.mismatch(cached.part, found)
    if difference:
        http.discard(cached.part)
        if not resumed:
            what = "other bytes than those listed" if public else difference
            raise NotFetched(what, wrong_content=True)
        _take(cached, address, public)  # bytes of an earlier call may be damaged
        return
    cached.part.chmod(0o644)
    with cached.part.open("rb") as part:
        os.fsync(part.fileno())
    cached.write_record(found.model_copy(update={"address": str(address)}))
    cached.part.replace(cached.target)
    http.discard(cached.part)


def _addresses(file: SourceFile) -> list[str | Path]:
    """Return the mirror's address of a file if a mirror is set, else the published ones."""
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return list(file.urls)
    if urlsplit(mirror).scheme in ("http", "https", "file"):
        return [f"{mirror.rstrip('/')}/{quote(file.path)}"]
    return [Path(mirror).expanduser() / file.path]


def _local(address: str | Path) -> Path | None:
    """Return the path of an address without network, else None."""
    if isinstance(address, Path):
        return address
    return Path(url2pathname(urlsplit(address).path)) if address.startswith("file:") else None


def _offline() -> bool:
    return os.environ.get(OFFLINE, "").strip().lower() not in ("", "0", "false", "no", "off")


def _copy(source: Path, part: Path) -> None:
    http.discard(part)
    try:
        with part.open("wb") as file:
            for chunk in _chunks(source):
                file.write(chunk)
    except OSError:
        http.discard(part)  # copies are not resumed
        raise


def _chunks(source: Path) -> Iterator[bytes]:
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise NotFetched(error.strerror or str(error)) from error


def _remedy(cached: CachedFile) -> str:
    """Say how to place the file by hand."""
    file = cached.file
    size = "" if file.bytes is None else f" of {file.bytes:,} bytes"
    which = f"a file{size} with {file.checksum}" if file.checksum else f"the file{size}"
    asks = file.urls and os.environ.get(MIRROR)
    mirror = f"{MIRROR} is set: unset it to ask there" if asks else ""
    where = f"is published at {' and '.join(file.urls)}" if file.urls else f"is {file.made}"
    return (
        f"To place it by hand, put {which} at {cached.target}. It {where}; "
        f"{mirror or f'{MIRROR} can name a mirror'}."
    )


def _unusable(cached: CachedFile, error: OSError) -> FetchError:
    if http.no_room(error):
        arrived = cached.part.stat().st_size if cached.part.is_file() else 0
        return FetchError(
            f"{cached.file.path}: no room for it below {cached.sources} ({error.strerror}). "
            f"{arrived:,} bytes arrived and are kept in {cached.part}, to be continued. Free some "
            f"space, or choose another folder with {CACHE}."
        )
    return FetchError(
        f"{cached.file.path}: the cache {cached.sources} cannot be used ({error}). Choose another "
        f"folder with {CACHE}."
    )
