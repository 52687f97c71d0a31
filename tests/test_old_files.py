"""Files that versions before the rooms wrote still load, and give the same scores.

`files/runs_of_2026_11` was written by commit 1d95d5f: small models of `simulate(7, n_fovs=12,
cells_per_fov=3, n_genes=10, mean_molecules=60)`, and their scores of its test split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from samples import dataset_of

from gpattern_bench import Evaluator
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.predictions import counted, read_predictions
from gpattern_bench.runs.saved_model import load_model

FILES = Path(__file__).parent / "files" / "runs_of_2026_11"
METHODS = ("bento", "boosted", "gene_prior", "gpsnet")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    release = simulate(7, n_fovs=12, cells_per_fov=3, n_genes=10, mean_molecules=60)
    return dataset_of(tmp_path_factory.mktemp("data") / "small", release)


@pytest.mark.parametrize("name", METHODS)
def test_old_predictions_are_valid(dataset, name):
    assert Evaluator(dataset).check(FILES / name / "test-seed0.parquet").problems == []


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_old_models_give_their_old_scores(dataset, name):
    method, about = load_model(FILES / name / "model-seed0")
    assert (about.method, about.fitted_on) == (name, "small@1.0.0")
    scores = predict_cells(method, dataset.iter_cells("test"))
    new = counted(scores, dataset.pairs("test"))
    old = read_predictions(FILES / name / "test-seed0.parquet")[0].to_pandas()
    assert (new[["cell_id", "gene"]].to_numpy() == old[["cell_id", "gene"]].to_numpy()).all()
    patterns = list(dataset.patterns)
    np.testing.assert_allclose(new[patterns], old[patterns], atol=2e-6)
