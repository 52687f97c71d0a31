"""Datasets: loading, reading by split, cells, the torch view, and what verify finds."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from samples import content_sha256, dataset_of

from gpattern_bench import list_datasets, load_dataset
from gpattern_bench.base.files import file_sha256
from gpattern_bench.curate.release import Release
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.curate.simulate.wide import wide_pieces
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.cells import Cell
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.data.torch import collate
from gpattern_bench.errors import (
    FetchError,
    GPatternBenchError,
    TableError,
    UnknownDatasetError,
)
from gpattern_bench.features import compute_features, write_features
from gpattern_bench.predictions import counted
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import find_entry
from gpattern_bench.tables import schema
from gpattern_bench.tables.parquet import write_table
from gpattern_bench.tables.placement import measure_placement

SPLITS = ("train", "val", "test")


def make(folder: Path, *, labels: bool = True) -> Dataset:
    """A small dataset of 12 fields of view, made as every dataset is."""
    release = simulate(7, n_fovs=12, cells_per_fov=3, n_genes=10, mean_molecules=60)
    if not labels:
        release = Release(release.molecules, release.cells)
    recipe = Recipe(format="simulated", patterns=PATTERNS, patternless="keep")
    write_dataset(
        [apply_rules(release, recipe)], folder, name="small", version="1.2.0", recipe=recipe
    )
    return Dataset(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Dataset:
    return make(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> Dataset:
    return make(tmp_path_factory.mktemp("data") / "unlabelled", labels=False)


@pytest.fixture
def folder(small, tmp_path) -> Path:
    """A copy of the small dataset, free to be spoilt."""
    return Path(shutil.copytree(small.folder, tmp_path / "copy"))


def pin(folder: Path, table: str) -> None:
    """Make the manifest agree with a table, as a forger would."""
    path = folder / f"{table}.parquet"
    manifest = json.loads((folder / "manifest.json").read_text())
    read = pq.read_table(path)
    manifest["files"][path.name] = {
        "rows": len(read),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "content_sha256": content_sha256(read),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rewrite(folder: Path, table: str, change) -> None:
    """Change the rows of a table, given as a data frame; the manifest agrees afterwards."""
    path = folder / f"{table}.parquet"
    was = pq.read_table(path)
    frame = was.to_pandas()
    for name in frame.columns.intersection(["fov", "cell_id", "gene"]):
        frame[name] = frame[name].astype(object)
    rows = pa.Table.from_pandas(change(frame), was.schema, preserve_index=False)
    write_table(path, rows)
    pin(folder, table)


def edit_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def same_cells(a, b) -> bool:
    def values(cell: Cell) -> bytes:
        names = [field.name for field in dataclasses.fields(Cell)]
        return pickle.dumps([getattr(cell, name) for name in [*names, "genes", "counts"]])

    return [values(cell) for cell in a] == [values(cell) for cell in b]


class TestLoad:
    @pytest.mark.parametrize("name", ["synthetic", "synthetic@1.0.0"])
    def test_by_name(self, name):
        ds = load_dataset(name)
        assert (ds.id, ds.patterns, ds.splits) == ("synthetic@1.0.0", PATTERNS, SPLITS)

    @pytest.mark.parametrize("as_text", [True, False])
    def test_by_folder(self, small, as_text):
        ds = load_dataset(str(small.folder) if as_text else small.folder)
        assert ds.id == "small@1.2.0"

    def test_by_relative_folder_stays_valid_elsewhere(self, small, tmp_path, monkeypatch):
        monkeypatch.chdir(small.folder.parent)
        ds = load_dataset("small")
        monkeypatch.chdir(tmp_path)
        assert len(ds.cells("test")) == len(small.cells("test"))

    def test_an_unrelated_folder_of_the_same_name_is_not_in_the_way(self, tmp_path, monkeypatch):
        # As in submissions/<method>/predictions, where a folder is named after each dataset.
        (tmp_path / "synthetic").mkdir()
        monkeypatch.chdir(tmp_path)
        assert load_dataset("synthetic").id == "synthetic@1.0.0"

    def test_unknown_name_lists_the_nearest_and_all(self):
        with pytest.raises(UnknownDatasetError) as caught:
            load_dataset("u2os_glod")
        text = str(caught.value)
        assert "Did you mean u2os_gold" in text
        assert all(name in text for name in list_datasets())

    def test_unknown_version_lists_the_known(self):
        with pytest.raises(UnknownDatasetError, match=r"no version '9\.9\.9'; known: 1\.0\.0"):
            load_dataset("synthetic@9.9.9")

    def test_a_folder_without_manifest_says_so(self, tmp_path):
        with pytest.raises(TableError, match=r"manifest\.json is missing"):
            load_dataset(tmp_path)

    def test_download_off_says_which_file_is_missing_and_where_it_goes(self, tmp_path):
        with pytest.raises(FetchError, match=r"download is off.*put a file of .* bytes"):
            load_dataset("nih3t3_gold", root=tmp_path, download=False)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "{",
            '{"name": "a"}',
            '{"name":"a","version":"1","patterns":[],"genes":[],"files":[]}',
        ],
    )
    def test_a_broken_manifest_is_a_table_error(self, folder, text):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(TableError, match=r"manifest\.json"):
            load_dataset(folder)

    @pytest.mark.parametrize("table", ["molecules", "cells", "labels", "splits"])
    def test_a_missing_file_is_named(self, folder, table):
        (folder / f"{table}.parquet").unlink()
        with pytest.raises(TableError, match=rf"{table}\.parquet: .*it is not there"):
            load_dataset(folder)

    def test_a_file_of_another_size_is_named(self, folder):
        with (folder / "cells.parquet").open("ab") as file:
            file.write(b"!")
        with pytest.raises(TableError, match=r"cells\.parquet: expected [\d,]+ bytes, got"):
            load_dataset(folder)

    def test_repr_says_what_it_is(self, small):
        assert repr(small) == "<Dataset small@1.2.0: 36 cells, 10 genes>"


class TestTables:
    def test_splits_partition_every_table(self, small):
        for whole, parts in (
            (len(small.molecules()), [len(small.molecules(s)) for s in SPLITS]),
            (len(small.labels()), [len(small.labels(s)) for s in SPLITS]),
            (len(small.cells()), [len(small.cells(s)) for s in SPLITS]),
        ):
            assert whole == sum(parts)
            assert min(parts) > 0

    def test_schemas_are_those_of_the_contract(self, small):
        assert small.molecules("test").schema.equals(schema.MOLECULES)
        assert pq.read_schema(small.folder / "cells.parquet").equals(schema.CELLS)
        assert pq.read_schema(small.folder / "labels.parquet").equals(schema.labels(PATTERNS))

    def test_columns_are_those_asked_in_that_order(self, small):
        assert small.molecules("test", columns=["y", "gene"]).column_names == ["y", "gene"]

    def test_an_unknown_column_is_an_error(self, small):
        with pytest.raises(GPatternBenchError, match="colour"):
            small.molecules("test", columns=["x", "colour"])

    def test_an_unknown_split_names_those_there_are(self, small):
        with pytest.raises(GPatternBenchError, match="no split 'tset'; it has train, val, test"):
            small.molecules("tset")

    def test_outlines_are_shapely_geometries(self, small):
        cells = small.cells("test")
        assert all(isinstance(shape, shapely.Polygon) for shape in cells["cell_boundary"])

    def test_pairs_are_the_labelled_ones(self, small):
        labels = small.labels("test")[["cell_id", "gene"]].astype(str)
        pd.testing.assert_frame_equal(small.pairs("test").astype(str), labels)

    def test_without_labels_pairs_are_all_with_molecules(self, unlabelled):
        molecules = unlabelled.molecules("test", columns=["cell_id", "gene"]).to_pandas()
        expected = set(map(tuple, molecules.astype(str).to_numpy()))
        pairs = unlabelled.pairs("test").astype(str)
        assert set(map(tuple, pairs.to_numpy())) == expected
        assert len(pairs) == len(expected)

    def test_counts_are_what_the_tables_hold(self, small):
        assert small.counts == {
            "genes": 10,
            "fovs": 12,
            "cells": len(small.cells()),
            "molecules": len(small.molecules()),
            "pairs": len(small.pairs()),
            "labelled_pairs": len(small.labels()),
            "labelled_molecules": small.labels()["n_molecules"].sum(),
        }

    @pytest.mark.parametrize("ask", [lambda d: d.labels("test"), lambda d: d.labels_sha256])
    def test_asking_for_labels_that_are_not_there_says_so(self, unlabelled, ask):
        with pytest.raises(TableError, match="no labels"):
            ask(unlabelled)

    def test_the_tables_open_in_geopandas(self, small):
        geopandas = pytest.importorskip("geopandas")
        frame = geopandas.read_parquet(small.folder / "cells.parquet")
        assert frame.geometry.name == "cell_boundary"


class TestReadsOnlyTheSplit:
    """The bytes of the train row groups are zeroed: whoever reads them fails."""

    TABLES = ("molecules", "cells", "labels")

    @pytest.fixture
    def zeroed(self, folder) -> Dataset:
        train = set(Dataset(folder).fovs("train"))
        for table in self.TABLES:
            path = folder / f"{table}.parquet"
            size = path.stat().st_size
            metadata = pq.read_metadata(path)
            with path.open("r+b") as file:
                for i in range(metadata.num_row_groups):
                    group = metadata.row_group(i)
                    columns = [group.column(j) for j in range(group.num_columns)]
                    if columns[0].statistics.min in train:
                        for column in columns:
                            file.seek(column.dictionary_page_offset or column.data_page_offset)
                            file.write(bytes(column.total_compressed_size))
            assert path.stat().st_size == size
        return Dataset(folder)

    @pytest.mark.parametrize("split", ["val", "test"])
    def test_the_other_splits_are_unchanged(self, small, zeroed, split):
        assert zeroed.molecules(split).equals(small.molecules(split))
        pd.testing.assert_frame_equal(zeroed.labels(split), small.labels(split))
        pd.testing.assert_frame_equal(zeroed.cells(split), small.cells(split))
        assert same_cells(zeroed.iter_cells(split), small.iter_cells(split))

    @pytest.mark.parametrize("table", TABLES)
    def test_train_cannot_be_read(self, zeroed, table):
        with pytest.raises((OSError, GPatternBenchError)):
            getattr(zeroed, table)("train")


class TestCells:
    @pytest.mark.parametrize("split", [*SPLITS, None])
    def test_equal_the_tables(self, small, split):
        molecules = small.molecules(split).to_pandas()
        cells = small.cells(split).set_index("cell_id")
        labels = small.labels(split).astype({"cell_id": str, "gene": str})
        labels = labels.set_index(["cell_id", "gene"])
        seen = list(small.iter_cells(split))
        assert [cell.cell_id for cell in seen] == cells.index.tolist()
        for cell in seen:
            rows = molecules[molecules["cell_id"] == cell.cell_id]
            row = cells.loc[cell.cell_id]
            origin = [row["x"], row["y"]]
            np.testing.assert_allclose(cell.xy + origin, rows[["x", "y"]], rtol=0, atol=1e-6)
            genes = [small.genes[code] for code in cell.gene]
            assert genes == rows["gene"].tolist()
            assert cell.fov == row["fov"]
            for mine, table in (
                (cell.boundary, row["cell_boundary"]),
                (cell.nucleus, row["nucleus_boundary"]),
            ):
                if table is None:
                    assert mine is None
                    continue
                moved = shapely.get_coordinates(mine) + origin
                np.testing.assert_allclose(moved, shapely.get_coordinates(table), atol=1e-6)
            for k, code in enumerate(cell.genes):
                expected = labels.loc[(cell.cell_id, small.genes[code]), list(PATTERNS)]
                assert cell.labels[k].tolist() == expected.tolist()
            assert cell.labelled.all()

    def test_the_centroid_of_the_outline_is_the_origin(self, small):
        for cell in small.iter_cells("test"):
            np.testing.assert_allclose(
                shapely.get_coordinates(cell.boundary.centroid), 0, atol=1e-3
            )

    def test_genes_and_counts_are_those_of_the_molecules(self, small):
        for cell in small.iter_cells("test"):
            assert np.repeat(cell.genes, cell.counts).tolist() == cell.gene.tolist()

    def test_can_be_iterated_twice(self, small):
        cells = small.iter_cells("test")
        assert same_cells(cells, cells)
        assert len(cells) == len(list(cells)) > 0

    def test_keep_keeps_only_those(self, small):
        names = small.cells("train")["cell_id"].tolist()[::2]
        cells = small.iter_cells("train", keep=names)
        assert [cell.cell_id for cell in cells] == names
        assert len(cells) == len(names)

    def test_fewer_cells_than_fields_of_view_are_those_of_all(self, small):
        *_, last = every = list(small.iter_cells())
        assert len(small.fovs()) > 2
        for few in ([every[0], last], [last], []):
            kept = small.iter_cells(keep=[cell.cell_id for cell in few])
            assert same_cells(kept, few)

    def test_without_labels_hides_them_and_nothing_else(self, small):
        names = small.cells("test")["cell_id"].tolist()[:2]
        shown = small.iter_cells("test", keep=names)
        hidden = list(shown.without_labels())
        assert all(cell.labels is None and cell.labelled is None for cell in hidden)
        assert same_cells(
            hidden, [dataclasses.replace(cell, labels=None, labelled=None) for cell in shown]
        )

    def test_a_dataset_without_labels_has_cells_without(self, unlabelled):
        assert all(cell.labels is None for cell in unlabelled.iter_cells("test"))

    def test_a_pair_that_does_not_count_is_not_labelled(self, folder):
        gone = []

        def drop_first(frame):
            gone.extend(frame.loc[frame.index[:1], ["cell_id", "gene"]].to_numpy()[0])
            return frame.iloc[1:]

        rewrite(folder, "labels", drop_first)
        ds = Dataset(folder)
        cell = next(cell for cell in ds.iter_cells() if cell.cell_id == gone[0])
        assert [ds.genes[g] for g in cell.genes[~cell.labelled]] == [gone[1]]
        assert not cell.labels[~cell.labelled].any()

    def test_labelled_pairs_are_counted_without_molecules(self, folder):
        def drop_some(frame):
            return frame[frame["cell_id"] != frame["cell_id"].iloc[0]].iloc[::2]

        rewrite(folder, "labels", drop_some)
        ds = Dataset(folder)
        names = ds.cells()["cell_id"].tolist()
        for cells in (ds.iter_cells(), ds.iter_cells("train"), ds.iter_cells(keep=names[::3])):
            expected = [cell.labelled.sum() for cell in cells]
            assert 0 < sum(expected) < sum(len(cell.genes) for cell in cells)
            assert cells.labelled_counts().tolist() == expected
            assert not cells.without_labels().labelled_counts().any()
        (folder / "molecules.parquet").unlink()
        assert ds.iter_cells().labelled_counts()[0] == 0

    def test_footers_are_not_read_again_for_each_field_of_view(self, small, monkeypatch):
        # A footer is as long as there are fields of view: reading it for each is quadratic work.
        opened = []
        read_metadata, parquet_file = pq.read_metadata, pq.ParquetFile

        def counted(original):
            def call(*args, **options):
                opened.extend([] if options.get("metadata") is not None else [args])
                return original(*args, **options)

            return call

        monkeypatch.setattr(pq, "read_metadata", counted(read_metadata))
        monkeypatch.setattr(pq, "ParquetFile", counted(parquet_file))
        counts = []
        for split in ("test", "train"):
            opened.clear()
            list(small.iter_cells(split))
            counts.append(len(opened))
        assert len(small.fovs("train")) > len(small.fovs("test"))
        assert counts[0] == counts[1]


class TestNoLabelReachesAMethod:
    """The columns that methods can see, for every dataset that the registry knows."""

    @pytest.fixture(params=list_datasets())
    def dataset(self, request, tmp_path) -> Dataset:
        entry = find_entry(request.param)
        if request.param == "synthetic_wide":  # two fields of view: all would take a minute
            tables = (
                apply_rules(p(), entry.recipe) for p in islice(wide_pieces(entry.recipe.seed), 2)
            )
            facts = {"name": entry.name, "version": entry.version, "recipe": entry.recipe}
            return load_dataset(write_dataset(tables, tmp_path / "wide", **facts))
        if request.param != "synthetic":
            pytest.importorskip("zarr")
            mirror = request.getfixturevalue("mirror")
            lacking = [f.path for f in entry.files if not (mirror / f.path).is_file()]
            if lacking:
                pytest.skip(f"{lacking[0]} is not among the real source files")
        return load_dataset(request.param)

    def test_molecules_have_no_other_columns(self, dataset):
        names = pq.read_schema(dataset.folder / "molecules.parquet").names
        assert names == ["fov", "cell_id", "gene", "x", "y", "z"]

    def test_cells_have_no_other_columns(self, dataset):
        names = pq.read_schema(dataset.folder / "cells.parquet").names
        geometry = ["cell_boundary", "nucleus_boundary"]
        counts = ["n_molecules", "n_genes", "touches_border"]
        assert names == ["fov", "cell_id", "x", "y", *counts, *geometry]

    def test_a_hidden_cell_has_nothing_else(self, dataset):
        cell = next(iter(dataset.iter_cells("test").without_labels()))
        fields = {field.name for field in dataclasses.fields(Cell)}
        assert fields == {
            *("cell_id", "fov", "xy", "gene", "boundary", "nucleus"),
            *("labels", "labelled", "z"),
        }
        assert cell.z is None  # heights come only if a method asks for them
        assert cell.labels is None
        assert cell.labelled is None
        assert set(vars(cell)) <= fields | {"_present"}


class TestTorch:
    @pytest.mark.slow
    def test_items_equal_the_cells(self, small):
        view = small.torch("train")
        cells = list(small.iter_cells("train"))
        assert len(view) == len(cells)
        for item, cell in zip((view[i] for i in range(len(view))), cells, strict=True):
            np.testing.assert_array_equal(item["xy"], cell.xy.astype(np.float32))
            for key in ("gene", "genes", "labels", "labelled"):
                np.testing.assert_array_equal(item[key], getattr(cell, key))

    def test_types_and_shapes(self, small):
        item = small.torch("test")[0]
        cell = next(iter(small.iter_cells("test")))
        assert item.pop("cell_id") == cell.cell_id
        n, g = len(item["gene"]), len(item["genes"])
        corners = [len(shape.exterior.coords) for shape in (cell.boundary, cell.nucleus)]
        assert {key: (str(value.dtype), tuple(value.shape)) for key, value in item.items()} == {
            "xy": ("torch.float32", (n, 2)),
            "gene": ("torch.int64", (n,)),
            "pair": ("torch.int64", (n,)),
            "genes": ("torch.int64", (g,)),
            "boundary": ("torch.float32", (corners[0], 2)),
            "nucleus": ("torch.float32", (corners[1], 2)),
            "labels": ("torch.float32", (g, 4)),
            "labelled": ("torch.bool", (g,)),
        }

    def test_pickles(self, small):
        view = small.torch("test")
        again = pickle.loads(pickle.dumps(view))
        assert len(again) == len(view)
        np.testing.assert_array_equal(again[1]["xy"], view[1]["xy"])

    def test_is_read_by_the_workers_of_a_loader(self, small):
        from torch.utils.data import DataLoader

        view = small.torch("train")
        loaded = list(DataLoader(view, batch_size=None, num_workers=2))
        assert len(loaded) == len(view)
        for i, item in enumerate(loaded):
            np.testing.assert_array_equal(item["xy"], view[i]["xy"])

    @pytest.mark.parametrize("index", [-1, 10_000])
    def test_beyond_the_end_is_an_index_error(self, small, index):
        with pytest.raises(IndexError):
            small.torch("test")[index]

    def test_without_labels_items_have_none(self, unlabelled):
        item = unlabelled.torch("test")[0]
        assert set(item) == {"cell_id", "xy", "gene", "pair", "genes", "boundary", "nucleus"}

    def test_outlines_are_those_of_the_cell(self, small):
        for item, cell in zip(small.torch("test"), small.iter_cells("test"), strict=False):
            for name in ("boundary", "nucleus"):
                expected = np.float32(getattr(cell, name).exterior.coords)
                np.testing.assert_array_equal(item[name], expected)

    @pytest.mark.parametrize("size", [1, 2, 100])
    def test_a_batch_holds_its_cells(self, small, size):
        import torch
        from torch.utils.data import DataLoader

        view = small.torch("train")
        seen = []
        for batch in DataLoader(view, batch_size=size, collate_fn=collate):
            for k, name in enumerate(batch["cell_id"]):
                item = view[len(seen)]
                seen.append(name)
                assert item["cell_id"] == name
                for key, where in (
                    *(("xy", "cell"), ("gene", "cell"), ("genes", "cell_of_pair")),
                    *(("labels", "cell_of_pair"), ("labelled", "cell_of_pair")),
                    *(("boundary", "cell_of_boundary"), ("nucleus", "cell_of_nucleus")),
                ):
                    assert torch.equal(batch[key][batch[where] == k], item[key])
            # The pair of each molecule has its gene and its cell.
            assert torch.equal(batch["genes"][batch["pair"]], batch["gene"])
            assert torch.equal(batch["cell_of_pair"][batch["pair"]], batch["cell"])
        assert seen == [cell.cell_id for cell in small.iter_cells("train")]

    @pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
    def test_scores_come_back_by_name(self, small, kind):
        import torch
        from torch.utils.data import DataLoader

        view = small.torch("test")
        # A score that says where it belongs: the gene's code and the pattern's.
        wanted = torch.arange(4, dtype=getattr(torch, kind)) / 64
        frames = []
        for batch in DataLoader(view, batch_size=2, shuffle=True, collate_fn=collate):
            scores = batch["genes"][:, None].to(wanted.dtype) / 16 + wanted
            frames.append(view.table(batch, scores.requires_grad_()))
        found = counted(pd.concat(frames), small.pairs("test"))
        pd.testing.assert_frame_equal(
            found[["cell_id", "gene"]], small.pairs("test").astype(str), check_names=False
        )
        code = [small.genes.index(gene) for gene in found["gene"]]
        for k, pattern in enumerate(small.patterns):
            assert found[pattern].dtype == ("float64" if kind == "float64" else "float32")
            np.testing.assert_array_equal(found[pattern], np.array(code) / 16 + k / 64)
        one = view.table(view[0], torch.zeros(len(view[0]["genes"]), 4))
        assert set(one["cell_id"]) == {view[0]["cell_id"]}

    def test_scores_of_another_shape_are_refused(self, small):
        import torch

        view = small.torch("test")
        with pytest.raises(GPatternBenchError, match=r"shape \(\d+, 4\), a row per pair"):
            view.table(collate([view[0], view[1]]), torch.zeros(3, 4))


class TestPairsWithLabels:
    def test_of_labelled_pairs(self, small):
        found = small.pairs("val", labels=True)
        labels = small.labels("val")
        pd.testing.assert_frame_equal(found, labels[["cell_id", "gene", *small.patterns]])

    def test_of_all_pairs_nan_is_not_labelled(self, tmp_path):
        release = simulate(7, n_fovs=12, cells_per_fov=3, n_genes=10, mean_molecules=60)
        some = Release(release.molecules, release.cells, release.labels[::3])
        ds = dataset_of(tmp_path / "some", some)
        found = ds.pairs("train", labelled=False, labels=True)
        assert len(found) == len(ds.pairs("train", labelled=False)) > len(ds.labels("train"))
        known = found.dropna().reset_index(drop=True)
        assert (found[list(PATTERNS)].isna().sum(axis=1) % 4 == 0).all()
        expected = ds.pairs("train", labels=True).astype(dict.fromkeys(PATTERNS, np.float32))
        order = ["cell_id", "gene"]
        for frame in (known, expected):
            frame[order] = frame[order].astype(str)
        pd.testing.assert_frame_equal(
            known.sort_values(order, ignore_index=True),
            expected.sort_values(order, ignore_index=True),
        )

    def test_merge_with_features_without_suffixes(self, small):
        for method in ("bento", "locfish"):
            features = compute_features(method, small, "val")
            both = small.pairs("val", labels=True).merge(features)
            assert len(both) == len(small.pairs("val"))
            assert not [name for name in both.columns if name.endswith(("_x", "_y"))]
            keys = ["cell_id", "gene"]
            expected = small.labels("val").set_index(keys)["n_molecules"].to_dict()
            assert both.set_index(keys)["n_molecules"].to_dict() == expected

    def test_features_in_memory_are_those_of_the_file(self, small, tmp_path):
        path = write_features("bento", small, str(tmp_path / "f.parquet"))
        pd.testing.assert_frame_equal(pd.read_parquet(path), compute_features("bento", small))

    def test_without_labels_they_are_refused(self, unlabelled):
        with pytest.raises(TableError, match="no labels"):
            unlabelled.pairs("test", labels=True)


def test_each_prints_as_one_line(small, unlabelled):
    cell = next(iter(small.iter_cells("test")))
    n, g = len(cell.gene), len(cell.genes)
    assert (
        repr(cell)
        == f"<Cell {cell.cell_id} of FOV {cell.fov}: {n} molecules, {g} genes, a nucleus>"
    )
    fovs = len(small.fovs("train"))
    expected = f"<Cells of {fovs} FOVs: 10 genes, 4 patterns, with labels>"
    assert repr(small.iter_cells("train")) == expected
    assert "without labels" in repr(unlabelled.iter_cells("test"))
    assert repr(small.torch("test")).startswith("<TorchCells: ")


def first_fov(folder: Path, split: str) -> str:
    return Dataset(folder).fovs(split)[0]


def wrong_count(folder):
    rewrite(folder, "labels", lambda f: f.assign(n_molecules=f["n_molecules"] + 1))


def wrong_cell_count(folder):
    rewrite(folder, "cells", lambda f: f.assign(n_genes=f["n_genes"] + 1))


def cell_in_two_splits(folder):
    """The first cell of a train FOV also lies in a test FOV."""
    test = first_fov(folder, "test")
    cell = Dataset(folder).cells("train")["cell_id"].iloc[0]
    for table in ("cells", "molecules", "labels"):
        rewrite(folder, table, lambda f: _with_copy(f, cell, cell, test))


def copied_cell(folder):
    """A train cell lies, under another name and elsewhere, in a test FOV."""
    test = first_fov(folder, "test")
    cell = Dataset(folder).cells("train")["cell_id"].iloc[0]
    for table in ("cells", "molecules", "labels"):
        rewrite(folder, table, lambda f: _with_copy(f, cell, f"{test}-99", test, shift=512.0))


def _with_copy(frame, cell, name, fov, shift=0.0):
    copy = frame[frame["cell_id"] == cell].assign(cell_id=name, fov=fov)
    if "x" in copy:
        copy["x"] += np.float32(shift)
    keys = [key for key in ("fov", "cell_id", "gene", "x", "y") if key in frame]
    keys = keys[:2] if "cell_boundary" in frame else keys
    return pd.concat([frame, copy]).sort_values(keys)


def fov_in_two_splits(folder):
    test = first_fov(folder, "test")
    extra = pd.DataFrame({"fov": [test], "split": ["train"]})
    rewrite(folder, "splits", lambda f: pd.concat([f, extra]).sort_values("fov", kind="stable"))


def fov_without_split(folder):
    fov = first_fov(folder, "train")
    rewrite(folder, "splits", lambda f: f[f["fov"] != fov])


def unknown_split(folder):
    fov = first_fov(folder, "train")
    rewrite(folder, "splits", lambda f: f.assign(split=f["split"].mask(f["fov"] == fov, "hold")))


def unsorted(table):
    def swap(frame):
        # The last two rows of the last field of view, so that row groups stay as they are.
        rows = frame.index.tolist()
        return frame.loc[[*rows[:-2], rows[-1], rows[-2]]]

    return lambda folder: rewrite(folder, table, swap)


def labels_in_another_fov(folder):
    """The labels of a train cell stand in a test FOV: its pairs would be scored as test pairs."""
    test = first_fov(folder, "test")
    cell = Dataset(folder).cells("train")["cell_id"].iloc[0]
    keys = ["fov", "cell_id", "gene"]
    rewrite(
        folder,
        "labels",
        lambda f: f.assign(fov=f["fov"].mask(f["cell_id"] == cell, test)).sort_values(keys),
    )


def labels_twice(folder):
    rewrite(folder, "labels", lambda f: pd.concat([f, f.iloc[-1:]]))


def nan_coordinate(folder):
    path = folder / "molecules.parquet"
    table = pq.read_table(path)
    y = np.append(table["y"].to_numpy()[:-1], np.float32(np.nan))
    at = table.column_names.index("y")
    write_table(path, table.set_column(at, table.schema.field("y"), pa.array(y)))
    pin(folder, "molecules")


def invalid_outline(folder):
    bow = shapely.to_wkb(shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]))
    rewrite(folder, "cells", lambda f: f.assign(cell_boundary=[bow, *f["cell_boundary"][1:]]))


def garbled_outline(folder):
    rewrite(folder, "cells", lambda f: f.assign(cell_boundary=[b"?", *f["cell_boundary"][1:]]))


def outlines_of_other_cells(folder):
    rewrite(folder, "cells", lambda f: f.assign(cell_boundary=np.roll(f["cell_boundary"], 1)))


def cell_without_molecules(folder):
    def add(frame):
        extra = frame.iloc[-1:].assign(cell_id="F999-99")
        return pd.concat([frame, extra])

    rewrite(folder, "cells", add)


def other_columns(folder):
    path = folder / "molecules.parquet"
    table = pq.read_table(path)
    write_table(path, table.append_column("CellComp", table["fov"]))
    pin(folder, "molecules")


def other_content_hash(folder):
    def change(manifest):
        manifest["files"]["labels.parquet"]["content_sha256"] = "0" * 64

    edit_manifest(folder, change)


def gene_not_listed(folder):
    edit_manifest(folder, lambda m: m["genes"].pop())


def other_manifest_counts(folder):
    def change(manifest):
        manifest["counts"]["labelled_pairs"] += 1
        manifest["counts"]["splits"]["test"]["cells"] += 1

    edit_manifest(folder, change)


def one_row_group(folder):
    path = folder / "molecules.parquet"
    pq.write_table(pq.read_table(path), path)
    pin(folder, "molecules")


SPOILT = {
    "n_molecules of labels": (
        wrong_count,
        "n_molecules of some pairs differs",
    ),
    "n_genes of cells": (wrong_cell_count, "counts of some cells differ from molecules.parquet"),
    "a cell in two splits": (cell_in_two_splits, "cell ids that occur more than once"),
    "a copied cell": (copied_cell, "same molecules in different splits"),
    "a FOV in two splits": (fov_in_two_splits, "more than once"),
    "a FOV without split": (fov_without_split, "fields of view without a split"),
    "an unknown split": (unknown_split, "unknown splits: hold"),
    "unsorted molecules": (unsorted("molecules"), "molecules.parquet: rows are not sorted"),
    "unsorted cells": (unsorted("cells"), "cells.parquet: rows are not sorted"),
    "unsorted labels": (unsorted("labels"), "labels.parquet: rows are not sorted"),
    "unsorted splits": (unsorted("splits"), "splits.parquet: rows are not sorted"),
    "labels in another FOV": (labels_in_another_fov, "labels.parquet"),
    "a pair labelled twice": (labels_twice, "pairs that occur more than once"),
    "a coordinate that is NaN": (nan_coordinate, "y has values that are not finite"),
    "an invalid outline": (invalid_outline, "invalid or empty"),
    "an unreadable outline": (garbled_outline, "cell_boundary"),
    "outlines of other cells": (
        outlines_of_other_cells,
        "molecules lie in their cells (within 1 um), expected at least 50%",
    ),
    "a cell without molecules": (cell_without_molecules, "counts of some cells differ"),
    "a column too many": (other_columns, "molecules.parquet: expected columns"),
    "another content hash": (other_content_hash, "labels.parquet: expected content hash 000"),
    "a gene that the manifest lacks": (gene_not_listed, "genes"),
    "other counts in the manifest": (other_manifest_counts, "counts"),
    "a row group of many FOVs": (one_row_group, "exactly one field of view"),
}


class TestVerify:
    @pytest.mark.parametrize("labels", [True, False])
    def test_a_dataset_as_written_is_fine(self, tmp_path, labels):
        make(tmp_path / "fresh", labels=labels).verify()

    def test_tables_of_older_versions_say_nothing_of_molecules_in_their_cells(self, folder):
        edit_manifest(folder, lambda manifest: manifest.pop("placement"))
        dataset = Dataset(folder)
        assert dataset.manifest.placement is None
        assert dataset.verify() == measure_placement(folder, dataset.fovs())

    def test_rewriting_the_same_rows_is_fine(self, folder):
        # So that the findings below are about what was changed, not about the rewriting.
        for table in ("molecules", "cells", "labels", "splits"):
            rewrite(folder, table, lambda frame: frame)
        Dataset(folder).verify()

    @pytest.mark.parametrize("name", SPOILT)
    def test_finds(self, folder, name):
        spoil, expected = SPOILT[name]
        spoil(folder)
        with pytest.raises(TableError) as caught:
            load_dataset(folder, verify=True)
        assert expected in str(caught.value)

    @pytest.mark.parametrize("table", ["molecules", "cells", "labels", "splits"])
    @pytest.mark.parametrize("where", [100, -5], ids=["data", "footer"])
    def test_finds_a_flipped_byte(self, folder, table, where):
        path = folder / f"{table}.parquet"
        data = bytearray(path.read_bytes())
        data[where] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(TableError, match=rf"{table}\.parquet"):
            load_dataset(folder, verify=True)

    def test_all_problems_at_once(self, folder):
        wrong_count(folder)
        wrong_cell_count(folder)
        copied_cell(folder)
        with pytest.raises(TableError) as caught:
            Dataset(folder).verify()
        text = str(caught.value)
        for table in ("labels.parquet", "cells.parquet", "manifest.json"):
            assert table in text
        assert "same molecules in different splits" in text
