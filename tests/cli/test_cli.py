"""The command line: exit codes, one paragraph on stderr, JSON, the demo."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from samples import PATIENCE_S

from gpattern_bench import __version__, load_dataset
from gpattern_bench.base.files import file_sha256
from gpattern_bench.cli import app, main
from gpattern_bench.cli.board import _DEMO
from gpattern_bench.curate.simulate import cells as simulate
from gpattern_bench.curate.simulate.cells import PATTERNS
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods import METHODS
from gpattern_bench.predictions import write_predictions
from gpattern_bench.sources.registry import find_entry, read_registry

COMMANDS = ["list", "info", "cite", "datasheet", "download", "export", "verify", "curate"]
COMMANDS += ["simulate", "run", "run-all", "validate", "evaluate"]
COMMANDS += ["compare", "calls", "predict", "submit", "leaderboard", "ablation", "demo"]
COMMANDS += ["features", "methods", "robustness", "plot", "challenge"]


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run `gpattern-bench ...` in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["gpattern-bench", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return run


def shell(*args: str, **options) -> subprocess.CompletedProcess[str]:
    """Run it as a person does; with its input closed, and never without end."""
    return subprocess.run(
        [sys.executable, "-m", "gpattern_bench", *args],
        **{"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": PATIENCE_S}
        | options,
        check=False,
    )


def refused(outcome: Outcome, expected: str, code: int = 2) -> None:
    """The way in which errors are told: one paragraph on stderr, no traceback."""
    assert outcome.code == code, outcome.err
    assert expected in outcome.err
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


def strict(text: str):
    """Parse JSON that has neither NaN nor Infinity."""

    def fail(name: str):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=fail)


@pytest.fixture(scope="module")
def predictions(tmp_path_factory) -> Path:
    """A folder with random val and test predictions of `synthetic`."""
    folder = tmp_path_factory.mktemp("predictions")
    dataset = load_dataset("synthetic")
    rng = np.random.default_rng(0)
    for split in ("val", "test"):
        pairs = dataset.pairs(split)
        scores = pairs.assign(**{p: rng.random(len(pairs)) for p in dataset.patterns})
        write_predictions(folder / f"{split}.parquet", scores, dataset, split, method="random")
    return folder


@pytest.fixture
def good(predictions, tmp_path) -> Path:
    return Path(shutil.copy(predictions / "test.parquet", tmp_path / "test.parquet"))


@pytest.fixture
def tables(tmp_path) -> Path:
    """A copy of the tables of `synthetic`."""
    return Path(shutil.copytree(load_dataset("synthetic").folder, tmp_path / "tables"))


class TestAsAPersonRunsIt:
    def test_version(self):
        found = shell("--version")
        assert (found.returncode, found.stdout.strip()) == (0, __version__)

    @pytest.mark.parametrize("words", [(), ("curate",), ("run",)], ids=" ".join)
    def test_help_is_short_and_summaries_are_whole(self, cli, words):
        found = cli(*words, "-h").out
        assert found == cli(*words, "--help").out
        assert "..." not in found.partition("Commands:")[2]

    @pytest.mark.slow
    def test_methods_are_listed(self, cli):
        text = cli("methods").out
        assert all(f"\n{name}: " in f"\n{text}" for name in METHODS)
        assert "sprawl: SPRAWL, a baseline; learns nothing; looks at coordinates" in text
        about = json.loads(cli("methods", "--json").out)
        assert [one["name"] for one in about] == list(METHODS)

    @pytest.mark.parametrize("command", ["run", "run-all", "robustness"])
    def test_help_names_the_methods(self, cli, command):
        named = cli(command, "-h").out.partition("Methods:")[2].partition("Examples:")[0]
        assert named.replace(",", " ").split() == list(METHODS)

    def test_help_lists_every_command(self):
        found = shell("--help")
        assert found.returncode == 0
        assert all(f"\n  {command} " in found.stdout for command in COMMANDS)

    def test_an_unknown_name_is_told_in_one_line(self):
        found = shell("verify", "sinthetic")
        assert found.returncode == 2
        assert found.stderr.startswith("error: no dataset named 'sinthetic'")
        assert found.stderr.count("\n") == 1
        assert found.stdout == ""

    @pytest.mark.parametrize("where", ["before", "after"])
    def test_debug_shows_the_traceback(self, where):
        args = ["--debug", "verify", "nope"] if where == "before" else ["verify", "nope", "--debug"]
        found = shell(*args)
        if where == "before":
            assert found.returncode == 1
            assert "Traceback" in found.stderr
            assert "UnknownDatasetError" in found.stderr
        else:  # an option of the whole program: elsewhere it is wrong usage, not silently ignored
            assert found.returncode == 2

    @pytest.mark.slow
    def test_a_run_with_its_input_closed_prints_its_files_and_tells_its_stages(self, tmp_path):
        command = [sys.executable, "-m", "gpattern_bench", "run", "sprawl", "--dataset"]
        found = subprocess.run(
            ["sh", "-c", '"$@" <&-', "sh", *command, "synthetic"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert found.stdout.splitlines() == [
            "runs/sprawl/synthetic/val-seed0.parquet",
            "runs/sprawl/synthetic/test-seed0.parquet",
        ]
        told = re.sub(r"(\d+ min )?\d+(\.\d)? s\b", "T", found.stderr).splitlines()
        assert told[-3:] == [  # before them, whoever comes first makes the dataset
            "sprawl: predicted val in T",
            "sprawl: predicted test in T",
            "WARNING: sprawl has no rule for nuclear_edge: scored 0 everywhere",
        ]
        assert found.returncode == 0


def helped() -> list[tuple[tuple[str, ...], str]]:
    """Words of every command and group of commands, and the end of its help."""
    import typer

    def walk(group, words):
        for name, command in group.commands.items():
            yield (*words, name), command.epilog or ""
            if hasattr(command, "commands"):
                yield from walk(command, (*words, name))

    return sorted(walk(typer.main.get_command(app), ()))


class TestGuidance:
    def test_alone_it_says_what_to_do_next(self, cli):
        outcome = cli()
        assert (outcome.code, outcome.err) == (0, "")
        begin, _, commands = outcome.out.partition("Usage:")
        assert begin.count("\n  gpattern-bench ") == 5
        assert all(f"\n  {command} " in commands for command in COMMANDS)
        assert max(map(len, begin.splitlines())) <= 100

    @pytest.mark.parametrize("words", [words for words, _ in helped()], ids=" ".join)
    def test_help_ends_with_examples_of_it(self, cli, words):
        outcome = cli(*words, "--help")
        assert outcome.code == 0
        lines = outcome.out.partition("\n  Examples:\n")[2].strip().splitlines()
        assert 1 <= len(lines) <= 2
        prefix = " ".join(("gpattern-bench", *words))
        assert all(f"{line.strip()} ".startswith(f"{prefix} ") for line in lines)
        assert max(map(len, lines)) <= 100

    @pytest.mark.parametrize(
        "line",
        [line for _, text in helped() for line in text.splitlines() if "gpattern-bench" in line],
        ids=str.strip,
    )
    def test_examples_are_what_commands_take(self, line):
        import typer

        command, words = typer.main.get_command(app), shlex.split(line.partition(">")[0])[1:]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        if words != ["--help"]:
            command.make_context(command.name, words)  # raises where usage is wrong


class TestUsage:
    @pytest.mark.parametrize(
        "args",
        [
            ["nosuch"],
            ["list", "--nosuch"],
            ["info"],
            ["verify"],
            ["download"],
            ["run", "sprawl"],
            ["run", "sprawl", "--dataset", "synthetic", "--cv", "gene"],
            ["run", "sprawl", "--dataset", "synthetic", "--seed", "one"],
            ["validate", "--dataset", "synthetic"],
            ["evaluate", "x.parquet"],
            ["curate"],
            ["curate", "nosuch"],
            ["curate", "bento-h5ad", "x.h5ad", "--out", "o", "--name", "n"],
            ["curate", "bento-h5ad", "x", "--out", "o", "--name", "n", "--unit-um", "wide"],
        ],
        ids=" ".join,
    )
    def test_wrong_usage_is_2(self, cli, args):
        assert cli(*args).code == 2

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_of_each_command_is_0(self, cli, command):
        assert cli(command, "--help").code == 0

    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            (["info", "nope"], "no dataset named 'nope'"),
            (["download", "nope"], "no dataset named 'nope'"),
            (["verify", "synthetic@9"], "no version '9'"),
            (["run", "nope", "--dataset", "synthetic"], "no method named 'nope'"),
            (["run", "sprawl", "--dataset", "nope"], "no dataset named 'nope'"),
            (["run", "sprawl", "--dataset", "synthetic", "--cv", "cell"], "learns nothing"),
            (["validate", "no.parquet", "--dataset", "synthetic"], "there is no such file"),
            (["validate", ".", "--dataset", "synthetic"], "it is a folder"),
            (["evaluate", "no.parquet", "--dataset", "synthetic"], "there is no such file"),
            (["leaderboard", "--submissions", "nope"], "no such folder"),
            (["robustness", "nope", "--dataset", "synthetic"], "no method named 'nope'"),
            (["robustness", "bento", "--dataset", "synthetic"], "bento must be fitted"),
            (["plot", "splits", "nope", "--out", "a.svg"], "no dataset named 'nope'"),
            (["plot", "splits", "synthetic", "--out", "a.gif"], "ends in .svg, .pdf, .png"),
            (["plot", "cell", "synthetic", "no.parquet", "--out", "a.svg"], "no such file"),
            (["plot", "ablation", "no.json", "--out", "a.svg"], "no.json"),
            (["plot", "training", "no", "--out", "a.svg"], "no readable training curve"),
            (
                ["curate", "bento-h5ad", "no", "--out", "o", "--name", "n", "--unit-um", "1"],
                "no file at",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_unreadable_input_is_2(self, cli, args, expected):
        refused(cli(*args), expected)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--unit-um", "0"),
            ("--unit-um", "-1"),
            ("--unit-um", "nan"),
            ("--controls", "("),
            ("--patterns", ""),
            ("--patterns", "nuclear,nuclear"),
            ("--patterns", "nuclear,cell_id"),
            ("--seed", "-1"),
        ],
    )
    def test_options_of_curate_that_make_no_sense_are_2(self, cli, tmp_path, option, value):
        bento_file(tmp_path / "a.h5ad")
        args = ["a.h5ad", "--out", "o", "--name", "n", "--unit-um", "1", option, value]
        outcome = cli("curate", "bento-h5ad", *args)
        assert outcome.code == 2
        assert not (tmp_path / "o").exists()

    @pytest.mark.parametrize("command", ["run molecule_count --dataset synthetic", "demo"])
    def test_an_output_that_is_a_file_is_told_in_words(self, cli, tmp_path, command):
        (tmp_path / "taken").write_text("mine")
        refused(cli(*command.split(), "--out", "taken"), "taken")
        assert (tmp_path / "taken").read_text() == "mine"

    def test_a_cache_that_is_a_file_is_told_in_words(self, cli, tmp_path, monkeypatch):
        (tmp_path / "taken").write_text("mine")
        monkeypatch.setenv("GPATTERN_BENCH_DATA", str(tmp_path / "taken"))
        refused(cli("download", "synthetic"), "taken")


class TestList:
    def test_names_every_dataset(self, cli):
        load_dataset("synthetic")
        outcome = cli("list")
        assert outcome.code == 0
        assert "| synthetic@1.0.0 " in outcome.out
        assert "| u2os_gold@1.0.0 " in outcome.out

    def test_json_has_counts_as_numbers(self, cli):
        load_dataset("synthetic")
        rows = strict(cli("list", "--json").out)
        [row] = [row for row in rows if row["dataset"] == "synthetic@1.0.0"]
        assert (row["cells"], row["molecules"], row["cached"]) == (400, 194553, "yes")

    def test_one_broken_dataset_in_the_cache_does_not_hide_the_others(
        self, cli, tables, tmp_path, monkeypatch
    ):
        shutil.move(tables, tmp_path / "cache" / "synthetic" / "1.0.0")
        (tmp_path / "cache" / "synthetic" / "1.0.0" / "cells.parquet").unlink()
        monkeypatch.setenv("GPATTERN_BENCH_DATA", str(tmp_path / "cache"))
        outcome = cli("list")
        assert outcome.code == 0
        assert "u2os_gold" in outcome.out


class TestInfo:
    def test_shows_licence_and_citation(self, cli):
        outcome = cli("info", "u2os_sample")
        assert outcome.code == 0
        assert "licence: BSD-2-Clause" in outcome.out
        assert "citation: Mah et al." in outcome.out

    @pytest.mark.parametrize("name", ["synthetic", "u2os_gold@1.0.0"])
    def test_json(self, cli, name):
        assert strict(cli("info", name, "--json").out)["name"] == name.partition("@")[0]

    def test_of_a_folder(self, cli, tables):
        found = strict(cli("info", tables, "--json").out)
        assert found["counts"]["cells"] == 400


class TestVerify:
    @pytest.mark.slow
    def test_fine_is_0(self, cli):
        outcome = cli("verify", "synthetic")
        assert (outcome.code, outcome.err) == (0, "")
        assert "synthetic@1.0.0: files, hashes, rules and splits are fine" in outcome.out
        assert "100.0% of the 194,553 molecules lie in their cells (within 1 um)" in outcome.out

    def test_a_flipped_byte_is_1(self, cli, tables):
        path = tables / "molecules.parquet"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        refused(cli("verify", tables), "molecules.parquet", code=1)

    def test_a_missing_file_is_1(self, cli, tables):
        (tables / "labels.parquet").unlink()
        refused(cli("verify", tables), "labels.parquet", code=1)


class TestDownload:
    def test_prints_the_folder(self, cli):
        dataset = load_dataset("synthetic")
        assert cli("download", "synthetic").out == f"synthetic@1.0.0\t{dataset.folder}\n"


class TestValidate:
    def test_fine_is_0(self, cli, good):
        outcome = cli("validate", good, "--dataset", "synthetic")
        assert (outcome.code, outcome.out, outcome.err) == (0, f"{good}: fine (split test)\n", "")

    def test_the_split_is_that_of_the_file(self, cli, predictions):
        assert cli("validate", predictions / "val.parquet", "--dataset", "synthetic").code == 0

    def test_problems_are_1(self, cli, good):
        pq.write_table(pq.read_table(good)[3:], good)
        outcome = cli("validate", good, "--dataset", "synthetic")
        refused(outcome, "3 pairs are missing", code=1)

    @pytest.mark.parametrize(
        "spoil",
        [lambda b: b[:-9], lambda b: b"", lambda b: b"<html>"],
        ids=["cut", "empty", "html"],
    )
    def test_a_file_that_is_no_parquet_is_1(self, cli, good, spoil):
        good.write_bytes(spoil(good.read_bytes()))
        refused(cli("validate", good, "--dataset", "synthetic"), "Parquet", code=1)

    def test_a_split_that_the_dataset_lacks_is_1(self, cli, good):
        table = pq.read_table(good)
        value = json.loads(table.schema.metadata[b"gpattern_bench"]) | {"split": "hold"}
        metadata = {"gpattern_bench": json.dumps(value)}
        pq.write_table(table.replace_schema_metadata(metadata), good)
        refused(cli("validate", good, "--dataset", "synthetic"), "'hold'", code=1)

    def test_a_warning_is_no_failure(self, cli, tmp_path):
        dataset = load_dataset("synthetic")
        scores = dataset.pairs("test").assign(**dict.fromkeys(dataset.patterns, 0.5))
        write_predictions(tmp_path / "flat.parquet", scores, dataset, "test", method="flat")
        outcome = cli("validate", "flat.parquet", "--dataset", "synthetic")
        assert outcome.code == 0
        assert outcome.err.count("warning: column") == 4


class TestEvaluate:
    def test_prints_a_table(self, cli, good):
        outcome = cli("evaluate", good, "--dataset", "synthetic")
        assert outcome.code == 0
        for text in ("| nuclear_edge", "| macro", "test: 1,834 pairs"):
            assert text in outcome.out

    def test_json_is_the_result(self, cli, good, predictions):
        args = ["evaluate", good, "--dataset", "synthetic", "--json"]
        found = strict(cli(*args, "--val", predictions / "val.parquet").out)
        assert {"f1_macro", "f1_val_macro", "per_pattern", "undefined"} <= set(found)

    def test_json_of_undefined_metrics_has_null(self, cli, tmp_path):
        # A dataset in which no pair has the last pattern.
        bento_file(tmp_path / "a.h5ad", empty="nuclear_edge")
        args = ["--out", "d", "--name", "d", "--unit-um", "0.1", "--split", "test"]
        assert cli("curate", "bento-h5ad", "a.h5ad", *args, "--patternless", "keep").code == 0
        assert cli("run", "sprawl", "--dataset", "d", "--out", "r").code == 0
        outcome = cli("evaluate", "r/d/test-seed0.parquet", "--dataset", "d", "--json")
        found = strict(outcome.out)
        assert found["per_pattern"]["nuclear_edge"]["f1"] is None
        assert found["undefined"]["f1"] == ["nuclear_edge"]
        plain = cli("evaluate", "r/d/test-seed0.parquet", "--dataset", "d")
        assert "undefined f1, left out of its mean: nuclear_edge" in plain.out

    def test_val_adds_its_column(self, cli, good, predictions):
        args = ["evaluate", good, "--dataset", "synthetic"]
        assert "f1_val" not in cli(*args).out
        assert "f1_val" in cli(*args, "--val", predictions / "val.parquet").out

    def test_a_wrong_val_file_is_2(self, cli, good):
        args = ["evaluate", good, "--dataset", "synthetic", "--val", good]
        refused(cli(*args), "split = 'test', expected 'val'")

    def test_a_wrong_file_is_2(self, cli, good):
        pq.write_table(pq.read_table(good)[3:], good)
        refused(cli("evaluate", good, "--dataset", "synthetic"), "3 pairs are missing")


def bento_file(path: Path, *, empty: str | None = None) -> None:
    """An h5ad as Bento writes it: five square cells of 100 pixels, three genes and a blank."""
    rng = np.random.default_rng(0)
    genes, cells = ["A", "B", "C", "blank1"], [f"c{k}" for k in range(5)]
    rows = [(c, g) for c in range(5) for g in range(4) for _ in range(4 + g)]
    cell, gene = np.array(rows).T
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        obs = file.create_group("obs")
        obs.attrs["_index"] = "cell"
        obs.create_dataset("cell", data=cells, dtype=text)
        obs.create_dataset("batch", data=[f"f{k}" for k in range(5)], dtype=text)
        corners = [[(0, 0), (100, 0), (100, 100), (0, 100), (0, 0)] for _ in cells]
        wkt = [
            "POLYGON ((" + ", ".join(f"{x + 200 * k} {y}" for x, y in ring) + "))"
            for k, ring in enumerate(corners)
        ]
        obs.create_dataset("cell_shape", data=wkt, dtype=text)
        obs.create_dataset("nucleus_shape", data=["None"] * 5, dtype=text)
        var = file.create_group("var")
        var.attrs["_index"] = "gene"
        var.create_dataset("gene", data=genes, dtype=text)
        points = file.create_group("uns/points")
        points.create_dataset("cell", data=[cells[c] for c in cell], dtype=text)
        points.create_dataset("gene", data=[genes[g] for g in gene], dtype=text)
        points.create_dataset("batch", data=[f"f{c}" for c in cell], dtype=text)
        points.create_dataset("x", data=rng.random(len(rows)) * 100 + 200 * cell)
        points.create_dataset("y", data=rng.random(len(rows)) * 100)
        layers = file.create_group("layers")
        for name in PATTERNS:
            values = rng.integers(0, 2, (5, 4)).astype(float)
            values[0, 0] = 0  # the first pair has no pattern
            layers.create_dataset(name, data=values * (name != empty))


class TestCurate:
    @pytest.fixture
    def args(self, tmp_path) -> list[str]:
        bento_file(tmp_path / "a.h5ad")
        return ["curate", "bento-h5ad", "a.h5ad", "--name", "mine", "--unit-um", "0.1"]

    def test_makes_a_dataset_that_verifies(self, cli, args):
        outcome = cli(*args, "--out", "d", "--patternless", "keep")
        assert outcome.code == 0, outcome.err
        assert "5 cells, 3 genes" in outcome.out
        assert "dropped from molecules: 35 (control target)" in outcome.out
        assert "molecules lie in their cells (within 1 um)" in outcome.out
        assert cli("verify", "d").code == 0

    def test_scales_to_micrometres(self, cli, args, tmp_path):
        cli(*args, "--out", "d", "--patternless", "keep")
        cells = Dataset(tmp_path / "d").cells()
        assert [shape.area for shape in cells["cell_boundary"]] == pytest.approx([100.0] * 5)

    def test_split_test_puts_everything_there(self, cli, args, tmp_path):
        cli(*args, "--out", "d", "--split", "test", "--patternless", "keep")
        assert Dataset(tmp_path / "d").splits == ("test",)

    def test_patternless_pairs_are_dropped_unless_kept(self, cli, args, tmp_path):
        cli(*args, "--out", "kept", "--patternless", "keep")
        cli(*args, "--out", "dropped", "--patternless", "drop")
        kept, dropped = (Dataset(tmp_path / n).labels() for n in ("kept", "dropped"))
        assert len(kept) == 15
        assert len(dropped) == kept[list(PATTERNS)].any(axis=1).sum() < 15

    def test_a_folder_in_use_is_2_and_stays(self, cli, args, tmp_path):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "mine.txt").write_text("mine")
        refused(cli(*args, "--out", "d"), "the folder is not empty")
        assert [path.name for path in (tmp_path / "d").iterdir()] == ["mine.txt"]

    @pytest.mark.parametrize("data", [b"", b"PK", b"<html>"], ids=["empty", "zip", "html"])
    def test_a_file_that_is_no_hdf5_is_2(self, cli, args, tmp_path, data):
        (tmp_path / "a.h5ad").write_bytes(data)
        refused(cli(*args, "--out", "d"), "a.h5ad cannot be ")
        assert not (tmp_path / "d").exists()

    def test_layers_that_are_missing_are_named(self, cli, args, tmp_path):
        with h5py.File(tmp_path / "a.h5ad", "a") as file:
            del file["layers/nuclear"]
        refused(cli(*args, "--out", "d"), "but lacks nuclear")


@pytest.mark.slow
class TestDemo:
    SHORTER = """
from gpattern_bench.methods import _forest
from gpattern_bench.methods.boosted import method as boosted
from gpattern_bench.methods.gpsnet import method as gpsnet
_forest._TREES, boosted._TREES, boosted._ROUNDS = 20, 5, 5
gpsnet.steps_for = lambda cells: 80
from gpattern_bench.cli import main
main()
"""

    @pytest.fixture(scope="class")
    @classmethod
    def made(cls, tmp_path_factory):
        """The demo in a process of its own, with few steps of GPSNet and few trees."""
        folder = tmp_path_factory.mktemp("demo")
        command = [sys.executable, "-c", cls.SHORTER, "demo", "--out", "d"]
        found = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return found, folder / "d"

    def test_shows_a_board_of_controls_baselines_and_our_own(self, made):
        found, _ = made
        assert found.returncode == 0
        _, _, tables = found.stdout.partition("## synthetic@1.0.0")
        lines = [line for line in tables.splitlines() if line.startswith("|")]
        assert len(lines) == 2 * (2 + 10)  # in short, and all metrics

    def test_tells_each_method_and_the_epochs_of_a_network(self, made):
        found, _ = made
        lines = found.stderr.splitlines()
        assert "\r" not in found.stderr
        for k, name in enumerate(_DEMO, 1):
            begin = lines.index(f"{name}, {k} of 10")
            end = next(
                at for at, line in enumerate(lines) if line.startswith(f"{name}: done after")
            )
            assert begin < end
        epochs = [line for line in lines[begin:end] if re.match(r"epoch \d+ of 2: loss 0\.", line)]
        assert len(epochs) == 2
        assert lines[-1].startswith("the whole demo took ")

    def test_writes_what_it_shows(self, made):
        found, folder = made
        assert (folder / "leaderboard" / "LEADERBOARD.md").read_text("utf-8") in found.stdout

    def test_its_board_has_no_drift(self, made, cli):
        _, folder = made
        where = ["--submissions", folder / "submissions", "--out", folder / "leaderboard"]
        assert cli("leaderboard", *where, "--check", "--rescore").code == 0

    def test_scores_are_those_of_the_difficulty_that_was_fixed(self, made):
        _, folder = made
        board = json.loads((folder / "leaderboard" / "leaderboard.json").read_text("utf-8"))
        auc = {row["method"]: row["auc_macro"] for row in board["tables"][0]["rows"]}
        assert 0.75 <= auc["gene_prior"] <= 0.85
        assert auc["molecule_count"] <= 0.60
        assert (auc["prevalence"], auc["oracle"]) == (0.5, 1.0)
        assert auc["gpsnet"] > max(auc["gene_prior"], auc["sprawl"], auc["ella"]) + 0.05

    def test_its_predictions_are_frames_that_pandas_opens(self, made):
        _, folder = made
        path = folder / "submissions" / "sprawl" / "predictions" / "synthetic"
        frame = pd.read_parquet(path / "test-seed0.parquet")
        assert list(frame.columns) == ["cell_id", "gene", *PATTERNS]


class TestLeaderboard:
    def test_an_empty_folder_gives_an_empty_board(self, cli, tmp_path):
        (tmp_path / "submissions").mkdir()
        assert cli("leaderboard").code == 0
        assert (tmp_path / "leaderboard" / "LEADERBOARD.md").is_file()
        assert cli("leaderboard", "--check").code == 0

    def test_a_broken_submission_is_2(self, cli, tmp_path):
        (tmp_path / "submissions" / "mine").mkdir(parents=True)
        (tmp_path / "submissions" / "mine" / "submission.yaml").write_text("method: mine\n")
        refused(cli("leaderboard"), "label: Field required")


def test_the_tests_use_a_cache_of_their_own():
    assert "gpattern-bench-tests-" in os.environ["GPATTERN_BENCH_DATA"]


class TestCompare:
    def test_shows_differences_with_intervals(self, cli, good, predictions):
        found = cli("compare", good, predictions / "test.parquet")
        assert found.code == 0
        assert found.out.count("tied") == 5 + 4 * 6  # macro metrics, and six of each pattern
        assert "paired bootstrap over 10 clusters" in found.out

    def test_json(self, cli, good, predictions):
        found = strict(cli("compare", good, predictions / "test.parquet", "--json").out)
        assert found["auc_macro"]["difference"] == 0
        assert found["auc_macro"]["tied"] is True
        assert list(found["per_pattern"]) == list(PATTERNS)

    def test_at_val_thresholds(self, cli, good, predictions):
        val = predictions / "val.parquet"
        found = cli("compare", good, predictions / "test.parquet", "--val-a", val, "--val-b", val)
        assert found.code == 0
        assert found.out.count("f1_val") == 1 + 4
        found = cli("compare", good, predictions / "test.parquet", "--val-a", val)
        refused(found, "needs val scores of both methods")

    def test_another_split_is_2(self, cli, good, predictions):
        found = cli("compare", good, predictions / "val.parquet")
        refused(found, "split = 'val', expected 'test'")


class TestStrata:
    def test_table(self, cli, good):
        found = cli("evaluate", good, "--dataset", "synthetic", "--by", "molecules")
        assert found.code == 0
        for name in ("1", "2-4", "5-9", "10-19", "20-49", "50+"):
            assert f"\n| {name} " in found.out

    def test_json(self, cli, good):
        options = ("--dataset", "synthetic", "--by", "cell_size", "--json")
        found = strict(cli("evaluate", good, *options).out)
        assert list(found) == ["smallest third", "middle third", "largest third"]

    def test_without_intervals(self, cli, good):
        found = cli("evaluate", good, "--dataset", "synthetic", "--replicates", 0)
        assert found.code == 0
        assert "95 %" not in found.out


class TestCalls:
    def test_are_written_beside_the_file(self, cli, good, predictions):
        found = cli("calls", good, "--val", predictions / "val.parquet")
        assert found.code == 0
        table, genes = (Path(line) for line in found.out.split())
        calls = pq.read_table(table).to_pandas()
        assert len(calls) == len(pq.read_table(good))
        assert calls[list(PATTERNS)].dtypes.eq(bool).all()
        assert len(pd.read_csv(genes)) == calls["gene"].nunique()

    def test_a_wrong_val_file_is_2_and_writes_nothing(self, cli, good, tmp_path):
        refused(cli("calls", good, "--val", good), "split = 'test', expected 'val'")
        assert [path.name for path in tmp_path.iterdir()] == ["test.parquet"]


class TestPredict:
    @pytest.mark.slow
    def test_scores_calls_and_genes(self, cli, tables, tmp_path):
        assert cli("run", "gene_prior", "--dataset", tables, "--out", tmp_path / "run").code == 0
        model = tmp_path / "run" / "synthetic" / "model-seed0"
        out = tmp_path / "own.parquet"
        found = cli("predict", tables, "--model", model, "--out", out, "--calls")
        assert found.code == 0
        assert [Path(line).name for line in found.out.split()] == [
            "own.parquet",
            "own-calls.parquet",
            "own-calls-genes.csv",
        ]
        assert len(pq.read_table(out)) == Dataset(tables).counts["pairs"]

    def test_what_is_no_model_is_2(self, cli, tables, tmp_path):
        found = cli("predict", tables, "--model", tmp_path, "--out", tmp_path / "x.parquet")
        refused(found, "holds no readable model")

    @pytest.mark.slow
    def test_calls_without_thresholds_are_2(self, cli, tables, tmp_path):
        assert cli("run", "sprawl", "--dataset", tables, "--out", tmp_path / "run").code == 0
        model = tmp_path / "run" / "synthetic" / "model-seed0"
        text = json.loads((model / "model.json").read_text()) | {"thresholds": None}
        (model / "model.json").write_text(json.dumps(text))
        found = cli("predict", tables, "--model", model, "--out", tmp_path / "x.parquet", "--calls")
        assert found.code == 2
        assert "has no thresholds for calls" in found.err
        assert len(pq.read_table(tmp_path / "x.parquet")) == Dataset(tables).counts["pairs"]


# Datasets: cite, datasheet, export, simulate


def test_cite_names_source_licence_and_address(cli):
    outcome = cli("cite", "u2os")
    assert outcome.code == 0
    for text in ("Genome Biology", "licence: ", "figshare", "35596979"):
        assert text in outcome.out


def test_list_tells_published_and_obtained_apart(cli):
    shown = cli("list", "--json")
    rows = {row["dataset"].split("@")[0]: row for row in strict(shown.out)}
    assert rows["cosmx_lung"]["molecules"] == 30_370_769
    assert rows["synthetic"]["molecules"] == 194_553


def test_datasheet_is_shown_or_written(cli, tmp_path):
    shown = cli("datasheet", "synthetic")
    assert shown.code == 0
    assert shown.out.startswith("# synthetic@1.0.0")
    assert cli("datasheet", "synthetic", "--out", "sheet.md").out == ""
    assert (tmp_path / "sheet.md").read_text(encoding="utf-8") == shown.out


@pytest.mark.slow
def test_export_writes_tables_that_load(cli, tmp_path):
    outcome = cli("export", "synthetic", "--out", "shared")
    assert outcome.code == 0
    [entry], problems = read_registry(
        outcome.out.partition("\n\n")[2].replace("<", "").replace(">", "")
    )
    known = find_entry("synthetic")
    assert problems == {}
    assert entry.tables.sha256 == file_sha256(tmp_path / "shared" / "manifest.json")
    same = {"tables": None, "notes": ""}
    assert entry.model_copy(update=same) == known.model_copy(update=same)
    assert load_dataset(tmp_path / "shared").manifest == load_dataset("synthetic").manifest
    refused(cli("export", "synthetic", "--out", "shared"), "not empty")


def test_list_says_what_a_download_would_fetch(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("GPATTERN_BENCH_DATA", str(tmp_path / "empty"))
    rows = {row["dataset"].split("@")[0]: row for row in strict(cli("list", "--json").out)}
    assert {row["cached"] for row in rows.values()} == {"no"}
    assert rows["synthetic"]["download"] == "nothing: simulated here"
    assert rows["synthetic"]["molecules per cell"] == 486
    assert rows["u2os"]["download"] == "1 file, size not stated"
    assert rows["u2os_sample"]["download"] == "1 file, 6.5 MB"
    assert rows["u2os_sample"]["licence"] == "BSD-2-Clause"
    assert rows["u2os_bento"]["download"] == "23 files, 11.6 MB; 1 to make (see info)"
    shown = cli("list").out
    assert all(row["download"] in shown and row["licence"] in shown for row in rows.values())


def test_simulate_draws_as_many_cells_as_asked(cli, tmp_path):
    assert cli("simulate", "--like", "synthetic", "--cells", 16, "--out", "few").code == 0
    dataset = Dataset(tmp_path / "few")
    assert dataset.counts["cells"] == 16
    assert dataset.manifest.raw["curation"]["n_cells"] == 16
    refused(cli("simulate", "--like", "synthetic", "--cells", 15, "--out", "no"), "got 15")
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_simulate_writes_a_release_that_curate_reads(cli, tmp_path, monkeypatch):
    # The whole of nih3t3's size takes a minute; a few of its fields of view are the same code.
    whole = simulate.simulate_like
    monkeypatch.setattr(simulate, "simulate_like", lambda *a: islice(whole(*a), 3))
    made = cli("simulate", "--like", "nih3t3", "--out", "s.h5ad", "--as", "bento-h5ad")
    assert (made.code, made.out) == (0, "s.h5ad\n")
    outcome = cli("curate", "bento-h5ad", "s.h5ad", "--out", "tables", "--unit-um", "0.108")
    assert outcome.code == 0
    assert "dropped from molecules" in outcome.out
    dataset = Dataset(tmp_path / "tables")
    assert dataset.name == "tables"
    assert len(dataset.genes) == 3_721
    assert cli("verify", "tables").code == 0


class TestRobustness:
    @pytest.mark.slow
    def test_prints_a_table_and_writes_the_file_beside_the_run(self, cli, tmp_path):
        outcome = cli("robustness", "prevalence", "--dataset", "synthetic")
        refused(outcome, "gpattern-bench run prevalence")
        cli("run", "prevalence", "--dataset", "synthetic")
        outcome = cli("robustness", "prevalence", "--dataset", "synthetic")
        assert (outcome.code, outcome.err) == (0, "")
        assert re.search(r"\| rotated +\| 1834 \|", outcome.out)
        path = "runs/prevalence/synthetic/robustness-seed0.json"
        assert outcome.out.splitlines()[-1] == path
        found = strict((tmp_path / path).read_text())
        json_out = cli("robustness", "prevalence", "--dataset", "synthetic", "--json").out
        assert strict(json_out) == found

    def test_an_untrained_method_needs_no_run(self, cli, tmp_path):
        outcome = cli("robustness", "sprawl", "--dataset", "synthetic", "--out", "here")
        assert outcome.code == 0
        assert (tmp_path / "here" / "synthetic" / "robustness-seed0.json").is_file()


class TestPlot:
    @pytest.mark.parametrize("kind", ["splits", "patterns", "cell"])
    def test_of_a_dataset(self, cli, tmp_path, kind):
        outcome = cli("plot", kind, "synthetic", "--out", "a.svg")
        assert (outcome.code, outcome.out, outcome.err) == (0, "a.svg\n", "")
        assert "</svg>" in (tmp_path / "a.svg").read_text()

    def test_of_a_cell_with_genes_and_predictions(self, cli, good, tmp_path):
        [cell] = load_dataset("synthetic").cells("test")["cell_id"].astype(str)[:1]
        args = ["--cell", cell, "--gene", "G01", "--gene", "G02", "--out", "a.pdf"]
        outcome = cli("plot", "cell", "synthetic", good, *args)
        assert (outcome.code, outcome.err) == (0, "")
        assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")

    def test_of_an_ablation_that_is_no_json(self, cli, tmp_path):
        (tmp_path / "a.json").write_text("| study |")
        refused(cli("plot", "ablation", "a.json", "--out", "a.svg"), "a.json is not JSON")
        assert not (tmp_path / "a.svg").exists()
