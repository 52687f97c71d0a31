"""From pairs to genes: labels and scores of a gene over all of its cells.

Some methods (ELLA, locFISH) end in one profile per gene. The labels of this benchmark are per pair;
those of genes are derived from them by one rule: a gene has a pattern that at least half of its
labelled cells show. It is *ambiguous* with two or more patterns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpattern_bench.errors import EvaluationError

__all__ = ["SHARE", "gene_means", "gene_shares", "has_pattern", "reserved", "second_largest"]

SHARE = 0.5
"""Least share of a gene's labelled cells that show a pattern which the gene is said to have."""

_COLUMNS = ("gene", "cells", "patterns", "ambiguous")  # of a table of genes


def has_pattern(shares: NDArray[np.float64], share: float = SHARE) -> NDArray[np.bool_]:
    """Tell which patterns genes have, from the shares of their cells.

    Raises
    ------
    EvaluationError
        `share` is not above 0 and at most 1.

    Examples
    --------
    >>> has_pattern(np.array([[0.5, 0.49, 0.9]])).tolist()
    [[True, False, True]]
    """
    if not 0 < share <= 1:
        raise EvaluationError(f"expected a share of cells above 0 and at most 1, got {share}")
    found: NDArray[np.bool_] = shares >= share
    return found


def gene_shares(
    genes: pd.Series[Any], truth: NDArray[np.bool_]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Count the cells of each gene and the share of them with each pattern.

    Parameters
    ----------
    genes : pandas.Series
        (N,) the gene of each pair.
    truth : numpy.ndarray
        (N, C) labels, or calls.

    Returns
    -------
    names : list of str
        (G,) sorted.
    cells : numpy.ndarray
        (G,) pairs of each.
    shares : numpy.ndarray
        (G, C) fractions.
    """
    names, code = _coded(genes)
    cells = np.bincount(code, minlength=len(names))
    sums = [np.bincount(code[column], minlength=len(names)) for column in truth.T]
    counts = np.array(sums, np.float64).reshape(truth.shape[1], len(names)).T
    return names, cells, counts / cells[:, None]


def gene_means(genes: pd.Series[Any], scores: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Compute the mean scores (G, C) of genes, sorted by name; in any order of the pairs the same.

    Rounded to float32: pairs of equal scores, in whatever numbers, give equal means.
    """
    names, code = _coded(genes)
    cells = np.bincount(code, minlength=len(names))
    means = np.empty((len(names), scores.shape[1]), np.float32)
    for k, column in enumerate(scores.T.astype(np.float64)):
        order = np.lexsort((column, code))
        total = np.bincount(code[order], column[order], minlength=len(names))
        means[:, k] = np.clip(total / cells, 0, 1)
    return means


def second_largest(scores: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Give the second largest score (G,) of each gene: high if it has two patterns.

    >>> second_largest(np.float32([[0.5, 0.25, 0.75], [0.0, 1.0, 0.0]])).tolist()
    [0.5, 0.0]
    """
    return np.asarray(np.sort(scores, axis=1)[:, -2])


def reserved(patterns: Iterable[str]) -> None:
    """Refuse patterns with the name of another column of a table of genes.

    Raises
    ------
    EvaluationError
        There is one.
    """
    if found := [name for name in patterns if name in _COLUMNS]:
        raise EvaluationError(
            f"a pattern cannot be named {', '.join(found)}: a table of genes has a column of that "
            "name; rename it"
        )


def _coded(genes: pd.Series[Any]) -> tuple[list[str], NDArray[np.intp]]:
    code, found = pd.factorize(genes)
    names = [str(name) for name in found]
    order = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names), np.intp)
    place[order] = np.arange(len(names))
    return [names[at] for at in order], place[code]
