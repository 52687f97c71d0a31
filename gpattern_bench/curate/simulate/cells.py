"""Simulated releases with known patterns: the source of ``synthetic``, and large ones to test with.

A cell is two outlines in polar coordinates around the centre of its nucleus: radius of the nucleus
and of the cell at the same :data:`N_VERTICES` angles. A compartment (:func:`_limits`) is then a
range of radii along each ray, so that a molecule is drawn in three steps, for all molecules of a
field of view at once: its compartment, its sector (by the compartment's area), its radius.

Every value comes from :meth:`numpy.random.Generator.random` of a Philox generator, a counter-based
one, and every coordinate is a multiple of 1/1024 um: another CPU or numpy draws the same release.
The other methods of ``Generator`` (poisson, gamma, ...) are avoided, since numpy may change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, isqrt, sqrt

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from gpattern_bench.curate.release import Piece, Release, in_memory
from gpattern_bench.errors import SourceError, UnknownDatasetError
from gpattern_bench.sources.patterns import FOUR_PATTERNS

__all__ = [
    "COMPARTMENTS",
    "N_VERTICES",
    "PATTERNS",
    "compartments",
    "membrane_edge",
    "pieces_like",
    "simulate",
    "simulate_like",
    "simulate_tissue",
]

PATTERNS = FOUR_PATTERNS
COMPARTMENTS = ("nuclear", "membrane", "cytoplasmic")
"""Patterns of CosMx, which are the compartments that a pair's molecules lie in."""

N_VERTICES = 48

GRID = 1024.0  # coordinates are multiples of 1/GRID um: exact in float32 up to 16 mm

# Cells: amplitude of each harmonic of the outline as a share of the mean radius, at most. The
# first harmonic moves the nucleus off centre, the second makes the cell long.
CELL_HARMONICS = (0.22, 0.28, 0.14, 0.10, 0.08)
NUCLEUS_RADIUS = (0.42, 0.58)  # share of the cell's radius
NUCLEUS_HARMONICS = (0.0, 0.10, 0.05)
NUCLEUS_LIMIT = 0.75  # share of the cell's radius that the nucleus reaches at most, on any ray
UNSEGMENTED = 0.02  # share of cells whose nucleus was not segmented

# Fields of view: batch effects.
NUCLEUS_FACTOR = (0.85, 1.15)
DETECTION_FACTOR = (0.7, 1.3)

# Genes and pairs: fixed before any trained method saw the data (the difficulty of `synthetic`).
PREFERENCE = (0.50, 0.82)  # weight of a gene's preferred pattern, the others share the rest
NO_PATTERN = (0.05, 0.35)  # probability, per gene, that a pair has no pattern
TWO_PATTERNS = 0.11  # probability that a pair has two
STRENGTH = (0.50, 0.85)  # share of a pair's molecules that follow its patterns, the rest is noise
MIX = (0.35, 0.65)  # share of the first of two patterns in them
DEPTH = (0.6, 1.4)  # factor on a cell's counts, beside its area

# Compartments, um.
NUCLEAR_EDGE = 1.0  # on both sides of the nuclear outline
CELL_EDGE = 2.0  # inside the cell outline
MEMBRANE = 0.7  # likewise, of the smaller cells that have a membrane pattern

CELLS_SPREAD = 0.1  # fields of view hold as many more or fewer cells than on average
_LEAST_FOVS = 3  # one for each split
_SYNTHETIC_FOVS, _SYNTHETIC_CELLS = 100, 4  # of `synthetic`: fields of view, cells of each

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def _adherent_limits(nucleus: Floats, boundary: Floats) -> tuple[list[Floats], list[Floats]]:
    """Inner and outer radius of each compartment, in the order of PATTERNS, then background.

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


def _tissue_limits(nucleus: Floats, boundary: Floats) -> tuple[list[Floats], list[Floats]]:
    """Likewise, in the order of COMPARTMENTS."""
    rim = np.maximum(boundary - MEMBRANE, nucleus)
    zero = np.zeros_like(nucleus)
    return [zero, rim, nucleus, zero], [nucleus, boundary, rim, boundary]


@dataclass(frozen=True)
class _Kind:
    """What cells of one kind are like, and how they lie on the slide; lengths in um."""

    patterns: tuple[str, ...]
    limits: Callable[[Floats, Floats], tuple[list[Floats], list[Floats]]]
    planted: bool  # labels say what was planted, else the rule of `_majority` where molecules lie
    cell_radius: tuple[float, float]  # mean radius of a cell
    longest_ray: float  # as a share of the mean radius; outlines that reach farther are shrunk
    pitch: float  # between slots of cells: more than 2 * cell_radius[1] * longest_ray + gap
    gap: float  # kept free around each cell
    tile: tuple[float, float] | None  # of a field of view; None = square, as large as needed
    drift: float  # along x and along y at most, molecules against outlines
    ladder: tuple[float, float]  # how far abundances of genes are apart
    dispersion: int  # negative-binomial size of the counts, see _negative_binomial


_ADHERENT = _Kind(
    PATTERNS,
    _adherent_limits,
    planted=True,
    cell_radius=(9.0, 13.0),
    longest_ray=1.6,
    pitch=43.0,
    gap=1.0,
    tile=None,
    drift=0.2,
    ladder=(0.8, 0.6),
    dispersion=3,
)
_TISSUE = _Kind(
    COMPARTMENTS,
    _tissue_limits,
    planted=False,
    cell_radius=(3.6, 5.1),
    longest_ray=1.2,
    pitch=12.75,
    gap=0.5,
    tile=(985.0, 657.0),  # of CosMx: 5472 x 3648 pixels of 0.18 um
    drift=0.1,
    ladder=(1.0, 1.2),
    dispersion=1,
)


@dataclass(frozen=True)
class _Size:
    """How large a release is; its fields of view, and the cells in each, count from `first`."""

    kind: _Kind
    n_fovs: int
    n_cells: int
    n_genes: int
    mean_molecules: float  # per cell, over the whole release
    first: int


_SIZES = {  # as table 1 of the paper publishes them
    "nih3t3": _Size(_ADHERENT, 17, 179, 3_721, 15_222.0, first=0),
    "u2os": _Size(_ADHERENT, 68, 1_022, 130, 10_405.0, first=0),
    "cosmx_lung": _Size(_TISSUE, 30, 100_149, 960, 303.0, first=1),
}


@dataclass(frozen=True)
class _Genes:
    """What is true of a gene in every cell; arrays over genes."""

    rate: Floats  # expected molecules in an average cell
    preference: Floats  # (genes, patterns), rows sum to 1
    no_pattern: Floats  # probability that a pair has no pattern


@dataclass(frozen=True)
class _Cells:
    """The cells of one field of view, each around the origin."""

    boundary: Floats  # (cells, N_VERTICES, 2) um
    nucleus: Floats  # (cells, N_VERTICES, 2) um
    exposure: Floats  # (cells, 1): factor on the counts of an average cell
    drift: Floats  # (2,) um


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
    n_fovs: int = _SYNTHETIC_FOVS,
    cells_per_fov: int = _SYNTHETIC_CELLS,
    n_genes: int = 48,
    mean_molecules: float = 500.0,
    gene_seed: int | None = None,
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
    gene_seed : int, optional
        Of what is true of a gene in every cell; default: `seed`. Two releases of one `gene_seed`
        are other cells of the same genes.

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
    kind = _ADHERENT
    of_genes = _generator(seed if gene_seed is None else gene_seed, 0)
    genes = _draw_genes(of_genes, kind, n_genes, mean_molecules)
    grid = _grid(kind, cells_per_fov)
    fields = []
    for k in range(n_fovs):
        rng = _generator(seed, k + 1)
        fields.append(_draw_field(rng, kind, _draw_cells(rng, kind, cells_per_fov), k, grid, genes))
    fovs = [f"F{k + 1:03d}" for k in range(n_fovs)]
    cells = [[f"{fov}-{c + 1:02d}" for c in range(cells_per_fov)] for fov in fovs]
    return _release(kind, fields, fovs, cells, n_genes)


def simulate_like(like: str, seed: int, n_cells: int | None = None) -> Iterator[Release]:
    """Draw a release as large as a dataset of the paper, one field of view at a time.

    ========== ========= ======= ===== ================== ============================
    like       cells     genes   FOVs  molecules per cell patterns
    ========== ========= ======= ===== ================== ============================
    nih3t3     179       3,721   17    15,222             :data:`PATTERNS`
    u2os       1,022     130     68    10,405             :data:`PATTERNS`
    cosmx_lung 100,149   960     30    303                :data:`COMPARTMENTS`
    ========== ========= ======= ===== ================== ============================

    Cells and genes are exactly as many, molecules nearly (counts are random, their expectation is
    exact). Cells of ``nih3t3`` and ``u2os`` are like those of :func:`simulate`. Those of
    ``cosmx_lung`` are smaller, a field of view fits into an image of 5472 x 3648 pixels of
    0.18 um, and the labels follow the CosMx rule: a pair has each pattern whose compartment
    (:func:`compartments`) holds at least half of its molecules.

    Parameters
    ----------
    like : {"synthetic", "nih3t3", "u2os", "cosmx_lung"}
        ``synthetic`` is what :func:`simulate` draws by default.
    seed : int
        0 <= seed < 2**64; the same seed and number of cells give the same pieces.
    n_cells : int, optional
        Draw so many cells, in fewer fields of view of about as many cells each, but at least
        three, one for each split: another release of the same kind, not the first cells of the
        whole one. Of ``synthetic``, draw the first fields of view of the whole one, each of four
        cells. Default: as many cells as the dataset has.

    Yields
    ------
    Release
        A field of view, in the order of their names sorted as text; cells are named
        ``<number>-<fov>``. What :func:`simulate` guarantees holds, except that a field of view
        depends on how many there are.

    Raises
    ------
    UnknownDatasetError
        No release is drawn by that name.
    SourceError
        So many cells cannot be drawn; the message says which numbers can.
    """
    return (piece() for piece in pieces_like(like, seed, n_cells))


def pieces_like(like: str, seed: int, n_cells: int | None = None) -> Iterator[Piece]:
    """Yield what :func:`simulate_like` draws as pieces, each drawn when it is called."""
    if like == "synthetic":
        n_fovs = _SYNTHETIC_FOVS if n_cells is None else _fovs_of_synthetic(n_cells)
        return (in_memory(release) for release in _by_fov(simulate(seed, n_fovs=n_fovs)))
    if like not in _SIZES:
        known = ", ".join(["synthetic", *_SIZES])
        raise UnknownDatasetError(f"no simulated release is like {like!r}; there are {known}")
    size = _SIZES[like]
    return _fields(size if n_cells is None else _smaller(size, like, n_cells), seed)


def _fovs_of_synthetic(n_cells: int) -> int:
    """Give the number of fields of view of `synthetic` that hold so many cells."""
    n_fovs, rest = divmod(n_cells, _SYNTHETIC_CELLS)
    if rest or not _LEAST_FOVS <= n_fovs <= _SYNTHETIC_FOVS:
        raise SourceError(
            f"synthetic has fields of view of {_SYNTHETIC_CELLS} cells: expected a multiple of "
            f"{_SYNTHETIC_CELLS} from {_LEAST_FOVS * _SYNTHETIC_CELLS} to "
            f"{_SYNTHETIC_FOVS * _SYNTHETIC_CELLS} cells (--cells), got "
            f"{n_cells:,}"
        )
    return n_fovs


def _smaller(size: _Size, like: str, n_cells: int) -> _Size:
    """Shrink a release to so many cells; its fields of view hold about as many as before."""
    if not _LEAST_FOVS <= n_cells <= size.n_cells:
        raise SourceError(
            f"{like} has {size.n_cells:,} cells, and each split needs a field of view: expected "
            f"{_LEAST_FOVS} to {size.n_cells:,} cells (--cells), got {n_cells:,}"
        )
    n_fovs = max(_LEAST_FOVS, round(size.n_fovs * n_cells / size.n_cells))
    return replace(size, n_fovs=n_fovs, n_cells=n_cells)


def simulate_tissue(
    seed: int, *, n_fovs: int, n_cells: int, n_genes: int, mean_molecules: float
) -> Iterator[Release]:
    """Draw a release of any size whose cells are like those of ``cosmx_lung``.

    Parameters
    ----------
    seed : int
        0 <= seed < 2**64; the same seed and size give the same pieces.
    n_fovs, n_cells, n_genes : int
        Size of the whole release; at least 1 each. Fields of view hold up to a tenth more or fewer
        cells than on average.
    mean_molecules : float
        Expected molecules of a cell, over the whole release.

    Yields
    ------
    Release
        As of :func:`simulate_like`.

    Raises
    ------
    SourceError
        A field of view, which is as large as CosMx's, has no room for its cells.

    Examples
    --------
    >>> pieces = simulate_tissue(1, n_fovs=2, n_cells=40, n_genes=5, mean_molecules=20.0)
    >>> [len(piece.cells) for piece in pieces]
    [18, 22]
    """
    return _pieces(_Size(_TISSUE, n_fovs, n_cells, n_genes, mean_molecules, first=1), seed)


def compartments(xy: Floats, cell: Ints, boundary: Floats, nucleus: Floats) -> Ints:
    """Find the compartment that each molecule lies in.

    The membrane is what lies outside the cell's outline moved inwards by 0.7 um along its rays, but
    no farther than half of each ray, and not in the nucleus.

    Parameters
    ----------
    xy : (molecules, 2) array
        Positions around the origin of the molecule's cell, um.
    cell : (molecules,) array of int
        Row of `boundary`.
    boundary, nucleus : (cells, N_VERTICES, 2) arrays
        Outlines around the origin of each cell, vertex k on the ray of angle
        2 pi k / N_VERTICES, um; NaN = no nucleus.

    Returns
    -------
    (molecules,) array of int
        Indices into :data:`COMPARTMENTS`.
    """
    nuclear = _reach(xy, nucleus, cell) < 1.0
    beyond = _reach(xy, membrane_edge(boundary), cell) > 1.0
    return np.where(nuclear, 0, np.where(beyond, 1, 2))


def membrane_edge(boundary: Floats) -> Floats:
    """Inner edge of the membrane (see :func:`compartments`); like `boundary`."""
    radius = np.hypot(boundary[..., 0], boundary[..., 1])[..., None]
    return _on_grid(boundary * np.maximum(1.0 - MEMBRANE / radius, 0.5))


def _by_fov(release: Release) -> Iterator[Release]:
    """Cut a release of :func:`simulate` into its fields of view."""
    molecules, cells, labels = release.molecules, release.cells, release.labels
    assert labels is not None, "simulated releases have labels"
    of_label = cells["fov"].to_numpy()[labels["cell_id"].cat.codes]
    for fov in molecules["fov"].cat.categories:
        parts = [molecules[molecules["fov"] == fov], labels[of_label == fov]]
        for k, part in enumerate(parts):
            names = [name for name in ("fov", "cell_id") if name in part]
            unused = {name: part[name].cat.remove_unused_categories() for name in names}
            parts[k] = part.assign(**unused).reset_index(drop=True)
        yield Release(parts[0], cells[cells["fov"] == fov].reset_index(drop=True), parts[1])


def _pieces(size: _Size, seed: int) -> Iterator[Release]:
    """Draw a release of exactly `size`."""
    return (piece() for piece in _fields(size, seed))


def _fields(size: _Size, seed: int) -> Iterator[Piece]:
    """Fix what its fields of view share, and yield them as pieces to draw."""
    kind = size.kind
    rng = _generator(seed, 0)
    genes = _draw_genes(rng, kind, size.n_genes, size.mean_molecules)
    weight = np.linspace(1.0 - CELLS_SPREAD, 1.0 + CELLS_SPREAD, size.n_fovs)
    total = np.cumsum(weight[np.argsort(rng.random(size.n_fovs))])
    n_cells = np.diff(np.rint(total * (size.n_cells / total[-1])), prepend=0.0).astype(np.intp)
    grid = _grid(kind, int(n_cells.max()))
    # Cells are drawn twice: the first time to learn what they add up to.
    exposure = sum(
        float(_draw_cells(_generator(seed, k + 1), kind, int(n)).exposure.sum())
        for k, n in enumerate(n_cells)
    )
    genes = _Genes(genes.rate * size.n_cells / exposure, genes.preference, genes.no_pattern)
    fovs = [str(size.first + k) for k in range(size.n_fovs)]
    for k in sorted(range(size.n_fovs), key=fovs.__getitem__):
        yield partial(_field_of, size, seed, k, int(n_cells[k]), grid, genes)


def _field_of(
    size: _Size, seed: int, k: int, n_cells: int, grid: tuple[int, Floats], genes: _Genes
) -> Release:
    """Draw field of view k of a release."""
    rng = _generator(seed, k + 1)
    cells = _draw_cells(rng, size.kind, n_cells)
    field = _draw_field(rng, size.kind, cells, k, grid, genes)
    fov = str(size.first + k)
    names = [f"{size.first + c}-{fov}" for c in range(n_cells)]
    return _release(size.kind, [field], [fov], [names], size.n_genes)


def _release(
    kind: _Kind,
    fields: Sequence[_Field],
    fovs: Sequence[str],
    cell_ids: Sequence[Sequence[str]],
    n_genes: int,
) -> Release:
    """Name and join fields of view."""
    digits = max(2, len(str(n_genes)))
    gene_names = pd.Index([f"G{g + 1:0{digits}d}" for g in range(n_genes)])
    fov_names = pd.Index(fovs)
    cell_names = pd.Index([name for names in cell_ids for name in names])
    sizes = np.array([len(names) for names in cell_ids])
    first = np.cumsum(sizes) - sizes
    fov = np.repeat(np.arange(len(sizes)), sizes)

    segmented = np.concatenate([field.segmented for field in fields])
    nuclei = np.full(len(segmented), None, dtype=object)
    nuclei[segmented] = shapely.polygons(np.concatenate([f.nucleus for f in fields])[segmented])
    cells = pd.DataFrame(
        {
            "fov": fov_names[fov],
            "cell_id": cell_names,
            "cell_boundary": shapely.polygons(np.concatenate([f.boundary for f in fields])),
            "nucleus_boundary": pd.Series(nuclei, dtype=object),
            "touches_border": False,
        }
    )

    cell = np.concatenate([f.cell + start for start, f in zip(first, fields, strict=True)])
    gene = np.concatenate([field.gene for field in fields])
    count = np.concatenate([field.count for field in fields])
    truth = np.concatenate([field.labels for field in fields]).astype(np.int8)
    labels = pd.DataFrame(
        {
            "cell_id": pd.Categorical.from_codes(cell, cell_names),
            "gene": pd.Categorical.from_codes(gene, gene_names),
            **{pattern: truth[:, k] for k, pattern in enumerate(kind.patterns)},
        }
    )

    cell, gene = np.repeat(cell, count), np.repeat(gene, count)
    xy = np.concatenate([field.xy for field in fields])
    molecules = pd.DataFrame(
        {
            "fov": pd.Categorical.from_codes(fov[cell], fov_names),
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


def _draw_genes(
    rng: np.random.Generator, kind: _Kind, n_genes: int, mean_molecules: float
) -> _Genes:
    n_patterns = len(kind.patterns)
    # Abundance is a fixed ladder: most genes near the middle, a handful far up or down.
    ladder = np.linspace(-1.0, 1.0, n_genes)
    rate = np.exp(kind.ladder[0] * ladder + kind.ladder[1] * ladder**3)
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


def _draw_cells(rng: np.random.Generator, kind: _Kind, n_cells: int) -> _Cells:
    """Draw what comes before the molecules."""
    nucleus_factor = _uniform(rng, NUCLEUS_FACTOR)
    detection = _uniform(rng, DETECTION_FACTOR)
    drift = _uniform(rng, (-kind.drift, kind.drift), (2,))

    radius = _uniform(rng, kind.cell_radius, (n_cells, 1))
    nucleus_radius = radius * _uniform(rng, NUCLEUS_RADIUS, (n_cells, 1)) * nucleus_factor
    boundary_radii = radius * _draw_outline(rng, CELL_HARMONICS, n_cells, kind.longest_ray)
    nucleus_radii = nucleus_radius * _draw_outline(
        rng, NUCLEUS_HARMONICS, n_cells, kind.longest_ray
    )
    nucleus_radii = np.minimum(nucleus_radii, NUCLEUS_LIMIT * boundary_radii)
    angles = np.arange(N_VERTICES) * (2.0 * np.pi / N_VERTICES)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    depth = _uniform(rng, DEPTH, (n_cells, 1))
    return _Cells(
        _on_grid(boundary_radii[:, :, None] * rays),
        _on_grid(nucleus_radii[:, :, None] * rays),
        detection * depth * (radius / np.mean(kind.cell_radius)) ** 2,
        drift,
    )


def _draw_field(
    rng: np.random.Generator,
    kind: _Kind,
    cells: _Cells,
    index: int,
    grid: tuple[int, Floats],
    genes: _Genes,
) -> _Field:
    """Draw the molecules of field of view `index`, and where it lies."""
    boundary, nucleus = cells.boundary, cells.nucleus
    counts = _negative_binomial(rng, cells.exposure * genes.rate, kind.dispersion)
    cell, gene = np.nonzero(counts)
    count = counts[cell, gene]

    labels, compartment = _draw_patterns(rng, genes, gene, count)
    owner = np.repeat(cell, count)
    xy = _draw_positions(rng, kind, boundary, nucleus, owner, compartment) + cells.drift
    xy = _on_grid(_mirror_inside(xy, boundary, owner))

    corner = _draw_corners(rng, kind, index, grid, boundary)
    segmented = rng.random(len(boundary)) >= UNSEGMENTED
    if not kind.planted:
        seen = np.where(segmented[:, None, None], nucleus, np.nan)
        labels = _majority(compartments(xy, owner, boundary, seen), count)
    return _Field(
        boundary + corner[:, None],
        nucleus + corner[:, None],
        segmented,
        cell,
        gene,
        count,
        labels,
        xy + corner[owner],
    )


def _majority(compartment: Ints, count: Ints) -> NDArray[np.bool_]:
    """Test whether half of a pair's molecules or more lie in each compartment: (pairs, 3)."""
    n_pairs, n_compartments = len(count), len(COMPARTMENTS)
    row = np.repeat(np.arange(n_pairs) * n_compartments, count) + compartment
    held = np.bincount(row, minlength=n_pairs * n_compartments).reshape(n_pairs, n_compartments)
    return np.asarray(2 * held >= count[:, None])


def _draw_outline(
    rng: np.random.Generator, harmonics: tuple[float, ...], n_cells: int, longest_ray: float
) -> Floats:
    """Radii of irregular outlines around a mean of 1; (cells, N_VERTICES)."""
    angles = np.arange(N_VERTICES) * (2.0 * np.pi / N_VERTICES)
    radii = np.ones((n_cells, N_VERTICES))
    for order, largest in enumerate(harmonics, 1):
        phase = _uniform(rng, (0.0, 2.0 * np.pi), (n_cells, 1))
        radii += _uniform(rng, (0.0, largest), (n_cells, 1)) * np.cos(order * angles - phase)
    radii *= np.minimum(1.0, longest_ray / radii.max(axis=1, keepdims=True))
    return radii


def _grid(kind: _Kind, most_cells: int) -> tuple[int, Floats]:
    """Columns of slots in a field of view that holds `most_cells` at most, and its size in um."""
    if kind.tile is None:
        columns = ceil(sqrt(most_cells))
        return columns, np.full(2, columns * kind.pitch)
    columns = int(kind.tile[0] / kind.pitch)
    room = columns * int(kind.tile[1] / kind.pitch)
    if most_cells > room:
        raise SourceError(
            f"a simulated field of view has room for {room:,} cells, and one would hold "
            f"{most_cells:,}: draw more fields of view or fewer cells"
        )
    return columns, np.asarray(kind.tile)


def _draw_corners(
    rng: np.random.Generator, kind: _Kind, index: int, grid: tuple[int, Floats], boundary: Floats
) -> Floats:
    """Where each cell's origin lies on the slide, um: each cell has a slot of its own."""
    n_cells = len(boundary)
    columns, size = grid
    slot = np.stack(np.divmod(np.arange(n_cells), columns)[::-1], axis=1)
    # Fields of view fill growing squares: the place of one does not depend on their number.
    shell = isqrt(index)
    step = index - shell * shell
    tile = (shell, step) if step <= shell else (2 * shell - step, shell)
    low, high = boundary.min(axis=1), boundary.max(axis=1)
    free = kind.pitch - kind.gap - (high - low)
    corner = np.asarray(tile) * size + slot * kind.pitch + kind.gap / 2
    return np.asarray(corner + _on_grid(free * rng.random((n_cells, 2))) - low)


def _negative_binomial(rng: np.random.Generator, mean: Floats, dispersion: int) -> Ints:
    """Counts of variance mean + mean**2 / dispersion: the sum of that many geometric counts."""
    log_failure = np.log(mean / (mean + dispersion))
    total = np.zeros(mean.shape, dtype=np.intp)
    for _ in range(dispersion):
        total += np.floor(np.log1p(-rng.random(mean.shape)) / log_failure).astype(np.intp)
    return total


def _draw_patterns(
    rng: np.random.Generator, genes: _Genes, gene: Ints, count: Ints
) -> tuple[NDArray[np.bool_], Ints]:
    """Patterns of each pair, (pairs, patterns), and the compartment of each molecule."""
    n_pairs = len(gene)
    n_patterns = genes.preference.shape[1]
    # A race of exponential clocks draws patterns without replacement, by preference.
    finish = -np.log1p(-rng.random((n_pairs, n_patterns))) / genes.preference[gene]
    order = np.argsort(finish, axis=1)
    u = rng.random(n_pairs)
    has_two = u < TWO_PATTERNS
    has_any = u < 1.0 - genes.no_pattern[gene]
    labels = np.zeros((n_pairs, n_patterns), dtype=np.bool_)
    labels[np.arange(n_pairs), order[:, 0]] = has_any
    labels[has_two, order[has_two, 1]] = True

    strength = np.where(has_any, _uniform(rng, STRENGTH, (n_pairs,)), 0.0)
    first = np.where(has_two, _uniform(rng, MIX, (n_pairs,)), 1.0) * strength
    pair = np.repeat(np.arange(n_pairs), count)
    u = rng.random(len(pair))
    compartment = np.where(u < first[pair], order[pair, 0], order[pair, 1])
    # Noise has a compartment of its own, beside those of the patterns.
    return labels, np.where(u < strength[pair], compartment, n_patterns)


def _draw_positions(
    rng: np.random.Generator,
    kind: _Kind,
    boundary: Floats,
    nucleus: Floats,
    cell: Ints,
    compartment: Ints,
) -> Floats:
    """One position in each given compartment of each given cell; (molecules, 2)."""
    next_boundary, next_nucleus = np.roll(boundary, -1, axis=1), np.roll(nucleus, -1, axis=1)
    middle = [(a + b) / 2 for a, b in ((nucleus, next_nucleus), (boundary, next_boundary))]
    inner, outer = kind.limits(*(np.hypot(m[..., 0], m[..., 1]) for m in middle))
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
    inner, outer = kind.limits(edge_radius, rim_radius)
    # Noise: disks of random size make it 1.75 times as dense in the middle as a uniform cell, 0.44
    # times at the rim, which is what U-2 OS cells show.
    outer[-1] = rim_radius * np.minimum(0.43 + rng.random(len(row)) * 0.57 / 0.56, 1.0)
    low, high = np.choose(compartment, inner), np.choose(compartment, outer)
    radius = np.sqrt(low**2 + rng.random(len(row)) * (high**2 - low**2))

    # Towards the nuclear outline, and from there towards the cell's.
    inwards = np.minimum(radius / edge_radius, 1.0)
    outwards = np.maximum((radius - edge_radius) / (rim_radius - edge_radius), 0.0)
    return np.asarray(edge * inwards[:, None] + (rim - edge) * outwards[:, None])


def _mirror_inside(xy: Floats, boundary: Floats, cell: Ints) -> Floats:
    """Mirror at the cell's outline what lies outside it, or nearer to it than rounding may move."""
    limit = 0.995
    reach = _reach(xy, boundary, cell)
    beyond = reach > limit
    factor = np.ones_like(reach)
    factor[beyond] = (2.0 * limit - reach[beyond]) / reach[beyond]
    return xy * factor[:, None]


def _reach(xy: Floats, outline: Floats, cell: Ints) -> Floats:
    """Share of the way from the origin to the cell's outline that each molecule has gone."""
    turn = np.arctan2(xy[:, 1], xy[:, 0]) * (N_VERTICES / (2.0 * np.pi))
    sector = np.floor(turn).astype(np.intp) % N_VERTICES
    start, end = outline[cell, sector], outline[cell, (sector + 1) % N_VERTICES]
    edge = end - start
    # By cross products.
    return np.asarray(
        (xy[:, 0] * edge[:, 1] - xy[:, 1] * edge[:, 0])
        / (start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0])
    )
