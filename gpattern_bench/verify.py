"""Verification of a dataset folder: files, hashes, rules and splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely

from gpattern_bench import schema
from gpattern_bench.errors import TableError
from gpattern_bench.files import file_sha256
from gpattern_bench.splits import find_leaks
from gpattern_bench.storage import content_sha256, fov_row_groups, read_whole

__all__ = ["find_problems"]

_PAIR = ["fov", "cell_id", "gene"]


def find_problems(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Find every way in which a dataset's tables break their rules or their manifest.

    Files against the manifest's SHA-256 and content hashes; columns and types; row groups within
    one FOV; row order; outlines; coordinates; genes and counts; every labelled pair against the
    molecules; and that no split knows another (:func:`gpattern_bench.splits.find_leaks`).

    Returns
    -------
    list of str
        One line each; values are only looked at in files that are as they were written.
    """
    tables: dict[str, pa.Table] = {}
    problems: list[str] = []
    for name, about in manifest["files"].items():
        try:
            table = read_whole(folder / name)
        except TableError as error:
            problems += error.problems
            continue
        tables[name.removesuffix(".parquet")] = table
        problems += _file_problems(folder / name, table, about, manifest["patterns"])
    return problems or list(_value_problems(tables, manifest))


def _file_problems(
    path: Path, table: pa.Table, about: Mapping[str, Any], patterns: list[str]
) -> Iterator[str]:
    expected = {
        "molecules": schema.MOLECULES,
        "cells": schema.CELLS,
        "labels": schema.labels(patterns),
        "splits": schema.SPLITS,
    }[path.stem]
    if (digest := file_sha256(path)) != about["sha256"]:
        yield f"{path.name}: expected SHA-256 {about['sha256']}, got {digest}"
        return
    if not table.schema.equals(expected):
        yield f"{path.name}: expected columns {expected}, got {table.schema}"
        return
    if (digest := content_sha256(table)) != about["content_sha256"]:
        yield f"{path.name}: expected content hash {about['content_sha256']}, got {digest}"
    if path.stem != "splits":
        try:
            fov_row_groups(path, ())
        except TableError as error:
            yield from error.problems


def _value_problems(tables: Mapping[str, pa.Table], manifest: Mapping[str, Any]) -> Iterator[str]:
    for name, table in tables.items():
        yield from _order_problems(name, table)
    fovs = tables["splits"]["fov"].to_pandas()
    if fovs.duplicated().any():
        repeated = ", ".join(sorted(set(fovs[fovs.duplicated()])))
        yield f"splits.parquet: fields of view that occur more than once: {repeated}"
    molecules = tables["molecules"]
    for axis in ("x", "y"):
        if not np.isfinite(molecules[axis].to_numpy()).all():
            yield f"molecules.parquet: {axis} has values that are not finite"
    yield from _count_problems(tables, manifest)
    for name in ("cell_boundary", "nucleus_boundary"):
        wkb = tables["cells"][name].drop_null().to_pandas().to_numpy(object)
        shapes = shapely.from_wkb(wkb, on_invalid="ignore")
        bad = shapely.is_missing(shapes) | ~shapely.is_valid(shapes) | shapely.is_empty(shapes)
        if bad.any():
            yield f"cells.parquet: {name} has {bad.sum()} outlines that are invalid or empty"
    splits = dict(zip(fovs, tables["splits"]["split"].to_pylist(), strict=True))
    centroids = tables["cells"].select(["fov", "cell_id", "x", "y"]).to_pandas()
    yield from find_leaks(splits, centroids, molecules)


def _count_problems(tables: Mapping[str, pa.Table], manifest: Mapping[str, Any]) -> Iterator[str]:
    """What the tables say of each other, and the manifest of them."""
    molecules, labels = tables["molecules"], tables.get("labels")
    genes = sorted(molecules["gene"].cast(pa.string()).unique().to_pylist())
    if genes != manifest["genes"]:
        yield "manifest.json: genes are not those of molecules.parquet"
    counts = molecules.group_by(_PAIR).aggregate([([], "count_all")]).to_pandas()
    counts = counts.astype(dict.fromkeys(_PAIR, str)).set_index(_PAIR)["count_all"]
    if labels is not None:
        pairs = labels.to_pandas().astype(dict.fromkeys(_PAIR, str)).set_index(_PAIR)
        if pairs.index.duplicated().any():
            yield "labels.parquet: pairs that occur more than once"
        elif not counts.reindex(pairs.index).eq(pairs["n_molecules"]).all():
            yield (
                "labels.parquet: pairs whose n_molecules is not what molecules.parquet holds in "
                "their field of view"
            )
    cells = tables["cells"].select(["fov", "cell_id", "n_molecules", "n_genes"]).to_pandas()
    held = counts.groupby(["fov", "cell_id"]).agg(["sum", "size"])
    held = held.reindex(pd.MultiIndex.from_frame(cells[["fov", "cell_id"]]))
    if not (held.to_numpy() == cells[["n_molecules", "n_genes"]].to_numpy()).all():
        yield "cells.parquet: cells whose counts are not what molecules.parquet holds"
    totals = {
        "fovs": cells["fov"].nunique(),
        "cells": len(cells),
        "molecules": len(molecules),
        "pairs": len(counts),
        "labelled_pairs": None if labels is None else len(labels),
    }
    for name, total in totals.items():
        stated = manifest["counts"].get(name)
        if stated != total:
            yield f"manifest.json: counts state {stated} {name}, the tables hold {total}"


def _order_problems(name: str, table: pa.Table) -> Iterator[str]:
    keys = table.select(list(schema.SORT_KEYS[name])).to_pandas()
    codes = []
    for key in keys:
        column = keys[key]
        if not pd.api.types.is_float_dtype(column.dtype):
            values = pd.Categorical(column).rename_categories(str)
            column = values.reorder_categories(sorted(values.categories)).codes
        codes.append(np.asarray(column))
    order = np.lexsort(codes[::-1])
    if not (order == np.arange(len(order))).all():
        yield f"{name}.parquet: rows are not sorted by {', '.join(schema.SORT_KEYS[name])}"
