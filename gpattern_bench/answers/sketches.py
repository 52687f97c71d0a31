"""Sketches: a gene's molecules in one cell, as numbers of an SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from gpattern_bench.data.cells import Cell, Cells, CellTables
from gpattern_bench.data.dataset import Dataset

__all__ = ["SIDE", "Sketch", "draw_cell", "read_drawn"]

SIDE = 100.0
"""Length of the longer side of a cell in its sketch; all other lengths are in this unit."""
_MARGIN = 4.0
_BELOW = 3.0  # more of it below, for the scale bar
_OTHERS = 400  # molecules of other genes that are drawn, at most
_MOLECULES = 400
_SMOOTH = 0.25  # largest distance of a drawn outline from the real one
_BAR = 0.25  # of the longer side, about


@dataclass(frozen=True)
class Sketch:
    """A gene's molecules in one cell, y downwards as in the tables.

    Attributes
    ----------
    width, height : float
    boundary, nucleus, others, molecules : str
        Paths of an SVG: outlines, and a dot per molecule of other genes and of the gene. Without a
        nucleus, its path is empty. Of many molecules some are drawn, evenly chosen.
    bar : float
        Length of the scale bar.
    bar_um : float
        The same in micrometres: 1, 2 or 5 times a power of ten.
    """

    width: float
    height: float
    boundary: str
    nucleus: str
    others: str
    molecules: str
    bar: float
    bar_um: float


def read_drawn(
    dataset: Dataset, patterns: tuple[str, ...], fov_of: Mapping[str, str]
) -> Iterator[Cell]:
    """Read some cells; `fov_of` has the field of view of each, and no other is read."""
    tables = CellTables(dataset.folder, sorted({*fov_of.values()}), keep=frozenset(fov_of))
    yield from Cells([tables], genes=dataset.genes, patterns=patterns, labels=False)


def draw_cell(cell: Cell, code: int) -> Sketch:
    """Draw a cell and the molecules of the gene of that code."""
    left, low, right, high = cell.boundary.bounds
    size = max(right - left, high - low)
    scale = SIDE / size
    origin = np.array([left, low]) - _MARGIN / scale
    own = cell.gene == code
    bar_um = _round_length(_BAR * size)
    return Sketch(
        width=round((right - left) * scale + 2 * _MARGIN, 1),
        height=round((high - low) * scale + 2 * _MARGIN + _BELOW, 1),
        boundary=_outline(cell.boundary, origin, scale),
        nucleus="" if cell.nucleus is None else _outline(cell.nucleus, origin, scale),
        others=_dots(cell.xy[~own], _OTHERS, origin, scale),
        molecules=_dots(cell.xy[own], _MOLECULES, origin, scale),
        bar=round(bar_um * scale, 1),
        bar_um=bar_um,
    )


def _round_length(rough: float) -> float:
    power = 10.0 ** np.floor(np.log10(rough))
    return float(max(n * power for n in (1, 2, 5) if n * power <= rough))


def _placed(
    xy: NDArray[np.float64], origin: NDArray[np.float64], scale: float
) -> Sequence[tuple[float, float]]:
    at = np.round((xy - origin) * scale, 1) + 0.0
    return [(float(x), float(y)) for x, y in at]


def _dots(xy: NDArray[np.float64], most: int, origin: NDArray[np.float64], scale: float) -> str:
    some = np.unique(np.linspace(0, len(xy) - 1, min(len(xy), most)).astype(np.intp))
    return "".join(f"M{x:g},{y:g}h0" for x, y in _placed(xy[some], origin, scale))


def _outline(shape: BaseGeometry, origin: NDArray[np.float64], scale: float) -> str:
    parts = []
    for part in shapely.get_parts(shapely.simplify(shape, _SMOOTH / scale)):
        ring = _placed(shapely.get_coordinates(part.exterior), origin, scale)
        parts.append("M" + "L".join(f"{x:g},{y:g}" for x, y in ring[:-1]) + "Z")
    return "".join(parts)
