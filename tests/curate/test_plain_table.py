"""Plain tables of molecules with files of outlines, and the same in memory."""

from __future__ import annotations

import gzip
import json
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shapely

from gpattern_bench.base.geometry import surrogate_outline
from gpattern_bench.curate.build import curate
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import SourceError
from gpattern_bench.features import compute_features
from gpattern_bench.runs.run import run_method
from gpattern_bench.sources.recipe import Recipe

IDS = [str(100 + k) for k in range(6)]
CELLS = pd.Series([shapely.box(20 * k, 0, 20 * k + 18, 15) for k in range(6)], IDS)
NUCLEI = pd.Series([shapely.box(20 * k + 5, 4, 20 * k + 10, 9) for k in range(6)], IDS)
PATTERNS = ("cell_edge", "cytoplasmic", "nuclear", "nuclear_edge")


def molecules() -> pd.DataFrame:
    """Forty molecules in each cell, one outside."""
    rng = np.random.default_rng(0)
    rows = [
        (name, gene, 20 * k + x, y)
        for k, name in enumerate(IDS)
        for gene, x, y in zip(
            rng.choice(["A", "B", "NA"], 40), rng.uniform(1, 17, 40), rng.uniform(1, 14, 40),
            strict=True,
        )
    ]  # fmt: skip
    frame = pd.DataFrame([*rows, ("", "A", 500.0, 3.0)], columns=["cell_id", "gene", "x", "y"])
    return frame.sample(frac=1, random_state=0, ignore_index=True)


def feature(name, shape, **more):
    mapping = shapely.geometry.mapping(shape)
    return {"type": "Feature", "properties": {"cell_id": name}, "geometry": mapping} | more


def collection(features):
    return json.dumps({"type": "FeatureCollection", "features": features})


@pytest.fixture
def made(tmp_path):
    """Curate a table; files as text, or written already."""

    def make(table="m.csv", frame=None, **fields):
        frame = molecules() if frame is None else frame
        if not (tmp_path / table).exists():
            frame.to_csv(tmp_path / table, index=False)
        fields = {"surrogate_outlines": "cells" not in fields, "tile_um": 500} | fields
        recipe = Recipe(format="table", path=table, patterns=PATTERNS, split="auto", **fields)
        out = tmp_path / f"tables-{len(list(tmp_path.iterdir()))}"
        return Dataset(curate(recipe, tmp_path, out, name="mine", version="0.0.0"))

    return make


def hashes(dataset: Dataset) -> dict[str, str]:
    return {name: about.content_sha256 for name, about in dataset.manifest.files.items()}


@pytest.fixture(scope="module")
def wanted() -> Dataset:
    return Dataset.from_frames(molecules(), CELLS, NUCLEI)


def test_a_dataset_in_memory_has_every_molecule_and_outline(wanted):
    assert wanted.counts["molecules"] == 240
    assert wanted.manifest.dropped["molecules"] == {"outside every cell": 1}
    assert wanted.genes == ("A", "B", "NA")
    assert wanted.splits == ("test",)
    cells = wanted.cells().set_index("cell_id")
    assert all(cells.loc[name, "cell_boundary"].equals(CELLS[name]) for name in IDS)
    assert all(cells.loc[name, "nucleus_boundary"].equals(NUCLEI[name]) for name in IDS)
    assert wanted.manifest.placement.share == 1
    wanted.verify()


class TestOutlines:
    def write(self, path, kind):
        table = pd.DataFrame({"cell_id": IDS, "geometry": shapely.to_wkt(CELLS)})
        features = [feature(int(name), shape) for name, shape in CELLS.items()]
        if kind == "geojson":
            path.write_text(collection(features))
        elif kind == "geojson.gz":
            for each in features:  # as the feature's own id
                each["id"] = str(each["properties"].pop("cell_id"))
            path.write_bytes(gzip.compress(collection(features).encode("utf-8-sig")))
        elif kind == "qupath.json":  # cells with their nuclei, an annotation around all
            for each, nucleus in zip(features, NUCLEI, strict=True):
                each["properties"]["objectType"] = "cell"
                each["nucleusGeometry"] = shapely.geometry.mapping(nucleus)
            around = feature(1, shapely.box(0, 0, 200, 200))
            around["properties"]["objectType"] = "annotation"
            path.write_text(json.dumps([around, *features]))
        elif kind == "baysor.json":
            shapes = [
                f["geometry"] | {"cell": int(name)} for f, name in zip(features, IDS, strict=True)
            ]
            path.write_text(json.dumps({"type": "GeometryCollection", "geometries": shapes}))
        elif kind == "csv":
            table.rename(columns={"geometry": "WKT"}).to_csv(path, index=False)
        elif kind == "tsv.gz":
            table.to_csv(path, index=False, sep="\t", compression="gzip")
        else:
            geopandas = pytest.importorskip("geopandas", reason="geopandas is not installed")
            frame = geopandas.GeoDataFrame({"cell_id": IDS}, geometry=CELLS.to_numpy())
            frame = frame.set_index("cell_id") if kind == "index.parquet" else frame
            frame.to_parquet(path)

    @pytest.mark.parametrize(
        "kind",
        ["geojson", "geojson.gz", "qupath.json", "baysor.json", "csv", "tsv.gz", "ids.parquet",
         "index.parquet"],
    )  # fmt: skip
    def test_of_every_kind_are_the_same(self, made, tmp_path, wanted, kind):
        self.write(tmp_path / f"cells.{kind}", kind)
        pd.DataFrame({"cell_id": IDS, "WKT": shapely.to_wkt(NUCLEI)}).to_csv(
            tmp_path / "nuclei.csv", index=False
        )
        nuclei = None if kind == "qupath.json" else "nuclei.csv"
        found = made(cells=f"cells.{kind}", nuclei=nuclei)
        assert hashes(found) == hashes(wanted)

    def test_row_numbers_are_no_ids(self, made, tmp_path):
        geopandas = pytest.importorskip("geopandas", reason="geopandas is not installed")
        geopandas.GeoDataFrame(geometry=CELLS.to_numpy()).to_parquet(tmp_path / "cells.parquet")
        with pytest.raises(SourceError, match="no column of the cells' ids: expected one of"):
            made(cells="cells.parquet")
        features = [feature(name, shape, properties={"area": 1}) for name, shape in CELLS.items()]
        (tmp_path / "cells.geojson").write_text(collection(features))
        with pytest.raises(SourceError, match=r"an id in all 6 features.* are area \(6\)"):
            made(cells="cells.geojson")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{", "cannot be read as GeoJSON"),
            ('{"type": "FeatureCollection", "features": []}', "has no features"),
            (collection([feature(1, shapely.Point(0, 0))]), "expected a Polygon, got a Point"),
            (collection([feature(True, CELLS.iloc[0])]), "expected text or a whole number as id"),
            (collection([feature(1.5, CELLS.iloc[0])]), "expected text or a whole number as id"),
            (collection([feature("100", CELLS.iloc[0])] * 2), "100 occurs more than once"),
        ],
    )
    def test_odd_ones_are_refused(self, made, tmp_path, text, words):
        (tmp_path / "cells.geojson").write_text(text)
        with pytest.raises(SourceError, match=words):
            made(cells="cells.geojson")

    def test_without_any_they_are_drawn_around_the_molecules(self, made):
        found = made()
        frame = molecules().astype({"x": "float32", "y": "float32"})
        xy = frame.loc[frame["cell_id"] == "103", ["x", "y"]].to_numpy(float)
        outline = found.cells().set_index("cell_id").loc["103", "cell_boundary"]
        assert outline.symmetric_difference(surrogate_outline(xy)).area < 1e-3
        assert found.manifest.raw["curation"]["surrogate_outlines"] is True

    def test_are_given_or_drawn_not_both(self, made):
        for cells, drawn in ((None, False), ("c.csv", True)):
            with pytest.raises(SourceError, match=r"--cells.* or .*--surrogate-outlines"):
                made(cells=cells, surrogate_outlines=drawn)


class TestMolecules:
    @pytest.fixture(autouse=True)
    def cells(self, tmp_path):
        pd.DataFrame({"cell_id": IDS, "WKT": shapely.to_wkt(CELLS)}).to_csv(
            tmp_path / "c.csv", index=False
        )

    @pytest.mark.parametrize("table", ["m.tsv", "m.csv.gz", "m.parquet"])
    def test_of_every_kind_are_the_same(self, made, tmp_path, table):
        frame, path = molecules().replace({"cell_id": {"": None}}), tmp_path / table
        if table == "m.parquet":  # numbers, stored as floats because one is missing
            frame.astype({"cell_id": float}).to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if "tsv" in table else ",")
        assert hashes(made(table, cells="c.csv")) == hashes(made(cells="c.csv"))

    def test_columns_have_any_names(self, made):
        names = {"cell_id": "assignment", "gene": "target", "x": "px", "y": "py"}
        fields = {"x_column": "px", "y_column": "py", "gene_column": "target"}
        found = made(
            "other.csv", molecules().rename(columns=names), cells="c.csv",
            cell_column="assignment", **fields,
        )  # fmt: skip
        assert hashes(found) == hashes(made(cells="c.csv"))
        with pytest.raises(SourceError, match=r"lacks the columns x, y, gene; .*--x, --y, --gene"):
            made("other.csv", cells="c.csv")

    def test_without_a_cell_go_by_the_outlines(self, made):
        found = made("bare.csv", molecules().drop(columns="cell_id"), cells="c.csv")
        assert hashes(found) == hashes(made(cells="c.csv"))

    def test_of_low_quality_and_of_controls_are_dropped(self, made):
        frame = molecules()
        frame["qv"] = np.where(frame.index < 10, 5, 40)
        frame["is_gene"] = np.where(frame.index >= 230, "False", "True")
        dropped = made("q.csv", frame, cells="c.csv").manifest.dropped["molecules"]
        assert dropped["quality (qv) below 20"] == 10
        assert dropped["control target"] == 11 - (frame["cell_id"][230:] == "").sum()

    def test_of_another_segmentation_are_refused(self, made):
        frame = molecules().replace({"cell_id": dict(zip(IDS, [*IDS[1:], IDS[0]], strict=True))})
        with pytest.raises(SourceError, match=r"only 0\.0% of the 240 molecules lie in"):
            made("stale.csv", frame, cells="c.csv")


def test_labels_go_with_their_cells(made, tmp_path):
    pd.DataFrame({"cell_id": IDS, "WKT": shapely.to_wkt(CELLS)}).to_csv(
        tmp_path / "c.csv", index=False
    )
    labels = pd.DataFrame({"cell": [*IDS, "nobody"], "gene": "A"})
    labels = labels.assign(**{name: int(name == "nuclear") for name in PATTERNS})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    found = made(cells="c.csv", labels="labels.csv", tile_um=20)
    assert found.labels()["cell_id"].tolist() == IDS
    assert found.manifest.dropped["labels"] == {"pair without molecules": 1}
    assert found.splits == ("train", "val", "test")
    own = labels.rename(columns={"cell": "cell_id"}).astype(dict.fromkeys(PATTERNS, bool))
    same = Dataset.from_frames(molecules(), CELLS, labels=own, tile_um=20)
    assert hashes(same) == hashes(found)
    assert same.patterns == PATTERNS


def test_the_command_makes_a_dataset(command, tmp_path, wanted):
    frame = molecules().assign(x=lambda f: f["x"] * 10, y=lambda f: f["y"] * 10)
    frame.to_csv(tmp_path / "m.csv", index=False)
    for name, shapes in (("cells", CELLS), ("nuclei", NUCLEI)):
        shapes = shapely.transform(shapes.to_numpy(), lambda xy: xy * 10)
        features = [feature(key, shape) for key, shape in zip(IDS, shapes, strict=True)]
        (tmp_path / f"{name}.geojson").write_text(collection(features))
    code, out, _ = command(
        "curate", "table", tmp_path / "m.csv", "--cells", tmp_path / "cells.geojson", "--nuclei",
        tmp_path / "nuclei.geojson", "--unit-um", 0.1, "--out", tmp_path / "mine",
    )  # fmt: skip
    assert code == 0
    assert "6 cells, 3 genes" in out
    found = Dataset(tmp_path / "mine").cells()["cell_boundary"]
    assert found.iloc[2].hausdorff_distance(CELLS.iloc[2]) < 1e-9


class TestInMemory:
    @pytest.mark.parametrize(
        "change",
        [
            lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
            lambda frame: frame.astype({"gene": "category", "cell_id": "category"}),
            lambda frame: frame.replace({"cell_id": {"": None}}).astype({"cell_id": float}),
            lambda frame: frame.replace({"cell_id": {"": "-1"}}).astype({"cell_id": int}),
            lambda frame: frame.set_index(frame.index[::-1]),
        ],
        ids=["arrow", "categories", "floats", "integers", "index"],
    )
    def test_any_types_of_names_are_the_same(self, wanted, change):
        assert hashes(Dataset.from_frames(change(molecules()), CELLS, NUCLEI)) == hashes(wanted)

    def test_cells_by_column_or_index(self, wanted):
        geopandas = pytest.importorskip("geopandas", reason="geopandas is not installed")
        frame = geopandas.GeoDataFrame({"cell_id": IDS}, geometry=CELLS.to_numpy())
        numbers = pd.Series(CELLS.to_numpy(), [int(name) for name in IDS])
        for cells in (frame, frame.set_index("cell_id"), numbers, numbers.iloc[::-1]):
            assert hashes(Dataset.from_frames(molecules(), cells, NUCLEI)) == hashes(wanted)
        with pytest.raises(SourceError, match="cells have no ids, only row numbers"):
            Dataset.from_frames(molecules(), frame.geometry)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"x": "a"}, "expected numbers in x"),
            ({"cell_id": 1.5e300}, "a number that has lost its last digits"),
            ({"cell_id": [[1]] * 241}, "expected text or whole numbers in cell_id"),
        ],
    )
    def test_other_types_are_refused(self, change, words):
        with pytest.raises(SourceError, match=words):
            Dataset.from_frames(molecules().assign(**change), CELLS)

    def test_what_lacks_is_named(self):
        with pytest.raises(SourceError, match="molecules lack the columns gene; they have cell_id"):
            Dataset.from_frames(molecules().drop(columns="gene"), CELLS)
        with pytest.raises(SourceError, match="no column cell_id, and there are no outlines"):
            Dataset.from_frames(molecules().drop(columns="cell_id"), None)
        with pytest.raises(SourceError, match="no nucleus belongs to a cell: their ids are z, "):
            Dataset.from_frames(molecules(), CELLS, pd.Series(NUCLEI[:1].to_numpy(), ["z"]))
        labels = pd.DataFrame({"cell_id": IDS, "gene": "A", "nuclear": [1, 0, 1, 0, None, 1]})
        with pytest.raises(SourceError, match="labels, data row 5: expected a cell, a gene and 0"):
            Dataset.from_frames(molecules(), CELLS, labels=labels)

    def test_methods_and_features_take_it(self, wanted, tmp_path):
        assert len(compute_features("bento", wanted)) == wanted.counts["pairs"]
        assert [path.name for path in run_method("sprawl", wanted, tmp_path)] == [
            "test-seed0.parquet"
        ]
        there = pickle.loads(pickle.dumps(wanted))  # as for a worker
        assert len(list(there.iter_cells())) == 6


@pytest.mark.slow
def test_spatialdata_in_memory_is_the_same_as_on_disk(wanted, tmp_path):
    pytest.importorskip("spatialdata", reason="spatialdata is not installed")
    from spatialdata.transformations import Scale, set_transformation

    sdata = wanted.to_spatialdata()
    set_transformation(sdata.points["transcripts"], Scale([2.0, 2.0], ("x", "y")))
    set_transformation(sdata.shapes["cell_boundaries"], Scale([2.0, 2.0], ("x", "y")))
    nuclei = sdata.shapes["nucleus_boundaries"]  # in another frame: twice that of the others
    with pytest.raises(SourceError, match="only 1 of 6 nuclei lie in the cell of their id"):
        Dataset.from_spatialdata(sdata)
    nuclei["geometry"] = nuclei.geometry.scale(2, 2, origin=(0, 0))
    found = Dataset.from_spatialdata(sdata)
    assert found.counts == wanted.counts
    assert found.cells()["nucleus_boundary"].iloc[0].equals(NUCLEI.iloc[0])
    with pytest.raises(SourceError, match="the object has no shapes 'polygons'; it has points tr"):
        Dataset.from_spatialdata(sdata, cells="polygons")


SAME = {
    "blanks": lambda name: f" {name} ",
    "floats": lambda name: f"{name}.0",
}


class TestNames:
    """Ids are compared as the export meant them, whatever the file made of them."""

    def outlines(self, path, names=IDS):
        frame = pd.DataFrame({"cell_id": names, "WKT": shapely.to_wkt(CELLS)})
        frame.to_csv(path / "c.csv", index=False)

    @pytest.mark.parametrize("form", SAME)
    @pytest.mark.parametrize("side", ["molecules", "csv", "geojson", "parquet", "labels"])
    def test_written_otherwise_on_one_side_are_the_same(self, made, tmp_path, form, side):
        self.outlines(tmp_path)
        names = [SAME[form](name) for name in IDS]
        frame, fields = molecules(), {"cells": "c.csv"}
        labels = pd.DataFrame({"cell": IDS, "gene": "A"}).assign(**dict.fromkeys(PATTERNS, True))
        if side == "molecules":
            frame = frame.replace({"cell_id": dict(zip(IDS, names, strict=True))})
        elif side == "csv":
            self.outlines(tmp_path, names)
        elif side == "geojson":
            features = [feature(name, shape) for name, shape in zip(names, CELLS, strict=True)]
            (tmp_path / "c.json").write_text(collection(features))
            fields["cells"] = "c.json"
        elif side == "parquet":
            table = pd.DataFrame({"cell_id": names, "geometry": shapely.to_wkb(CELLS)})
            table.to_parquet(tmp_path / "c.parquet")
            fields["cells"] = "c.parquet"
        else:
            labels = labels.assign(cell=names)
        labels.to_csv(tmp_path / "labels.csv", index=False)
        found = made("n.csv", frame, labels="labels.csv", tile_um=20, **fields)
        assert found.counts["molecules"] == 240
        assert found.labels()["cell_id"].tolist() == IDS

    @pytest.mark.parametrize("nothing", ["NA", "nan", "None", "Unassigned", "-1.0", "null"])
    def test_of_no_cell_are_outside_also_of_drawn_outlines(self, made, tmp_path, nothing):
        self.outlines(tmp_path)
        frame = molecules().replace({"cell_id": {"": nothing}})
        for fields in ({"cells": "c.csv"}, {}):
            found = made("n.csv", frame, **fields)
            assert found.manifest.dropped["molecules"] == {"outside every cell": 1}
            assert len(found.cells()) == 6

    def test_a_cell_around_the_others_is_none(self, made):
        edge = [(0.0, 0.0), (120.0, 0.0), (120.0, 15.0), (0.0, 15.0)]
        around = pd.DataFrame([("0", "A", x, y) for x, y in edge], columns=molecules().columns)
        with pytest.raises(SourceError, match="molecules of cell 0 holds 6 of the 6 other cells"):
            made("background.csv", pd.concat([molecules(), around]))

    def test_of_genes_have_no_blanks_around(self):
        frame = molecules()
        frame["gene"] = np.where(frame.index % 2, frame["gene"] + " ", frame["gene"])
        assert Dataset.from_frames(frame, CELLS).genes == ("A", "B", "NA")

    def test_mixed_types_are_the_same(self, wanted):
        frame = molecules()
        frame["cell_id"] = [int(n) if n and k % 2 else n for k, n in enumerate(frame["cell_id"])]
        cells = pd.Series(CELLS.to_numpy(), pd.Index([100, "101", 102.0, *IDS[3:]], dtype=object))
        assert hashes(Dataset.from_frames(frame, cells, NUCLEI)) == hashes(wanted)

    def test_that_mostly_differ_are_warned_of(self, made, tmp_path):
        self.outlines(tmp_path, ["0100", "0101", "0102", "0103", "104", "105"])
        warnings = made("n.csv", cells="c.csv").manifest.warnings
        assert warnings[0].startswith("160 molecules dropped (cell without an outline), only 80 ")

    def test_that_are_missing_let_most_molecules_fall_outside(self, made, tmp_path):
        self.outlines(tmp_path)
        frame = molecules().drop(columns="cell_id").rename(columns={"x": "y", "y": "x"})
        warnings = made("t.csv", frame, cells="c.csv").manifest.warnings
        assert "molecules dropped (outside every cell), only " in warnings[0]

    def test_of_columns_are_different(self, made, tmp_path):
        self.outlines(tmp_path)
        with pytest.raises(SourceError, match="one column has two meanings: --x y, --y y, --gene"):
            made(cells="c.csv", x_column="y")


def test_nuclei_of_other_ids_are_refused(made, tmp_path):
    """Their ids collide with those of the cells."""
    pd.DataFrame({"cell_id": IDS, "WKT": shapely.to_wkt(CELLS)}).to_csv(
        tmp_path / "c.csv", index=False
    )
    nuclei = pd.DataFrame({"cell_id": [*IDS[4:], *IDS[:4]], "WKT": shapely.to_wkt(NUCLEI)})
    nuclei.to_csv(tmp_path / "n.csv", index=False)
    with pytest.raises(SourceError, match="only 0 of 6 nuclei lie in the cell of their id"):
        made(cells="c.csv", nuclei="n.csv")


def test_rings_may_be_open_and_outlines_empty(made, tmp_path):
    features = [feature(name, shape) for name, shape in CELLS.items()]
    for each in features:
        each["geometry"]["coordinates"] = [each["geometry"]["coordinates"][0][:-1]]
    (tmp_path / "open.json").write_text(collection(features))
    assert list(made(cells="open.json").cells()["cell_boundary"]) == list(CELLS)
    features[0]["geometry"]["coordinates"] = []
    features[1]["geometry"]["coordinates"] = [[]]
    (tmp_path / "empty.json").write_text(collection(features))
    found = made(cells="empty.json").manifest.dropped
    assert found["cells"] == {"without an outline": 2}
    assert found["molecules"]["cell without an outline"] == 80


class TestFiles:
    """A file is what its first bytes say."""

    @pytest.fixture(autouse=True)
    def cells(self, tmp_path):
        frame = pd.DataFrame({"cell_id": IDS, "Geometry": shapely.to_wkt(CELLS)})
        frame.to_parquet(tmp_path / "c.geoparquet")  # text, and no metadata of GeoParquet

    @pytest.mark.parametrize("name", ["M.CSV.GZ", "m.gz", "m.PARQUET", "m.pq", "folder.parquet"])
    def test_whatever_its_name(self, made, tmp_path, name):
        frame, path = molecules(), tmp_path / name
        if name == "folder.parquet":  # as Dask writes it
            path.mkdir()
            frame[:100].to_parquet(path / "part.0.parquet")
            frame[100:].to_parquet(path / "part.1.parquet")
        elif "gz" in name.lower():
            path.write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
        else:
            frame.to_parquet(tmp_path / "written.parquet")
            (tmp_path / "written.parquet").rename(path)
        found = made(name, cells="c.geoparquet")
        assert hashes(found) == hashes(made("m.csv", cells="c.geoparquet"))

    @pytest.mark.parametrize("sign", [", ", ";", "\t"])
    def test_blanks_after_separators_and_decimal_commas(self, made, tmp_path, sign):
        frame = molecules()
        for axis in "xy":  # a row without decimals
            frame.loc[0, axis] = frame.loc[0, axis].round()
        text = frame.to_csv(index=False, sep=sign[0], decimal="." if sign == ", " else ",")
        text = text.replace(sign[0], sign).replace(",0;", ";").replace(",0\n", "\n")
        (tmp_path / "m.csv").write_text(text)
        found = made(cells="c.geoparquet")
        assert hashes(found) == hashes(made("plain.csv", frame, cells="c.geoparquet"))

    def test_what_is_packed_otherwise_is_named(self, made, tmp_path):
        molecules().to_csv(tmp_path / "m.csv.zip", index=False)
        with pytest.raises(SourceError, match=r"m\.csv\.zip is a zip archive .*; unpack it"):
            made("m.csv.zip", cells="c.geoparquet")


@pytest.mark.parametrize("kind", ["bool", "text", "semicolons"])
def test_labels_may_be_true_or_false(made, tmp_path, kind):
    pd.DataFrame({"cell_id": IDS, "WKT": shapely.to_wkt(CELLS)}).to_csv(
        tmp_path / "c.csv", index=False
    )
    labels = pd.DataFrame({"cell_id": IDS, "gene": "A"})
    labels = labels.assign(**{name: name == "nuclear" for name in PATTERNS})
    if kind == "text":
        labels = labels.replace({True: "TRUE", False: "FALSE"})
    labels.to_csv(tmp_path / "l.csv", index=False, sep=";" if kind == "semicolons" else ",")
    found = made(cells="c.csv", labels="l.csv", tile_um=20).labels()
    assert found["nuclear"].all()
    assert not found["cell_edge"].any()


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (list(CELLS), "cells: expected a GeoDataFrame, a DataFrame or a Series"),
        (CELLS.set_axis(pd.MultiIndex.from_product([["s"], IDS])), "no ids, a MultiIndex"),
        (pd.Series(shapely.to_wkt(CELLS), IDS), "expected shapely geometries"),
    ],
)
def test_other_outlines_in_memory_are_refused(cells, words):
    with pytest.raises(SourceError, match=words):
        Dataset.from_frames(molecules(), cells)


def test_columns_that_are_there_twice_are_refused():
    frame = molecules()
    with pytest.raises(SourceError, match="molecules have the columns gene twice"):
        Dataset.from_frames(pd.concat([frame, frame[["gene"]]], axis=1), CELLS)
