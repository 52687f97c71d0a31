"""Duplicates: methods whose scores rank the pairs like another method's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.board.submission import Score, Submission
from gpattern_bench.errors import ChecksumError, FetchError
from gpattern_bench.methods import METHODS
from gpattern_bench.tables.predictions import read_predictions

__all__ = ["CORRELATION", "CORRELATION_MEAN", "flag_duplicates"]

CORRELATION = 0.98
"""Rank correlation of one pattern's scores above which two methods count as one. Unrelated methods
of the package reach 0.96, networks that differ by their seed 0.972."""
CORRELATION_MEAN = 0.97
"""The same for the mean over two patterns or more. Unrelated methods of the package reach 0.93,
networks that differ by their seed 0.965."""
_ROWS = 100_000  # compare at most these many pairs, evenly spaced
_FLAG = "ranks the pairs "

_Ranks: TypeAlias = dict[str, NDArray[np.float64] | None]


@dataclass
class _Entry:
    """One result, whether it was compared, and what it ranks like: method -> patterns."""

    submission: Submission
    score: Score
    compared: bool = False
    alike: dict[str, set[str]] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.submission.metadata.method

    def is_comparable(self, other: _Entry) -> bool:
        return self.method != other.method and not self.is_variant(other)

    def is_variant(self, other: _Entry) -> bool:
        """Test whether their authors declared them as variants of each other, or of a third.

        The package's own methods are known to be: they share features and networks.
        """
        one, two = self.submission.metadata, other.submission.metadata
        if {one.method, two.method} <= METHODS.keys():
            return True
        family = {one.method, *one.variant_of} & {two.method, *two.variant_of}
        return bool(family) and not set(one.authors).isdisjoint(two.authors)

    def add(self, method: str, patterns: Sequence[str]) -> None:
        self.alike.setdefault(method, set()).update(patterns)

    def flagged(self) -> Score:
        if not self.compared:
            return self.score
        others = [text for text in self.score["flags"] if not text.startswith(_FLAG)]
        every = set(self.score["metrics"]["per_pattern"])
        found = [
            f"{_FLAG}as {name} does"
            if patterns >= every
            else f"{_FLAG}of {', '.join(sorted(patterns))} as {name} does"
            for name, patterns in sorted(self.alike.items())
        ]
        return {**self.score, "flags": others + found}


def flag_duplicates(scored: Sequence[tuple[Submission, list[Score]]]) -> list[list[Score]]:
    """Flag test predictions that rank the pairs like those of another method.

    All files of one dataset version are compared, of any protocol and seed. Methods are alike if
    the rank correlation (Spearman) of one pattern is above :data:`CORRELATION`, or the mean over
    patterns above :data:`CORRELATION_MEAN`; patterns where a score is constant do not count.
    Noise hides a copy from a standard deviation of a quarter of that of the ranks
    (``benchmarks/games.py``). Not compared: methods that see the labels, variants that their
    authors declare (``variant_of``), and the package's methods with each other. The package's
    methods are never flagged: nothing tells which of two others was first, so both are.

    Parameters
    ----------
    scored : sequence of (Submission, list of Score)
        Submissions and their new results (:func:`gpattern_bench.board.submission.rescore`).

    Returns
    -------
    list of list of Score
        The same results with these flags renewed, or as stored where an address does not answer.
    """
    entries = [[_Entry(made, score) for score in results] for made, results in scored]
    groups: dict[tuple[str, str], list[_Entry]] = {}
    for entry in chain.from_iterable(entries):
        if "labels" not in entry.submission.metadata.inputs:
            version = entry.score["dataset"], entry.score["version"]
            groups.setdefault(version, []).append(entry)
    for group in groups.values():
        ranked: list[tuple[_Entry, _Ranks]] = []
        for entry in group:
            try:
                ranked.append((entry, _ranks(entry)))
            except ChecksumError:
                raise
            except FetchError:
                continue
            entry.compared = True
        for (a, ranks_a), (b, ranks_b) in combinations(ranked, 2):
            if a.is_comparable(b) and (patterns := _alike(ranks_a, ranks_b)):
                # A stranger's copy casts no doubt on a method of the package.
                if a.method not in METHODS:
                    a.add(b.method, patterns)
                if b.method not in METHODS:
                    b.add(a.method, patterns)
    return [[entry.flagged() for entry in each] for each in entries]


def _ranks(entry: _Entry) -> _Ranks:
    """Rank each pattern's scores: centred, of length 1; None where all scores are equal."""
    table = read_predictions(entry.submission.path(entry.score["predictions"]))[0].to_pandas()
    table = table.sort_values(["cell_id", "gene"], ignore_index=True)
    kept = np.unique(np.linspace(0, len(table) - 1, _ROWS).astype(int))
    table = table.iloc[kept].drop(columns=["cell_id", "gene"])
    return {str(name): _normalised(table[name].to_numpy()) for name in table.columns}


def _normalised(values: NDArray[np.floating[Any]]) -> NDArray[np.float64] | None:
    from scipy.stats import rankdata  # slow to import

    ranks: NDArray[np.float64] = rankdata(values) - (len(values) + 1) / 2
    length = float(np.sqrt(ranks @ ranks))
    return ranks / length if length > 0 else None


def _alike(one: _Ranks, other: _Ranks) -> list[str]:
    """Name the patterns that are ranked alike; all that can be compared if they are on average."""
    found = _correlations(one, other)
    if len(found) > 1 and sum(found.values()) / len(found) > CORRELATION_MEAN:
        return list(found)
    return [pattern for pattern, value in found.items() if value > CORRELATION]


def _correlations(one: _Ranks, other: _Ranks) -> dict[str, float]:
    """Correlate the ranks of each pattern that neither scores constantly."""
    return {
        pattern: float(a @ b)
        for pattern, a in sorted(one.items())
        if a is not None and (b := other.get(pattern)) is not None and len(a) == len(b)
    }
