"""Scores of an answer: every pair of some fields of view, with its number of molecules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.methods.base import Method, Network
from gpattern_bench.runs.saved_model import Model, load_model, sound_scores
from gpattern_bench.tables.predictions import write_tables

__all__ = ["is_scored", "score_cells"]

_MARK = "gpattern_bench_scored"
_Scored = tuple[Cell, NDArray[np.float32]]


def score_cells(model: Path, sha256: str, cells: Cells, path: Path) -> None:
    """Score every pair of some cells with a saved model; write the file, whole or not at all.

    Columns: ``cell_id``, ``gene``, ``n_molecules`` and one score per pattern. One thread: to the
    last digit, scores do not depend on the number of processes. `sha256` is that of the model.
    """
    method, about = _loaded(model, sha256)

    def found() -> Iterator[_Scored]:
        shape = (-1, len(about.patterns))
        yield from sound_scores(method.predict(cells), about, lambda one: one[1].reshape(shape))

    with _one_thread(method):
        table = _table(list(found()), cells, about)
    write_tables([table], path, {_MARK: "1"})


def is_scored(path: Path) -> bool:
    """Test whether :func:`score_cells` wrote the file; a power cut may leave others."""
    try:
        return _MARK.encode() in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _table(scored: list[_Scored], cells: Cells, model: Model) -> pa.Table:
    ids = [cell.cell_id for cell, _ in scored]
    pairs = np.array([len(cell.genes) for cell, _ in scored])
    cell = np.repeat(np.arange(len(ids), dtype=np.int32), pairs)
    gene = np.concatenate([cell.genes for cell, _ in scored])
    counts = np.concatenate([cell.counts for cell, _ in scored]).astype(np.int32)
    scores = np.concatenate([values for _, values in scored])
    names = pa.array(list(cells.genes), pa.string())
    columns = {
        "cell_id": pa.DictionaryArray.from_arrays(pa.array(cell), pa.array(ids, pa.string())),
        "gene": pa.DictionaryArray.from_arrays(pa.array(gene), names),
        "n_molecules": pa.array(counts),
    }
    return pa.table(columns | {name: scores[:, k] for k, name in enumerate(model.patterns)})


@lru_cache(maxsize=1)  # a worker scores many fields of view with one model
def _loaded(model: Path, sha256: str) -> tuple[Method, Model]:  # noqa: ARG001 - another is read
    return load_model(model)


@contextmanager
def _one_thread(method: Method) -> Iterator[None]:
    if not isinstance(method, Network):
        yield
        return
    import torch  # slow to import

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
