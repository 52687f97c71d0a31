"""Read the output folder of a Xenium run: transcripts and boundaries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from gpattern_bench.curate.quality import NUMBERS, TEXTS, Quality
from gpattern_bench.curate.readers.columns import find_table, read_blocks
from gpattern_bench.curate.readers.group_by_fov import (
    APART,
    first_apart,
    group_by_fov,
    molecules_in_cells,
    outlined_cells,
    outlines_of_vertices,
)
from gpattern_bench.curate.readers.ids import with_plain_ids
from gpattern_bench.curate.release import Dropped, Piece, reading
from gpattern_bench.errors import SourceError
from gpattern_bench.tables.parquet import codes_into

__all__ = ["read_xenium"]

_ENDINGS = (".parquet", ".csv.gz", ".csv")
_COLUMNS = {
    "feature_name": "gene",
    "x_location": "x",
    "y_location": "y",
    "z_location": "z",
    "fov_name": "fov",
}
_STEMS = ("transcripts", "cell_boundaries", "nucleus_boundaries")


def read_xenium(
    path: Path, scratch: Path, *, tile: float, quality: Quality | None = None
) -> Iterator[Piece]:
    """Read ``transcripts``, ``cell_boundaries`` and ``nucleus_boundaries`` (Parquet or csv).

    Drops and counts molecules of low quality, of control targets
    (:mod:`gpattern_bench.curate.quality`), outside cells, or in cells without an outline. Polygons
    of one cell with several ``label_id``, such as two nuclei, become one MultiPolygon. Columns of a
    molecule's compartment (``overlaps_nucleus``, ``nucleus_distance``) are not read.

    Fields of view come from ``fov_name`` or, in older exports, are tiles
    (:func:`gpattern_bench.curate.readers.group_by_fov.group_by_fov`).

    Parameters
    ----------
    path : pathlib.Path
        The output folder (``outs``), or its parent.
    scratch : pathlib.Path
        Folder for temporary files.
    tile : float
        Side of the tiles, um; 0: one field of view.
    quality : Quality, optional
        Rules of quality; None: the usual ones.

    Yields
    ------
    Piece
        One per field of view, in micrometres.

    Raises
    ------
    SourceError
        A file or column is missing or damaged, or no molecule lies in a cell.
    """
    folder = path / "outs" if (path / "outs").is_dir() else path
    if not folder.is_dir():
        raise SourceError(f"no folder at {path}: expected the outs folder of a Xenium run")
    with reading(folder, "a Xenium export"):
        names = {stem: [stem + ending for ending in _ENDINGS] for stem in _STEMS}
        transcripts, boundaries = (find_table(folder, names[stem]) for stem in _STEMS[:2])
        outlines = _outlines(boundaries, once=True)
        nuclei = pd.Series(dtype=object)
        if any((folder / name).is_file() for name in names[_STEMS[2]]):
            nuclei = _outlines(find_table(folder, names[_STEMS[2]]))
        dropped: Dropped = {}
        cells = outlined_cells(
            outlines.index.tolist(),
            outlines.to_numpy(object),
            nuclei.reindex(outlines.index).where(pd.notna, None).to_numpy(object),
            dropped,
        )
        blocks = _molecules(transcripts, cells, quality or Quality(), dropped)
        yield from group_by_fov(blocks, cells, scratch, tile=tile, dropped=dropped)


def _outlines(path: Path, *, once: bool = False) -> pd.Series:
    """Read the outlines, indexed by cell; consecutive vertices form a polygon.

    `once`: refuse a cell whose vertices are in several places of the file.
    """
    blocks = list(
        read_blocks(
            path,
            text=("cell_id", "label_id"),
            numbers=("vertex_x", "vertex_y"),
            optional=("label_id",),
        )
    )
    if not blocks:
        raise SourceError(
            f"{path} has no vertices: expected outlines of cells or nuclei; export it again"
        )
    blocks = [with_plain_ids(block, path, ("cell_id",)) for block in blocks]
    table = pa.concat_tables(blocks).unify_dictionaries()
    if table["cell_id"].null_count:
        raise SourceError(
            f"{path}: {table['cell_id'].null_count} vertices have no cell_id; export it again"
        )
    cell, names = pd.factorize(table["cell_id"].to_pandas())
    if once and (apart := first_apart(cell)) is not None:
        raise SourceError(f"{path}: the vertices of cell {names[apart]} {APART}")
    label = cell
    if "label_id" in table.column_names:
        label = pd.factorize(table["label_id"].to_pandas())[0]
    xy = np.stack([table[axis].to_numpy() for axis in ("vertex_x", "vertex_y")], axis=1)
    joined = outlines_of_vertices(xy.astype(np.float64), cell, label, len(names))
    return pd.Series(joined, np.asarray(names, dtype=object).astype(str), dtype=object)


def _molecules(
    path: Path, cells: pd.DataFrame, quality: Quality, dropped: Dropped
) -> Iterator[pa.Table]:
    index = pd.Index(cells["cell_id"])
    for block in read_blocks(
        path,
        text=("cell_id", "feature_name", "fov_name", *TEXTS),
        numbers=("x_location", "y_location", "z_location", *NUMBERS),
        optional=("fov_name", *TEXTS),
    ):
        block = with_plain_ids(block, path, ("cell_id", "fov_name"))
        cell = codes_into(index, block["cell_id"])
        columns = {name: block[name] for name in block.column_names}
        reasons = {
            **quality.low(columns),
            "outside every cell": np.asarray(block["cell_id"].is_null()),
            "cell without an outline": cell < 0,
            **quality.controls(columns),
        }
        yield molecules_in_cells(block, cell, reasons, _COLUMNS, dropped)
