"""Calls of an answer: scores to probabilities and calls, or none where there is too little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from gpattern_bench.answers.card import Card
from gpattern_bench.errors import MethodError
from gpattern_bench.evaluate.calibration import Calibration, calibrate
from gpattern_bench.evaluate.calls import gene_table
from gpattern_bench.evaluate.quantify import count_odds, likeliest_shares
from gpattern_bench.tables.model_output import Model
from gpattern_bench.tables.parquet import codes_into

__all__ = ["GeneCounts", "Rule", "rule_of"]

PROBABILITY = "_probability"
ESTIMATE = "_estimate"
_ENDS = (PROBABILITY, "_low", "_high", ESTIMATE, f"{ESTIMATE}_low", f"{ESTIMATE}_high")
_TAKEN = (
    "cell_id",
    "gene",
    "n_molecules",
    "cells",
    "called",
    "not_called",
    "patterns",
    "ambiguous",
)


@dataclass(frozen=True)
class Rule:
    """How scores become probabilities and calls.

    Attributes
    ----------
    patterns : tuple of str
    thresholds : mapping of str to float or None
        Least score of a call; None: the pattern is never called.
    calibration : Calibration or None
        None: scores pass as probabilities.
    min_molecules : int
        Pairs of fewer molecules are not called.
    """

    patterns: tuple[str, ...]
    thresholds: Mapping[str, float | None]
    calibration: Calibration | None
    min_molecules: int

    def apply(self, scored: pa.Table) -> pa.Table:
        """Call pairs.

        Parameters
        ----------
        scored : pyarrow.Table
            ``cell_id``, ``gene``, ``n_molecules`` and one float32 score per pattern.

        Returns
        -------
        pyarrow.Table
            ``cell_id``, ``gene``, ``n_molecules`` and, per pattern, a bool (null: not called) and
            ``<pattern>_probability`` (float32).
        """
        scores = np.column_stack([scored[name].to_numpy() for name in self.patterns])
        chances = scores
        if self.calibration is not None:
            chances = calibrate(scores, self.patterns, self.calibration)
        few = scored["n_molecules"].to_numpy() < self.min_molecules
        columns = [scored["cell_id"].cast(pa.string()), scored["gene"].cast(pa.string())]
        columns.append(scored["n_molecules"])
        for k, pattern in enumerate(self.patterns):
            at = self.thresholds[pattern]
            called = scores[:, k] >= np.float32(np.inf if at is None else at)
            columns += [
                pa.array(called, mask=few | (at is None)),
                pa.array(np.ascontiguousarray(chances[:, k])),
            ]
        return pa.Table.from_arrays(columns, schema=self.schema)

    @property
    def schema(self) -> pa.Schema:
        """Of the pairs."""
        return pa.schema(
            [
                pa.field("cell_id", pa.string(), nullable=False),
                pa.field("gene", pa.string(), nullable=False),
                pa.field("n_molecules", pa.int32(), nullable=False),
                *(
                    field
                    for name in self.patterns
                    for field in (
                        pa.field(name, pa.bool_()),
                        pa.field(f"{name}{PROBABILITY}", pa.float32(), nullable=False),
                    )
                ),
            ]
        )

    @property
    def text(self) -> str:
        """Say which pairs are not called."""
        never = [name for name in self.patterns if self.thresholds[name] is None]
        told = []
        if self.min_molecules > 1:
            told.append(f"pairs of fewer than {self.min_molecules} molecules")
        if never:
            told.append(f"{', '.join(never)}, of which the model has no threshold")
        return " and ".join(told) or "none: every pair is called"


def rule_of(model: Model, card: Card | None, source: str) -> Rule:
    """Give the rule of a model: that of its card or, without one, its thresholds alone.

    Raises
    ------
    MethodError
        It has no thresholds, or its patterns have the names of other columns.
    """
    patterns = tuple(model.patterns)
    columns = [*_TAKEN, *(f"{p}{end}" for p in patterns for end in _ENDS)]
    if taken := [p for p in patterns if p in columns]:
        raise MethodError(
            f"a pattern of {source} is named {', '.join(taken)}, as a column of the answer: fit it "
            "on patterns of other names"
        )
    if card is not None:
        if tuple(card.thresholds) != patterns:
            raise MethodError(
                f"{source}: the card is of {', '.join(card.thresholds)}, the model of "
                f"{', '.join(patterns)}: copy the model's whole folder again"
            )
        return Rule(patterns, card.thresholds, card.calibration, card.min_molecules)
    at = model.thresholds
    known = {name: None if at is None else _known(at.get(name)) for name in patterns}
    if all(value is None for value in known.values()):
        raise MethodError(
            f"{source} has no thresholds for calls, because it was run on a dataset without a "
            "labelled val split: run it on one that has, or take a model of the package "
            "(`gpattern-bench models`)"
        )
    return Rule(patterns, known, None, 1)


def _known(threshold: float | None) -> float | None:
    return None if threshold is None or isnan(threshold) else threshold


class GeneCounts:
    """Counts of pairs and calls by gene, summed up piece by piece.

    Parameters
    ----------
    genes : sequence of str
        Of the dataset.
    patterns : sequence of str
    prevalence : mapping of str to float, optional
        Of the patterns, among the pairs to which the calibration was fitted; without it no shares
        are estimated.
    """

    def __init__(
        self,
        genes: Sequence[str],
        patterns: Sequence[str],
        prevalence: Mapping[str, float] | None = None,
    ) -> None:
        self._index = pd.Index(list(genes), dtype=object)
        self._patterns = list(patterns)
        self._pairs = np.zeros(len(genes), np.int64)
        self._called = np.zeros((len(patterns), len(genes)), np.int64)  # pairs called or not
        self._positive = np.zeros((len(patterns), len(genes)), np.int64)
        self._chance = np.zeros((len(patterns), len(genes)))
        self._right = np.zeros(len(patterns))  # expected number of right calls
        self._prevalence = prevalence and [prevalence[name] for name in patterns]
        self._odds: NDArray[np.int64] | None = None  # of all pairs, called or not

    def add(self, pairs: pa.Table) -> None:
        """Add what :meth:`Rule.apply` gave."""
        gene = codes_into(self._index, pairs["gene"])
        n = len(self._index)
        self._pairs += np.bincount(gene, minlength=n)
        for k, pattern in enumerate(self._patterns):
            called = pairs[pattern].is_valid().to_numpy()
            positive = pairs[pattern].fill_null(False).to_numpy()
            chance = pairs[f"{pattern}{PROBABILITY}"].to_numpy().astype(np.float64)
            self._called[k] += np.bincount(gene[called], minlength=n)
            self._positive[k] += np.bincount(gene[positive], minlength=n)
            self._chance[k] += np.bincount(gene[called], chance[called], minlength=n)
            self._right[k] += chance[positive].sum()
        if self._prevalence is not None:
            columns = [pairs[f"{pattern}{PROBABILITY}"].to_numpy() for pattern in self._patterns]
            odds = count_odds(np.column_stack(columns), self._prevalence, gene, n)
            self._odds = odds if self._odds is None else self._odds + odds

    def table(self) -> pd.DataFrame:
        """Sum up per gene, of the genes with a pair.

        Returns
        -------
        pandas.DataFrame
            ``gene``; ``cells``, those with the gene; ``called`` and ``not_called`` of these; per
            pattern its share of the called, ``<pattern>_low`` and ``<pattern>_high`` (95 %,
            Wilson: of the calls, as if none were wrong), and ``<pattern>_probability``, the mean
            over the called; with a prevalence ``<pattern>_estimate``, ``_estimate_low`` and
            ``_estimate_high``, the share of all cells with the gene that have the pattern,
            corrected for the model's errors
            (:func:`~gpattern_bench.evaluate.quantify.likeliest_shares`); ``patterns`` and
            ``ambiguous`` as :func:`~gpattern_bench.evaluate.calls.summarise_genes`.
        """
        some = self._pairs > 0
        called = self._called.max(axis=0)  # a pattern without a threshold has none
        counts = {"cells": called} | dict(zip(self._patterns, self._positive, strict=True))
        by_gene = pd.DataFrame(counts, index=self._index)[some]
        table = gene_table(by_gene, self._patterns).rename(columns={"cells": "called"})
        table.insert(1, "cells", self._pairs[some])
        table.insert(3, "not_called", self._pairs[some] - called[some])
        for k, pattern in enumerate(self._patterns):
            own = np.where(self._called[k] > 0, self._called[k], np.nan)[some]
            if not self._called[k].any():
                table[[pattern, f"{pattern}_low", f"{pattern}_high"]] = np.nan
            at = list(table.columns).index(f"{pattern}_high")
            table.insert(at + 1, f"{pattern}{PROBABILITY}", self._chance[k][some] / own)
        if self._odds is not None:
            for end, values in zip(_ENDS[3:], likeliest_shares(self._odds[some]), strict=True):
                for k, pattern in enumerate(self._patterns):
                    at = list(table.columns).index(f"{pattern}{PROBABILITY}")
                    table.insert(at + _ENDS.index(end) - 2, f"{pattern}{end}", values[:, k])
        return table

    def totals(self) -> dict[str, Any]:
        """Give the numbers of all genes together: pairs, called ones, and calls by pattern.

        ``expected_wrong`` is the share of a pattern's calls that are expected to be wrong, the mean
        of 1 - probability over them; NaN without calls.
        """
        called = int(self._called.sum(axis=1).max())
        positive: NDArray[np.int64] = self._positive.sum(axis=1)
        wrong = 1 - self._right / np.where(positive > 0, positive, np.nan)
        return {
            "pairs": int(self._pairs.sum()),
            "called": called,
            "not_called": int(self._pairs.sum()) - called,
            "of_pattern": dict(zip(self._patterns, positive.tolist(), strict=True)),
            "expected_wrong": dict(zip(self._patterns, wrong.tolist(), strict=True)),
        }
