"""ELLA's coordinate: radii of molecules, relative to the cell's outline."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit
from gpattern_bench.base.geometry import ray_radius
from gpattern_bench.data.cells import Cell, Cells

__all__ = ["Radii", "Registration", "collect_radii", "relative_radius"]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

Registration = Literal["exact", "grid"]
"""Take the outline's radius on the ray through the molecule, or at the next whole degree."""

_CORRELATION = 0.02  # default, if too few molecules to estimate it


def relative_radius(cell: Cell, registration: Registration = "exact") -> _Floats:
    """Compute relative radii (n,) of a cell's molecules: 0 at the origin, 1 on the outline.

    The origin is the centroid of the nucleus, else of the cell.

    Parameters
    ----------
    cell : Cell
    registration : {"exact", "grid"}
        Divide by the outline's radius on the ray through the molecule (clipped to 1), or at the
        next of 360 whole degrees, as upstream (may exceed 1).
    """
    geometry = cell.geometry
    if registration == "exact":
        return np.minimum(geometry.relative_radius, 1.0)
    degrees = np.deg2rad(np.arange(360.0))
    unit = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    radius = ray_radius(geometry.origin + unit, geometry.origin, cell.boundary)
    away = geometry.xy - geometry.origin
    angle = np.mod(np.arctan2(away[:, 1], away[:, 0]), 2 * np.pi)
    following = np.minimum(np.searchsorted(degrees, angle), 359)
    return np.asarray(geometry.radius / (radius[following] + 1e-10))


class Radii(NamedTuple):
    """Radii of all molecules of some cells, gene by gene.

    Attributes
    ----------
    r : numpy.ndarray
        (n,) relative radii, by gene in the order of the panel, then by cell.
    starts : numpy.ndarray
        (G + 1,) molecules of gene g are ``r[starts[g]:starts[g + 1]]``.
    cells : numpy.ndarray
        (G,) number of cells with the gene.
    correlation : float
        Intraclass correlation of squared radii within pairs, given the gene; 0.02 if too few
        molecules to estimate it.
    nuclear : float
        Mean relative radius of the nuclear outlines; NaN without nuclei.
    """

    r: _Floats
    starts: _Ints
    cells: _Ints
    correlation: float
    nuclear: float


def collect_radii(cells: Cells, registration: Registration = "exact") -> Radii:
    """Stream cells and collect their radii, in 8 bytes per molecule and 8 per pair."""
    radii, genes, counts, nuclear = [], [], [], []
    for cell in cells:
        radii.append(relative_radius(cell, registration))
        genes.append(cell.genes)
        counts.append(cell.counts.astype(np.int32))
        if cell.nucleus is not None:
            nuclear.append(_nuclear_radius(cell))
    r = np.concatenate(radii) if radii else np.empty(0)
    radii.clear()
    gene = np.concatenate(genes) if genes else np.empty(0, np.int32)
    count = np.concatenate(counts) if counts else np.empty(0, np.int32)
    order = np.argsort(gene, kind="stable")
    by_gene = _reorder_runs(r, np.cumsum(count, dtype=np.int64) - count, count, order)
    starts = np.zeros(len(cells.genes) + 1, np.int64)
    pairs = np.bincount(gene, minlength=len(cells.genes))
    weight = np.bincount(gene, weights=count, minlength=len(cells.genes))
    np.cumsum(weight.astype(np.int64), out=starts[1:])
    return Radii(
        r=by_gene,
        starts=starts,
        cells=pairs,
        correlation=_correlation(by_gene**2, count[order], gene[order]),
        nuclear=float(np.mean(nuclear)) if nuclear else math.nan,
    )


def _nuclear_radius(cell: Cell) -> float:
    """Compute the mean relative radius along the outline of a nucleus."""
    rings = shapely.get_exterior_ring(shapely.get_parts(cell.nucleus))
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    edges = ring[1:] == ring[:-1]
    middle = ((xy[1:] + xy[:-1]) / 2)[edges]
    length = np.hypot(*np.diff(xy, axis=0)[edges].T)
    origin = cell.geometry.origin
    radius = np.hypot(*(middle - origin).T)
    outer = ray_radius(middle, origin, cell.boundary)
    return float(np.average(radius / np.maximum(radius, outer), weights=length))


@njit(cache=True, nogil=True)
def _reorder_runs(values: Any, starts: Any, counts: Any, order: Any) -> Any:
    """Concatenate runs of values in another order."""
    out = np.empty_like(values)
    at = 0
    for p in order:
        for j in range(starts[p], starts[p] + counts[p]):
            out[at] = values[j]
            at += 1
    return out


def _correlation(values: _Floats, count: NDArray[np.int32], gene: NDArray[np.int32]) -> float:
    """Estimate the intraclass correlation within pairs, given the gene (analysis of variance).

    Values are ordered by pair, genes ascending.
    """
    m = count.astype(np.float64)
    first = np.flatnonzero(np.diff(gene, prepend=-1))
    between, within = len(m) - len(first), len(values) - len(m)  # degrees of freedom
    if between <= 0 or within <= 0:
        return _CORRELATION
    total = np.add.reduceat(values, np.cumsum(count, dtype=np.int64) - count)
    of_gene, size = np.add.reduceat(total, first), np.add.reduceat(m, first)
    explained = float(np.sum(total**2 / m))
    mean_between = (explained - float(np.sum(of_gene**2 / size))) / between
    mean_within = (float(np.sum(values**2)) - explained) / within
    usual = (len(values) - float(np.sum(np.add.reduceat(m**2, first) / size))) / between
    spread = mean_between + (usual - 1) * mean_within
    if spread <= 0:
        return _CORRELATION
    return min(max((mean_between - mean_within) / spread, 0.0), 1.0)
