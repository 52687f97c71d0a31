"""Read outlines from GeoParquet: what the file says of them, and their encodings."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.outlines import parse_wkb, parse_wkt
from gpattern_bench.base.validation import shorten
from gpattern_bench.curate.readers.columns import as_text
from gpattern_bench.curate.readers.ids import plain_ids
from gpattern_bench.curate.release import reading
from gpattern_bench.errors import SourceError
from gpattern_bench.tables.parquet import without_views

__all__ = ["CELL_IDS", "OUTLINES", "check_frame", "read_geometries", "read_ids"]

CELL_IDS = ("cell_id", "cell", "cell_ID", "EntityID")
"""Usual names of the column that holds the ids of cells."""

OUTLINES = ("geometry", "Geometry", "wkt", "WKT")
"""Usual names of the column that holds outlines, where the file does not name it."""

_NATIVE = {
    "point": (shapely.GeometryType.POINT, 0),
    "polygon": (shapely.GeometryType.POLYGON, 2),
    "multipolygon": (shapely.GeometryType.MULTIPOLYGON, 3),
}
"""GeoArrow's encodings: the kind of geometry, and how many lists lie around its coordinates."""


def read_geometries(path: Path) -> NDArray[np.object_]:
    """Read the geometries (n,) of a GeoParquet file; None if null.

    Stored as WKB, GeoArrow or WKT; without GeoParquet's metadata in one of :data:`OUTLINES`.

    Raises
    ------
    SourceError
        As :func:`check_frame`; or a geometry is damaged.
    """
    check_frame(path, native=True)
    with reading(path, "GeoParquet"):
        schema = pq.read_schema(path)
        geo = json.loads((schema.metadata or {}).get(b"geo", b"{}"))
        name = geo.get("primary_column") or next(
            (name for name in OUTLINES if name in schema.names), None
        )
        if name is None:
            raise SourceError(
                f"{path} has no column of outlines: expected one of {', '.join(OUTLINES)}; it has "
                f"{', '.join(map(shorten, schema.names))}"
            )
        extension = (schema.field(name).metadata or {}).get(b"ARROW:extension:name", b"WKB")
        about = geo.get("columns", {}).get(name, {})
        encoding = about.get("encoding", extension.decode()).lower().removeprefix("geoarrow.")
        parse: Callable[[pa.Array], NDArray[np.object_]]
        if encoding != "wkb":
            parse = partial(_parse_native, encoding=encoding)
        elif _is_text(schema.field(name).type):
            parse = _parse_texts
        else:
            parse = _parse_bytes
        chunks = pq.read_table(path, columns=[name])[name].chunks
        return np.concatenate([np.empty(0, object), *(parse(_plain(chunk)) for chunk in chunks)])


def read_ids(path: Path, column: str | None, *, ranged: bool = False) -> list[str]:
    """Read the ids of a GeoParquet file's rows, which never are the rows' numbers.

    Parameters
    ----------
    path : pathlib.Path
    column : str or None
        Column of the ids; if it is not there, the index counts, else one of :data:`CELL_IDS`.
    ranged : bool
        An index of consecutive numbers holds ids, too: SpatialData says so.

    Raises
    ------
    SourceError
        There are no ids, or an outline has none.
    """
    with reading(path, "GeoParquet"):
        schema = pq.read_schema(path)
        index = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
        stored = [name for name in index if isinstance(name, str)]
        candidates = [column, *(stored if len(stored) == 1 else ()), *CELL_IDS]
        name = next((name for name in candidates if name in schema.names), None)
        if name is not None:
            ids = as_text(pq.read_table(path, columns=[name])[name])
            found: list[Any] = plain_ids(ids, path, name).to_pylist()
        elif ranged and len(index) == 1 and isinstance(index[0], dict):  # which is not stored
            rows = pq.read_metadata(path).num_rows
            found = [str(index[0]["start"] + k * index[0]["step"]) for k in range(rows)]
        else:
            wanted = ", ".join(dict.fromkeys(filter(None, (column, *CELL_IDS))))
            raise SourceError(
                f"{path} has no column of the cells' ids: expected one of {wanted}; it has "
                f"{', '.join(map(shorten, schema.names))}"
            )
    if None in found:
        raise SourceError(f"{path}: {found.count(None)} outlines have no id ({name}); name them")
    return found


def check_frame(path: Path, *, native: bool = False) -> None:
    """Refuse outlines on the globe: coordinates here are lengths in the plane of the slide.

    A file without GeoParquet metadata, or without a reference system in them (``crs``), is fine.

    Parameters
    ----------
    path : pathlib.Path
    native : bool
        Outlines may also be stored as GeoArrow.

    Raises
    ------
    SourceError
        A column has a coordinate reference system, or another encoding; or the file is damaged.
    """
    with reading(path, "GeoParquet"):
        geo = (pq.read_schema(path).metadata or {}).get(b"geo")
        columns = {} if geo is None else json.loads(geo)["columns"]
        known = ("WKB", *_NATIVE) if native else ("WKB",)
        flaws = {name: flaw for name, about in columns.items() if (flaw := _flaw(about, known))}
    for name, flaw in flaws.items():
        raise SourceError(f"{path}: {shorten(name)} {flaw}")


def _is_text(kind: pa.DataType) -> bool:
    return without_views(kind) in (pa.string(), pa.large_string())


def _parse_texts(chunk: pa.Array) -> NDArray[np.object_]:
    return parse_wkt(chunk.to_numpy(zero_copy_only=False))


def _parse_bytes(chunk: pa.Array) -> NDArray[np.object_]:
    return parse_wkb(chunk.to_numpy(zero_copy_only=False))


def _plain(chunk: pa.Array) -> pa.Array:
    return chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk


def _parse_native(chunk: pa.Array, encoding: str) -> NDArray[np.object_]:
    """Parse GeoArrow's nested lists; coordinates are structs, or lists of two or more numbers."""
    kind, depth = _NATIVE[encoding]
    geometries = np.full(len(chunk), None, object)
    there = np.asarray(chunk.is_valid())
    values, offsets = chunk.filter(pa.array(there)), []
    for _ in range(depth):
        lengths = pc.list_value_length(values).to_numpy()
        offsets.append(np.concatenate([[0], np.cumsum(lengths)]))
        values = values.flatten()
    if pa.types.is_struct(values.type):
        xy = np.stack([pc.struct_field(values, axis).to_numpy() for axis in "xy"], axis=1)
    else:
        xy = values.flatten().to_numpy().reshape(len(values), -1)[:, :2]
    xy = np.ascontiguousarray(xy, np.float64)
    geometries[there] = shapely.from_ragged_array(kind, xy, tuple(offsets[::-1]) or None)
    return geometries


def _flaw(about: dict[str, Any], encodings: tuple[str, ...]) -> str:
    if (encoding := about.get("encoding", "WKB")) not in encodings:
        return (
            f"is stored as {shorten(encoding)!r}, expected {', '.join(encodings)}; write it again"
        )
    crs = about.get("crs")
    if crs is None:
        return ""
    named = shorten(crs.get("name", crs.get("id")) if isinstance(crs, dict) else crs)
    return (
        f"has the coordinate reference system {named!r}, expected none: outlines are in the plane "
        "of the slide, in the unit of the molecules. Write the file again with crs=None"
    )
