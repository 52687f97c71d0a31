"""Read the output folder of a MERSCOPE run: detected transcripts and boundaries."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.geometry import polygonal
from gpattern_bench.base.outlines import parse_wkb
from gpattern_bench.base.validation import shorten
from gpattern_bench.curate.quality import NUMBERS, TEXTS, Quality
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
from gpattern_bench.curate.readers.ids import plain_ids, with_plain_ids
from gpattern_bench.curate.release import Dropped, Piece, reading
from gpattern_bench.errors import SourceError
from gpattern_bench.tables.parquet import codes_into

__all__ = ["read_merscope"]

_log = logging.getLogger(__name__)

_TRANSCRIPTS = tuple(f"detected_transcripts.{ending}" for ending in ("csv", "csv.gz", "parquet"))
_BOUNDARIES = ("cell_boundaries.parquet", "*_micron_space.parquet")
_READ: dict[str, Any] = {
    "text": ("gene", "fov", "cell_id", *TEXTS),
    "numbers": ("global_x", "global_y", "global_z", *NUMBERS),
    "optional": ("fov", "cell_id", "global_z", *TEXTS, *NUMBERS),
}
_COLUMNS = {"gene": "gene", "global_x": "x", "global_y": "y", "fov": "fov"}
_CELL, _NUCLEUS = ("cell", "cells"), ("nucleus", "nuclei")  # in Type, in any case
_OWN_SHARE = 0.5  # of a nucleus' area in its cell


@dataclass(frozen=True)
class _Planes:
    """Outlines (n,) of cells or nuclei, one per cell and z-plane, all with an area.

    `cell` is an index of `names`.
    """

    names: list[str]
    cell: NDArray[np.int64]
    plane: NDArray[np.int64]
    outline: NDArray[np.object_]

    def largest(self) -> NDArray[np.object_]:
        """Outline (cells,) in the plane of the largest area, of equal ones the lowest; or None."""
        found = np.full(len(self.names), None, dtype=object)
        order = np.lexsort((self.plane, -_areas(self.outline), self.cell))
        cell, first = np.unique(self.cell[order], return_index=True)
        found[cell] = self.outline[order[first]]
        return found


@dataclass(frozen=True)
class _Boundaries:
    """Cells with the outline of their largest plane, nuclei by cell, and all planes of cells."""

    cells: _Planes
    boundary: NDArray[np.object_]
    nucleus: NDArray[np.object_] | None


class _PlaneFinder:
    """Find the cell of each molecule by the outlines of its own z-plane.

    A cell that lacks a plane between its lowest and its highest has there the outline of its
    nearest plane (of two the lower). Above and below all planes of the file, the outermost counts.
    Molecules without a plane number go by the outlines kept.
    """

    def __init__(self, cells: _Planes, kept: NDArray[np.object_]) -> None:
        self._cells, self._kept = cells, kept
        self._finders: dict[int | None, tuple[CellFinder, NDArray[np.int64]]] = {}

    def find(self, xy: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.int64]:
        """Find the index (n,) of each molecule's cell; -1: outside every cell."""
        found = np.full(len(xy), -1, dtype=np.int64)
        numbered = np.isfinite(z) & (z == np.round(z))
        if not len(self._cells.plane):
            return found
        lowest, highest = self._cells.plane.min(), self._cells.plane.max()
        plane = np.where(numbered, np.clip(z, lowest, highest), lowest - 1).astype(np.int64)
        for value in np.unique(plane):
            rows = np.flatnonzero(plane == value)
            finder, cells = self._finder(None if value < lowest else int(value))
            found[rows] = cells[finder.find(xy[rows])]
        return found

    def _finder(self, plane: int | None) -> tuple[CellFinder, NDArray[np.int64]]:
        if plane not in self._finders:
            if plane is None:
                cells, outlines = np.arange(len(self._kept)), self._kept
            else:
                rows = self._rows(plane)
                cells, outlines = self._cells.cell[rows], self._cells.outline[rows]
            # The last is the cell of molecules outside: CellFinder returns -1.
            self._finders[plane] = CellFinder(outlines), np.append(cells, -1)
        return self._finders[plane]

    def _rows(self, plane: int) -> NDArray[np.int64]:
        """Choose the outline of each cell in a plane."""
        frame = pd.DataFrame({"cell": self._cells.cell, "plane": self._cells.plane})
        frame = frame.rename_axis("row").reset_index().sort_values(["cell", "plane"])
        below = frame[frame["plane"] <= plane].drop_duplicates("cell", keep="last")
        above = frame[frame["plane"] >= plane].drop_duplicates("cell")
        both = below.merge(above, on="cell", suffixes=("", "_above"))
        lower = plane - both["plane"] <= both["plane_above"] - plane
        return np.asarray(both["row"].where(lower, both["row_above"]).to_numpy(np.int64))


def read_merscope(
    path: Path, scratch: Path, *, tile: float, quality: Quality | None = None
) -> Iterator[Piece]:
    """Read ``detected_transcripts.csv`` and the boundaries, as Parquet or, older, HDF5 per FOV.

    The export outlines a cell in each z-plane; the tables keep the plane of the largest area. A
    molecule's cell is its ``cell_id`` (-1: none) or, in older exports, the cell around it in its
    own plane (``global_z``, the number of the plane); it may then lie beyond the outline kept.
    ``Type`` tells cells from nuclei; a nucleus belongs to its ``ParentID``, to the cell of its own
    id or, where neither is there, to the cell that has most of its area.

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
    quality : Quality, optional
        Rules of quality, for columns that the csv may have; None: the usual ones.

    Yields
    ------
    Piece
        One per field of view, in micrometres.

    Raises
    ------
    SourceError
        A file or column is missing or damaged, an outline is of an unknown type, ids are rounded or
        occur twice, or no molecule lies in a cell.
    """
    if not path.is_dir():
        raise SourceError(f"no folder at {path}: expected the output folder of a MERSCOPE run")
    with reading(path, "a MERSCOPE export"):
        transcripts = find_table(path, _TRANSCRIPTS)
        dropped: Dropped = {}
        blocks = read_blocks(transcripts, **_READ)
        first = next(blocks, None)
        named = first is not None and "cell_id" in first.column_names
        found = _boundaries(path, every_plane=not named)
        cells = outlined_cells(found.cells.names, found.boundary, found.nucleus, dropped)
        blocks = chain([] if first is None else [first], blocks)
        blocks = _molecules(transcripts, blocks, found, cells, quality or Quality(), dropped)
        yield from group_by_fov(blocks, cells, scratch, tile=tile, dropped=dropped)


def _molecules(
    path: Path,
    blocks: Iterable[pa.Table],
    boundaries: _Boundaries,
    cells: pd.DataFrame,
    quality: Quality,
    dropped: Dropped,
) -> Iterator[pa.Table]:
    index = pd.Index(cells["cell_id"])
    outlined = np.append(index.get_indexer(boundaries.cells.names), -1)  # -1: outside
    finder: _PlaneFinder | None = None
    for block in blocks:
        block = with_plain_ids(block, path, ("fov", "cell_id"))
        if "cell_id" in block.column_names:
            cell = codes_into(index, block["cell_id"])
            outside = np.asarray(block["cell_id"].is_null())
            reasons = {"outside every cell": outside, "cell without an outline": cell < 0}
        else:
            finder = finder or _PlaneFinder(boundaries.cells, boundaries.boundary)
            xy = np.stack([block[axis].to_numpy() for axis in ("global_x", "global_y")], axis=1)
            z = np.full(len(xy), np.nan)
            if "global_z" in block.column_names:
                z = block["global_z"].to_numpy()
            cell = outlined[finder.find(xy, z)]
            missing = ~np.isfinite(xy).all(axis=1)
            reasons = {"coordinate not finite": missing, "outside every cell": cell < 0}
        columns = {name: block[name] for name in block.column_names}
        reasons = {**quality.low(columns), **reasons, **quality.controls(columns)}
        yield molecules_in_cells(block, cell, reasons, _COLUMNS, dropped)


def _boundaries(folder: Path, *, every_plane: bool) -> _Boundaries:
    """Read the outlines of cells and nuclei: in every plane, or of each only the largest."""
    for name in _BOUNDARIES:
        files = sorted(folder.glob(name))
        if len(files) > 1:
            raise SourceError(
                f"{folder} has several segmentations, {', '.join(f.name for f in files)}; "
                "keep the one whose ids the molecules have"
            )
        if files:
            return _from_parquet(files[0], every_plane=every_plane)
    files = sorted((folder / "cell_boundaries").glob("*.hdf5"))
    if not files:
        raise SourceError(
            f"{folder} has no boundaries: expected {', '.join(_BOUNDARIES)} or "
            "cell_boundaries/feature_data_*.hdf5; give the output folder of one region"
        )
    found: dict[str, dict[int, Any]] = {}
    for file in files:
        with reading(file, "MERSCOPE boundaries (featuredata/CELL/zIndex_Z/p_I/coordinates)"):
            for name, planes in _from_hdf5(file):
                if planes and not every_plane:
                    areas = _areas(np.array(list(planes.values()), dtype=object))
                    best = min(zip(-areas, planes, strict=True))[1]
                    planes = {best: planes[best]}
                if planes and found.get(name):
                    raise SourceError(
                        f"{file}: cell {name} is also in another file of {file.parent}; keep one"
                    )
                found[name] = planes or found.get(name, {})
    if not found:
        raise SourceError(
            f"none of the {len(files)} files in {folder / 'cell_boundaries'} has cells; expected "
            "groups featuredata/CELL/zIndex_Z/p_I"
        )
    names = sorted(found)
    rows = [(i, z, shape) for i, name in enumerate(names) for z, shape in found[name].items()]
    cells = _Planes(
        names,
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=object),
    )
    return _Boundaries(cells, cells.largest(), None)


def _from_parquet(path: Path, *, every_plane: bool) -> _Boundaries:
    check_frame(path)
    frame, is_nucleus = _rows(path)
    used = frame["area"] > 0
    if not every_plane:
        planes = frame.assign(nucleus=is_nucleus)[used]
        planes = planes.groupby(["nucleus", "id", "plane"])["area"].sum().reset_index()
        planes = planes.sort_values(["area", "plane"], ascending=[False, True])
        largest = planes.drop_duplicates(["nucleus", "id"])[["nucleus", "id", "plane"]]
        keys = pd.MultiIndex.from_arrays([is_nucleus, frame["id"], frame["plane"]])
        used &= keys.isin(pd.MultiIndex.from_frame(largest))
    frame["outline"] = None
    rows = used.to_numpy()
    shapes, at = [np.empty(0, dtype=object)], 0
    # Read again: the geometries of all planes may be gigabytes.
    for block in read_blocks(path, raw=("Geometry",)):
        chosen = pa.array(rows[at : at + len(block)])
        at += len(block)
        shapes.append(parse_wkb(block["Geometry"].filter(chosen).to_numpy()))
    frame.loc[rows, "outline"] = np.concatenate(shapes)
    cells = _planes(frame[~is_nucleus])
    boundary = cells.largest()
    if not is_nucleus.any():
        return _Boundaries(cells, boundary, None)
    if is_nucleus.all():
        raise SourceError(f"{path} has outlines of nuclei only; add those of the cells")
    nuclei = _planes(frame[is_nucleus])
    parent = frame[is_nucleus].dropna(subset="parent").drop_duplicates("id").set_index("id")
    nucleus = _of_cells(nuclei, parent["parent"], cells.names, boundary, path)
    return _Boundaries(cells, boundary, nucleus)


def _rows(path: Path) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """Read ``id``, ``parent``, ``plane`` and ``area`` of each row, and which are nuclei."""
    ids, parents, kinds, planes, areas = [], [], [], [], []
    for block in read_blocks(
        path,
        text=("EntityID", "Type", "ParentID"),
        numbers=("ZIndex",),
        raw=("Geometry",),
        optional=("Type", "ParentID"),
    ):
        nothing = pa.chunked_array([pa.nulls(len(block), pa.dictionary(pa.int32(), pa.string()))])
        parent = block["ParentID"] if "ParentID" in block.column_names else nothing
        kinds.append(block["Type"] if "Type" in block.column_names else nothing)
        ids.append(plain_ids(block["EntityID"], path, "EntityID"))
        parents.append(plain_ids(parent, path, "ParentID"))
        planes.append(block["ZIndex"].to_numpy())
        areas.append(_areas(parse_wkb(block["Geometry"].to_numpy())))
    if not ids:
        raise SourceError(f"{path} has no rows: expected outlines of cells; export it again")
    plane = np.concatenate(planes)
    columns = {"id": _texts(ids), "parent": _texts(parents), "plane": plane}
    frame = pd.DataFrame(columns | {"area": np.concatenate(areas)})
    for name, missing in (("EntityID", frame["id"].isna()), ("ZIndex", ~np.isfinite(plane))):
        if missing.any():
            raise SourceError(
                f"{path}: {int(missing.sum())} of {len(frame)} outlines have no {name}; export it "
                "again"
            )
    return frame, _is_nucleus(_texts(kinds), path)


def _texts(columns: list[pa.ChunkedArray]) -> pd.Series:
    texts = [chunk.cast(pa.string()) for column in columns for chunk in column.chunks]
    return pd.Series(pa.chunked_array(texts, pa.string()).to_pandas())


def _is_nucleus(kinds: pd.Series, path: Path) -> NDArray[np.bool_]:
    """Mark outlines (n,) of nuclei; without any type, all are cells."""
    if kinds.isna().all():
        return np.zeros(len(kinds), dtype=np.bool_)
    lower = kinds.str.strip().str.lower()
    unknown = ~lower.isin((*_CELL, *_NUCLEUS))
    if unknown.any():
        raise SourceError(
            f"{path}: {int(unknown.sum())} of {len(kinds)} outlines have another Type than cell or "
            f"nuclei, the first {shorten(kinds[unknown].iloc[0])}; remove what is neither"
        )
    return np.asarray(lower.isin(_NUCLEUS))


def _planes(frame: pd.DataFrame) -> _Planes:
    """Join the polygons of each id and plane."""
    cell, names = pd.factorize(frame["id"], sort=True)
    plane = frame["plane"].to_numpy().astype(np.int64)
    outline = frame["outline"].to_numpy(object)
    solid = np.flatnonzero(frame["outline"].notna())
    keys = pd.DataFrame({"cell": cell[solid], "plane": plane[solid]})
    owner = keys.groupby(["cell", "plane"]).ngroup().to_numpy().astype(np.int64)
    unique = keys.drop_duplicates().sort_values(["cell", "plane"])
    joined = join_parts(outline[solid], owner, len(unique))
    of_cell, of_plane = (unique[key].to_numpy(np.int64) for key in ("cell", "plane"))
    return _Planes([str(name) for name in names], of_cell, of_plane, joined)


def _areas(shapes: NDArray[np.object_]) -> NDArray[np.float64]:
    """Areas (n,), of invalid outlines as curation repairs them; 0 without one."""
    areas = np.nan_to_num(shapely.area(shapes), nan=0.0, posinf=0.0, neginf=0.0)
    for i in np.flatnonzero(~shapely.is_missing(shapes) & ~shapely.is_valid(shapes)):
        repaired = polygonal(shapes[i])
        areas[i] = 0.0 if repaired is None else repaired.area
    return np.asarray(areas)


def _of_cells(
    nuclei: _Planes,
    parent: pd.Series,
    cells: list[str],
    boundary: NDArray[np.object_],
    path: Path,
) -> NDArray[np.object_]:
    """Join the nuclei (cells,) of each cell; None where a cell has none."""
    outlines = np.array([polygonal(shape) for shape in nuclei.largest()], dtype=object)
    index = pd.Index(cells)
    named = pd.Index([parent.get(name, name) for name in nuclei.names])
    owner = index.get_indexer(named).astype(np.int64)
    around = np.array([polygonal(shape) for shape in boundary], dtype=object)
    loose = np.flatnonzero((owner < 0) & ~shapely.is_missing(outlines))
    nucleus, cell = shapely.STRtree(around).query(outlines[loose], predicate="intersects")
    shared = shapely.area(shapely.intersection(outlines[loose][nucleus], around[cell]))
    order = np.lexsort((cell, -shared, nucleus))
    nucleus, first = np.unique(nucleus[order], return_index=True)
    best = order[first]
    own = shared[best] >= _OWN_SHARE * shapely.area(outlines[loose][nucleus])
    owner[loose[nucleus[own]]] = cell[best[own]]
    kept = np.flatnonzero((owner >= 0) & ~shapely.is_missing(outlines))
    if len(kept) < len(outlines):
        _log.warning(
            "%s: %d of %d nuclei are in no cell; they are not used",
            path, len(outlines) - len(kept), len(outlines),
        )  # fmt: skip
    return join_parts(outlines[kept], owner[kept], len(cells))


def _from_hdf5(path: Path) -> Iterator[tuple[str, dict[int, Any]]]:
    """Yield each cell and the outlines of its planes that have an area."""
    with open_hdf5(path) as file:
        for name, cell in file.get("featuredata", {}).items():
            planes = {}
            for key, group in cell.items():
                if re.fullmatch(r"zIndex_\d+", key) and (rings := _rings(group)):
                    parts = shapely.polygons([shapely.linearrings(ring) for ring in rings])
                    owner = np.zeros(len(rings), dtype=np.int64)
                    outline = join_parts(parts, owner, 1)
                    if _areas(outline)[0] > 0:
                        planes[int(key.removeprefix("zIndex_"))] = outline[0]
            yield name, planes


def _rings(plane: h5py.Group) -> list[NDArray[np.float64]]:
    """Read the polygons (v, 2) of a plane that have three or more finite vertices."""
    rings = [
        np.asarray(values(part["coordinates"]), dtype=np.float64).reshape(-1, 2)
        for name, part in sorted(plane.items())
        if re.fullmatch(r"p_\d+", name)
    ]
    return [ring for ring in rings if np.isfinite(ring).all() and len(np.unique(ring, axis=0)) >= 3]
