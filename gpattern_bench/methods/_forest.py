"""Forests of decision trees: grow them, store and evaluate them as flat arrays.

Arrays of nodes instead of pickles: reading a model file runs no code and needs no particular
version of scikit-learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.base.arrays import read_arrays
from gpattern_bench.base.compiled import njit
from gpattern_bench.base.files import replacing
from gpattern_bench.base.threads import in_threads, own_threads
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.errors import MethodError
from gpattern_bench.methods.base import Scores

__all__ = [
    "LIMIT",
    "Forest",
    "LabelledPairs",
    "batch_scores",
    "forest_scores",
    "labelled_pairs",
    "load_arrays",
    "pair_batches",
    "save_arrays",
]

LIMIT = 50_000
"""Most pairs to fit a forest on; of more, draw a seeded sample."""
_TREES = 300
_ROWS = 5_000_000  # most of all trees together: those of many pairs differ little
_MOST_TREES, _DEEPEST = 10_000, 1_000  # of a stored forest; ours have a tenth of that
CHOICE = 10
"""Above ``CHOICE * limit`` labelled pairs, sample cells first, then pairs.

Features are computed cell by cell; a sample of pairs would spread over too many cells.
"""

_Featurize = Callable[[Cell], NDArray[np.float64]]

_BATCH = 1 << 14  # pairs scored together: each tree is read from memory once per batch

_ARRAYS = {
    "root": ("int32", 1),
    "feature": ("int16", 1),
    "threshold": ("float32", 1),
    "left": ("int32", 1),
    "right": ("int32", 1),
    "missing_left": ("bool", 1),
    "share": ("float32", 2),
}  # dtype and number of axes


class Forest(NamedTuple):
    """A forest for several labels at once.

    At each node a pair goes left if its feature (float32) is at most the threshold; NaN goes where
    `missing_left` says. Its scores are the labels' shares in its leaves, averaged over the trees.

    Attributes
    ----------
    root : numpy.ndarray
        (t,) int32 first node of each tree.
    feature : numpy.ndarray
        (m,) int16 column of the feature; -1 at leaves.
    threshold : numpy.ndarray
        (m,) float32.
    left, right : numpy.ndarray
        (m,) int32 children; at leaves, `left` is the row of `share`.
    missing_left : numpy.ndarray
        (m,) bool: NaN goes left.
    share : numpy.ndarray
        (l, C) float32 shares of the labels in the leaves.
    """

    root: NDArray[np.int32]
    feature: NDArray[np.int16]
    threshold: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    missing_left: NDArray[np.bool_]
    share: NDArray[np.float32]

    @classmethod
    def fit(
        cls,
        features: NDArray[np.floating[Any]],
        labels: NDArray[np.bool_],
        seed: int,
        *,
        trees: int | None = None,
        min_leaf: int = 5,
        random_splits: bool = False,
    ) -> Forest:
        """Grow a forest; the same seed gives the same forest.

        Parameters
        ----------
        features : numpy.ndarray
            (n, F), NaN: missing.
        labels : numpy.ndarray
            (n, C) bool, any number True per row.
        seed : int
        trees : int, optional
            Default: 300, of more than 16,666 pairs as many as have 5,000,000 rows together: 100
            of :data:`LIMIT` pairs.
        min_leaf : int
            Least pairs in a leaf.
        random_splits : bool
            Draw thresholds at random (extremely randomised trees, on all pairs); else search the
            best (random forest, on bootstrap samples).
        """
        from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

        varies = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))
        kind = ExtraTreesClassifier if random_splits else RandomForestClassifier
        grown = kind(
            n_estimators=trees or min(_TREES, _ROWS // len(labels)),
            min_samples_leaf=min_leaf,
            random_state=int(np.random.Generator(np.random.Philox(seed)).integers(2**32)),
            n_jobs=own_threads(),  # they do not change the trees
        )
        # constant labels need no trees; if all are constant, scikit-learn still needs a target
        target = labels[:, varies] if len(varies) else labels[:, :1]
        # its threads may empty the process's list of warning filters, and then warn of that
        with warnings.catch_warnings(record=True):
            grown.fit(_float32(features), target[:, 0] if target.shape[1] == 1 else target)
        return _from_sklearn([tree.tree_ for tree in grown.estimators_], varies, labels[0])

    def predict(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Score pairs (n, F): (n, C) in [0, 1]."""
        return (self.sums(features) / len(self.root)).astype(np.float32)

    def sums(
        self, features: NDArray[np.floating[Any]], dtype: type[np.floating[Any]] = np.float64
    ) -> NDArray[Any]:
        """Sum the leaf values of pairs (n, F) over the trees, in a type: (n, C).

        Raises
        ------
        MethodError
            The forest needs more features.
        """
        if self.feature.max() >= features.shape[1]:
            raise MethodError(
                f"the forest asks for feature {self.feature.max()}, counted from 0, and there are "
                f"{features.shape[1]}; fit the method again"
            )
        sums = np.zeros((len(features), self.share.shape[1]), dtype)
        nodes = _packed(self)
        _add_shares(_float32(features), self.root, nodes, nodes.view(np.float32), self.share, sums)
        return sums

    @classmethod
    def of_nodes(
        cls,
        root: NDArray[Any],
        leaf: NDArray[np.bool_],
        feature: NDArray[Any],
        threshold: NDArray[Any],
        left: NDArray[Any],
        right: NDArray[Any],
        missing_left: NDArray[Any],
        share: NDArray[np.float32],
    ) -> Forest:
        """Build a forest from nodes (m,) with tests ``x <= threshold``; `share`: a row per leaf."""
        rounded = threshold.astype(np.float32)
        # round down: for a float32 x the test stays the same
        rounded = np.where(rounded > threshold, np.nextafter(rounded, np.float32(-np.inf)), rounded)
        row = np.cumsum(leaf) - 1
        return cls(
            root=root.astype(np.int32),
            feature=np.where(leaf, -1, feature).astype(np.int16),
            threshold=np.where(leaf, np.float32(0), rounded),
            left=np.where(leaf, row, left).astype(np.int32),
            right=np.where(leaf, 0, right).astype(np.int32),
            missing_left=missing_left.astype(np.bool_) & ~leaf,
            share=share,
        )

    @property
    def parameters(self) -> int:
        """Numbers in the arrays: five of a node, a share per label of a leaf."""
        return sum(array.size for array in self)

    def save(self, path: Path) -> None:
        """Write the arrays to an ``.npz`` file."""
        save_arrays(path, self._asdict())

    @classmethod
    def load(cls, path: Path, *, shares: bool = True) -> Forest:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : pathlib.Path
        shares : bool
            Whether the leaves hold shares of labels, in [0, 1]; boosted trees add to log-odds.

        Raises
        ------
        MethodError
            The file holds no forest, or a damaged one.
        """
        forest = cls(**load_arrays(path, cls._fields, "forest"))
        if flaw := forest.flaw(shares=shares):
            raise MethodError(f"{path} holds a damaged forest: {flaw}; fit the method again")
        return forest

    def flaw(self, *, shares: bool) -> str:
        """Describe the first thing that no training gives; "" if there is none."""
        return self._flaw_of_nodes() or self._flaw_of_trees() or self._flaw_of_leaves(shares)

    def _flaw_of_nodes(self) -> str:
        """Describe the first node that leads out of the arrays or back; "" if none does."""
        for name, (dtype, axes) in _ARRAYS.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != axes:
                return f"{name} is {array.dtype} {array.shape}, expected {dtype} of {axes} axes"
        nodes, leaves = len(self.feature), len(self.share)
        lengths = {len(getattr(self, name)) for name in _ARRAYS if name not in ("root", "share")}
        if lengths != {nodes} or len(self.root) == 0:
            return f"{len(self.root)} trees with arrays of {sorted(lengths)} nodes"
        inner, at = self.feature >= 0, np.arange(nodes)
        outside = {
            "root": (self.root < 0) | (self.root >= nodes),
            "feature": self.feature < -1,
            "left": np.where(
                inner,
                (self.left <= at) | (self.left >= nodes),
                (self.left < 0) | (self.left >= leaves),
            ),
            "right": inner & ((self.right <= at) | (self.right >= nodes)),
        }
        for name, wrong in outside.items():
            if wrong.any():
                k = int(wrong.argmax())
                return (
                    f"{name}[{k}] is {getattr(self, name)[k]}, of {nodes} nodes and {leaves} "
                    "leaves; expected children after their node"
                )
        return ""

    def _flaw_of_trees(self) -> str:
        """Describe what makes the nodes no trees, or trees too many or deep; "" if nothing does."""
        if len(self.root) > _MOST_TREES:
            return f"{len(self.root):,} trees, expected at most {_MOST_TREES:,}"
        inner = self.feature >= 0
        below = np.concatenate([self.root, self.left[inner], self.right[inner]])
        if (np.bincount(below, minlength=len(self.feature)) != 1).any():
            return "some nodes are below none or several others"
        level = self.root
        for _ in range(_DEEPEST):
            level = level[inner[level]]
            if not len(level):
                return ""
            level = np.concatenate([self.left[level], self.right[level]])
        return f"a tree is deeper than {_DEEPEST:,} nodes"

    def _flaw_of_leaves(self, shares: bool) -> str:
        """Describe the first value that no training gives; "" if there is none."""
        if np.isnan(self.threshold).any():
            return "some thresholds are NaN"
        least, most = (0.0, 1.0) if shares else (-np.inf, np.inf)
        wrong = ~((self.share >= least) & (self.share <= most) & np.isfinite(self.share))
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            what = "a share from 0 to 1" if shares else "a finite number"
            return f"share[{row}, {column}] is {self.share[row, column]}, expected {what}"
        return ""


class LabelledPairs(NamedTuple):
    """Pairs to fit on.

    Attributes
    ----------
    features : numpy.ndarray
        (n, F) float64.
    labels : numpy.ndarray
        (n, C) bool.
    gene, cell : numpy.ndarray
        (n,) codes of the genes, and numbers of the cells: 0, 1, ..
    """

    features: NDArray[np.float64]
    labels: NDArray[np.bool_]
    gene: NDArray[np.int32]
    cell: NDArray[np.intp]


def labelled_pairs(
    train: Cells,
    featurize: _Featurize,
    seed: int,
    limit: int = LIMIT,
    *,
    alone: bool = True,
) -> LabelledPairs:
    """Collect the labelled pairs with their features, or a seeded sample of them.

    Parameters
    ----------
    train : Cells
        With labels.
    featurize : callable
        Computes the features (g, F) of the genes present in a cell; called in several threads.
    seed : int
        Seed of the sample.
    limit : int
        Most pairs; see :data:`CHOICE`.
    alone : bool
        Whether a gene's features depend on its own molecules alone, and the outlines: then
        `featurize` is given those of the pairs to collect.

    Raises
    ------
    MethodError
        No pair is labelled, or labels are of pairs without molecules.
    """
    sizes = train.labelled_counts()
    if sizes.sum() == 0:
        raise MethodError("no pair of the training cells is labelled; fit on cells with labels")
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = np.ones(len(sizes), np.bool_)
    if sizes.sum() > CHOICE * limit:
        order = np.argsort(rng.random(len(sizes)), kind="stable")
        enough = np.searchsorted(np.cumsum(sizes[order]), CHOICE * limit) + 1
        drawn[order[enough:]] = False
    total = int(sizes[drawn].sum())
    taken = np.ones(total, np.bool_)
    if total > limit:
        draws = rng.random(total)
        taken = draws < np.partition(draws, limit)[limit]

    def chosen() -> Iterator[tuple[Cell, NDArray[np.bool_]]]:
        seen = 0
        for cell, here, size in zip(train, drawn, sizes, strict=True):
            if here and size:
                assert cell.labelled is not None
                wanted = cell.labelled.copy()
                if wanted.sum() != size:
                    raise MethodError(
                        f"cell {cell.cell_id} has {wanted.sum()} labelled pairs with molecules, of "
                        f"{size} in the table of labels; see `gpattern-bench verify`"
                    )
                wanted[cell.labelled] = taken[seen : seen + size]
                seen += size
                if wanted.any():
                    yield cell, wanted

    def collected(item: tuple[Cell, NDArray[np.bool_]]) -> tuple[NDArray[Any], ...]:
        cell, wanted = item
        assert cell.labels is not None
        genes, labels = cell.genes[wanted], cell.labels[wanted]
        if alone:
            return featurize(cell.keeping(np.isin(cell.gene, genes))), labels, genes
        return featurize(cell)[wanted], labels, genes

    parts = list(in_threads(collected, chosen(), own_threads()))
    features, labels, genes = map(np.concatenate, zip(*parts, strict=True))
    cell = np.repeat(np.arange(len(parts)), [len(genes) for _, _, genes in parts])
    return LabelledPairs(features, labels, genes, cell)


def forest_scores(cells: Cells, featurize: _Featurize, forest: Forest) -> Scores:
    """Score every pair, a few thousand at a time."""
    return batch_scores(cells, featurize, forest.predict)


def batch_scores(
    cells: Cells,
    featurize: _Featurize,
    predict: Callable[[NDArray[np.float64]], NDArray[np.float32]],
) -> Scores:
    """Score every pair by a function of features (n, F), a few thousand pairs at a time."""
    for batch in pair_batches(cells):
        scores = predict(np.concatenate([featurize(cell) for cell in batch]))
        ends = np.cumsum([len(cell.genes) for cell in batch])
        yield from zip(batch, np.split(scores, ends[:-1]), strict=True)


def pair_batches(cells: Cells) -> Iterator[list[Cell]]:
    """Yield lists of cells, in order, with a few thousand pairs each."""
    batch: list[Cell] = []
    pairs = 0
    for cell in cells:
        batch.append(cell)
        pairs += len(cell.genes)
        if pairs >= _BATCH:
            yield batch
            batch, pairs = [], 0
    if batch:
        yield batch


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to an ``.npz`` file, whole or not at all."""
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_arrays(path: Path, names: Sequence[str], what: str) -> dict[str, NDArray[Any]]:
    """Read arrays from an ``.npz`` file.

    Raises
    ------
    MethodError
        The file is damaged or lacks an array; the message says that it holds no `what`.
    """
    try:
        return read_arrays(path, names)
    except ValueError as error:
        raise MethodError(f"{path} holds no {what} ({error}); fit the method again") from error


def _float32(features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    return np.ascontiguousarray(features, np.float32)


def _from_sklearn(trees: list[Any], varies: NDArray[np.intp], labels: NDArray[np.bool_]) -> Forest:
    """Convert scikit-learn's trees to arrays; constant labels keep their value."""
    sizes = np.array([tree.node_count for tree in trees])
    root = np.cumsum(sizes) - sizes

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(tree, name) for tree in trees])

    leaf = joined("children_left") < 0
    left, right = (
        joined(name) + np.repeat(root, sizes) for name in ("children_left", "children_right")
    )
    share = np.tile(labels.astype(np.float32), (int(leaf.sum()), 1))
    if len(varies):
        share[:, varies] = np.concatenate([tree.value for tree in trees])[leaf, :, 1]
    return Forest.of_nodes(
        root, leaf, joined("feature"), joined("threshold"), left, right,
        joined("missing_go_to_left"), share,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _add_shares(
    features: Any, root: Any, nodes: Any, thresholds: Any, share: Any, sums: Any
) -> None:
    """Add the shares of each pair's leaf, tree by tree; `nodes` as :func:`_packed` makes them.

    All pairs go down a tree together, a step at a time: none waits for another.
    """
    at = np.empty(len(features), np.uint32)
    active = np.empty(len(features), np.uint32)
    for first in root:
        at[:] = first
        count: Any = len(features) if nodes[first, 0] >= 0 else 0
        for i in range(count):
            active[i] = i
        while count > 0:
            kept = np.uint64(0)
            for a in range(count):
                i = active[a]
                node = at[i]
                test = np.uint32(nodes[node, 0])
                x = features[i, test >> np.uint32(1)]
                left = (x <= thresholds[node, 1]) | (((test & np.uint32(1)) != 0) & np.isnan(x))
                node = np.uint32(nodes[node, 2]) if left else np.uint32(nodes[node, 3])
                at[i] = node
                active[kept] = i
                kept += np.uint64(nodes[node, 0] >= 0)
            count = np.int64(kept)
        for i in range(len(features)):
            leaf = np.uint32(nodes[at[i], 2])
            for c in range(share.shape[1]):
                sums[i, c] += share[leaf, c]


def _packed(forest: Forest) -> NDArray[np.int32]:
    """Put what is read of a node side by side (m, 4): test, threshold's bits, left and right.

    The test is twice the feature, plus one if NaN goes left; -1 at leaves.
    """
    nodes = np.empty((len(forest.feature), 4), np.int32)
    nodes[:, 0] = forest.feature
    nodes[:, 0] = np.where(forest.feature < 0, -1, 2 * nodes[:, 0] + forest.missing_left)
    nodes[:, 1] = forest.threshold.view(np.int32)
    nodes[:, 2], nodes[:, 3] = forest.left, forest.right
    return nodes
