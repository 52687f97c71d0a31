"""Gradient-boosted and extremely randomised trees on the features of all baselines.

Scores are the mean of both kinds of trees, calibrated out of fold on training cells. Trees are
stored as flat arrays (:mod:`gpattern_bench.methods._forest`), not as pickles.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit, logit
from typing_extensions import TypedDict

from gpattern_bench.base.files import write_text
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.methods._forest import Forest, batch_scores, labelled_pairs
from gpattern_bench.methods._state import Number, Share, read_state
from gpattern_bench.methods.base import About, Scores
from gpattern_bench.methods.boosted.features import PAIR_FEATURES, pair_features
from gpattern_bench.methods.context import GeneScores, context_columns, context_fields

__all__ = ["Boosted", "BoostedGene"]

_Floats = NDArray[np.float64]

_FOLDS = 3  # of cells, for the calibration and the gene shares
_TREES = 200
_ROUNDS = 150
_STATE = "state.json"
_SMALL = 1e-6
_MISSING = -99.0  # for NaN, which extra trees of older scikit-learn refuse


class _State(TypedDict):
    baseline: list[Number]
    curves: list[tuple[Number, Number]]
    importance: dict[str, Number]


class _GeneState(_State):
    share: dict[str, list[Share]]
    unseen: list[Share]


class _Context(TypedDict):
    patterns: list[str]
    genes: dict[str, list[Annotated[int, Field(ge=0)]]]


class _ContextState(_State):
    context: _Context


class Boosted:
    """Trees on the features of :mod:`gpattern_bench.methods.boosted.features`; no gene identity."""

    about: ClassVar = About(
        name="boosted",
        label="Boosted trees",
        kind="model",
        summary=(
            "Gradient-boosted and extremely randomised trees on the features of Bento, big-fish "
            "and SPRAWL and on quantiles of the molecules' places, fitted on the training cells."
        ),
        reference="this package",
        inputs=("coordinates", "gene", "cell outline", "nucleus outline"),
        learns=True,
    )
    _by_gene: ClassVar[bool] = False
    _in_context: ClassVar[bool] = False
    _counted: GeneScores | None = None

    def fit(self, train: Cells, seed: int) -> None:
        """Grow the trees on the labelled pairs, or on a seeded sample of 50,000.

        Calibrate with a logistic curve per pattern, fitted to out-of-fold scores (three folds of
        cells).
        """
        self._counted = counted = GeneScores.count(train) if self._in_context else None

        def featurize(cell: Cell) -> _Floats:
            return _columns(cell, None, None if counted is None else counted.scores(cell))

        features, labels, gene, cell = labelled_pairs(train, featurize, seed, alone=False)
        fold = _folds(cell, seed)
        shares = _GeneShares(labels, gene, len(train.genes)) if self._by_gene else None
        columns, names = features, [*PAIR_FEATURES]
        if self._in_context:
            names += context_columns(train.patterns)
        if shares is not None:  # out of fold, or a pair would see its own label
            known = np.empty(labels.shape)
            for k in range(_FOLDS):
                others = _GeneShares(labels[fold != k], gene[fold != k], len(train.genes))
                known[fold == k] = others.table[gene[fold == k]]
            columns = np.column_stack([features, logit(known)])
            names += [f"gene_share_{c}" for c in range(labels.shape[1])]
            self._share = dict(zip(train.genes, shares.table.tolist(), strict=True))
            self._unseen = shares.overall.tolist()
        scores = np.zeros(labels.shape, np.float64)
        for k in range(_FOLDS):
            held = fold == k
            if held.all() or not held.any():
                continue
            grown = _Trees.fit(columns[~held], labels[~held], seed, names)
            scores[held] = grown.predict(columns[held])
        self._curves = [_curve(scores[:, c], labels[:, c]) for c in range(labels.shape[1])]
        self._trees = _Trees.fit(columns, labels, seed, names)

    @property
    def parameters(self) -> int:
        """Numbers of the trees and their calibration, and what is known of each gene."""
        found = self._trees.random.parameters + self._trees.boosted.parameters
        found += len(self._trees.baseline) + 2 * len(self._curves)
        if self._by_gene:
            found += len(self._unseen) * (1 + len(self._share))
        if self._counted is not None:
            found += self._counted.positive.size + self._counted.labelled.size
        return found

    def save(self, folder: Path) -> None:
        """Write the trees as arrays, calibration and importance as JSON."""
        self._trees.random.save(folder / "random_trees.npz")
        self._trees.boosted.save(folder / "boosted_trees.npz")
        state = {
            "baseline": self._trees.baseline,
            "curves": self._curves,
            "importance": self.importance(),
        }
        if self._by_gene:
            state |= {"share": self._share, "unseen": self._unseen}
        if self._counted is not None:
            state["context"] = self._counted.to_dict()
        write_text(folder / _STATE, json.dumps(state, indent=1) + "\n")

    def load(self, folder: Path) -> None:
        """Read trees, calibration and importance."""
        kind = _GeneState if self._by_gene else _ContextState if self._in_context else _State
        state = read_state(folder / _STATE, kind)
        self._trees = _Trees(
            Forest.load(folder / "random_trees.npz"),
            Forest.load(folder / "boosted_trees.npz", shares=False),
            state["baseline"],
            state["importance"],
        )
        self._curves = state["curves"]
        if self._by_gene:
            self._share, self._unseen = state["share"], state["unseen"]
        if self._in_context:
            self._counted = GeneScores.from_dict(state["context"])

    def importance(self) -> dict[str, float]:
        """Return each feature's share of the boosted trees' gain, largest first."""
        return self._trees.importance

    def predict(self, cells: Cells) -> Scores:
        """Score each pair."""
        table = None
        if self._by_gene:
            table = logit([self._share.get(gene, self._unseen) for gene in cells.genes])
        scores_of = None
        if self._counted is not None:
            scores_of = self._counted.of_panel(cells.genes).scores()
        slope, offset = np.array(self._curves).T

        def calibrated(columns: _Floats) -> NDArray[np.float32]:
            raw = logit(np.clip(self._trees.predict(columns), _SMALL, 1 - _SMALL))
            return np.asarray(expit(slope * raw + offset), np.float32)

        return batch_scores(cells, partial(_columns, table=table, scores=scores_of), calibrated)


class BoostedGene(Boosted):
    """The same trees, with the gene's share of each pattern in other cells as features."""

    about: ClassVar = About(
        name="boosted_gene",
        label="Boosted trees + gene prior",
        kind="model",
        summary=(
            "Boosted trees that also see how often the gene has each pattern in other training "
            "cells."
        ),
        reference="this package",
        inputs=Boosted.about.inputs,
        learns=True,
    )
    _by_gene: ClassVar[bool] = True


class BoostedContext(Boosted):
    """The same trees, which also see the scores of other genes around the pair's molecules."""

    about: ClassVar = About(
        name="boosted_context",
        label="Boosted trees + gene context",
        kind="model",
        summary=(
            "Boosted trees that also see, around a pair's molecules, how often the genes of their "
            "neighbours show each pattern in other training cells; for cells without nuclei."
        ),
        reference="this package",
        inputs=Boosted.about.inputs,
        learns=True,
    )
    _in_context: ClassVar[bool] = True


class _Trees(NamedTuple):
    """Both kinds of trees, from the same pairs."""

    random: Forest
    boosted: Forest
    baseline: list[float]
    importance: dict[str, float]

    @classmethod
    def fit(
        cls, features: _Floats, labels: NDArray[np.bool_], seed: int, names: list[str]
    ) -> _Trees:
        x = np.nan_to_num(features.astype(np.float32), nan=_MISSING)
        random = Forest.fit(x, labels, seed, trees=_TREES, min_leaf=2, random_splits=True)
        parts, baseline = [], []
        gain = np.zeros(x.shape[1])
        for c in range(labels.shape[1]):
            nodes, start = _boost(x, labels[:, c], seed)
            parts.append(nodes)
            baseline.append(start)
            for tree in nodes:
                inner = tree[tree["is_leaf"] == 0]
                np.add.at(gain, inner["feature_idx"], np.maximum(inner["gain"], 0))
        order = np.argsort(-gain, kind="stable")
        shares = gain / max(gain.sum(), _SMALL)
        importance = {names[k]: round(float(shares[k]), 6) for k in order}
        return cls(random, _join_trees(parts), baseline, importance)

    def predict(self, features: _Floats) -> _Floats:
        """Score pairs (n, F): (n, C), the mean of both kinds."""
        x = np.nan_to_num(features.astype(np.float32), nan=_MISSING)
        boosted = expit(self.boosted.sums(x) + np.array(self.baseline))
        return np.asarray((self.random.predict(x) + boosted) / 2)


def _boost(x: NDArray[np.float32], y: NDArray[np.bool_], seed: int) -> tuple[list[Any], float]:
    """Grow the boosted trees of one pattern: their nodes, and their baseline log-odds."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    if y.all() or not y.any():  # no trees: log-odds of a smoothed share
        return [], float(logit((y.sum() + 0.5) / (len(y) + 1)))
    model = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=_ROUNDS,
        max_leaf_nodes=8,
        min_samples_leaf=min(20, max(5, len(y) // 25)),
        l2_regularization=5.0,
        max_features=0.3,
        early_stopping=False,
        random_state=int(np.random.Generator(np.random.Philox(seed)).integers(2**32)),
    )
    model.fit(x, y)
    return [step[0].nodes for step in model._predictors], float(model._baseline_prediction.item())


def _join_trees(patterns: list[list[Any]]) -> Forest:
    """Join the trees of all patterns; a leaf adds to the log-odds of its pattern only."""
    trees = [(tree, c) for c, nodes in enumerate(patterns) for tree in nodes]
    sizes = np.array([len(tree) for tree, _ in trees], dtype=np.int64)
    if not len(sizes):
        leaf, none = np.ones(1, np.bool_), np.zeros(1)
        share = np.zeros((1, len(patterns)), np.float32)
        return Forest.of_nodes(none, leaf, none, none, none, none, none, share)
    nodes = np.concatenate([tree for tree, _ in trees])
    first = np.cumsum(sizes) - sizes
    leaf = nodes["is_leaf"] == 1
    pattern = np.repeat([c for _, c in trees], sizes)[leaf]
    share = np.zeros((int(leaf.sum()), len(patterns)), np.float32)
    share[np.arange(len(share)), pattern] = nodes["value"][leaf]
    left, right = (
        nodes[side].astype(np.int64) + np.repeat(first, sizes) for side in ("left", "right")
    )
    return Forest.of_nodes(
        first, leaf, nodes["feature_idx"], nodes["num_threshold"], left, right,
        nodes["missing_go_to_left"], share,
    )  # fmt: skip


class _GeneShares:
    """Share of each gene's pairs with each pattern; the overall share counts as one more pair."""

    def __init__(self, labels: NDArray[np.bool_], gene: NDArray[np.int32], n_genes: int) -> None:
        pairs = np.bincount(gene, minlength=n_genes)
        sums = np.stack([np.bincount(gene, y, n_genes) for y in labels.T.astype(float)], axis=1)
        self.overall = (labels.sum(axis=0) + 0.5) / (len(labels) + 1)
        self.table = (sums + self.overall) / (pairs[:, None] + 1)


def _folds(cell: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    draws = np.random.Generator(np.random.Philox(seed)).random(int(cell.max()) + 1)
    return np.asarray((np.argsort(np.argsort(draws)) % _FOLDS)[cell])


def _columns(cell: Cell, table: _Floats | None, scores: _Floats | None) -> _Floats:
    """Features of a cell's pairs: with each gene's share, and with the means of its context."""
    parts = [pair_features(cell)]
    if table is not None:
        parts.append(table[cell.genes])
    if scores is not None:
        starts = np.cumsum(cell.counts) - cell.counts
        sums = np.add.reduceat(context_fields(cell, scores).astype(np.float64), starts)
        parts.append(sums / cell.counts[:, None])
    return np.column_stack(parts)


def _curve(score: _Floats, label: NDArray[np.bool_]) -> tuple[float, float]:
    """Fit slope and offset of the logistic curve from a score's log-odds to a label (Platt)."""
    from sklearn.linear_model import LogisticRegression

    if label.all() or not label.any():
        return 1.0, 0.0
    raw = logit(np.clip(score, _SMALL, 1 - _SMALL))[:, None]
    model = LogisticRegression(C=10.0).fit(raw, label)
    slope = float(model.coef_.item())
    if slope <= 0:  # never invert uninformative scores
        return 1.0, 0.0
    return slope, float(model.intercept_.item())
