"""Read outlines with their cells' ids from one file: GeoJSON, GeoParquet, or csv with WKT."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.outlines import parse_wkt
from gpattern_bench.base.validation import shorten
from gpattern_bench.curate.readers.columns import column_names, is_gzipped, read_blocks
from gpattern_bench.curate.readers.geoparquet import CELL_IDS, OUTLINES, read_geometries, read_ids
from gpattern_bench.curate.readers.ids import plain_id, plain_ids
from gpattern_bench.curate.release import reading
from gpattern_bench.errors import SourceError

__all__ = ["read_outlines"]


class _Feature(NamedTuple):
    """An outline of GeoJSON: where its id may be, and its geometries."""

    properties: dict[str, Any]
    geometry: Any
    nucleus: Any


def read_outlines(path: Path, id_column: str | None = None) -> tuple[pd.Series, pd.Series]:
    """Read outlines and, where a file of cells has them, the cells' nuclei.

    The id of an outline is the column or property `id_column`, else the first there is of
    ``cell_id``, ``cell``, ``cell_ID``, ``EntityID``, else the index (GeoParquet) or the feature's
    ``id`` (GeoJSON); never its place in the file.

    Parameters
    ----------
    path : pathlib.Path
        - ``.geojson`` or ``.json``, perhaps ``.gz``: features (as QuPath and ProSeg write), or a
          collection of geometries with ids (Baysor). QuPath's ``nucleusGeometry`` is the nucleus;
          of its objects, cells count.
        - ``.parquet``: GeoParquet, WKB or GeoArrow.
        - ``.csv``, ``.tsv``, perhaps ``.gz``: outlines as WKT in a column ``geometry`` or ``WKT``.
    id_column : str, optional

    Returns
    -------
    outlines, nuclei : pandas.Series
        Shapely geometries or None, indexed by id (str); ids may repeat. `nuclei` may be empty.

    Raises
    ------
    SourceError
        No such file, another format, or outlines without ids.
    """
    if not path.is_file():
        raise SourceError(f"no file at {path}: expected outlines as GeoJSON, GeoParquet or csv")
    name = path.name.lower().removesuffix(".gz")
    nuclei = pd.Series(dtype=object)
    if name.endswith((".geojson", ".json")):
        with reading(path, "GeoJSON of outlines"):
            outlines, nuclei = _geojson(path, id_column)
    elif name.endswith((".parquet", ".geoparquet", ".pq")):
        ids = read_ids(path, id_column)
        outlines = pd.Series(read_geometries(path), ids, dtype=object)
    elif name.endswith((".csv", ".tsv", ".txt")):
        with reading(path, "a table of outlines as WKT"):
            outlines = _wkt(path, id_column)
    else:
        raise SourceError(
            f"{path}: expected outlines as .geojson, .json, .parquet, .csv or .tsv (csv and json "
            "perhaps .gz)"
        )
    return outlines, nuclei


def _wkt(path: Path, id_column: str | None) -> pd.Series:
    there = column_names(path, [*filter(None, (id_column,)), *CELL_IDS, *OUTLINES])
    key = _first(path, "a cell's id", (id_column, *CELL_IDS), there)
    shape = _first(path, "outlines as WKT", OUTLINES, there)
    blocks = list(read_blocks(path, text=(key, shape)))
    if not blocks:
        raise SourceError(f"{path} has no rows: expected outlines of cells")
    table = pa.concat_tables(blocks)
    ids, texts = plain_ids(table[key], path, key), plain_ids(table[shape], path, shape)
    if ids.null_count:
        raise SourceError(f"{path}: {ids.null_count} outlines have no id ({key}); name them")
    shapes = parse_wkt(texts.cast(pa.string()).to_numpy())
    return pd.Series(shapes, ids.to_pylist(), dtype=object)


def _first(path: Path, what: str, names: Sequence[str | None], there: Sequence[str]) -> str:
    """Return the first of some column names that is there."""
    for name in names:
        if name is not None and name in there:
            return name
    raise SourceError(
        f"{path} has no column of {what}: expected {' or '.join(filter(None, names))}; it has "
        f"{', '.join(map(shorten, there))}"
    )


def _geojson(path: Path, id_column: str | None) -> tuple[pd.Series, pd.Series]:
    with (gzip.open if is_gzipped(path) else open)(path, "rt", encoding="utf-8-sig") as file:
        features = list(_features(json.load(file)))
    if not features:
        raise SourceError(f"{path} has no features: expected outlines of cells")
    ids = _ids(path, features, id_column)
    outlines = _shapes([feature.geometry for feature in features])
    nuclei = _shapes([feature.nucleus for feature in features])
    found = np.array([nucleus is not None for nucleus in nuclei], dtype=bool)
    return (
        pd.Series(outlines, ids, dtype=object),
        pd.Series(nuclei[found], np.array(ids, object)[found], dtype=object),
    )


def _features(known: Any) -> Iterator[_Feature]:
    """Yield the features of a FeatureCollection, a list, or a collection of geometries."""
    if isinstance(known, dict):
        known = known.get("features", known.get("geometries", [known]))
    for feature in known:
        properties = dict(feature.get("properties") or {})
        kind = properties.get("objectType", "cell")
        if kind not in ("cell", "detection"):
            continue  # QuPath's annotations and tiles
        if feature.get("type") == "Feature":
            geometry = feature.get("geometry")
            own = {"id": feature["id"]} if "id" in feature else {}
        else:  # Baysor's geometries carry their cell
            geometry = feature
            own = {k: v for k, v in feature.items() if k not in ("type", "coordinates")}
        yield _Feature(own | properties, geometry, feature.get("nucleusGeometry"))


def _ids(path: Path, features: Sequence[_Feature], id_column: str | None) -> list[str]:
    """Name the features by the first property that all of them have."""
    has = Counter(name for feature in features for name in feature.properties)
    candidates = (id_column,) if id_column and id_column in has else (*CELL_IDS, "id")
    name = next((name for name in candidates if has[name] == len(features)), None)
    if name is None:
        there = ", ".join(f"{shorten(key)} ({n})" for key, n in sorted(has.items())) or "none"
        wanted = ", ".join(dict.fromkeys(filter(None, (id_column, *CELL_IDS, "id"))))
        raise SourceError(
            f"{path}: expected an id in all {len(features)} features, in one of {wanted}; their "
            f"properties are {there}"
        )
    return [_text(path, name, feature.properties[name]) for feature in features]


def _text(path: Path, name: str, value: Any) -> str:
    whole = isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())
    text = plain_id(str(value), path, name) if whole and not isinstance(value, bool) else None
    if text is None:
        raise SourceError(
            f"{path}: expected text or a whole number as id ({name}), got {shorten(value)!r}"
        )
    return text


def _shapes(geometries: Sequence[Any]) -> NDArray[np.object_]:
    """Build Polygons and MultiPolygons (n,); None for null and for what has no area."""
    texts = np.full(len(geometries), None, dtype=object)
    for k, geometry in enumerate(geometries):
        if geometry is None:
            continue
        if geometry["type"] not in ("Polygon", "MultiPolygon"):  # GEOS would follow any nesting
            raise ValueError(f"geometry {k}: expected a Polygon, got a {shorten(geometry['type'])}")
        rings = geometry["coordinates"]
        single = geometry["type"] == "Polygon"
        rings = _closed(rings) if single else [*filter(None, map(_closed, rings))]
        if rings:
            texts[k] = json.dumps({"type": geometry["type"], "coordinates": rings})
    return np.asarray(shapely.from_geojson(texts, on_invalid="ignore"), object)


def _closed(rings: list[list[Any]]) -> list[list[Any]]:
    """Close the rings of a polygon, which some tools leave open; leave out empty ones."""
    return [ring if ring[0] == ring[-1] else [*ring, ring[0]] for ring in rings if ring]
