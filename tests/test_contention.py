"""Several processes on one cache, some of them killed; and what watches them can fail."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from samples import PATIENCE_S

import gpattern_bench.tables.verify
from gpattern_bench import load_dataset
from gpattern_bench.cli import app
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import TableError

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "contention.py"


@pytest.fixture(scope="module")
def contention():
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("contention", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "contention", module)  # dataclasses look there
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
        yield module


def test_no_wrong_byte_with_kills(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--tmp", str(tmp_path)]
    command += ["--seed", "4"]  # kills its first command after a fifth of its time
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert sum(row["killed"] for row in found["commands"]) >= 1
    assert {row[""]: row for row in found["commands"]}["download"]["times"] >= 2
    assert all(row["times"] >= 1 for row in found["calls"])
    assert list(tmp_path.iterdir()) == []


def test_every_command_is_drawn(contention):
    def names(group, *above):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from names(command, *above, name)
            else:
                yield (*above, name)

    drawn = {tuple(command.line.split()[:2]) for command in contention.FULL.values()}
    drawn |= {words[:1] for words in drawn}
    assert set(names(typer.main.get_command(app))) - drawn == set()


class TestWatch:
    """Each check of the script sees what it is for."""

    @pytest.fixture
    def arena(self, contention, tmp_path):
        mix = {"schema": contention.Command("info synthetic --json", ("made",))}
        return contention.Arena(tmp_path, mix, {})

    @pytest.fixture
    def place(self, tmp_path):
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared" / "made").write_text("as alone")
        return tmp_path / "shared"

    def alone(self, contention, arena, place):
        codes, out, err = arena.once(arena.mix["schema"], place)
        assert codes == [0]
        return arena.result(arena.mix["schema"], place, out[0]) | {"stderr": err[0]}

    def test_other_bytes(self, contention, arena, place):
        wanted = self.alone(contention, arena, place)
        arena.until_done("schema", place, wanted, random.Random(0), kill=False)
        assert arena.wrong == []
        (place / "made").write_text("other")
        arena.until_done("schema", place, wanted, random.Random(0), kill=False)
        [problem] = arena.wrong
        assert "made has other bytes" in problem
        assert arena.rows["schema"].wrong == 1

    def test_an_error_that_nothing_explains(self, contention, arena, place):
        wrong = contention.Command("info nowhere")
        arena.mix["schema"] = wrong
        wanted = {"stdout": "", "stderr": ""}
        arena.until_done("schema", place, wanted, random.Random(0), kill=False)
        [problem] = arena.wrong
        assert "exit code 2" in problem
        assert "nowhere" in problem

    def test_a_file_left_over_or_changed(self, contention, place):
        before = contention.tree(place)
        (place / ".made-abcd1234").write_text("half")
        (place / "made").write_text("other")
        problems = contention.differences(contention.tree(place), before)
        assert problems == [".made-abcd1234 is left over", "made has other bytes"]
        assert contention.differences({}, before) == ["made is not there"]

    @pytest.mark.parametrize(
        ("key", "step", "seen"),
        [
            ("rss_mib", 0.1, False),
            ("rss_mib", 1.0, True),
            ("files", 0, False),
            ("files", 0.1, True),
        ],
    )
    def test_growth(self, contention, key, step, seen):
        samples = []
        for k in range(100):
            values = {"rss_mib": 300.0, "files": 12.0, "threads": 4.0, "children": 0.0}
            values[key] += step * k
            samples.append((float(k), values))
        found = contention.grown(samples, calls=5)
        assert bool(found) is seen
        assert all(text.startswith(key) for text in found)
        assert contention.grown(samples, calls=50) is None

    def test_measured_values_are_not_compared(self, contention, tmp_path):
        report, digests = tmp_path / "run-seed0.json", []
        for seconds, method in ((1, "a"), (2, "a"), (2, "b")):
            report.write_text(json.dumps({"seconds": {"test": seconds}, "method": method}))
            digests.append(contention.digest_of(report))
        assert digests[0] == digests[1] != digests[2]

    def test_what_a_killed_command_left_in_a_folder_is_not_compared(self, contention, tmp_path):
        """`challenge draw` has its unfinished tables in the folder that it makes."""
        for name in ("challenge/cells/a", "other/challenge/cells/a"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text("the same")
        left = tmp_path / "challenge/.cells-k6qu5_2f/a"
        left.parent.mkdir()
        left.write_text("half of it")
        found = contention.digest_of(tmp_path / "challenge")
        assert found == contention.digest_of(tmp_path / "other/challenge")
        (tmp_path / "challenge/b").write_text("more")
        assert contention.digest_of(tmp_path / "challenge") != found


def test_removed_while_it_is_verified(tmp_path, monkeypatch):
    dataset = Dataset(shutil.copytree(load_dataset("synthetic").folder, tmp_path / "tables"))
    read = gpattern_bench.tables.verify.read_whole

    def removed(path):
        table = read(path)
        (path.parent / "labels.parquet").unlink()
        return table

    monkeypatch.setattr(gpattern_bench.tables.verify, "read_whole", removed)
    with pytest.raises(TableError, match=r"cannot be read .*labels\.parquet"):
        dataset.verify()
