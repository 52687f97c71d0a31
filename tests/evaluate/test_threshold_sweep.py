"""The compiled sweeps against numpy's sort, a slow integer sweep and explicitly repeated rows."""

from __future__ import annotations

import multiprocessing
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gpattern_bench.evaluate.threshold_sweep import (
    LANES,
    falling_rows,
    replicated_sweep,
    rows_right,
    sorted_keys,
    sweep,
)

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SIZES = [0, 1, 2, 3, 255, 256, 257, 1000, 100_000]


def packed(true, scores):
    """Keys by numpy alone: the bits of the score, the label below them, sorted."""
    native = scores.astype(scores.dtype.newbyteorder("="), order="C") + scores.dtype.type(0)
    bits = native.view(f"u{native.itemsize}")  # + 0 turned -0.0 into 0.0
    return np.sort(bits << 1 | true.astype(bits.dtype))


def check_keys(true, scores):
    before = true.copy(), scores.copy()
    keys, wrong, first = sorted_keys(true, scores)
    assert (wrong, first) == (0, -1)
    expected = packed(true, scores)
    assert keys.dtype == expected.dtype
    np.testing.assert_array_equal(keys, expected)
    np.testing.assert_array_equal(true, before[0])
    np.testing.assert_array_equal(scores, before[1])


def drawn(kind, n, dtype, rng):
    if kind == "distinct":
        return (rng.permutation(n) / max(n, 1)).astype(dtype)
    if kind == "tied":
        return rng.integers(0, 11, n).astype(dtype) / dtype(10)
    if kind == "constant":
        return np.full(n, 0.3, dtype)
    if kind == "signed zeros":
        return rng.choice(np.array([-0.0, 0.0, 1.0], dtype), n)
    assert kind == "tiny"  # all exponents, subnormal numbers too
    return (2.0 ** -rng.integers(0, 1075 if dtype is np.float64 else 150, n)).astype(dtype)


@DTYPES
@pytest.mark.parametrize("kind", ["distinct", "tied", "constant", "signed zeros", "tiny"])
@pytest.mark.parametrize("n", SIZES)
def test_keys_are_numpys(n, kind, dtype):
    rng = np.random.default_rng(n)
    check_keys(rng.random(n) < 0.3, drawn(kind, n, dtype, rng))


@DTYPES
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("step", [1, 3, -1, -2])
def test_keys_of_strided_and_swapped_arrays(dtype, order, step):
    rng = np.random.default_rng(5)
    true, scores = rng.random(3001) < 0.5, rng.random((3001, 2)).astype(dtype)
    scores = scores.astype(scores.dtype.newbyteorder(order))
    scores.setflags(write=False)
    check_keys(true[::step], scores[::step, 1])


@st.composite
def cases(draw, *, max_size=60):
    """Labels and scores: many ties, none, or whatever; all in [0, 1]."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    unit = st.floats(0, 1, width=32 if dtype is np.float32 else 64)
    few = st.sampled_from([-0.0, 0.0, 0.25, 0.5, 1.0])
    n = draw(st.integers(0, max_size))
    scores = draw(arrays(dtype, n, elements=draw(st.sampled_from([unit, few]))))
    return draw(arrays(bool, n)), scores


@given(cases(), st.sampled_from([1, 2, -1]), st.booleans())
def test_keys_of_any_case(case, step, swapped):
    true, scores = case
    if swapped:
        scores = scores.astype(scores.dtype.newbyteorder())
    check_keys(true[::step], scores[::step])


BAD = [np.nan, -np.nan, np.inf, -np.inf, -1e-30, -1.0, 2.0, 1e30, "after one", "below zero"]


def bad_value(bad, dtype):
    if bad == "after one":
        return np.nextafter(dtype(1), dtype(2))
    if bad == "below zero":
        return np.nextafter(dtype(0), dtype(-1))
    return dtype(bad)


@DTYPES
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("rows", [[0], [99], [17, 18, 60], range(100)])
def test_bad_scores_are_counted(rows, bad, dtype):
    rng = np.random.default_rng(1)
    scores = rng.random(100).astype(dtype)
    scores[::10] = -0.0  # is good
    scores[list(rows)] = bad_value(bad, dtype)
    for given_scores in (scores, scores.astype(scores.dtype.newbyteorder())):
        _, wrong, first = sorted_keys(rng.random(100) < 0.5, given_scores)
        assert (wrong, first) == (len(rows), min(rows))


@given(arrays(np.float32, st.integers(0, 50)) | arrays(np.float64, st.integers(0, 50)))
def test_bad_scores_of_any_array(scores):
    good = (scores >= 0) & (scores <= 1)
    _, wrong, first = sorted_keys(np.zeros(len(scores), bool), scores)
    assert wrong == np.count_nonzero(~good)
    assert first == (-1 if good.all() else int(np.argmin(good)))


def slow_sweep(keys):
    """What `sweep` finds, in Python's integers, threshold by threshold from all the rows."""
    keys = [int(key) for key in keys]
    P = sum(key & 1 for key in keys)
    two_u, ap, best = 0, Fraction(0), None
    for score in sorted({key >> 1 for key in keys}, reverse=True):
        here = [key & 1 for key in keys if key >> 1 == score]
        above = [key & 1 for key in keys if key >> 1 >= score]
        below = [key & 1 for key in keys if key >> 1 < score]
        pos, neg = sum(here), len(here) - sum(here)
        two_u += pos * (2 * (len(below) - sum(below)) + neg)
        tp, m = sum(above), len(above)
        ap += pos * Fraction(tp, m)
        f1 = Fraction(2 * tp, m + P)
        if best is None or f1 >= best[0]:  # ties go to the lowest threshold
            best = f1, tp, m, len(below)
    return two_u, ap, *best[1:]


def check_sweep(true, scores):
    keys, _, _ = sorted_keys(true, scores)
    two_u, ap, tp, m, row = slow_sweep(keys)
    got = sweep(keys, int(true.sum()))
    assert (got.two_u, got.tp, got.m, got.row) == (two_u, tp, m, row)
    assert got.ap == pytest.approx(float(ap), rel=1e-15, abs=0)


@given(cases().filter(lambda case: case[0].any()))
def test_sweep_of_any_case(case):
    check_sweep(*case)


@DTYPES
@pytest.mark.parametrize("kind", ["distinct", "tied", "constant", "signed zeros"])
@pytest.mark.parametrize("n", [1, 2, 10, 300])
def test_sweep(n, kind, dtype):
    rng = np.random.default_rng(n)
    true = rng.random(n) < 0.3
    true[rng.integers(n)] = True
    check_sweep(true, drawn(kind, n, dtype, rng))


def falling(true, scores, cluster):
    """Rows as `replicated_sweep` takes them, by numpy alone."""
    order = np.argsort(-scores, kind="stable")
    fall = scores[order]
    last = np.append(fall[1:] != fall[:-1], True)[: len(fall)]
    return (cluster[order] * 4 + last * 2 + true[order]).astype(np.int32), order


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4", ">f8"])
@pytest.mark.parametrize("kind", ["distinct", "tied", "constant", "signed zeros", "negative"])
@pytest.mark.parametrize("n", [0, 1, 300])
def test_rows_fall_and_codes_are_their_places(n, kind, dtype):
    rng = np.random.default_rng(n)
    true, cluster = rng.random(n) < 0.3, rng.integers(0, 9, n).astype(np.int32)
    if kind == "negative":
        scores = rng.standard_normal(n).astype(dtype)
    else:
        scores = drawn(kind, n, np.dtype(dtype).newbyteorder("=").type, rng).astype(dtype)
    rows, codes = falling_rows(true, scores, cluster)
    assert rows.dtype == codes.dtype == np.int32
    np.testing.assert_array_equal(codes < 0, true)
    place = np.where(true, ~codes, codes)  # the order within a tie is free
    np.testing.assert_array_equal(np.sort(place), np.arange(n))
    np.testing.assert_array_equal(scores[np.argsort(place)], -np.sort(-scores))
    np.testing.assert_array_equal(rows[place] >> 2, cluster)
    np.testing.assert_array_equal(rows[place] & 1, true)
    np.testing.assert_array_equal(rows & 2, falling(true, scores, cluster)[0] & 2)


def check_replicated(true, scores, cluster, weights):
    rows, order = falling(true, scores, cluster)
    found = replicated_sweep(rows, weights)
    assert found.shape == (len(weights), 7)
    for weight, (size, P, two_u, ap, tp, m, end) in zip(weights, found, strict=True):
        times = weight[cluster].astype(int)
        again = np.repeat(np.arange(len(true)), times)
        assert (size, P) == (len(again), true[again].sum())
        if P == 0:
            assert two_u == ap == tp == 0
            continue
        keys, _, _ = sorted_keys(true[again], scores[again])
        expected = sweep(keys, int(P))
        assert (two_u, tp, m) == (expected.two_u, expected.tp, expected.m)
        assert ap == pytest.approx(expected.ap, rel=1e-13, abs=0)
        # `end` may go past rows of weight 0; nothing that was drawn lies in between.
        end = int(end)
        assert end == rows.size - 1 or rows[end] & 2
        assert times[order[: end + 1]].sum() == m
        assert times[order[: end + 1]] @ true[order[: end + 1]] == tp
        if times.all():
            bits = scores.dtype.type(scores[order[end]] + 0).view(keys.dtype)
            assert keys[expected.row] >> 1 == bits


REPLICATES = [1, 63, 64, 65, 129]
assert LANES == 64, "the numbers of replicates above are about blocks of 64"


@DTYPES
@pytest.mark.parametrize("kind", ["distinct", "tied", "constant", "signed zeros"])
@pytest.mark.parametrize("replicates", REPLICATES)
def test_replicates_of_weight_one_are_the_sweep(replicates, kind, dtype):
    rng = np.random.default_rng(replicates)
    true, scores = rng.random(500) < 0.2, drawn(kind, 500, dtype, rng)
    cluster = rng.integers(0, 7, 500)
    rows, _ = falling(true, scores, cluster)
    found = replicated_sweep(rows, np.ones((replicates, 7)))
    keys, _, _ = sorted_keys(true, scores)
    two_u, ap, tp, m, row = sweep(keys, int(true.sum()))
    counts = np.delete(found, 3, axis=1)
    expected = np.array([500, true.sum(), two_u, tp, m, 499 - row])
    np.testing.assert_array_equal(counts, np.tile(expected, (replicates, 1)))
    np.testing.assert_allclose(found[:, 3], ap, rtol=1e-13)


@DTYPES
@pytest.mark.parametrize("kind", ["distinct", "tied", "constant", "signed zeros"])
@pytest.mark.parametrize("replicates", REPLICATES)
def test_replicates_are_the_sweep_of_repeated_rows(replicates, kind, dtype):
    rng = np.random.default_rng(replicates)
    true, scores = rng.random(300) < 0.1, drawn(kind, 300, dtype, rng)
    weights = rng.poisson(1.0, (replicates, 12)).astype(float)
    check_replicated(true, scores, rng.integers(0, 12, 300), weights)


@given(cases(max_size=30).filter(lambda case: len(case[0])), st.data())
def test_replicates_of_any_case(case, data):
    true, scores = case
    cluster = data.draw(arrays(np.int64, len(true), elements=st.integers(0, 3)))
    shape = (data.draw(st.integers(1, 34)), 4)
    times = data.draw(arrays(np.int64, shape, elements=st.integers(0, 3)))
    check_replicated(true, scores, cluster, times.astype(float))


def test_replicates_do_not_disturb_each_other():
    rng = np.random.default_rng(3)
    rows, _ = falling(rng.random(400) < 0.2, rng.random(400), rng.integers(0, 9, 400))
    weights = rng.integers(0, 4, (70, 9)).astype(float)
    together = replicated_sweep(rows, weights)
    alone = np.concatenate([replicated_sweep(rows, one[None]) for one in weights])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12
def test_a_forked_worker_can_sweep_after_threads_ran_here():
    # Threads of a pool do not survive a fork: a worker must not wait for them.
    rng = np.random.default_rng(0)
    true = rng.random(3_000) < 0.5
    rows, _ = falling(true, rng.random(3_000).astype(np.float32), rng.integers(0, 9, 3_000))
    weights = rng.integers(0, 4, (70, 9)).astype(float)
    expected = replicated_sweep(rows, weights)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        got = pool.apply(replicated_sweep, (rows, weights))
    np.testing.assert_array_equal(got, expected)


@DTYPES
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_that_are_right_in_every_pattern(order, dtype):
    scores = np.array([[0.1, 0.9], [0.5, 0.2], [0.5, 0.9]], dtype, order=order)
    truth = np.array([[False, True], [True, True], [True, False]], order=order)
    assert rows_right(truth, scores, [0.5, 0.9]) == 1
    assert rows_right(truth, scores, [0.5, np.nan]) == 3  # without a threshold: not counted
    assert rows_right(truth, scores.astype(scores.dtype.newbyteorder()), [0.5, 0.9]) == 1
