"""Read the output folder of a MERSCOPE run: detected transcripts and boundaries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.outlines import parse_wkb
from gpattern_bench.curate.readers.assign import CellFinder
from gpattern_bench.curate.readers.columns import find_table, read_blocks
from gpattern_bench.curate.readers.geoparquet import check_frame
from gpattern_bench.curate.readers.group_by_fov import (
    group_by_fov,
    join_parts,
    molecules_in_cells,
    outlined_cells,
)
from gpattern_bench.curate.readers.hdf5 import open_hdf5, values
from gpattern_bench.curate.release import Dropped, Piece, reading
from gpattern_bench.errors import SourceError
from gpattern_bench.tables.parquet import codes_into

__all__ = ["read_merscope"]

_TRANSCRIPTS = tuple(f"detected_transcripts.{ending}" for ending in ("csv", "csv.gz", "parquet"))
_BOUNDARIES = ("cell_boundaries.parquet", "cellpose_micron_space.parquet")
_OUTSIDE = "-1"
_COLUMNS = {"gene": "gene", "global_x": "x", "global_y": "y", "fov": "fov"}
_MIN_WKB = 77  # bytes of a triangle; shorter geometries have no area


def read_merscope(path: Path, scratch: Path, *, tile: float) -> Iterator[Piece]:
    """Read ``detected_transcripts.csv`` and the boundaries, as Parquet or, older, HDF5 per FOV.

    The export outlines a cell in each z-plane; the middle one (of two the lower) counts for the
    molecules of all planes. A molecule's cell is its ``cell_id`` (-1: none) or, in older exports,
    the cell around it (:class:`~gpattern_bench.curate.readers.assign.CellFinder`). ``global_z``
    numbers the planes and is not read. There are no nuclei.

    Fields of view come from ``fov`` or, without that column, are tiles
    (:func:`gpattern_bench.curate.readers.group_by_fov.group_by_fov`).

    Parameters
    ----------
    path : pathlib.Path
        The output folder of one region.
    scratch : pathlib.Path
        Folder for temporary files.
    tile : float
        Side of the tiles, um; 0: one field of view.

    Yields
    ------
    Piece
        One per field of view, in micrometres.

    Raises
    ------
    SourceError
        A file or column is missing or damaged, or no molecule lies in a cell.
    """
    if not path.is_dir():
        raise SourceError(f"no folder at {path}: expected the output folder of a MERSCOPE run")
    with reading(path, "a MERSCOPE export"):
        transcripts = find_table(path, _TRANSCRIPTS)
        dropped: Dropped = {}
        outlines = _outlines(path)
        cells = outlined_cells(outlines.index.tolist(), outlines.to_numpy(object), None, dropped)
        blocks = _molecules(transcripts, cells, dropped)
        yield from group_by_fov(blocks, cells, scratch, tile=tile, dropped=dropped)


def _molecules(path: Path, cells: pd.DataFrame, dropped: Dropped) -> Iterator[pa.Table]:
    index = pd.Index([*cells["cell_id"], _OUTSIDE])
    finder: CellFinder | None = None
    for block in read_blocks(
        path,
        text=("gene", "fov", "cell_id"),
        numbers=("global_x", "global_y"),
        optional=("fov", "cell_id"),
    ):
        if "cell_id" in block.column_names:
            cell = codes_into(index, block["cell_id"])
            outside = np.asarray(block["cell_id"].is_null()) | (cell == len(cells))
            reasons = {"outside every cell": outside, "cell without an outline": cell < 0}
        else:
            finder = finder or CellFinder(cells["cell_boundary"].to_numpy())
            xy = np.stack([block[axis].to_numpy() for axis in ("global_x", "global_y")], axis=1)
            cell = finder.find(xy)
            missing = ~np.isfinite(xy).all(axis=1)
            reasons = {"coordinate not finite": missing, "outside every cell": cell < 0}
        yield molecules_in_cells(block, cell, reasons, _COLUMNS, dropped)


def _outlines(folder: Path) -> pd.Series:
    """Read the outlines, indexed by cell."""
    for name in _BOUNDARIES:
        if (folder / name).is_file():
            return _from_parquet(folder / name)
    files = sorted((folder / "cell_boundaries").glob("*.hdf5"))
    if not files:
        raise SourceError(
            f"{folder} has no boundaries: expected {', '.join(_BOUNDARIES)} or "
            "cell_boundaries/feature_data_*.hdf5; give the output folder of one region"
        )
    found: dict[str, Any] = {}
    for file in files:
        with reading(file, "MERSCOPE boundaries (featuredata/CELL/zIndex_Z/p_I/coordinates)"):
            for name, outline in _from_hdf5(file):
                if found.get(name) is None:
                    found[name] = outline
    if not found:
        raise SourceError(
            f"none of the {len(files)} files in {folder / 'cell_boundaries'} has cells; expected "
            "groups featuredata/CELL/zIndex_Z/p_I"
        )
    return pd.Series(found, dtype=object)


def _in_middle_plane(cell: NDArray[np.int64], plane: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the polygons (n,) in the middle plane of their cell."""
    polygons = pd.DataFrame({"cell": cell, "plane": plane})
    planes = polygons.drop_duplicates().sort_values(["cell", "plane"])
    of_cell = planes.groupby("cell")["plane"]
    chosen = planes[of_cell.cumcount() == (of_cell.transform("size") - 1) // 2]
    middle = chosen.set_index("cell")["plane"].reindex(cell)
    return np.asarray(middle.to_numpy() == plane)


def _from_parquet(path: Path) -> pd.Series:
    check_frame(path)
    columns = {"text": ("EntityID",), "numbers": ("ZIndex",), "raw": ("Geometry",)}
    entity, plane, solid = [], [], []
    for block in read_blocks(path, **columns):  # twice: geometries of all planes may be gigabytes
        entity.append(block["EntityID"])
        plane.append(block["ZIndex"].to_numpy())
        length = pc.binary_length(block["Geometry"]).fill_null(0)
        solid.append(np.asarray(length) >= _MIN_WKB)
    if not entity:
        raise SourceError(f"{path} has no rows: expected outlines of cells; export it again")
    cell, names = pd.factorize(pa.chunked_array([c for e in entity for c in e.chunks]).to_pandas())
    used = np.concatenate(solid) & (cell >= 0)
    used[used] = _in_middle_plane(cell[used], np.concatenate(plane)[used])
    parts, at = [np.empty(0, dtype=object)], 0
    for block in read_blocks(path, **columns):
        rows = used[at : at + len(block)]
        at += len(block)
        parts.append(parse_wkb(block["Geometry"].filter(pa.array(rows)).to_numpy()))
    joined = join_parts(np.concatenate(parts), cell[used], len(names))
    return pd.Series(joined, np.asarray(names, dtype=object).astype(str), dtype=object)


def _from_hdf5(path: Path) -> Iterator[tuple[str, Any]]:
    with open_hdf5(path) as file:
        for name, cell in file.get("featuredata", {}).items():
            planes = {
                int(key.removeprefix("zIndex_")): rings
                for key, group in cell.items()
                if re.fullmatch(r"zIndex_\d+", key) and (rings := _rings(group))
            }
            outline = None
            if planes:
                rings = planes[sorted(planes)[(len(planes) - 1) // 2]]
                outline = join_parts(
                    shapely.polygons([shapely.linearrings(ring) for ring in rings]),
                    np.zeros(len(rings), dtype=np.int64),
                    1,
                )[0]
            yield name, outline


def _rings(plane: h5py.Group) -> list[NDArray[np.float64]]:
    """Read the polygons (v, 2) of a plane that have three or more finite vertices."""
    rings = [
        np.asarray(values(part["coordinates"]), dtype=np.float64).reshape(-1, 2)
        for name, part in sorted(plane.items())
        if re.fullmatch(r"p_\d+", name)
    ]
    return [ring for ring in rings if np.isfinite(ring).all() and len(np.unique(ring, axis=0)) >= 3]
