"""`call`: from a source to an answer, whole, resumable, and never of two things at once."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from exports import CELLS as OUTLINES
from exports import (
    DETECTED,
    FLAT,
    INSIDE,
    detected,
    transcripts,
    vertices,
    write_cosmx,
    write_merscope,
    write_xenium,
)
from samples import small_dataset

from gpattern_bench import call
from gpattern_bench.answers import call as module
from gpattern_bench.answers.answer import read_answer
from gpattern_bench.answers.card import read_card
from gpattern_bench.answers.differential import differential
from gpattern_bench.answers.scope import Scope
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, MethodError, SourceError, UnknownDatasetError
from gpattern_bench.evaluate.calibration import calibrate
from gpattern_bench.evaluate.quantify import estimate_shares
from gpattern_bench.predictions import check_file
from gpattern_bench.runs import shards
from gpattern_bench.runs.pretrained import PRETRAINED
from gpattern_bench.runs.run import run_method
from gpattern_bench.runs.saved_model import Model, load_model, predict_tables, save_model

FOUR = "gpsnet-four-patterns"
FILES = [
    "answer.json",
    "cells.parquet",
    "genes.csv",
    "pairs.parquet",
    "report.html",
    "scores.parquet",
]


@pytest.fixture(scope="module", autouse=True)
def small_parts():
    """Cut tables into parts of few molecules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "MOLECULES", 300)
        yield


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("tables"), "bare", labels=False, seed=8)


@pytest.fixture(scope="module")
def answer(bare, tmp_path_factory):
    return call(bare, tmp_path_factory.mktemp("one") / "answer", jobs=1)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A saved model of one's own, without a card."""
    folder = tmp_path_factory.mktemp("prior")
    run_method("gene_prior", small_dataset(folder, "own"), folder / "runs")
    return folder / "runs/own/model-seed0"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestTheAnswer:
    def test_holds_these_files_and_no_others(self, answer):
        assert sorted(path.name for path in answer.folder.iterdir()) == FILES
        assert not list(answer.folder.parent.glob(".answer*"))

    def test_scores_are_those_of_predict(self, answer, bare, tmp_path):
        path = predict_tables(*load_model(FOUR), bare, tmp_path / "scores.parquet")
        expected, got = (
            pd.read_parquet(one).sort_values(["cell_id", "gene"], ignore_index=True)
            for one in (path, answer.folder / "scores.parquet")
        )
        pd.testing.assert_frame_equal(got, expected, atol=1e-5, rtol=0)
        assert check_file(answer.folder / "scores.parquet", bare).problems == []

    def test_every_pair_has_its_molecules_probability_and_call(self, answer, bare):
        card = read_card(PRETRAINED / FOUR)
        pairs = answer.pairs()
        table = pq.read_schema(answer.folder / "pairs.parquet")
        assert table.field("n_molecules").type == pa.int32()
        assert table.field("cell_id").type == table.field("gene").type == pa.string()
        molecules = bare.molecules().to_pandas()
        counts = molecules.groupby(["cell_id", "gene"], observed=True).size()
        assert pairs.set_index(["cell_id", "gene"])["n_molecules"].to_dict() == counts.to_dict()
        scores = pd.read_parquet(answer.folder / "scores.parquet")
        keys = ["cell_id", "gene"]
        assert scores[keys].equals(pairs[keys])
        values = scores[list(answer.patterns)].to_numpy()
        chances = calibrate(values, answer.patterns, card.calibration)
        few = (pairs["n_molecules"] < card.min_molecules).to_numpy()
        assert 0 < few.sum() < len(few) or card.min_molecules == 1
        for k, pattern in enumerate(answer.patterns):
            assert table.field(pattern).type == pa.bool_()
            assert pairs[f"{pattern}_probability"].dtype == np.float32
            np.testing.assert_array_equal(pairs[f"{pattern}_probability"], chances[:, k])
            assert pairs[pattern].isna().equals(pd.Series(few, name=pattern))
            expected = values[:, k] >= np.float32(card.thresholds[pattern])
            assert pairs[pattern][~few].tolist() == expected[~few].tolist()

    def test_genes_sum_up_the_called_pairs(self, answer):
        pairs, genes = answer.pairs(), answer.genes().set_index("gene")
        assert genes.index.tolist() == sorted(pairs["gene"].unique())
        for gene, rows in pairs.groupby("gene"):
            of = genes.loc[gene]
            called = rows[rows["nuclear"].notna()]
            assert (of["cells"], of["called"]) == (len(rows), len(called))
            assert of["not_called"] == len(rows) - len(called)
            told = of[["nuclear", "nuclear_probability", "nuclear_low", "nuclear_high"]]
            if not len(called):
                assert told.isna().all()
                continue
            share, mean, low, high = told
            assert share == pytest.approx(called["nuclear"].mean(), abs=1e-6)
            assert mean == pytest.approx(called["nuclear_probability"].mean(), abs=1e-5)
            assert low <= share <= high

    def test_shares_are_estimated_from_all_pairs(self, answer):
        pairs, genes = answer.pairs(), answer.genes()
        names = {f"{pattern}_probability": pattern for pattern in answer.patterns}
        chances = pairs[["gene", *names]].rename(columns=names)
        prevalence = {name: of["prevalence"] for name, of in answer.record["rates"].items()}
        expected = estimate_shares([chances], prevalence)
        for pattern in answer.patterns:
            for end in ("", "_low", "_high"):
                found = genes[f"{pattern}_estimate{end}"]
                np.testing.assert_allclose(found, expected[f"{pattern}{end}"], atol=1e-6)

    def test_cells_tell_their_size_and_whether_the_model_has_seen_such(self, answer, bare):
        cells = answer.cells().set_index("cell_id")
        source = bare.cells().set_index("cell_id")
        assert cells.index.tolist() == source.index.tolist()
        areas = shapely.area(source["cell_boundary"].to_numpy())
        np.testing.assert_allclose(cells["area_um2"], areas, rtol=1e-5)
        for name in ("n_molecules", "n_genes", "fov"):
            assert cells[name].tolist() == source[name].tolist()
        assert (cells["in_scope"] == (cells["out_of_scope"] == "")).all()
        few = cells["n_molecules"] < read_card(PRETRAINED / FOUR).scope.n_molecules[0]
        assert cells["out_of_scope"].str.contains("fewer molecules").equals(few)
        scope = answer.record["scope"]
        assert scope["out_of_scope"] == (~cells["in_scope"]).sum() > 0
        assert any("have fewer than" in text for text in answer.warnings)

    def test_says_what_was_done(self, answer, bare):
        record = answer.record
        assert record["dataset"] == bare.id
        assert record["tables"] == str(bare.folder)
        assert record["model"]["name"] == FOUR
        assert record["seed"] == 0
        counts = record["counts"]
        assert counts["pairs"] == counts["called"] + counts["not_called"] == len(answer.pairs())
        assert counts["molecules"] == bare.counts["molecules"]
        pairs = answer.pairs()
        right = pairs.loc[pairs["nuclear"].fillna(False), "nuclear_probability"]
        assert counts["of_pattern"]["nuclear"] == len(right) > 0
        assert record["expected_wrong"]["nuclear"] == pytest.approx(1 - right.mean(), abs=1e-6)
        told = [
            text.partition(":")[0] for text in answer.warnings if "expected to be wrong" in text
        ]
        assert told == [name for name, share in record["expected_wrong"].items() if share > 0.5]
        assert json.loads(json.dumps(record)) == record
        assert answer.dataset.id == bare.id
        assert repr(answer).startswith("<Answer bare@1.2.0 by gpsnet-four-patterns: 36 cells")


class TestAgain:
    def test_a_finished_answer_is_not_made_again(self, answer, bare, monkeypatch):
        monkeypatch.setattr(module, "score_cells", None)
        before = contents(answer.folder)
        assert call(bare, answer.folder, jobs=1).record == answer.record
        assert contents(answer.folder) == before

    def test_goes_on_where_it_was_and_gives_the_same(self, answer, bare, tmp_path, monkeypatch):
        real, scored = module.score_cells, []

        def dies(*task):
            if len(scored) == 2:
                raise KeyboardInterrupt
            scored.append(task)
            real(*task)

        monkeypatch.setattr(module, "score_cells", dies)
        folder = tmp_path / "answer"
        with pytest.raises(KeyboardInterrupt):
            call(bare, folder, jobs=1)
        with pytest.raises(GPatternBenchError, match="holds no finished answer"):
            read_answer(folder)
        first = [path.name for _, _, _, path in scored]
        scored.clear()
        monkeypatch.setattr(module, "score_cells", lambda *task: (scored.append(task), real(*task)))
        call(bare, folder, jobs=1)
        assert not {path.name for _, _, _, path in scored} & set(first)
        assert contents(folder) == contents(answer.folder)

    def test_another_model_takes_nothing_of_what_was_scored(self, bare, prior, tmp_path, answer):
        folder = tmp_path / "answer"
        request = answer.record["request"]
        half = folder / "scores-0123456789ab"
        half.mkdir(parents=True)
        (half / "all-00000-0.parquet").write_bytes(b"of another model")
        (folder / "begun.json").write_text(json.dumps(request))
        found = call(bare, folder, model=prior, jobs=1)
        assert found.record["model"]["method"] == "gene_prior"
        assert sorted(path.name for path in folder.iterdir()) == FILES

    @pytest.mark.parametrize("other", ["model", "source"])
    def test_an_answer_to_something_else_stays(self, answer, bare, prior, tmp_path, other):
        before = contents(answer.folder)
        given = {"source": bare, "model": prior} if other == "model" else {
            "source": small_dataset(tmp_path, "bare", labels=False, seed=9)
        }  # fmt: skip
        with pytest.raises(GPatternBenchError, match=f"of another {other}.* give another --out"):
            call(out=answer.folder, jobs=1, **given)
        assert contents(answer.folder) == before

    def test_a_begun_answer_of_another_source_stays(self, bare, tmp_path):
        (tmp_path / "begun.json").write_text(json.dumps({"source": {"format": "cosmx"}}))
        with pytest.raises(GPatternBenchError, match=r"another source \(.*format\)"):
            call(bare, tmp_path, jobs=1)

    def test_a_folder_of_other_files_stays(self, bare, tmp_path):
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(GPatternBenchError, match="holds other files and no answer"):
            call(bare, tmp_path, jobs=1)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_file_cut_off_since_is_told_and_made_again(self, answer, bare, tmp_path):
        folder = tmp_path / "answer"
        shutil.copytree(answer.folder, folder)
        (folder / "pairs.parquet").write_bytes(b"PAR1")
        with pytest.raises(GPatternBenchError, match=r"pairs\.parquet changed since"):
            read_answer(folder)
        call(bare, folder, jobs=1)
        assert contents(folder) == contents(answer.folder)

    @pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000, '{"request": "me"}'])
    def test_a_record_that_says_nothing_is_told(self, bare, tmp_path, text):
        for name in ("begun.json", "answer.json"):
            (tmp_path / name).write_text(text)
            with pytest.raises(GPatternBenchError, match=rf"{name} cannot be read \("):
                call(bare, tmp_path, jobs=1)
        with pytest.raises(GPatternBenchError, match="holds no finished answer"):
            read_answer(tmp_path)

    @pytest.mark.parametrize("part", ["counts", "patterns", "files"])
    def test_a_record_that_lacks_a_part_is_made_again(self, answer, bare, tmp_path, part):
        folder = tmp_path / "answer"
        shutil.copytree(answer.folder, folder)
        record = {key: value for key, value in answer.record.items() if key != part}
        (folder / "answer.json").write_text(json.dumps(record))
        with pytest.raises(GPatternBenchError, match=f"no finished answer \\({part}: "):
            read_answer(folder)
        call(bare, folder, jobs=1)
        assert contents(folder) == contents(answer.folder)

    def test_while_it_is_made_again_it_is_not_finished(self, answer, bare, tmp_path, monkeypatch):
        folder = tmp_path / "answer"
        shutil.copytree(answer.folder, folder)
        (folder / "pairs.parquet").write_bytes(b"PAR1")

        def stopped(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_genes", stopped)  # after the pairs, before the cells
            with pytest.raises(KeyboardInterrupt):
                call(bare, folder, jobs=1)
        cells = answer.cells().assign(condition=lambda table: table["fov"])
        for read in (read_answer, lambda at: differential(at, cells, "condition")):
            with pytest.raises(GPatternBenchError, match="no finished answer"):
                read(folder)

    def test_of_a_source_that_cannot_be_read_nothing_stays(self, tmp_path):
        table = tmp_path / "molecules.csv"
        table.write_text("cell_id,gene,x,y\n" + "".join(f"1,A,{k},{k * k}\n" for k in range(9)))
        out = tmp_path / "answer"
        with pytest.raises(SourceError, match=r"--surrogate-outlines"):
            call(table, out, unit_um=1, jobs=1)
        assert not out.exists()
        other = tmp_path / "other.csv"
        other.write_text(table.read_text().replace("x", "X"))
        with pytest.raises(
            SourceError, match=r"has no --x: curate first \(.* curate table \.\.\. "
        ):
            call(other, out, unit_um=1, surrogate_outlines=True, jobs=1)
        assert call(table, out, unit_um=1, surrogate_outlines=True, jobs=1).folder == out


class TestModels:
    def test_a_model_without_a_card_calls_at_its_thresholds(self, bare, prior, caplog):
        found = call(bare, model=prior, jobs=1)
        assert any("has no card" in text for text in found.warnings)
        assert found.record["calibration"] is found.record["expected_wrong"] is None
        assert found.record["counts"]["not_called"] == 0
        pairs, scores = found.pairs(), pd.read_parquet(found.folder / "scores.parquet")
        assert pairs["nuclear_probability"].equals(scores["nuclear"].rename("nuclear_probability"))
        assert found.cells()["in_scope"].all()

    def test_a_model_without_thresholds_makes_no_calls(self, bare, prior, tmp_path):
        method, model = load_model(prior)
        blunt = Model(model.method, model.patterns, model.fitted_on, None, model.seed)
        save_model(method, blunt, tmp_path / "blunt")
        with pytest.raises(MethodError, match="has no thresholds for calls"):
            call(bare, model=tmp_path / "blunt", jobs=1)

    def test_a_pattern_without_a_threshold_is_not_called(self, bare, prior, tmp_path):
        method, model = load_model(prior)
        at = {name: None if name == "nuclear" else 0.3 for name in model.patterns}
        some = Model(model.method, model.patterns, model.fitted_on, at, model.seed)
        save_model(method, some, tmp_path / "some")
        found = call(bare, model=tmp_path / "some", jobs=1)
        assert found.pairs()["nuclear"].isna().all()
        assert found.pairs()["cytoplasmic"].notna().all()
        assert found.genes()[["nuclear", "nuclear_low"]].isna().all(axis=None)
        assert found.record["not_called"].startswith("nuclear, of which the model has no threshold")

    def test_no_model_is_for_these_patterns(self, tmp_path):
        molecules = pd.DataFrame({"x": [1.0], "y": [1.0], "gene": ["A"], "cell_id": ["1"]})
        cells = pd.Series([shapely.box(0, 0, 5, 5)], index=["1"])
        ds = Dataset.from_frames(molecules, cells, patterns=["perinuclear"])
        with pytest.raises(MethodError, match="no model of the package is for the patterns perin"):
            call(ds, jobs=1)
        # a model that is named scores what it knows
        assert call(ds, model=FOUR, jobs=1).patterns[0] == "cell_edge"


class TestNames:
    def test_ids_and_genes_stay_text(self, tmp_path):
        rows = [("007", "NA"), ("007", "=1+1"), ("7", "NA"), ("7", "1e3")]
        molecules = pd.DataFrame(rows, columns=["cell_id", "gene"]).assign(x=[1, 2, 11, 12], y=1)
        cells = pd.Series([shapely.box(0, 0, 5, 5), shapely.box(10, 0, 15, 5)], index=["007", "7"])
        found = call(Dataset.from_frames(molecules, cells), tmp_path / "answer", jobs=1)
        pairs = found.pairs()
        assert set(zip(pairs["cell_id"], pairs["gene"], strict=True)) == set(rows)
        assert found.genes()["gene"].tolist() == ["1e3", "=1+1", "NA"]  # as in the pairs
        assert "\n'=1+1," in (found.folder / "genes.csv").read_text()  # no spreadsheet runs it
        assert found.cells()["cell_id"].tolist() == ["007", "7"]


class TestSources:
    def test_of_each_format_the_tables_are_made_in_the_answer(self, tmp_path, command):
        outs = write_xenium(tmp_path / "outs", transcripts(INSIDE), vertices(OUTLINES.items()))
        region = write_merscope(tmp_path / "region", detected(DETECTED), FLAT)
        cosmx = write_cosmx(tmp_path / "flat")
        table = tmp_path / "spots.csv"
        table.write_text("x,y,gene,cell_id\n1,1,A,1\n2,1,A,1\n1,3,B,1\n")
        unit, drawn = ["--unit-um", 1], ["--surrogate-outlines"]
        for source, options, patterns in (
            (outs, [], 4), (region, [], 4), (cosmx, unit, 3), (table, [*unit, *drawn], 4),
        ):  # fmt: skip
            out = tmp_path / f"{source.name}-answer"
            code, told, err = command("call", source, "--out", out, "--jobs", 1, *options)
            assert code == 0, err
            found = read_answer(out)
            assert told.startswith(f"<Answer {out.name}@0.0.0 by gpsnet-")
            assert found.dataset.folder == out / "tables"
            assert len(found.patterns) == patterns
            assert len(found.cells()) == found.dataset.counts["cells"]

    def test_curated_tables_are_kept_until_the_source_changes(self, tmp_path, monkeypatch):
        outs = write_xenium(tmp_path / "outs", transcripts(INSIDE), vertices(OUTLINES.items()))
        with monkeypatch.context() as patch:
            patch.setattr(module, "score_cells", lambda *task: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                call(outs, tmp_path / "answer", jobs=1)
        with monkeypatch.context() as patch:
            patch.setattr(module, "curate", None)
            call(outs, tmp_path / "answer", jobs=1)
        with pytest.raises(GPatternBenchError, match="lies in the source"):
            call(outs, outs / "answer", jobs=1)
        (outs / "nucleus_boundaries.csv.gz").write_bytes(b"")
        with pytest.raises(GPatternBenchError, match=r"another source .*files that are new"):
            call(outs, tmp_path / "answer", jobs=1)

    def test_what_is_asked_of_must_be_there_and_be_told(self, tmp_path, bare):
        (tmp_path / "notes.docx").touch()
        table = tmp_path / "molecules.csv"
        table.touch()
        (tmp_path / "both").mkdir()
        (tmp_path / "both" / "detected_transcripts.csv").touch()
        (tmp_path / "both" / "S1_tx_file.csv").touch()
        for source, options, error, text in (
            ("nowhere", {}, UnknownDatasetError, "nowhere"),
            (tmp_path / "notes.docx", {}, SourceError, "no format that is read.*xenium: a folder"),
            (tmp_path / "both", {}, SourceError, "looks like merscope and cosmx: give one"),
            (tmp_path / "both", {"form": "zarr"}, SourceError, "--format: expected one of xenium"),
            (tmp_path / "both", {"form": "cosmx"}, SourceError, "does not state its unit: give"),
            (table, {"unit_um": 0}, SourceError, "--unit-um: Input should be greater than 0"),
            (tmp_path / "both", {"form": "merscope", "unit_um": 1}, SourceError, "--unit-um is no"),
            (bare, {"unit_um": 1.0}, SourceError, "--unit-um is not for tables"),
            (5, {}, SourceError, "expected a dataset, its name.*got a int"),
            (bare, {"jobs": 0}, GPatternBenchError, "jobs: expected at least 1"),
        ):
            with pytest.raises(error, match=text):
                call(source, tmp_path / "answer", **{"jobs": 1, **options})
        assert not (tmp_path / "answer").exists()


class TestScope:
    SCOPE = Scope((50.0, 400.0), (20.0, 900.0), 0.0)

    def test_says_of_each_cell_why_it_is_unlike_those_seen(self):
        cells = pd.DataFrame(
            {
                "area_um2": [49.0, 50.0, 401.0, 100.0],
                "n_molecules": [19, 20, 901, 100],
                "has_nucleus": [True, True, True, False],
            }
        )
        assert self.SCOPE.reasons(cells).tolist() == [
            "smaller; fewer molecules", "", "larger; more molecules", "no nucleus",
        ]  # fmt: skip

    def test_says_of_all_what_more_than_a_tenth_are(self):
        counts = {"cells": 100, "without_nucleus": 11, "smaller": 11, "larger": 10}
        assert self.SCOPE.warnings(counts | {"no nucleus": 11}) == [
            "11% of the cells are smaller than 50 um2: is the unit right?",
            "11% of the cells have no nucleus, and the model has seen no such cell",
        ]
        some = Scope((50.0, 400.0), (20.0, 900.0), 0.2)
        assert some.warnings({"cells": 100, "without_nucleus": 30}) == []
        [text] = some.warnings({"cells": 100, "without_nucleus": 31})
        assert text.startswith("31% of the cells have no nucleus, 20% of the training cells")
