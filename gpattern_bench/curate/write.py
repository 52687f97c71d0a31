"""Write tables as a dataset folder: Parquet files and the manifest, whole or not at all."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from gpattern_bench.base.files import MANIFEST, file_sha256
from gpattern_bench.base.version import __version__
from gpattern_bench.curate.rules import Tables, unit_warnings
from gpattern_bench.curate.splits import split_fovs
from gpattern_bench.errors import SourceError, TableError
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.tables import schema
from gpattern_bench.tables.leaks import find_leaks
from gpattern_bench.tables.parquet import TableWriter, codes_into, read_fovs, write_table
from gpattern_bench.tables.placement import (
    find_foreign_nuclei,
    find_misplaced,
    place,
    placement_warnings,
)

__all__ = ["new_folder", "write_dataset"]

_log = logging.getLogger(__name__)

_FORMAT = 1
_LOSSES = {
    "outside every cell": "that outlines and molecules have one unit and one frame",
    "cell without an outline": "that their ids are written alike (7 is not 007), unless cells were "
    "left out on purpose",
}
"""Reasons that may take most molecules of a sound release, and what else is the cause."""
_OUTLINES: dict[str, Any] = {"encoding": "WKB", "geometry_types": [], "crs": None}
_GEO = {
    "version": "1.1.0",
    "primary_column": "cell_boundary",
    "columns": {"cell_boundary": _OUTLINES, "nucleus_boundary": _OUTLINES},
}


def write_dataset(
    pieces: Iterable[Tables],
    folder: Path,
    *,
    name: str,
    version: str,
    recipe: Recipe,
    about: Mapping[str, Any] | None = None,
    pinned: Mapping[str, str] | None = None,
) -> Path:
    """Write a dataset version's tables piece by piece, then its manifest.

    Writes beside `folder` and renames at the end: the whole dataset or nothing. The same tables
    give the same bytes.

    Parameters
    ----------
    pieces : iterable of Tables
        In the order of the fields of view; consumed one by one.
    folder : pathlib.Path
        Must not exist, or be empty.
    name, version : str
        Identity of the dataset.
    recipe : Recipe
        How to split; copied to the manifest.
    about : mapping, optional
        Further manifest entries: source files, licence, citation.
    pinned : mapping of str to str, optional
        Table -> required content hash.

    Raises
    ------
    SourceError
        Curation dropped everything, too few molecules lie in their cells, or the release cannot be
        split by the recipe.
    TableError
        The folder is in use or cannot be written, splits share cells, or values differ from the
        pinned ones.
    """
    folder = folder.absolute()  # before `new_folder` replaces what may be the current folder
    with new_folder(folder) as beside:
        done = _Written(beside, recipe)
        with ExitStack() as writers:
            for piece in pieces:
                done.append(piece, writers)
        _refuse_empty(done)
        _refuse_misplaced(done.cells, recipe)
        if recipe.split == "auto":  # the manifest says what that was
            chosen = "fov" if "labels" in done.writers else "test"
            recipe = recipe.model_copy(update={"split": chosen})
        splits = _split(done, recipe)
        done.write_splits(splits)
        leaks = find_leaks(splits, done.cells, partial(read_fovs, beside / "molecules.parquet"))
        if leaks:
            raise TableError(f"tables for {folder}", leaks)
        files = {
            f"{table}.parquet": {
                "rows": writer.rows,
                "bytes": (beside / f"{table}.parquet").stat().st_size,
                "sha256": file_sha256(beside / f"{table}.parquet"),
                "content_sha256": writer.content.hexdigest(),
            }
            for table, writer in done.writers.items()
        }
        differences = [
            f"{table}: the values have content hash {got}, the registry pins {wanted}"
            for table, wanted in (pinned or {}).items()
            if (got := files[f"{table}.parquet"]["content_sha256"]) != wanted
        ]
        if differences:
            raise TableError(
                f"{name}@{version} as curated here differs from the registry; please report it: a "
                "fault of this package or of an untested library version",
                differences,
            )
        diameters = done.cells["diameter"].to_numpy()
        placement = place(done.cells)
        misplaced = placement_warnings(placement)
        for warning in misplaced:
            _log.warning("%s", warning)
        manifest = {
            "format": _FORMAT,
            "name": name,
            "version": version,
            "patterns": list(recipe.patterns),
            "unit": "um",
            "genes": sorted(done.genes),
            "counts": _counts(done.fovs, splits, recipe),
            "files": files,
            "dropped": {table: dict(reasons) for table, reasons in done.dropped.items()},
            "placement": placement.model_dump(mode="json"),
            "warnings": [
                *unit_warnings(diameters, done.cells["cell_id"].tolist(), recipe.unit_um),
                *misplaced,
                *_loss_warnings(done.dropped["molecules"], placement.molecules),
            ],
            "curation": {**recipe.model_dump(mode="json"), "package_version": __version__},
            **(about or {}),
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (beside / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a temporary folder; at the end rename it to `folder`, or remove it after an error.

    Raises
    ------
    TableError
        The folder is in use, or cannot be written.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "the folder is not empty" if folder.is_dir() else "a file is there"
        raise TableError(str(folder), [f"{what}; choose another one or remove it first"])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield beside
            beside.chmod(0o755)  # mkdtemp makes folders private
            beside.replace(folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError as error:
        problem = (
            f"cannot be written ({error}); nothing was left behind. Free space or name another "
            "folder"
        )
        raise TableError(str(folder), [problem]) from error


def _refuse_misplaced(cells: pd.DataFrame, recipe: Recipe) -> None:
    """Raise SourceError if too few molecules or nuclei lie in the cells of their ids."""
    source = recipe.path or "molecules and outlines"
    problem = find_misplaced(cells)
    if problem:
        hint = (
            "Check that each CellLabels image shows its field of view; for a crop, give its place "
            "(--crop FOV=COLUMN,ROW)"
            if recipe.format == "cosmx"
            else "Their ids come from two segmentations, or outlines and molecules have different "
            "frames or units; export both together"
        )
        raise SourceError(f"{source}: {problem}. {hint}")
    problem = find_foreign_nuclei(cells)
    if problem:
        raise SourceError(
            f"{source}: {problem}. They have ids or a frame of their own; give each nucleus "
            "the id of its cell, or leave the nuclei out"
        )


def _loss_warnings(dropped: Mapping[str, int], kept: int) -> list[str]:
    """List and log a warning for each reason that took more molecules than are left."""
    warnings = [
        f"{lost:,} molecules dropped ({reason}), only {kept:,} left; check {what}"
        for reason, what in _LOSSES.items()
        if (lost := dropped.get(reason, 0)) > kept
    ]
    for warning in warnings:
        _log.warning("%s", warning)
    return warnings


class _Written:
    """Files written so far, with counts for the manifest and the split."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.writers: dict[str, TableWriter] = {}
        self.genes: set[str] = set()
        self.dropped: dict[str, Counter[str]] = {}
        self._folder = folder
        self._patterns = list(recipe.patterns)
        self._cells: list[pd.DataFrame] = []
        self._fovs: list[pd.DataFrame] = []

    def append(self, piece: Tables, writers: ExitStack) -> None:
        """Write a piece; an empty one only adds to the drop counts."""
        for table, reasons in piece.dropped.items():
            self.dropped.setdefault(table, Counter()).update(reasons)
        for name in ("molecules", "cells", "labels"):
            table = getattr(piece, name)
            if table is None:
                continue
            if name not in self.writers:
                # Only our own metadata: the libraries' would change the bytes.
                geo = {"geo": json.dumps(_GEO)} if name == "cells" else None
                writer = TableWriter(
                    self._folder / f"{name}.parquet", table.schema.with_metadata(geo)
                )
                self.writers[name] = writers.enter_context(writer)
            self.writers[name].append(table)
        cells = piece.cells.select(["fov", "cell_id", "x", "y", "n_molecules"]).to_pandas()
        self._cells.append(cells.join(piece.measured))
        self._fovs.append(_fov_counts(piece, self._patterns))
        self.genes.update(piece.molecules["gene"].unique().to_pylist())

    @property
    def cells(self) -> pd.DataFrame:
        """All cells: fov, cell_id, x, y, n_molecules, diameter (um), and what lies where."""
        return pd.concat(self._cells, ignore_index=True)

    @property
    def fovs(self) -> pd.DataFrame:
        """Count the contents of each field of view, by name."""
        return pd.concat(self._fovs).fillna(0).astype(np.int64)

    def write_splits(self, splits: Mapping[str, str]) -> None:
        """Write the last table."""
        names = sorted(splits)
        columns = {"fov": names, "split": [splits[name] for name in names]}
        table = pa.table(columns, schema=schema.SPLITS)
        self.writers["splits"] = write_table(self._folder / "splits.parquet", table)


def _fov_counts(piece: Tables, patterns: list[str]) -> pd.DataFrame:
    """Count cells, molecules, pairs and labelled pairs of each kind by field of view."""
    fovs = pd.Index(sorted(piece.cells["fov"].unique().to_pylist()))
    molecules, pairs = (piece.cells[name].to_numpy() for name in ("n_molecules", "n_genes"))
    columns = {"cells": np.ones(len(pairs)), "molecules": molecules, "pairs": pairs}
    counts = _sums(fovs, piece.cells["fov"], columns)
    if piece.labels is not None:
        known = {name: piece.labels[name].to_numpy() for name in patterns}
        values = np.sum(list(known.values()), axis=0)
        columns = {
            "labelled_pairs": np.ones(len(values)),
            "labelled_molecules": piece.labels["n_molecules"].to_numpy(),
            **known,
            "none": values == 0,
            "several": values > 1,
        }
        sums = _sums(fovs, piece.labels["fov"], columns)
        # A prefix: a pattern may have the name of another column.
        counts |= {f"label:{name}": found for name, found in sums.items()}
    return pd.DataFrame(counts, fovs)


def _sums(
    fovs: pd.Index[str], column: pa.ChunkedArray, values: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[np.int64]]:
    """Sum columns by field of view: pandas takes longer for one than all else that is done."""
    at = codes_into(fovs, column)
    return {
        name: np.bincount(at, some, len(fovs)).astype(np.int64) for name, some in values.items()
    }


def _refuse_empty(done: _Written) -> None:
    """Raise SourceError if no molecule is left."""
    dropped = {table: dict(reasons) for table, reasons in done.dropped.items()}
    if not done.writers or not done.writers["molecules"].rows:
        raise SourceError(
            "nothing is left of the release after curation; dropped rows by reason: "
            f"{dropped}. Check the path, the recipe's `controls` and the cell ids"
        )


def _split(done: _Written, recipe: Recipe) -> dict[str, str]:
    """Choose the split of each field of view, as the recipe says."""
    if "labels" in done.writers and not done.writers["labels"].rows:
        raise SourceError(
            "none of the labelled pairs is left after curation; dropped by reason: "
            f"{dict(done.dropped['labels'])}. Check that labels and molecules use the same cell "
            "ids and gene names"
        )
    fovs = done.fovs
    repeated = fovs.index[fovs.index.duplicated()]
    if len(repeated) or not fovs.index.is_monotonic_increasing:
        raise SourceError(
            "expected each field of view once, in the order of their names, got "
            f"{', '.join(fovs.index)}"
        )
    if recipe.splits:
        if set(fovs.index) != set(recipe.splits):
            raise SourceError(
                f"the recipe has splits of the fields of view {', '.join(recipe.splits)}, the "
                f"release has {', '.join(fovs.index)}; give each of these one split"
            )
        return dict(recipe.splits)
    if recipe.split == "test":
        return dict.fromkeys(fovs.index, "test")
    if recipe.split == "named":
        named = {fov: fov.partition("-")[0] for fov in fovs.index}
        odd = [fov for fov, split in named.items() if split not in schema.SPLIT_NAMES]
        if odd:
            raise SourceError(
                "the recipe takes the split from the name of each field of view, which must begin "
                f"with {', '.join(f'{split}-' for split in schema.SPLIT_NAMES)}; the release has "
                f"{', '.join(odd)}"
            )
        return named
    table = fovs[["cells"]].assign(pairs=fovs.get("label:labelled_pairs", 0))
    for name in recipe.patterns:
        if f"label:{name}" in fovs:
            table[name] = fovs[f"label:{name}"]
    return split_fovs(table, recipe.seed)


def _counts(fovs: pd.DataFrame, splits: Mapping[str, str], recipe: Recipe) -> dict[str, Any]:
    """Count rows in all and per split, and labelled pairs per pattern."""

    def count(part: pd.DataFrame) -> dict[str, Any]:
        sums = part.sum()
        counts: dict[str, Any] = {"fovs": len(part)}
        counts |= {name: int(sums[name]) for name in ("cells", "molecules", "pairs")}
        if "label:labelled_pairs" in part:
            for name in ("labelled_pairs", "labelled_molecules"):
                counts[name] = int(sums[f"label:{name}"])
            kinds = [*recipe.patterns, "none", "several"]
            counts["patterns"] = {name: int(sums[f"label:{name}"]) for name in kinds}
        return counts

    of_fov = fovs.index.map(dict(splits))
    per_split = {
        split: count(fovs[of_fov == split]) for split in schema.SPLIT_NAMES if split in of_fov
    }
    return {**count(fovs), "splits": per_split}
