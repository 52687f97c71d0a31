"""Copies: submissions whose scores rank the pairs as those of another do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from gpattern_bench.board.submission import Score, Submission
from gpattern_bench.errors import ChecksumError, FetchError
from gpattern_bench.tables.predictions import read_predictions

__all__ = ["CORRELATION", "flag_copies"]

CORRELATION = 0.9999
"""Rank correlation of scores above which two methods are taken for one."""
_ROWS = 100_000  # at most so many pairs are compared, evenly drawn
_FLAG = "ranks the pairs as "

_Ranks: TypeAlias = dict[str, NDArray[np.float64] | None]


def flag_copies(scored: Sequence[tuple[Submission, list[Score]]]) -> list[list[Score]]:
    """Flag test predictions that rank like those of another submission.

    Compared are files of one dataset version, fitted in the same way (what learns nothing is
    compared with all), of different methods. The rank correlation is that of every pattern;
    patterns for which both give a constant do not count, and the lowest decides. Methods that
    are shown the labels are left out.

    Parameters
    ----------
    scored : sequence of (Submission, list of Score)
        What :meth:`Submission.rescored` gave.

    Returns
    -------
    list of list of Score
        The same results with these flags renewed. Where an address does not answer they stay.
    """
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for i, (submission, results) in enumerate(scored):
        if "labels" not in submission.metadata.inputs:
            for j, score in enumerate(results):
                groups.setdefault((score["dataset"], score["version"]), []).append((i, j))
    found: dict[tuple[int, int], set[str]] = {}
    for places in groups.values():
        ranks: dict[tuple[int, int], _Ranks] = {}
        for place in places:
            submission, score = scored[place[0]][0], scored[place[0]][1][place[1]]
            try:
                ranks[place] = _ranks(submission, score)
            except ChecksumError:
                raise
            except FetchError:
                continue
            found[place] = set()
        for a, b in combinations(ranks, 2):
            (one, other) = scored[a[0]][0].metadata, scored[b[0]][0].metadata
            protocols = {scored[a[0]][1][a[1]]["protocol"], scored[b[0]][1][b[1]]["protocol"]}
            together = len(protocols) == 1 or "untrained" in protocols
            if one.method != other.method and together and _alike(ranks[a], ranks[b]):
                found[a].add(f"{_FLAG}{other.method} does")
                found[b].add(f"{_FLAG}{one.method} does")
    return [
        [_flagged(score, found.get((i, j))) for j, score in enumerate(results)]
        for i, (_, results) in enumerate(scored)
    ]


def _flagged(score: Score, copies: set[str] | None) -> Score:
    if copies is None:
        return score
    others = [text for text in score["flags"] if not text.startswith(_FLAG)]
    return {**score, "flags": others + sorted(copies)}


def _ranks(submission: Submission, score: Score) -> _Ranks:
    """Centred ranks of each pattern, of length 1; None where all scores are equal."""
    table = read_predictions(submission.path(score["predictions"]))[0].to_pandas()
    table = table.sort_values(["cell_id", "gene"], ignore_index=True)
    kept = np.unique(np.linspace(0, len(table) - 1, _ROWS).astype(int))
    table = table.iloc[kept].drop(columns=["cell_id", "gene"])
    return {str(name): _normalised(table[name].to_numpy()) for name in table.columns}


def _normalised(values: NDArray[np.floating[Any]]) -> NDArray[np.float64] | None:
    ranks: NDArray[np.float64] = rankdata(values) - (len(values) + 1) / 2
    length = float(np.sqrt(ranks @ ranks))
    return ranks / length if length > 0 else None


def _alike(one: _Ranks, other: _Ranks) -> bool:
    compared = False
    for pattern in sorted(one):
        a, b = one[pattern], other.get(pattern)
        if a is None and b is None:
            continue
        if a is None or b is None or len(a) != len(b) or float(a @ b) <= CORRELATION:
            return False
        compared = True
    return compared
