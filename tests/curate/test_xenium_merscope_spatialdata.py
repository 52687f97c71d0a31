"""Folders as Xenium and MERSCOPE write them become tables, every molecule accounted for.

The real molecules are a Xenium crop (as SpatialData) and a part of a MERSCOPE slide (csv); the
native folders are written from them after the documented columns.
"""

import csv
import gzip
from pathlib import Path

import geopandas
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from exports import (
    CELLS,
    DETECTED,
    FLAT,
    FOUR,
    INSIDE,
    MERSCOPE,
    XENIUM,
    detected,
    transcripts,
    vertices,
    write_merscope,
    write_xenium,
)
from shapely import MultiPolygon, Polygon, box

from gpattern_bench.curate.build import curate
from gpattern_bench.curate.quality import Quality
from gpattern_bench.curate.readers import columns as blocks
from gpattern_bench.curate.readers.merscope import read_merscope
from gpattern_bench.curate.readers.xenium import read_xenium
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import SourceError
from gpattern_bench.methods import get_method
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.sources.recipe import Recipe

NAMES = ("fov", "cell_id", "gene")
READERS = {"xenium": read_xenium, "merscope": read_merscope}


def pieces(platform, folder, tile=0.0, **options):
    """All pieces of an export; checks what every reader promises about them."""
    scratch = folder.parent / f"{folder.name}-scratch"
    scratch.mkdir(exist_ok=True)
    read = READERS[platform](folder, scratch, tile=tile, **options)
    found = [piece() for piece in read]
    fovs = [piece.cells["fov"].unique().tolist() for piece in found]
    names = [fov for of_piece in fovs for fov in of_piece]
    assert names == sorted(set(names))
    for piece, of_piece in zip(found, fovs, strict=True):
        assert set(piece.molecules["fov"].unique()) <= set(of_piece)
        assert not set(piece.molecules) & {"overlaps_nucleus", "nucleus_distance", "qv"}
    return found


def whole(found):
    """Molecules, cells and drops of all pieces together."""
    molecules = pd.concat(
        [piece.molecules.astype(dict.fromkeys(NAMES, str)) for piece in found],
        ignore_index=True,
    )
    cells = pd.concat([piece.cells for piece in found]).set_index("cell_id")
    dropped: dict[str, dict[str, int]] = {}
    for piece in found:
        for table, reasons in piece.dropped.items():
            for reason, rows in reasons.items():
                of_table = dropped.setdefault(table, {})
                of_table[reason] = of_table.get(reason, 0) + rows
    return molecules, cells, {k: {r: n for r, n in v.items() if n} for k, v in dropped.items()}


def outline(cells, name):
    return cells.loc[name, "cell_boundary"]


def same(found, expected):
    """Equal but for the order of rows within a field of view and the last digits."""
    (molecules, cells, dropped), (molecules2, cells2, dropped2) = whole(found), whole(expected)
    keys = ["fov", "cell_id", "gene", "x", "y"]
    one, other = (m.sort_values(keys, ignore_index=True) for m in (molecules, molecules2))
    pd.testing.assert_frame_equal(one, other, check_dtype=False)
    assert (cells["fov"].sort_index() == cells2["fov"].sort_index()).all()
    for name in ("cell_boundary", "nucleus_boundary"):
        shapes, shapes2 = (c.sort_index()[name].to_numpy(object) for c in (cells, cells2))
        alike = shapely.equals_exact(shapes, shapes2, 5e-4)  # csv rounds float32
        assert (alike | (shapely.is_missing(shapes) & shapely.is_missing(shapes2))).all()
    assert dropped == dropped2


# Xenium -------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    return write_xenium(tmp_path / "outs", transcripts(INSIDE), vertices(CELLS.items()))


@pytest.fixture(scope="session")
def crop(shared):
    """Molecules, cells and nuclei of the Xenium crop."""
    zarr = pytest.importorskip("zarr", reason="reading the crop needs zarr (extra: spatial)")
    folder = shared / "xenium_breast" / "bt_small_data.zarr"

    def outlines(element):
        group = zarr.open_group(str(folder / "shapes" / element), mode="r")
        arrays = [np.asarray(group[name][:]) for name in ("coords", "offset0", "offset1", "Index")]
        kind = shapely.GeometryType.POLYGON
        shapes = shapely.from_ragged_array(kind, arrays[0], tuple(arrays[1:3]))
        return dict(zip([str(name) for name in arrays[3]], shapes, strict=True))

    cells, nuclei = outlines("cell_boundaries"), outlines("nucleus_boundaries")
    table = pq.read_table(folder / "points/transcripts/points.parquet").to_pandas()
    molecules = pd.DataFrame(
        {
            "transcript_id": table["transcript_id"],
            "cell_id": table["cell_boundaries"].astype(str).replace("", "UNASSIGNED"),
            "overlaps_nucleus": table["overlaps_nucleus"],
            "feature_name": table["feature_name"].astype(str),
            "x_location": table["x"],
            "y_location": table["y"],
            "z_location": (table["transcript_id"] % 160 / 10).astype("float32"),  # um, made up
            "qv": table["qv"],
        }
    )
    return molecules, cells, {name: shape for name, shape in nuclei.items() if name in cells}


@pytest.fixture
def outs(crop, tmp_path):
    molecules, cells, nuclei = crop
    cells, nuclei = vertices(cells.items()), vertices(nuclei.items())
    return write_xenium(tmp_path / "outs", molecules, cells, nuclei)


def test_the_xenium_crop_is_read_molecule_by_molecule(crop, outs):
    source, outlines, nuclei = crop
    molecules, cells, dropped = whole(pieces("xenium", outs))
    good = source["qv"] >= 20
    expected = source[good & (source["cell_id"] != "UNASSIGNED")]
    assert (len(source), len(expected), len(cells)) == (11_773, 5_629, 27)
    assert dropped == {
        "molecules": {
            "quality (qv) below 20": int((~good).sum()),
            "outside every cell": int((good & (source["cell_id"] == "UNASSIGNED")).sum()),
        },
        "cells": {},
    }
    columns = {"x_location": "x", "y_location": "y", "z_location": "z", "feature_name": "gene"}
    expected = expected.rename(columns=columns)[["cell_id", "gene", "x", "y", "z"]]
    pd.testing.assert_frame_equal(
        molecules.drop(columns="fov"), expected.reset_index(drop=True), check_dtype=False
    )
    assert molecules["x"].dtype == np.float32
    assert set(cells["fov"]) == {"0"}
    for name, shape in outlines.items():
        assert shapely.equals_exact(outline(cells, name), shape, 1e-3)
        assert shapely.equals_exact(cells.loc[name, "nucleus_boundary"], nuclei[name], 1e-3)


def test_the_xenium_crop_becomes_a_dataset_that_can_be_predicted(outs, tmp_path):
    recipe = XENIUM.model_copy(update={"path": "outs", "split": "fov", "tile_um": 30.0})
    folder = curate(recipe, tmp_path, tmp_path / "made", name="crop", version="1.0.0")
    dataset = Dataset(folder)
    dataset.verify()
    assert dataset.counts["cells"] == 27
    assert dataset.counts["molecules"] == 5_625
    assert dataset.manifest.dropped["molecules"]["control target"] == 4
    assert dataset.splits == ("train", "val", "test")
    assert not [gene for gene in dataset.genes if gene.startswith(("NegControl", "BLANK"))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "outs"]  # no scratch left
    scores = predict_cells(get_method("sprawl"), dataset.iter_cells())
    assert len(scores) == dataset.counts["pairs"]
    assert np.isfinite(scores[list(FOUR)].to_numpy()).all()


def test_other_ways_of_writing_the_same_xenium_export_are_read_alike(crop, outs, tmp_path):
    molecules, cells, nuclei = crop
    expected = pieces("xenium", outs)
    cells, nuclei = vertices(cells.items()), vertices(nuclei.items())
    as_csv = write_xenium(tmp_path / "csv", molecules, cells, nuclei, ending=".csv.gz")
    same(pieces("xenium", as_csv), expected)
    numbers = [
        table.assign(cell_id=table["cell_id"].replace("UNASSIGNED", "-1").astype("int32"))
        for table in (molecules, cells, nuclei)
    ]
    same(pieces("xenium", write_xenium(tmp_path / "int", *numbers)), expected)
    text = ("cell_id", "feature_name")
    coded = [
        table.assign(**{name: table[name].str.encode("utf-8") for name in text if name in table})
        for table in (molecules, cells, nuclei)
    ]
    same(pieces("xenium", write_xenium(tmp_path / "bytes", *coded)), expected)
    assert pq.read_schema(tmp_path / "bytes/transcripts.parquet").field("cell_id").type == "binary"
    same(pieces("xenium", write_xenium(tmp_path / "run/outs", *numbers).parent), expected)


def test_blocks_of_any_size_give_the_same_pieces(outs, monkeypatch):
    expected = pieces("xenium", outs, tile=30)
    assert len(expected) > 5
    monkeypatch.setattr(blocks, "_ROWS", 100)
    same(pieces("xenium", outs, tile=30), expected)


def test_tiles_hold_the_centroids_of_their_cells(outs):
    molecules, cells, _ = whole(pieces("xenium", outs, tile=25))
    untiled, cells0, _ = whole(pieces("xenium", outs))
    xy = np.array([outline(cells, name).centroid.coords[0] for name in cells.index]) // 25
    expected = [f"x{x:03.0f}y{y:03.0f}" for x, y in xy - xy.min(axis=0)]
    assert cells["fov"].tolist() == expected
    assert (molecules["fov"] == cells["fov"].loc[molecules["cell_id"]].to_numpy()).all()
    assert set(cells.index) == set(cells0.index)
    assert len(molecules) == len(untiled)


def test_what_tells_the_compartment_of_a_xenium_molecule_changes_nothing(crop, outs, tmp_path):
    molecules, cells, nuclei = crop
    rng = np.random.Generator(np.random.Philox(1))
    shuffled = molecules.assign(
        overlaps_nucleus=rng.integers(0, 2, len(molecules)), nucleus_distance=rng.random()
    )
    cells, nuclei = vertices(cells.items()), vertices(nuclei.items())
    other = write_xenium(tmp_path / "other", shuffled, cells, nuclei)
    same(pieces("xenium", other), pieces("xenium", outs))


def test_a_cell_lies_in_the_fov_of_most_of_its_molecules(tmp_path):
    rows = [("a", "G", 1, 1)] * 3 + [("b", "G", 11, 1)] * 2 + [("c", "G", 1, 31)]
    names = ["K10", "K10", "K9", "K9", "K10", "K9"]  # b: one each, the first as text counts
    table = transcripts(rows, fov_name=names)
    folder = write_xenium(tmp_path / "outs", table, vertices(CELLS.items()))
    found = pieces("xenium", folder, tile=5)
    assert [piece.cells["cell_id"].tolist() for piece in found] == [["a", "b"], ["c"]]
    molecules, cells, _ = whole(found)
    assert cells["fov"].to_dict() == {"a": "K10", "b": "K10", "c": "K9"}
    assert molecules["fov"].tolist() == ["K10"] * 5 + ["K9"]
    names[2] = None
    broken = transcripts(rows, fov_name=names)
    with pytest.raises(SourceError, match="1 molecules name no field of view"):
        pieces("xenium", write_xenium(tmp_path / "broken", broken, vertices(CELLS.items())))


def test_molecules_of_low_or_no_quality_are_counted(tmp_path):
    table = transcripts(INSIDE, qv=[20.0, 19.99, np.nan, 40.0])
    folder = write_xenium(tmp_path / "outs", table, vertices(CELLS.items()))
    molecules, _, dropped = whole(pieces("xenium", folder))
    assert molecules["cell_id"].tolist() == ["a", "c"]
    assert dropped["molecules"] == {"quality (qv) below 20": 2}
    assert dropped["cells"] == {"without molecules": 1}
    molecules, _, dropped = whole(pieces("xenium", folder, quality=Quality(min_qv=10)))
    assert dropped["molecules"] == {"quality (qv) below 10": 1}


def test_targets_that_are_no_genes_are_controls_whatever_their_name(tmp_path):
    table = transcripts(INSIDE, is_gene=[True, False, True, True])
    folder = write_xenium(tmp_path / "outs", table, vertices(CELLS.items()))
    molecules, _, dropped = whole(pieces("xenium", folder))
    assert molecules["gene"].tolist() == ["G1", "G1", "G2"]
    assert dropped["molecules"] == {"control target": 1}


@pytest.mark.parametrize("ending", [".parquet", ".csv.gz"])
def test_the_category_of_a_codeword_counts(tmp_path, ending):
    category = ["predesigned_gene", "negative_control_probe", "custom_gene", "deprecated_codeword"]
    table = transcripts(INSIDE, codeword_category=category)
    folder = write_xenium(tmp_path / "outs", table, vertices(CELLS.items()), ending=ending)
    molecules, _, dropped = whole(pieces("xenium", folder))
    assert len(molecules) == 2
    assert dropped["molecules"] == {"control target": 2}
    kept = pieces("xenium", folder, quality=Quality(genes_only=False))
    assert len(whole(kept)[0]) == 4


def test_genes_of_a_csv_are_true_or_false(tmp_path):
    table = transcripts(INSIDE, is_gene=[True, False, True, True])
    folder = write_xenium(tmp_path / "r", table, vertices(CELLS.items()), ending=".csv.gz")
    assert whole(pieces("xenium", folder))[2]["molecules"] == {"control target": 1}


def test_quality_of_merscope_molecules_counts_where_it_is_stated(tmp_path):
    table = detected(DETECTED, qv=[40, 10, 40, 40, 40], is_gene=[True, True, False, True, True])
    folder = write_merscope(tmp_path / "r", table, FLAT)
    _, _, dropped = whole(pieces("merscope", folder))
    assert dropped["molecules"] == {
        "quality (qv) below 20": 1,
        "outside every cell": 1,
        "control target": 1,
    }


def test_molecules_of_no_cell_or_of_an_unknown_one_are_counted(tmp_path):
    strays = [("UNASSIGNED", "G", 1, 1), ("-1", "G", 1, 1), (None, "G", 1, 1), ("", "G", 1, 1)]
    unknown = [("z", "G", 1, 1)] * 2
    table = transcripts([*INSIDE, *strays, *unknown])
    folder = write_xenium(tmp_path / "outs", table, vertices(CELLS.items()))
    molecules, cells, dropped = whole(pieces("xenium", folder))
    assert len(molecules) == len(INSIDE)
    assert sorted(cells.index) == ["a", "b", "c"]
    assert dropped["molecules"] == {"outside every cell": 4, "cell without an outline": 2}


def test_several_polygons_of_a_cell_are_one_outline(tmp_path):
    nuclei = [("a", MultiPolygon([box(1, 1, 3, 3), box(5, 5, 7, 7)])), ("b", box(12, 2, 14, 4))]
    cells = [("a", CELLS["a"]), ("b", MultiPolygon([box(10, 0, 20, 4), box(12, 6, 20, 10)]))]
    folder = write_xenium(
        tmp_path / "outs", transcripts(INSIDE[:3]), vertices(cells), vertices(nuclei)
    )
    _, found, _ = whole(pieces("xenium", folder))
    for name, shape in cells:
        assert outline(found, name).equals(shape)
    for name, shape in nuclei:
        assert found.loc[name, "nucleus_boundary"].equals(shape)
    assert found.loc["b", "nucleus_boundary"].geom_type == "Polygon"


def test_a_missing_nucleus_is_none_and_one_of_no_cell_is_not_needed(tmp_path):
    nuclei = vertices([("b", box(12, 2, 14, 4)), ("z", box(1, 1, 2, 2))])
    folder = write_xenium(tmp_path / "outs", transcripts(INSIDE), vertices(CELLS.items()), nuclei)
    _, cells, _ = whole(pieces("xenium", folder))
    assert cells["nucleus_boundary"].map(lambda shape: shape is None).to_dict() == {
        "a": True,
        "b": False,
        "c": True,
    }
    (folder / "nucleus_boundaries.parquet").unlink()
    _, cells, _ = whole(pieces("xenium", folder))
    assert [*cells["nucleus_boundary"]] == [None] * 3


def test_boundaries_of_any_segmentation_are_found(tmp_path):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    (wanted,) = pieces("merscope", folder)
    (folder / "cell_boundaries.parquet").rename(folder / "cellpose2_micron_space.parquet")
    (found,) = pieces("merscope", folder)
    pd.testing.assert_frame_equal(found.molecules, wanted.molecules)
    (folder / "watershed_micron_space.parquet").write_bytes(b"")
    with pytest.raises(SourceError, match="several segmentations, cellpose2_micron"):
        pieces("merscope", folder)


def test_two_samples_in_one_file_are_refused(tmp_path):
    """Two cells of one id would be one cell of two parts, with all molecules inside."""
    two = pd.concat([vertices(CELLS.items()), vertices([("a", box(500, 0, 510, 10))])])
    molecules = transcripts([*INSIDE, ("a", "G1", 501, 1)])
    with pytest.raises(SourceError, match="the vertices of cell a are in several places"):
        pieces("xenium", write_xenium(tmp_path / "outs", molecules, two))


def test_outlines_that_are_not_valid_are_repaired_or_counted(tmp_path):
    outlines = [
        ("tie", Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])),  # crosses itself: two wings
        ("ok", box(10, 0, 20, 10)),
    ]
    broken = pd.concat(
        [
            vertices(outlines),
            pd.DataFrame(
                [
                    *[("line", 1, 0, 0), ("line", 1, 5, 5), ("line", 1, 0, 0)],
                    *[("gap", 1, 0, 0), ("gap", 1, np.nan, 5), ("gap", 1, 5, 0), ("gap", 1, 0, 0)],
                    *[("flat", 1, 0, 0), ("flat", 1, 3, 3), ("flat", 1, 6, 6), ("flat", 1, 0, 0)],
                    *[("open", 1, 30, 0), ("open", 1, 34, 0), ("open", 1, 30, 4)],
                ],
                columns=["cell_id", "label_id", "vertex_x", "vertex_y"],
            ),
        ]
    )
    names = ["tie", "ok", "line", "gap", "flat", "open"]
    table = transcripts([(name, "G", 1, 1) for name in names])
    found = pieces("xenium", write_xenium(tmp_path / "outs", table, broken))
    tables = [apply_rules(piece, XENIUM) for piece in found]
    assert len(tables) == 1
    kept = tables[0].cells.to_pandas().set_index("cell_id")["cell_boundary"]
    assert sorted(kept.index) == ["ok", "open", "tie"]
    areas = {name: shapely.from_wkb(wkb).area for name, wkb in kept.items()}
    assert areas == pytest.approx({"ok": 100, "open": 8, "tie": 8})
    assert tables[0].dropped["cells"] == {"without an outline": 3}
    assert tables[0].dropped["molecules"] == {"cell without an outline": 3}


def test_coordinates_that_are_not_finite_are_counted_by_the_rules(tmp_path):
    table = transcripts([("a", "G", np.nan, 1), ("a", "G", 1, np.inf), ("a", "G", 1, 1)])
    folder = write_xenium(tmp_path / "outs", table, vertices(CELLS.items()))
    tables = [apply_rules(piece, XENIUM) for piece in pieces("xenium", folder)]
    assert tables[0].molecules.num_rows == 1
    assert tables[0].dropped["molecules"] == {"coordinate not finite": 2}


@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("transcripts", "cell_id"),
        ("transcripts", "qv"),
        ("transcripts", "z_location"),
        ("cell_boundaries", "vertex_x"),
        ("cell_boundaries", "cell_id"),
    ],
)
def test_a_missing_column_is_named_with_those_that_are_there(small, file, column):
    path = small / f"{file}.parquet"
    pq.write_table(pq.read_table(path).drop_columns(column), path)
    with pytest.raises(SourceError, match=rf"{file}.parquet lacks the columns {column}; it has "):
        pieces("xenium", small)


def test_what_is_no_xenium_export_is_refused(small, tmp_path):
    with pytest.raises(SourceError, match="expected the outs folder"):
        pieces("xenium", tmp_path / "absent")
    (small / "cell_boundaries.parquet").rename(small / "gone")
    with pytest.raises(SourceError, match=r"no cell_boundaries.parquet or cell_boundaries.csv.gz"):
        pieces("xenium", small)
    (small / "gone").rename(small / "cell_boundaries.parquet")
    path = small / "transcripts.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"transcripts.parquet cannot be read as a table"):
        pieces("xenium", small)


def test_text_where_numbers_belong_is_refused(tmp_path):
    table = transcripts(INSIDE, x_location=["1", "x", "3", "4"])
    folder = write_xenium(tmp_path / "outs", table, vertices(CELLS.items()))
    with pytest.raises(SourceError, match=r"transcripts.parquet cannot be read as a table"):
        pieces("xenium", folder)


def test_an_export_without_rows_is_refused(tmp_path):
    none, cells = transcripts(INSIDE)[:0], vertices(CELLS.items())
    with pytest.raises(SourceError, match="no molecule lies in a cell"):
        pieces("xenium", write_xenium(tmp_path / "no-molecules", none, cells))
    with pytest.raises(SourceError, match="has no vertices"):
        pieces("xenium", write_xenium(tmp_path / "no-cells", transcripts(INSIDE), cells[:0]))
    other = transcripts([("z", "G", 1, 1), ("UNASSIGNED", "G", 1, 1)])
    with pytest.raises(
        SourceError, match=r"no molecule lies in a cell.*1 molecules \(outside every cell"
    ):
        pieces("xenium", write_xenium(tmp_path / "other", other, cells))
    nameless = cells.assign(cell_id=[None, *cells["cell_id"][1:]])
    with pytest.raises(SourceError, match="1 vertices have no cell_id"):
        pieces("xenium", write_xenium(tmp_path / "nameless", transcripts(INSIDE), nameless))


# csv ----------------------------------------------------------------------------------------------

GENE = [True, False, True, True]


def as_csv(table, kind):
    """The bytes of a csv as one of many programs writes it."""
    if kind == "semicolon, decimal comma":
        return table.to_csv(index=False, sep=";", decimal=",").encode()
    if kind == "tab":
        return table.to_csv(index=False, sep="\t").encode()
    if kind == "quoted, CRLF, with a mark":
        quoted = table.to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
        return quoted.encode("utf-8-sig")
    return table.to_csv(index=False).encode()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "kind", ["comma", "semicolon, decimal comma", "tab", "quoted, CRLF, with a mark"]
)
def test_a_csv_of_any_kind_is_read(tmp_path, kind, packed):
    rows = [(cell, gene, x + 0.5, y + 0.25) for cell, gene, x, y in INSIDE]
    tables = {
        "transcripts": transcripts(rows, is_gene=GENE),
        "cell_boundaries": vertices(CELLS.items()),
    }
    expected = pieces("xenium", write_xenium(tmp_path / "parquet", *tables.values()))
    (tmp_path / "csv").mkdir()
    for name, table in tables.items():
        file = tmp_path / "csv" / f"{name}.csv{'.gz' * packed}"
        file.write_bytes((gzip.compress if packed else bytes)(as_csv(table, kind)))
    found = pieces("xenium", tmp_path / "csv")
    same(found, expected)
    molecules, _, dropped = whole(found)
    assert molecules["x"].tolist() == [1.5, 11.5, 1.5]
    assert dropped["molecules"] == {"control target": 1}


@pytest.mark.parametrize("kind", ["comma", "semicolon, decimal comma", "quoted, CRLF, with a mark"])
def test_detected_transcripts_of_any_kind_are_read(tmp_path, kind):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    expected = pieces("merscope", folder)
    (folder / "detected_transcripts.csv").write_bytes(as_csv(detected(DETECTED), kind))
    same(pieces("merscope", folder), expected)


def test_detected_transcripts_may_be_parquet(tmp_path):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    expected = pieces("merscope", folder)
    (folder / "detected_transcripts.csv").unlink()
    detected(DETECTED).to_parquet(folder / "detected_transcripts.parquet")
    same(pieces("merscope", folder), expected)


@pytest.mark.parametrize(
    "flags",
    [
        GENE,
        ["True", "False", "True", "True"],
        ["true", "false", "true", "true"],
        ["1", "0", "1", "1"],
        pa.array([1, 0, 1, 1], pa.uint8()),
        pa.array([1.0, 0.0, 1.0, 1.0]),
        pa.array(["T", "F", "T", "T"]).dictionary_encode(),
    ],
)
def test_yes_and_no_in_any_type(tmp_path, flags):
    folder = write_xenium(tmp_path / "r", transcripts(INSIDE), vertices(CELLS.items()))
    table = pq.read_table(folder / "transcripts.parquet").append_column(
        "is_gene", flags if isinstance(flags, pa.Array) else pa.array(flags)
    )
    pq.write_table(table, folder / "transcripts.parquet")
    molecules, _, dropped = whole(pieces("xenium", folder))
    assert (len(molecules), dropped["molecules"]) == (3, {"control target": 1})


def test_what_is_neither_yes_nor_no_is_refused(tmp_path):
    table = transcripts(INSIDE, is_gene=["True", "maybe", "True", "True"])
    folder = write_xenium(tmp_path / "r", table, vertices(CELLS.items()), ending=".csv.gz")
    with pytest.raises(SourceError, match="is_gene has the value maybe, expected true or false"):
        pieces("xenium", folder)


@pytest.mark.usefixtures("views")
def test_views_of_text_and_bytes_are_read(tmp_path):
    rows = detected(DETECTED, cell_id=list("aabcz"))
    folder = write_merscope(tmp_path / "r", rows, FLAT)
    expected = pieces("merscope", folder)

    def with_types(table, kinds):
        for name, kind in kinds.items():
            at = table.column_names.index(name)
            table = table.set_column(at, name, table[name].cast(kind))
        return table

    path = folder / "cell_boundaries.parquet"
    views = {"EntityID": pa.string_view(), "Geometry": pa.binary_view()}
    pq.write_table(with_types(pq.read_table(path), views), path)
    (folder / "detected_transcripts.csv").unlink()
    views = {"gene": pa.string_view(), "cell_id": pa.large_string()}
    views = with_types(pa.Table.from_pandas(rows), views)
    pq.write_table(views, folder / "detected_transcripts.parquet")
    same(pieces("merscope", folder), expected)


def test_a_column_twice_is_refused(tmp_path):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    text = "gene,global_x,global_y,gene\nG1,1,1,G2\n"
    (folder / "detected_transcripts.csv").write_text(text)
    with pytest.raises(SourceError, match="has the columns gene twice"):
        pieces("merscope", folder)


def test_a_csv_in_another_encoding_is_one_short_error(tmp_path):
    rows = "".join(f"Gé{k},1,1\n" for k in range(50_000))
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    text = f"gene,global_x,global_y\n{rows}"
    (folder / "detected_transcripts.csv").write_bytes(text.encode("cp1252"))
    with pytest.raises(SourceError, match=r"transcripts\.csv cannot be read") as caught:
        pieces("merscope", folder)
    assert len(str(caught.value)) < 1_000


# MERSCOPE -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def brain(shared):
    """Molecules and outlines (cell, plane, outline) of the part of a MERSCOPE slide."""
    folder = shared / "merscope_mouse_brain"
    molecules = pd.read_csv(folder / "vizgen_transcripts.gz").assign(barcode_id=0, x=0.0, y=0.0)
    outlines = []
    for plane in (0, 1):
        path = folder / "cell_boundaries" / f"z{plane}_polygons.gz"
        table = pd.read_csv(path, dtype={"poly_ID": str})
        for name, group in table.groupby("poly_ID", sort=False):
            corners = group[["x", "y"]].to_numpy() * [1, -1]  # y is negated in this extract
            outlines.append((name, plane, Polygon(corners)))
    return molecules, outlines


def largest_plane(outlines):
    planes = pd.DataFrame(outlines, columns=["cell", "plane", "shape"])
    planes["area"] = shapely.area(shapely.make_valid(planes["shape"].to_numpy()))
    first = planes.sort_values(["area", "plane"], ascending=[False, True])
    return first.drop_duplicates("cell").set_index("cell")["shape"].sort_index()


@pytest.mark.parametrize("hdf5", [False, True])
@pytest.mark.slow
def test_the_merscope_slide_is_assigned_plane_by_plane_like_geopandas_does(brain, tmp_path, hdf5):
    """The extract has the outlines of planes 0 and 1; molecules above go by plane 1."""
    source, outlines = brain
    found = pieces("merscope", write_merscope(tmp_path / "region", source, outlines, hdf5))
    molecules, cells, dropped = whole(found)
    chosen = largest_plane(outlines)
    assert len(chosen) == 505
    joined = []
    for plane in (0, 1):
        shapes = {name: shape for name, z, shape in outlines if z == plane}
        frame = geopandas.GeoDataFrame({"cell": list(shapes)}, geometry=list(shapes.values()))
        frame["geometry"] = shapely.make_valid(frame["geometry"].to_numpy())
        here = source[np.minimum(source["global_z"], 1) == plane]
        points = geopandas.points_from_xy(here["global_x"], here["global_y"])
        points = geopandas.GeoDataFrame(here, geometry=points)
        joined.append(points.sjoin(frame, predicate="intersects"))
    joined = pd.concat(joined)
    assert not joined.index.has_duplicates
    assert len(molecules) == len(joined) == 32_494
    expected = joined.groupby(["cell", "gene"]).size()
    assert molecules.groupby(["cell_id", "gene"]).size().to_dict() == expected.to_dict()
    assert dropped["molecules"] == {"outside every cell": len(source) - len(joined)}
    assert dropped["cells"] == {"without molecules": 505 - len(cells)}
    for name in cells.index:
        assert shapely.equals_exact(outline(cells, name), chosen[name], 1e-9)
    assert "z" not in molecules  # global_z numbers the planes
    assert set(cells["nucleus_boundary"]) == {None}


@pytest.mark.slow
def test_a_cell_id_in_the_csv_counts_and_gives_the_same(brain, tmp_path):
    source, outlines = brain
    expected = pieces("merscope", write_merscope(tmp_path / "without", source, outlines), tile=50)
    molecules, _, _ = whole(expected)
    key = ["global_x", "global_y", "gene"]
    named = molecules.rename(columns={"x": "global_x", "y": "global_y"})[[*key, "cell_id"]]
    table = source.merge(named.drop_duplicates(key), how="left", on=key).fillna({"cell_id": "-1"})
    with_ids = write_merscope(tmp_path / "with", table, outlines)
    assert table["cell_id"].str.len().max() > 30  # longer than 64 bit hold
    same(pieces("merscope", with_ids, tile=50), expected)
    assert len(expected) > 20


@pytest.mark.slow
def test_the_merscope_slide_becomes_a_dataset_that_can_be_predicted(brain, tmp_path):
    write_merscope(tmp_path / "region", *brain)
    recipe = MERSCOPE.model_copy(update={"path": "region", "split": "fov", "tile_um": 100.0})
    folder = curate(recipe, tmp_path, tmp_path / "made", name="brain", version="1.0.0")
    dataset = Dataset(folder)
    dataset.verify()
    assert dataset.splits == ("train", "val", "test")
    assert not [gene for gene in dataset.genes if gene.lower().startswith("blank")]
    assert dataset.manifest.dropped["molecules"]["control target"] > 0
    scores = predict_cells(get_method("molecule_count"), dataset.iter_cells("test"))
    assert len(scores) == dataset.manifest.counts.splits["test"].pairs


@pytest.mark.slow
def test_csv_blocks_of_any_size_give_the_same_pieces(brain, tmp_path, monkeypatch):
    folder = write_merscope(tmp_path / "region", *brain)
    expected = pieces("merscope", folder, tile=50)
    monkeypatch.setattr(blocks, "_BYTES", 10_000)
    same(pieces("merscope", folder, tile=50), expected)


@pytest.mark.parametrize("hdf5", [False, True])
def test_outlines_without_area_in_any_plane_are_no_cells(tmp_path, hdf5):
    line = Polygon([(0, 0), (1, 1), (2, 2)])
    folder = write_merscope(tmp_path / "r", detected(DETECTED), [("z", 3, line)], hdf5)
    with pytest.raises(
        SourceError, match=r"no molecule lies in a cell .*1 cells \(without an outline"
    ):
        pieces("merscope", folder)
    folder = write_merscope(tmp_path / "s", detected(DETECTED), [("z", 3, line), *FLAT], hdf5)
    assert whole(pieces("merscope", folder))[2]["cells"] == {"without an outline": 1}


@pytest.mark.parametrize("lowest", [0, 3])
def test_boundaries_of_one_plane_hold_the_molecules_of_all(tmp_path, lowest):
    outlines = [(name, lowest, shape) for name, shape in CELLS.items()]
    folder = write_merscope(tmp_path / "r", detected(DETECTED, global_z=[0, 1, 3, 5, 6]), outlines)
    assert whole(pieces("merscope", folder))[0]["cell_id"].tolist() == ["a", "a", "b", "c"]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("hdf5", [False, True])
def test_of_a_cells_planes_the_largest_counts(tmp_path, hdf5, named):
    """Not the middle one, which may be a fragment; of equal ones the lowest."""
    bow_tie = Polygon([(80, 0), (84, 4), (84, 0), (80, 4)])  # 8 um2 once repaired
    outlines = [
        *[("fragment", 0, box(0, 0, 9, 9)), ("fragment", 1, box(1, 1, 2, 2))],
        *[("fragment", 2, box(0, 0, 8, 9)), ("equal", 5, box(21, 0, 30, 9))],
        *[("equal", 3, box(20, 0, 29, 9)), ("equal", 4, box(21, 0, 22, 9))],
        ("one", 6, box(40, 0, 49, 9)),
        *[("hollow", 0, Polygon()), ("hollow", 1, Polygon()), ("hollow", 2, box(60, 0, 69, 9))],
        *[("crossing", 0, bow_tie), ("crossing", 1, box(80, 0, 82, 3))],
    ]
    parts = [("parts", 0, MultiPolygon([box(100, 0, 104, 4), box(106, 0, 110, 4)]))]
    outlines += [*parts, ("parts", 1, box(100, 0, 105, 5))]
    names = ["fragment", "equal", "one", "hollow", "crossing", "parts"]
    rows = [
        ("G", 1.5, 1.5),
        ("G", 21.5, 5),
        ("G", 41, 5),
        ("G", 61, 5),
        ("G", 81, 1),
        ("G", 101, 1),
    ]
    more = {"cell_id": names} if named else {"global_z": [0, 3, 6, 2, 0, 0]}
    found = pieces(
        "merscope", write_merscope(tmp_path / "r", detected(rows, **more), outlines, hdf5)
    )
    molecules, cells, _ = whole(found)
    bounds = {name: outline(cells, name).bounds for name in cells.index}
    assert bounds == {
        "fragment": (0, 0, 9, 9),
        "equal": (20, 0, 29, 9),
        "one": (40, 0, 49, 9),
        "hollow": (60, 0, 69, 9),
        "crossing": (80, 0, 84, 4),
        "parts": (100, 0, 110, 4),
    }
    assert sorted(molecules["cell_id"]) == sorted(names)


@pytest.mark.parametrize("hdf5", [False, True])
def test_molecules_go_to_the_cell_around_them_in_their_own_plane(tmp_path, hdf5):
    """Two cells lie over each other; one lacks plane 1, and no cell has plane 4 or above.

    2.5 is no plane: of the outlines kept, equal in area, the first counts.
    """
    outlines = [
        *[("low", z, box(0, 0, 10, 10)) for z in (0, 2)],  # plane 1: the nearest, 0
        ("low", 3, box(0, 0, 4, 4)),
        *[("high", 3, box(5, 0, 15, 10)), ("high", 2, box(11, 0, 14, 4))],
        ("high", 1, box(20, 0, 21, 1)),
    ]
    cases = [  # x, plane, cell
        (7, 0, "low"), (7, 1, "low"), (7, 2, "low"), (7, 3, "high"), (7, 5, "high"),
        (12, 3, "high"), (12, 2, "high"), (12, 1, None), (12, 0, None), (20.5, 1, "high"),
        (1, 3, "low"), (20.5, 0, None), (7, 2.5, "high"), (np.nan, 2, None),
    ]  # fmt: skip
    rows = [(f"G{i}", x, 0.5) for i, (x, _, _) in enumerate(cases)]
    table = detected(rows, global_z=[plane for _, plane, _ in cases])
    molecules, cells, dropped = whole(
        pieces("merscope", write_merscope(tmp_path / "r", table, outlines, hdf5))
    )
    found = dict(zip(molecules["gene"], molecules["cell_id"], strict=True))
    assert [found.get(f"G{i}") for i in range(len(cases))] == [cell for _, _, cell in cases]
    assert dropped["molecules"] == {"coordinate not finite": 1, "outside every cell": 3}
    assert {name: outline(cells, name).area for name in cells.index} == {"low": 100, "high": 100}


def test_molecules_beyond_the_outline_kept_are_counted(tmp_path):
    outlines = [("a", 0, box(0, 0, 10, 10)), ("a", 1, box(5, 0, 14, 10))]
    rows = [("G", 12, 5)] * 5 + [("G", 10.5, 5)] * 5 + [("G", 7, 5)] * 15
    table = detected(rows, global_z=1)
    dataset = Dataset(made_from("merscope", write_merscope(tmp_path / "r", table, outlines)))
    placement = dataset.manifest.placement
    assert (placement.molecules, placement.inside, placement.worst) == (25, 20, {"a": (20, 25)})


def typed(folder, kinds, parents=None, ids=None):
    """Write types, parents and ids into the boundaries of an export."""
    path = folder / "cell_boundaries.parquet"
    frame = pd.read_parquet(path).assign(Type=kinds)
    if parents is not None:
        frame["ParentID"] = parents
    if ids is not None:
        frame["EntityID"] = ids
    frame.to_parquet(path)
    return folder


NUCLEI = [("na", 0, box(1, 1, 4, 4)), ("nb", 0, box(12, 1, 14, 3)), ("nb2", 1, box(16, 1, 18, 3))]


@pytest.mark.parametrize("kind", ["nuclei", "nucleus", "Nucleus"])
def test_nuclei_are_told_from_cells_by_their_type(tmp_path, kind, caplog):
    strays = [("away", 0, box(50, 50, 52, 52)), ("edge", 0, box(19, 1, 23, 3))]  # half in no cell
    folder = write_merscope(tmp_path / "r", detected(DETECTED), [*NUCLEI, *FLAT, *strays])
    typed(folder, [kind] * 3 + ["cell"] * len(FLAT) + [kind] * 2)
    molecules, cells, _ = whole(pieces("merscope", folder))
    assert sorted(cells.index) == ["a", "b", "c"]
    assert len(molecules) == 4
    nuclei = cells["nucleus_boundary"]
    assert nuclei["a"].equals(box(1, 1, 4, 4))
    assert nuclei["b"].equals(MultiPolygon([box(12, 1, 14, 3), box(16, 1, 18, 3)]))
    assert nuclei["c"] is None
    assert "2 of 5 nuclei are in no cell" in caplog.text


def test_a_nucleus_belongs_to_its_parent_or_to_the_cell_of_its_id(tmp_path):
    outlines = [("n", 0, box(11, 1, 13, 3)), ("b", 0, box(1, 1, 2, 2)), *FLAT]
    folder = write_merscope(tmp_path / "r", detected(DETECTED), outlines)
    parents = ["a", None] + [None] * len(FLAT)
    typed(folder, ["nuclei"] * 2 + ["cell"] * len(FLAT), parents)
    _, cells, _ = whole(pieces("merscope", folder))
    assert cells.loc["a", "nucleus_boundary"].equals(box(11, 1, 13, 3))
    assert cells.loc["b", "nucleus_boundary"].equals(box(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("kinds", "match"),
    [
        (["cell"] * 8 + ["cytoplasm"], "1 of 9 outlines have another Type .* the first cytoplasm;"),
        (["cell"] * 8 + [None], "1 of 9 outlines have another Type .* the first None;"),
        (["nuclei"] * 9, "outlines of nuclei only"),
    ],
)
def test_outlines_of_an_unknown_type_are_refused(tmp_path, kinds, match):
    folder = typed(write_merscope(tmp_path / "r", detected(DETECTED), FLAT), kinds)
    with pytest.raises(SourceError, match=match):
        pieces("merscope", folder)
    assert len(whole(pieces("merscope", typed(folder, None)))[1]) == 3  # no types: all are cells


LARGE = {"a": 112833000000100501, "b": 112833000000100502, "c": 112833000000100503}


@pytest.mark.parametrize("stored", ["text", "int", "large int"])
@pytest.mark.parametrize("written", ["text", "float"])
def test_ids_are_the_same_however_they_are_stored(tmp_path, stored, written):
    """In the csv: with -1, or with -1.0 where pandas made floats of small ids."""
    number = LARGE if stored == "large int" else {"a": 1, "b": 2, "c": 3}
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    ids = pd.Series([number[name] for name, _, _ in FLAT])
    typed(folder, "cell", ids=ids.astype(str) if stored == "text" else ids)
    cell = [number["a"], number["a"], number["b"], number["c"], -1]
    path = folder / "detected_transcripts.csv"
    if written == "float" and stored == "large int":
        pd.read_csv(path).assign(cell_id=np.array(cell, float)).to_csv(path)
        with pytest.raises(SourceError, match=r"cell_id has 1\.128.*lost its last digits"):
            pieces("merscope", folder)
        return
    text = [f"{value}.0" if written == "float" else str(value) for value in cell]
    pd.read_csv(path).assign(cell_id=text).to_csv(path)
    molecules, cells, dropped = whole(pieces("merscope", folder))
    assert sorted(cells.index) == sorted(str(value) for value in number.values())
    assert molecules["cell_id"].tolist() == [str(value) for value in cell[:4]]
    assert dropped["molecules"] == {"outside every cell": 1}


def test_large_ids_stored_as_floats_are_refused(tmp_path):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    typed(folder, "cell", ids=[float(LARGE[name]) for name, _, _ in FLAT])
    with pytest.raises(SourceError, match=r"EntityID has 1\.128.*lost its last digits"):
        pieces("merscope", folder)


@pytest.mark.parametrize(("column", "value"), [("EntityID", None), ("ZIndex", np.nan)])
def test_outlines_without_an_id_or_a_plane_are_refused(tmp_path, column, value):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    path = folder / "cell_boundaries.parquet"
    frame = pd.read_parquet(path)
    frame[column] = [value, *frame[column].iloc[1:]]
    frame.to_parquet(path)
    with pytest.raises(SourceError, match=f"1 of 9 outlines have no {column}"):
        pieces("merscope", folder)


def test_a_cell_in_two_hdf5_files_is_refused(tmp_path):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT, hdf5=True)
    first = folder / "cell_boundaries/feature_data_0.hdf5"
    (folder / "cell_boundaries/feature_data_9.hdf5").write_bytes(first.read_bytes())
    with pytest.raises(SourceError, match=r"feature_data_9.hdf5: cell b is also in another file"):
        pieces("merscope", folder)


@pytest.mark.parametrize("hdf5", [False, True])
def test_parts_of_one_plane_are_one_outline(tmp_path, hdf5):
    shape = MultiPolygon([box(0, 0, 4, 4), box(6, 0, 9, 4)])
    rows = [("G", 1, 1), ("G", 7, 1), ("G", 5, 1)]
    folder = write_merscope(tmp_path / "r", detected(rows), [("a", 0, shape)], hdf5)
    molecules, cells, dropped = whole(pieces("merscope", folder))
    assert outline(cells, "a").equals(shape)
    assert molecules["x"].tolist() == [1, 7]
    assert dropped["molecules"] == {"outside every cell": 1}


def test_rows_of_one_plane_are_one_outline_too(tmp_path):
    rows = [(1, 0, box(0, 0, 4, 4)), (1, 0, box(6, 0, 9, 4)), (2, 0, box(20, 0, 24, 4))]
    folder = write_merscope(tmp_path / "r", detected([("G", 1, 1), ("G", 22, 1)]), rows)
    _, cells, _ = whole(pieces("merscope", folder))
    assert outline(cells, "1").equals(MultiPolygon([box(0, 0, 4, 4), box(6, 0, 9, 4)]))
    assert outline(cells, "2").geom_type == "Polygon"


def test_the_fov_of_the_csv_is_used(tmp_path):
    table = detected(DETECTED, fov=[10, 9, 9, 9, 3])
    found = pieces("merscope", write_merscope(tmp_path / "r", table, FLAT), tile=5)
    molecules, cells, _ = whole(found)
    assert cells["fov"].to_dict() == {"a": "10", "b": "9", "c": "9"}  # a: one each
    assert molecules["fov"].tolist() == ["10", "10", "9", "9"]
    assert [piece.cells["fov"].iloc[0] for piece in found] == ["10", "9"]


def test_cell_ids_of_no_cell_and_of_unknown_ones_are_counted(tmp_path):
    table = detected(DETECTED, cell_id=["a", "-1", "b", "z", None])
    molecules, _, dropped = whole(pieces("merscope", write_merscope(tmp_path / "r", table, FLAT)))
    assert molecules["cell_id"].tolist() == ["a", "b"]
    assert dropped["molecules"] == {"outside every cell": 2, "cell without an outline": 1}
    assert dropped["cells"] == {"without molecules": 1}


def test_a_named_cell_keeps_molecules_beyond_its_outline(tmp_path):
    table = detected(DETECTED, cell_id=["a"] * 5)
    molecules, _, _ = whole(pieces("merscope", write_merscope(tmp_path / "r", table, FLAT)))
    assert len(molecules) == 5


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_merscope_coordinates_that_are_not_finite_are_counted(tmp_path, lost):
    table = detected([*DETECTED, ("G1", lost, 1), ("G1", 1, lost)])
    molecules, _, dropped = whole(pieces("merscope", write_merscope(tmp_path / "r", table, FLAT)))
    assert len(molecules) == 4
    assert dropped["molecules"] == {"coordinate not finite": 2, "outside every cell": 1}


def test_a_molecule_without_a_gene_is_counted_by_the_rules(tmp_path):
    table = detected([("", 1, 1), ("NA", 2, 2), ("nan", 3, 3)])
    found = pieces("merscope", write_merscope(tmp_path / "r", table, FLAT))
    tables = [apply_rules(piece, MERSCOPE) for piece in found]
    assert tables[0].molecules["gene"].to_pylist() == ["NA", "nan"]  # names of genes, not missing
    assert tables[0].dropped["molecules"] == {"without a gene": 1}


def test_molecules_go_to_self_crossing_cells_as_repaired(tmp_path):
    tie = Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    rows = [("G", 3.5, 2), ("G", 0.5, 2), ("G", 2, 3)]
    folder = write_merscope(tmp_path / "r", detected(rows), [("tie", 0, tie)])
    tables = [apply_rules(piece, MERSCOPE) for piece in pieces("merscope", folder)]
    assert tables[0].molecules.num_rows == 2
    assert shapely.from_wkb(tables[0].cells["cell_boundary"][0].as_py()).area == pytest.approx(8)


def test_files_without_features_are_empty_fields_of_view(tmp_path):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT, hdf5=True)
    with h5py.File(folder / "cell_boundaries/feature_data_7.hdf5", "w") as file:
        file["other"] = 1
    assert len(whole(pieces("merscope", folder))[1]) == 3
    for path in (folder / "cell_boundaries").iterdir():
        with h5py.File(path, "a") as file:
            file.pop("featuredata", None)
    with pytest.raises(SourceError, match=r"none of the 3 files .* has cells"):
        pieces("merscope", folder)


def test_hdf5_of_another_layout_is_refused(tmp_path):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT, hdf5=True)
    with h5py.File(folder / "cell_boundaries/feature_data_0.hdf5", "a") as file:
        file["featuredata/x/zIndex_0/p_0/points"] = np.zeros((3, 2))
    with pytest.raises(SourceError, match=r"feature_data_0.hdf5 cannot be read as MERSCOPE"):
        pieces("merscope", folder)
    (folder / "cell_boundaries/feature_data_0.hdf5").write_bytes(b"<html>")
    with pytest.raises(SourceError, match=r"feature_data_0.hdf5 cannot be read as MERSCOPE"):
        pieces("merscope", folder)


def test_what_is_no_merscope_export_is_refused(tmp_path):
    with pytest.raises(SourceError, match="expected the output folder of a MERSCOPE run"):
        pieces("merscope", tmp_path / "absent")
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    (folder / "cell_boundaries.parquet").unlink()
    with pytest.raises(SourceError, match=r"no boundaries: expected cell_boundaries.parquet"):
        pieces("merscope", folder)
    (folder / "detected_transcripts.csv").unlink()
    with pytest.raises(SourceError, match=r"no detected_transcripts.csv"):
        pieces("merscope", folder)


@pytest.mark.parametrize("column", ["EntityID", "ZIndex", "Geometry"])
def test_boundaries_without_a_column_are_refused(tmp_path, column):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    path = folder / "cell_boundaries.parquet"
    pq.write_table(pq.read_table(path).drop_columns(column), path)
    with pytest.raises(SourceError, match=f"lacks the columns {column}; it has .*, ID, "):
        pieces("merscope", folder)


def test_boundaries_that_are_no_geometry_are_refused(tmp_path):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    path = folder / "cell_boundaries.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("Geometry")
    pq.write_table(table.set_column(at, "Geometry", pa.array([b"x" * 90] * len(table))), path)
    with pytest.raises(SourceError, match="cannot be read as a MERSCOPE export"):
        pieces("merscope", folder)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (",gene,global_x\n0,G,1\n", "lacks the columns global_y; it has , gene, global_x"),
        ("<html><body>no</body></html>\n", "lacks the columns gene, global_x, global_y"),
        ("", "cannot be read as a table"),
        ("gene,global_x,global_y\nG,1,1\nG,1\n", "Expected 3 columns, got 2"),
        ("gene,global_x,global_y\nG,1,1\nG,one,1\n", "invalid value 'one'"),
        ("gene,global_x,global_y\n", "no molecule lies in a cell"),
        ("gene,global_x,global_y\nG,900,900\n", r"dropped: 1 molecules \(outside every cell\)"),
    ],
)
def test_a_csv_that_is_not_as_documented_is_refused(tmp_path, text, match):
    folder = write_merscope(tmp_path / "r", detected(DETECTED), FLAT)
    (folder / "detected_transcripts.csv").write_text(text)
    with pytest.raises(SourceError, match=match):
        pieces("merscope", folder)


@pytest.mark.slow
def test_a_truncated_gzip_is_refused(brain, tmp_path):
    folder = write_merscope(tmp_path / "r", *brain)
    path = folder / "detected_transcripts.csv"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    Path(f"{path}.gz").write_bytes(packed)
    assert len(whole(pieces("merscope", folder))[0]) == 32_494
    Path(f"{path}.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(SourceError, match=r"detected_transcripts.csv.gz cannot be read"):
        pieces("merscope", folder)


@pytest.mark.parametrize("platform", ["xenium", "merscope"])
def test_a_wrong_unit_is_warned_about(platform, tmp_path, caplog):
    """Pixels of 0.1 um taken for um: cells of 1,000."""
    large = {name: shapely.affinity.scale(s, 100, 100, origin=(0, 0)) for name, s in CELLS.items()}
    rows = [(cell, gene, x * 100, y * 100) for cell, gene, x, y in INSIDE]
    if platform == "xenium":
        write_xenium(tmp_path / "r", transcripts(rows), vertices(large.items()))
    else:
        outlines = [(name, 0, shape) for name, shape in large.items()]
        write_merscope(tmp_path / "r", detected([row[1:] for row in rows]), outlines)
    recipe = Recipe(format=platform, path="r", patterns=FOUR, split="test")
    folder = curate(recipe, tmp_path, tmp_path / "made", name="own", version="0.0.0")
    assert "3 of 3 cells have a diameter outside 3-200 um" in caplog.text
    assert Dataset(folder).manifest.warnings


def grid(n, seed=0):
    """Twelve square cells of 15 um, and `n` molecules (cell, gene, x, y) in each."""
    rng = np.random.Generator(np.random.Philox(seed))
    outlines = {
        f"c{i:02}": box(x := 20 * (i % 4), y := 20 * (i // 4), x + 15, y + 15) for i in range(12)
    }
    rows = [
        (name, "G", shape.bounds[0] + dx, shape.bounds[1] + dy)
        for name, shape in outlines.items()
        for dx, dy in rng.uniform(0.5, 14.5, (n, 2)).tolist()
    ]
    return outlines, rows


def write_grid(platform, folder, outlines, rows):
    if platform == "xenium":
        return write_xenium(folder, transcripts(rows), vertices(outlines.items()))
    table = detected([row[1:] for row in rows], cell_id=[row[0] for row in rows])
    return write_merscope(folder, table, [(name, 0, shape) for name, shape in outlines.items()])


def made_from(platform, folder):
    recipe = Recipe(format=platform, path=folder.name, patterns=FOUR, split="test", tile_um=25)
    return curate(recipe, folder.parent, folder.parent / "made", name="own", version="0.0.0")


@pytest.mark.parametrize("platform", ["xenium", "merscope"])
def test_ids_of_another_segmentation_are_refused_and_leave_nothing(platform, tmp_path):
    """The outlines were segmented anew: the same ids, other cells. Every tile has few molecules."""
    outlines, rows = grid(n=5)
    renamed = dict(zip(np.roll(list(outlines), 1), outlines.values(), strict=True))
    folder = write_grid(platform, tmp_path / "r", renamed, rows)
    found = (
        r"r: only 0\.0% of the 60 molecules lie .*at least 50%; fewest in the cells c00 \(0 of 5\)"
    )
    with pytest.raises(SourceError, match=found):
        made_from(platform, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("platform", ["xenium", "merscope"])
def test_some_wrong_ids_are_warned_about_with_the_worst_cells(platform, tmp_path, caplog):
    outlines, rows = grid(n=20)
    outlines["c03"], outlines["c07"] = outlines["c07"], outlines["c03"]
    dataset = Dataset(made_from(platform, write_grid(platform, tmp_path / "r", outlines, rows)))
    share = "only 83.3% of the 240 molecules lie in their cells"
    assert share in caplog.text
    [warning] = dataset.manifest.warnings
    assert "fewest in the cells c03 (0 of 20), c07 (0 of 20)." in warning
    assert dataset.verify() == dataset.manifest.placement
    assert dataset.manifest.placement.share == 200 / 240


def test_few_molecules_warn_and_do_not_refuse(tmp_path, caplog):
    outlines, rows = grid(n=1)
    renamed = dict(zip(np.roll(list(outlines), 1), outlines.values(), strict=True))
    made_from("xenium", write_grid("xenium", tmp_path / "r", renamed, rows))
    assert "only 0.0% of the 12 molecules" in caplog.text
