"""Calls by val thresholds, and models that are used on other data."""

from __future__ import annotations

import json
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from samples import dataset_of

from gpattern_bench import Evaluator
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MethodError, PredictionError
from gpattern_bench.evaluate.calls import (
    call_patterns,
    summarise_genes,
    val_thresholds,
    write_calls,
)
from gpattern_bench.methods import METHODS
from gpattern_bench.methods.base import Network
from gpattern_bench.runs.run import run_method
from gpattern_bench.runs.saved_model import load_model, predict_tables
from gpattern_bench.sources.recipe import Recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    release = simulate(7, n_fovs=12, cells_per_fov=3, n_genes=12, mean_molecules=80)
    return dataset_of(tmp_path_factory.mktemp("small"), release)


@pytest.fixture(scope="module")
def runs(ds: Dataset, brief_training: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in METHODS:
        run_method(name, ds, folder / name)
    return folder


def test_calls_at_val_thresholds_score_what_the_evaluator_says(ds: Dataset, runs: Path) -> None:
    test, val = (runs / "gene_prior/small" / f"{s}-seed0.parquet" for s in ("test", "val"))
    calls = call_patterns(pq.read_table(test).to_pandas(), val_thresholds(ds, val))
    result = Evaluator(ds).eval(test, val, replicates=0)
    truth = ds.labels("test").astype({"cell_id": str, "gene": str})
    both = truth.merge(calls, on=["cell_id", "gene"], suffixes=("", "_call"))
    for pattern in ds.patterns:
        agree = (both[pattern] == both[f"{pattern}_call"]).mean()
        assert agree == pytest.approx(result.per_pattern[pattern]["acc_val"], abs=1e-12)


def test_a_pattern_of_constant_scores_is_never_called(ds: Dataset, runs: Path) -> None:
    thresholds = val_thresholds(ds, runs / "sprawl/small/val-seed0.parquet")
    assert np.isnan(thresholds["nuclear_edge"])
    calls = call_patterns(
        pq.read_table(runs / "sprawl/small/test-seed0.parquet").to_pandas(), thresholds
    )
    assert not calls["nuclear_edge"].any()
    assert calls["nuclear"].any()


def test_thresholds_need_predictions_of_val(ds: Dataset, runs: Path) -> None:
    with pytest.raises(PredictionError, match="split = 'test', expected 'val'"):
        val_thresholds(ds, runs / "sprawl/small/test-seed0.parquet")


def test_genes_are_summed_up_with_wilson_intervals() -> None:
    calls = pd.DataFrame({"cell_id": list("abcd"), "gene": list("XXXY"), "p": [1, 1, 0, 0]})
    calls = calls.astype({"p": bool})
    table = summarise_genes([calls[:1], calls[1:2], calls[2:]]).set_index("gene")
    assert table["cells"].tolist() == [3, 1]
    assert table.loc["X", "p"] == pytest.approx(2 / 3)
    # Wilson's interval of 2 of 3, and of 0 of 1, by hand
    assert table.loc["X", ["p_low", "p_high"]].tolist() == pytest.approx(
        [0.20766, 0.93851], abs=1e-5
    )
    assert table.loc["Y", ["p_low", "p_high"]].tolist() == pytest.approx([0, 0.79345], abs=1e-5)


def test_calls_are_written_with_their_thresholds_and_genes(tmp_path: Path) -> None:
    scores = pd.DataFrame({"cell_id": ["a"], "gene": ["X"], "p": [0.7], "q": [0.2]})
    scores.to_parquet(tmp_path / "scores.parquet")
    table, genes = write_calls(
        tmp_path / "scores.parquet", {"p": 0.5, "q": nan}, tmp_path / "x.parquet"
    )
    note = json.loads(pq.read_schema(table).metadata[b"gpattern_bench"])
    assert note == {"thresholds": {"p": 0.5, "q": None}}
    assert pd.read_csv(genes)["p"].tolist() == [1.0]


def test_a_pattern_that_nearly_every_pair_has_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"c{k}" for k in range(100)]
    scores = pd.DataFrame({"cell_id": names, "gene": ["X"] * 20 + ["Y"] * 80})
    scores["most"] = np.arange(100) / 100
    scores["many"] = scores["most"]
    scores["none"] = 0.5
    scores.to_parquet(tmp_path / "scores.parquet")
    thresholds = {"most": 0.04, "many": 0.05, "none": nan}
    write_calls(tmp_path / "scores.parquet", thresholds, tmp_path / "x.parquet")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "x.parquet: most is called for 96.0 % of the pairs" in record.getMessage()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "oracle"])
def test_a_model_scores_as_the_run_that_left_it(
    ds: Dataset, runs: Path, tmp_path: Path, name: str
) -> None:
    folder = runs / name / "small"
    method, model = load_model(folder / "model-seed0")
    path = predict_tables(method, model, ds, tmp_path / "scores.parquet")
    everything = pd.read_parquet(path).set_index(["cell_id", "gene"])
    assert len(everything) == ds.counts["pairs"]
    written = pq.read_table(folder / "test-seed0.parquet").to_pandas()
    written = written.set_index(["cell_id", "gene"])
    scores = everything.loc[written.index]
    if name == "molecule_count":  # over the largest count of the cells that are scored
        scores = scores * (written.max() / scores.max())
        assert np.allclose(scores, written)
    elif isinstance(method, Network):  # a run scores cells one by one
        assert np.allclose(scores, written, atol=1e-5)
    else:
        assert scores.equals(written)


def test_a_model_says_what_it_was_fitted_on_and_its_thresholds(ds: Dataset, runs: Path) -> None:
    folder = runs / "gene_prior/small"
    _, model = load_model(folder / "model-seed0")
    assert model.fitted_on == ("small@1.0.0",)
    assert model.thresholds == val_thresholds(ds, folder / "val-seed0.parquet")


def test_another_panel_without_labels(runs: Path, tmp_path: Path) -> None:
    release = simulate(5, n_fovs=2, cells_per_fov=3, n_genes=60)
    recipe = Recipe(format="simulated", patterns=PATTERNS, split="test")
    tables = apply_rules(type(release)(release.molecules, release.cells), recipe)
    folder = write_dataset([tables], tmp_path / "own", name="own", version="1.0.0", recipe=recipe)
    method, model = load_model(runs / "gene_prior/small/model-seed0")
    path = predict_tables(method, model, Dataset(folder), tmp_path / "scores.parquet")
    scores = pd.read_parquet(path)
    unseen = scores[scores["gene"] == "G60"][list(PATTERNS)]
    prevalence = load_model(runs / "prevalence/small/model-seed0")[0]._share
    assert np.allclose(unseen, np.float32(prevalence))


def test_other_patterns_are_refused(runs: Path, tmp_path: Path) -> None:
    release = simulate(5, n_fovs=1, cells_per_fov=3)
    recipe = Recipe(format="simulated", patterns=("nuclear",), split="test", patternless="keep")
    folder = write_dataset(
        [apply_rules(release, recipe)], tmp_path / "own", name="own", version="1.0.0", recipe=recipe
    )
    method, model = load_model(runs / "sprawl/small/model-seed0")
    with pytest.raises(MethodError, match="curate them with --patterns cell_edge,cytoplasmic"):
        predict_tables(method, model, Dataset(folder), tmp_path / "scores.parquet")
    assert not (tmp_path / "scores.parquet").exists()


@pytest.mark.parametrize("spoil", ["absent", "no json", "no state", "unknown method"])
def test_what_is_no_model_is_refused(runs: Path, tmp_path: Path, spoil: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    text = (runs / "gene_prior/small/model-seed0/model.json").read_text()
    if spoil != "absent":
        text = text[:20] if spoil == "no json" else text
        text = text.replace("gene_prior", "nope") if spoil == "unknown method" else text
        (folder / "model.json").write_text(text)
    error = "no method named 'nope'" if spoil == "unknown method" else "no readable model"
    with pytest.raises(Exception, match=error):
        load_model(folder)
