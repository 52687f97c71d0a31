"""Scores of an answer: every pair of some fields of view, with its number of molecules."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpattern_bench.base.threads import one_thread
from gpattern_bench.data.cells import Cells
from gpattern_bench.methods.base import Method, Network
from gpattern_bench.runs.saved_model import Model, load_model, sound_scores
from gpattern_bench.tables.predictions import write_tables

__all__ = ["is_scored", "score_cells"]

_MARK = "gpattern_bench_scored"


def score_cells(model: Path, sha256: str, cells: Cells, path: Path) -> None:
    """Score every pair of some cells with a saved model; write the file, whole or not at all.

    Columns: ``cell_id``, ``gene``, ``n_molecules`` and one score per pattern. One thread: to the
    last digit, scores do not depend on the number of processes. `sha256` is that of the model.
    """
    method, about = _loaded(model, sha256)

    shape = (-1, len(about.patterns))
    ids, genes, counts, scores = [], [], [], []
    with one_thread() if isinstance(method, Network) else nullcontext():
        for cell, values in sound_scores(
            method.predict(cells), about, lambda one: one[1].reshape(shape)
        ):
            ids.append(cell.cell_id)
            genes.append(cell.genes)
            counts.append(cell.counts)
            scores.append(values)
    cell_of = np.repeat(np.arange(len(ids), dtype=np.int32), [len(each) for each in genes])
    names = pa.array(list(cells.genes), pa.string())
    columns = {
        "cell_id": pa.DictionaryArray.from_arrays(pa.array(cell_of), pa.array(ids, pa.string())),
        "gene": pa.DictionaryArray.from_arrays(pa.array(np.concatenate(genes)), names),
        "n_molecules": pa.array(np.concatenate(counts).astype(np.int32)),
    }
    columns |= dict(zip(about.patterns, map(pa.array, np.concatenate(scores).T), strict=True))
    write_tables([pa.table(columns)], path, {_MARK: "1"})


def is_scored(path: Path) -> bool:
    """Test whether :func:`score_cells` wrote the file; a power cut may leave others."""
    try:
        return _MARK.encode() in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


@lru_cache(maxsize=1)  # a worker scores many fields of view with one model
def _loaded(model: Path, sha256: str) -> tuple[Method, Model]:  # noqa: ARG001 - another is read
    return load_model(model)
