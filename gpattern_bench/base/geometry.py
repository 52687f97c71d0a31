"""Repair outlines of cells and nuclei, and locate molecules relative to them.

Exact on the polygons, without rasters, in any unit of length. An outline is a Polygon or
MultiPolygon, as :func:`polygonal` returns it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from gpattern_bench.base.compiled import njit

__all__ = [
    "CellGeometry",
    "Moments",
    "Rings",
    "contains",
    "mean_ranks",
    "moments",
    "outline_distance",
    "polygonal",
    "ray_radius",
    "rings_of",
    "surrogate_outline",
]

_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]

_BLOCK = 16  # edges per bounding box: one test skips all that are far from a point
_CONCAVE = 0.3  # of a concave hull: 0 follows the molecules closely, 1 is the convex hull


def polygonal(geometry: BaseGeometry | None) -> BaseGeometry | None:
    """Return a valid Polygon or MultiPolygon of the same area, or None without area.

    Keeps the vertices of valid outlines, without heights; repairs invalid ones. Coordinates that
    are not finite give None.
    """
    if geometry is None or not np.isfinite(shapely.get_coordinates(geometry)).all():
        return None
    flat = shapely.force_2d(geometry)
    if not (flat.is_valid and flat.geom_type in ("Polygon", "MultiPolygon")):
        # "structure" unites the parts; "linework" would cut out their overlap
        flat = shapely.make_valid(flat, method="structure", keep_collapsed=False)
    parts = [part for part in _polygons(flat) if part.area > 0]
    if len(parts) > 1:
        return flat if flat.geom_type == "MultiPolygon" else shapely.multipolygons(parts)
    return parts[0] if parts else None


def _polygons(geometry: BaseGeometry) -> list[BaseGeometry]:
    if geometry.geom_type == "GeometryCollection":
        return [polygon for part in geometry.geoms for polygon in _polygons(part)]
    return [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]


def surrogate_outline(xy: NDArray[Any]) -> BaseGeometry | None:
    """Outline a cell by its molecules (n, 2), where no outline was segmented.

    Their concave hull, wider by half of the mean distance between molecules. None where the
    molecules lie on one line. It moves, turns and grows with them.
    """
    points = shapely.multipoints(_points(xy))
    hull = shapely.concave_hull(points, ratio=_CONCAVE)
    if hull.area == 0:
        return None
    grown = shapely.buffer(hull, np.sqrt(hull.area / len(xy)) / 2)
    return polygonal(grown)


class Rings(NamedTuple):
    """Rings of an outline as arrays, for compiled code.

    Attributes
    ----------
    xy : numpy.ndarray
        (v, 2) float64 vertices, ring after ring, each with its closing vertex; first exterior
        rings, then holes.
    starts : numpy.ndarray
        (r + 1,) int64: ring k is ``xy[starts[k]:starts[k + 1]]``.
    exteriors : int
        Number of exterior rings.
    """

    xy: _Floats
    starts: NDArray[np.int64]
    exteriors: int

    @property
    def exterior_xy(self) -> _Floats:
        """Vertices (v, 2) of the exterior rings, each ring with its closing vertex."""
        return self.xy[: self.starts[self.exteriors]]

    @property
    def exterior_starts(self) -> NDArray[np.int64]:
        """`starts` of the exterior rings."""
        return self.starts[: self.exteriors + 1]


def rings_of(outline: BaseGeometry) -> Rings:
    """Split an outline into its rings."""
    parts = shapely.get_parts(outline)
    rings = shapely.get_exterior_ring(parts)
    holes = shapely.get_num_interior_rings(parts)
    if holes.any():
        inner = [
            shapely.get_interior_ring(part, range(count))
            for part, count in zip(parts, holes.tolist(), strict=True)
        ]
        rings = np.concatenate([rings, *inner])
    xy: Any = shapely.get_coordinates(rings)
    starts = np.zeros(len(rings) + 1, np.int64)
    np.cumsum(shapely.get_num_coordinates(rings), out=starts[1:])
    return Rings(np.ascontiguousarray(xy, np.float64), starts, len(parts))


def outline_distance(xy: NDArray[Any], outline: BaseGeometry) -> _Floats:
    """Measure the distance (n,) of points (n, 2) to the nearest exterior ring, from either side."""
    return _outline_distance(_points(xy), rings_of(outline))


def contains(xy: NDArray[Any], outline: BaseGeometry) -> _Bools:
    """Test whether points (n, 2) lie in an outline or on a ring: (n,) bool.

    Even-odd over all rings: holes are outside, all parts inside.
    """
    return _contains(_points(xy), rings_of(outline))


def ray_radius(xy: NDArray[Any], origin: NDArray[Any], outline: BaseGeometry) -> _Floats:
    """Measure the radius (n,) of an outline about an origin, in the directions of points (n, 2).

    The distance from the origin to the farthest crossing of the ray through the point with an
    exterior ring. If the ray meets no ring (the origin lies outside), or the point is the origin:
    the distance of the origin to the rings.
    """
    return _ray_radius(_points(xy), np.asarray(origin, np.float64), rings_of(outline))


class Moments(NamedTuple):
    """Moments of the area of an outline, without holes.

    Attributes
    ----------
    area : float
    centroid : numpy.ndarray
        (2,) mean position over the area.
    second : numpy.ndarray
        (2, 2) covariance of position over the area; the trace is the mean squared distance to the
        centroid.
    """

    area: float
    centroid: _Floats
    second: _Floats


def moments(outline: BaseGeometry) -> Moments:
    """Compute the moments of an outline's area in closed form (Green's theorem).

    Examples
    --------
    >>> area, centroid, second = moments(shapely.box(0, 0, 6, 2))
    >>> area, centroid.tolist(), second.round(9).tolist()
    (12.0, [3.0, 1.0], [[3.0, 0.0], [0.0, 0.333333333]])
    """
    return _moments(rings_of(outline))


def mean_ranks(values: NDArray[Any]) -> _Floats:
    """Rank values (n,) from 1, ascending; ties share their mean rank.

    Examples
    --------
    >>> mean_ranks(np.array([3.0, 1.0, 3.0, 9.0])).tolist()
    [2.5, 1.0, 2.5, 4.0]
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(values)])
    counts = np.diff(first, append=len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)
    return ranks


class CellGeometry:
    """Positions of a cell's molecules relative to its outlines, shared by all methods.

    Computes each quantity on first use. Molecules may lie outside the outline.

    Parameters
    ----------
    xy : numpy.ndarray
        (n, 2) molecules.
    boundary : shapely geometry
        Outline of the cell, in the same frame and unit.
    nucleus : shapely geometry or None
        Outline of the nucleus.
    """

    def __init__(
        self, xy: NDArray[Any], boundary: BaseGeometry, nucleus: BaseGeometry | None
    ) -> None:
        self.xy = _points(xy)
        self.boundary = boundary
        self.nucleus = nucleus

    @cached_property
    def boundary_rings(self) -> Rings:
        """Rings of the cell's outline."""
        return rings_of(self.boundary)

    @cached_property
    def nucleus_rings(self) -> Rings | None:
        """Rings of the nucleus, or None."""
        return None if self.nucleus is None else rings_of(self.nucleus)

    @cached_property
    def boundary_moments(self) -> Moments:
        """Area, centroid and second moments of the cell."""
        return _moments(self.boundary_rings)

    @cached_property
    def nucleus_moments(self) -> Moments | None:
        """Area, centroid and second moments of the nucleus, or None."""
        return None if self.nucleus_rings is None else _moments(self.nucleus_rings)

    @cached_property
    def boundary_distance(self) -> _Floats:
        """(n,) distance to the exterior rings of the cell, from either side."""
        return _outline_distance(self.xy, self.boundary_rings)

    @cached_property
    def boundary_rank(self) -> _Floats:
        """(n,) rank of `boundary_distance` among the cell's molecules (:func:`mean_ranks`)."""
        return mean_ranks(self.boundary_distance)

    @cached_property
    def nucleus_distance(self) -> _Floats:
        """(n,) distance to the exterior rings of the nucleus; NaN without a nucleus."""
        if self.nucleus_rings is None:
            return np.full(len(self.xy), np.nan)
        return _outline_distance(self.xy, self.nucleus_rings)

    @cached_property
    def in_boundary(self) -> _Bools:
        """(n,) bool: in the cell or on its outline."""
        return _contains(self.xy, self.boundary_rings)

    @cached_property
    def in_nucleus(self) -> _Bools:
        """(n,) bool: in the nucleus or on its outline; False without a nucleus."""
        if self.nucleus_rings is None:
            return np.zeros(len(self.xy), np.bool_)
        return _contains(self.xy, self.nucleus_rings)

    @property
    def origin(self) -> _Floats:
        """(2,) centre of `radius`: the nucleus' centroid, else the cell's."""
        middle = self.boundary_moments if self.nucleus_moments is None else self.nucleus_moments
        return middle.centroid

    @cached_property
    def radius(self) -> _Floats:
        """(n,) distance to `origin`."""
        away = self.xy - self.origin
        return np.asarray(np.hypot(away[:, 0], away[:, 1]))

    @cached_property
    def ray_radius(self) -> _Floats:
        """(n,) radius of the cell in the molecule's direction (:func:`ray_radius`)."""
        return _ray_radius(self.xy, self.origin, self.boundary_rings)

    @cached_property
    def relative_radius(self) -> _Floats:
        """(n,) `radius` over `ray_radius`: 0 at the origin, 1 on the outline, above 1 beyond.

        If the outline passes through the origin, molecules in that direction get 1.
        """
        beyond = (self.radius > 0).astype(np.float64)
        return np.divide(self.radius, self.ray_radius, out=beyond, where=self.ray_radius > 0)

    @cached_property
    def size(self) -> float:
        """Radius of a disk as large as the cell."""
        return float(np.sqrt(self.boundary_moments.area / np.pi))

    @cached_property
    def depth(self) -> _Floats:
        """(n,) distance below the outline in sizes of the cell, negative outside."""
        return np.where(self.in_boundary, 1, -1) * self.boundary_distance / self.size

    @cached_property
    def from_nucleus(self) -> _Floats:
        """(n,) distance to the nucleus' outline in sizes of the cell, negative inside it.

        NaN where there is no nucleus.
        """
        return np.where(self.in_nucleus, -1, 1) * self.nucleus_distance / self.size

    @cached_property
    def between(self) -> _Floats:
        """(n,) -1 deep in the nucleus, 0 on its outline, 1 on the cell's.

        Inside, the distance in sizes of the nucleus; outside, the share of the way to the cell's
        outline. NaN where there is no nucleus.
        """
        if self.nucleus_moments is None:
            return np.full(len(self.xy), np.nan)
        distance, own = self.nucleus_distance, np.sqrt(self.nucleus_moments.area / np.pi)
        outwards = distance / np.maximum(distance + self.boundary_distance, 1e-9)
        return np.where(self.in_nucleus, -np.minimum(distance / own, 1), outwards)


def _points(xy: NDArray[Any]) -> _Floats:
    return np.ascontiguousarray(xy, np.float64).reshape(-1, 2)


def _outline_distance(xy: _Floats, rings: Rings) -> _Floats:
    edges, boxes = _blocks(rings.xy, rings.exterior_starts)
    return np.asarray(_edge_distance(xy, edges, boxes))


def _contains(xy: _Floats, rings: Rings) -> _Bools:
    edges, boxes = _blocks(rings.xy, rings.starts)
    return np.asarray(_even_odd(xy, edges, boxes))


def _ray_radius(xy: _Floats, origin: _Floats, rings: Rings) -> _Floats:
    nearest = _outline_distance(origin[None, :], rings)[0]
    ring = rings.xy - origin
    return np.asarray(_farthest_crossing(xy - origin, ring, rings.exterior_starts, nearest))


def _moments(rings: Rings) -> Moments:
    area, *rest = _green(rings.xy, rings.starts, rings.exteriors).tolist()
    x, y, xx, xy, yy = (value / area for value in rest)
    second = np.array([[xx - x * x, xy - x * y], [xy - x * y, yy - y * y]])
    return Moments(area, rings.xy[0] + (x, y), second)


@njit(cache=True, nogil=True)
def _blocks(xy: Any, starts: Any) -> Any:
    """List edges (e, 4) as x0 y0 x1 y1, and the box of every 16 as xmin ymin xmax ymax."""
    edges = np.empty((starts[-1] - (len(starts) - 1), 4))
    e = 0
    for ring in range(len(starts) - 1):
        for i in range(starts[ring], starts[ring + 1] - 1):
            edges[e, 0], edges[e, 1] = xy[i, 0], xy[i, 1]
            edges[e, 2], edges[e, 3] = xy[i + 1, 0], xy[i + 1, 1]
            e += 1
    boxes = np.empty(((e + _BLOCK - 1) // _BLOCK, 4))
    for b in range(len(boxes)):
        boxes[b, 0] = boxes[b, 1] = np.inf
        boxes[b, 2] = boxes[b, 3] = -np.inf
        for k in range(b * _BLOCK, min((b + 1) * _BLOCK, e)):
            boxes[b, 0] = min(boxes[b, 0], edges[k, 0], edges[k, 2])
            boxes[b, 1] = min(boxes[b, 1], edges[k, 1], edges[k, 3])
            boxes[b, 2] = max(boxes[b, 2], edges[k, 0], edges[k, 2])
            boxes[b, 3] = max(boxes[b, 3], edges[k, 1], edges[k, 3])
    return edges, boxes


@njit(cache=True, nogil=True)
def _edge_distance(xy: Any, edges: Any, boxes: Any) -> Any:
    out = np.empty(len(xy))
    near = 0  # first guess: the block of the previous molecule, often a neighbour
    for i in range(len(xy)):
        x, y = xy[i, 0], xy[i, 1]
        best, at = np.inf, near
        for turn in range(-1, len(boxes)):
            b = near if turn < 0 else turn
            if turn == near:
                continue
            dx = max(boxes[b, 0] - x, 0.0, x - boxes[b, 2])
            dy = max(boxes[b, 1] - y, 0.0, y - boxes[b, 3])
            if dx * dx + dy * dy >= best:
                continue
            for k in range(b * _BLOCK, min((b + 1) * _BLOCK, len(edges))):
                ax, ay = x - edges[k, 0], y - edges[k, 1]
                ux, uy = edges[k, 2] - edges[k, 0], edges[k, 3] - edges[k, 1]
                along, length = ax * ux + ay * uy, ux * ux + uy * uy
                if along <= 0.0:
                    d = ax * ax + ay * ay
                elif along >= length:
                    bx, by = x - edges[k, 2], y - edges[k, 3]
                    d = bx * bx + by * by
                else:
                    across = ax * uy - ay * ux
                    d = across * across / length
                if d < best:
                    best, at = d, b
        near = at
        out[i] = np.sqrt(best)
    return out


@njit(cache=True, nogil=True)
def _even_odd(xy: Any, edges: Any, boxes: Any) -> Any:
    out = np.zeros(len(xy), np.bool_)
    for i in range(len(xy)):
        x, y = xy[i, 0], xy[i, 1]
        inside, on = False, False
        for b in range(len(boxes)):
            if y < boxes[b, 1] or y > boxes[b, 3] or x > boxes[b, 2]:
                continue
            for k in range(b * _BLOCK, min((b + 1) * _BLOCK, len(edges))):
                x0, y0, x1, y1 = edges[k, 0], edges[k, 1], edges[k, 2], edges[k, 3]
                if y < min(y0, y1) or y > max(y0, y1) or x > max(x0, x1):
                    continue
                side = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
                if side == 0.0 and x >= min(x0, x1):
                    on = True
                elif (y0 > y) != (y1 > y) and (side > 0.0) == (y1 > y0):
                    inside = not inside
        out[i] = inside or on
    return out


@njit(cache=True, nogil=True)
def _farthest_crossing(xy: Any, ring: Any, starts: Any, nearest: Any) -> Any:
    """Measure the distance from (0, 0) to the farthest crossing of each point's ray with rings."""
    out = np.full(len(xy), nearest)
    for i in range(len(xy)):
        x, y = xy[i, 0], xy[i, 1]
        length = np.hypot(x, y)
        if length == 0.0:
            continue
        x, y = x / length, y / length
        far = -1.0
        for r in range(len(starts) - 1):
            before = 0.0
            for k in range(starts[r], starts[r + 1]):
                across = x * ring[k, 1] - y * ring[k, 0]
                if across == 0.0:  # through a vertex
                    far = max(far, x * ring[k, 0] + y * ring[k, 1])
                elif before * across < 0.0:
                    share = before / (before - across)
                    px = ring[k - 1, 0] + share * (ring[k, 0] - ring[k - 1, 0])
                    py = ring[k - 1, 1] + share * (ring[k, 1] - ring[k - 1, 1])
                    far = max(far, x * px + y * py)
                before = across
        if far >= 0.0:
            out[i] = far
    return out


@njit(cache=True, nogil=True)
def _green(xy: Any, starts: Any, exteriors: Any) -> Any:
    """Integrate 1, x, y, xx, xy, yy over the area, about the first vertex."""
    ox, oy = xy[0, 0], xy[0, 1]  # an origin near the outline: no cancellation
    total, ring = np.zeros(6), np.zeros(6)
    for r in range(len(starts) - 1):
        ring[:] = 0.0
        for k in range(starts[r], starts[r + 1] - 1):
            ax, ay = xy[k, 0] - ox, xy[k, 1] - oy
            bx, by = xy[k + 1, 0] - ox, xy[k + 1, 1] - oy
            cross = ax * by - bx * ay
            ring[0] += cross / 2
            ring[1] += (ax + bx) * cross / 6
            ring[2] += (ay + by) * cross / 6
            ring[3] += (ax * ax + ax * bx + bx * bx) * cross / 12
            ring[4] += (ax * (2 * ay + by) + bx * (ay + 2 * by)) * cross / 24
            ring[5] += (ay * ay + ay * by + by * by) * cross / 12
        turn = 1.0 if (ring[0] > 0.0) == (r < exteriors) else -1.0
        for k in range(6):
            total[k] += turn * ring[k]
    return total
