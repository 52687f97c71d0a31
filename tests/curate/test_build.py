"""From a registry entry to tables: curated here or finished elsewhere, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from samples import PATIENCE_S

from gpattern_bench import load_dataset
from gpattern_bench.base.files import file_sha256
from gpattern_bench.curate.build import build, curate, export_tables
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import ChecksumError, FetchError, SourceError, TableError
from gpattern_bench.sources.registry import Entry, FinishedTables, find_entry


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path):
    """A folder, and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def finished(served: tuple[Path, str]) -> Entry:
    """`synthetic`, as tables that were exported and are served."""
    folder, address = served
    digest = export_tables(load_dataset("synthetic").folder, folder / "synthetic")
    tables = FinishedTables(urls=(f"{address}/synthetic",), sha256=digest)
    return find_entry("synthetic").model_copy(update={"tables": tables})


def contents(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in folder.glob("*.*") if path.is_file()}


@pytest.mark.slow
def test_export_has_every_file_and_its_sum(tmp_path: Path):
    source = load_dataset("synthetic").folder
    digest = export_tables(source, tmp_path / "out")
    sums = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in sums)}
    assert listed == contents(source)
    assert digest == listed["manifest.json"]
    Dataset(tmp_path / "out").verify()


def test_export_into_a_folder_in_use_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TableError, match="not empty"):
        export_tables(load_dataset("synthetic").folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_finished_tables_are_the_same_dataset(finished: Entry, tmp_path: Path):
    folder = build(finished, tmp_path / "root")
    assert folder == tmp_path / "root" / "synthetic" / "1.0.0"
    assert contents(folder) == contents(load_dataset("synthetic").folder)
    Dataset(folder).verify()


def test_finished_tables_that_were_changed_are_refused(
    finished: Entry, served: tuple[Path, str], tmp_path: Path
):
    labels = served[0] / "synthetic" / "labels.parquet"
    damaged = bytearray(labels.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    labels.write_bytes(damaged)
    with pytest.raises(ChecksumError, match=r"labels\.parquet"):
        build(finished, tmp_path / "root")
    assert not (tmp_path / "root" / "synthetic" / "1.0.0").exists()


def test_finished_tables_of_another_dataset_are_refused(finished: Entry, tmp_path: Path):
    other = finished.model_copy(update={"name": "other"})
    with pytest.raises(TableError, match=r"expected the tables of other@1\.0\.0"):
        build(other, tmp_path / "root")


def test_finished_tables_need_the_network_once(
    finished: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GPATTERN_BENCH_OFFLINE", "1")
    with pytest.raises(FetchError):
        build(finished, tmp_path / "root")
    monkeypatch.delenv("GPATTERN_BENCH_OFFLINE")
    folder = build(finished, tmp_path / "root")
    monkeypatch.setenv("GPATTERN_BENCH_OFFLINE", "1")
    assert build(finished, tmp_path / "root", download=False) == folder


@pytest.mark.slow
def test_what_a_killed_process_left_is_removed(tmp_path: Path):
    environment = os.environ | {"GPATTERN_BENCH_DATA": str(tmp_path)}
    # It ends itself where everything is written and not yet in its place.
    code = (
        "import os, pathlib, signal\n"
        "from gpattern_bench import load_dataset\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "load_dataset('synthetic')\n"
    )
    child = subprocess.run([sys.executable, "-c", code], env=environment, timeout=PATIENCE_S)
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "synthetic" / "1.0.0" / "manifest.json").exists()
    assert list(tmp_path.glob("synthetic/.1.0.0-*"))
    folder = build(find_entry("synthetic"), tmp_path)
    assert contents(folder) == contents(load_dataset("synthetic").folder)
    assert not list(tmp_path.glob("synthetic/.1.0.0-*"))


def test_manifest_tells_where_the_tables_come_from(mirror: Path, tmp_path: Path):
    entry = find_entry("cosmx_lung_mini")
    manifest = json.loads((build(entry, tmp_path) / "manifest.json").read_text())
    assert [file["path"] for file in manifest["source"]] == [file.path for file in entry.files]
    assert {file["checksum"] for file in manifest["source"]} == {"published"}
    for key in ("title", "release", "licence", "terms", "citation"):
        assert manifest[key] == getattr(entry, key)


def test_a_labelled_dataset_whose_file_has_no_labels_is_an_error(mirror: Path, tmp_path: Path):
    # The file of `u2os_sample` has no layers of labels, as the file of `u2os` must have.
    recipe = find_entry("u2os_sample").recipe
    with pytest.raises(SourceError, match=r"merfish_sample\.h5ad has no labels of cell_edge"):
        curate(recipe, mirror, tmp_path / "u2os", name="u2os", version="1.0.0", labelled=True)
    assert list(tmp_path.iterdir()) == []
