"""A network and disks that fail: the right bytes arrive or a clear error, never anything else.

Every test talks to a real server that misbehaves on purpose; nothing of the client is replaced,
only its waits are shortened.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import json
import logging
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import termios
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from samples import PATIENCE_S

from gpattern_bench.errors import ChecksumError, FetchError
from gpattern_bench.sources import cached_file
from gpattern_bench.sources import fetch as fetching
from gpattern_bench.sources import http as download
from gpattern_bench.sources.fetch import MIRROR, OFFLINE, fetch, fetch_tables, provenance
from gpattern_bench.sources.registry import FinishedTables, SourceFile

HDF5 = b"\x89HDF\r\n\x1a\n"
CONTENT = HDF5 + b"".join(b"%07d\n" % i for i in range(5000))  # 40,008 bytes, none like another
OTHER = HDF5 + b"".join(b"%07d\n" % i for i in range(5000, 10000))  # as many
HALF = len(CONTENT) // 2
PATH = "set/points.h5ad"
PAGE = b"<!DOCTYPE html><html><title>Just a moment</title></html>"

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each GET by the next of the server's answers; the last one stays."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked.append((self.path, self.headers["Range"], self.headers["If-Range"]))
            answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        with contextlib.suppress(ConnectionError):
            answer(self)

    def log_message(self, *_: object) -> None:
        """Nobody reads a log of these."""

    def begin(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """A server of one file; `asked` has the path, Range and If-Range of every GET."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.answers: list[Answer] = [serve()]
        self.asked: list[tuple[str, str | None, str | None]] = []

    def handle_error(self, *_: object) -> None:
        """Clients of these tests hang up; that is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/points.h5ad"

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked, _ in self.asked]


# What a server can do


def serve(
    content: bytes = CONTENT,
    *,
    etag: str | None = '"1"',
    modified: str | None = None,
    ranges: bool = True,
    if_range: bool = True,
    upto: int | None = None,
) -> Answer:
    """The file, or its rest; `upto` bytes of the answer, then the line is dead."""

    def answer(handler: Handler) -> None:
        headers = {"ETag": etag} if etag else {}
        if modified:
            headers["Last-Modified"] = modified
        start, wanted = 0, re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        condition = handler.headers["If-Range"]
        same = not if_range or condition in (None, etag, modified)
        if ranges and wanted and same:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        handler.begin(206 if start else 200, len(body), **headers)
        handler.wfile.write(body[:upto])
        if upto is not None:
            handler.hang_up()

    return answer


def status(code: int, body: bytes = PAGE, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.begin(code, len(body), **headers)
        handler.wfile.write(body)

    return answer


def drip(handler: Handler) -> None:
    """A byte now and then: the connection never rests long enough to time out."""
    handler.begin(200, len(CONTENT), ETag='"1"')
    for i in range(len(CONTENT)):
        handler.wfile.write(CONTENT[i : i + 1])
        if handler.server.over.wait(0.1):
            return


def silence(handler: Handler) -> None:
    """Nothing, until the test is over."""
    handler.server.over.wait(PATIENCE_S)


def without_length(content: bytes, *, chunked: bool, whole: bool = True) -> Answer:
    def answer(handler: Handler) -> None:
        if chunked:
            handler.begin(200, None, Transfer_Encoding="chunked")
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
            handler.wfile.write(b"0\r\n\r\n" if whole else b"")
        else:
            handler.begin(200, None, Connection="close")
            handler.wfile.write(content)
        handler.hang_up()

    return answer


def moved(handler: Handler) -> None:
    handler.begin(302, 0, Location="/signed?key=1")


# The files


def pinned(*urls: str, content: bytes = CONTENT, size: bool = True) -> SourceFile:
    return SourceFile(
        path=PATH,
        urls=urls,
        bytes=len(content) if size else None,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def unpinned(*urls: str, path: str = PATH) -> SourceFile:
    return SourceFile(path=path, urls=urls, bytes=None, sha256=None)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACKOFF_S", 0.01)
    monkeypatch.setattr(download, "READ_S", PATIENCE_S)
    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.delenv(OFFLINE, raising=False)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client waits between two requests; of each it really waits some."""
    found, client, sleep = [], threading.get_ident(), time.sleep

    def noted(seconds: float) -> None:
        if threading.get_ident() == client:
            found.append(seconds)
        sleep(min(seconds, 0.1))

    monkeypatch.setattr(time, "sleep", noted)
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def mirror() -> Iterator[Server]:
    with serving() as server:
        yield server


def part_of(cache: Path) -> Path:
    return cache / ".fetch" / f"{PATH}.part"


def record_of(cache: Path) -> Path:
    return cache / ".fetch" / f"{PATH}.json"


def assert_nothing_there(cache: Path) -> None:
    """No source file, neither whole nor in part, where readers look."""
    found = [path for path in cache.rglob("*") if path.is_file() and ".fetch" not in path.parts]
    assert found == []


both = pytest.mark.parametrize("make", [pinned, unpinned])


# Connections that are cut


@both
@pytest.mark.parametrize("validator", [{"etag": '"1"'}, {"etag": None, "modified": "yesterday"}])
def test_cut_in_the_middle_is_continued(server, cache, make, validator):
    server.answers = [serve(upto=HALF, **validator), serve(**validator)]
    assert fetch(make(server.url), cache).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert not part_of(cache).exists()


def test_cut_at_each_attempt_of_a_large_file_goes_on_as_long_as_it_grows(server, cache):
    content = HDF5 + os.urandom(8 << 20)
    server.answers = [serve(content, upto=(1 << 20) + 5000)]
    assert fetch(pinned(server.url, content=content), cache).read_bytes() == content
    assert len(server.asked) == 8  # more than there are tries


def test_cut_before_anything_new_arrives_ends_in_words_and_keeps_the_part(server, cache):
    server.answers = [serve(upto=1000), serve(upto=0)]
    with pytest.raises(FetchError) as caught:
        fetch(pinned(server.url), cache)
    text = str(caught.value)
    assert f"could not fetch {PATH}. Tried: {server.url} (" in text
    assert "asked 4 times" in text
    assert "1,000 bytes are kept, to be continued" in text
    assert f"To place it by hand, put a file of {len(CONTENT):,} bytes with SHA-256 " in text
    assert f"at {cache / PATH}. It is published at {server.url};" in text
    assert not isinstance(caught.value, ChecksumError)
    assert_nothing_there(cache)
    server.answers = [serve()]
    assert fetch(pinned(server.url), cache).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=1000-"


def test_server_without_ranges_is_asked_for_all_of_it_again(server, cache):
    server.answers = [serve(upto=HALF, ranges=False), serve(ranges=False)]
    assert fetch(pinned(server.url), cache).read_bytes() == CONTENT


def test_server_without_ranges_that_always_cuts_is_given_up(server, cache):
    content = HDF5 + os.urandom(4 << 20)
    server.answers = [serve(content, upto=3 << 20, ranges=False)]
    with pytest.raises(FetchError, match="asked 4 times"):
        fetch(pinned(server.url, content=content), cache)
    assert len(server.asked) == 5  # one more, since the first attempt brought it on


@both
@pytest.mark.parametrize("chunked", [True, False])
def test_body_without_a_length(server, cache, make, chunked):
    server.answers = [without_length(CONTENT, chunked=chunked)]
    assert fetch(make(server.url), cache).read_bytes() == CONTENT


@both
def test_chunked_body_that_is_cut(server, cache, make):
    server.answers = [without_length(CONTENT[:HALF], chunked=True, whole=False), serve()]
    assert fetch(make(server.url), cache).read_bytes() == CONTENT


def test_body_without_a_length_that_is_shorter_than_pinned(server, cache):
    server.answers = [without_length(CONTENT[:HALF], chunked=False), serve()]
    assert fetch(pinned(server.url), cache).read_bytes() == CONTENT


def test_body_without_a_length_that_does_not_end(server, cache):
    server.answers = [without_length(CONTENT * 40, chunked=False)]
    with pytest.raises(ChecksumError, match=r"expected 40,008 bytes, got more"):
        fetch(pinned(server.url), cache)
    assert_nothing_there(cache)


def test_redirection_to_an_address_that_expires(server, cache):
    server.answers = [moved, serve(upto=HALF), moved, serve()]
    assert fetch(unpinned(server.url), cache).read_bytes() == CONTENT
    paths = ["/points.h5ad", "/signed?key=1"] * 2
    assert [path for path, _, _ in server.asked] == paths
    assert server.ranges[2:] == [f"bytes={HALF}-"] * 2


def test_part_that_was_whole_but_not_looked_at(server, cache):
    server.answers = [serve(upto=HALF), status(404)]
    with pytest.raises(FetchError):
        fetch(pinned(server.url), cache)
    part_of(cache).write_bytes(CONTENT)
    asked = len(server.asked)
    assert fetch(pinned(server.url), cache).read_bytes() == CONTENT
    assert len(server.asked) == asked


@pytest.mark.parametrize("left", [OTHER[:HALF], OTHER, CONTENT + b"more", b""])
def test_part_that_was_damaged_is_not_used(server, cache, left):
    server.answers = [serve(upto=HALF), status(404)]
    with pytest.raises(FetchError):
        fetch(pinned(server.url), cache)
    part_of(cache).write_bytes(left)
    server.answers = [serve()]
    assert fetch(pinned(server.url), cache).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [None, b"", b"{}", b"no json"])
def test_part_of_which_nothing_is_known_is_not_used(server, cache, left):
    part_of(cache).parent.mkdir(parents=True)
    part_of(cache).write_bytes(OTHER[:HALF])
    if left is not None:
        Path(f"{part_of(cache)}.json").write_bytes(left)
    assert fetch(unpinned(server.url), cache).read_bytes() == CONTENT
    assert server.ranges == [None]


# The file changes at the server between two attempts


@both
@pytest.mark.parametrize(
    "second",
    [
        serve(OTHER, etag='"2"'),  # the whole new file, as If-Range asks
        serve(OTHER, etag='"2"', if_range=False),  # the rest of the new file
        serve(OTHER, etag=None, if_range=False),  # the same, and it does not say so
        serve(OTHER[: HALF + 100], etag='"2"', if_range=False),
        serve(OTHER[:1000], etag='"2"', if_range=False),  # shorter than what is there
    ],
    ids=["If-Range", "other ETag", "no ETag", "shorter", "much shorter"],
)
def test_two_versions_are_never_stitched(server, cache, make, second):
    server.answers = [serve(upto=HALF), second]
    if make is pinned:
        with pytest.raises(ChecksumError):
            fetch(make(server.url), cache)
        assert_nothing_there(cache)
    else:
        content = fetch(make(server.url), cache).read_bytes()
        assert content == OTHER[: len(content)]
    assert server.asked[1][1:] == (f"bytes={HALF}-", '"1"')


@pytest.mark.parametrize("etag", [None, 'W/"1"'], ids=["none", "weak"])
def test_without_validator_and_checksum_nothing_is_continued(server, cache, etag):
    server.answers = [serve(upto=HALF, etag=etag), serve(OTHER, etag=etag)]
    assert fetch(unpinned(server.url), cache).read_bytes() == OTHER
    assert server.ranges == [None, None]


def test_answer_to_another_range_is_not_used(server, cache):
    def from_elsewhere(handler: Handler) -> None:
        body = CONTENT[HALF + 8 :]
        about = f"bytes {HALF + 8}-{len(CONTENT) - 1}/{len(CONTENT)}"
        handler.begin(206, len(body), ETag='"1"', Content_Range=about)
        handler.wfile.write(body)

    server.answers = [serve(upto=HALF), from_elsewhere, serve()]
    assert fetch(unpinned(server.url), cache).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-", None]


def test_range_that_the_server_cannot_satisfy(server, cache):
    server.answers = [serve(upto=HALF), status(416), serve()]
    assert fetch(unpinned(server.url), cache).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-", None]


def test_another_mirror_continues_a_file_whose_checksum_is_known(server, mirror, cache):
    server.answers = [serve(upto=HALF), status(404)]
    mirror.answers = [serve(etag='"other"')]
    assert fetch(pinned(server.url, mirror.url), cache).read_bytes() == CONTENT
    assert mirror.asked == [("/points.h5ad", f"bytes={HALF}-", None)]


def test_another_mirror_with_another_file_of_that_size_is_not_stitched(server, mirror, cache):
    server.answers = [serve(upto=HALF), status(404)]
    mirror.answers = [serve(OTHER)]
    with pytest.raises(ChecksumError):
        fetch(pinned(server.url, mirror.url), cache)
    assert_nothing_there(cache)
    assert mirror.ranges == [f"bytes={HALF}-", None]  # stitched, seen, and fetched anew
    server.answers = [serve(upto=HALF), serve()]
    assert fetch(pinned(server.url, mirror.url), cache).read_bytes() == CONTENT


def test_another_mirror_starts_anew_where_no_checksum_is_known(server, mirror, cache):
    server.answers = [serve(upto=HALF), status(404)]
    mirror.answers = [serve(OTHER)]
    assert fetch(unpinned(server.url, mirror.url), cache).read_bytes() == OTHER
    assert mirror.ranges == [None]


# Servers that say no


@pytest.mark.parametrize("code", [401, 403, 404, 410, 501])
def test_no_for_good_goes_to_the_next_address_at_once(server, mirror, cache, code):
    server.answers = [status(code)]
    assert fetch(pinned(server.url, mirror.url), cache).read_bytes() == CONTENT
    assert (len(server.asked), len(mirror.asked)) == (1, 1)


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_no_for_now_is_asked_again(server, cache, code):
    server.answers = [status(code), status(code), serve()]
    assert fetch(pinned(server.url), cache).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_no_for_now_tries_the_next_address_before_it_waits(server, mirror, cache, waits):
    server.answers = [status(503, Retry_After="60")]
    assert fetch(pinned(server.url, mirror.url), cache).read_bytes() == CONTENT
    assert waits == []


def test_every_address_and_its_reason_is_named(server, mirror, cache):
    server.answers = [status(403)]
    mirror.answers = [status(429)]
    dead = "http://127.0.0.1:9/points.h5ad"
    with pytest.raises(FetchError) as caught:
        fetch(unpinned(server.url, mirror.url, dead, "ftp://here/points.h5ad"), cache)
    text = str(caught.value)
    assert f"{server.url} (HTTP 403 Forbidden);" in text
    assert f"{mirror.url} (HTTP 429 Too Many Requests, asked 4 times);" in text
    assert f"{dead} (Connection refused, asked 4 times);" in text
    assert "ftp://here/points.h5ad (No connection adapters" in text
    assert f"To place it by hand, put the file at {cache / PATH}." in text
    assert (len(server.asked), len(mirror.asked)) == (1, 4)
    assert_nothing_there(cache)


def http_date(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("after", "least", "most"),
    [(lambda: "7", 7, 7), (lambda: http_date(7200), 3600, 7200)],
    ids=["seconds", "date"],
)
def test_retry_after_is_respected(server, cache, waits, monkeypatch, after, least, most):
    monkeypatch.setattr(fetching, "LONGEST_WAIT_S", 86400)
    server.answers = [status(503, Retry_After=after()), serve()]
    fetch(pinned(server.url), cache)
    [waited] = waits
    assert least <= waited <= most


@pytest.mark.parametrize(
    ("after", "waited"),
    [
        ("86400", 0.05),
        (lambda: http_date(86400), 0.05),
        ("soon", 0.01),
        ("-1", 0.01),
        (lambda: http_date(-9), 0.01),
        ("Fri, 99 Xyz", 0.01),
    ],
    ids=["day", "tomorrow", "word", "negative", "past", "no-date"],
)
def test_retry_after_without_measure_or_sense_is_not(
    server, cache, waits, monkeypatch, after, waited
):
    monkeypatch.setattr(fetching, "LONGEST_WAIT_S", 0.05)
    # Dates are made when the test runs: the clock in a test's id stops xdist.
    server.answers = [status(429, Retry_After=after() if callable(after) else after), serve()]
    fetch(pinned(server.url), cache)
    assert waits == [waited]


def test_waits_double(server, cache, waits):
    server.answers = [status(500), status(500), status(500), serve()]
    begun = time.monotonic()
    fetch(pinned(server.url), cache)
    assert time.monotonic() - begun >= 0.07
    assert waits == [0.01, 0.02, 0.04]


def test_first_mirror_that_is_dead_costs_no_wait(server, cache, waits):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # a port at which nobody listens
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}/points.h5ad"
        assert fetch(pinned(dead, server.url), cache).read_bytes() == CONTENT
    assert waits == []


@both
def test_challenge_for_browsers_is_not_the_file(server, mirror, cache, make):
    server.answers = [status(202, b"", X_Amzn_Waf_Action="challenge")]
    with pytest.raises(FetchError, match=r"HTTP 202 Accepted without a file \(some servers ask"):
        fetch(make(server.url), cache)
    assert fetch(make(server.url, mirror.url), cache).read_bytes() == CONTENT


# Servers that give something else


@both
@pytest.mark.parametrize(
    "page", [PAGE, b"\n <HTML>", b"\xef\xbb\xbf<!doctype html>" + CONTENT, b"<?xml version='1.0'?>"]
)
@pytest.mark.parametrize("path", [PATH, "tx.csv"])
def test_web_page_with_status_200_is_refused(server, mirror, cache, make, page, path):
    server.answers = [serve(page)]
    file = make(server.url).model_copy(update={"path": path})
    with pytest.raises(ChecksumError, match="the server returned an HTML page"):
        fetch(file, cache)
    assert_nothing_there(cache)
    assert len(server.asked) == 1
    both = file.model_copy(update={"urls": (server.url, mirror.url)})
    assert fetch(both, cache).read_bytes() == CONTENT


def test_web_page_without_a_length_is_refused(server, cache):
    server.answers = [without_length(PAGE, chunked=False)]
    with pytest.raises(ChecksumError, match="the server returned an HTML page"):
        fetch(pinned(server.url), cache)
    assert len(server.asked) == 1


def test_wrong_checksum_goes_to_the_next_address(server, mirror, cache):
    server.answers = [serve(OTHER)]
    with pytest.raises(ChecksumError, match="expected SHA-256") as caught:
        fetch(pinned(server.url), cache)
    assert hashlib.sha256(OTHER).hexdigest() in str(caught.value)
    assert_nothing_there(cache)
    assert fetch(pinned(server.url, mirror.url), cache).read_bytes() == CONTENT


def test_wrong_size_is_refused_before_it_is_downloaded(server, cache):
    server.answers = [serve(CONTENT * 1000)]
    with pytest.raises(ChecksumError, match=r"expected 40,008 bytes, got 40,008,000\)"):
        fetch(pinned(server.url), cache)
    assert not part_of(cache).exists()


def test_git_blob_id_is_a_checksum(server, cache):
    def blob(content: bytes) -> SourceFile:
        header = b"blob %d\0" % len(content)
        name = hashlib.sha1(header + content).hexdigest()
        return SourceFile(path=PATH, urls=(server.url,), bytes=None, sha256=None, git_blob=name)

    assert blob(b"what is up, doc?").git_blob == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    with pytest.raises(ChecksumError, match=f"expected Git blob id {blob(OTHER).git_blob}, got"):
        fetch(blob(OTHER), cache)
    assert_nothing_there(cache)
    assert fetch(blob(CONTENT), cache).read_bytes() == CONTENT
    assert fetch(blob(CONTENT), cache, download=False).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "content", "what"),
    [
        ("points.h5ad", b"fov,x\n1,2\n", "it is not an HDF5 file"),
        ("points.h5", HDF5[:4], "it is not an HDF5 file"),
        ("tx.parquet", b"PAR1 and its end is missing", "it is not a Parquet file"),
        ("tx.parquet", b"missing PAR1", "it is not a Parquet file"),
        ("tx.tar.gz", b"tx.csv\0\0\0\0", "it is not a gzip file"),
        ("tx.csv", b"", "it is empty"),
    ],
)
def test_other_formats_are_refused(server, cache, path, content, what):
    server.answers = [serve(content)]
    with pytest.raises(ChecksumError, match=what):
        fetch(unpinned(server.url, path=path), cache)
    assert_nothing_there(cache)


@pytest.mark.parametrize(
    ("path", "content"),
    [("tx.parquet", b"PAR1...PAR1"), ("tx.tar.gz", b"\x1f\x8b..."), ("tx.csv", b"fov,x\n")],
)
def test_right_formats_are_taken(server, cache, path, content):
    server.answers = [serve(content)]
    assert fetch(unpinned(server.url, path=path), cache).read_bytes() == content


def test_compression_that_the_server_declares_is_not_undone(server, cache):
    def declared(handler: Handler) -> None:
        assert handler.headers["Accept-Encoding"] == "identity"
        handler.begin(200, 5, Content_Encoding="gzip")
        handler.wfile.write(b"\x1f\x8b...")

    server.answers = [declared]
    assert fetch(unpinned(server.url, path="tx.tar.gz"), cache).read_bytes() == b"\x1f\x8b..."


# Servers that are slow


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second without a byte is too long; who answers may need a second try."""
    monkeypatch.setattr(download, "READ_S", 1)
    monkeypatch.setattr(fetching, "TRIES", 3)


@pytest.mark.usefixtures("hasty")
@pytest.mark.slow
def test_slow_drip_is_given_up(server, mirror, cache):
    server.answers = [drip]
    begun = time.monotonic()
    assert fetch(pinned(server.url, mirror.url), cache).read_bytes() == CONTENT
    assert time.monotonic() - begun >= 1
    assert len(mirror.asked) >= 1
    (cache / PATH).unlink()
    with pytest.raises(FetchError, match=r"slower than 1,024 bytes per second, given up after"):
        fetch(pinned(server.url), cache)
    assert_nothing_there(cache)


@pytest.mark.usefixtures("hasty")
@pytest.mark.slow
def test_silence_is_given_up(server, mirror, cache):
    server.answers = [silence]
    assert fetch(pinned(server.url, mirror.url), cache).read_bytes() == CONTENT
    (cache / PATH).unlink()
    with pytest.raises(FetchError, match=r"timed out"):
        fetch(pinned(server.url), cache)


# A checksum that nobody publishes


def test_first_download_is_recorded(server, cache, caplog):
    with caplog.at_level(logging.INFO, "gpattern_bench"):
        fetch(unpinned(server.url), cache)
    record = json.loads(record_of(cache).read_text())
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert (record["bytes"], record["address"]) == (len(CONTENT), server.url)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])
    assert "recorded as the first" in caplog.text
    assert provenance(unpinned(server.url), cache) == {
        "path": PATH,
        "urls": [server.url],
        "bytes": len(CONTENT),
        "sha256": record["sha256"],
        "git_blob": None,
        "checksum": "first download",
    }


def test_provenance_of_a_pinned_file_is_the_registry(server, cache):
    file = pinned(server.url)
    fetch(file, cache)
    assert provenance(file, cache) == file.model_dump(mode="json") | {"checksum": "published"}
    assert not record_of(cache).exists()


def test_later_download_must_be_the_first_one(server, mirror, cache):
    file = unpinned(server.url)
    fetch(file, cache).unlink()
    record = json.loads(record_of(cache).read_text()) | {"date": "2001-02-03"}
    record_of(cache).write_text(json.dumps(record))
    fetch(file, cache).unlink()
    assert json.loads(record_of(cache).read_text())["date"] == "2001-02-03"
    mirror.answers = [serve(OTHER)]
    with pytest.raises(ChecksumError) as caught:
        fetch(unpinned(mirror.url), cache)
    text = str(caught.value)
    for content in (CONTENT, OTHER):
        assert f"40,008 bytes and SHA-256 {hashlib.sha256(content).hexdigest()}" in text
    assert "the first one, recorded on 2001-02-03," in text
    assert f"To accept the new one, remove {record_of(cache)}" in text
    assert_nothing_there(cache)
    assert fetch(unpinned(mirror.url, server.url), cache).read_bytes() == CONTENT
    (cache / PATH).unlink()
    record_of(cache).unlink()
    assert fetch(unpinned(mirror.url), cache).read_bytes() == OTHER


@pytest.mark.parametrize("off", [True, False])
def test_file_that_was_placed_by_hand_is_the_first(server, cache, off):
    (cache / PATH).parent.mkdir(parents=True)
    (cache / PATH).write_bytes(OTHER)
    assert fetch(unpinned(server.url), cache, download=not off).read_bytes() == OTHER
    assert json.loads(record_of(cache).read_text())["address"] is None
    assert server.asked == []


@pytest.mark.parametrize("content", [OTHER, PAGE, b""])
def test_file_that_is_no_longer_the_first_is_fetched_again(server, cache, content):
    fetch(unpinned(server.url), cache).write_bytes(content)
    with pytest.raises(FetchError, match="download is off"):
        fetch(unpinned(server.url), cache, download=False)
    assert fetch(unpinned(server.url), cache).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [PAGE, b"", b"fov,x\n"])
def test_file_that_was_placed_by_hand_must_be_of_its_format(server, cache, content):
    (cache / PATH).parent.mkdir(parents=True)
    (cache / PATH).write_bytes(content)
    with pytest.raises(FetchError, match="download is off"):
        fetch(unpinned(server.url), cache, download=False)
    assert fetch(unpinned(server.url), cache).read_bytes() == CONTENT


@both
def test_large_file_is_hashed_again_only_when_it_changed(server, cache, monkeypatch, make):
    monkeypatch.setattr(cached_file, "LARGE", 0)
    path = fetch(make(server.url), cache)
    before = path.stat()
    path.write_bytes(OTHER)  # nobody can know, if size and time say nothing
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetch(make(server.url), cache, download=False).read_bytes() == OTHER
    os.utime(path)
    with pytest.raises(FetchError, match=hashlib.sha256(OTHER).hexdigest()):
        fetch(make(server.url), cache, download=False)
    assert fetch(make(server.url), cache).read_bytes() == CONTENT
    os.utime(path)
    assert fetch(make(server.url), cache, download=False).read_bytes() == CONTENT
    assert json.loads(record_of(cache).read_text())["mtime_ns"] == path.stat().st_mtime_ns


def test_record_is_no_proof_against_the_registry(server, cache, monkeypatch):
    monkeypatch.setattr(cached_file, "LARGE", 0)
    fetch(pinned(server.url), cache)
    with pytest.raises(FetchError, match="expected SHA-256"):
        fetch(pinned(server.url, content=OTHER), cache, download=False)


# Offline


def test_offline_uses_the_cache(server, cache, monkeypatch):
    fetch(unpinned(server.url), cache)
    monkeypatch.setenv(OFFLINE, "1")
    assert fetch(unpinned(server.url), cache).read_bytes() == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize("by_mirror", [True, False])
def test_offline_without_the_file_asks_nobody_and_says_so(server, cache, monkeypatch, by_mirror):
    monkeypatch.setenv(OFFLINE, "1")
    url = "https://publisher.invalid/points.h5ad" if by_mirror else server.url
    if by_mirror:
        monkeypatch.setenv(MIRROR, server.url)
    with pytest.raises(FetchError) as caught:
        fetch(pinned(url), cache)
    assert f"not asked, {OFFLINE} is set" in str(caught.value)
    assert f"at {cache / PATH}. It is published at {url};" in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize("value", ["0", "false", ""])
def test_offline_can_be_switched_off(server, cache, monkeypatch, value):
    monkeypatch.setenv(OFFLINE, value)
    assert fetch(pinned(server.url), cache).read_bytes() == CONTENT


@pytest.mark.parametrize("way", ["folder", "file: mirror", "file: address"])
def test_offline_uses_folders(server, tmp_path, cache, monkeypatch, way):
    monkeypatch.setenv(OFFLINE, "1")
    (tmp_path / "here" / PATH).parent.mkdir(parents=True)
    (tmp_path / "here" / PATH).write_bytes(CONTENT)
    url = server.url
    if way == "file: address":
        url = (tmp_path / "here" / PATH).as_uri()
    else:
        here = tmp_path / "here"
        monkeypatch.setenv(MIRROR, str(here) if way == "folder" else here.as_uri())
    assert fetch(pinned(url), cache).read_bytes() == CONTENT


def test_mirror_is_asked_instead_of_the_addresses(server, tmp_path, cache, monkeypatch):
    monkeypatch.setenv(MIRROR, str(tmp_path))
    with pytest.raises(FetchError, match=f"{MIRROR} is set: unset it to ask there") as caught:
        fetch(pinned(server.url), cache)
    assert f"{tmp_path / PATH} (No such file or directory)" in str(caught.value)
    assert server.asked == []


def test_mirror_is_asked_for_a_file_without_a_checksum(server, cache, monkeypatch):
    monkeypatch.setenv(MIRROR, server.url.removesuffix("/points.h5ad"))
    fetch(unpinned("https://publisher.invalid/points.h5ad"), cache)
    assert json.loads(record_of(cache).read_text())["address"].endswith(f"/{PATH}")


# Processes


CHILD = """
import json, os, resource, sys
from pathlib import Path
from gpattern_bench.sources import http as download
from gpattern_bench.errors import FetchError
from gpattern_bench.sources.fetch import fetch
from gpattern_bench.sources.registry import SourceFile
file, cache, before = json.loads(sys.argv[1])
download.BACKOFF_S = 0.01
exec(before)
print("ready", flush=True)
try:
    print(fetch(SourceFile(**file), Path(cache)))
except FetchError as error:
    print(type(error).__name__, error)
"""


def child(file: SourceFile, cache: Path, before: str = "", **popen: object) -> subprocess.Popen:
    """Fetch in a process of its own, in which `before` runs first."""
    arguments = json.dumps([file.model_dump(), str(cache), textwrap.dedent(before)])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **popen},
    )


def said(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert err == ""  # no bar where nobody sees it
    return out.removeprefix("ready\n").strip()


@pytest.mark.slow
def test_four_processes_fetch_once_through_a_cut(server, cache):
    server.answers = [serve(upto=HALF), serve()]
    workers = [child(unpinned(server.url), cache) for _ in range(4)]
    assert [said(worker) for worker in workers] == [str(cache / PATH)] * 4
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert (cache / PATH).read_bytes() == CONTENT


def test_process_that_is_killed_is_continued_by_the_next(server, cache):
    def half_and_wait(handler: Handler) -> None:
        handler.begin(200, len(CONTENT), ETag='"1"')
        handler.wfile.write(CONTENT[:HALF])
        gone.wait(PATIENCE_S)

    gone = threading.Event()
    server.answers = [half_and_wait, serve()]
    worker = child(unpinned(server.url), cache)
    until = time.monotonic() + PATIENCE_S
    while not (part_of(cache).exists() and part_of(cache).stat().st_size == HALF):
        assert time.monotonic() < until
        assert worker.poll() is None
        time.sleep(0.02)
    worker.kill()
    worker.communicate()
    gone.set()
    assert worker.returncode == -9
    assert_nothing_there(cache)
    assert fetch(unpinned(server.url), cache).read_bytes() == CONTENT
    assert server.asked[1][1:] == (f"bytes={HALF}-", '"1"')


# Disks


@contextlib.contextmanager
def owned_by_nobody() -> Iterator[Path]:
    """A folder that an unprivileged user can reach, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder / "cache"
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    shutil.rmtree(folder)


UNPRIVILEGED = """
import encodings.idna
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""


@both
def test_read_only_cache_with_the_file_works(server, make):
    with owned_by_nobody() as cache:
        fetch(make(server.url), cache)
        subprocess.run(["chmod", "-R", "a-w,a+rX", str(cache)], check=True)
        assert said(child(make(server.url), cache, UNPRIVILEGED)) == str(cache / PATH)
    assert len(server.asked) == 1


def test_read_only_cache_with_a_file_placed_by_hand_works(server):
    with owned_by_nobody() as cache:
        (cache / PATH).parent.mkdir(parents=True)
        (cache / PATH).write_bytes(CONTENT)
        subprocess.run(["chmod", "-R", "a-w,a+rX", str(cache)], check=True)
        assert said(child(unpinned(server.url), cache, UNPRIVILEGED)) == str(cache / PATH)
    assert server.asked == []


def test_read_only_cache_without_the_file_says_so(server):
    with owned_by_nobody() as cache:
        cache.mkdir()
        cache.chmod(0o555)
        text = said(child(pinned(server.url), cache, UNPRIVILEGED))
    assert text.startswith(f"FetchError {PATH}: the cache {cache} cannot be used")
    assert "Permission denied" in text
    assert "GPATTERN_BENCH_DATA" in text


def test_file_size_limit_is_a_clear_error_and_the_part_is_continued(server, cache):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    text = said(child(pinned(server.url), cache, limit))
    assert text.startswith(f"FetchError {PATH}: no room for it below {cache} (File too large).")
    assert f"20,000 bytes arrived and are kept in {part_of(cache)}, to be continued." in text
    assert_nothing_there(cache)
    assert fetch(pinned(server.url), cache).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=20000-"]


def test_copy_that_hits_a_limit_leaves_nothing(tmp_path, cache):
    (tmp_path / "points.h5ad").write_bytes(CONTENT)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    file = pinned((tmp_path / "points.h5ad").as_uri())
    assert "no room for it" in said(child(file, cache, limit))
    assert not part_of(cache).exists()
    assert_nothing_there(cache)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs more rights than this process has")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("told", [True, False], ids=["before", "meanwhile"])
def test_full_disk_is_a_clear_error(server, small_disk, told):
    if not told:  # without a length, nobody can know before
        server.answers = [without_length(CONTENT, chunked=True)]
    filler = small_disk / "filler"
    filler.write_bytes(bytes(32 << 10))
    with pytest.raises(FetchError, match=r"no room for it below .*GPATTERN_BENCH_DATA") as caught:
        fetch(unpinned(server.url), small_disk)
    told_words = r"40,008 bytes are needed, \d+,\d+ are free"
    assert re.search(told_words if told else "No space left on device", str(caught.value))
    assert_nothing_there(small_disk / "set")
    filler.unlink()
    assert fetch(unpinned(server.url), small_disk).read_bytes() == CONTENT


def test_file_larger_than_any_disk_is_refused_before_it_is_downloaded(server, cache):
    def huge(handler: Handler) -> None:
        handler.begin(200, 1 << 60, ETag='"1"')
        handler.wfile.write(CONTENT)

    server.answers = [huge]
    with pytest.raises(FetchError, match=r"1,152,921,504,606,846,976 bytes are needed, \d"):
        fetch(unpinned(server.url), cache)


# Progress


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal(server, cache):
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    try:
        worker = child(pinned(server.url), cache, stderr=terminal)
        assert worker.communicate(timeout=PATIENCE_S)[0] == f"ready\n{cache / PATH}\n"
        os.close(terminal)
        shown = os.read(master, 10_000).decode()
    finally:
        os.close(master)
    assert "points.h5ad: 100%" in shown
    assert "40.0k/40.0k" in shown


# Finished tables


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, str]:
    """A folder as `export` writes it, and its manifest's SHA-256."""
    folder = tmp_path / "export"
    folder.mkdir()
    files = {"molecules.parquet": b"PAR1 molecules PAR1", "labels.parquet": b"PAR1 labels PAR1"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    facts = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "rows": 1}
        for name, content in files.items()
    }
    return folder, write_manifest(folder, {"name": "mine", "files": facts})


def write_manifest(folder: Path, manifest: object) -> str:
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def folder_of(path: Path) -> Answer:
    """Serve the files of a folder."""

    def answer(handler: Handler) -> None:
        file = path / handler.path.removeprefix("/tables/")
        if file.is_file():
            serve(file.read_bytes())(handler)
        else:
            status(404)(handler)

    return answer


@pytest.mark.parametrize("slash", ["", "/"])
def test_finished_tables_are_fetched_by_their_manifest(server, mirror, cache, tables, slash):
    folder, sha256 = tables
    server.answers = [status(404)]
    mirror.answers = [folder_of(folder)]
    urls = [address.url.replace("points.h5ad", f"tables{slash}") for address in (server, mirror)]
    found = fetch_tables(FinishedTables(urls=urls, sha256=sha256), "tables/mine/1.0.0", cache)
    assert found == cache / "tables/mine/1.0.0"
    names = sorted(path.name for path in found.iterdir())
    assert names == ["labels.parquet", "manifest.json", "molecules.parquet"]
    assert all((found / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert len(mirror.asked) == 3
    server.answers = mirror.answers = [status(500)]
    assert (
        fetch_tables(FinishedTables(urls=urls, sha256=sha256), "tables/mine/1.0.0", cache) == found
    )


def test_finished_tables_from_a_mirror(cache, tables, tmp_path, monkeypatch):
    folder, sha256 = tables
    (tmp_path / "mirror/tables/mine").mkdir(parents=True)
    folder.rename(tmp_path / "mirror/tables/mine/1.0.0")
    monkeypatch.setenv(MIRROR, str(tmp_path / "mirror"))
    monkeypatch.setenv(OFFLINE, "1")
    published = FinishedTables(urls=["https://publisher.invalid/mine"], sha256=sha256)
    assert len(list(fetch_tables(published, "tables/mine/1.0.0", cache).iterdir())) == 3


@pytest.mark.parametrize("name", ["manifest.json", "labels.parquet"])
def test_finished_tables_with_another_file_are_refused(server, cache, tables, name):
    folder, sha256 = tables
    server.answers = [folder_of(folder)]
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + b"?")
    published = FinishedTables(urls=[server.url.replace("points.h5ad", "tables")], sha256=sha256)
    with pytest.raises(ChecksumError, match=name):
        fetch_tables(published, "tables/mine/1.0.0", cache)
    assert not (cache / "tables/mine/1.0.0" / name).exists()


FACTS = {"bytes": 3, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        [],
        {"files": ["labels.parquet"]},
        {"files": {"labels.parquet": {"bytes": 3}}},
        {"files": {"../../../labels.parquet": FACTS}},
        {"files": {"labels.parquet": FACTS | {"sha256": "no"}}},
    ],
)
def test_manifest_that_names_no_files_is_refused(server, cache, tables, manifest):
    folder, _ = tables
    sha256 = write_manifest(folder, manifest)
    server.answers = [folder_of(folder)]
    published = FinishedTables(urls=[server.url.replace("points.h5ad", "tables")], sha256=sha256)
    with pytest.raises(FetchError, match=r"manifest\.json does not name its files"):
        fetch_tables(published, "tables/mine/1.0.0", cache)
    assert len(server.asked) == 1
