"""Label a dataset by a classifier: its calls become the labels of new tables.

The classifier is a saved model, or Bento's published forest (:mod:`~.bento.rnaforest`). A score on
such labels says how well a method imitates the classifier.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from gpattern_bench.base.progress import Progress
from gpattern_bench.base.validation import invalid_text
from gpattern_bench.curate.build import making
from gpattern_bench.curate.release import keep_rows
from gpattern_bench.curate.rules import Tables
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.cells import Cell, Cells, CellTables
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MethodError, TableError
from gpattern_bench.evaluate.calls import NEARLY_ALL
from gpattern_bench.methods.base import Method
from gpattern_bench.methods.bento.method import bento_features
from gpattern_bench.methods.bento.rnaforest import (
    CLASSES,
    LEAST_MOLECULES,
    THRESHOLDS,
    RnaForest,
    pixel_um,
)
from gpattern_bench.runs.pretrained import pretrained_folder, pretrained_names
from gpattern_bench.runs.saved_model import (
    Model,
    find_model,
    load_model,
    model_sha256,
    sound_scores,
)
from gpattern_bench.sources.cache import cache_root
from gpattern_bench.sources.fetch import fetch
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import FOREST, forest_file
from gpattern_bench.tables import schema
from gpattern_bench.tables.manifest import LabelledBy
from gpattern_bench.tables.parquet import read_table
from gpattern_bench.tables.placement import measure_cells

__all__ = ["Classifier", "label", "load_classifier", "write_labelled"]

_log = logging.getLogger(__name__)

_Calls = tuple[Cell, dict[str, NDArray[np.bool_]], NDArray[np.bool_]]
_KEPT = ("title", "release", "source", "licence", "terms", "citation", "published")
_PATTERNS = tuple(name for name in CLASSES if name != "none")


class Classifier(Protocol):
    """Calls patterns of pairs."""

    patterns: tuple[str, ...]

    def about(self, unit_um: float) -> LabelledBy:
        """Describe itself, for tables of a source with this unit (um)."""
        ...

    def calls(self, cells: Cells, unit_um: float) -> Iterator[_Calls]:
        """Yield each cell in order, which pairs have no labels by reason, and calls (g, C)."""
        ...


class _Published:
    """Bento's published forest, with Bento's thresholds and its rule of five molecules."""

    patterns = _PATTERNS

    def __init__(self, path: Path) -> None:
        self._forest = RnaForest(path)

    def about(self, unit_um: float) -> LabelledBy:
        return LabelledBy(
            name="Bento's published forest (RNAforest)",
            sha256=self._forest.sha256,
            thresholds={
                name: at for name, at in zip(CLASSES, THRESHOLDS, strict=True) if name in _PATTERNS
            },
            min_molecules=LEAST_MOLECULES,
            unit_um=pixel_um(unit_um),
        )

    def calls(self, cells: Cells, unit_um: float) -> Iterator[_Calls]:
        columns = [CLASSES.index(name) for name in _PATTERNS]
        for cell in cells:
            found = bento_features(cell, unit_um=pixel_um(unit_um))
            unlabelled: dict[str, NDArray[np.bool_]] = {
                f"fewer than {LEAST_MOLECULES} molecules": cell.counts < LEAST_MOLECULES,
                "a feature is missing (no nucleus)": np.asarray(np.isnan(found).any(axis=1)),
            }
            yield cell, unlabelled, self._forest.predict(found)[1][:, columns]


class _Saved:
    """A saved model, at its thresholds."""

    def __init__(self, folder: Path) -> None:
        self._folder = find_model(folder)
        self._method, self._model = load_model(self._folder)
        self.patterns = tuple(self._model.patterns)
        at = self._model.thresholds
        if at is None or all(at.get(name) is None for name in self.patterns):
            raise MethodError(
                f"{self._folder} has no thresholds for calls, because it was run on a dataset "
                "without a labelled val split; label with a model that was"
            )
        if self._method.about.sees_labels:
            raise MethodError(f"{self._model.method} reads labels: it cannot make any")
        self._thresholds: Mapping[str, float | None] = {
            name: at.get(name) for name in self.patterns
        }

    def about(self, unit_um: float) -> LabelledBy:  # noqa: ARG002 - of any unit
        model: Model = self._model
        return LabelledBy(
            name=f"{model.method}, seed {model.seed}",
            sha256=model_sha256(self._folder),
            thresholds=dict(self._thresholds),
            fitted_on=model.fitted_on,
        )

    def calls(self, cells: Cells, unit_um: float) -> Iterator[_Calls]:  # noqa: ARG002
        method: Method = self._method
        limits = [self._thresholds[name] for name in self.patterns]
        # as `call_patterns`: float32 against float32, and never without a threshold
        at = np.array([np.inf if limit is None else limit for limit in limits], np.float32)
        scored = sound_scores(
            method.predict(cells),
            self._model,
            lambda found: found[1].reshape(len(found[0].genes), len(at)),
        )
        for cell, scores in scored:
            yield cell, {}, scores >= at


def load_classifier(source: str | Path) -> Classifier:
    """Load what labels pairs.

    Parameters
    ----------
    source : str or pathlib.Path
        ``"rnaforest"``: Bento's published forest, from the cache or the mirror; a path of its
        arrays (``.npz``); the folder of a saved model, or one that holds only one; or the name of
        a model of the package (:mod:`.pretrained`).

    Raises
    ------
    MethodError
        It is none of these, is damaged, or has no thresholds.
    FetchError
        The published forest is neither in the cache nor on the mirror.
    """
    if source == FOREST:
        return _Published(fetch(forest_file(), cache_root() / "sources"))
    path = Path(source).expanduser()
    if path.is_file():
        return _Published(path)
    if not path.is_dir() and pretrained_folder(source) is None:
        raise MethodError(
            f"there is no classifier {source}: expected {FOREST} (Bento's published forest), a "
            "file of its arrays (.npz), the model-... folder of a run, or a model of the package: "
            f"{', '.join(pretrained_names())}"
        )
    return _Saved(pretrained_folder(source) or path)


def label(
    dataset: Dataset,
    classifier: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    split: Literal["auto", "fov", "test"] = "auto",
    patternless: Literal["keep", "drop"] = "drop",
    seed: int = 0,
) -> Path:
    """Make tables of a dataset's cells whose labels are a classifier's calls.

    The manifest names the classifier (``labelled_by``). Labels that the dataset has are left out.

    Parameters
    ----------
    dataset : Dataset
    classifier : str or pathlib.Path
        See :func:`load_classifier`.
    folder : str or pathlib.Path
        Folder to make; the whole dataset or nothing.
    name : str, optional
        Name of the new dataset; default: the folder's.
    split : {"auto", "fov", "test"}
        80:10:10 by whole fields of view, or everything in test; auto: as the dataset's recipe
        names the splits, else by fields of view.
    patternless : {"keep", "drop"}
        Pairs for which nothing is called.
    seed : int
        Of the split.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    MethodError
        The classifier cannot be used, or calls nothing.
    SourceError
        There are too few fields of view to split.
    TableError
        The folder is in use or cannot be written.
    """
    found = load_classifier(classifier)
    raw = dataset.manifest.raw
    stored = {key: raw["curation"][key] for key in Recipe.model_fields if key in raw["curation"]}
    splits = stored.get("splits", {}) if split == "auto" else {}
    is_named = split == "auto" and (splits or stored.get("split") == "named")
    changed: dict[str, Any] = {
        "patterns": found.patterns,
        "patternless": patternless,
        "split": stored["split"] if is_named else "test" if split == "test" else "fov",
        "splits": splits,
        "seed": seed,
        "labels": None,
        "labels_where": {},
        "classifier": Path(classifier).name,
    }
    try:
        recipe = Recipe.model_validate(stored | changed)
    except ValidationError as error:
        where = f"{dataset.folder} and {classifier}"
        raise TableError(where, [f"no recipe: {invalid_text(error, 3)}"]) from error
    with making(Path(folder)) as here:
        return write_labelled(
            dataset.folder,
            found,
            here,
            name=name or here.name,
            version="0.0.0",
            recipe=recipe,
            about={key: raw[key] for key in _KEPT if key in raw},
        )


def write_labelled(
    tables: Path,
    classifier: Classifier,
    folder: Path,
    *,
    name: str,
    version: str,
    recipe: Recipe,
    about: Mapping[str, Any] | None = None,
    pinned: Mapping[str, str] | None = None,
) -> Path:
    """Copy tables, with a classifier's calls as labels; split and check them anew.

    Parameters
    ----------
    tables : pathlib.Path
        Folder of tables; their labels and splits are not read.
    classifier : Classifier
    folder, name, version, recipe, about, pinned
        As for :func:`gpattern_bench.curate.write.write_dataset`.
    """
    dataset = Dataset(tables)
    labelled_by = classifier.about(dataset.manifest.unit_um).model_dump(mode="json")
    return write_dataset(
        _labelled(dataset, classifier, recipe),
        folder,
        name=name,
        version=version,
        recipe=recipe,
        about={**(about or {}), "labelled_by": labelled_by},
        pinned=pinned,
    )


def _labelled(dataset: Dataset, classifier: Classifier, recipe: Recipe) -> Iterator[Tables]:
    """Yield the tables of each field of view, with labels."""
    manifest = dataset.manifest
    cells = Cells(
        [CellTables(dataset.folder, dataset.fovs(), simulated=manifest.is_simulated)],
        genes=dataset.genes,
        patterns=classifier.patterns,
        labels=False,
    )
    called = Progress("label", len(cells)).over(classifier.calls(cells, manifest.unit_um))
    pairs, kept, of_pattern = 0, 0, dict.fromkeys(classifier.patterns, 0)
    name_of = classifier.about(manifest.unit_um).name
    dropped = {table: manifest.dropped.get(table, {}) for table in ("molecules", "cells")}
    for fov, found in groupby(called, key=lambda each: each[0].fov):
        reasons: dict[str, int] = {}
        labels = _labels(list(found), dataset.genes, recipe, reasons)
        pairs, kept = pairs + len(labels) + sum(reasons.values()), kept + len(labels)
        for pattern in of_pattern:
            of_pattern[pattern] += int(labels[pattern].to_numpy().sum())
        molecules, outlined = (
            read_table(dataset.folder / f"{name}.parquet", {fov}) for name in ("molecules", "cells")
        )
        yield Tables(
            molecules,
            outlined,
            labels,
            {**dropped, "labels": {reason: rows for reason, rows in reasons.items() if rows}},
            measure_cells(molecules, outlined),
        )
        dropped = {}  # counted once
    if not kept:
        raise MethodError(
            f"{name_of} gives none of the {pairs:,} pairs of "
            f"{dataset.id} a label; check the unit of its coordinates ({manifest.unit_um:g} um) "
            "and that its cells have nuclei"
        )
    for pattern, called_for in of_pattern.items():
        if called_for > NEARLY_ALL * kept:
            _log.warning(
                "%s: %s is called for %.1f %% of the labelled pairs, so it tells none apart",
                name_of, pattern, 100 * called_for / kept,
            )  # fmt: skip


def _labels(
    called: list[_Calls], genes: tuple[str, ...], recipe: Recipe, reasons: dict[str, int]
) -> pa.Table:
    """Make the labels of one field of view; count pairs without one by reason."""
    ids, codes, counts, values = [], [], [], []
    for cell, unlabelled, calls in called:
        patternless = np.asarray(~calls.any(axis=1) & (recipe.patternless == "drop"))
        keep = keep_rows({**unlabelled, "no pattern": patternless}, reasons)
        ids += [cell.cell_id] * int(keep.sum())
        codes.append(cell.genes[keep])
        counts.append(cell.counts[keep])
        values.append(calls[keep])
    names = np.array(genes, object)[np.concatenate(codes)]
    columns = [
        pa.array([called[0][0].fov] * len(ids), pa.string()).dictionary_encode(),
        pa.array(ids, pa.string()).dictionary_encode(),
        pa.array(names, pa.string()).dictionary_encode(),
        pa.array(np.concatenate(counts).astype(np.int32)),
        *(pa.array(column) for column in np.concatenate(values).T),
    ]
    return pa.Table.from_arrays(columns, schema=schema.labels(recipe.patterns))
