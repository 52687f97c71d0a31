"""Sort molecules into compact blocks and find the K nearest of each, in NumPy and compiled code.

The order of the molecules does not matter.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit

__all__ = ["TIE", "block_neighbours", "order_in_blocks"]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

TIE = 1e-9
"""Squared distances within this share of each other tie."""


def order_in_blocks(points: _Floats, size: int) -> tuple[_Ints, _Ints]:
    """Sort points (L, 2 or 3) into blocks of at most `size`: the order (L,), and block bounds.

    Points at one position keep their order. Blocks are the leaves of a tree that halves the longest
    side; they have a tenth fewer keys than runs of a Hilbert curve.
    """
    lead = np.lexsort(points.T[::-1])
    points = points[lead]
    ranks = np.argsort(np.argsort(points, axis=0, kind="stable"), axis=0)  # all different
    order = np.arange(len(points))
    ends, nodes = [0], [(0, len(points), -(-len(points) // size))]
    while nodes:
        begin, end, leaves = nodes.pop()
        here = order[begin:end]
        if leaves == 1:
            here.sort()
            ends.append(end)
            continue
        axis = np.argmax(np.ptp(points[here], axis=0))
        cut = (end - begin) * (leaves // 2) // leaves
        order[begin:end] = here[np.argpartition(ranks[here, axis], cut)]
        nodes.append((begin + cut, end, leaves - leaves // 2))
        nodes.append((begin, begin + cut, leaves // 2))
    return lead[order], np.array(ends)


def block_neighbours(
    points: _Floats, bounds: _Ints, k: int
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.uint8]]]:
    """Find the K nearest of each block's points, themselves and ties included.

    Parameters
    ----------
    points : numpy.ndarray
        (2 or 3, L), in the order of the blocks.
    bounds : numpy.ndarray
        (blocks + 1,) first point of each block, then L.
    k : int
        1 <= k <= L.

    Returns
    -------
    keys : list of numpy.ndarray
        (U,) int32: union of the neighbours of each block's points, ascending.
    bits : list of numpy.ndarray
        (B, U / 8) uint8: mask of each point's neighbours among the keys, lowest bit first.
    """
    low = np.minimum.reduceat(points, bounds[:-1], axis=1)  # corners of the blocks (2 or 3, blocks)
    high = np.maximum.reduceat(points, bounds[:-1], axis=1)
    all_blocks = np.arange(len(bounds) - 1)
    limits = np.full(points.shape[1], np.inf)
    keys, bits = [], []
    for block, (begin, end) in enumerate(pairwise(bounds.tolist())):
        gap = np.maximum(low - high[:, [block]], low[:, [block]] - high).clip(min=0.0)
        apart = np.sqrt(np.square(gap).sum(axis=0))  # (blocks,) from this one
        if k < points.shape[1]:
            # The limit of the first query bounds those of the others.
            _limits(points, bounds, low, high, all_blocks, begin, begin + 1, k, limits)
            side = np.linalg.norm(high[:, block] - low[:, block])
            near = all_blocks[apart <= (np.sqrt(limits[begin]) + side) * (1 + TIE)]
            _limits(points, bounds, low, high, near, begin + 1, end, k, limits)
        near = apart <= np.sqrt(limits[begin:end].max()) * (1 + TIE)
        candidates = np.flatnonzero(np.repeat(near, np.diff(bounds))).astype(np.int32)
        mask = _within(points, begin, end, candidates, limits)
        used = mask.any(axis=0)
        keys.append(candidates[used])
        bits.append(np.packbits(mask[:, used], axis=1, bitorder="little"))
    return keys, bits


@njit(cache=True, nogil=True)
def _limits(
    points: Any, bounds: Any, low: Any, high: Any, near: Any, begin: int, end: int, k: int,
    limits: Any,
) -> None:  # fmt: skip
    # Find each query's limit, the squared distance of its K-th nearest, in the blocks `near`.
    # By the triangle inequality, limits so far bound the next.
    dims = len(points)
    found = np.empty(points.shape[1])
    for i in range(begin, end):
        bound = np.inf
        for j in range(max(begin - 1, 0), i):
            apart = 0.0
            for a in range(dims):
                apart += (points[a, i] - points[a, j]) ** 2
            bound = min(bound, np.sqrt(limits[j]) + np.sqrt(apart))
        bound = bound * bound * (1 + TIE)
        n = 0
        for b in near:
            apart = 0.0
            for a in range(dims):
                apart += max(low[a, b] - points[a, i], points[a, i] - high[a, b], 0.0) ** 2
            if apart > bound:
                continue
            for j in range(bounds[b], bounds[b + 1]):
                apart = 0.0
                for a in range(dims):
                    apart += (points[a, i] - points[a, j]) ** 2
                found[n] = apart
                n += apart <= bound
        limits[i] = _smallest(found[:n], k - 1) * (1 + TIE)


@njit(cache=True, nogil=True)
def _smallest(values: Any, rank: int) -> Any:
    # Hoare's selection, in place: the value of this rank.
    low, high = 0, len(values) - 1
    while low < high:
        a, b, c = values[low], values[(low + high) >> 1], values[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return values[rank]


@njit(cache=True, nogil=True)
def _within(points: Any, begin: int, end: int, candidates: Any, limits: Any) -> Any:
    dims, n = len(points), len(candidates)
    at = np.empty((dims, n))
    for a in range(dims):
        for c in range(n):
            at[a, c] = points[a, candidates[c]]
    mask = np.empty((end - begin, n), np.bool_)
    for i in range(begin, end):
        for c in range(n):
            apart = 0.0
            for a in range(dims):
                apart += (points[a, i] - at[a, c]) ** 2
            mask[i - begin, c] = apart <= limits[i]
    return mask
