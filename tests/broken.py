"""Prediction files that are wrong: what is done to a good one, and a piece of what must be said."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KEY = b"gpattern_bench"


def of_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        table = pq.read_table(path)
        changed = change(table)
        metadata = {**(changed.schema.metadata or {}), KEY: table.schema.metadata[KEY]}
        pq.write_table(changed.replace_schema_metadata(metadata), path)

    return spoil


def of_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def of_metadata(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        table = pq.read_table(path)
        value = change(json.loads(table.schema.metadata[KEY]))
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        pq.write_table(table.replace_schema_metadata({KEY: text}), path)

    return spoil


def put(name: str, values) -> Callable[[Path], None]:
    """Replace a column by a function of it."""

    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, values(table[name]))

    return of_table(change)


def value_at(name: str, value: float | None, row: int = 0) -> Callable[[Path], None]:
    def values(column: pa.ChunkedArray) -> pa.Array:
        return pa.array(
            [value if i == row else v for i, v in enumerate(column.to_pylist())], pa.float32()
        )

    return put(name, values)


def cast(name: str, kind: pa.DataType) -> Callable[[Path], None]:
    return put(name, lambda column: pa.array(column.to_pylist(), pa.float64()).cast(kind))


def as_int(column: pa.ChunkedArray) -> pa.Array:
    return pa.array(range(len(column)), pa.int64())


def not_utf8(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    data = bytearray(array.buffers()[2].to_pybytes())
    data[0] = 0xFF
    return pa.Array.from_buffers(
        pa.string(), len(array), [None, array.buffers()[1], pa.py_buffer(bytes(data))]
    )


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damage_pages(path: Path) -> None:
    first = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    begin = first.dictionary_page_offset or first.data_page_offset
    data[begin : begin + 40] = bytes(40)
    path.write_bytes(data)


def pandas_index(path: Path) -> None:
    """As `frame.to_parquet` writes a frame that was sorted or filtered: with the index."""
    table = pq.read_table(path)
    indexed = pa.Table.from_pandas(table.to_pandas().sort_values("nuclear"))
    metadata = {**indexed.schema.metadata, KEY: table.schema.metadata[KEY]}
    pq.write_table(indexed.replace_schema_metadata(metadata), path)


HTML = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
CORPUS = {
    # rows
    "missing pairs": (of_table(lambda t: t[7:]), r"7 pairs are missing: .* and 2 more; score"),
    "one missing pair": (of_table(lambda t: t[1:]), "1 pair is missing: "),
    "no rows": (of_table(lambda t: t[:0]), r"\d+ pairs are missing"),
    "a repeated pair": (
        of_table(lambda t: pa.concat_tables([t, t[:1]])),
        "1 row is of pairs given more than once",
    ),
    "all repeated": (
        of_table(lambda t: pa.concat_tables([t, t])),
        r"\d+ rows are of pairs given more than once: .* more; keep one row",
    ),
    "an unknown cell": (
        put("cell_id", lambda c: pa.array(["nobody", *c.to_pylist()[1:]])),
        r"1 row is of pairs not of this split: \(nobody, ",
    ),
    "an unknown gene": (
        put("gene", lambda c: pa.array(["NOGENE", *c.to_pylist()[1:]])),
        r"not of this split: \(.*, NOGENE\)",
    ),
    "a null id": (
        put("cell_id", lambda c: pa.array([None, *c.to_pylist()[1:]], pa.string())),
        r"not of this split: \((None|nan), ",
    ),
    "ids padded with spaces": (
        put("cell_id", lambda c: pa.array([f"{v} " for v in c.to_pylist()])),
        "not of this split",
    ),
    "ids that are not UTF-8": (put("cell_id", not_utf8), "damaged.*UTF8"),
    # columns
    "a missing column": (
        of_table(lambda t: t.drop_columns("nuclear")),
        r"1 column is missing: nuclear \(there are: cell_id, .*\); add them",
    ),
    "missing columns": (
        of_table(lambda t: t.drop_columns(["gene", "nuclear"])),
        "2 columns are missing: gene, nuclear",
    ),
    "a column too many": (
        of_table(lambda t: t.append_column("polarised", t["nuclear"])),
        "too many: polarised; remove",
    ),
    "an index column": (pandas_index, "too many: __index_level_0__"),
    "another case": (
        of_table(lambda t: t.rename_columns([n.capitalize() for n in t.column_names])),
        "6 columns are missing: cell_id, gene",
    ),
    "a repeated pattern": (
        of_table(lambda t: t.append_column("nuclear", t["nuclear"])),
        "more than once: nuclear",
    ),
    "a repeated id": (
        of_table(lambda t: t.append_column("cell_id", t["cell_id"])),
        "more than once: cell_id",
    ),
    # types
    "float64": (cast("nuclear", pa.float64()), "nuclear is float64, expected float32; cast"),
    "float16": (cast("nuclear", pa.float16()), "nuclear is float16, expected float32"),
    "int": (
        put("nuclear", lambda c: pa.array([0] * len(c), pa.int8())),
        "nuclear is int8, expected float",
    ),
    "large int": (
        put("nuclear", lambda c: pa.array([2**60 + 1] * len(c), pa.int64())),
        "nuclear is int64, expected float",
    ),
    "bool": (
        put("nuclear", lambda c: pa.array([True] * len(c))),
        "nuclear is bool, expected float",
    ),
    "text": (
        put("nuclear", lambda c: pa.array(["0.5"] * len(c))),
        "nuclear is string, expected float",
    ),
    "list": (
        put("nuclear", lambda c: pa.array([[0.5]] * len(c))),
        r"nuclear is list<.*>, expected float",
    ),
    "null type": (
        put("nuclear", lambda c: pa.nulls(len(c))),
        "nuclear is null, expected float",
    ),
    "cell_id as int": (put("cell_id", as_int), "cell_id is int64, expected text; cast the ids"),
    "gene as int": (put("gene", as_int), "gene is int64, expected text"),
    # values
    "NaN": (
        value_at("nuclear", float("nan")),
        r"nuclear has 1 score .*NaN, null or infinite: \(.*, nan\)",
    ),
    "infinity": (value_at("nuclear", float("inf")), r"infinite: \(.*, inf\)"),
    "minus infinity": (value_at("nuclear", float("-inf")), r"infinite: \(.*, -inf\)"),
    "null score": (value_at("nuclear", None), "NaN, null or infinite"),
    "above one": (value_at("nuclear", 1.5), r"1 score outside \[0, 1\]: \(.*, 1\.5\); map them"),
    "below zero": (value_at("nuclear", -0.25), r"outside \[0, 1\]: \(.*, -0\.25\)"),
    "just above one": (
        value_at("nuclear", float(np.nextafter(np.float32(1), np.float32(2)))),
        r"outside \[0, 1\]",
    ),
    "logits": (
        put("nuclear", lambda c: pa.array(np.full(len(c), 7, np.float32))),
        r"\d+ scores outside \[0, 1\]: .* and \d+ more; map them",
    ),
    # metadata
    "another dataset": (
        of_metadata(lambda m: m | {"dataset": "u2os_gold"}),
        "metadata says dataset = 'u2os_gold', expected 'small'",
    ),
    "another version": (
        of_metadata(lambda m: m | {"version": "9"}),
        r"version = '9', expected '1\.2\.0'",
    ),
    "another split": (
        of_metadata(lambda m: m | {"split": "val"}),
        "split = 'val', expected 'test'",
    ),
    "an unknown protocol": (
        of_metadata(lambda m: m | {"protocol": "magic"}),
        "protocol: Input should be 'fit', 'untrained', 'transfer', 'simulation' or 'cv-cell'",
    ),
    "metadata with unknown keys": (
        of_metadata(lambda m: m | {"colour": 1}),
        "unreadable metadata `gpattern_bench`",
    ),
    "metadata without a key": (
        of_metadata(lambda m: {k: v for k, v in m.items() if k != "method"}),
        "unreadable metadata",
    ),
    "metadata that is a list": (of_metadata(lambda m: [m]), "unreadable metadata"),
    "broken JSON": (of_metadata(lambda m: b"{dataset:"), "unreadable metadata"),
    "metadata that is not UTF-8": (of_metadata(lambda m: b"\xff\xfe{"), "unreadable metadata"),
    "a seed that is text": (of_metadata(lambda m: m | {"seed": "one"}), "seed"),
    # bytes
    "an empty file": (of_bytes(lambda b: b""), "not a Parquet file: it is empty"),
    "truncated": (of_bytes(lambda b: b[:-100]), "truncated: its end is missing; copy it again"),
    "half": (of_bytes(lambda b: b[: len(b) // 2]), "truncated"),
    "only the magic": (of_bytes(lambda b: b"PAR1"), "damaged|truncated"),
    "HTML": (of_bytes(lambda b: HTML), "it is an HTML page, as a server sends"),
    "HTML with a mark": (of_bytes(lambda b: b"\xef\xbb\xbf" + HTML.lstrip()), "not a Parquet file"),
    "gzip": (of_bytes(gzip.compress), r"not a Parquet file: it begins with b['\"]\\x1f\\x8b"),
    "csv": (of_bytes(lambda b: b"cell_id,gene,nuclear\n"), "begins with b'cell_id,gene,nuclear"),
    "a LFS pointer": (of_bytes(lambda b: b"version https://git-lfs"), "begins with b'version http"),
    "damaged pages": (damage_pages, "the Parquet file is damaged"),
    "a damaged footer": (of_bytes(lambda b: b[:-400] + bytes(392) + b[-8:]), "damaged"),
    "a folder": (folder_instead, "it is a folder; expected a prediction file"),
    "no file": (Path.unlink, "there is no such file; expected a prediction file"),
}
