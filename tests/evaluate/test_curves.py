"""Curves against scikit-learn: every drawn point is one of the whole curve."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score, roc_curve

from gpattern_bench.evaluate.curves import compute_curves, pattern_curves


def drawn(n: int, levels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of n pairs that take at most so many values."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    scores = np.clip(0.3 * truth + 0.6 * rng.random(n), 0, 1)
    return truth, (np.round(scores * levels) / levels).astype(np.float32)


def rounded(*columns) -> set[tuple[float, ...]]:
    return {tuple(round(float(v), 4) for v in row) for row in zip(*columns, strict=True)}


CASES = [(12, 4), (200, 20), (200, 1000), (3000, 10**6)]


class TestAgainstScikitLearn:
    @pytest.mark.parametrize(("n", "levels"), CASES)
    def test_roc(self, n, levels):
        truth, scores = drawn(n, levels)
        fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
        found = [tuple(point) for point in pattern_curves(truth, scores)["roc"]]
        assert set(found) <= rounded(fpr, tpr)
        assert (found[0], found[-1]) == ((0.0, 0.0), (1.0, 1.0))
        assert found == sorted(found)
        assert len(found) == len(fpr) if len(fpr) <= 41 else 20 <= len(found) <= 41

    @pytest.mark.parametrize(("n", "levels"), CASES)
    def test_roc_keeps_its_area(self, n, levels):
        truth, scores = drawn(n, levels)
        x, y = np.array(pattern_curves(truth, scores)["roc"]).T
        assert np.trapezoid(y, x) == pytest.approx(roc_auc_score(truth, scores), abs=0.005)

    @pytest.mark.parametrize(("n", "levels"), CASES)
    def test_pr(self, n, levels):
        truth, scores = drawn(n, levels)
        precision, recall, _ = precision_recall_curve(truth, scores)
        found = [tuple(point) for point in pattern_curves(truth, scores)["pr"]]
        assert set(found) <= rounded(recall, precision)
        assert found[-1][0] == 1.0
        assert [point[0] for point in found] == sorted(point[0] for point in found)
        assert len(found) <= 41

    @pytest.mark.parametrize(("n", "levels"), CASES)
    def test_reliability(self, n, levels):
        truth, scores = drawn(n, levels)
        scores = scores[(off := (scores * 10) % 1 != 0)]  # on an edge, scikit-learn goes down
        truth = truth[off]
        share, mean = calibration_curve(truth, scores.astype(float), n_bins=10)
        found = pattern_curves(truth, scores)["reliability"]
        assert [row[0] for row in found] == pytest.approx(mean, abs=1e-4)
        assert [row[1] for row in found] == pytest.approx(share, abs=1e-4)
        assert sum(row[2] for row in found) == len(truth)

    @pytest.mark.slow
    def test_bins_of_molecules(self):
        truth, scores = drawn(600, 1000)
        part = np.arange(600) % 3
        part[part == 2] = 3  # an empty bin between
        found = compute_curves(
            truth[:, None], scores[:, None], ("p",), part, ["1", "2-4", "5-9", "10+"]
        )
        assert [(one["molecules"], one["n"]) for one in found["molecules"]] == [
            ("1", 200),
            ("2-4", 200),
            ("10+", 200),
        ]
        for code, one in zip((0, 1, 3), found["molecules"], strict=True):
            y, s = truth[part == code], scores[part == code]
            best = max(f1_score(y, s >= t) for t in np.unique(s))
            assert one["f1"]["p"] == pytest.approx(best, abs=1e-4)
            assert one["auc"]["p"] == pytest.approx(roc_auc_score(y, s), abs=1e-4)


def test_the_order_of_the_pairs_does_not_matter():
    truth, scores = drawn(500, 100)
    order = np.random.default_rng(1).permutation(500)
    assert pattern_curves(truth, scores) == pattern_curves(truth[order], scores[order])


@pytest.mark.parametrize("value", [True, False])
def test_one_class_has_no_roc(value):
    found = pattern_curves(np.full(9, value), np.linspace(0, 1, 9))
    assert found["roc"] == []
    assert bool(found["pr"]) is value
    json.dumps(found, allow_nan=False)


def test_one_score_is_one_point():
    found = pattern_curves(np.array([True, False]), np.zeros(2, np.float32))
    assert found == {
        "roc": [[0.0, 0.0], [1.0, 1.0]],
        "pr": [[1.0, 0.5]],
        "reliability": [[0.0, 0.5, 2]],
    }
