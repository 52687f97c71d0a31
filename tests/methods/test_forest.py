"""Flat forests give scikit-learn's probabilities; samples of the training pairs are seeded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import shapely
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

from gpattern_bench.data.cells import Cell
from gpattern_bench.errors import MethodError
from gpattern_bench.methods._forest import Forest, labelled_pairs, pair_batches
from gpattern_bench.methods.bento.method import bento_features
from gpattern_bench.methods.locfish.bigfish import bigfish_features
from gpattern_bench.methods.locfish.features_2018 import samacoits_features

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 6))
Y = np.stack([X[:, 0] > 0.3 * X[:, 1], X[:, 2] * X[:, 3] > 0, X[:, 4] > 1], axis=1)
HOLES = np.where(RNG.random(X.shape) < 0.15, np.nan, X)
SQUARE = shapely.box(0, 0, 1, 1)


def state(seed: int) -> int:
    return int(np.random.Generator(np.random.Philox(seed)).integers(2**32))


class TestForest:
    @pytest.mark.parametrize("train", [X, HOLES], ids=["complete", "with NaN"])
    @pytest.mark.parametrize("random_splits", [False, True])
    def test_probabilities_are_scikit_learns(self, train, random_splits):
        forest = Forest.fit(train, Y, 5, trees=20, random_splits=random_splits)
        kind = ExtraTreesClassifier if random_splits else RandomForestClassifier
        theirs = kind(20, min_samples_leaf=5, random_state=state(5)).fit(train.astype("f4"), Y)
        for asked in (RNG.normal(size=(300, 6)), HOLES):
            expected = [p[:, 1] for p in theirs.predict_proba(asked.astype("f4"))]
            found = forest.predict(asked)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=0, atol=1e-6)

    def test_one_label(self):
        forest = Forest.fit(X, Y[:, :1], 1, trees=10)
        theirs = RandomForestClassifier(10, min_samples_leaf=5, random_state=state(1))
        expected = theirs.fit(X.astype("f4"), Y[:, 0]).predict_proba(X.astype("f4"))[:, 1]
        np.testing.assert_allclose(forest.predict(X)[:, 0], expected, rtol=0, atol=1e-6)

    def test_labels_that_do_not_vary_are_given_to_every_pair(self):
        labels = np.stack([Y[:, 0], np.ones(400, bool), np.zeros(400, bool)], axis=1)
        scores = Forest.fit(X, labels, 0, trees=5).predict(X)
        assert (scores[:, 1] == 1).all()
        assert (scores[:, 2] == 0).all()
        assert np.unique(scores[:, 0]).size > 10
        assert (Forest.fit(X, labels[:, 1:], 0, trees=5).predict(HOLES) == [1, 0]).all()

    @pytest.mark.parametrize(("pairs", "trees"), [(16_666, 300), (20_000, 250), (50_000, 100)])
    def test_many_pairs_have_fewer_trees(self, pairs, trees):
        forest = Forest.fit(np.zeros((pairs, 1)), np.ones((pairs, 1), bool), 0)
        assert len(forest.root) == trees

    def test_warning_filters_survive_what_threads_do_to_them(self, monkeypatch, recwarn):
        """scikit-learn's threads, as they cross, may empty the list that all of them share."""
        plain = RandomForestClassifier.fit

        def crossed(self, *data):
            warnings.resetwarnings()
            warnings.warn("no filters were given", UserWarning, stacklevel=1)
            return plain(self, *data)

        monkeypatch.setattr(RandomForestClassifier, "fit", crossed)
        before = list(warnings.filters)
        Forest.fit(X, Y, 0, trees=5)
        assert warnings.filters == before != []
        assert not recwarn.list

    def test_the_seed_decides(self, tmp_path):
        files = [tmp_path / f"{k}.npz" for k in range(3)]
        for path, seed in zip(files, (7, 7, 8), strict=True):
            Forest.fit(X, Y, seed, trees=5).save(path)
        first, same, other = (path.read_bytes() for path in files)
        assert first == same != other

    def test_saved_forests_load(self, tmp_path):
        forest = Forest.fit(HOLES, Y, 0, trees=5)
        forest.save(tmp_path / "forest.npz")
        loaded = Forest.load(tmp_path / "forest.npz")
        np.testing.assert_array_equal(loaded.predict(HOLES), forest.predict(HOLES))

    def test_a_file_that_holds_no_forest_is_refused(self, tmp_path):
        (tmp_path / "text.npz").write_text("PK\x03\x04 and then nothing", encoding="utf-8")
        np.savez(tmp_path / "other.npz", root=np.zeros(1))
        np.savez(tmp_path / "objects.npz", **{n: np.array([{}]) for n in Forest._fields})
        np.save(tmp_path / "array.npy", np.zeros(9))
        forest = tmp_path / "torn.npz"
        Forest.fit(X, Y, 0, trees=5).save(forest)
        forest.write_bytes(forest.read_bytes()[:-100])
        for name in ("text.npz", "other.npz", "objects.npz", "array.npy", "torn.npz"):
            with pytest.raises(MethodError):
                Forest.load(tmp_path / name)
        with pytest.raises(FileNotFoundError):
            Forest.load(tmp_path / "none.npz")

    @pytest.mark.parametrize(
        ("name", "change", "told"),
        [
            ("root", lambda a: a + 10_000, r"root\[0\] is 10000, of \d+ nodes"),
            ("root", lambda a: a - 1, r"root\[0\] is -1"),
            ("root", lambda a: a[:0], "0 trees"),
            ("feature", lambda a: np.where(a < 0, -7, a).astype("i2"), r"feature\[\d+\] is -7"),
            ("feature", lambda a: a.astype("i8"), "feature is int64"),
            ("left", lambda a: a + 10_000, r"left\[0\] is 1000\d"),
            ("left", lambda a: a - 10_000, r"left\[0\] is -9999"),
            ("left", lambda a: a[:-1], r"3 trees with arrays of \[\d+, \d+\] nodes"),
            ("right", lambda a: np.zeros_like(a), r"right\[0\] is 0, .* after their node"),
            ("right", lambda a: a + 10_000, r"right\[0\] is 10"),
            ("share", lambda a: a[:3], r"left\[\d+\] is \d+, of \d+ nodes and 3 leaves"),
            ("share", lambda a: a[:, 0], "share is float32"),
        ],
    )
    def test_a_file_whose_nodes_lead_nowhere_is_refused(self, tmp_path, name, change, told):
        path = tmp_path / "forest.npz"
        forest = Forest.fit(X, Y, 0, trees=3)
        forest._replace(**{name: change(getattr(forest, name))}).save(path)
        with pytest.raises(MethodError, match=rf"forest\.npz holds a damaged forest: {told}"):
            Forest.load(path)

    def test_a_feature_that_is_not_there_is_refused(self):
        with pytest.raises(MethodError, match=r"asks for feature 5, .* and there are 4"):
            Forest.fit(X, Y, 0, trees=3).predict(X[:, :4])


@dataclass
class ManyCells:
    """Cells in memory, of 10 pairs each, every other pair labelled."""

    count: int
    labelled: bool = True

    def __iter__(self):
        gene = np.arange(10, dtype=np.int32)
        for k in range(self.count):
            shown = np.arange(10) % 2 == 0 if self.labelled else np.zeros(10, bool)
            labels = np.stack([shown & (gene < 4)], axis=1)
            xy = np.full((10, 2), float(k))
            yield Cell(str(k), "f", xy, gene, SQUARE, None, labels, shown)

    def labelled_counts(self):
        return np.full(self.count, 5 if self.labelled else 0)


def numbered(cell: Cell) -> np.ndarray:
    return np.stack([cell.xy[:, 0], cell.genes], axis=1)


class TestPairs:
    def test_all_labelled_pairs_are_taken_where_they_fit(self):
        features, labels, gene, cell = labelled_pairs(ManyCells(3), numbered, 0)
        assert features.tolist() == [[k, g] for k in range(3) for g in range(0, 10, 2)]
        assert np.stack([cell, gene], axis=1).tolist() == features.tolist()
        assert labels[:, 0].tolist() == [g < 4 for _, g in features]

    def test_a_sample_has_the_size_asked_for_and_depends_on_the_seed(self):
        some, labels, *_ = labelled_pairs(ManyCells(40), numbered, 1, limit=60)
        assert len(np.unique(some, axis=0)) == 60
        assert labels[:, 0].tolist() == [g < 4 for _, g in some]
        same, *_ = labelled_pairs(ManyCells(40), numbered, 1, limit=60)
        other, *_ = labelled_pairs(ManyCells(40), numbered, 2, limit=60)
        assert some.tolist() == same.tolist() != other.tolist()

    def test_a_sample_of_very_many_is_of_as_many_cells_as_are_needed(self):
        begun = []

        def counting(cell: Cell) -> np.ndarray:
            begun.append(cell.cell_id)
            return numbered(cell)

        some, labels, *_ = labelled_pairs(ManyCells(400), counting, 1, limit=20)
        assert len(np.unique(some, axis=0)) == 20
        assert labels[:, 0].tolist() == [g < 4 for _, g in some]
        # Of 2,000 pairs 200 are left to choose from: 40 cells, from everywhere, in their order.
        assert len(begun) <= 40
        assert min(map(int, begun)) < 100 < 300 < max(map(int, begun))
        assert some[:, 0].tolist() == sorted(some[:, 0])
        same, *_ = labelled_pairs(ManyCells(400), numbered, 1, limit=20)
        assert some.tolist() == same.tolist()
        # As many or fewer than that: all cells are chosen from, as ever.
        draws = np.random.Generator(np.random.Philox(1)).random(200)
        few, *_ = labelled_pairs(ManyCells(40), numbered, 1, limit=20)
        every, *_ = labelled_pairs(ManyCells(40), numbered, 1)
        assert few.tolist() == every[draws < np.sort(draws)[20]].tolist()

    @pytest.mark.parametrize("alone", [True, False])
    def test_cells_are_given_whole_only_where_genes_need_each_other(self, alone):
        given = []

        def counting(cell: Cell) -> np.ndarray:
            given.append(len(cell.genes))
            return numbered(cell)

        found = labelled_pairs(ManyCells(40), counting, 1, limit=60, alone=alone)
        assert sum(given) == (60 if alone else 10 * len(given))
        other = labelled_pairs(ManyCells(40), numbered, 1, limit=60, alone=not alone)
        for mine, theirs in zip(found, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)

    @pytest.mark.parametrize(
        "featurize",
        [bento_features, bigfish_features, samacoits_features],
        ids=lambda f: f.__name__,
    )
    def test_features_of_a_gene_are_its_own(self, featurize):
        """Fits leave out the molecules of other genes: not a bit changes."""
        rng = np.random.Generator(np.random.Philox(4))
        shape, nucleus = (shapely.Point(0.3, 0.1).buffer(r).simplify(0.2) for r in (9, 4))
        xy, gene = rng.normal(0, 4, (400, 2)), np.sort(rng.integers(0, 12, 400)).astype(np.int32)
        for inside in (nucleus, None):
            cell = Cell("c", "f", xy, gene, shape, inside)
            wanted = rng.random(len(cell.genes)) < 0.4
            some = cell.keeping(np.isin(gene, cell.genes[wanted]))
            assert some.genes.tolist() == cell.genes[wanted].tolist()
            np.testing.assert_array_equal(featurize(some), featurize(cell)[wanted])

    def test_no_labelled_pair_is_an_error(self):
        with pytest.raises(MethodError, match="no pair of the training cells"):
            labelled_pairs(ManyCells(3, labelled=False), numbered, 0)

    def test_labels_without_molecules_are_an_error(self):
        cells = ManyCells(40)
        cells.labelled_counts = lambda: np.full(40, 6)
        told = "cell 0 has 5 labelled pairs with molecules, of 6 in the table of labels"
        with pytest.raises(MethodError, match=told):
            labelled_pairs(cells, numbered, 0)

    def test_batches_hold_every_cell_once_in_order(self):
        batches = list(pair_batches(ManyCells(4000)))
        assert [cell.cell_id for batch in batches for cell in batch] == [
            str(k) for k in range(4000)
        ]
        assert [len(batch) for batch in batches] == [1639, 1639, 722]
        assert list(pair_batches(ManyCells(0))) == []
