"""Files as an attacker makes them: each is refused with its reason, before it does any harm."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
import yaml
from exports import CELLS, DETECTED, FLAT, detected, write_merscope
from pytest_httpserver import HTTPServer
from requests.adapters import HTTPAdapter
from samples import PATIENCE_S, dataset_of, metadata_of, random_scores, small_dataset

import gpattern_bench
from gpattern_bench.base.files import file_sha256
from gpattern_bench.base.outlines import parse_wkb, parse_wkt
from gpattern_bench.board.metadata import PredictionFile
from gpattern_bench.board.submission import read_submissions
from gpattern_bench.board.submit import submit_run
from gpattern_bench.curate.build import curate
from gpattern_bench.curate.readers.bento import read_bento
from gpattern_bench.curate.readers.label_images import label_image
from gpattern_bench.curate.readers.spatialdata import read_spatialdata
from gpattern_bench.curate.release import Release, by_fov
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.curate.simulate.releases import write_bento_h5ad
from gpattern_bench.data.dataset import Dataset, load_dataset
from gpattern_bench.errors import (
    FetchError,
    GPatternBenchError,
    MethodError,
    PredictionError,
    SourceError,
    SubmissionError,
    TableError,
)
from gpattern_bench.evaluate.calls import write_calls
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.methods import get_method
from gpattern_bench.methods._forest import Forest
from gpattern_bench.methods.gpsnet.config import Config
from gpattern_bench.methods.locfish.method import LabelClusters
from gpattern_bench.predictions import write_predictions
from gpattern_bench.runs.saved_model import Model, load_model, predict_tables, save_model
from gpattern_bench.sources.fetch import fetch
from gpattern_bench.sources.public import NotPublicError, check_public, public_session
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import SourceFile
from gpattern_bench.tables.parquet import read_groups

KEY = b"gpattern_bench"


@pytest.fixture(scope="module")
def ds(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def valid(ds, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("valid") / "test-seed0.parquet"
    return write_predictions(path, random_scores(ds), ds, "test", method="mine")


# Prediction files


def rewritten(change: Callable[[pa.Table], pa.Table], **options) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        table = pq.read_table(path)
        changed = change(table).replace_schema_metadata({KEY: table.schema.metadata[KEY]})
        pq.write_table(changed, path, compression="zstd", store_schema=False, **options)

    return spoil


def repeated(table: pa.Table, rows: int) -> pa.Table:
    return table.take(pa.array(np.zeros(rows, np.int64)))


def named(table: pa.Table, name: str, rows: int) -> pa.Table:
    return repeated(table, rows).set_column(0, "cell_id", one_for_all(name, rows))


def one_for_all(value: object, rows: int) -> pa.DictionaryArray:
    """Rows that all have one value, as a dictionary stores it: once."""
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [value])


def with_column(make: Callable[[], pa.Array], **options) -> Callable[[Path], None]:
    def change(table: pa.Table) -> pa.Table:
        values = make()
        return repeated(table, len(values)).append_column("more", values)

    return rewritten(change, **options)


def varint(value: int, length: int = 0) -> bytes:
    """An integer as Thrift's compact protocol writes it, filled up to a length."""
    value, found = 2 * value, []
    while value > 127 or len(found) + 1 < length:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def lie(path: Path) -> None:
    """Let the footer say that large columns unpack to ten bytes; the pages stay as they are."""
    data = path.read_bytes()
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[at:]
    metadata = pq.read_metadata(path)
    for k in range(metadata.num_row_groups):
        group = metadata.row_group(k)
        columns = [group.column(i) for i in range(group.num_columns)]
        sizes = [each.total_uncompressed_size for each in columns]
        for size in (size for size in (*sizes, group.total_byte_size) if size > 1 << 18):
            footer = footer.replace(varint(size), varint(10, len(varint(size))))
    path.write_bytes(data[:at] + footer)


def long_page(path: Path) -> None:
    """A value of 128 MiB, in four kilobytes, of a column that is ten bytes long by the footer."""
    with_column(lambda: pa.array([b"\0" * (1 << 27)]), use_dictionary=False)(path)
    lie(path)


BOMBS = {
    "a name of a megabyte in all rows": (
        rewritten(lambda t: named(t, "x" * (1 << 20), 5_000)),
        r"column cell_id has a value of 1,048,576 bytes; names .* at most 1,000",
    ),
    "two million rows": (
        rewritten(lambda t: repeated(t, 2_000_000)),
        r"states 2,000,000 rows, expected at most 1\d,\d{3}; it is not read",
    ),
    "more columns than anybody has": (
        rewritten(lambda t: pa.table({f"c{k}": t["nuclear"] for k in range(1500)})),
        "states 1,500 columns, expected at most 1,000; it is not read",
    ),
    "a list of a million values in one row": (
        with_column(lambda: pa.array([np.zeros(1_000_000)], pa.list_(pa.float64()))),
        "states 1,000,000 values in a column, expected at most",
    ),
    "values of a megabyte each": (
        with_column(lambda: pa.array([b"x" * (1 << 20)], pa.binary(1 << 20))),
        "states 1,048,576 bytes per value of a column",
    ),
    "a page far longer than its footer says": (long_page, "states 134,.* bytes when unpacked"),
    "a list of a text of four megabytes, in all rows": (
        with_column(
            lambda: pa.ListArray.from_arrays(
                np.arange(5001, dtype=np.int32), one_for_all("x" * (4 << 20), 5000)
            )
        ),
        "1 column too many: more; remove",
    ),
    "texts that repeat the beginning of the one before": (
        with_column(
            lambda: pa.array(["x" * (1 << 20)] * 500),
            use_dictionary=False,
            column_encoding={"more": "DELTA_BYTE_ARRAY"},
        ),
        "a page in encoding 7, expected one of PLAIN",
    ),
    "lengths of texts without texts": (
        with_column(
            lambda: pa.array([""] * 500),
            use_dictionary=False,
            column_encoding={"more": "DELTA_LENGTH_BYTE_ARRAY"},
        ),
        "a page in encoding 6, expected one of PLAIN",
    ),
    "names in more columns than anybody has": (
        rewritten(lambda t: pa.table({f"c{k}": t["gene"] for k in range(100)})),
        "100 columns of text, expected cell_id and gene",
    ),
    "more values than anybody has": (
        rewritten(lambda t: pa.table({f"c{k}": repeated(t, 9_000)["nuclear"] for k in range(900)})),
        "states 8,100,000 values, expected at most",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_prediction_file_that_unpacks_to_far_more_is_refused(ds, valid, tmp_path, name):
    spoil, expected = BOMBS[name]
    path = Path(shutil.copy(valid, tmp_path))
    spoil(path)
    with pytest.raises(PredictionError, match=expected):
        Evaluator(ds).check(path).require()
    assert path.stat().st_size < 1 << 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
def test_prediction_files_are_refused_in_bounded_memory(ds, valid, tmp_path):
    """Gigabytes in a few kilobytes: each is refused before it is unpacked."""
    paths = []
    for k, (spoil, _) in enumerate(BOMBS.values()):
        paths.append(Path(shutil.copy(valid, tmp_path / f"{k}.parquet")))
        spoil(paths[-1])
    code = textwrap.dedent(
        """
        import re, sys
        from gpattern_bench import Evaluator
        from gpattern_bench.data.dataset import Dataset, load_dataset
        from gpattern_bench.errors import PredictionError
        from pathlib import Path

        def highest():  # kB of memory so far
            return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

        evaluator = Evaluator(Dataset(Path(sys.argv[1])))
        evaluator.eval(sys.argv[2])
        before = highest()
        for path in sys.argv[3:]:
            try:
                evaluator.check(path).require()
            except PredictionError:
                print(highest() - before)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ds.folder, valid, *paths],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    grown = [int(line) for line in done.stdout.splitlines()]
    assert len(grown) == len(paths), done.stderr
    assert max(grown) < 100_000
    assert max(path.stat().st_size for path in paths) < 1 << 20


def test_files_as_others_write_them_are_read_as_before(ds, valid, tmp_path):
    """Text in dictionaries, large text and small row groups: the table that pyarrow reads."""
    table = pq.read_table(valid)
    kinds = {
        "large": pa.large_string(),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
    }
    expected = Evaluator(ds).eval(valid)
    for name, kind in kinds.items():
        other = table.set_column(0, "cell_id", table["cell_id"].cast(kind))
        path = tmp_path / f"{name}.parquet"
        pq.write_table(other, path, row_group_size=7)
        found = Evaluator(ds).check(path)
        np.testing.assert_array_equal(found.require(), Evaluator(ds).check(valid).require())
    assert Evaluator(ds).eval(valid) == expected


# Tables


@pytest.fixture
def tables(ds, tmp_path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(ds.folder, tmp_path / "small"))


def put_table(folder: Path, name: str, table: pa.Table, **options) -> None:
    """Replace a table by one of the same row groups, and say its new size in the manifest."""
    path = folder / name
    old = pq.ParquetFile(path)
    sizes = [old.metadata.row_group(i).num_rows for i in range(old.num_row_groups)]
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        at = 0
        for size in sizes:
            writer.write_table(table[at : at + size], row_group_size=size)
            at += size
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["bytes"] = path.stat().st_size
    manifest["files"][name]["sha256"] = file_sha256(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_labels_altered_in_place_are_not_scored(ds, tables, valid):
    Evaluator(Dataset(tables)).eval(valid)
    table = pq.read_table(tables / "labels.parquet")
    flipped = pc.invert(table["nuclear"])
    at = table.column_names.index("nuclear")
    put_table(tables, "labels.parquet", table.set_column(at, table.schema.field(at), flipped))
    Dataset(tables)  # its sizes are those of the manifest
    with pytest.raises(TableError, match=r"labels\.parquet: expected content hash .* curated"):
        Evaluator(Dataset(tables))
    assert Evaluator(ds).eval(valid)["n"] > 0


def test_splits_altered_in_place_are_not_scored(tables):
    table = pq.read_table(tables / "splits.parquet")
    split = pa.array(["test" if s == "train" else s for s in table["split"].to_pylist()])
    put_table(tables, "splits.parquet", table.set_column(1, table.schema.field(1), split))
    with pytest.raises(TableError, match=r"splits\.parquet: expected content hash"):
        Evaluator(Dataset(tables))


def test_hashes_of_a_registered_dataset_are_the_registrys(tables):
    manifest = json.loads((tables / "manifest.json").read_text())
    manifest |= {"name": "synthetic", "version": "1.0.0"}
    (tables / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TableError, match=r"labels\.parquet: expected content hash"):
        Evaluator(Dataset(tables))


def wkb(kind: int, count: int, rest: bytes = b"") -> bytes:
    return b"\x01" + kind.to_bytes(4, "little") + count.to_bytes(4, "little") + rest


SQUARE = shapely.to_wkb(shapely.box(0, 0, 1, 1))
OUTLINES = {
    "nested collections": (wkb(7, 1) * 200_000 + SQUARE, "nested more than 8 deep"),
    "collections in a MultiPolygon": (wkb(6, 1, wkb(7, 1) * 200_000), "nested more than 8"),
    "four billion polygons": (wkb(6, 2**32 - 1, SQUARE), "cut off after"),
    "four billion rings": (wkb(3, 2**32 - 1, SQUARE), "cut off after"),
    "four billion vertices": (wkb(3, 1, (2**32 - 1).to_bytes(4, "little")), "cut off after"),
    "a curve": (wkb(10, 1, SQUARE), "geometry type 10"),
    "an unknown byte order": (b"\x07" + SQUARE[1:], "byte order 7"),
    "nothing": (b"", "cut off after 0 bytes"),
}


@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_that_would_end_the_process_is_refused(name):
    value, expected = OUTLINES[name]
    with pytest.raises(ValueError, match=expected):
        parse_wkb(np.array([SQUARE, value], object))
    [good, bad, none] = parse_wkb(np.array([SQUARE, value, None], object), on_invalid="ignore")
    assert (good.area, bad, none) == (1.0, None, None)


def test_outlines_are_parsed_as_shapely_does():
    shapes = [
        shapely.box(0, 0, 1, 1),
        shapely.box(0, 0, 9, 9) - shapely.box(2, 2, 3, 3),
        shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(2, 2, 3, 3)]),
        shapely.GeometryCollection([shapely.Point(1, 2), shapely.LineString([(0, 0), (1, 1)])]),
        shapely.Polygon([(0, 0, 1), (1, 0, 1), (1, 1, 1)]),
        shapely.Polygon(),
    ]
    for order in (0, 1):
        for flavor in ("iso", "extended"):
            values = shapely.to_wkb(
                shapely.set_srid(shapes, 4326 * order),
                byte_order=order,
                flavor=flavor,
                include_srid=flavor == "extended",
            )
            found = parse_wkb(np.array([*values, None], object))
            assert shapely.equals_exact(found[:-1], shapes).all()
            assert found[-1] is None


def test_nested_wkt_is_refused():
    deep = "GEOMETRYCOLLECTION(" * 100_000 + "POINT (0 0)" + ")" * 100_000
    with pytest.raises(ValueError, match="nested collections"):
        parse_wkt(np.array(["POLYGON ((0 0, 1 0, 1 1, 0 0))", deep], object))


def test_tables_with_such_an_outline_are_refused(tables):
    table = pq.read_table(tables / "cells.parquet")
    at = table.column_names.index("cell_boundary")
    values = [OUTLINES["nested collections"][0], *table["cell_boundary"].to_pylist()[1:]]
    column = pa.array(values, pa.binary())
    put_table(tables, "cells.parquet", table.set_column(at, table.schema.field(at), column))
    damaged = Dataset(tables)
    with pytest.raises(TableError, match="nested more than 8 deep"):
        damaged.cells()
    with pytest.raises(TableError, match="nested more than 8 deep"):
        list(damaged.iter_cells())


def with_outlines(folder: Path, outlines: Callable[[int], list[bytes]], **options) -> None:
    table = pq.read_table(folder / "cells.parquet")
    at = table.column_names.index("cell_boundary")
    column = pa.array(outlines(len(table)), pa.binary())
    put_table(
        folder, "cells.parquet", table.set_column(at, table.schema.field(at), column), **options
    )


LONG = shapely.to_wkb(shapely.Point(0, 0).buffer(1, quad_segs=5_000))


def test_a_table_with_one_long_outline_in_all_rows_is_refused(tables, monkeypatch):
    """As a dictionary stores it, once; a gigabyte here is a megabyte."""
    monkeypatch.setattr("gpattern_bench.tables.parquet._MOST_BYTES", 2 * len(LONG))
    with_outlines(tables, lambda n: [LONG] * n, compression="zstd")
    expected = r"row group 0 states [\d,]+ bytes in column cell_boundary, expected at most"
    with pytest.raises(TableError, match=expected):
        list(read_groups(tables / "cells.parquet"))


def test_a_table_with_some_long_outlines_is_read(tables, monkeypatch):
    monkeypatch.setattr("gpattern_bench.tables.parquet._MOST_BYTES", 2 * len(LONG))
    with_outlines(tables, lambda n: [LONG, *[SQUARE] * (n - 1)], compression="zstd")
    [first, *_] = read_groups(tables / "cells.parquet")
    assert first.equals(pq.ParquetFile(tables / "cells.parquet").read_row_group(0))


def test_a_table_whose_footer_lies_is_refused(tables, monkeypatch):
    monkeypatch.setattr("gpattern_bench.tables.parquet._MOST_BYTES", 1 << 18)
    with_outlines(tables, lambda n: [LONG] * n, compression="zstd", use_dictionary=False)
    lie(tables / "cells.parquet")
    with pytest.raises(TableError, match=r"states [\d,]+ bytes when unpacked, expected at most"):
        list(read_groups(tables / "cells.parquet"))


def test_a_table_of_lists_is_refused(tables):
    path = tables / "cells.parquet"
    pq.write_table(pa.table({"fov": ["1"], "x": [[1.0, 2.0]]}), path)
    with pytest.raises(TableError, match="columns of lists or structs: x; remove them"):
        list(read_groups(path))


# Releases


@pytest.fixture
def h5ad(tmp_path) -> Path:
    release = simulate(1, n_fovs=2, cells_per_fov=2, n_genes=4, mean_molecules=20)
    write_bento_h5ad(by_fov(release), tmp_path / "cells.h5ad", PATTERNS)
    read_bento(tmp_path / "cells.h5ad", PATTERNS)
    return tmp_path / "cells.h5ad"


def external_link(file: h5py.File, secret: Path) -> None:
    del file["obs/batch"]
    file["obs/batch"] = h5py.ExternalLink(secret, "/x")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["out"] = h5py.SoftLink(f"/{secret.name}")


def external_storage(file: h5py.File, secret: Path) -> None:
    n = len(file["uns/points/x"])
    del file["uns/points/x"]
    file["uns/points"].create_dataset("x", (n,), "f8", external=[(str(secret), 0, 8 * n)])


def virtual_dataset(file: h5py.File, secret: Path) -> None:
    n = len(file["uns/points/x"])
    del file["uns/points/x"]
    layout = h5py.VirtualLayout((n,), "f8")
    layout[:] = h5py.VirtualSource(secret, "x", shape=(n,))
    file["uns/points"].create_virtual_dataset("x", layout)


def billions(file: h5py.File, _: Path) -> None:
    del file["uns/points/x"]
    file["uns/points"].create_dataset("x", (10**12,), "f8", chunks=(1 << 16,))


HDF5 = {
    "an external link": (external_link, r"obs/batch is a link \(external\)"),
    "a soft link": (soft_link, r"/out is a link \(soft\)"),
    "external storage": (external_storage, "values of /uns/points/x lie in other files"),
    "a virtual dataset": (virtual_dataset, "values of /uns/points/x lie in other files"),
    "terabytes of nothing": (billions, "x states 8,000,000,000,000 bytes in a file of"),
}


@pytest.mark.parametrize("name", HDF5)
def test_an_h5ad_that_leads_elsewhere_is_refused(h5ad, tmp_path, name):
    spoil, expected = HDF5[name]
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["x"] = np.zeros(9)
    with h5py.File(h5ad, "a") as file:
        spoil(file, tmp_path / "secret.h5")
    with pytest.raises(SourceError, match=expected):
        read_bento(h5ad, PATTERNS)


def test_merscope_boundaries_that_lead_elsewhere_are_refused(tmp_path):
    folder = write_merscope(tmp_path / "region", detected(DETECTED), FLAT, hdf5=True)
    path = folder / "cell_boundaries" / "feature_data_0.hdf5"
    with h5py.File(path, "a") as file:
        file["featuredata/other"] = h5py.ExternalLink("/etc/passwd", "/x")
    recipe = Recipe(format="merscope", path="region", patterns=PATTERNS, split="test")
    with pytest.raises(SourceError, match=r"featuredata/other is a link \(external\)"):
        curate(recipe, tmp_path, tmp_path / "out", name="out", version="1.0.0")


def test_outlines_on_the_globe_are_refused(tmp_path):
    folder = write_merscope(tmp_path / "region", detected(DETECTED), FLAT)
    path = folder / "cell_boundaries.parquet"
    table = pq.read_table(path)
    recipe = Recipe(format="merscope", path="region", patterns=PATTERNS, split="test")

    def of(about: dict) -> Path:
        geo = {"version": "1.1.0", "primary_column": "Geometry", "columns": {"Geometry": about}}
        pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        return curate(recipe, tmp_path, out, name="out", version="1.0.0")

    assert len(Dataset(of({"encoding": "WKB", "crs": None})).cells()) == len(CELLS)
    with pytest.raises(SourceError, match="reference system 'WGS 84', expected none"):
        of({"encoding": "WKB", "crs": {"name": "WGS 84", "id": {"code": 4326}}})
    with pytest.raises(SourceError, match="stored as 'polygon', expected WKB"):
        of({"encoding": "polygon"})


def test_an_image_that_unpacks_to_far_more_is_refused(tmp_path):
    path = tmp_path / "CellLabels_F001.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint16))
    assert label_image(path).shape == (8, 8)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(60_000)
    with pytest.raises(SourceError, match=r"states 3,600,000,000 pixels .* it is not read"):
        label_image(path)


def test_an_image_reads_no_other_files(tmp_path):
    plane = np.arange(64, dtype=np.uint16).reshape(8, 8)
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="8" SizeY="8" SizeZ="2" '
        'SizeC="1" SizeT="1"><TiffData FirstZ="0" IFD="0" PlaneCount="1">'
        '<UUID FileName="one.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstZ="1" IFD="0" PlaneCount="1">'
        '<UUID FileName="two.ome.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "one.ome.tif", plane, description=ome)
    tifffile.imwrite(tmp_path / "two.ome.tif", plane + 1)
    np.testing.assert_array_equal(label_image(tmp_path / "one.ome.tif"), plane)


def spatialdata_of(folder: Path) -> Path:
    """A zarr (format 2) with the metadata of its arrays, and no values."""
    element = {"coordinateTransformations": []}
    points = folder / "points" / "transcripts"
    points.mkdir(parents=True)
    keys = {"feature_key": "gene", "instance_key": "cell"}
    (points / ".zattrs").write_text(json.dumps(element | {"spatialdata_attrs": keys}))
    shapes = folder / "shapes" / "cell_boundaries"
    shapes.mkdir(parents=True)
    (shapes / ".zattrs").write_text(json.dumps(element))
    (shapes / ".zgroup").write_text('{"zarr_format": 2}')
    for name, shape in {"coords": [4, 2], "offset0": [2], "offset1": [2], "Index": [1]}.items():
        put_array(shapes, name, shape=shape, chunks=shape)
    return folder


def put_array(group: Path, name: str, **changes) -> None:
    about = {
        "zarr_format": 2,
        "dtype": "<f8" if name == "coords" else "<i8",
        "fill_value": 0,
        "order": "C",
        "compressor": None,
        "filters": None,
    }
    (group / name).mkdir(exist_ok=True)
    (group / name / ".zarray").write_text(json.dumps(about | changes))


PICKLED = {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]}


def zarr_pickle(group: Path) -> None:
    put_array(group, "Index", shape=[1], chunks=[1], **PICKLED)


def zarr_pickle_consolidated(group: Path) -> None:
    metadata = {"Index/.zarray": {"zarr_format": 2, "shape": [1], "chunks": [1], **PICKLED}}
    text = json.dumps({"zarr_consolidated_format": 1, "metadata": metadata})
    (group / ".zmetadata").write_text(text)


def zarr_bomb(group: Path) -> None:
    put_array(group, "coords", shape=[10**11, 2], chunks=[1 << 16, 2])


ZARR = {
    "pickles": (zarr_pickle, "codecs pickle, expected some of"),
    "pickles in consolidated metadata": (zarr_pickle_consolidated, "codecs pickle, expected"),
    "terabytes of nothing": (zarr_bomb, "coords states 1,600,000,000,000 bytes in files of"),
}


@pytest.mark.parametrize("name", ZARR)
def test_a_zarr_that_runs_code_or_unpacks_to_far_more_is_refused(tmp_path, name):
    pytest.importorskip("zarr", reason="outlines in zarr arrays need zarr (extra: spatial)")
    spoil, expected = ZARR[name]
    path = spatialdata_of(tmp_path / "s.zarr")
    spoil(path / "shapes" / "cell_boundaries")
    with pytest.raises(SourceError, match=expected):
        read_spatialdata(path)


def test_what_a_killed_curation_left_goes_with_the_next(tmp_path):
    folder = write_merscope(tmp_path / "region", detected(DETECTED), FLAT)
    left, other = tmp_path / ".made-abcdefgh", tmp_path / ".made-2-abcdefgh"
    for each in (left, other):
        each.mkdir()
        (each / "molecules.parquet").write_bytes(b"PAR1")
    recipe = Recipe(format="merscope", path=folder.name, patterns=PATTERNS, split="test")
    curate(recipe, tmp_path, tmp_path / "made", name="made", version="1.0.0")
    assert not left.exists()
    assert other.is_dir()  # of a folder named made-2


# Submissions


@pytest.fixture
def submissions(valid, tmp_path) -> Path:
    home = tmp_path / "submissions" / "mine"
    target = home / "predictions" / "small" / "test-seed0.parquet"
    target.parent.mkdir(parents=True)
    shutil.copy(valid, target)
    metadata_of("mine").write(home)
    (home / "results.json").write_text("[]")
    read_submissions(tmp_path / "submissions")
    return tmp_path / "submissions"


def endless_results(home: Path) -> None:
    (home / "results.json").unlink()
    (home / "results.json").symlink_to("/dev/zero")


def linked_predictions(home: Path) -> None:
    path = home / "predictions/small/test-seed0.parquet"
    path.unlink()
    path.symlink_to("/dev/zero")


def linked_folder(home: Path) -> None:
    shutil.rmtree(home / "predictions")
    (home / "predictions").symlink_to("/")


def pipe(home: Path) -> None:
    (home / "results.json").unlink()
    os.mkfifo(home / "results.json")


def long_yaml(home: Path) -> None:
    (home / "submission.yaml").write_text("method: mine\n" + "# \n" * 100_000)


def hidden_name(home: Path) -> None:
    (home / "a\n::error::b\x1b[2J").write_text("")


def huge_size(home: Path) -> None:
    path = home / "submission.yaml"
    values = yaml.safe_load(path.read_text())
    file = {"path": "predictions/small/test-seed0.parquet", "sha256": "0" * 64}
    text = yaml.safe_dump(values | {"seeds": [0], "files": [file | {"bytes": 1}]})
    path.write_text(text.replace("bytes: 1", f"bytes: 0x{'f' * 5000}"))


def key_twice(home: Path) -> None:
    path = home / "submission.yaml"
    path.write_text("label: GPSNet\n" + path.read_text())


def weights(home: Path) -> None:
    with (home / "weights.bin").open("wb") as file:
        file.truncate(30 << 20)


def renamed(home: Path) -> None:
    home.rename(home.with_name("a\n::error::b\x1b[2J"))


SUBMISSIONS = {
    "results that never end": (endless_results, "'results.json' is a link, expected a file"),
    "predictions linked elsewhere": (linked_predictions, "test-seed0.parquet' is a link"),
    "a folder linked elsewhere": (linked_folder, "'predictions' is a link, expected a file"),
    "a pipe": (pipe, "'results.json' is a device, pipe or socket"),
    "metadata of megabytes": (long_yaml, "'submission.yaml' has 300,013 bytes, expected at most"),
    "a name that a terminal obeys": (hidden_name, r"'a\\n::error::b\\x1b\[2J': a name with"),
    "a size of 5,000 digits": (huge_size, "files.0.bytes"),
    "a key twice": (key_twice, "the key label stands twice"),
    "any file of 30 MB": (weights, "'weights.bin' has 31,457,280 bytes, expected at most"),
    "a folder's name that a terminal obeys": (renamed, r"'a\\n::error::b\\x1b\[2J': expected"),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_a_submission_is_refused_before_it_is_read(submissions, cli, name):
    spoil, expected = SUBMISSIONS[name]
    spoil(submissions / "mine")
    with pytest.raises(SubmissionError, match=expected):
        read_submissions(submissions)
    code, err = cli("leaderboard", "--submissions", submissions, "--check")
    assert code == 2
    assert "Traceback" not in err
    assert "\x1b" not in err
    assert "\n::" not in err


def test_submit_copies_no_links(submissions, valid, tmp_path):
    endless_results(submissions / "mine")
    run = tmp_path / "run" / "small"
    run.mkdir(parents=True)
    shutil.copy(valid, run)
    with pytest.raises(SubmissionError, match=r"results\.json' is a link"):
        submit_run(run.parent, submissions / "mine")


def test_a_folder_that_a_killed_submit_moved_away_comes_back(submissions, tmp_path):
    """Between its two renames: the old folder is under another name, none is in its place."""
    template = submissions / "_template"
    template.mkdir()
    metadata_of("template").write(template)
    moved = submissions / ".mine-abcdefgh"
    moved.mkdir()
    (submissions / "mine").rename(moved / "old")
    shutil.copytree(moved / "old", moved / "new")
    before = sorted(path.name for path in (moved / "old").rglob("*"))
    (tmp_path / "run").mkdir()
    with pytest.raises(SubmissionError, match="has no prediction files"):
        submit_run(tmp_path / "run", submissions / "mine")
    assert sorted(path.name for path in (submissions / "mine").rglob("*")) == before
    assert yaml.safe_load((submissions / "mine/submission.yaml").read_text())["method"] == "mine"


# Addresses


ADDRESSES = {
    "not encrypted": ("http://example.org/x", "expected https"),
    "a file": ("file:///etc/passwd", "No connection adapters"),
    "this machine": ("https://127.0.0.1/x", "127.0.0.1 is not a public address"),
    "this machine by name": ("https://localhost/x", "is not a public address"),
    "this machine as a number": ("https://2130706433/x", "127.0.0.1 is not a public address"),
    "this machine in IPv6": ("https://[::1]/x", "::1 is not a public address"),
    "this machine, IPv4 in IPv6": ("https://[::ffff:127.0.0.1]/x", "is not a public address"),
    "a private network": ("https://10.0.0.1/x", "10.0.0.1 is not a public address"),
    "the cloud's metadata": ("https://169.254.169.254/x", "169.254.169.254 is not a public"),
    "any address": ("https://0.0.0.0/x", "0.0.0.0 is not a public address"),
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_of_a_submission_is_public(tmp_path, monkeypatch, name):
    url, expected = ADDRESSES[name]
    monkeypatch.setattr("gpattern_bench.sources.http.BACKOFF_S", 0.01)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    file = SourceFile(path="x.parquet", urls=(url,), bytes=4, sha256="0" * 64)
    with pytest.raises(FetchError, match=expected):
        fetch(file, tmp_path, public=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("100.64.0.1", False),
        ("192.0.2.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address, public):
    if public:
        check_public(address)
        return
    with pytest.raises(NotPublicError):
        check_public(address)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_redirection_to_this_machine_is_not_followed(httpserver: HTTPServer, scheme):
    away = httpserver.url_for("/away").replace("http:", f"{scheme}:")
    httpserver.expect_request("/first").respond_with_data("", 302, {"Location": away})
    httpserver.expect_request("/away").respond_with_data("secret")
    with public_session() as session:
        session.mount(httpserver.url_for("/first"), HTTPAdapter())  # as if it were public
        with pytest.raises(Exception, match=r"expected https|is not a public address"):
            session.get(httpserver.url_for("/first"))
    assert [request.path for request, _ in httpserver.log] == ["/first"]


def test_an_answer_that_comes_byte_by_byte_is_cut_off(monkeypatch):
    """Each byte in time, the headers never whole."""
    monkeypatch.setattr("gpattern_bench.sources.public.HEADERS_S", 0.1)
    ours, theirs = socket.socketpair()
    connection = (
        public_session()
        .get_adapter("https://x")
        .poolmanager.connection_from_url("https://x")
        .ConnectionCls("x", timeout=PATIENCE_S)
    )

    def drip() -> None:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        with suppress(OSError):
            while True:
                theirs.sendall(b"x")
                time.sleep(0.01)

    with ours, theirs:
        connection.sock = ours
        connection.request("GET", "/")
        server = threading.Thread(target=drip)
        server.start()
        with pytest.raises(TimeoutError, match="no whole answer within"):
            connection.getresponse()
        ours.close()
        server.join(PATIENCE_S)
    assert not server.is_alive()


def test_messages_do_not_tell_what_an_address_gave(tmp_path, monkeypatch, httpserver: HTTPServer):
    """The checksum of a page is as good as the page, if it says yes or no."""
    httpserver.expect_request("/x").respond_with_data("PAR1")
    session = public_session
    url = httpserver.url_for("/x")

    def with_one_more():
        made = session()
        made.mount(url, HTTPAdapter())  # as if it were public
        return made

    monkeypatch.setattr("gpattern_bench.sources.http.public_session", with_one_more)
    file = SourceFile(path="x.parquet", urls=(url,), bytes=4, sha256="0" * 64)
    with pytest.raises(FetchError, match="other bytes than those listed") as caught:
        fetch(file, tmp_path, public=True)
    assert "got" not in str(caught.value)


def test_a_listed_file_has_a_bounded_size_and_a_safe_address():
    entry = {"path": "predictions/d/test-seed0.parquet", "bytes": 1, "sha256": "0" * 64}
    PredictionFile.model_validate(entry | {"url": "https://example.org/x"})
    for change in ({"url": "http://example.org/x"}, {"bytes": 1 << 40}):
        with pytest.raises(ValueError, match="should"):
            PredictionFile.model_validate(entry | change)


# Models


RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))
Y = np.stack([X[:, 0] > 0, X[:, 1] > 0.5], axis=1)


def path_of(n: int) -> Forest:
    """One tree that is a path: each node has a leaf to its left."""
    inner, leaf = 2 * np.arange(n), 2 * np.arange(n) + 1
    feature = np.full(2 * n + 1, -1)
    feature[inner] = 0
    left, right = np.zeros(2 * n + 1), np.zeros(2 * n + 1)
    left[inner], right[inner] = leaf, inner + 2
    return Forest.of_nodes(
        np.zeros(1), feature < 0, feature, np.zeros(2 * n + 1), left, right,
        np.zeros(2 * n + 1), np.zeros((n + 1, 2), np.float32),
    )  # fmt: skip


def stumps(n: int) -> Forest:
    every = np.ones(n, bool)
    return Forest.of_nodes(
        np.arange(n), every, *(np.zeros(n) for _ in range(5)), np.zeros((n, 2), np.float32)
    )


def changed(forest: Forest, name: str, value: float) -> Forest:
    array = getattr(forest, name).copy()
    array.flat[0] = value
    return forest._replace(**{name: array})


FORESTS = {
    "scores above one": (lambda f: changed(f, "share", 7), r"share\[0, 0\] is 7.0, expected a"),
    "scores that are no numbers": (lambda f: changed(f, "share", np.nan), "is nan, expected a"),
    "a threshold that is no number": (
        lambda f: changed(f, "threshold", np.nan),
        "some thresholds are NaN",
    ),
    "50,000 trees": (lambda _: stumps(50_000), "50,000 trees, expected at most 10,000"),
    "one tree many times": (
        lambda f: f._replace(root=np.repeat(f.root, 3_000)),
        "some nodes are below none or several",
    ),
    "a path of 100,000 nodes": (lambda _: path_of(50_000), "deeper than 1,000 nodes"),
    "a leaf of many nodes": (
        lambda f: f._replace(right=np.where(f.feature >= 0, f.right.max(), 0).astype("i4")),
        "some nodes are below none or several",
    ),
}


@pytest.mark.parametrize("name", FORESTS)
def test_an_edited_forest_is_refused(tmp_path, name):
    change, expected = FORESTS[name]
    path = tmp_path / "forest.npz"
    change(Forest.fit(X, Y, 0, trees=3)).save(path)
    with pytest.raises(MethodError, match=expected):
        Forest.load(path)


def test_arrays_that_unpack_to_far_more_are_refused(tmp_path):
    path = tmp_path / "forest.npz"
    zeros = np.zeros(1 << 20, np.float32)
    np.savez_compressed(path, **dict.fromkeys(Forest._fields, zeros))
    data = path.read_bytes()
    size = (zeros.nbytes + 128).to_bytes(4, "little")
    assert data.count(size) >= len(Forest._fields)
    path.write_bytes(data.replace(size, (400 << 20).to_bytes(4, "little")))
    with pytest.raises(MethodError, match="it unpacks to 2,936,012,800 bytes, expected at most"):
        Forest.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", np.zeros(3)),
        ("scale", np.zeros(1)),
        ("point", np.zeros((9, 2), np.float32)),
        ("point", np.full((9, 4), np.nan, np.float32)),
        ("point", np.zeros((0, 4), np.float32)),
        ("cluster", np.full(9, 9, np.int32)),
        ("cluster", np.zeros(3, np.int32)),
        ("share", np.full((3, 2), 5.0)),
    ],
)
def test_edited_clusters_are_refused(tmp_path, name, value):
    good = LabelClusters(
        np.zeros(4), np.ones(4), np.zeros((9, 4), np.float32), np.zeros(9, np.int32),
        np.full((3, 2), 0.5),
    )  # fmt: skip
    good.save(tmp_path / "good.npz")
    LabelClusters.load(tmp_path / "good.npz")
    good._replace(**{name: value}).save(tmp_path / "bad.npz")
    with pytest.raises(MethodError, match="damaged clusters"):
        LabelClusters.load(tmp_path / "bad.npz")


@pytest.fixture(scope="module")
def priors(ds, tmp_path_factory) -> Path:
    method = get_method("gene_prior")
    method.fit(ds.iter_cells("train"), 0)
    model = Model("gene_prior", list(ds.patterns), None, None, 0)
    return save_model(method, model, tmp_path_factory.mktemp("model") / "model-seed0")


STATES = {
    "scores above one": (lambda s: s | {"unseen": [7] * 4}, "unseen.0: Input should be less"),
    "scores that are no numbers": (
        lambda s: s | {"unseen": [float("nan")] * 4},
        "unseen.0: Input should be",
    ),
    "text": (lambda s: s | {"share": {"G": "high"}}, "share.G: Input should be a valid list"),
    "too few columns": (
        lambda s: s | {"share": {gene: [0.5] for gene in s["share"]}},
        "gives no scores from 0 to 1",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_an_edited_state_is_refused(ds, priors, tmp_path, name):
    change, expected = STATES[name]
    folder = Path(shutil.copytree(priors, tmp_path / "model-seed0"))
    path = folder / "state.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(MethodError, match=expected):
        predict_tables(*load_model(folder), ds, tmp_path / "scores.parquet")
    assert not (tmp_path / "scores.parquet").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder_depth", 10**9),
        ("decoder_depth", 10**5),
        ("width", 10**30),
        ("heads", 10**6),
        ("mlp_ratio", 10**6),
        ("neighbours", 10**9),
        ("fourier", 10**6),
    ],
)
def test_a_network_larger_than_any_is_refused_before_it_is_built(name, value):
    text = json.loads(Config.preset("small", ["A"], ["nuclear"]).to_json())
    with pytest.raises(MethodError, match=rf"{name} is 1\d*, expected \d+ or less"):
        Config.from_json(json.dumps(text | {name: value}))


# What is written


def test_a_gene_named_like_a_formula_stays_text(tmp_path):
    genes = ["=HYPERLINK(1)", "+1", "-1", "@A1", "ACTB"]
    table = pa.table({"cell_id": ["1"] * 5, "gene": genes, "=1+1": [0.9] * 5})
    pq.write_table(table, tmp_path / "scores.parquet")
    _, csv = write_calls(tmp_path / "scores.parquet", {"=1+1": 0.5}, tmp_path / "calls.parquet")
    assert csv.read_text().startswith("gene,cells,'=1+1,")
    first = sorted(line.split(",")[0] for line in csv.read_text().splitlines()[1:])
    assert first == ["'+1", "'-1", "'=HYPERLINK(1)", "'@A1", "ACTB"]


def test_a_gene_named_like_a_formula_of_tex_is_drawn_as_it_is(tmp_path):
    pytest.importorskip("matplotlib", reason="figures need matplotlib (extra: plots)")
    from gpattern_bench.figures import plot_cell, save_figure

    release = simulate(3, n_fovs=3, cells_per_fov=2, n_genes=3, mean_molecules=90)
    names = sorted(map(str, release.molecules["gene"].unique()))
    odd = dict(zip(names, (r"$\frac$", "$x^2$", "</g><script>"), strict=True))
    molecules = release.molecules.assign(gene=release.molecules["gene"].astype(str).map(odd))
    dataset = dataset_of(tmp_path / "odd", Release(molecules, release.cells), split="test")
    figure = plot_cell(dataset, genes=list(odd.values()))
    text = save_figure(figure, tmp_path / "cell.svg").read_text()
    assert r"$\frac$" in text
    assert "<script>" not in text


# Messages


def test_a_message_escapes_what_a_terminal_would_obey(cli, tmp_path):
    path = tmp_path / "a\x1b[2Jb\u202ec.parquet"
    code, err = cli("compare", path, path)
    assert code == 2
    assert r"a\x1b[2Jb\u202ec.parquet" in err


def test_names_in_a_file_command_no_terminal_and_no_runner(ds, valid, command, tmp_path):
    """A runner of workflows obeys lines that begin with `::`."""
    path = Path(shutil.copy(valid, tmp_path))
    odd = "a\n::error::b\r\x1b[2J\x9b1m\u202e"
    table = pq.read_table(path)
    names = table["gene"].to_pylist()
    spoilt = table.set_column(1, "gene", pa.array([odd, *names[1:]])).append_column(odd, [names])
    pq.write_table(spoilt, path)
    for words in (
        ("validate", path, "--dataset", ds.folder),
        ("evaluate", path, "--dataset", ds.folder),
    ):
        code, out, err = command(*words)
        assert code
        assert odd.encode("unicode_escape").decode() in out + err
        for line in (out + err).splitlines():
            assert line.isprintable()
            assert not line.lstrip().startswith("::")


def test_names_in_json_are_escaped_as_json_is(tables, command):
    manifest = json.loads((tables / "manifest.json").read_text())
    odd = "a\n\x1b[2J\x9b1m\u202e\U000e0001é"
    manifest["dropped"] = {"cells": {odd: 3}}
    (tables / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = command("info", tables, "--json")
    assert code == 0, err
    assert all(line.isprintable() for line in out.splitlines())
    assert (
        odd in str(json.loads(out)["dropped"]["cells"].keys() - {""})
        or odd in json.loads(out)["dropped"]["cells"]
    )


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes only on Linux")
def test_a_path_that_is_not_text_is_not_called_damaged(ds, valid, tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    home = Path(os.fsdecode(folder))
    home.mkdir()
    shutil.copy(valid, home)
    shutil.copytree(ds.folder, home / "small")
    with pytest.raises(PredictionError, match="its path is not UTF-8 text"):
        Evaluator(ds).check(home / valid.name)
    with pytest.raises(TableError, match="its path is not UTF-8 text"):
        Dataset(home / "small")


def obedient() -> None:
    """Let this process, if it is root's, do only what modes of files allow."""
    if os.geteuid() == 0:
        drop_bound, dac_override = 24, 1  # of prctl and capabilities
        assert ctypes.CDLL(None).prctl(drop_bound, dac_override) == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="root writes everywhere")
class TestReadOnly:
    """The cache, the home and the package are an administrator's; so is what numba would keep."""

    @pytest.fixture
    def run(self, tmp_path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
        package = Path(gpattern_bench.__file__).parent
        shutil.copytree(
            package, tmp_path / "package" / package.name, ignore=lambda *_: ["__pycache__"]
        )
        cache, made = tmp_path / "cache", load_dataset("synthetic")
        shutil.copytree(made.folder, cache / "synthetic" / made.version)
        (tmp_path / "home").mkdir()
        paths = [tmp_path, *tmp_path.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}

        def run(*words: object) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-B", "-m", "gpattern_bench", *map(str, words)],
                env=kept
                | {
                    "GPATTERN_BENCH_DATA": str(cache),
                    "HOME": str(tmp_path / "home"),
                    "PYTHONPATH": str(tmp_path / "package"),
                },
                cwd="/",
                preexec_fn=obedient,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )

        yield run
        assert sorted(paths) == sorted([tmp_path, *tmp_path.rglob("*")])
        for path in paths:
            path.chmod(0o755)

    def test_what_is_there_can_be_used(self, run, tmp_path_factory):
        dataset = load_dataset("synthetic")
        path = tmp_path_factory.mktemp("scores") / "test-seed0.parquet"
        write_predictions(path, random_scores(dataset), dataset, "test", method="mine")
        done = run("evaluate", path, "--dataset", "synthetic")
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("name", ["synthetic_wide", "nih3t3_gold"])
    def test_what_is_not_there_is_one_error(self, run, name):
        done = run("download", name)
        assert done.returncode == 2
        assert "the cache cannot be written" in done.stderr
        assert "set GPATTERN_BENCH_DATA to another folder" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_errors_are_the_packages():
    kinds = (FetchError, MethodError, PredictionError, SourceError, SubmissionError, TableError)
    assert all(issubclass(kind, GPatternBenchError) for kind in kinds)
