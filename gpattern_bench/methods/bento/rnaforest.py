"""Bento's published classifier (RNAforest), from flat arrays, to label pairs as Bento does.

Five classes, each a forest of 500 trees on the standardised features and an isotonic map; the five
values are divided by their sum. The arrays are a conversion of the file that bento-tools ships
(BSD-2-Clause); ``docs/methods/bento.md`` says how to make them. They are not in this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.base.arrays import arrays_sha256, read_arrays
from gpattern_bench.errors import MethodError
from gpattern_bench.methods._forest import Forest
from gpattern_bench.methods.bento.method import BENTO_FEATURES, UNIT_UM

__all__ = ["CLASSES", "LEAST_MOLECULES", "THRESHOLDS", "RnaForest", "pixel_um"]

CLASSES = ("cell_edge", "cytoplasmic", "none", "nuclear", "nuclear_edge")
"""Classes of the model; ``none`` was trained on molecules placed at random."""

THRESHOLDS = (0.453, 0.434, 0.379, 0.437, 0.505)
"""A pair gets each label whose probability is at least this."""

LEAST_MOLECULES = 5
"""Molecules of a pair that Bento of 2022 labels, which made the paper's labels."""

_PIXELS_UM = (0.05, 0.2)
_FARTHEST = 1e6  # of thresholds and leaves; upstream's are below 20
_NODES = {
    "feature": np.int8,
    "threshold": np.float32,
    "left": np.int32,
    "right": np.int32,
    "default_left": np.int8,
}
_KNOTS = ("iso_x", "iso_y")


def pixel_um(unit_um: float) -> float:
    """Choose the length of a pixel (um) for tables of a source with this unit.

    Upstream computes in the source's own unit, and its model was trained on pixels of 100 nm. A
    unit of 50 to 200 nm is taken for such pixels; else they have 100 nm.

    Examples
    --------
    >>> pixel_um(0.108), pixel_um(1.0)
    (0.108, 0.1)
    """
    return unit_um if _PIXELS_UM[0] <= unit_um <= _PIXELS_UM[1] else UNIT_UM


class _Class(NamedTuple):
    """Forest and isotonic map of one class; leaves add to log-odds."""

    forest: Forest
    x: NDArray[np.float32]
    y: NDArray[np.float32]


class RnaForest:
    """The published classifier.

    Parameters
    ----------
    path : pathlib.Path
        ``.npz`` of flat arrays: ``mean`` and ``scale`` (13,) of the features; per class k = 0..4
        of :data:`CLASSES` the nodes ``k_feature``, ``k_threshold`` (the value, at a leaf),
        ``k_left`` (-1 at a leaf), ``k_right``, ``k_default_left`` (NaN goes left), the first
        node of each tree ``k_root``, and the knots ``k_iso_x``, ``k_iso_y``.

    Attributes
    ----------
    sha256 : str
        Hash over the arrays' values.

    Raises
    ------
    MethodError
        The file holds something else, or arrays that no training gives.
    """

    def __init__(self, path: Path) -> None:
        named = ("root", *_NODES, *_KNOTS)
        names = ["mean", "scale", *(f"{k}_{name}" for k in range(len(CLASSES)) for name in named)]
        try:
            arrays = read_arrays(path, names)
            self.sha256 = arrays_sha256(arrays)
            self._mean, self._scale = _scaler(arrays["mean"], arrays["scale"])
            self._classes = [
                _class({name: arrays[f"{k}_{name}"] for name in named}, CLASSES[k])
                for k in range(len(CLASSES))
            ]
        except ValueError as error:
            raise MethodError(
                f"{path} does not hold Bento's published forest ({error}); make the arrays again, "
                "see docs/methods/bento.md"
            ) from error

    def predict(
        self, features: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Compute probabilities and labels.

        Parameters
        ----------
        features : numpy.ndarray
            (n, 13) of :func:`~gpattern_bench.methods.bento.method.bento_features`, in pixels of
            about 100 nm.

        Returns
        -------
        probability : numpy.ndarray
            (n, 5), columns :data:`CLASSES`, rows sum to 1. Upstream takes them for five exclusive
            classes.
        label : numpy.ndarray
            (n, 5) bool; no label where a feature is NaN, as upstream.
        """
        x = ((features - self._mean) / self._scale).astype(np.float32)
        calibrated = np.stack([_calibrated(x, each) for each in self._classes], axis=1)
        total = calibrated.sum(axis=1, keepdims=True)
        even = np.full_like(calibrated, 1 / len(CLASSES))
        probability = np.divide(calibrated, total, out=even, where=total > 0)
        complete = ~np.isnan(features).any(axis=1, keepdims=True)
        return probability, (probability >= np.array(THRESHOLDS)) & complete


def _calibrated(x: NDArray[np.float32], of: _Class) -> NDArray[np.float64]:
    margin = of.forest.sums(x, np.float32)[:, 0]  # summed in float32, as upstream
    with np.errstate(over="ignore"):  # of a far margin: infinite, so 0
        found: NDArray[np.float64] = np.interp(1 / (1 + np.exp(-margin)), of.x, of.y)
    return found


def _scaler(mean: NDArray[Any], scale: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    for name, array in (("mean", mean), ("scale", scale)):
        _need(name, array, np.float64, (len(BENTO_FEATURES),))
    if not (scale > 0).all():
        raise ValueError(f"scale is {scale.min():g}, expected positive numbers")
    return mean, scale


def _class(arrays: dict[str, NDArray[Any]], name: str) -> _Class:
    """Check and convert the arrays of one class."""
    nodes = arrays["feature"].shape
    for key, dtype in _NODES.items():
        _need(f"{name}: {key}", arrays[key], dtype, nodes)
    _need(f"{name}: root", arrays["root"], np.int32, arrays["root"].shape)
    x, y = (arrays[key] for key in _KNOTS)
    for key, array in zip(_KNOTS, (x, y), strict=True):
        _need(f"{name}: {key}", array, np.float32, x.shape)
    if not len(x) or (np.diff(x) < 0).any() or (y < 0).any() or (y > 1).any():
        raise ValueError(f"{name}: the isotonic map is none from rising knots to 0..1")
    leaf, feature, threshold = arrays["left"] < 0, arrays["feature"], arrays["threshold"]
    if (np.abs(threshold) > _FARTHEST).any():
        raise ValueError(f"{name}: a node has {np.abs(threshold).max():g}, expected log-odds")
    inner = feature[~leaf]
    if ((inner < 0) | (inner >= len(BENTO_FEATURES))).any():
        raise ValueError(f"{name}: a node asks for none of the {len(BENTO_FEATURES)} features")
    forest = Forest.of_nodes(
        arrays["root"],
        leaf,
        feature,
        np.nextafter(threshold, np.float32(-np.inf)),  # ours is x <= threshold, upstream's x <
        arrays["left"],
        arrays["right"],
        arrays["default_left"] != 0,
        threshold[leaf][:, None],
    )
    if flaw := forest.flaw(shares=False):
        raise ValueError(f"{name}: {flaw}")
    return _Class(forest, x, y)


def _need(name: str, array: NDArray[Any], dtype: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError if an array has another type, shape or number of axes, or is not finite."""
    if array.dtype != dtype or array.shape != shape or array.ndim != 1:
        raise ValueError(
            f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite")
