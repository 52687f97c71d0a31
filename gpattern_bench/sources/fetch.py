"""Source files: from the cache, a mirror or their publishers, never with other bytes."""

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
from gpattern_bench.sources.cached_file import Place, measure
from gpattern_bench.sources.http import NotFetched
from gpattern_bench.sources.registry import SourceFile, Tables

__all__ = ["MIRROR", "OFFLINE", "fetch", "fetch_tables", "provenance"]

MIRROR = "GPATTERN_BENCH_MIRROR"
OFFLINE = "GPATTERN_BENCH_OFFLINE"
TRIES = 4
"""Rounds over the addresses that may give the file later."""
LONGEST_WAIT_S = 60.0
"""Longest wait between two rounds, whatever a server asks for."""
_CHUNK = 1 << 20

_log = logging.getLogger(__name__)


def fetch(file: SourceFile, sources: Path, *, download: bool = True) -> Path:
    """Return the path of a source file, after fetching it if it is not there yet.

    Where ``GPATTERN_BENCH_MIRROR`` is set (a folder, a ``file:`` or an HTTP address), the file
    comes from there and nowhere else; otherwise from its published addresses, in their order.
    Addresses that may give it later (a connection that fails, HTTP 429 or 5xx) are asked
    :data:`TRIES` times, with longer and longer waits between. ``GPATTERN_BENCH_OFFLINE=1`` leaves
    only the cache and folders.

    It arrives in ``sources/.fetch`` and takes its place only when its size, its checksum and the
    first bytes of its format are right; a lock lets several processes fetch it once. What arrived
    of a file before a connection or a process died is continued next time. A file that is there
    with other bytes is fetched again.

    Where the publisher states no checksum, the first file is recorded in
    ``sources/.fetch/<path>.json``, and every later one must be the same. That record also spares
    large files to be hashed again while their size and time stay the same.

    Parameters
    ----------
    file : SourceFile
        The registry's entry.
    sources : pathlib.Path
        Folder of source files; the file lies at ``sources / file.path``. It may be read-only if
        the file is there.
    download : bool
        False: only look.

    Raises
    ------
    FetchError
        The file is not there and cannot be fetched. The text has every address and its reason,
        and where to put the file by hand.
    ChecksumError
        An address gave other bytes than the registry or the first download pins.
    """
    place = Place(file, sources)
    try:
        difference = place.difference()
        if difference is None:
            return place.target
        if not download:
            raise FetchError(f"{place.target}: {difference}, and download is off. {_remedy(place)}")
        place.lock.parent.mkdir(parents=True, exist_ok=True)
        place.target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.lock):
            if place.difference() is not None:  # no other process was faster
                _obtain(place)
    except OSError as error:
        raise _unusable(place, error) from error
    return place.target


def fetch_tables(tables: Tables, path: str, sources: Path, *, download: bool = True) -> Path:
    """Return the folder of finished tables, after fetching what is not there yet.

    Its files are fetched like source files: the manifest first, whose SHA-256 the registry pins,
    then the files that it names, by their size and SHA-256.

    Parameters
    ----------
    tables : Tables
        Addresses of the folder, and what its manifest must be.
    path : str
        The folder below a mirror and below `sources`, such as ``tables/<name>/<version>``.
    sources, download
        As for :func:`fetch`.

    Returns
    -------
    pathlib.Path
        ``sources / path``, with every file in it.

    Raises
    ------
    FetchError
        A file cannot be had, or the manifest does not name the files.
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
    """What a manifest says of a source file that was fetched: path, addresses, bytes, checksum.

    Where no checksum is published, bytes and SHA-256 are those of the first download, and
    ``checksum`` says so.
    """
    facts = file.model_dump(mode="json")
    if file.checksum:
        return facts | {"checksum": "published"}
    place = Place(file, sources)
    record = place.record() or measure(place.target, file)  # none where nothing can be written
    return facts | {"bytes": record.bytes, "sha256": record.sha256, "checksum": "first download"}


def _obtain(place: Place) -> None:
    """Ask every address, those that may give the file later several times."""
    asked = _addresses(place.file)
    reasons: dict[str, str] = {}
    if _offline():
        reasons = {str(a): f"not asked, {OFFLINE} is set" for a in asked if _local(a) is None}
        asked = [address for address in asked if _local(address) is not None]
    other = False
    for tries in range(1, TRIES + 1):
        wait = http.BACKOFF_S * 2 ** (tries - 1)
        for address in tuple(asked):
            _log.info("fetching %s from %s", place.file.path, address)
            try:
                _take(place, address)
            except NotFetched as failure:
                reasons[str(address)] = str(failure)
                if tries > 1:
                    reasons[str(address)] += f", asked {tries} times"
                other = other or failure.other
                if failure.passing:
                    wait = max(wait, failure.wait_s)
                else:
                    asked.remove(address)
            else:
                return
        if not asked:
            break
        if tries < TRIES:
            time.sleep(min(wait, LONGEST_WAIT_S))
    tried = "; ".join(f"{address} ({reason})" for address, reason in reasons.items())
    there = place.difference()
    was = "" if there == "it is not there" else f" (the file that is there is not it: {there})"
    kept = place.part.stat().st_size if place.part.is_file() else 0
    then = f" {kept:,} bytes are kept, to be continued." if kept else ""
    error = ChecksumError if other else FetchError
    raise error(f"could not fetch {place.file.path}{was}. Tried: {tried}.{then} {_remedy(place)}")


def _take(place: Place, address: str | Path) -> None:
    """Bring the file from one address to its place."""
    file, local, resumed = place.file, _local(address), False
    if local is not None:
        _copy(local, place.part)
    else:
        pinned = file.checksum is not None
        resumed = http.download(str(address), place.part, size=file.bytes, pinned=pinned)
    found = measure(place.part, file)
    difference = place.wrong(place.part, found)
    if difference:
        http.discard(place.part)
        if not resumed:
            raise NotFetched(difference, other=True)
        _take(place, address)  # what an earlier call left may have been damaged
        return
    place.part.chmod(0o644)
    with place.part.open("rb") as part:
        os.fsync(part.fileno())
    place.note(found.model_copy(update={"address": str(address)}))
    place.part.replace(place.target)
    http.discard(place.part)


def _addresses(file: SourceFile) -> list[str | Path]:
    """The mirror's address of a file where a mirror is set, else the published ones."""
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return list(file.urls)
    if urlsplit(mirror).scheme in ("http", "https", "file"):
        return [f"{mirror.rstrip('/')}/{quote(file.path)}"]
    return [Path(mirror).expanduser() / file.path]


def _local(address: str | Path) -> Path | None:
    """The path of an address that needs no network."""
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
        http.discard(part)  # a copy is not continued
        raise


def _chunks(source: Path) -> Iterator[bytes]:
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise NotFetched(error.strerror or str(error)) from error


def _remedy(place: Place) -> str:
    """How to put the file there by hand."""
    file = place.file
    size = "" if file.bytes is None else f" of {file.bytes:,} bytes"
    which = f"a file{size} with {file.checksum}" if file.checksum else f"the file{size}"
    mirror = f"{MIRROR} is set: unset it to ask there" if os.environ.get(MIRROR) else ""
    return (
        f"To place it by hand, put {which} at {place.target}. It is published at "
        f"{' and '.join(file.urls)}; {mirror or f'{MIRROR} can name a mirror'}."
    )


def _unusable(place: Place, error: OSError) -> FetchError:
    if http.no_room(error):
        arrived = place.part.stat().st_size if place.part.is_file() else 0
        return FetchError(
            f"{place.file.path}: no room for it below {place.sources} ({error.strerror}). "
            f"{arrived:,} bytes arrived and are kept in {place.part}, to be continued. Free some "
            f"space, or choose another folder with {CACHE}."
        )
    return FetchError(
        f"{place.file.path}: the cache {place.sources} cannot be used ({error}). Choose another "
        f"folder with {CACHE}."
    )
