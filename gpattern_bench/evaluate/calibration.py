"""Scores as probabilities: a curve per pattern, fitted to labelled pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from gpattern_bench.errors import EvaluationError
from gpattern_bench.evaluate.inputs import paired

__all__ = ["Calibration", "calibrate", "fit_calibration"]

_EDGE = 1e-6  # scores nearer to 0 or 1 count as this far: their log-odds are finite


@dataclass(frozen=True)
class Calibration:
    """Probability of each pattern: ``expit(slope * logit(score) + intercept)``.

    Attributes
    ----------
    slopes, intercepts : mapping of str to float
        Pattern -> value. Slopes are positive: pairs keep their order.

    Raises
    ------
    EvaluationError
        Other patterns in one than in the other, a value that is not finite, or a slope that is
        not positive.
    """

    slopes: Mapping[str, float]
    intercepts: Mapping[str, float]

    def __post_init__(self) -> None:
        if set(self.slopes) != set(self.intercepts):
            raise EvaluationError(
                f"calibration: slopes of {_told(self.slopes)}, intercepts of "
                f"{_told(self.intercepts)}; give both of each pattern"
            )
        for pattern, slope in self.slopes.items():
            intercept = self.intercepts[pattern]
            if not (isfinite(slope) and isfinite(intercept) and slope > 0):
                raise EvaluationError(
                    f"calibration, pattern {pattern}: expected a positive slope and a finite "
                    f"intercept, got {slope} and {intercept}"
                )


def fit_calibration(scores: Any, labels: Any, patterns: Sequence[str]) -> Calibration:
    """Fit each pattern's curve to labelled pairs: logistic regression on the scores' log-odds.

    By Platt's method, whose targets (P + 1) / (P + 2) and 1 / (N - P + 2) instead of 1 and 0 keep
    the curve finite where a score separates all pairs. Fit it to pairs that the model has not
    learned from.

    Parameters
    ----------
    scores, labels : (N, C) arrays or tables
        Scores in [0, 1], float32 or float64; labels 0 and 1, or false and true. Tables are aligned
        by name.
    patterns : sequence of str
        The C patterns, in the order of the columns.

    Raises
    ------
    EvaluationError
        Other shapes or values; a pattern that no pair has, or every pair; the same score for all
        pairs; or scores that fall where the pattern is more frequent.

    References
    ----------
    Platt, Probabilistic outputs for support vector machines, 1999; the curve on log-odds is that
    of Kull et al., Beta calibration, 2017, with both slopes equal.

    Examples
    --------
    >>> scores = np.array([[0.2], [0.2], [0.2], [0.6], [0.6], [0.6]])
    >>> labels = [[0], [0], [1], [1], [1], [0]]
    >>> found = fit_calibration(scores, labels, ["nuclear"])
    >>> calibrate(scores[[0, 3]], ["nuclear"], found).round(2)
    array([[0.4],
           [0.6]], dtype=float32)
    """
    truth, values = paired(labels, scores, patterns)
    _check(values, patterns)
    slopes, intercepts = {}, {}
    for k, pattern in enumerate(patterns):
        slopes[pattern], intercepts[pattern] = _fitted(truth[:, k], values[:, k], pattern)
    return Calibration(slopes, intercepts)


def calibrate(
    scores: NDArray[np.floating[Any]], patterns: Sequence[str], calibration: Calibration
) -> NDArray[np.float32]:
    """Turn scores (N, C) into probabilities (N, C), in [0, 1].

    Raises
    ------
    EvaluationError
        The calibration lacks a pattern, or scores are not (N, C) floats in [0, 1].
    """
    absent = [name for name in patterns if name not in calibration.slopes]
    if absent:
        raise EvaluationError(
            f"the calibration is of {_told(calibration.slopes)} and lacks {_told(absent)}: "
            "calibrate the scores of the model that it was fitted to"
        )
    _check(scores, patterns)
    slopes = np.array([calibration.slopes[name] for name in patterns])
    intercepts = np.array([calibration.intercepts[name] for name in patterns])
    return np.asarray(expit(_log_odds(scores) * slopes + intercepts), np.float32)


def _fitted(
    truth: NDArray[np.bool_], scores: NDArray[np.floating[Any]], pattern: str
) -> tuple[float, float]:
    """Fit slope and intercept of one pattern."""
    from sklearn.linear_model import LogisticRegression  # slow to import

    n, positives = len(truth), int(truth.sum())
    if positives in (0, n):
        raise EvaluationError(
            f"pattern {pattern}: {positives} of {n} pairs have it; a calibration needs pairs with "
            "and without the pattern: label more pairs, or leave the pattern out"
        )
    if scores.min() == scores.max():
        raise EvaluationError(
            f"pattern {pattern}: all {n} pairs have the score {scores[0]}, which tells none apart: "
            "nothing can be fitted; leave the pattern out"
        )
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (n - positives + 2))
    x = _log_odds(scores)[:, None]
    # A pair with target t is t of a positive pair, and 1 - t of a negative one.
    fit = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, max_iter=1000).fit(
        np.vstack([x, x]), np.repeat([1, 0], n), sample_weight=np.r_[target, 1 - target]
    )
    slope, intercept = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    if slope <= 0:
        raise EvaluationError(
            f"pattern {pattern}: pairs with it have no higher scores than the others (slope "
            f"{slope:.3g} over {n} pairs): these scores do not tell the pattern; leave it out"
        )
    return slope, intercept


def _log_odds(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.asarray(logit(np.clip(scores.astype(np.float64), _EDGE, 1 - _EDGE)))


def _check(scores: Any, patterns: Sequence[str]) -> None:
    kind = getattr(scores, "dtype", None)
    shape: tuple[int, ...] = getattr(scores, "shape", ())
    if kind not in (np.float32, np.float64) or len(shape) != 2 or shape[1] != len(patterns):
        raise EvaluationError(
            f"scores: expected float32 or float64 of shape (N, {len(patterns)}), columns "
            f"{_told(patterns)}; got {kind} of shape {shape}"
        )
    good = (scores >= 0) & (scores <= 1)
    if not good.all():
        row, k = np.argwhere(~good)[0]
        raise EvaluationError(
            f"scores: row {row} (the first row is 0), pattern {patterns[k]}: expected a finite "
            f"score in [0, 1], got {scores[row, k]}; {int((~good).sum())} scores are wrong"
        )


def _told(names: Any) -> str:
    return ", ".join(names) or "no pattern"
