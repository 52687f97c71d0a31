"""Templates along the radius: from clusters of curves or groups of kernels, and their evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from gpattern_bench.methods.ella.kernels import MODES

__all__ = [
    "CLASSES",
    "cluster_curves",
    "cluster_shares",
    "curve_features",
    "evidence",
    "kernel_groups",
]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

CLASSES = ("nuclear", "nuclear_edge", "cytoplasmic", "cell_edge", "mixed")
"""What the five clusters are called, from the innermost to the outermost."""

_NUCLEAR_RADIUS = 0.56  # of the U-2 OS cells that were measured; where there is no nucleus


def kernel_groups(nuclear: float, *, edge: bool = True) -> dict[str, _Ints]:
    """Group the kernels by their modes, relative to the radius of the nucleus.

    Parameters
    ----------
    nuclear : float
        Mean relative radius of the nuclear outline; NaN (there are none) reads as 0.56, and all
        is held in [0.2, 0.65], so that no group is empty.
    edge : bool
        Whether the nuclear edge is a class. If not, its kernels are shared out to the two sides.

    Returns
    -------
    dict of str to numpy.ndarray
        Kernels of each of :data:`CLASSES` but the last, the innermost first.

    Examples
    --------
    >>> {name: np.unique(MODES[k]).tolist() for name, k in kernel_groups(0.56).items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'nuclear': [0.0, 0.1, 0.2, 0.3, 0.4], 'nuclear_edge': [0.5, 0.6],
     'cytoplasmic': [0.7, 0.8], 'cell_edge': [0.9, 1.0]}
    """
    radius = _NUCLEAR_RADIUS if np.isnan(nuclear) else min(max(nuclear, 0.2), 0.65)
    inside, belt = (0.15, 0.1) if edge else (0.0, 0.0)
    groups = {"nuclear": (radius - inside) >= MODES}
    if edge:
        groups["nuclear_edge"] = np.abs(MODES - radius) <= belt
    groups["cytoplasmic"] = (radius + belt < MODES) & (MODES <= 0.85)
    groups["cell_edge"] = MODES >= 0.9
    return {name: np.flatnonzero(chosen) for name, chosen in groups.items()}


def curve_features(lam: _Floats) -> _Floats:
    """What curves (G, 100) are clustered by: 20 steps and 21 heights (G, 41), each in [0, 1]."""
    heights = _scaled(lam[:, [*range(0, 100, 5), 99]])
    return np.concatenate([_scaled(np.diff(heights, axis=1)), heights], axis=1)


def _scaled(values: _Floats) -> _Floats:
    low, span = values.min(axis=1, keepdims=True), np.ptp(values, axis=1)[:, None]
    return np.asarray((values - low) / np.where(span > 0, span, 1.0))


def cluster_curves(lam: _Floats, seed: int, k: int = 5) -> NDArray[np.int64] | None:
    """Cluster curves (G, 100) by k-means: labels (G,) from 0, the innermost peaks, to k - 1.

    Clusters are ordered by the median place of their members' peaks, then by the mean place.
    None if fewer than k curves differ.
    """
    if len(lam) < k:
        return None
    x = curve_features(lam)
    if len(np.unique(x, axis=0)) < k:
        return None
    with threadpool_limits(1):  # sums in a fixed order: the same clusters on every machine
        found = KMeans(k, n_init=5, max_iter=200, random_state=seed).fit(x).labels_
    peak = x[:, 20:].argmax(axis=1)
    places = [(np.median(peak[found == c]), np.mean(peak[found == c]), c) for c in range(k)]
    rank = np.empty(k, np.int64)
    rank[[c for _, _, c in sorted(places)]] = np.arange(k)
    return np.asarray(rank[found])


def cluster_shares(x: _Floats, labels: _Ints) -> _Floats:
    """Prior (G, k) of each cluster: a Gaussian about its centroid, as wide as clusters are."""
    centre = np.stack([x[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    squared = np.square(x[:, None] - centre).sum(axis=2)
    spread = max(float(np.mean(squared[np.arange(len(x)), labels])), 1e-12)
    return np.asarray(softmax(-squared / (2 * spread), axis=1))


def evidence(r: _Floats, starts: _Ints, values: _Floats) -> _Floats:
    """Sum curves (K, 100) over the molecules of each pair: (len(starts) - 1, K).

    Curves are read linearly between the points of the grid and are constant beyond its ends.

    Parameters
    ----------
    r : numpy.ndarray
        (n,) relative radii, pair by pair.
    starts : numpy.ndarray
        Where each pair begins, and n.
    values : numpy.ndarray
        Logarithms of density ratios, for instance: the result is the log-evidence.
    """
    out = np.zeros((len(starts) - 1, len(values)))
    _sums(r, starts, np.ascontiguousarray(values.T), out)
    return out


@njit(cache=True, nogil=True)
def _sums(r: Any, starts: Any, values: Any, out: Any) -> None:
    points = len(values)
    first, step = 0.001, 0.998 / (points - 1)
    for p in range(len(out)):
        for j in range(starts[p], starts[p + 1]):
            place = min(max((r[j] - first) / step, 0.0), points - 1.0)
            i = min(int(place), points - 2)
            share = place - i
            for k in range(out.shape[1]):
                out[p, k] += values[i, k] + share * (values[i + 1, k] - values[i, k])
