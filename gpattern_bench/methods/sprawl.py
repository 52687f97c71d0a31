"""SPRAWL's peripheral and central scores (Bierman et al., eLife 2024) and the paper's mapping.

A gene is peripheral in a cell if its molecules rank among those nearest to the outline, central
if among those nearest to the middle; under the null the genes are shuffled over the molecules.
The null variance of the median rank is written in closed form.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata

from gpattern_bench.cells import Cell, Cells
from gpattern_bench.geometry import exterior_vertices, outline_distance
from gpattern_bench.methods.base import About, Scores, Untrained

__all__ = ["Sprawl", "median_rank_scores", "median_rank_variance", "pattern_scores"]

_Floats = NDArray[np.float64]

_TAU = 1.96  # two-sided 5 % point of the normal: "significant" in the paper's mapping


class Sprawl(Untrained):
    """Peripheral and central scores, mapped to patterns as the paper says (appendix B.2.1)."""

    about: ClassVar = About(
        name="sprawl",
        label="SPRAWL",
        kind="baseline",
        summary=(
            "Median ranks of a gene's distances to the outline and to the middle of the cell, as "
            "z-scores under shuffled genes, mapped to patterns by the benchmark paper's rules."
        ),
        reference="Bierman et al., eLife 2024, doi:10.7554/eLife.87517",
        inputs=("coordinates", "gene", "cell outline"),
        learns=False,
        rules_for=("cell_edge", "membrane", "nuclear", "cytoplasmic"),
    )

    def predict(self, cells: Cells) -> Scores:
        """Score each pair; patterns without a rule get 0."""
        for cell in cells:
            peripheral, central = peripheral_central(cell)
            n = len(cell.gene)
            deviation = np.sqrt(median_rank_variance(cell.counts, n))
            # A gene that is all of a cell's molecules has no variance and is no evidence.
            spread = np.where(deviation > 0, deviation, np.inf)
            scores = pattern_scores(peripheral / spread, central / spread)
            nothing = np.zeros(len(cell.genes))
            columns = [scores.get(pattern, nothing) for pattern in cells.patterns]
            yield cell, np.stack(columns, axis=1).astype(np.float32)


def peripheral_central(cell: Cell) -> tuple[_Floats, _Floats]:
    """Scores (g,) of the genes present, in [-1, 1]: how peripheral and how central they are.

    Distances are to the exterior ring of the outline, and to the mean of its vertices with the
    closing one counted twice, as upstream does.
    """
    middle = exterior_vertices(cell.boundary).mean(axis=0)
    to_middle = np.square(cell.xy - middle).sum(axis=1)
    return (
        median_rank_scores(outline_distance(cell.xy, cell.boundary), cell.gene),
        median_rank_scores(to_middle, cell.gene),
    )


def median_rank_scores(distance: _Floats, gene: NDArray[np.int32]) -> _Floats:
    """Score genes by the median rank of their molecules' distances, small distances high.

    ``S = ((n + 1) / 2 - M) / ((n - 1) / 2)``, with M the median of the gene's ranks among all n
    molecules of the cell. Tied distances share their mean rank, so that the result does not
    depend on the order of the molecules; upstream breaks ties by chance, which moves M by up to
    3.5 ranks on its reference cells.

    Parameters
    ----------
    distance : numpy.ndarray
        (n,) of the molecules, any unit.
    gene : numpy.ndarray
        (n,) codes of their genes.

    Returns
    -------
    numpy.ndarray
        (g,) in [-1, 1], one per distinct code, ascending; 0 in a cell of one molecule.

    Examples
    --------
    >>> median_rank_scores(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])).round(3)
    array([ 0.667, -0.667])
    """
    n = len(distance)
    if n == 1:
        return np.zeros(1)
    rank = rankdata(distance)
    order = np.lexsort((rank, gene))
    starts = np.flatnonzero(np.diff(gene[order], prepend=-1))
    counts = np.diff(starts, append=n)
    low, high = starts + (counts - 1) // 2, starts + counts // 2
    median = (rank[order][low] + rank[order][high]) / 2
    return np.asarray(((n + 1) / 2 - median) / ((n - 1) / 2))


def median_rank_variance(m: NDArray[np.integer], n: int) -> _Floats:
    """Variance of the score of a gene with m of a cell's n molecules, genes shuffled.

    From the covariance of the order statistics of m ranks drawn without replacement out of n.

    Examples
    --------
    >>> median_rank_variance(np.array([17]), 7684).round(6)
    array([0.052536])
    """
    if n == 1:
        return np.zeros(len(m))
    m = np.asarray(m, dtype=np.float64)
    odd = (n + 1) * (n - m) / ((m + 2) * (n - 1.0) ** 2)
    return np.where(m % 2 == 1, odd, odd * m / (m + 1))


def pattern_scores(z_peripheral: _Floats, z_central: _Floats) -> dict[str, _Floats]:
    """Map z-scores to patterns: the paper's rules, with "and" as the minimum, on a logistic scale.

    High peripheral and low central: cell edge (CosMx: membrane); the reverse: nuclear; low
    peripheral and central not significant: cytoplasmic. SPRAWL has no rule for the nuclear edge.
    0.877 or more means that the rule holds at the two-sided 5 % level; 0.5 is no evidence.
    """
    edge = expit(np.minimum(z_peripheral, -z_central))
    return {
        "cell_edge": edge,
        "membrane": edge,
        "nuclear": expit(np.minimum(-z_peripheral, z_central)),
        "cytoplasmic": expit(np.minimum(-z_peripheral, 2 * _TAU - np.abs(z_central))),
    }
