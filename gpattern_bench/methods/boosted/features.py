"""Features without units for the trees of :mod:`gpattern_bench.methods.boosted.method`.

Bento's and big-fish's features, SPRAWL's z-scores, and quantiles of the molecules' positions
between the cell's middle, nucleus and outline: relative to the cell's size, and as ranks among all
molecules of the cell. Ranks do not depend on the radial density of RNA or on the technology.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit
from gpattern_bench.base.geometry import mean_ranks
from gpattern_bench.data.cells import Cell
from gpattern_bench.methods.bento.method import BENTO_FEATURES, bento_features
from gpattern_bench.methods.locfish.bigfish import BIGFISH_FEATURES, bigfish_features
from gpattern_bench.methods.sprawl.method import median_rank_variance, peripheral_central

__all__ = ["PAIR_FEATURES", "pair_features"]

_Floats = NDArray[np.float64]

_QUANTILES = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
_RANKED = ("depth", "from_nucleus", "radius")
_COLUMNS = ("depth", "from_nucleus", "between", "radius", *(f"{name}_rank" for name in _RANKED))
# Not numbers of molecules and areas: they tell the gene and the cell, not the pattern.
_BIGFISH = [
    k for k, name in enumerate(BIGFISH_FEATURES) if not name.startswith(("nb_", "cell_", "nuc_"))
]

PAIR_FEATURES = (
    *(f"bento_{name}" for name in BENTO_FEATURES),
    *(f"bigfish_{BIGFISH_FEATURES[k]}" for k in _BIGFISH),
    "sprawl_peripheral_z",
    "sprawl_central_z",
    *(
        f"{name}_{part}"
        for name in _COLUMNS
        for part in ("q05", "q25", "q50", "q75", "q95", "mean")
    ),
    "log_molecules",
    "share_of_cell",
)
"""Columns of :func:`pair_features`, in order."""


def pair_features(cell: Cell) -> _Floats:
    """Compute the features (g, F) of the genes present, rows as ``cell.genes``.

    ``depth`` (from the outline, positive inside) and ``from_nucleus`` (positive outside) are over
    the radius of a disk with the cell's area; ``between`` runs from -1 deep in the nucleus over 0
    on its outline to 1 on the cell's; ``radius`` is relative, from the nucleus' centroid to the
    outline. NaN: features of the nucleus without one, and NaN of Bento and big-fish.
    """
    n = len(cell.gene)
    peripheral, central = peripheral_central(cell)
    deviation = np.sqrt(median_rank_variance(cell.counts, n))
    spread = np.where(deviation > 0, deviation, np.inf)  # 0: the only gene, no evidence
    starts = np.append(0, np.cumsum(cell.counts))
    return np.column_stack(
        [
            bento_features(cell),
            bigfish_features(cell)[:, _BIGFISH],
            peripheral / spread,
            central / spread,
            _summarise(_positions(cell), starts, _QUANTILES),
            np.log(cell.counts),
            cell.counts / n,
        ]
    )


def _positions(cell: Cell) -> _Floats:
    """Compute each molecule's position (n, 7), columns :data:`_COLUMNS`."""
    geometry, n = cell.geometry, len(cell.gene)
    depth, nucleus, between = geometry.depth, geometry.from_nucleus, geometry.between
    radius = np.minimum(geometry.relative_radius, 1)
    nucleus_rank = np.full(n, np.nan) if cell.nucleus is None else mean_ranks(nucleus) / n
    ranks = [mean_ranks(depth) / n, nucleus_rank, mean_ranks(radius) / n]
    return np.column_stack([depth, nucleus, between, radius, *ranks])


@njit(cache=True, nogil=True)
def _summarise(values: Any, starts: Any, quantiles: Any) -> Any:
    """Compute quantiles and mean of each column over each gene: (g, columns * parts)."""
    parts = len(quantiles) + 1
    out = np.empty((len(starts) - 1, values.shape[1] * parts))
    for g in range(len(starts) - 1):
        m = starts[g + 1] - starts[g]
        for k in range(values.shape[1]):
            held = np.sort(values[starts[g] : starts[g + 1], k])
            total = 0.0
            for value in held:
                total += value
            for q in range(len(quantiles)):
                at = quantiles[q] * (m - 1)
                low = int(at)
                high = min(low + 1, m - 1)
                out[g, k * parts + q] = held[low] + (at - low) * (held[high] - held[low])
            out[g, k * parts + parts - 1] = total / m
    return out
