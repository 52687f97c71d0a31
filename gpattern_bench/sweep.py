"""Compiled sweeps over sorted scores: integer counts at every threshold, in one pass.

The bits of a float in [0, 1] order as the float does. A key is a score's bits with the label below
them; sorted keys hold all that the metrics of one pattern need, without an argsort. Sorting is by
radix, eight bits a pass: linear, and several times as fast as a comparison sort at 10^7 rows.
"""

from __future__ import annotations

from multiprocessing import parent_process
from typing import Any, NamedTuple

import numpy as np
from numba import get_num_threads, njit, prange
from numpy.typing import NDArray

__all__ = ["LANES", "Sweep", "replicated_sweep", "sorted_keys", "sweep"]

_DIGIT = 8  # bits per pass: 256 counters stay in the nearest cache
_LEFT_OUT = {4: 0, 8: 3}  # low digits, by bytes of a score, that the first attempt leaves out

_THREADS_FROM = 1_000_000  # rows times passes over them; below, threads cost more than they bring

LANES = 32
"""Bootstrap replicates that :func:`replicated_sweep` carries through one pass side by side."""


class Sweep(NamedTuple):
    """What one pass over the sorted keys finds.

    Attributes
    ----------
    two_u : int
        Twice the Mann-Whitney U: 2 for each positive above a negative, 1 for each tie.
    ap : float
        Sum over thresholds of new positives times precision: average precision times P.
    tp, m : int
        Positives and pairs at or above the best threshold.
    row : int
        Row of the sorted keys at which the best threshold begins.
    """

    two_u: int
    ap: float
    tp: int
    m: int
    row: int


def _threads_pay(work: int) -> bool:
    # Worker processes share the cores, and threads of OpenMP do not survive a fork.
    return work > _THREADS_FROM and parent_process() is None


def sorted_keys(
    true: NDArray[np.bool_], scores: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.unsignedinteger[Any]], int, int]:
    """Keys (N,) ascending; how many scores are not in [0, 1], and the first such row or -1."""
    native = np.ascontiguousarray(scores, dtype=scores.dtype.newbyteorder("="))
    unsigned = np.dtype(f"u{native.itemsize}")
    minus_zero, one = np.array([-0.0, 1.0], native.dtype).view(unsigned)
    keys = np.empty(len(native), unsigned)
    wrong, first = _pack(true, native.view(unsigned), minus_zero, one, keys)
    return _sorted(keys, _LEFT_OUT[keys.itemsize]), wrong, first


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


def _sorted(keys: Any, left_out: int) -> Any:
    # The high bytes nearly sort scores that differ; where they do not, all bytes do.
    keys, spare = _radix_sorted(keys, np.empty_like(keys), left_out)
    if left_out and not _finished(keys, 4 * len(keys)):
        keys, _ = _radix_sorted(keys, spare, 0)
    return keys


def _radix_sorted(keys: Any, spare: Any, first: int) -> Any:
    """Sort by the digits from `first` on, the lowest first."""
    threads = _threads_pay(4 * len(keys))
    one_pass = _pass_threads if threads else _pass
    counts = np.zeros((get_num_threads() if threads else 1, 1 << _DIGIT), np.int64)
    for digit in range(first, keys.itemsize * 8 // _DIGIT):
        if one_pass(keys, spare, np.uint64(digit * _DIGIT), counts):
            keys, spare = spare, keys
    return keys, spare


@njit(cache=True, nogil=True)
def _pass(keys: Any, spare: Any, shift: Any, counts: Any) -> bool:
    counts[:] = 0
    _count(keys, 0, len(keys), shift, counts[0])
    if _to_starts(counts, len(keys)):
        return False
    _move(keys, spare, 0, len(keys), shift, counts[0])
    return True


# A function of its own: numba's cache would take one compiled with other options for the same.
@njit(cache=True, nogil=True, parallel=True)
def _pass_threads(keys: Any, spare: Any, shift: Any, counts: Any) -> bool:
    n, parts = len(keys), len(counts)
    counts[:] = 0
    for c in prange(parts):
        _count(keys, n * c // parts, n * (c + 1) // parts, shift, counts[c])
    if _to_starts(counts, n):
        return False
    for c in prange(parts):
        _move(keys, spare, n * c // parts, n * (c + 1) // parts, shift, counts[c])
    return True


@njit(cache=True, nogil=True)
def _count(keys: Any, begin: int, end: int, shift: Any, counts: Any) -> None:
    mask = np.uint64((1 << _DIGIT) - 1)
    for i in range(begin, end):
        counts[(np.uint64(keys[i]) >> shift) & mask] += 1


@njit(cache=True, nogil=True)
def _to_starts(counts: Any, n: int) -> bool:
    """Turn the counts of (part, digit) into where each begins; true if all keys have one digit."""
    start, largest = 0, 0
    for d in range(counts.shape[1]):
        before = start
        for c in range(len(counts)):
            here = counts[c, d]
            counts[c, d] = start
            start += here
        largest = max(largest, start - before)
    return largest == n


@njit(cache=True, nogil=True)
def _move(keys: Any, spare: Any, begin: int, end: int, shift: Any, starts: Any) -> None:
    mask = np.uint64((1 << _DIGIT) - 1)
    for i in range(begin, end):
        key = keys[i]
        digit = (np.uint64(key) >> shift) & mask
        spare[starts[digit]] = key
        starts[digit] += 1


@njit(cache=True, nogil=True)
def _finished(keys: Any, moves: int) -> bool:
    """Finish nearly sorted keys by insertion; give up after so many moves."""
    for i in range(1, len(keys)):
        key = keys[i]
        j = i
        while j > 0 and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key
        moves -= i - j
        if moves < 0:
            return False
    return True


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
            continue  # only calls more negatives: no gain in F1, AUC or AP
        tp += pos
        neg = new - pos
        two_u += pos * (2 * (negatives - (m - tp)) + neg)
        term = pos * tp / m  # summed with the lost digits: the order of rounding does not matter
        total = ap + term
        part = total - ap
        lost += (ap - (total - part)) + (term - part)
        ap = total
        if tp * (best_m + positives) >= best_tp * (m + positives):  # F1, exact; ties to the lowest
            best_tp, best_m, best = tp, m, i + 1
    return two_u, ap + lost, best_tp, best_m, best


def replicated_sweep(rows: NDArray[np.int32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sweep weighted replicates of one pattern: what :func:`sweep` finds, for each of them.

    Parameters
    ----------
    rows : numpy.ndarray
        (N,) in order of falling score: ``cluster << 2 | ends a tie << 1 | label``.
    weights : numpy.ndarray
        (B, K) times that each cluster was drawn; whole numbers.

    Returns
    -------
    numpy.ndarray
        (B, 7) float64: pairs, positives, two_u, ap, tp, m, and the row at which the best
        threshold ends. Counts are exact below 2^53.
    """
    n, k = weights.shape
    if n == 0 or k == 0:
        return np.zeros((n, 7))
    padded = np.zeros((-(-n // LANES) * LANES, k))
    padded[:n] = weights
    lanes = np.ascontiguousarray(padded.reshape(-1, LANES, k).transpose(0, 2, 1))
    kernel = _replicated_threads if _threads_pay(len(rows) * len(lanes)) else _replicated
    return np.asarray(kernel(rows, lanes).reshape(-1, 7)[:n])


@njit(cache=True, nogil=True)
def _cluster_counts(rows: Any, clusters: int) -> Any:
    counts = np.zeros((2, clusters))  # negatives and positives of each
    for i in range(len(rows)):
        counts[rows[i] & 1, rows[i] >> 2] += 1
    return counts


@njit(cache=True, nogil=True)
def _replicated(rows: Any, weights: Any) -> Any:
    blocks, clusters, lanes = weights.shape
    counts = _cluster_counts(rows, clusters)
    out = np.zeros((blocks, lanes, 7))
    for b in range(blocks):
        _replicate_block(rows, weights[b], counts, out[b])
    return out


@njit(cache=True, nogil=True, parallel=True)  # of its own, as _pass_threads
def _replicated_threads(rows: Any, weights: Any) -> Any:
    blocks, clusters, lanes = weights.shape
    counts = _cluster_counts(rows, clusters)
    out = np.zeros((blocks, lanes, 7))
    for b in prange(blocks):
        _replicate_block(rows, weights[b], counts, out[b])
    return out


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
