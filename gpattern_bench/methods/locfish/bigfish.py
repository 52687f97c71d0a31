"""big-fish's features of a gene's molecules in a cell (Imbert et al., RNA 2022), on outlines.

All 41 that need no image, foci or centrosomes, with the names of big-fish 0.6.2. big-fish computes
them on masks of pixels; here distances are to the outlines, and molecules stay in place.
``pixels=True`` draws the masks and gives big-fish's values. Definitions and differences:
``docs/methods/locfish.md``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.data.cells import Cell
from gpattern_bench.methods.locfish.outlines import RINGS, Layout, outline_layout
from gpattern_bench.methods.locfish.pixels import pixel_layout

__all__ = ["BIGFISH_FEATURES", "UNIT_UM", "bigfish_features"]

_Floats = NDArray[np.float64]
_Codes = NDArray[np.int64]

UNIT_UM = 0.1
"""Length of a pixel, micrometres: for areas, and for the masks of ``pixels=True``."""

_NUCLEUS_RINGS = ("nuc_edge", *(f"nuc_radius_{500 * k}_{500 * k + 500}" for k in range(1, RINGS)))
_CELL_RINGS = tuple(f"cell_radius_{500 * k}_{500 * k + 500}" for k in range(RINGS))

BIGFISH_FEATURES = (
    "index_mean_distance_cell",
    "index_median_distance_cell",
    "index_mean_distance_nuc",
    "index_median_distance_nuc",
    "proportion_rna_in_nuc",
    "nb_rna_out_nuc",
    "nb_rna_in_nuc",
    "index_rna_protrusion",
    "proportion_rna_protrusion",
    "protrusion_area",
    "index_polarization",
    "index_dispersion",
    "index_peripheral_distribution",
    *(f"{what}_rna_{ring}" for ring in _NUCLEUS_RINGS for what in ("index", "proportion")),
    *(f"{what}_rna_{ring}" for ring in _CELL_RINGS for what in ("index", "proportion")),
    "proportion_nuc_area",
    "cell_area",
    "nuc_area",
    "cell_area_out_nuc",
)
"""Names of the features, in big-fish's order."""

_OF_NUCLEUS = [k for k, name in enumerate(BIGFISH_FEATURES) if "nuc" in name or "periph" in name]


def bigfish_features(cell: Cell, *, unit_um: float = UNIT_UM, pixels: bool = False) -> _Floats:
    """Compute the features of every gene present in a cell.

    Parameters
    ----------
    cell : Cell
        Coordinates in micrometres, the unit of the widths of rings and protrusions.
    unit_um : float
        Length of a pixel, the unit of areas.
    pixels : bool
        Compute on masks of such pixels: big-fish's values, in a multiple of the time.

    Returns
    -------
    numpy.ndarray
        (g, 41) float64, rows as ``cell.genes``, columns :data:`BIGFISH_FEATURES`. NaN: the 21
        features of the nucleus in a cell without one; the mean (median) distance to the nucleus
        if the nucleus fills the cell (half of it).
    """
    at = pixel_layout(cell, unit_um) if pixels else outline_layout(cell.geometry, unit_um)
    features = _assemble(at, np.searchsorted(cell.genes, cell.gene), cell.counts)
    if cell.nucleus is None:
        features[:, _OF_NUCLEUS] = np.nan
    return features


def _assemble(at: Layout, pair: _Codes, counts: _Codes) -> _Floats:
    """Compute features (g, 41); `pair` (n,) is the row of each molecule's gene."""
    g = len(counts)

    def share(of: NDArray[Any]) -> _Floats:
        return np.asarray(np.bincount(pair, of, g) / counts)

    def relative(proportion: _Floats, area: float) -> list[_Floats]:
        # to the expectation for molecules anywhere in the cell; a ring has at least a pixel
        return [proportion * (at.area / max(area, 1.0)), proportion]

    mean_to_cell, median_to_cell, mean_to_nucleus, median_to_nucleus = at.expected
    in_nucleus = np.bincount(pair, at.in_nucleus, g)
    columns = [
        _ratio(share(at.to_cell), mean_to_cell),
        _ratio(_medians(at.to_cell, pair, counts), median_to_cell),
        _ratio(share(at.to_nucleus), mean_to_nucleus),
        _ratio(_medians(at.to_nucleus, pair, counts), median_to_nucleus),
        in_nucleus / counts,
        counts - in_nucleus,
        in_nucleus,
    ]
    if at.protrusion_area >= 1.0:
        columns += relative(share(at.protruding), at.protrusion_area)
    else:
        columns += [np.ones(g), np.zeros(g)]
    columns += [np.full(g, at.protrusion_area), *_spreads(at, pair, counts)]
    for ring, ring_areas in ((at.nucleus_ring, at.nucleus_rings), (at.cell_ring, at.cell_rings)):
        inside = np.bincount(pair * (RINGS + 1) + ring, minlength=g * (RINGS + 1))
        shares = inside.reshape(g, -1) / counts[:, None]
        for k, area in enumerate(ring_areas.tolist()):
            columns += relative(shares[:, k], area)
    areas = (at.nucleus_area / at.area, at.area, at.nucleus_area, at.area_outside)
    return np.column_stack([*columns, np.broadcast_to(areas, (g, 4))])


def _spreads(at: Layout, pair: _Codes, counts: _Codes) -> list[_Floats]:
    """Compute polarisation, dispersion and peripheral distribution, (g,) each."""
    g = len(counts)

    def whole(centre: _Floats) -> _Floats:
        return centre if at.distinct is None else np.floor(centre)

    def squared(a: _Floats, b: _Floats) -> _Floats:
        return np.asarray(np.square(a - b).sum(axis=-1))

    means = [np.bincount(pair, axis, g) / counts for axis in at.xy.T]
    gene, cell, nucleus = map(whole, (np.stack(means, axis=1), at.centroid, at.nucleus_centroid))
    xy = at.xy
    if at.distinct is not None:
        pair, xy = pair[at.distinct], xy[at.distinct]
        counts = np.bincount(pair, minlength=g)
    about_gene = np.bincount(pair, squared(xy, gene[pair]), g) / counts
    about_nucleus = np.bincount(pair, squared(xy, nucleus), g) / counts
    return [
        np.sqrt(_ratio(squared(gene, cell), at.spread + squared(cell, at.centroid))),
        _ratio(about_gene, at.spread + squared(gene, at.centroid)),
        _ratio(about_nucleus, at.spread + squared(nucleus, at.centroid)),
    ]


def _medians(values: _Floats, pair: _Codes, counts: _Codes) -> _Floats:
    ordered = values[np.lexsort((values, pair))]
    starts = np.cumsum(counts) - counts
    return np.asarray((ordered[starts + (counts - 1) // 2] + ordered[starts + counts // 2]) / 2)


def _ratio(values: _Floats, expected: Any) -> _Floats:
    """Divide by the expected values; NaN where these are 0 or unknown."""
    known = np.isfinite(expected) & (expected > 0)
    return np.asarray(values / np.where(known, expected, np.nan))
