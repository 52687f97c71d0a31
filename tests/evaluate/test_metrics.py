"""The exact metrics against integer brute force and against scikit-learn."""

from __future__ import annotations

import math
from dataclasses import astuple
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from gpattern_bench.errors import EvaluationError
from gpattern_bench.evaluate.metrics import PatternScore, at_threshold, exact_mean, score_pattern

NAN = math.nan
UNDEFINED_WITHOUT_POSITIVES = ("auc", "ap", "f1", "threshold", "acc", "precision", "recall")


def same(a: PatternScore, b: PatternScore) -> bool:
    """Equal to the last bit, NaN equal to NaN, -0.0 unequal to 0.0."""
    return repr(a) == repr(b)


def brute_force(y_true, y_score):
    """All metrics but AP from Python ints, one row at a time; needs a positive."""
    N, P = len(y_true), sum(map(bool, y_true))
    at = {}  # score -> [negatives, positives]
    for positive, score in zip(y_true, y_score, strict=True):
        # float() of a float32 is exact; + 0.0 turns -0.0 into 0.0
        at.setdefault(float(score) + 0.0, [0, 0])[bool(positive)] += 1
    TP = M = two_u = 0
    best = None
    for t in sorted(at, reverse=True):
        neg, pos = at[t]
        two_u += neg * (2 * TP + pos)
        TP, M = TP + pos, M + neg + pos
        if best is None or TP * (best["M"] + P) >= best["TP"] * (M + P):  # ties: lower wins
            best = {"t": t, "TP": TP, "M": M}
    TP, M = best["TP"], best["M"]
    return {
        "n": N,
        "n_positive": P,
        "prevalence": float(Fraction(P, N)),
        "auc": float(Fraction(two_u, 2 * P * (N - P))) if N > P else NAN,
        "f1": float(Fraction(2 * TP, M + P)),
        "threshold": best["t"],
        "acc": float(Fraction(TP + (N - P) - (M - TP), N)),
        "precision": float(Fraction(TP, M)),
        "recall": float(Fraction(TP, P)),
        "floor": float(2 * Fraction(P, N) / (1 + Fraction(P, N))),
    }


def check(y_true, y_score):
    """Compare every metric with both references; return the score."""
    got = score_pattern(y_true, y_score)
    assert all(type(value) in (int, float) for value in astuple(got))
    if got.n_positive == 0:
        assert got.floor == got.prevalence == 0.0
        assert all(math.isnan(getattr(got, name)) for name in UNDEFINED_WITHOUT_POSITIVES)
        return got
    for name, value in brute_force(y_true, y_score).items():
        assert repr(getattr(got, name)) == repr(value), name
    assert got.ap == pytest.approx(average_precision_score(y_true, y_score), rel=0, abs=1e-12)
    assert 0 < got.ap <= 1
    if got.n_positive < got.n:
        assert got.auc == pytest.approx(roc_auc_score(y_true, y_score), rel=0, abs=1e-12)
    assert got.f1 >= got.floor
    assert at_threshold(y_true, y_score, got.threshold) == (got.f1, got.acc)
    called = np.asarray(y_score) >= got.threshold  # also exact outside this package
    assert got.precision == np.count_nonzero(called & y_true) / np.count_nonzero(called)
    return got


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scores", ["distinct", "tied", "constant"])
@pytest.mark.parametrize("prevalence", [0, "one", 0.02, 0.5, 1])
@pytest.mark.parametrize("N", [1, 2, 3, 10, 1000, 100_000])
def test_grid(N, prevalence, scores, dtype):
    rng = np.random.default_rng(N)
    y_true = np.zeros(N, bool)
    y_true[: 1 if prevalence == "one" else round(N * prevalence)] = True
    rng.shuffle(y_true)
    if scores == "distinct":
        y_score = rng.permutation(N) / N
    elif scores == "tied":
        y_score = np.round(np.clip(0.2 * y_true + 0.8 * rng.random(N), 0, 1), 1)
    else:
        y_score = np.full(N, 0.3)
    y_score = y_score.astype(dtype)
    if scores == "distinct":
        assert len(np.unique(y_score)) == N
    check(y_true, y_score)


@st.composite
def cases(draw, *, classes=(False, True)):
    """Labels and scores; scores from few values, from many, or all the same."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    width = 32 if dtype is np.float32 else 64
    unit = st.floats(0, 1, width=width)
    few = st.sampled_from([-0.0, 0.0, 0.1, 0.5, 1.0])
    one = st.just(draw(unit))
    score = draw(st.sampled_from([few, unit, one]))
    rows = draw(st.lists(st.tuples(st.sampled_from(classes), score), min_size=1, max_size=40))
    y_true, y_score = zip(*rows, strict=True)
    return np.array(y_true, bool), np.array(y_score, dtype)


@given(cases())
def test_any_case(case):
    check(*case)


@given(cases(classes=(True,)))
def test_positives_only(case):
    score = check(*case)
    assert math.isnan(score.auc)
    ones = (score.ap, score.f1, score.acc, score.precision, score.recall, score.floor)
    assert ones == (1.0,) * 6
    assert score.threshold == case[1].min()


@given(cases(classes=(False,)))
def test_negatives_only(case):
    check(*case)


@pytest.mark.slow
@given(cases(), st.randoms(use_true_random=False))
def test_row_order_changes_nothing(case, random):
    y_true, y_score = case
    order = list(range(len(y_true)))
    random.shuffle(order)
    assert same(score_pattern(y_true, y_score), score_pattern(y_true[order], y_score[order]))


def test_row_order_changes_nothing_in_a_large_table():
    rng = np.random.default_rng(0)
    y_true, y_score = rng.random(100_000) < 0.03, rng.random(100_000, np.float32)
    order = rng.permutation(100_000)
    assert same(score_pattern(y_true, y_score), score_pattern(y_true[order], y_score[order]))


@given(cases(), st.floats(0, 1))
def test_at_threshold(case, threshold):
    y_true, y_score = case
    t = float(y_score.dtype.type(threshold))
    called = [float(score) >= t for score in y_score]
    TP = sum(a and b for a, b in zip(called, y_true, strict=True))
    right = sum(a == b for a, b in zip(called, y_true, strict=True))
    f1, acc = at_threshold(y_true, y_score, threshold)
    assert acc == float(Fraction(right, len(y_true)))
    if y_true.any():
        assert f1 == float(Fraction(2 * TP, sum(called) + int(y_true.sum())))
        assert f1 <= score_pattern(y_true, y_score).f1
    else:
        assert math.isnan(f1)


def test_exact_tie_goes_to_the_lowest_threshold():
    y_true, y_score = [1, 0, 0, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.1]
    # 0.9: TP 1 of M 1, F1 = 2/(1 + 2).   0.6: TP 2 of M 4, F1 = 4/(4 + 2).
    assert at_threshold(y_true, y_score, 0.9) == (2 / 3, 4 / 5)
    assert at_threshold(y_true, y_score, 0.6) == (2 / 3, 3 / 5)
    score = score_pattern(y_true, y_score)
    assert (score.threshold, score.f1, score.acc) == (0.6, 2 / 3, 3 / 5)
    assert (score.precision, score.recall) == (1 / 2, 1.0)
    assert (score.auc, score.floor) == (4 / 6, 4 / 7)
    assert score.ap == (1 / 1 + 2 / 4) / 2


def test_constant_scores():
    score = check(np.array([True, False, False, False]), np.full(4, 0.3))
    assert (score.auc, score.ap, score.acc, score.precision) == (0.5, 0.25, 0.25, 0.25)
    assert score.f1 == score.floor == 2 / 5


def test_perfect_and_reversed_scores():
    y_true = np.array([False, False, True, True])
    perfect = check(y_true, np.array([0.1, 0.2, 0.3, 0.4]))
    assert (perfect.auc, perfect.ap, perfect.f1, perfect.acc) == (1.0, 1.0, 1.0, 1.0)
    assert check(y_true, np.array([0.4, 0.3, 0.2, 0.1])).auc == 0.0


def test_average_precision_sum_loses_nothing():
    rng = np.random.default_rng(1)
    y_true = rng.random(3000) < 0.5  # best score first
    TP = np.cumsum(y_true)
    terms = (Fraction(int(TP[k]), int(k) + 1) for k in np.flatnonzero(y_true))
    exact = sum(terms, Fraction(0)) / int(TP[-1])
    got = score_pattern(y_true, np.arange(3000, 0, -1) / 3000).ap
    assert abs(Fraction(got) / exact - 1) <= Fraction(3, 2**53)  # term, sum, division


def test_float32_scores_are_compared_as_float32():
    score = check(np.array([True, False]), np.array([0.1, 0.0], np.float32))
    assert score.threshold == float(np.float32(0.1)) != 0.1
    assert at_threshold([True], np.array([0.7], np.float32), 0.7) == (1.0, 1.0)
    assert at_threshold([True], np.array([0.7], np.float32), np.float64(0.7)) == (1.0, 1.0)


def test_neighbouring_floats_are_distinct():
    high = np.nextafter(0.5, 1.0)
    score = check(np.array([True, False]), np.array([high, 0.5]))
    assert (score.threshold, score.auc) == (high, 1.0)


@pytest.mark.parametrize("scores", [[-0.0, 0.0], [0.0, -0.0], [-0.0, -0.0]])
def test_negative_zero_is_zero(scores):
    score = score_pattern([True, False], scores)
    assert (repr(score.threshold), score.auc) == ("0.0", 0.5)


def test_no_rows():
    score = score_pattern(np.array([], bool), np.array([], np.float32))
    assert same(score, PatternScore(0, 0, *[NAN] * 9))
    assert all(map(math.isnan, at_threshold([], [], 0.5)))


def test_at_threshold_undefined():
    f1, acc = at_threshold([False, False], [0.2, 0.7], 0.5)
    assert math.isnan(f1)
    assert acc == 0.5
    assert all(map(math.isnan, at_threshold([True, False], [0.2, 0.7], NAN)))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_labels_of_any_number_type(dtype):
    labels, scores = np.array([1, 0, 1], dtype), np.array([0.3, 0.2, 0.1])
    assert same(score_pattern(labels, scores), score_pattern(labels == 1, scores))


def test_input_is_left_alone_and_may_be_strided_or_big_endian():
    y_true, y_score = np.array([True, False, True]), np.array([0.3, 0.2, 0.1])
    expected = score_pattern(y_true, y_score)
    pairs = np.column_stack([y_score, y_score])
    pairs.setflags(write=False)
    y_true.setflags(write=False)
    assert same(score_pattern(y_true, pairs[:, 1]), expected)
    assert same(score_pattern(y_true, y_score.astype(">f8")), expected)


def test_exact_mean():
    assert exact_mean([0.1] * 10) == 0.1
    assert exact_mean(x for x in (NAN, 0.25, 0.75)) == 0.5
    assert exact_mean(np.array([0.5, NAN], np.float32)) == 0.5
    assert math.isnan(exact_mean([]))
    assert math.isnan(exact_mean([NAN, NAN]))


@given(st.lists(st.floats(0, 1) | st.just(NAN), min_size=1), st.randoms(use_true_random=False))
def test_exact_mean_in_any_order(values, random):
    mean = exact_mean(values)
    random.shuffle(values)
    assert repr(exact_mean(values)) == repr(mean)


CLIPPED = "Scores are never clipped: map them to [0, 1], for example with a sigmoid."
SHAPE = "Give one label and one score per pair, one pattern at a time."
TYPES = "y_true and y_score: expected dtypes bool and float32 or float64"


@pytest.mark.parametrize("function", [score_pattern, lambda y, s: at_threshold(y, s, 0.5)])
@pytest.mark.parametrize(
    ("y_true", "y_score", "text"),
    [
        ([1, 0], [0.5], f"expected one shape (N,), got (2,) and (1,). {SHAPE}"),
        ([[1, 0]], [[0.5, 0.1]], f"expected one shape (N,), got (1, 2) and (1, 2). {SHAPE}"),
        (True, 0.5, f"expected one shape (N,), got () and (). {SHAPE}"),
        (
            [1, 2, 3],
            [0.5, 0.1, 0.2],
            (
                "y_true: row 1 (the first row is 0): expected 0 or 1, got 2; "
                "2 of 3 rows are wrong. Convert the labels to bool."
            ),
        ),
        ([1.0, NAN], [0.5, 0.1], "y_true: row 1 (the first row is 0): expected 0 or 1, got nan"),
        (["a", "b"], [0.5, 0.1], f"{TYPES}, got <U1 and float64. Convert them."),
        ([1, 0], [1, 0], f"{TYPES}, got int64 and int64. Convert them."),
        ([1, 0], np.array([1, 0], np.float16), f"{TYPES}, got int64 and float16. Convert them."),
        (
            [1, 0, 1],
            [0.5, NAN, NAN],
            (
                "y_score: row 1 (the first row is 0): expected a finite score in [0, 1], got nan; "
                f"2 of 3 rows are wrong. {CLIPPED}"
            ),
        ),
        ([1, 0], [math.inf, 0.1], "y_score: row 0 (the first row is 0)"),
        ([1, 0], [0.5, -0.25], "got -0.25; 1 of 2 rows are wrong."),
        ([1, 0], np.array([0.5, 1.5], np.float32), "got 1.5; 1 of 2 rows are wrong."),
        ([0, 0], [0.5, np.nextafter(1, 2)], "got 1.0000000000000002; 1 of 2 rows are wrong."),
    ],
)
def test_bad_input(function, y_true, y_score, text):
    with pytest.raises(EvaluationError) as error:
        function(y_true, y_score)
    assert text in str(error.value)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.inf])
def test_bad_threshold(threshold):
    with pytest.raises(EvaluationError) as error:
        at_threshold([True], [0.5], threshold)
    assert str(error.value) == (
        f"threshold: expected a number in [0, 1], or NaN for none, got {threshold}. "
        "Pass one that score_pattern returned."
    )
