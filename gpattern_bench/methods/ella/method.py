"""ELLA (Wang & Zhou, Nature Communications 2025), extended from genes to pairs.

ELLA fits each gene a curve over relative radius and clusters the curves. Here clusters are
templates, and a pair's scores are their posteriors given its molecules. Uses no labels. See
``docs/methods/ella.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax
from typing_extensions import TypedDict

from gpattern_bench.base.files import write_text
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.errors import MethodError
from gpattern_bench.methods._state import Number, Share, read_state
from gpattern_bench.methods.base import About, Scores
from gpattern_bench.methods.ella.kernels import (
    GRID,
    KERNELS,
    KernelFit,
    cauchy_combined,
    curves,
    false_discovery_rates,
    fit_kernels,
    intensities,
    kernel_densities,
    kernel_p_values,
    kernel_ratios,
)
from gpattern_bench.methods.ella.radii import Radii, Registration, collect_radii, relative_radius
from gpattern_bench.methods.ella.templates import (
    CLASSES,
    cluster_curves,
    cluster_shares,
    curve_features,
    evidence,
    kernel_groups,
)

__all__ = ["Ella", "EllaRobust", "features"]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

_SIGNIFICANT = 0.05
_NULL_SHARE = 0.01  # of the null in each cluster's template: tolerates a misplaced molecule
_TILT = 0.5  # share of a group's kernels in its template; the rest is the null
_MIN_MEAN_DENSITY = 0.01  # of a kernel over all RNA; usually near 1
_STATE = "state.json"


class _State(TypedDict):
    registration: Registration
    scores: Literal["posterior", "one-vs-null"]
    classes: list[str]
    correlation: Number
    log_ratio: list[list[Number]]
    unseen: list[Share]
    prior: dict[str, list[Share]]


class _Posterior:
    """Radial templates and a prior for each gene; the base of both variants.

    Parameters
    ----------
    registration : {"exact", "grid"}
        See :func:`gpattern_bench.methods.ella.radii.relative_radius`.
    scores : {"posterior", "one-vs-null"}
        Let the patterns of a pair compete, or compare each with the null alone.
    """

    about: ClassVar[About]

    def __init__(
        self,
        registration: Registration = "exact",
        scores: Literal["posterior", "one-vs-null"] = "posterior",
    ) -> None:
        self.registration = registration
        self.scores = scores
        self.classes: tuple[str, ...] = ()
        self.correlation = 0.0
        self.log_ratio = np.empty((0, len(GRID)))  # template over null, (K, 100)
        self.prior: dict[str, list[float]] = {}  # by gene: of the null, then of each template
        self.unseen: list[float] = []  # prior of genes without training molecules

    @property
    def parameters(self) -> int:
        """Numbers of the templates and priors, and the correlation."""
        return self.log_ratio.size + len(self.unseen) * (1 + len(self.prior)) + 1

    def save(self, folder: Path) -> None:
        """Write templates and priors as JSON."""
        state = {
            "registration": self.registration,
            "scores": self.scores,
            "classes": self.classes,
            "correlation": self.correlation,
            "log_ratio": self.log_ratio.tolist(),
            "unseen": self.unseen,
            "prior": self.prior,
        }
        write_text(folder / _STATE, json.dumps(state) + "\n")

    def load(self, folder: Path) -> None:
        """Read templates and priors."""
        state = read_state(folder / _STATE, _State)
        self.registration, self.scores = state["registration"], state["scores"]
        self.classes, self.correlation = tuple(state["classes"]), state["correlation"]
        self.log_ratio = np.array(state["log_ratio"], np.float64).reshape(-1, len(GRID))
        priors = {len(prior) for prior in (state["unseen"], *state["prior"].values())}
        if len(self.log_ratio) != len(self.classes) or priors != {len(self.classes) + 1}:
            raise MethodError(
                f"{folder / _STATE} is damaged: {len(self.classes)} classes with "
                f"{len(self.log_ratio)} templates and priors of {sorted(priors)}; fit it again"
            )
        self.unseen, self.prior = state["unseen"], state["prior"]

    def predict(self, cells: Cells) -> Scores:
        """Score each pair; patterns without a template get 0."""
        prior = np.array([self.prior.get(gene, self.unseen) for gene in cells.genes])
        prior = np.clip(prior, 1e-12, 1 - 1e-12)
        log_odds = np.log(prior) if self.scores == "posterior" else logit(prior)
        named = ["cell_edge" if name == "membrane" else name for name in cells.patterns]
        at = [self.classes.index(name) if name in self.classes else -1 for name in named]
        for cell in cells:
            found = self._scores(cell, log_odds[cell.genes])
            scores = np.zeros((len(found), len(at)), np.float32)
            for column, template in enumerate(at):
                if template >= 0:
                    scores[:, column] = found[:, template]
            yield cell, scores

    def _scores(self, cell: Cell, log_odds: _Floats) -> _Floats:
        r = relative_radius(cell, self.registration)
        starts = np.append(0, np.cumsum(cell.counts))
        log_odds[:, 1:] += evidence(r, starts, self.log_ratio) / self._design_effect(cell.counts)
        if self.scores == "one-vs-null":
            return np.asarray(expit(log_odds[:, 1:]))
        return np.asarray(softmax(log_odds, axis=1)[:, 1:])

    def _design_effect(self, n: _Ints) -> _Floats:
        """Return n over the effective number of n correlated molecules: (len(n), 1)."""
        return (1 + (n[:, None] - 1) * self.correlation).astype(np.float64)

    def _collect(self, train: Cells) -> tuple[Radii, list[str]]:
        """Collect the radii and names of the genes present; no labels."""
        radii = collect_radii(train.without_labels(), self.registration)
        if not len(radii.r):
            raise MethodError(f"{self.about.name}: there are no training cells; give some to fit")
        self.correlation = radii.correlation
        seen = np.flatnonzero(radii.cells)
        radii = radii._replace(cells=radii.cells[seen], starts=np.unique(radii.starts))
        return radii, [train.genes[code] for code in seen]

    def _set_prior(self, genes: list[str], prior: _Floats) -> None:
        self.prior = dict(zip(genes, prior.tolist(), strict=True))
        self.unseen = prior.mean(axis=0).tolist()


class Ella(_Posterior):
    """ELLA as published: five clusters of curves, named by the order of their peaks.

    Clusters the curves of significant genes. A cluster's mean curve is its template; the distances
    of a gene's curve to the clusters give its prior. The null is a uniform disk. With fewer than
    five distinct significant curves, the templates are :func:`kernel_groups` and all genes have
    the same prior.
    """

    about: ClassVar[About] = About(
        name="ella",
        label="ELLA",
        kind="baseline",
        summary=(
            "Radial intensity of each gene as a Poisson process, five clusters of curves named by "
            "the order of their peaks, and their posterior given a pair's molecules."
        ),
        reference="Wang & Zhou, Nature Communications 16:9920 (2025)",
        inputs=("coordinates", "gene", "cell outline", "nucleus outline"),
        learns=True,
        rules_for=("nuclear", "nuclear_edge", "cytoplasmic", "cell_edge", "membrane"),
    )

    def fit(self, train: Cells, seed: int) -> None:
        """Fit the genes' curves and cluster them by k-means with this seed."""
        radii, genes = self._collect(train)
        self.classes = CLASSES
        fit = fit_kernels(radii.r, radii.starts)
        lam = _curves(fit)
        chosen = _rates(fit, lam)[1] <= _SIGNIFICANT
        prior = np.full((len(genes), 1 + len(CLASSES)), 0.1)
        prior[:, 0] = 0.5
        labels = cluster_curves(lam[chosen], seed)
        if labels is None:
            groups = kernel_groups(radii.nuclear)
            named = _group_templates(kernel_ratios(GRID).T, groups)
            self.log_ratio = np.concatenate([named, np.zeros((1, len(GRID)))])
        else:
            ratio = np.stack([lam[chosen][labels == c].mean(axis=0) for c in range(5)]) / 2
            self.log_ratio = np.log((1 - _NULL_SHARE) * ratio + _NULL_SHARE)
            prior[chosen, 0] = 0.0
            prior[chosen, 1:] = cluster_shares(curve_features(lam[chosen]), labels)
        self._set_prior(genes, prior)


class EllaRobust(_Posterior):
    """ELLA's kernels, grouped by their peaks relative to the nucleus; no clusters.

    The null is the density of all RNA: a shape common to all genes is not a pattern. A gene's prior
    is the posterior of its training molecules, taken as one pair.
    """

    about: ClassVar[About] = About(
        name="ella_robust",
        label="ELLA (kernels by compartment)",
        kind="baseline",
        summary=(
            "ELLA's kernels grouped by where they peak relative to the nucleus, against the radial "
            "density of all RNA; their posterior given a pair's molecules."
        ),
        reference="this package, after Wang & Zhou, Nature Communications 16:9920 (2025)",
        inputs=Ella.about.inputs,
        learns=True,
        rules_for=Ella.about.rules_for,
    )

    def fit(self, train: Cells, seed: int) -> None:  # noqa: ARG002 - draws nothing
        """Measure the nuclei and the density of all RNA, then the genes."""
        radii, genes = self._collect(train)
        groups = kernel_groups(radii.nuclear, edge="nuclear_edge" in train.patterns)
        self.classes = tuple(groups)
        density = kernel_densities(GRID).T
        all_rna = np.array([0, len(radii.r)])
        mean = evidence(radii.r, all_rna, density)[0] / len(radii.r)
        ratio = density / np.maximum(mean, _MIN_MEAN_DENSITY)[:, None]
        self.log_ratio = _group_templates(ratio, groups)
        log_odds = np.zeros((len(genes), 1 + len(groups)))
        log_odds[:, 1:] = evidence(radii.r, radii.starts, self.log_ratio)
        log_odds /= self._design_effect(np.diff(radii.starts))
        self._set_prior(genes, softmax(log_odds, axis=1))


def features(cells: Cells, *, unit_um: float = 1.0) -> Iterator[pd.DataFrame]:  # noqa: ARG001
    """Fit every kernel to every gene; yield one frame with a row per gene and kernel.

    Parameters
    ----------
    cells : Cells
        Treated as one cell type.
    unit_um : float
        No effect: radii are relative.

    Yields
    ------
    pandas.DataFrame
        ``gene``; ``kernel`` (0 to 21), its shapes ``a`` and ``b``; ``T`` and ``w`` of
        :class:`gpattern_bench.methods.ella.kernels.KernelFit`, and ``p`` of T; per gene
        ``n_molecules``, ``n_cells``, ``p_cauchy`` over the kernels, ``p_fdr_by`` over the genes,
        and ``peak``, the radius of its curve's maximum.
    """
    radii = collect_radii(cells)
    seen = np.flatnonzero(radii.cells)
    fit = fit_kernels(radii.r, np.unique(radii.starts))
    lam = _curves(fit)
    combined, rates = _rates(fit, lam)
    k = len(KERNELS)
    of_gene = {
        "n_molecules": fit.n,
        "n_cells": radii.cells[seen],
        "p_cauchy": combined,
        "p_fdr_by": rates,
        "peak": GRID[lam.argmax(axis=1)],
    }
    columns: dict[str, Any] = {
        "gene": np.repeat(np.array(cells.genes, object)[seen], k),
        "kernel": np.tile(np.arange(k), len(seen)),
        "a": np.tile(KERNELS[:, 0], len(seen)),
        "b": np.tile(KERNELS[:, 1], len(seen)),
        "T": fit.t.ravel(),
        "w": fit.w.ravel(),
        "p": kernel_p_values(fit.t).ravel(),
    }
    yield pd.DataFrame(columns | {name: np.repeat(v, k) for name, v in of_gene.items()})


def _curves(fit: KernelFit) -> _Floats:
    """Compute curves (G, 100); r times a curve integrates to 1."""
    return curves(fit.t, *intensities(fit, fit.n.astype(np.float64)))


def _rates(fit: KernelFit, lam: _Floats) -> tuple[_Floats, _Floats]:
    """Compute the genes' p values (G,) and false discovery rates."""
    combined = cauchy_combined(kernel_p_values(fit.t))
    return combined, false_discovery_rates(combined, lam)


def _group_templates(ratio: _Floats, groups: dict[str, _Ints]) -> _Floats:
    """Compute log density ratios (K, 100) of groups from ratios of kernels (22, 100)."""
    means = np.stack([ratio[kernels].mean(axis=0) for kernels in groups.values()])
    return np.log(_TILT * means + 1 - _TILT)
