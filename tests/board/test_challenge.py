"""Challenges: cells drawn anew, handed out without labels, scored and shown on the board."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from samples import metadata_of, replicates, stored_result

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.board import challenge
from gpattern_bench.board.challenge import (
    CHALLENGE,
    LEAST_SEED,
    Outcome,
    draw_challenge,
    new_seed,
    read_outcomes,
    record,
    score_challenge,
)
from gpattern_bench.board.leaderboard import build_board
from gpattern_bench.board.markdown import markdown
from gpattern_bench.board.page import build_page
from gpattern_bench.board.publish import board_of
from gpattern_bench.board.submission import Submission
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, PredictionError, SubmissionError
from gpattern_bench.predictions import write_predictions
from gpattern_bench.runs.run import run_method

pytestmark = pytest.mark.slow

SEED = 0x1234_5678_9ABC_DEF0


@pytest.fixture(scope="module", autouse=True)
def few_cells():
    """Draws of 48 and of 20 cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(challenge, "_FOVS", {"synthetic": 12, "synthetic_wide": 2})
        yield


@dataclass(frozen=True)
class Drawn:
    """What a maintainer has: tables to hand out, those with labels, predictions, a model."""

    cells: Dataset
    labels: Dataset
    predictions: Path
    model: Path


@pytest.fixture(scope="module")
def drawn(few_cells, tmp_path_factory) -> Drawn:
    folder = tmp_path_factory.mktemp("challenge")
    cells = draw_challenge("synthetic", SEED, folder / "cells")
    labels = draw_challenge("synthetic", SEED, folder / "labels", labels=True)
    [predictions] = run_method(
        "gene_prior", cells, folder / "runs", train_on=[load_dataset("synthetic")]
    )
    run_method("gene_prior", load_dataset("synthetic"), folder / "runs")
    return Drawn(cells, labels, predictions, folder / "runs" / "synthetic" / "model-seed0")


class TestDraw:
    def test_the_same_seed_gives_the_same_labels(self, drawn):
        assert drawn.cells.version == drawn.labels.version == drawn.labels.labels_sha256[:12]

    def test_labels_are_not_handed_out(self, drawn):
        assert not drawn.cells.has_labels
        assert not (drawn.cells.folder / "labels.parquet").exists()
        assert drawn.cells.splits == ("test",)
        pairs = [
            set(one.pairs("test").astype(str).itertuples(index=False, name=None))
            for one in (drawn.cells, drawn.labels)
        ]
        assert pairs[0] == pairs[1]
        drawn.cells.verify()
        drawn.labels.verify()

    @pytest.mark.parametrize("which", ["cells", "labels"])
    def test_the_seed_is_in_no_file(self, drawn, which):
        texts = [str(SEED).encode(), f"{SEED:x}".encode()]
        texts += [SEED.to_bytes(8, order) for order in ("little", "big")]
        for file in sorted(getattr(drawn, which).folder.iterdir()):
            held = file.read_bytes()
            assert not [text for text in texts if text in held], file.name

    def test_rows_of_molecules_are_in_no_order_that_tells(self, drawn):
        table = pq.read_table(drawn.cells.folder / "molecules.parquet").to_pandas()
        keys = ["fov", "cell_id", "gene", "x", "y"]
        assert table[keys].equals(table[keys].sort_values(keys, ignore_index=True))

    def test_they_are_other_cells_of_the_same_genes(self, drawn):
        known = load_dataset("synthetic")
        assert drawn.cells.genes == known.genes
        ours, theirs = (
            {outline.wkb for outline in one.cells()["cell_boundary"]}
            for one in (drawn.cells, known)
        )
        assert (len(ours), ours & theirs) == (48, set())
        # A gene's patterns are as in `synthetic`: what was learnt there of genes holds here.
        here = Evaluator(drawn.labels).eval(drawn.predictions, replicates=0)["auc_macro"]
        other = Path(drawn.model).with_name("test-seed0.parquet")
        there = Evaluator(known).eval(other, replicates=0)["auc_macro"]
        assert here == pytest.approx(there, abs=0.05)
        assert here > 0.75

    def test_seeds_that_can_be_guessed_are_refused(self, tmp_path):
        for seed in (0, 7, LEAST_SEED - 1, 1 << 64, -1):
            with pytest.raises(GPatternBenchError, match="smaller ones can be tried"):
                draw_challenge("synthetic", seed, tmp_path / "cells")
        seeds = {new_seed() for _ in range(100)}
        assert len(seeds) == 100
        assert all(LEAST_SEED <= seed < 1 << 63 for seed in seeds)

    def test_synthetic_wide(self, tmp_path):
        dataset = draw_challenge("synthetic_wide", SEED, tmp_path / "cells", labels=True)
        assert (dataset.name, dataset.counts["cells"]) == ("synthetic_wide_challenge", 20)


class TestScore:
    def test_a_file_and_a_model_score_the_same(self, drawn):
        file, model = score_challenge("synthetic", SEED, [drawn.predictions], [drawn.model])
        expected = Evaluator(drawn.labels).eval(drawn.predictions)
        assert file["f1_macro"] == model["f1_macro"] == expected["f1_macro"]
        assert list(file["ci"]["f1_macro"]) == expected["ci"]["f1_macro"]
        assert file["labels_sha256"] == drawn.labels.labels_sha256
        assert (file["method"], file["seed"], file["dataset"]) == ("gene_prior", SEED, "synthetic")
        assert (len(file["predictions_sha256"] or ""), model["predictions_sha256"]) == (64, None)

    def test_predictions_of_any_program(self, drawn, tmp_path):
        scores = drawn.cells.pairs("test").assign(**dict.fromkeys(drawn.cells.patterns, 0.5))
        path = tmp_path / "mine.parquet"
        write_predictions(path, scores, drawn.cells, "test", method="mine")
        [found] = score_challenge("synthetic", SEED, [path])
        assert (found["method"], found["auc_macro"]) == ("mine", 0.5)

    def test_predictions_of_another_draw_are_refused(self, drawn):
        with pytest.raises(PredictionError, match="version = "):
            score_challenge("synthetic", SEED + 1, [drawn.predictions])


def outcome(method: str, score: float = 0.7, **values) -> Outcome:
    base = dict.fromkeys(("auc_macro", "acc_macro", "f1_macro", "ap_macro"), score)
    return {
        "dataset": "d",
        "version": "1.0.0",
        "method": method,
        "seed": SEED,
        "labels_sha256": "a" * 64,
        "predictions_sha256": None,
        "n": 10,
        **base,
        "accuracy_subset": score,
        "ci": {"f1_macro": (score - 0.05, score + 0.05)},
        **values,
    }


class TestCommands:
    def test_draw_and_score(self, command, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, out, _ = command("challenge", "draw", "--out", "c", "--seed", SEED)
        assert code == 0
        assert f"the seed: {SEED}" in out
        assert Dataset(tmp_path / "c" / "labels").has_labels
        cells = Dataset(tmp_path / "c" / "cells")
        scores = cells.pairs("test").assign(**dict.fromkeys(cells.patterns, 0.5))
        write_predictions("mine.parquet", scores, cells, "test", method="mine")
        words = ("challenge", "score", "mine.parquet", "--seed", SEED, "--record", "board")
        code, out, err = command(*words)
        assert (code, "| mine " in out, "added to board/challenge.json" in err) == (0, True, True)
        code, out, _ = command(*words, "--json")
        assert (code, json.loads(out)) == (0, json.loads(Path("board", CHALLENGE).read_text()))

    def test_wrong_usage(self, command, drawn, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert command("challenge", "draw", "--out", "c", "--seed", 7)[0] == 2
        assert not Path("c").exists()
        code, _, err = command("challenge", "score", "--seed", SEED)
        assert (code, "give prediction files, or --model" in err) == (2, True)
        code, _, err = command("challenge", "score", drawn.predictions, "--seed", SEED + 1)
        assert (code, "expected" in err) == (2, True)


class TestBoard:
    def test_of_several_at_once_none_is_lost(self, tmp_path):
        methods = [f"m{k}" for k in range(12)]
        with ThreadPoolExecutor(len(methods)) as pool:
            list(pool.map(lambda method: record([outcome(method)], tmp_path), methods))
        assert {each["method"] for each in read_outcomes(tmp_path)} == set(methods)

    def test_the_last_outcome_of_a_method_stays(self, tmp_path):
        record([outcome("b"), outcome("a", 0.6)], tmp_path)
        record([outcome("b", 0.8)], tmp_path)
        found = [(one["method"], one["f1_macro"]) for one in read_outcomes(tmp_path)]
        assert found == [("a", 0.6), ("b", 0.8)]

    @pytest.mark.parametrize(
        "change", [{"f1_macro": 1.2}, {"seed": 7}, {"extra": 1}, {"labels_sha256": "no"}]
    )
    def test_what_is_no_outcome_is_an_error(self, tmp_path, change):
        (tmp_path / CHALLENGE).write_text(json.dumps([outcome("a") | change]))
        with pytest.raises(SubmissionError, match=CHALLENGE):
            read_outcomes(tmp_path)

    def submission(self, method: str, f1: float, result) -> Submission:
        return Submission(Path(method), metadata_of(method), [result(f1)])

    def test_has_a_column_where_there_are_outcomes(self, tmp_path, result):
        made = [self.submission("a", 0.7, result), self.submission("b", 0.7, result)]
        without = build_board(made)
        assert "new cells" not in markdown(without).split("\n\n", 4)[-1]
        assert "new_cells" not in json.dumps(without.to_json())
        record([outcome("a"), outcome("b", 0.5)], tmp_path)
        board = board_of(made, tmp_path)
        a, b = board.tables[0].rows
        assert (a.new_cells, a.flags) == (outcome("a"), [])
        assert b.flags == ["F1 falls to 50.00 % on new cells"]
        text = markdown(board)
        assert " 70.00 [65.0, 75.0] |" in text
        assert "*F1, new cells*: of cells that were drawn after the submission" in text
        assert "⚠ B: F1 falls to 50.00 % on new cells." in text
        assert '">F1, new cells</th>' in build_page(board, made)

    def test_rows_fitted_elsewhere_have_none(self, result):
        other = result(0.7) | {"trained_on": ["e@1"], "protocol": "transfer"}
        made = Submission(Path("a"), metadata_of("a"), [result(0.7), other])
        tables = build_board([made], outcomes=[outcome("a")]).tables
        assert [table.rows[0].new_cells is None for table in tables] == [False, True]


@pytest.fixture
def result():
    """Make a stored result of one pattern with this F1."""

    def make(f1: float) -> dict:
        drawn = np.full(1000, f1)
        found = stored_result(floor=0.2, patterns=("p",), f1_replicates=replicates(drawn))
        found["metrics"] |= {"f1_macro": f1, "ci": {"f1_macro": [f1 - 0.05, f1 + 0.05]}}
        return found

    return make
