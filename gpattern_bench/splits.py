"""Train, validation and test: whole fields of view, alike in cells and patterns, without leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from gpattern_bench.errors import SourceError
from gpattern_bench.schema import SPLIT_NAMES

__all__ = ["SHARES", "copied_cells", "find_leaks", "split_fovs"]

SHARES = (0.8, 0.1, 0.1)
"""Shares of the cells in train, val and test (paper, appendix B.2)."""

_DRAWS = 4096
_FEW = 5  # molecules; cells of fewer can agree by chance
_SAME_UM = 0.01  # float32 and the grid of centroids move a copy by less


def split_fovs(fovs: pd.DataFrame, seed: int) -> dict[str, str]:
    """Choose a split for every field of view.

    Of 4096 seeded random partitions of whole FOVs, each cut at 80 and 90 % of the cells, the one
    is taken whose splits are most alike: in their share of the cells, and in the share of their
    pairs that has each pattern (paper, appendix B.2 and figure 6: stratified, 80:10:10 by FOV).

    Parameters
    ----------
    fovs : pandas.DataFrame
        One row per FOV, indexed by its name: column ``cells`` = cells in it, ``pairs`` = labelled
        pairs, and one column per pattern = pairs that have it.
    seed : int
        The same seed gives the same split.

    Returns
    -------
    dict of str to str
        FOV -> ``train``, ``val`` or ``test``; each of the three has at least one FOV.

    Raises
    ------
    SourceError
        With fewer than three FOVs.
    """
    names = sorted(str(name) for name in fovs.index)
    if len(names) < len(SPLIT_NAMES):
        raise SourceError(
            f"cannot split by field of view: {len(SPLIT_NAMES)} or more are needed (train, val, "
            f"test), the release has {len(names)} ({', '.join(names)}). Put every cell into the "
            "test split instead (split: test)."
        )
    fovs = fovs.loc[names]
    cells = fovs["cells"].to_numpy(dtype=np.float64)
    patterns = [name for name in fovs.columns if name not in ("cells", "pairs")]
    counts = fovs[["pairs", *patterns]].to_numpy(dtype=np.float64)
    rng = np.random.Generator(np.random.Philox(seed))
    # Ranks of uniforms are permutations on every machine; Generator.permutation may change.
    orders = np.argsort(rng.random((_DRAWS, len(names))), axis=1, kind="stable")
    codes = _cut(cells[orders])  # (draws, fovs) in drawn order
    costs = _cost(codes, cells[orders], counts[orders])
    best = int(np.argmin(costs))
    return {names[f]: SPLIT_NAMES[c] for f, c in zip(orders[best], codes[best], strict=True)}


def _cut(cells: NDArray[np.float64]) -> NDArray[np.int64]:
    """Codes 0, 1, 2 of the FOVs in drawn order: test is filled first, then val, then train."""
    middle = np.cumsum(cells, axis=1) - cells / 2
    share = middle / cells.sum(axis=1, keepdims=True)
    codes = np.where(share < SHARES[2], 2, np.where(share < SHARES[2] + SHARES[1], 1, 0))
    codes[:, 0], codes[:, -1] = 2, 0
    codes[~(codes == 1).any(axis=1), 1] = 1
    return codes


def _cost(
    codes: NDArray[np.int64], cells: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum over splits of the squared relative deviations in cells and in pattern shares."""
    pairs, patterns = counts[..., 0], counts[..., 1:]
    overall = patterns.sum(axis=1) / np.maximum(pairs.sum(axis=1), 1)[:, None]
    cost = np.zeros(len(codes))
    for code, share in enumerate(SHARES):
        inside = codes == code
        cost += ((cells * inside).sum(axis=1) / cells.sum(axis=1) / share - 1) ** 2
        held = np.maximum((pairs * inside).sum(axis=1), 1)[:, None]
        shares = (patterns * inside[..., None]).sum(axis=1) / held
        cost += ((shares / np.maximum(overall, 1e-9) - 1) ** 2 * (overall > 0)).sum(axis=1)
    return cost


def copied_cells(molecules: pa.Table, cells: pd.DataFrame) -> list[tuple[str, str]]:
    """Find pairs of cells with the same molecules, wherever they lie and in any order.

    The same means: the same genes, and relative to the centroids the same sorted x and the same
    sorted y per gene, to 0.01 um. Cells of fewer than five molecules are passed over: they can
    agree by chance.

    Parameters
    ----------
    molecules : pyarrow.Table
        Columns ``cell_id``, ``gene``, ``x``, ``y``; every cell is in `cells`.
    cells : pandas.DataFrame
        Columns ``cell_id``, ``x``, ``y``: the centroids.
    """
    frame = molecules.select(["cell_id", "gene", "x", "y"]).to_pandas()
    cell, gene = pd.Categorical(frame["cell_id"]), pd.Categorical(frame["gene"])
    centroids = cells.set_index("cell_id")[["x", "y"]].reindex(cell.categories)
    xy = frame[["x", "y"]].to_numpy(np.float64) - centroids.to_numpy(np.float64)[cell.codes]
    # Random numbers per gene, summed over the molecules: equal for equal counts of each gene.
    rng = np.random.Generator(np.random.Philox(0))
    sums = np.bincount(cell.codes, rng.integers(1 << 30, size=len(gene.categories))[gene.codes])
    count = np.bincount(cell.codes)
    bounds = np.append(0, np.cumsum(count))
    order = [np.lexsort((xy[:, axis], gene.codes, cell.codes)) for axis in (0, 1)]
    ranked = [xy[order[axis], axis] for axis in (0, 1)]  # by cell, gene and one coordinate
    kinds = [tuple(kind) for kind in np.stack([sums, count], axis=1).tolist()]
    alike: dict[tuple[float, ...], list[int]] = {}
    pairs = []
    for c, kind in enumerate(kinds):
        if count[c] < _FEW:
            continue
        rows = slice(bounds[c], bounds[c + 1])
        for other in alike.setdefault(kind, []):
            others = slice(bounds[other], bounds[other + 1])
            if all(np.allclose(r[rows], r[others], rtol=0, atol=_SAME_UM) for r in ranked):
                pairs.append((str(cell.categories[other]), str(cell.categories[c])))
        alike[kind].append(c)
    return pairs


def find_leaks(splits: Mapping[str, str], cells: pd.DataFrame, molecules: pa.Table) -> list[str]:
    """Ways in which one split could know another: one line each, none if all is well.

    Parameters
    ----------
    splits : mapping of str to str
        FOV -> split.
    cells : pandas.DataFrame
        Columns ``fov``, ``cell_id``, ``x``, ``y``: one row per cell.
    molecules : pyarrow.Table
        Columns ``fov``, ``cell_id``, ``gene``, ``x``, ``y``.
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
    seen = molecules.select(["fov", "cell_id"]).group_by(["fov", "cell_id"]).aggregate([])
    seen_fov, seen_cell = (
        seen[name].cast(pa.string()).to_pandas().to_numpy() for name in ("fov", "cell_id")
    )
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
        for one, other in copied_cells(molecules, cells)
        if split[one] != split[other]
    ]
    if copies:
        problems.append(f"cells with the same molecules in different splits: {_some(copies)}")
    return problems


def _some(values: Sequence[object], most: int = 5) -> str:
    """The first few values as text, and how many more there are."""
    shown = ", ".join(map(str, values[:most]))
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
