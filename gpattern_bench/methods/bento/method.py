"""Bento's 13 features (Mah et al., Genome Biology 2024) and a forest on them.

Distances, asymmetries and spread of a gene's molecules relative to cell and nucleus, and the shape
of Ripley's function, with the values of bento-tools 2.1.4 (definitions: ``docs/methods/bento.md``).
Five depend on the unit of length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit
from gpattern_bench.base.geometry import Rings
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.errors import MethodError
from gpattern_bench.methods._forest import Forest, forest_scores, labelled_pairs, pair_batches
from gpattern_bench.methods.base import About, Scores

__all__ = ["BENTO_FEATURES", "UNIT_UM", "Bento", "bento_features", "features"]

_Floats = NDArray[np.float64]

UNIT_UM = 0.1
"""Length of a pixel, micrometres: upstream's model was trained on pixels of 100 nm."""

BENTO_FEATURES = (
    "cell_inner_proximity",
    "nucleus_inner_proximity",
    "nucleus_outer_proximity",
    "cell_inner_asymmetry",
    "nucleus_inner_asymmetry",
    "nucleus_outer_asymmetry",
    "l_max",
    "l_max_gradient",
    "l_min_gradient",
    "l_monotony",
    "l_half_radius",
    "point_dispersion_norm",
    "nucleus_dispersion_norm",
)
"""Names of the features, in the order of upstream's model."""

_FOREST = "forest.npz"
_WINDOW = 5  # radii in the moving mean of Ripley's function
_ON_OUTLINE = 1e-4  # pixels: float32 moves molecules on the nuclear outline by less
_ON_LATTICE = 1e-6  # pixels: conversion to micrometres and back moves whole pixels by less


def bento_features(cell: Cell, *, unit_um: float = UNIT_UM, min_count: int = 0) -> _Floats:
    """Compute the features of every gene present in a cell.

    Parameters
    ----------
    cell : Cell
    unit_um : float
        Length of a pixel, in the unit of the cell's coordinates (micrometres in tables).
    min_count : int
        Genes with fewer molecules get NaN; 5 in Bento of 2022, 0 in 2.1.

    Returns
    -------
    numpy.ndarray
        (g, 13) float64, rows as ``cell.genes``, columns :data:`BENTO_FEATURES`. NaN: the features
        of the nucleus in a cell without one, and ``l_max``, ``l_monotony`` and ``l_half_radius``
        of a gene with one molecule.

    Raises
    ------
    MethodError
        `unit_um` is not positive and finite.
    """
    if not 0 < unit_um < math.inf:
        raise MethodError(
            f"expected a positive number for the length of a pixel, such as {UNIT_UM} um, got "
            f"{unit_um}"
        )
    shape = cell.geometry
    rings = shape.boundary_rings
    vertices = rings.exterior_xy
    centre = shape.boundary_moments.centroid
    nucleus = (
        shape.nucleus_moments.centroid - centre if shape.nucleus_moments else np.full(2, np.nan)
    )
    to_nucleus = shape.nucleus_distance / unit_um
    by_gene = np.argsort(cell.gene, kind="stable")
    xy = ((shape.xy - centre) / unit_um)[by_gene]
    starts = np.append(0, np.cumsum(cell.counts))
    out = np.empty((len(cell.counts), len(BENTO_FEATURES)))
    _fill_positions(
        xy,
        (shape.boundary_distance / unit_um)[by_gene],
        to_nucleus[by_gene],
        (shape.in_nucleus | (to_nucleus < _ON_OUTLINE))[by_gene],
        starts,
        nucleus / unit_um,
        np.hypot(*(vertices - centre).T).mean() / unit_um,
        *_lattice_moments(rings, centre, unit_um),
        out,
    )
    span = int(_longest_distance(vertices) / unit_um + 1e-9)  # 1e-9: whole pixels stay whole
    out[:, 6:11] = _ripley(xy, starts, span, shape.boundary_moments.area / unit_um**2)
    out[cell.counts < min_count] = np.nan
    return out


def _lattice_moments(rings: Rings, centre: _Floats, unit: float) -> tuple[_Floats, float]:
    """Compute the mean offset (2,) and mean squared offset of a cell's pixels from `centre`.

    Pixels are the lattice points inside the exterior rings. If all vertices lie on one lattice, as
    in outlines traced on an image, it is that of the pixels; else the frame's origin sets it.
    """
    xy = rings.exterior_xy / unit
    snapped = np.rint(xy - xy[0])
    shift = xy[0] - np.rint(xy[0])
    if np.abs(xy - xy[0] - snapped).max() < _ON_LATTICE:
        xy = snapped + np.rint(xy[0])
    else:
        shift[:] = 0
    low, high = (math.floor(y) + 1 for y in (xy[:, 1].min(), xy[:, 1].max()))
    offset = centre / unit - shift
    count, x, y, square = _sum_pixels(xy, rings.exterior_starts, *offset, low, high - low)
    # a cell between the pixels counts as one pixel at its centroid
    return (np.array([x, y]) / count, square / count) if count else (np.zeros(2), 0.0)


def _ripley(xy: _Floats, starts: NDArray[np.int64], span: int, area: float) -> _Floats:
    """Compute the features (g, 5) of Ripley's H(r) = sqrt(K(r) / pi) - r, not edge-corrected."""
    out = np.full((len(starts) - 1, 5), np.nan)
    out[:, 1:3] = 0.0
    radii = np.linspace(1, span / 2, span // 2)
    if not len(radii):
        return out
    below, below_half = _count_pairs(xy, starts, np.append(radii, np.inf), span / 4)
    n = np.diff(starts).astype(np.float64)
    per_pair = 2.0 * area / np.where(n > 1, n * (n - 1), np.nan) / np.pi
    curve = np.sqrt(per_pair[:, None] * np.cumsum(below[:, :-1], axis=1)) - radii
    out[:, 0] = curve.max(axis=1)
    several = n > 1
    if len(radii) > _WINDOW:  # a gradient needs two moving means
        steps = len(radii) - _WINDOW + 1
        smooth = sum(curve[:, k : k + steps] for k in range(_WINDOW)) / _WINDOW
        slope = np.gradient(smooth, axis=1)
        out[several, 1] = slope.max(axis=1)[several]
        out[several, 2] = slope.min(axis=1)[several]
    out[several, 3] = _monotony(curve[several], np.argsort(curve[several], axis=1))
    out[:, 4] = np.sqrt(per_pair * below_half) - span / 4
    return out


def features(cells: Cells, *, unit_um: float = UNIT_UM) -> Iterator[pd.DataFrame]:
    """Yield the features of every pair, cells in order, a few thousand pairs at a time.

    Yields
    ------
    pandas.DataFrame
        ``cell_id``, ``gene``, ``n_molecules`` and the columns of :data:`BENTO_FEATURES`.
    """
    names = np.array(cells.genes, dtype=object)
    for batch in pair_batches(cells):
        counts = [len(cell.genes) for cell in batch]
        pairs = pd.DataFrame(
            {
                "cell_id": np.repeat(
                    np.array([cell.cell_id for cell in batch], dtype=object), counts
                ),
                "gene": names[np.concatenate([cell.genes for cell in batch])],
                "n_molecules": np.concatenate([cell.counts for cell in batch]),
            }
        )
        values = np.concatenate([bento_features(cell, unit_um=unit_um) for cell in batch])
        yield pairs.assign(**dict(zip(BENTO_FEATURES, values.T, strict=True)))


class Bento:
    """Random forest on Bento's features, fitted on the training cells' labels."""

    about: ClassVar = About(
        name="bento",
        label="Bento",
        kind="baseline",
        summary=(
            "Bento's 13 features of distances, spread and Ripley's function, and a random forest "
            "on them, fitted on the training cells."
        ),
        reference="Mah et al., Genome Biology 2024, doi:10.1186/s13059-024-03217-7",
        inputs=("coordinates", "gene", "cell outline", "nucleus outline"),
        learns=True,
    )

    def fit(self, train: Cells, seed: int) -> None:
        """Grow the forest on the labelled pairs, or a seeded sample."""
        pairs = labelled_pairs(train, bento_features, seed)
        self._forest = Forest.fit(pairs.features, pairs.labels, seed)

    @property
    def parameters(self) -> int:
        """Numbers of the forest."""
        return self._forest.parameters

    def save(self, folder: Path) -> None:
        """Write the forest."""
        self._forest.save(folder / _FOREST)

    def load(self, folder: Path) -> None:
        """Read the forest."""
        self._forest = Forest.load(folder / _FOREST)

    def predict(self, cells: Cells) -> Scores:
        """Score each pair by the mean share of each pattern in its leaves."""
        return forest_scores(cells, bento_features, self._forest)


@njit(cache=True, nogil=True)
def _longest_distance(xy: Any) -> Any:
    """Find the largest distance between two points."""
    longest = 0.0
    for i in range(len(xy)):
        for j in range(i):
            dx, dy = xy[i, 0] - xy[j, 0], xy[i, 1] - xy[j, 1]
            longest = max(longest, dx * dx + dy * dy)
    return np.sqrt(longest)


@njit(cache=True, nogil=True)
def _next_row(y: Any) -> Any:
    """Return the lowest whole number above y: the first row that an edge from y up crosses."""
    return int(np.floor(y)) + 1


@njit(cache=True, nogil=True)
def _sum_pixels(xy: Any, starts: Any, cx: Any, cy: Any, low: Any, rows: Any) -> Any:
    """Count the integer points inside rings (even-odd); sum their offsets and squared offsets.

    In each row, takes for each edge the last point to its left, or on it if it runs upwards
    (matplotlib's rule). Points with an odd number of edges to their right are inside, so the
    sorted last points pair up to runs.
    """
    first = np.zeros(rows + 1, np.int64)
    for r in range(len(starts) - 1):
        for k in range(starts[r], starts[r + 1] - 1):
            y0, y1 = xy[k, 1], xy[k + 1, 1]
            for row in range(_next_row(min(y0, y1)) - low, _next_row(max(y0, y1)) - low):
                first[row + 1] += 1
    for row in range(rows):
        first[row + 1] += first[row]
    last, filled = np.empty(first[rows], np.int64), first.copy()
    for r in range(len(starts) - 1):
        for k in range(starts[r], starts[r + 1] - 1):
            x0, y0, x1, y1 = xy[k, 0], xy[k, 1], xy[k + 1, 0], xy[k + 1, 1]
            for row in range(_next_row(min(y0, y1)) - low, _next_row(max(y0, y1)) - low):
                y = row + low
                at = _next_row(x1 + (y1 - y) * (x0 - x1) / (y1 - y0))
                while ((y1 - y) * (x0 - x1) >= (x1 - at) * (y0 - y1)) != (y1 > y0):
                    at -= 1
                spot = filled[row]  # insertion sort: few edges cross a row
                while spot > first[row] and last[spot - 1] > at:
                    last[spot] = last[spot - 1]
                    spot -= 1
                last[spot] = at
                filled[row] += 1
    count, sx, sy, square = 0, 0.0, 0.0, 0.0
    for row in range(rows):
        y = row + low - cy
        for k in range(first[row], first[row + 1], 2):
            n = last[k + 1] - last[k]  # the points last[k] + 1 .. last[k + 1]
            x = (last[k] + 1 + last[k + 1]) / 2 - cx
            count += n
            sx += n * x
            sy += n * y
            square += n * (x * x + (n * n - 1.0) / 12 + y * y)
    return count, sx, sy, square


@njit(cache=True, nogil=True)
def _fill_positions(
    xy: Any, to_cell: Any, to_nucleus: Any, inside: Any, starts: Any,
    nucleus: Any, radius: Any, mean: Any, square: Any, out: Any,
) -> None:  # fmt: skip
    """Fill proximities, asymmetries and dispersions; offsets are from the cell's centroid."""
    missing = np.isnan(nucleus[0])
    for g in range(len(starts) - 1):
        near, away, x_sum, y_sum, spread = 0.0, 0.0, 0.0, 0.0, 0.0
        n, n_in = starts[g + 1] - starts[g], 0
        near_in, near_out, away_in, away_out = 0.0, 0.0, 0.0, 0.0
        for i in range(starts[g], starts[g + 1]):
            x, y = xy[i, 0], xy[i, 1]
            near += to_cell[i]
            away += np.sqrt(x * x + y * y)
            x_sum += x
            y_sum += y
            square_in = (x - nucleus[0]) ** 2 + (y - nucleus[1]) ** 2
            spread += square_in
            if inside[i]:
                n_in += 1
                near_in += to_nucleus[i]
                away_in += np.sqrt(square_in)
            else:
                near_out += to_nucleus[i]
                away_out += np.sqrt(square_in)
        n_out = n - n_in
        px, py, own = x_sum / n, y_sum / n, 0.0
        for i in range(starts[g], starts[g + 1]):
            own += (xy[i, 0] - px) ** 2 + (xy[i, 1] - py) ** 2
        out[g, 0] = (radius - near / n) / radius
        out[g, 1] = (radius - near_in / n_in) / radius if n_in else 0.0
        out[g, 2] = (radius - near_out / n_out) / radius if n_out else 0.0
        out[g, 3] = away / n / radius
        out[g, 4] = away_in / n_in / radius if n_in else 0.0
        out[g, 5] = away_out / n_out / radius if n_out else 0.0
        out[g, 11] = _ratio(own / n, _moment(px, py, mean, square))
        out[g, 12] = _ratio(spread / n, _moment(nucleus[0], nucleus[1], mean, square))
        if missing:
            out[g, 1] = out[g, 2] = out[g, 4] = out[g, 5] = out[g, 12] = np.nan


@njit(cache=True, nogil=True)
def _moment(x: Any, y: Any, mean: Any, square: Any) -> Any:
    """Compute the mean squared distance of the pixels to (x, y)."""
    return square - 2 * (x * mean[0] + y * mean[1]) + x * x + y * y


@njit(cache=True, nogil=True)
def _ratio(spread: Any, moment: Any) -> Any:
    return spread / moment if moment != 0.0 else 0.0  # 0: a cell of one pixel


@njit(cache=True, nogil=True)
def _count_pairs(xy: Any, starts: Any, edges: Any, half: Any) -> Any:
    """Count each gene's pairs of molecules by the first radius above their distance.

    Compares all pairs: radii reach half across the cell in steps of a pixel, and no grid of boxes
    saves work. Returns the counts (g, radii), and those of distances below `half` (g,).
    """
    last = len(edges) - 2
    per_step = last / (edges[last] - 1.0) if last > 0 else 1.0
    below = np.zeros((len(starts) - 1, len(edges)), np.int64)
    below_half = np.zeros(len(starts) - 1, np.int64)
    distance = np.empty(len(xy))
    for g in range(len(starts) - 1):
        x = xy[starts[g] : starts[g + 1], 0].copy()
        y = xy[starts[g] : starts[g + 1], 1].copy()
        counts, closer = below[g], 0
        for i in range(len(x)):
            for j in range(i):  # a loop of its own, to vectorise
                dx, dy = x[j] - x[i], y[j] - y[i]
                distance[j] = np.sqrt(dx * dx + dy * dy)
            for j in range(i):
                closer += distance[j] < half
            for j in range(i):
                d = distance[j]
                if d < edges[last]:
                    k = int((d - 1.0) * per_step + 1.0)
                    if d >= edges[k]:
                        k += 1
                    elif k > 0 and d < edges[k - 1]:
                        k -= 1
                    counts[k] += 1
        below_half[g] = closer
    return below, below_half


@njit(cache=True, nogil=True)
def _monotony(curves: Any, orders: Any) -> Any:
    """Compute Spearman's correlation of each row with its positions; ties share their mean rank."""
    m = curves.shape[1]
    middle = (m - 1) / 2.0
    out = np.full(len(curves), np.nan)
    for g in range(len(curves)):
        covariance, variance = 0.0, 0.0
        a = 0
        while a < m:
            b = a + 1
            while b < m and curves[g, orders[g, b]] == curves[g, orders[g, a]]:
                b += 1
            rank = (a + b - 1) / 2.0 - middle
            for k in range(a, b):
                covariance += rank * (orders[g, k] - middle)
                variance += rank * rank
            a = b
        if variance > 0.0:
            out[g] = covariance / np.sqrt(variance * (m * (m * m - 1.0) / 12.0))
    return out
