"""The exact metrics of one pattern (paper, section 2.2): fractions, not per cent; NaN: undefined.

Counts are integers, thresholds are compared on integers, and each result is one division or one
correctly rounded sum: no number depends on the order of the rows or on the platform.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum, isnan, nan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpattern_bench.errors import EvaluationError

__all__ = ["PatternScore", "at_threshold", "exact_mean", "score_pattern"]

_Bools = NDArray[np.bool_]
_Ints = NDArray[np.int64]
_Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PatternScore:
    """The metrics of one pattern over N pairs of a cell and a gene; fractions, not per cent.

    Attributes
    ----------
    n, n_positive : int
        Number of pairs N, and P of them with the pattern.
    prevalence, floor : float
        P / N, and 2P / (N + P), the F1 of calling every pair positive; NaN with N = 0.
    auc : float
        P(score of a positive > score of a negative) + half the ties; NaN with one class.
    ap : float
        Average precision, the step sum of precision over recall; NaN without positives.
    f1, threshold : float
        The largest F1, and the lowest score that reaches it; NaN without positives.
    acc, precision, recall : float
        Taken at `threshold`; NaN without positives.
    """

    n: int
    n_positive: int
    prevalence: float
    auc: float
    ap: float
    f1: float
    threshold: float
    acc: float
    precision: float
    recall: float
    floor: float


def score_pattern(y_true: ArrayLike, y_score: ArrayLike) -> PatternScore:
    """Return all metrics of one pattern (paper, section 2.2).

    A pair is called positive at t when its score >= t; M pairs are. The distinct scores are the
    thresholds, compared by F1 = 2 TP / (M + P) exactly, and exact ties go to the lowest.

    Parameters
    ----------
    y_true : array_like of bool, shape (N,)
        Whether the pair has the pattern; the numbers 0 and 1 also pass.
    y_score : array_like of float32 or float64, shape (N,)
        Scores, finite and in [0, 1]; compared in their own precision.

    Raises
    ------
    EvaluationError
        Shapes, types or values other than these; nothing is clipped.

    Examples
    --------
    >>> score = score_pattern([True, False, False, True, False], [0.9, 0.8, 0.7, 0.6, 0.1])
    >>> score.threshold, score.acc, score.auc
    (0.6, 0.6, 0.6666666666666666)
    """
    true, values = _validated(y_true, y_score)
    N, P = len(true), int(np.count_nonzero(true))
    if P == 0:
        zero = 0.0 if N else nan
        return PatternScore(N, 0, zero, nan, nan, nan, nan, nan, nan, nan, zero)
    thresholds, tp, m = _counts(true, values)
    best = _best(tp, m, P)
    tau = float(thresholds[best]) + 0.0  # + 0.0 turns -0.0 into 0.0
    TP, M = int(tp[best]), int(m[best])
    f1, acc = _f1_acc(N, P, TP, M)
    auc, ap, floor = _auc(tp, m), _average_precision(tp, m), 2 * P / (N + P)
    return PatternScore(N, P, P / N, auc, ap, f1, tau, acc, TP / M, TP / P, floor)


def at_threshold(y_true: ArrayLike, y_score: ArrayLike, threshold: float) -> tuple[float, float]:
    """Return F1 and accuracy (fractions) at a given threshold, such as one chosen on ``val``.

    Parameters
    ----------
    y_true, y_score : array_like, shape (N,)
        As in :func:`score_pattern`, with the same errors.
    threshold : float
        In [0, 1], or NaN for none; it is rounded to the precision of `y_score`.

    Returns
    -------
    f1, acc : float
        F1 is NaN without positives in `y_true`; both are with N = 0 or `threshold` NaN.

    Examples
    --------
    >>> at_threshold([True, False, True, False], [0.9, 0.8, 0.7, 0.1], 0.5)
    (0.8, 0.75)
    """
    true, values = _validated(y_true, y_score)
    if not (isnan(threshold) or 0 <= threshold <= 1):
        what = f"threshold: expected a number in [0, 1], or NaN for none, got {threshold}."
        raise EvaluationError(f"{what} Pass one that score_pattern returned.")
    if len(true) == 0 or isnan(threshold):
        return nan, nan
    called = values >= values.dtype.type(threshold)
    P, TP, M = (int(np.count_nonzero(rows)) for rows in (true, called & true, called))
    return _f1_acc(len(true), P, TP, M)


def exact_mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN (the macro average); NaN if there are none.

    >>> exact_mean([0.5, float("nan"), 1.0])
    0.75
    """
    defined = [float(value) for value in values if not isnan(value)]
    return fsum(defined) / len(defined) if defined else nan


def _validated(y_true: ArrayLike, y_score: ArrayLike) -> tuple[_Bools, _Floats]:
    true, values = np.asarray(y_true), np.asarray(y_score)
    if true.ndim != 1 or true.shape != values.shape:
        raise EvaluationError(
            f"y_true and y_score: expected one shape (N,), got {true.shape} and {values.shape}. "
            "Give one label and one score per pair, one pattern at a time."
        )
    if true.dtype.kind not in "biuf" or values.dtype.type not in (np.float32, np.float64):
        what = "y_true and y_score: expected dtypes bool and float32 or float64"
        raise EvaluationError(f"{what}, got {true.dtype} and {values.dtype}. Convert them.")
    _check_rows("y_true", true, (true == 0) | (true == 1), "0 or 1", "Convert the labels to bool.")
    fix = "Scores are never clipped: map them to [0, 1], for example with a sigmoid."
    _check_rows("y_score", values, (values >= 0) & (values <= 1), "a finite score in [0, 1]", fix)
    return true.astype(np.bool_, copy=False), values


def _check_rows(name: str, array: NDArray[Any], good: _Bools, expected: str, fix: str) -> None:
    if not good.all():
        row, bad = int(np.argmin(good)), int(np.count_nonzero(~good))
        what = f"{name}: row {row} (the first row is 0): expected {expected}, got {array[row]}"
        raise EvaluationError(f"{what}; {bad} of {len(good)} rows are wrong. {fix}")


def _counts(true: _Bools, values: _Floats) -> tuple[_Floats, _Ints, _Ints]:
    """Return the distinct scores, ascending, with TP and M at each (N >= 1).

    The order within equal scores does not matter. Products of two counts fit for N < 2^31.
    """
    order = np.argsort(values)
    ranked = values[order]
    first = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    positives = np.concatenate(([0], np.cumsum(true[order], dtype=np.int64)))
    return ranked[first], positives[-1] - positives[first], len(ranked) - first.astype(np.int64)


def _best(tp: _Ints, m: _Ints, P: int) -> int:
    # Rounding keeps the order: only the largest rounded F1 are compared again, exactly.
    rounded = 2 * tp / (m + P)
    rivals = np.flatnonzero(rounded == rounded.max())
    while len(rivals):
        best = rivals[0]  # the lowest threshold among those better than the last best
        rivals = rivals[tp[rivals] * (m[best] + P) > tp[best] * (m[rivals] + P)]
    return int(best)


def _f1_acc(N: int, P: int, TP: int, M: int) -> tuple[float, float]:
    return 2 * TP / (M + P) if P else nan, (N - P - M + 2 * TP) / N


def _auc(tp: _Ints, m: _Ints) -> float:
    fp = m - tp
    pos, neg = -np.diff(tp, append=0), -np.diff(fp, append=0)  # at each score
    two_u = int(np.sum(pos * (2 * (fp[0] - fp) + neg)))
    return two_u / (2 * int(tp[0]) * int(fp[0])) if fp[0] else nan


def _average_precision(tp: _Ints, m: _Ints) -> float:
    pos = -np.diff(tp, append=0)
    at = np.flatnonzero(pos)  # a threshold without positives of its own adds nothing
    return fsum((pos[at] * tp[at] / m[at]).tolist()) / int(tp[0])
