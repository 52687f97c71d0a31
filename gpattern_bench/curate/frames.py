"""Curate tables in memory, by the rules of every other source."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from pydantic import ValidationError

from gpattern_bench.base.validation import invalid_text, shorten
from gpattern_bench.curate.quality import NUMBERS, TEXTS, Quality
from gpattern_bench.curate.readers.columns import as_text
from gpattern_bench.curate.readers.ids import plain_ids
from gpattern_bench.curate.readers.label_csv import labelled_pairs
from gpattern_bench.curate.readers.plain_table import plain_pieces
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.errors import SourceError
from gpattern_bench.sources.patterns import FOUR_PATTERNS
from gpattern_bench.sources.recipe import Recipe

__all__ = ["curate_frames"]

_NUMBERS, _NAMES = ("x", "y", "z", *NUMBERS), ("cell_id", "gene", "fov", *TEXTS)
_PAIR = ("fov", "cell", "cell_id", "gene", "n_molecules")


def curate_frames(
    molecules: pd.DataFrame | pa.Table,
    cells: Any,
    nuclei: Any,
    labels: pd.DataFrame | None,
    *,
    name: str,
    patterns: Sequence[str] | None,
    **rules: Any,
) -> Path:
    """Make a temporary folder of tables, which is removed when Python ends.

    Parameters are those of :meth:`gpattern_bench.data.dataset.Dataset.from_frames`; `rules` are
    fields of :class:`gpattern_bench.sources.recipe.Recipe`.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    if patterns is None:
        patterns = (
            FOUR_PATTERNS if labels is None else [c for c in labels.columns if c not in _PAIR]
        )
    rules |= {"patterns": tuple(patterns), "split": "auto", "surrogate_outlines": cells is None}
    try:
        recipe = Recipe(format="table", **rules)
    except ValidationError as error:
        raise SourceError(invalid_text(error)) from error
    found = _molecules(molecules)
    outlines = None if cells is None else _outlines(cells, "cells")
    inside = None if nuclei is None else _outlines(nuclei, "nuclei")
    if cells is None and "cell" not in found.column_names:
        raise SourceError(
            "molecules have no column cell_id, and there are no outlines (cells=None); give either"
        )
    known, dropped = None, dict[str, dict[str, int]]()
    if labels is not None:
        known, dropped = labelled_pairs(_texts(labels), recipe.patterns, {}, "labels")
    home = Path(tempfile.mkdtemp(prefix="gpattern-bench-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        pieces = plain_pieces(
            lambda: iter([found]),
            outlines,
            inside,
            Path(scratch),
            tile=recipe.tile_um / recipe.unit_um,
            quality=Quality.of(recipe),
            labels=known,
            dropped=dropped,
        )
        tables = (apply_rules(piece(), recipe) for piece in pieces)
        return write_dataset(tables, home / "tables", name=name, version="0.0.0", recipe=recipe)


def _molecules(frame: pd.DataFrame | pa.Table) -> pa.Table:
    """Make a block of molecules (:func:`.plain_table.plain_pieces`)."""
    there = list(frame.column_names if isinstance(frame, pa.Table) else frame.columns)
    if missing := [name for name in ("x", "y", "gene") if name not in there]:
        raise SourceError(
            f"molecules lack the columns {', '.join(missing)}; they have "
            f"{', '.join(map(shorten, there))}. Rename yours"
        )
    columns = {}
    used = [name for name in (*_NUMBERS, *_NAMES) if name in there]
    if twice := [name for name in used if there.count(name) > 1]:
        raise SourceError(f"molecules have the columns {', '.join(twice)} twice; keep one of each")
    for column in used:
        try:
            values = pa.chunked_array(_array(frame[column]))
            if column in _NUMBERS:
                columns[column] = values.cast(pa.float64())
            else:
                columns[column] = as_text(values)
        except (pa.ArrowException, TypeError, ValueError) as error:
            kind = "numbers" if column in _NUMBERS else "text or whole numbers"
            raise SourceError(
                f"molecules: expected {kind} in {column} ({shorten(error)})"
            ) from error
        if column in ("cell_id", "fov"):
            columns[column] = plain_ids(columns[column], Path("molecules"), column)
    if "cell_id" in columns:
        columns["cell"] = columns.pop("cell_id")
    return pa.table(columns)


def _array(column: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):
        return column.chunks or [pa.array([], column.type)]
    try:
        found = pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        if not all(isinstance(value, str | Real) for value in column.dropna()):
            raise
        found = pa.array(column.map(str, na_action="ignore"), from_pandas=True)  # mixed
    return found.chunks if isinstance(found, pa.ChunkedArray) else [found]


def _outlines(frame: Any, what: str) -> pd.Series:
    """Index shapely geometries (n,) by id, which never is a row's number."""
    if not isinstance(frame, pd.DataFrame | pd.Series):
        raise SourceError(
            f"{what}: expected a GeoDataFrame, a DataFrame or a Series of outlines with ids, got a "
            f"{type(frame).__name__}"
        )
    names = frame.index
    shapes = frame
    if isinstance(frame, pd.DataFrame):
        column = getattr(frame, "_geometry_column_name", "geometry")
        if column not in frame.columns:
            raise SourceError(
                f"{what} have no column geometry; they have "
                f"{', '.join(map(shorten, frame.columns))}"
            )
        shapes = frame[column]
        names = pd.Index(frame["cell_id"]) if "cell_id" in frame.columns else names
    if isinstance(names, pd.RangeIndex | pd.MultiIndex):
        got = "only row numbers" if isinstance(names, pd.RangeIndex) else "a MultiIndex"
        raise SourceError(
            f"{what} have no ids, {got}; name the cells in a column cell_id or the index"
        )
    ids = plain_ids(as_text(pa.chunked_array(_array(names.to_series()))), Path(what), "cell_id")
    if ids.null_count:
        raise SourceError(f"{what}: {ids.null_count} of {len(names)} have no id; name them")
    shapes = pd.Series(np.asarray(shapes, dtype=object), ids.cast(pa.string()).to_pylist())
    shapes = shapes.where(shapes.notna(), None)
    if not all(shape is None or shapely.is_geometry(shape) for shape in shapes):
        raise SourceError(f"{what}: expected shapely geometries; parse yours (shapely.from_wkt)")
    return shapes


def _texts(labels: pd.DataFrame) -> pd.DataFrame:
    """Give labels the form of a csv's."""
    texts = labels.reset_index(drop=True)
    return texts.astype(object).where(texts.notna(), "").astype(str)
