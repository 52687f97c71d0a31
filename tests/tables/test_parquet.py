"""Hashes depend on values alone; row groups never span two fields of view nor cut a cell."""

from itertools import groupby, pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import content_sha256

from gpattern_bench.errors import TableError
from gpattern_bench.tables.parquet import (
    codes_into,
    dictionary_codes,
    fov_row_groups,
    read_fovs,
    row_group_bounds,
    write_table,
)

TEXT = pa.dictionary(pa.int32(), pa.string())


def table(**columns: pa.Array) -> pa.Table:
    """Six molecules in three cells of two fields of view."""
    return pa.table(
        {
            "fov": pa.array(["a", "a", "a", "b", "b", "b"]).dictionary_encode(),
            "cell_id": pa.array(["1", "1", "2", "3", "3", "3"]).dictionary_encode(),
            "gene": pa.array(["A", "B", "A", "A", "C", "C"]).dictionary_encode(),
            "x": pa.array([0.0, 1.5, -2.0, 3.25, 4.0, 5.0], pa.float32()),
            "z": pa.array([None, 1.0, 2.0, None, 0.5, 3.0], pa.float32()),
            "wkb": pa.array([b"\0", b"", b"ab", b"a\0", None, b"b"]),
            "flag": pa.array([True, False, None, True, True, False]),
            "n": pa.array([1, 2, 3, 4, 5, 6], pa.int32()),
            **columns,
        }
    )


# Hashes


@pytest.mark.parametrize("n_chunks", [2, 3, 6])
def test_hash_ignores_chunks(n_chunks):
    step = 6 // n_chunks
    pieces = [table()[begin : begin + step] for begin in range(0, 6, step)]
    assert content_sha256(pa.concat_tables(pieces)) == content_sha256(table())
    assert content_sha256(pieces) == content_sha256(table())


def test_hash_ignores_empty_chunks():
    pieces = [table()[:0], table()[:4], table()[4:4], table()[4:]]
    assert content_sha256(pieces) == content_sha256(table())


def test_hash_of_an_empty_table_ignores_chunks():
    without_chunks = pa.table({"gene": pa.chunked_array([], pa.string())})
    assert content_sha256(without_chunks) == content_sha256(
        pa.table({"gene": pa.array([], pa.string())})
    )


def test_hash_of_an_empty_table_depends_on_the_type():
    empty = [pa.table({"a": pa.chunked_array([], kind)}) for kind in (pa.string(), pa.int32())]
    assert content_sha256(empty[0]) != content_sha256(empty[1])


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int64(), pa.large_string()),
    ],
    ids=str,
)
def test_hash_ignores_the_encoding_of_text(kind):
    gene = table()["gene"].cast(pa.string())
    coded = gene.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else gene.cast(kind)
    assert content_sha256(table(gene=coded)) == content_sha256(table())


def test_hash_ignores_the_order_and_unused_values_of_a_dictionary():
    gene = pa.DictionaryArray.from_arrays(
        pa.array([3, 2, 3, 3, 0, 0], pa.int32()), pa.array(["C", "unused", "B", "A"])
    )
    assert content_sha256(table(gene=gene)) == content_sha256(table())


def test_hash_ignores_where_nulls_of_a_dictionary_are_kept():
    in_codes = pa.DictionaryArray.from_arrays(pa.array([0, None], pa.int32()), pa.array(["A"]))
    in_values = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["A", None]))
    assert content_sha256(pa.table({"g": in_codes})) == content_sha256(pa.table({"g": in_values}))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "none"},
        {"compression": "snappy"},
        {"use_dictionary": False},
        {"data_page_version": "2.0"},
        {"row_group_size": 2},
        {"version": "1.0"},
        {"write_statistics": False},
        {"store_schema": False},
    ],
    ids=str,
)
def test_hash_ignores_how_parquet_was_written(tmp_path, options):
    path = tmp_path / "table.parquet"
    pq.write_table(table(), path, **options)
    assert content_sha256(pq.read_table(path)) == content_sha256(table())


def test_hash_survives_the_way_through_write_table(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(path, table(), max_rows=2)
    with pq.ParquetFile(path) as file:
        assert file.num_row_groups == 3
        pieces = [file.read_row_group(i) for i in range(3)]
    assert content_sha256(pieces) == content_sha256(table())


@pytest.mark.parametrize(
    "changed",
    [
        {"gene": pa.array(["A", "B", "A", "A", "C", "B"])},
        {"x": pa.array([0.0, 1.5, -2.0, 3.25, 4.0, np.nextafter(np.float32(5), 6)], pa.float32())},
        {"z": pa.array([0.0, 1.0, 2.0, None, 0.5, 3.0], pa.float32())},
        {"wkb": pa.array([b"\0", b"", b"ab", b"a\0", b"", b"b"])},
        {"wkb": pa.array([b"", b"\0", b"ab", b"a\0", None, b"b"])},
        {"flag": pa.array([True, False, False, True, True, False])},
        {"n": pa.array([1, 2, 3, 4, 6, 5], pa.int32())},
        {"n": pa.array([1, 2, 3, 4, 5, 6], pa.int64())},
        {"x": pa.array([0.0, 1.5, -2.0, 3.25, 4.0, 5.0], pa.float64())},
    ],
    ids=[
        "text",
        "last bit",
        "null and zero",
        "null and empty",
        "moved byte",
        "null and false",
        "order",
        "int64",
        "float64",
    ],
)
def test_hash_sees_every_change(changed):
    assert content_sha256(table(**changed)) != content_sha256(table())


def test_hash_sees_where_one_text_ends():
    first, second = pa.table({"t": ["ab", "c"]}), pa.table({"t": ["a", "bc"]})
    assert content_sha256(first) != content_sha256(second)


def test_hash_sees_text_against_bytes():
    assert content_sha256(pa.table({"t": ["a"]})) != content_sha256(pa.table({"t": [b"a"]}))


def test_hash_sees_column_names():
    assert content_sha256(table().rename_columns([*"abcdefgh"])) != content_sha256(table())


def test_hash_sees_the_order_of_rows():
    assert content_sha256(table().take([1, 0, 2, 3, 4, 5])) != content_sha256(table())


def test_hash_sees_a_missing_row_and_a_missing_column():
    hashes = {content_sha256(t) for t in (table(), table()[:5], table().drop_columns("n"))}
    assert len(hashes) == 3


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
def test_hash_takes_negative_zero_for_zero(kind):
    zeros = [pa.table({"x": pa.array([zero, None], kind)}) for zero in (0.0, -0.0)]
    assert content_sha256(zeros[0]) == content_sha256(zeros[1])


def test_hash_is_pinned():
    # Registry, manifests and submissions hold such hashes: the scheme must never change.
    assert (
        content_sha256(table())
        == "a370cb63d18d4b826664b8280a22021ef6ed858381e535a06421bb5a5cc8c8e5"
    )


# Row groups

_cells = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=25)


def _rows(cells: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """FOV and cell per row from (FOV, molecules) per cell, sorted."""
    cells = sorted(cells)
    sizes = [size for _, size in cells]
    fov = np.repeat(np.array([fov for fov, _ in cells], dtype=int), sizes)
    return fov, np.repeat(np.arange(len(cells)), sizes)


@given(cells=_cells, max_rows=st.integers(1, 20))
def test_row_groups_hold_whole_cells_of_one_fov(cells, max_rows):
    fov, cell = _rows(cells)
    bounds = row_group_bounds(fov, cell, max_rows)
    assert bounds[0] == 0
    assert bounds[-1] == len(fov)
    assert all(begin < end for begin, end in pairwise(bounds))
    for begin, end in pairwise(bounds):
        assert len(set(fov[begin:end])) == 1
        assert end - begin <= max_rows or len(set(cell[begin:end])) == 1
    for cut in bounds[1:-1]:
        assert cell[cut - 1] != cell[cut]


@given(cells=_cells, max_rows=st.integers(1, 20))
def test_row_groups_are_as_few_as_possible(cells, max_rows):
    fov, cell = _rows(cells)
    fewest = 0
    for _, in_fov in groupby(sorted(cells), key=lambda pair: pair[0]):
        room = 0
        for _, size in in_fov:
            if size > room:
                fewest, room = fewest + 1, max_rows
            room -= size
    assert len(row_group_bounds(fov, cell, max_rows)) - 1 == fewest


def test_same_cell_id_in_neighbouring_fovs_is_cut():
    fov, cell = np.array([0, 0, 1, 1]), np.array([7, 7, 7, 7])
    assert row_group_bounds(fov, cell, 10) == [0, 2, 4]


def test_each_row_group_stores_only_its_own_names(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(path, table())
    first = next(read_fovs(path, ["a"]))
    assert first.schema.field("gene").type == TEXT
    assert first["gene"].chunk(0).dictionary.to_pylist() == ["A", "B"]


def test_tables_without_cells_have_a_row_group_per_fov(tmp_path):
    path = tmp_path / "splits.parquet"
    write_table(path, pa.table({"fov": ["a", "b"], "split": ["train", "test"]}))
    assert pq.read_metadata(path).num_row_groups == 2


def test_empty_table_can_be_written(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(path, table()[:0])
    assert len(pq.read_table(path)) == 0
    assert list(read_fovs(path, ["a"])) == []


def test_read_fovs_reads_the_asked_fields_of_view(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(path, table(), max_rows=2)
    assert fov_row_groups(path, {"a"}) == [0, 1]
    assert fov_row_groups(path, {"b", "absent"}) == [2]
    read = pa.concat_tables(read_fovs(path, {"b"}, ["cell_id", "x"]))
    assert read.column_names == ["cell_id", "x"]
    assert read["x"].to_pylist() == [3.25, 4.0, 5.0]


def test_read_fovs_refuses_an_unknown_column(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(path, table())
    with pytest.raises(TableError, match="CellComp"):
        list(read_fovs(path, ["a"], ["x", "CellComp"]))


@pytest.mark.parametrize("options", [{}, {"row_group_size": 3, "write_statistics": False}])
def test_files_whose_row_groups_do_not_tell_their_fov_are_refused(tmp_path, options):
    path = tmp_path / "table.parquet"
    pq.write_table(table(), path, **options)
    with pytest.raises(TableError, match=r"row group 0 .*\n?.*curate"):
        fov_row_groups(path, ["a"])


def test_file_without_a_fov_column_is_refused(tmp_path):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"x": [1.0]}), path)
    with pytest.raises(TableError, match="fov"):
        fov_row_groups(path, ["a"])


# Codes


def test_dictionary_codes_are_equal_where_the_values_are():
    column = pa.chunked_array([pa.array(["b", "a"]), pa.array(["a", "b"])])
    for text in (column, pa.chunked_array([chunk.dictionary_encode() for chunk in column.chunks])):
        codes = dictionary_codes(text)
        assert codes[0] == codes[3] != codes[1] == codes[2]


@pytest.mark.parametrize("encoded", [False, True])
def test_codes_into_gives_positions(encoded):
    column = pa.chunked_array([["B", None, "A"], ["Z", "B"]])
    if encoded:  # each chunk with a dictionary of its own
        column = pa.chunked_array([chunk.dictionary_encode() for chunk in column.chunks])
    codes = codes_into(pd.Index(["A", "B", "C"]), column)
    assert codes.dtype == np.int64
    assert codes.tolist() == [1, -1, 0, -1, 1]


def test_codes_into_knows_nulls_inside_a_dictionary():
    array = pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int32()), pa.array(["A", None]))
    assert codes_into(pd.Index(["A"]), pa.chunked_array([array])).tolist() == [-1, 0]


def test_codes_into_of_nothing():
    assert codes_into(pd.Index(["A"]), pa.chunked_array([], pa.string())).tolist() == []
