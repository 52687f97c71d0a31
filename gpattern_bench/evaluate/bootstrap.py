"""Bootstrap whole clusters of cells: intervals of scores, paired differences and ties.

Pairs of one cell and cells of one field of view are correlated, so the bootstrap draws fields of
view, not pairs. Below five fields of view it draws cells within each, which ignores differences
between fields of view; the result says so.

The interval is ``centre -/+ t * sqrt(standard error^2 + bias^2)``, with the bootstrap's bias and
standard error and the t quantile of the degrees of freedom. The centre is the estimate; for the
largest F1, biased upwards by the choice of its threshold, the estimate minus its bias. Percentile
intervals are too narrow with few clusters. The standard error alone is too narrow for metrics at
the threshold, such as accuracy: the threshold jumps between replicates.
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
_Counts = NDArray[np.uint8]

CONFIDENCE = 0.95
REPLICATES = 1000
MIN_FOVS = 5
"""Fewest fields of view to draw; with fewer, cells are drawn within each."""
_ROWS = 64  # replicates of weights at a time as floats
_NO_POSITIVES = -1  # instead of the last row at a pattern's threshold


@dataclass(frozen=True)
class Resamples:
    """Bootstrap replicates: how often each cluster was drawn.

    Attributes
    ----------
    of_pair : numpy.ndarray
        (N,) int32 cluster of each pair.
    weights : numpy.ndarray
        (B, K) number of draws of each cluster, as bytes: widen them before sums and products.
    level : str
        ``"fov"``, or ``"cell within fov"`` below five fields of view; ``"gene"`` of genes.
    degrees_of_freedom : int
        Clusters minus groups of clusters.
    """

    of_pair: NDArray[np.int32]
    weights: _Counts
    level: str
    degrees_of_freedom: int

    @property
    def n(self) -> int:
        """Number of clusters."""
        return int(self.weights.shape[1])

    @classmethod
    def draw(cls, pairs: pd.DataFrame, *, seed: int = 0, replicates: int = REPLICATES) -> Resamples:
        """Draw replicates for pairs with columns ``fov`` and ``cell_id``.

        Raises
        ------
        EvaluationError
            A pair lacks its FOV or cell, or `replicates` is below 1.
        """
        if replicates < 1:
            raise EvaluationError(f"expected 1 or more bootstrap replicates, got {replicates}")
        lacking = int(pairs[["fov", "cell_id"]].isna().any(axis=1).sum())
        if lacking:
            raise EvaluationError(
                f"the labels lack fov or cell_id in {lacking} rows: intervals need both for every "
                "pair; add them, or drop the column fov to go without intervals"
            )
        rng = np.random.Generator(np.random.Philox(seed))
        fov, fovs = pd.factorize(pairs["fov"], sort=True)
        if len(fovs) >= MIN_FOVS:
            weights = _draw_counts(rng, np.zeros(len(fovs), dtype=np.int64), replicates)
            return cls(fov.astype(np.int32), weights, "fov", len(fovs) - 1)
        cell, cells = pd.factorize(pairs["cell_id"], sort=True)
        home = np.zeros(len(cells), dtype=np.int64)
        home[cell] = fov
        freedom = len(cells) - len(fovs)
        weights = _draw_counts(rng, home, replicates)
        return cls(cell.astype(np.int32), weights, "cell within fov", freedom)

    @classmethod
    def of_genes(cls, n: int, *, seed: int = 0, replicates: int = REPLICATES) -> Resamples:
        """Draw replicates of n genes, each a cluster of its own."""
        rng = np.random.Generator(np.random.Philox(seed))
        weights = _draw_counts(rng, np.zeros(n, dtype=np.int64), replicates)
        return cls(np.arange(n, dtype=np.int32), weights, "gene", n - 1)


def _draw_counts(rng: np.random.Generator, group: NDArray[np.int64], replicates: int) -> _Counts:
    """Count draws (B, K) of each member; each group of n members gets n draws."""
    # Bytes hold them: of 256 and more members, none is drawn 256 times (odds below 1 in 256!).
    weights = np.zeros((replicates, len(group)), dtype=np.uint8)
    for g in np.unique(group):
        members = np.flatnonzero(group == g)
        n = len(members)
        for row in weights:
            # Uniforms and floor: the same draws on every machine and with every numpy.
            row[members] = np.bincount((rng.random(n) * n).astype(np.int64), minlength=n)
    return weights


def bootstrap(
    truth: NDArray[np.bool_],
    scores: NDArray[np.floating[Any]],
    resamples: Resamples,
    thresholds_val: Sequence[float] | None = None,
) -> dict[str, _Floats]:
    """Compute every metric on every replicate.

    Each replicate chooses its own threshold of largest F1, as the estimate does; thresholds from
    val are fixed. A replicate without positives of a pattern (for AUC: with one class only) is NaN
    there and in the mean over the patterns.

    Parameters
    ----------
    truth, scores : numpy.ndarray
        (N, C) labels and scores.
    resamples : Resamples
        Of the same N pairs.
    thresholds_val : sequence of float, optional
        (C,) thresholds chosen on val, or NaN.

    Returns
    -------
    dict of str to numpy.ndarray
        Metric -> (B, C) for ``auc acc f1 ap precision recall`` (and ``f1_val acc_val``), and
        ``accuracy_subset`` -> (B,).
    """
    # imports numba
    from gpattern_bench.evaluate.threshold_sweep import (
        falling_rows,
        replicated_right,
        replicated_sweep,
    )

    n, patterns = truth.shape
    names = ["auc", "acc", "f1", "ap", "precision", "recall"]
    out = {name: np.full((len(resamples.weights), patterns), nan) for name in names}
    codes = np.empty((patterns, n), dtype=np.int32)
    ends = np.empty((patterns, len(resamples.weights)), dtype=np.int32)
    with np.errstate(divide="ignore", invalid="ignore"):  # no positives: NaN
        for k in range(patterns):
            rows, codes[k] = falling_rows(truth[:, k], scores[:, k], resamples.of_pair)
            size, P, two_u, ap, tp, m, end = replicated_sweep(rows, resamples.weights).T
            ends[k] = np.where(P > 0, end, _NO_POSITIVES)
            out["auc"][:, k] = two_u / (2 * P * (size - P))
            out["ap"][:, k] = ap / P
            out["f1"][:, k] = np.where(P > 0, 2 * tp / (m + P), nan)
            out["acc"][:, k] = np.where(P > 0, (size - P - m + 2 * tp) / size, nan)
            out["precision"][:, k] = np.where(P > 0, tp / m, nan)
            out["recall"][:, k] = tp / P
        # Ignores patterns without positives in the replicate; with all of them: NaN.
        right = replicated_right(codes, ends, resamples.of_pair, resamples.weights)
        known = (ends > _NO_POSITIVES).any(axis=0)
        out["accuracy_subset"] = np.where(known, right / size, nan)
        if thresholds_val is not None:
            out |= _at_thresholds(truth, scores, resamples, thresholds_val)
    return out


def _at_thresholds(
    truth: NDArray[np.bool_],
    scores: NDArray[np.floating[Any]],
    resamples: Resamples,
    thresholds: Sequence[float],
) -> dict[str, _Floats]:
    """Return F1 and accuracy (B, C) at fixed thresholds, from weighted counts per cluster."""
    f1 = np.full((len(resamples.weights), truth.shape[1]), nan)
    acc = f1.copy()
    known = np.flatnonzero(~np.isnan(thresholds))
    limits = np.asarray(thresholds, dtype=scores.dtype)[known]
    called, true = scores[:, known] >= limits, truth[:, known]
    rows = np.hstack([np.ones((len(truth), 1), dtype=bool), true, called, called & true])
    counts = np.empty((resamples.n, rows.shape[1]))
    for j, column in enumerate(rows.T):
        counts[:, j] = np.bincount(resamples.of_pair[column], minlength=resamples.n)
    for first in range(0, len(f1), _ROWS):  # as floats, all weights take 8 times their memory
        some = slice(first, first + _ROWS)
        sums = resamples.weights[some].astype(np.float64) @ counts
        size, (P, m, tp) = sums[:, :1], np.split(sums[:, 1:], 3, axis=1)
        f1[some, known] = np.where(P > 0, 2 * tp / (m + P), nan)
        acc[some, known] = np.where(P > 0, (size - P - m + 2 * tp) / size, nan)
    return {"f1_val": f1, "acc_val": acc}


def interval(
    estimate: float,
    replicates: _Floats,
    degrees_of_freedom: int,
    limits: tuple[float, float] = (0.0, 1.0),
    *,
    biased: bool = False,
) -> list[float]:
    """Return the 95 % interval [low, high] of an estimate from its bootstrap replicates.

    ``estimate -/+ t * sqrt(standard error^2 + bias^2)``, cut at the limits of the metric. NaN if
    the estimate is NaN, without degrees of freedom, and unless more than half of the replicates,
    and at least two, have a value.

    Parameters
    ----------
    estimate : float
    replicates : numpy.ndarray
        (B,) metric of each replicate.
    degrees_of_freedom : int
    limits : tuple of float
        Range of the metric.
    biased : bool
        Subtract the bias, as for maxima (:func:`is_biased`).

    Examples
    --------
    >>> interval(0.5, np.array([0.4, 0.5, 0.6]), 19)
    [0.290..., 0.709...]
    """
    from scipy.special import stdtrit  # quantile of t, without scipy.stats

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
    """True for the largest F1 over thresholds, and for its gap."""
    return metric in ("f1", "f1_macro", "f1_gap_macro")


def includes_zero(ci: Sequence[float]) -> bool:
    """True if the interval includes 0 or is NaN."""
    return isnan(ci[0]) or ci[0] <= 0 <= ci[1]


def tie_groups(
    estimates: Mapping[str, float], replicates: Mapping[str, _Floats], degrees_of_freedom: int
) -> dict[str, int]:
    """Group methods tied with the best of their group in F1.

    The best method leads group 1. In order of F1, each next method joins the group if the 95 %
    interval of its paired difference from the leader includes 0; otherwise it leads the next group.

    Parameters
    ----------
    estimates : mapping of str to float
        Method -> macro F1.
    replicates : mapping of str to numpy.ndarray
        Method -> (B,) F1, on the same replicates for all methods.
    degrees_of_freedom : int
        Of the replicates.

    Returns
    -------
    dict of str to int
        Method -> group, from 1; methods with undefined F1 are absent.

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
