"""Score all pairs, as one table or in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpattern_bench.base.progress import Progress
from gpattern_bench.data.cells import Cells
from gpattern_bench.methods.base import Method

__all__ = ["predict_cells", "predict_pieces"]

_PIECE = 1 << 16  # least pairs in a piece; the last may have fewer


def predict_cells(method: Method, cells: Cells, *, bar: bool = True) -> pd.DataFrame:
    """Score every pair of the cells: ``cell_id``, ``gene`` and one float32 column per pattern.

    Hides labels from all methods but the positive control. `bar`: show progress.
    """
    return pd.concat(list(predict_pieces(method, cells, bar=bar)), ignore_index=True)


def predict_pieces(method: Method, cells: Cells, *, bar: bool = True) -> Iterator[pd.DataFrame]:
    """Yield the scores of :func:`predict_cells` in pieces, in bounded memory."""
    seen = cells if method.about.sees_labels else cells.without_labels()
    names = pd.Index(cells.genes)
    held: list[tuple[str, NDArray[np.int32], NDArray[np.float32]]] = []
    pairs = 0
    shown = Progress(method.about.name, len(cells), shown=bar)
    for cell, values in shown.over(method.predict(seen)):
        held.append((cell.cell_id, cell.genes, values))
        pairs += len(values)
        if pairs >= _PIECE:
            yield _piece(held, names, cells.patterns)
            held, pairs = [], 0
    if held:
        yield _piece(held, names, cells.patterns)


def _piece(
    held: list[tuple[str, NDArray[np.int32], NDArray[np.float32]]],
    names: pd.Index[str],
    patterns: tuple[str, ...],
) -> pd.DataFrame:
    ids, genes, scores = zip(*held, strict=True)
    frame = pd.DataFrame(np.concatenate(scores), columns=list(patterns))
    return frame.assign(
        cell_id=np.repeat(np.array(ids, object), [len(part) for part in genes]),
        gene=names[np.concatenate(genes)],
    )
