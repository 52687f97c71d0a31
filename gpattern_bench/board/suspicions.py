"""Suspicions: scores that a person should look at, judged by those of the package's methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpattern_bench.board.challenge import Outcome
from gpattern_bench.board.format import percent
from gpattern_bench.board.submission import Metadata, Score
from gpattern_bench.methods import METHODS

__all__ = ["falls_on_new_cells", "near_labels"]

_METRICS = {"f1_macro": "F1", "accuracy_subset": "subset accuracy"}


def near_labels(
    method: str, macro: Mapping[str, float | None], scored: Iterable[tuple[Metadata, Score]]
) -> list[str]:
    """Flag scores nearer to those of the labels than to the best of the package's other methods.

    Labels score 1, so this is a macro F1 or a subset accuracy above ``(best + 1) / 2``.

    Parameters
    ----------
    method : str
    macro : mapping of str to float or None
        Its macro metrics, fractions.
    scored : iterable of (Metadata, Score)
        All results of the dataset version, of any protocol.
    """
    others: list[Mapping[str, Any]] = [
        score["metrics"]
        for about, score in scored
        if about.method in METHODS and about.method != method and "labels" not in about.inputs
    ]
    flags = []
    for key, name in _METRICS.items():
        best = max((found[key] for found in others if found[key] is not None), default=None)
        value = macro[key]
        if best is not None and value is not None and value > (best + 1) / 2:
            flags.append(
                f"{name} is nearer to that of the labels than to the package's best "
                f"({percent(best)} %)"
            )
    return flags


def falls_on_new_cells(ci: Sequence[float | None] | None, outcome: Outcome | None) -> list[str]:
    """Flag a macro F1 whose 95 % interval lies above that on new cells."""
    if ci is None or ci[0] is None or outcome is None or outcome["ci"]["f1_macro"][1] >= ci[0]:
        return []
    return [f"F1 falls to {percent(outcome['f1_macro'])} % on new cells"]
