"""Raw features of methods per pair (ELLA: per gene and kernel), to Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpattern_bench.base.files import replacing
from gpattern_bench.base.progress import Progress
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import UnknownMethodError

__all__ = ["FEATURES", "write_features"]

FEATURES = {
    "bento": "gpattern_bench.methods.bento.method:features",
    "ella": "gpattern_bench.methods.ella.method:features",
    "locfish": "gpattern_bench.methods.locfish.method:features",
    "locfish_2018": "gpattern_bench.methods.locfish.method:features_2018",
    "sprawl": "gpattern_bench.methods.sprawl.method:features",
}
"""Name -> ``module:function`` of the methods' raw features."""

_ROWS = 100_000


def write_features(
    method: str, dataset: Dataset, out: Path, *, unit_um: float | None = None
) -> Path:
    """Compute a method's raw features of every pair, and write them.

    Parameters
    ----------
    method : str
        One of :data:`FEATURES`; its page in ``docs/methods`` has the columns.
    dataset : Dataset
    out : pathlib.Path
        The Parquet file.
    unit_um : float, optional
        Micrometres per unit of length in which the method computes; default the method's own.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    UnknownMethodError
        The method has no raw features.
    """
    if method not in FEATURES:
        raise UnknownMethodError(
            f"{method!r} has no raw features; methods that have: {', '.join(FEATURES)}"
        )
    module, _, function = FEATURES[method].partition(":")
    compute = getattr(import_module(module), function)
    unit = {} if unit_um is None else {"unit_um": unit_um}
    cells = dataset.iter_cells().without_labels()
    with replacing(out) as beside:
        writer = None
        try:
            frames = Progress(method, unit="parts").over(compute(cells, **unit))
            for rows in _batches(frames):
                table = pa.Table.from_pandas(rows, preserve_index=False)
                writer = writer or pq.ParquetWriter(beside, table.schema, compression="zstd")
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
    return out


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
