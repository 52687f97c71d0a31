"""Source releases as readers give them, piece by piece, before any rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpattern_bench.errors import GPatternBenchError, SourceError

__all__ = ["Piece", "Release", "by_fov", "in_memory", "reading"]


@dataclass(frozen=True)
class Release:
    """Some fields of view of a source release, in the source's own units.

    A reader gives pieces, so that a release larger than memory can be curated: no field of view
    is in two of them, and they come in the order of their fields of view, sorted as text.

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


Piece = Callable[[], Release]
"""Reads a piece when called, here or in a worker."""


def in_memory(release: Release) -> Piece:
    """Wrap a release in memory as a piece."""
    return partial(_itself, release)


def _itself(release: Release) -> Release:
    return release


def by_fov(release: Release) -> Iterator[Release]:
    """Split a release in memory by field of view.

    A molecule and a label go with their cell, whatever field of view the source wrote beside them.
    """
    cells, molecules, labels = release.cells, release.molecules, release.labels
    own = pd.Categorical(molecules["fov"]).rename_categories(str)
    names = pd.Index(sorted({*cells["fov"].astype(str), *own.categories}))
    home = cells.drop_duplicates("cell_id").set_index("cell_id")["fov"].astype(str)

    def rows(frame: pd.DataFrame) -> NDArray[np.int64]:
        cell = pd.Categorical(frame["cell_id"])
        at = names.get_indexer(home.reindex(cell.categories.astype(str)).to_numpy(object))
        return np.asarray(np.append(at, -1)[cell.codes])

    of_molecule = rows(molecules)
    strays = of_molecule < 0
    of_molecule[strays] = np.append(names.get_indexer(own.categories), 0)[own.codes[strays]]
    order = np.argsort(of_molecule, kind="stable")
    bounds = np.searchsorted(of_molecule[order], np.arange(len(names) + 1))
    of_cell = names.get_indexer(cells["fov"].astype(str).to_numpy(object))
    of_label = np.empty(0) if labels is None else np.maximum(rows(labels), 0)
    for k in range(len(names)):
        yield Release(
            molecules.iloc[order[bounds[k] : bounds[k + 1]]],
            _rows(cells, of_cell == k),
            None if labels is None else _rows(labels, of_label == k),
            release.dropped if k == 0 else {},
        )


def _rows(frame: pd.DataFrame, chosen: NDArray[np.bool_]) -> pd.DataFrame:
    rows: pd.DataFrame = frame[chosen]
    return rows


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn any library's error on a damaged or wrong file into a SourceError."""
    try:
        yield
    except GPatternBenchError:
        raise
    except Exception as error:  # files from anywhere break libraries in ways that none documents
        raise SourceError(f"{path} cannot be read as {what}: {error!r}") from error
