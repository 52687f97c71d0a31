"""run-all: the bytes of single runs, in shards, after a crash, with failures, and on Dask."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from samples import PATIENCE_S, apart, small_dataset

import gpattern_bench.runs.shards
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import (
    MethodError,
    MissingExtraError,
    UnknownMethodError,
    WorkersError,
)
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.methods import METHODS, get_method
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.runs.run import run_method
from gpattern_bench.runs.run_all import Outcome, run_all
from gpattern_bench.runs.shards import cut_shards, run_key

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("brief_training")]

QUICK = ("prevalence", "sprawl", "bento")
NO_DASK = "Dask is not installed: pip install 'gpattern-bench[dask]'"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"), "whole", n_fovs=20)


@pytest.fixture(scope="module")
def single(dataset, brief_training, tmp_path_factory) -> Path:
    """What `run` writes."""
    folder = tmp_path_factory.mktemp("single")
    for method in (*QUICK, "molecule_count"):
        run_method(method, dataset, folder / method, seed=3)
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    """A shard per field of view: of so small a dataset all would be one."""
    monkeypatch.setattr(gpattern_bench.runs.shards, "MOLECULES", 1)


def results(folder: Path) -> dict[str, bytes]:
    """Predictions and models below a folder; not what was measured."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(("run-seed", "done-seed", ".seed"))
    }


def of(folder: Path, *methods: str) -> dict[str, bytes]:
    return {name: it for name, it in results(folder).items() if name.partition("/")[0] in methods}


KILLED = textwrap.dedent(
    """
    import os, shutil, signal, sys
    from pathlib import Path
    import sklearn.ensemble  # once, not in each child
    import gpattern_bench.runs.shards as shards
    from gpattern_bench.data.dataset import Dataset
    from gpattern_bench.methods import _forest
    from gpattern_bench.runs.run_all import run_all

    tables, once, twice = map(Path, sys.argv[1:])
    predict_cells = shards.predict_cells

    def killed_at(shard, out):
        begun = []

        def predict(*arguments, **options):
            begun.append(1)
            if len(begun) == shard:
                os.kill(os.getpid(), signal.SIGKILL)
            return predict_cells(*arguments, **options)

        if not (child := os.fork()):
            shards.predict_cells = predict
            run_all(["bento"], Dataset(tables), out, seed=3, jobs=1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL

    shards.MOLECULES = 1
    _forest._TREES = 30  # as the fixture `brief_training` makes it
    killed_at(3, once)
    shutil.copytree(once, twice)
    killed_at(2, twice)
    """
)


@pytest.fixture(scope="module")
def crashed(dataset, tmp_path_factory) -> tuple[Path, Path]:
    """What is left of bento, killed -9 in its third shard; and when it was killed once more.

    Of those that were left, in the second.
    """
    once = tmp_path_factory.mktemp("crashed") / "once"
    found = apart("-c", KILLED, dataset.folder, once, once.with_name("twice"))
    assert found.returncode == 0, found.stderr
    return once, once.with_name("twice")


@pytest.fixture
def begun(crashed, tmp_path) -> Path:
    """A copy of the first, times and all."""
    return Path(shutil.copytree(crashed[0], tmp_path / "begun"))


class TestSameBytes:
    @pytest.mark.usefixtures("small_shards")
    def test_as_single_runs_in_processes(self, dataset, single, tmp_path):
        outcomes = run_all([*QUICK, "molecule_count"], dataset, tmp_path, seed=3, jobs=2)
        assert [o.outcome for o in outcomes] == ["done"] * 4
        shards = sum(split != "train" for split in dataset.split_of.values())
        assert [o.shards for o in outcomes] == [shards, shards, shards, 2]
        assert results(tmp_path) == results(single)

    def test_report_has_what_a_run_has(self, dataset, single, tmp_path):
        run_all(["bento"], dataset, tmp_path, seed=3, jobs=1)
        reports = [
            json.loads((folder / "bento" / "whole" / "run-seed3.json").read_text())
            for folder in (tmp_path, single)
        ]
        assert set(reports[0]["seconds"]) == {"fit", "val", "test"}
        measured = dict.fromkeys(["seconds", "cpu_seconds", "peak_rss_mib", "date", "device"])
        assert reports[0] | measured == reports[1] | measured


class TestSplits:
    def test_those_asked_for_are_predicted(self, dataset, single, tmp_path):
        [outcome] = run_all(["bento"], dataset, tmp_path, seed=3, splits=["train", "test"], jobs=1)
        folder = tmp_path / "bento" / "whole"
        assert outcome.outcome == "done"
        assert [p.name for p in sorted(folder.glob("*.parquet"))] == [
            "test-seed3.parquet", "train-seed3.parquet",
        ]  # fmt: skip
        theirs = single / "bento" / "whole" / "test-seed3.parquet"
        assert (folder / "test-seed3.parquet").read_bytes() == theirs.read_bytes()
        Evaluator(dataset, "train").eval(folder / "train-seed3.parquet")

    def test_more_of_them_are_not_skipped(self, dataset, tmp_path):
        def start(*splits):
            return run_all(["sprawl"], dataset, tmp_path, splits=splits, jobs=1)[0].outcome

        assert start("test") == "done"
        assert start("test", "val") == "done"
        assert start("val") == start("val", "test") == "skipped"
        (tmp_path / "sprawl" / "whole" / "val-seed0.parquet").unlink()
        assert start("test") == "skipped"

    def test_one_that_is_not_there(self, dataset, tmp_path):
        [outcome] = run_all(["sprawl"], dataset, tmp_path, splits=["test", "tset"], jobs=1)
        assert outcome.why == "whole@1.2.0 has no split tset; it has train, val, test"
        assert list(tmp_path.iterdir()) == []


class TestShards:
    @pytest.mark.usefixtures("small_shards")
    def test_hold_each_field_of_view_once(self, dataset):
        for split in ("val", "test"):
            shards = cut_shards(dataset, split, per_cell=True)
            cells = [cell.cell_id for shard in shards for cell in shard.cells]
            assert cells == dataset.cells(split)["cell_id"].tolist()
            assert len(shards) == len(dataset.fovs(split)) > 1
            assert len({shard.file for shard in shards}) == len(shards)
            assert len(cut_shards(dataset, split, per_cell=False)) == 1

    def test_small_fields_of_view_go_together(self, dataset):
        assert len(cut_shards(dataset, "test", per_cell=True)) == 1

    @pytest.mark.usefixtures("small_shards")
    @pytest.mark.parametrize("name", METHODS)
    def test_union_is_predicted_as_its_parts_where_a_method_says_so(self, dataset, name):
        method = get_method(name)
        if method.about.learns:
            few = dataset.cells("train")["cell_id"].tolist()[::4]
            method.fit(dataset.iter_cells("train", keep=few), 0)
        method.batch = 1  # of networks, as in a run
        whole = predict_cells(method, dataset.iter_cells("test"))
        shards = cut_shards(dataset, "test", per_cell=True)
        parts = pd.concat([predict_cells(method, p.cells) for p in shards], ignore_index=True)
        assert parts[["cell_id", "gene"]].equals(whole[["cell_id", "gene"]])
        patterns = list(dataset.patterns)
        same = np.array_equal(parts[patterns].to_numpy(), whole[patterns].to_numpy())
        assert same == method.about.per_cell

    def test_key_knows_method_seed_and_content(self, dataset, tmp_path):
        other = small_dataset(tmp_path, "whole", seed=8, n_fovs=5)
        keys = [
            run_key("bento", dataset, 0),
            run_key("sprawl", dataset, 0),
            run_key("bento", dataset, 1),
            run_key("bento", other, 0),
        ]
        assert len({json.dumps(key) for key in keys}) == 4
        assert other.id == dataset.id


@pytest.mark.usefixtures("small_shards")
class TestResume:
    def test_after_kill_9_finished_shards_stay(self, dataset, single, crashed):
        there, after = (
            {path.relative_to(out): path.stat().st_mtime_ns for path in out.rglob("*.*")}
            for out in crashed
        )
        shards, model = (
            {path: time for path, time in there.items() if path.match(f"*/whole/shards-*/{name}")}
            for name in ("*.parquet", "model/*")
        )
        assert len(shards) == 2
        assert len(model) >= 2
        assert len([path for path in after if path.suffix == ".parquet"]) == 3
        assert after.items() >= (shards | model).items()
        [outcome] = run_all(["bento"], dataset, crashed[1], seed=3, jobs=1)
        total = sum(split != "train" for split in dataset.split_of.values())
        assert outcome == Outcome("bento", "done", total - 3, 3)
        assert results(crashed[1]) == of(single, "bento")

    def test_what_is_done_is_skipped(self, dataset, tmp_path):
        run_all(["prevalence"], dataset, tmp_path, jobs=1)
        files = {
            path: path.stat().st_mtime_ns
            for path in tmp_path.rglob("*")
            if path.is_file() and path.suffix != ".lock"  # older versions of filelock write it
        }
        outcomes = run_all(["prevalence", "sprawl"], dataset, tmp_path, jobs=1)
        assert [o.outcome for o in outcomes] == ["skipped", "done"]
        assert {p: p.stat().st_mtime_ns for p in files} == files

    def test_what_is_done_and_damaged_is_made_again(self, dataset, tmp_path):
        run_all(["prevalence"], dataset, tmp_path, jobs=1)
        file = tmp_path / "prevalence" / "whole" / "test-seed0.parquet"
        good = file.read_bytes()
        file.write_bytes(good[:-1])
        assert run_all(["prevalence"], dataset, tmp_path, jobs=1)[0].outcome == "done"
        assert file.read_bytes() == good

    def test_half_a_piece_is_predicted_again(self, dataset, single, begun):
        half = next(begun.rglob("val-00000-*.parquet"))
        half.write_bytes(half.read_bytes()[:100])
        [outcome] = run_all(["bento"], dataset, begun, seed=3, jobs=1)
        assert (outcome.outcome, outcome.kept) == ("done", 1)
        assert results(begun) == of(single, "bento")

    def test_shards_of_another_content_are_not_taken(self, dataset, begun, tmp_path):
        # Its manifest tells of other molecules; all names of files, and their sizes, are the same.
        folder = Path(shutil.copytree(dataset.folder, tmp_path / "other"))
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["molecules.parquet"]["content_sha256"] = "0" * 64
        (folder / "manifest.json").write_text(json.dumps(manifest))
        [outcome] = run_all(["bento"], Dataset(folder), begun, seed=3, jobs=1)
        assert (outcome.outcome, outcome.kept) == ("done", 0)
        assert list(begun.rglob("shards-*")) == []

    def test_shards_of_another_version_or_seed_are_not_taken(self, dataset, begun, monkeypatch):
        [old] = begun.rglob("shards-seed3-*")
        assert run_all(["bento"], dataset, begun, seed=4, jobs=1)[0].kept == 0
        assert old.is_dir()  # of another seed: not in the way
        monkeypatch.setattr(gpattern_bench.runs.shards, "__version__", "0.0.0")
        assert run_all(["bento"], dataset, begun, seed=3, jobs=1)[0].kept == 0
        assert not old.exists()

    def test_what_is_done_of_another_content_or_version_is_not_skipped(
        self, dataset, tmp_path, monkeypatch
    ):
        other = small_dataset(tmp_path / "data", "whole", seed=8, n_fovs=5)

        def start(dataset):
            return run_all(["prevalence"], dataset, tmp_path / "out", jobs=1)[0].outcome

        assert [start(d) for d in (dataset, other, other, dataset)] == [
            "done", "done", "skipped", "done",
        ]  # fmt: skip
        monkeypatch.setattr(gpattern_bench.runs.shards, "__version__", "0.0.0")
        assert start(dataset) == "done"

    def test_code_that_changed_makes_another_key(self, dataset, tmp_path, monkeypatch):
        key = run_key("bento", dataset, 0)
        package = Path(gpattern_bench.__file__).parent
        copy = Path(shutil.copytree(package, tmp_path / "package"))
        monkeypatch.setattr(
            gpattern_bench.runs.shards, "__file__", str(copy / "runs" / "shards.py")
        )
        gpattern_bench.runs.shards._code_sha256.cache_clear()
        assert run_key("bento", dataset, 0) == key
        code = copy / "methods" / "bento" / "method.py"
        code.write_text(code.read_text() + "# changed\n")
        gpattern_bench.runs.shards._code_sha256.cache_clear()
        assert run_key("bento", dataset, 0) != key
        gpattern_bench.runs.shards._code_sha256.cache_clear()

    def test_a_second_start_waits(self, dataset, tmp_path, caplog):
        folder = tmp_path / "prevalence" / "whole"
        folder.mkdir(parents=True)
        outcomes = []
        with FileLock(folder / ".seed0.lock"):
            second = Thread(
                target=lambda: outcomes.extend(run_all(["prevalence"], dataset, tmp_path, jobs=1))
            )
            second.start()
            until = time.monotonic() + PATIENCE_S
            while f"another process works on {folder}: waiting" not in caplog.text:
                assert time.monotonic() < until
                time.sleep(0.02)
            second.join(0.2)
            assert second.is_alive()
            assert not any(folder.glob("*.parquet"))
        second.join(PATIENCE_S)
        assert [o.outcome for o in outcomes] == ["done"]


class TestFailures:
    def test_of_one_do_not_stop_the_others(self, tmp_path):
        gold = small_dataset(tmp_path / "data", "gold", split="test", n_fovs=4)
        out = tmp_path / "out"
        outcomes = run_all(["gene_prior", "sprawl"], gold, out, jobs=1)
        assert [o.outcome for o in outcomes] == ["failed", "done"]
        assert "has no train split" in outcomes[0].why
        assert [path.name for path in out.iterdir()] == ["sprawl"]

    @pytest.mark.usefixtures("small_shards")
    def test_keep_the_shards_before_them(self, dataset, tmp_path, monkeypatch, caplog):
        begun = []

        def broken(*arguments, **options):
            begun.append(1)
            if len(begun) == 3:
                raise ZeroDivisionError("of a method")
            return predict_cells(*arguments, **options)

        monkeypatch.setattr(gpattern_bench.runs.shards, "predict_cells", broken)
        outcomes = run_all(["bento", "prevalence"], dataset, tmp_path, jobs=1)
        assert [o.outcome for o in outcomes] == ["failed", "done"]
        assert outcomes[0].why == "ZeroDivisionError: of a method"
        assert "Traceback" in caplog.text
        assert run_all(["bento"], dataset, tmp_path, jobs=1)[0].kept == 2

    @pytest.mark.parametrize(
        ("methods", "options", "error", "text"),
        [
            (["sprawl", "nope"], {}, UnknownMethodError, "no method named 'nope'"),
            ([], {}, MethodError, "0 methods"),
            (["sprawl"], {"seed": -1}, MethodError, "seed -1"),
            (["sprawl"], {"jobs": 0}, MethodError, "0 jobs"),
            (["sprawl"], {"jobs": 2, "cluster": "tcp://a:1"}, WorkersError, "leave out --jobs"),
        ],
    )
    def test_wrong_usage_starts_nothing(self, dataset, tmp_path, methods, options, error, text):
        with pytest.raises(error, match=text):
            run_all(methods, dataset, tmp_path, **options)
        assert list(tmp_path.iterdir()) == []

    def test_under_a_launcher_of_networks(self, dataset, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(MethodError, match="accelerate"):
            run_all(["sprawl"], dataset, tmp_path)

    def test_without_dask_the_extra_is_named(self, dataset, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "distributed", None)
        with pytest.raises(MissingExtraError, match=r"gpattern-bench\[dask\]"):
            run_all(["sprawl"], dataset, tmp_path, cluster="tcp://127.0.0.1:1")

    def test_an_address_that_is_none(self, dataset, tmp_path):
        pytest.importorskip("distributed", reason=NO_DASK)
        with pytest.raises(WorkersError, match="no Dask scheduler answers at nonsense"):
            run_all(["sprawl"], dataset, tmp_path, cluster="nonsense")

    def test_the_command_tells_and_exits_1(self, tmp_path):
        gold = small_dataset(tmp_path / "data", "gold", split="test", n_fovs=4)
        command = ["run-all", "--dataset", str(gold.folder), "--methods", "gene_prior,prevalence"]
        command[-1] += ",sprawl"
        command += ["--jobs", "1"]
        found = apart("-m", "gpattern_bench", *command, "--out", tmp_path / "out")
        assert found.returncode == 1
        rows = [[cell.strip() for cell in row.split("|")[1:5]] for row in found.stdout.splitlines()]
        assert rows[2:] == [
            ["gene_prior", "failed", "0", "0"],
            ["prevalence", "failed", "0", "0"],
            ["sprawl", "done", "1", "0"],
        ]
        assert found.stderr.count("has no train split") == 2
        assert "Traceback" not in found.stderr


@pytest.mark.usefixtures("small_shards")
class TestNetworks:
    def test_same_bytes_as_a_run(self, tmp_path):
        dataset = small_dataset(tmp_path / "data", "whole", n_fovs=6)
        run_method("gpsnet", dataset, tmp_path / "single" / "gpsnet", seed=3)
        run_all(["gpsnet"], dataset, tmp_path / "all", seed=3, jobs=2)
        assert results(tmp_path / "all") == results(tmp_path / "single")


@pytest.mark.usefixtures("small_shards")
class TestDask:
    def test_same_bytes_as_local(self, dataset, single, tmp_path, dask_cluster):
        outcomes = run_all(QUICK, dataset, tmp_path, seed=3, cluster=dask_cluster)
        assert [o.outcome for o in outcomes] == ["done"] * 3
        assert results(tmp_path) == of(single, *QUICK)
