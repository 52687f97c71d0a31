"""Download one file over HTTP: resumed after a cut, never stitched from two versions."""

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
from gpattern_bench.sources.public import NotPublicError, public_session

__all__ = ["NotFetched", "discard", "download", "ensure_room", "is_html", "no_room"]

CONNECT_S, READ_S = 10.0, 60.0
"""Timeouts of a connection and of the next byte."""
SLOWEST, SLOWEST_STRANGER = 1 << 10, 100 << 10
"""Slowest accepted rates over `READ_S`, bytes per second; the latter of a stranger's address."""
BACKOFF_S = 1.0
"""Wait before reconnecting."""
_PROGRESS = 1 << 20  # bytes that earn a cut connection another try
_CHUNK = 1 << 20
_HEADERS = {
    "User-Agent": f"gpattern-bench/{__version__}",
    "Accept-Encoding": "identity",  # no compression: sizes and ranges count file bytes
}
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|\?xml|!--)", re.IGNORECASE)


class NotFetched(Exception):  # noqa: N818 - internal; fetch raises the error
    """Why one address failed.

    Attributes
    ----------
    temporary : bool
        A later try may succeed.
    wait_s : float
        Wait that the server asks for.
    wrong_content : bool
        The address sent something else.
    """

    def __init__(
        self,
        reason: str,
        *,
        temporary: bool = False,
        wait_s: float = 0.0,
        wrong_content: bool = False,
    ) -> None:
        super().__init__(reason)
        self.temporary, self.wait_s, self.wrong_content = temporary, wait_s, wrong_content


class _Source(BaseModel):
    """Origin of a partial file, with the validators of the server's version."""

    url: str
    etag: str | None = None  # strong only: weak ones promise no bytes
    modified: str | None = None
    total: int | None = None


def download(
    url: str,
    part: Path,
    *,
    size: int | None = None,
    pinned: bool = False,
    public: bool = False,
) -> bool:
    """Download a file to `part`, resuming an earlier attempt.

    Resumes from the same address if ETag or date (``If-Range``) confirm the same file; with a
    checksum to compare later (`pinned`), from any address with the same size. Otherwise starts
    again. Reconnects after a cut while bytes keep arriving.

    Parameters
    ----------
    url : str
    part : pathlib.Path
        ``<part>.json`` beside it records its origin.
    size : int, optional
        Expected bytes.
    pinned : bool
    public : bool
        Ask public servers only, over https (:mod:`gpattern_bench.sources.public`).

    Returns
    -------
    bool
        Whether bytes of an earlier call were used.

    Raises
    ------
    NotFetched
        The part stays, for the next call.
    OSError
        The part cannot be written.
    """
    resumed = _resumable(part, url, size, pinned) is not None
    furthest = part.stat().st_size if resumed else 0
    while True:
        try:
            _attempt(url, part, size, pinned, public)
        except NotFetched as failure:
            reached = part.stat().st_size if part.exists() else 0
            if not failure.temporary or reached < furthest + _PROGRESS:
                raise
            furthest = reached
            time.sleep(BACKOFF_S)
        else:
            return resumed


def discard(part: Path) -> None:
    """Remove a part and its record."""
    part.unlink(missing_ok=True)
    _sidecar(part).unlink(missing_ok=True)


def is_html(content: bytes) -> bool:
    """True if `content` begins like a web page or a server's XML message."""
    return _HTML.match(content) is not None


def ensure_room(folder: Path, size: int) -> None:
    """Raise ENOSPC if `folder` has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{size:,} bytes are needed, {free:,} are free", str(folder))


def no_room(error: OSError) -> bool:
    """True if the error is a full disk, quota or file-size limit."""
    return error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def _resumable(part: Path, url: str, size: int | None, pinned: bool) -> _Source | None:
    """Return the origin of `part` if `url` can continue it, else None."""
    try:
        source = _Source.model_validate_json(_sidecar(part).read_bytes())
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


def _attempt(url: str, part: Path, size: int | None, pinned: bool, public: bool) -> None:
    source = _resumable(part, url, size, pinned)
    start = part.stat().st_size if source else 0
    if source and start == source.total:  # complete, but unchecked by the earlier call
        return
    headers = dict(_HEADERS)
    if source:
        headers["Range"] = f"bytes={start}-"
        if source.url == url and (validator := source.etag or source.modified):
            headers["If-Range"] = validator
    changed = False
    try:
        with (
            public_session() if public else requests.Session() as session,
            session.get(url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)) as response,
        ):
            found = _described(url, response)
            changed = source is not None and (
                response.status_code == 416 or _has_changed(source, found, response, start, pinned)
            )
            if not changed:
                _check_status(response)
                start = 0 if response.status_code == 200 else start
                if size is not None and found.total not in (None, size):
                    raise _wrong_size(size, f"{found.total:,}", response.raw.read(512))
                if start == 0:
                    discard(part)
                    write_text(_sidecar(part), found.model_dump_json())
                ensure_room(part.parent, (found.total or start) - start)
                slowest = SLOWEST_STRANGER if public else SLOWEST
                _receive(response, part, start, found.total, size, slowest)
    except NotPublicError as error:
        raise NotFetched(str(error)) from error
    except (requests.ConnectionError, requests.Timeout, HTTPError) as error:
        raise NotFetched(_reason(error), temporary=True) from error
    except (requests.RequestException, ValueError) as error:  # not an address
        raise NotFetched(_reason(error)) from error
    if changed:
        discard(part)
        _attempt(url, part, size, pinned, public)
        return
    done, wanted = part.stat().st_size, found.total if found.total is not None else size
    if wanted is not None and done < wanted:
        with part.open("rb") as file:
            head = file.read(512)
        if is_html(head):
            raise _wrong_size(wanted, f"{done:,}", head)
        raise NotFetched(f"cut after {done:,} of {wanted:,} bytes", temporary=True)


def _receive(
    response: requests.Response,
    part: Path,
    start: int,
    total: int | None,
    size: int | None,
    slowest: int,
) -> None:
    """Append the body to the part; give up below `slowest` bytes per second."""
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
                if done - then < slowest * (now - since):
                    raise NotFetched(
                        f"slower than {slowest:,} bytes per second, given up after {done:,} bytes",
                        temporary=True,
                    )
                since, then = now, done


def _check_status(response: requests.Response) -> None:
    """Raise NotFetched unless the status is 200, or 206 to a range request."""
    code = response.status_code
    if code == 200 or (code == 206 and "Range" in response.request.headers):
        return
    text = f"HTTP {code} {response.reason or ''}".strip()
    if code == 202:
        text += " without a file (some servers ask programs to prove that they are browsers)"
    raise NotFetched(
        text,
        temporary=code in _TEMPORARY,
        wait_s=_retry_after(response.headers.get("Retry-After", "")),
    )


def _described(url: str, response: requests.Response) -> _Source:
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


def _has_changed(
    source: _Source, found: _Source, response: requests.Response, start: int, pinned: bool
) -> bool:
    """True if the range response does not continue our partial file."""
    if response.status_code != 206:
        return False  # not a range response
    start_sent = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if start_sent is None or int(start_sent[1]) != start or found.total != source.total:
        return True
    if pinned:
        return False  # the checksum will tell
    if source.etag:
        return found.etag != source.etag
    return found.modified != source.modified


def _retry_after(text: str) -> float:
    """Seconds in a ``Retry-After`` header (a number or a date); 0 without."""
    if text.isdecimal():
        return float(text)
    with suppress(ValueError):
        when = email.utils.parsedate_to_datetime(text)
        return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return 0.0


def _sidecar(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _wrong_size(size: int, got: str, head: bytes) -> NotFetched:
    page = " (the server returned an HTML page)" if is_html(head) else ""
    return NotFetched(f"expected {size:,} bytes, got {got}{page}", wrong_content=True)


def _reason(error: BaseException) -> str:
    """Text of the innermost cause; its wrappers add nothing."""
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
