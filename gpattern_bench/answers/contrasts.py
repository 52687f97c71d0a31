"""Differences between groups of samples, gene by gene, with their variances.

How each number is found is in :mod:`gpattern_bench.answers.differential`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from gpattern_bench.answers.groups import Comparison
from gpattern_bench.answers.sums import Sums, Units

__all__ = ["Adjusted", "Contrast", "adjust", "contrast_of", "moderated", "variance_over_fovs"]

_X = 3  # covariates: log molecules, its square, log area
_VARIES = 1e-8  # variance of a covariate below which it is rounding
_MIN_GENES = 10  # fewest to learn from how variances of genes differ

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Adjusted:
    """A pattern's probability in each gene and stratum, at common covariates.

    Attributes
    ----------
    n, value, expected : numpy.ndarray
        (genes, strata) pairs, adjusted mean probability, and the variance of that mean which the
        scatter of cells within samples alone would give. NaN where there are too few pairs.
    x : numpy.ndarray
        (genes, strata, 3) mean covariates.
    slopes, slope_errors : numpy.ndarray
        (genes, 3), and their covariance (genes, 3, 3), over units.
    n_units : numpy.ndarray
        (genes,) units that the slopes come from.
    """

    n: _Floats
    value: _Floats
    expected: _Floats
    x: _Floats
    slopes: _Floats
    slope_errors: _Floats
    n_units: _Floats


def adjust(sums: Sums, k: int, units: Units, min_pairs: int) -> Adjusted:
    """Regress within strata, and give each stratum its mean at the average covariates."""
    member = np.zeros((len(units.stratum), units.n_strata))
    member[np.arange(len(member)), units.stratum] = 1.0

    def of_strata(values: _Floats) -> _Floats:
        return np.moveaxis(np.tensordot(values, member, (1, 0)), -1, 1)

    n, p, pp, x, xp, xx = (
        of_strata(part[k]) for part in (sums.n, sums.p, sums.pp, sums.x, sums.xp, sums.xx)
    )
    enough = n >= min_pairs
    size = np.where(enough, n, np.nan)
    mean_p, mean_x = p / size, x / size[..., None]
    c_xx = np.nan_to_num(xx - n[..., None, None] * mean_x[..., :, None] * mean_x[..., None, :])
    c_xp = np.nan_to_num(xp - n[..., None] * mean_x * mean_p[..., None])
    c_pp = np.nan_to_num(pp - n * mean_p**2)
    inverse = _inverse(c_xx.sum(1), np.where(enough, n, 0).sum(1))
    slopes = np.einsum("gij,gj->gi", inverse, c_xp.sum(1))
    left = c_pp.sum(1) - np.einsum("gi,gi->g", slopes, c_xp.sum(1))
    freedom = np.where(enough, n - 1, 0).sum(1) - _X
    scatter = np.maximum(left, 0) / np.maximum(freedom, 1)

    # Residuals times covariates, summed by unit: cells of a unit are alike.
    of_unit = units.stratum
    far_x = np.nan_to_num(mean_x)[:, of_unit]
    far_p = np.nan_to_num(mean_p)[:, of_unit]
    used = enough[:, of_unit].astype(np.float64)
    n_u, p_u, x_u = sums.n[k] * used, sums.p[k] * used, sums.x[k] * used[..., None]
    xp_u, xx_u = sums.xp[k] * used[..., None], sums.xx[k] * used[..., None, None]
    s_xp = xp_u - far_x * p_u[..., None] - x_u * far_p[..., None]
    s_xp += n_u[..., None] * far_x * far_p[..., None]
    s_xx = xx_u - far_x[..., :, None] * x_u[..., None, :] - x_u[..., :, None] * far_x[..., None, :]
    s_xx += n_u[..., None, None] * far_x[..., :, None] * far_x[..., None, :]
    score = s_xp - np.einsum("guij,gj->gui", s_xx, slopes)
    n_units = (n_u > 0).sum(1).astype(np.float64)
    factor = n_units / np.maximum(n_units - 1, 1)
    errors = np.einsum("gui,guj->gij", score, score) * factor[:, None, None]
    errors = inverse @ errors @ inverse

    with np.errstate(invalid="ignore"):
        centre = np.nansum(mean_x, 1) / np.maximum(enough.sum(1), 1)[:, None]
    value = mean_p - np.einsum("gsi,gi->gs", mean_x - centre[:, None], slopes)
    return Adjusted(n, value, scatter[:, None] / size, mean_x, slopes, errors, n_units)


def _inverse(matrices: _Floats, n: _Floats) -> _Floats:
    """Invert (genes, 3, 3) sums of products over n pairs; what does not vary gets no slope."""
    squares = np.maximum(np.einsum("gii->gi", matrices), 0)
    scale = np.where(squares > _VARIES * n[:, None], np.sqrt(squares), np.inf)
    scaled = matrices / (scale[:, :, None] * scale[:, None, :])
    found = np.linalg.pinv(scaled, rcond=1e-6, hermitian=True)
    return np.asarray(found / (scale[:, :, None] * scale[:, None, :]))


@dataclass(frozen=True)
class Contrast:
    """A difference per gene, before the variances of genes are moderated; arrays (genes,).

    The variance of `difference` is `spread` times `per`, plus `slope`; `expected` is what `spread`
    would be, were samples alike.
    """

    n_reference: _Floats
    n_group: _Floats
    cells_reference: _Floats
    cells_group: _Floats
    reference: _Floats
    group: _Floats
    spread: _Floats
    expected: _Floats
    per: _Floats
    freedom: _Floats
    slope: _Floats
    slope_freedom: _Floats


def contrast_of(found: Adjusted, one: Comparison) -> Contrast:
    """Compare the samples' values of two groups; of paired samples, their differences."""
    first, other = one.of_reference, one.of_group
    values = [found.value[:, first], found.value[:, other]]
    if one.paired:
        lacking = np.isnan(values[0] + values[1])
        values = [np.where(lacking, np.nan, part) for part in values]
    known = [~np.isnan(part) for part in values]
    n = [part.sum(1).astype(np.float64) for part in known]
    means = [_mean(part) for part in values]
    x = [
        _mean(np.where(part[..., None], found.x[:, at], np.nan))
        for part, at in zip(known, (first, other), strict=True)
    ]
    expected = [
        np.where(part, found.expected[:, at], np.nan)
        for part, at in zip(known, (first, other), strict=True)
    ]
    if one.paired:
        spread = _squares(values[1] - values[0])
        freedom = n[0] - 1
        expect = _mean(expected[0] + expected[1])
        per = 1 / np.maximum(n[0], 1)
    else:
        spread = _squares(values[0]) + _squares(values[1])
        freedom = n[0] + n[1] - 2
        weights = [np.maximum(part - 1, 0) for part in n]
        expect = sum(w * _mean(v) for w, v in zip(weights, expected, strict=True))
        expect = expect / np.maximum(freedom, 1)
        per = 1 / np.maximum(n[0], 1) + 1 / np.maximum(n[1], 1)
    cells = [
        np.where(part, found.n[:, at], 0).sum(1)
        for part, at in zip(known, (first, other), strict=True)
    ]
    away = x[1] - x[0]
    return Contrast(
        n_reference=n[0],
        n_group=n[1],
        cells_reference=cells[0],
        cells_group=cells[1],
        reference=means[0],
        group=means[1],
        spread=spread / np.maximum(freedom, 1),
        expected=expect,
        per=per,
        freedom=np.where(np.minimum(*n) >= 2, freedom, np.nan),
        slope=np.einsum("gi,gij,gj->g", away, found.slope_errors, away),
        slope_freedom=np.maximum(found.n_units - 1, 1),
    )


def variance_over_fovs(
    found: Adjusted, at: Contrast, one: Comparison, sums: Sums, k: int, units: Units
) -> tuple[_Floats, _Floats]:
    """Variance of each difference over fields of view, and its degrees of freedom.

    A field of view's part in the difference is the sum of its residuals, over the pairs and the
    number of samples. One that is in both groups, where groups are kinds of cells, has one part.
    NaN where a sample has a single field of view.
    """
    part = np.zeros((len(sums.genes), int(units.cluster.max()) + 1))
    present = np.zeros((2, *part.shape), bool)
    strata, alone = np.zeros((2, len(part)))
    sides = ((one.of_reference, at.n_reference), (one.of_group, at.n_group))
    for group, (side, n) in enumerate(sides):
        sign = 2 * group - 1
        for stratum in side:
            here = np.flatnonzero(units.stratum == stratum)
            used = ~np.isnan(found.value[:, stratum])
            count = np.where(used[:, None], sums.n[k][:, here], 0)
            total = np.maximum(count.sum(1), 1)
            mean = sums.p[k][:, here].sum(1) / total
            rest = sums.p[k][:, here] - count * mean[:, None]
            x = np.nan_to_num(found.x[:, stratum])
            moved = sums.x[k][:, here] - count[..., None] * x[:, None]
            rest -= np.einsum("gui,gi->gu", moved, found.slopes)
            fovs = (count > 0).sum(1)
            few = np.sqrt(fovs / np.maximum(fovs - 1, 1))  # residuals of a sample sum to 0
            share = sign * few[:, None] * rest / np.maximum(total * n, 1)[:, None]
            part[:, units.cluster[here]] += np.where(used[:, None], share, 0)
            present[group][:, units.cluster[here]] |= count > 0
            strata += used
            alone += used & (fovs < 2)
    # Parts of a sample sum to 0; where groups share fields of view, so do those of both together.
    shared = np.any(present[0] & present[1], axis=1)
    freedom = (present[0] | present[1]).sum(axis=1) - strata + shared
    return (part**2).sum(1), np.where((freedom >= 1) & (alone == 0), freedom, np.nan)


def _mean(values: _Floats) -> _Floats:
    """Mean over samples (axis 1) that are not NaN; NaN without any."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / known.sum(1))


def _squares(values: _Floats) -> _Floats:
    return np.asarray(np.nansum((values - _mean(values)[:, None]) ** 2, 1))


def moderated(contrast: Contrast) -> tuple[_Floats, _Floats]:
    """Draw each gene's variance towards what the other genes lead one to expect (Smyth 2004).

    Returns the variances of the differences and their degrees of freedom.
    """
    spread, freedom = contrast.spread, contrast.freedom
    fine = (freedom >= 1) & (contrast.expected > 0) & np.isfinite(spread)
    if fine.sum() >= _MIN_GENES:
        ratio = spread[fine] / contrast.expected[fine]
        prior, prior_freedom = _prior(ratio, freedom[fine])
        spread, freedom = spread.copy(), freedom.copy()
        if np.isinf(prior_freedom):
            spread[fine] = prior * contrast.expected[fine]
            freedom[fine] = freedom[fine].sum()
        else:
            total = freedom[fine] + prior_freedom
            drawn = (freedom[fine] * ratio + prior_freedom * prior) / total
            spread[fine] = drawn * contrast.expected[fine]
            # Genes share their samples: no more than all of them together.
            freedom[fine] = np.minimum(total, freedom[fine].sum())
    variance = spread * contrast.per + contrast.slope
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = (spread * contrast.per) ** 2 / freedom + contrast.slope**2 / contrast.slope_freedom
        return variance, variance**2 / parts


def _prior(ratio: _Floats, freedom: _Floats) -> tuple[float, float]:
    """Scale and degrees of freedom of a scaled F distribution of variances, by their logarithms."""
    z = np.log(np.maximum(ratio, 1e-5 * np.median(ratio)))
    e = z - digamma(freedom / 2) + np.log(freedom / 2)
    centre = e.mean()
    rest = e.var(ddof=1) - polygamma(1, freedom / 2).mean()
    if rest <= 1e-4:
        return float(np.exp(centre)), np.inf
    half = brentq(lambda y: polygamma(1, y) - rest, 1e-3, 1e6)
    return float(np.exp(centre + digamma(half) - np.log(half))), 2 * half
