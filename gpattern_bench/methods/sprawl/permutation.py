"""SPRAWL's punctate and radial scores: random pairs of a gene's molecules against shuffled ones.

Upstream permutes all n molecules of a cell a thousand times per gene size m. Four pairs touch at
most eight molecules; so draw the pairs as slots among m first, then distinct molecules only for the
slots drawn: the same law at a cost independent of n.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit

__all__ = ["DRAW_VARIANCE", "ObservedDraws", "PairScores", "pair_scores"]

_Floats = NDArray[np.float64]

ObservedDraws = Literal[1, "expected"]
"""Draws of a gene's own four pairs: one, as upstream, or enough to estimate the mean."""

_NULL = 1000  # draws under the null, per number of molecules
_PAIRS = 4
_OBSERVED = 500  # draws for the expected value: standard error at most 0.5 / sqrt(500)
_ENUMERATED = 4  # most molecules to enumerate: 1, 15, 126 choices of four pairs

DRAW_VARIANCE = (_NULL + 2) / (3 * _NULL)
"""Null variance of the score of one draw, for any m: that of a uniform step of a thousand."""

_BUCKETS = 1024  # of the null, by value: about one draw per bucket

_TIE = 1 - 1e-9  # sums in another order differ in the last bits and still tie

_STEP = np.uint64(0x9E3779B97F4A7C15)  # between states of the generator


class PairScores(NamedTuple):
    """Scores (g,) of the genes present, in [-1, 1]; NaN for genes with one molecule."""

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
    """Score genes by their molecules' distances to each other, and by the angles between them.

    A draw takes four random pairs of distinct molecules, with replacement of pairs, and averages
    their distances (punctate) or the angles between them seen from the middle (radial). The score
    is ``1 - 2 F``, with F the share of 1,000 draws from m random molecules of the cell that are
    strictly less than a draw from the gene's own. Genes with one molecule are excluded from the
    cell; genes with the same m share the 1,000 draws. Angles of a molecule on the middle count as
    90 degrees.

    Parameters
    ----------
    xy : numpy.ndarray
        (n, 2) molecules, any unit.
    gene : numpy.ndarray
        (n,) gene codes.
    middle : numpy.ndarray
        (2,) vertex of the angles; upstream takes the mean of the outline's vertices.
    seed, name : int and str
        Of the run and the cell; together they determine the scores.
    obs_draws : {1, "expected"}
        1: one draw from the gene's own molecules, as upstream, on a grid of 0.002 with a standard
        deviation of 0.5. "expected": its mean, over all draws for up to four molecules, else over
        500; with the shared null, the standard error is about 0.03.

    Returns
    -------
    PairScores
        By distinct code, ascending.

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
    genes = sizes, np.argsort(sizes, kind="stable"), np.cumsum(np.where(sizes > 1, sizes, 0))
    draws = 1 if obs_draws == 1 else 0
    streams = _streams(seed, name)
    return PairScores(
        _scores(place, *genes, draws, streams[:2]),
        _scores(angle[:, None], *genes, draws, streams[2:]),
    )


def _streams(seed: int, name: str) -> NDArray[np.uint64]:
    """Seed the cell's four generators: null and observed draws of each score."""
    digest = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    return np.random.Philox(key=np.array([seed, digest], np.uint64)).random_raw(4)


@njit(cache=True, nogil=True)
def _bits(state: Any) -> Any:
    """Compute 64 random bits from a state (SplitMix64: Steele, Lea and Flood, 2014)."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def _two_below(state: Any, n: Any, m: Any) -> Any:
    """Draw integers from 0..n-1 and 0..m-1, with probabilities exact to 2^-32."""
    bits = _bits(state)
    first = ((bits >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
    second = ((bits & np.uint64(0xFFFFFFFF)) * np.uint64(m)) >> np.uint64(32)
    return np.int64(first), np.int64(second)


@njit(cache=True, nogil=True)
def _distance(place: Any, i: Any, j: Any) -> Any:
    """Measure the distance of two molecules, or their angle if `place` holds directions."""
    if place.shape[1] == 2:
        dx, dy = place[i, 0] - place[j, 0], place[i, 1] - place[j, 1]
        return np.sqrt(dx * dx + dy * dy)
    angle = abs(place[i, 0] - place[j, 0])
    if np.isnan(angle):
        return np.pi / 2
    return min(angle, 2 * np.pi - angle)


@njit(cache=True, nogil=True)
def _null_draws(place: Any, m: Any, shuffled: Any, state: Any, out: Any) -> Any:
    """Fill `out` with sums over four pairs of m random molecules; return the next state.

    Slots are numbered in the order drawn: a number below `known` is an old slot, any other is new.
    The first `known` items of `shuffled` are their molecules, drawn anew each time.
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
                a, b = before, before + r
                shuffled[a], shuffled[b] = shuffled[b], shuffled[a]
            if before + 1 < known:
                a, b = before + 1, before + 1 + s
                shuffled[a], shuffled[b] = shuffled[b], shuffled[a]
            total += _distance(place, shuffled[i], shuffled[j])
        out[draw] = total
    return state


class _Null(NamedTuple):
    """Null draws in buckets of equal width, to find ranks without a sort or a search.

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
    starts = np.cumsum(starts)  # the buckets' ends; filling backwards turns them into starts
    values = np.empty(len(draws))
    for draw in draws:
        b = _bucket(draw, low, scale)
        starts[b] -= 1
        values[starts[b]] = draw
    return _Null(values, starts, low, high, scale)


@njit(cache=True, nogil=True)
def _count_less(null: Any, value: Any) -> Any:
    """Count null draws below a value, ties up to rounding excluded."""
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
def _mean_rank_drawn(own: Any, null: Any, draws: Any, state: Any) -> Any:
    """Average the null ranks of random draws from a gene's own molecules; also the next state."""
    ranks = 0
    for _ in range(draws):
        total = 0.0
        for _ in range(_PAIRS):
            i, j = _two_below(state, len(own), len(own) - 1)
            state += _STEP
            total += _distance(own, i, j + (j >= i))
        ranks += _count_less(null, total)
    return ranks / draws, state


@njit(cache=True, nogil=True)
def _mean_rank_enumerated(own: Any, null: Any) -> Any:
    """Average the null ranks of all choices of four pairs of a gene's few molecules."""
    pairs = np.array([_distance(own, i, j) for i in range(len(own)) for j in range(i)])
    p = len(pairs)
    ranks = 0
    for a in range(p):
        for b in range(a, p):
            for c in range(b, p):
                for d in range(c, p):
                    total = pairs[a] + pairs[b] + pairs[c] + pairs[d]
                    ranks += _permutations(a, b, c, d) * _count_less(null, total)
    return ranks / p**_PAIRS


@njit(cache=True, nogil=True)
def _permutations(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Count the distinct permutations of four ascending numbers."""
    run = same = 1
    for equal in (a == b, b == c, c == d):
        run = run + 1 if equal else 1
        same *= run
    return 24 // same


@njit(cache=True, nogil=True)
def _scores(place: Any, sizes: Any, order: Any, ends: Any, draws: Any, streams: Any) -> Any:
    """Score genes of these sizes, from the smallest on.

    `place` has the molecules of genes with two or more, by gene; `ends` is where each gene ends.
    """
    scores = np.full(len(sizes), np.nan)
    shuffled = np.arange(len(place))
    sums = np.zeros(_NULL)
    null = _bucketed(sums)
    null_state, state = streams[0], streams[1]
    m = 1
    for g in order:
        if sizes[g] < 2:
            continue
        if sizes[g] > m:
            m = sizes[g]
            null_state = _null_draws(place, m, shuffled, null_state, sums)
            null = _bucketed(sums)
        own = place[ends[g] - m : ends[g]]
        if draws == 0 and m <= _ENUMERATED:
            rank = _mean_rank_enumerated(own, null)
        else:
            rank, state = _mean_rank_drawn(own, null, draws or _OBSERVED, state)
        scores[g] = 1 - 2 * rank / _NULL
    return scores
