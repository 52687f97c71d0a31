"""What several tests are made of: small datasets, and what a submission must say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

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


def content_sha256(tables: pa.Table | list[pa.Table]) -> str:
    """The content hash of a table, or of its consecutive pieces."""
    content = ContentHash()
    for table in [tables] if isinstance(tables, pa.Table) else tables:
        content.update(table)
    return content.hexdigest()
