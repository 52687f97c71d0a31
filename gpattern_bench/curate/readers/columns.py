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

__all__ = [
    "DELIMITERS",
    "as_text",
    "column_names",
    "delimiter",
    "find_table",
    "is_gzipped",
    "read_blocks",
    "renamed",
]

_ROWS = 1 << 20  # of Parquet
_BYTES = 1 << 24  # of csv; Arrow reads up to 32 blocks ahead
_TEXT = pa.dictionary(pa.int32(), pa.string())
_HEAD = 1 << 20  # bytes of a csv to find its header in
DELIMITERS = ",;\t|"
"""Separators of a csv."""

_ROWS_SEEN = 1000  # of a csv, to find a decimal comma in
_PACKED = {
    b"PK\x03\x04": "a zip archive or a workbook",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
}
"""First bytes of what is not read."""
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
        Parquet, a file or a folder of them, or csv, perhaps gzipped (UTF-8, with or without a mark;
        separated by comma, semicolon, tab or bar; a decimal comma where it is not the separator).
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
        parts = _parquet_parts(path)
        form = None if parts else _csv_form(path, wanted, numbers)
        present = list(pq.read_schema(parts[0]).names) if form is None else form.names
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
        blocks = _parquet(parts, used, text) if form is None else _csv(path, used, numbers, form)
        for block in blocks:
            yield pa.table([convert[name](block[name]) for name in used], names=used)


def column_names(path: Path, likely: Sequence[str]) -> list[str]:
    """List the columns of a table, Parquet or csv; `likely` ones tell how the csv is written."""
    with reading(path, "a table, Parquet or csv"):
        parts = _parquet_parts(path)
        return list(pq.read_schema(parts[0]).names) if parts else _csv_form(path, likely, ()).names


def delimiter(path: Path, likely: Sequence[str]) -> str:
    """Find the separator of a csv that has some of the columns `likely`."""
    return _csv_form(path, likely, ()).delimiter


def is_gzipped(path: Path) -> bool:
    """Tell by the first bytes, whatever the name.

    Raises
    ------
    SourceError
        It is packed otherwise.
    """
    with path.open("rb") as file:
        begin = file.read(6)
    for sign, what in _PACKED.items():
        if begin.startswith(sign):
            raise SourceError(f"{path} is {what}; unpack it (.gz is read as it is)")
    return begin.startswith(b"\x1f\x8b")


def _parquet_parts(path: Path) -> list[Path]:
    """List the Parquet files of a table, one or, of a folder as Dask writes it, several."""
    if path.is_dir():
        if parts := sorted(path.glob("*.parquet")):
            return parts
        raise SourceError(f"{path} is a folder without .parquet files; give a file")
    with path.open("rb") as file:
        parquet = file.read(4) == b"PAR1"
    return [path] if parquet or path.suffix == ".parquet" else []


@dataclass(frozen=True)
class _Form:
    """How a csv is written."""

    names: list[str]
    delimiter: str
    decimal: str
    gzipped: bool


def _csv_form(path: Path, wanted: Sequence[str], numbers: Sequence[str]) -> _Form:
    """Find the separator with which the header has most of the columns wanted."""
    gzipped = is_gzipped(path)
    with (gzip.open if gzipped else open)(path, "rb") as file:
        header, *rows = (file.readline(_HEAD).decode("utf-8-sig") for _ in range(_ROWS_SEEN))
    if not header.strip():
        raise ValueError("its first line is empty")
    split = {sign: next(csv.reader([header], delimiter=sign)) for sign in DELIMITERS}
    split = {sign: [name.strip() for name in names] for sign, names in split.items()}
    sign = max(split, key=lambda sign: len(set(wanted) & set(split[sign])))
    at = [k for k, name in enumerate(split[sign]) if name in numbers]
    comma = sign != "," and any(
        "," in row[k] for row in csv.reader(rows, delimiter=sign) for k in at if k < len(row)
    )
    return _Form(split[sign], sign, "," if comma else ".", gzipped)


def _parquet(parts: list[Path], used: list[str], text: Sequence[str]) -> Iterator[pa.Table]:
    for path in parts:
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
    # Its own header may have blanks around the names.
    blocks = pyarrow.csv.ReadOptions(block_size=_BYTES, column_names=form.names, skip_rows=1)
    parse = pyarrow.csv.ParseOptions(delimiter=form.delimiter)
    packed = "gzip" if form.gzipped else None
    with (
        pa.input_stream(str(path), compression=packed) as stream,
        pyarrow.csv.open_csv(stream, blocks, parse, options) as file,
    ):
        for batch in file:
            yield pa.Table.from_batches([batch])


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert names of any type to dictionary-encoded text; blank text becomes null.

    Text has no blanks around it. Whole numbers stored as floats, as pandas does where some are
    missing, have no decimals.
    """
    if not pa.types.is_dictionary(column.type):
        column = _plain(column).dictionary_encode()
    chunks = []
    for chunk in column.chunks:
        texts = _texts(chunk.dictionary).to_pylist()
        chunks.append(renamed(chunk, [(text or "").strip() or None for text in texts]))
    return pa.chunked_array(chunks, _TEXT)


def renamed(chunk: pa.DictionaryArray, names: Sequence[str | None]) -> pa.DictionaryArray:
    """Give the values of a dictionary other names, of which some may be equal, or null."""
    new = pa.array(names, pa.string()).dictionary_encode()
    codes = new.indices.take(chunk.indices.cast(pa.int32()))
    return pa.DictionaryArray.from_arrays(codes, new.dictionary)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(without_views(column.type))


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        largest = pc.max(pc.abs(values)).as_py()
        with suppress(pa.ArrowInvalid):  # not whole
            values = values.cast(pa.int64()) if (largest or 0) < _WHOLE else values
    return values.cast(pa.string())


def _as_number(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column if column.type == pa.float32() else column.cast(pa.float64())
