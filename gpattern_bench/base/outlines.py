"""Parse outlines from strangers' files: type, nesting and counts first, then GEOS.

GEOS follows nested collections until the stack of the process ends, and takes counts at their word.
"""

from __future__ import annotations

import struct
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

__all__ = ["parse_wkb", "parse_wkt"]

_DEEPEST = 8  # collections in collections; outlines need one level
_ONE_RING = b"\x01\x03\0\0\0\x01\0\0\0"  # a little-endian Polygon of one ring, as nearly all are
_POINT, _LINE, _POLYGON, _COLLECTIONS = 1, 2, 3, (4, 5, 6, 7)
_Z, _M, _SRID = 0x80000000, 0x40000000, 0x20000000  # flags of EWKB


def parse_wkb(
    values: NDArray[np.object_], on_invalid: Literal["raise", "ignore"] = "raise"
) -> NDArray[np.object_]:
    """Parse outlines (n,) in WKB or EWKB; None stays None.

    Parameters
    ----------
    values : numpy.ndarray
        (n,) bytes or None.
    on_invalid : {"raise", "ignore"}
        "ignore" gives None for what cannot be parsed.

    Raises
    ------
    ValueError
        A value is cut off, nested too deeply, or of a type that outlines never have.
    shapely.errors.ShapelyError
        GEOS refuses it.
    """
    flaws = {row: flaw for row, value in enumerate(values) if (flaw := _flaw(value))}
    if flaws and on_invalid == "raise":
        row, flaw = next(iter(flaws.items()))
        raise ValueError(f"outline {row} is not the WKB of a polygon: {flaw}")
    if flaws:
        values = values.copy()
        values[list(flaws)] = None
    return np.asarray(shapely.from_wkb(values, on_invalid=on_invalid), object)


def parse_wkt(values: NDArray[Any]) -> NDArray[np.object_]:
    """Parse outlines (n,) in WKT; None stays None.

    Raises
    ------
    ValueError
        A value is nested too deeply.
    shapely.errors.ShapelyError
        GEOS refuses it.
    """
    for row, value in enumerate(values):
        if value is not None and value.upper().count("COLLECTION") > _DEEPEST:
            raise ValueError(f"outline {row}: more than {_DEEPEST} nested collections")
    return np.asarray(shapely.from_wkt(values), object)


def _flaw(value: Any) -> str:
    """Say why GEOS must not see a value; "" if it may."""
    if value is None:
        return ""
    if not isinstance(value, bytes):  # shapely would also parse text, as hexadecimal WKB
        return f"expected bytes, got {type(value).__name__}"
    if value[:9] == _ONE_RING and len(value) == 13 + 16 * int.from_bytes(value[9:13], "little"):
        return ""
    try:
        _end(value, 0, 0)
    except struct.error:
        return f"it is cut off after {len(value):,} bytes"
    except ValueError as error:
        return str(error)
    return ""


def _end(value: bytes, at: int, depth: int) -> int:
    """Find where the geometry that begins at `at` ends; struct.error: beyond the value."""
    if depth > _DEEPEST:
        raise ValueError(f"collections are nested more than {_DEEPEST} deep")
    order = {0: ">", 1: "<"}.get(value[at]) if at < len(value) else "<"
    if order is None:
        raise ValueError(f"byte order {value[at]}, expected 0 or 1")
    (code,) = struct.unpack_from(order + "I", value, at + 1)
    at += 9 if code & _SRID else 5
    dimensions, kind = divmod(code & ~(_Z | _M | _SRID), 1000)
    height, measure = code & _Z or dimensions in (1, 3), code & _M or dimensions in (2, 3)
    point = 8 * (2 + bool(height) + bool(measure))

    def count(least: int) -> int:
        """Read how many items follow, of at least so many bytes each."""
        nonlocal at
        (found,) = struct.unpack_from(order + "I", value, at)
        at += 4
        if found * least > len(value) - at:
            raise struct.error
        return int(found)

    if kind == _POINT:
        at += point
    elif kind in (_LINE, _POLYGON):
        for _ in range(count(4) if kind == _POLYGON else 1):
            vertices = count(point)
            at += vertices * point
    elif kind in _COLLECTIONS:
        for _ in range(count(5)):
            at = _end(value, at, depth + 1)
    else:
        raise ValueError(f"geometry type {kind}")
    if at > len(value):
        raise struct.error
    return at
