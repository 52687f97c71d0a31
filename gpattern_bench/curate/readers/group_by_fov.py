"""Group a slide's molecules by field of view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from gpattern_bench.curate.release import Dropped, Piece, Release, keep_rows
from gpattern_bench.errors import SourceError

__all__ = [
    "APART",
    "centroids",
    "first_apart",
    "group_by_fov",
    "join_parts",
    "molecules_in_cells",
    "outlined_cells",
    "outlines_of_vertices",
]

APART = (
    "are in several places of the file, as in a table of two samples; curate one sample at a time, "
    "with the vertices of each cell together and in their order"
)
"""What is wrong, see :func:`first_apart`."""


def outlined_cells(
    names: Sequence[str],
    boundary: NDArray[np.object_],
    nucleus: NDArray[np.object_] | None,
    dropped: Dropped,
) -> pd.DataFrame:
    """Make a release's table of cells, without fields of view.

    Drops and counts cells whose outline has no centroid (missing, empty or not finite).

    Parameters
    ----------
    names : sequence of str
        (m,) unique.
    boundary, nucleus : numpy.ndarray
        (m,) shapely geometries or None; `nucleus` is None without segmented nuclei.
    dropped : dict
        Counts dropped cells.
    """
    cells = pd.DataFrame({"cell_id": np.array(names, dtype=object)})
    cells["cell_boundary"] = boundary
    cells["nucleus_boundary"] = nucleus
    cells["touches_border"] = None
    missing = np.asarray(~np.isfinite(centroids(boundary)).all(axis=1))
    kept = keep_rows({"without an outline": missing}, dropped.setdefault("cells", {}))
    return cells.iloc[np.flatnonzero(kept)].reset_index(drop=True)


def molecules_in_cells(
    block: pa.Table,
    cell: NDArray[np.int64],
    reasons: Mapping[str, NDArray[np.bool_]],
    columns: Mapping[str, str],
    dropped: Dropped,
) -> pa.Table:
    """Select and rename the columns of a block; add ``cell``; drop and count rows by reason."""
    keep = keep_rows(reasons, dropped.setdefault("molecules", {}))
    present = [name for name in columns if name in block.column_names]
    kept = block.select(present).rename_columns([columns[name] for name in present])
    return kept.append_column("cell", pa.array(cell.astype(np.int32))).filter(pa.array(keep))


def group_by_fov(
    blocks: Iterable[pa.Table],
    cells: pd.DataFrame,
    scratch: Path,
    *,
    tile: float,
    dropped: Dropped,
    labels: pd.DataFrame | None = None,
) -> Iterator[Piece]:
    """Sort molecules by field of view on disk, then yield them with their cells.

    A cell's field of view is the one that most of its molecules name (ties: the first as text) or,
    if the source names none, the tile of its centroid. Drops and counts cells without molecules.

    Parameters
    ----------
    blocks : iterable of pyarrow.Table
        In any order: ``cell`` (index among `cells`), ``gene`` (text), ``x``, ``y``, perhaps ``z``,
        and ``fov`` (text) if the source names it.
    cells : pandas.DataFrame
        From :func:`outlined_cells`.
    scratch : pathlib.Path
        Folder for temporary files.
    tile : float
        Side of the tiles (:func:`gpattern_bench.curate.readers.assign.tiles`).
    dropped : dict
        Counts of dropped rows, complete after the last block; returned with the first piece.
    labels : pandas.DataFrame, optional
        Of the release (:class:`gpattern_bench.curate.release.Release`); each goes with its cell,
        those of unknown cells with the first piece.

    Raises
    ------
    SourceError
        No molecule lies in a cell, or only some molecules name a field of view.
    """
    n_molecules = np.zeros(len(cells), dtype=np.int64)
    votes: list[pa.Table] = []
    home: Any = None  # (cells,) field of view
    with Spill(scratch / "molecules.arrow") as spill, Spill(scratch / "moved.arrow") as moved:
        for block in blocks:
            cell = block["cell"].to_numpy()
            n_molecules += np.bincount(cell, minlength=len(cells))
            if "fov" in block.column_names:
                votes.append(_count_votes(block))
            else:
                if home is None:
                    home = _tile_of(cells, tile)
                block = block.append_column("fov", home.take(pa.array(cell)))
            spill.append(block)
        if not n_molecules.any():
            told = "; ".join(
                f"{rows:,} {table} ({reason})"
                for table, reasons in dropped.items()
                for reason, rows in reasons.items()
                if rows
            )
            raise SourceError(
                "no molecule lies in a cell that has an outline; dropped: "
                f"{told or 'nothing, there is none'}. Check that molecules and outlines are of one "
                "region, in one unit, with the same cell ids"
            )
        keep_rows({"without molecules": n_molecules == 0}, dropped.setdefault("cells", {}))
        if votes:
            home = _fov_of(cells, votes)
            for _, rows in spill.read():
                moved.append(rows.append_column("fov", home.take(rows["cell"])))
        placed = np.flatnonzero(n_molecules)
        fovs = pd.Series(home.take(pa.array(placed)).to_pylist(), index=placed)
        members = fovs.groupby(fovs).groups
        rows = moved if votes else spill
        rows.close()
        place = None if labels is None else _fov_index(labels, cells, fovs, rows.fovs)
        for k, fov in enumerate(rows.fovs):
            at = np.asarray(members[fov])
            here = cells.iloc[at].assign(fov=fov)
            mine = None if labels is None else labels.iloc[np.flatnonzero(place == k)]
            yield partial(_piece, fov, rows, here, at, mine, dropped)
            dropped = {}


def join_parts(parts: NDArray[np.object_], owner: NDArray[np.int64], n: int) -> NDArray[np.object_]:
    """Join the polygons of each owner (n,): a Polygon, a MultiPolygon, or None."""
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


def outlines_of_vertices(
    xy: NDArray[np.float64], cell: NDArray[np.int64], part: NDArray[np.int64], n: int
) -> NDArray[np.object_]:
    """Outline each cell (n,) by its vertices: a Polygon, a MultiPolygon, or None.

    Consecutive vertices (v, 2) of one cell and one part form a polygon, closed or not; those with a
    coordinate that is not finite, and those with less than three vertices, are left out.
    """
    begin = np.flatnonzero(np.r_[True, (np.diff(cell) != 0) | (np.diff(part) != 0)][: len(cell)])
    size = np.diff(np.r_[begin, len(cell)])
    closed = (xy[begin] == xy[begin + size - 1]).all(axis=1)
    finite = np.logical_and.reduceat(np.isfinite(xy).all(axis=1), begin)
    usable = finite & (size - closed >= 3)  # fewer vertices have no area
    ring = np.repeat(np.cumsum(usable) - 1, size)
    vertex = np.repeat(usable, size)
    parts = shapely.polygons(shapely.linearrings(xy[vertex], indices=ring[vertex]))
    return join_parts(np.asarray(parts), cell[begin][usable], n)


def first_apart(cell: NDArray[np.integer]) -> int | None:
    """Find the first cell whose vertices (v,) are not all in one run; None: there is none.

    Outlines of two cells of one id would become one cell of two parts.
    """
    runs = pd.Series(cell[np.r_[True, np.diff(cell) != 0]] if len(cell) else cell)
    again = runs[runs.duplicated()]
    return None if again.empty else int(again.iloc[0])


def centroids(shapes: NDArray[np.object_]) -> NDArray[np.float64]:
    """Compute centroids (n, 2); NaN for outlines that are missing, empty or not finite."""
    with np.errstate(invalid="ignore"):
        centroid = shapely.centroid(shapes)
    centroid = np.where(shapely.is_empty(centroid), None, centroid)  # some GEOS raise for its x
    return np.stack([shapely.get_x(centroid), shapely.get_y(centroid)], axis=1)


def _tile_of(cells: pd.DataFrame, tile: float) -> pa.DictionaryArray:
    names = tiles(centroids(cells["cell_boundary"].to_numpy()), tile)
    return pa.array(names, pa.string()).dictionary_encode()


def _count_votes(block: pa.Table) -> pa.Table:
    """Count, for each cell, the molecules that name each field of view."""
    unnamed = block["fov"].null_count
    if unnamed:
        raise SourceError(f"{unnamed} molecules name no field of view; name it for all or none")
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


def _fov_index(
    labels: pd.DataFrame, cells: pd.DataFrame, fovs: pd.Series[str], names: Sequence[str]
) -> NDArray[np.int64]:
    """Find the field of view (n,) of each label's cell among `names`; 0 if the cell is unknown."""
    fov_of = pd.Series(fovs.to_numpy(object), cells["cell_id"].iloc[fovs.index])
    found = pd.Index(names).get_indexer(pd.Index(fov_of.reindex(labels["cell_id"])))
    return np.maximum(found, 0)


def _piece(
    fov: str,
    spill: Spill,
    here: pd.DataFrame,
    members: NDArray[np.int64],
    labels: pd.DataFrame | None,
    dropped: Dropped,
) -> Release:
    rows = spill.rows(fov)
    code = np.searchsorted(members, rows["cell"].to_numpy())
    columns: dict[str, Any] = {
        "fov": pd.Categorical.from_codes(np.zeros(len(rows), np.int8), pd.Index([fov])),
        "cell_id": pd.Categorical.from_codes(code, pd.Index(here["cell_id"])),
        "gene": rows["gene"].to_pandas(),
    }
    columns |= {axis: rows[axis].to_numpy() for axis in "xyz" if axis in rows.column_names}
    return Release(pd.DataFrame(columns), here, labels, dropped)
