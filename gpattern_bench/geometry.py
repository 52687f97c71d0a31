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

    Valid outlines come back as they are, vertex by vertex (heights dropped); invalid ones are
    repaired to the area that they cover; what has no area, or no finite coordinates, is None.
    """
    if geometry is None or not np.isfinite(shapely.get_coordinates(geometry)).all():
        return None
    flat = shapely.force_2d(geometry)
    if not (flat.is_valid and flat.geom_type in ("Polygon", "MultiPolygon")):
        # "structure" takes the union of the parts; "linework" would cut out what two parts share
        flat = shapely.make_valid(flat, method="structure", keep_collapsed=False)
    parts = [part for part in _polygons(flat) if part.area > 0]
    if len(parts) > 1:
        return flat if flat.geom_type == "MultiPolygon" else shapely.multipolygons(parts)
    return parts[0] if parts else None


def _polygons(geometry: BaseGeometry) -> list[BaseGeometry]:
    if geometry.geom_type == "GeometryCollection":
        return [polygon for part in geometry.geoms for polygon in _polygons(part)]
    return [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]


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
