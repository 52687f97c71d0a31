"""Share of a gene's cells that have a pattern, from probabilities instead of counted calls.

Counting calls counts the model's errors too: where a pattern is rare, most calls may be wrong, and
pairs of few molecules are never called whatever they have. Here each pair says how much likelier
its scores are with the pattern than without, and a gene's share is the one that makes all its pairs
likeliest. Pairs that say nothing have no weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit

from gpattern_bench.errors import EvaluationError
from gpattern_bench.evaluate.genes import reserved
from gpattern_bench.evaluate.inputs import score_array

__all__ = ["count_odds", "estimate_shares", "likeliest_shares", "log_likelihood"]

_STEP, _MOST = 0.1, 8.0  # of the log-odds that are told apart
_ODDS = np.exp(np.arange(-_MOST, _MOST + _STEP / 2, _STEP))
_SHARES = np.linspace(0, 1, 201)
_LOWER = 3.841458820694124 / 2  # of log-likelihood: the 95 % quantile of chi-squared, halved


def estimate_shares(
    batches: Iterable[pd.DataFrame], prevalence: Mapping[str, float]
) -> pd.DataFrame:
    """Estimate per gene and pattern the share of cells that have it, with 95 % intervals.

    The share of largest likelihood, to half a per cent; the limit of the EM of Saerens et al. The
    interval holds the shares whose likelihood is not demonstrably lower (ratio test). It knows of
    few cells, and of few molecules where the probabilities do; it takes cells as independent, and
    the probabilities for calibrated.

    Parameters
    ----------
    batches : iterable of pandas.DataFrame
        ``gene`` and one column of calibrated probabilities per pattern
        (:func:`~gpattern_bench.evaluate.calibration.calibrate`); together all pairs.
    prevalence : mapping of str to float
        Pattern -> share of the pairs to which the calibration was fitted that have it.

    Returns
    -------
    pandas.DataFrame
        One row per gene, sorted: ``gene``, ``cells`` and, per pattern, its share and
        ``<pattern>_low``, ``<pattern>_high``.

    Raises
    ------
    EvaluationError
        No batch; a column that is missing or holds other values than probabilities; a prevalence
        that is not between 0 and 1; or a pattern with the name of another column.

    References
    ----------
    Saerens, Latinne and Decaestecker, Adjusting the outputs of a classifier to new a priori
    probabilities, 2002.

    Examples
    --------
    >>> pairs = pd.DataFrame({"gene": ["A"] * 4, "nuclear": [0.6, 0.6, 0.6, 0.01]})
    >>> print(estimate_shares([pairs], {"nuclear": 0.2}).round(2).to_string(index=False))
    gene  cells  nuclear  nuclear_low  nuclear_high
       A      4     0.73         0.15           1.0
    """
    patterns = list(prevalence)
    reserved(patterns)
    counts: dict[str, NDArray[np.int64]] = {}
    for batch in batches:
        bad = [name for name in ("gene", *patterns) if list(batch.columns).count(name) != 1]
        if bad or batch["gene"].isna().any():
            raise EvaluationError(
                "probabilities: expected the columns gene, without gaps, and "
                f"{', '.join(patterns)}, once each; missing or repeated: "
                f"{', '.join(bad) or 'names of some genes'}"
            )
        columns = [score_array(f"probabilities, column {name}", batch[name]) for name in patterns]
        code, names = pd.factorize(batch["gene"].astype(str))
        found = count_odds(np.column_stack(columns), list(prevalence.values()), code, len(names))
        for name, here in zip(names, found, strict=True):
            counts[name] = counts[name] + here if name in counts else here
    if not counts:
        raise EvaluationError("no probabilities: there is no pair to sum up")
    genes = sorted(counts)
    share, low, high = likeliest_shares(np.array([counts[gene] for gene in genes]))
    table = pd.DataFrame({"gene": genes, "cells": [int(counts[gene][0].sum()) for gene in genes]})
    for k, pattern in enumerate(patterns):
        table[pattern] = share[:, k]
        table[f"{pattern}_low"], table[f"{pattern}_high"] = low[:, k], high[:, k]
    return table


def count_odds(
    probabilities: NDArray[np.floating[Any]],
    prevalence: Any,
    group: NDArray[np.integer[Any]],
    groups: int,
    weights: NDArray[np.floating[Any]] | None = None,
) -> NDArray[Any]:
    """Count pairs by group, pattern, and how much likelier their scores are with it than without.

    Parameters
    ----------
    probabilities : numpy.ndarray
        (N, C), calibrated.
    prevalence : array_like
        (C,) shares of the pairs that the calibration was fitted to.
    group : numpy.ndarray
        (N,) 0 to `groups` - 1.
    groups : int
    weights : numpy.ndarray, optional
        (N,) instead of one for each pair.

    Returns
    -------
    numpy.ndarray
        (groups, C, 161) counts; of all pairs the same as the sum of those of parts.

    Raises
    ------
    EvaluationError
        A probability is not in [0, 1], or a prevalence not between 0 and 1.
    """
    prior = np.asarray(prevalence, np.float64)
    values = np.asarray(probabilities, np.float64)
    if not ((prior > 0) & (prior < 1)).all():
        raise EvaluationError(
            f"prevalence: expected shares above 0 and below 1, got {prior.tolist()}"
        )
    if not ((values >= 0) & (values <= 1)).all():  # NaN is not
        raise EvaluationError("probabilities: expected finite values in [0, 1] everywhere")
    with np.errstate(divide="ignore"):  # 0 and 1 count as the ends
        odds = np.clip(logit(values) - logit(prior), -_MOST, _MOST)
    place = np.rint((odds + _MOST) / _STEP).astype(np.int64)
    size = len(_ODDS)
    found = [
        np.bincount(group * size + column, weights, groups * size).reshape(groups, size)
        for column in place.T
    ]
    return np.stack(found, axis=1) if found else np.zeros((groups, 0, size))


def likeliest_shares(
    counts: NDArray[Any],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Find the shares of largest likelihood, and the ends of their 95 % intervals.

    Parameters
    ----------
    counts : numpy.ndarray
        (..., 161) from :func:`count_odds`.

    Returns
    -------
    share, low, high : numpy.ndarray
        (...) fractions.
    """
    likelihood = log_likelihood(counts)
    best = likelihood.argmax(axis=-1)
    inside = likelihood >= likelihood.max(axis=-1, keepdims=True) - _LOWER
    low = inside.argmax(axis=-1)
    high = len(_SHARES) - 1 - inside[..., ::-1].argmax(axis=-1)
    return _SHARES[best], _SHARES[low], _SHARES[high]


def log_likelihood(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the log-likelihood (..., 201) of every share from 0 to 1, up to a constant.

    A pair's scores have the likelihood ``1 - share + share * odds``, up to a factor.
    """
    return np.asarray(counts @ np.log(np.outer(_ODDS - 1, _SHARES) + 1))
