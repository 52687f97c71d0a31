"""Assign molecules to cells, and cells to tiles, if the source does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.geometry import polygonal
from gpattern_bench.errors import SourceError

__all__ = ["CellFinder", "assign_cells", "tiles"]

_BLOCK = 100_000  # points: as geometries they take about 100 bytes each


class CellFinder:
    """Find the cell of each point; outlines are indexed once.

    Outlines that are not valid count as curation repairs them
    (:func:`gpattern_bench.base.geometry.polygonal`); in those without any area nothing lies.

    Parameters
    ----------
    outlines : sequence of shapely geometries or None
        (m,) Polygons or MultiPolygons.
    """

    def __init__(self, outlines: Sequence[Any] | NDArray[np.object_]) -> None:
        shapes = np.empty(len(outlines), dtype=object)
        shapes[:] = outlines
        for i in np.flatnonzero(~shapely.is_valid(shapes)):
            shapes[i] = polygonal(shapes[i])
        shapely.prepare(shapes)
        self._outlines = shapes
        self._tree = shapely.STRtree(shapes)

    def find(self, xy: NDArray[Any]) -> NDArray[np.int64]:
        """Position (n,) among the outlines of the cell that holds each point (n, 2).

        A point on a border lies in the cell; of several cells the first one counts; -1 = none,
        also for coordinates that are not finite.
        """
        found = np.full(len(xy), -1, dtype=np.int64)
        for begin in range(0, len(xy), _BLOCK):
            rows = begin + np.flatnonzero(np.isfinite(xy[begin : begin + _BLOCK]).all(axis=1))
            at, cell = self._tree.query(shapely.points(xy[rows]))
            # Cell by cell, which memory caches like; backwards, for the last one written stays.
            order = np.argsort(-cell)
            at, cell = rows[at[order]], cell[order]
            inside = shapely.intersects_xy(self._outlines[cell], *xy[at].T)
            found[at[inside]] = cell[inside]
        return found


def assign_cells(
    xy: NDArray[Any], outlines: Sequence[Any] | NDArray[np.object_]
) -> NDArray[np.int64]:
    """Find the cell that each point lies in (:class:`CellFinder`, for points that come at once).

    Parameters
    ----------
    xy : numpy.ndarray
        (n, 2) points.
    outlines : sequence of shapely geometries or None
        (m,) in the same unit.

    Returns
    -------
    numpy.ndarray
        (n,) int64 positions among the outlines; -1 = outside every cell.

    Examples
    --------
    >>> squares = shapely.box([0, 2], [0, 0], [2, 4], [2, 2])
    >>> assign_cells(np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [9.0, 9.0]]), squares)
    array([ 0,  0,  1, -1])
    """
    return CellFinder(outlines).find(xy)


def tiles(xy: NDArray[Any], side: float) -> NDArray[np.object_]:
    """Name the square tile of each point, to serve as its field of view.

    Tiles lie on multiples of `side` and are counted from the lowest ones that are used. Their
    names sort as text like their numbers: by column, then by row.

    Parameters
    ----------
    xy : numpy.ndarray
        (n, 2) finite points, such as the centroids of cells.
    side : float
        In the same unit; 0 = one tile, ``"0"``.

    Returns
    -------
    numpy.ndarray
        (n,) str.

    Raises
    ------
    SourceError
        The tiles are so small that their numbers overflow.

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
