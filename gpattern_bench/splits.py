"""Train, validation and test: whole fields of view, alike in cells and patterns, without leaks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from gpattern_bench.errors import SourceError
from gpattern_bench.schema import SPLIT_NAMES

__all__ = ["SHARES", "find_leaks", "fingerprints", "split_fovs"]

SHARES = (0.8, 0.1, 0.1)
"""Shares of the cells in train, val and test (paper, appendix B.2)."""

_DRAWS = 4096


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
    counts = fovs.drop(columns="cells").to_numpy(dtype=np.float64)
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


def fingerprints(molecules: pa.Table, cells: pd.DataFrame) -> pd.Series:
    """One 64-bit number per cell, equal for cells with the same molecules wherever they lie.

    Genes and coordinates relative to the centroid (to 1/16 um) are mixed per molecule and summed,
    so the order of the rows does not matter.

    Parameters
    ----------
    molecules : pyarrow.Table
        Columns ``cell_id``, ``gene``, ``x``, ``y``.
    cells : pandas.DataFrame
        Columns ``cell_id``, ``x``, ``y``: the centroids.

    Returns
    -------
    pandas.Series
        uint64, indexed by cell_id.
    """
    frame = molecules.select(["cell_id", "gene", "x", "y"]).to_pandas()
    centroids = cells.set_index("cell_id")[["x", "y"]]
    cell, gene = pd.Categorical(frame["cell_id"]), pd.Categorical(frame["gene"])
    origin = centroids.reindex(cell.categories).to_numpy(np.float64)[cell.codes]
    grid = np.round((frame[["x", "y"]].to_numpy(np.float64) - origin) * 16).astype(np.int64)
    names = np.array([zlib.crc32(str(name).encode()) for name in gene.categories], dtype=np.uint64)
    mixed = names[gene.codes]
    for axis in (0, 1):
        mixed = _mix(mixed ^ grid[:, axis].astype(np.uint64))
    sums = np.zeros(len(cell.categories), dtype=np.uint64)
    np.add.at(sums, cell.codes, mixed)
    return pd.Series(sums, index=cell.categories.astype(str))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread 64 bits (the finaliser of splitmix64)."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


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
        problems.append(f"fields of view without a split: {some(missing)}")
    unknown = sorted(set(splits.values()) - set(SPLIT_NAMES))
    if unknown:
        problems.append(f"unknown splits: {some(unknown)}; allowed: {', '.join(SPLIT_NAMES)}")
    twice = cells.loc[cells["cell_id"].duplicated(), "cell_id"]
    if len(twice):
        problems.append(f"cell ids that occur more than once: {some(sorted(set(twice)))}")
        return problems  # what follows needs one centroid per cell
    home = cells.set_index("cell_id")["fov"]
    seen = molecules.select(["fov", "cell_id"]).group_by(["fov", "cell_id"]).aggregate([])
    seen_cells = seen["cell_id"].cast(pa.string()).to_pandas()
    astray = (
        home.reindex(seen_cells) != seen["fov"].cast(pa.string()).to_pandas().to_numpy()
    ).to_numpy()
    if astray.any():
        problems.append(
            f"cells with molecules in a field of view that is not theirs: "
            f"{some(sorted(set(seen_cells[astray])))}"
        )
        return problems
    clouds = fingerprints(molecules, cells)
    where = cells.assign(split=cells["fov"].map(dict(splits)), cloud=cells["cell_id"].map(clouds))
    spread = where.groupby("cloud")["split"].nunique()
    copied = where[where["cloud"].isin(spread.index[spread > 1])]
    if len(copied):
        problems.append(
            f"cells with identical molecules in different splits: {some(sorted(copied['cell_id']))}"
        )
    return problems


def some(values: Sequence[object], most: int = 5) -> str:
    """The first few values as text, and how many more there are."""
    shown = ", ".join(map(str, values[:most]))
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
