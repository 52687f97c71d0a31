"""Submissions and the board: a pure function of the files, and every kind of drift is found."""

from __future__ import annotations

import hashlib
import json
import locale
import re
import shutil
from base64 import b64decode, b64encode
from functools import partial
from math import inf, nan
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from samples import metadata_of, stored_result

from gpattern_bench import load_dataset
from gpattern_bench.base.files import file_sha256, plain
from gpattern_bench.board.leaderboard import build_board
from gpattern_bench.board.markdown import markdown
from gpattern_bench.board.metadata import write_schema
from gpattern_bench.board.page import build_page
from gpattern_bench.board.publish import (
    drift,
    read_reported,
    read_versions,
    unmeasured,
    write_board,
)
from gpattern_bench.board.snapshot import snapshot_text
from gpattern_bench.board.submission import Metadata, Submission, read_submissions
from gpattern_bench.board.submit import submit_run
from gpattern_bench.errors import SubmissionError
from gpattern_bench.methods import METHODS, get_method
from gpattern_bench.predictions import write_predictions
from gpattern_bench.runs.run import run_method

REPOSITORY = Path(__file__).resolve().parents[2]
METRICS = ("auc_macro", "acc_macro", "f1_macro", "ap_macro", "accuracy_subset")

QUICK = ("prevalence", "gene_prior", "molecule_count", "oracle", "sprawl")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the submissions of quick methods on `synthetic`, and their board."""
    folder = tmp_path_factory.mktemp("made")
    dataset = load_dataset("synthetic")
    for name in QUICK:
        run_method(name, dataset, folder / "runs" / name)
        submit_run(folder / "runs" / name, folder / "submissions" / name)
    write_schema(folder / "submissions")
    for submission in read_submissions(folder / "submissions"):
        submission.write_results(submission.rescored()[0])
    reported = REPOSITORY / "leaderboard" / "reported.yaml"
    (folder / "leaderboard").mkdir()
    (folder / "leaderboard" / "reported.yaml").write_text(reported.read_text("utf-8"), "utf-8")
    found = read_submissions(folder / "submissions")
    board = build_board(found, read_reported(folder / "leaderboard"))
    write_board(board, found, folder / "leaderboard")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A copy of it, and the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def leaderboard(cli):
    """Run `gpattern-bench leaderboard ...`: exit code and stderr."""
    return partial(cli, "leaderboard")


def submissions(folder: Path) -> list[Submission]:
    return read_submissions(folder / "submissions")


def entry(method: str = "m", **values) -> dict:
    """A stored result with two patterns."""
    base = {"predictions": f"predictions/d/{method}.parquet", "seconds": 1.0, "device": "CPU"}
    found = stored_result(values.pop("score", 0.5), **base | values)
    found["metrics"]["ci"] = {"f1_macro": [0.4, 0.6]}
    return found


def about(method: str = "m", **values) -> Metadata:
    return metadata_of(method, **values)


def submitted(*entries: dict, label: str | None = None, **values) -> Submission:
    metadata = about(**values)
    if label is not None:  # any, as if the rules of labels had let it pass
        metadata = metadata.model_copy(update={"label": label})
    return Submission(Path(metadata.method), metadata, list(entries))


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


def table_rows(text: str) -> list[list[str]]:
    """Cells of every row of every Markdown table, split where Markdown splits."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


@pytest.mark.slow
class TestPure:
    def test_rebuilding_gives_the_same_bytes(self, here):
        before = {p.name: p.read_bytes() for p in (here / "leaderboard").iterdir()}
        found = submissions(here)
        board = build_board(found, read_reported(here / "leaderboard"))
        write_board(board, found, here / "leaderboard")
        assert {p.name: p.read_bytes() for p in (here / "leaderboard").iterdir()} == before

    def test_the_order_of_submissions_and_results_does_not_matter(self):
        entries = [
            entry(name, dataset=d, seed=seed, protocol=protocol, score=seed / 10)
            for name in ("p", "q")
            for d in ("x", "y")
            for protocol in ("fit", "transfer")
            for seed in (0, 1, 2)
        ]
        found = [submitted(*entries[:12], method="p"), submitted(*entries[12:], method="q")]
        turned = [
            submitted(*entries[12:][::-1], method="q"),
            submitted(*entries[:12][::-1], method="p"),
        ]
        assert json.dumps(build_board(found).to_json()) == json.dumps(build_board(turned).to_json())

    def test_the_locale_does_not_matter(self, here):
        text = markdown(build_board(submissions(here)))
        before = locale.setlocale(locale.LC_ALL)
        others = [name for name in ("de_DE.UTF-8", "C.UTF-8", "C") if _has_locale(name)]
        try:
            for name in others:
                locale.setlocale(locale.LC_ALL, name)
                assert markdown(build_board(submissions(here))) == text
        finally:
            locale.setlocale(locale.LC_ALL, before)

    def test_rescoring_gives_the_stored_results(self, here):
        for submission in submissions(here):
            results, skipped = submission.rescored()
            assert plain(results) == submission.results
            assert skipped == []


def _has_locale(name: str) -> bool:
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_ALL, before)
    return True


class TestRows:
    def test_every_method_has_one(self, here):
        [table] = build_board(submissions(here)).to_json()["tables"]
        assert {row["method"] for row in table["rows"]} == set(QUICK)

    def test_candidates_are_ranked_by_f1_and_controls_are_not(self):
        board = build_board(
            [
                submitted(entry(score=0.4), method="a"),
                submitted(entry(score=0.6), method="b"),
                submitted(entry(score=0.5), method="gene_prior", kind="control", inputs=["gene"]),
                submitted(entry(score=1.0), method="oracle", kind="control", inputs=["labels"]),
            ]
        )
        rows = board.to_json()["tables"][0]["rows"]
        assert [(row["method"], row["rank"]) for row in rows] == [
            ("oracle", None),
            ("b", 1),
            ("gene_prior", None),
            ("a", 2),
        ]
        lifts = {row["method"]: row["lift_f1"] for row in rows}
        assert (lifts["gene_prior"], lifts["oracle"]) == (None, None)
        assert lifts["b"] == pytest.approx(0.1)  # over the control that cannot see the labels

    def test_rows_without_a_defined_f1_come_last(self):
        board = build_board(
            [
                submitted(entry(score=0.4), method="a"),
                submitted(entry(score=None), method="b"),
                submitted(entry(score=0.9), method="c"),
                submitted(entry(score=None), method="d"),
                submitted(entry(score=0.6), method="e"),
            ]
        )
        assert [row["method"] for row in board.to_json()["tables"][0]["rows"]] == [
            "c",
            "e",
            "a",
            "b",
            "d",
        ]

    def test_seeds_are_averaged(self):
        entries = [entry(score=s, seed=k, predictions=f"p{k}") for k, s in enumerate((0.2, 0.4))]
        [row] = build_board([submitted(*entries)]).to_json()["tables"][0]["rows"]
        assert row["f1_macro"] == pytest.approx(0.3)
        assert row["seeds"] == [0, 1]

    def test_several_seeds_have_a_spread(self):
        seeds = [entry(seed=k, score=score) for k, score in enumerate((0.4, 0.5, 0.9))]
        board = build_board([submitted(*seeds)])
        [row] = board.to_json()["tables"][0]["rows"]
        assert row["f1_macro"] == pytest.approx(0.6)
        assert row["std"]["f1_macro"] == pytest.approx(np.std([0.4, 0.5, 0.9], ddof=1))
        assert "60.00 ± 26.46" in markdown(board)

    def test_methods_that_cannot_be_told_apart_are_tied(self):
        scores = {"a": 0.9, "b": 0.88, "c": 0.3}
        board = build_board(
            [submitted(entry(m, score=score), method=m) for m, score in scores.items()]
        )
        rows = {row["method"]: row["tie_group"] for row in board.to_json()["tables"][0]["rows"]}
        # Replicates of a and b move together: a difference of 0.02 that never varies is no tie.
        assert rows == {"a": 1, "b": 2, "c": 3}
        for row in (apart := submitted(entry("b", score=0.88), method="b")).results:
            drawn = np.frombuffer(b64decode(row["f1_replicates"]), "<f4")[::-1]
            row["f1_replicates"] = b64encode(drawn.tobytes()).decode()
        board = build_board([submitted(entry("a", score=0.9), method="a"), apart])
        assert [row["tie_group"] for row in board.to_json()["tables"][0]["rows"]] == [1, 1]

    def test_the_lift_has_an_interval_and_the_oracle_no_group(self, here):
        rows = json.loads((here / "leaderboard" / "leaderboard.json").read_text("utf-8"))
        [table] = rows["tables"]
        found = {row["method"]: row for row in table["rows"]}
        low, high = found["sprawl"]["lift_f1_ci"]
        assert low < found["sprawl"]["lift_f1"] < high
        assert found["oracle"]["tie_group"] is None
        assert (table["n_clusters"], table["clusters"]) == (10, "fov")

    def test_patterns_without_a_rule_are_marked(self):
        text = markdown(build_board([submitted(entry(), rules_for=["inner"])]))
        assert "| M †" in text
        assert "† No rule for outer: scored 0 there." in text

    def test_time_and_device_come_from_the_run(self, here):
        [table] = build_board(submissions(here)).to_json()["tables"]
        for row in table["rows"]:
            folder = here / "submissions" / row["method"] / "predictions" / "synthetic"
            run = json.loads((folder / "run-seed0.json").read_text())
            assert (row["seconds"], row["device"]) == (run["seconds"]["test"], run["device"])


class TestMarks:
    def cells(self, column: str, *found: Submission, reported=()) -> list[str]:
        """A column of the summary, or else of the table with all metrics."""
        lines = table_rows(markdown(build_board(found, reported)))
        for k in (0, len(found) + 2):
            if column in (header := [name.strip() for name in lines[k]]):
                rows = lines[k + 2 : k + 2 + len(found)]
                return [row[header.index(column)].strip() for row in rows]
        raise ValueError(column)

    def test_best_and_second_best_candidates_of_each_metric(self):
        scores = {"a": 0.9, "b": 0.7, "c": 0.5, "d": 1.0}
        found = [submitted(entry(m, score=s), method=m) for m, s in scores.items()]
        labels = {"kind": "control", "inputs": ["labels"]}
        found[3] = submitted(entry("oracle", score=1.0), method="oracle", **labels)
        for metric in ("AUC", "ACC"):
            expected = ["100.00", "**90.00**", "<u>70.00</u>", "50.00"]
            assert self.cells(metric, *found) == expected
        assert self.cells("F1", *found)[1] == "**90.00** [40.0, 60.0]"

    def test_equal_values_share_the_mark(self):
        scores = {"a": 0.9, "b": 0.9, "c": 0.5}
        found = [submitted(entry(m, score=s), method=m) for m, s in scores.items()]
        assert self.cells("AUC", *found) == ["**90.00**", "**90.00**", "<u>50.00</u>"]

    def test_equal_in_print_is_equal_here_and_on_the_page(self):
        scores = {"a": 0.90004, "b": 0.90001, "c": 0.89996, "d": 0.89994, "e": 0.5}
        found = [submitted(entry(m, score=s), method=m) for m, s in scores.items()]
        best, second = ["**90.00**"] * 3, ["<u>89.99</u>"]
        assert self.cells("AUC", *found) == [*best, *second, "50.00"]
        html = build_page(build_board(found), found)
        columns = 4  # F1, AUC, ACC, AP
        assert html.count('<b class="best">90.00</b>') == 3 * columns
        assert html.count('<u class="second">89.99</u>') == columns

    def test_undefined_values_have_none(self):
        found = [submitted(entry("a", score=None), method="a"), submitted(entry("b"), method="b")]
        assert self.cells("AUC", *found) == ["**50.00**", "-"]

    def test_what_the_run_measured(self):
        values = {"fit_seconds": 12.34, "parameters": 3_100_000, "date": "2026-01-02"}
        found = submitted(entry(**values), entry(seed=1, **values | {"date": "2026-01-03"}))
        row = build_board([found]).to_json()["tables"][0]["rows"][0]
        assert {key: row[key] for key in values} == values | {"date": "2026-01-03"}
        assert self.cells("Training", found) == ["12.3 s wall"]
        assert self.cells("Validation", found) == ["1.0 s wall"]
        assert self.cells("Time", found) == ["13.3 s wall"]
        assert self.cells("Parameters", found) == ["3,100,000"]
        assert self.cells("Date", found) == ["2026-01-03"]
        assert self.cells("Status", found) == ["measured"]

    def test_what_the_run_did_not_measure(self):
        found = submitted(entry())
        row = build_board([found]).to_json()["tables"][0]["rows"][0]
        assert [row[k] for k in ("fit_seconds", "parameters", "date", "robustness")] == [None] * 4
        assert row["flags"] == []
        for column in ("Training", "Parameters", "Date"):
            assert self.cells(column, found) == ["-"]

    def test_cell_by_cell_is_a_column_if_any_row_has_it(self):
        assert "Cell by cell" not in markdown(build_board([submitted(entry())]))
        found = submitted(entry(seconds_batch_1=3.21))
        assert self.cells("Cell by cell", found) == ["3.2 s wall"]
        assert "Cell by cell" in build_page(build_board([found]), [found])

    def test_processor_time_stands_for_that_by_the_clock(self):
        used = {"cpu_seconds": 0.5, "cpu_fit_seconds": 10.0, "cpu_seconds_batch_1": 0.75}
        values = {"fit_seconds": 40.0, "seconds_batch_1": 3.0, **used}
        found = submitted(entry(**values))
        row = build_board([found]).to_json()["tables"][0]["rows"][0]
        assert {key: row[key] for key in values} == values
        columns = {"Time": "10.5 s", "Training": "10.0 s", "Validation": "0.5 s"}
        for column, expected in (columns | {"Cell by cell": "0.8 s"}).items():
            assert self.cells(column, found) == [expected]
        page = build_page(build_board([found]), [found])
        assert "10.5 s</td>" in page
        assert "<small>wall" not in page

    def test_of_one_seed_without_it_the_clock_counts_for_all(self):
        found = submitted(entry(cpu_seconds=0.5), entry(seed=1, seconds=3.0))
        assert self.cells("Validation", found) == ["2.0 s wall"]
        assert "2.0 s <small>wall</small>" in build_page(build_board([found]), [found])

    def test_a_time_that_holds_the_fits_says_so(self):
        held = submitted(entry("a", protocol="cv-cell"), method="a")
        used = {"fit_seconds": 8.0, "cpu_seconds": 0.5, "cpu_fit_seconds": 7.0}
        apart = submitted(entry("b", protocol="cv-cell", **used), method="b")
        assert self.cells("Validation", held, apart) == ["1.0 s wall with fits", "0.5 s"]
        assert self.cells("Training", held, apart) == ["-", "7.0 s"]
        rows = build_board([held, apart]).to_json()["tables"][0]["rows"]
        assert [row.get("holds_fits") for row in rows] == [True, None]
        assert "wall with fits" in build_page(build_board([held]), [held])
        mixed = submitted(*held.results, entry("c", protocol="cv-cell", seed=1, **used))
        assert self.cells("Validation", mixed) == ["1.0 s wall with fits"]
        untold = submitted(entry("d", protocol="cv-cell", seconds=None))
        assert self.cells("Validation", untold) == ["-"]
        assert not build_board([untold]).tables[0].rows[0].holds_fits

    def test_what_learns_nothing_holds_no_fit_out_of_fold(self):
        found = submitted(entry("a", protocol="untrained"), method="a", trained_on=None)
        beside = submitted(entry("b", protocol="cv-cell"), method="b")
        assert self.cells("Validation", found, beside) == ["1.0 s wall", "1.0 s wall with fits"]

    def test_versions_of_all_seeds(self):
        one, other = {"numpy": "2.4.6", "python": "3.11.2"}, {"numpy": "2.5.0", "python": "3.11.2"}
        found = submitted(entry(versions=one), entry(seed=1, versions=other))
        [row] = build_board([found]).tables[0].rows
        assert row.versions == {"numpy": "2.4.6, 2.5.0", "python": "3.11.2"}
        told = "Run with numpy 2.4.6, 2.5.0, python 3.11.2."
        assert told in build_page(build_board([found]), [found])
        found = submitted(entry(versions=one), entry(seed=1))
        assert build_board([found]).tables[0].rows[0].versions is None

    def test_results_without_provenance_are_named(self):
        known = {"date": "2026-01-02", "parameters": 0, "versions": {"numpy": "2.4.6"}}
        whole = submitted(entry(**known), method="whole")
        old = submitted(entry(**known), entry(seed=1, parameters=3), method="old")
        assert unmeasured([whole, old]) == [
            "old: 1 of 2 results lack date, versions; run the method again, and submit that"
        ]

    def test_robust_is_a_column_if_any_row_has_it(self):
        robust = entry(robustness={"f1_worst_drop": 0.0123, "largest_change": 0.5})
        a, b = submitted(robust, method="a"), submitted(entry(), method="b")
        assert self.cells("Robust", a, b) == ["1.2", "-"]
        with pytest.raises(ValueError, match="Robust"):
            self.cells("Robust", b)

    def test_the_times_of_the_paper_stand_beside_ours(self):
        reported = read_reported(REPOSITORY / "leaderboard")
        found = [
            submitted(entry(dataset="nih3t3_gold"), method="locfish", label="locFISH"),
            submitted(entry(dataset="nih3t3_gold"), method="mine", label="Mine"),
            submitted(entry(dataset="nih3t3_gold"), method="net", label="GPSNet"),
        ]
        times = self.cells("Paper", *found, reported=reported)
        assert times == ["13 min 20 s", "-", "15 s (training ~5 min)"]
        with pytest.raises(ValueError, match="Paper"):
            self.cells("Paper", submitted(entry(dataset="synthetic")), reported=reported)

    def test_labels_of_val_that_were_used_are_told(self):
        board = build_board([submitted(entry(), trained_on=["train", "val"])])
        assert board.to_json()["tables"][0]["rows"][0]["labels_used"] == ["train", "val"]
        assert "| M (uses val)" in markdown(board)

    def test_superseded_ones_are_marked_and_withdrawn_ones_not_shown(self):
        found = [
            submitted(entry(), method="a", status="superseded"),
            submitted(entry(), method="b", status="withdrawn"),
        ]
        [table] = build_board(found).to_json()["tables"]
        assert [row["method"] for row in table["rows"]] == ["a"]
        assert "| A (superseded)" in markdown(build_board(found))
        assert build_board(found[1:]).to_json()["tables"] == []


class TestTables:
    def test_protocols_never_share_one(self):
        entries = [
            entry(protocol=protocol, predictions=protocol)
            for protocol in ("fit", "transfer", "simulation", "cv-cell")
        ]
        tables = build_board([submitted(*entries)]).to_json()["tables"]
        assert sorted(table["protocol"] for table in tables) == sorted(
            ["fit", "transfer", "simulation", "cv-cell"]
        )
        assert all(len(table["rows"]) == 1 for table in tables)

    def test_versions_never_share_one(self):
        entries = [entry(version=v, predictions=v) for v in ("1.0.0", "1.1.0")]
        tables = build_board([submitted(*entries)]).to_json()["tables"]
        assert [table["version"] for table in tables] == ["1.0.0", "1.1.0"]

    def test_methods_that_learn_nothing_stand_in_each(self):
        fitted = submitted(
            entry(predictions="a"), entry(protocol="transfer", predictions="b"), method="a"
        )
        untrained = submitted(entry(protocol="untrained"), method="b")
        tables = build_board([fitted, untrained]).to_json()["tables"]
        assert [len(table["rows"]) for table in tables] == [2, 2]

    def test_each_training_set_has_a_row_that_names_it(self):
        several = [
            entry(predictions="a", score=0.3),
            entry(predictions="b", score=0.4, trained_on=["d@1.0.0", "sim@1.0.0"]),
            entry(predictions="c", score=0.5, trained_on=["d@1.0.0", "sim@1.0.0"], seed=1),
            entry(predictions="e", score=0.6, trained_on=["d@1.0.0", "wide@1.0.0"]),
        ]
        board = build_board([submitted(*several)])
        rows = json.loads(json.dumps(board.to_json()))["tables"][0]["rows"]
        assert [(row["trained_on"], row["seeds"]) for row in rows] == [
            (["d@1.0.0", "wide@1.0.0"], [0]),
            (["d@1.0.0", "sim@1.0.0"], [0, 1]),
            (None, [0]),
        ]
        lines = [line for line in markdown(board).splitlines() if "measured |" in line]
        assert ["(fitted on" in line for line in lines] == [True, True, False]
        assert "(fitted on d@1.0.0, sim@1.0.0)" in lines[1]

    def test_labels_that_differ_are_an_error(self):
        with pytest.raises(SubmissionError, match="scored on different labels"):
            build_board(
                [
                    submitted(entry(), method="a"),
                    submitted(entry(labels_sha256="b" * 64), method="b"),
                ]
            )

    def test_reported_rows_are_marked_and_apart(self, here):
        text = (here / "leaderboard" / "LEADERBOARD.md").read_text("utf-8")
        measured, _, reported = text.partition("## Reported by the paper")
        rows = [row for row in table_rows(reported) if "GPSNet" in row[0]]
        assert len(rows) == 3
        assert all(row[-1].strip() == "reported" for row in rows)
        assert "GPSNet" not in measured
        assert "reported" not in measured.partition("# Leaderboard")[2].split("##", 1)[1]

    def test_json_says_measured(self, here):
        board = json.loads((here / "leaderboard" / "leaderboard.json").read_text("utf-8"))
        assert {row["status"] for table in board["tables"] for row in table["rows"]} == {"measured"}

    @pytest.mark.parametrize(
        "label",
        ["a|b", "| a |", "a\nb", "a\r\n| b |", "a\\|b", "`a|b`", "<!-- a", "*a*", "[a](b) †"],
    )
    def test_no_label_breaks_one(self, label):
        text = markdown(
            build_board([submitted(entry(), label=label), submitted(entry(), method="z")])
        )
        rows = table_rows(text)
        assert len(rows) == 8  # the summary and all metrics: header, rule and two rows
        assert len({len(row) for row in rows[:4]}) == len({len(row) for row in rows[4:]}) == 1

    @pytest.mark.parametrize("label", ["<script>alert(1)</script>", "<!-- a", "a<br>b"])
    def test_no_label_brings_markup(self, label):
        assert label not in markdown(build_board([submitted(entry(), label=label)]))


@pytest.mark.slow
class TestSnapshot:
    def test_has_every_result_with_its_hashes(self, here, leaderboard):
        assert leaderboard("--snapshot", "a.json")[0] == 0
        assert leaderboard("--snapshot", "b.json")[0] == 0
        text = (here / "a.json").read_text("utf-8")
        assert text == (here / "b.json").read_text("utf-8")
        found = json.loads(text)
        stored = {
            (made.metadata.method, score["predictions"]): score
            for made in submissions(here)
            for score in made.results
        }
        assert [(r["method"], r["predictions"]) for r in found["results"]] == sorted(stored)
        for row in found["results"]:
            score = stored[row["method"], row["predictions"]]
            file = here / "submissions" / row["method"] / row["predictions"]
            assert row["sha256"]["test"] == file_sha256(file)
            assert row["metrics"]["f1_macro"] == score["metrics"]["f1_macro"]
            assert found["labels"][f"{row['dataset']}@{row['version']}"] == score["labels_sha256"]
        digest = found.pop("sha256")
        compact = json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(compact.encode()).hexdigest() == digest

    def test_withdrawn_ones_are_not_in_it(self):
        gone = submitted(entry(), status="withdrawn")
        assert json.loads(snapshot_text([gone], None))["results"] == []

    def test_check_writes_none(self, here, leaderboard):
        assert leaderboard("--check", "--snapshot", "a.json")[0] == 2
        assert not (here / "a.json").exists()


class TestDrift:
    @pytest.mark.slow
    def test_of_the_repository_there_is_none(self, leaderboard, monkeypatch):
        if not (REPOSITORY / "submissions").is_dir():
            pytest.skip("the package is tested without its submissions")
        monkeypatch.chdir(REPOSITORY)
        code, told = leaderboard("--check")
        assert (code, "error" in told) == (0, False)  # rows of older versions are warned of

    def test_of_what_was_just_made_there_is_none(self, here, leaderboard):
        assert leaderboard("--check") == (0, "")
        assert leaderboard("--check", "--rescore") == (0, "")

    def found(self, leaderboard, *options) -> str:
        code, err = leaderboard("--check", *options)
        assert code == 1
        assert "leaderboard --rescore" in err  # what to do
        return err

    def test_an_edited_score(self, here, leaderboard):
        path = here / "submissions" / "sprawl" / "results.json"
        edit_json(path, lambda r: r[0]["metrics"].update(f1_macro=0.99))
        assert "sprawl: scores differ" in self.found(leaderboard, "--rescore")

    def test_an_edited_score_with_a_board_made_of_it(self, here, leaderboard):
        [sprawl] = [m for m in read_submissions(here / "submissions") if m.folder.name == "sprawl"]
        sprawl.results[0]["seconds"] = 0.001
        sprawl.write_results(sprawl.results)
        assert leaderboard()[0] == 0
        assert leaderboard("--check")[0] == 0
        assert "sprawl: scores differ" in self.found(leaderboard, "--rescore")

    def test_an_edited_score_that_cannot_be(self, here, leaderboard):
        path = here / "submissions" / "sprawl" / "results.json"
        edit_json(path, lambda r: r[0]["metrics"].update(f1_macro=0.99))
        assert "f1_macro is 0.99, the mean of its patterns is" in self.found(leaderboard)
        assert leaderboard()[0] == 1

    @pytest.mark.parametrize("split", ["test", "val"])
    def test_a_changed_prediction_file(self, here, leaderboard, split):
        path = here / f"submissions/sprawl/predictions/synthetic/{split}-seed0.parquet"
        with path.open("ab") as file:
            file.write(b"PAR1")
        assert "sprawl/predictions/synthetic/test-seed0.parquet: changed since" in self.found(
            leaderboard
        )

    def test_a_missing_prediction_file(self, here, leaderboard):
        (here / "submissions/sprawl/predictions/synthetic/test-seed0.parquet").unlink()
        assert "the prediction file is gone" in self.found(leaderboard)

    def test_missing_results(self, here, leaderboard):
        (here / "submissions" / "sprawl" / "results.json").unlink()
        assert "test-seed0.parquet: not scored yet" in self.found(leaderboard)

    @pytest.mark.parametrize(
        "name", ["LEADERBOARD.md", "WHICH_METHOD.md", "leaderboard.json", "index.html"]
    )
    def test_an_edited_board(self, here, leaderboard, name):
        path = here / "leaderboard" / name
        path.write_text(path.read_text("utf-8").replace("SPRAWL", "SPRAWL!"), "utf-8")
        assert f"{name} is not what the submissions give" in self.found(leaderboard)

    def test_other_line_ends(self, here, leaderboard):
        path = here / "leaderboard" / "LEADERBOARD.md"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert "LEADERBOARD.md" in self.found(leaderboard)

    def test_a_board_that_is_not_text(self, here, leaderboard):
        (here / "leaderboard" / "LEADERBOARD.md").write_bytes(b"\xff\xfe")
        assert "LEADERBOARD.md" in self.found(leaderboard)

    def test_a_missing_board(self, here, leaderboard):
        (here / "leaderboard" / "LEADERBOARD.md").unlink()
        assert "LEADERBOARD.md is missing" in self.found(leaderboard)

    def test_labels_that_the_registry_does_not_pin(self, here, leaderboard):
        for path in (here / "submissions").glob("*/results.json"):
            edit_json(path, lambda r: r[0].update(labels_sha256="0" * 64))
        assert "scored on labels 000000000000, the registry pins" in self.found(leaderboard)

    def test_checking_writes_nothing(self, here, leaderboard):
        edit_json(here / "submissions/sprawl/results.json", lambda r: r[0].update(seconds=9))
        before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
        self.found(leaderboard, "--rescore")
        assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before

    def test_stale_results_make_no_board(self, here, leaderboard):
        (here / "submissions" / "sprawl" / "results.json").unlink()
        (here / "leaderboard" / "LEADERBOARD.md").unlink()
        assert leaderboard()[0] == 1
        assert not (here / "leaderboard" / "LEADERBOARD.md").exists()

    @pytest.mark.slow
    def test_rescoring_repairs_all(self, here, leaderboard):
        (here / "submissions" / "sprawl" / "results.json").unlink()
        (here / "leaderboard" / "LEADERBOARD.md").unlink()
        assert leaderboard("--rescore")[0] == 0
        assert leaderboard("--check", "--rescore") == (0, "")

    def test_a_dataset_that_is_not_here_is_skipped_and_kept(self, here, leaderboard, monkeypatch):
        # Elsewhere: an empty cache without network, and `synthetic` under another name.
        predictions = here / "submissions" / "sprawl" / "predictions"
        path = (predictions / "synthetic").rename(
            predictions / "nih3t3_gold"
        ) / "test-seed0.parquet"
        table = pq.read_table(path)
        value = json.loads(table.schema.metadata[b"gpattern_bench"]) | {"dataset": "nih3t3_gold"}
        pq.write_table(table.replace_schema_metadata({"gpattern_bench": json.dumps(value)}), path)
        monkeypatch.setenv("GPATTERN_BENCH_DATA", str(here / "empty"))
        [submission] = [s for s in submissions(here) if s.metadata.method == "sprawl"]
        stored = [
            score | {"predictions": "predictions/nih3t3_gold/test-seed0.parquet"}
            for score in submission.results
        ]
        submission = Submission(submission.folder, submission.metadata, stored)
        results, skipped = submission.rescored()
        [each] = skipped
        assert each.name == "sprawl/predictions/nih3t3_gold/test-seed0.parquet"
        assert (each.pinned, "gpattern-bench download nih3t3_gold" in each.reason) == (True, True)
        assert results == submission.results


class TestRescored:
    @pytest.fixture
    def mine(self, tmp_path) -> Submission:
        folder = tmp_path / "submissions" / "mine"
        about("mine").write(folder)
        return Submission(folder, about("mine"), [])

    def put(self, mine: Submission, name: str, split: str = "test", **values) -> None:
        dataset = load_dataset("synthetic")
        scores = dataset.pairs(split).assign(**dict.fromkeys(dataset.patterns, 0.5))
        path = mine.folder / "predictions" / "synthetic" / name
        write_predictions(path, scores, dataset, split, **{"method": "mine"} | values)

    def test_another_method_is_an_error(self, mine):
        self.put(mine, "test-seed0.parquet", method="other")
        with pytest.raises(SubmissionError, match="predictions of 'mine', got method 'other'"):
            mine.rescored()

    def test_train_scores_under_the_name_of_test_are_an_error(self, mine):
        # The board says "Test split" above the row.
        self.put(mine, "test-seed0.parquet", split="train")
        with pytest.raises(SubmissionError, match="train"):
            mine.rescored()

    def test_the_same_seed_twice_is_an_error(self, mine):
        self.put(mine, "test-seed0.parquet")
        self.put(mine, "test-seed00.parquet")
        with pytest.raises(SubmissionError, match="seed"):
            mine.rescored()

    def test_val_scores_of_the_same_run_are_used(self, mine):
        self.put(mine, "test-seed0.parquet")
        assert "f1_val_macro" not in mine.rescored()[0][0]["metrics"]
        self.put(mine, "val-seed0.parquet", split="val")
        assert "f1_val_macro" in mine.rescored()[0][0]["metrics"]


class TestMetadata:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        about("mine").write(tmp_path / "mine")
        return tmp_path

    def edit(self, folder: Path, **values) -> None:
        path = folder / "mine" / "submission.yaml"
        found = yaml.safe_load(path.read_text("utf-8")) | values
        path.write_text(yaml.safe_dump(found), "utf-8")

    def test_comes_back(self, folder):
        [found] = read_submissions(folder)
        assert found.metadata == about("mine")

    def test_all_problems_of_all_files_at_once(self, folder):
        self.edit(folder, colour="red", kind="magic", authors=[], inputs=["tea leaves"])
        about("other").write(folder / "misnamed")
        with pytest.raises(SubmissionError) as caught:
            read_submissions(folder)
        for expected in ("colour", "kind", "authors", "inputs.0", "'misnamed'"):
            assert expected in str(caught.value)
        assert len(caught.value.problems) == 5

    @pytest.mark.parametrize("text", ["", "- a", "a: [", "\t", "a: \x00"])
    def test_what_is_no_mapping_is_an_error(self, folder, text):
        (folder / "mine" / "submission.yaml").write_text(text)
        with pytest.raises(SubmissionError, match="mine"):
            read_submissions(folder)

    @pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "[{}]", "null", '[{"predictions": 1}]'])
    def test_results_of_another_form_are_an_error(self, folder, text):
        (folder / "mine" / "results.json").write_text(text)
        with pytest.raises(SubmissionError, match="mine"):
            read_submissions(folder)

    @pytest.mark.parametrize(
        ("where", "value", "told"),
        [
            (("metrics", "f1_macro"), nan, "0.metrics.f1_macro: Input should be a finite number"),
            (("metrics", "f1_macro"), 99.0, "less than or equal to 1, got 99.0"),
            (("metrics", "auc_macro"), "high", "valid number"),
            (("metrics", "f1_val_macro"), -0.1, "f1_val_macro: expected a number from 0 to 1"),
            (("metrics", "per_pattern", "inner", "f1"), nan, "per_pattern.inner.f1: expected"),
            (("metrics", "per_pattern", "inner", "floor"), "0.5", "inner.floor: expected"),
            (("metrics", "ci", "f1_macro"), [0.1], "ci.f1_macro: expected two ends"),
            (("metrics", "ci", "f1_macro"), [0.1, inf], "finite number"),
            (("metrics", "n"), -1, "greater than or equal to 0"),
            (("seconds",), -1.0, "seconds"),
            (("cpu_fit_seconds",), inf, "cpu_fit_seconds"),
            (("versions",), {"numpy": "2.0 of mine"}, "versions.numpy"),
            (("versions",), {"mine": "1.0"}, "versions.mine"),
            (("robustness",), {"f1_worst_drop": 3, "largest_change": 0}, "f1_worst_drop"),
            (("f1_replicates",), b64encode(np.full(1000, 2, "<f4").tobytes()).decode(), "0 to 1"),
        ],
    )
    def test_numbers_that_cannot_be_are_an_error(self, folder, where, value, told):
        sound = entry(f1_replicates=b64encode(np.full(1000, 0.5, "<f4").tobytes()).decode())
        sound["predictions"] = "predictions/d/test-seed0.parquet"
        path = folder / "mine" / "results.json"
        path.write_text(json.dumps([sound]))
        assert len(read_submissions(folder)[0].results) == 1
        *keys, last = where
        inner = sound = json.loads(json.dumps(sound))
        for key in keys:
            inner = inner[key]
        inner[last] = value
        path.write_text(json.dumps([sound]))
        with pytest.raises(SubmissionError, match=r"mine/results\.json: 0\.") as caught:
            read_submissions(folder)
        assert told in str(caught.value)

    def test_templates_are_left_out(self, folder):
        about("template").write(folder / "_template")
        assert [s.metadata.method for s in read_submissions(folder)] == ["mine"]

    @pytest.mark.parametrize("name", METHODS)
    def test_of_the_methods_that_ship(self, name):
        assert Metadata.of(get_method(name).about).method == name

    def test_the_repository_has_that_of_the_methods_that_ship(self):
        if not (REPOSITORY / "submissions").is_dir():
            pytest.skip("the package is tested without its submissions")
        found = {
            s.metadata.method: s.metadata for s in read_submissions(REPOSITORY / "submissions")
        }
        for name in found.keys() & METHODS.keys():
            stored = found[name].with_files(())
            # What a person declares: of which other methods it is a variant.
            assert stored.variant_of in ((), ("gpsnet",))
            about = Metadata.of(get_method(name).about)
            assert stored == about.model_copy(update={"variant_of": stored.variant_of})


def test_labels_by_a_classifier_are_said_and_bento_has_no_row_there():
    version = {"dataset": "u2os_bento", "version": "1.0.0"}
    found = [submitted(entry(name, **version), method=name) for name in ("bento", "other")]
    board = build_board(found)
    [table] = board.to_json()["tables"]
    assert [row["method"] for row in table["rows"]] == ["other"]
    assert table["labelled_by"] == "Bento's published forest"
    said = "The labels are the calls of Bento's published forest, not of people"
    assert said in markdown(board)
    assert said in build_page(board, found).replace("&#39;", "'")
    [table] = build_board([submitted(entry("bento"), method="bento")]).to_json()["tables"]
    assert "labelled_by" not in table


def test_drift_names_what_differs(tmp_path):
    board = build_board([submitted(entry())])
    found = [submitted(entry())]
    assert len(drift(board, found, tmp_path)) == 4
    write_board(board, found, tmp_path)
    assert drift(board, found, tmp_path) == []


class TestVersions:
    def test_beside_the_board_are_named_on_it(self, here):
        pins = "# why\nnumba==2.0\nnumpy==1.0\nscikit-learn==4.0\nscipy==3\nsix==6\ntorch==5.0"
        (here / "leaderboard" / "versions.txt").write_text(pins, "utf-8")
        found = submissions(here)
        versions = read_versions(here / "leaderboard")
        assert versions == "numpy 1.0, numba 2.0, scipy 3, scikit-learn 4.0, torch 5.0"
        board = build_board(found, (), versions)
        assert json.loads(json.dumps(board.to_json()))["versions"] == versions
        for text in (markdown(board), build_page(board, found)):
            assert text.count(versions) == 1

    def test_are_left_out_where_they_are_not_known(self, here):
        assert read_versions(here / "leaderboard") is None
        board = build_board(submissions(here))
        assert "versions.txt" not in markdown(board) + build_page(board, submissions(here))

    def test_that_are_no_pins_are_named(self, tmp_path):
        pins = "numba==2.0\nnumpy>=1.0\nscipy==3\nscikit-learn==<b>\ntorch==5.0\n"
        (tmp_path / "versions.txt").write_text(pins, "utf-8")
        with pytest.raises(SubmissionError) as caught:
            read_versions(tmp_path)
        assert caught.value.problems == (
            "no line numpy==VERSION",
            "no line scikit-learn==VERSION",
        )


def test_reported_values_are_those_of_table_2_of_the_paper():
    reported = read_reported(REPOSITORY / "leaderboard")
    rows = pd.DataFrame(
        [{"dataset": table["dataset"], **row} for table in reported for row in table["rows"]]
    )
    best = rows[rows["method"].str.startswith("GPSNet")]
    assert best[["auc", "acc", "f1"]].to_numpy().tolist() == [
        ["90.22", "84.35", "71.02"],
        ["92.52", "87.88", "73.48"],
        ["83.09", "78.08", "68.26"],
    ]
