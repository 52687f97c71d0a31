"""Scope: the cells that a model has seen, and which of other cells differ from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["MANY", "Scope", "measure_scope"]

_QUANTILES = (0.005, 0.995)
MANY = 0.1
"""Share of cells out of scope, or of cells without nucleus beyond those seen, that is told."""


@dataclass(frozen=True)
class Scope:
    """Ranges of a model's training cells.

    Attributes
    ----------
    area_um2, n_molecules : (float, float)
        Area of the outline and number of molecules: the quantiles 0.5 and 99.5 %.
    without_nucleus : float
        Share of the training cells that have no nucleus.
    """

    area_um2: tuple[float, float]
    n_molecules: tuple[float, float]
    without_nucleus: float

    def reasons(self, cells: pd.DataFrame) -> NDArray[np.object_]:
        """Say of each cell (n,) why it is out of scope; empty if it is not.

        Parameters
        ----------
        cells : pandas.DataFrame
            ``area_um2``, ``n_molecules`` and ``has_nucleus``.
        """
        area, molecules = cells["area_um2"], cells["n_molecules"]
        found = {
            "smaller": area < self.area_um2[0],
            "larger": area > self.area_um2[1],
            "fewer molecules": molecules < self.n_molecules[0],
            "more molecules": molecules > self.n_molecules[1],
        }
        if not self.without_nucleus:
            found["no nucleus"] = ~cells["has_nucleus"].astype(bool)
        text = np.full(len(cells), "", object)
        for reason, here in found.items():
            rows = here.to_numpy(bool)
            text[rows] = [f"{before}; {reason}" if before else reason for before in text[rows]]
        return text

    def warnings(self, counts: Mapping[str, int]) -> list[str]:
        """Say what of all cells together differs from the training cells.

        Parameters
        ----------
        counts : mapping of str to int
            ``cells``, ``out_of_scope``, ``without_nucleus``, and cells by reason.
        """
        cells = max(counts["cells"], 1)
        told = {
            "smaller": f"are smaller than {self.area_um2[0]:,.0f} um2: is the unit right?",
            "larger": f"are larger than {self.area_um2[1]:,.0f} um2: is the unit right?",
            "fewer molecules": f"have fewer than {self.n_molecules[0]:,.0f} molecules",
            "more molecules": f"have more than {self.n_molecules[1]:,.0f} molecules",
            "no nucleus": "have no nucleus, and the model has seen no such cell",
        }
        found = [
            f"{counts[reason] / cells:.0%} of the cells {text}"
            for reason, text in told.items()
            if counts.get(reason, 0) > MANY * cells
        ]
        without = counts["without_nucleus"] / cells
        if self.without_nucleus and without > self.without_nucleus + MANY:
            found.append(
                f"{without:.0%} of the cells have no nucleus, {self.without_nucleus:.0%} of the "
                "training cells: nuclear patterns can only be guessed there"
            )
        return found

    def record(self) -> dict[str, Any]:
        """Give it as JSON holds it."""
        return {
            "area_um2": list(self.area_um2),
            "n_molecules": list(self.n_molecules),
            "without_nucleus": self.without_nucleus,
        }


def measure_scope(cells: pd.DataFrame) -> Scope:
    """Measure the ranges of training cells.

    Parameters
    ----------
    cells : pandas.DataFrame
        As for :meth:`Scope.reasons`.
    """
    area, molecules = (
        tuple(round(float(value), 1) for value in np.quantile(cells[name], _QUANTILES))
        for name in ("area_um2", "n_molecules")
    )
    without = round(1 - float(cells["has_nucleus"].mean()), 3)
    return Scope((area[0], area[1]), (molecules[0], molecules[1]), without)
