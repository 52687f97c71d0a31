"""Scores as probabilities, against scikit-learn's calibration."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from gpattern_bench.errors import EvaluationError
from gpattern_bench.evaluate.calibration import Calibration, calibrate, fit_calibration

NAMES = ("edge", "nuclear")


class LogOdds(ClassifierMixin, BaseEstimator):
    """A fitted classifier, whose decision is its only feature."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return X[:, 0]

    def predict(self, X):
        return self.classes_[(X[:, 0] > 0).astype(int)]


def drawn(n: int, seed: int = 0):
    """Scores that are too sure by 2 and shifted, and their labels."""
    rng = np.random.Generator(np.random.Philox(seed))
    odds = rng.normal(-1, 1.5, (n, 2))
    labels = rng.random((n, 2)) < expit(odds)
    return expit(2 * odds + [1, -1]).astype(np.float32), labels


def test_probabilities_are_those_of_scikit_learns_sigmoid():
    scores, labels = drawn(400)
    found = calibrate(scores, NAMES, fit_calibration(scores, labels, NAMES))
    assert found.dtype == np.float32
    for k in range(2):
        x = logit(np.clip(scores[:, [k]].astype(float), 1e-6, 1 - 1e-6))
        classifier = FrozenEstimator(LogOdds().fit(x, labels[:, k]))
        theirs = CalibratedClassifierCV(classifier, method="sigmoid").fit(x, labels[:, k])
        np.testing.assert_allclose(found[:, k], theirs.predict_proba(x)[:, 1], atol=2e-5)


def test_of_many_pairs_it_is_plain_logistic_regression_and_finds_the_truth():
    scores, labels = drawn(20_000)
    found = fit_calibration(scores, labels, NAMES)
    for k, name in enumerate(NAMES):
        x = logit(np.clip(scores[:, [k]].astype(float), 1e-6, 1 - 1e-6))
        theirs = LogisticRegression(C=np.inf, tol=1e-8).fit(x, labels[:, k])
        assert found.slopes[name] == pytest.approx(theirs.coef_[0, 0], abs=0.002)
        assert found.intercepts[name] == pytest.approx(theirs.intercept_[0], abs=0.002)
        assert found.slopes[name] == pytest.approx(0.5, abs=0.03)
    assert list(found.intercepts.values()) == pytest.approx([-0.5, 0.5], abs=0.06)


def test_the_mean_probability_is_the_share_of_positives():
    scores, labels = drawn(2_000)
    found = calibrate(scores, NAMES, fit_calibration(scores, labels, NAMES))
    np.testing.assert_allclose(found.mean(0), labels.mean(0), atol=0.002)


def test_scores_of_0_and_1_that_separate_all_pairs_stay_finite_and_in_order():
    scores = np.array([[0, 0], [0, 0.1], [1, 0.2], [1, 1]])
    labels = scores > 0.15
    found = calibrate(scores, NAMES, fit_calibration(scores, labels, NAMES))
    assert ((found > 0) & (found < 1)).all()
    assert (np.diff(found, axis=0) >= 0).all()


def test_order_of_rows_and_precision_matter_little_and_patterns_go_by_name():
    scores, labels = drawn(300)
    found = fit_calibration(scores, labels, NAMES)
    turned = fit_calibration(scores[::-1].astype(np.float64), labels[::-1].astype(int), NAMES)
    assert turned.slopes == pytest.approx(found.slopes)
    swapped = calibrate(scores[:, ::-1], NAMES[::-1], found)
    assert (swapped[:, ::-1] == calibrate(scores, NAMES, found)).all()
    assert calibrate(scores[:, 1:], NAMES[1:], found).shape == (300, 1)
    assert calibrate(scores[:0], NAMES, found).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, y: (s, y * [1, 0]), "pattern nuclear: 0 of 50 pairs have it"),
        (lambda s, y: (s, y | [1, 0]), "pattern edge: 50 of 50 pairs have it"),
        (lambda s, y: (s * 0 + s[0, 0], y), "pattern edge: all 50 pairs have the score"),
        (lambda s, y: (1 - s, y), "pattern edge: pairs with it have no higher scores"),
        (lambda s, y: (s * np.float32([1, nan]), y), "row 0 .* pattern nuclear: .* got nan; 50"),
        (lambda s, y: (s + 1, y), r"score in \[0, 1\]"),
        (lambda s, y: (s.astype(np.float16), y), "expected float32 or float64"),
        (lambda s, y: (s, y[:9]), r"expected the shape \(N, 2\)"),
        (lambda s, y: (s, y * 2), "expected 0 or 1"),
        (lambda s, y: (s, y * nan), "NaN is not a label"),
        (lambda s, y: (s[:0], y[:0]), "pattern edge: 0 of 0 pairs"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(change, message):
    with pytest.raises(EvaluationError, match=message):
        fit_calibration(*change(*drawn(50)), NAMES)


def test_scores_of_another_model_are_refused():
    found = Calibration({"edge": 1.0}, {"edge": 0.0})
    with pytest.raises(EvaluationError, match="is of edge and lacks nuclear"):
        calibrate(np.zeros((1, 2)), NAMES, found)
    with pytest.raises(EvaluationError, match="got nan; 1 scores are wrong"):
        calibrate(np.array([[nan]]), ["edge"], found)
    with pytest.raises(EvaluationError, match=r"shape \(N, 1\)"):
        calibrate(np.zeros((1, 2)), ["edge"], found)


@pytest.mark.parametrize(
    ("slopes", "intercepts", "message"),
    [
        ({"a": 1.0}, {"b": 1.0}, "slopes of a, intercepts of b"),
        ({"a": 0.0}, {"a": 1.0}, "positive slope .* got 0.0 and 1.0"),
        ({"a": 1.0}, {"a": nan}, "got 1.0 and nan"),
    ],
)
def test_a_calibration_read_from_a_file_is_checked(slopes, intercepts, message):
    with pytest.raises(EvaluationError, match=message):
        Calibration(slopes, intercepts)
