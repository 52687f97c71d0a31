"""Compiled sweeps over sorted scores: integer counts at every threshold, in one pass.

Bits of floats in [0, 1] sort like the floats. A key holds a score's bits and, as its lowest bit,
the label; sorted keys contain everything the metrics of a pattern need, without an argsort. numpy
sorts unsigned integers with vector instructions, in one thread: several threads wait for each other
on a busy machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit
from gpattern_bench.base.threads import processors

__all__ = ["LANES", "Sweep", "replicated_sweep", "rows_right", "sorted_keys", "sweep"]

LANES = 32
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


def replicated_sweep(rows: NDArray[np.int32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sweep weighted replicates of one pattern: :func:`sweep` for each of them.

    Parameters
    ----------
    rows : numpy.ndarray
        (N,) by falling score: ``cluster << 2 | end of a tie << 1 | label``.
    weights : numpy.ndarray
        (B, K) whole number of draws of each cluster.

    Returns
    -------
    numpy.ndarray
        (B, 7) float64: pairs, positives, two_u, ap, tp, m, and the last row at the best threshold.
        Counts are exact below 2^53.
    """
    n, k = weights.shape
    if n == 0 or k == 0:
        return np.zeros((n, 7))
    padded = np.zeros((-(-n // LANES) * LANES, k))
    padded[:n] = weights
    lanes = np.ascontiguousarray(padded.reshape(-1, LANES, k).transpose(0, 2, 1))
    counts = _cluster_counts(rows, k)
    out = np.empty((len(lanes), LANES, 7))

    def replicate(block: int) -> None:
        _replicate_block(rows, lanes[block], counts, out[block])

    # Worker processes already share the processors.
    threads = 1 if parent_process() is not None else processors()
    with ThreadPoolExecutor(min(threads, len(lanes))) as pool:
        list(pool.map(replicate, range(len(lanes))))
    return out.reshape(-1, 7)[:n]


@njit(cache=True, nogil=True)
def _cluster_counts(rows: Any, clusters: int) -> Any:
    counts = np.zeros((2, clusters))  # negatives and positives
    for i in range(len(rows)):
        counts[rows[i] & 1, rows[i] >> 2] += 1
    return counts


@njit(cache=True, nogil=True)
def _replicate_block(rows: Any, w: Any, counts: Any, out: Any) -> None:
    clusters, lanes = w.shape
    size, P = np.zeros(lanes), np.zeros(lanes)
    for c in range(clusters):
        for j in range(lanes):
            size[j] += w[c, j] * (counts[0, c] + counts[1, c])
            P[j] += w[c, j] * counts[1, c]
    tp, m, two_u, ap = np.zeros(lanes), np.zeros(lanes), np.zeros(lanes), np.zeros(lanes)
    best_tp, best_m, best = np.zeros(lanes), np.ones(lanes), np.zeros(lanes)
    pos, new = np.zeros(lanes), np.zeros(lanes)
    any_positive = False
    for i in range(len(rows)):
        here = w[rows[i] >> 2]
        if rows[i] & 1:
            any_positive = True
            for j in range(lanes):
                pos[j] += here[j]
        for j in range(lanes):
            new[j] += here[j]
        if rows[i] & 2:
            for j in range(lanes):
                neg = new[j] - pos[j]
                below = (size[j] - P[j]) - (m[j] - tp[j]) - neg
                two_u[j] += pos[j] * (2 * below + neg)
                tp[j] += pos[j]
                m[j] += new[j]
                better = tp[j] * (best_m[j] + P[j]) >= best_tp[j] * (m[j] + P[j])
                best_tp[j] = tp[j] if better else best_tp[j]
                best_m[j] = m[j] if better else best_m[j]
                best[j] = i if better else best[j]
            if any_positive:
                for j in range(lanes):
                    ap[j] += pos[j] * tp[j] / max(m[j], 1.0)
            for j in range(lanes):
                pos[j] = 0.0
                new[j] = 0.0
            any_positive = False
    for j in range(lanes):
        out[j] = np.array([size[j], P[j], two_u[j], ap[j], best_tp[j], best_m[j], best[j]])
