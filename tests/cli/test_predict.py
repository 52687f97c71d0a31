"""What `predict` writes on one's own tables, with every command and function that takes scores."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from samples import small_dataset

from gpattern_bench import Evaluator
from gpattern_bench import figures as plots
from gpattern_bench.errors import EvaluationError, MethodError, PredictionError
from gpattern_bench.evaluate.calls import call_patterns
from gpattern_bench.predictions import check_file, counted, write_predictions
from gpattern_bench.runs.run import run_method
from gpattern_bench.runs.saved_model import (
    Model,
    find_model,
    load_model,
    predict_tables,
    save_model,
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Labelled tables `own`, unlabelled ones `bare`, a run on `own`, and scores of both."""
    folder = tmp_path_factory.mktemp("here")
    own, bare = small_dataset(folder, "own"), small_dataset(folder, "bare", labels=False, seed=8)
    run_method("gene_prior", own, folder / "runs")
    model = load_model(folder / "runs/own/model-seed0")
    for dataset in (own, bare):
        predict_tables(*model, dataset, folder / f"{dataset.name}.parquet")
    return own, bare, folder


@pytest.fixture(scope="module")
def without_thresholds(here):
    _, bare, folder = here
    method, model = load_model(folder / "runs/own/model-seed0")
    blunt = Model(model.method, model.patterns, model.fitted_on, None, model.seed)
    save_model(method, blunt, folder / "blunt")
    return predict_tables(method, blunt, bare, folder / "blunt.parquet")


@pytest.fixture
def run(here, command, monkeypatch):
    monkeypatch.chdir(here[2])
    return lambda line: command(*line.split())


class TestEvaluate:
    def test_scores_the_labelled_pairs_of_a_split_as_the_run_does(self, here):
        own, _, folder = here
        test, val = (folder / f"runs/own/{split}-seed0.parquet" for split in ("test", "val"))
        scores = folder / "own.parquet"
        expected = Evaluator(own).eval(test, val)
        assert Evaluator(own).eval(scores, scores) == expected
        assert Evaluator(own).eval(str(scores), val) == expected
        assert Evaluator(own).eval(pq.read_table(scores), val) == expected
        labels = own.labels("test").astype({"cell_id": str, "gene": str})
        assert Evaluator(labels).eval(scores)["f1_macro"] == expected["f1_macro"]

    def test_a_frame_of_it_says_which_pairs_to_keep(self, here):
        own, _, folder = here
        frame = pd.read_parquet(folder / "own.parquet")
        with pytest.raises(PredictionError, match=r"keep those of dataset\.pairs\(split\)"):
            Evaluator(own).eval(frame)
        kept = own.pairs("test").astype(str).merge(frame)
        assert Evaluator(own).eval(kept) == Evaluator(own).eval(folder / "own.parquet")

    def test_from_the_command_line(self, run):
        code, out, _ = run("evaluate own.parquet --dataset own --val own.parquet --json")
        assert code == 0
        code, other, _ = run(
            "evaluate runs/own/test-seed0.parquet --dataset own --val runs/own/val-seed0.parquet "
            "--json"
        )
        assert json.loads(out) == json.loads(other)

    def test_scores_of_other_tables_are_refused(self, here):
        own, _, folder = here
        with pytest.raises(PredictionError, match=r"dataset = bare@1\.2\.0, expected own@1\.2\.0"):
            Evaluator(own).eval(folder / "bare.parquet")

    def test_a_model_that_was_fitted_on_what_is_scored_is_warned_of(self, here):
        own, _, folder = here
        warning = ["the model was fitted on the labels of own@1.2.0 that are scored here"]
        assert Evaluator(own, "train").eval(folder / "own.parquet")["warnings"] == warning
        assert Evaluator(own, "test").eval(folder / "own.parquet")["warnings"] == []

    def test_compare(self, run):
        code, out, _ = run("compare own.parquet runs/own/test-seed0.parquet --dataset own --json")
        assert code == 0
        assert json.loads(out)["f1_macro"]["difference"] == 0


class TestValidate:
    def test_every_pair(self, run):
        assert run("validate own.parquet --dataset own")[1] == "own.parquet: fine (every pair)\n"
        assert run("validate bare.parquet --dataset bare")[0] == 0

    @pytest.mark.parametrize(
        ("spoil", "problem"),
        [
            (lambda t: t[:-1], "1 pair is missing"),
            (lambda t: pa.concat_tables([t, t[:1]]), "1 row is of pairs given more than once"),
            (
                lambda t: t.set_column(0, "cell_id", pc.replace_substring(t["cell_id"], "F", "X")),
                "of pairs not of this split",
            ),
        ],
        ids=["a row less", "a row twice", "other cells"],
    )
    def test_what_is_wrong(self, here, run, spoil, problem):
        table = pq.read_table(here[2] / "own.parquet")
        pq.write_table(spoil(table), here[2] / "spoilt.parquet")
        code, _, err = run("validate spoilt.parquet --dataset own")
        assert code == 1
        assert problem in err

    def test_other_tables(self, run):
        code, _, err = run("validate own.parquet --dataset bare")
        assert code == 1
        assert "dataset = own@1.2.0, expected bare@1.2.0" in err

    def test_as_python(self, here):
        own, _, folder = here
        checked = check_file(folder / "own.parquet", own)
        assert checked.require().shape == (own.counts["pairs"], len(own.patterns))
        assert len(check_file(folder / "own.parquet", own, "val").require()) == len(
            own.pairs("val")
        )


class TestCalls:
    def test_by_the_thresholds_of_the_model(self, here, run):
        _, bare, folder = here
        assert run("predict bare --model runs --out again.parquet --calls")[0] == 0
        code, out, _ = run("calls bare.parquet --dataset bare --out bare-calls.parquet")
        assert (code, out.split()) == (0, ["bare-calls.parquet", "bare-calls-genes.csv"])
        for kind in ("calls.parquet", "calls-genes.csv"):
            written = [(folder / f"{name}-{kind}").read_bytes() for name in ("bare", "again")]
            assert written[0] == written[1]
        calls = pd.read_parquet(folder / "bare-calls.parquet")
        assert len(calls) == bare.counts["pairs"]

    def test_by_thresholds_chosen_on_val_of_the_same_tables(self, here, run):
        _, _, folder = here
        for val in ("own.parquet", "runs/own/val-seed0.parquet"):
            assert run(f"calls own.parquet --dataset own --val {val} --out x.parquet")[0] == 0
            thresholds = load_model(folder / "runs/own/model-seed0")[1].thresholds
            calls = call_patterns(pd.read_parquet(folder / "own.parquet"), thresholds)
            pd.testing.assert_frame_equal(pd.read_parquet(folder / "x.parquet"), calls)

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("bare.parquet", "bare@1.2.0, which is not in the registry: give its folder with"),
            ("blunt.parquet --dataset bare", "need --val FILE, .*, for the model has no thresh"),
            ("runs/own/test-seed0.parquet --dataset own", "need --val FILE"),
            (
                "bare.parquet --dataset bare --val runs/own/val-seed0.parquet",
                "labels are not at hand: leave out --val",
            ),
            ("bare.parquet --dataset bare --val other.parquet", "of mine, seed 0; bare.parquet of"),
        ],
        ids=["no dataset", "no thresholds", "a prediction file", "val of own tables", "a method"],
    )
    def test_what_cannot_be_called(self, here, run, without_thresholds, line, problem):
        own, _, folder = here
        scores = own.pairs("val").assign(**dict.fromkeys(own.patterns, 0.5))
        write_predictions(folder / "other.parquet", scores, own, "val", method="mine")
        code, _, err = run(f"calls {line} --out none.parquet")
        assert code == 2
        assert re.search(problem, err)
        assert not (folder / "none.parquet").exists()

    def test_calls_are_no_scores(self, run):
        assert run("calls own.parquet --dataset own --out c.parquet")[0] == 0
        for line in ("validate c.parquet --dataset own", "evaluate c.parquet --dataset own"):
            code, _, err = run(line)
            assert code != 0
            assert "1 problem\n  1. it holds calls (true or false)" in err


class TestPlotCell:
    def test_calls_are_those_of_the_model(self, here):
        _, bare, folder = here
        figure = plots.plot_cell(bare, predictions=[folder / "bare.parquet"])
        _, model = load_model(folder / "runs/own/model-seed0")
        calls = call_patterns(pd.read_parquet(folder / "bare.parquet"), model.thresholds)
        calls = calls.set_index(["cell_id", "gene"])
        cell = figure.get_suptitle().splitlines()[0].rpartition(" ")[2]
        assert figure.get_suptitle().endswith("called at the model's thresholds")
        for row in np.array(figure.axes).reshape(-1, 2):
            found = calls.loc[(cell, row[0].get_ylabel().split("\n")[0])]
            names = [name.replace("_", " ") for name in found.index[found]] or ["no pattern"]
            assert row[1].get_title().replace("\n", " ") == " + ".join(names)

    def test_without_labels_and_thresholds_it_is_the_highest_score(self, here, without_thresholds):
        bare = here[1]
        figure = plots.plot_cell(bare, predictions=[without_thresholds])
        assert "pattern of the highest score" in figure.get_suptitle()
        scores = pd.read_parquet(without_thresholds).set_index(["cell_id", "gene"])
        cell = figure.get_suptitle().splitlines()[0].rpartition(" ")[2]
        for row in np.array(figure.axes).reshape(-1, 2):
            found = scores.loc[(cell, row[0].get_ylabel().split("\n")[0])]
            assert row[1].get_title() == found.idxmax().replace("_", " ")

    def test_a_cell_of_any_split(self, here):
        own, _, folder = here
        cell = next(iter(own.iter_cells("train")))
        figure = plots.plot_cell(own, cell.cell_id, predictions=[folder / "own.parquet"])
        titles = [axes.get_title() for axes in figure.axes]
        assert any(title.endswith(("(right)", "(wrong)")) for title in titles)

    def test_beside_a_prediction_file_each_has_its_rule(self, here):
        own, _, folder = here
        files = [folder / "own.parquet", folder / "runs/own/test-seed0.parquet"]
        rules = plots.plot_cell(own, predictions=files).get_suptitle().splitlines()[1:]
        assert rules == [
            "gene_prior: called at the model's thresholds",
            "gene_prior: called at the thresholds of largest F1 on test",
        ]


class TestModel:
    def test_by_text_or_by_the_folder_around_it(self, here):
        folder = here[2]
        model = folder / "runs/own/model-seed0"
        for place in (model, str(model), folder / "runs/own", str(folder / "runs")):
            assert find_model(place) == model
            assert load_model(place)[1] == load_model(model)[1]

    def test_several_are_listed(self, here, run, tmp_path):
        for seed in (0, 1):
            shutil.copytree(here[2] / "runs/own/model-seed0", tmp_path / f"d/model-seed{seed}")
        with pytest.raises(MethodError, match=r"2 models: .*model-seed0, .*model-seed1; name one"):
            load_model(tmp_path)
        code, _, err = run(f"predict bare --model {tmp_path / 'd'} --out none.parquet")
        assert code == 2
        assert "2 models" in err

    def test_none(self, tmp_path):
        for place in (tmp_path, tmp_path / "absent"):
            with pytest.raises(MethodError, match="holds no readable model"):
                load_model(str(place))

    def test_scores_are_written_where_calls_cannot_be(self, here, run, without_thresholds):
        folder = here[2]
        code, out, err = run("predict bare --model blunt --out y.parquet --calls")
        assert (code, out) == (2, "y.parquet\n")
        assert "y.parquet is written, but calls are not" in err
        assert (folder / "y.parquet").read_bytes() == without_thresholds.read_bytes()
        assert not (folder / "y-calls.parquet").exists()


def test_pairs_that_are_scored_twice_are_not_selected():
    scores = pd.DataFrame({"cell_id": ["1", "1"], "gene": ["A", "A"], "p": [0.1, 0.2]})
    with pytest.raises(PredictionError, match=r"more than once: \(1, A\)"):
        counted(scores, scores[["cell_id", "gene"]][:1])


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ([0, 1], "float32 or float64 scores, got int64"),
        ([0.5, np.nan], "1 scores are missing"),
        (pd.array([0.5, None], "Float32"), "1 scores are missing"),
        (["0.1", "0.9"], "float32 or float64 scores, got"),
        (None, "missing or repeated: p"),
    ],
    ids=["int", "NaN", "NA", "text", "absent"],
)
def test_what_is_no_score_is_not_called(column, problem):
    scores = pd.DataFrame({"cell_id": ["1", "2"], "gene": ["A", "A"]})
    scores = scores if column is None else scores.assign(p=column)
    with pytest.raises(EvaluationError, match=problem):
        call_patterns(scores, {"p": 0.5})


def test_nullable_scores_are_called():
    scores = pd.DataFrame({"cell_id": ["1", "2"], "gene": ["A", "A"]})
    scores["p"] = pd.array([0.5, 0.4], "Float32")
    assert call_patterns(scores, {"p": 0.5})["p"].tolist() == [True, False]


def test_downloads_are_all_tried(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("download", "nosuch", "synthetic", "synthetic@9")
    assert code == 2
    assert out.startswith("synthetic@1.0.0\t")
    assert "error: nosuch: no dataset named 'nosuch'" in err
    assert "error: synthetic@9: dataset synthetic has no version" in err
    assert err.endswith("error: 2 of 3 datasets are not there, see above: nosuch, synthetic@9\n")
