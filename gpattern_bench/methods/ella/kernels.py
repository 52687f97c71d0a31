"""ELLA's model: 22 kernels, their maximum-likelihood fit, tests and curves.

The intensity of a gene at relative radius r is ``A f(r) + B``, f a beta density. At the optimum the
expected number of molecules equals the observed n. This leaves one parameter: the share w of
molecules from the kernel, in a mixture of two densities that is concave in w
(:func:`fit_kernels`). Exposure, cell totals and the number of cells cancel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, erfc, softmax

from gpattern_bench.base.compiled import njit

__all__ = [
    "GRID",
    "KERNELS",
    "MODES",
    "KernelFit",
    "cauchy_combined",
    "curves",
    "false_discovery_rates",
    "fit_kernels",
    "intensities",
    "kernel_densities",
    "kernel_p_values",
    "kernel_ratios",
]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]

_NARROW = [(1, 2.71), (1.26, 3.34), (2.05, 5.19), (6.99, 14.98), (19.41, 28.62), (28.5, 28.5)]
_WIDE = [(1, 2), (1.13, 2.19), (1.38, 2.52), (1.88, 3.06), (2.73, 3.6), (3.5, 3.5)]

KERNELS: _Floats = np.array(
    [shape for half in (_NARROW, _WIDE) for shape in (*half, *((b, a) for a, b in half[-2::-1]))]
)
"""(22, 2) shapes a, b of the beta densities: eleven narrow modes, then the same eleven wide."""

MODES: _Floats = np.tile(np.arange(11) / 10, 2)
"""(22,) mode of each kernel: 0 at the centre, 1 at the outline."""

GRID: _Floats = np.linspace(0.001, 0.999, 100)
"""(100,) relative radii of the curves."""

_A, _B = KERNELS.T
_RING = _A / (_A + _B)  # integral of r f(r)

# Coefficients of log r, log(1 - r) and 1 in the log density of a kernel.
_LOG_DENSITY: _Floats = np.stack([_A - 1, _B - 1, -betaln(_A, _B)])
# The same for h, the density of molecules under the kernel over the null's, 2r.
_LOG_RATIO: _Floats = _LOG_DENSITY - np.stack([0 * _A, 0 * _A, np.log(2 * _RING)])

_INNERMOST, _OUTERMOST = 1e-10, 1 - 1e-5  # as upstream: finite log densities
_TOLERANCE, _STEPS = 1e-9, 100  # of w; Newton's error is then about the square

_P_FLOOR = 1e-7
_P_OF_ZERO = 0.75  # mid-p of T = 0, which has probability 1/2 under the null


class KernelFit(NamedTuple):
    """The fit of every kernel to every gene.

    Attributes
    ----------
    t : numpy.ndarray
        (G, 22) twice the gain in log-likelihood over the null, a uniform disk; at least 0.
    w : numpy.ndarray
        (G, 22) share of molecules from the kernel, in [0, 1].
    n : numpy.ndarray
        (G,) molecules.
    """

    t: _Floats
    w: _Floats
    n: _Ints


def fit_kernels(r: _Floats, starts: _Ints) -> KernelFit:
    """Fit every kernel to every gene by maximum likelihood, on all molecules, without bins.

    ``T = 2 max over w in [0, 1] of sum log(1 - w + w h(r))``, with ``h(r) = f(r) (a + b) / 2a``.
    Slopes at both ends decide w = 0 and w = 1; in between, Newton's method in a shrinking bracket.

    Parameters
    ----------
    r : numpy.ndarray
        (n,) relative radii, clipped to [1e-10, 1 - 1e-5].
    starts : numpy.ndarray
        (G + 1,) molecules of gene g are ``r[starts[g]:starts[g + 1]]``.

    Examples
    --------
    >>> fit = fit_kernels(np.array([0.1, 0.15, 0.2, 0.2, 0.9]), np.array([0, 5]))
    >>> fit.t[0, :3].round(3).tolist(), fit.w[0, :3].round(3).tolist()
    ([6.66, 6.765, 6.904], [0.813, 0.767, 0.738])
    """
    t, w = np.zeros((2, len(starts) - 1, len(KERNELS)))
    _fit(r, starts, _LOG_RATIO, t, w)
    return KernelFit(t, w, np.diff(starts))


@njit(cache=True, nogil=True, error_model="numpy")
def _fit(r: Any, starts: Any, coefficients: Any, t: Any, w: Any) -> None:
    largest = 0
    for g in range(len(w)):
        largest = max(largest, starts[g + 1] - starts[g])
    d = np.empty((largest, w.shape[1]))
    for g in range(len(w)):
        n = starts[g + 1] - starts[g]
        _excess(r[starts[g] : starts[g + 1]], coefficients, d)
        _solve(d[:n], w[g])
        _gain(d[:n], w[g], t[g])


# In all three, kernels are the inner loop: independent sums vectorise.


@njit(cache=True, nogil=True, error_model="numpy")
def _excess(r: Any, coefficients: Any, d: Any) -> None:
    """Compute h - 1 of every molecule and kernel."""
    for j in range(len(r)):
        x = min(max(r[j], _INNERMOST), _OUTERMOST)
        inner, outer = np.log(x), np.log1p(-x)
        for k in range(d.shape[1]):
            log_h = coefficients[0, k] * inner + coefficients[1, k] * outer + coefficients[2, k]
            d[j, k] = np.exp(log_h) - 1.0


@njit(cache=True, nogil=True, error_model="numpy")
def _solve(d: Any, w: Any) -> None:
    """Find the w of each kernel that maximises sum log(1 + w d)."""
    kernels = len(w)
    slope, curvature = np.zeros(kernels), np.zeros(kernels)
    for j in range(len(d)):
        for k in range(kernels):
            slope[k] += d[j, k]
            curvature[k] += d[j, k] / (1.0 + d[j, k])  # the slope at w = 1
    low, high = np.zeros(kernels), np.ones(kernels)
    unsolved = np.zeros(kernels, np.bool_)
    for k in range(kernels):
        if slope[k] <= 0.0:
            w[k] = 0.0
        elif curvature[k] >= 0.0:
            w[k] = 1.0
        else:
            w[k] = 0.5
            unsolved[k] = True
    for _ in range(_STEPS):
        if not unsolved.any():
            break
        slope[:] = 0.0
        curvature[:] = 0.0
        for j in range(len(d)):
            for k in range(kernels):
                q = d[j, k] / (1.0 + w[k] * d[j, k])
                slope[k] += q
                curvature[k] += q * q
        for k in range(kernels):
            if unsolved[k]:
                if slope[k] > 0.0:
                    low[k] = w[k]
                else:
                    high[k] = w[k]
                new = w[k] + slope[k] / curvature[k]
                if not low[k] <= new <= high[k]:
                    new = (low[k] + high[k]) / 2
                unsolved[k] = abs(new - w[k]) > _TOLERANCE
                w[k] = new


@njit(cache=True, nogil=True, error_model="numpy")
def _gain(d: Any, w: Any, t: Any) -> None:
    """Sum 2 log(1 + w d), with one logarithm per eight factors."""
    product = np.ones(len(w))
    t[:] = 0.0
    for j in range(len(d)):
        for k in range(len(w)):
            product[k] *= 1.0 + w[k] * d[j, k]
        if j % 8 == 7 or j == len(d) - 1:
            for k in range(len(w)):
                t[k] += 2.0 * np.log(product[k])
                product[k] = 1.0


def intensities(fit: KernelFit, exposure: _Floats) -> tuple[_Floats, _Floats]:
    """Compute A and B (G, 22) of the intensity ``A f(r) + B`` per unit area and exposure.

    Parameters
    ----------
    fit : KernelFit
    exposure : numpy.ndarray
        (G,) 2 pi times the sum over the gene's cells of upstream's ``floor(total / 1000) + 1``.
    """
    per = (fit.n / exposure)[:, None]
    return fit.w * per / _RING, 2 * (1 - fit.w) * per


def kernel_p_values(t: _Floats) -> _Floats:
    """Compute p values of likelihood ratios against half a chi-squared with one degree of freedom.

    T = 0, half of the null's probability, gets its mid-p value, 3/4: the mean and median of
    upstream's unseeded draw from [1/2, 1].
    """
    return np.where(t > 0, erfc(np.sqrt(np.maximum(t, 0) / 2)) / 2, _P_OF_ZERO)


def cauchy_combined(p: _Floats) -> _Floats:
    """Combine dependent p values, clipped to at least 1e-7, along the last axis."""
    clipped = np.clip(p, _P_FLOOR, 1 - _P_FLOOR)
    return np.asarray(0.5 - np.arctan(np.mean(1 / np.tan(np.pi * clipped), axis=-1)) / np.pi)


def false_discovery_rates(p: _Floats, lam: _Floats) -> _Floats:
    """Compute Benjamini-Yekutieli rates over the genes; 1 for flat curves.

    Parameters
    ----------
    p : numpy.ndarray
        (G,) combined p values.
    lam : numpy.ndarray
        (G, 100) their curves.
    """
    from scipy.stats import false_discovery_control  # slow to import

    if not len(p):
        return p
    return np.where(np.ptp(lam, axis=1) > 0, false_discovery_control(p, method="by"), 1.0)


def kernel_densities(r: _Floats) -> _Floats:
    """Compute the kernels' beta densities (n, 22) at radii (n,)."""
    return _exponentials(r, _LOG_DENSITY)


def kernel_ratios(r: _Floats) -> _Floats:
    """Compute density ratios (n, 22) of molecules: each kernel over the null, a uniform disk."""
    return _exponentials(r, _LOG_RATIO)


def _exponentials(r: _Floats, coefficients: _Floats) -> _Floats:
    x = np.clip(r, _INNERMOST, _OUTERMOST)
    return np.exp(np.stack([np.log(x), np.log1p(-x), np.ones_like(x)], axis=1) @ coefficients)


def curves(t: _Floats, a: _Floats, b: _Floats) -> _Floats:
    """Compute intensity curves (G, 100) on :data:`GRID`: kernels weighted by their likelihood.

    Parameters
    ----------
    t : numpy.ndarray
        (G, 22) of :class:`KernelFit`; weights are the softmax of T / 2.
    a, b : numpy.ndarray
        (G, 22) as :func:`intensities` gives them.
    """
    weight = softmax(t / 2, axis=1)
    flat = np.sum(weight * b, axis=1, keepdims=True)
    return np.asarray((weight * a) @ kernel_densities(GRID).T + flat)
