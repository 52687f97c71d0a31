"""One file over HTTP: resumed where it was cut, never stitched from two versions."""

from __future__ import annotations

import email.utils
import errno
import re
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import requests
from pydantic import BaseModel, ValidationError
from urllib3.exceptions import HTTPError

from gpattern_bench.base.files import write_text
from gpattern_bench.base.progress import Progress
from gpattern_bench.base.version import __version__

__all__ = ["NotFetched", "discard", "download", "ensure_room", "is_html", "no_room"]

CONNECT_S, READ_S = 10.0, 60.0
"""Longest wait for a connection, and for the next byte."""
SLOWEST = 1024
"""Bytes per second, over `READ_S`, below which a connection is given up."""
BACKOFF_S = 1.0
"""Wait before a connection that was cut is taken up again."""
_PROGRESS = 1 << 20  # bytes after which a cut connection is worth another at once
_CHUNK = 1 << 20
_HEADERS = {
    "User-Agent": f"gpattern-bench/{__version__}",
    "Accept-Encoding": "identity",  # sizes and ranges are those of the file itself
}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|\?xml|!--)", re.IGNORECASE)


class NotFetched(Exception):  # noqa: N818 - a reason within fetch, which makes the error of it
    """Why an address did not give the file.

    Attributes
    ----------
    passing : bool
        The same address may give it later.
    wait_s : float
        How long the server asks to wait.
    other : bool
        It gave something, but not the file.
    """

    def __init__(
        self, reason: str, *, passing: bool = False, wait_s: float = 0.0, other: bool = False
    ) -> None:
        super().__init__(reason)
        self.passing, self.wait_s, self.other = passing, wait_s, other


class _Source(BaseModel):
    """Where a part comes from, and what tells whether the server still has the same file."""

    url: str
    etag: str | None = None  # strong ones only: weak ones do not promise the same bytes
    modified: str | None = None
    total: int | None = None


def download(url: str, part: Path, *, size: int | None = None, pinned: bool = False) -> bool:
    """Write what an HTTP address gives to `part`, continuing what an earlier attempt left there.

    A part is continued if the server says by ETag or date (``If-Range``) that its file is the
    same one, from the same address; where a checksum will be compared at the end (`pinned`), from
    any address that has as many bytes. Else it is started anew. Cut connections are taken up again
    as long as they bring the file on.

    Parameters
    ----------
    url : str
    part : pathlib.Path
        Beside it lies ``<part>.json``, which says what it is a part of.
    size : int, optional
        Bytes that the file must have.
    pinned : bool

    Returns
    -------
    bool
        Whether bytes of an earlier call were used.

    Raises
    ------
    NotFetched
        What arrived stays, to be continued.
    OSError
        The part cannot be written.
    """
    resumed = _resumable(part, url, size, pinned) is not None
    furthest = part.stat().st_size if resumed else 0
    while True:
        try:
            _attempt(url, part, size, pinned)
        except NotFetched as failure:
            reached = part.stat().st_size if part.exists() else 0
            if not failure.passing or reached < furthest + _PROGRESS:
                raise
            furthest = reached
            time.sleep(BACKOFF_S)
        else:
            return resumed


def discard(part: Path) -> None:
    """Remove a part, and what was known of it."""
    part.unlink(missing_ok=True)
    _beside(part).unlink(missing_ok=True)


def is_html(content: bytes) -> bool:
    """Whether a file that begins with `content` is a web page (or a server's XML message)."""
    return _HTML.match(content) is not None


def ensure_room(folder: Path, size: int) -> None:
    """Raise the OSError of a full disk before the disk is full."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{size:,} bytes are needed, {free:,} are free", str(folder))


def no_room(error: OSError) -> bool:
    """Whether a file could not be written because a disk, a quota or a file-size limit is full."""
    return error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def _resumable(part: Path, url: str, size: int | None, pinned: bool) -> _Source | None:
    """What `part` is a part of, if it can be continued from `url`."""
    try:
        source = _Source.model_validate_json(_beside(part).read_bytes())
        done = part.stat().st_size
    except (OSError, ValidationError):
        return None
    if done == 0 or (source.total is not None and done > source.total):
        return None
    if pinned:
        same_size = source.total is not None and source.total == size
        return source if same_size or source.url == url else None
    validated = (source.etag or source.modified) and source.total
    return source if validated and source.url == url else None


def _attempt(url: str, part: Path, size: int | None, pinned: bool) -> None:
    source = _resumable(part, url, size, pinned)
    start = part.stat().st_size if source else 0
    if source and start == source.total:  # whole, but not yet looked at when it was left
        return
    headers = dict(_HEADERS)
    if source:
        headers["Range"] = f"bytes={start}-"
        if source.url == url and (validator := source.etag or source.modified):
            headers["If-Range"] = validator
    changed = False
    try:
        with requests.get(
            url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)
        ) as response:
            found = _about(url, response)
            changed = source is not None and (
                response.status_code == 416 or _differs(source, found, response, start, pinned)
            )
            if not changed:
                _refuse(response)
                start = 0 if response.status_code == 200 else start
                if size is not None and found.total not in (None, size):
                    raise _wrong_size(size, f"{found.total:,}", response.raw.read(512))
                if start == 0:
                    discard(part)
                    write_text(_beside(part), found.model_dump_json())
                ensure_room(part.parent, (found.total or start) - start)
                _receive(response, part, start, found.total, size)
    except (requests.ConnectionError, requests.Timeout, HTTPError) as error:
        raise NotFetched(_words(error), passing=True) from error
    except (requests.RequestException, ValueError) as error:  # addresses that are none
        raise NotFetched(_words(error)) from error
    if changed:
        discard(part)
        _attempt(url, part, size, pinned)
        return
    done, wanted = part.stat().st_size, found.total if found.total is not None else size
    if wanted is not None and done < wanted:
        with part.open("rb") as file:
            head = file.read(512)
        if is_html(head):
            raise _wrong_size(wanted, f"{done:,}", head)
        raise NotFetched(f"cut after {done:,} of {wanted:,} bytes", passing=True)


def _receive(
    response: requests.Response, part: Path, start: int, total: int | None, size: int | None
) -> None:
    """Append the body to the part, as fast as it comes but not slower than `SLOWEST`."""
    done, since, then = start, time.monotonic(), start
    with (
        part.open("ab", buffering=0) as file,
        Progress(part.stem, total, unit="B", done=start) as bar,
    ):
        while data := response.raw.read1(_CHUNK, decode_content=False):
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            done += len(data)
            bar.update(len(data))
            if size is not None and done > size:
                raise _wrong_size(size, "more", b"")
            if (now := time.monotonic()) - since > READ_S:
                if done - then < SLOWEST * (now - since):
                    raise NotFetched(
                        f"slower than {SLOWEST:,} bytes per second, given up after {done:,} bytes",
                        passing=True,
                    )
                since, then = now, done


def _refuse(response: requests.Response) -> None:
    """Raise for every status but the two that bring the file."""
    code = response.status_code
    if code == 200 or (code == 206 and "Range" in response.request.headers):
        return
    text = f"HTTP {code} {response.reason or ''}".strip()
    if code == 202:
        text += " without a file (some servers ask programs to prove that they are browsers)"
    raise NotFetched(
        text, passing=code in _PASSING, wait_s=_retry_after(response.headers.get("Retry-After", ""))
    )


def _about(url: str, response: requests.Response) -> _Source:
    headers = response.headers
    etag = headers.get("ETag", "")
    total = headers.get("Content-Length", "")
    if response.status_code == 206:
        total = headers.get("Content-Range", "").rpartition("/")[2]
    return _Source(
        url=url,
        etag=etag if etag.startswith('"') else None,
        modified=headers.get("Last-Modified"),
        total=int(total) if total.isdecimal() else None,
    )


def _differs(
    source: _Source, found: _Source, response: requests.Response, start: int, pinned: bool
) -> bool:
    """Whether an answer to a range is not the rest of what the part is a part of."""
    if response.status_code != 206:
        return False  # the whole file, or none: the part is not continued
    told = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if told is None or int(told[1]) != start or found.total != source.total:
        return True
    if pinned:
        return False  # the checksum will tell
    if source.etag:
        return found.etag != source.etag
    return found.modified != source.modified


def _retry_after(text: str) -> float:
    """Seconds of a ``Retry-After`` header: a number or a date."""
    if text.isdecimal():
        return float(text)
    with suppress(ValueError):
        when = email.utils.parsedate_to_datetime(text)
        return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return 0.0


def _beside(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _wrong_size(size: int, got: str, head: bytes) -> NotFetched:
    page = " (the server returned an HTML page)" if is_html(head) else ""
    return NotFetched(f"expected {size:,} bytes, got {got}{page}", other=True)


def _words(error: BaseException) -> str:
    """The innermost cause: what libraries wrap around it says nothing more."""
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
