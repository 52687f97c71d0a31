"""Find leaks: fields of view or cells shared by two splits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from gpattern_bench.tables.parquet import codes_into
from gpattern_bench.tables.schema import SPLIT_NAMES

__all__ = ["Read", "copied_cells", "find_leaks"]

Read = Callable[[Collection[str]], Iterable[pa.Table]]
"""Read the molecules of some fields of view; each table holds whole cells."""

_MIN_MOLECULES = 5  # smaller cells agree by chance
_SAME_UM = 0.01  # rounding moves a copy by less


def copied_cells(cells: pd.DataFrame, read: Read) -> list[tuple[str, str]]:
    """Find pairs of cells with the same molecules, at any position and in any order.

    Compares the genes and, relative to the centroids, sorted x and sorted y per gene to 0.01 um.
    Skips cells with fewer than five molecules, which agree by chance.

    Parameters
    ----------
    cells : pandas.DataFrame
        Columns ``fov``, ``cell_id``, ``x``, ``y``: the centroids.
    read : callable
        Reads ``cell_id``, ``gene``, ``x``, ``y`` of molecules, only of cells in `cells`.
    """
    index = pd.Index(cells["cell_id"].to_numpy(object))
    centroids = cells[["x", "y"]].to_numpy(np.float64)
    sums = np.zeros((len(index), 4))  # per cell: gene weights, molecules, weighted x, weighted y
    for table in read(list(cells["fov"].unique())):
        cell, gene, xy = _decoded(table, index)
        xy -= centroids[cell]
        # A random weight per gene: equal counts and positions give equal sums, in any order.
        weight = (gene >> np.uint64(34)).astype(np.float64)  # 30 bits: exact sums
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
        cell, gene, xy = _decoded(table, index)
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


def _decoded(
    table: pa.Table, cells: pd.Index[str]
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.float64]]:
    """Return each molecule's cell (its row), gene (hash of the name) and xy."""
    names = pd.Index(table["gene"].unique().cast(pa.string()).to_pandas().to_numpy(object))
    hashed = np.asarray(pd.util.hash_array(names.to_numpy(object)), dtype=np.uint64)
    xy = np.stack([table[axis].to_numpy() for axis in ("x", "y")], axis=1).astype(np.float64)
    return codes_into(cells, table["cell_id"]), hashed[codes_into(names, table["gene"])], xy


def _candidates(sums: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Find pairs of cells with equal sums, up to rounding."""
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
        Reads ``fov``, ``cell_id``, ``gene``, ``x``, ``y`` of molecules.
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
    fov_of = cells.set_index("cell_id")["fov"]
    seen_fov, seen_cell = _fovs_and_cells(read(list(splits)))
    unknown_cells = sorted(set(seen_cell) - set(fov_of.index))
    if unknown_cells:
        problems.append(f"molecules of cells missing from the cells table: {_some(unknown_cells)}")
        return problems
    elsewhere = fov_of.reindex(seen_cell).to_numpy() != seen_fov
    if elsewhere.any():
        problems.append(
            "cells with molecules in another field of view: "
            f"{_some(sorted(set(seen_cell[elsewhere])))}"
        )
    split = fov_of.map(dict(splits))
    copies = [
        f"{one} ({split[one]}) and {other} ({split[other]})"
        for one, other in copied_cells(cells, read)
        if split[one] != split[other]
    ]
    if copies:
        problems.append(f"cells with the same molecules in different splits: {_some(copies)}")
    return problems


def _fovs_and_cells(pieces: Iterable[pa.Table]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the distinct pairs of field of view and cell among molecules, as two columns."""
    fovs, cells = [np.empty(0, object)], [np.empty(0, object)]
    for table in pieces:
        seen = table.select(["fov", "cell_id"]).group_by(["fov", "cell_id"]).aggregate([])
        for found, name in ((fovs, "fov"), (cells, "cell_id")):
            found.append(seen[name].cast(pa.string()).to_pandas().to_numpy(object))
    return np.concatenate(fovs), np.concatenate(cells)


def _some(values: Sequence[object], most: int = 5) -> str:
    """Join the first `most` values and count the rest."""
    shown = ", ".join(map(str, values[:most]))
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
