"""What readers give the rules: a source release in pieces of whole fields of view."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpattern_bench.base.validation import shorten
from gpattern_bench.errors import GPatternBenchError, SourceError, TableError
from gpattern_bench.tables.parquet import NOT_UTF8

__all__ = [
    "MISSING",
    "Dropped",
    "Piece",
    "Release",
    "by_fov",
    "in_memory",
    "keep_rows",
    "move_cells",
    "reading",
    "refuse_repeated",
    "writing",
]

MISSING = ("", "nan", "NaN", "None", "<NA>")
"""Texts that libraries write for a missing id; no cell and no field of view has such a name."""

Dropped = dict[str, dict[str, int]]
"""Table -> reason -> dropped rows."""


@dataclass(frozen=True)
class Release:
    """Rows of a source release in memory, in the source's own units: some whole fields of view.

    Readers yield one :data:`Piece` for each, so that memory holds only one part of a release.
    Pieces come in the order of their fields of view, sorted as text; each field of view is in
    exactly one.

    Attributes
    ----------
    molecules : pandas.DataFrame
        Columns ``fov``, ``cell_id``, ``gene`` (categorical or str), ``x``, ``y`` (float64), where
        measured ``z``, and columns of :mod:`gpattern_bench.curate.quality` that the reader has not
        used. Null ``cell_id`` = outside every cell.
    cells : pandas.DataFrame
        Columns ``fov``, ``cell_id`` (str), ``cell_boundary``, ``nucleus_boundary`` (shapely
        geometry or None) and ``touches_border`` (bool or None).
    labels : pandas.DataFrame or None
        Columns ``cell_id``, ``gene`` and one 0/1 column per pattern; only labelled pairs.
    dropped : dict of str to dict of str to int
        Rows that the reader dropped: table -> reason -> rows.
    """

    molecules: pd.DataFrame
    cells: pd.DataFrame
    labels: pd.DataFrame | None = None
    dropped: Dropped = field(default_factory=dict)


Piece = Callable[[], Release]
"""A :class:`Release` still to be read: a function that reads it, in this process or a worker."""


def in_memory(release: Release) -> Piece:
    """Wrap a release in memory as a piece."""
    return partial(_same, release)  # not a lambda: workers unpickle it


def _same(release: Release) -> Release:
    return release


def by_fov(release: Release) -> Iterator[Release]:
    """Split a release in memory by field of view.

    Molecules and labels go with their cell, even if the source names another field of view.

    Raises
    ------
    SourceError
        A cell id occurs twice.
    """
    refuse_repeated(release.cells)
    cells, molecules, labels = release.cells, release.molecules, release.labels
    stated = pd.Categorical(molecules["fov"]).rename_categories(str)
    names = pd.Index(sorted({*cells["fov"].astype(str), *stated.categories}))
    fov_of = cells.drop_duplicates("cell_id").set_index("cell_id")["fov"].astype(str)

    def fov_index(frame: pd.DataFrame) -> NDArray[np.int64]:
        cell = pd.Categorical(frame["cell_id"])
        at = names.get_indexer(fov_of.reindex(cell.categories.astype(str)).to_numpy(object))
        return np.asarray(np.append(at, -1)[cell.codes])

    of_molecule = fov_index(molecules)
    outside = of_molecule < 0
    of_molecule[outside] = np.append(names.get_indexer(stated.categories), 0)[stated.codes[outside]]
    order = np.argsort(of_molecule, kind="stable")
    bounds = np.searchsorted(of_molecule[order], np.arange(len(names) + 1))
    of_cell = names.get_indexer(cells["fov"].astype(str).to_numpy(object))
    of_label = np.empty(0) if labels is None else np.maximum(fov_index(labels), 0)
    for k in range(len(names)):
        yield Release(
            molecules.iloc[order[bounds[k] : bounds[k + 1]]],
            cells.iloc[np.flatnonzero(of_cell == k)],
            None if labels is None else labels.iloc[np.flatnonzero(of_label == k)],
            release.dropped if k == 0 else {},
        )


def move_cells(release: Release, apart: Mapping[str, Sequence[str]]) -> Release:
    """Put cells into fields of view of their own: field of view -> its cells."""
    of = {cell: fov for fov, cells in apart.items() for cell in cells}
    cells = release.cells
    here = cells["cell_id"].astype(str).map(of)
    if not here.notna().any():
        return release
    return replace(release, cells=cells.assign(fov=here.fillna(cells["fov"].astype(str))))


def refuse_repeated(cells: pd.DataFrame) -> None:
    """Raise SourceError if a cell id occurs twice."""
    repeated = cells["cell_id"][cells["cell_id"].duplicated()]
    if len(repeated):
        raise SourceError(
            f"cell id {repeated.iloc[0]} occurs more than once ({repeated.nunique()} such ids); "
            "give each cell of a release its own id"
        )


def keep_rows(
    reasons: Mapping[str, NDArray[np.bool_]], dropped: dict[str, int]
) -> NDArray[np.bool_]:
    """Mark rows (n,) without a reason to drop them; count the others by their first reason."""
    keep = np.ones(len(next(iter(reasons.values()))), dtype=bool)
    for reason, rows in reasons.items():
        dropped[reason] = dropped.get(reason, 0) + int((keep & rows).sum())
        keep &= ~rows
    return keep


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Raise SourceError for whatever a library raises on a damaged or wrong file."""
    try:
        yield
    except GPatternBenchError:
        raise
    except UnicodeEncodeError as error:
        raise SourceError(f"{str(path)!a} cannot be read: {NOT_UTF8}") from error
    except UnicodeDecodeError as error:  # its text holds all that was decoded
        byte = error.object[error.start]
        raise SourceError(
            f"{path} cannot be read as {what}: it is not UTF-8 text (byte {byte:#04x}); save it as "
            "UTF-8"
        ) from error
    except Exception as error:  # damaged files raise what no library documents
        raise SourceError(
            f"{path} cannot be read as {what}: {shorten(repr(error), 600)}"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise TableError if a temporary file cannot be written."""
    try:
        yield
    except OSError as error:
        raise TableError(
            str(path), [f"cannot be written ({error}); make room on that disk and try again"]
        ) from error
