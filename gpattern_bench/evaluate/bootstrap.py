"""How sure a score is: a bootstrap of whole clusters of cells, its intervals, differences and ties.

Pairs of one cell, and cells of one field of view, resemble each other; so fields of view are drawn
with replacement, not pairs. With fewer than five fields of view, cells are drawn within each: that
says nothing of how fields of view differ, and the result says so.

The interval is ``centre -/+ t * sqrt(standard error^2 + bias^2)``, with the bootstrap's bias and
standard error and the t quantile of the degrees of freedom; the centre is the estimate and, for
the largest F1, which the choice of its threshold biases upwards, the estimate less its bias. Plain
percentiles are too narrow with few clusters, and so is the standard error alone for what is read
at the threshold, such as accuracy: the threshold jumps between replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpattern_bench.errors import EvaluationError

__all__ = ["Resamples", "bootstrap", "includes_zero", "interval", "is_biased", "tie_groups"]

_Floats = NDArray[np.float64]

CONFIDENCE = 0.95
REPLICATES = 1000
_NO_POSITIVES = -1  # instead of the row at which a pattern's threshold ends
MIN_FOVS = 5
"""Fields of view below which cells are drawn within each instead."""


@dataclass(frozen=True)
class Resamples:
    """What is drawn with replacement, and how often in each replicate.

    Attributes
    ----------
    of_pair : numpy.ndarray
        (N,) int32 cluster of every pair.
    weights : numpy.ndarray
        (B, K) float64 times that each cluster was drawn.
    level : str
        ``"fov"``, or ``"cell within fov"`` where there are fewer than five fields of view.
    degrees_of_freedom : int
        Resamples, less one for each group that they are drawn within.
    """

    of_pair: NDArray[np.int32]
    weights: _Floats
    level: str
    degrees_of_freedom: int

    @property
    def n(self) -> int:
        """Number of clusters."""
        return int(self.weights.shape[1])

    @classmethod
    def draw(cls, pairs: pd.DataFrame, *, seed: int = 0, replicates: int = REPLICATES) -> Resamples:
        """Draw replicates for pairs with columns ``fov`` and ``cell_id``; seeded.

        Raises
        ------
        EvaluationError
            A pair has no FOV or cell, or fewer than one replicate is asked for.
        """
        if replicates < 1:
            raise EvaluationError(f"expected 1 or more bootstrap replicates, got {replicates}")
        lacking = int(pairs[["fov", "cell_id"]].isna().any(axis=1).sum())
        if lacking:
            raise EvaluationError(
                f"the labels lack fov or cell_id in {lacking} rows: intervals need both of every "
                "pair; name them, or drop the column fov to have no intervals"
            )
        rng = np.random.Generator(np.random.Philox(seed))
        fov, fovs = pd.factorize(pairs["fov"], sort=True)
        if len(fovs) >= MIN_FOVS:
            weights = _drawn(rng, np.zeros(len(fovs), dtype=np.int64), replicates)
            return cls(fov.astype(np.int32), weights, "fov", len(fovs) - 1)
        cell, cells = pd.factorize(pairs["cell_id"], sort=True)
        home = np.zeros(len(cells), dtype=np.int64)
        home[cell] = fov
        freedom = len(cells) - len(fovs)
        weights = _drawn(rng, home, replicates)
        return cls(cell.astype(np.int32), weights, "cell within fov", freedom)


def _drawn(rng: np.random.Generator, group: NDArray[np.int64], replicates: int) -> _Floats:
    """Times (B, K) that each member is drawn, as many draws in each group as it has members."""
    weights = np.zeros((replicates, len(group)))
    for g in np.unique(group):
        members = np.flatnonzero(group == g)
        # Uniforms and floor: the same draws on every machine and numpy.
        picks = members[(rng.random((replicates, len(members))) * len(members)).astype(np.int64)]
        np.add.at(weights, (np.arange(replicates)[:, None], picks), 1.0)
    return weights


def bootstrap(
    truth: NDArray[np.bool_],
    scores: NDArray[np.floating[Any]],
    clusters: Resamples,
    thresholds_val: Sequence[float] | None = None,
) -> dict[str, _Floats]:
    """Compute every metric on every replicate.

    The threshold of largest F1 is chosen anew in each replicate, as it was on the labels; that of
    the val split stays as it is. A replicate without positives of a pattern (for AUC: without one
    class) has no value there, and none in the mean over the patterns.

    Parameters
    ----------
    truth, scores : numpy.ndarray
        (N, C) labels and scores.
    clusters : Resamples
        Of the same N pairs.
    thresholds_val : sequence of float, optional
        (C,) thresholds chosen on val, NaN where there is none.

    Returns
    -------
    dict of str to numpy.ndarray
        Metric -> (B, C) for ``auc acc f1 ap precision recall`` (and ``f1_val acc_val``), and
        ``accuracy_subset`` -> (B,).
    """
    from gpattern_bench.evaluate.threshold_sweep import (
        replicated_sweep,  # numba, only for who scores
    )

    n, patterns = truth.shape
    names = ["auc", "acc", "f1", "ap", "precision", "recall"]
    out = {name: np.full((len(clusters.weights), patterns), nan) for name in names}
    ranks = np.empty((patterns, n), dtype=np.int32)
    ends = np.empty((patterns, len(clusters.weights)), dtype=np.int32)
    with np.errstate(divide="ignore", invalid="ignore"):  # no positives: NaN, as documented
        for k in range(patterns):
            order = np.argsort(-scores[:, k], kind="stable")
            falling = scores[order, k]
            last = np.append(falling[1:] != falling[:-1], True)
            rows = clusters.of_pair[order] << 2 | last << 1 | truth[order, k]
            size, P, two_u, ap, tp, m, end = replicated_sweep(
                rows.astype(np.int32), clusters.weights
            ).T
            ranks[k, order] = np.arange(n, dtype=np.int32)
            ends[k] = np.where(P > 0, end, _NO_POSITIVES)
            out["auc"][:, k] = two_u / (2 * P * (size - P))
            out["ap"][:, k] = ap / P
            out["f1"][:, k] = np.where(P > 0, 2 * tp / (m + P), nan)
            out["acc"][:, k] = np.where(P > 0, (size - P - m + 2 * tp) / size, nan)
            out["precision"][:, k] = np.where(P > 0, tp / m, nan)
            out["recall"][:, k] = tp / P
        out["accuracy_subset"] = _subset_accuracy(truth, ranks, ends, clusters)
        if thresholds_val is not None:
            out |= _at_thresholds(truth, scores, clusters, thresholds_val)
    return out


def _subset_accuracy(
    truth: NDArray[np.bool_],
    ranks: NDArray[np.int32],
    ends: NDArray[np.int32],
    clusters: Resamples,
) -> _Floats:
    """Share (B,) of pairs of which all patterns are right at each replicate's thresholds.

    Patterns without positives in a replicate are left out of it.
    """
    values = np.full(len(clusters.weights), nan)
    sizes = clusters.weights @ np.bincount(clusters.of_pair, minlength=clusters.n)
    for b in np.flatnonzero((ends > _NO_POSITIVES).any(axis=0) & (sizes > 0)):
        right = np.ones(len(truth), dtype=bool)
        for k in np.flatnonzero(ends[:, b] > _NO_POSITIVES):
            right &= (ranks[k] <= ends[k, b]) == truth[:, k]
        hits = np.bincount(clusters.of_pair, right, minlength=clusters.n) @ clusters.weights[b]
        values[b] = hits / sizes[b]
    return values


def _at_thresholds(
    truth: NDArray[np.bool_],
    scores: NDArray[np.floating[Any]],
    clusters: Resamples,
    thresholds: Sequence[float],
) -> dict[str, _Floats]:
    """F1 and accuracy (B, C) at fixed thresholds: counts per cluster, weighted."""
    f1 = np.full((len(clusters.weights), truth.shape[1]), nan)
    acc = f1.copy()

    def drawn(rows: NDArray[np.bool_]) -> _Floats:
        return clusters.weights @ np.bincount(clusters.of_pair[rows], minlength=clusters.n)

    size = drawn(np.ones(len(truth), dtype=bool))
    for k, threshold in enumerate(thresholds):
        if not isnan(threshold):
            called = scores[:, k] >= scores.dtype.type(threshold)
            P, m, tp = drawn(truth[:, k]), drawn(called), drawn(called & truth[:, k])
            f1[:, k] = np.where(P > 0, 2 * tp / (m + P), nan)
            acc[:, k] = np.where(P > 0, (size - P - m + 2 * tp) / size, nan)
    return {"f1_val": f1, "acc_val": acc}


def interval(
    estimate: float,
    replicates: _Floats,
    degrees_of_freedom: int,
    limits: tuple[float, float] = (0.0, 1.0),
    *,
    biased: bool = False,
) -> list[float]:
    """95 % interval [low, high] of an estimate from its bootstrap replicates.

    ``estimate -/+ t * sqrt(standard error^2 + bias^2)``, cut at the limits of the metric; NaN where
    the estimate is, where there are no degrees of freedom, where more than half of the replicates
    have no value, or fewer than two have one.

    Parameters
    ----------
    estimate : float
    replicates : numpy.ndarray
        (B,) the metric on each replicate.
    degrees_of_freedom : int
    limits : tuple of float
        Between which the metric lies.
    biased : bool
        Whether the estimate is the largest of something (:func:`is_biased`): its bias is taken off.

    Examples
    --------
    >>> interval(0.5, np.array([0.4, 0.5, 0.6]), 19)
    [0.290..., 0.709...]
    """
    from scipy.special import stdtrit  # the quantile of t, without the whole of scipy.stats

    known = replicates[~np.isnan(replicates)]
    few = len(known) < 2 or 2 * len(known) <= len(replicates)
    if isnan(estimate) or degrees_of_freedom < 1 or few:
        return [nan, nan]
    bias = float(np.mean(known)) - estimate
    middle = estimate - bias if biased else estimate
    t = float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))
    half = t * float(np.hypot(np.std(known, ddof=1), bias))
    return [
        float(np.clip(middle - half, *limits)),
        float(np.clip(middle + half, *limits)),
    ]


def is_biased(metric: str) -> bool:
    """Whether a metric is the largest over thresholds (F1), or a difference with one that is."""
    return metric in ("f1", "f1_macro", "f1_gap_macro")


def includes_zero(ci: Sequence[float]) -> bool:
    """Whether a difference with this interval may be 0; an unknown interval excludes nothing."""
    return isnan(ci[0]) or ci[0] <= 0 <= ci[1]


def tie_groups(
    estimates: Mapping[str, float], replicates: Mapping[str, _Floats], degrees_of_freedom: int
) -> dict[str, int]:
    """Group methods whose F1 cannot be told apart from that of the best of their group.

    The best method leads group 1; every next one joins the group as long as the 95 % interval of
    its paired difference from the group's leader includes 0, and else leads the next group.

    Parameters
    ----------
    estimates : mapping of str to float
        Method -> macro F1.
    replicates : mapping of str to numpy.ndarray
        Method -> (B,) its F1, on the same replicates for all methods.
    degrees_of_freedom : int
        Of the clusters.

    Returns
    -------
    dict of str to int
        Method -> group, from 1; methods whose metric is undefined have none.

    Examples
    --------
    >>> noise = np.linspace(-0.1, 0.1, 50)
    >>> tie_groups({"a": 0.9, "b": 0.89, "c": 0.2},
    ...            {"a": 0.9 + noise, "b": 0.89 - noise, "c": 0.2 + noise / 2}, 19)
    {'a': 1, 'b': 1, 'c': 2}
    """
    groups: dict[str, int] = {}
    leader, group = "", 0
    ranked = sorted((n for n in estimates if not isnan(estimates[n])), key=lambda n: -estimates[n])
    for name in ranked:
        if leader:
            low, high = interval(
                estimates[leader] - estimates[name],
                replicates[leader] - replicates[name],
                degrees_of_freedom,
                (-1.0, 1.0),
                biased=True,
            )
            tied = includes_zero([low, high])
        if not leader or not tied:
            leader, group = name, group + 1
        groups[name] = group
    return groups
