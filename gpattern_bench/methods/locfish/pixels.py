"""Draw a cell on pixels, and measure it there for big-fish's features."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from shapely.geometry.base import BaseGeometry

from gpattern_bench.base.geometry import contains
from gpattern_bench.data.cells import Cell
from gpattern_bench.methods.locfish.outlines import OPENING_UM, RING_UM, RINGS, Layout

__all__ = ["Raster", "distance_to", "distinct", "mask_moments", "opened", "pixel_layout"]

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]

_MARGIN = 3  # background pixels around the outlines, for distance maps
_ON_LATTICE = 1e-6  # pixels: conversion to micrometres and back moves whole pixels by less


class Raster:
    """Masks of a cell and its nucleus: the pixels with their centre inside; arrays are (x, y).

    The lower corner of the outlines' bounding box is the corner of a pixel.

    Parameters
    ----------
    cell : Cell
    unit_um : float
        Length of a pixel.

    Attributes
    ----------
    cell, nucleus : numpy.ndarray
        (w, h) bool masks.
    pixel : numpy.ndarray
        (n, 2) int64: the pixel of each molecule, perhaps beyond the masks.
    """

    def __init__(self, cell: Cell, unit_um: float) -> None:
        outlines = [cell.boundary] if cell.nucleus is None else [cell.boundary, cell.nucleus]
        low, high = shapely.total_bounds(outlines).reshape(2, 2)
        corner = shapely.bounds(cell.boundary)[:2]
        corner -= np.ceil((corner - low) / unit_um - _ON_LATTICE) * unit_um
        shape = np.ceil((high - corner) / unit_um - _ON_LATTICE).astype(int) + 2 * _MARGIN
        axes = [corner[k] + (np.arange(shape[k]) - _MARGIN + 0.5) * unit_um for k in (0, 1)]
        centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)

        def mask(outline: BaseGeometry | None) -> _Bools:
            if outline is None:
                return np.zeros(shape, np.bool_)
            return contains(centres, outline).reshape(shape)

        self.cell, self.nucleus = mask(cell.boundary), mask(cell.nucleus)
        if not self.cell.any():  # a cell between pixel centres
            middle = (cell.boundary.centroid.coords[0] - corner) / unit_um
            self.cell[tuple(middle.astype(int) + _MARGIN)] = True
        where = (cell.xy - corner) / unit_um + _ON_LATTICE
        self.pixel = np.floor(where).astype(np.int64) + _MARGIN

    def at(self, values: NDArray[Any], outside: Any) -> NDArray[Any]:
        """Look up a map (w, h) at the molecules' pixels: (n,), `outside` beyond the map."""
        inside = ((self.pixel >= 0) & (self.pixel < values.shape)).all(axis=1)
        taken = np.full(len(inside), outside, values.dtype)
        taken[inside] = values[tuple(self.pixel[inside].T)]
        return taken


def distance_to(mask: _Bools) -> _Floats:
    """Measure the distance (w, h) from each pixel to the nearest of a mask, between centres."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(distance_transform_edt(~mask))


def opened(depth: _Floats, radius: int) -> _Bools:
    """Open a mask by a disk: all pixels within `radius` of its centre.

    `depth` has the distances from the mask's pixels to those outside, 0 there. This map and another
    replace erosion and dilation; their time does not depend on the radius.
    """
    return distance_to(depth > radius) <= radius


def pixel_layout(cell: Cell, unit_um: float) -> Layout:
    """Measure a cell on masks of pixels, with big-fish's conventions.

    Distances are between pixel centres, widths whole pixels, centroids rounded down. Rings narrower
    than a pixel are empty; molecules outside the cell are in no ring.
    """
    raster = Raster(cell, unit_um)
    inside, nucleus = raster.cell, raster.nucleus
    outside = inside & ~nucleus
    ring, radius = (int(um / unit_um + _ON_LATTICE) for um in (RING_UM, OPENING_UM))
    to_cell = distance_to(~inside)
    to_nucleus = np.where(inside, distance_to(nucleus), 0.0)
    nucleus_ring = _rings(to_nucleus + distance_to(outside), ring)
    nucleus_ring[~inside | (nucleus & (nucleus_ring > 0))] = RINGS
    cell_ring = _rings(to_cell, ring)
    cell_ring[~outside] = RINGS
    unreached = ~nucleus & ~opened(to_cell, radius)
    centroid, spread = mask_moments(inside)
    return Layout(
        area=float(inside.sum()),
        nucleus_area=float(nucleus.sum()),
        area_outside=float(outside.sum()),
        protrusion_area=float((unreached & inside).sum()),
        expected=np.array(
            [over(d[inside]) for d in (to_cell, to_nucleus) for over in (np.mean, np.median)]
        ),
        nucleus_rings=np.bincount(nucleus_ring.ravel(), minlength=RINGS)[:RINGS].astype(float),
        cell_rings=np.bincount(cell_ring.ravel(), minlength=RINGS)[:RINGS].astype(float),
        centroid=centroid,
        nucleus_centroid=mask_moments(nucleus)[0],
        spread=spread,
        xy=raster.pixel.astype(np.float64),
        to_cell=raster.at(to_cell, 0.0),
        to_nucleus=raster.at(to_nucleus, 0.0),
        in_nucleus=raster.at(nucleus, False),
        protruding=raster.at(unreached, True),
        nucleus_ring=raster.at(nucleus_ring, RINGS),
        cell_ring=raster.at(cell_ring, RINGS),
        distinct=distinct(cell.gene, raster.pixel),
    )


def _rings(distance: _Floats, width: int) -> NDArray[np.int64]:
    """Compute ring codes from distances; rings are `width` pixels wide."""
    if width < 1:
        return np.full(distance.shape, RINGS)
    return np.minimum(distance / width, RINGS).astype(np.int64)


def mask_moments(mask: _Bools) -> tuple[_Floats, float]:
    """Compute a mask's centroid (2,), and its pixels' mean squared distance to it."""
    pixels = np.argwhere(mask)
    if not len(pixels):
        return np.full(2, np.nan), np.nan
    centroid = pixels.mean(axis=0)
    return centroid, float(np.square(pixels - centroid).sum(axis=1).mean())


def distinct(gene: NDArray[np.int32], pixel: NDArray[np.int64]) -> _Bools:
    """Mark molecules (n,) that are the first of their gene in their pixel."""
    order = np.lexsort((pixel[:, 1], pixel[:, 0], gene))
    rows = np.column_stack([gene, pixel])[order]
    first = np.ones(len(rows), np.bool_)
    first[order[1:]] = (rows[1:] != rows[:-1]).any(axis=1)
    return first
