"""Leaks: fields of view or cells that two splits share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from gpattern_bench.tables.parquet import codes_into
from gpattern_bench.tables.schema import SPLIT_NAMES

__all__ = ["Read", "copied_cells", "find_leaks"]

Read = Callable[[Collection[str]], Iterable[pa.Table]]
"""Reads the molecules of some fields of view, piece by piece; a piece does not cut a cell."""

_FEW = 5  # molecules; cells of fewer can agree by chance
_SAME_UM = 0.01  # float32 and the grid of centroids move a copy by less


def copied_cells(cells: pd.DataFrame, read: Read) -> list[tuple[str, str]]:
    """Find pairs of cells with the same molecules, wherever they lie and in any order.

    The same means: the same genes, and relative to the centroids the same sorted x and the same
    sorted y per gene, to 0.01 um. Cells of fewer than five molecules are passed over: they can
    agree by chance.

    Parameters
    ----------
    cells : pandas.DataFrame
        Columns ``fov``, ``cell_id``, ``x``, ``y``: the centroids.
    read : callable
        Gives the molecules; columns ``cell_id``, ``gene``, ``x``, ``y``; every cell is in `cells`.
    """
    index = pd.Index(cells["cell_id"].to_numpy(object))
    centroids = cells[["x", "y"]].to_numpy(np.float64)
    kind = np.zeros((len(index), 4))  # counts by gene, molecules, and where they lie, in one number
    for table in read(list(cells["fov"].unique())):
        cell, gene, xy = _columns(table, index)
        xy -= centroids[cell]
        # Sums of a random number per gene: whatever the order, alike for equal counts and places.
        weight = (gene >> np.uint64(34)).astype(np.float64)  # 30 bits: sums are exact
        kind[:, 0] += np.bincount(cell, weight, len(index))
        kind[:, 1] += np.bincount(cell, minlength=len(index))
        for axis in (0, 1):
            place = xy[:, axis] * (1 + weight / (1 << 30))
            kind[:, 2 + axis] += np.bincount(cell, place, len(index))
    candidates = _candidates(kind)
    if not candidates:
        return []
    alike = np.unique(candidates)
    clouds: dict[int, tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.float64]]] = {}
    for table in read(list(cells["fov"].iloc[alike].unique())):
        cell, gene, xy = _columns(table, index)
        xy -= centroids[cell]
        for c in np.intersect1d(alike, cell):
            rows = cell == c
            x, y = (np.lexsort((xy[rows, axis], gene[rows])) for axis in (0, 1))
            clouds[c] = np.sort(gene[rows]), xy[rows, 0][x], xy[rows, 1][y]
    return [
        (str(index[a]), str(index[b]))
        for a, b in candidates
        if np.array_equal(clouds[a][0], clouds[b][0])
        and all(np.allclose(clouds[a][k], clouds[b][k], rtol=0, atol=_SAME_UM) for k in (1, 2))
    ]


def _columns(
    table: pa.Table, cells: pd.Index[str]
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.float64]]:
    """Position of the cell, hash of the gene's name, and place of each molecule."""
    names = pd.Index(table["gene"].unique().cast(pa.string()).to_pandas().to_numpy(object))
    hashed = np.asarray(pd.util.hash_array(names.to_numpy(object)), dtype=np.uint64)
    xy = np.stack([table[axis].to_numpy() for axis in ("x", "y")], axis=1).astype(np.float64)
    return codes_into(cells, table["cell_id"]), hashed[codes_into(names, table["gene"])], xy


def _candidates(kind: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of cells with equal counts by gene whose molecules lie alike, as far as sums tell."""
    order = np.lexsort((kind[:, 2], kind[:, 1], kind[:, 0]))
    order = order[kind[order, 1] >= _FEW]
    found = []
    for at, a in enumerate(order):
        for b in order[at + 1 :]:
            near = 2 * _SAME_UM * kind[a, 1]  # every molecule may differ, and weights reach 2
            if (kind[a, :2] != kind[b, :2]).any() or kind[b, 2] - kind[a, 2] > near:
                break
            if abs(kind[b, 3] - kind[a, 3]) <= near:
                found.append((min(int(a), int(b)), max(int(a), int(b))))
    return sorted(found)


def find_leaks(splits: Mapping[str, str], cells: pd.DataFrame, read: Read) -> list[str]:
    """Ways in which one split could know another: one line each, none if all is well.

    Parameters
    ----------
    splits : mapping of str to str
        FOV -> split.
    cells : pandas.DataFrame
        Columns ``fov``, ``cell_id``, ``x``, ``y``: one row per cell.
    read : callable
        Gives the molecules; columns ``fov``, ``cell_id``, ``gene``, ``x``, ``y``.
    """
    problems = []
    missing = sorted(set(cells["fov"]) - set(splits))
    if missing:
        problems.append(f"fields of view without a split: {_some(missing)}")
    unknown = sorted(set(splits.values()) - set(SPLIT_NAMES))
    if unknown:
        problems.append(f"unknown splits: {_some(unknown)}; allowed: {', '.join(SPLIT_NAMES)}")
    twice = cells.loc[cells["cell_id"].duplicated(), "cell_id"]
    if len(twice):
        problems.append(f"cell ids that occur more than once: {_some(sorted(set(twice)))}")
        return problems  # what follows needs one centroid per cell
    home = cells.set_index("cell_id")["fov"]
    seen_fov, seen_cell = _homes(read(list(splits)))
    stray = sorted(set(seen_cell) - set(home.index))
    if stray:
        problems.append(f"molecules of cells that the table of cells lacks: {_some(stray)}")
        return problems
    astray = home.reindex(seen_cell).to_numpy() != seen_fov
    if astray.any():
        problems.append(
            "cells with molecules in a field of view that is not theirs: "
            f"{_some(sorted(set(seen_cell[astray])))}"
        )
    split = home.map(dict(splits))
    copies = [
        f"{one} ({split[one]}) and {other} ({split[other]})"
        for one, other in copied_cells(cells, read)
        if split[one] != split[other]
    ]
    if copies:
        problems.append(f"cells with the same molecules in different splits: {_some(copies)}")
    return problems


def _homes(pieces: Iterable[pa.Table]) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Field of view and cell of each combination that molecules have."""
    fovs, cells = [np.empty(0, object)], [np.empty(0, object)]
    for table in pieces:
        seen = table.select(["fov", "cell_id"]).group_by(["fov", "cell_id"]).aggregate([])
        for found, name in ((fovs, "fov"), (cells, "cell_id")):
            found.append(seen[name].cast(pa.string()).to_pandas().to_numpy(object))
    return np.concatenate(fovs), np.concatenate(cells)


def _some(values: Sequence[object], most: int = 5) -> str:
    """The first few values as text, and how many more there are."""
    shown = ", ".join(map(str, values[:most]))
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
