"""The 21 features of the first locFISH (Samacoits et al., Nature Communications 2018).

From big-fish's history, on pixels: quantiles of distances, openings of four sizes, and a Ripley
function that weights neighbours by the cell's share of their disk. Definitions and doubts:
``docs/methods/locfish.md``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from gpattern_bench.base.compiled import njit
from gpattern_bench.base.geometry import mean_ranks
from gpattern_bench.data.cells import Cell
from gpattern_bench.methods.locfish.bigfish import UNIT_UM
from gpattern_bench.methods.locfish.pixels import (
    Raster,
    distance_to,
    distinct,
    mask_moments,
    opened,
)

__all__ = ["SAMACOITS_FEATURES", "samacoits_features"]

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]
_Codes = NDArray[np.int64]

SAMACOITS_FEATURES = (
    "average_dist_cyt",
    "quantile_5_dist_cyt",
    "quantile_10_dist_cyt",
    "quantile_20_dist_cyt",
    "quantile_50_dist_cyt",
    "average_dist_cyt_centroid",
    "average_dist_nuc",
    "average_dist_nuc_centroid",
    "ratio_in_out_nuc",
    "diff_opening_15",
    "diff_opening_30",
    "diff_opening_45",
    "diff_opening_60",
    "ripley_max",
    "ripley_max_gradient",
    "ripley_min_gradient",
    "ripley_monotony",
    "ripley_large",
    "ripley_radius_max",
    "polarization_index",
    "dispersion_index",
)
"""Names of the features."""

_OF_NUCLEUS = [k for k, name in enumerate(SAMACOITS_FEATURES) if "nuc" in name]
_OPENINGS = (15, 30, 45, 60)  # pixels
_RADII = 40  # Ripley's radii are 0, 1, .. 39 pixels
_WINDOW = 4  # radii in its moving mean


def samacoits_features(cell: Cell, *, unit_um: float = UNIT_UM, cut_frame: bool = False) -> _Floats:
    """Compute the features of every gene present in a cell.

    Uses molecules within the outline, at most one per gene and pixel.

    Parameters
    ----------
    cell : Cell
        Coordinates in micrometres.
    unit_um : float
        Length of a pixel, the unit of openings and radii.
    cut_frame : bool
        End the image at the cell's last row and column, as upstream: there the cell has no outline,
        and disks are cut off. Only to compare with upstream.

    Returns
    -------
    numpy.ndarray
        (g, 21) float64, rows as ``cell.genes``, columns :data:`SAMACOITS_FEATURES`. NaN: the
        three features of the nucleus in a cell without one; all features of a gene without
        molecules within the outline.
    """
    raster = Raster(cell, unit_um)
    w, h = np.argwhere(raster.cell).max(axis=0) + 1 if cut_frame else raster.cell.shape
    inside, nucleus = raster.cell[:w, :h], (raster.nucleus & raster.cell)[:w, :h]
    (middle, centroid, spread), (nucleus_middle, _, _) = _moments(inside), _moments(nucleus)
    x, y = np.indices(inside.shape)
    depth = distance_to(~inside)
    maps = [  # distances to the outline, to the cell's middle, to the nucleus, to its middle
        depth,
        np.hypot(x - middle[0], y - middle[1]),
        distance_to(nucleus) if nucleus.any() else np.full(inside.shape, np.nan),
        np.hypot(x - nucleus_middle[0], y - nucleus_middle[1]),
    ]
    means = [values[inside].mean() or np.nan for values in maps]  # 0 would divide by 0
    lost = [~opened(depth, radius) for radius in _OPENINGS]
    disks = _Disks.of(inside, cut_frame)
    kept = np.flatnonzero(distinct(cell.gene, raster.pixel) & raster.at(inside, False))
    kept = kept[np.lexsort((*raster.pixel[kept].T[::-1], cell.gene[kept]))]
    ends = np.searchsorted(cell.gene[kept], cell.genes, side="right")
    features = np.full((len(ends), len(SAMACOITS_FEATURES)), np.nan)
    for row, pixels in enumerate(np.split(raster.pixel[kept], ends[:-1])):
        if not len(pixels):
            continue
        here = tuple(pixels.T)
        n_in = int(nucleus[here].sum())
        to_cell, to_middle, to_nucleus, to_nucleus_middle = (
            values[here] / mean for values, mean in zip(maps, means, strict=True)
        )
        gene_middle = np.floor(pixels.mean(axis=0))
        around = np.square(pixels - gene_middle).sum(axis=1).mean()
        features[row] = [
            to_cell.mean(),
            *np.quantile(to_cell, (0.05, 0.1, 0.2, 0.5)),
            to_middle.mean(),
            to_nucleus.mean(),
            to_nucleus_middle.mean(),
            n_in / max(len(pixels) - n_in, 1),
            *(mask[here].mean() for mask in lost),
            *_ripley(pixels, disks),
            np.hypot(*(gene_middle - middle)) / means[1],
            around / (spread + np.square(gene_middle - centroid).sum() or np.nan),
        ]
    if not nucleus.any():
        features[:, _OF_NUCLEUS] = np.nan
    return features


def _moments(mask: _Bools) -> tuple[_Floats, _Floats, float]:
    """Compute a mask's centroid, rounded down and exact, and the mean squared distance to it."""
    centroid, spread = mask_moments(mask)
    return np.floor(centroid), centroid, spread


class _Disks(NamedTuple):
    """The cell, as Ripley's weights read it.

    Attributes
    ----------
    covered : numpy.ndarray
        (w, h + 1) cumulative pixels of the cell along each row.
    area : int
        Pixels of the cell.
    radii : numpy.ndarray
        0 to 39, and a quarter of the cell's diameter.
    cut : bool
        Cut disks off at the frame.
    """

    covered: _Codes
    area: int
    radii: _Codes
    cut: bool

    @classmethod
    def of(cls, inside: _Bools, cut: bool) -> _Disks:
        """Prepare a cell's mask."""
        pixels = np.argwhere(inside)
        covered = np.zeros((inside.shape[0], inside.shape[1] + 1), np.int64)
        np.cumsum(inside, axis=1, out=covered[:, 1:])
        rows = np.flatnonzero(np.diff(pixels[:, 0], prepend=-1, append=-1))
        ends = pixels[np.r_[rows[:-1], rows[1:] - 1]]  # first and last of each row
        diameter = pdist(ends).max() if len(pixels) > 1 else 0.0
        return cls(covered, len(pixels), np.r_[np.arange(_RADII), int(diameter / 4)], cut)


def _ripley(pixels: _Codes, disks: _Disks) -> tuple[float, ...]:
    """Compute the function's maximum, slopes before and after, monotony, far value, argmax."""
    weighted = _weighted_neighbours(pixels, disks.covered, disks.radii, disks.cut)
    values = np.sqrt(weighted * disks.area / len(pixels) ** 2 / np.pi) - disks.radii
    smooth = np.convolve(values[:-1], np.full(_WINDOW, 1 / _WINDOW), "valid")
    slope = np.gradient(smooth)
    top = int(smooth.argmax())
    ranks = mean_ranks(smooth)
    return (
        smooth[top],
        slope[: max(top, 1)].max(),
        slope[top:].min(),
        float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]),
        values[-1],
        float(top),
    )


@njit(cache=True, nogil=True)
def _weighted_neighbours(pixels: Any, covered: Any, radii: Any, cut: Any) -> Any:
    """Sum neighbours times the covered share of their disk over molecules, for each radius.

    Pixels are sorted by row. The share has 8 bits, as upstream.
    """
    n, m, far = len(pixels), len(radii) - 1, radii[-1]
    reach = max(radii[m - 1], far)
    near = np.zeros((n, m + 1), np.int64)
    for i in range(n):
        for j in range(i + 1, n):
            dx, dy = pixels[j, 0] - pixels[i, 0], pixels[j, 1] - pixels[i, 1]
            if dx > reach:
                break
            square = dx * dx + dy * dy
            k = int(np.ceil(np.sqrt(square)))
            if k < m:
                near[i, k] += 1
                near[j, k] += 1
            if square <= far * far:
                near[i, m] += 1
                near[j, m] += 1
    sums = np.zeros(m + 1)
    for i in range(n):
        neighbours = 0
        for k in range(m + 1):
            neighbours = neighbours + near[i, k] if k < m else near[i, m]
            if neighbours:
                sums[k] += neighbours * (_cover(pixels[i], radii[k], covered, cut) / 255.0)
    return sums


@njit(cache=True, nogil=True)
def _cover(pixel: Any, radius: Any, covered: Any, cut: Any) -> Any:
    """Average a mask of 0 and 255 over a disk, rounded down."""
    w, h = covered.shape[0], covered.shape[1] - 1
    inside, pixels = 0, 0
    for dx in range(-radius, radius + 1):
        x, half = pixel[0] + dx, int(np.sqrt(radius * radius - dx * dx))
        beyond = x < 0 or x >= w
        low, high = max(pixel[1] - half, 0), min(pixel[1] + half + 1, h)
        if not beyond:
            inside += covered[x, high] - covered[x, low]
        if not cut:
            pixels += 2 * half + 1
        elif not beyond:
            pixels += high - low
    return 255 * inside // pixels
