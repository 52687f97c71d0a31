"""Labels and scores in memory: the same result whatever holds them, or an error that says why."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from samples import FIVE_LABELS, FIVE_SCORES
from scipy import sparse

from gpattern_bench import Evaluator
from gpattern_bench.errors import EvaluationError, PredictionError
from gpattern_bench.evaluate.calls import summarise_genes
from gpattern_bench.evaluate.curves import pattern_curves
from gpattern_bench.evaluate.metrics import at_threshold, score_pattern
from gpattern_bench.evaluate.strata import stratify
from gpattern_bench.tables.predictions import as_table, read_predictions

Y = FIVE_LABELS.set_index(["cell_id", "gene"])
S = FIVE_SCORES.set_index(["cell_id", "gene"])
EXPECTED = Evaluator(FIVE_LABELS).eval({"y_true": Y.to_numpy(), "y_pred": S.to_numpy()})
ORDER = [3, 0, 4, 2, 1]


class Exported:
    """A table of a library that exports Arrow's stream, as polars does."""

    def __init__(self, table: pa.Table) -> None:
        self._table, self.columns = table, table.column_names

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


def scored(y_true, y_pred):
    return Evaluator(FIVE_LABELS).eval({"y_true": y_true, "y_pred": y_pred})


class TestDicts:
    @pytest.mark.parametrize(
        ("y_true", "y_pred"),
        [
            (Y, S),
            (Y, S[["outer", "inner"]]),
            (Y[["outer", "inner"]], S),
            (Y[["outer", "inner"]], S[["outer", "inner"]].iloc[ORDER]),
            (Y.iloc[ORDER], S),
            (Y, S.iloc[ORDER]),
            (Y.iloc[ORDER], S.iloc[ORDER].to_numpy()),
            (Y.set_index(np.arange(5) * 7).iloc[ORDER], S.set_index(np.arange(5) * 7)),
            (Y.set_index(np.arange(5) // 2), S.set_index(np.arange(5) // 2)),
            (Y, S.to_numpy()),
            (Y.to_numpy(), S),
            (Y.to_numpy(), pd.DataFrame(S.to_numpy())),
            (Y.to_numpy(object), S),
            (Y.astype("boolean"), S.astype("Float32")),
            (Y.astype(int).astype(object), S.astype("float[pyarrow]")),
            (Y.astype("Int8"), S),
            (Y.reset_index(drop=True), pa.Table.from_pandas(S, preserve_index=False)),
            (Y, pa.Table.from_pandas(S.iloc[ORDER])),
            (pa.Table.from_pandas(Y, preserve_index=False), S.to_numpy()),
            (pa.RecordBatch.from_pandas(Y, preserve_index=False), S.to_numpy()),
            (Exported(pa.Table.from_pandas(Y, preserve_index=False)), S.to_numpy()),
            (np.ma.array(Y.to_numpy()), np.ma.array(S.to_numpy())),
            (torch.tensor(Y.to_numpy()), torch.tensor(S.to_numpy(), requires_grad=True)),
            (torch.tensor(Y.to_numpy()).half(), torch.tensor(S.to_numpy())),
            (Y.to_numpy().tolist(), S.to_numpy()),
        ],
        ids=[
            *("frames", "columns of scores", "columns of labels", "columns and rows", "rows"),
            *("rows of scores", "a frame and an array", "numbered rows", "equal names twice"),
            *("array of scores", "array of labels", "numbered columns", "object array"),
            *("nullable", "objects and arrow floats", "nullable ints", "arrow", "arrow, indexed"),
            *("arrow labels", "record batch", "exported", "nothing masked", "with grad"),
            *("half labels", "lists"),
        ],
    )
    def test_the_same_values_give_the_same_result(self, y_true, y_pred):
        assert scored(y_true, y_pred) == EXPECTED

    @pytest.mark.parametrize(
        ("y_true", "y_pred", "problem"),
        [
            (Y, S.rename(columns={"inner": "Inner"}), "y_pred: expected one column for each of"),
            (Y.reset_index(), S, "y_true: expected one column for each of inner, outer, got cell"),
            (Y[["outer", "inner"]], S.to_numpy(), "y_true names its columns in another order"),
            (
                Y[["outer", "inner"]],
                S.set_axis([0, 1], axis=1),
                "y_true names its columns in another order",
            ),
            (Y, S.rename(index={"a": "z"}), "other names of rows"),
            (Y, S.reset_index(drop=True), "other names of rows"),
            (Y.reset_index(drop=True).iloc[ORDER], S.reset_index(drop=True), "one of them none"),
            (Y.set_index(np.arange(5) // 2), S.set_index(np.arange(5)[::-1] // 2), "more than onc"),
            (Y, S.iloc[:4], "other names of rows"),
            (Y["inner"], S["inner"], r"y_true: expected an array, got pandas\.Series"),
            (Y.to_numpy(), [row for _, row in S.iterrows()], "y_pred: expected an array"),
            (Y.assign(inner="yes"), S, "y_true, column inner: expected 0 or 1 everywhere"),
            (Y.astype("boolean").where(Y["outer"]), S, "y_true, column inner: .* of type boolean"),
            (Y, S.assign(outer=[0, 1, 0, 1, 0]), "y_pred, column outer: .* scores, got int64"),
            (Y, S.astype("Float32").where(Y["outer"]), "y_pred, column inner: 2 scores are miss"),
            (
                np.ma.array(Y.to_numpy(), mask=Y.to_numpy()),
                S.to_numpy(),
                "y_true: 5 values are masked",
            ),
            (
                Y.to_numpy(),
                list(np.ma.array(S.to_numpy(), mask=Y.to_numpy())),
                "y_pred: 5 values are masked",
            ),
            (Y.to_numpy(), torch.tensor(S.to_numpy()).bfloat16(), r"y_pred: torch\.bfloat16 is no"),
            (Y.to_numpy(), torch.tensor(S.to_numpy()).half(), "y_pred: .* scores, got float16"),
            (Y.to_numpy(), torch.tensor(S.to_numpy()).to_sparse(), "y_pred: torch.float32 is no"),
            (sparse.csr_matrix(Y.to_numpy()), S.to_numpy(), r"y_true: scipy\.csr_matrix is no arr"),
            (np.where(Y, None, 1.0), S.to_numpy(), "y_true: expected 0 or 1 .* type object"),
        ],
        ids=[
            *("other columns", "columns too many", "labels ordered, scores not"),
            *(
                "labels ordered, scores numbered",
                "other rows",
                "rows numbered anew",
                "shuffled numbers",
            ),
            *("names twice in another order", "fewer rows", "series", "list of series", "text"),
            *("labels missing", "integer scores", "scores missing", "masked", "list of masked"),
            *("bfloat16", "half", "sparse tensor", "sparse matrix", "objects"),
        ],
    )
    def test_what_cannot_be_aligned_or_held_is_said(self, y_true, y_pred, problem):
        with pytest.raises(EvaluationError, match=problem):
            scored(y_true, y_pred)

    def test_labelled_arrays_of_other_libraries(self):
        xarray = pytest.importorskip("xarray")
        named = {"pattern": ["outer", "inner"]}
        array = xarray.DataArray(S.to_numpy(), coords=named, dims=("pair", "pattern"))
        with pytest.raises(EvaluationError, match=r"xarray\.DataArray, whose names would"):
            scored(Y.to_numpy(), array)

    def test_precision_is_kept(self):
        # 0.1 < 0.1 + 1e-12, which float32 cannot tell apart.
        scores = S.astype("float64").assign(inner=[0.1 + 1e-12, 0.1 + 1e-12, 0.1, 0.1, 0.1])
        for y_pred in (scores, scores.astype("Float64"), pa.Table.from_pandas(scores)):
            assert scored(Y, y_pred).per_pattern["inner"]["auc"] == 1.0

    def test_val_scores_are_aligned_too(self):
        straight = {"y_true": Y, "y_pred": S}
        turned = {"y_true": Y, "y_pred": S[["outer", "inner"]].iloc[ORDER]}
        ev = Evaluator(FIVE_LABELS)
        assert ev.eval(FIVE_SCORES, turned) == ev.eval(FIVE_SCORES, straight)


def as_kinds():
    arrow = pd.ArrowDtype(pa.bool_())
    for kind in (
        "boolean",
        object,
        "int8",
        "uint8",
        "float32",
        "float64",
        "Int64",
        "Float32",
        arrow,
    ):
        yield str(kind), FIVE_LABELS.astype({"inner": kind})
    for name, values in {
        "objects": [1, True, 0.0, False, np.int8(0)],
        "decimals": [Decimal(1), Decimal("1.0"), Decimal(0), Decimal(0), Decimal(0)],
        "categories": pd.Categorical([True, True, False, False, False]),
        "numbered categories": pd.Categorical([1, 1, 0, 0, 0]),
        "sparse": pd.arrays.SparseArray([1, 1, 0, 0, 0]),
    }.items():
        yield name, FIVE_LABELS.assign(inner=values)
    table = pa.Table.from_pandas(FIVE_LABELS, preserve_index=False)
    yield "arrow table", table
    yield "arrow ints", table.set_column(2, "inner", table["inner"].cast(pa.int8()))
    yield "exported", Exported(table)


KINDS = dict(as_kinds())


class TestLabels:
    @pytest.mark.parametrize("kind", KINDS)
    def test_any_type_that_holds_0_and_1_is_a_pattern(self, kind):
        ev = Evaluator(KINDS[kind])
        assert ev.patterns == ("inner", "outer")
        assert ev.labels[["inner", "outer"]].dtypes.eq(bool).all()
        assert ev.eval(FIVE_SCORES) == Evaluator(FIVE_LABELS).eval(FIVE_SCORES)

    @pytest.mark.parametrize(
        "values",
        [
            pd.array([True, None, False, False, False], "boolean"),
            [True, None, False, False, False],
            [1.0, np.nan, 0.0, 0.0, 0.0],
            pd.array([1, None, 0, 0, 0], "Int8"),
        ],
        ids=["boolean", "object", "float", "Int8"],
    )
    def test_labels_that_lack_are_named_with_their_type(self, values):
        labels = FIVE_LABELS.assign(inner=values)
        kind = labels["inner"].dtype
        with pytest.raises(EvaluationError, match=rf"inner \({kind}\) has no label in 1 of 5 rows"):
            Evaluator(labels)

    @pytest.mark.parametrize(
        ("values", "shown"),
        [
            (["yes", "yes", "no", "no", "no"], "'yes'"),
            (["1", "1", "0", "0", "0"], "'1'"),
            ([2, 1, 0, 0, 0], "2"),
            ([0.5, 1, 0, 0, 0], "0.5"),
        ],
        ids=["words", "digits", "two", "half"],
    )
    def test_a_scored_column_that_is_no_pattern_is_named_with_its_type(self, values, shown):
        labels = FIVE_LABELS.assign(inner=values)
        kind = labels["inner"].dtype
        with pytest.raises(EvaluationError) as caught:
            Evaluator(labels).eval(FIVE_SCORES)
        assert f"column inner ({kind}) is no pattern" in str(caught.value)
        assert shown in str(caught.value)

    def test_what_is_not_scored_may_be_anything(self):
        labels = FIVE_LABELS.assign(fov=[0, 1, 0, 1, 0], n_molecules=1, area=2.5, note="n")
        assert Evaluator(labels).patterns == ("inner", "outer")
        assert Evaluator(labels).eval(FIVE_SCORES, replicates=0) == Evaluator(FIVE_LABELS).eval(
            FIVE_SCORES
        )

    def test_a_column_twice(self):
        with pytest.raises(EvaluationError, match="more than once: inner"):
            Evaluator(pd.concat([FIVE_LABELS, FIVE_LABELS[["inner"]]], axis=1))

    @pytest.mark.parametrize(
        "ids", [[1, 1, 2, 2, 3], ["a", "a", "b", "b", None], pd.Categorical([1, 1, 2, 2, 3])]
    )
    def test_ids_are_text(self, ids):
        with pytest.raises(EvaluationError, match=r"column cell_id .* expected text everywhere"):
            Evaluator(FIVE_LABELS.assign(cell_id=ids))

    @pytest.mark.parametrize("thing", [Y.to_numpy(), [FIVE_LABELS], None, 1], ids=type)
    def test_what_is_no_table(self, thing):
        with pytest.raises(EvaluationError, match=r"a table of labels, got [nlNi]"):
            Evaluator(thing)


class TestTables:
    def test_of_any_library_that_exports_arrow(self):
        table = pa.Table.from_pandas(FIVE_SCORES, preserve_index=False)
        ids = table["cell_id"]
        cast = table.set_column(0, "cell_id", ids.cast(pa.string_view()))
        views = table.set_column(0, "cell_id", pa.array(ids.to_pylist(), pa.string_view()))
        tables = (Exported(table), cast, cast.to_batches()[0], views, Exported(views))
        for scores in tables:
            assert Evaluator(FIVE_LABELS).eval(scores) == Evaluator(FIVE_LABELS).eval(FIVE_SCORES)

    @pytest.mark.usefixtures("views")
    def test_files_with_views(self, tmp_path):
        table = as_table(FIVE_SCORES)
        views = table.set_column(0, "cell_id", table["cell_id"].cast(pa.string_view()))
        pa.parquet.write_table(views, tmp_path / "a.parquet")
        assert read_predictions(tmp_path / "a.parquet")[0].equals(table)

    def test_others_are_named_with_their_library(self):
        with pytest.raises(EvaluationError, match=r"got scipy\.csr_matrix"):
            Evaluator(FIVE_LABELS).eval(sparse.csr_matrix(S.to_numpy()))

    def test_half_precision_is_refused_in_words(self):
        with pytest.raises(PredictionError, match="column inner is float16, expected float32 or"):
            Evaluator(FIVE_LABELS).eval(FIVE_SCORES.astype({"inner": "float16"}))


class TestOnePattern:
    TRUE, SCORE = Y["inner"], S["inner"]
    EXPECTED = score_pattern(TRUE.to_numpy(), SCORE.to_numpy())

    @pytest.mark.parametrize(
        ("true", "score"),
        [
            (TRUE, SCORE),
            (TRUE, SCORE.iloc[ORDER]),
            (TRUE.iloc[ORDER], SCORE),
            (TRUE.astype("boolean"), SCORE.astype("Float32").iloc[ORDER]),
            (TRUE.to_list(), SCORE),
            (TRUE, SCORE.to_numpy()),
            (np.ma.array(TRUE.to_numpy()), torch.tensor(SCORE.to_numpy(), requires_grad=True)),
            (TRUE.astype(object).to_numpy(), SCORE.to_numpy()),
        ],
    )
    def test_series_are_aligned(self, true, score):
        assert score_pattern(true, score) == self.EXPECTED
        assert at_threshold(true, score, 0.5) == at_threshold(
            self.TRUE.to_numpy(), self.SCORE.to_numpy(), 0.5
        )

    @pytest.mark.parametrize(
        ("true", "score", "problem"),
        [
            (TRUE, SCORE.reset_index(drop=True), "other names of rows"),
            (TRUE, SCORE.to_frame(), "expected an array, got pandas.DataFrame"),
            (np.ma.array([1, 0], mask=[0, 1]), [0.5, 0.1], "y_true: 1 values are masked"),
            ([1, 0], np.ma.array([0.5, 0.1], mask=[0, 1]), "y_score: 1 values are masked"),
            ([1, 0], torch.tensor([0.5, 0.1]).bfloat16(), "y_score: torch.bfloat16"),
            (TRUE.astype("boolean").where(SCORE > 0.2), SCORE, "y_true: .*NaN is not a label"),
        ],
    )
    def test_or_refused(self, true, score, problem):
        with pytest.raises(EvaluationError, match=problem):
            score_pattern(true, score)

    def test_curves_take_the_same(self):
        true, score = self.TRUE.to_numpy(), self.SCORE.to_numpy()
        assert pattern_curves(true.astype(int), score) == pattern_curves(true, score)
        assert pattern_curves(self.TRUE, self.SCORE.iloc[ORDER]) == pattern_curves(true, score)
        with pytest.raises(EvaluationError, match="masked"):
            pattern_curves(true, np.ma.array(score, mask=true))


@pytest.mark.parametrize("molecules", [[1, 0, 3, 4, 5], [1, np.nan, 3, 4, 5], [1, None, 2, 3, 4]])
def test_pairs_without_molecules_are_in_no_stratum(molecules):
    labels = FIVE_LABELS.assign(n_molecules=pd.array(molecules))
    with pytest.raises(EvaluationError, match="n_molecules below 1, or none, in 1 rows"):
        stratify("molecules", labels, None, "test")


def test_strata_by_nullable_counts():
    labels = FIVE_LABELS.assign(n_molecules=pd.array([1, 2, 4, 5, 50], "Int32"))
    assert stratify("molecules", labels, None, "test")[0].tolist() == [0, 1, 1, 2, 5]


@pytest.mark.parametrize(
    ("batches", "problem"),
    [
        ([], "no batch"),
        ([FIVE_SCORES], "calls, column inner: expected 0 or 1"),
        (
            [FIVE_LABELS, FIVE_LABELS.drop(columns="inner")],
            "a batch has the patterns outer, the first has",
        ),
        ([FIVE_LABELS.assign(gene=["g", None, "g", "h", "g"])], "gene is missing"),
        (
            [FIVE_LABELS.astype({"inner": "boolean"}).mask(FIVE_LABELS["outer"])],
            "gene is missing|0 or 1",
        ),
    ],
    ids=["none", "scores", "other patterns", "no gene", "missing"],
)
def test_what_is_no_call_is_not_summed(batches, problem):
    with pytest.raises(EvaluationError, match=problem):
        summarise_genes(batches)
