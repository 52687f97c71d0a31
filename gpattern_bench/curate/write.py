"""Tables -> a dataset folder: Parquet files and the manifest, whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gpattern_bench import __version__, schema
from gpattern_bench.curate.recipe import Recipe
from gpattern_bench.curate.rules import Tables
from gpattern_bench.errors import TableError
from gpattern_bench.files import file_sha256
from gpattern_bench.splits import find_leaks
from gpattern_bench.storage import content_sha256, write_table

__all__ = ["MANIFEST", "write_dataset"]

MANIFEST = "manifest.json"
_FORMAT = 1
_GEO = {"version": "1.1.0", "primary_column": "cell_boundary"}


def write_dataset(
    tables: Tables,
    folder: Path,
    *,
    name: str,
    version: str,
    recipe: Recipe,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the tables of one dataset version and their manifest.

    Everything is written beside `folder` and renamed at the end: either the whole dataset is
    there or nothing is. The same tables give the same bytes.

    Parameters
    ----------
    tables : Tables
        What curation made.
    folder : pathlib.Path
        Must not exist, or be empty.
    name, version : str
        Identity of the dataset.
    recipe : Recipe
        Stated in the manifest.
    about : mapping, optional
        Further manifest entries: source files, licence, citation.

    Raises
    ------
    TableError
        The folder is in use, or one split would know another.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "the folder is not empty" if folder.is_dir() else "a file is there"
        raise TableError(str(folder), [f"{what}; choose another one or remove it first"])
    cells = tables.cells.select(["fov", "cell_id", "x", "y"]).to_pandas()
    splits = dict(zip(*(tables.splits[k].to_pylist() for k in ("fov", "split")), strict=True))
    leaks = find_leaks(splits, cells, tables.molecules)
    if leaks:
        raise TableError(f"tables for {folder}", leaks)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        files = {}
        for table_name in ("molecules", "cells", "labels", "splits"):
            table = getattr(tables, table_name)
            if table is None:
                continue
            # Nothing of the libraries that made the table: the same values, the same bytes.
            geo = {"geo": json.dumps(_geo())} if table_name == "cells" else None
            table = table.replace_schema_metadata(geo)
            path = beside / f"{table_name}.parquet"
            write_table(path, table)
            files[path.name] = {
                "rows": len(table),
                "bytes": path.stat().st_size,
                "sha256": file_sha256(path),
                "content_sha256": content_sha256(table),
            }
        manifest = {
            "format": _FORMAT,
            "name": name,
            "version": version,
            "patterns": list(recipe.patterns),
            "unit": "um",
            "genes": sorted(tables.molecules["gene"].unique().to_pylist()),
            "counts": _counts(tables, splits, recipe),
            "files": files,
            "dropped": tables.dropped,
            "warnings": tables.warnings,
            "curation": {**recipe.model_dump(mode="json"), "package_version": __version__},
            **(about or {}),
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (beside / MANIFEST).write_text(text + "\n", encoding="utf-8")
        beside.chmod(0o755)  # mkdtemp makes folders private
        try:
            beside.replace(folder)
        except OSError as error:
            raise TableError(
                str(folder), [f"cannot be put in place ({error}); name a folder that is not there"]
            ) from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return folder


def _geo() -> dict[str, Any]:
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": [], "crs": None}
    return {**_GEO, "columns": {"cell_boundary": column, "nucleus_boundary": column}}


def _counts(tables: Tables, splits: Mapping[str, str], recipe: Recipe) -> dict[str, Any]:
    """Rows in all and per split; of the labelled pairs, how many have each pattern."""
    cells = tables.cells.select(["fov", "n_molecules", "n_genes"]).to_pandas()
    cells["split"] = cells["fov"].map(dict(splits))
    labels = None
    if tables.labels is not None:
        labels = tables.labels.select(["fov", *recipe.patterns]).to_pandas()
        labels["split"] = labels["fov"].astype(str).map(dict(splits))

    def count(cells: pd.DataFrame, labels: pd.DataFrame | None) -> dict[str, Any]:
        counts: dict[str, Any] = {
            "fovs": int(cells["fov"].nunique()),
            "cells": len(cells),
            "molecules": int(cells["n_molecules"].sum()),
            "pairs": int(cells["n_genes"].sum()),
        }
        if labels is not None:
            values = labels[list(recipe.patterns)].to_numpy(bool)
            per_pair = values.sum(axis=1)
            counts["labelled_pairs"] = len(labels)
            counts["patterns"] = dict(
                zip(recipe.patterns, values.sum(axis=0).tolist(), strict=True)
            ) | {"none": int((per_pair == 0).sum()), "several": int((per_pair > 1).sum())}
        return counts

    per_split = {
        split: count(
            cells[cells["split"] == split],
            None if labels is None else labels[labels["split"] == split],
        )
        for split in schema.SPLIT_NAMES
        if (cells["split"] == split).any()
    }
    return {**count(cells, labels), "splits": per_split}
