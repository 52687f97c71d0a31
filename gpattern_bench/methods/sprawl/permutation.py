"""SPRAWL's punctate and radial scores: four random pairs of a gene's molecules among shuffled ones.

Upstream permutes all n molecules of the cell a thousand times per gene size m. Four pairs touch at
most eight molecules, so here the pairs are drawn as places among the m first, and only the places
that occur get a molecule each, all different: the same law at a cost without n.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["DRAW_VARIANCE", "ObservedDraws", "PairScores", "pair_scores"]

_Floats = NDArray[np.float64]

ObservedDraws = Literal[1, "expected"]
"""Draws of a gene's own four pairs: one, as upstream, or as many as make the mean steady."""

_NULL = 1000  # draws under the null, per number of molecules
_PAIRS = 4
_OBSERVED = 500  # draws for the expected value: its standard error is 0.5 / sqrt(500) at most
_ENUMERATED = 4  # molecules up to which all choices of four pairs are fewer than that: 1, 15, 126

DRAW_VARIANCE = (_NULL + 2) / (3 * _NULL)
"""Null variance of the score of one draw: that of one of a thousand equal steps, whatever m."""

_BUCKETS = 1024  # of the null, by value: about one draw in each

# Equal sums, added in another order or at another place, differ in the last bits: still a tie.
_TIE = 1 - 1e-9


_STEP = np.uint64(0x9E3779B97F4A7C15)  # from a state of the generator to the next


class PairScores(NamedTuple):
    """Scores (g,) in [-1, 1] of the genes present; NaN for genes of one molecule."""

    punctate: _Floats
    radial: _Floats


def pair_scores(
    xy: _Floats,
    gene: NDArray[np.int32],
    middle: _Floats,
    *,
    seed: int,
    name: str,
    obs_draws: ObservedDraws = "expected",
) -> PairScores:
    """Score genes by how near to each other, and in how similar a direction, their molecules are.

    A draw takes four pairs of distinct molecules, each pair at random and any of them twice if it
    so happens, and averages their distances (punctate) or the angles between them as seen from
    the middle (radial). The score is ``1 - 2 F``, with F the share of 1,000 draws from m random
    molecules of the cell that are strictly less than a draw from the gene's own. Genes of one
    molecule are left out of the cell first; genes with the same m share the 1,000 draws. A
    molecule on the middle has no direction: its angles count as 90 degrees.

    Parameters
    ----------
    xy : numpy.ndarray
        (n, 2) molecules, any unit.
    gene : numpy.ndarray
        (n,) codes of their genes.
    middle : numpy.ndarray
        (2,) where angles are seen from; upstream takes the mean of the outline's vertices.
    seed, name : int and str
        Of the run, and of the cell. The same two give the same scores, whatever was scored before.
    obs_draws : {1, "expected"}
        1: one draw from the gene's own molecules, upstream's law, on a grid of 0.002, with a
        standard deviation of 0.5. "expected": its mean, over all draws for up to four molecules,
        over 500 beyond; with the shared null, its standard error is about 0.03.

    Returns
    -------
    PairScores
        One of each per distinct code, ascending.

    Examples
    --------
    >>> xy = np.array([[0.0, 1], [0, 2], [0, 3], [5, 0], [0, -5], [-5, -1]])
    >>> gene = np.array([0, 0, 0, 1, 1, 1])
    >>> scores = pair_scores(xy, gene, np.zeros(2), seed=0, name="cell 1")
    >>> (scores.punctate > 0.9).tolist(), (scores.radial > 0.9).tolist()
    ([True, False], [True, False])
    """
    counts = np.bincount(gene)
    order = np.argsort(gene, kind="stable")
    place = np.asarray(xy, np.float64)[order[counts[gene[order]] > 1]]
    sizes = counts[counts > 0]
    away = place - middle
    angle = np.arctan2(away[:, 1], away[:, 0])
    angle[~away.any(axis=1)] = np.nan
    draws = 1 if obs_draws == 1 else 0
    streams = _streams(seed, name)
    return PairScores(
        _scores(place, sizes, draws, streams[:2]),
        _scores(angle[:, None], sizes, draws, streams[2:]),
    )


def _streams(seed: int, name: str) -> NDArray[np.uint64]:
    """States (4,) of the cell's generators: null and observed draws of either score."""
    digest = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    return np.random.Philox(key=np.array([seed, digest], np.uint64)).random_raw(4)


@njit(cache=True, nogil=True)
def _bits(state: Any) -> Any:
    """64 random bits of a state, by SplitMix64 (Steele, Lea and Flood, 2014)."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def _two_below(state: Any, n: Any, m: Any) -> Any:
    """Random integers in 0..n-1 and in 0..m-1, each value's probability right to 2^-32."""
    bits = _bits(state)
    first = ((bits >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
    second = ((bits & np.uint64(0xFFFFFFFF)) * np.uint64(m)) >> np.uint64(32)
    return np.int64(first), np.int64(second)


@njit(cache=True, nogil=True)
def _apart(place: Any, i: Any, j: Any) -> Any:
    """Distance of two molecules, or the angle between them where `place` holds directions."""
    if place.shape[1] == 2:
        dx, dy = place[i, 0] - place[j, 0], place[i, 1] - place[j, 1]
        return np.sqrt(dx * dx + dy * dy)
    angle = abs(place[i, 0] - place[j, 0])
    if np.isnan(angle):
        return np.pi / 2
    return min(angle, 2 * np.pi - angle)


@njit(cache=True, nogil=True)
def _null_draws(place: Any, m: Any, shuffled: Any, state: Any, out: Any) -> Any:
    """Sums over four pairs of m random molecules, as often as `out` is long; the next state.

    The m places are numbered as they occur: one below `known` has occurred, any other is new.
    The first `known` of `shuffled` are their molecules, dealt anew for each draw.
    """
    n = len(place)
    for draw in range(len(out)):
        known = 0
        total = 0.0
        for _ in range(_PAIRS):
            i, j = _two_below(state, m, m - 1)
            state += _STEP
            before = known
            i = min(i, known)
            known += i == known
            j = min(j + (j >= i), known)
            known += j == known
            r, s = _two_below(state, n - before, n - before - 1)
            state += _STEP
            if before < known:
                _swap(shuffled, before, before + r)
            if before + 1 < known:
                _swap(shuffled, before + 1, before + 1 + s)
            total += _apart(place, shuffled[i], shuffled[j])
        out[draw] = total
    return state


@njit(cache=True, nogil=True)
def _swap(values: Any, i: Any, j: Any) -> None:
    values[i], values[j] = values[j], values[i]


class _Null(NamedTuple):
    """Draws under the null in buckets of equal width, to find ranks without sorting or searching.

    Bucket b is ``values[starts[b]:starts[b + 1]]``.
    """

    values: Any
    starts: Any
    low: Any
    high: Any
    scale: Any


@njit(cache=True, nogil=True)
def _bucket(value: Any, low: Any, scale: Any) -> Any:
    return min(int((value - low) * scale), _BUCKETS - 1)


@njit(cache=True, nogil=True)
def _bucketed(draws: Any) -> Any:
    low, high = draws.min(), draws.max()
    scale = _BUCKETS / (high - low) if low < high * _TIE else 0.0
    starts = np.zeros(_BUCKETS + 1, np.int64)
    for draw in draws:
        starts[_bucket(draw, low, scale)] += 1
    starts = np.cumsum(starts)  # where each ends; as it is filled from there, where it begins
    values = np.empty(len(draws))
    for draw in draws:
        b = _bucket(draw, low, scale)
        starts[b] -= 1
        values[starts[b]] = draw
    return _Null(values, starts, low, high, scale)


@njit(cache=True, nogil=True)
def _less(null: Any, value: Any) -> Any:
    """How many draws under the null are less than the value, to rounding."""
    value *= _TIE
    if value <= null.low:
        return 0
    if value > null.high:
        return len(null.values)
    b = _bucket(value, null.low, null.scale)
    count = null.starts[b]
    for k in range(null.starts[b], null.starts[b + 1]):
        count += null.values[k] < value
    return count


@njit(cache=True, nogil=True)
def _drawn(own: Any, null: Any, draws: Any, state: Any) -> Any:
    """Mean rank among the null of draws from a gene's own molecules; the next state."""
    ranks = 0
    for _ in range(draws):
        total = 0.0
        for _ in range(_PAIRS):
            i, j = _two_below(state, len(own), len(own) - 1)
            state += _STEP
            total += _apart(own, i, j + (j >= i))
        ranks += _less(null, total)
    return ranks / draws, state


@njit(cache=True, nogil=True)
def _enumerated(own: Any, null: Any) -> Any:
    """Mean rank among the null over all ways to take four pairs of a gene's few molecules."""
    pairs = np.array([_apart(own, i, j) for i in range(len(own)) for j in range(i)])
    p = len(pairs)
    ranks = 0
    for a in range(p):
        for b in range(a, p):
            for c in range(b, p):
                for d in range(c, p):
                    total = pairs[a] + pairs[b] + pairs[c] + pairs[d]
                    ranks += _orders(a, b, c, d) * _less(null, total)
    return ranks / p**_PAIRS


@njit(cache=True, nogil=True)
def _orders(a: Any, b: Any, c: Any, d: Any) -> Any:
    """In how many orders four ascending numbers can be written."""
    run = same = 1
    for equal in (a == b, b == c, c == d):
        run = run + 1 if equal else 1
        same *= run
    return 24 // same


@njit(cache=True, nogil=True)
def _scores(place: Any, sizes: Any, draws: Any, streams: Any) -> Any:
    """Score genes of these sizes; the molecules of those of two or more follow each other."""
    scores = np.full(len(sizes), np.nan)
    ends = np.cumsum(np.where(sizes > 1, sizes, 0))
    shuffled = np.arange(len(place))
    sums = np.zeros(_NULL)
    null = _bucketed(sums)
    null_state, state = streams[0], streams[1]
    m = 1
    for g in np.argsort(sizes, kind="mergesort"):
        if sizes[g] < 2:
            continue
        if sizes[g] > m:
            m = sizes[g]
            null_state = _null_draws(place, m, shuffled, null_state, sums)
            null = _bucketed(sums)
        own = place[ends[g] - m : ends[g]]
        if draws == 0 and m <= _ENUMERATED:
            rank = _enumerated(own, null)
        else:
            rank, state = _drawn(own, null, draws or _OBSERVED, state)
        scores[g] = 1 - 2 * rank / _NULL
    return scores
