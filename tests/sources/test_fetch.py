"""Source files come from mirror or address, whole and with the pinned bytes or not at all."""

import hashlib
import multiprocessing
import threading
import time
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from samples import PATIENCE_S
from werkzeug import Request, Response

from gpattern_bench.base.files import file_sha256, replacing, write_text
from gpattern_bench.errors import ChecksumError, FetchError
from gpattern_bench.sources.cache import CACHE, cache_root
from gpattern_bench.sources.fetch import MIRROR, fetch
from gpattern_bench.sources.registry import SourceFile

CONTENT = b"molecules " * 1000
PATH = "set/part one.h5ad"  # a name that an address must quote


def source(url: str = "https://example.invalid/part%20one.h5ad") -> SourceFile:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return SourceFile(path=PATH, urls=(url,), bytes=len(CONTENT), sha256=digest)


def put(folder: Path, content: bytes = CONTENT) -> Path:
    """A mirror folder with the file."""
    (folder / PATH).parent.mkdir(parents=True)
    (folder / PATH).write_bytes(content)
    return folder


def left_in(cache: Path) -> list[str]:
    """Files in the cache, without what fetch keeps for itself."""
    return sorted(
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and ".fetch" not in path.parts
    )


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpattern_bench.sources.http.BACKOFF_S", 0.01)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# Where it comes from


def test_folder_as_mirror(tmp_path, cache, monkeypatch):
    monkeypatch.setenv(MIRROR, str(put(tmp_path / "mirror")))
    assert fetch(source(), cache) == cache / PATH
    assert (cache / PATH).read_bytes() == CONTENT
    assert left_in(cache) == [PATH]


@pytest.mark.parametrize("name", ["mirror", "a mirror", "50% #1?"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_file_address_as_mirror(tmp_path, cache, monkeypatch, name, slash):
    monkeypatch.setenv(MIRROR, put(tmp_path / name).as_uri() + slash)
    assert fetch(source(), cache).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["a mirror", "50% #1?", "a:b"])
def test_folder_with_an_odd_name_as_mirror(tmp_path, cache, monkeypatch, name):
    put(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(MIRROR, f"./{name}")
    assert fetch(source(), cache).read_bytes() == CONTENT


@pytest.mark.parametrize("slash", ["", "/"])
def test_http_mirror(httpserver: HTTPServer, cache, monkeypatch, slash):
    httpserver.expect_request(f"/mirror/{PATH}").respond_with_data(CONTENT)
    monkeypatch.setenv(MIRROR, httpserver.url_for("/mirror") + slash)
    assert fetch(source(), cache).read_bytes() == CONTENT
    assert left_in(cache) == [PATH]


def test_pinned_address_without_a_mirror(httpserver: HTTPServer, cache, monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    httpserver.expect_oneshot_request("/pinned/file").respond_with_data(CONTENT)
    assert fetch(source(httpserver.url_for("/pinned/file")), cache).read_bytes() == CONTENT


def test_server_learns_who_asks(httpserver: HTTPServer, cache, monkeypatch):
    monkeypatch.setenv(MIRROR, httpserver.url_for(""))
    httpserver.expect_request(f"/{PATH}").respond_with_data(CONTENT)
    fetch(source(), cache)
    [(request, _)] = httpserver.log
    assert request.headers["User-Agent"].startswith("gpattern-bench/")


def test_redirection_is_followed(httpserver: HTTPServer, cache):
    moved = Response(status=302, headers={"Location": httpserver.url_for("/new")})
    httpserver.expect_request("/old").respond_with_response(moved)
    httpserver.expect_request("/new").respond_with_data(CONTENT)
    assert fetch(source(httpserver.url_for("/old")), cache).read_bytes() == CONTENT


def test_arrived_file_can_be_read_by_others(tmp_path, cache, monkeypatch):
    monkeypatch.setenv(MIRROR, str(put(tmp_path / "mirror")))
    assert fetch(source(), cache).stat().st_mode & 0o777 == 0o644


# The file is there already


@pytest.mark.usefixtures("socket_disabled")
@pytest.mark.parametrize("download", [True, False])
def test_file_in_the_cache_is_not_fetched(cache, download):
    put(cache)
    assert fetch(source(), cache, download=download) == cache / PATH


@pytest.mark.parametrize(
    "content", [b"", b"cut", CONTENT[:-1] + b"?"], ids=["empty", "cut", "same size"]
)
def test_file_in_the_cache_with_other_bytes_is_fetched_again(tmp_path, cache, monkeypatch, content):
    put(cache, content)
    monkeypatch.setenv(MIRROR, str(put(tmp_path / "mirror")))
    assert fetch(source(), cache).read_bytes() == CONTENT
    assert left_in(cache) == [PATH]


def test_file_in_the_cache_stays_where_another_cannot_be_had(tmp_path, cache, monkeypatch):
    put(cache, b"by hand")
    monkeypatch.setenv(MIRROR, str(put(tmp_path / "mirror", b"wrong")))
    with pytest.raises(ChecksumError):
        fetch(source(), cache)
    assert (cache / PATH).read_bytes() == b"by hand"


# Without download


@pytest.mark.usefixtures("socket_disabled")
def test_download_off_says_what_is_missing_and_where_to_put_it(cache):
    with pytest.raises(FetchError) as caught:
        fetch(source(), cache, download=False)
    for text in ("download is off", PATH, f"{len(CONTENT):,} bytes", source().sha256, MIRROR):
        assert text in str(caught.value)
    assert str(cache / PATH) in str(caught.value)
    assert source().urls[0] in str(caught.value)
    assert not cache.exists()


def test_download_off_says_how_a_file_placed_by_hand_differs(cache):
    put(cache, b"wrong")
    with pytest.raises(FetchError, match=r"expected 10,000 bytes, got 5"):
        fetch(source(), cache, download=False)


# Other bytes


PAGE = b"<!DOCTYPE html><title>Sign in</title>"


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (CONTENT[:-1], "expected 10,000 bytes, got 9,999"),
        (CONTENT + b"?", "expected 10,000 bytes, got 10,001"),
        (CONTENT[:-1] + b"?", hashlib.sha256(CONTENT[:-1] + b"?").hexdigest()),
        (b"", "expected 10,000 bytes, got 0"),
        (PAGE, "got 37 (the server returned an HTML page)"),
    ],
    ids=["shorter", "longer", "same size", "empty", "HTML"],
)
def test_other_bytes_are_refused_in_words(httpserver: HTTPServer, cache, monkeypatch, content, got):
    httpserver.expect_request(f"/{PATH}").respond_with_data(content)
    monkeypatch.setenv(MIRROR, httpserver.url_for(""))
    with pytest.raises(ChecksumError) as caught:
        fetch(source(), cache)
    text = str(caught.value)
    assert text.startswith(f"could not fetch {PATH}. ")
    assert f"{httpserver.url_for('/set/part%20one.h5ad')} (" in text
    assert got in text
    assert source().sha256 in text
    assert f"at {cache / PATH}." in text
    assert left_in(cache) == []


# It cannot be had


def test_file_that_the_mirror_lacks(tmp_path, cache, monkeypatch):
    monkeypatch.setenv(MIRROR, str(tmp_path))
    with pytest.raises(FetchError, match=r"could not fetch .*To place it by hand") as caught:
        fetch(source(), cache)
    assert not isinstance(caught.value, ChecksumError)
    assert str(tmp_path / PATH) in str(caught.value)
    assert left_in(cache) == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_error_of_the_server(httpserver: HTTPServer, cache, monkeypatch, status):
    httpserver.expect_request(f"/{PATH}").respond_with_data(PAGE, status=status)
    monkeypatch.setenv(MIRROR, httpserver.url_for(""))
    with pytest.raises(FetchError, match=rf"could not fetch {PATH}.*{status}.*by hand"):
        fetch(source(), cache)
    assert left_in(cache) == []


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/file", "ftp://127.0.0.1/file", "http://[/file"]
)
def test_address_that_nobody_serves(cache, monkeypatch, url):
    monkeypatch.delenv(MIRROR, raising=False)
    with pytest.raises(FetchError, match="could not fetch"):
        fetch(source(url), cache)
    assert left_in(cache) == []


def test_cache_that_is_a_file(tmp_path, cache, monkeypatch):
    monkeypatch.setenv(MIRROR, str(put(tmp_path / "mirror")))
    cache.write_text("not a folder")
    with pytest.raises(FetchError, match=str(cache)):
        fetch(source(), cache)


# Several at once


def fetch_when_all_are_ready(
    barrier: threading.Barrier, file: SourceFile, cache: Path, mirror: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MIRROR, mirror)
        barrier.wait(PATIENCE_S)
        assert fetch(file, cache).read_bytes() == CONTENT


@pytest.mark.slow
def test_four_processes_fetch_once(httpserver: HTTPServer, cache):
    def slow(request: Request) -> Response:
        time.sleep(0.3)
        return Response(CONTENT)

    httpserver.expect_request(f"/{PATH}").respond_with_handler(slow)
    spawn = multiprocessing.get_context("spawn")
    arguments = (spawn.Barrier(4), source(), cache, httpserver.url_for(""))
    workers = [spawn.Process(target=fetch_when_all_are_ready, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE_S)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(httpserver.log) == 1
    assert left_in(cache) == [PATH]


def test_waiting_thread_takes_what_the_first_fetched(httpserver: HTTPServer, cache, monkeypatch):
    arrived, finish = threading.Event(), threading.Event()

    def wait(request: Request) -> Response:
        arrived.set()
        finish.wait(PATIENCE_S)
        return Response(CONTENT)

    httpserver.expect_request(f"/{PATH}").respond_with_handler(wait)
    monkeypatch.setenv(MIRROR, httpserver.url_for(""))
    threads = [threading.Thread(target=fetch, args=(source(), cache)) for _ in range(2)]
    threads[0].start()
    assert arrived.wait(PATIENCE_S)
    assert left_in(cache) == []  # nothing in its place before it is whole and compared
    threads[1].start()
    finish.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(httpserver.log) == 1
    assert (cache / PATH).read_bytes() == CONTENT


# The cache's place


def test_cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(CACHE, str(tmp_path / "from environment"))
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert cache_root("~/given") == tmp_path / "given"
    assert cache_root() == tmp_path / "from environment"
    monkeypatch.delenv(CACHE)
    assert cache_root().is_absolute()
    assert cache_root().name == "gpattern-bench"


# Whole or not at all


def test_replacing_takes_the_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as beside:
        assert beside.parent == path.parent
        beside.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_replacing_keeps_the_old_file_on_failure(tmp_path):
    def write_half() -> None:
        with replacing(path) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "text", "µm")
    assert (tmp_path / "text").read_bytes() == b"\xc2\xb5m"


def test_file_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert file_sha256(tmp_path / "file") == source().sha256
