"""Make radial templates from clusters of curves or groups of kernels; sum their evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from gpattern_bench.base.compiled import njit
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
"""Names of the five clusters, from the innermost to the outermost."""

_NUCLEAR_RADIUS = 0.56  # measured on U-2 OS cells; default without nuclei


def kernel_groups(nuclear: float, *, edge: bool = True) -> dict[str, _Ints]:
    """Group the kernels by their modes, relative to the radius of the nucleus.

    Parameters
    ----------
    nuclear : float
        Mean relative radius of the nuclear outlines; NaN (no nuclei) means 0.56. Clipped to
        [0.2, 0.65], so that no group is empty.
    edge : bool
        Make the nuclear edge a class; else divide its kernels between the two sides.

    Returns
    -------
    dict of str to numpy.ndarray
        Kernels of each of :data:`CLASSES` but the last, innermost first.

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
    """Describe curves (G, 100) for clustering: 20 steps and 21 heights (G, 41), in [0, 1]."""
    heights = _unit_range(lam[:, [*range(0, 100, 5), 99]])
    return np.concatenate([_unit_range(np.diff(heights, axis=1)), heights], axis=1)


def _unit_range(values: _Floats) -> _Floats:
    low, span = values.min(axis=1, keepdims=True), np.ptp(values, axis=1)[:, None]
    return np.asarray((values - low) / np.where(span > 0, span, 1.0))


def cluster_curves(lam: _Floats, seed: int, k: int = 5) -> NDArray[np.int64] | None:
    """Cluster curves (G, 100) by k-means: labels (G,), 0 has the innermost peaks.

    Orders clusters by the median, then the mean, of their peaks' radii. None if fewer than k
    curves differ.
    """
    from sklearn.cluster import KMeans  # slow to import

    if len(lam) < k:
        return None
    x = curve_features(lam)
    if len(np.unique(x, axis=0)) < k:
        return None
    with threadpool_limits(1):  # the order of sums would change the clusters
        found = KMeans(k, n_init=5, max_iter=200, random_state=seed).fit(x).labels_
    peak = x[:, 20:].argmax(axis=1)
    peaks = [(np.median(peak[found == c]), np.mean(peak[found == c]), c) for c in range(k)]
    rank = np.empty(k, np.int64)
    rank[[c for _, _, c in sorted(peaks)]] = np.arange(k)
    return np.asarray(rank[found])


def cluster_shares(x: _Floats, labels: _Ints) -> _Floats:
    """Compute priors (G, k) of clusters: Gaussians about their centroids, of pooled variance."""
    centre = np.stack([x[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    squared = np.square(x[:, None] - centre).sum(axis=2)
    spread = max(float(np.mean(squared[np.arange(len(x)), labels])), 1e-12)
    return np.asarray(softmax(-squared / (2 * spread), axis=1))


def evidence(r: _Floats, starts: _Ints, values: _Floats) -> _Floats:
    """Sum curves (K, 100) over the molecules of each pair: (len(starts) - 1, K).

    Interpolates curves linearly on the grid; they are constant beyond its ends.

    Parameters
    ----------
    r : numpy.ndarray
        (n,) relative radii, pair by pair.
    starts : numpy.ndarray
        First molecule of each pair, then n.
    values : numpy.ndarray
        Curves, for instance log density ratios; then the sums are log-evidence.
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
            position = min(max((r[j] - first) / step, 0.0), points - 1.0)
            i = min(int(position), points - 2)
            share = position - i
            for k in range(out.shape[1]):
                out[p, k] += values[i, k] + share * (values[i + 1, k] - values[i, k])
