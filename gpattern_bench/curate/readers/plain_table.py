"""Read a plain table of molecules, with outlines from files or drawn around the molecules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.geometry import surrogate_outline
from gpattern_bench.curate.quality import NUMBERS, TEXTS, Quality
from gpattern_bench.curate.readers.assign import CellFinder
from gpattern_bench.curate.readers.columns import column_names, read_blocks
from gpattern_bench.curate.readers.group_by_fov import (
    group_by_fov,
    join_parts,
    molecules_in_cells,
    outlined_cells,
)
from gpattern_bench.curate.readers.ids import with_plain_ids
from gpattern_bench.curate.readers.outline_file import read_outlines
from gpattern_bench.curate.release import Dropped, Piece
from gpattern_bench.errors import SourceError
from gpattern_bench.tables.parquet import codes_into

__all__ = ["PlainTable", "plain_pieces", "read_plain_table"]

_log = logging.getLogger(__name__)

_OTHERS, _MOST_HELD = 3, 0.5  # cells, and the share of them that no cell is around
_KEPT = {name: name for name in ("gene", "x", "y", "z", "fov")}

Blocks = Callable[[], Iterator[pa.Table]]
"""Gives the molecules from the first to the last, block by block, as often as it is called."""


class PlainTable(NamedTuple):
    """Molecules and outlines, as :func:`plain_pieces` takes them."""

    blocks: Blocks
    outlines: pd.Series | None
    nuclei: pd.Series | None


def read_plain_table(
    path: Path, *, columns: Mapping[str, str | None], cells: Path | None, nuclei: Path | None
) -> PlainTable:
    """Open a table of molecules, one row each, and read outlines.

    Parameters
    ----------
    path : pathlib.Path
        csv, tsv or Parquet (:func:`.columns.read_blocks`).
    columns : mapping
        Names of the columns ``x``, ``y``, ``gene``, ``cell`` and ``fov``; None: the usual name
        (for a cell ``cell_id``), and tiles instead of ``fov``. A column ``z`` is read if there.
    cells, nuclei : pathlib.Path or None
        Files of outlines (:func:`.outline_file.read_outlines`).

    Raises
    ------
    SourceError
        A file or column is missing or damaged.
    """
    if not path.exists():
        raise SourceError(f"no file at {path}: expected a table of molecules, csv, tsv or Parquet")
    usual = {"x": "x", "y": "y", "gene": "gene", "cell": "cell_id"}
    named = {key: columns[key] or name for key, name in usual.items()}
    if columns["fov"] is not None:
        named["fov"] = columns["fov"]
    there = column_names(path, list(named.values()))
    if columns["cell"] is None and named["cell"] not in there and cells is not None:
        del named["cell"]
    if missing := {key: name for key, name in named.items() if name not in there}:
        raise SourceError(
            f"{path} lacks the columns {', '.join(missing.values())}; it has {', '.join(there)}. "
            f"Name them ({', '.join(f'--{key}' for key in missing)})"
        )
    if len(set(named.values())) < len(named):
        chosen = ", ".join(f"--{key} {name}" for key, name in named.items())
        raise SourceError(f"{path}: one column has two meanings: {chosen}; name different ones")
    outlines, inside = (None, None) if cells is None else read_outlines(cells, named.get("cell"))
    if nuclei is not None:
        inside, _ = read_outlines(nuclei, named.get("cell"))

    def blocks() -> Iterator[pa.Table]:
        text = [named[key] for key in ("gene", "cell", "fov") if key in named]
        numbers = [named["x"], named["y"]]
        optional = ("z", *NUMBERS, *TEXTS)
        names = {name: key for key, name in named.items()}
        for block in read_blocks(
            path,
            text=[*text, *(set(TEXTS) - set(text))],
            numbers=[*numbers, *({"z", *NUMBERS} - set(numbers))],
            optional=optional,
        ):
            block = block.rename_columns([names.get(name, name) for name in block.column_names])
            yield with_plain_ids(block, path, ("cell", "fov"))

    return PlainTable(blocks, outlines, inside)


def plain_pieces(
    blocks: Blocks,
    outlines: pd.Series | None,
    nuclei: pd.Series | None,
    scratch: Path,
    *,
    tile: float,
    quality: Quality,
    labels: pd.DataFrame | None = None,
    dropped: Dropped | None = None,
) -> Iterator[Piece]:
    """File molecules under cells, and cells under fields of view.

    A molecule's cell is the one it names (null: none) or, if the table has no such column, the one
    around it (:class:`.assign.CellFinder`).

    Parameters
    ----------
    blocks : callable
        Gives tables with ``x``, ``y``, ``gene`` and perhaps ``cell``, ``fov`` (text) and ``z``.
    outlines : pandas.Series or None
        Outlines of cells, indexed by id (str). None: each is drawn around the cell's molecules
        (:func:`gpattern_bench.base.geometry.surrogate_outline`); this holds their coordinates in
        memory.
    nuclei : pandas.Series or None
        Outlines of nuclei, indexed by the id of their cell; several of one cell are its nucleus.
    scratch : pathlib.Path
        Folder for temporary files.
    quality : Quality
        Applies to ``qv``, ``is_gene`` and ``codeword_category``, where they are there.
    tile, labels, dropped
        As in :func:`.group_by_fov.group_by_fov`.

    Yields
    ------
    Piece

    Raises
    ------
    SourceError
        Ids of cells repeat, nuclei belong to no cell, or no molecule lies in a cell.
    """
    if outlines is None:
        outlines = _surrogates(blocks())
    if repeated := outlines.index[outlines.index.duplicated()].tolist():
        raise SourceError(
            f"cell id {repeated[0]} occurs more than once among the outlines ({len(repeated)} "
            "repeats); give each cell its own id"
        )
    dropped = dropped or {}
    nucleus = None if nuclei is None or not len(nuclei) else _nuclei(nuclei, outlines.index)
    cells = outlined_cells(outlines.index.tolist(), outlines.to_numpy(object), nucleus, dropped)
    yield from group_by_fov(
        _in_cells(blocks(), cells, quality, dropped),
        cells,
        scratch,
        tile=tile,
        dropped=dropped,
        labels=labels,
    )


def _nuclei(nuclei: pd.Series, cells: pd.Index[str]) -> np.ndarray:
    """Join the nuclei of each cell."""
    owner, ids = pd.factorize(nuclei.index)
    if not cells.isin(ids).any():
        raise SourceError(
            f"no nucleus belongs to a cell: their ids are {_some(ids)}, those of the cells "
            f"{_some(cells)}; give each nucleus the id of its cell"
        )
    shapes = nuclei.to_numpy(object)
    whole = np.asarray(shapely.get_type_id(shapes) >= 0)  # None: -1
    joined = pd.Series(join_parts(shapes[whole], owner[whole], len(ids)), ids, dtype=object)
    return joined.reindex(cells).where(pd.notna, None).to_numpy(object)


def _in_cells(
    blocks: Iterator[pa.Table], cells: pd.DataFrame, quality: Quality, dropped: Dropped
) -> Iterator[pa.Table]:
    index = pd.Index(cells["cell_id"])
    finder: CellFinder | None = None
    for block in blocks:
        if "cell" in block.column_names:
            cell = codes_into(index, block["cell"])
            outside = np.asarray(block["cell"].is_null())
            reasons = {"outside every cell": outside, "cell without an outline": cell < 0}
            block = block.drop_columns("cell")
        else:
            if finder is None:
                _log.info("no column of cells: molecules are assigned by the outlines")
                finder = CellFinder(cells["cell_boundary"].to_numpy())
            xy = np.stack([block[axis].to_numpy() for axis in "xy"], axis=1)
            cell = finder.find(xy)
            missing = ~np.isfinite(xy).all(axis=1)
            reasons = {"coordinate not finite": missing, "outside every cell": cell < 0}
        columns = {name: block[name] for name in block.column_names}
        reasons = {**quality.low(columns), **reasons, **quality.controls(columns)}
        yield molecules_in_cells(block, cell, reasons, _KEPT, dropped)


def _surrogates(blocks: Iterator[pa.Table]) -> pd.Series:
    """Draw an outline around the molecules of each cell; None where they lie on one line."""
    names: dict[str, None] = {}  # in the order of the table
    cells, points = [np.empty(0, np.int64)], [np.empty((0, 2))]
    for block in blocks:
        for chunk in block["cell"].chunks:
            names |= dict.fromkeys(chunk.dictionary.to_pylist())
        cell = codes_into(pd.Index(list(names), dtype=object), block["cell"])
        xy = np.stack([block[axis].to_numpy() for axis in "xy"], axis=1).astype(np.float64)
        used = (cell >= 0) & np.isfinite(xy).all(axis=1)
        cells.append(cell[used])
        points.append(xy[used])
    cell, xy = np.concatenate(cells), np.concatenate(points)
    order = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[order], np.arange(1, len(names)))
    shapes = np.full(len(names), None, dtype=object)
    for k, part in enumerate(np.split(xy[order], bounds)[: len(names)]):
        shapes[k] = surrogate_outline(part) if len(part) >= 3 else None
    _refuse_background(shapes, list(names))
    return pd.Series(shapes, list(names), dtype=object)


def _refuse_background(shapes: NDArray[np.object_], names: list[str]) -> None:
    """Raise SourceError if a "cell" is around the others: molecules that are outside of cells."""
    others = len(shapes) - 1
    held = shapely.STRtree(shapely.point_on_surface(shapes)).query(shapes, predicate="contains")[0]
    count = np.bincount(held, minlength=len(shapes)) - 1  # itself
    if others >= _OTHERS and count.max() >= _MOST_HELD * others:
        raise SourceError(
            f"the outline around the molecules of cell {names[count.argmax()]} holds "
            f"{count.max():,} of the {others:,} other cells; if these molecules are outside every "
            "cell, leave their cell empty"
        )


def _some(names: pd.Index[str]) -> str:
    return ", ".join(map(str, names[:3])) + (" ..." if len(names) > 3 else "")
