"""Rows put aside come back whole, by field of view, in order; a full disk is told."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gpattern_bench.curate.readers.spill import Spill
from gpattern_bench.errors import TableError


def blocks(n: int, count: int = 6) -> list[pd.DataFrame]:
    rng = np.random.Generator(np.random.Philox(3))
    return [
        pd.DataFrame(
            {
                "gene": rng.choice(["Actb", "Malat1", f"Only{b}", None], n),
                "fov": rng.choice(["1", "2", "10", "x003y012"], n),
                "x": rng.random(n, dtype=np.float32),
                "n": rng.integers(0, 9, n),
            }
        )
        for b in range(count)
    ]


@pytest.mark.parametrize("coded", [False, True])
def test_rows_come_back_by_field_of_view_in_their_order(tmp_path, coded):
    frames = blocks(500)
    with Spill(tmp_path / "rows") as spill:
        for frame in frames:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            if coded:
                gene = table["gene"].dictionary_encode()
                table = table.set_column(0, "gene", gene)
            spill.append(table)
        assert spill.fovs == ["1", "10", "2", "x003y012"]
        back = list(spill.read())
    assert [fov for fov, _ in back] == spill.fovs
    everything = pd.concat(frames)
    for fov, table in back:
        expected = everything[everything["fov"] == fov].drop(columns="fov")
        assert table["x"].type == pa.float32()
        genes = table["gene"].combine_chunks()
        assert sorted(genes.dictionary.to_pylist()) == sorted(expected["gene"].dropna().unique())
        got = table.to_pandas().astype({"gene": object})
        got["gene"] = got["gene"].where(got["gene"].notna(), None)
        expected = expected.astype({"gene": object}).reset_index(drop=True)
        expected["gene"] = expected["gene"].where(expected["gene"].notna(), None)
        pd.testing.assert_frame_equal(got, expected)


def test_a_field_of_view_more_is_no_file_more(tmp_path):
    n = 3000  # more than files that a process may open
    with Spill(tmp_path / "rows") as spill:
        spill.append(pa.table({"fov": [str(i) for i in range(n)], "x": np.arange(n)}))
        spill.append(pa.table({"fov": [str(i) for i in range(n)], "x": -np.arange(n)}))
        assert [path.name for path in tmp_path.iterdir()] == ["rows"]
        back = {fov: rows["x"].to_pylist() for fov, rows in spill.read()}
    assert back == {str(i): [i, -i] for i in range(n)}
    assert list(back) == sorted(back)


def test_nothing_put_aside_is_nothing_read(tmp_path):
    with Spill(tmp_path / "rows") as spill:
        spill.append(pa.table({"fov": pa.array([], pa.string()), "x": pa.array([], pa.int8())}))
        assert list(spill.read()) == []
    assert not (tmp_path / "rows").exists()


def test_it_can_be_read_twice_and_left_early(tmp_path):
    with Spill(tmp_path / "rows") as spill:
        spill.append(pa.table({"fov": ["b", "a"], "x": [1, 2]}))
        assert next(spill.read())[0] == "a"
        assert [rows["x"].to_pylist() for _, rows in spill.read()] == [[2], [1]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_a_clear_error():
    spill = Spill(Path("/dev/full"))
    with pytest.raises(TableError, match=r"No space left on device.*make room"):
        spill.append(pa.table({"fov": ["1"] * 10_000, "x": np.zeros(10_000)}))
