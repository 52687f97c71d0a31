"""The way back: AnnData and SpatialData of a dataset, written and read again by these libraries."""

import subprocess
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from shapely import MultiPolygon, box

from gpattern_bench import call, load_dataset
from gpattern_bench.curate.build import curate
from gpattern_bench.curate.release import Release
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.simulate.cells import PATTERNS
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MissingExtraError, PredictionError, SourceError
from gpattern_bench.interop.scverse import to_anndata, to_spatialdata
from gpattern_bench.predictions import write_predictions
from gpattern_bench.sources.recipe import Recipe

pytestmark = pytest.mark.slow

copies_texts = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.3.0",
    reason="older versions of numpy crash where spatialdata copies the texts of a table",
)


def imported(name):
    """A library of the extra, or the test is skipped; what it warns about itself is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed (extra: spatial)")
        return import_module(name)  # one that is installed and broken is no reason to skip


@pytest.fixture(scope="module")
def anndata():
    return imported("anndata")


@pytest.fixture(scope="module")
def spatialdata():
    return imported("spatialdata")


@pytest.fixture(scope="module")
def synthetic():
    return load_dataset("synthetic")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Two cells without labels, one of two parts, one without a nucleus; z measured."""
    cells = pd.DataFrame({"cell_id": ["a", "b"], "fov": ["1", "2"], "touches_border": [True, None]})
    cells["cell_boundary"] = [MultiPolygon([box(0, 0, 8, 8), box(9, 0, 12, 8)]), box(20, 0, 30, 9)]
    cells["nucleus_boundary"] = [box(1, 1, 4, 4), None]
    rows = [("a", "G2", 1, 1, 0.5), ("a", "G2", 2, 1, 1.5), ("b", "G1", 22, 3, 2.5)]
    molecules = pd.DataFrame(rows, columns=["cell_id", "gene", "x", "y", "z"])
    molecules["fov"] = molecules["cell_id"].map({"a": "1", "b": "2"})
    recipe = Recipe(format="spatialdata", patterns=("nuclear", "cell_edge"), split="test")
    folder = tmp_path_factory.mktemp("own") / "own"
    pieces = [
        apply_rules(Release(molecules[molecules["fov"] == fov], cells[cells["fov"] == fov]), recipe)
        for fov in ("1", "2")
    ]
    return Dataset(write_dataset(pieces, folder, name="own", version="1.0.0", recipe=recipe))


def scores_of(dataset, split=None):
    """Scores that differ from pair to pair, zeros among them."""
    pairs = dataset.pairs(split)
    rng = np.random.Generator(np.random.Philox(11))
    values = rng.integers(0, 5, (len(pairs), len(dataset.patterns))).astype(np.float32) / 4
    return pairs.assign(**dict(zip(dataset.patterns, values.T, strict=True)))


def written(anndata, table, folder):
    """The same as a file gives it back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of these libraries about their own formats
        table.write_h5ad(folder / "table.h5ad")
        return anndata.read_h5ad(folder / "table.h5ad")


@pytest.fixture(scope="module")
def table(anndata, synthetic, tmp_path_factory):
    """The AnnData of `synthetic`, as a file gives it back; read only."""
    return written(anndata, to_anndata(synthetic), tmp_path_factory.mktemp("h5ad"))


def layers_of(table):
    """Names of layers, sorted; anndata from 0.13 on counts X among them, as None."""
    return sorted(name for name in table.layers if name is not None)


def test_the_h5ad_holds_the_counts_of_every_pair(table, synthetic):
    molecules = synthetic.molecules().to_pandas()
    expected = pd.crosstab(molecules["cell_id"].astype(str), molecules["gene"].astype(str))
    got = pd.DataFrame(table.X.toarray(), table.obs_names, table.var_names)
    assert table.shape == (synthetic.counts["cells"], synthetic.counts["genes"])
    assert tuple(table.var_names) == synthetic.genes
    assert (got.loc[expected.index, expected.columns] == expected).all(axis=None)
    assert table.X.sum() == synthetic.counts["molecules"]
    assert table.X.nnz == synthetic.counts["pairs"]
    assert table.X.dtype == np.int32


def test_the_h5ad_says_of_every_cell_where_it_lies(table, synthetic):
    for split in synthetic.splits:
        cells = synthetic.cells(split)
        obs = table.obs.loc[cells["cell_id"]]
        assert set(obs["split"]) == {split}
        assert obs["fov"].tolist() == cells["fov"].tolist()
        assert obs["n_molecules"].tolist() == cells["n_molecules"].tolist()
        at = table.obs_names.get_indexer(cells["cell_id"])
        assert (table.obsm["spatial"][at] == cells[["x", "y"]].to_numpy(np.float64)).all()
    about = table.uns["gpattern_bench"]
    assert (about["dataset"], about["version"], about["unit"]) == ("synthetic", "1.0.0", "um")
    assert tuple(about["patterns"]) == synthetic.patterns


def test_labels_are_layers_and_a_mask_tells_what_is_labelled(table, synthetic):
    labels = synthetic.labels()
    row = table.obs_names.get_indexer(labels["cell_id"].astype(str))
    column = table.var_names.get_indexer(labels["gene"].astype(str))
    assert table.layers["labelled"].sum() == len(labels)
    assert (np.asarray(table.layers["labelled"][row, column]) == 1).all()
    for name in synthetic.patterns:
        layer = table.layers[f"label_{name}"]
        assert (np.asarray(layer[row, column]).ravel() == labels[name]).all()
        assert layer.nnz == labels[name].sum()  # nothing is stored for the rest
    assert not [name for name in layers_of(table) if name.startswith("scor")]


@pytest.mark.parametrize("form", ["file", "frame", "table"])
def test_scores_are_layers_too(anndata, synthetic, tmp_path, form):
    scores = scores_of(synthetic, "test").sample(frac=1, random_state=0)
    given = {
        "file": lambda: write_predictions(
            tmp_path / "scores.parquet", scores, synthetic, "test", method="mine"
        ),
        "frame": lambda: scores,
        "table": lambda: pa.Table.from_pandas(scores, preserve_index=False),
    }[form]()
    table = written(anndata, to_anndata(synthetic, given), tmp_path)
    row = table.obs_names.get_indexer(scores["cell_id"].astype(str))
    column = table.var_names.get_indexer(scores["gene"].astype(str))
    assert table.layers["scored"].sum() == len(scores)
    assert (np.asarray(table.layers["scored"][row, column]) == 1).all()
    for name in synthetic.patterns:
        layer = table.layers[f"score_{name}"]
        assert layer.dtype == np.float32
        assert layer.nnz == len(scores)  # a score of 0 is stored
        assert (np.asarray(layer[row, column]).ravel() == scores[name]).all()


def test_a_dataset_without_labels_takes_scores_of_some_pairs(anndata, own, tmp_path):
    scores = scores_of(own)[:1]
    table = written(anndata, to_anndata(own, scores), tmp_path)
    assert layers_of(table) == ["score_cell_edge", "score_nuclear", "scored"]
    assert table.layers["scored"].sum() == 1
    assert table.X.toarray().tolist() == [[0, 2], [1, 0]]
    assert table.obs["touches_border"].tolist() == [True, pd.NA]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.assign(cell_id="nobody"), "not of this split"),
        (lambda s: pd.concat([s, s[:2]]), "given more than once"),
        (lambda s: s.drop(columns="nuclear"), "missing: nuclear"),
        (lambda s: s.drop(columns="gene"), "missing: gene"),
        (lambda s: s.assign(nuclear=np.nan), "NaN"),
        (lambda s: s.assign(nuclear=2.0), "outside"),
        (lambda s: s.assign(cell_id=1), "expected text"),
    ],
)
def test_scores_that_do_not_fit_are_refused(anndata, synthetic, change, match):
    with pytest.raises(PredictionError, match=match):
        to_anndata(synthetic, change(scores_of(synthetic, "test")))


def test_a_file_of_scores_must_be_of_this_dataset_and_whole(anndata, synthetic, own, tmp_path):
    scores = scores_of(own)
    path = write_predictions(tmp_path / "own.parquet", scores, own, "test", method="mine")
    assert to_anndata(own, path).layers["scored"].nnz == len(scores)
    with pytest.raises(PredictionError, match="dataset = 'own', expected 'synthetic'"):
        to_anndata(synthetic, path)
    with pytest.raises(PredictionError, match="no such file"):
        to_anndata(synthetic, tmp_path / "absent.parquet")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "bare.parquet")
    with pytest.raises(PredictionError, match="no metadata"):
        to_anndata(own, str(tmp_path / "bare.parquet"))


def read_again(spatialdata, dataset, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of these libraries about their own formats
        to_spatialdata(dataset).write(folder / "made.zarr")
        return spatialdata.read_zarr(folder / "made.zarr")


@pytest.fixture(scope="module")
def zarr(spatialdata, synthetic, tmp_path_factory):
    """Folder of the SpatialData of `synthetic`, and what is read there; read only."""
    folder = tmp_path_factory.mktemp("zarr")
    return folder, read_again(spatialdata, synthetic, folder)


def test_the_zarr_holds_molecules_outlines_and_table(zarr, synthetic):
    data = zarr[1]
    points = data.points["transcripts"]
    molecules = synthetic.molecules().to_pandas()
    got = points.compute().reset_index(drop=True)
    assert sorted(got.columns) == ["cell_id", "fov", "gene", "x", "y"]
    for name in got.columns:
        assert (got[name].to_numpy() == molecules[name].to_numpy()).all()
    keys = points.attrs["spatialdata_attrs"]
    assert (keys["feature_key"], keys["instance_key"]) == ("gene", "cell_id")
    cells = synthetic.cells().set_index("cell_id")
    outlines = data.shapes["cell_boundaries"].geometry
    assert outlines.index.tolist() == cells.index.tolist()
    assert shapely.equals_identical(
        outlines.to_numpy(), cells["cell_boundary"].to_numpy(object)
    ).all()
    nuclei = data.shapes["nucleus_boundaries"].geometry
    expected = cells["nucleus_boundary"].dropna()
    assert nuclei.index.tolist() == expected.index.tolist()
    assert 0 < len(nuclei) < len(cells)
    assert shapely.equals_identical(nuclei.to_numpy(), expected.to_numpy(object)).all()
    table = data.tables["table"]
    assert set(table.obs["region"]) == {"cell_boundaries"}
    assert table.layers["labelled"].sum() == len(synthetic.labels())
    assert data.attrs["gpattern_bench"]["dataset"] == "synthetic"


@copies_texts
def test_the_library_finds_the_cells_of_the_table_and_of_a_region(spatialdata, zarr, synthetic):
    data = zarr[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elements, table = spatialdata.join_spatialelement_table(
            sdata=data, spatial_element_names="cell_boundaries", table_name="table"
        )
        assert len(elements["cell_boundaries"]) == len(table) == synthetic.counts["cells"]
        cells = synthetic.cells()
        lower, upper = np.array([cells["x"].min() - 50] * 2), [cells["x"].median(), 1e6]
        part = spatialdata.bounding_box_query(
            data,
            axes=("x", "y"),
            min_coordinate=lower,
            max_coordinate=np.array(upper),
            target_coordinate_system="global",
        )
    x = synthetic.molecules(columns=["fov", "x", "y"]).to_pandas()
    inside = (x["x"] >= lower[0]) & (x["x"] <= upper[0]) & (x["y"] >= lower[1])
    assert 0 < len(part.points["transcripts"]) == inside.sum() < len(x)


def test_the_zarr_is_curated_to_the_same_tables(zarr, synthetic, tmp_path):
    recipe = Recipe(
        format="spatialdata", path="made.zarr", patterns=synthetic.patterns, fov_column="fov"
    )
    folder = curate(recipe, zarr[0], tmp_path / "back", name="back", version="1.0.0")
    made, expected = (d.manifest.files for d in (Dataset(folder), synthetic))
    molecules = "molecules.parquet"
    assert made[molecules].content_sha256 == expected[molecules].content_sha256
    assert made["cells.parquet"].rows == expected["cells.parquet"].rows


def test_heights_parts_and_missing_nuclei_stay(spatialdata, own, tmp_path):
    data = read_again(spatialdata, own, tmp_path)
    assert data.points["transcripts"].compute()["z"].tolist() == [0.5, 1.5, 2.5]
    outlines = data.shapes["cell_boundaries"].geometry
    assert [shape.geom_type for shape in outlines] == ["MultiPolygon", "Polygon"]
    assert data.shapes["nucleus_boundaries"].index.tolist() == ["a"]
    assert "labelled" not in data.tables["table"].layers


@pytest.mark.parametrize("function", [to_anndata, to_spatialdata])
def test_a_missing_extra_is_named(synthetic, monkeypatch, function):
    for name in ("anndata", "spatialdata"):
        monkeypatch.setitem(sys.modules, name, None)  # as Python marks what cannot be imported
    with pytest.raises(MissingExtraError, match=r"install gpattern-bench\[spatial\]"):
        function(synthetic)


def test_the_libraries_are_imported_only_when_they_are_needed():
    code = "import sys, gpattern_bench.interop.scverse; print('anndata' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@copies_texts
def test_an_object_in_memory_is_called_and_gets_the_answer(spatialdata, shared, tmp_path):
    """A real Xenium crop, its cells named by numbers; written to zarr and read again."""
    source = shared / "xenium_breast" / "bt_small_data.zarr"
    recipe = Recipe(
        format="spatialdata", path=source.name, patterns=PATTERNS, split="test", tile_um=500
    )
    crop = Dataset(curate(recipe, source.parent, tmp_path / "crop", name="crop", version="1.0.0"))
    data = to_spatialdata(crop)
    del data.tables["table"]
    for name in ("cell_boundaries", "nucleus_boundaries"):
        data.shapes[name].index = data.shapes[name].index.astype("int64")
    found = call(data, tmp_path / "answer", jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of these libraries about their own formats
        data.write(tmp_path / "called.zarr")
        read = spatialdata.read_zarr(tmp_path / "called.zarr")
        elements, table = spatialdata.join_spatialelement_table(
            sdata=read, spatial_element_names="cell_boundaries", table_name="gpattern_bench"
        )
    assert len(elements["cell_boundaries"]) == len(table) == crop.counts["cells"]
    assert table.obs["cell_id"].dtype == np.int64
    assert table.obs["cell_id"].astype(str).tolist() == table.obs_names.tolist()
    assert table.X.sum() == crop.counts["molecules"]
    pairs = found.pairs()
    row = table.obs_names.get_indexer(pairs["cell_id"])
    column = table.var_names.get_indexer(pairs["gene"])

    def layer(name):
        return np.asarray(table.layers[name][row, column]).ravel()

    known = pairs["nuclear"].notna()
    assert 0 < known.sum() < len(pairs)
    assert (layer("called") == known).all()
    for name in PATTERNS:
        assert (layer(f"probability_{name}") == pairs[f"{name}_probability"]).all()
        assert (layer(f"call_{name}") == pairs[name].fillna(False).astype(int)).all()
        assert table.layers[f"call_{name}"].sum() == found.record["counts"]["of_pattern"][name]
    genes = found.genes().set_index("gene")
    np.testing.assert_allclose(table.var["nuclear"], genes.loc[table.var_names, "nuclear"])
    about = table.uns["gpattern_bench"]
    assert about["model"]["name"] == "gpsnet-four-patterns"
    assert about["thresholds"]["nuclear"] == found.record["thresholds"]["nuclear"]
    assert list(about["warnings"]) == found.warnings
    # called again, as read: the answer is there already, and takes the place of the table
    again = call(read, tmp_path / "answer", jobs=1)
    assert again.record["counts"] == found.record["counts"]
    read.tables["gpattern_bench"].uns.clear()
    with pytest.raises(SourceError, match="an element gpattern_bench that no call wrote"):
        call(read, jobs=1)
    with pytest.raises(SourceError, match="--format is not for a SpatialData object"):
        call(data, form="xenium", jobs=1)


def test_counts_alone_are_not_called(anndata, own):
    with pytest.raises(SourceError, match="counts molecules and does not say where they are"):
        call(to_anndata(own))
