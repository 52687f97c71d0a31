"""Verify a dataset folder: files, hashes, rules and splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.files import file_sha256
from gpattern_bench.base.outlines import parse_wkb
from gpattern_bench.errors import TableError
from gpattern_bench.sources.registry import registry
from gpattern_bench.tables import schema
from gpattern_bench.tables.leaks import find_leaks
from gpattern_bench.tables.manifest import Manifest, Placement, TableFile
from gpattern_bench.tables.parquet import (
    ContentHash,
    codes_into,
    fov_row_groups,
    read_fovs,
    read_groups,
    read_table,
    read_whole,
    table_sha256,
)
from gpattern_bench.tables.placement import find_misplaced, measure_cells, place

__all__ = ["check_labels", "find_problems"]

_Codes = NDArray[np.int64]


def find_problems(folder: Path, manifest: Manifest) -> tuple[list[str], Placement | None]:
    """List every violation of the tables' rules or their manifest.

    Checks SHA-256 and content hashes, columns and types, one FOV per row group, row order,
    outlines, coordinates, genes and counts, labelled pairs against molecules, whether molecules lie
    in their cells (:mod:`gpattern_bench.tables.placement`), and leaks between splits
    (:func:`gpattern_bench.tables.leaks.find_leaks`). Holds one field of view in memory.

    Returns
    -------
    problems : list of str
        One line each; of changed files only the hashes.
    placement : Placement or None
        Molecules in their cells; None if files are changed or missing.
    """
    problems = [
        problem
        for name, about in manifest.files.items()
        for problem in _file_problems(folder / name, about, manifest.patterns)
    ]
    if problems:
        return problems, None
    totals = _Totals()
    try:
        problems = list(_value_problems(folder, manifest, totals))
    except OSError as error:  # removed meanwhile
        return [f"{folder} cannot be read ({error}); make it again"], None
    return problems, place(pd.concat(totals.cells, ignore_index=True))


def check_labels(folder: Path, manifest: Manifest) -> None:
    """Compare the values of labels and splits with their content hashes, once per process.

    For a dataset of the registry, the registry's hashes count. A file that changes afterwards is
    compared again.

    Raises
    ------
    TableError
        The values are others, or a table cannot be read.
    """
    pinned: Mapping[str, str] = next(
        (entry.content_sha256 for entry in registry() if entry.id == manifest.id), {}
    )
    problems = []
    for table in ("labels", "splits"):
        path = folder / f"{table}.parquet"
        expected = pinned.get(table, manifest.files[path.name].content_sha256)  # type: ignore[index]
        if (found := table_sha256(path)) != expected:
            problems.append(
                f"{path.name}: expected content hash {expected}, got {found}; the values are not "
                "those that were curated: remove the folder and make it again"
            )
    if problems:
        raise TableError(f"{folder} ({manifest.id})", problems)


def _file_problems(path: Path, about: TableFile, patterns: Sequence[str]) -> Iterator[str]:
    expected = {
        "molecules": schema.MOLECULES,
        "cells": schema.CELLS,
        "labels": schema.labels(patterns),
        "splits": schema.SPLITS,
    }[path.stem]
    try:
        if (digest := file_sha256(path)) != about.sha256:
            yield f"{path.name}: expected SHA-256 {about.sha256}, got {digest}"
            return
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(expected):
                yield f"{path.name}: expected columns {expected}, got {file.schema_arrow}"
                return
        content = ContentHash()
        for table in read_groups(path):
            content.update(table)
    except (OSError, ValueError, pa.ArrowException) as error:
        yield f"{path.name} cannot be read ({error}); remove the folder and make it again"
        return
    except TableError as error:
        yield from error.problems
        return
    if (digest := content.hexdigest()) != about.content_sha256:
        yield f"{path.name}: expected content hash {about.content_sha256}, got {digest}"
    if path.stem != "splits":
        try:
            fov_row_groups(path, ())
        except TableError as error:
            yield from error.problems


def _value_problems(folder: Path, manifest: Manifest, totals: _Totals) -> Iterator[str]:
    splits = read_whole(folder / "splits.parquet")
    yield from _order_problems("splits", splits)
    fovs = splits["fov"].to_pandas()
    if fovs.duplicated().any():
        repeated = ", ".join(sorted(set(fovs[fovs.duplicated()])))
        yield f"splits.parquet: fields of view that occur more than once: {repeated}"
    held = set(fovs)
    for name in sorted(manifest.files):
        with pq.ParquetFile(folder / name) as file:
            here = [
                file.read_row_group(k, ["fov"])["fov"][0].as_py()
                for k in range(file.num_row_groups)
                if file.metadata.row_group(k).num_rows
            ]
        if here != sorted(here):
            yield f"{name}: rows are not sorted by fov"
        held |= set(here)
    for fov in sorted(held):
        yield from totals.check(folder, fov, labels=manifest.has_labels)
    yield from totals.compare(manifest)
    of_fov = dict(zip(fovs, splits["split"].to_pylist(), strict=True))
    reader = partial(read_fovs, folder / "molecules.parquet")
    cells = pd.concat(totals.cells, ignore_index=True)
    if misplaced := find_misplaced(cells):
        yield f"molecules.parquet: {misplaced}"
    yield from find_leaks(of_fov, cells, lambda _: reader(held))


class _Totals:
    """Totals over the fields of view so far."""

    def __init__(self) -> None:
        self.cells: list[pd.DataFrame] = []
        self._genes: set[str] = set()
        self._totals = dict.fromkeys(("fovs", "cells", "molecules", "pairs"), 0)
        self._labelled: int | None = None

    def check(self, folder: Path, fov: str, *, labels: bool) -> Iterator[str]:
        """Check one field of view in all tables."""
        names = ["molecules", "cells", *(["labels"] if labels else [])]
        tables = {name: read_table(folder / f"{name}.parquet", {fov}) for name in names}
        for name, table in tables.items():
            yield from _order_problems(name, table)
        molecules, cells = tables["molecules"], tables["cells"]
        for axis in ("x", "y"):
            if not np.isfinite(molecules[axis].to_numpy()).all():
                yield f"molecules.parquet: {axis} has values that are not finite"
        yield from _outline_problems(cells)
        tables_of_pairs = [molecules, *([tables["labels"]] if labels else [])]
        (*cell, own), ids = _codes(*(t["cell_id"] for t in [*tables_of_pairs, cells]))
        gene, genes = _codes(*(t["gene"] for t in tables_of_pairs))
        pairs = [c * len(genes) + g for c, g in zip(cell, gene, strict=True)]
        held, counts = np.unique(pairs[0], return_counts=True)
        if labels:
            yield from _label_problems(pairs[1], tables["labels"]["n_molecules"], held, counts)
            self._labelled = (self._labelled or 0) + len(tables["labels"])
        frame = cells.select(["fov", "cell_id", "x", "y", "n_molecules", "n_genes"]).to_pandas()
        of_cell = held // max(len(genes), 1)
        found = [np.bincount(codes, minlength=len(ids))[own] for codes in (cell[0], of_cell)]
        stated = frame[["n_molecules", "n_genes"]].to_numpy().T
        if not (found == stated).all() or not np.all(found):
            yield "cells.parquet: counts of some cells differ from molecules.parquet"
        self.cells.append(frame.join(measure_cells(molecules, cells)))
        self._genes |= {genes[k] for k in np.unique(gene[0])}
        here = {"fovs": len(frame) > 0, "cells": len(frame), "molecules": len(molecules)}
        for name, rows in (here | {"pairs": len(held)}).items():
            self._totals[name] += int(rows)

    def compare(self, manifest: Manifest) -> Iterator[str]:
        """Compare the totals with the manifest."""
        if sorted(self._genes) != list(manifest.genes):
            yield "manifest.json: genes differ from those of molecules.parquet"
        for name, total in (self._totals | {"labelled_pairs": self._labelled}).items():
            stated = manifest.counts.totals.get(name)
            if stated != total:
                yield f"manifest.json: counts state {stated} {name}, the tables hold {total}"


def _outline_problems(cells: pa.Table) -> Iterator[str]:
    for name in ("cell_boundary", "nucleus_boundary"):
        wkb = cells[name].drop_null().to_pandas().to_numpy(object)
        shapes = parse_wkb(wkb, on_invalid="ignore")
        bad = shapely.is_missing(shapes) | ~shapely.is_valid(shapes) | shapely.is_empty(shapes)
        if bad.any():
            yield f"cells.parquet: {name} has {bad.sum()} outlines that are invalid or empty"


def _label_problems(
    pairs: _Codes, stated: pa.ChunkedArray, held: _Codes, counts: _Codes
) -> Iterator[str]:
    """Compare labelled pairs, and the molecules stated of each, with those that are held."""
    at = np.searchsorted(held, pairs)
    at[at == len(held)] = 0
    if len(np.unique(pairs)) < len(pairs):
        yield "labels.parquet: pairs that occur more than once"
    elif len(pairs) and not (
        len(held) and (held[at] == pairs).all() and (counts[at] == stated.to_numpy()).all()
    ):
        yield (
            "labels.parquet: n_molecules of some pairs differs from molecules.parquet in their "
            "field of view"
        )


def _codes(*columns: pa.ChunkedArray) -> tuple[list[_Codes], list[str]]:
    """Number the texts of all columns in alphabetical order; also return the texts."""
    texts = sorted(set().union(*(column.unique().to_pylist() for column in columns)))
    index = pd.Index(texts, dtype=object)
    return [codes_into(index, column) for column in columns], texts


def _order_problems(name: str, table: pa.Table) -> Iterator[str]:
    keys = []
    for key in schema.SORT_KEYS[name]:
        column = table[key]
        is_number = pa.types.is_floating(column.type)
        keys.append(column.to_numpy() if is_number else _codes(column)[0][0])
    order = np.lexsort(keys[::-1])
    if not (order == np.arange(len(order))).all():
        yield f"{name}.parquet: rows are not sorted by {', '.join(schema.SORT_KEYS[name])}"
