"""Read the tables of instruments' exports, Parquet or csv, block by block."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from gpattern_bench.curate.release import reading
from gpattern_bench.errors import SourceError

__all__ = ["as_text", "find_table", "read_blocks"]

_ROWS = 1 << 20  # of Parquet
_BYTES = 1 << 24  # of csv; Arrow reads up to 32 blocks ahead
_TEXT = pa.dictionary(pa.int32(), pa.string())
_PLAIN = {"string_view": pa.string(), "binary_view": pa.binary()}


def find_table(folder: Path, names: Sequence[str]) -> Path:
    """Return the first file that exists.

    Raises
    ------
    SourceError
        There is none.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise SourceError(f"{folder} has no {' or '.join(names)}; give the folder of the export")


def read_blocks(
    path: Path,
    *,
    text: Sequence[str] = (),
    numbers: Sequence[str] = (),
    raw: Sequence[str] = (),
    optional: Collection[str] = (),
) -> Iterator[pa.Table]:
    """Yield some columns of a table in blocks of at most about a million rows.

    Parameters
    ----------
    path : pathlib.Path
        ``.parquet``, ``.csv`` or ``.csv.gz``.
    text : sequence of str
        Columns to read as dictionary-encoded text, whatever their type in the file (names may be
        numbers beyond 64 bit); empty text becomes null.
    numbers : sequence of str
        Columns to read as float64, or as float32 if the file has float32.
    raw : sequence of str
        Columns to read unchanged; Parquet only.
    optional : collection of str
        Columns that may be missing.

    Raises
    ------
    SourceError
        A column is missing or has another type, or the file is damaged.
    """
    wanted = [*text, *numbers, *raw]
    with reading(path, f"a table with the columns {', '.join(wanted)}"):
        present = _names(path)
        missing = [name for name in wanted if name not in present and name not in optional]
        if missing:
            raise SourceError(
                f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(present)}"
            )
        used = [name for name in wanted if name in present]
        for block in (_parquet if path.suffix == ".parquet" else _csv)(path, used, text):
            columns = [
                as_text(block[name])
                if name in text
                else _as_number(block[name])
                if name in numbers
                else block[name]
                for name in used
            ]
            yield pa.table(columns, names=used)


def _names(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return list(pq.read_schema(path).names)
    with pyarrow.csv.open_csv(path) as file:
        return list(file.schema.names)


def _parquet(path: Path, used: list[str], text: Sequence[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        kinds = {name: file.schema_arrow.field(name).type for name in text if name in used}
    texts = [name for name, kind in kinds.items() if kind in (pa.string(), pa.binary())]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches(_ROWS, columns=used):
            yield pa.Table.from_batches([batch])


def _csv(path: Path, used: list[str], text: Sequence[str]) -> Iterator[pa.Table]:
    options = pyarrow.csv.ConvertOptions(
        include_columns=used,
        column_types={name: _TEXT if name in text else pa.float64() for name in used},
    )
    blocks = pyarrow.csv.ReadOptions(block_size=_BYTES)
    with pyarrow.csv.open_csv(path, read_options=blocks, convert_options=options) as file:
        for batch in file:
            yield pa.Table.from_batches([batch])


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert names of any type to dictionary-encoded text; empty text becomes null.

    Whole numbers stored as floats, as pandas does where some are missing, have no decimals.
    """
    if not pa.types.is_dictionary(column.type):
        column = _plain(column).dictionary_encode()
    chunks = []
    for chunk in column.chunks:
        values = _empty_is_null(_texts(chunk.dictionary))
        codes = chunk.indices.cast(pa.int32())
        if values.null_count:  # older pyarrow sees nulls only in the codes
            codes = pc.if_else(values.is_null().take(codes), pa.scalar(None, pa.int32()), codes)
        chunks.append(pa.DictionaryArray.from_arrays(codes, values))
    return pa.chunked_array(chunks, _TEXT)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert view types, which few functions of Arrow take."""
    return column.cast(_PLAIN[str(column.type)]) if str(column.type) in _PLAIN else column


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        with suppress(pa.ArrowInvalid):  # not whole, or too large
            values = values.cast(pa.int64())
    return values.cast(pa.string())


def _empty_is_null(values: pa.Array) -> pa.Array:
    return pa.array([value or None for value in values.to_pylist()], pa.string())


def _as_number(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column if column.type == pa.float32() else column.cast(pa.float64())
