"""Files that versions before the rooms wrote still load, and give the same scores.

`files/runs_of_2026_11` was written by commit 1d95d5f: small models of `simulate(7, n_fovs=12,
cells_per_fov=3, n_genes=10, mean_molecules=60)`, and their scores of its test split.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter
from samples import dataset_of

from gpattern_bench import Evaluator
from gpattern_bench.board.submission import results_text
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.predictions import counted, read_origin, read_predictions
from gpattern_bench.runs.run import Run
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


def test_one_training_set_as_text_is_a_list_of_one(dataset, tmp_path):
    # As all files before December 2026 name it: in a prediction file, a report and a result.
    old = pq.read_table(FILES / "bento" / "test-seed0.parquet")
    note = json.loads(old.schema.metadata[b"gpattern_bench"])
    note |= {"protocol": "simulation", "trained_on": "synthetic@1.0.0"}
    path = tmp_path / "old.parquet"
    pq.write_table(old.replace_schema_metadata({b"gpattern_bench": json.dumps(note)}), path)
    checked = Evaluator(dataset).check(path)
    origin = read_origin(path)
    assert checked.problems == []
    assert origin.trained_on == ("synthetic@1.0.0",)
    assert origin.stem() == "test-seed0-simulation-synthetic"
    submissions = Path(__file__).parents[1] / "submissions"
    report = submissions / "bento/predictions/u2os_gold/run-seed0-simulation-synthetic.json"
    run = json.loads(report.read_bytes()) | {"trained_on": "synthetic@1.0.0"}
    assert TypeAdapter(Run).validate_python(run).trained_on == ("synthetic@1.0.0",)
    result = json.loads((submissions / "bento/results.json").read_bytes())[0]
    result["trained_on"] = "synthetic@1.0.0"
    assert '"trained_on": [\n   "synthetic@1.0.0"\n  ]' in results_text([result])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_old_models_give_their_old_scores(dataset, name):
    method, about = load_model(FILES / name / "model-seed0")
    assert (about.method, about.fitted_on) == (name, ("small@1.0.0",))
    scores = predict_cells(method, dataset.iter_cells("test"))
    new = counted(scores, dataset.pairs("test"))
    old = read_predictions(FILES / name / "test-seed0.parquet")[0].to_pandas()
    assert (new[["cell_id", "gene"]].to_numpy() == old[["cell_id", "gene"]].to_numpy()).all()
    patterns = list(dataset.patterns)
    np.testing.assert_allclose(new[patterns], old[patterns], atol=2e-6)
