"""Find leaks: fields of view or cells shared by two splits."""

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
"""Read the molecules of some fields of view in tables that hold whole cells."""

_MIN_MOLECULES = 5  # cells with fewer agree by chance
_SAME_UM = 0.01  # float32 and rounded centroids move a copy by less


def copied_cells(cells: pd.DataFrame, read: Read) -> list[tuple[str, str]]:
    """Find pairs of cells with the same molecules, at any position and in any order.

    Two cells are the same if their genes are and, relative to the centroids, sorted x and sorted y
    per gene agree to 0.01 um. Skips cells of fewer than five molecules, which agree by chance.

    Parameters
    ----------
    cells : pandas.DataFrame
        Columns ``fov``, ``cell_id``, ``x``, ``y``: the centroids.
    read : callable
        Reads molecules, columns ``cell_id``, ``gene``, ``x``, ``y``, of cells in `cells` only.
    """
    index = pd.Index(cells["cell_id"].to_numpy(object))
    centroids = cells[["x", "y"]].to_numpy(np.float64)
    sums = np.zeros((len(index), 4))  # per cell: gene weights, molecules, weighted x, weighted y
    for table in read(list(cells["fov"].unique())):
        cell, gene, xy = _columns(table, index)
        xy -= centroids[cell]
        # A random weight per gene: equal counts and positions give equal sums, in any order.
        weight = (gene >> np.uint64(34)).astype(np.float64)  # 30 bits: sums are exact
        sums[:, 0] += np.bincount(cell, weight, len(index))
        sums[:, 1] += np.bincount(cell, minlength=len(index))
        for axis in (0, 1):
            weighted = xy[:, axis] * (1 + weight / (1 << 30))
            sums[:, 2 + axis] += np.bincount(cell, weighted, len(index))
    candidates = _candidates(sums)
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
    """Return the row of the cell, hash of the gene's name and xy of each molecule."""
    names = pd.Index(table["gene"].unique().cast(pa.string()).to_pandas().to_numpy(object))
    hashed = np.asarray(pd.util.hash_array(names.to_numpy(object)), dtype=np.uint64)
    xy = np.stack([table[axis].to_numpy() for axis in ("x", "y")], axis=1).astype(np.float64)
    return codes_into(cells, table["cell_id"]), hashed[codes_into(names, table["gene"])], xy


def _candidates(sums: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return pairs of cells whose sums allow the same molecules."""
    order = np.lexsort((sums[:, 2], sums[:, 1], sums[:, 0]))
    order = order[sums[order, 1] >= _MIN_MOLECULES]
    found = []
    for at, a in enumerate(order):
        for b in order[at + 1 :]:
            near = 2 * _SAME_UM * sums[a, 1]  # every molecule may differ, and weights reach 2
            if (sums[a, :2] != sums[b, :2]).any() or sums[b, 2] - sums[a, 2] > near:
                break
            if abs(sums[b, 3] - sums[a, 3]) <= near:
                found.append((min(int(a), int(b)), max(int(a), int(b))))
    return sorted(found)


def find_leaks(splits: Mapping[str, str], cells: pd.DataFrame, read: Read) -> list[str]:
    """List every leak between splits, one line each.

    Parameters
    ----------
    splits : mapping of str to str
        FOV -> split.
    cells : pandas.DataFrame
        Columns ``fov``, ``cell_id``, ``x``, ``y``: one row per cell.
    read : callable
        Reads molecules, columns ``fov``, ``cell_id``, ``gene``, ``x``, ``y``.
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
        return problems  # the rest needs one centroid per cell
    home = cells.set_index("cell_id")["fov"]
    seen_fov, seen_cell = _homes(read(list(splits)))
    stray = sorted(set(seen_cell) - set(home.index))
    if stray:
        problems.append(f"molecules of cells missing from the cells table: {_some(stray)}")
        return problems
    astray = home.reindex(seen_cell).to_numpy() != seen_fov
    if astray.any():
        problems.append(
            "cells with molecules in another field of view: "
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
    """Return the distinct (field of view, cell) of the molecules, as two columns."""
    fovs, cells = [np.empty(0, object)], [np.empty(0, object)]
    for table in pieces:
        seen = table.select(["fov", "cell_id"]).group_by(["fov", "cell_id"]).aggregate([])
        for found, name in ((fovs, "fov"), (cells, "cell_id")):
            found.append(seen[name].cast(pa.string()).to_pandas().to_numpy(object))
    return np.concatenate(fovs), np.concatenate(cells)


def _some(values: Sequence[object], most: int = 5) -> str:
    """Join the first `most` values, and count the rest."""
    shown = ", ".join(map(str, values[:most]))
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
