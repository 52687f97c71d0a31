"""Sort rows by field of view on disk, for releases larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from gpattern_bench.curate.release import writing
from gpattern_bench.tables.parquet import used_codes

__all__ = ["Spill"]


class Spill:
    """Sort rows by field of view on disk.

    Writes one Arrow IPC file; memory holds only the positions of rows and the distinct values of
    text columns. Use as a context manager. The owner of the folder removes the file. A closed
    Spill may be pickled.

    Parameters
    ----------
    path : pathlib.Path
        The file to write.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Spill(Path(folder) / "rows.arrow") as spill:
    ...     spill.append(pa.table({"fov": ["9", "10", "9"], "x": [1.0, 2.0, 3.0]}))
    ...     spill.append(pa.table({"fov": ["10"], "x": [4.0]}))
    ...     {fov: rows["x"].to_pylist() for fov, rows in spill.read()}
    {'10': [2.0, 4.0], '9': [1.0, 3.0]}
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._codes: dict[str, dict[str | None, int]] = {}  # text column -> value -> code
        self._batches: dict[str, list[int]] = {}  # field of view -> its batches in the file
        self._written = 0
        self._schema: pa.Schema | None = None
        self._writer: pa.RecordBatchFileWriter | None = None

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def fovs(self) -> list[str]:
        """Fields of view so far, sorted as text."""
        return sorted(self._batches)

    def append(self, table: pa.Table) -> None:
        """Append rows; all tables have the same columns, one of them ``fov`` (text).

        Text may be plain or dictionary-encoded; only ``fov`` must not be null.

        Raises
        ------
        TableError
            The file cannot be written, for example because the disk is full.
        """
        if not len(table):
            return
        codes = np.asarray(self._without_dictionary("fov", table["fov"]))
        names = list(self._codes["fov"])
        others = [name for name in table.column_names if name != "fov"]
        rows = pa.table({name: self._without_dictionary(name, table[name]) for name in others})
        if (codes[1:] < codes[:-1]).any():
            order = np.argsort(codes, kind="stable")
            rows, codes = rows.take(pa.array(order)), codes[order]
        bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
        for begin, end in pairwise(bounds):
            self._write(str(names[codes[begin]]), rows.slice(begin, end - begin))

    def read(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield fields of view, sorted as text ("1" < "10" < "2"), each with its rows as appended.

        Drops the column ``fov``. Text is dictionary-encoded, without unused values.
        """
        self.close()
        if self._batches:
            with self._opened() as reader:
                for fov in self.fovs:
                    yield fov, self._rows(fov, reader)

    def rows(self, fov: str) -> pa.Table:
        """Read the rows of one field of view, as :meth:`read` does; the file must be closed."""
        with self._opened() as reader:
            return self._rows(fov, reader)

    @contextmanager
    def _opened(self) -> Iterator[pa.RecordBatchFileReader]:
        # Not a memory map: its pages would count as this process's memory.
        with pa.OSFile(str(self._path), "rb") as file, pa.ipc.open_file(file) as reader:
            yield reader

    def _rows(self, fov: str, reader: pa.RecordBatchFileReader) -> pa.Table:
        table = pa.Table.from_batches([reader.get_batch(i) for i in self._batches[fov]])
        for i, name in enumerate(table.column_names):
            if name in self._codes:
                values = pa.array(list(self._codes[name]), pa.string())
                table = table.set_column(i, name, _encoded(table[name], values))
        return table

    def _without_dictionary(self, name: str, column: pa.ChunkedArray) -> pa.Array:
        """Convert text to codes into the values so far; return other columns as they are."""
        kind = column.type
        if not pa.types.is_dictionary(kind):
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                return column.combine_chunks()
            column = column.dictionary_encode()
        codes = self._codes.setdefault(name, {})
        pieces = [np.empty(0, np.int32)]
        for chunk in column.chunks:
            known = [codes.setdefault(value, len(codes)) for value in chunk.dictionary.to_pylist()]
            if chunk.indices.null_count:
                known.append(codes.setdefault(None, len(codes)))
            at = np.asarray(chunk.indices.fill_null(len(known) - 1))
            pieces.append(np.asarray(known, np.int32)[at])
        return pa.array(np.concatenate(pieces))

    def _write(self, fov: str, rows: pa.Table) -> None:
        with writing(self._path):
            if self._writer is None:
                self._schema = rows.schema
                self._writer = pa.ipc.new_file(str(self._path), rows.schema)
            for batch in rows.cast(self._schema).combine_chunks().to_batches():
                self._writer.write_batch(batch)
                self._batches.setdefault(fov, []).append(self._written)
                self._written += 1

    def close(self) -> None:
        """Close the file for writing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with writing(self._path):
                writer.close()


def _encoded(column: pa.ChunkedArray, values: pa.Array) -> pa.DictionaryArray:
    used, codes = used_codes(column.to_numpy(), len(values))
    chosen = values.take(pa.array(used))
    if not chosen.null_count:
        return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), chosen)
    return chosen.take(pa.array(codes)).dictionary_encode()  # a null is not in a dictionary
