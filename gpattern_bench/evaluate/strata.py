"""Divide pairs into strata, to score each separately."""

from __future__ import annotations

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import EvaluationError

__all__ = ["STRATA", "stratify"]

STRATA = {
    "molecules": "labels with a column n_molecules",
    "gene_seen": "a dataset with a train split",
    "cell_size": "a dataset with outlines",
}
"""Criterion -> requirement."""

_LOWEST = (1, 2, 5, 10, 20, 50)  # molecules per pair: lower ends of the bins


def stratify(
    by: str, labels: pd.DataFrame, dataset: Dataset | None, split: str
) -> tuple[NDArray[np.int64], list[str]]:
    """Divide the pairs of a table of labels into strata.

    Parameters
    ----------
    by : {"molecules", "gene_seen", "cell_size"}
        Molecules per pair; whether the gene has labelled pairs in the train split; area of the
        cell's outline, in thirds of the cells.
    labels : pandas.DataFrame
        One row per pair.
    dataset : Dataset or None
        The labels' dataset.
    split : str
        The labels' split.

    Returns
    -------
    stratum : numpy.ndarray
        (N,) stratum of each pair.
    names : list of str
        Names of the strata, in their natural order.

    Raises
    ------
    EvaluationError
        `by` is unknown, or its requirement (:data:`STRATA`) is not met.
    """
    if by == "molecules" and "n_molecules" in labels:
        highest = [low - 1 for low in _LOWEST[1:]]
        names = [
            str(low) if low == high else f"{low}-{high}"
            for low, high in zip(_LOWEST, highest, strict=False)
        ]
        molecules = labels["n_molecules"].to_numpy(np.float64, na_value=np.nan)
        if not (molecules >= _LOWEST[0]).all():  # NaN is not
            raise EvaluationError(
                f"the labels have n_molecules below {_LOWEST[0]}, or none, in "
                f"{np.count_nonzero(~(molecules >= _LOWEST[0])):,} rows; a pair has 1 or more"
            )
        end = np.searchsorted(np.array(_LOWEST), molecules, side="right")
        return np.asarray(end - 1, dtype=np.int64), [*names, f"{_LOWEST[-1]}+"]
    if by == "gene_seen" and dataset is not None and "train" in dataset.splits:
        seen = set(dataset.labels("train")["gene"].astype(str))
        unseen = ~labels["gene"].astype(str).isin(seen)
        return unseen.to_numpy().astype(np.int64), ["seen", "unseen"]
    if by == "cell_size" and dataset is not None:
        cells = dataset.cells(split)
        area = pd.Series(shapely.area(cells["cell_boundary"].to_numpy()), cells["cell_id"])
        third = area.rank(method="first").sub(1).mul(3 / len(area)).astype("int64")
        of_pair = third.reindex(labels["cell_id"].astype(str)).to_numpy()
        names = [f"{size} third" for size in ("smallest", "middle", "largest")]
        return np.asarray(of_pair, dtype=np.int64), names
    if by not in STRATA:
        raise EvaluationError(f"cannot divide pairs by {by!r}; known: {', '.join(STRATA)}")
    raise EvaluationError(f"cannot divide pairs by {by}: it needs {STRATA[by]}")
