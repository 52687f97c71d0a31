"""Compiled sweeps over sorted scores: integer counts at every threshold, in one pass.

Bits of floats in [0, 1] sort like the floats. A key holds a score's bits and, as its lowest bit,
the label; sorted keys contain everything the metrics of a pattern need, without an argsort. numpy
sorts unsigned integers with vector instructions, in one thread: several threads wait for each other
on a busy machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit
from gpattern_bench.base.threads import own_threads
from gpattern_bench.errors import EvaluationError

__all__ = [
    "LANES",
    "Sweep",
    "falling_rows",
    "replicated_right",
    "replicated_sweep",
    "rows_right",
    "sorted_keys",
    "sweep",
]

LANES = 64
"""Bootstrap replicates per pass of :func:`replicated_sweep`."""


class Sweep(NamedTuple):
    """Result of one pass over the sorted keys.

    Attributes
    ----------
    two_u : int
        Twice the Mann-Whitney U: 2 for each positive above a negative, 1 for each tie.
    ap : float
        Sum over thresholds of new positives times precision, P times average precision.
    tp, m : int
        Positives and pairs at or above the best threshold.
    row : int
        First row of the sorted keys at the best threshold.
    """

    two_u: int
    ap: float
    tp: int
    m: int
    row: int


def sorted_keys(
    true: NDArray[np.bool_], scores: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.unsignedinteger[Any]], int, int]:
    """Return ascending keys (N,), the number of scores outside [0, 1] and the first such row."""
    native = scores.astype(scores.dtype.newbyteorder("="), copy=False)
    unsigned = np.dtype(f"u{native.itemsize}")
    minus_zero, one = np.array([-0.0, 1.0], native.dtype).view(unsigned)
    keys = np.empty(len(native), unsigned)
    wrong, first = _pack(true, native.view(unsigned), minus_zero, one, keys)
    keys.sort()
    return keys, wrong, first


def sweep(keys: NDArray[np.unsignedinteger[Any]], positives: int) -> Sweep:
    """Sweep the thresholds of sorted keys from the highest to the lowest.

    Products of two counts are exact for N < 2^31.
    """
    return Sweep(*_sweep(keys, positives))


@njit(cache=True, nogil=True)
def _pack(true: Any, bits: Any, minus_zero: Any, one: Any, keys: Any) -> Any:
    wrong, first = 0, -1
    zero = one - one
    for i in range(len(bits)):
        b = bits[i]
        if b > one:  # as bits, so are all negative numbers, infinity and NaN
            if b != minus_zero:
                if wrong == 0:
                    first = i
                wrong += 1
            b = zero
        keys[i] = (b << np.uint8(1)) | true[i]
    return wrong, first


@njit(cache=True, nogil=True)
def _sweep(keys: Any, positives: Any) -> Any:
    negatives = len(keys) - positives
    tp, m, two_u = 0, 0, 0
    best_tp, best_m, best = 0, 1, 0
    ap, lost = 0.0, 0.0
    one = np.uint8(1)
    i = len(keys) - 1
    while i >= 0:
        score = keys[i] >> one
        pos: Any = 0
        new = 0
        while i >= 0 and keys[i] >> one == score:
            pos += np.int64(keys[i] & one)
            new += 1
            i -= 1
        m += new
        if pos == 0:
            continue  # more negatives only: no gain in F1, AUC or AP
        tp += pos
        neg = new - pos
        two_u += pos * (2 * (negatives - (m - tp)) + neg)
        term = pos * tp / m  # compensated sum: independent of rounding order
        total = ap + term
        part = total - ap
        lost += (ap - (total - part)) + (term - part)
        ap = total
        if tp * (best_m + positives) >= best_tp * (m + positives):  # F1, exact; ties to the lowest
            best_tp, best_m, best = tp, m, i + 1
    return two_u, ap + lost, best_tp, best_m, best


def rows_right(
    truth: NDArray[np.bool_], scores: NDArray[np.floating[Any]], thresholds: Sequence[float]
) -> int:
    """Count rows of (N, C) whose calls equal the labels.

    Compares thresholds in the precision of the scores; ignores patterns with threshold NaN.
    """
    known = np.flatnonzero(~np.isnan(thresholds))
    limits = np.asarray(thresholds, scores.dtype.newbyteorder("="))[known]
    native = scores.astype(limits.dtype, copy=False)
    return int(_rows_right(truth, native, known, limits))


@njit(cache=True, nogil=True)
def _rows_right(truth: Any, scores: Any, known: Any, limits: Any) -> int:
    right = 0
    for i in range(len(truth)):
        wrong = 0
        for j in range(len(known)):
            k = known[j]
            wrong += (scores[i, k] >= limits[j]) != truth[i, k]
        right += wrong == 0
    return right


def falling_rows(
    true: NDArray[np.bool_], scores: NDArray[np.floating[Any]], of_pair: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Sort the pairs of one pattern for :func:`replicated_sweep` and :func:`replicated_right`.

    Returns
    -------
    rows : numpy.ndarray
        (N,) by falling score: ``cluster << 2 | end of a tie << 1 | label``.
    codes : numpy.ndarray
        (N,) of each pair its row; of positives the complement, ``~row``.
    """
    native = scores.astype(scores.dtype.newbyteorder("=")) + scores.dtype.type(0)  # no -0.0
    if native.dtype == np.float32 and (native >= 0).all():  # keys take half the time of argsort
        keys = (~native.view(np.uint32)).astype(np.uint64) << np.uint64(32)
        keys |= np.arange(len(keys), dtype=np.uint64)
        keys.sort()
        order = (keys & np.uint64(2**32 - 1)).astype(np.int64)
    else:
        order = np.argsort(-native)  # the order within a tie does not matter
    rows, codes = np.empty((2, len(order)), dtype=np.int32)
    _falling_rows(order, np.ascontiguousarray(true), native, of_pair, rows, codes)
    return rows, codes


@njit(cache=True, nogil=True)
def _falling_rows(order: Any, true: Any, scores: Any, of_pair: Any, rows: Any, codes: Any) -> None:
    for row in range(len(order)):
        i = order[row]
        last = row + 1 == len(order) or scores[order[row + 1]] != scores[i]
        rows[row] = of_pair[i] << 2 | last << 1 | true[i]
        codes[i] = ~row if true[i] else row


def replicated_sweep(
    rows: NDArray[np.int32], weights: NDArray[np.number[Any]]
) -> NDArray[np.float64]:
    """Sweep weighted replicates of one pattern: :func:`sweep` for each of them.

    Time is linear in rows x replicates: each row reads the weights of its cluster in `LANES`
    replicates at once, one byte each, so that those of 10^5 clusters stay in the processor's cache.

    Parameters
    ----------
    rows : numpy.ndarray
        (N,) of :func:`falling_rows`.
    weights : numpy.ndarray
        (B, K) whole number of draws of each cluster.

    Returns
    -------
    numpy.ndarray
        (B, 7) float64: pairs, positives, two_u, ap, tp, m, and the last row at the best threshold.
        Counts are exact below 2^53.

    Raises
    ------
    EvaluationError
        A replicate has 2^31 pairs or more.
    """
    n, k = weights.shape
    if n == 0 or k == 0:
        return np.zeros((n, 7))
    counts = _cluster_counts(rows, k)
    out = np.empty((n, 7))

    def replicate(first: int, lanes: NDArray[Any]) -> None:
        found = np.empty((LANES, 7))
        if not _replicate_block(rows, lanes, counts, found):
            raise EvaluationError(
                f"{len(rows)} pairs are too many for a bootstrap: expected fewer than 2^31 in each "
                "replicate; ask for none (--replicates 0)"
            )
        out[first : first + LANES] = found[: n - first]

    _in_lanes(replicate, weights)
    return out


def replicated_right(
    codes: NDArray[np.int32],
    ends: NDArray[np.int32],
    of_pair: NDArray[np.int32],
    weights: NDArray[np.number[Any]],
) -> NDArray[np.int64]:
    """Count drawn pairs with all patterns right at the thresholds of each replicate.

    Parameters
    ----------
    codes : numpy.ndarray
        (C, N) of :func:`falling_rows`.
    ends : numpy.ndarray
        (C, B) last row that is called; below 0: the pattern is not asked.
    of_pair : numpy.ndarray
        (N,) cluster of each pair.
    weights : numpy.ndarray
        (B, K) whole number of draws of each cluster.

    Returns
    -------
    numpy.ndarray
        (B,) pairs.
    """
    out = np.zeros(len(weights), dtype=np.int64)

    def count(first: int, lanes: NDArray[Any]) -> None:
        of_block = np.full((len(ends), LANES), -1, dtype=np.int32)
        of_block[:, : len(weights) - first] = ends[:, first : first + LANES]
        # A pair is right where its code is above the limit: a negative's row past the end, a
        # positive's at most the end. Not asked: a limit below every code.
        limits = np.stack([of_block, np.where(of_block < 0, -codes.shape[1], ~of_block) - 1])
        hits = np.zeros(LANES, dtype=np.int64)
        _right_block(codes, limits, of_pair, lanes, hits)
        out[first : first + LANES] = hits[: len(out) - first]

    _in_lanes(count, weights)
    return out


def _in_lanes(work: Callable[[int, NDArray[Any]], None], weights: NDArray[np.number[Any]]) -> None:
    """Call `work` with the first replicate and the weights (K, LANES) of every block, in threads.

    Blocks are turned round one by one: no second copy of all weights.
    """
    n, k = weights.shape
    small = weights.size == 0 or weights.max() <= np.iinfo(np.uint8).max
    kind = np.uint8 if small else np.uint32

    def block(first: int) -> None:
        lanes = np.zeros((k, LANES), dtype=kind)
        lanes[:, : n - first] = weights[first : first + LANES].T
        work(first, lanes)

    starts = range(0, n, LANES)
    with ThreadPoolExecutor(min(own_threads(), len(starts))) as pool:
        list(pool.map(block, starts))


@njit(cache=True, nogil=True)
def _cluster_counts(rows: Any, clusters: int) -> Any:
    counts = np.zeros((2, clusters), np.int64)  # negatives and positives
    for i in range(len(rows)):
        counts[rows[i] & 1, rows[i] >> 2] += 1
    return counts


@njit(cache=True, nogil=True)
def _replicate_block(rows: Any, w: Any, counts: Any, out: Any) -> bool:
    N, P = np.zeros(LANES), np.zeros(LANES)  # negatives and positives
    for c in range(len(w)):
        for j in range(LANES):
            N[j] += float(w[c, j]) * counts[0, c]
            P[j] += float(w[c, j]) * counts[1, c]
    if (N + P).max() >= 2.0**31:
        return False
    # One array of (tp, m, two_u, ap, best tp, best m) and loops of known length: the compiler then
    # knows that nothing overlaps, and uses vector instructions.
    s = np.zeros(6 * LANES)
    s[5 * LANES :] = 1.0
    best = np.zeros(LANES, np.int32)
    new, pos = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)  # not yet in m and tp
    any_positive, tie = False, False
    for i in range(len(rows)):
        if not rows[i] & 2 and not tie:
            tie = True  # of several rows: from here on `new` counts those of the tie only
            for j in range(LANES):
                s[LANES + j] += new[j]
                new[j] = 0
        here = w[rows[i] >> 2]
        for j in range(LANES):
            new[j] += np.int32(here[j])
        if rows[i] & 1:
            any_positive = True
            for j in range(LANES):
                pos[j] += np.int32(here[j])
        if not rows[i] & 2:
            continue
        if any_positive:  # more negatives only: no gain in F1, AUC or AP
            tied = 1.0 if tie else 0.0
            row = np.int32(i)
            for j in range(LANES):
                p = np.float64(pos[j])
                m = s[LANES + j] + new[j]
                tp = s[j] + p
                s[j] = tp
                s[LANES + j] = m
                s[2 * LANES + j] += p * (2 * (N[j] - (m - tp)) + tied * (new[j] - p))
                s[3 * LANES + j] += p * tp / max(m, 1.0)
                best_tp, best_m = s[4 * LANES + j], s[5 * LANES + j]
                better = tp * (best_m + P[j]) >= best_tp * (m + P[j])
                s[4 * LANES + j] = tp if better else best_tp
                s[5 * LANES + j] = m if better else best_m
                best[j] = row if better else best[j]
            for j in range(LANES):
                new[j] = 0
                pos[j] = 0
        any_positive, tie = False, False
    for j in range(LANES):
        out[j, 0], out[j, 1] = N[j] + P[j], P[j]
        for c in range(4):
            out[j, 2 + c] = s[(2 + c) * LANES + j]
        out[j, 6] = best[j]
    return True


@njit(cache=True, nogil=True)
def _right_block(codes: Any, limits: Any, of_pair: Any, w: Any, hits: Any) -> None:
    patterns, n = codes.shape
    lowest, highest = np.empty((2, patterns), np.int32), np.empty((2, patterns), np.int32)
    for label in range(2):
        for k in range(patterns):
            lowest[label, k] = limits[label, k].min()
            highest[label, k] = limits[label, k].max()
    right = np.empty(LANES, np.uint8)
    for i in range(n):
        wrong = False
        for k in range(patterns):
            wrong |= codes[k, i] <= lowest[int(codes[k, i] < 0), k]
        if wrong:  # in all replicates of the block
            continue
        for j in range(LANES):
            right[j] = 1
        for k in range(patterns):
            code = codes[k, i]
            label = int(code < 0)
            if code <= highest[label, k]:  # not right in all of them
                limit = limits[label, k]
                for j in range(LANES):
                    right[j] &= np.uint8(code > limit[j])
        here = w[of_pair[i]]
        for j in range(LANES):
            hits[j] += right[j] * np.int64(here[j])
