"""Read the tables of instruments' exports, Parquet or csv, block by block."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from gpattern_bench.curate.release import reading
from gpattern_bench.errors import SourceError
from gpattern_bench.tables.parquet import without_views

__all__ = ["as_text", "column_names", "find_table", "read_blocks"]

_ROWS = 1 << 20  # of Parquet
_BYTES = 1 << 24  # of csv; Arrow reads up to 32 blocks ahead
_TEXT = pa.dictionary(pa.int32(), pa.string())
_HEAD = 1 << 20  # bytes of a csv to find its header in
_DELIMITERS = ",;\t|"
_WHOLE = 1 << 53  # above, different whole numbers are the same float


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
        ``.parquet``, ``.csv`` or ``.csv.gz`` (UTF-8, with or without a mark; separated by comma,
        semicolon, tab or bar; a decimal comma where it is not the separator).
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
        A column is missing, is there twice or has another type, or the file is damaged.
    """
    wanted = [*text, *numbers, *raw]
    with reading(path, f"a table with the columns {', '.join(wanted)}"):
        parquet = path.suffix == ".parquet"
        form = None if parquet else _csv_form(path, wanted, numbers)
        present = list(pq.read_schema(path).names) if form is None else form.names
        missing = [name for name in wanted if name not in present and name not in optional]
        if missing:
            raise SourceError(
                f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(present)}"
            )
        used = [name for name in wanted if name in present]
        if twice := [name for name in used if present.count(name) > 1]:
            raise SourceError(f"{path} has the columns {', '.join(twice)} twice; keep one of each")
        convert = {
            **dict.fromkeys(text, as_text),
            **dict.fromkeys(numbers, _as_number),
            **dict.fromkeys(raw, _plain),
        }
        blocks = _parquet(path, used, text) if form is None else _csv(path, used, numbers, form)
        for block in blocks:
            yield pa.table([convert[name](block[name]) for name in used], names=used)


def column_names(path: Path, likely: Sequence[str]) -> list[str]:
    """List the columns of a table, Parquet or csv; `likely` ones tell how the csv is written."""
    with reading(path, "a table, Parquet or csv"):
        if path.suffix == ".parquet":
            return list(pq.read_schema(path).names)
        return _csv_form(path, likely, ()).names


@dataclass(frozen=True)
class _Form:
    """How a csv is written."""

    names: list[str]
    delimiter: str
    decimal: str


def _csv_form(path: Path, wanted: Sequence[str], numbers: Sequence[str]) -> _Form:
    """Find the separator with which the header has most of the columns wanted."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        header, row = (file.readline(_HEAD).decode("utf-8-sig") for _ in range(2))
    if not header.strip():
        raise ValueError("its first line is empty")
    split = {sign: next(csv.reader([header], delimiter=sign)) for sign in _DELIMITERS}
    sign = max(split, key=lambda sign: len(set(wanted) & set(split[sign])))
    first = dict(zip(split[sign], next(csv.reader([row], delimiter=sign), []), strict=False))
    comma = any("," in first.get(name, "") for name in numbers)
    return _Form(split[sign], sign, "," if comma and sign != "," else ".")


def _parquet(path: Path, used: list[str], text: Sequence[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        kinds = {name: file.schema_arrow.field(name).type for name in text if name in used}
    texts = [name for name, kind in kinds.items() if kind in (pa.string(), pa.binary())]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches(_ROWS, columns=used):
            yield pa.Table.from_batches([batch])


def _csv(path: Path, used: list[str], numbers: Sequence[str], form: _Form) -> Iterator[pa.Table]:
    options = pyarrow.csv.ConvertOptions(
        include_columns=used,
        column_types={name: pa.float64() if name in numbers else _TEXT for name in used},
        decimal_point=form.decimal,
    )
    blocks = pyarrow.csv.ReadOptions(block_size=_BYTES)
    parse = pyarrow.csv.ParseOptions(delimiter=form.delimiter)
    with pyarrow.csv.open_csv(path, blocks, parse, options) as file:
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
    return column.cast(without_views(column.type))


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        largest = pc.max(pc.abs(values)).as_py()
        with suppress(pa.ArrowInvalid):  # not whole
            values = values.cast(pa.int64()) if (largest or 0) < _WHOLE else values
    return values.cast(pa.string())


def _empty_is_null(values: pa.Array) -> pa.Array:
    return pa.array([value or None for value in values.to_pylist()], pa.string())


def _as_number(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column if column.type == pa.float32() else column.cast(pa.float64())
