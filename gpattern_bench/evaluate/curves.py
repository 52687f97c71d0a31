"""Compute the curves that the board stores and draws for a prediction file."""

from __future__ import annotations

from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat
from typing_extensions import TypedDict

from gpattern_bench.base.files import plain
from gpattern_bench.evaluate.metrics import score_pattern, validated

__all__ = ["Bin", "Curves", "PatternCurves", "compute_curves", "pattern_curves"]

_STEPS = 40  # of a curve; it has at most 41 points
_BINS = 10
_DIGITS = 4

_Ints = NDArray[np.int64]


class PatternCurves(TypedDict):
    """Curves of one pattern; fractions rounded to 4 decimals.

    ``roc`` = [false positive rate, recall] and ``pr`` = [recall, precision], from the highest
    threshold to the lowest; empty if undefined. ``reliability`` = [mean score, share of positives,
    number of pairs] of the scores in each tenth of [0, 1]; empty tenths are absent.
    """

    roc: list[list[FiniteFloat]]
    pr: list[list[FiniteFloat]]
    reliability: list[list[FiniteFloat]]


class Bin(TypedDict):
    """Pairs with similar numbers of molecules: name, size, and pattern -> value (null: undefined).

    Each has its own thresholds, as in
    :meth:`~gpattern_bench.evaluate.evaluator.Evaluator.strata`.
    """

    molecules: str
    n: int
    f1: dict[str, FiniteFloat | None]
    auc: dict[str, FiniteFloat | None]
    floor: dict[str, FiniteFloat | None]


class Curves(TypedDict):
    """Curves of one prediction file."""

    per_pattern: dict[str, PatternCurves]
    molecules: list[Bin]


def compute_curves(
    truth: NDArray[np.bool_],
    scores: NDArray[np.floating[Any]],
    patterns: tuple[str, ...],
    part: NDArray[np.int64],
    names: list[str],
) -> Curves:
    """Compute the curves of every pattern, and metrics by molecules per pair.

    Parameters
    ----------
    truth, scores : numpy.ndarray
        (N, C) bool, and (N, C) finite scores in [0, 1].
    patterns : tuple of str
        The C patterns.
    part, names
        (N,) code of the bin of each pair and the bins' names
        (:func:`gpattern_bench.evaluate.strata.stratify`); empty bins are absent.
    """
    bins: list[Bin] = []
    for code, name in enumerate(names):
        rows = part == code
        if not rows.any():
            continue
        found = {p: score_pattern(truth[rows, k], scores[rows, k]) for k, p in enumerate(patterns)}
        values: dict[str, dict[str, float | None]] = {
            metric: {p: plain(round(getattr(s, metric), _DIGITS)) for p, s in found.items()}
            for metric in ("f1", "auc", "floor")
        }
        bins.append({"molecules": name, "n": int(rows.sum()), **values})  # type: ignore[typeddict-item]
    return {
        "per_pattern": {
            pattern: pattern_curves(truth[:, k], scores[:, k]) for k, pattern in enumerate(patterns)
        },
        "molecules": bins,
    }


def pattern_curves(truth: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> PatternCurves:
    """Compute the curves of one pattern.

    Up to 41 distinct scores give a point each; more are thinned to 41 points, evenly along the
    curve (ROC) or along recall (PR). Integer counts and exact sums make the result independent of
    the order of the pairs.

    Parameters
    ----------
    truth, scores : numpy.ndarray
        (N,) bool, and (N,) finite scores in [0, 1].

    Examples
    --------
    >>> found = pattern_curves(np.array([True, False, True]), np.array([0.9, 0.8, 0.3]))
    >>> found["roc"]
    [[0.0, 0.0], [0.0, 0.5], [1.0, 0.5], [1.0, 1.0]]
    >>> found["pr"]
    [[0.5, 1.0], [0.5, 0.5], [1.0, 0.6667]]
    >>> found["reliability"]
    [[0.3, 1.0, 1], [0.8, 0.0, 1], [0.9, 1.0, 1]]
    """
    truth, scores = validated(truth, scores)
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-1.0))  # row of each distinct score
    tp: _Ints = np.cumsum(truth[order], dtype=np.int64)[last]
    fp: _Ints = last + 1 - tp
    P, N = int(truth.sum()), int((~truth).sum())
    roc, pr = [], []
    if P and N:
        tp0, fp0 = np.r_[0, tp], np.r_[0, fp]
        at = _picked(fp0 * P + tp0 * N, 2 * P * N)
        roc = [[_rounded(fp0[i], N), _rounded(tp0[i], P)] for i in at]
    if P:
        pr = [[_rounded(tp[i], P), _rounded(tp[i], tp[i] + fp[i])] for i in _picked(tp, P)]
    tenth = np.minimum(scores.astype(np.float64) * _BINS, _BINS - 1).astype(np.int64)
    reliability = []
    for k in range(_BINS):
        rows = tenth == k
        n = int(rows.sum())
        if n:
            mean = fsum(scores[rows].tolist()) / n
            share = _rounded(int(truth[rows].sum()), n)
            reliability.append([round(mean, _DIGITS), share, n])
    return {"roc": roc, "pr": pr, "reliability": reliability}


def _picked(length: _Ints, whole: int) -> list[int]:
    """Pick at most 41 points, evenly by their length (N,) along the curve; it never falls."""
    if len(length) <= _STEPS + 1:
        return list(range(len(length)))
    targets = np.arange(_STEPS + 1, dtype=np.int64) * whole
    found: list[int] = np.unique(np.searchsorted(length * _STEPS, targets)).tolist()
    return found


def _rounded(a: int, b: int) -> float:
    return round(int(a) / int(b), _DIGITS)
