"""Compute the exact metrics of one pattern (paper, section 2.2): fractions; NaN: undefined.

Integer counts and comparisons, then one division or one correctly rounded sum: no number depends on
the order of the rows or on the platform.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum, isnan, nan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpattern_bench.errors import EvaluationError
from gpattern_bench.evaluate.inputs import as_labels, paired_vectors

__all__ = ["PatternScore", "at_threshold", "exact_mean", "score_pattern", "validated"]

_Bools = NDArray[np.bool_]
_Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PatternScore:
    """Metrics of one pattern over N pairs of a cell and a gene; fractions.

    Attributes
    ----------
    n, n_positive : int
        Number of pairs N, and of pairs with the pattern P.
    prevalence, floor : float
        P / N, and 2P / (N + P), the F1 of calling every pair positive; NaN with N = 0.
    auc : float
        P(score of a positive > score of a negative) + half the ties; NaN with one class.
    ap : float
        Average precision, the step sum of precision over recall; NaN without positives.
    f1, threshold : float
        The largest F1, and the lowest threshold that reaches it; NaN without positives.
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
    """Compute all metrics of one pattern (paper, section 2.2).

    Threshold t calls the M pairs with score >= t. The distinct scores are the thresholds, compared
    exactly by F1 = 2 TP / (M + P); the lowest wins ties.

    Parameters
    ----------
    y_true : array_like of bool, shape (N,)
        Whether the pair has the pattern; 0 and 1 also pass.
    y_score : array_like of float32 or float64, shape (N,)
        Scores, finite and in [0, 1]; compared in their own precision. Two pandas.Series are
        aligned by their index.

    Raises
    ------
    EvaluationError
        Other shapes, types or values, masked values, or an index that cannot be aligned; scores
        are never clipped.

    Examples
    --------
    >>> score = score_pattern([True, False, False, True, False], [0.9, 0.8, 0.7, 0.6, 0.1])
    >>> score.threshold, score.acc, score.auc
    (0.6, 0.6, 0.6666666666666666)
    """
    from gpattern_bench.evaluate.threshold_sweep import sorted_keys, sweep  # imports numba

    true, values = validated(y_true, y_score)
    N, P = len(true), int(np.count_nonzero(true))
    keys, wrong, row = sorted_keys(true, values)
    if wrong:
        _refuse(values, row, wrong)
    if P == 0:
        zero = 0.0 if N else nan
        return PatternScore(N, 0, zero, nan, nan, nan, nan, nan, nan, nan, zero)
    found = sweep(keys, P)
    best = keys[found.row : found.row + 1] >> 1
    tau = float(best.view(values.dtype.newbyteorder("="))[0])
    f1, acc = _f1_acc(N, P, found.tp, found.m)
    auc = found.two_u / (2 * P * (N - P)) if P < N else nan
    ap, floor = found.ap / P, 2 * P / (N + P)
    precision, recall = found.tp / found.m, found.tp / P
    return PatternScore(N, P, P / N, auc, ap, f1, tau, acc, precision, recall, floor)


def at_threshold(y_true: ArrayLike, y_score: ArrayLike, threshold: float) -> tuple[float, float]:
    """Compute F1 and accuracy (fractions) at a given threshold, such as one chosen on ``val``.

    Parameters
    ----------
    y_true, y_score : array_like, shape (N,)
        As in :func:`score_pattern`, with the same errors.
    threshold : float
        In [0, 1], rounded to the precision of `y_score`; NaN: none.

    Returns
    -------
    f1, acc : float
        F1 is NaN without positives in `y_true`; both are NaN with N = 0 or without threshold.

    Examples
    --------
    >>> at_threshold([True, False, True, False], [0.9, 0.8, 0.7, 0.1], 0.5)
    (0.8, 0.75)
    """
    true, values = validated(y_true, y_score)
    good = (values >= 0) & (values <= 1)
    if not good.all():
        _refuse(values, int(np.argmin(good)), int(np.count_nonzero(~good)))
    if not (isnan(threshold) or 0 <= threshold <= 1):
        what = f"threshold: expected a number in [0, 1], or NaN for none, got {threshold}."
        raise EvaluationError(f"{what} Pass one that score_pattern returned.")
    if len(true) == 0 or isnan(threshold):
        return nan, nan
    called = values >= values.dtype.type(threshold)
    P, TP, M = (int(np.count_nonzero(rows)) for rows in (true, called & true, called))
    return _f1_acc(len(true), P, TP, M)


def exact_mean(values: Iterable[float]) -> float:
    """Return the mean of the non-NaN values (the macro average); NaN without any.

    >>> exact_mean([0.5, float("nan"), 1.0])
    0.75
    """
    defined = [float(value) for value in values if not isnan(value)]
    return fsum(defined) / len(defined) if defined else nan


def validated(y_true: ArrayLike, y_score: ArrayLike) -> tuple[_Bools, _Floats]:
    """Give labels and scores (N,) as arrays, checked but for the values of the scores."""
    true, values = paired_vectors(y_true, y_score)
    if true.dtype == np.object_ and (labels := as_labels(true)) is not None:
        true = labels
    if true.ndim != 1 or true.shape != values.shape:
        raise EvaluationError(
            f"y_true and y_score: expected one shape (N,), got {true.shape} and {values.shape}. "
            "Give one label and one score per pair, one pattern at a time."
        )
    if true.dtype.kind not in "biuf" or values.dtype.type not in (np.float32, np.float64):
        what = "y_true and y_score: expected dtypes bool and float32 or float64"
        raise EvaluationError(f"{what}, got {true.dtype} and {values.dtype}. Convert them.")
    if true.dtype != np.bool_ and not (good := (true == 0) | (true == 1)).all():
        row, bad = int(np.argmin(good)), int(np.count_nonzero(~good))
        raise EvaluationError(
            f"y_true: row {row} (the first row is 0): expected 0 or 1, got {true[row]}; {bad} of "
            f"{len(true)} rows are wrong. Convert the labels to bool."
        )
    return true.astype(np.bool_, copy=False), values


def _refuse(values: _Floats, row: int, wrong: int) -> None:
    raise EvaluationError(
        f"y_score: row {row} (the first row is 0): expected a finite score in [0, 1], got "
        f"{values[row]}; {wrong} of {len(values)} rows are wrong. Scores are never clipped: map "
        "them to [0, 1], for example with a sigmoid."
    )


def _f1_acc(N: int, P: int, TP: int, M: int) -> tuple[float, float]:
    return 2 * TP / (M + P) if P else nan, (N - P - M + 2 * TP) / N
