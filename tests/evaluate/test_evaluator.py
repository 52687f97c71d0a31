"""The Evaluator: keys, inputs, thresholds from val, undefined metrics."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import FIVE_LABELS, FIVE_SCORES, dataset_of

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.curate.release import Release
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import EvaluationError, PredictionError, TableError
from gpattern_bench.predictions import write_predictions

MACRO = ["auc_macro", "acc_macro", "f1_macro", "ap_macro"]
MACRO_VAL = ["f1_val_macro", "acc_val_macro"]
REST = ["accuracy_subset", "n", "per_pattern", "undefined", "warnings"]
INTERVALS = ["ci", "n_clusters", "clusters"]
PER_PATTERN = ["n", "n_positive", "prevalence", "auc", "ap", "f1", "threshold", "acc"]
PER_PATTERN += ["precision", "recall", "floor"]
PER_PATTERN_VAL = ["f1_val", "acc_val", "threshold_val"]

TRUTH = FIVE_LABELS[["inner", "outer"]].to_numpy()
PRED = FIVE_SCORES[["inner", "outer"]].to_numpy()


def build(folder, *, labels=True):
    release = simulate(7, n_fovs=12, cells_per_fov=3, n_genes=10, mean_molecules=60)
    if not labels:
        release = Release(release.molecules, release.cells)
    return dataset_of(folder, release, version="1.2.0")


@pytest.fixture(scope="module")
def ds(tmp_path_factory) -> Dataset:
    return build(tmp_path_factory.mktemp("data") / "small")


def drawn(ds: Dataset, split: str, seed: int = 0) -> pd.DataFrame:
    pairs = ds.pairs(split).astype(str)
    values = np.random.default_rng(seed).random((len(pairs), 4)).astype(np.float32)
    return pairs.assign(**dict(zip(PATTERNS, values.T, strict=True)))


class TestKeys:
    def test_are_those_of_the_contract(self, ds):
        result = Evaluator(ds).eval(drawn(ds, "test"))
        assert list(result) == [*MACRO, *REST, *INTERVALS]
        assert list(Evaluator(ds).eval(drawn(ds, "test"), replicates=0)) == [*MACRO, *REST]
        assert list(result.per_pattern) == list(PATTERNS)
        for values in result.per_pattern.values():
            assert list(values) == [*PER_PATTERN, "ci"]
            assert list(values["ci"]) == ["auc", "acc", "f1", "ap", "precision", "recall"]

    def test_are_more_with_val_scores(self, ds):
        result = Evaluator(ds).eval(drawn(ds, "test"), drawn(ds, "val"))
        assert list(result) == [*MACRO, *MACRO_VAL, "f1_gap_macro", *REST, *INTERVALS]
        for values in result.per_pattern.values():
            assert list(values) == [*PER_PATTERN, *PER_PATTERN_VAL, "ci"]

    def test_a_result_is_a_dict_with_extras(self):
        result = Evaluator(FIVE_LABELS).eval(FIVE_SCORES)
        assert isinstance(result, dict)
        assert result.per_pattern is result["per_pattern"]
        assert result.undefined is result["undefined"]

    def test_values_are_plain_python_numbers(self, ds):
        result = Evaluator(ds).eval(drawn(ds, "test"), drawn(ds, "val"))
        numbers = [result[key] for key in (*MACRO, *MACRO_VAL, "accuracy_subset", "n")]
        for values in result.per_pattern.values():
            numbers += [v for key, v in values.items() if key != "ci"]
            numbers += [end for ci in values["ci"].values() for end in ci]
        assert {type(number) for number in numbers} == {float, int}


class TestByHand:
    def test_the_patterns(self):
        # inner: best at 0.4: TP 2 of M 3, F1 4/5. outer: at 0.3: TP 3 of M 4, F1 6/7; at 0.7: 4/5.
        found = Evaluator(FIVE_LABELS).eval(FIVE_SCORES).per_pattern
        inner, outer = found["inner"], found["outer"]
        assert (inner["f1"], inner["acc"], inner["precision"], inner["recall"]) == (
            *(0.8, 0.8),
            2 / 3,
            1.0,
        )
        assert inner["threshold"] == float(np.float32(0.4))
        assert (outer["f1"], outer["acc"]) == (6 / 7, 0.8)
        assert (inner["auc"], outer["auc"]) == (5 / 6, 5.5 / 6)
        assert inner["ap"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3, abs=1e-15)
        assert (inner["floor"], inner["prevalence"], inner["n_positive"]) == (4 / 7, 0.4, 2)

    def test_the_macro_averages(self):
        result = Evaluator(FIVE_LABELS).eval(FIVE_SCORES)
        assert result["f1_macro"] == (0.8 + 6 / 7) / 2
        assert result["auc_macro"] == (5 / 6 + 5.5 / 6) / 2

    def test_subset_accuracy(self):
        # Wrong are inner of the third pair (0.6) and outer of the third (0.3): one pair of five.
        assert Evaluator(FIVE_LABELS).eval(FIVE_SCORES)["accuracy_subset"] == 0.8

    def test_thresholds_from_val(self):
        # On val the best threshold of inner is 0.5, of outer 0.75.
        val = {
            "y_true": [[1, 1], [0, 0], [0, 0]],
            "y_pred": [[0.5, 0.75], [0.4, 0.7], [0.3, 0.1]],
        }
        result = Evaluator(FIVE_LABELS).eval(FIVE_SCORES, val)
        inner, outer = result.per_pattern["inner"], result.per_pattern["outer"]
        # At 0.5: called a-g (right), b-g (wrong); a-h missed: F1 1/2, ACC 3/5.
        assert (inner["threshold_val"], inner["f1_val"], inner["acc_val"]) == (0.5, 0.5, 0.6)
        # At 0.75: called a-h (right); two missed: F1 1/2, ACC 3/5.
        assert (outer["threshold_val"], outer["f1_val"], outer["acc_val"]) == (0.75, 0.5, 0.6)
        assert (result["f1_val_macro"], result["acc_val_macro"]) == (0.5, 0.6)

    def test_val_scores_change_nothing_else(self):
        val = {"y_true": [[1, 1], [0, 0]], "y_pred": [[0.5, 0.75], [0.4, 0.7]]}
        with_val = Evaluator(FIVE_LABELS).eval(FIVE_SCORES, val)
        without = Evaluator(FIVE_LABELS).eval(FIVE_SCORES)
        for key in (*MACRO, "accuracy_subset", "n", "undefined"):
            assert with_val[key] == without[key]

    def test_the_own_thresholds_are_never_worse_than_those_of_val(self, ds):
        result = Evaluator(ds).eval(drawn(ds, "test"), drawn(ds, "val"))
        for values in result.per_pattern.values():
            assert values["f1"] >= values["f1_val"]


class TestShown:
    def test_a_result_as_a_table(self, ds):
        result = Evaluator(ds).eval(drawn(ds, "test"), drawn(ds, "val"))
        frame = result.to_frame()
        assert list(frame.index) == [*PATTERNS, "macro"]
        metrics = [*PER_PATTERN, *PER_PATTERN_VAL]
        assert sorted(frame.columns[: len(metrics)]) == sorted(metrics)
        for pattern in PATTERNS:
            for metric in metrics:
                assert frame.loc[pattern, metric] == result.per_pattern[pattern][metric]
            ends = result.per_pattern[pattern]["ci"]["recall"]
            assert list(frame.loc[pattern, ["recall_low", "recall_high"]]) == ends
        assert frame.loc["macro", "f1_val"] == result["f1_val_macro"]
        assert list(frame.loc["macro", ["auc_low", "auc_high"]]) == result["ci"]["auc_macro"]
        assert frame.loc["macro", "n"] == result["n"]
        assert math.isnan(frame.loc["macro", "threshold"])
        assert frame["n"].dtype == int

    def test_without_intervals(self):
        frame = Evaluator(FIVE_LABELS).eval(FIVE_SCORES).to_frame()
        assert list(frame.columns) == list(
            Evaluator(FIVE_LABELS).eval(FIVE_SCORES).per_pattern["inner"]
        )
        assert frame.loc["macro", "f1"] == (0.8 + 6 / 7) / 2

    def test_print_is_short(self):
        lines = str(Evaluator(FIVE_LABELS).eval(FIVE_SCORES)).splitlines()
        assert lines[0].split() == ["pattern", "auc", "acc", "f1", "ap"]
        assert lines[2].split() == ["inner", "0.8333", "0.8000", "0.8000", "0.8333"]
        assert lines[-1] == "5 pairs; fractions"
        assert len(lines) == 2 + 3 + 1

    def test_the_undefined_is_a_dash(self):
        lines = str(Evaluator(FIVE_LABELS.assign(outer=False)).eval(FIVE_SCORES)).splitlines()
        assert lines[3].split() == ["outer", "-", "-", "-", "-"]
        assert "undefined auc: outer" in lines[-1]

    def test_an_evaluator_is_one_line(self, ds):
        pairs = len(ds.pairs("test"))
        expected = f"<Evaluator of small@1.2.0, split test: {pairs} pairs, 4 patterns>"
        assert repr(Evaluator(ds)) == expected
        assert (
            repr(Evaluator(FIVE_LABELS)) == "<Evaluator of a table of labels: 5 pairs, 2 patterns>"
        )
        assert (
            repr(Evaluator(FIVE_LABELS).check(FIVE_SCORES))
            == "<Checked predictions: 5 pairs, fine>"
        )
        assert "1 problem>" in repr(Evaluator(FIVE_LABELS).check(FIVE_SCORES[1:]))


class TestInputs:
    """Whatever holds the scores, the result is the same."""

    @pytest.mark.parametrize(
        "scores",
        [
            FIVE_SCORES.sample(frac=1, random_state=1),
            FIVE_SCORES[["outer", "gene", "inner", "cell_id"]],
            FIVE_SCORES.set_index(np.arange(5)[::-1]),
            pa.Table.from_pandas(FIVE_SCORES, preserve_index=False),
            {"y_true": TRUTH, "y_pred": PRED},
            {"y_true": TRUTH.astype(float), "y_pred": PRED},
            {"y_true": TRUTH.astype(np.uint8), "y_pred": PRED},
            {"y_true": TRUTH.tolist(), "y_pred": PRED},
        ],
        ids=["frame", "columns", "index", "table", "bool", "float", "uint8", "lists"],
    )
    def test_give_the_same_result(self, scores):
        ev = Evaluator(FIVE_LABELS)
        assert ev.eval(scores) == ev.eval(FIVE_SCORES)

    @pytest.mark.parametrize("wrap", [lambda f: f, lambda f: pa.Table.from_pandas(f)])
    def test_float64_is_compared_as_float64(self, wrap):
        # 0.1 < 0.1 + 1e-12, which float32 cannot tell apart.
        scores = FIVE_SCORES.assign(inner=[0.1 + 1e-12, 0.1 + 1e-12, 0.1, 0.1, 0.1], outer=0.5)
        scores = scores.astype({"inner": "float64", "outer": "float64"})
        assert Evaluator(FIVE_LABELS).eval(wrap(scores)).per_pattern["inner"]["auc"] == 1.0

    def test_a_file_equals_its_frame(self, ds, tmp_path):
        scores = drawn(ds, "test")
        path = write_predictions(tmp_path / "a.parquet", scores, ds, "test", method="mine")
        ev = Evaluator(ds)
        assert ev.eval(path) == ev.eval(str(path)) == ev.eval(scores)

    def test_y_true_wins_over_the_labels(self):
        perfect = {"y_true": PRED > 0.5, "y_pred": PRED}
        assert Evaluator(FIVE_LABELS).eval(perfect)["f1_macro"] == 1.0

    def test_a_dict_may_have_any_number_of_rows(self):
        arrays = {"y_true": np.tile(TRUTH, (3, 1)), "y_pred": np.tile(PRED, (3, 1))}
        assert Evaluator(FIVE_LABELS).eval(arrays)["n"] == 15

    def test_a_dict_without_rows_has_no_metric(self):
        result = Evaluator(FIVE_LABELS).eval(
            {"y_true": np.zeros((0, 2), bool), "y_pred": np.zeros((0, 2))}
        )
        assert result["n"] == 0
        assert all(math.isnan(result[key]) for key in (*MACRO, "accuracy_subset"))

    def test_extra_columns_of_a_frame_are_named(self):
        with pytest.raises(PredictionError, match="too many: outside"):
            Evaluator(FIVE_LABELS).eval(FIVE_SCORES.assign(outside=0.5))

    def test_a_warning_of_a_constant_column_is_in_the_result(self):
        result = Evaluator(FIVE_LABELS).eval(FIVE_SCORES.assign(outer=np.float32(0.5)))
        assert result["warnings"] == ["column outer is constant (0.5 for every pair)"]


def test_what_was_checked_scores_like_the_file_and_is_read_once(ds, tmp_path):
    path, val = (
        write_predictions(tmp_path / f"{split}.parquet", drawn(ds, split), ds, split, method="m")
        for split in ("test", "val")
    )
    expected = Evaluator(ds).eval(path, val)
    checked, checked_val = Evaluator(ds).check(path), Evaluator(ds, "val").check(val)
    path.unlink()
    val.unlink()
    found = Evaluator(ds).eval(checked, checked_val)
    assert found == expected
    for metric, values in expected.replicates.items():
        np.testing.assert_array_equal(found.replicates[metric], values)


class TestEvaluatorOf:
    def test_a_name(self):
        assert Evaluator("synthetic", split="val").labels.equals(
            load_dataset("synthetic").labels("val")
        )

    def test_a_folder(self, ds):
        assert Evaluator(ds.folder).patterns == PATTERNS

    @pytest.mark.parametrize("wrap", [lambda f: f, pa.Table.from_pandas], ids=["frame", "table"])
    def test_a_table_of_labels(self, wrap):
        ev = Evaluator(wrap(FIVE_LABELS))
        assert ev.patterns == ("inner", "outer")
        assert ev.eval(FIVE_SCORES)["n"] == 5

    def test_the_labels_of_a_dataset_as_a_table(self, ds):
        scores = drawn(ds, "test")
        of_table = Evaluator(ds.labels("test"))
        assert of_table.eval(scores) == Evaluator(ds).eval(scores)

    def test_a_dataset_without_labels_is_refused(self, tmp_path):
        with pytest.raises(TableError, match="no labels"):
            Evaluator(build(tmp_path / "d", labels=False))

    @pytest.mark.parametrize(
        "labels",
        [
            FIVE_LABELS.drop(columns="gene"),
            FIVE_LABELS[["cell_id", "gene"]],
            FIVE_LABELS.assign(inner=0.5, outer="yes"),
        ],
        ids=["no gene", "no patterns", "no labels"],
    )
    def test_a_table_that_holds_no_labels_says_what_is_needed(self, labels):
        with pytest.raises(EvaluationError, match="needs the columns cell_id, gene and one of 0"):
            Evaluator(labels)

    def test_a_pair_labelled_twice_is_refused(self):
        with pytest.raises(EvaluationError, match="1 rows that repeat a pair"):
            Evaluator(pd.concat([FIVE_LABELS, FIVE_LABELS[:1]]))


class TestFormats:
    def test_the_input_names_every_column_and_the_number_of_pairs(self):
        text = Evaluator(FIVE_LABELS).expected_input_format
        for part in ("cell_id: text", "gene: text", "inner: float32", "outer: float", "5 pairs"):
            assert part in text

    def test_the_output_names_every_key(self):
        text = Evaluator(FIVE_LABELS).expected_output_format
        for key in (*MACRO, *MACRO_VAL, *REST, *PER_PATTERN):
            assert key in text


class TestUndefined:
    def with_labels(self, **columns):
        return Evaluator(FIVE_LABELS.assign(**columns)).eval(FIVE_SCORES)

    def test_without_positives_nothing_but_counts_is_defined(self):
        result = self.with_labels(outer=False)
        outer = result.per_pattern["outer"]
        assert all(math.isnan(outer[key]) for key in ("auc", "ap", "f1", "threshold", "acc"))
        assert (outer["n_positive"], outer["prevalence"], outer["floor"]) == (0, 0.0, 0.0)
        assert result.undefined == {key: ["outer"] for key in ("auc", "acc", "f1", "ap")}

    def test_and_the_macro_average_leaves_it_out(self):
        result = self.with_labels(outer=False)
        assert result["f1_macro"] == result.per_pattern["inner"]["f1"]

    def test_without_negatives_only_auc_is_undefined(self):
        result = self.with_labels(outer=True)
        assert result.undefined == {"auc": ["outer"]}
        assert result.per_pattern["outer"]["f1"] == 1.0

    def test_without_any_defined_pattern_everything_is_nan(self):
        result = self.with_labels(inner=False, outer=False)
        assert all(math.isnan(result[key]) for key in (*MACRO, "accuracy_subset"))
        assert result.undefined["f1"] == ["inner", "outer"]

    def test_subset_accuracy_is_over_the_defined_patterns(self):
        assert self.with_labels(outer=False)["accuracy_subset"] == 0.8

    def test_a_pattern_without_positives_in_val_has_no_val_metrics(self):
        val = {"y_true": [[1, 0], [0, 0]], "y_pred": [[0.5, 0.75], [0.4, 0.7]]}
        result = Evaluator(FIVE_LABELS).eval(FIVE_SCORES, val)
        assert result.undefined == {"f1_val": ["outer"], "acc_val": ["outer"]}
        assert result["f1_val_macro"] == result.per_pattern["inner"]["f1_val"]

    def test_when_all_is_defined_nothing_is_named(self):
        assert Evaluator(FIVE_LABELS).eval(FIVE_SCORES).undefined == {}


class TestErrors:
    @pytest.mark.parametrize(
        ("arrays", "expected"),
        [
            ({"y_pred": PRED}, "keys y_true and y_pred, got y_pred"),
            ({"y_true": TRUTH, "y_pred": PRED, "more": 1}, "got y_true, y_pred, more"),
            ({"y_true": TRUTH, "y_pred": PRED[:4]}, r"\(N, 2\).*inner, outer; got \(5, 2\) and"),
            ({"y_true": TRUTH[:, :1], "y_pred": PRED[:, :1]}, r"got \(5, 1\) and \(5, 1\)"),
            ({"y_true": TRUTH.ravel(), "y_pred": PRED.ravel()}, r"got \(10,\)"),
            ({"y_true": TRUTH * np.nan, "y_pred": PRED}, "y_true: expected 0 or 1"),
            ({"y_true": TRUTH * 2, "y_pred": PRED}, "y_true: expected 0 or 1"),
            ({"y_true": TRUTH.astype(str), "y_pred": PRED}, "y_true: expected 0 or 1"),
            ({"y_true": TRUTH, "y_pred": PRED > 0.5}, "float32 or float64 scores, got bool"),
            ({"y_true": TRUTH, "y_pred": PRED.astype("f2")}, "got float16; cast"),
            ({"y_true": TRUTH, "y_pred": PRED + 1}, r"in \[0, 1\]"),
            ({"y_true": TRUTH, "y_pred": PRED * np.nan}, "finite"),
            ({"y_true": [[0, 1], [1]], "y_pred": [[0.0, 1.0], [1.0]]}, "y_true"),
            ({1: TRUTH, 2: PRED}, "keys y_true and y_pred"),
        ],
        ids=[
            *("no y_true", "a third key", "lengths", "columns", "flat", "NaN", "two", "text"),
            *("bool scores", "float16", "above one", "NaN scores", "ragged", "numbered keys"),
        ],
    )
    def test_of_arrays(self, arrays, expected):
        with pytest.raises(EvaluationError, match=expected):
            Evaluator(FIVE_LABELS).eval(arrays)

    def test_of_scores_in_arrays_name_the_pattern(self):
        pred = PRED.copy()
        pred[3, 1] = np.nan
        with pytest.raises(EvaluationError, match=r"outer(.|\n)*row 3"):
            Evaluator(FIVE_LABELS).eval({"y_true": TRUTH, "y_pred": pred})

    @pytest.mark.parametrize("thing", [PRED, [1, 2], None, 0.5], ids=lambda t: type(t).__name__)
    def test_of_things_that_are_no_predictions(self, thing):
        with pytest.raises((EvaluationError, PredictionError, TypeError)):
            Evaluator(FIVE_LABELS).eval(thing)

    @pytest.mark.parametrize(
        "scores",
        [
            pd.concat([FIVE_SCORES, FIVE_SCORES[["inner"]]], axis=1),
            FIVE_SCORES.assign(inner=["a", 1, 2, 3, 4]),
            FIVE_SCORES.assign(cell_id=[1, "a", "b", "b", "c"]),
        ],
        ids=["a column twice", "scores of mixed type", "ids of mixed type"],
    )
    def test_of_frames_that_arrow_cannot_hold(self, scores):
        with pytest.raises(PredictionError):
            Evaluator(FIVE_LABELS).eval(scores)

    def test_val_scores_of_a_table_of_labels_must_bring_their_labels(self):
        with pytest.raises(EvaluationError, match="val scores need val labels"):
            Evaluator(FIVE_LABELS).eval(FIVE_SCORES, FIVE_SCORES)

    def test_the_test_file_is_no_val_file(self, ds, tmp_path):
        path = write_predictions(
            tmp_path / "test.parquet", drawn(ds, "test"), ds, "test", method="mine"
        )
        with pytest.raises(PredictionError) as caught:
            Evaluator(ds).eval(path, path)
        assert "split = 'test', expected 'val'" in str(caught.value)

    def test_the_test_frame_is_no_val_frame(self, ds):
        with pytest.raises(PredictionError, match="pairs not of this split"):
            Evaluator(ds).eval(drawn(ds, "test"), drawn(ds, "test"))

    def test_check_of_a_frame_does_not_raise(self):
        assert "1 pair is missing" in Evaluator(FIVE_LABELS).check(FIVE_SCORES[1:]).problems[0]

    def test_what_was_checked_raises_its_problems_with_its_path(self, ds, tmp_path):
        path = write_predictions(tmp_path / "val.parquet", drawn(ds, "val"), ds, "val", method="m")
        with pytest.raises(PredictionError, match=r"val\.parquet: \d+ problem"):
            Evaluator(ds).eval(Evaluator(ds).check(path))

    def test_what_was_checked_on_another_split(self, ds):
        checked = Evaluator(ds, "val").check(drawn(ds, "val"))
        with pytest.raises(EvaluationError, match="other pairs than those of split test"):
            Evaluator(ds).eval(checked)


@settings(max_examples=40, derandomize=True)
@given(
    order=st.permutations(range(5)),
    grid=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=5, max_size=5),
)
def test_any_order_of_the_rows_gives_the_identical_result(order, grid):
    values = np.float32(grid) / np.float32(3)
    scores = FIVE_SCORES.assign(inner=values[:, 0], outer=values[:, 1])
    ev = Evaluator(FIVE_LABELS)
    assert repr(ev.eval(scores.iloc[list(order)])) == repr(ev.eval(scores))


@settings(max_examples=40, derandomize=True)
@given(order=st.permutations(range(5)), labels=st.lists(st.booleans(), min_size=10, max_size=10))
def test_any_order_of_the_arrays_gives_the_identical_result(order, labels):
    truth = np.array(labels).reshape(5, 2)
    ev = Evaluator(FIVE_LABELS)
    shuffled = {"y_true": truth[list(order)], "y_pred": PRED[list(order)]}
    assert repr(ev.eval(shuffled)) == repr(ev.eval({"y_true": truth, "y_pred": PRED}))
