"""Bento's published classifier, run from flat arrays: to compare with, not shipped.

Five classes, each a forest of 500 trees on the standardised features and an isotonic map; the five
values are divided by their sum. The arrays are a conversion of the file that bento-tools ships.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["PUBLISHED_CLASSES", "PUBLISHED_THRESHOLDS", "predict_published"]

PUBLISHED_CLASSES = ("cell_edge", "cytoplasmic", "none", "nuclear", "nuclear_edge")
"""Classes of the published model; ``none`` was trained on molecules placed at random."""

PUBLISHED_THRESHOLDS = (0.453, 0.434, 0.379, 0.437, 0.505)
"""A pair gets each label whose probability is at least this."""


def predict_published(
    features: NDArray[np.float64], path: Path
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities and labels that the published model gives.

    Parameters
    ----------
    features : numpy.ndarray
        (n, 13) as :func:`~gpattern_bench.methods.bento.method.bento_features` gives them, computed
        in pixels of about 100 nm.
    path : pathlib.Path
        ``rnaforest_flat.npz``: ``mean`` and ``scale`` of the features; per class k = 0..4 the
        nodes ``k_feature``, ``k_threshold`` (the value, at a leaf), ``k_left`` (-1 at a leaf),
        ``k_right``, ``k_default_left`` (where NaN goes), ``k_root``, and the knots ``k_iso_x``,
        ``k_iso_y``.

    Returns
    -------
    probability : numpy.ndarray
        (n, 5), columns :data:`PUBLISHED_CLASSES`, rows sum to 1. Upstream takes them for five
        exclusive classes.
    label : numpy.ndarray
        (n, 5) bool; no label where a feature is NaN, as upstream.
    """
    with np.load(path, allow_pickle=False) as arrays:
        x = ((features - arrays["mean"]) / arrays["scale"]).astype(np.float32)
        columns = []
        for k in range(len(PUBLISHED_CLASSES)):
            nodes = ("feature", "threshold", "left", "right", "default_left", "root")
            margin = _margins(x, *(arrays[f"{k}_{name}"] for name in nodes))
            raw = 1 / (1 + np.exp(-margin))
            columns.append(np.interp(raw, arrays[f"{k}_iso_x"], arrays[f"{k}_iso_y"]))
    calibrated = np.stack(columns, axis=1)
    total = calibrated.sum(axis=1, keepdims=True)
    even = np.full_like(calibrated, 1 / len(PUBLISHED_CLASSES))
    probability = np.divide(calibrated, total, out=even, where=total > 0)
    complete = ~np.isnan(features).any(axis=1, keepdims=True)
    return probability, (probability >= np.array(PUBLISHED_THRESHOLDS)) & complete


@njit(cache=True, nogil=True)
def _margins(
    x: Any, feature: Any, threshold: Any, left: Any, right: Any, default_left: Any, root: Any
) -> Any:
    """Sums (n,) over trees of the leaves' values, in float32 as upstream."""
    out = np.zeros(len(x), np.float32)
    for first in root:
        for i in range(len(x)):
            node = first
            while left[node] >= 0:
                value = x[i, feature[node]]
                go_left = default_left[node] != 0 if np.isnan(value) else value < threshold[node]
                node = left[node] if go_left else right[node]
            out[i] += threshold[node]
    return out
