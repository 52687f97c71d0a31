"""What long commands say meanwhile: lines in a pipe, bars on a terminal; and what a kill leaves."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
from samples import PATIENCE_S, dataset_of

from gpattern_bench.base.progress import Progress
from gpattern_bench.base.threads import one_thread
from gpattern_bench.cli import main
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods.gpsnet import method as gpsnet
from gpattern_bench.methods.gpsnet.config import PRESETS, TRAININGS
from gpattern_bench.methods.gpsnet.method import GPSNetMethod
from gpattern_bench.runs import ablation as ablations
from gpattern_bench.runs import shards
from gpattern_bench.runs.ablation import ablation_table, train_variants

ROOT = Path(__file__).resolve().parents[2]
TINY = {"width": 8, "heads": 2, "fourier": 4}
TIME = re.compile(r"(\d+ h )?(\d+ min )?\d+(\.\d)? s\b")
NUMBER = re.compile(r"[+-]?\b0\.\d{4}")
DEPTHS = ["ablation", "--quick", "--study", "depths", "--out", "kept", "--dataset"]


def plain(text: str) -> list[str]:
    """Lines without times and scores."""
    return NUMBER.sub("X", TIME.sub("T", text)).splitlines()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    release = simulate(7, n_fovs=12, cells_per_fov=2, n_genes=8, mean_molecules=40)
    return dataset_of(tmp_path_factory.mktemp("data") / "tiny", release, name="tiny")


@pytest.fixture(autouse=True, scope="module")
def small():
    """Small networks, two epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablations, "_QUICK_CELLS", 6)
        patch.setattr(ablations, "_QUICK_EPOCHS", 2)
        patch.setattr(gpsnet, "steps_for", lambda cells: 6)
        patch.setitem(TRAININGS, "small", replace(TRAININGS["small"], epochs=2))
        for name, value in TINY.items():
            patch.setitem(PRESETS["small"], name, value)
        yield


@pytest.fixture
def start(monkeypatch, capsys, tmp_path):
    """Run `gpattern-bench ...` here, in an empty folder: stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["gpattern-bench", *map(str, args)])
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        root.handlers.clear()  # pytest's: with any, the command line adds none
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
        out, err = capsys.readouterr()
        assert caught.value.code == 0, err
        return out, err

    return run


@pytest.fixture
def told(start):
    """The same: stdout, and lines of stderr without times and scores."""

    def run(*args: object) -> tuple[str, list[str]]:
        out, err = start(*args)
        assert "\r" not in err
        return out, plain(err)

    return run


@contextlib.contextmanager
def terminal() -> Iterator[list[bytes]]:
    """A terminal as stderr, and what is written to it."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    written: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(master, 4096):
                written.append(part)

    reader = Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w", buffering=1) as stderr, contextlib.redirect_stderr(stderr):
        yield written
    reader.join(PATIENCE_S)
    os.close(master)


class TestProgress:
    @pytest.fixture
    def lines(self, caplog):
        with caplog.at_level(logging.INFO, "gpattern_bench.base.progress"):
            yield lambda: [TIME.sub("T", record.getMessage()) for record in caplog.records]

    def test_each(self, lines):
        assert list(Progress("bento", 3, every=0.0, done=1).over("ab")) == ["a", "b"]
        assert lines() == ["bento: 2 of 3 cells, T, T left", "bento: 3 of 3 cells, T"]

    def test_bytes_and_numbers_without_an_end(self, lines):
        with Progress("file", 5_000_000, unit="B", every=0.0) as bar:
            bar.update(1_250_000)
        Progress("mine", unit="fields of view", every=0.0).update(1234)
        assert lines() == ["file: 1.2 of 5.0 MB, T, T left", "mine: 1,234 fields of view, T"]

    def test_short_work_says_nothing_and_long_work_every_ten_seconds(self, lines, monkeypatch):
        clock = iter([0.0, 4.0, 9.9, 10.0, 19.0, 20.5, 90.0])
        # Of this module alone: other threads look at the clock, too.
        its_own = SimpleNamespace(monotonic=lambda: next(clock))
        monkeypatch.setattr("gpattern_bench.base.progress.time", its_own)
        assert len(list(Progress("bento", 6).over(range(6)))) == 6
        assert lines() == [
            "bento: 3 of 6 cells, T, T left",
            "bento: 5 of 6 cells, T, T left",
            "bento: 6 of 6 cells, T",
        ]

    def test_none_if_none_is_wanted(self, lines):
        list(Progress("bento", 2, every=0.0, shown=False).over("ab"))
        assert lines() == []


class TestCommands:
    @pytest.mark.slow
    def test_run_of_a_network_tells_stages_and_epochs(self, told, dataset):
        out, lines = told("run", "gpsnet", "--dataset", dataset.folder)
        assert out.splitlines() == [
            f"runs/gpsnet/tiny/{split}-seed0.parquet" for split in ("val", "test")
        ]
        assert lines == [
            "gpsnet: fitting on tiny@1.0.0",
            "epoch 1 of 2: loss X, val AUC X, val F1 X; T, T left",
            "epoch 2 of 2: loss X, val AUC X, val F1 X; T",
            "gpsnet: fitted in T",
            "gpsnet: predicted val in T",
            "gpsnet: predicted test in T",
        ]

    def test_run_out_of_fold_tells_each_fold(self, told, tmp_path):
        release = simulate(7, n_fovs=5, cells_per_fov=2, n_genes=8, mean_molecules=40)
        gold = dataset_of(tmp_path / "gold", release, split="test")
        _, lines = told("run", "gene_prior", "--dataset", gold.folder, "--cv", "cell")
        assert lines == [
            *(f"gene_prior: fold {k} of 5 of test" for k in range(1, 6)),
            "gene_prior: predicted test in T",
        ]

    def test_of_processes_that_train_together_the_first_speaks(self, told, dataset, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        assert told("run", "gene_prior", "--dataset", dataset.folder) == ("", [])

    def test_run_all_tells_methods_and_shards(self, told, dataset, tmp_path, monkeypatch):
        monkeypatch.setattr(shards, "MOLECULES", 1)  # a shard per field of view
        command = ["run-all", "--dataset", dataset.folder, "--out", "all", "--jobs", "1"]
        n = sum(split != "train" for split in dataset.split_of.values())
        out, lines = told(*command, "--methods", "gene_prior,oracle")
        assert out.count("\n") == 2 + 2
        assert lines[:4] == [
            "gene_prior, 1 of 2",
            "gene_prior: fitting on tiny@1.0.0",
            "gene_prior: fitted in T",
            f"gene_prior: 1 of {n} shards, T, T left",
        ]
        assert lines[-4:] == [
            f"oracle: {n - 1} of {n} shards, T, T left",
            f"oracle: {n} of {n} shards, T",
            "oracle: writing prediction files of val, test",
            "oracle: done after T",
        ]
        _, lines = told(*command, "--methods", "oracle")
        assert lines == ["oracle, 1 of 1", "oracle: skipped after T"]

    def test_robustness_tells_each_perturbation(self, told, dataset):
        out, lines = told("robustness", "sprawl", "--dataset", dataset.folder, "--json")
        names = json.loads(out)["perturbations"]
        assert lines == [f"cells {name}: F1 X (X)" for name in names]


KILLED = """
import os, signal

import torch

torch.set_num_threads(1)
from gpattern_bench.runs import ablation
from gpattern_bench.cli import main
from gpattern_bench.methods.gpsnet.config import PRESETS
from gpattern_bench.methods.gpsnet.train import _Trainer

ablation._QUICK_CELLS, ablation._QUICK_EPOCHS = 6, 2
PRESETS["small"].update({tiny})
begun, epoch = [], _Trainer._epoch

def counted(self, *args):
    begun.append(1)
    if len(begun) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    epoch(self, *args)

_Trainer._epoch = counted
main()
"""


def seen(text: str) -> list[str]:
    """Lines as a terminal shows them: what follows a carriage return is written over the line."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.mark.slow
class TestAblation:
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def one_thread(cls):
        """As in the processes that are started here: the same bits."""
        with one_thread():
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def killed(cls, dataset, tmp_path_factory):
        """Folder and stderr of an ablation that is killed in its second setting."""
        folder = tmp_path_factory.mktemp("killed")
        found = subprocess.run(
            [sys.executable, "-c", KILLED.format(tiny=TINY), *DEPTHS, str(dataset.folder)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert found.returncode == -signal.SIGKILL, found.stderr
        assert found.stdout == ""
        return folder, found.stderr

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, dataset, small, one_thread, tmp_path_factory):
        """Folder and rows of one that is not killed."""
        folder = tmp_path_factory.mktemp("whole") / "kept"
        return folder, list(train_variants(dataset, studies=["depths"], quick=True, out=folder))

    def test_tells_each_setting_until_it_is_killed(self, killed):
        folder, err = killed
        assert "\r" not in err
        assert plain(err) == [
            "depths (N-1):1, 1 of 5: training on 6 cells",
            "epoch 1 of 2: loss X; T, T left",
            "epoch 2 of 2: loss X; T",
            "depths (N-1):1, 1 of 5: AUC X, ACC X, F1 X; T",
            "depths 2:1, 2 of 5: training on 6 cells",
            "epoch 1 of 2: loss X; T, T left",
        ]
        kept = sorted(path.suffix for path in (folder / "kept").iterdir())
        assert kept == [".json", ".safetensors"]

    def test_goes_on_to_the_bytes_of_one_that_was_not_killed_with_bars_on_a_terminal(
        self, killed, whole, start, dataset, tmp_path
    ):
        shutil.copytree(killed[0], tmp_path, dirs_exist_ok=True)
        with terminal() as written:
            out, _ = start(*DEPTHS, dataset.folder, "--json")
        assert out == json.dumps([asdict(row) for row in whole[1]], indent=1) + "\n"

        text = b"".join(written).decode()
        assert re.search(r"\rtraining: 100%\|█+\| 4/4 \[", text)
        lines = plain("\n".join(seen(text)))
        bars = [line for line in lines if "%|" in line]
        assert [line.partition(":")[0] for line in bars] == ["training", "gpsnet"] * 4
        lines = [line for line in lines if line and line not in bars]
        assert lines.pop(2).endswith(".safetensors: resuming after epoch 1")
        assert lines[:5] == [
            "depths (N-1):1, 1 of 5: AUC X, ACC X, F1 X; found done",
            "depths 2:1, 2 of 5: training on 6 cells",
            "epoch 2 of 2: loss X; T",
            "depths 2:1, 2 of 5: AUC X, ACC X, F1 X; T",
            "depths 1:1, 3 of 5: training on 6 cells",
        ]

    def test_what_is_done_is_not_trained_again(self, told, whole, dataset, monkeypatch, tmp_path):
        folder, rows = whole
        shutil.copytree(folder, tmp_path / "kept")
        assert {path.suffix for path in Path("kept").iterdir()} == {".json"}
        monkeypatch.setattr(GPSNetMethod, "fit", None)
        out, lines = told(*DEPTHS, dataset.folder)
        assert out == ablation_table(rows) + "\n"
        assert len(lines) == 5
        assert all(line.endswith("; found done") for line in lines)

    def test_only_what_decides_the_same_score_is_taken(self, dataset, tmp_path, monkeypatch):
        monkeypatch.setattr(ablations, "_PARTS", (1,))
        monkeypatch.setattr(ablations, "_NEIGHBOURS", (16, 64))
        trained = []
        fit = GPSNetMethod.fit

        def noted(self, train, seed, context):
            trained.append(len(train))
            fit(self, train, seed, context)

        monkeypatch.setattr(GPSNetMethod, "fit", noted)

        def count(**options):
            trained.clear()
            options = {"studies": ["cells"], "quick": True, "out": tmp_path} | options
            rows = list(train_variants(dataset, **options))
            return len(trained), rows

        first, rows = count()
        assert first == len(rows) == 1
        [file] = tmp_path.iterdir()
        assert count() == (0, rows)
        assert count(studies=["neighbours"])[0] == 1, "K = 64 is the preset's"
        assert [count(**other)[0] for other in ({"split": "test"}, {"seed": 1})] == [1, 1]
        file.write_text(file.read_text()[:-5])
        assert count() == (1, rows)
        assert count() == (0, rows)
        monkeypatch.setattr(ablations, "_QUICK_EPOCHS", 1)
        assert count()[0] == 1
        monkeypatch.setattr(shards, "__version__", "0.0.0")
        assert count()[0] == 1

    def test_an_undefined_score_is_kept(self, dataset, tmp_path, monkeypatch):
        monkeypatch.setattr(ablations, "_scored", lambda *_: (np.nan, 0.5, 0.25))
        options = {"studies": ["cells"], "quick": True, "out": tmp_path}
        tables = [ablation_table(train_variants(dataset, **options)) for _ in range(2)]
        assert tables[0] == tables[1]
        assert "nan / 50.00 / 25.00" in tables[0]
