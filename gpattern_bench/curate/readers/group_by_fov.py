"""Group a slide's molecules, which come in any order, by field of view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from gpattern_bench.curate.readers.assign import tiles
from gpattern_bench.curate.readers.spill import Spill
from gpattern_bench.curate.release import Piece, Release
from gpattern_bench.errors import SourceError

__all__ = ["Dropped", "count", "group_by_fov", "join_parts", "outlined_cells"]

Dropped = dict[str, dict[str, int]]
"""Table -> reason -> rows that a reader left out."""


def count(dropped: Dropped, table: str, reason: str, rows: NDArray[np.bool_]) -> None:
    """Count rows dropped from a table for a reason."""
    of_table = dropped.setdefault(table, {})
    of_table[reason] = of_table.get(reason, 0) + int(rows.sum())


def outlined_cells(
    names: Sequence[str],
    boundary: NDArray[np.object_],
    nucleus: NDArray[np.object_] | None,
    dropped: Dropped,
) -> pd.DataFrame:
    """Make a release's table of cells, without fields of view.

    Cells whose outline has no centroid (none, empty, not finite) are left out and counted.

    Parameters
    ----------
    names : sequence of str
        (m,) unique.
    boundary, nucleus : numpy.ndarray
        (m,) shapely geometries or None; no `nucleus` = none segmented.
    dropped : dict
        Where to count.
    """
    cells = pd.DataFrame({"cell_id": np.array(names, dtype=object)})
    cells["cell_boundary"] = boundary
    cells["nucleus_boundary"] = nucleus
    cells["touches_border"] = None
    nowhere = np.asarray(~np.isfinite(_centroids(boundary)).all(axis=1))
    count(dropped, "cells", "without an outline", nowhere)
    return cells.iloc[np.flatnonzero(~nowhere)].reset_index(drop=True)


def group_by_fov(
    blocks: Iterable[pa.Table], cells: pd.DataFrame, scratch: Path, *, tile: float, dropped: Dropped
) -> Iterator[Piece]:
    """Sort molecules by field of view on disk, then yield them with their cells.

    A cell lies in the field of view that most of its molecules name (of several the first as
    text) or, where the source names none, in the tile of its centroid. Cells without molecules
    are left out and counted.

    Parameters
    ----------
    blocks : iterable of pyarrow.Table
        ``cell`` (position among `cells`), ``gene`` (text), ``x``, ``y``, perhaps ``z``, and
        ``fov`` (text) where the source names it.
    cells : pandas.DataFrame
        As :func:`outlined_cells` gives them.
    scratch : pathlib.Path
        Folder for what is put aside.
    tile : float
        Side of the tiles (:func:`gpattern_bench.curate.readers.assign.tiles`).
    dropped : dict
        What was left out, complete once `blocks` are through; goes with the first piece.

    Raises
    ------
    SourceError
        No molecule lies in a cell, or one names no field of view where others do.
    """
    n_molecules = np.zeros(len(cells), dtype=np.int64)
    votes: list[pa.Table] = []
    home: Any = None  # (cells,) field of view
    with Spill(scratch / "molecules.arrow") as spill, Spill(scratch / "moved.arrow") as moved:
        for block in blocks:
            cell = block["cell"].to_numpy()
            n_molecules += np.bincount(cell, minlength=len(cells))
            if "fov" in block.column_names:
                votes.append(_votes(block))
            else:
                if home is None:
                    home = _tile_of(cells, tile)
                block = block.append_column("fov", home.take(pa.array(cell)))
            spill.append(block)
        if not n_molecules.any():
            raise SourceError(
                f"no molecule lies in a cell that has an outline; left out: {dropped}. Check that "
                "molecules and outlines are of one region, in one unit, with the same cell ids."
            )
        count(dropped, "cells", "without molecules", n_molecules == 0)
        if votes:
            home = _fov_of(cells, votes)
            for _, rows in spill.read():
                moved.append(rows.append_column("fov", home.take(rows["cell"])))
        placed = np.flatnonzero(n_molecules)
        fovs = pd.Series(home.take(pa.array(placed)).to_pylist(), index=placed)
        members = fovs.groupby(fovs).groups
        rows = moved if votes else spill
        rows.close()
        for fov in rows.fovs:
            at = np.asarray(members[fov])
            yield partial(_piece, fov, rows, cells.iloc[at].assign(fov=fov), at, dropped)
            dropped = {}


def join_parts(parts: NDArray[np.object_], owner: NDArray[np.int64], n: int) -> NDArray[np.object_]:
    """One outline (n,) for each owner: its polygon, all its polygons as one, or None."""
    joined = np.full(n, None, dtype=object)
    order = np.argsort(owner, kind="stable")
    parts, owner = parts[order], owner[order]
    single = np.bincount(owner, minlength=n)[owner] == 1
    joined[owner[single]] = parts[single]
    if not single.all():
        several, index = np.unique(owner[~single], return_inverse=True)
        parts, of_part = shapely.get_parts(parts[~single], return_index=True)
        joined[several] = shapely.multipolygons(parts, indices=index[of_part])
    return joined


def _centroids(shapes: NDArray[np.object_]) -> NDArray[np.float64]:
    """(n, 2) centroids; NaN where there is no outline, an empty one, or one that is not finite."""
    with np.errstate(invalid="ignore"):
        centroid = shapely.centroid(shapes)
    return np.stack([shapely.get_x(centroid), shapely.get_y(centroid)], axis=1)


def _tile_of(cells: pd.DataFrame, tile: float) -> pa.DictionaryArray:
    names = tiles(_centroids(cells["cell_boundary"].to_numpy()), tile)
    return pa.array(names, pa.string()).dictionary_encode()


def _votes(block: pa.Table) -> pa.Table:
    """How many molecules of each cell name each field of view."""
    nameless = block["fov"].null_count
    if nameless:
        raise SourceError(f"{nameless} molecules name no field of view; name it for all or none")
    pairs = block.select(["cell", "fov"]).unify_dictionaries()
    counts = pairs.group_by(["cell", "fov"]).aggregate([([], "count_all")])
    return counts.set_column(1, "fov", counts["fov"].cast(pa.string()))


def _fov_of(cells: pd.DataFrame, votes: list[pa.Table]) -> pa.DictionaryArray:
    grouped = pa.concat_tables(votes).group_by(["cell", "fov"])
    table = grouped.aggregate([("count_all", "sum")])
    order = [("cell", "ascending"), ("count_all_sum", "descending"), ("fov", "ascending")]
    best = table.sort_by(order).to_pandas().drop_duplicates("cell").set_index("cell")["fov"]
    names = best.reindex(np.arange(len(cells))).fillna("")  # "": cells without molecules
    return pa.array(names.to_numpy(object), pa.string()).dictionary_encode()


def _piece(
    fov: str, spill: Spill, here: pd.DataFrame, members: NDArray[np.int64], dropped: Dropped
) -> Release:
    rows = spill.rows(fov)
    code = np.searchsorted(members, rows["cell"].to_numpy())
    columns: dict[str, Any] = {
        "fov": pd.Categorical.from_codes(np.zeros(len(rows), np.int8), pd.Index([fov])),
        "cell_id": pd.Categorical.from_codes(code, pd.Index(here["cell_id"])),
        "gene": rows["gene"].to_pandas(),
    }
    columns |= {axis: rows[axis].to_numpy() for axis in "xyz" if axis in rows.column_names}
    return Release(pd.DataFrame(columns), here, None, dropped)
