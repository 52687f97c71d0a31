"""What several tests are made of: small datasets, and what a submission must say."""

from __future__ import annotations

import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpattern_bench.board.metadata import Metadata
from gpattern_bench.curate.release import Release
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.tables.parquet import ContentHash

PATIENCE_S = 1800
"""Longest wait for another process or thread: with fifteen at work on each core it still ends."""

REPORTED = {"benchmark", "commit", "date", "load_at_start", "machine", "versions"}
"""What every benchmark tells beside its figures."""


def apart(*words: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with the package that is tested."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


# Two patterns over five pairs, small enough to score by hand.
FIVE_LABELS = pd.DataFrame(
    {
        "cell_id": ["a", "a", "b", "b", "c"],
        "gene": ["g", "h", "g", "h", "g"],
        "inner": [True, True, False, False, False],
        "outer": [False, True, False, True, True],
    }
)
FIVE_SCORES = FIVE_LABELS[["cell_id", "gene"]].assign(
    inner=np.float32([0.9, 0.4, 0.6, 0.2, 0.1]),
    outer=np.float32([0.1, 0.8, 0.3, 0.7, 0.3]),
)


def dataset_of(
    folder: Path,
    release: Release,
    patterns: tuple[str, ...] = PATTERNS,
    *,
    name: str = "small",
    version: str = "1.0.0",
    **rules,
) -> Dataset:
    """A release curated into a folder, pairs without a pattern kept."""
    recipe = Recipe(format="simulated", patterns=patterns, patternless="keep", **rules)
    tables = apply_rules(release, recipe)
    return Dataset(write_dataset([tables], folder, name=name, version=version, recipe=recipe))


def small_dataset(
    folder: Path,
    name: str = "small",
    *,
    seed: int = 7,
    n_fovs: int = 12,
    labels: bool = True,
    split: str = "fov",
    form: str = "simulated",
    unit_um: float = 1.0,
) -> Dataset:
    """A simulated dataset in `folder/name`; `form` and `unit_um` are what its manifest says."""
    release = simulate(seed, n_fovs=n_fovs, cells_per_fov=3, n_genes=10, mean_molecules=60)
    if not labels:
        release = Release(release.molecules, release.cells)
    rules = {"patterns": PATTERNS, "patternless": "keep", "split": split}
    tables = apply_rules(release, Recipe(format="simulated", **rules))
    recipe = Recipe(format=form, unit_um=unit_um, **rules)
    return Dataset(
        write_dataset([tables], folder / name, name=name, version="1.2.0", recipe=recipe)
    )


def random_scores(dataset: Dataset) -> pd.DataFrame:
    """Scores of every pair of the test split, without ties."""
    pairs = dataset.pairs("test").astype(str)
    shape = (len(pairs), len(dataset.patterns))
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    return pairs.assign(**dict(zip(dataset.patterns, values.T, strict=True)))


def metadata_of(method: str, **values) -> Metadata:
    """Metadata without files, every required key filled."""
    base = {
        "method": method,
        "label": method.upper(),
        "kind": "model",
        "summary": "It guesses.",
        "authors": ["A. Author"],
        "reference": "none",
        "code": "none",
        "licence": "MIT",
        "inputs": ["coordinates"],
        "contact": "a@example.org",
        "trained_on": ["train"],
        "deterministic": True,
    }
    return Metadata.model_validate(base | values)


def stored_result(
    score: float | None = 0.5,
    *,
    of_pattern: float = 0.5,
    floor: float = 0.5,
    half: float = 0.1,
    patterns: tuple[str, ...] = ("inner", "outer"),
    **values,
) -> dict:
    """An entry of `results.json` with this score as every macro metric, and intervals about it."""
    at = score or 0.0
    of = dict.fromkeys(("auc", "acc", "f1", "ap", "precision", "recall"), of_pattern)
    by_bin = dict.fromkeys(patterns) | {patterns[0]: 0.5}
    curve = {"roc": [[0, 0], [1, 1]], "pr": [[1, 0.5]], "reliability": [[0.5, 0.5, 10]]}
    macros = ("auc_macro", "acc_macro", "f1_macro", "ap_macro", "accuracy_subset")
    drawn = np.linspace(-0.1, 0.1, 100) + at
    base = {
        "predictions": "predictions/d/test-seed0.parquet",
        "sha256": {},
        "dataset": "d",
        "version": "1.0.0",
        "split": "test",
        "protocol": "fit",
        "seed": 0,
        "labels_sha256": "a" * 64,
        "trained_on": None,
        "seconds": None,
        "fit_seconds": None,
        "device": None,
        "parameters": None,
        "date": None,
        "metrics": {
            **dict.fromkeys(macros, score),
            "n": 10,
            "per_pattern": dict.fromkeys(patterns, of | {"floor": floor}),
            "ci": {"f1_macro": [at - half, at + half]},
            "n_clusters": 10,
            "clusters": "fov",
        },
        "curves": {
            "per_pattern": dict.fromkeys(patterns, curve),
            "molecules": [
                {"molecules": "1", "n": 10, "f1": by_bin, "auc": by_bin, "floor": by_bin}
            ],
        },
        "f1_replicates": replicates(drawn),
        "degrees_of_freedom": 9,
        "robustness": None,
        "flags": [],
    }
    return base | values


def replicates(drawn: np.ndarray) -> str:
    """Replicates of macro F1 as `results.json` holds them."""
    return b64encode(drawn.astype("<f4").tobytes()).decode()


def flat_forest(path: Path, change: dict | None = None) -> dict[str, np.ndarray]:
    """Small arrays in the form of Bento's published forest; `change` replaces some.

    A number replaces the first value of an array, None removes it.
    """
    rng = np.random.default_rng(1)
    arrays = {"mean": np.full(13, 0.5), "scale": np.full(13, 0.25)}
    for k in range(5):
        trees = 12
        node = np.tile([0, 1, 2, 3, 4, 5, 6], trees)  # full trees of two levels
        first = np.repeat(7 * np.arange(trees), 7)
        inner = node < 3
        arrays |= {
            f"{k}_feature": np.where(inner, rng.integers(0, 13, len(node)), 0).astype(np.int8),
            f"{k}_threshold": rng.normal(0, 0.5, len(node)).astype(np.float32),
            f"{k}_left": np.where(inner, first + 2 * node + 1, -1).astype(np.int32),
            f"{k}_right": np.where(inner, first + 2 * node + 2, -1).astype(np.int32),
            f"{k}_default_left": rng.integers(0, 2, len(node)).astype(np.int8),
            f"{k}_root": np.arange(0, 7 * trees, 7, dtype=np.int32),
            f"{k}_iso_x": np.array([0.1, 0.9], np.float32),
            f"{k}_iso_y": np.array([0.0, 1.0], np.float32),
        }
    for name, value in (change or {}).items():
        if value is None:
            del arrays[name]
        elif isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            arrays[name][0] = value
    np.savez_compressed(path, **arrays)
    return arrays


def content_sha256(tables: pa.Table | list[pa.Table]) -> str:
    """The content hash of a table, or of its consecutive pieces."""
    content = ContentHash()
    for table in [tables] if isinstance(tables, pa.Table) else tables:
        content.update(table)
    return content.hexdigest()


def write_answer(folder: Path, pairs: pd.DataFrame, cells: pd.DataFrame) -> Path:
    """Write what `differential` reads of an answer.

    `pairs` has cell_id, gene, n_molecules and a calibrated probability per pattern, which is called
    from 0.5 on; below two molecules not. `cells` has cell_id, fov, area_um2 and, perhaps, in_scope.
    """
    folder.mkdir(parents=True, exist_ok=True)
    patterns = [name for name in pairs.columns if name not in ("cell_id", "gene", "n_molecules")]
    columns = {
        "cell_id": pa.array(pairs["cell_id"], pa.string()),
        "gene": pa.array(pairs["gene"], pa.string()),
        "n_molecules": pa.array(pairs["n_molecules"], pa.int32()),
    }
    abstained = pairs["n_molecules"].to_numpy() < 2
    for pattern in patterns:
        scores = pairs[pattern].to_numpy(np.float32)
        columns[pattern] = pa.array(scores >= 0.5, mask=abstained)
        columns[f"{pattern}_probability"] = pa.array(scores, pa.float32())
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    in_scope = cells.get("in_scope", pd.Series(True, index=cells.index))
    table = {
        "cell_id": pa.array(cells["cell_id"], pa.string()),
        "fov": pa.array(cells["fov"], pa.string()),
        "area_um2": pa.array(cells["area_um2"], pa.float32(), from_pandas=True),
        "in_scope": pa.array(in_scope, pa.bool_()),
    }
    pq.write_table(pa.table(table), folder / "cells.parquet")
    return folder
