"""Read a SpatialData zarr: a points element of molecules, shapes elements of outlines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from gpattern_bench.curate.release import Release
from gpattern_bench.errors import MissingExtraError, SourceError

__all__ = ["read_spatialdata"]

_POINTS, _CELLS, _NUCLEI = (
    "points/transcripts",
    "shapes/cell_boundaries",
    "shapes/nucleus_boundaries",
)
_OUTSIDE = ("", "-1", "UNASSIGNED")


def read_spatialdata(path: Path, *, fov_column: str | None = None) -> Release:
    """Read ``points/transcripts``, ``shapes/cell_boundaries`` and ``shapes/nucleus_boundaries``.

    Gene and cell of a molecule are the columns that the points element names as its feature and
    instance key; an empty cell means outside every cell. Columns that tell the compartment of a
    molecule (``nucleus_boundaries``, ``overlaps_nucleus``) are not read. Coordinates are the
    elements' own (intrinsic) ones; the transformation to the global frame must therefore be the
    same for points and outlines.

    Parameters
    ----------
    path : pathlib.Path
        The zarr folder (zarr format 2; shapes as ragged arrays or, newer, as GeoParquet).
    fov_column : str or None
        Column of the points that names the field of view; None = all in one FOV, "0".

    Returns
    -------
    Release
        In the intrinsic unit of the elements.

    Raises
    ------
    SourceError
        An element, key or column is missing, or frames differ.
    MissingExtraError
        Outlines are zarr arrays and zarr is not installed.
    """
    if not path.is_dir():
        raise SourceError(f"no folder at {path}: expected a SpatialData zarr")
    attributes = _attributes(path, _POINTS)
    shapes = {name: _shapes(path, name) for name in (_CELLS, _NUCLEI) if (path / name).is_dir()}
    if _CELLS not in shapes:
        raise SourceError(f"{path} has no element {_CELLS}: outlines of the cells are needed")
    for name in shapes:
        if _frames(_attributes(path, name)) != _frames(attributes):
            raise SourceError(
                f"{path}: {name} and {_POINTS} have different coordinate transformations; bring "
                "them into one frame (spatialdata.transform) and write the zarr again"
            )
    molecules = _molecules(path, attributes, fov_column)
    nuclei = shapes.get(_NUCLEI, {})
    fov = molecules.drop_duplicates("cell_id").set_index("cell_id")["fov"].astype(str)
    cells = pd.DataFrame({"cell_id": list(shapes[_CELLS])})
    cells["fov"] = cells["cell_id"].map(fov).fillna("")
    cells["cell_boundary"] = list(shapes[_CELLS].values())
    cells["nucleus_boundary"] = [nuclei.get(cell) for cell in shapes[_CELLS]]
    cells["touches_border"] = None
    return Release(molecules, cells)


def _attributes(path: Path, element: str) -> dict[str, Any]:
    file = path / element / ".zattrs"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path}: element {element} has no readable .zattrs ({error}); expected a SpatialData "
            "zarr of format 2"
        ) from error


def _frames(attributes: dict[str, Any]) -> list[tuple[str, str, str]]:
    return sorted(
        (step["output"]["name"], step["type"], str(step.get("scale", step.get("affine", ""))))
        for step in attributes.get("coordinateTransformations", [])
    )


def _molecules(path: Path, attributes: dict[str, Any], fov_column: str | None) -> pd.DataFrame:
    keys = attributes.get("spatialdata_attrs", {})
    gene, cell = keys.get("feature_key"), keys.get("instance_key")
    if not gene or not cell:
        raise SourceError(
            f"{path}: {_POINTS} names no feature_key and instance_key (got {keys}); set them, they "
            "tell which columns hold gene and cell"
        )
    wanted = [name for name in ("x", "y", gene, cell, fov_column) if name is not None]
    try:
        dataset = pq.ParquetDataset(path / _POINTS / "points.parquet")
        missing = [name for name in wanted if name not in dataset.schema.names]
        if missing:
            raise SourceError(
                f"{path}: {_POINTS} lacks the columns {', '.join(missing)}; it has "
                f"{', '.join(dataset.schema.names)}"
            )
        table = dataset.read(columns=wanted, use_pandas_metadata=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path}: {_POINTS}/points.parquet cannot be read: {error}") from error
    text = {name: pd.Categorical(table[name].cast(pa.string()).to_pandas()) for name in wanted[2:]}
    frame = pd.DataFrame(
        {
            "fov": text[fov_column] if fov_column else pd.Categorical(["0"] * len(table)),
            "cell_id": text[cell],
            "gene": text[gene],
            "x": table["x"].to_numpy().astype(np.float64),
            "y": table["y"].to_numpy().astype(np.float64),
        }
    )
    inside = [name for name in text[cell].categories if name not in _OUTSIDE]
    frame["cell_id"] = frame["cell_id"].cat.set_categories(inside)  # outside becomes null
    return frame


def _shapes(path: Path, element: str) -> dict[str, Any]:
    """Outlines of an element, by name: GeoParquet (newer) or ragged zarr arrays (format 0.1)."""
    parquet = path / element / "shapes.parquet"
    if parquet.is_file():
        frame = pq.read_table(parquet).to_pandas()
        return dict(zip(frame.index.astype(str), shapely.from_wkb(frame["geometry"]), strict=True))
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: outlines of {element} are zarr arrays, zarr is not installed; install "
            "gpattern-bench[spatial]"
        ) from error
    group = zarr.open_group(str(path / element), mode="r")
    names = ("coords", "offset0", "offset1", "Index")
    missing = [name for name in names if name not in group]
    if missing:
        raise SourceError(f"{path}: {element} lacks the arrays {', '.join(missing)} of polygons")
    coordinates, rings, polygons, index = (np.asarray(group[name][:]) for name in names)
    kind = shapely.GeometryType.POLYGON
    outlines = shapely.from_ragged_array(kind, coordinates, (rings, polygons))
    return dict(zip(map(str, index.tolist()), outlines, strict=True))
