"""Shuffled cells: how often a model calls genes that have no place of their own.

In a shuffled cell every molecule keeps its gene, but has the place of another molecule of the cell,
drawn at random. So each pair has as many molecules as before, and each cell the same places; what
is gone is the tie between genes and places. Calls there are what the model makes of the cell alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan, sqrt
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import ndtri

from gpattern_bench.data.cells import Cell, Cells, CellTables
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.evaluate.calls import wilson_interval

__all__ = [
    "CELLS",
    "MOLECULES",
    "bin_of",
    "compare_shuffled",
    "draw_fovs",
    "shuffled_cells",
    "shuffled_warnings",
]

MOLECULES = (1, 5, 7, 10, 15, 25, 50)
"""First number of molecules of each bin of pairs; the last has no end."""
_PRIOR = 20.0  # pairs of the overall share that a bin's share is drawn towards
CELLS = 200
"""Cells that are shuffled, at most."""
_FOVS = 20  # fields of view that they are drawn from, at most: tables are read by these


def draw_fovs(dataset: Dataset, seed: int) -> list[str]:
    """Draw the fields of view whose cells may be shuffled."""
    fovs = sorted(dataset.fovs())
    drawn = np.random.Generator(np.random.Philox(seed)).permutation(len(fovs))[:_FOVS]
    return sorted(fovs[k] for k in drawn)


def shuffled_cells(
    dataset: Dataset, fovs: Sequence[str], patterns: tuple[str, ...], seed: int
) -> Cells:
    """Draw cells at random, to be shuffled when their turn comes.

    Parameters
    ----------
    dataset : Dataset
    fovs : sequence of str
        From :func:`draw_fovs`.
    patterns : tuple of str
        Of the model.
    seed : int
        Of the draw and of the shuffling; a cell's own does not depend on the other cells.
    """
    tables = CellTables(dataset.folder, fovs, simulated=dataset.manifest.is_simulated)
    cells = Cells([tables], genes=dataset.genes, patterns=patterns, labels=False)

    def shuffle(cell: Cell) -> Cell:
        key = np.array([seed, crc32(cell.cell_id.encode())], np.uint64)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(len(cell.xy))
        return cell.rearranged(order)

    return cells.sampled(CELLS, seed).mapped(shuffle)


def compare_shuffled(
    shuffled: pa.Table, pieces: Iterable[pa.Table], patterns: Sequence[str]
) -> dict[str, Any]:
    """Compare the calls in shuffled cells with those in the same cells as they are.

    Parameters
    ----------
    shuffled : pyarrow.Table
        Pairs of shuffled cells, from :meth:`.calls.Rule.apply`.
    pieces : iterable of pyarrow.Table
        The same columns of the slide: at least all pairs of these cells.
    patterns : sequence of str

    Returns
    -------
    dict
        ``cells``; ``pairs``, those of enough molecules to be called; and by pattern
        (``of_pattern``) the ``share`` of these that are called in the shuffled cells, with a 95 %
        interval (``low``, ``high``); the share in the cells as they are (``observed``), and by how
        much it is larger (``excess``, ``excess_low``, ``excess_high``); and ``by_molecules``, the
        shares in shuffled cells by :data:`MOLECULES`, those of few pairs drawn towards ``share``.
        NaN without pairs.
    """
    names = shuffled["cell_id"].unique()
    real = pa.concat_tables(
        piece.filter(pc.is_in(piece["cell_id"], value_set=names)) for piece in pieces
    )
    of_pattern = {}
    pairs = 0
    for pattern in patterns:
        chance, observed = _calls(shuffled, pattern), _calls(real, pattern)
        pairs = max(pairs, int(chance["size"].sum()))
        of = _compared(chance, observed)
        of_pattern[pattern] = of | {"by_molecules": _by_molecules(shuffled, pattern, of["share"])}
    return {"cells": len(names), "pairs": pairs, "of_pattern": of_pattern}


def shuffled_warnings(found: Mapping[str, Any]) -> list[str]:
    """Say of which patterns calls are as frequent as by chance."""
    return [
        f"{pattern} is called for {of['observed']:.1%} of the pairs of {found['cells']:,} cells, "
        f"and for {of['share']:.1%} if the genes in these cells are shuffled: taken together, "
        "these calls cannot be told from chance"
        for pattern, of in found["of_pattern"].items()
        if of["excess_low"] <= 0
    ]


def _calls(pairs: pa.Table, pattern: str) -> pd.DataFrame:
    """Count by cell the pairs that may be called, and the calls."""
    known = pairs.filter(pairs[pattern].is_valid())
    frame = pd.DataFrame(
        {"cell": known["cell_id"].to_numpy(), "called": known[pattern].to_numpy().astype(float)}
    )
    return frame.groupby("cell")["called"].agg(["sum", "size"])


def bin_of(molecules: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """Give the bin (n,) of :data:`MOLECULES` of numbers of molecules (n,)."""
    return np.searchsorted(MOLECULES, molecules, side="right") - 1


def _by_molecules(pairs: pa.Table, pattern: str, share: float) -> list[float]:
    known = pairs.filter(pairs[pattern].is_valid())
    at = bin_of(known["n_molecules"].to_numpy())
    n = np.bincount(at, minlength=len(MOLECULES))
    called = np.bincount(at, known[pattern].to_numpy().astype(float), minlength=len(MOLECULES))
    found: list[float] = ((called + _PRIOR * share) / (n + _PRIOR)).tolist()
    return found


def _compared(chance: pd.DataFrame, observed: pd.DataFrame) -> dict[str, float]:
    """Give the shares of calls, with intervals over cells.

    Pairs of a cell are called alike. So the interval of the share is Wilson's, for as many pairs as
    would tell as much if they were independent (the design effect of cells as clusters); that of
    the excess, paired by cell, is of the linearised ratio.
    """
    sizes = chance["size"].to_numpy(np.float64)
    n, cells = float(sizes.sum()), len(sizes)
    if not n:
        names = ("share", "low", "high", "observed", "excess", "excess_low", "excess_high")
        return dict.fromkeys(names, nan)
    called = chance["sum"].to_numpy(np.float64)
    more = observed["sum"].reindex(chance.index).to_numpy(np.float64) - called
    share, excess = float(called.sum() / n), float(more.sum() / n)
    correction = cells / max(cells - 1, 1)
    binomial = n * share * (1 - share)
    spread = correction * float(((called - share * sizes) ** 2).sum())
    worth = n / max(spread / binomial, 1.0) if binomial > 0 else n
    low, high = wilson_interval(share, worth)
    wide = float(ndtri(0.975)) * sqrt(correction * float(((more - excess * sizes) ** 2).sum())) / n
    return {
        "share": share,
        "low": float(low),
        "high": float(high),
        "observed": share + excess,
        "excess": excess,
        "excess_low": excess - wide,
        "excess_high": excess + wide,
    }
