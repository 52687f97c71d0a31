"""Boosted trees: their features, flat trees equal to scikit-learn's, gene shares, calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from scipy.special import expit, logit
from sklearn.ensemble import HistGradientBoostingClassifier

from gpattern_bench import load_dataset
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.methods import get_method
from gpattern_bench.methods.boosted import method as boosted
from gpattern_bench.methods.boosted.features import PAIR_FEATURES, pair_features
from gpattern_bench.methods.boosted.method import Boosted, BoostedGene, _boost, _curve, _join_trees
from gpattern_bench.methods.predict import predict_cells

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def synthetic() -> Dataset:
    return load_dataset("synthetic")


@pytest.fixture(scope="module")
def few(synthetic: Dataset) -> Cells:
    """Thirty training cells."""
    names = synthetic.cells("train", ["cell_id"])["cell_id"].tolist()[::10]
    return synthetic.iter_cells("train", keep=names)


@pytest.fixture(scope="module")
def fitted(few: Cells) -> dict[str, Boosted]:
    """Boosted trees without and with gene shares; read only."""
    return {"boosted": few_trees(Boosted(), few), "boosted_gene": few_trees(BoostedGene(), few)}


def few_trees(method: Boosted, train: Cells) -> Boosted:
    """Fit a tenth of the trees: enough to learn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boosted, "_TREES", 20)
        patch.setattr(boosted, "_ROUNDS", 15)
        method.fit(train, seed=3)
    return method


def moved(cell: Cell, matrix: np.ndarray, shift: np.ndarray) -> Cell:
    def move(shape):
        return None if shape is None else shapely.transform(shape, lambda xy: xy @ matrix.T + shift)

    xy = cell.xy @ matrix.T + shift
    return Cell(cell.cell_id, cell.fov, xy, cell.gene, move(cell.boundary), move(cell.nucleus))


# Features


def test_columns_are_named(synthetic: Dataset):
    cell = next(iter(synthetic.iter_cells("val")))
    values = pair_features(cell)
    assert values.shape == (len(cell.genes), len(PAIR_FEATURES))
    assert len(set(PAIR_FEATURES)) == len(PAIR_FEATURES)


def test_summaries_are_numpys(synthetic: Dataset):
    cell = next(iter(synthetic.iter_cells("val")))
    size = np.sqrt(cell.boundary.area / np.pi)
    depth = cell.geometry.boundary_distance / size * np.where(cell.geometry.in_boundary, 1, -1)
    at = PAIR_FEATURES.index("depth_q05")
    for row, gene in zip(pair_features(cell), cell.genes, strict=True):
        own = depth[cell.gene == gene]
        expected = [*np.quantile(own, [0.05, 0.25, 0.5, 0.75, 0.95]), own.mean()]
        np.testing.assert_allclose(row[at : at + 6], expected, atol=1e-12)


def test_features_do_not_depend_on_the_order_of_molecules_or_the_place(synthetic: Dataset):
    cell = next(iter(synthetic.iter_cells("val")))
    rng = np.random.default_rng(0)
    order = np.lexsort((rng.random(len(cell.gene)), cell.gene))
    shuffled = Cell(
        cell.cell_id, cell.fov, cell.xy[order], cell.gene[order], cell.boundary, cell.nucleus
    )
    np.testing.assert_allclose(pair_features(shuffled), pair_features(cell), atol=1e-9)
    there = moved(cell, np.eye(2), np.array([64.0, -32.0]))  # exact in binary
    own = [k for k, name in enumerate(PAIR_FEATURES) if not name.startswith(("bento", "bigfish"))]
    np.testing.assert_allclose(pair_features(there)[:, own], pair_features(cell)[:, own], atol=1e-9)


def test_places_are_free_of_units(synthetic: Dataset):
    cell = next(iter(synthetic.iter_cells("val")))
    scaled = moved(cell, 3 * np.eye(2), np.zeros(2))
    own = [k for k, name in enumerate(PAIR_FEATURES) if not name.startswith(("bento", "bigfish"))]
    np.testing.assert_allclose(
        pair_features(scaled)[:, own], pair_features(cell)[:, own], atol=1e-9
    )


def test_a_missing_nucleus_is_nan_in_what_needs_it():
    xy = np.array([[1.0, 1.0], [2.0, 3.0], [5.0, 5.0]])
    cell = Cell("c", "f", xy, np.array([0, 0, 4], np.int32), shapely.box(0, 0, 9, 9), None)
    values = dict(zip(PAIR_FEATURES, pair_features(cell).T, strict=True))
    for name, column in values.items():
        if name.startswith(("from_nucleus", "between")):
            assert np.isnan(column).all()
        elif name.startswith(("depth", "radius", "sprawl", "log", "share")):
            assert np.isfinite(column).all()


# Trees


def test_flat_trees_are_scikit_learns():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(600, 5)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = -99
    labels = np.stack([x[:, 0] + x[:, 1] ** 2 > 0.5, x[:, 2] > 1, np.zeros(600, bool)], axis=1)
    grown = [_boost(x, y, seed=5) for y in labels.T]
    flat = _join_trees([nodes for nodes, _ in grown])
    got = expit(flat.sums(x) + np.array([start for _, start in grown]))
    for c in (0, 1):
        model = HistGradientBoostingClassifier(
            learning_rate=0.05,
            max_iter=150,
            max_leaf_nodes=8,
            min_samples_leaf=20,
            l2_regularization=5.0,
            max_features=0.3,
            early_stopping=False,
            random_state=int(np.random.Generator(np.random.Philox(5)).integers(2**32)),
        ).fit(x, labels[:, c])
        np.testing.assert_allclose(got[:, c], model.predict_proba(x)[:, 1], atol=1e-6)
    np.testing.assert_allclose(got[:, 2], 0.5 / 601)  # a pattern that no pair has


def test_no_trees_at_all():
    flat = _join_trees([[], []])
    assert (flat.sums(np.zeros((3, 2))) == 0).all()


# The method


@pytest.mark.parametrize("name", ["boosted", "boosted_gene"])
def test_saved_and_loaded_it_scores_the_same(fitted, few, tmp_path: Path, name):
    before = predict_cells(fitted[name], few)
    fitted[name].save(tmp_path)
    again = get_method(name)
    again.load(tmp_path)
    assert predict_cells(again, few).equals(before)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".npz", ".npz"]


def test_the_same_seed_gives_the_same_bytes(fitted, few, tmp_path: Path):
    again = few_trees(BoostedGene(), few)
    for method, folder in ((fitted["boosted_gene"], "a"), (again, "b")):
        (tmp_path / folder).mkdir()
        method.save(tmp_path / folder)
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_it_learns_patterns(fitted, synthetic: Dataset):
    scores = predict_cells(fitted["boosted"], synthetic.iter_cells("val"))
    result = Evaluator(synthetic, "val").eval(scores, replicates=0)
    assert result["auc_macro"] > 0.88  # from thirty cells; the gene prior of all has 0.80


def test_scores_are_calibrated(fitted, synthetic: Dataset):
    scores = predict_cells(fitted["boosted"], synthetic.iter_cells("val"))
    labels = synthetic.labels("val")
    for pattern in synthetic.patterns:
        assert scores[pattern].mean() == pytest.approx(labels[pattern].mean(), abs=0.05)


def test_a_gene_that_was_never_seen_gets_the_share_of_all(fitted, few):
    method = fitted["boosted_gene"]
    kept = method._share
    method._share = {}
    unknown = predict_cells(method, few)
    method._share = kept
    known = predict_cells(method, few)
    assert np.isfinite(unknown[list(few.patterns)].to_numpy()).all()
    assert not unknown.equals(known)


def test_boosted_itself_does_not_look_at_genes(fitted, synthetic: Dataset):
    cell = next(iter(synthetic.iter_cells("val").without_labels()))
    other = Cell(cell.cell_id, cell.fov, cell.xy, cell.gene + 1, cell.boundary, cell.nucleus)

    class One:
        genes, patterns = (*synthetic.genes, "another"), synthetic.patterns

        def __init__(self, cell):
            self._cell = cell

        def __iter__(self):
            return iter([self._cell])

    [(_, a)], [(_, b)] = (list(fitted["boosted"].predict(One(c))) for c in (cell, other))
    np.testing.assert_array_equal(a, b)


def test_importance_names_features_and_sums_to_one(fitted, tmp_path: Path):
    importance = fitted["boosted_gene"].importance()
    assert sum(importance.values()) == pytest.approx(1, abs=1e-3)
    assert list(importance.values()) == sorted(importance.values(), reverse=True)
    assert any(name.startswith("gene_share") for name in list(importance)[:10])
    fitted["boosted_gene"].save(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["importance"] == importance


@pytest.mark.parametrize("label", [np.zeros(40, bool), np.ones(40, bool)])
def test_a_pattern_without_both_kinds_is_not_calibrated(label):
    assert _curve(np.linspace(0.1, 0.9, 40), label) == (1.0, 0.0)


def test_calibration_never_turns_scores_round():
    score = np.linspace(0.1, 0.9, 40)
    assert _curve(score, score < 0.5) == (1.0, 0.0)
    slope, offset = _curve(score, score > 0.6)
    assert slope > 0
    assert expit(slope * logit(0.9) + offset) > 0.9
