"""Prediction files of a dataset: write and check them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from gpattern_bench.data.dataset import Dataset
from gpattern_bench.tables import schema
from gpattern_bench.tables.model_output import read_checked, read_model_output
from gpattern_bench.tables.predictions import (
    FLOATS,
    Checked,
    Origin,
    Protocol,
    as_table,
    check_predictions,
    counted,
    read_origin,
    read_predictions,
    write_tables,
)

__all__ = [
    "Checked",
    "Origin",
    "Protocol",
    "check_file",
    "check_predictions",
    "counted",
    "expected_origin",
    "prediction_table",
    "read_origin",
    "read_predictions",
    "scored_split",
    "write_predictions",
    "write_tables",
]


def write_predictions(
    path: str | Path,
    scores: pd.DataFrame,
    dataset: Dataset,
    split: str,
    *,
    method: str,
    seed: int = 0,
    protocol: Protocol = "fit",
    trained_on: str | Sequence[str] | None = None,
) -> Path:
    """Check scores and write them as a prediction file, whole or not at all.

    Parameters
    ----------
    path : str or pathlib.Path
        The file; replaced if it exists.
    scores : pandas.DataFrame
        Columns ``cell_id``, ``gene`` and one per pattern, in [0, 1]; one row per pair of
        ``dataset.pairs(split)``, in any order. Scores are stored as float32.
    dataset : Dataset
    split : str
    method : str
        Name of your method.
    seed : int
    protocol : str
        One of :data:`Protocol`.
    trained_on : str or sequence of str, optional
        All training datasets, ``name@version``, for ``transfer`` and ``simulation``, and for
        ``fit`` with simulated cells beside the own train split.

    Raises
    ------
    PredictionError
        With every problem; nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> from gpattern_bench import load_dataset
    >>> ds = load_dataset("synthetic")
    >>> scores = ds.pairs("test").assign(**dict.fromkeys(ds.patterns, 0.5))
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_predictions(folder / "mine.parquet", scores, ds, "test", method="mine").name
    'mine.parquet'
    """
    named = [trained_on] if isinstance(trained_on, str) else trained_on
    listed = None if named is None else tuple(sorted(named))
    origin = Origin(dataset.name, dataset.version, split, method, seed, protocol, listed)
    return write_tables([prediction_table(scores, dataset, origin)], Path(path))


def prediction_table(
    scores: pd.DataFrame,
    dataset: Dataset,
    origin: Origin,
    pairs: pd.DataFrame | None = None,
) -> pa.Table:
    """Check scores and convert them to a prediction file's table: float32, with their origin.

    Scores must cover `pairs`, by default all of the split.

    Raises
    ------
    PredictionError
        With every problem.
    """
    table = as_table(scores)
    wanted_pairs = dataset.pairs(origin.split) if pairs is None else pairs
    subject = f"scores of {origin.method} for {dataset.id}"
    check_predictions(
        table, wanted_pairs, dataset.patterns, subject=subject, origin=origin, dtypes=FLOATS
    ).require()
    wanted = schema.predictions(dataset.patterns)
    table = table.select(wanted.names).cast(wanted)
    return table.replace_schema_metadata(origin.to_metadata())


def expected_origin(dataset: Dataset, split: str) -> dict[str, str]:
    """Give the metadata that a prediction file for a split must have."""
    return {"dataset": dataset.name, "version": dataset.version, "split": split}


def scored_split(path: str | Path, dataset: Dataset) -> str:
    """Read which split a file scores; if it names none of the dataset's, test or the first."""
    origin = read_origin(path)
    if origin is not None and origin.split in dataset.splits:
        return origin.split
    return "test" if "test" in dataset.splits else dataset.splits[0]


def check_file(path: str | Path, dataset: Dataset, split: str | None = None) -> Checked:
    """Read a file of scores and check it against a split of a dataset.

    Parameters
    ----------
    path : str or pathlib.Path
        A prediction file, or a file of ``gpattern-bench predict``.
    dataset : Dataset
    split : str, optional
        Default: :func:`scored_split`; of a file of ``predict``, every pair of the dataset.

    Raises
    ------
    PredictionError
        The file cannot be read; other problems are in the result.
    """
    if split is None and read_model_output(path) is not None:
        pairs, expected = dataset.pairs(labelled=False), expected_origin(dataset, "")
        return read_checked(path, pairs, dataset.patterns, expected, whole=True)
    split = split or scored_split(path, dataset)
    expected = expected_origin(dataset, split)
    return read_checked(path, dataset.pairs(split), dataset.patterns, expected)
