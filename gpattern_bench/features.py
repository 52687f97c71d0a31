"""Raw features of methods per pair (ELLA: per gene and kernel)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpattern_bench.base.files import replacing
from gpattern_bench.base.progress import Progress
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import UnknownMethodError
from gpattern_bench.methods import get_method, plugins

__all__ = ["FEATURES", "compute_features", "write_features"]

FEATURES = {
    "bento": "gpattern_bench.methods.bento.method:features",
    "ella": "gpattern_bench.methods.ella.method:features",
    "locfish": "gpattern_bench.methods.locfish.method:features",
    "locfish_2018": "gpattern_bench.methods.locfish.method:features_2018",
    "sprawl": "gpattern_bench.methods.sprawl.method:features",
}
"""Name -> ``module:function`` of the methods' raw features."""

_ROWS = 100_000


def compute_features(
    method: str, dataset: Dataset, split: str | None = None, *, unit_um: float | None = None
) -> pd.DataFrame:
    """Compute a method's raw features of every pair, in memory.

    Parameters
    ----------
    method : str
        One of :data:`FEATURES`, whose pages in ``docs/methods`` have the columns, or a method of
        another package (:func:`gpattern_bench.methods.plugins`) that has a method ``features``:
        it takes cells, and yields frames like these.
    dataset : Dataset
    split : str or None
        None: all splits.
    unit_um : float, optional
        Micrometres per unit of length in which the method computes; default the method's own.

    Returns
    -------
    pandas.DataFrame
        One row per pair, labelled or not: ``cell_id``, ``gene``, ``n_molecules`` and the features
        (ELLA: one per gene and kernel). NaN: undefined for this pair, for instance a distance to
        the nucleus in a cell without one. Labels: ``dataset.pairs(split, labels=True)``.

    Raises
    ------
    UnknownMethodError
        The method has no raw features.
    """
    frames = list(_batches(_computed(method, dataset, split, unit_um)))
    return pd.concat(frames, ignore_index=True)


def write_features(
    method: str, dataset: Dataset, out: str | Path, *, unit_um: float | None = None
) -> Path:
    """Compute the features of :func:`compute_features` in bounded memory, and write them.

    Parameters
    ----------
    method, dataset, unit_um
        As there.
    out : str or pathlib.Path
        The Parquet file.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    UnknownMethodError
        The method has no raw features.
    """
    frames = _computed(method, dataset, None, unit_um)
    with replacing(Path(out)) as beside:
        writer = None
        try:
            for rows in _batches(frames):
                table = pa.Table.from_pandas(rows, preserve_index=False)
                writer = writer or pq.ParquetWriter(beside, table.schema, compression="zstd")
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
    return Path(out)


def _computed(
    method: str, dataset: Dataset, split: str | None, unit_um: float | None
) -> Iterator[pd.DataFrame]:
    compute = _function(method)
    unit = {} if unit_um is None else {"unit_um": unit_um}
    cells = dataset.iter_cells(split).without_labels()
    return Progress(method, unit="parts").over(compute(cells, **unit))


def _function(method: str) -> Callable[..., Iterable[pd.DataFrame]]:
    """Find the function of a method; of another package's, its method of the name `features`."""
    if method in FEATURES:
        module, _, function = FEATURES[method].partition(":")
        found: Callable[..., Iterable[pd.DataFrame]] = getattr(import_module(module), function)
        return found
    theirs = plugins()
    if method in theirs and (own := getattr(get_method(method), "features", None)):
        return cast("Callable[..., Iterable[pd.DataFrame]]", own)
    raise UnknownMethodError(
        f"{method!r} has no raw features; methods that have: {', '.join(FEATURES)}"
    )


def _batches(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Join small frames into batches of many rows."""
    held: list[pd.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(map(len, held)) >= _ROWS:
            yield pd.concat(held, ignore_index=True)
            held = []
    if held:
        yield pd.concat(held, ignore_index=True)
