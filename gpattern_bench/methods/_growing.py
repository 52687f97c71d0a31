"""Grow the trees of a random forest: scikit-learn's, to the bit, in a fraction of the time.

scikit-learn sorts the samples of each node anew, by each feature that it draws. Here each feature
is sorted once; nodes divide the sorted lists. Counts of labels are whole numbers, so that the gain
of a split can be bounded without the sums of all labels. All draws, comparisons and ties are those
of ``RandomForestClassifier`` of scikit-learn 1.9, with missing values.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit
from gpattern_bench.base.threads import processors

__all__ = ["Tree", "grow_trees"]

_MOST = 2**31 - 1
_SAME = np.float32(1e-7)  # values nearer than this are one
_FEW = 48  # pairs of a node that are sorted anew
_ROUNDING = 1e-12  # relative; far above that of a gain, far below what labels can change


class Tree(NamedTuple):
    """Nodes of a tree, each before its children.

    Attributes
    ----------
    feature : numpy.ndarray
        (m,) column; -1 at leaves.
    threshold : numpy.ndarray
        (m,) float64.
    left, right : numpy.ndarray
        (m,) children; -1 at leaves.
    missing_left : numpy.ndarray
        (m,) bool: NaN goes left.
    share : numpy.ndarray
        (m, C) shares of the labels.
    """

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    missing_left: NDArray[np.bool_]
    share: NDArray[np.float64]


def grow_trees(
    features: NDArray[np.float32], labels: NDArray[np.bool_], seed: int, trees: int, min_leaf: int
) -> list[Tree]:
    """Grow trees on bootstrap samples of pairs (n, F), for labels (n, C); in threads.

    Each node draws the square root of F features, as ``RandomForestClassifier`` does by default.
    """
    columns = np.ascontiguousarray(features.T)
    small = np.uint16 if len(features) <= 1 << 16 else np.uint32
    order = np.argsort(columns, axis=1, kind="stable").astype(small)  # NaN last
    sets, of_pair = np.unique(labels, axis=0, return_inverse=True)
    draws = np.random.RandomState(seed)
    seeds = [draws.randint(_MOST) for _ in range(trees)]

    def grow(own: int) -> Tree:
        n = len(features)
        weight = np.bincount(np.random.RandomState(own).randint(0, n, n), minlength=n)
        pairs = np.stack([weight, of_pair.reshape(-1)], axis=1).astype(np.uint32)
        state = np.random.RandomState(own).randint(0, _MOST)
        drawn = max(1, int(np.sqrt(features.shape[1])))
        return Tree(*_grow(columns, order, pairs, sets, state, drawn, min_leaf))

    # worker processes share the cores; threads do not change the trees
    with ThreadPoolExecutor(processors() if parent_process() is None else 1) as pool:
        return list(pool.map(grow, seeds))


@njit(cache=True, nogil=True)
def _grow(
    columns: Any, order: Any, pairs: Any, sets: Any, state: Any, drawn: Any, min_leaf: Any
) -> Any:
    """Grow a tree, depth first."""
    n_features, n = columns.shape
    n_labels = sets.shape[1]
    positive, first = _positives(sets)
    inside = 0
    for i in range(n):
        inside += pairs[i, 0] > 0
    lists = np.empty((n_features, inside), order.dtype)
    for f in range(n_features):
        at = 0
        for i in order[f]:
            if pairs[i, 0] > 0:
                lists[f, at] = i
                at += 1
    most = 2 * (inside // min_leaf) + 1
    feature = np.full(most, -1, np.int64)
    threshold = np.zeros(most)
    left, right = np.full(most, -1, np.int64), np.full(most, -1, np.int64)
    missing_left = np.zeros(most, np.bool_)
    share = np.zeros((most, n_labels))
    stack = np.empty((most + 1, 5), np.int64)  # start, end, parent, is left, constant features
    impurities = np.empty(most + 1)
    stack[0] = 0, inside, -1, 0, 0
    top, nodes = 1, 0
    features = np.arange(n_features)
    constant = np.empty(n_features, np.int64)
    goes_left, held = np.zeros(n, np.bool_), np.empty(inside, order.dtype)
    few, few_values = np.empty(_FEW, order.dtype), np.empty(_FEW, np.float32)
    total, counts = np.zeros(n_labels, np.int64), np.zeros(n_labels, np.int64)
    best_counts = np.zeros(n_labels, np.int64)
    while top > 0:
        top -= 1
        start, end, parent, is_left, known = stack[top]
        node, nodes = nodes, nodes + 1
        if parent >= 0:
            if is_left:
                left[parent] = node
            else:
                right[parent] = node
        size, members = end - start, lists[0, start:end]
        total[:] = 0
        weight = _add(members, pairs, positive, first, total)
        for k in range(n_labels):
            share[node, k] = total[k] / weight
        impurity = _impurity(total, weight) if parent < 0 else impurities[top]
        if size < 2 * min_leaf or impurity <= 2.220446049250313e-16:
            continue
        if parent < 0:
            of_all = weight

        # the features that are drawn; constant ones are drawn only once in a branch
        best, pos, best_feature = -np.inf, size, 0
        best_threshold, best_missing_left, best_weight = 0.0, False, 0
        rest, visited, found, drawn_constants, constants = n_features, 0, 0, 0, known
        while rest > constants and (visited < drawn or visited <= found + drawn_constants):
            visited += 1
            state = _next(state)
            j = drawn_constants + (state % 2147483648) % (rest - found - drawn_constants)
            if j < known:
                _swap(features, drawn_constants, j)
                drawn_constants += 1
                continue
            j += found
            f = features[j]
            values, some = columns[f], lists[f, start:end]
            if size <= _FEW:
                some = few[:size]
                _sort(members, values, some, few_values)
            stop = size
            while stop > 0 and np.isnan(values[some[stop - 1]]):
                stop -= 1
            missing = size - stop
            if stop == 0 or (missing == 0 and values[some[stop - 1]] <= values[some[0]] + _SAME):
                _swap(features, j, constants)
                found += 1
                constants += 1
                continue
            rest -= 1
            _swap(features, rest, j)
            for to_left in range(2 if missing else 1):
                gain, at, side = _best_split(
                    values, some, stop, to_left == 1, pairs, positive, first, total, weight,
                    min_leaf, best, counts,
                )  # fmt: skip
                if gain > best:
                    best, pos, best_feature, best_weight = gain, at, f, side
                    best_counts[:] = counts
                    # `at` counts the missing pairs too, if they go left
                    here = at - missing if to_left else at
                    if here == stop:
                        best_threshold = np.inf
                    else:
                        below, above = values[some[here - 1]], values[some[here]]
                        best_threshold = np.float64(below) / 2.0 + np.float64(above) / 2.0
                    best_missing_left = to_left == 1 if missing else at > size - at
        # children and siblings find the constant features of this node in their order
        features[:known] = constant[:known]
        constant[known:constants] = features[known:constants]
        if pos >= size:
            continue
        other = weight - best_weight
        left_impurity = _impurity(best_counts, best_weight)
        right_impurity = _impurity(total - best_counts, other)
        gained = (weight / of_all) * (
            impurity - (other / weight * right_impurity) - (best_weight / weight * left_impurity)
        )
        if gained + 2.220446049250313e-16 < 0.0:
            continue
        feature[node], threshold[node] = best_feature, best_threshold
        missing_left[node] = best_missing_left

        values = columns[best_feature]
        for i in members:
            goes_left[i] = best_missing_left if np.isnan(values[i]) else values[i] <= best_threshold
        # nodes of few pairs are read from the first list alone
        alone = pos <= _FEW and size - pos <= _FEW
        for f in range(1 if alone else n_features):
            _divide(lists[f, start:end], goes_left, held)
        stack[top] = start + pos, end, node, 0, constants
        impurities[top] = right_impurity
        stack[top + 1] = start, start + pos, node, 1, constants
        impurities[top + 1] = left_impurity
        top += 2
    return (
        feature[:nodes], threshold[:nodes], left[:nodes], right[:nodes], missing_left[:nodes],
        share[:nodes],
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _best_split(
    values: Any, some: Any, stop: Any, to_left: Any, pairs: Any, positive: Any, first: Any,
    total: Any, weight: Any, min_leaf: Any, best: Any, counts: Any,
) -> Any:  # fmt: skip
    """Find the first split of the largest gain above `best` in a sorted list.

    From `stop` on are the pairs without a value: right of every split, or left of it. Returns the
    gain, the position (of the pairs as they lie then) and the weight on the left; `counts` gets
    the labels there.
    """
    n_labels, size = len(total), len(some)
    counts[:] = 0
    here, ones, squares, mixed = 0, 0, 0, 0  # weight and sums over labels, on the left
    offset = 0
    if to_left:
        offset = size - stop
        here = _add(some[stop:], pairs, positive, first, counts)
        for k in range(n_labels):
            ones += counts[k]
            squares += counts[k] * counts[k]
            mixed += counts[k] * total[k]
    all_ones, all_squares = 0, 0
    for k in range(n_labels):
        all_ones += total[k]
        all_squares += total[k] * total[k]
    # The gain, but for a constant: sums of squares of the labels' counts, by the weight. Where it
    # may be the largest, it is computed as scikit-learn does.
    least = n_labels * (best + weight) - _ROUNDING * n_labels * weight
    found, at, side = best, size, 0
    current = counts.copy()
    for p in range(stop):
        i = some[p]
        w: Any = np.int64(pairs[i, 0])
        which = pairs[i, 1]
        here += w
        for q in range(first[which], first[which + 1]):
            k = positive[q]
            squares += w * (2 * current[k] + w)
            mixed += w * total[k]
            ones += w
            current[k] += w
        split = p + 1 + offset
        if split < min_leaf:
            continue
        if size - split < min_leaf:
            break
        if p + 1 < stop:
            if values[some[p + 1]] <= values[i] + _SAME:
                continue
        elif to_left or stop == size:
            continue
        other = weight - here
        on_left = 2 * squares - 2 * here * ones + n_labels * here * here
        on_right = (
            2 * (all_squares - 2 * mixed + squares)
            - 2 * other * (all_ones - ones)
            + n_labels * other * other
        )
        if on_left / here + on_right / other < least:
            continue
        gain = -other * _impurity(total - current, other) - here * _impurity(current, here)
        if gain > found:
            found, at, side = gain, split, here
            least = n_labels * (gain + weight) - _ROUNDING * n_labels * weight
            counts[:] = current
    return found, at, side


@njit(cache=True, nogil=True)
def _positives(sets: Any) -> Any:
    """List the positive labels of each set of labels: their columns, and where each set begins."""
    positive = np.empty(sets.size, np.uint32)
    first = np.zeros(len(sets) + 1, np.uint32)
    at = 0
    for s in range(len(sets)):
        for k in range(sets.shape[1]):
            if sets[s, k]:
                positive[at] = k
                at += 1
        first[s + 1] = at
    return positive, first


@njit(cache=True, nogil=True)
def _add(some: Any, pairs: Any, positive: Any, first: Any, counts: Any) -> Any:
    """Add the labels of some pairs to counts; return their weight."""
    weight = 0
    for i in some:
        w: Any = np.int64(pairs[i, 0])
        which = pairs[i, 1]
        weight += w
        for q in range(first[which], first[which + 1]):
            counts[positive[q]] += w
    return weight


@njit(cache=True, nogil=True)
def _impurity(counts: Any, weight: Any) -> Any:
    """Compute the mean Gini impurity of the labels, in scikit-learn's order of operations."""
    whole = np.float64(weight)
    gini = 0.0
    for k in range(len(counts)):
        no, yes = whole - counts[k], np.float64(counts[k])
        gini += 1.0 - (no * no + yes * yes) / (whole * whole)
    return gini / len(counts)


@njit(cache=True, nogil=True)
def _sort(members: Any, values: Any, some: Any, held: Any) -> None:
    """Sort a few pairs by their value, those without one last."""
    known, last = 0, len(members)
    for i in members:
        value = values[i]
        if np.isnan(value):
            last -= 1
            some[last] = i
            continue
        at = known
        while at > 0 and held[at - 1] > value:
            held[at], some[at] = held[at - 1], some[at - 1]
            at -= 1
        held[at], some[at] = value, i
        known += 1


@njit(cache=True, nogil=True)
def _divide(some: Any, goes_left: Any, held: Any) -> None:
    """Put those that go left first, both in their order."""
    at, others = np.uint64(0), np.uint64(0)  # signed ones are compared with 0 at each use
    for i in some:
        some[at] = i
        held[others] = i
        to_left = np.uint64(goes_left[i])
        at += to_left
        others += np.uint64(1) - to_left
    for k in range(others):
        some[at + k] = held[k]


@njit(cache=True, nogil=True)
def _next(state: Any) -> Any:
    """Return the next state of scikit-learn's xorshift generator, of 32 bits."""
    if state == 0:
        state = 1
    state ^= (state << 13) & 0xFFFFFFFF
    state ^= state >> 17
    return state ^ ((state << 5) & 0xFFFFFFFF)


@njit(cache=True, nogil=True)
def _swap(array: Any, i: Any, j: Any) -> None:
    array[i], array[j] = array[j], array[i]
