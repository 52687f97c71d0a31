"""SpatialData as its tools write it: frames, ids, encodings and names of elements."""

import json

import geopandas
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shapely
from exports import CELLS, INSIDE, ngff, write_spatialdata
from shapely import MultiPolygon, Point, affinity, box

from gpattern_bench.curate.readers.spatialdata import read_spatialdata
from gpattern_bench.curate.readers.transformations import plane_maps, relative_map
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import SourceError
from gpattern_bench.sources.recipe import Recipe

POINTS = {
    name: list(values)
    for name, values in zip(("cell", "gene", "x", "y"), zip(*INSIDE, strict=True), strict=True)
}
IDENTITY = np.eye(3)


def read(folder, points=POINTS, shapes=None, *, steps=None, keys=None, **names):
    shapes = {"cell_boundaries": CELLS} if shapes is None else shapes
    write_spatialdata(folder / "s.zarr", points, shapes, steps=steps, keys=keys)
    return read_spatialdata(folder / "s.zarr", **names)


def outlines(release, column="cell_boundary"):
    return release.cells.set_index("cell_id")[column]


def check(release, expected=CELLS):
    """Every molecule lies in the cell it names, and the outlines are as expected."""
    found = outlines(release)
    assert list(found.index) == list(expected)
    for name, shape in expected.items():
        assert shapely.symmetric_difference(found[name], shape).area < 1e-6
    at = shapely.points(release.molecules[["x", "y"]].to_numpy())
    names = release.molecules["cell_id"].astype(str)
    assert shapely.intersects(found.reindex(names).to_numpy(object), at).all()


# Frames -------------------------------------------------------------------------------------------

SCALE = ngff("xyz", type="scale", scale=[4.0, 4.0, 1.0])
FLAT_SCALE = ngff(type="scale", scale=[4.0, 4.0])
ALIGNED = ngff(system="aligned", type="scale", scale=[2.0, 2.0])
TURN = ngff("xyz", type="mapAxis", mapAxis={"x": "y", "y": "x", "z": "z"})
SAME = {
    "scale in 3-D and 2-D": ([SCALE], [FLAT_SCALE]),
    "one more system of the shapes": ([ngff()], [ngff(), ALIGNED]),
    "one more system of the points": ([ALIGNED, ngff()], [ngff()]),
    "a system that is not global": ([ngff(system="um")], [ngff(system="um"), ALIGNED]),
    "a sequence": (
        [ngff(type="sequence", transformations=[{"type": "scale", "scale": [4, 4]}])],
        [ngff(type="affine", affine=[[4, 0, 0], [0, 4, 0]])],
    ),
    "axes exchanged": ([TURN], [ngff(type="affine", affine=[[0, 1, 0], [1, 0, 0], [0, 0, 1]])]),
    "global before another system": (
        [ngff(), ngff(system="aligned", type="scale", scale=[3, 3])],
        [ALIGNED, ngff()],
    ),
    "no transformations": ([], [ngff()]),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_frames_are_equal_however_they_are_written(tmp_path, name):
    points, shapes = SAME[name]
    steps = {"points/transcripts": points, "shapes/cell_boundaries": shapes}
    check(read(tmp_path, steps=steps))


OTHER = {  # of the shapes -> how they are stored so that they fit the points
    "scale": (
        ngff(type="scale", scale=[0.5, 0.5]),
        lambda shape: affinity.scale(shape, 2, 2, origin=(0, 0)),
    ),
    "translation": (
        ngff(type="translation", translation=[500.0, -3.0]),
        lambda shape: affinity.translate(shape, -500, 3),
    ),
    "exchange and scale": (
        ngff(
            type="sequence",
            transformations=[
                ngff(type="mapAxis", mapAxis={"x": "y", "y": "x"}),
                ngff(type="scale", scale=[0.1, 0.1]),
            ],
        ),
        lambda shape: affinity.affine_transform(shape, [0, 10, 10, 0, 0, 0]),
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_outlines_in_another_frame_are_mapped_into_that_of_the_points(tmp_path, name):
    step, stored = OTHER[name]
    shapes = {"cell_boundaries": {cell: stored(shape) for cell, shape in CELLS.items()}}
    check(read(tmp_path, shapes=shapes, steps={"shapes/cell_boundaries": [step]}))


def test_the_unit_is_that_of_the_points_whatever_the_system(tmp_path):
    """Points in um and outlines in pixels of 0.25 um, both brought to pixels."""
    shapes = {
        "cell_boundaries": {c: affinity.scale(s, 4, 4, origin=(0, 0)) for c, s in CELLS.items()}
    }
    steps = {"points/transcripts": [SCALE], "shapes/cell_boundaries": [ngff()]}
    release = read(tmp_path, shapes=shapes, steps=steps)
    check(release)
    assert release.molecules["x"].tolist() == POINTS["x"]


REFUSED = {
    "no system of both": ([ngff(system="um")], [ALIGNED], r"no coordinate system \(aligned; um\)"),
    "systems that differ": (
        [ngff(system="a"), ngff(system="b")],
        [ngff(system="a"), ngff(system="b", type="scale", scale=[2, 2])],
        "by the coordinate system a they lie otherwise than by b",
    ),
    "no affine map": ([ngff()], [ngff(type="displacements")], "its type is displacements"),
    "no inverse": ([ngff(type="scale", scale=[0, 1])], [ngff()], "has no inverse"),
    "other numbers": ([ngff()], [ngff(type="scale", scale=[1, 1, 1])], "3 numbers, expected 2"),
    "z in the plane": (
        [ngff("xyz", type="affine", affine=[[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0]])],
        [ngff()],
        "x or y depend on z",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_frames_that_cannot_be_compared_are_refused(tmp_path, name):
    points, shapes, text = REFUSED[name]
    steps = {"points/transcripts": points, "shapes/cell_boundaries": shapes}
    with pytest.raises(SourceError, match=f"cannot be brought into one frame: .*{text}"):
        read(tmp_path, steps=steps)


def test_a_nucleus_in_another_frame_than_its_cell_is_mapped_too(tmp_path):
    shapes = {"cell_boundaries": CELLS, "nucleus_boundaries": {"b": box(120, 20, 180, 80)}}
    steps = {"shapes/nucleus_boundaries": [ngff(type="scale", scale=[0.1, 0.1])]}
    release = read(tmp_path, shapes=shapes, steps=steps)
    assert outlines(release, "nucleus_boundary")["b"].equals(box(12, 2, 18, 8))


@pytest.mark.slow
def test_maps_are_those_that_spatialdata_computes():
    pytest.importorskip("spatialdata", reason="not installed (extra: spatial)")
    from spatialdata.transformations import Affine, Identity, MapAxis, Scale, Sequence, Translation
    from spatialdata.transformations.transformations import _get_current_output_axes

    rng = np.random.default_rng(0)
    xyz = ("x", "y", "z")
    simple = [
        Identity(),
        Translation([3.0, -2.0, 9.0], xyz),
        Scale([2.0, 0.5], ("x", "y")),
        Scale([7.0, 2.0], ("z", "y")),
        MapAxis({"x": "y", "y": "x"}),
        Affine(np.vstack([rng.normal(size=(2, 3)), [0, 0, 1]]), ("y", "x"), ("y", "x")),
        Affine(np.vstack([rng.normal(size=(2, 3)), [0, 0, 1]]), ("x", "y"), ("y", "x")),
    ]
    several = [Sequence(list(rng.permutation(simple)[:n])) for n in (2, 3, 4, 5) for _ in range(5)]
    for transformation in simple + several:
        for axes in (("x", "y"), xyz):
            reached = tuple(_get_current_output_axes(transformation, axes))
            step = transformation.to_ngff(axes, reached, output_coordinate_system_name="here")
            attributes = {"axes": list(axes), "coordinateTransformations": [step.to_dict()]}
            whole = transformation.to_affine_matrix(axes, reached)
            rows = [reached.index("x"), reached.index("y"), -1]
            expected = whole[rows][:, [0, 1, -1]]
            found = plane_maps(json.loads(json.dumps(attributes)))
            np.testing.assert_allclose(found["here"], expected, atol=1e-12)


def test_a_map_to_itself_is_the_identity():
    maps = plane_maps({"coordinateTransformations": [SCALE, ALIGNED]})
    np.testing.assert_array_equal(relative_map(maps, maps), IDENTITY)


# Shapes -------------------------------------------------------------------------------------------

NUMBERED = POINTS | {"cell": pa.array([3, 3, 7, 9], pa.uint32())}
BY_NUMBER = dict(zip(("3", "7", "9"), CELLS.values(), strict=True))
WKB = shapely.to_wkb(np.array(list(CELLS.values()), object))


@pytest.mark.parametrize("column", ["cell", "cell_id", "EntityID"])
@pytest.mark.parametrize("kind", [pa.uint32(), pa.string(), pa.float64(), pa.string_view()])
def test_ids_come_from_a_column(request, tmp_path, column, kind):
    if kind == pa.string_view():
        request.getfixturevalue("views")
    ids = pa.array([3, 7, 9], pa.uint32()).cast(pa.string() if kind == pa.string_view() else kind)
    table = pa.table({column: ids.cast(kind), "geometry": WKB})
    check(read(tmp_path, NUMBERED, {"cell_boundaries": table}), BY_NUMBER)


def test_ids_come_from_the_index_or_a_column_named_as_the_points_one(tmp_path):
    frame = pd.DataFrame({"geometry": WKB, "cell_id": ["x", "y", "z"]}, index=[3, 7, 9])
    table = pa.Table.from_pandas(frame)
    check(read(tmp_path / "index", NUMBERED, {"cell_boundaries": table}), BY_NUMBER)
    table = pa.Table.from_pandas(frame.assign(cell=[3, 7, 9]).reset_index(drop=True))
    check(read(tmp_path / "column", NUMBERED, {"cell_boundaries": table}), BY_NUMBER)


def test_an_index_that_counts_is_an_index(tmp_path):
    frame = pd.DataFrame({"geometry": WKB}, index=pd.RangeIndex(3, 12, 3))
    points = POINTS | {"cell": [3, 3, 6, 9]}
    table = pa.Table.from_pandas(frame)
    expected = dict(zip("369", CELLS.values(), strict=True))
    check(read(tmp_path, points, {"cell_boundaries": table}), expected)


def test_without_ids_no_row_number_stands_for_one(tmp_path):
    table = pa.table({"geometry": WKB, "area": [1.0, 2.0, 3.0]})
    with pytest.raises(SourceError, match=r"no column of the cells' ids.*; it has geometry, area"):
        read(tmp_path, NUMBERED, {"cell_boundaries": table})
    table = pa.table({"geometry": WKB, "cell": [3, None, 9]})
    with pytest.raises(SourceError, match=r"1 outlines have no id \(cell\)"):
        read(tmp_path / "null", NUMBERED, {"cell_boundaries": table})


PARTS = MultiPolygon([box(0, 0, 10, 4), box(0, 6, 10, 10)])
HOLLOW = box(10, 0, 20, 10).difference(box(14, 4, 16, 6))
SHAPES = {"a": PARTS, "b": HOLLOW, "c": CELLS["c"]}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_outlines_in_geoarrow_are_read(tmp_path, interleaved, several):
    expected = SHAPES if several else {**SHAPES, "a": box(0, 0, 10, 4)}
    frame = geopandas.GeoDataFrame(geometry=list(expected.values()), index=list(expected))
    arrow = frame.to_arrow(geometry_encoding="geoarrow", interleaved=interleaved)
    points = POINTS | {"y": [1.0, 2.0, 1.0, 31.0]}
    check(read(tmp_path, points, {"cell_boundaries": pa.table(arrow)}), expected)


def test_geoparquet_in_geoarrow_may_lack_an_outline(tmp_path):
    frame = geopandas.GeoDataFrame(geometry=[*CELLS.values(), None], index=[*CELLS, "d"])
    write_spatialdata(tmp_path / "s.zarr", POINTS, {"cell_boundaries": frame})
    file = tmp_path / "s.zarr/shapes/cell_boundaries/shapes.parquet"
    frame.to_parquet(file, geometry_encoding="geoarrow")
    release = read_spatialdata(tmp_path / "s.zarr")
    assert outlines(release)["d"] is None
    assert outlines(release)["b"].equals(CELLS["b"])


@pytest.mark.parametrize("encoding", ["WKB", "geoarrow"])
def test_circles_are_refused(tmp_path, encoding):
    circles = {"geometry": [Point(5, 5), Point(15, 5), Point(5, 35)], "radius": [5.0] * 3}
    frame = geopandas.GeoDataFrame(circles, index=list(CELLS))
    write_spatialdata(tmp_path / "s.zarr", POINTS, {"cell_boundaries": frame})
    file = tmp_path / "s.zarr/shapes/cell_boundaries/shapes.parquet"
    frame.to_parquet(file, geometry_encoding=encoding)
    with pytest.raises(SourceError, match="has 3 circles or points, expected polygons; name an el"):
        read_spatialdata(tmp_path / "s.zarr")


@pytest.mark.usefixtures("views")
def test_views_of_bytes_and_text_are_read(tmp_path):
    table = pa.table({"cell_id": list(CELLS), "geometry": pa.array(WKB, pa.binary_view())})
    points = {
        n: pa.array(v, pa.string_view()) if n in ("cell", "gene") else v for n, v in POINTS.items()
    }
    check(read(tmp_path, points, {"cell_boundaries": table}))


def test_two_nuclei_of_a_cell_are_one_of_two_parts(tmp_path):
    three = {"b": box(11, 1, 12, 2), "a": box(1, 1, 2, 2), "b ": box(14, 1, 15, 2)}
    ids = [name.strip() for name in three]
    nuclei = pa.table({"cell_id": ids, "geometry": shapely.to_wkb(list(three.values()))})
    release = read(tmp_path, shapes={"cell_boundaries": CELLS, "nucleus_boundaries": nuclei})
    found = outlines(release, "nucleus_boundary")
    assert found["a"].equals(three["a"])
    assert found["b"].equals(MultiPolygon([three["b"], three["b "]]))
    assert found["c"] is None


# Names --------------------------------------------------------------------------------------------

PROSEG = {"assignment" if name == "cell" else name: values for name, values in POINTS.items()}


def test_columns_are_named_where_the_points_name_none(tmp_path):
    shapes = {"cell_boundaries": pa.table({"cell": list(CELLS), "geometry": WKB})}
    with pytest.raises(
        SourceError,
        match=r"no feature_key \(--gene-column\) and no instance_key \(--cell-column\); name the "
        "column. It has assignment, gene, x, y",
    ):
        read(tmp_path, PROSEG, shapes, keys={})
    check(
        read(tmp_path / "n", PROSEG, shapes, keys={}, gene_column="gene", cell_column="assignment")
    )


def test_a_named_column_counts_before_a_key(tmp_path):
    points = POINTS | {"new": ["a", "a", "b", "c"], "cell": ["z"] * 4}
    check(read(tmp_path, points, cell_column="new"))
    with pytest.raises(SourceError, match="lacks the columns newest; it has cell, gene, x, y, new"):
        read(tmp_path / "other", points, cell_column="newest")


def test_elements_are_named_and_the_error_lists_them(tmp_path):
    path = tmp_path / "s.zarr"
    shapes = {"r0_polygons": CELLS, "patches": CELLS, "nucleus_boundaries": {"a": box(1, 1, 2, 2)}}
    write_spatialdata(path, POINTS, shapes)
    (path / "points/transcripts").rename(path / "points/r0_transcripts")
    listed = (
        "points/r0_transcripts, shapes/nucleus_boundaries, shapes/patches, shapes/r0_polygons. "
    )
    with pytest.raises(SourceError, match=rf"element points/transcripts: .*{listed}.*\(--points\)"):
        read_spatialdata(path)
    names = {"points": "r0_transcripts"}
    with pytest.raises(SourceError, match=rf"shapes/cell_boundaries: .*{listed}.*\(--cells\)"):
        read_spatialdata(path, **names)
    with pytest.raises(SourceError, match=r"element shapes/nuc: .*\(--nuclei\)"):
        read_spatialdata(path, **names, cells="r0_polygons", nuclei="nuc")
    release = read_spatialdata(path, **names, cells="r0_polygons")
    check(release)
    # Those nuclei may be of another segmentation, with the same ids.
    assert set(outlines(release, "nucleus_boundary")) == {None}
    release = read_spatialdata(path, **names, cells="r0_polygons", nuclei="nucleus_boundaries")
    assert outlines(release, "nucleus_boundary")["a"].equals(box(1, 1, 2, 2))


def test_the_options_name_elements_and_columns(tmp_path, command):
    path = tmp_path / "s.zarr"
    write_spatialdata(path, PROSEG, {"polygons": CELLS, "nuclei": {"a": box(1, 1, 2, 2)}}, keys={})
    (path / "points/transcripts").rename(path / "points/spots")
    words = ["--points", "spots", "--cells", "polygons", "--nuclei", "nuclei", "--gene-column",
             "gene", "--cell-column", "assignment"]  # fmt: skip
    given = ["curate", "spatialdata", path, "--unit-um", 1]
    code, out, err = command(*given, *words, "--out", tmp_path / "made")
    assert (code, "3 cells, 2 genes" in out) == (0, True), err
    recipe = json.loads((tmp_path / "made/manifest.json").read_text())["curation"]
    assert (recipe["points"], recipe["cell_column"]) == ("spots", "assignment")


# Fields of view and splits ------------------------------------------------------------------------

FOVS = {name: [*values, *values[:1]] for name, values in POINTS.items()} | {
    "fov": ["f1", "f1", "f2", "f3", ""],
    "cell": [*POINTS["cell"], None],
}
CSV = "cell,gene,nuclear,nuclear_edge,cytoplasmic,cell_edge\n" + "".join(
    f"{cell},{gene},1,0,0,0\n" for cell, gene, *_ in INSIDE
)


@pytest.mark.parametrize(
    ("options", "splits"),
    [
        ([], {"test"}),  # one field of view
        (["--fov-column", "fov"], {"test"}),
        (["--fov-column", "fov", "--labels"], {"train", "val", "test"}),
        (["--fov-column", "fov", "--split", "fov"], {"train", "val", "test"}),
        (["--fov-column", "fov", "--labels", "--split", "test"], {"test"}),
    ],
)
def test_without_labels_all_cells_are_in_test(tmp_path, command, options, splits):
    path = write_spatialdata(tmp_path / "s.zarr", FOVS, {"cell_boundaries": CELLS})
    (tmp_path / "labels.csv").write_text(CSV)
    words = [w for o in options for w in ([o, tmp_path / "labels.csv"] if o == "--labels" else [o])]
    out = tmp_path / "made"
    code, _, err = command("curate", "spatialdata", path, "--unit-um", 1, *words, "--out", out)
    assert code == 0, err
    assert set(Dataset(out).splits) == splits


def test_labels_of_one_field_of_view_need_a_choice(tmp_path, command):
    path = write_spatialdata(tmp_path / "s.zarr", FOVS, {"cell_boundaries": CELLS})
    (tmp_path / "labels.csv").write_text(CSV)
    words = ["--unit-um", 1, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "made"]
    code, _, err = command("curate", "spatialdata", path, *words)
    assert (code, "put every cell into test instead (--split test)" in err) == (2, True)


@pytest.mark.parametrize("blank", ["", " ", None])
def test_a_blank_field_of_view_is_none(tmp_path, blank):
    points = POINTS | {"fov": pa.array(["f1", "f1", blank, "f3"])}
    release = read(tmp_path, points, fov_column="fov")
    with pytest.raises(SourceError, match="1 cells are in no field of view, the first is b"):
        apply_rules(release, Recipe(format="spatialdata", patterns=("nuclear",)))
