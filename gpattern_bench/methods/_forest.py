"""Forests of decision trees on features of pairs, kept as flat arrays instead of pickles.

scikit-learn grows the trees; what is stored and predicted from are arrays of nodes, so that a model
file runs no code when it is read and does not depend on scikit-learn's version.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gpattern_bench.base.files import replacing
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.errors import MethodError
from gpattern_bench.methods.base import Scores

__all__ = ["LIMIT", "Forest", "forest_scores", "labelled_pairs", "pair_batches"]

LIMIT = 50_000
"""Pairs that a forest is fitted on at most: a larger train split is subsampled, seeded."""
CHOICE = 10
"""Above ``CHOICE * limit`` labelled pairs, sample cells first, then pairs.

Features are computed of whole cells. A sample of the pairs of all cells would need those of half of
100,000 cells; of ten times as many pairs it still has few of each cell.
"""

_Featurize = Callable[[Cell], NDArray[np.float64]]

_BATCH = 4096  # pairs scored together, so that each tree is read from memory once


_ARRAYS = {
    "root": ("int32", 1),
    "feature": ("int16", 1),
    "threshold": ("float32", 1),
    "left": ("int32", 1),
    "right": ("int32", 1),
    "missing_left": ("bool", 1),
    "share": ("float32", 2),
}  # type and number of axes of each


class Forest(NamedTuple):
    """A forest for several labels at once.

    A pair takes, at each node, the left child if its feature (float32) is at most the threshold,
    and the side that the node says if it is NaN; its scores are the means over trees of the labels'
    shares in the leaves that it ends in.

    Attributes
    ----------
    root : numpy.ndarray
        (t,) int32 first node of each tree.
    feature : numpy.ndarray
        (m,) int16 column that the node asks for; -1 at leaves.
    threshold : numpy.ndarray
        (m,) float32.
    left, right : numpy.ndarray
        (m,) int32 children; at leaves, `left` is the row of `share`.
    missing_left : numpy.ndarray
        (m,) bool: where NaN goes.
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
        trees: int = 300,
        min_leaf: int = 5,
        random_splits: bool = False,
    ) -> Forest:
        """Grow a forest; the same seed gives the same forest.

        Parameters
        ----------
        features : numpy.ndarray
            (n, F), NaN where a feature is missing.
        labels : numpy.ndarray
            (n, C) bool, any number of them True in a row.
        seed : int
        trees : int
        min_leaf : int
            Pairs in a leaf, at least.
        random_splits : bool
            Draw thresholds at random (extremely randomised trees, on all pairs) instead of
            searching the best (random forest, each tree on a bootstrap sample).
        """
        from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

        varies = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))
        kind = ExtraTreesClassifier if random_splits else RandomForestClassifier
        grown = kind(
            n_estimators=trees,
            min_samples_leaf=min_leaf,
            random_state=int(np.random.Generator(np.random.Philox(seed)).integers(2**32)),
            # worker processes share the cores; the trees are the same on any number of threads
            n_jobs=-1 if parent_process() is None else 1,
        )
        # a label that all or no pairs have teaches nothing: one tree is grown in vain then
        target = labels[:, varies] if len(varies) else labels[:, :1]
        grown.fit(_single(features), target[:, 0] if target.shape[1] == 1 else target)
        return _flat([tree.tree_ for tree in grown.estimators_], varies, labels[0])

    def predict(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Score pairs (n, F): (n, C) in [0, 1]."""
        return (self.sums(features) / len(self.root)).astype(np.float32)

    def sums(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Sum the leaf values of pairs (n, F) over the trees: (n, C).

        Raises
        ------
        MethodError
            The forest asks for a feature that is not there.
        """
        if self.feature.max() >= features.shape[1]:
            raise MethodError(
                f"the forest asks for feature {self.feature.max()}, counted from 0, and there are "
                f"{features.shape[1]}; fit the method again"
            )
        sums = np.zeros((len(features), self.share.shape[1]))
        _add_shares(_single(features), *self, sums)
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
        """Put together nodes (m,) that ask ``x <= threshold``; rows of `share` are the leaves'."""
        rounded = threshold.astype(np.float32)
        # x <= threshold for a float32 x is x <= the largest float32 that is not above it
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

    def save(self, path: Path) -> None:
        """Write the arrays to an ``.npz`` file."""
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez_compressed(file, **self._asdict())

    @classmethod
    def load(cls, path: Path) -> Forest:
        """Read what :meth:`save` wrote.

        Raises
        ------
        MethodError
            The file holds no forest, or nodes that lead out of it.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                forest = cls(**{name: arrays[name] for name in cls._fields})
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError) as error:
            raise MethodError(f"{path} holds no forest: {error}") from error
        if flaw := forest._flaw():
            raise MethodError(f"{path} holds a damaged forest: {flaw}; fit the method again")
        return forest

    def _flaw(self) -> str:
        """Describe nodes that lead out of the arrays or in circles; "" if there are none."""
        for name, (dtype, axes) in _ARRAYS.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != axes:
                return f"{name} is {array.dtype} {array.shape}, expected {dtype} of {axes} axes"
        nodes, leaves = len(self.feature), len(self.share)
        lengths = {len(getattr(self, name)) for name in _ARRAYS if name not in ("root", "share")}
        if lengths != {nodes} or len(self.root) == 0:
            return f"{len(self.root)} trees with arrays of {sorted(lengths)} nodes"
        asks, at = self.feature >= 0, np.arange(nodes)
        outside = {
            "root": (self.root < 0) | (self.root >= nodes),
            "feature": self.feature < -1,
            "left": np.where(
                asks,
                (self.left <= at) | (self.left >= nodes),
                (self.left < 0) | (self.left >= leaves),
            ),
            "right": asks & ((self.right <= at) | (self.right >= nodes)),
        }
        for name, wrong in outside.items():
            if wrong.any():
                k = int(wrong.argmax())
                return (
                    f"{name}[{k}] is {getattr(self, name)[k]}, of {nodes} nodes and {leaves} "
                    "leaves, where children come after their node"
                )
        return ""


def labelled_pairs(
    train: Cells, featurize: _Featurize, seed: int, limit: int = LIMIT
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Collect features (n, F) and labels (n, C) of labelled pairs, or of a seeded sample.

    Parameters
    ----------
    train : Cells
        With labels.
    featurize : callable
        Gives the features (g, F) of the genes present in a cell.
    seed : int
        Of the sample.
    limit : int
        Most pairs to take. Of more than :data:`CHOICE` times as many, cells are drawn first. Cells
        of which no pair was drawn are not featurized.

    Raises
    ------
    MethodError
        No pair is labelled.
    """
    sizes = np.array([0 if cell.labelled is None else cell.labelled.sum() for cell in train])
    if sizes.sum() == 0:
        raise MethodError("a forest needs labelled pairs, and no pair of the training cells is one")
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
    features, labels, seen = [], [], 0
    for cell, here in zip(train, drawn, strict=True):
        if not here or cell.labels is None or cell.labelled is None:
            continue
        rows = np.flatnonzero(cell.labelled)
        wanted = rows[taken[seen : seen + len(rows)]]
        seen += len(rows)
        if len(wanted):
            features.append(featurize(cell)[wanted])
            labels.append(cell.labels[wanted])
    return np.concatenate(features), np.concatenate(labels)


def forest_scores(cells: Cells, featurize: _Featurize, forest: Forest) -> Scores:
    """Score every pair of some cells, a few thousand at a time."""
    for batch in pair_batches(cells):
        scores = forest.predict(np.concatenate([featurize(cell) for cell in batch]))
        ends = np.cumsum([len(cell.genes) for cell in batch])
        yield from zip(batch, np.split(scores, ends[:-1]), strict=True)


def pair_batches(cells: Cells) -> Iterator[list[Cell]]:
    """Yield lists of cells, in order, of a few thousand pairs."""
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


def _single(features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    return np.ascontiguousarray(features, np.float32)


def _flat(trees: list[Any], varies: NDArray[np.intp], labels: NDArray[np.bool_]) -> Forest:
    """Convert scikit-learn's trees to arrays; constant labels hold for any pair."""
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
    features: Any, root: Any, feature: Any, threshold: Any, left: Any, right: Any,
    missing_left: Any, share: Any, sums: Any,
) -> None:  # fmt: skip
    """Add each tree's leaf shares to each pair, tree by tree."""
    for first in root:
        for i in range(len(features)):
            node = first
            while feature[node] >= 0:
                x = features[i, feature[node]]
                go_left = missing_left[node] if np.isnan(x) else x <= threshold[node]
                node = left[node] if go_left else right[node]
            for c in range(share.shape[1]):
                sums[i, c] += share[left[node], c]
