"""The context of other genes: scores without a cell's own pairs, and what is near a molecule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from samples import dataset_of

from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.cells import Cell
from gpattern_bench.methods import get_method
from gpattern_bench.methods.context import GeneScores, context_columns, context_fields

PATTERNS = ("membrane", "nuclear")


def cell(xy, gene, labels=None):
    gene = np.array(gene, np.int32)
    made = Cell("c", "f", np.array(xy, float), gene, shapely.box(-10, -10, 10, 10), None)
    if labels is None:
        return made
    return replace(made, labels=np.array(labels, bool), labelled=np.ones(len(labels), bool))


def test_scores_are_shrunken_log_odds_less_those_of_all_pairs():
    counts = GeneScores(("a", "b"), PATTERNS, np.array([[30.0, 0], [10, 20]]), np.array([40.0, 40]))
    share = np.array([40.5, 20.5]) / 81
    mean = (np.array([[30, 0], [10, 20]]) + 10 * share) / 50
    expected = np.log(mean / (1 - mean)) - np.log(share / (1 - share))
    assert counts.scores() == pytest.approx(expected)
    own = cell([[0, 0], [1, 0]], [0, 1], [[1, 0], [0, 1]])
    less = GeneScores(("a", "b"), PATTERNS, np.array([[29.0, 0], [10, 19]]), np.array([39.0, 39]))
    assert counts.scores(without=own) == pytest.approx(less.scores())


def test_genes_that_were_never_labelled_score_0():
    counts = GeneScores(("a", "b"), PATTERNS, np.array([[30.0, 0], [10, 20]]), np.array([40.0, 40]))
    other = counts.of_panel(["c", "b"])
    assert other.scores()[0] == pytest.approx([0, 0])
    assert other.labelled.tolist() == [0, 40]
    again = GeneScores.from_dict(counts.to_dict())
    assert (again.genes, again.patterns) == (counts.genes, PATTERNS)
    assert again.scores() == pytest.approx(counts.scores())


def test_surroundings_are_those_of_other_genes():
    scores = np.array([[0.0, 0.0], [1.5, -2.0], [0.5, 4.0]])
    given = cell([[0, 0], [0.1, 0], [3, 4], [0, 1]], [0, 0, 1, 2])
    found = dict(zip(context_columns(PATTERNS), context_fields(given, scores).T, strict=True))
    near, far = np.exp(-1 / 2), np.exp(-25 / 2)
    assert found["density_1um"][0] == pytest.approx(np.log(near + far + 0.1) / 2)
    assert found["nuclear_near_1um"][0] == pytest.approx(
        (4 * near - 2 * far) / (near + far + 1), abs=1e-6
    )
    wide = [np.exp(-1 / 32), np.exp(-25 / 32)]
    assert found["membrane_near_4um"][0] == pytest.approx(
        (0.5 * wide[0] + 1.5 * wide[1]) / (sum(wide) + 1), abs=1e-6
    )
    size = np.sqrt(400 / np.pi)
    assert found["from_nuclear_centroid"][0] == pytest.approx(1 / size)  # gene 2 alone is nuclear
    assert found["from_nuclear_centroid"][3] == 0  # no other gene is
    assert found["own_nuclear"].tolist() == [0, 0, -2, 4]
    assert found["depth"][0] == pytest.approx(10 / 3)
    assert found["shallower_area"][0] == pytest.approx(1, abs=0.02)
    assert found["inner_area"][2] == pytest.approx(np.pi * 25 / 400, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["boosted_context", "gpsnet_context", "gpsnet_ensemble"])
def test_methods_of_several_parts_survive_saving(name, tmp_path, brief_training):
    release = simulate(7, n_fovs=10, cells_per_fov=2, n_genes=8, mean_molecules=40)
    dataset = dataset_of(tmp_path / "tiny", release, name="tiny")
    method = get_method(name)
    method.fit(dataset.iter_cells("train"), 0)
    (tmp_path / "model").mkdir()
    method.save(tmp_path / "model")
    other = get_method(name)
    other.load(tmp_path / "model")
    cells = dataset.iter_cells("test").without_labels()
    for (_, mine), (_, its) in zip(method.predict(cells), other.predict(cells), strict=True):
        assert (mine == its).all()
