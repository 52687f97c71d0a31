"""What other genes tell about a place in the cell, for cells without a segmented nucleus.

Where no nucleus is known, molecules of genes that are usually nuclear show where it lies. A gene's
score for a pattern is the log-odds of the pattern among its pairs in the training cells, less that
of all pairs; a training cell's own pairs are left out of its scores, so that its labels do not
reach its own inputs. Each molecule is then described by the scores of the molecules of *other*
genes around it, by where it lies in the outline, and by what the cell is like.

Lengths here are micrometres: what is learnt serves one technology.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit
from gpattern_bench.base.geometry import contains, outline_distance
from gpattern_bench.data.cells import Cell, Cells

__all__ = ["GeneScores", "context_columns", "context_fields"]

_Floats = NDArray[np.float64]

_PRIOR = 10.0  # pairs of the average gene that are added to each gene's
_WIDTHS_UM = (
    0.5,
    1.0,
    2.0,
    4.0,
)  # of the Gaussians; the density has the first three, means the last
_GRID = 40  # points along each side of a cell's box
_REACH2 = 16.0**2  # um^2 beyond which the widest counts as 0

_GEOMETRY = ("depth", "shallower_area", "inner_area", "from_centroid", "relative_depth")
_CELL = ("log_molecules", "log_size", "log_density", "elongation", "convexity")


@dataclass(frozen=True, eq=False)
class GeneScores:
    """How often each gene shows each pattern in the training cells.

    Attributes
    ----------
    genes, patterns : tuple of str
    positive : numpy.ndarray
        (V, C) labelled pairs of each gene that show each pattern.
    labelled : numpy.ndarray
        (V,) labelled pairs of each gene.
    """

    genes: tuple[str, ...]
    patterns: tuple[str, ...]
    positive: _Floats
    labelled: _Floats

    @classmethod
    def count(cls, cells: Cells) -> GeneScores:
        """Count the labelled pairs of training cells."""
        positive = np.zeros((len(cells.genes), len(cells.patterns)))
        labelled = np.zeros(len(cells.genes))
        for cell in cells:
            at, labels = _labelled(cell)
            positive[at] += labels
            labelled[at] += 1
        return cls(tuple(cells.genes), tuple(cells.patterns), positive, labelled)

    def to_dict(self) -> dict[str, Any]:
        """Convert to values of JSON."""
        return {
            "patterns": list(self.patterns),
            "genes": {
                gene: [int(n), *positive]
                for gene, n, positive in zip(
                    self.genes, self.labelled, self.positive.astype(int).tolist(), strict=True
                )
            },
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeneScores:
        """Read what :meth:`to_dict` gave."""
        table = np.array(list(values["genes"].values()), np.float64)
        genes, patterns = tuple(values["genes"]), tuple(values["patterns"])
        return cls(genes, patterns, table[:, 1:], table[:, 0])

    def of_panel(self, panel: Sequence[str]) -> GeneScores:
        """Return the counts of a panel's genes, in its order; 0 for genes not counted."""
        row = {gene: at for at, gene in enumerate(self.genes)}
        at = np.array([row.get(gene, len(self.genes)) for gene in panel], np.int64)
        positive = np.vstack([self.positive, np.zeros(len(self.patterns))])[at]
        return GeneScores(tuple(panel), self.patterns, positive, np.append(self.labelled, 0.0)[at])

    def scores(self, without: Cell | None = None) -> _Floats:
        """Score each gene (V, C): log-odds of each pattern, less those of all pairs.

        Parameters
        ----------
        without : Cell, optional
            A training cell, with labels, whose pairs are left out.
        """
        positive, labelled = self.positive, self.labelled
        if without is not None:
            at, labels = _labelled(without)
            positive, labelled = positive.copy(), labelled.copy()
            positive[at] -= labels
            labelled[at] -= 1
        share = (positive.sum(axis=0) + 0.5) / (labelled.sum() + 1)  # (C,)
        mean = (positive + _PRIOR * share) / (labelled[:, None] + _PRIOR)
        return np.asarray(np.log(mean / (1 - mean)) - np.log(share / (1 - share)))


def _labelled(cell: Cell) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the genes of a cell's labelled pairs, and their labels."""
    if cell.labels is None or cell.labelled is None:
        return cell.genes[:0], np.zeros((0, 0), np.bool_)
    return cell.genes[cell.labelled], cell.labels[cell.labelled]


def context_columns(patterns: Sequence[str]) -> tuple[str, ...]:
    """Name the columns of :func:`context_fields`."""
    return (
        *_GEOMETRY,
        *_CELL,
        *(f"density_{um:g}um" for um in _WIDTHS_UM[:3]),
        *(f"{pattern}_near_{um:g}um" for pattern in patterns for um in _WIDTHS_UM[1:]),
        *(f"from_{pattern}_centroid" for pattern in patterns),
        *(f"own_{pattern}" for pattern in patterns),
    )


def context_fields(cell: Cell, scores: _Floats) -> NDArray[np.float32]:
    """Describe the surroundings of each molecule.

    Parameters
    ----------
    cell : Cell
    scores : numpy.ndarray
        (V, C) of :meth:`GeneScores.scores`, rows as the cell's gene codes.

    Returns
    -------
    numpy.ndarray
        (n, F) float32: columns of :func:`context_columns`, all of order 1.
    """
    of_molecule = scores[cell.gene]  # (n, C)
    density, near, centroid = _around(cell.xy, cell.gene, of_molecule)
    n = len(cell.gene)
    return np.column_stack(
        [
            _places(cell),
            np.broadcast_to(_covariates(cell), (n, len(_CELL))),
            np.log(density + 0.1) / 2,
            near.reshape(n, -1),
            centroid / cell.geometry.size,
            of_molecule,
        ]
    ).astype(np.float32)


def _places(cell: Cell) -> _Floats:
    """Where the molecules lie in the outline, without a nucleus (n, 5)."""
    geometry = cell.geometry
    size, middle = geometry.size, geometry.boundary_moments.centroid
    depth = geometry.depth * size
    away = np.hypot(*(cell.xy - middle).T)
    xmin, ymin, xmax, ymax = cell.boundary.bounds
    x, y = np.meshgrid(np.linspace(xmin, xmax, _GRID), np.linspace(ymin, ymax, _GRID))
    grid = np.column_stack([x.ravel(), y.ravel()])
    grid = grid[contains(grid, cell.boundary)]
    depths = np.sort(outline_distance(grid, cell.boundary))
    aways = np.sort(np.hypot(*(grid - middle).T))
    points = max(len(grid), 1)
    mean = max(float(np.maximum(depth, 0).mean()), 1e-3 * size)
    return np.column_stack(
        [
            depth / 3,
            np.searchsorted(depths, depth) / points,
            np.searchsorted(aways, away) / points,
            away / size,
            depth / mean / 3,
        ]
    )


def _covariates(cell: Cell) -> _Floats:
    """What the cell is like (5,)."""
    geometry, n = cell.geometry, len(cell.gene)
    area = geometry.boundary_moments.area
    short, long = np.linalg.eigvalsh(geometry.boundary_moments.second)
    hull = shapely.convex_hull(cell.boundary).area
    return np.array(
        [
            np.log(n) / 2 - 2.5,
            np.log(geometry.size) - 2,
            np.log(n / area),
            np.sqrt(long / max(short, 1e-9 * long)) - 1,
            5 * (area / hull - 0.9),
        ]
    )


@njit(cache=True, nogil=True)
def _around(xy: Any, gene: Any, score: Any) -> Any:
    """Molecules of other genes around each: their density, scores and centroids.

    (n, 3) sums of Gaussians; (n, C, 3) means of the scores, drawn towards 0 by one molecule of
    score 0; (n, C) distance to the centroid of the positive scores, 0 without any.
    """
    n, C = score.shape
    density = np.zeros((n, 3))
    near = np.zeros((n, C, 3))
    centroid = np.zeros((n, C))
    for i in range(n):
        total, mx, my, weight = np.zeros(C), np.zeros(C), np.zeros(C), 0.0
        for j in range(n):
            if gene[j] == gene[i]:
                continue
            for c in range(C):
                if score[j, c] > 0:
                    total[c] += score[j, c]
                    mx[c] += score[j, c] * xy[j, 0]
                    my[c] += score[j, c] * xy[j, 1]
            far = (xy[i, 0] - xy[j, 0]) ** 2 + (xy[i, 1] - xy[j, 1]) ** 2
            if far > _REACH2:
                continue
            # each half as wide as the one before: its fourth power
            wide = np.exp(-far / 32)
            middle = wide * wide * wide * wide
            narrow = middle * middle * middle * middle
            density[i, 0] += narrow * narrow * narrow * narrow
            density[i, 1] += narrow
            density[i, 2] += middle
            for c in range(C):
                near[i, c, 0] += narrow * score[j, c]
                near[i, c, 1] += middle * score[j, c]
                near[i, c, 2] += wide * score[j, c]
            weight += wide
        for c in range(C):
            near[i, c, 0] /= density[i, 1] + 1
            near[i, c, 1] /= density[i, 2] + 1
            near[i, c, 2] /= weight + 1
            if total[c] > 0:
                centroid[i, c] = np.hypot(xy[i, 0] - mx[c] / total[c], xy[i, 1] - my[c] / total[c])
    return density, near, centroid
