"""Duplicates: methods whose scores rank the pairs like another method's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from gpattern_bench.board.submission import Score, Submission
from gpattern_bench.errors import ChecksumError, FetchError
from gpattern_bench.tables.predictions import read_predictions

__all__ = ["CORRELATION", "flag_duplicates"]

CORRELATION = 0.9999
"""Rank correlation of scores above which two methods count as one."""
_ROWS = 100_000  # compare at most these many pairs, evenly spaced
_FLAG = "ranks the pairs as "

_Ranks: TypeAlias = dict[str, NDArray[np.float64] | None]


@dataclass
class _Entry:
    """One result, whether it was compared, and the methods that it duplicates."""

    submission: Submission
    score: Score
    compared: bool = False
    duplicates: set[str] = field(default_factory=set)

    @property
    def method(self) -> str:
        return self.submission.metadata.method

    def is_comparable(self, other: _Entry) -> bool:
        protocols = {self.score["protocol"], other.score["protocol"]}
        return self.method != other.method and (len(protocols) == 1 or "untrained" in protocols)

    def flagged(self) -> Score:
        if not self.compared:
            return self.score
        others = [text for text in self.score["flags"] if not text.startswith(_FLAG)]
        found = [f"{_FLAG}{name} does" for name in sorted(self.duplicates)]
        return {**self.score, "flags": others + found}


def flag_duplicates(scored: Sequence[tuple[Submission, list[Score]]]) -> list[list[Score]]:
    """Flag test predictions that rank the pairs like those of another method.

    Files of one dataset version and one way of fitting are compared; untrained methods are
    compared with all. Every pattern must correlate above :data:`CORRELATION`; patterns where both
    scores are constant do not count. Methods that see the labels are left out.

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
            if a.is_comparable(b) and _rank_alike(ranks_a, ranks_b):
                a.duplicates.add(b.method)
                b.duplicates.add(a.method)
    return [[entry.flagged() for entry in each] for each in entries]


def _ranks(entry: _Entry) -> _Ranks:
    """Rank each pattern's scores: centred, of length 1; None where all scores are equal."""
    table = read_predictions(entry.submission.path(entry.score["predictions"]))[0].to_pandas()
    table = table.sort_values(["cell_id", "gene"], ignore_index=True)
    kept = np.unique(np.linspace(0, len(table) - 1, _ROWS).astype(int))
    table = table.iloc[kept].drop(columns=["cell_id", "gene"])
    return {str(name): _normalised(table[name].to_numpy()) for name in table.columns}


def _normalised(values: NDArray[np.floating[Any]]) -> NDArray[np.float64] | None:
    ranks: NDArray[np.float64] = rankdata(values) - (len(values) + 1) / 2
    length = float(np.sqrt(ranks @ ranks))
    return ranks / length if length > 0 else None


def _rank_alike(one: _Ranks, other: _Ranks) -> bool:
    compared = False
    for pattern in sorted(one):
        a, b = one[pattern], other.get(pattern)
        if a is None and b is None:
            continue
        if a is None or b is None or len(a) != len(b) or float(a @ b) <= CORRELATION:
            return False
        compared = True
    return compared
