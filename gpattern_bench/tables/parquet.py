"""Read and write the tables in Parquet: row groups by field of view, hashes of values."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpattern_bench.base.validation import shorten
from gpattern_bench.errors import TableError
from gpattern_bench.tables.pages import pages

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "NOT_UTF8",
    "ContentHash",
    "TableWriter",
    "codes_into",
    "dictionary_codes",
    "fov_row_groups",
    "nested",
    "oversized",
    "read_fovs",
    "read_groups",
    "read_table",
    "read_whole",
    "row_group_bounds",
    "table_sha256",
    "used_codes",
    "without_views",
    "write_table",
]

_MAX_ROWS = 1_000_000
_MOST_COLUMNS, _MOST_ROWS, _MOST_VALUES, _MOST_BYTES = 1000, 1 << 24, 1 << 30, 1 << 32
"""Of a row group, which is read as a whole; one of ours has about a million rows."""
NOT_UTF8 = "its path is not UTF-8 text: rename the folder or file, or set LC_ALL to a UTF-8 locale"
_NAMES_BYTES = 512  # of a row on average, without its numbers
_ALWAYS_BYTES = 1 << 26  # unpacked bytes allowed in any file
_LONGEST_VALUE = 32  # bytes, of columns with a fixed number of them


class ContentHash:
    """Running hash of the values of a table.

    Depends on column names, logical types and values in row order; not on chunks, row groups,
    dictionaries, compression or the writing library. Callers sort the rows first
    (:data:`gpattern_bench.tables.schema.SORT_KEYS`).
    """

    def __init__(self) -> None:
        self._columns: dict[str, _ColumnHash] = {}

    def update(self, table: pa.Table) -> None:
        """Add the next rows."""
        for field in table.schema:
            self._columns.setdefault(field.name, _ColumnHash(field.type))
        for batch in table.to_batches(max_chunksize=_MAX_ROWS):
            for name, array in zip(batch.schema.names, batch.columns, strict=True):
                self._columns[name].update(array)

    def hexdigest(self) -> str:
        """Return the SHA-256 of all rows so far, hexadecimal."""
        total = hashlib.sha256()
        for name, column in self._columns.items():
            total.update(f"{name}\0{column.hexdigest()}\n".encode())
        return total.hexdigest()


_hashes: dict[tuple[object, ...], str] = {}  # of files, by what changes when they do


def table_sha256(path: Path) -> str:
    """Compute the content hash of a table in a file; once per process, unless the file changes.

    Raises
    ------
    TableError
        The file cannot be read.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise TableError(str(path), [f"cannot be read ({error}); make it again"]) from error
    key = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _hashes:
        content = ContentHash()
        for table in read_groups(path):
            content.update(table)
        _hashes[key] = content.hexdigest()
    return _hashes[key]


class _ColumnHash:
    """Running hash of one column: type, validity, lengths of texts, and values."""

    def __init__(self, kind: pa.DataType) -> None:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        self.binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        self.text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        self.type = "string" if self.text else "binary" if self.binary else str(kind)
        self.parts = [hashlib.sha256() for _ in range(3)]

    def update(self, array: pa.Array) -> None:
        validity, lengths, values = self.parts
        if pa.types.is_dictionary(array.type):  # older pyarrow overlooks nulls in it
            array = array.dictionary_decode()
        validity.update(np.asarray(array.is_valid()).astype(np.uint8).tobytes())
        if self.text or self.binary:
            array = array.cast(pa.large_string() if self.text else pa.large_binary())
            array = array.cast(pa.large_binary()).fill_null(b"")
            import pyarrow.compute as pc  # slow to import

            lengths.update(np.asarray(pc.binary_length(array)).astype("<i8").tobytes())
            _, offsets, data = array.buffers()
            bounds = np.frombuffer(offsets, np.int64)[[array.offset, array.offset + len(array)]]
            if data is not None:
                values.update(memoryview(data)[bounds[0] : bounds[1]])
            return
        if pa.types.is_boolean(array.type):
            array = array.cast(pa.uint8())
        numbers = array.fill_null(0).to_numpy(zero_copy_only=False)
        if numbers.dtype.kind == "f":
            numbers = numbers + numbers.dtype.type(0)  # -0.0 and 0.0 are one value
        values.update(numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tobytes())

    def hexdigest(self) -> str:
        text = "\0".join([self.type, *(part.hexdigest() for part in self.parts)])
        return hashlib.sha256(text.encode()).hexdigest()


def row_group_bounds(fov: np.ndarray, cell: np.ndarray, max_rows: int = _MAX_ROWS) -> list[int]:
    """Return the first row of each row group, then the number of rows.

    A row group holds whole cells of one field of view, in at most `max_rows` rows unless one cell
    has more.
    """
    n = len(fov)
    if n == 0:
        return [0]
    fov_ends = [*(np.flatnonzero(fov[1:] != fov[:-1]) + 1).tolist(), n]
    cell_starts = np.flatnonzero(np.r_[True, (cell[1:] != cell[:-1]) | (fov[1:] != fov[:-1])])
    bounds = [0]
    for end in fov_ends:
        while end - bounds[-1] > max_rows:
            begin = bounds[-1]
            fits = cell_starts[(cell_starts > begin) & (cell_starts <= begin + max_rows)]
            later = cell_starts[(cell_starts > begin) & (cell_starts < end)]
            if len(later) == 0:
                break
            bounds.append(int(fits[-1] if len(fits) else later[0]))
        bounds.append(end)
    return bounds


class TableWriter:
    """Write a table in pieces: whole fields of view, in canonical order.

    The pieces do not change the bytes (:func:`row_group_bounds`). Use as a context manager.

    Parameters
    ----------
    path : pathlib.Path
    schema : pyarrow.Schema

    Attributes
    ----------
    rows : int
        Rows written so far.
    content : ContentHash
        Their hash.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, max_rows: int = _MAX_ROWS) -> None:
        self.rows = 0
        self.content = ContentHash()
        self._schema = schema
        self._max_rows = max_rows
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def append(self, table: pa.Table) -> None:
        """Write the next rows."""
        table = table.replace_schema_metadata(self._schema.metadata)
        fov = dictionary_codes(table["fov"])
        cell = dictionary_codes(table["cell_id"]) if "cell_id" in table.column_names else fov
        for begin, end in pairwise(row_group_bounds(fov, cell, self._max_rows)):
            piece = _compact(table.slice(begin, end - begin))
            self._writer.write_table(piece, row_group_size=max(1, end - begin))
        self.rows += len(table)
        self.content.update(table)


def write_table(path: Path, table: pa.Table, *, max_rows: int = _MAX_ROWS) -> TableWriter:
    """Write a whole table; return the closed writer, with its rows and hash."""
    with TableWriter(path, table.schema, max_rows=max_rows) as writer:
        writer.append(table)
    return writer


def dictionary_codes(column: pa.ChunkedArray) -> np.ndarray:
    """Return integer codes (n,) of a text column without nulls; equal values, equal codes."""
    return np.asarray(_encoded(column).indices)


def used_codes(codes: NDArray[np.integer], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct codes among 0 to n - 1, ascending, and the position of each code.

    ``numpy.unique`` with ``return_inverse``, without a sort.
    """
    present = np.zeros(n, dtype=bool)
    present[codes] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[codes]


def without_views(kind: pa.DataType) -> pa.DataType:
    """Return a type of the same values that is no view: few functions take those of Polars."""
    return {"string_view": pa.string(), "binary_view": pa.binary()}.get(str(kind), kind)


def codes_into(index: pd.Index, column: pa.ChunkedArray) -> np.ndarray:
    """Return positions (n,) int64 of a text column's values in a unique index; -1: not in it."""
    import pandas as pd  # slow to import; loading a dataset does not need it

    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    pieces = [np.empty(0, dtype=np.int64)]
    for chunk in encoded.chunks:
        known = np.append(
            index.get_indexer(pd.Index(chunk.dictionary.to_pylist(), dtype=object)), -1
        )
        codes = chunk.indices.fill_null(len(known) - 1)  # null reads the last, -1
        pieces.append(known[np.asarray(codes)].astype(np.int64))
    return np.concatenate(pieces)


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    array = column.unify_dictionaries().combine_chunks()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _compact(table: pa.Table) -> pa.Table:
    """Drop unused values from the dictionaries, which every row group stores."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = _encoded(table[field.name])
            used, codes = used_codes(np.asarray(column.indices), len(column.dictionary))
            column = pa.DictionaryArray.from_arrays(
                pa.array(codes.astype(np.int32)), column.dictionary.take(pa.array(used))
            )
            table = table.set_column(i, field, column)
    return table


def oversized(
    path: Path, metadata: pq.FileMetaData, *, rows: int, columns: int, values: int
) -> str:
    """Say what a file states that no file of these sizes has; "" if nothing.

    For files of strangers, before any of their values is read: a few kilobytes can hold a billion
    rows, or unpack to gigabytes. The footer is not believed: each page's own header counts.

    Parameters
    ----------
    path : pathlib.Path
    metadata : pyarrow.parquet.FileMetaData
        Its footer.
    rows, columns, values : int
        The most there may be; values, of all columns.

    Raises
    ------
    ValueError
        A page is damaged, or of a kind that may unpack to any size.
    """
    for found, most, what in _sizes(path, metadata, rows, columns, values):
        if found > most:
            return f"it states {found:,} {what}, expected at most {most:,}; it is not read"
    return ""


def _sizes(
    path: Path, metadata: pq.FileMetaData, rows: int, columns: int, values: int
) -> Iterator[tuple[int, int, str]]:
    """Yield the sizes that a file states, each with its limit."""
    n = metadata.num_columns
    yield n, columns, "columns"
    for i in range(n):
        yield metadata.schema.column(i).length, _LONGEST_VALUE, "bytes per value of a column"
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    stated = max(metadata.num_rows, sum(group.num_rows for group in groups))
    yield stated, rows, "rows"
    yield stated * n, values, "values"
    most = stated * (_NAMES_BYTES + 8 * n) + _ALWAYS_BYTES
    yield sum(group.total_byte_size for group in groups), most, "bytes when unpacked"
    for group in groups:
        for i in range(n):  # of lists, a row may hold any number
            yield group.column(i).num_values, rows, "values in a column"
    unpacked = 0
    with path.open("rb") as file:
        for k in range(len(groups)):
            for i in range(n):
                for page in pages(file, metadata, k, i):
                    unpacked += page.unpacked
                    yield page.values, rows, "values in a page"
                    yield unpacked, most, "bytes when unpacked"


def nested(file: pq.ParquetFile) -> list[str]:
    """Name columns of lists or structs: a row of these may hold any number of values."""
    leaves = [file.schema.column(i).path for i in range(len(file.schema))]
    return [n for n in file.schema_arrow.names if any(leaf.startswith(f"{n}.") for leaf in leaves)]


def _read_groups(
    file: pq.ParquetFile, path: Path, groups: Sequence[int], columns: Sequence[str] | None = None
) -> pa.Table:
    """Read row groups as one table, unless one would take more memory than any of ours."""
    names = list(file.schema_arrow.names if columns is None else columns)
    if lists := nested(file):
        problem = f"columns of lists or structs: {', '.join(map(shorten, lists))}; remove them"
        raise TableError(str(path), [problem])
    with path.open("rb") as opened:
        repeating = [_repeating(file, path, opened, group, names) for group in groups]
    if not any(repeating):
        return file.read_row_groups(groups, columns=names)
    tables = [
        _read_repeating(file, path, group, names, of_group)
        for group, of_group in zip(groups, repeating, strict=True)
    ]
    return pa.concat_tables(tables)


def _refuse_above(most: int, found: int, path: Path, group: int, what: str) -> None:
    if found > most:
        problem = (
            f"row group {group} states {found:,} {what}, expected at most {most:,}; the table "
            "is not read: write it with `curate`"
        )
        raise TableError(str(path), [problem])


def _repeating(
    file: pq.ParquetFile, path: Path, opened: BinaryIO, group: int, names: Sequence[str]
) -> list[str]:
    """Check the sizes that a row group states; name columns where all rows may be long texts."""
    refuse_above = partial(_refuse_above, path=path, group=group)
    stated = file.metadata.row_group(group)
    refuse_above(_MOST_COLUMNS, stated.num_columns, what="columns")
    refuse_above(_MOST_ROWS, stated.num_rows, what="rows")
    refuse_above(_MOST_VALUES, stated.num_rows * len(names), what="values")
    refuse_above(_MOST_BYTES, stated.total_byte_size, what="bytes when unpacked")
    unpacked, repeating = 0, []
    for i in range(stated.num_columns):
        column = file.schema.column(i)
        if column.path not in names:
            continue
        refuse_above(_LONGEST_VALUE, column.length, what="bytes per value of a column")
        for page in pages(opened, file.metadata, group, i):
            unpacked += page.unpacked
            refuse_above(_MOST_ROWS, page.values, what="values in a page")
            refuse_above(_MOST_BYTES, unpacked, what="bytes when unpacked")
            is_long = page.is_dictionary and page.unpacked * stated.num_rows > _MOST_BYTES
            if is_long and column.physical_type == "BYTE_ARRAY":
                repeating.append(column.path)
    return repeating


def _read_repeating(
    file: pq.ParquetFile, path: Path, group: int, names: Sequence[str], repeating: Sequence[str]
) -> pa.Table:
    """Read a row group; one long text may be in all rows: count before they are written out."""
    with pq.ParquetFile(path, read_dictionary=repeating, page_checksum_verification=True) as other:
        table = other.read_row_group(group, columns=list(names))
    for name in repeating:
        for chunk in table[name].chunks:
            _refuse_above(_MOST_BYTES, _length(chunk), path, group, f"bytes in column {name}")
    return table.cast(pa.schema([file.schema_arrow.field(name) for name in table.column_names]))


def _length(array: pa.DictionaryArray) -> int:
    """Count the bytes of all its values."""
    import pyarrow.compute as pc  # slow to import

    lengths = np.append(np.asarray(pc.binary_length(array.dictionary).fill_null(0)), 0)
    return int(lengths[np.asarray(array.indices.fill_null(len(lengths) - 1))].sum(dtype=np.int64))


def fov_row_groups(path: Path, fovs: Collection[str]) -> list[int]:
    """Find the row groups of some fields of view by their statistics."""
    with _reading(path):
        metadata = pq.read_metadata(path)
    if "fov" not in metadata.schema.names:
        raise TableError(str(path), ["no column fov; expected a table written by `curate`"])
    column = metadata.schema.names.index("fov")
    found = []
    for i in range(metadata.num_row_groups):
        statistics = metadata.row_group(i).column(column).statistics
        if statistics is None or not statistics.has_min_max or statistics.min != statistics.max:
            problem = (
                f"row group {i} does not hold exactly one field of view (or has no statistics); "
                "write the table with `curate`"
            )
            raise TableError(str(path), [problem])
        if statistics.min in fovs:
            found.append(i)
    return found


def read_fovs(
    path: Path, fovs: Collection[str], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the row groups of some fields of view, one table each, in file order."""
    groups = fov_row_groups(path, fovs)
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        _require(file, path, columns or ())
        for i in groups:
            yield _read_groups(file, path, [i], columns)


def read_groups(path: Path) -> Iterator[pa.Table]:
    """Yield all row groups of a table, whatever they hold.

    Raises
    ------
    TableError
        The file is damaged.
    """
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for i in range(file.num_row_groups):
            yield _read_groups(file, path, [i])


def read_table(path: Path, fovs: Collection[str], columns: Sequence[str] | None = None) -> pa.Table:
    """Read the row groups of some fields of view as one table."""
    groups = fov_row_groups(path, fovs)
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        _require(file, path, columns or ())
        return _read_groups(file, path, groups, columns).unify_dictionaries()


def _require(file: pq.ParquetFile, path: Path, columns: Sequence[str]) -> None:
    present = file.schema_arrow.names
    if absent := [name for name in columns if name not in present]:
        problem = f"no columns {', '.join(absent)}; there are {', '.join(present)}"
        raise TableError(str(path), [problem])


def read_whole(path: Path) -> pa.Table:
    """Read a whole table and compare its page checksums.

    Raises
    ------
    TableError
        The file is damaged.
    """
    # Not pq.read_table, which imports pandas.
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = _read_groups(file, path, range(file.num_row_groups))
        table.validate(full=True)
        return table.unify_dictionaries()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise TableError for a damaged or missing file."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise TableError(ascii(path), [NOT_UTF8]) from error
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        problem = f"{path.name} cannot be read ({error}); remove the folder and make it again"
        raise TableError(str(path), [problem]) from error
