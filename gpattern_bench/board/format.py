"""Format: how the board prints numbers, in Markdown and on its page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

__all__ = [
    "LABELLED_BY",
    "Mark",
    "best_two",
    "brief",
    "count",
    "duration",
    "interval",
    "percent",
    "seconds",
    "typeset",
]

LABELLED_BY = (
    "The labels are the calls of {}, not of people: scores measure how well a method imitates it. "
    "Bento: -, for the labels come from its own classifier."
)
"""Note on a table whose labels a classifier made."""

Mark = Literal["best", "second"]
"""How a number is marked among those of its column."""


def percent(value: float | None, form: str = ".2f") -> str:
    """Print a fraction in per cent; a hyphen where it is undefined."""
    return "-" if value is None else f"{100 * value:{form}}"


def interval(ci: Sequence[float | None] | None, joint: str, form: str = ".1f") -> str:
    """Print both ends of an interval in per cent; nothing where one is undefined."""
    return "" if ci is None or None in ci else joint.join(percent(end, form) for end in ci)


def seconds(value: float | None) -> str:
    """Print a duration in seconds."""
    return "-" if value is None else f"{value:.1f} s"


def duration(value: float | None) -> str:
    """Print a duration in seconds, minutes or hours."""
    if value is None or 1 <= value < 100:
        return seconds(value)
    if value < 1:
        return f"{value:.2f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def brief(value: float | None) -> str:
    """Print a duration to two digits or so, for a glance."""
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.0f} h"


def count(value: int | None) -> str:
    """Print a number of parameters, to three digits."""
    if value is None:
        return "-"
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def typeset(text: str) -> str:
    """Turn hyphens into what a printer would set: a dash for nothing, else minus signs."""
    return "\N{EN DASH}" if text == "-" else text.replace("-", "\N{MINUS SIGN}")


def best_two(printed: Iterable[str | None]) -> dict[str, Mark]:
    """Mark the best and the second best of printed numbers (None: no number); larger is better.

    Readers compare what is printed, so numbers equal in print share a mark.

    >>> best_two(["90.00", "89.99", "90.00", "70.00"])
    {'90.00': 'best', '89.99': 'second'}
    """
    values = {text: float(text) for text in printed if text is not None}
    ranks = sorted({*values.values()}, reverse=True)
    marks: dict[float, Mark] = dict(zip(ranks, ("best", "second"), strict=False))
    return {text: marks[value] for text, value in values.items() if value in marks}
