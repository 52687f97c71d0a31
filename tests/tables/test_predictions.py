"""Prediction files: the round trip, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken import CORPUS, KEY, cast, of_metadata, of_table, put, value_at
from samples import dataset_of, random_scores

from gpattern_bench import Evaluator, __version__
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, PredictionError
from gpattern_bench.predictions import (
    Origin,
    read_predictions,
    write_predictions,
    write_tables,
)
from gpattern_bench.tables import predictions, schema


@pytest.fixture(scope="module")
def ds(tmp_path_factory) -> Dataset:
    release = simulate(7, n_fovs=12, cells_per_fov=3, n_genes=10, mean_molecules=60)
    return dataset_of(tmp_path_factory.mktemp("data") / "small", release, version="1.2.0")


@pytest.fixture(scope="module")
def evaluator(ds) -> Evaluator:
    return Evaluator(ds)


@pytest.fixture
def scores(ds) -> pd.DataFrame:
    """Scores of the test split, without ties."""
    return random_scores(ds)


@pytest.fixture
def good(ds, scores, tmp_path) -> Path:
    return write_predictions(tmp_path / "good.parquet", scores, ds, "test", method="mine")


def complaints(evaluator: Evaluator, path: Path) -> str:
    """What the check says of a file, however it says it."""
    try:
        return "\n".join(evaluator.check(path).problems)
    except PredictionError as error:
        return str(error)


class TestPieces:
    @pytest.mark.parametrize("cuts", [[], [1], [40], [7, 8, 30, 31], [10, 20, 30, 40, 50]])
    def test_bytes_do_not_depend_on_them(self, scores, tmp_path, monkeypatch, cuts):
        monkeypatch.setattr(predictions, "_ROWS", 16)
        table = pa.Table.from_pandas(scores, preserve_index=False)
        pq.write_table(
            table,
            tmp_path / "whole",
            compression="zstd",
            write_page_checksum=True,
            row_group_size=16,
        )
        bounds = [0, *cuts, len(table)]
        pieces = (table.slice(a, b - a) for a, b in pairwise(bounds))
        write_tables(pieces, tmp_path / "pieces")
        assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
        assert pq.read_metadata(tmp_path / "pieces").num_row_groups == -(-len(table) // 16)

    def test_as_many_rows_to_a_group_as_pyarrow_gives(self, tmp_path):
        pq.write_table(pa.table({"x": np.zeros(predictions._ROWS + 1)}), tmp_path / "file")
        metadata = pq.read_metadata(tmp_path / "file")
        assert metadata.row_group(0).num_rows == predictions._ROWS


class TestTrainedOn:
    """Which training sets go with which protocol; scored is small@1.2.0."""

    @pytest.mark.parametrize(
        ("protocol", "named"),
        [
            ("fit", None),
            ("fit", ["sim@1.0.0", "small@1.2.0"]),
            ("simulation", ["sim@1.0.0"]),
            ("simulation", ["more@2.0.0", "sim@1.0.0"]),
            ("transfer", ["real@1.0.0", "small@1.2.0"]),
            ("untrained", None),
            ("cv-cell", None),
        ],
    )
    def test_that_fits(self, ds, evaluator, scores, tmp_path, protocol, named):
        backwards = named and named[::-1]  # sorted when it is written
        path = write_predictions(
            tmp_path / "a.parquet",
            scores,
            ds,
            "test",
            method="mine",
            protocol=protocol,
            trained_on=backwards,
        )
        assert evaluator.check(path).problems == []
        stored = json.loads(pq.read_schema(path).metadata[KEY])["trained_on"]
        assert stored == named
        assert read_predictions(path)[1].trained_on == (named and tuple(named))

    @pytest.mark.parametrize(
        ("protocol", "named", "expected"),
        [
            ("fit", ["small@1.2.0"], "fit names small@1.2.0 with others"),
            ("fit", ["sim@1.0.0"], "fit names small@1.2.0 with others"),
            ("fit", [], "fit names small@1.2.0 with others"),
            ("simulation", None, "name their training datasets"),
            ("simulation", [], "name their training datasets"),
            ("simulation", ["sim@1.0.0", "small@1.2.0"], "simulation without small@1.2.0"),
            ("transfer", ["small@1.2.0"], "name their training datasets"),
            ("untrained", ["sim@1.0.0"], "untrained names none"),
            ("cv-cell", ["small@1.2.0"], "cv-cell names what stands beside the folds"),
            ("simulation", ["sim@1.0.0", "more@2.0.0"], "sort the names, each once"),
            ("simulation", ["sim@1.0.0", "sim@1.0.0"], "sort the names, each once"),
            ("simulation", 3, "unreadable metadata"),
        ],
    )
    def test_that_does_not(self, evaluator, good, protocol, named, expected):
        of_metadata(lambda m: m | {"protocol": protocol, "trained_on": named})(good)
        assert expected in complaints(evaluator, good)


class TestRoundTrip:
    def test_scores_come_back(self, good, scores):
        table, _, problems = read_predictions(good)
        assert problems == []
        pd.testing.assert_frame_equal(
            table.to_pandas().astype({"cell_id": object, "gene": object}),
            scores.astype({"cell_id": object, "gene": object}),
            check_dtype=False,
        )

    def test_origin_comes_back(self, ds, scores, tmp_path):
        path = tmp_path / "a.parquet"
        write_predictions(path, scores, ds, "test", method="mine", seed=3, protocol="cv-cell")
        assert read_predictions(path)[1] == Origin(
            "small", "1.2.0", "test", "mine", 3, "cv-cell", None, __version__
        )

    def test_the_schema_is_that_of_the_contract(self, good):
        assert pq.read_schema(good).equals(schema.predictions(PATTERNS))

    def test_the_metadata_is_json_of_the_keys_of_the_contract(self, good):
        found = json.loads(pq.read_schema(good).metadata[KEY])
        keys = "dataset version split method seed protocol trained_on package_version"
        assert set(found) == set(keys.split())

    def test_float64_is_stored_as_float32(self, ds, scores, tmp_path):
        wide = scores.astype(dict.fromkeys(PATTERNS, "float64"))
        path = write_predictions(tmp_path / "wide.parquet", wide, ds, "test", method="mine")
        assert read_predictions(path)[0]["nuclear"].type == pa.float32()

    def test_the_same_scores_give_the_same_bytes(self, ds, scores, good, tmp_path):
        again = write_predictions(tmp_path / "again.parquet", scores, ds, "test", method="mine")
        assert again.read_bytes() == good.read_bytes()

    def test_missing_folders_are_made(self, ds, scores, tmp_path):
        path = tmp_path / "a" / "b" / "c.parquet"
        assert write_predictions(path, scores, ds, "test", method="mine").is_file()

    def test_a_valid_file_has_neither_problems_nor_warnings(self, evaluator, good):
        checked = evaluator.check(good)
        assert (checked.problems, checked.warnings) == ([], [])
        assert checked.scores.shape == (len(evaluator.labels), 4)


@pytest.mark.parametrize("seed", range(5))
def test_any_row_order_gives_the_identical_result(evaluator, good, scores, tmp_path, ds, seed):
    shuffled = scores.sample(frac=1, random_state=seed)
    path = write_predictions(tmp_path / "other.parquet", shuffled, ds, "test", method="mine")
    assert path.read_bytes() != good.read_bytes()
    assert evaluator.eval(path) == evaluator.eval(good)


class TestCorpus:
    @pytest.mark.parametrize("name", CORPUS)
    def test_is_refused_in_words(self, evaluator, good, name):
        spoil, expected = CORPUS[name]
        spoil(good)
        text = complaints(evaluator, good)
        assert re.search(expected, text), text or "no problem was found"

    @pytest.mark.parametrize("name", ["missing pairs", "NaN", "truncated", "an unknown protocol"])
    def test_evaluating_it_raises_the_same_with_the_path(self, evaluator, good, name):
        spoil, _ = CORPUS[name]
        spoil(good)
        with pytest.raises(PredictionError) as caught:
            evaluator.eval(good)
        assert complaints(evaluator, good) in str(caught.value)
        assert str(good) in str(caught.value)

    @pytest.mark.parametrize(
        "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    )
    def test_other_encodings_of_text_are_fine(self, request, evaluator, good, kind):
        if kind == pa.string_view():
            request.getfixturevalue("views")
        before = evaluator.eval(good)
        for name in ("cell_id", "gene"):
            put(name, lambda c: pa.array(c.to_pylist(), kind))(good)
        assert evaluator.eval(good) == before

    def test_several_row_groups_are_fine(self, evaluator, good):
        before = evaluator.eval(good)
        pq.write_table(pq.read_table(good), good, row_group_size=7)
        assert evaluator.eval(good) == before

    def test_a_constant_column_is_a_warning(self, evaluator, good):
        put("nuclear", lambda c: pa.array(np.full(len(c), 0.25, np.float32)))(good)
        checked = evaluator.check(good)
        assert checked.problems == []
        assert checked.warnings == ["column nuclear is constant (0.25 for every pair)"]

    def test_examples_are_five_and_the_count(self, evaluator, good):
        value_at("nuclear", float("nan"))(good)
        of_table(lambda t: t[:-12])(good)
        text = complaints(evaluator, good)
        listed = text[text.index("12 pairs are missing: ") :]
        assert listed.split(";")[0].count("(") == 5
        assert " and 7 more; " in listed

    def test_missing_pairs_are_named_by_cell_and_gene_only(self, evaluator, good, scores):
        # A label in an error message would also be a leak.
        of_table(lambda t: t[1:])(good)
        row = scores.iloc[0]
        assert f"1 pair is missing: ({row['cell_id']}, {row['gene']}); " in complaints(
            evaluator, good
        )

    def test_one_score_is_named_by_cell_gene_and_value(self, evaluator, good, scores):
        value_at("nuclear", 1.5, row=3)(good)
        row = scores.iloc[3]
        assert f"({row['cell_id']}, {row['gene']}, 1.5)" in complaints(evaluator, good)

    def test_everything_wrong_is_said_at_once(self, evaluator, good):
        value_at("cell_edge", float("nan"), row=20)(good)
        value_at("cytoplasmic", 2.0, row=21)(good)
        cast("nuclear", pa.float64())(good)
        of_table(lambda t: pa.concat_tables([t[7:], t[7:8]]))(good)
        put("gene", lambda c: pa.array([*c.to_pylist()[:-2], "NOGENE", c[-1].as_py()]))(good)
        of_table(lambda t: t.drop_columns("nuclear_edge").append_column("more", t["nuclear"]))(good)
        of_metadata(lambda m: m | {"dataset": "x", "version": "x", "split": "val"})(good)
        text = complaints(evaluator, good)
        for expected in (
            "dataset = 'x'",
            "version = 'x'",
            "split = 'val'",
            "missing: nuclear_edge",
            "too many: more",
            "nuclear is float64",
            "cell_edge has 1 score",
            "cytoplasmic has 1 score",
            "8 pairs are missing",
            "not of this split",
            "given more than once",
        ):
            assert expected in text

    def test_a_repeated_id_and_a_bad_score_are_both_said(self, evaluator, good):
        value_at("nuclear", float("nan"))(good)
        of_table(lambda t: t.append_column("cell_id", t["cell_id"]))(good)
        text = complaints(evaluator, good)
        assert "more than once: cell_id" in text
        assert "nuclear has 1 score" in text

    @pytest.mark.slow
    def test_no_flipped_bytes_crash_the_reader(self, evaluator, good):
        data = good.read_bytes()
        rng = np.random.default_rng(1)
        for _ in range(400):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), size=rng.integers(1, 20)):
                broken[at] = rng.integers(0, 256)
            good.write_bytes(broken)
            complaints(evaluator, good)  # anything but a PredictionError fails the test


class TestWrite:
    SPOILT = {  # noqa: RUF012 - a table of cases
        "a missing row": (lambda f: f.iloc[1:], "1 pair is missing"),
        "a missing column": (lambda f: f.drop(columns="nuclear"), "1 column is missing: nuclear"),
        "no ids": (lambda f: f.drop(columns=["cell_id", "gene"]), "missing: cell_id, gene"),
        "an unknown pair": (
            lambda f: f.assign(gene=["NOGENE", *f["gene"][1:]]),
            "not of this split",
        ),
        "a repeated row": (lambda f: pd.concat([f, f.iloc[:1]]), "given more than once"),
        "NaN": (lambda f: f.assign(nuclear=np.nan), "NaN, null or infinite"),
        "out of range": (lambda f: f.assign(nuclear=2.0), r"outside \[0, 1\]"),
        "barely out of range": (lambda f: f.assign(nuclear=1 + 1e-9), r"outside \[0, 1\]"),
        "a score that is text": (lambda f: f.assign(nuclear="high"), "nuclear"),
        "a repeated column": (
            lambda f: pd.concat([f, f[["nuclear"]]], axis=1),
            "more than once: nuclear",
        ),
        "a null id": (
            lambda f: f.assign(cell_id=[None, *f["cell_id"][1:]]),
            "not of this split",
        ),
    }

    @pytest.mark.parametrize("name", SPOILT)
    def test_wrong_scores_are_refused_and_nothing_is_written(self, ds, scores, tmp_path, name):
        spoil, expected = self.SPOILT[name]
        with pytest.raises(PredictionError, match=expected):
            write_predictions(tmp_path / "x.parquet", spoil(scores), ds, "test", method="mine")
        assert list(tmp_path.iterdir()) == []

    def test_a_refused_file_leaves_the_old_one(self, ds, scores, good):
        before = good.read_bytes()
        with pytest.raises(PredictionError):
            write_predictions(good, scores.iloc[1:], ds, "test", method="mine")
        assert good.read_bytes() == before
        assert [path.name for path in good.parent.iterdir()] == [good.name]

    def test_what_is_written_is_always_valid(self, ds, scores, tmp_path):
        # So a protocol that validation refuses must be refused here too.
        with pytest.raises(GPatternBenchError, match="protocol"):
            write_predictions(
                tmp_path / "x.parquet", scores, ds, "test", method="mine", protocol="magic"
            )
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_split_names_those_there_are(self, ds, scores, tmp_path):
        with pytest.raises(GPatternBenchError, match="no split 'tset'; it has train, val, test"):
            write_predictions(tmp_path / "x.parquet", scores, ds, "tset", method="mine")

    def test_categorical_ids_are_fine(self, ds, scores, tmp_path, evaluator, good):
        coded = scores.astype({"cell_id": "category", "gene": "category"})
        path = write_predictions(tmp_path / "x.parquet", coded, ds, "test", method="mine")
        assert evaluator.eval(path) == evaluator.eval(good)

    def test_the_origin_says_who_wrote_it(self, good):
        assert asdict(read_predictions(good)[1])["package_version"] == __version__
