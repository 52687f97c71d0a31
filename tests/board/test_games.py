"""Ranking games: who has a rank, what contradicts itself, copies, and scores like the labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from samples import metadata_of, stored_result
from scipy.stats import rankdata

from gpattern_bench import load_dataset
from gpattern_bench.board.duplicates import flag_duplicates
from gpattern_bench.board.leaderboard import build_board
from gpattern_bench.board.markdown import markdown
from gpattern_bench.board.page import build_page
from gpattern_bench.board.publish import problems_of
from gpattern_bench.board.rules import contradictions
from gpattern_bench.board.submission import Score, Submission, read_submissions
from gpattern_bench.board.submit import submit_run
from gpattern_bench.errors import SubmissionError
from gpattern_bench.predictions import write_predictions

REPOSITORY = Path(__file__).resolve().parents[2]
STORED = REPOSITORY / "submissions"
TEST = "predictions/synthetic/test-seed0.parquet"
METRICS = ("auc_macro", "acc_macro", "f1_macro", "ap_macro", "accuracy_subset")

needs_stored = pytest.mark.skipif(
    not STORED.is_dir(), reason="the package is tested without its submissions"
)


@pytest.fixture(scope="module")
def stored() -> list[Submission]:
    return read_submissions(STORED)


def result(score: float = 0.5, **values) -> Score:
    """A stored result of `synthetic` with two patterns."""
    values = {"predictions": TEST, "dataset": "synthetic"} | values
    return stored_result(score, of_pattern=0.6, floor=0.6, **values)


def submitted(method: str, *results: Score, folder: Path = Path(), **values) -> Submission:
    return Submission(folder / method, metadata_of(method, **values), list(results))


class TestRanks:
    @pytest.mark.parametrize(
        ("values", "told"),
        [
            ({"inputs": ["labels"], "kind": "control"}, "only the package's oracle"),
            ({"inputs": ["labels", "coordinates"]}, "only the package's oracle"),
            ({"kind": "control"}, "kind: control, with inputs"),
            ({"inputs": ["gene"]}, "kind: model, with inputs"),
            ({"inputs": [], "kind": "baseline"}, "kind: baseline, with inputs"),
            ({"method": "oracle"}, "oracle is a control of the package"),
            ({"method": "gene_prior", "kind": "control", "inputs": []}, "control of the package"),
            ({"authors": ["A", "The gpattern-bench developers"]}, "those of the package's methods"),
            ({"trained_on": ["train", "train"]}, "name each once"),
            ({"variant_of": ["m"]}, "variant_of: name other methods"),
        ],
    )
    def test_the_schema_refuses(self, values, told):
        with pytest.raises(ValueError, match=told):
            metadata_of(values.pop("method", "m"), **values)

    def test_what_sees_labels_has_none_even_past_the_schema(self):
        seen = metadata_of("a").model_copy(update={"inputs": ("labels",)})
        board = build_board([Submission(Path("a"), seen, [result(1.0)]), submitted("b", result())])
        assert [(row.method, row.rank) for row in board.tables[0].rows] == [("a", None), ("b", 1)]

    def test_only_controls_of_the_package_are_references(self):
        strange = submitted("strange", result(0.9), kind="control", inputs=["gene"])
        own = submitted("gene_prior", result(0.3), kind="control", inputs=["gene"])
        [table] = build_board([strange, own, submitted("m", result(0.5))]).tables
        rows = {row.method: row for row in table.rows}
        assert rows["strange"].rank is None
        assert rows["m"].lift_f1 == pytest.approx(0.2)
        [table] = build_board([strange, submitted("m", result(0.5))]).tables
        assert {row.method: row.lift_f1 for row in table.rows} == {"strange": None, "m": None}


GOLD = {"dataset": "u2os_gold", "version": "1.0.0"}


class TestContradictions:
    @pytest.mark.parametrize(
        ("about", "score", "told"),
        [
            ({}, {"protocol": "untrained"}, "untrained, and submission.yaml says trained_on"),
            ({"trained_on": None}, {}, "fit, and submission.yaml says that the method learns noth"),
            ({"trained_on": ["val"]}, {}, "it lacks train"),
            ({"trained_on": ["u2os_gold"]}, {}, "it lacks train"),
            (
                {"trained_on": ["synthetic"]},
                GOLD | {"protocol": "transfer", "trained_on": ("nih3t3_gold@1.0.0",)},
                "it lacks nih3t3_gold@1.0.0",
            ),
            (
                {"trained_on": ["train", "nih3t3_gold"]},
                {},
                "trained_on names nih3t3_gold, and no prediction file was fitted on it",
            ),
            ({}, GOLD, "u2os_gold@1.0.0, which has no train split"),
            ({}, GOLD | {"protocol": "transfer"}, "trained_on = None"),
            (
                {},
                GOLD | {"protocol": "transfer", "trained_on": ("u2os_gold@1.0.0",)},
                "has no train split",
            ),
            (
                {},
                GOLD
                | {"protocol": "transfer", "trained_on": ("nih3t3_gold@1.0.0", "u2os_gold@1.0.0")},
                "has no train split",
            ),
            (
                {},
                GOLD | {"protocol": "transfer", "trained_on": ("u2os_gold@0.9.0",)},
                "another version of the dataset",
            ),
            (
                {},
                GOLD | {"protocol": "transfer", "trained_on": ("synthetic@1.0.0",)},
                "has simulated cells only",
            ),
            (
                {},
                GOLD | {"protocol": "simulation", "trained_on": ("nih3t3_gold@1.0.0",)},
                "nih3t3_gold@1.0.0 is no simulation",
            ),
            (
                {},
                GOLD | {"protocol": "simulation", "trained_on": ("synthetic@7.0.0",)},
                "a version that the registry does not have",
            ),
            (
                {},
                {"trained_on": ("nih3t3_gold@1.0.0", "synthetic@1.0.0")},
                "protocol fit, and nih3t3_gold@1.0.0 is no simulation",
            ),
            ({}, {"protocol": "cv-cell"}, "synthetic@1.0.0 has a train split"),
            (
                {},
                {"protocol": "cv-cell", "trained_on": ("synthetic@1.0.0",)},
                "untrained names none",
            ),
            ({"rules_for": ["inner"]}, {}, "no rule for outer, and its scores differ"),
            ({"variant_of": ["nobody"]}, {}, "there is no method nobody"),
            ({"variant_of": ["other"]}, {}, "other is by other authors"),
        ],
    )
    def test_each_is_told_and_makes_no_board(self, about, score, told):
        other = submitted("other", result(), authors=["Somebody Else"])
        found = contradictions([submitted("m", result(**score), **about), other])
        assert [text for text in found if told in text], found
        assert all(text.startswith("m/") for text in found)

    def test_problems_of_the_board_name_them(self):
        assert any(
            "untrained" in text
            for text in problems_of([submitted("m", result(protocol="untrained"))])
        )

    @pytest.mark.parametrize(
        ("about", "score"),
        [
            ({}, {}),
            ({"trained_on": ["synthetic", "val"]}, {}),
            ({"trained_on": None}, {"protocol": "untrained"}),
            ({}, {"trained_on": ("synthetic@1.0.0", "synthetic_wide@1.0.0")}),
            ({}, GOLD | {"protocol": "cv-cell"}),
            ({"trained_on": ["u2os_gold"]}, GOLD | {"protocol": "cv-cell"}),
            (
                {"trained_on": ["simulated"]},
                GOLD | {"protocol": "simulation", "trained_on": ("synthetic@1.0.0",)},
            ),
            (
                {"trained_on": ["nih3t3_gold@1.0.0"]},
                GOLD | {"protocol": "transfer", "trained_on": ("nih3t3_gold@1.0.0",)},
            ),
            ({}, GOLD | {"protocol": "transfer", "trained_on": ("mine@2",)}),
        ],
    )
    def test_what_fits_has_none(self, about, score):
        assert contradictions([submitted("m", result(**score), **about)]) == []

    @pytest.mark.slow
    def test_submit_tells_before(self, tmp_path):
        dataset = load_dataset("synthetic")
        metadata_of("mine").write(tmp_path / "mine")
        for split in ("val", "test"):
            scores = dataset.pairs(split).assign(**dict.fromkeys(dataset.patterns, 0.5))
            path = tmp_path / "run" / "synthetic" / f"{split}-seed0.parquet"
            write_predictions(path, scores, dataset, split, method="mine", protocol="untrained")
        with pytest.raises(SubmissionError, match="protocol untrained, and submission"):
            submit_run(tmp_path / "run", tmp_path / "mine")

    @needs_stored
    def test_the_repository_has_none(self, stored):
        assert contradictions(stored) == []


def noisy(values: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    """Scores whose ranks are those of `values` and, of that share of their spread, noise."""
    ranks = rankdata(values) / len(values)
    drawn = np.random.default_rng(seed).normal(size=len(values)) * noise * ranks.std()
    return (rankdata(ranks + drawn) / len(values)).astype(np.float32)


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    """Honest scores of 1,000 pairs."""
    rng = np.random.default_rng(1)
    ids = {"cell_id": np.repeat(np.arange(100).astype(str), 10), "gene": [*"abcdefghij"] * 100}
    patterns = {name: rng.random(1000).astype(np.float32) for name in ("inner", "outer")}
    return pd.DataFrame(ids | patterns)


class TestCopies:
    def put(
        self, folder: Path, method: str, scores: pd.DataFrame, about=(), **values
    ) -> Submission:
        made = submitted(method, result(**values), folder=folder, **dict(about))
        path = folder / method / TEST
        path.parent.mkdir(parents=True)
        scores.to_parquet(path)
        return made

    def flags(self, *found: Submission) -> list[list[str]]:
        flagged = flag_duplicates([(one, one.results) for one in found])
        return [score["flags"] for results in flagged for score in results]

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"protocol": "untrained"},
            {"protocol": "simulation", "trained_on": ["synthetic_wide@1.0.0"]},
            {"seed": 3},
        ],
    )
    def test_all_patterns_under_any_protocol_and_seed(self, tmp_path, scores, values):
        copy = scores.assign(
            **{p: noisy(scores[p], 0.1, k) for k, p in enumerate(("inner", "outer"))}
        )
        one = self.put(tmp_path, "a", scores)
        two = self.put(tmp_path, "b", copy, **values)
        assert self.flags(one, two) == [
            ["ranks the pairs as b does"],
            ["ranks the pairs as a does"],
        ]

    def test_one_pattern(self, tmp_path, scores):
        rng = np.random.default_rng(2)
        copy = scores.assign(inner=noisy(scores["inner"], 0.1), outer=rng.random(1000))
        found = self.flags(self.put(tmp_path, "a", scores), self.put(tmp_path, "b", copy))
        assert found[1] == ["ranks the pairs of inner as a does"]

    def test_much_noise_hides_it(self, tmp_path, scores):
        copy = scores.assign(**{p: noisy(scores[p], 0.5) for p in ("inner", "outer")})
        assert self.flags(self.put(tmp_path, "a", scores), self.put(tmp_path, "b", copy)) == [
            [],
            [],
        ]

    def test_variants_of_one_author_do_not_flag_each_other(self, tmp_path, scores):
        made = [
            self.put(tmp_path, "a", scores),
            self.put(tmp_path, "b", scores, {"variant_of": ["a"]}),
            self.put(tmp_path, "c", scores, {"variant_of": ["a"]}),
        ]
        assert self.flags(*made) == [[], [], []]
        rows = build_board(made).tables[0].rows
        assert [row.variant_of for row in rows] == [[], ["a"], ["a"]]
        assert "| B (variant of a) " in markdown(build_board(made))
        assert "<small>variant of a</small>" in build_page(build_board(made), made)

    @pytest.mark.parametrize("about", [{}, {"variant_of": ["a"], "authors": ["Another"]}])
    def test_others_do(self, tmp_path, scores, about):
        made = self.put(tmp_path, "a", scores), self.put(tmp_path, "b", scores, about)
        assert self.flags(*made)[1] == ["ranks the pairs as a does"]

    @needs_stored
    def test_a_noisy_copy_of_gpsnet(self, tmp_path, stored):
        name = "gpsnet_coordinates"
        [gpsnet] = [one for one in stored if one.metadata.method == name]
        [score] = [one for one in gpsnet.results if one["predictions"] == TEST]
        scores = pd.read_parquet(gpsnet.folder / TEST)
        copy = scores.assign(
            cell_edge=noisy(scores["cell_edge"], 0.5),
            cytoplasmic=noisy(scores["cytoplasmic"], 0.1),
            nuclear=0.5,
        )
        copy = self.put(tmp_path, "mine", copy, metrics=score["metrics"], protocol="untrained")
        *theirs, mine = self.flags(gpsnet, copy)
        assert mine == [f"ranks the pairs of cytoplasmic, nuclear_edge as {name} does"]
        assert not any(theirs)  # of the package: no copy casts doubt on it

    @needs_stored
    @pytest.mark.slow
    def test_the_repository_has_none(self, stored):
        assert {flag for flags in self.flags(*stored) for flag in flags} == set()


@needs_stored
class TestNearLabels:
    def board(self, stored: list[Submission], *more: Submission) -> dict[str, list[str]]:
        board = build_board([*stored, *more])
        assert len(board.tables) > 1
        return {
            row.method: row.flags
            for table in board.tables
            for row in table.rows
            if row.flags or row.method == "mine"
        }

    def mine(self, folder: Path, wrong: float) -> Submission:
        """The labels of `synthetic`, that share of them flipped."""
        dataset = load_dataset("synthetic")
        labels = dataset.labels("test")
        rng = np.random.default_rng(0)
        flipped = {p: labels[p] ^ (rng.random(len(labels)) < wrong) for p in dataset.patterns}
        scores = labels[["cell_id", "gene"]].astype(str).assign(**flipped)
        scores = scores.astype(dict.fromkeys(dataset.patterns, np.float32))
        write_predictions(folder / "mine" / TEST, scores, dataset, "test", method="mine")
        made = submitted("mine", folder=folder)
        return submitted("mine", *made.rescored()[0], folder=folder)

    def test_no_stored_submission_is_flagged(self, stored):
        assert self.board(stored) == {}

    def test_labels_of_which_some_are_flipped(self, tmp_path, stored):
        made = self.mine(tmp_path, 0.002)
        assert made.results[0]["flags"] == []  # their AUC is below 99.9 %
        found = self.board(stored, made)
        than = "is nearer to that of the labels than to the package's best"
        assert found == {"mine": [f"F1 {than} (81.60 %)", f"subset accuracy {than} (73.99 %)"]}
        shutil.rmtree(tmp_path / "mine")
        assert self.board(stored, self.mine(tmp_path, 0.2)) == {"mine": []}
