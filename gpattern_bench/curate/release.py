"""A source release in memory: what every reader hands to curation, before any rule is applied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from gpattern_bench.errors import GPatternBenchError, SourceError

__all__ = ["Release", "reading"]


@dataclass(frozen=True)
class Release:
    """A source release as read, in the source's own units.

    Attributes
    ----------
    molecules : pandas.DataFrame
        Columns ``fov``, ``cell_id``, ``gene`` (categorical or str), ``x``, ``y`` (float64) and,
        where measured, ``z``. Null ``cell_id`` = outside every cell.
    cells : pandas.DataFrame
        Columns ``fov``, ``cell_id`` (str), ``cell_boundary``, ``nucleus_boundary`` (shapely
        geometry or None) and ``touches_border`` (bool or None).
    labels : pandas.DataFrame or None
        Columns ``cell_id``, ``gene`` and one 0/1 column per pattern; only labelled pairs.
    dropped : dict of str to dict of str to int
        Rows that the reader itself left out: table -> reason -> rows.
    """

    molecules: pd.DataFrame
    cells: pd.DataFrame
    labels: pd.DataFrame | None = None
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a library raises on a file that is not what it should be into one error."""
    try:
        yield
    except GPatternBenchError:
        raise
    except Exception as error:  # files from anywhere break libraries in ways that none documents
        raise SourceError(f"{path} cannot be read as {what}: {error!r}") from error
