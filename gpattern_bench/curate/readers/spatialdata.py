"""Read a SpatialData zarr: a points element of molecules, shapes elements of outlines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.validation import shorten
from gpattern_bench.curate.quality import read_columns
from gpattern_bench.curate.readers.assign import tiles
from gpattern_bench.curate.readers.columns import as_text
from gpattern_bench.curate.readers.geoparquet import read_geometries, read_ids
from gpattern_bench.curate.readers.group_by_fov import centroids, join_parts
from gpattern_bench.curate.readers.ids import plain_id, plain_ids
from gpattern_bench.curate.readers.transformations import moved, plane_maps, relative_map
from gpattern_bench.curate.release import Release, reading
from gpattern_bench.errors import MissingExtraError, SourceError

__all__ = ["read_spatialdata"]

_log = logging.getLogger(__name__)

_POINTS, _CELLS, _NUCLEI = "transcripts", "cell_boundaries", "nucleus_boundaries"
_ALWAYS = 1 << 30  # bytes of an array allowed at any compression
_MOST_RATIO = 200  # above that, bytes of an array per byte of its files
_ABOUT = (".zarray", ".zmetadata", "zarr.json")
_CODECS = (
    "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "fixedscaleoffset", "gzip", "json2",
    "lz4", "lzma", "shuffle", "transpose", "vlen-bytes", "vlen-utf8", "zlib", "zstd",
)  # fmt: skip
"""What zarr may decode; its codec `pickle` would run code of the file."""


def read_spatialdata(
    path: Path,
    *,
    points: str | None = None,
    cells: str | None = None,
    nuclei: str | None = None,
    gene_column: str | None = None,
    cell_column: str | None = None,
    fov_column: str | None = None,
    tile: float = 0.0,
) -> Release:
    """Read molecules from a points element, and outlines of cells and nuclei from shapes.

    An empty cell of a molecule means outside every cell. Columns of its compartment
    (``nucleus_boundaries``, ``overlaps_nucleus``) are not read.

    The id of an outline is, of these, the first there is: the shapes' column named as the points'
    column of cells, their index, a column ``cell_id``, ``cell``, ``cell_ID`` or ``EntityID``.
    Outlines of one id are one nucleus of several parts; for cells, an error.

    Coordinates are the x and y of the points, as stored. Outlines in another frame are mapped
    there through a coordinate system that both have (:mod:`.transformations`), "global" first.

    Parameters
    ----------
    path : pathlib.Path
        The zarr folder (zarr format 2 or 3; shapes as ragged arrays or, newer, as GeoParquet).
    points, cells, nuclei : str, optional
        Elements of molecules and outlines. Default: ``transcripts``, ``cell_boundaries`` and, if
        `cells` is not given, ``nucleus_boundaries``, which may be missing.
    gene_column, cell_column : str, optional
        Columns of the points. Default: their ``feature_key`` and ``instance_key``.
    fov_column : str or None
        Column of the points with the field of view; None: tiles.
    tile : float
        Without `fov_column`: side of the square tiles that serve as fields of view, by the cells'
        centroids; 0: one FOV, "0".

    Returns
    -------
    Release
        In the unit of the points.

    Raises
    ------
    SourceError
        An element, key or column is missing, or elements share no coordinate system; the text
        lists what is there.
    MissingExtraError
        Outlines are zarr arrays and zarr is not installed.
    """
    if not path.is_dir():
        raise SourceError(f"no folder at {path}: expected a SpatialData zarr")
    with reading(path, "a SpatialData zarr"):
        elements = _elements(path, points, cells, nuclei)
        keys = _attributes(path, elements[0]).get("spatialdata_attrs", {})
        gene, cell = gene_column or keys.get("feature_key"), cell_column or keys.get("instance_key")
        return _read(path, elements, gene, cell, fov_column, tile)


def _read(
    path: Path,
    elements: tuple[str, str, str | None],
    gene: str | None,
    cell: str | None,
    fov_column: str | None,
    tile: float,
) -> Release:
    points, of_cells, of_nuclei = elements
    outlines = _outlines(path, of_cells, points, cell)
    repeated = outlines.index[outlines.index.duplicated()]
    if len(repeated):
        raise SourceError(f"{path}: {of_cells} has {repeated[0]} more than once; keep one outline")
    molecules = _molecules(path, points, gene, cell, fov_column)
    cells = outlines.rename("cell_boundary").rename_axis("cell_id").reset_index()
    if fov_column is None:
        xy = centroids(cells["cell_boundary"].to_numpy())
        placeable = np.isfinite(xy).all(axis=1)  # the rules drop a cell without an outline
        cells["fov"] = ""
        cells.loc[placeable, "fov"] = tiles(xy[placeable], tile)
    else:
        placed = molecules.dropna(subset=["cell_id", "fov"]).drop_duplicates("cell_id")
        fov = placed.set_index("cell_id")["fov"].astype(str)
        cells["fov"] = cells["cell_id"].map(fov).fillna("")  # the rules refuse "" with molecules
    nuclei = pd.Series(dtype=object)
    if of_nuclei is not None:
        nuclei = _outlines(path, of_nuclei, points, cell)
        owner, ids = pd.factorize(nuclei.index)
        nuclei = pd.Series(join_parts(nuclei.to_numpy(object), owner, len(ids)), ids)
    cells["nucleus_boundary"] = nuclei.reindex(cells["cell_id"]).where(pd.notna, None).to_numpy()
    cells["touches_border"] = None
    return Release(molecules, cells)


def _elements(
    path: Path, points: str | None, cells: str | None, nuclei: str | None
) -> tuple[str, str, str | None]:
    """Find the elements of molecules, cells and nuclei; None: no nuclei."""
    there = [
        f"{kind}/{element.name}"
        for kind in ("points", "shapes")
        for element in sorted((path / kind).glob("*"))
        if element.is_dir()
    ]

    def find(option: str, element: str) -> str:
        if element not in there:
            raise SourceError(
                f"{path} has no element {element}: expected a SpatialData zarr; it has "
                f"{', '.join(there) or 'no points and no shapes'}. Name the element (--{option})"
            )
        return element

    if nuclei is None and cells is None and f"shapes/{_NUCLEI}" in there:
        nuclei = _NUCLEI
    return (
        find("points", f"points/{points or _POINTS}"),
        find("cells", f"shapes/{cells or _CELLS}"),
        None if nuclei is None else find("nuclei", f"shapes/{nuclei}"),
    )


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


def _molecules(
    path: Path, points: str, gene: str | None, cell: str | None, fov_column: str | None
) -> pd.DataFrame:
    dataset = pq.ParquetDataset(path / points / "points.parquet")
    present = dataset.schema.names
    unnamed = [
        f"{key} (--{option}-column)"
        for key, option, name in (("feature_key", "gene", gene), ("instance_key", "cell", cell))
        if not name
    ]
    if not gene or not cell:
        raise SourceError(
            f"{path}: {points} names no {' and no '.join(unnamed)}; name the column. It has "
            f"{', '.join(present)}"
        )
    wanted = [name for name in ("x", "y", gene, cell, fov_column) if name is not None]
    missing = [name for name in wanted if name not in present]
    if missing:
        raise SourceError(
            f"{path}: {points} lacks the columns {', '.join(missing)}; it has {', '.join(present)}"
        )
    z = ["z"] if "z" in present else []
    table = dataset.read(columns=wanted + z, use_pandas_metadata=False)
    texts = {name: as_text(table[name]) for name in wanted[2:]}
    texts |= {name: plain_ids(texts[name], path, name) for name in (cell, fov_column) if name}
    text = {
        name: pd.Categorical(column.cast(pa.string()).to_pandas()) for name, column in texts.items()
    }
    fov = text[fov_column] if fov_column else pd.Categorical(["0"] * len(table))
    frame = pd.DataFrame({"fov": fov, "cell_id": text[cell], "gene": text[gene]})
    with reading(path, f"numbers in x and y of {points}"):
        for axis in ("x", "y", *z):
            frame[axis] = table[axis].to_numpy().astype(np.float64)
    return frame.assign(**read_columns(dataset))


def _outlines(path: Path, element: str, points: str, cell: str | None) -> pd.Series[Any]:
    """Read outlines, indexed by the id of the cell, in the frame of the points."""
    file = path / element / "shapes.parquet"
    if file.is_file():
        shapes, ids = read_geometries(file), read_ids(file, cell, ranged=True)
    else:
        shapes, ids = _ragged(path, element)
    dots = shapely.get_type_id(shapes) == shapely.GeometryType.POINT
    if dots.any():
        raise SourceError(
            f"{path}: {element} has {int(dots.sum())} circles or points, expected polygons; "
            "name an element with outlines (--cells, --nuclei)"
        )
    try:
        frame = plane_maps(_attributes(path, points))
        matrix = relative_map(plane_maps(_attributes(path, element)), frame)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{path}: {points} and {element} cannot be brought into one frame: {shorten(error)}; "
            "set their transformations (spatialdata.transform) and write the zarr again"
        ) from error
    there = moved(shapes, matrix)
    if there is not shapes:
        _log.info("%s: outlines mapped into the frame of %s", element, points)
    return pd.Series(there, ids, dtype=object)


def _ragged(path: Path, element: str) -> tuple[NDArray[np.object_], list[str]]:
    """Read outlines and their ids from ragged zarr arrays (format 0.1)."""
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
    if "radius" in group:
        raise SourceError(
            f"{path}: {element} has circles, expected polygons; name an element with outlines "
            "(--cells, --nuclei)"
        )
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
    shapes = shapely.from_ragged_array(kind, coordinates, tuple(offsets))
    ids = [plain_id(str(name), path, element) or "" for name in index.tolist()]
    return np.asarray(shapes, object), ids


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
