"""Read a SpatialData zarr: a points element of molecules, shapes elements of outlines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from gpattern_bench.base.outlines import parse_wkb
from gpattern_bench.curate.quality import read_columns
from gpattern_bench.curate.readers.assign import tiles
from gpattern_bench.curate.readers.geoparquet import check_frame
from gpattern_bench.curate.readers.group_by_fov import centroids
from gpattern_bench.curate.release import Release, reading
from gpattern_bench.errors import MissingExtraError, SourceError

__all__ = ["read_spatialdata"]

_POINTS = "points/transcripts"
_CELLS, _NUCLEI = "shapes/cell_boundaries", "shapes/nucleus_boundaries"
_OUTSIDE = ("", "-1", "UNASSIGNED")
_ALWAYS = 1 << 30  # bytes of an array allowed at any compression
_MOST_RATIO = 200  # above that, bytes of an array per byte of its files
_ABOUT = (".zarray", ".zmetadata", "zarr.json")
_CODECS = (
    "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "fixedscaleoffset", "gzip", "json2",
    "lz4", "lzma", "shuffle", "transpose", "vlen-bytes", "vlen-utf8", "zlib", "zstd",
)  # fmt: skip
"""What zarr may decode; its codec `pickle` would run code of the file."""


def read_spatialdata(path: Path, *, fov_column: str | None = None, tile: float = 0.0) -> Release:
    """Read ``points/transcripts``, ``shapes/cell_boundaries`` and ``shapes/nucleus_boundaries``.

    The points element names the columns of gene and cell as its feature and instance key; an empty
    cell means outside every cell. Columns of a molecule's compartment (``nucleus_boundaries``,
    ``overlaps_nucleus``) are not read. Coordinates are intrinsic, so points and outlines must have
    the same transformation to the global frame.

    Parameters
    ----------
    path : pathlib.Path
        The zarr folder (zarr format 2 or 3; shapes as ragged arrays or, newer, as GeoParquet).
    fov_column : str or None
        Column of the points with the field of view; None: tiles.
    tile : float
        Without `fov_column`: side of the square tiles that serve as fields of view, by the cells'
        centroids; 0: one FOV, "0".

    Returns
    -------
    Release
        In the intrinsic unit of the elements.

    Raises
    ------
    SourceError
        An element, key or column is missing, or transformations differ.
    MissingExtraError
        Outlines are zarr arrays and zarr is not installed.
    """
    if not path.is_dir():
        raise SourceError(f"no folder at {path}: expected a SpatialData zarr")
    with reading(path, "a SpatialData zarr"):
        return _read(path, fov_column, tile)


def _read(path: Path, fov_column: str | None, tile: float) -> Release:
    attributes = _attributes(path, _POINTS)
    shapes = {name: _shapes(path, name) for name in (_CELLS, _NUCLEI) if (path / name).is_dir()}
    if _CELLS not in shapes:
        raise SourceError(f"{path} has no element {_CELLS}; add the outlines of the cells")
    for name, outlines in shapes.items():
        if _transformations(_attributes(path, name)) != _transformations(attributes):
            raise SourceError(
                f"{path}: {name} and {_POINTS} have different coordinate transformations; bring "
                "them into one frame (spatialdata.transform) and write the zarr again"
            )
        repeated = outlines.index[outlines.index.duplicated()]
        if len(repeated):
            raise SourceError(f"{path}: {name} has {repeated[0]} more than once; keep one outline")
    molecules = _molecules(path, attributes, fov_column)
    placed = molecules.dropna(subset=["cell_id", "fov"]).drop_duplicates("cell_id")
    fov = placed.set_index("cell_id")["fov"].astype(str)
    cells = shapes[_CELLS].rename("cell_boundary").rename_axis("cell_id").reset_index()
    if fov_column is None:
        xy = centroids(cells["cell_boundary"].to_numpy())
        placeable = np.isfinite(xy).all(axis=1)  # the rules drop a cell without an outline
        cells["fov"] = ""
        cells.loc[placeable, "fov"] = tiles(xy[placeable], tile)
    else:
        cells["fov"] = cells["cell_id"].map(fov).fillna("")  # "" only without molecules
    nuclei = shapes.get(_NUCLEI, pd.Series(dtype=object))
    cells["nucleus_boundary"] = nuclei.reindex(cells["cell_id"]).where(pd.notna, None).to_numpy()
    cells["touches_border"] = None
    return Release(molecules, cells)


def _attributes(path: Path, element: str) -> dict[str, Any]:
    """Read the attributes of an element, in zarr format 2 (``.zattrs``) or 3 (``zarr.json``)."""
    old, new = path / element / ".zattrs", path / element / "zarr.json"
    try:
        if old.is_file() or not new.is_file():
            return dict(json.loads(old.read_text(encoding="utf-8")))
        return dict(json.loads(new.read_text(encoding="utf-8"))["attributes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{path}: element {element} has no readable .zattrs or zarr.json ({error!r}); expected "
            "a SpatialData zarr"
        ) from error


def _transformations(attributes: dict[str, Any]) -> Any:
    """List an element's transformations: target and values, without the names of its axes."""

    def values(step: Any) -> Any:
        if isinstance(step, list):
            return [values(item) for item in step]
        if not isinstance(step, dict):
            return step
        return {key: values(step[key]) for key in step if key not in ("input", "output", "axes")}

    steps = attributes.get("coordinateTransformations", [])
    return [(step.get("output", {}).get("name", "global"), values(step)) for step in steps]


def _molecules(path: Path, attributes: dict[str, Any], fov_column: str | None) -> pd.DataFrame:
    keys = attributes.get("spatialdata_attrs", {})
    gene, cell = keys.get("feature_key"), keys.get("instance_key")
    if not gene or not cell:
        raise SourceError(
            f"{path}: {_POINTS} names no feature_key and instance_key (got {keys}); set them to "
            "the columns of gene and cell"
        )
    wanted = [name for name in ("x", "y", gene, cell, fov_column) if name is not None]
    dataset = pq.ParquetDataset(path / _POINTS / "points.parquet")
    missing = [name for name in wanted if name not in dataset.schema.names]
    if missing:
        raise SourceError(
            f"{path}: {_POINTS} lacks the columns {', '.join(missing)}; it has "
            f"{', '.join(dataset.schema.names)}"
        )
    z = ["z"] if "z" in dataset.schema.names else []
    table = dataset.read(columns=wanted + z, use_pandas_metadata=False)
    text = {name: pd.Categorical(table[name].cast(pa.string()).to_pandas()) for name in wanted[2:]}
    fov = text[fov_column] if fov_column else pd.Categorical(["0"] * len(table))
    frame = pd.DataFrame({"fov": fov, "cell_id": text[cell], "gene": text[gene]})
    with reading(path, f"numbers in x and y of {_POINTS}"):
        for axis in ("x", "y", *z):
            frame[axis] = table[axis].to_numpy().astype(np.float64)
    inside = [name for name in text[cell].categories if name not in _OUTSIDE]
    frame["cell_id"] = frame["cell_id"].cat.set_categories(inside)  # outside becomes null
    return frame.assign(**read_columns(dataset))


def _shapes(path: Path, element: str) -> pd.Series[Any]:
    """Read outlines, indexed by name: GeoParquet (newer) or ragged zarr arrays (format 0.1)."""
    parquet = path / element / "shapes.parquet"
    if parquet.is_file():
        check_frame(parquet)
        frame = pq.read_table(parquet).to_pandas()
        outlines = parse_wkb(frame["geometry"].to_numpy(object))
        return pd.Series(outlines, frame.index.astype(str), dtype=object)
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: outlines of {element} are zarr arrays, zarr is not installed; install "
            "gpattern-bench[spatial]"
        ) from error
    _check_arrays(path / element)
    group = zarr.open_group(str(path / element), mode="r")
    names = ["coords", "offset0", "offset1", "Index"]
    missing = [name for name in names if name not in group]
    if missing:
        raise SourceError(
            f"{path}: {element} lacks the arrays {', '.join(missing)}; write the zarr again"
        )
    kind = shapely.GeometryType.POLYGON
    if "offset2" in group:
        kind = shapely.GeometryType.MULTIPOLYGON
        names.insert(3, "offset2")
    stored = sum(file.stat().st_size for file in (path / element).rglob("*") if file.is_file())
    for name in names:
        if group[name].nbytes > max(_ALWAYS, _MOST_RATIO * stored):
            raise SourceError(
                f"{path}: {element}/{name} states {group[name].nbytes:,} bytes in files of "
                f"{stored:,}; no export does. It is not read"
            )
    coordinates, *offsets, index = (np.asarray(group[name][:]) for name in names)
    outlines = shapely.from_ragged_array(kind, coordinates, tuple(offsets))
    return pd.Series(outlines, [str(name) for name in index.tolist()], dtype=object)


def _check_arrays(folder: Path) -> None:
    """Refuse arrays (zarr format 2 or 3) with codecs that a zarr of outlines does not need."""
    for about in sorted(file for kind in _ABOUT for file in folder.rglob(kind)):
        named = _codecs(json.loads(about.read_text(encoding="utf-8")))
        if odd := sorted({str(name) for name in named if name not in _CODECS}):
            raise SourceError(
                f"{about}: codecs {', '.join(odd)}, expected some of {', '.join(_CODECS)}; "
                "write the zarr again"
            )


def _codecs(known: Any) -> Iterator[Any]:
    """Name every compressor, filter and codec in metadata, consolidated ones included."""
    if isinstance(known, list):
        for each in known:
            yield from _codecs(each)
    elif isinstance(known, dict):
        for key, value in known.items():
            if key in ("compressor", "filters", "codecs"):
                steps = value if isinstance(value, list) else [value]
                yield from (s.get("id", s.get("name")) for s in steps if s is not None)
            else:
                yield from _codecs(value)
