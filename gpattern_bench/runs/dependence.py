"""What a method's scores depend on: measured on a few cells, not declared."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.methods.base import Method
from gpattern_bench.methods.predict import predict_cells

__all__ = ["INPUTS", "Dependence", "measure_dependence"]

_CELLS = 12
_SEED = 0  # of the molecules' new places
_BEYOND = 10.0  # times what two scorings of the same cells differ by

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dependence:
    """What changes a method's scores.

    Attributes
    ----------
    inputs : tuple of str
        Those of :data:`INPUTS` without which, or with others in their place, a score is another.
    repeats : bool
        The same cells got the same scores twice.
    """

    inputs: tuple[str, ...]
    repeats: bool


def _scattered(cell: Cell) -> Cell:
    """Give the cell's molecules each other's places."""
    order = np.random.Generator(np.random.Philox(_SEED)).permutation(len(cell.gene))
    return cell.rearranged(order)


INPUTS: dict[str, Callable[[Cell], Cell]] = {
    "coordinates": _scattered,
    "cell outline": lambda cell: replace(cell, boundary=shapely.box(*cell.boundary.bounds)),
    "nucleus outline": lambda cell: replace(cell, nucleus=None),
}
"""Inputs that can be changed in a cell, and how; gene names and counts cannot, for they make the
pairs."""


def measure_dependence(method: Method, cells: Cells) -> Dependence:
    """Score the first cells as they are, twice, and with each input changed.

    An input that these cells lack (a nucleus) is not found. A method that cannot score the changed
    cells depends on what was changed.

    Parameters
    ----------
    method : Method
        Fitted, if it learns.
    cells : Cells
        Some of those that it is to score.
    """
    some = cells.first(_CELLS)
    before = _scores(method, some)
    noise = _apart(before, _scores(method, some))
    used = []
    for name, change in INPUTS.items():
        try:
            if _apart(before, _scores(method, some.mapped(change))) > _BEYOND * noise:
                used.append(name)
        except Exception as error:  # noqa: BLE001 - a method of anyone's, in its own words
            _log.debug("%s without its %s: %r", method.about.name, name, error)
            used.append(name)
    return Dependence(tuple(used), repeats=noise == 0)


def _scores(method: Method, cells: Cells) -> NDArray[np.float32]:
    """Scores of the cells, in an order that does not depend on the method's."""
    found = predict_cells(method, cells, bar=False).sort_values(["cell_id", "gene"])
    return found[list(cells.patterns)].to_numpy(np.float32)


def _apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max(initial=0.0))
