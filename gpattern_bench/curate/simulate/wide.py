"""Simulated cells of widely varying shape, background and pattern form: ``synthetic_wide``.

:mod:`gpattern_bench.curate.simulate.cells` draws cells that resemble each other; a method fitted on
them learns their size, their roundness and their noise. Here every cell has settings of its own,
drawn from wide ranges (:class:`Settings`): outline, nucleus, how background thins out towards the
rim, which form each pattern takes, how molecules were detected, how well outlines were segmented.

All of it is drawn around a cell whose *size*, the square root of its area over pi, is 1, and scaled
to micrometres at the end. A cell's molecules are drawn from a pool of random places in it, each
time with weights that say how dense the pattern is there.

**What has no pattern.** The background of a cell is none: it thins out towards the rim, and the
nucleus may hold more or less of it than the cytoplasm. So is a gene with a weak pattern. So are
arrangements that are clearly not random but none of the four, which a classifier calls by the
pattern that comes nearest unless it has seen them (:data:`FOREIGN`):

- ``foci``: two to five dense clusters, anywhere;
- ``protrusion``: the tips of the cell that lie farthest from its centre, filled;
- ``one_sided``: one half of the cell;
- ``radial``: a ring, at some depth or around the centroid, whatever the outline or nucleus do;
- ``depth_graded``: a slow rise or fall of density from the rim to the middle.

They must not also be what a pattern says. A true pattern of the least strength moves that share of
all molecules into its zone (the nucleus, a band on either side of its outline, a band along the
rim), so a foreign one is drawn again until it moves less into any zone: no foci that all lie in the
nucleus, no ring that follows the nuclear outline, no gradient that empties the rim into the
nucleus. Tips are exempt from the rim, which they consist of; what tells them from ``cell_edge`` is
that the rest of the rim is empty. ``cytoplasmic`` means spread over the cytoplasm: foci, tips and
one side of a cell are not, wherever they lie, but rings and gradients are spread, so these must
also leave the nucleus its share. Tips need a long or branched cell.

Streams, grid and generator are those of :mod:`gpattern_bench.curate.simulate.cells`: every value
comes from ``random()`` of a Philox generator, no outline from a geometry library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy.special import gammaincinv

from gpattern_bench.base.geometry import contains, moments, outline_distance
from gpattern_bench.curate.release import Piece, Release
from gpattern_bench.curate.simulate.cells import PATTERNS

__all__ = [
    "CELLS_PER_FOV",
    "FOREIGN",
    "HELD_OUT",
    "VARIANT_2",
    "VARIANT_3",
    "Settings",
    "simulate_wide",
    "wide_pieces",
]

FOREIGN = ("foci", "protrusion", "one_sided", "radial", "depth_graded")
"""Arrangements that are none of the patterns."""

CELLS_PER_FOV = 10
GRID = 1024.0  # coordinates are multiples of 1/GRID um: exact in float32 up to 16 mm
N_RAYS = 64
PITCH = 240.0  # um between cells; a field of view has two rows of five
TILES = 13  # fields of view beside each other
EXTENT = PITCH - 16.0  # um that an outline spans at most, before its segmentation
COLUMNS = 5

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]
Range = tuple[float, float]

_ANGLES: Floats = np.arange(N_RAYS, dtype=np.float64) * (2.0 * np.pi / N_RAYS)
_RAYS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


@dataclass(frozen=True)
class Settings:
    """Ranges that each cell or pair draws from; lengths in sizes of the cell unless in um.

    Attributes
    ----------
    radius_um : (float, float)
        Size of the cell in um, log-uniform.
    elongation : (float, float)
        Ratio of the axes that the outline is stretched to, log-uniform.
    harmonics : tuple of float
        Amplitude at most of the outline's harmonics from the second on.
    bumps, bump_height, bump_width : int, float, (float, float)
        Number of bumps and their height at most, their width in radians.
    nucleus_radius, nucleus_offset : (float, float)
        Size of the nucleus, and distance of its centre from the cell's.
    nucleus_density : (float, float)
        Background in the nucleus over that in the cytoplasm, log-uniform.
    dome : (float, float)
        Exponent of the background over relative depth: 0 = as dense at the rim as in the middle.
    uneven : float
        Amplitude at most of the smooth field by which the background varies, in logarithms.
    cell_edge_width, nuclear_edge_width : (float, float)
        Width of the bands, log-uniform.
    nuclear_softness : (float, float)
        Width over which a nuclear gene fades at the nucleus' outline, log-uniform.
    nuclear_leak : float
        Density of a cytoplasmic gene in the nucleus at most, before its exponent of 1.5.
    arc : float
        Probability that an edge pattern covers an arc of the outline only.
    n_genes : int
        Genes per cell.
    preference : float
        Concentration of the Dirichlet distribution of a cell's preference among the patterns.
    no_pattern : (float, float)
        Probability, per cell, that a pair has no pattern.
    two_patterns : float
        Probability that a pair has two.
    strength : (float, float)
        Share of a pair's molecules that follow its patterns, the rest is background.
    foreign : float
        Share of the pairs without a pattern that have one of :data:`FOREIGN`, of that strength.
    weak_share, weak : float, float
        Share of the others that have a pattern too weak to count, and its strength at most.
    tilt_share, tilt : float, (float, float)
        Share of the pairs with a smooth field of their own, and its amplitude.
    molecules : (float, float)
        Molecules of a pair before detection, log-uniform.
    max_molecules : int
        Molecules of a cell at most.
    duplicated : float
        Share of cells whose molecules were seen two to four times each.
    thinned, kept : float, (float, float)
        Share of cells that lost molecules, and the share that those kept.
    jitter_um : float
        Standard deviation at most of the error of a position along each axis, um; most have less.
    segmentation : float
        Error of the outlines' size and place.
    without_nucleus : float
        Share of cells whose nucleus was not segmented.
    coarse : float
        Share of cells with coarse outlines: few vertices, a convex hull, or a cell that was grown.
    coarse_vertices : (int, int)
        Vertices of an outline of few.
    growth_um : (float, float)
        How far a cell was grown, um.
    """

    radius_um: Range = (9.0, 26.0)
    elongation: Range = (1.0, 3.0)
    harmonics: tuple[float, ...] = (0.15, 0.14, 0.12, 0.09, 0.07, 0.05)
    bumps: int = 4
    bump_height: float = 0.9
    bump_width: Range = (0.1, 0.4)
    nucleus_radius: Range = (0.38, 0.62)
    nucleus_offset: Range = (0.0, 0.5)
    nucleus_density: Range = (0.75, 1.5)
    dome: Range = (0.0, 0.9)
    uneven: float = 0.3
    cell_edge_width: Range = (0.03, 0.15)
    nuclear_edge_width: Range = (0.02, 0.10)
    nuclear_softness: Range = (0.005, 0.04)
    nuclear_leak: float = 0.25
    arc: float = 0.35
    n_genes: int = 20
    preference: float = 0.8
    no_pattern: Range = (0.05, 0.7)
    two_patterns: float = 0.11
    strength: Range = (0.45, 0.97)
    foreign: float = 0.35
    weak_share: float = 0.5
    weak: float = 0.3
    tilt_share: float = 0.3
    tilt: Range = (0.3, 0.3)
    molecules: Range = (3.0, 150.0)
    max_molecules: int = 1000
    duplicated: float = 0.3
    thinned: float = 0.5
    kept: Range = (0.5, 1.0)
    jitter_um: float = 0.5
    segmentation: float = 0.03
    without_nucleus: float = 0.2
    coarse: float = 0.2
    coarse_vertices: tuple[int, int] = (8, 14)
    growth_um: Range = (0.3, 2.0)


VARIANT_2 = Settings()

VARIANT_3 = replace(VARIANT_2, tilt_share=1.0, tilt=(0.0, 0.7), weak_share=0.8, weak=0.35)
"""Harder: every gene's background is its own, and most pairs without a pattern have a weak one."""

HELD_OUT = replace(
    VARIANT_2,
    radius_um=(7.0, 28.0),
    elongation=(1.2, 4.0),
    harmonics=(0.10, 0.18, 0.08, 0.12, 0.05, 0.08),
    bumps=6,
    bump_height=0.7,
    bump_width=(0.15, 0.5),
    nucleus_radius=(0.32, 0.56),
    nucleus_offset=(0.1, 0.6),
    nucleus_density=(0.6, 1.8),
    dome=(0.2, 1.1),
    uneven=0.4,
    cell_edge_width=(0.04, 0.20),
    nuclear_edge_width=(0.03, 0.13),
    nuclear_leak=0.3,
    arc=0.5,
    preference=1.2,
    no_pattern=(0.15, 0.6),
    strength=(0.40, 0.90),
    weak_share=0.65,
    weak=0.32,
    tilt_share=0.65,
    tilt=(0.0, 0.5),
    molecules=(3.0, 200.0),
    duplicated=0.4,
    kept=(0.4, 0.9),
    segmentation=0.04,
    coarse_vertices=(7, 12),
    growth_um=(0.5, 2.5),
)
"""Between and beyond the two others, to choose on what transfers. Fixed before anything was fitted
on the dataset; nothing is trained on it."""


class _Part(NamedTuple):
    """Fields of view of one name; the position in :data:`_PARTS` is part of the seed."""

    name: str
    settings: Settings
    n_fovs: int


_PARTS = (
    _Part("train-v2", VARIANT_2, 145),
    _Part("train-v3", VARIANT_3, 160),
    _Part("val-v2", VARIANT_2, 15),
    _Part("val-v3", VARIANT_3, 15),
    _Part("test-heldout", HELD_OUT, 30),
)


class _Nucleus(NamedTuple):
    xy: Floats
    centre: Floats


@dataclass(frozen=True)
class _Shape:
    """A cell of size 1 around its centroid; vertices (N_RAYS, 2), star-shaped around `origin`."""

    cell: Floats
    origin: Floats
    nucleus: Floats
    nucleus_centre: Floats


@dataclass(frozen=True)
class _Pool:
    """Places that a cell's molecules are drawn from, in sizes."""

    xy: Floats  # (places, 2)
    depth: Floats  # below the cell's outline
    beyond: Floats  # distance to the nuclear outline, negative inside
    inside: Bools  # in the nucleus
    angle: Floats  # around the centre of the nucleus
    background: Floats  # density


@dataclass(frozen=True)
class _Cell:
    """One drawn cell, um, around its centroid."""

    boundary: Floats
    nucleus: Floats | None
    gene: Ints  # (pairs,) in the panel, ascending
    count: Ints  # (pairs,)
    labels: Bools  # (pairs, patterns)
    foreign: Ints  # (pairs,) index into FOREIGN, -1 = none
    xy: Floats  # (molecules, 2), in the order of the pairs


_N_PLACES = 2500
_N_PANEL = 200
_GENES = pd.Index([f"G{k + 1:03d}" for k in range(_N_PANEL)])
_GAP = 0.03  # sizes between nucleus and rim
_BAND = 0.1  # sizes: half the nuclear edge's zone, and the rim's, see `_moved`


def simulate_wide(
    seed: int, *, settings: Settings = VARIANT_2, cells: int = 40, name: str = "any"
) -> Release:
    """Draw cells whose patterns are known from wide ranges of settings.

    Parameters
    ----------
    seed : int
        0 <= seed < 2**64; the same seed and settings give the same release.
    settings : Settings
        Ranges to draw from.
    cells : int
        How many; fields of view hold :data:`CELLS_PER_FOV`, the last one what is left.
    name : str
        Of the fields of view, which are numbered.

    Returns
    -------
    Release
        Micrometres, slide-global, multiples of 1/1024. Molecules are ordered by field of view,
        cell and gene. Labels hold every pair with at least one molecule. Molecules may lie outside
        the outline of their cell, where it is coarse. A nucleus that was not segmented is None; the
        labels do not depend on it.

    Examples
    --------
    >>> release = simulate_wide(1, cells=3)
    >>> release.cells["cell_id"].tolist()
    ['any-001-01', 'any-001-02', 'any-001-03']
    """
    fovs = -(-cells // CELLS_PER_FOV)
    names, drawn = [], []
    for k in range(fovs):
        n_cells = min(CELLS_PER_FOV, cells - k * CELLS_PER_FOV)
        names.append(f"{name}-{k + 1:03d}")
        drawn.append(_draw_fov(seed, len(_PARTS), k, settings, n_cells))
    return _release(names, drawn, range(fovs))


def wide_pieces(seed: int) -> Iterator[Piece]:
    """Yield the fields of view of ``synthetic_wide`` as pieces, each drawn when it is called.

    Their names begin with the split: ``train`` and ``val`` (:data:`VARIANT_2` and
    :data:`VARIANT_3`, each in fields of view of its own) and ``test`` (:data:`HELD_OUT`). They come
    in the order of their names.
    """
    pieces: dict[str, tuple[int, int, int]] = {}
    for part, (name, _, n_fovs) in enumerate(_PARTS):
        for k in range(n_fovs):
            pieces[f"{name}-{k + 1:03d}"] = (part, k, len(pieces))
    for fov, place in sorted(pieces.items()):
        yield partial(_piece, seed, fov, *place)


def _piece(seed: int, fov: str, part: int, k: int, tile: int) -> Release:
    return _release([fov], [_draw_fov(seed, part, k, _PARTS[part].settings)], [tile])


def _draw_fov(
    seed: int, part: int, k: int, settings: Settings, n_cells: int = CELLS_PER_FOV
) -> list[_Cell]:
    """Draw field of view k of a part, which does not depend on how many others there are."""
    key = np.array([seed, part * 2**32 + k], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    return [_draw_cell(rng, settings) for _ in range(n_cells)]


# Draws


def _uniform(rng: np.random.Generator, limits: Range) -> float:
    return limits[0] + (limits[1] - limits[0]) * rng.random()


def _log_uniform(rng: np.random.Generator, limits: Range) -> float:
    return float(np.exp(_uniform(rng, (np.log(limits[0]), np.log(limits[1])))))


def _below(rng: np.random.Generator, n: int) -> int:
    return int(rng.random() * n)


def _phase(rng: np.random.Generator) -> float:
    return 2.0 * np.pi * rng.random()


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Standard normal values, by Box and Muller."""
    radius = np.sqrt(-2.0 * np.log1p(-rng.random(shape)))
    return np.asarray(radius * np.cos(2.0 * np.pi * rng.random(shape)))


def _turned(angle: Floats, towards: float) -> Floats:
    """Angle from a direction, in -pi..pi."""
    return np.asarray((angle - towards + np.pi) % (2.0 * np.pi) - np.pi)


def _smooth(rng: np.random.Generator, xy: Floats, amplitude: float) -> Floats:
    """A smooth random field around 0 of about this amplitude at places (n, 2)."""
    field = np.zeros(len(xy))
    for _ in range(3):
        field += np.cos(_along(xy, 1.5 * _normal(rng, (2,))) + _phase(rng))
    return np.asarray(amplitude * field / np.sqrt(1.5))


def _along(xy: Floats, direction: Floats) -> Floats:
    """Dot product of places (n, 2) with a direction, on every machine in the same order."""
    return np.asarray(xy[:, 0] * direction[0] + xy[:, 1] * direction[1])


def _logistic(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0))))


# Shapes


def _size(xy: Floats) -> float:
    """Square root of a polygon's area over pi."""
    return float(np.sqrt(moments(shapely.polygons(xy)).area / np.pi))


def _draw_outline(rng: np.random.Generator, settings: Settings) -> Floats:
    """Vertices (N_RAYS, 2) of an outline that is star-shaped around the origin."""
    radii = np.ones(N_RAYS)
    for order, largest in enumerate(settings.harmonics, 2):
        radii += largest * rng.random() * np.cos(order * _ANGLES - _phase(rng))
    for _ in range(_below(rng, settings.bumps + 1)):
        width = _uniform(rng, settings.bump_width)
        away = _turned(_ANGLES, _phase(rng))
        radii += settings.bump_height * rng.random() * np.exp(-((away / width) ** 2) / 2.0)
    stretch = np.sqrt(_log_uniform(rng, settings.elongation))
    xy = np.maximum(radii, 0.3)[:, None] * _RAYS * (stretch, 1.0 / stretch)
    turn = _phase(rng)
    cos, sin = np.cos(turn), np.sin(turn)
    return np.asarray(xy @ np.array([[cos, sin], [-sin, cos]]))


def _draw_nucleus(rng: np.random.Generator, settings: Settings, second: Floats) -> _Nucleus:
    """A nucleus in a cell around the origin with these second moments of its area."""
    size = _uniform(rng, settings.nucleus_radius)
    offset = _uniform(rng, settings.nucleus_offset)
    values, axes = np.linalg.eigh(second)
    axes *= np.where(axes[0] < 0, -1.0, 1.0)  # eigenvectors have no sign of their own
    # Long cells have longer nuclei, but less so.
    longer = (values[1] / values[0]) ** (0.5 * _uniform(rng, (0.1, 0.7)))
    stretch = np.sqrt(min(longer, 2.2))
    radii = np.ones(N_RAYS)
    for order, largest in ((2, 0.1), (3, 0.05), (4, 0.03)):
        radii += largest * rng.random() * np.cos(order * _ANGLES - _phase(rng))
    xy = (radii[:, None] * _RAYS * (1.0 / stretch, stretch)) @ axes.T
    xy *= size / _size(xy)
    if rng.random() < 0.5:
        towards = axes[:, 1] * (1.0 if rng.random() < 0.5 else -1.0)
    else:
        towards = _RAYS[_below(rng, N_RAYS)]
    return _Nucleus(xy + offset * towards, offset * towards)


def _draw_shape(rng: np.random.Generator, settings: Settings, largest: float) -> _Shape:
    """A cell of size 1 that spans at most `largest`, with a nucleus that fits into it."""
    while True:
        xy = _draw_outline(rng, settings)
        xy /= _size(xy)
        area = moments(shapely.polygons(xy))
        xy -= area.centroid
        if np.ptp(xy, axis=0).max() > largest:
            continue
        cell = shapely.polygons(xy)
        for _ in range(8):
            nucleus = _draw_nucleus(rng, settings, area.second)
            outline = shapely.polygons(nucleus.xy)
            if (
                contains(nucleus.xy, cell).all()
                and not contains(xy, outline).any()
                and outline_distance(nucleus.xy, cell).min() > _GAP
                and outline_distance(xy, outline).min() > _GAP
            ):
                return _Shape(xy, -area.centroid, nucleus.xy, nucleus.centre)


def _draw_pool(rng: np.random.Generator, settings: Settings, shape: _Shape) -> _Pool:
    """Draw uniform places in a cell, and how dense its background is there."""
    cell, nucleus = shapely.polygons(shape.cell), shapely.polygons(shape.nucleus)
    low, high = shape.cell.min(axis=0), shape.cell.max(axis=0)
    xy = low + (high - low) * rng.random((2 * _N_PLACES, 2))
    xy = xy[contains(xy, cell)][:_N_PLACES]
    depth = outline_distance(xy, cell)
    inside = contains(xy, nucleus)
    beyond = np.where(inside, -1.0, 1.0) * outline_distance(xy, nucleus)
    away = xy - shape.nucleus_centre
    background = np.maximum(depth / depth.max(), 1e-3) ** _uniform(rng, settings.dome)
    background *= np.where(inside, _log_uniform(rng, settings.nucleus_density), 1.0)
    background *= np.exp(_smooth(rng, xy, settings.uneven * rng.random()))
    return _Pool(xy, depth, beyond, inside, np.arctan2(away[:, 1], away[:, 0]), background)


# Where a pattern's molecules lie: weights over the places of a pool


def _arc(rng: np.random.Generator, settings: Settings, pool: _Pool) -> Floats | float:
    if rng.random() >= settings.arc:
        return 1.0
    away = _turned(pool.angle, _phase(rng))
    return np.asarray(0.05 + np.exp(-((away / _uniform(rng, (0.4, 1.2))) ** 2) / 2.0))


def _cell_edge(rng: np.random.Generator, settings: Settings, pool: _Pool) -> Floats:
    width = _log_uniform(rng, settings.cell_edge_width)
    form = rng.random()
    if form < 0.4:
        weight = np.exp(-pool.depth / width)
    elif form < 0.7:
        weight = np.exp(-((pool.depth / (1.2 * width)) ** 2))
    else:
        weight = (pool.depth < 1.5 * width).astype(np.float64)
    weight = weight * _arc(rng, settings, pool) * pool.background ** (0.5 * rng.random())
    return np.asarray(weight * np.where(pool.inside, 0.05, 1.0))


def _cytoplasmic(rng: np.random.Generator, settings: Settings, pool: _Pool) -> Floats:
    leak = (settings.nuclear_leak * rng.random()) ** 1.5
    weight = np.where(pool.inside, leak, 1.0) * pool.background ** (1.2 * rng.random())
    if rng.random() < 0.4:
        weight *= np.exp(-np.maximum(pool.beyond, 0.0) / _log_uniform(rng, (0.15, 1.0)))
    if rng.random() < 0.3:
        weight *= 1.0 - np.exp(-pool.depth / _uniform(rng, (0.03, 0.15)))
    return weight


def _nuclear(rng: np.random.Generator, settings: Settings, pool: _Pool) -> Floats:
    softness = _log_uniform(rng, settings.nuclear_softness)
    weight = _logistic(-(pool.beyond + 0.04 * rng.random()) / softness)
    if rng.random() < 0.5:
        weight *= np.exp(-3.0 * rng.random() * np.minimum(pool.beyond, 0.0))
    return np.asarray(weight * pool.background ** (0.5 * rng.random()))


def _nuclear_edge(rng: np.random.Generator, settings: Settings, pool: _Pool) -> Floats:
    width = _log_uniform(rng, settings.nuclear_edge_width)
    shift = width * _uniform(rng, (-0.4, 0.8))
    weight = np.exp(-(((pool.beyond - shift) / width) ** 2) / 2.0)
    weight = weight * _arc(rng, settings, pool)
    return np.asarray(weight * pool.background ** (0.5 * rng.random()))


_FORMS = (_cell_edge, _cytoplasmic, _nuclear, _nuclear_edge)  # in the order of PATTERNS


# And of what is none of the patterns


def _foci(rng: np.random.Generator, pool: _Pool) -> Floats:
    weight = np.zeros(len(pool.xy))
    for _ in range(2 + _below(rng, 4)):
        centre = pool.xy[_below(rng, len(pool.xy))]
        squared = ((pool.xy - centre) ** 2).sum(axis=1)
        radius = _log_uniform(rng, (0.04, 0.12))
        weight += _uniform(rng, (0.3, 1.0)) * np.exp(-squared / (2.0 * radius**2))
    return weight


def _protrusion(rng: np.random.Generator, pool: _Pool) -> Floats:
    reach = np.hypot(pool.xy[:, 0], pool.xy[:, 1])
    # Without long or branched ends there is no tip to speak of: nothing to weigh.
    longest = np.quantile(reach, 0.99)
    where = np.quantile(reach, _uniform(rng, (0.8, 0.95)))
    weight = _logistic((reach - where) / 0.05)
    if rng.random() < 0.5:  # one end of the cell
        towards = _phase(rng)
        side = _along(pool.xy, np.array([np.cos(towards), np.sin(towards)]))
        weight *= _logistic(side / 0.1)
    return weight if longest > 1.3 else np.zeros(len(weight))


def _one_sided(rng: np.random.Generator, pool: _Pool) -> Floats:
    towards = _phase(rng)
    side = _along(pool.xy, np.array([np.cos(towards), np.sin(towards)]))
    return _logistic((side - _uniform(rng, (-0.2, 0.2))) / _log_uniform(rng, (0.03, 0.3)))


def _radial(rng: np.random.Generator, pool: _Pool) -> Floats:
    width = _log_uniform(rng, (0.08, 0.2))
    if rng.random() < 0.5:
        where = pool.depth / pool.depth.max()
        middle = _uniform(rng, (0.3, 0.8))
    else:
        where = np.hypot(pool.xy[:, 0], pool.xy[:, 1])
        middle = _uniform(rng, (0.2, 1.1))
    return np.asarray(np.exp(-(((where - middle) / width) ** 2) / 2.0))


def _depth_graded(rng: np.random.Generator, pool: _Pool) -> Floats:
    slope = _uniform(rng, (0.7, 2.2)) * (1.0 if rng.random() < 0.5 else -1.0)
    return np.asarray(np.exp(slope * pool.depth / pool.depth.max()))


_FOREIGN_FORMS = (_foci, _protrusion, _one_sided, _radial, _depth_graded)  # as FOREIGN
_SPREAD = ("radial", "depth_graded")


def _moved(pool: _Pool, weight: Floats) -> Floats:
    """Share of all molecules that a density moves into each pattern's zone, (patterns,).

    0 = as many as of the background, 1 = all; negative = out of it.
    """
    zones = np.stack(
        [pool.depth < _BAND, ~pool.inside, pool.inside, np.abs(pool.beyond) < _BAND]
    ).astype(np.float64)
    held = zones @ (weight / weight.sum())
    usual = zones @ (pool.background / pool.background.sum())
    return np.asarray((held - usual) / np.maximum(1.0 - usual, 1e-9))


def _draw_foreign(
    rng: np.random.Generator, settings: Settings, pool: _Pool
) -> tuple[int, Floats | None]:
    """Draw one of FOREIGN that no pattern describes, and its weights; rarely none can be had."""
    for kind in np.argsort(rng.random(len(FOREIGN))).tolist():
        name = FOREIGN[kind]
        described = np.array(
            [name != "protrusion", name in _SPREAD, True, True]  # zones that it must not fill
        )
        for _ in range(8):
            weight = _FOREIGN_FORMS[kind](rng, pool) * pool.background ** (0.5 * rng.random())
            if weight.sum() > 1e-6 * len(weight) and (
                _moved(pool, weight)[described].max() < settings.strength[0]
            ):
                return kind, weight
    return -1, None


# Cells


def _draw_cell(rng: np.random.Generator, settings: Settings) -> _Cell:
    radius = _log_uniform(rng, settings.radius_um)
    shape = _draw_shape(rng, settings, EXTENT / radius)
    pool = _draw_pool(rng, settings, shape)
    gene = np.sort(np.argsort(rng.random(_N_PANEL))[: settings.n_genes])

    none = _uniform(rng, settings.no_pattern)
    # Gamma values over their sum are a Dirichlet draw; the race below needs no sum of 1.
    preference = gammaincinv(settings.preference, rng.random(len(PATTERNS)))
    preference = preference / preference.sum() + 0.02
    repeats = rng.random() < settings.duplicated
    kept = _uniform(rng, settings.kept) if rng.random() < settings.thinned else 1.0
    least, most = settings.molecules
    most = max(most * _log_uniform(rng, (0.3, 1.0)), least + 1.0)

    labels = np.zeros((len(gene), len(PATTERNS)), dtype=np.bool_)
    foreign = np.full(len(gene), -1, dtype=np.intp)
    places = []
    for k in range(len(gene)):
        copies = 2 + _below(rng, 3) if repeats else 1
        emitted = max(1, int(_log_uniform(rng, (least, most))) // copies)
        found, labels[k], foreign[k] = _draw_pair(rng, settings, pool, preference, none, emitted)
        places.append(np.repeat(found, copies))
    pair = np.repeat(np.arange(len(gene)), [len(place) for place in places])
    place = np.concatenate(places)

    # Detection: molecules are lost, at random, then the cell is cut to its limit.
    order = np.argsort(rng.random(len(place)))
    chosen = min(max(1, round(kept * len(place))), settings.max_molecules)
    seen = np.sort(order[:chosen])
    pair, place = pair[seen], place[seen]
    # Within a pool places are about .035 apart; what they lack in fineness is added here.
    error = settings.jitter_um * rng.random() ** 2
    spread = np.hypot(0.005 * radius, error)
    xy = pool.xy[place] * radius + spread * _normal(rng, (len(place), 2))

    boundary, nucleus = _segment(rng, settings, shape, radius)
    count = np.bincount(pair, minlength=len(gene))
    there = count > 0
    return _Cell(
        boundary,
        nucleus,
        gene[there],
        count[there],
        labels[there],
        foreign[there],
        _on_grid(xy),
    )


def _draw_pair(
    rng: np.random.Generator,
    settings: Settings,
    pool: _Pool,
    preference: Floats,
    none: float,
    count: int,
) -> tuple[Ints, Bools, int]:
    """Draw the places of a pair's molecules, its labels, and its foreign arrangement or -1."""
    labels = np.zeros(len(PATTERNS), dtype=np.bool_)
    foreign, weight = -1, None
    tilt: Floats | float = 1.0
    if rng.random() < settings.tilt_share:
        tilt = np.exp(_smooth(rng, pool.xy, _uniform(rng, settings.tilt)))
    # A race of exponential clocks draws patterns without replacement, by preference.
    order = np.argsort(-np.log1p(-rng.random(len(PATTERNS))) / preference)
    strength, first = 0.0, 1.0
    if rng.random() >= none:
        strength = _uniform(rng, settings.strength)
        labels[order[0]] = True
        if rng.random() < settings.two_patterns / (1.0 - none):
            first = _uniform(rng, (0.35, 0.65))
            labels[order[1]] = True
    elif rng.random() < settings.foreign:
        foreign, weight = _draw_foreign(rng, settings, pool)
        strength = _uniform(rng, settings.strength) if foreign >= 0 else 0.0
    elif rng.random() < settings.weak_share:
        strength = settings.weak * rng.random()

    u = rng.random(count)
    which = np.where(u < strength * first, 0, np.where(u < strength, 1, 2))
    place = np.empty(count, dtype=np.intp)
    for part in range(3):
        at = which == part
        if not at.any():
            continue
        if part == 2:
            density = pool.background
        elif weight is not None:
            density = weight
        else:
            density = _FORMS[order[part]](rng, settings, pool)
            if density.sum() <= 0.0:  # no place in a thin band: background
                density = pool.background
        total = np.cumsum(density * tilt)
        found = np.searchsorted(total, total[-1] * rng.random(int(at.sum())), side="right")
        place[at] = np.minimum(found, len(total) - 1)
    return place, labels, foreign


def _segment(
    rng: np.random.Generator, settings: Settings, shape: _Shape, radius: float
) -> tuple[Floats, Floats | None]:
    """Outlines as a segmentation finds them, um."""
    cell, nucleus = shape.cell, shape.nucleus
    if rng.random() < settings.coarse:
        form = _below(rng, 3)
        if form == 0:
            few, most = settings.coarse_vertices
            cell = _thinned(cell, few + _below(rng, most - few + 1), _below(rng, N_RAYS))
            nucleus = _thinned(nucleus, few + _below(rng, most - few + 1), _below(rng, N_RAYS))
        elif form == 1:
            cell, nucleus = _hull(cell), _hull(nucleus)
        else:  # grown along its rays, so that it stays valid
            away = cell - shape.origin
            away /= np.hypot(away[:, 0], away[:, 1])[:, None]
            cell = cell + away * (_uniform(rng, settings.growth_um) / radius)
    if rng.random() < 0.7:
        nucleus = _displaced(rng, nucleus, settings.segmentation)
    if rng.random() < 0.5:
        cell = _displaced(rng, cell, 0.5 * settings.segmentation)
    segmented = rng.random() >= settings.without_nucleus
    return _on_grid(cell * radius), _on_grid(nucleus * radius) if segmented else None


def _displaced(rng: np.random.Generator, xy: Floats, error: float) -> Floats:
    """Scale and move an outline a little."""
    middle = xy.mean(axis=0)
    scale = 1.0 + error * _normal(rng, (1,))
    return np.asarray(middle + (xy - middle) * scale + 0.7 * error * _normal(rng, (2,)))


def _thinned(xy: Floats, n: int, first: int) -> Floats:
    """Keep n vertices, evenly spaced in number, from the `first`."""
    return xy[np.sort((first + np.arange(n) * len(xy) // n) % len(xy))]


def _hull(xy: Floats) -> Floats:
    """Vertices of the convex hull, counter-clockwise (Andrew's monotone chain)."""
    points = xy[np.lexsort((xy[:, 1], xy[:, 0]))].tolist()
    chains = []
    for ordered in (points, points[::-1]):
        chain: list[list[float]] = []
        for x, y in ordered:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0.0:
                    break
                chain.pop()
            chain.append([x, y])
        chains += chain[:-1]
    return np.array(chains)


def _on_grid(um: Floats) -> Floats:
    return np.rint(um * GRID) / GRID


# Releases


def _release(fovs: list[str], drawn: list[list[_Cell]], tiles: range | list[int]) -> Release:
    """Name and join fields of view, each at its tile of the slide."""
    cells = [cell for field in drawn for cell in field]
    fov = np.repeat(np.arange(len(drawn)), [len(field) for field in drawn])
    slot = np.concatenate([np.arange(len(field)) for field in drawn])
    tile = np.asarray(tiles)[fov]
    corner = np.stack(
        [
            (tile % TILES * COLUMNS + slot % COLUMNS) * PITCH,
            (tile // TILES * (CELLS_PER_FOV // COLUMNS) + slot // COLUMNS) * PITCH,
        ],
        axis=1,
    )
    # The middle of each outline's box lies in the middle of the slot.
    middle = [(cell.boundary.min(axis=0) + cell.boundary.max(axis=0)) / 2 for cell in cells]
    origin = _on_grid(corner + PITCH / 2 - np.stack(middle))
    fov_names = pd.Index(fovs)
    names = pd.Index([f"{fovs[f]}-{s + 1:02d}" for f, s in zip(fov, slot, strict=True)])

    nuclei = np.full(len(cells), None, dtype=object)
    for k, cell in enumerate(cells):
        if cell.nucleus is not None:
            nuclei[k] = shapely.polygons(cell.nucleus + origin[k])
    table = pd.DataFrame(
        {
            "fov": fov_names[fov],
            "cell_id": names,
            "cell_boundary": [
                shapely.polygons(cell.boundary + at) for cell, at in zip(cells, origin, strict=True)
            ],
            "nucleus_boundary": pd.Series(nuclei, dtype=object),
            "touches_border": False,
        }
    )
    of_pair = np.repeat(np.arange(len(cells)), [len(cell.gene) for cell in cells])
    gene = np.concatenate([cell.gene for cell in cells])
    truth = np.concatenate([cell.labels for cell in cells]).astype(np.int8)
    labels = pd.DataFrame(
        {
            "cell_id": pd.Categorical.from_codes(of_pair, names),
            "gene": pd.Categorical.from_codes(gene, _GENES),
            **{pattern: truth[:, k] for k, pattern in enumerate(PATTERNS)},
        }
    )
    count = np.concatenate([cell.count for cell in cells])
    of_molecule = np.repeat(of_pair, count)
    xy = np.concatenate([cell.xy for cell in cells]) + origin[of_molecule]
    molecules = pd.DataFrame(
        {
            "fov": pd.Categorical.from_codes(fov[of_molecule], fov_names),
            "cell_id": pd.Categorical.from_codes(of_molecule, names),
            "gene": pd.Categorical.from_codes(np.repeat(gene, count), _GENES),
            "x": xy[:, 0],
            "y": xy[:, 1],
        }
    )
    return Release(molecules, table, labels)
