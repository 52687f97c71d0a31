"""Prediction: a method's scores of all pairs of some cells, as one table."""

from __future__ import annotations

import numpy as np
import pandas as pd
from tqdm import tqdm

from gpattern_bench.cells import Cells
from gpattern_bench.methods.base import Method

__all__ = ["predict_cells"]


def predict_cells(method: Method, cells: Cells) -> pd.DataFrame:
    """Score every pair of the cells: ``cell_id``, ``gene`` and one float32 column per pattern.

    Labels are hidden from all methods but the positive control.
    """
    seen = cells if method.about.sees_labels else cells.without_labels()
    ids, genes, scores = [], [], []
    stream = method.predict(seen)
    # disable=None: a bar on a terminal only
    for cell, values in tqdm(stream, total=len(cells), desc=method.about.name, disable=None):
        ids += [cell.cell_id] * len(values)
        genes.append(cell.genes)
        scores.append(values)
    frame = pd.DataFrame(np.concatenate(scores), columns=list(cells.patterns))
    names = pd.Index(cells.genes)
    return frame.assign(cell_id=ids, gene=names[np.concatenate(genes)])
