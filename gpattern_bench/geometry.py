"""Outlines of cells and nuclei: repair, and distances of molecules to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

__all__ = ["exterior_vertices", "outline_distance", "polygonal"]


def polygonal(geometry: BaseGeometry | None) -> BaseGeometry | None:
    """Return a valid Polygon or MultiPolygon that covers the same area, or None if there is none.

    Valid outlines come back as they are, vertex by vertex; self-touching or self-crossing ones are
    repaired; lines and points that a repair leaves over are dropped.
    """
    if geometry is None or geometry.is_empty:
        return None
    if geometry.is_valid and geometry.geom_type in ("Polygon", "MultiPolygon"):
        return geometry
    parts = [
        part
        for part in shapely.get_parts(shapely.make_valid(geometry), return_index=False)
        for part in shapely.get_parts(part)
        if part.geom_type == "Polygon" and part.area > 0
    ]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else shapely.union_all(parts)


def exterior_vertices(outline: BaseGeometry) -> NDArray[np.float64]:
    """Vertices (v, 2) of the exterior rings, each ring with its closing vertex."""
    rings: Any = shapely.get_exterior_ring(shapely.get_parts(outline))
    return np.asarray(shapely.get_coordinates(rings))


def outline_distance(xy: NDArray[Any], outline: BaseGeometry) -> NDArray[np.float64]:
    """Distance (n,) of points (n, 2) to the exterior rings of an outline, inside or outside.

    Holes do not count; of several parts the nearest does. Same unit as the input.
    """
    rings = shapely.multilinestrings(shapely.get_exterior_ring(shapely.get_parts(outline)))
    shapely.prepare(rings)
    return np.asarray(shapely.distance(shapely.points(xy), rings), dtype=np.float64)
