"""Do the molecules lie in the cells under which they are filed? Counted by cell, from the tables.

The limits stand on real exports (docs/data.md, *Molecules in their cells*): there, more than 99 %
of the molecules lie in their cells. Of ids that collide by chance, about one per number of cells is
right; an image or a frame that is off by half a cell leaves about half of the molecules inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.outlines import parse_wkb
from gpattern_bench.tables.manifest import Placement
from gpattern_bench.tables.parquet import read_table

__all__ = [
    "LEAST_SHARE",
    "TOLERANCE_UM",
    "USUAL_SHARE",
    "find_foreign_nuclei",
    "find_misplaced",
    "measure_cells",
    "measure_placement",
    "place",
    "placement_text",
    "placement_warnings",
]

TOLERANCE_UM = 1.0
"""How far (um) beyond its cell's outline a molecule still counts as inside.

Exports assign in pixels of 0.1 to 0.2 um or in another plane, and simplify outlines.
"""

LEAST_SHARE = 0.5
"""Curation refuses a release if a smaller share of its molecules lies in their cells."""

USUAL_SHARE = 0.9
"""Curation warns below this share."""

_FEW = 20  # molecules of a release; fewer cannot refuse it
_FEW_IN_FOV = 100  # of a field of view, which may be a corner of the slide
_FEW_NUCLEI = 4  # of a release; fewer cannot refuse it
_FEW_IN_CELL = 10  # of a cell to be named among the worst, unless all have fewer
_WORST = 3
_OVERLAP = 0.05  # of the smaller cell's area; neighbours share edges
_BLOCK = 100_000  # points at a time


def measure_cells(molecules: pa.Table, cells: pa.Table) -> pd.DataFrame:
    """Measure what the tables alone do not say of each cell; parse its outlines once.

    Parameters
    ----------
    molecules, cells : pyarrow.Table
        Of the same fields of view (:mod:`gpattern_bench.tables.schema`); um.

    Returns
    -------
    pandas.DataFrame
        (cells,) ``diameter``: um, of a disk of the cell's area; ``inside``: molecules in or within
        :data:`TOLERANCE_UM` of their own cell's outline; ``nucleus_inside``: 1 if the nucleus'
        centre lies there, 0 if not, NaN without a nucleus; ``overlaps``: whether the outline shares
        more than 5 % of the smaller one's area with another cell.
    """
    outlines, nuclei = (_outlines(cells, f"{name}_boundary") for name in ("cell", "nucleus"))
    return pd.DataFrame(
        {
            "diameter": 2 * np.sqrt(shapely.area(outlines) / np.pi),
            "inside": _count_inside(molecules, cells["cell_id"], outlines),
            "nucleus_inside": _nuclei_inside(outlines, nuclei),
            "overlaps": _overlaps(outlines),
        }
    )


def _count_inside(
    molecules: pa.Table, cells: pa.ChunkedArray, outlines: NDArray[Any]
) -> NDArray[np.int64]:
    shapely.prepare(outlines)
    counts = np.zeros(len(cells), dtype=np.int64)
    if not len(molecules):
        return counts
    ids = pa.chunked_array(molecules["cell_id"]).unify_dictionaries().combine_chunks()
    found = pc.index_in(ids.dictionary, value_set=cells.combine_chunks())
    cell = found.fill_null(-1).to_numpy(zero_copy_only=False)[ids.indices.to_numpy()]
    xy = np.stack([molecules[axis].to_numpy().astype(np.float64) for axis in "xy"], axis=1)
    known = np.flatnonzero((cell >= 0) & np.isfinite(xy).all(axis=1))
    for begin in range(0, len(known), _BLOCK):
        rows = known[begin : begin + _BLOCK]
        own = outlines[cell[rows]]
        inside = shapely.intersects_xy(own, *xy[rows].T)
        out = np.flatnonzero(~inside)
        inside[out] = shapely.dwithin(own[out], shapely.points(xy[rows[out]]), TOLERANCE_UM)
        counts += np.bincount(cell[rows[inside]], minlength=len(cells))
    return counts


def _nuclei_inside(outlines: NDArray[Any], nuclei: NDArray[Any]) -> NDArray[np.float64]:
    inside = shapely.dwithin(outlines, shapely.centroid(nuclei), TOLERANCE_UM)
    return np.where(shapely.is_missing(nuclei), np.nan, inside)


def _overlaps(outlines: NDArray[Any]) -> NDArray[np.bool_]:
    outlines = outlines.copy()
    outlines[~shapely.is_valid(outlines)] = None
    marked = np.zeros(len(outlines), dtype=np.bool_)
    one, other = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    one, other = one[one < other], other[one < other]
    # Most neighbours only touch; that is known three times as fast.
    inner = shapely.relate_pattern(outlines[one], outlines[other], "T********")
    one, other = one[inner], other[inner]
    area = shapely.area(outlines)
    shared = shapely.area(shapely.intersection(outlines[one], outlines[other]))
    overlap = shared > _OVERLAP * np.minimum(area[one], area[other])
    marked[one[overlap]] = marked[other[overlap]] = True
    return marked


def measure_placement(folder: Path, fovs: Iterable[str]) -> Placement:
    """Count the molecules in their cells, one field of view at a time."""
    frames = []
    for fov in sorted(fovs):
        molecules, cells = (
            read_table(folder / f"{name}.parquet", {fov}) for name in ("molecules", "cells")
        )
        frame = cells.select(["cell_id", "n_molecules"]).to_pandas()
        frames.append(frame.join(measure_cells(molecules, cells)))
    return place(pd.concat(frames, ignore_index=True))


def place(cells: pd.DataFrame) -> Placement:
    """Pool the counts of all cells: ``cell_id``, ``n_molecules``, ``inside``, ``overlaps``."""
    share = cells["inside"] / cells["n_molecules"]
    worst = cells.assign(share=share)[share < 1]
    if (enough := worst["n_molecules"] >= _FEW_IN_CELL).any():
        worst = worst[enough]
    order = ["share", "n_molecules", "cell_id"]
    worst = worst.sort_values(order, ascending=[True, False, True]).head(_WORST)
    return Placement(
        tolerance_um=TOLERANCE_UM,
        molecules=int(cells["n_molecules"].sum()),
        inside=int(cells["inside"].sum()),
        overlapping_cells=int(cells["overlaps"].sum()),
        worst={
            name: (int(inside), int(n))
            for name, inside, n in zip(
                *(worst[key] for key in ("cell_id", "inside", "n_molecules")), strict=True
            )
        },
    )


def find_misplaced(cells: pd.DataFrame) -> str | None:
    """Say what is wrong if too few molecules lie in their cells, in all or in a field of view.

    Parameters
    ----------
    cells : pandas.DataFrame
        As for :func:`place`, and ``fov``.
    """
    named = [("", cells, _FEW)]
    named += [(f" of field of view {fov}", part, _FEW_IN_FOV) for fov, part in cells.groupby("fov")]
    for where, part, few in named:
        placement = place(part)
        if placement.molecules >= few and placement.share < LEAST_SHARE:
            shares = _share(placement, where)
            return f"only {shares}, expected at least {LEAST_SHARE:.0%}{_worst(placement)}"
    return None


def find_foreign_nuclei(cells: pd.DataFrame) -> str | None:
    """Say what is wrong if too few nuclei lie in their cells (``nucleus_inside``)."""
    inside = cells["nucleus_inside"].dropna()
    if len(inside) < _FEW_NUCLEI or inside.mean() >= LEAST_SHARE:
        return None
    first = cells["cell_id"][inside.index[inside == 0][0]]
    return (
        f"only {int(inside.sum()):,} of {len(inside):,} nuclei lie in the cell of their id, "
        f"expected at least {LEAST_SHARE:.0%}; that of cell {first} does not"
    )


def placement_text(placement: Placement) -> str:
    """Say in a line how many molecules lie in their cells, and which cells are worst."""
    text = _share(placement) + _worst(placement)
    if placement.overlapping_cells:
        text += (
            f". {placement.overlapping_cells:,} cells overlap another by more than {_OVERLAP:.0%} "
            "of the smaller one's area"
        )
    return text


def placement_warnings(placement: Placement) -> list[str]:
    """List a warning, at most one, if fewer molecules than usual lie in their cells."""
    if placement.share >= USUAL_SHARE:
        return []
    text = (
        f"only {_share(placement)}, in sound exports {USUAL_SHARE:.0%} and more"
        f"{_worst(placement)}. Check that ids, outlines and coordinates are of one segmentation"
    )
    return [text]


def _share(placement: Placement, where: str = "") -> str:
    return (
        f"{placement.share:.1%} of the {placement.molecules:,} molecules{where} lie in their cells "
        f"(within {placement.tolerance_um:g} um)"
    )


def _worst(placement: Placement) -> str:
    cells = [f"{name} ({inside:,} of {n:,})" for name, (inside, n) in placement.worst.items()]
    return f"; fewest in the cells {', '.join(cells)}" if cells else ""


def _outlines(cells: pa.Table, column: str) -> NDArray[Any]:
    wkb = cells[column].to_numpy()
    return parse_wkb(np.asarray(wkb, dtype=object), on_invalid="ignore")
