"""Assign molecules to cells, and cells to tiles, where the source does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.geometry import polygonal
from gpattern_bench.errors import SourceError

__all__ = ["CellFinder", "tiles"]

_BLOCK = 100_000  # points at a time; each takes about 100 bytes as a geometry


class CellFinder:
    """Find the cell of each point; index the outlines once.

    Repairs invalid outlines like curation (:func:`gpattern_bench.base.geometry.polygonal`).
    Outlines without area hold no point.

    Parameters
    ----------
    outlines : sequence of shapely geometries or None
        (m,) Polygons or MultiPolygons, in the unit of the points.

    Examples
    --------
    >>> squares = shapely.box([0, 2], [0, 0], [2, 4], [2, 2])
    >>> CellFinder(squares).find(np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [9.0, 9.0]]))
    array([ 0,  0,  1, -1])
    """

    def __init__(self, outlines: Sequence[Any] | NDArray[np.object_]) -> None:
        shapes = np.empty(len(outlines), dtype=object)
        shapes[:] = outlines
        for i in np.flatnonzero(~shapely.is_valid(shapes)):
            shapes[i] = polygonal(shapes[i])
        shapely.prepare(shapes)
        self._outlines = shapes
        self._rank = np.empty(len(shapes), dtype=np.int64)
        self._rank[np.argsort(shapely.area(shapes), kind="stable")] = np.arange(len(shapes))
        self._tree = shapely.STRtree(shapes)

    def find(self, xy: NDArray[Any]) -> NDArray[np.int64]:
        """Find the index (n,) of each point's cell among the outlines; -1: outside every cell.

        Cells include their borders. Where outlines overlap, the smallest counts (a cell in another
        one would be left empty), of equal ones the first. NaN is outside.
        """
        found = np.full(len(xy), -1, dtype=np.int64)
        for begin in range(0, len(xy), _BLOCK):
            rows = begin + np.flatnonzero(np.isfinite(xy[begin : begin + _BLOCK]).all(axis=1))
            at, cell = self._tree.query(shapely.points(xy[rows]))
            # Cell by cell for the cache; the best cell last, so that it overwrites the others.
            order = np.argsort(-self._rank[cell])
            at, cell = rows[at[order]], cell[order]
            inside = shapely.intersects_xy(self._outlines[cell], *xy[at].T)
            found[at[inside]] = cell[inside]
        return found


def tiles(xy: NDArray[Any], side: float) -> NDArray[np.object_]:
    """Name the square tile of each point, to serve as its field of view.

    Tiles lie on multiples of `side`; the lowest with a point are number 0. Names sort as text by
    column, then by row.

    Parameters
    ----------
    xy : numpy.ndarray
        (n, 2) finite points, such as the centroids of cells.
    side : float
        In the same unit; 0: one tile, ``"0"``.

    Returns
    -------
    numpy.ndarray
        (n,) str.

    Raises
    ------
    SourceError
        The tiles are too small: their numbers overflow.

    Examples
    --------
    >>> tiles(np.array([[5.0, 5.0], [15.0, -25.0], [19.0, -21.0]]), 10)
    array(['x000y003', 'x001y000', 'x001y000'], dtype=object)
    """
    if side == 0 or len(xy) == 0:
        return np.full(len(xy), "0", dtype=object)
    with np.errstate(over="ignore", invalid="ignore"):
        index = np.floor(np.asarray(xy, np.float64) / side)
        index -= index.min(axis=0)
    if not (index < 1 << 31).all():
        raise SourceError(
            f"tiles of {side:g} units cannot cover points from {xy.min(axis=0)} to "
            f"{xy.max(axis=0)}; expected finite points and a larger tile"
        )
    width = max(3, len(str(int(index.max()))))
    unique, inverse = np.unique(index.astype(np.int64), axis=0, return_inverse=True)
    names = np.array([f"x{x:0{width}d}y{y:0{width}d}" for x, y in unique.tolist()], dtype=object)
    return np.asarray(names[inverse.reshape(-1)])
