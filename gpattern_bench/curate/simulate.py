"""Simulated releases with known patterns: the source of the ``synthetic`` dataset.

A cell is two outlines in polar coordinates around the centre of its nucleus: radius of the nucleus
and of the cell at the same :data:`N_VERTICES` angles. A compartment (:func:`_limits`) is then a
range of radii along each ray, so that a molecule is drawn in three steps, for all molecules of a
field of view at once: its compartment, its sector (by the compartment's area), its radius.

Every value comes from :meth:`numpy.random.Generator.random` of a Philox generator, a counter-based
one, and every coordinate is a multiple of 1/1024 um: another CPU or numpy draws the same release.
The other methods of ``Generator`` (poisson, gamma, ...) are avoided, since numpy may change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isqrt, sqrt

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from gpattern_bench.curate.release import Release

__all__ = ["PATTERNS", "simulate"]

PATTERNS = ("cell_edge", "cytoplasmic", "nuclear", "nuclear_edge")
N_VERTICES = 48

GRID = 1024.0  # coordinates are multiples of 1/GRID um: exact in float32 up to 16 mm
PITCH = 43.0  # um between slots of cells: more than 2 * CELL_RADIUS[1] * LONGEST_RAY + GAP
GAP = 1.0  # um kept free around each cell

# Cells: mean radius in um, and amplitude of each harmonic of the outline as a share of it, at
# most. The first harmonic moves the nucleus off centre, the second makes the cell long.
CELL_RADIUS = (9.0, 13.0)
CELL_HARMONICS = (0.22, 0.28, 0.14, 0.10, 0.08)
LONGEST_RAY = 1.6  # as a share of the mean radius; outlines that reach farther are shrunk
NUCLEUS_RADIUS = (0.42, 0.58)  # share of the cell's radius
NUCLEUS_HARMONICS = (0.0, 0.10, 0.05)
NUCLEUS_LIMIT = 0.75  # share of the cell's radius that the nucleus reaches at most, on any ray
UNSEGMENTED = 0.02  # share of cells whose nucleus was not segmented

# Fields of view: batch effects.
NUCLEUS_FACTOR = (0.85, 1.15)
DETECTION_FACTOR = (0.7, 1.3)
DRIFT = 0.2  # um along x and along y at most, molecules against outlines

# Genes and pairs: fixed before any trained method saw the data (the difficulty of `synthetic`).
PREFERENCE = (0.50, 0.82)  # weight of a gene's preferred pattern, the others share the rest
NO_PATTERN = (0.05, 0.35)  # probability, per gene, that a pair has no pattern
TWO_PATTERNS = 0.11  # probability that a pair has two
STRENGTH = (0.50, 0.85)  # share of a pair's molecules that follow its patterns, the rest is noise
MIX = (0.35, 0.65)  # share of the first of two patterns in them
DEPTH = (0.6, 1.4)  # factor on a cell's counts, beside its area
DISPERSION = 3  # negative-binomial size; an integer, see _negative_binomial

# Compartments, um.
NUCLEAR_EDGE = 1.0  # on both sides of the nuclear outline
CELL_EDGE = 2.0  # inside the cell outline

BACKGROUND = len(PATTERNS)  # the compartment of noise, beside those of the patterns

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class _Genes:
    """What is true of a gene in every cell; arrays over genes."""

    rate: Floats  # expected molecules in an average cell
    preference: Floats  # (genes, patterns), rows sum to 1
    no_pattern: Floats  # probability that a pair has no pattern


@dataclass(frozen=True)
class _Field:
    """One field of view; cells, pairs and molecules are numbered within it."""

    boundary: Floats  # (cells, N_VERTICES, 2) um
    nucleus: Floats  # (cells, N_VERTICES, 2) um
    segmented: NDArray[np.bool_]  # (cells,)
    cell: Ints  # (pairs,)
    gene: Ints  # (pairs,)
    count: Ints  # (pairs,) molecules of each pair, at least one
    labels: NDArray[np.bool_]  # (pairs, patterns)
    xy: Floats  # (molecules, 2) um, in the order of the pairs


def simulate(
    seed: int,
    *,
    n_fovs: int = 100,
    cells_per_fov: int = 4,
    n_genes: int = 48,
    mean_molecules: float = 500.0,
) -> Release:
    """Draw a release of cells whose patterns are known.

    Each gene prefers one of :data:`PATTERNS`; what it does in a cell is drawn anew: no, one or two
    patterns. Most molecules of a pair lie in the compartments of its patterns, the rest is noise
    that, as in real cells, is densest in the middle. Counts are negative binomial. A field of view
    has its own nucleus size, detection rate and drift of the molecules against the outlines.

    Parameters
    ----------
    seed : int
        0 <= seed < 2**64; the same seed gives the same release.
    n_fovs, cells_per_fov, n_genes : int
        Size of the release; at least 1 each.
    mean_molecules : float
        Expected molecules of an average cell.

    Returns
    -------
    Release
        Micrometres, slide-global. Molecules are ordered by field of view, cell and gene; their
        ``fov``, ``cell_id`` and ``gene``, and those of the labels, are categorical. Labels hold
        every pair with at least one molecule, also those without a pattern. A nucleus that was not
        segmented is None (about 2 % of the cells); the labels do not depend on it.

    Notes
    -----
    Guaranteed: every outline is valid; cells do not overlap; every nucleus lies inside its cell;
    every molecule lies inside the outline of its cell as written; every coordinate is a multiple of
    1/1024 um, which float32 holds exactly up to 16 mm (over 100,000 cells); a field of view does
    not depend on how many others are drawn. Counts carry no information on patterns: genes of
    every preference are equally abundant.

    Examples
    --------
    >>> release = simulate(1, n_fovs=2, cells_per_fov=3)
    >>> release.cells["cell_id"].tolist()
    ['F001-01', 'F001-02', 'F001-03', 'F002-01', 'F002-02', 'F002-03']
    """
    genes = _draw_genes(_generator(seed, 0), n_genes, mean_molecules)
    fields = [_draw_field(_generator(seed, k + 1), k, cells_per_fov, genes) for k in range(n_fovs)]

    digits = max(2, len(str(n_genes)))
    gene_names = pd.Index([f"G{g + 1:0{digits}d}" for g in range(n_genes)])
    fov_names = pd.Index([f"F{k + 1:03d}" for k in range(n_fovs)])
    cell_names = pd.Index([f"{f}-{c + 1:02d}" for f in fov_names for c in range(cells_per_fov)])

    segmented = np.concatenate([field.segmented for field in fields])
    nuclei = np.full(len(segmented), None, dtype=object)
    nuclei[segmented] = shapely.polygons(np.concatenate([f.nucleus for f in fields])[segmented])
    cells = pd.DataFrame(
        {
            "fov": fov_names.repeat(cells_per_fov),
            "cell_id": cell_names,
            "cell_boundary": shapely.polygons(np.concatenate([f.boundary for f in fields])),
            "nucleus_boundary": pd.Series(nuclei, dtype=object),
            "touches_border": False,
        }
    )

    cell = np.concatenate([f.cell + k * cells_per_fov for k, f in enumerate(fields)])
    gene = np.concatenate([field.gene for field in fields])
    count = np.concatenate([field.count for field in fields])
    truth = np.concatenate([field.labels for field in fields]).astype(np.int8)
    labels = pd.DataFrame(
        {
            "cell_id": pd.Categorical.from_codes(cell, cell_names),
            "gene": pd.Categorical.from_codes(gene, gene_names),
            **{pattern: truth[:, k] for k, pattern in enumerate(PATTERNS)},
        }
    )

    cell, gene = np.repeat(cell, count), np.repeat(gene, count)
    xy = np.concatenate([field.xy for field in fields])
    molecules = pd.DataFrame(
        {
            "fov": pd.Categorical.from_codes(cell // cells_per_fov, fov_names),
            "cell_id": pd.Categorical.from_codes(cell, cell_names),
            "gene": pd.Categorical.from_codes(gene, gene_names),
            "x": xy[:, 0],
            "y": xy[:, 1],
        }
    )
    return Release(molecules, cells, labels)


def _generator(seed: int, stream: int) -> np.random.Generator:
    """Stream 0 draws the genes, stream k + 1 draws field of view k."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def _uniform(
    rng: np.random.Generator, limits: tuple[float, float], shape: tuple[int, ...] = ()
) -> Floats:
    low, high = limits
    return np.asarray(low + (high - low) * rng.random(shape))


def _on_grid(um: Floats) -> Floats:
    return np.rint(um * GRID) / GRID


def _draw_genes(rng: np.random.Generator, n_genes: int, mean_molecules: float) -> _Genes:
    n_patterns = len(PATTERNS)
    # Abundance is a fixed ladder: most genes near the middle, a handful far up or down.
    ladder = np.linspace(-1.0, 1.0, n_genes)
    rate = np.exp(0.8 * ladder + 0.6 * ladder**3)
    # Neighbours on the ladder prefer different patterns, so that counts do not tell the pattern.
    preferred = np.argsort(rng.random((ceil(n_genes / n_patterns), n_patterns)), axis=1).ravel()
    preference = rng.random((n_genes, n_patterns))
    preference[np.arange(n_genes), preferred[:n_genes]] = 0.0
    weight = _uniform(rng, PREFERENCE, (n_genes, 1))
    preference *= (1.0 - weight) / preference.sum(axis=1, keepdims=True)
    preference[np.arange(n_genes), preferred[:n_genes]] = weight[:, 0]
    name = np.argsort(rng.random(n_genes))  # so that names do not tell the abundance
    return _Genes(
        (rate * mean_molecules / rate.sum())[name],
        preference[name],
        _uniform(rng, NO_PATTERN, (n_genes,)),
    )


def _draw_field(rng: np.random.Generator, index: int, n_cells: int, genes: _Genes) -> _Field:
    """Draw field of view `index` with `n_cells` cells."""
    nucleus_factor = _uniform(rng, NUCLEUS_FACTOR)
    detection = _uniform(rng, DETECTION_FACTOR)
    drift = _uniform(rng, (-DRIFT, DRIFT), (2,))

    radius = _uniform(rng, CELL_RADIUS, (n_cells, 1))
    nucleus_radius = radius * _uniform(rng, NUCLEUS_RADIUS, (n_cells, 1)) * nucleus_factor
    boundary_radii = radius * _draw_outline(rng, CELL_HARMONICS, n_cells)
    nucleus_radii = nucleus_radius * _draw_outline(rng, NUCLEUS_HARMONICS, n_cells)
    nucleus_radii = np.minimum(nucleus_radii, NUCLEUS_LIMIT * boundary_radii)
    angles = np.arange(N_VERTICES) * (2.0 * np.pi / N_VERTICES)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    boundary = _on_grid(boundary_radii[:, :, None] * rays)
    nucleus = _on_grid(nucleus_radii[:, :, None] * rays)

    depth = _uniform(rng, DEPTH, (n_cells, 1))
    mean = detection * depth * (radius / np.mean(CELL_RADIUS)) ** 2 * genes.rate
    counts = _negative_binomial(rng, mean)
    cell, gene = np.nonzero(counts)
    count = counts[cell, gene]

    labels, compartment = _draw_patterns(rng, genes, gene, count)
    owner = np.repeat(cell, count)
    xy = _draw_positions(rng, boundary, nucleus, owner, compartment) + drift
    xy = _on_grid(_mirror_inside(xy, boundary, owner))

    corner = _draw_corners(rng, index, boundary)
    return _Field(
        boundary + corner[:, None],
        nucleus + corner[:, None],
        rng.random(n_cells) >= UNSEGMENTED,
        cell,
        gene,
        count,
        labels,
        xy + corner[owner],
    )


def _draw_outline(rng: np.random.Generator, harmonics: tuple[float, ...], n_cells: int) -> Floats:
    """Radii of irregular outlines around a mean of 1; (cells, N_VERTICES)."""
    angles = np.arange(N_VERTICES) * (2.0 * np.pi / N_VERTICES)
    radii = np.ones((n_cells, N_VERTICES))
    for order, largest in enumerate(harmonics, 1):
        phase = _uniform(rng, (0.0, 2.0 * np.pi), (n_cells, 1))
        radii += _uniform(rng, (0.0, largest), (n_cells, 1)) * np.cos(order * angles - phase)
    radii *= np.minimum(1.0, LONGEST_RAY / radii.max(axis=1, keepdims=True))
    return radii


def _draw_corners(rng: np.random.Generator, index: int, boundary: Floats) -> Floats:
    """Where each cell's origin lies on the slide, um: each cell has a slot of its own."""
    n_cells = len(boundary)
    columns = ceil(sqrt(n_cells))
    slot = np.stack(np.divmod(np.arange(n_cells), columns)[::-1], axis=1)
    # Fields of view fill growing squares: the place of one does not depend on their number.
    shell = isqrt(index)
    step = index - shell * shell
    tile = (shell, step) if step <= shell else (2 * shell - step, shell)
    low, high = boundary.min(axis=1), boundary.max(axis=1)
    free = PITCH - GAP - (high - low)
    corner = (np.asarray(tile) * columns + slot) * PITCH + GAP / 2
    return np.asarray(corner + _on_grid(free * rng.random((n_cells, 2))) - low)


def _negative_binomial(rng: np.random.Generator, mean: Floats) -> Ints:
    """Counts of variance mean + mean**2 / DISPERSION: the sum of DISPERSION geometric counts."""
    log_failure = np.log(mean / (mean + DISPERSION))
    total = np.zeros(mean.shape, dtype=np.intp)
    for _ in range(DISPERSION):
        total += np.floor(np.log1p(-rng.random(mean.shape)) / log_failure).astype(np.intp)
    return total


def _draw_patterns(
    rng: np.random.Generator, genes: _Genes, gene: Ints, count: Ints
) -> tuple[NDArray[np.bool_], Ints]:
    """Patterns of each pair, (pairs, patterns), and the compartment of each molecule."""
    n_pairs = len(gene)
    # A race of exponential clocks draws patterns without replacement, by preference.
    finish = -np.log1p(-rng.random((n_pairs, len(PATTERNS)))) / genes.preference[gene]
    order = np.argsort(finish, axis=1)
    u = rng.random(n_pairs)
    has_two = u < TWO_PATTERNS
    has_any = u < 1.0 - genes.no_pattern[gene]
    labels = np.zeros((n_pairs, len(PATTERNS)), dtype=np.bool_)
    labels[np.arange(n_pairs), order[:, 0]] = has_any
    labels[has_two, order[has_two, 1]] = True

    strength = np.where(has_any, _uniform(rng, STRENGTH, (n_pairs,)), 0.0)
    first = np.where(has_two, _uniform(rng, MIX, (n_pairs,)), 1.0) * strength
    pair = np.repeat(np.arange(n_pairs), count)
    u = rng.random(len(pair))
    compartment = np.where(u < first[pair], order[pair, 0], order[pair, 1])
    return labels, np.where(u < strength[pair], compartment, BACKGROUND)


def _limits(nucleus: Floats, boundary: Floats) -> tuple[list[Floats], list[Floats]]:
    """Inner and outer radius of each compartment, in the order of PATTERNS, then BACKGROUND.

    Parameters are the radii of the nucleus and of the cell on the same rays, um.
    """
    inside = np.maximum(nucleus - NUCLEAR_EDGE, 0.0)
    outside = np.minimum(nucleus + NUCLEAR_EDGE, boundary)
    rim = np.maximum(boundary - CELL_EDGE, nucleus)
    zero = np.zeros_like(nucleus)
    inner = [rim, outside, zero, inside, zero]
    # On a ray without room between the two bands, the cytoplasm has no width.
    outer = [boundary, np.maximum(rim, outside), nucleus, outside, boundary]
    return inner, outer


def _draw_positions(
    rng: np.random.Generator, boundary: Floats, nucleus: Floats, cell: Ints, compartment: Ints
) -> Floats:
    """One position in each given compartment of each given cell; (molecules, 2)."""
    next_boundary, next_nucleus = np.roll(boundary, -1, axis=1), np.roll(nucleus, -1, axis=1)
    middle = [(a + b) / 2 for a, b in ((nucleus, next_nucleus), (boundary, next_boundary))]
    inner, outer = _limits(*(np.hypot(m[..., 0], m[..., 1]) for m in middle))
    area = np.stack(outer, axis=1) ** 2 - np.stack(inner, axis=1) ** 2
    share = np.cumsum(area, axis=2)
    share /= share[:, :, -1:]

    # Sector by area: one search in all cells' cumulative shares, each raised by its row number.
    row = cell * area.shape[1] + compartment
    raised = (share.reshape(-1, N_VERTICES) + np.arange(share[..., 0].size)[:, None]).ravel()
    found = np.searchsorted(raised, row + rng.random(len(row)), side="right")
    sector = np.minimum(found - row * N_VERTICES, N_VERTICES - 1)

    along = rng.random((len(row), 1))
    rim = (1.0 - along) * boundary[cell, sector] + along * next_boundary[cell, sector]
    edge = (1.0 - along) * nucleus[cell, sector] + along * next_nucleus[cell, sector]
    rim_radius, edge_radius = np.hypot(rim[:, 0], rim[:, 1]), np.hypot(edge[:, 0], edge[:, 1])
    inner, outer = _limits(edge_radius, rim_radius)
    # Noise: disks of random size make it 1.75 times as dense in the middle as a uniform cell, 0.44
    # times at the rim, which is what U-2 OS cells show.
    outer[BACKGROUND] = rim_radius * np.minimum(0.43 + rng.random(len(row)) * 0.57 / 0.56, 1.0)
    low, high = np.choose(compartment, inner), np.choose(compartment, outer)
    radius = np.sqrt(low**2 + rng.random(len(row)) * (high**2 - low**2))

    # Towards the nuclear outline, and from there towards the cell's.
    inwards = np.minimum(radius / edge_radius, 1.0)
    outwards = np.maximum((radius - edge_radius) / (rim_radius - edge_radius), 0.0)
    return np.asarray(edge * inwards[:, None] + (rim - edge) * outwards[:, None])


def _mirror_inside(xy: Floats, boundary: Floats, cell: Ints) -> Floats:
    """Mirror at the cell's outline what lies outside it, or nearer to it than rounding may move."""
    limit = 0.995
    turn = np.arctan2(xy[:, 1], xy[:, 0]) * (N_VERTICES / (2.0 * np.pi))
    sector = np.floor(turn).astype(np.intp) % N_VERTICES
    start, end = boundary[cell, sector], boundary[cell, (sector + 1) % N_VERTICES]
    edge = end - start
    # Share of the way from the origin to the outline, by cross products.
    reach = (xy[:, 0] * edge[:, 1] - xy[:, 1] * edge[:, 0]) / (
        start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0]
    )
    beyond = reach > limit
    factor = np.ones_like(reach)
    factor[beyond] = (2.0 * limit - reach[beyond]) / reach[beyond]
    return xy * factor[:, None]
