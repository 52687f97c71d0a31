"""Call patterns: scores to 0 or 1, at thresholds chosen on the val split."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri  # quantile of the normal, without scipy.stats

from gpattern_bench.base.files import plain, write_text
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import EvaluationError
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.evaluate.genes import SHARE, has_pattern, reserved
from gpattern_bench.evaluate.inputs import label_array, score_array
from gpattern_bench.evaluate.metrics import score_pattern
from gpattern_bench.tables.predictions import write_tables

__all__ = [
    "NEARLY_ALL",
    "call_patterns",
    "cell_text",
    "gene_table",
    "makes_calls",
    "summarise_genes",
    "text_of_cell",
    "val_thresholds",
    "wilson_interval",
    "write_calls",
    "write_genes",
]

_BATCH = 1 << 18  # pairs per batch
NEARLY_ALL = 0.95
"""Share of called pairs above which calls are uninformative."""

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")

_log = logging.getLogger(__name__)


def val_thresholds(dataset: Dataset, predictions: str | Path | pa.Table) -> dict[str, float]:
    """Choose each pattern's threshold of largest F1 on the val split.

    NaN (no calls) without positives in val, and for constant scores (:func:`makes_calls`).

    Raises
    ------
    PredictionError
        The file or table does not predict the val split.
    """
    evaluator = Evaluator(dataset, "val")
    scores = evaluator.check(predictions).require()
    called = makes_calls(scores)
    found = {}
    for k, pattern in enumerate(dataset.patterns):
        truth = evaluator.labels[pattern].to_numpy(bool)
        found[pattern] = score_pattern(truth, scores[:, k]).threshold if called[k] else nan
    return found


def makes_calls(scores: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Tell which columns of scores (N, C) make calls: constant ones tell no pairs apart.

    A method without a rule for a pattern gives such a column; at the threshold of largest F1 it
    would call the pattern for every pair.

    >>> makes_calls(np.array([[0.2, 0.5], [0.7, 0.5]])).tolist()
    [True, False]
    """
    found: NDArray[np.bool_] = scores.min(axis=0) < scores.max(axis=0)
    return found


def call_patterns(scores: pd.DataFrame, thresholds: Mapping[str, float | None]) -> pd.DataFrame:
    """Call each pattern of each pair: score >= threshold; never without a threshold (NaN, None).

    Parameters
    ----------
    scores : pandas.DataFrame
        ``cell_id``, ``gene`` and one float32 or float64 column of scores per pattern.
    thresholds : mapping of str to float or None
        Of each pattern to call.

    Returns
    -------
    pandas.DataFrame
        ``cell_id``, ``gene`` and one bool column per pattern.

    Raises
    ------
    EvaluationError
        A column is missing, has another type, or lacks scores (NaN is neither called nor not).

    Examples
    --------
    >>> scores = pd.DataFrame({"cell_id": ["1", "2"], "gene": ["A", "A"], "nuclear": [0.2, 0.7]})
    >>> call_patterns(scores, {"nuclear": 0.5})["nuclear"].tolist()
    [False, True]
    """
    _need(scores, ["cell_id", "gene", *thresholds], "scores")
    calls = scores[["cell_id", "gene"]].reset_index(drop=True)
    for pattern, threshold in thresholds.items():
        values = score_array(f"scores, column {pattern}", scores[pattern])
        calls[pattern] = np.zeros(len(values), bool)
        if threshold is not None and not isnan(threshold):
            calls[pattern] = values >= values.dtype.type(threshold)
    return calls


def summarise_genes(
    batches: Iterable[pd.DataFrame],
    scores: Iterable[pd.DataFrame] | None = None,
    *,
    share: float = SHARE,
) -> pd.DataFrame:
    """Compute per gene and pattern the share of called cells, with 95 % intervals.

    Wilson's score interval; assumes independent cells.

    Parameters
    ----------
    batches : iterable of pandas.DataFrame
        From :func:`call_patterns`; together all pairs.
    scores : iterable of pandas.DataFrame, optional
        Of the same pairs, with the same columns: for the genes' scores.
    share : float
        Of a gene's cells in which a pattern is called that the gene is said to have.

    Returns
    -------
    pandas.DataFrame
        One row per gene: ``gene``, ``cells`` and, per pattern, its share and ``<pattern>_low``,
        ``<pattern>_high``; ``patterns``, the names of those of the gene, joined by ``+``;
        ``ambiguous``, whether there are two or more; with `scores`, ``<pattern>_score``, the mean
        over the gene's cells, which no threshold decides.

    Raises
    ------
    EvaluationError
        No batch, other columns than in the first, values that are no calls or no scores, or a
        pattern with the name of another column.
    """
    counts = pd.DataFrame()
    patterns: list[str] | None = None
    for calls in batches:
        _need(calls, ["cell_id", "gene"], "calls")
        found = [name for name in calls.columns if name not in ("cell_id", "gene")]
        if patterns is None:
            reserved(found)
            patterns = found
        if sorted(found) != sorted(patterns):
            raise EvaluationError(
                f"calls: a batch has the patterns {', '.join(found)}, the first has "
                f"{', '.join(patterns)}"
            )
        if calls["gene"].isna().any():
            raise EvaluationError("calls: column gene is missing in some rows; name them all")
        values = {name: label_array(f"calls, column {name}", calls[name]) for name in patterns}
        here = pd.DataFrame({"gene": calls["gene"].astype(str).to_numpy()} | values)
        summed = here.assign(cells=1).groupby("gene").sum()
        counts = counts.add(summed, fill_value=0) if len(counts) else summed
    if patterns is None:
        raise EvaluationError("no calls: there is no batch to sum up")
    counts = counts.sort_index()
    table = gene_table(counts, patterns, share=share)
    if scores is not None:
        means = _mean_scores(scores, patterns)
        if not means.index.equals(counts.index):
            raise EvaluationError("calls and scores are not of the same genes: give both of all")
        for pattern in patterns:
            table[f"{pattern}_score"] = means[pattern].to_numpy()
    return table


def gene_table(
    counts: pd.DataFrame, patterns: Sequence[str], *, share: float = SHARE
) -> pd.DataFrame:
    """Turn counts per gene into shares with intervals: the table of :func:`summarise_genes`.

    Parameters
    ----------
    counts : pandas.DataFrame
        By gene, sorted: ``cells`` and, per pattern, in how many of them it is called.
    patterns : sequence of str
    share : float
        As in :func:`summarise_genes`.
    """
    n = counts["cells"].to_numpy(np.float64)
    table = pd.DataFrame({"gene": list(counts.index), "cells": n.astype(np.int64)})
    n = np.where(n > 0, n, nan)  # of no cells nothing is known
    for pattern in patterns:
        part = counts[pattern].to_numpy(np.float64) / n
        table[pattern] = part
        table[f"{pattern}_low"], table[f"{pattern}_high"] = wilson_interval(part, n)
    has = has_pattern(table[list(patterns)].to_numpy(np.float64).reshape(len(table), -1), share)
    names = np.array(patterns, object)
    table["patterns"] = ["+".join(names[row]) for row in has]
    table["ambiguous"] = has.sum(axis=1) > 1
    return table


def wilson_interval(
    share: ArrayLike, n: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the ends of Wilson's 95 % interval of shares (...) of `n` independent cells or pairs.

    >>> low, high = wilson_interval(0.5, 10)
    >>> print(f"{low:.3f} {high:.3f}")
    0.237 0.763
    """
    part, n = np.asarray(share, np.float64), np.asarray(n, np.float64)
    z = float(ndtri(0.975))
    middle = (part + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(part * (1 - part) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def _mean_scores(batches: Iterable[pd.DataFrame], patterns: list[str]) -> pd.DataFrame:
    """Compute the mean scores by gene, sorted."""
    sums = pd.DataFrame()
    for scores in batches:
        _need(scores, ["gene", *patterns], "scores")
        values = {
            name: score_array(f"scores, column {name}", scores[name]).astype(np.float64)
            for name in patterns
        }
        here = pd.DataFrame({"gene": scores["gene"].astype(str).to_numpy()} | values)
        summed = here.assign(cells=1).groupby("gene").sum()
        sums = sums.add(summed, fill_value=0) if len(sums) else summed
    if not len(sums):
        raise EvaluationError("no scores: there is no batch to sum up")
    return sums[patterns].div(sums["cells"], axis=0).sort_index()


def _need(table: pd.DataFrame, columns: list[str], what: str) -> None:
    absent = [name for name in columns if list(table.columns).count(name) != 1]
    if absent:
        raise EvaluationError(
            f"{what}: expected the columns {', '.join(columns)} once each; missing or repeated: "
            f"{', '.join(absent)}"
        )


def write_calls(scores: Path, thresholds: Mapping[str, float | None], path: Path) -> list[Path]:
    """Call the scores of a Parquet file; write calls (Parquet) and a summary of genes (csv).

    The calls' metadata hold the thresholds. Memory does not grow with the number of pairs. Warns
    of patterns called for nearly all pairs.
    """
    note = json.dumps(plain({"thresholds": dict(thresholds)}))

    def scored() -> Iterator[pd.DataFrame]:
        with pq.ParquetFile(scores) as file:
            for batch in file.iter_batches(_BATCH):
                yield batch.to_pandas()

    def called() -> Iterator[pd.DataFrame]:
        return (call_patterns(batch, thresholds) for batch in scored())

    write_tables(
        (pa.Table.from_pandas(calls, preserve_index=False) for calls in called()),
        path,
        {"gpattern_bench": note},
    )
    table = summarise_genes(called(), scored())
    genes = path.with_name(path.name.removesuffix(".parquet") + "-genes.csv")
    write_genes(table, genes)
    for pattern in thresholds:
        share = np.average(table[pattern], weights=table["cells"])
        if share > NEARLY_ALL:
            _log.warning(
                "%s: %s is called for %.1f %% of the pairs. The threshold of largest F1 is low if "
                "scores hardly separate pairs with and without a pattern: use the scores, not "
                "these calls",
                path.name, pattern, 100 * share,
            )  # fmt: skip
    return [path, genes]


def write_genes(table: pd.DataFrame, path: Path) -> None:
    """Write a table of genes as csv, with no name that a spreadsheet would run."""
    text = table.assign(
        **{key: [cell_text(name) for name in table[key]] for key in ("gene", "patterns")}
    ).rename(columns=cell_text)
    write_text(path, text.to_csv(index=False, float_format="%.6f"))


def cell_text(name: str) -> str:
    """Quote a name that a spreadsheet would take for a formula and run: `'` in front.

    A name that already looks quoted gets one more, so that :func:`text_of_cell` gives each back.
    """
    return f"'{name}" if _FORMULA.match(name) else name


def text_of_cell(cell: str) -> str:
    """Give the name that :func:`cell_text` quoted.

    Examples
    --------
    >>> [text_of_cell(cell_text(name)) for name in ("=SUM(A1)", "'-1", "'t Hooft")]
    ['=SUM(A1)', "'-1", "'t Hooft"]
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
