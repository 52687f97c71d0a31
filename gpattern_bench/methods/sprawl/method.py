"""SPRAWL's scores (Bierman et al., eLife 2024), their sums over cells, and the paper's mapping.

Peripheral genes have molecules that rank nearest to the cell's outline, central genes nearest to
its middle. The null shuffles the genes over the molecules; the median rank's null variance is in
closed form, its tail exact. :mod:`gpattern_bench.methods.sprawl.permutation` has the punctate and
radial scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri

from gpattern_bench.base.compiled import njit
from gpattern_bench.base.geometry import mean_ranks
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.methods.base import About, Scores, Untrained
from gpattern_bench.methods.sprawl.permutation import DRAW_VARIANCE, ObservedDraws, pair_scores

__all__ = [
    "POLARISED",
    "STATISTICS",
    "Sprawl",
    "aggregate",
    "cell_features",
    "features",
    "median_rank_p",
    "median_rank_scores",
    "median_rank_variance",
    "pattern_scores",
    "peripheral_central",
    "polarised_scores",
]

_Floats = NDArray[np.float64]

STATISTICS = ("peripheral", "central", "punctate", "radial")

POLARISED = ("polarised", "polarized")
"""Names of a pattern that no registered dataset has; own labels may."""

_TAU = 1.96  # two-sided 5 % point of the normal, "significant" in the paper's mapping


class Sprawl(Untrained):
    """Peripheral and central scores, mapped to patterns by the paper's rules (appendix B.2.1)."""

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
        rules_for=("cell_edge", "membrane", "nuclear", "cytoplasmic", *POLARISED),
    )

    def predict(self, cells: Cells) -> Scores:
        """Score each pair; patterns without a rule get 0."""
        for cell in cells:
            peripheral, central = peripheral_central(cell)
            n = len(cell.gene)
            deviation = np.sqrt(median_rank_variance(cell.counts, n))
            # The only gene of a cell has no variance and is no evidence.
            spread = np.where(deviation > 0, deviation, np.inf)
            scores = pattern_scores(peripheral / spread, central / spread)
            if set(POLARISED) & set(cells.patterns):
                scores |= dict.fromkeys(POLARISED, polarised_scores(cell))
            zeros = np.zeros(len(cell.genes))
            columns = [scores.get(pattern, zeros) for pattern in cells.patterns]
            yield cell, np.stack(columns, axis=1).astype(np.float32)


def polarised_scores(cell: Cell) -> _Floats:
    """Score (g,) the paper's rule for polarised genes: punctate and radial significantly positive.

    "And" is the minimum, on the logistic scale of :func:`pattern_scores`. Under shuffled genes one
    draw of a score is uniform in [-1, 1], which gives its z: exact for one draw, cautious for the
    mean of many, which varies less. 0.5 for a single molecule, and for the only gene of a cell.
    """
    pairs = pair_scores(cell.xy, cell.gene, _middle(cell), seed=0, name=cell.cell_id)
    z = ndtri((1 + np.minimum(pairs.punctate, pairs.radial)) / 2)
    known = ~np.isnan(z) & (cell.counts < len(cell.gene))
    return np.asarray(expit(np.where(known, z, 0.0)))


def peripheral_central(cell: Cell) -> tuple[_Floats, _Floats]:
    """Compute the peripheral and central scores (g,) of the genes present, in [-1, 1].

    From distances to the outline's exterior rings, and to the mean of their vertices, closing
    vertices included, as upstream.
    """
    to_middle = np.square(cell.xy - _middle(cell)).sum(axis=1)
    return (
        _median_scores(cell.geometry.boundary_rank, cell.gene),
        median_rank_scores(to_middle, cell.gene),
    )


def _middle(cell: Cell) -> _Floats:
    return np.asarray(cell.geometry.boundary_rings.exterior_xy.mean(axis=0))


def median_rank_scores(distance: _Floats, gene: NDArray[np.int32]) -> _Floats:
    """Score genes by the median rank of their molecules' distances; small distances score high.

    ``S = ((n + 1) / 2 - M) / ((n - 1) / 2)``, with M the median of the gene's ranks among all n
    molecules of the cell. Ties share their mean rank; upstream breaks them at random, which moves
    M by up to 4 ranks on its reference cells.

    Parameters
    ----------
    distance : numpy.ndarray
        (n,) any unit. In a cell of several slices, to the outline or middle of the molecule's own
        slice; ranks are over all slices.
    gene : numpy.ndarray
        (n,) gene codes.

    Returns
    -------
    numpy.ndarray
        (g,) in [-1, 1], one per distinct code, ascending; 0 in a cell of one molecule.

    Examples
    --------
    >>> median_rank_scores(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])).round(3)
    array([ 0.667, -0.667])
    """
    return _median_scores(mean_ranks(distance), gene)


def _median_scores(rank: _Floats, gene: NDArray[np.int32]) -> _Floats:
    n = len(rank)
    if n == 1:
        return np.zeros(1)
    order = np.lexsort((rank, gene))
    starts = np.flatnonzero(np.diff(gene[order], prepend=-1))
    counts = np.diff(starts, append=n)
    low, high = starts + (counts - 1) // 2, starts + counts // 2
    median = (rank[order][low] + rank[order][high]) / 2
    return np.asarray(((n + 1) / 2 - median) / ((n - 1) / 2))


def median_rank_variance(m: NDArray[np.integer], n: int) -> _Floats:
    """Compute the null variance of the score of genes with m of a cell's n molecules.

    From the covariance of the order statistics of m ranks drawn without replacement from n.

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


def median_rank_p(score: _Floats, m: NDArray[np.integer], n: int) -> _Floats:
    """Compute exact two-sided p values of scores of genes with m of a cell's n molecules.

    ``2 P(M <= x)``, at most 1, with x the lesser of the median rank and its mirror image
    ``n + 1 - x``, and M the median of m ranks drawn without replacement from n distinct ones. For
    odd m, M <= x if (m + 1) / 2 or more ranks are, a hypergeometric tail; for even m, the two
    middle ranks decide. With ties, a median between two ranks counts as the lower. Sums only
    positive terms: about ten digits, even of tiny p.

    Parameters
    ----------
    score : numpy.ndarray
        (g,) from :func:`median_rank_scores`.
    m : numpy.ndarray
        (g,) molecules of each gene.
    n : int
        Molecules of the cell.

    Examples
    --------
    The lowest of five ranks, one of ten ways to draw two of them, and their middle:

    >>> median_rank_p(np.array([1.0, 0.75, 0.0]), np.array([1, 2, 1]), 5).tolist()
    [0.4, 0.2, 1.0]
    """
    quadrupled = np.rint(2 * (n + 1) - 2 * (n - 1) * np.asarray(score)).astype(np.int64)
    return np.asarray(_two_sided_p(quadrupled, np.asarray(m, np.int64), n))


@njit(cache=True, nogil=True)
def _two_sided_p(quadrupled: Any, m: Any, n: Any) -> Any:
    p = np.empty(len(m))
    for g in range(len(m)):
        lower = min(quadrupled[g], 4 * (n + 1) - quadrupled[g])
        half = (m[g] + 1) // 2
        if m[g] % 2:
            here, above = _hypergeometric(n, lower // 4, m[g], half)
        else:
            # For the middle ranks a < b, a + b <= s needs a <= k = (s - 1) // 2, and either
            # b <= k or b - k <= k - a (plus 1 if s is even).
            twice = lower // 2
            k = (twice - 1) // 2
            here, above = _hypergeometric(n, k, m[g], half)
            if here > 0.0:
                here *= _p_gap_at_most(half, k, n - k, twice - 2 * k - 1)
        p[g] = min(1.0, 2 * (here + above))
    return p


@njit(cache=True, nogil=True)
def _hypergeometric(n: Any, k: Any, m: Any, h: Any) -> Any:
    """Compute the probabilities that h, and that more, of m numbers drawn from 1..n are <= k."""
    mode = (m + 1) * (k + 1) // (n + 2)
    total = above = here = 0.0
    term = 1.0  # relative to the mode's; first downwards, then upwards
    for i in range(mode, max(0, m - n + k) - 1, -1):
        total += term
        above += term if i > h else 0.0
        here += term if i == h else 0.0
        term *= i * (n - k - m + i) / ((k - i + 1.0) * (m - i + 1.0))
    term = 1.0
    for i in range(mode + 1, min(m, k) + 1):
        term *= (k - i + 1.0) * (m - i + 1.0) / (i * (n - k - m + i))
        total += term
        above += term if i > h else 0.0
        here += term if i == h else 0.0
    return here / total, above / total


@njit(cache=True, nogil=True)
def _p_gap_at_most(half: Any, low: Any, high: Any, more: Any) -> Any:
    """Compute P(second gap <= first gap + more).

    First gap: from the largest of `half` numbers drawn from 1..low to low. Second: from 1 to the
    smallest of `half` numbers drawn from 1..high.
    """
    beyond = 1.0 - half / high  # P(second > t), from t = 0
    for t in range(more):
        beyond *= max(0.0, 1.0 - half / (high - t - 1.0))
    found, gap = 0.0, half / low  # P(first = t)
    for t in range(low - half + 1):
        found += gap * (1.0 - beyond)
        if gap < 1e-20 * found:
            break
        gap *= (low - t - half) / max(1.0, low - t - 1.0)
        beyond *= max(0.0, 1.0 - half / max(1.0, high - t - more - 1.0))
    return found


def cell_features(
    cell: Cell, *, seed: int = 0, obs_draws: ObservedDraws = "expected"
) -> dict[str, NDArray[Any]]:
    """Compute the statistics of a cell (:func:`features`): arrays (g,), rows as ``cell.genes``."""
    peripheral, central = peripheral_central(cell)
    middle = _middle(cell)
    pairs = pair_scores(
        cell.xy, cell.gene, middle, seed=seed, name=cell.cell_id, obs_draws=obs_draws
    )
    n = len(cell.gene)
    variance = median_rank_variance(cell.counts, n)
    by_chance = np.where(cell.counts > 1, DRAW_VARIANCE, np.nan)
    return {
        "n_molecules": cell.counts,
        "peripheral": peripheral,
        "central": central,
        "punctate": pairs.punctate,
        "radial": pairs.radial,
        "var_peripheral": variance,
        "var_central": variance,
        "var_punctate": by_chance,
        "var_radial": by_chance,
        "p_peripheral": median_rank_p(peripheral, cell.counts, n),
        "p_central": median_rank_p(central, cell.counts, n),
    }


def features(
    cells: Cells,
    *,
    unit_um: float = 1.0,  # noqa: ARG001 - all four have no unit
    seed: int = 0,
    obs_draws: ObservedDraws = "expected",
) -> Iterator[pd.DataFrame]:
    """Yield the statistics of each cell: one frame per cell, one row per gene present.

    Parameters
    ----------
    cells : Cells
    unit_um : float
        No effect: ranks and shares have no unit.
    seed : int
        Seeds, with the cell's id, the draws of punctate and radial.
    obs_draws : {1, "expected"}
        See :func:`gpattern_bench.methods.sprawl.permutation.pair_scores`.

    Yields
    ------
    pandas.DataFrame
        - ``cell_id``, ``gene``, ``n_molecules`` of the pair.
        - ``peripheral``, ``central``, ``punctate``, ``radial``: scores in [-1, 1], with null
          expectation 0; punctate and radial are NaN for one molecule.
        - ``var_*``: null variances; for punctate and radial that of a single draw, an upper bound
          for ``obs_draws="expected"``.
        - ``p_peripheral``, ``p_central``: exact two-sided p (:func:`median_rank_p`).
    """
    names = np.array(cells.genes, dtype=object)
    for cell in cells:
        pairs = {"cell_id": cell.cell_id, "gene": names[cell.genes]}
        yield pd.DataFrame(pairs | cell_features(cell, seed=seed, obs_draws=obs_draws))


def aggregate(frame: pd.DataFrame, by: str | Sequence[str]) -> pd.DataFrame:
    """Sum the evidence of pairs over cells, by gene or any other columns.

    ``z = sum of scores / sqrt(sum of variances)`` is normal for many pairs (Lyapunov). Omits pairs
    without a score. A group without variance (only genes that are alone in their cells) is no
    evidence: its z and p are NaN, and it is not one of the tests.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of :func:`features`, joined with the columns of `by` (for example a cell type).
    by : str or sequence of str
        Columns to group by: ``"gene"``, ``["gene", "cell_type"]``.

    Returns
    -------
    pandas.DataFrame
        One row per group and statistic: the columns of `by`, ``statistic``, ``n_cells``,
        ``median_molecules``, ``median_score``, ``z``, ``p`` (two-sided) and ``p_adjusted``
        (Benjamini-Hochberg over the groups of the statistic).
    """
    keys = [by] if isinstance(by, str) else list(by)
    return pd.concat(
        [_sum_groups(frame.dropna(subset=name), keys, name) for name in STATISTICS],
        ignore_index=True,
    )


def _sum_groups(rows: pd.DataFrame, keys: list[str], name: str) -> pd.DataFrame:
    from scipy.stats import false_discovery_control  # slow to import

    groups = rows.groupby(keys, observed=True)
    found = groups.agg(
        n_cells=("cell_id", "nunique"),
        median_molecules=("n_molecules", "median"),
        median_score=(name, "median"),
        z=(name, "sum"),
        variance=(f"var_{name}", "sum"),
    )
    found.insert(0, "statistic", name)
    found["z"] /= np.sqrt(found["variance"].where(found["variance"] > 0))
    found["p"] = 2 * ndtr(-found["z"].abs())
    known = found["p"].notna()
    found.loc[known, "p_adjusted"] = false_discovery_control(found.loc[known, "p"])
    return found.drop(columns="variance").reset_index()


def pattern_scores(z_peripheral: _Floats, z_central: _Floats) -> dict[str, _Floats]:
    """Map z-scores to patterns by the paper's rules, with "and" as minimum, on a logistic scale.

    High peripheral and low central: cell edge (CosMx: membrane); the reverse: nuclear; low
    peripheral and no significant central: cytoplasmic. No rule for the nuclear edge. From 0.877
    the rule holds at the two-sided 5 % level; 0.5 is no evidence.
    """
    edge = expit(np.minimum(z_peripheral, -z_central))
    return {
        "cell_edge": edge,
        "membrane": edge,
        "nuclear": expit(np.minimum(-z_peripheral, z_central)),
        "cytoplasmic": expit(np.minimum(-z_peripheral, 2 * _TAU - np.abs(z_central))),
    }
