"""Source releases become tables: nothing lost without a reason, nothing half written."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest
import scipy.sparse
import shapely
import zarr
from samples import content_sha256
from shapely import MultiPolygon, Polygon, box

from gpattern_bench.base.files import file_sha256
from gpattern_bench.curate import rules, write
from gpattern_bench.curate.build import build, curate
from gpattern_bench.curate.quality import Quality
from gpattern_bench.curate.readers import read_release
from gpattern_bench.curate.readers.bento import read_bento
from gpattern_bench.curate.readers.label_csv import read_labels_csv
from gpattern_bench.curate.readers.spatialdata import read_spatialdata
from gpattern_bench.curate.release import Release, by_fov
from gpattern_bench.curate.rules import Tables, apply_rules
from gpattern_bench.errors import GPatternBenchError, SourceError, TableError
from gpattern_bench.sources.fetch import MIRROR
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import find_entry
from gpattern_bench.tables import schema

PATTERNS = ("nuclear", "cytoplasmic")
RECIPE = Recipe(format="bento-h5ad", patterns=PATTERNS, unit_um=0.1, split="test")
SQUARE = {"1-0": box(0, 0, 100, 100), "2-0": box(200, 0, 300, 100)}  # px; 10 um wide


def molecules(rows: list[tuple[Any, ...]], **more: list[Any]) -> pd.DataFrame:
    """Molecules from (cell, gene, x, y), in one FOV."""
    frame = pd.DataFrame(rows, columns=["cell_id", "gene", "x", "y"])
    return frame.assign(fov="0", **more)


def cells(outlines: dict[str, Any], **more: list[Any]) -> pd.DataFrame:
    frame = pd.DataFrame({"cell_id": list(outlines), "fov": "0", "touches_border": None})
    frame["cell_boundary"] = list(outlines.values())
    frame["nucleus_boundary"] = None
    return frame.assign(**more)


def labels(rows: list[tuple[str, str, int, int]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["cell_id", "gene", *PATTERNS])


def release(**changed: Any) -> Release:
    """Two square cells with five molecules, three labelled pairs."""
    rows = [
        ("1-0", "A", 10.0, 20.0),
        ("1-0", "A", 50.0, 50.0),
        ("1-0", "B", 90.0, 90.0),
        ("2-0", "A", 210.0, 10.0),
        ("2-0", "C", 290.0, 90.0),
    ]
    sound = Release(
        molecules(rows),
        cells(SQUARE, nucleus_boundary=[box(40, 40, 60, 60), None]),
        labels([("1-0", "A", 1, 0), ("1-0", "B", 1, 1), ("2-0", "C", 0, 0)]),
    )
    return replace(sound, **changed)


def recipe(**changed: Any) -> Recipe:
    return Recipe(**{**RECIPE.model_dump(), **changed})


def tables(**changed: Any) -> Tables:
    return apply_rules(release(**changed), RECIPE)


def write_to(folder: Path, made: Tables, **more: Any) -> Path:
    more = {"name": "small", "version": "1.0.0", "recipe": RECIPE, **more}
    return write.write_dataset([made], folder, **more)


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / write.MANIFEST).read_text(encoding="utf-8"))


# Rules: what is dropped


def test_every_molecule_is_kept_or_dropped_for_one_reason():
    rows = [
        ("1-0", "A", 1.0, 1.0),
        (None, "A", 1.0, 1.0),
        (None, "Blank-1", np.nan, 1.0),  # three reasons, the first counts
        ("9-0", "A", 1.0, 1.0),
        ("9-0", "blank-1", 1.0, 1.0),
        ("1-0", "Blank-1", 1.0, 1.0),
        ("1-0", "notarget003", 1.0, np.inf),
        ("1-0", "A", np.nan, 1.0),
        ("1-0", "B", 1.0, -np.inf),
    ]
    made = tables(molecules=molecules(rows), labels=None)
    assert made.dropped["molecules"] == {
        "outside every cell": 2,
        "cell without an outline": 2,
        "control target": 2,
        "coordinate not finite": 2,
    }
    assert len(made.molecules) + sum(made.dropped["molecules"].values()) == len(rows)


@pytest.mark.parametrize("last", ["Z", "notarget"])
def test_molecules_without_a_gene_are_dropped_for_a_reason_of_their_own(last):
    rows = [("1-0", "A", 1.0, 1.0), ("1-0", last, 1.0, 1.0), ("1-0", None, 1.0, 1.0)]
    made = tables(molecules=molecules(rows), labels=None)
    assert None not in made.molecules["gene"].to_pylist()
    assert made.dropped["molecules"].get("control target", 0) == (last == "notarget")
    assert len(made.molecules) + sum(made.dropped["molecules"].values()) == 3


def test_coordinates_that_float32_cannot_hold_are_not_kept():
    rows = [("1-0", "A", 1.0, 1.0), ("1-0", "A", 1e300, 1.0)]
    made = tables(molecules=molecules(rows), labels=None)
    assert made.dropped["molecules"] == {"coordinate not finite": 1}


def test_every_cell_is_kept_or_dropped_for_one_reason():
    outlines = {**SQUARE, "3-0": None, "4-0": Polygon(), "5-0": box(0, 0, 1, 1)}
    made = tables(cells=cells(outlines))
    assert made.cells["cell_id"].to_pylist() == ["1-0", "2-0"]
    assert made.dropped["cells"] == {"without an outline": 2, "without molecules": 1}


def test_cell_whose_molecules_are_all_dropped_goes():
    rows = [("1-0", "A", 1.0, 1.0), ("2-0", "blank", 210.0, 1.0)]
    made = tables(molecules=molecules(rows), labels=None)
    assert made.cells["cell_id"].to_pylist() == ["1-0"]
    assert made.dropped["cells"] == {"without molecules": 1}


def test_every_label_is_kept_or_dropped_for_one_reason():
    rows = [
        ("1-0", "A", 1.0, 1.0),
        ("1-0", "B", 1.0, 1.0),
        ("1-0", "Blank-1", 1.0, 1.0),
        ("1-0", "Blank-2", 1.0, 1.0),
        ("2-0", "A", np.nan, 1.0),
        ("9-0", "A", 1.0, 1.0),
    ]
    named = [
        ("1-0", "A", 1, 0),
        ("1-0", "B", 0, 0),  # no pattern
        ("1-0", "Blank-1", 1, 0),
        ("1-0", "Blank-2", 0, 0),  # a control first of all
        ("1-0", "Z", 0, 0),  # no molecules first of all
        ("2-0", "A", 1, 0),  # its only molecule is dropped
        ("9-0", "A", 1, 0),  # its cell is
    ]
    made = tables(molecules=molecules(rows), labels=labels(named))
    assert made.dropped["labels"] == {
        "pair without molecules": 1,
        "control target": 2,
        "molecules dropped": 2,
        "no pattern": 1,
    }
    assert len(made.labels) + sum(made.dropped["labels"].values()) == len(named)
    assert all(reason in rules.__doc__ for table in made.dropped.values() for reason in table)


def test_drops_of_the_reader_are_added():
    made = tables(dropped={"molecules": {"gene not in var": 3}, "labels": {"duplicate row": 2}})
    assert made.dropped["molecules"] == {"gene not in var": 3}
    assert made.dropped["labels"] == {"duplicate row": 2, "no pattern": 1}


@pytest.mark.parametrize(("patternless", "kept"), [("keep", 3), ("drop", 2)])
def test_patternless_pairs_stay_or_go(patternless, kept):
    made = apply_rules(release(), recipe(patternless=patternless))
    assert len(made.labels) == kept
    assert made.dropped["labels"].get("no pattern", 0) == 3 - kept


@pytest.mark.parametrize("gene", ["Blank-3", "BLANK3", "blank", "NoTarget001"])
def test_controls_are_found_whatever_their_case(gene):
    rows = [("1-0", "A", 1.0, 1.0), ("1-0", gene, 1.0, 1.0), ("1-0", "unblanked", 1.0, 1.0)]
    made = tables(molecules=molecules(rows), labels=None)
    assert made.molecules["gene"].to_pylist() == ["A", "unblanked"]


def test_controls_are_found_as_other_tools_write_them_and_genes_are_not():
    """Seurat writes - for _ in names, R's data frames a dot."""
    words = ["NegControlProbe", "Neg_Ctrl", "neg_probe", "UnassignedCodeword", "GenomicControl"]
    words += ["Deprecated_Codeword", "Intergenic_Region", "antisense", "System_Control"]
    names = [f"{word}_1".replace("_", sign) for word in words for sign in "_-. "]
    genes = ["ANTXR1", "DEPDC1", "INTS1", "NEGR1", "Negr1", "SYS1", "UNC13A"]
    made = tables(molecules=molecules([("1-0", n, 1.0, 1.0) for n in names + genes]), labels=None)
    assert made.molecules["gene"].to_pylist() == genes
    assert made.dropped["molecules"]["control target"] == len(names)


def test_controls_can_be_named_or_kept():
    made = apply_rules(release(labels=None), recipe(controls="a|b"))
    assert made.molecules["gene"].to_pylist() == ["C"]
    assert len(apply_rules(release(), recipe(controls="")).molecules) == 5


CONTROL_NAMES = [
    "NegControlProbe_00042", "NegControlCodeword_0500", "UnassignedCodeword_0003",
    "DeprecatedCodeword_0318", "Intergenic_Region_1065", "antisense_LYZ", "BLANK_0006",
    "Blank-1", "NegPrb3", "Negative1", "NegProbe-WTX", "SystemControl12", "FalseCode7", "notarget5",
]  # fmt: skip
GENES = ["NEGR1", "Unc5b", "Blnk", "FALZ", "Systemin", "DEPDC1", "INTS6", "ANTXR1", "CUSTOM", "nan"]


@pytest.mark.parametrize("form", ["bento-h5ad", "cosmx", "merscope", "spatialdata", "xenium"])
def test_one_list_of_control_names_serves_every_format(form):
    rows = [("1-0", name, 1.0, 1.0) for name in [*CONTROL_NAMES, *GENES]]
    asked = Recipe(format=form, patterns=PATTERNS)
    made = apply_rules(release(molecules=molecules(rows), labels=None), asked)
    assert sorted(made.molecules["gene"].to_pylist()) == sorted(GENES)
    assert made.dropped["molecules"] == {"control target": len(CONTROL_NAMES)}


def test_quality_and_targets_are_rules_for_every_source():
    more = {
        "qv": [40.0, 19.9, 20.0, 5.0, np.nan],
        "is_gene": [True, True, False, False, True],
    }
    made = tables(molecules=release().molecules.assign(**more), labels=None)
    assert made.dropped["molecules"] == {"quality (qv) below 20": 3, "control target": 1}
    assert len(made.molecules) == 1
    made = apply_rules(
        release(molecules=release().molecules.assign(**more), labels=None),
        recipe(min_qv=5, controls=""),
    )
    assert made.dropped["molecules"] == {"quality (qv) below 5": 1}
    assert "quality (qv) below Q" in rules.__doc__


@pytest.mark.parametrize(
    ("is_gene", "category", "kept"),
    [
        (True, None, True), ("True", None, True), ("true", None, True), (1, None, True),
        (False, None, False), ("false", None, False), (0, None, False), (np.nan, None, False),
        (None, "predesigned_gene", True), (None, "custom_gene", True),
        (None, "genomic_control_probe", False), (None, "unassigned_codeword", False),
        (True, "negative_control_probe", False), (False, "custom_gene", False),
        ("", "predesigned_gene", True), ("True", "", True), ("", "", False),
    ],
)  # fmt: skip
def test_what_the_source_says_of_a_target_counts(is_gene, category, kept):
    columns = {"is_gene": is_gene, "codeword_category": category}
    columns = {name: pd.Series([value] * 2) for name, value in columns.items() if value is not None}
    found = Quality().controls(columns)["control target"]
    assert found.tolist() == [not kept] * 2
    assert Quality(genes_only=False).controls(columns) == {}


def test_a_target_that_is_neither_gene_nor_control_is_refused():
    with pytest.raises(SourceError, match="is_gene has the value maybe, expected true or false"):
        tables(molecules=release().molecules.assign(is_gene="maybe"))


# Rules: ids


@pytest.mark.parametrize("lost", [None, np.nan, "", "  ", "nan", "<NA>"])
def test_cells_without_an_id_are_refused(lost):
    with pytest.raises(SourceError, match="1 of 2 cells have no id"):
        tables(cells=release().cells.assign(cell_id=["1-0", lost]))


@pytest.mark.parametrize("lost", [None, np.nan, "", " ", "nan"])
def test_molecules_with_a_blank_id_are_outside_every_cell(lost):
    rows = release().molecules.assign(cell_id=[lost, lost, "1-0", "2-0", "2-0"])
    made = tables(molecules=rows, labels=None)
    assert made.dropped["molecules"] == {"outside every cell": 2}


@pytest.mark.parametrize("lost", [None, np.nan, "", " "])
def test_molecules_with_a_blank_gene_are_without_a_gene(lost):
    rows = release().molecules.assign(gene=["A", "A", lost, "A", "nan"])
    made = tables(molecules=rows, labels=None)
    assert made.dropped["molecules"] == {"without a gene": 1}
    assert set(made.molecules["gene"].to_pylist()) == {"A", "nan"}  # a gene of the fly


@pytest.mark.parametrize("lost", [None, np.nan, "", " ", "nan"])
def test_cells_in_no_field_of_view_are_refused(lost):
    with pytest.raises(SourceError, match=r"1 cells are in no field of view, the first is 2-0"):
        tables(cells=release().cells.assign(fov=["0", lost]))
    without = [("1-0", "A", 1.0, 1.0)]  # a cell that is dropped needs no field of view
    kept = tables(
        cells=release().cells.assign(fov=["0", lost]), molecules=molecules(without), labels=None
    )
    assert kept.cells["cell_id"].to_pylist() == ["1-0"]


@pytest.mark.parametrize("form", ["bento-h5ad", "spatialdata"])
def test_a_blank_field_of_view_is_refused(tmp_path, form):
    if form == "spatialdata":
        write_spatialdata(tmp_path / "r", batch=["8", "8", "8", "", "8"])
    else:
        write_bento(tmp_path / "r", batch=["8", "8", "8", "", "8"])
    asked = recipe(format=form, path="r", fov_column="batch")
    with pytest.raises(SourceError, match="1 cells are in no field of view, the first is 2-0"):
        curate(asked, tmp_path, tmp_path / "made", name="r", version="1.0.0")


def test_a_cell_id_in_two_fields_of_view_is_refused():
    outlines = cells(SQUARE, fov=["7", "8"], cell_id=["1-0", "1-0"])
    with pytest.raises(SourceError, match="cell id 1-0 occurs more than once"):
        list(by_fov(release(cells=outlines)))


@pytest.mark.parametrize("form", ["bento-h5ad", "spatialdata"])
def test_quality_is_read_from_files_in_memory_too(tmp_path, form):
    rated = {"qv": [40.0, 10.0, 40.0, 40.0, 40.0], "is_gene": [True, True, False, True, True]}
    if form == "spatialdata":
        write_spatialdata(tmp_path / "r", **rated)
    else:
        write_bento(tmp_path / "r", **rated)
    asked = recipe(format=form, path="r")
    folder = curate(asked, tmp_path, tmp_path / "made", name="r", version="1.0.0")
    drops = {"quality (qv) below 20": 1, "outside every cell": 1, "control target": 1}
    assert manifest(folder)["dropped"]["molecules"] == drops
    assert manifest(folder)["counts"]["molecules"] == 2


# Rules: values


def test_columns_are_exactly_the_schema():
    rows = release().molecules.assign(nucleus="1", overlaps_nucleus=1, CellComp="Nuclear")
    made = tables(molecules=rows, cells=release().cells.assign(cell_radius=1.0))
    assert made.molecules.schema.equals(schema.MOLECULES)
    assert made.cells.schema.equals(schema.CELLS)
    assert made.labels.schema.equals(schema.labels(PATTERNS))


def test_everything_is_in_micrometres():
    made = tables(molecules=release().molecules.assign(z=[10.0, 20.0, 30.0, 40.0, 50.0]))
    rows = made.molecules.to_pylist()
    first = {"fov": "0", "cell_id": "1-0", "gene": "A", "x": 1.0, "y": 2.0, "z": 1.0}
    assert rows[0] == first
    cell = made.cells.to_pylist()[0]
    assert (cell["x"], cell["y"]) == (5.0, 5.0)
    assert shapely.from_wkb(cell["cell_boundary"]).equals(box(0, 0, 10, 10))
    assert shapely.from_wkb(cell["nucleus_boundary"]).equals(box(4, 4, 6, 6))


def test_unit_is_in_the_schema():
    for column in ("x", "y", "z"):
        assert tables().molecules.schema.field(column).metadata == {b"unit": b"um"}


def test_z_is_null_where_it_was_not_measured():
    assert tables().molecules["z"].null_count == 5
    some = release().molecules.assign(z=[1.0, np.nan, 3.0, np.nan, 5.0])
    assert tables(molecules=some).molecules["z"].null_count == 2


def test_cell_without_a_nucleus_stays_with_null():
    made = tables()
    assert made.cells["nucleus_boundary"].is_null().to_pylist() == [False, True]


def test_empty_nucleus_becomes_null():
    made = tables(cells=cells(SQUARE, nucleus_boundary=[Polygon(), box(1, 1, 2, 2)]))
    assert made.cells["nucleus_boundary"].is_null().to_pylist() == [True, False]


def test_invalid_outline_is_repaired():
    bow_tie = Polygon([(0, 0), (100, 100), (100, 0), (0, 100)])
    made = tables(cells=cells({**SQUARE, "1-0": bow_tie}))
    outline = shapely.from_wkb(made.cells["cell_boundary"][0].as_py())
    assert outline.is_valid
    assert outline.area == pytest.approx(50)


def test_outline_of_several_parts_stays_so():
    parts = MultiPolygon([box(0, 0, 100, 50), box(0, 60, 100, 100)])
    made = tables(cells=cells({**SQUARE, "1-0": parts}))
    outline = shapely.from_wkb(made.cells["cell_boundary"][0].as_py())
    assert outline.geom_type == "MultiPolygon"
    assert outline.area == pytest.approx(90)


@pytest.mark.parametrize("unit_um", [1.0, 0.5])
def test_outlines_are_flat_whatever_the_unit(unit_um):
    high = shapely.force_3d(box(0, 0, 10, 10), 7.0)
    made = apply_rules(release(cells=cells({**SQUARE, "1-0": high})), recipe(unit_um=unit_um))
    assert not shapely.from_wkb(made.cells["cell_boundary"][0].as_py()).has_z


def test_counts_are_those_of_what_is_kept():
    made = tables(molecules=molecules([("1-0", "A", 1, 1), ("1-0", "A", 2, 2), ("1-0", "B", 3, 3)]))
    cell = made.cells.to_pylist()[0]
    assert (cell["n_molecules"], cell["n_genes"]) == (3, 2)
    assert made.labels["n_molecules"].to_pylist() == [2, 1]


def test_touches_border_is_kept():
    made = tables(cells=cells(SQUARE, touches_border=[True, None]))
    assert made.cells["touches_border"].to_pylist() == [True, None]


def test_molecules_lie_in_the_fov_of_their_cell(tmp_path):
    rows = release().molecules.assign(fov=["x", "y", "7", "0", "0"])
    made = tables(molecules=rows, cells=cells(SQUARE, fov=["7", "8"]))
    assert made.molecules["fov"].to_pylist() == ["7", "7", "7", "8", "8"]
    assert made.labels["fov"].to_pylist() == ["7", "7"]
    splits = pq.read_table(write_to(tmp_path / "set", made) / "splits.parquet")
    assert splits.schema.equals(schema.SPLITS)
    assert splits.to_pylist() == [
        {"fov": "7", "split": "test"},
        {"fov": "8", "split": "test"},
    ]


def test_split_by_fov_is_asked_of_three_fovs(tmp_path):
    with pytest.raises(SourceError, match="has 1"):
        write_to(tmp_path / "set", tables(), recipe=recipe(split="fov"))
    assert list(tmp_path.iterdir()) == []


def test_named_splits_are_those_of_the_recipe(tmp_path):
    made = tables(cells=cells(SQUARE, fov=["7", "8"]))
    named = recipe(splits={"7": "train", "8": "test"})
    folder = write_to(tmp_path / "set", made, recipe=named)
    assert pq.read_table(folder / "splits.parquet")["split"].to_pylist() == ["train", "test"]
    with pytest.raises(SourceError, match="the release has 7, 8"):
        write_to(tmp_path / "other", made, recipe=recipe(splits={"7": "train"}))


def test_pieces_give_the_bytes_of_the_whole(tmp_path):
    source = release(cells=cells(SQUARE, fov=["7", "8"]))
    pieces = [apply_rules(piece, RECIPE) for piece in by_fov(source)]
    assert [len(piece.cells) for piece in pieces] == [0, 1, 1]  # the molecules' own FOV is "0"
    for folder, made in (("whole", [apply_rules(source, RECIPE)]), ("pieces", pieces)):
        write.write_dataset(made, tmp_path / folder, name="d", version="1.0.0", recipe=RECIPE)
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "pieces" / file.name).read_bytes() == file.read_bytes()


def test_split_by_fov(tmp_path):
    outlines = {f"{i}-{i}": box(0, 200 * i, 100, 200 * i + 100) for i in range(4)}
    rows = [(cell, "A", 1.0, 200.0 * i + j) for i, cell in enumerate(outlines) for j in range(i)]
    made = apply_rules(
        Release(molecules(rows), cells(outlines, fov=list("abcd"))), recipe(split="fov")
    )
    folder = write_to(tmp_path / "set", made, recipe=recipe(split="fov"))
    splits = pq.read_table(folder / "splits.parquet")
    assert splits["fov"].to_pylist() == ["b", "c", "d"]  # the cell in "a" has no molecules
    assert sorted(splits["split"].to_pylist()) == ["test", "train", "val"]


@pytest.mark.parametrize(("unit_um", "diameter"), [(10.0, 1128), (0.01, 1.128), (2.0, 225.7)])
def test_odd_diameter_is_a_warning_with_both_units(unit_um, diameter, caplog, tmp_path):
    odd = recipe(unit_um=unit_um)
    folder = write_to(tmp_path / "set", apply_rules(release(), odd), recipe=odd)
    [warning] = manifest(folder)["warnings"]
    assert warning.startswith("2 of 2 cells have a diameter outside 3-200 um")
    assert f"112.8 source units (px) = {diameter:g} um at {unit_um:g} um per unit" in warning
    assert [record.getMessage() for record in caplog.records] == [warning]


def test_usual_diameter_is_no_warning(tmp_path):
    assert manifest(write_to(tmp_path / "set", tables()))["warnings"] == []


def test_duplicate_cell_ids_are_refused():
    twice = pd.concat([release().cells, release().cells.iloc[:1]])
    with pytest.raises(SourceError, match="1-0 occurs more than once"):
        tables(cells=twice)


@pytest.mark.parametrize(
    "changed",
    [
        {"cells": cells({"1-0": None, "2-0": None})},
        {"cells": release().cells.iloc[:0]},
        {"molecules": release().molecules.iloc[:0]},
        {"molecules": release().molecules.assign(cell_id=None)},
        {"molecules": release().molecules.assign(gene="blank")},
        {"molecules": release().molecules.assign(cell_id="other")},
    ],
    ids=["no outlines", "no cells", "no molecules", "outside", "controls", "other ids"],
)
def test_nothing_left_is_an_error_with_the_reasons(changed, tmp_path):
    with pytest.raises(SourceError, match=r"nothing is left .*dropped rows by reason"):
        write_to(tmp_path / "set", tables(**changed))
    assert list(tmp_path.iterdir()) == []


def test_no_label_left_is_an_error_with_the_reasons(tmp_path):
    made = tables(labels=labels([("1-9", "A", 1, 0)]))
    match = r"none of the labelled pairs is left .*'pair without molecules': 1"
    with pytest.raises(SourceError, match=match):
        write_to(tmp_path / "set", made)


@pytest.mark.parametrize("categorical", [False, True])
def test_order_and_encoding_of_the_rows_do_not_matter(categorical):
    rows = release().molecules.assign(z=[5.0, 4.0, np.nan, 2.0, 1.0]).sample(frac=1, random_state=1)
    if categorical:
        for name in ("cell_id", "gene"):
            unused = pd.Categorical(rows[name], ["unused", *sorted(set(rows[name]), reverse=True)])
            rows[name] = unused
    made = tables(
        molecules=rows,
        cells=release().cells.iloc[::-1],
        labels=release().labels.iloc[::-1],
    )
    expected = tables(molecules=release().molecules.assign(z=[5.0, 4.0, np.nan, 2.0, 1.0]))
    for name in ("molecules", "cells", "labels"):
        assert content_sha256(getattr(made, name)) == content_sha256(getattr(expected, name))


@pytest.mark.parametrize("name", ["molecules", "cells", "labels"])
def test_tables_are_in_canonical_order(name):
    table = getattr(tables(), name)
    order = [(key, "ascending") for key in schema.SORT_KEYS[name]]
    text = pa.table({key: table[key].to_pylist() for key, _ in order})
    assert text.sort_by(order).equals(text)


# The recipe


@pytest.mark.parametrize(
    "changed",
    [
        {"patterns": ()},
        {"patterns": ("nuclear", "nuclear")},
        {"patterns": ("nuclear", "gene")},
        {"patterns": ("nuclear", "")},
        {"unit_um": 0},
        {"unit_um": float("inf")},
        {"unit_um": float("nan")},
        {"controls": "("},
        {"pattern": "nuclear"},
        {"split": "random"},
    ],
    ids=str,
)
def test_recipe_that_cannot_work_is_refused(changed):
    with pytest.raises(pydantic.ValidationError):
        recipe(**changed)


# Label tables


CSV = """cell,gene,nuclear,cytoplasmic,dataset
1-0,A,1,0,mine
1-0,B,0,1,mine
1-0,B,0,1,mine
1-0,B,1,0,other
"""


def labels_csv(tmp_path: Path, text: str, where: dict[str, str] | None = None) -> Any:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return read_labels_csv(path, PATTERNS, where or {})


def test_csv_of_labels_is_filtered_and_freed_of_duplicates(tmp_path):
    read, dropped = labels_csv(tmp_path, CSV, {"dataset": "mine"})
    assert read.to_dict("list") == {
        "cell_id": ["1-0", "1-0"],
        "gene": ["A", "B"],
        "nuclear": [True, False],
        "cytoplasmic": [False, True],
    }
    assert dropped == {"labels": {"row of another dataset": 1, "duplicate row": 1}}


def test_csv_ids_stay_text(tmp_path):
    read, _ = labels_csv(tmp_path, "gene,cell,cytoplasmic,nuclear\n007,010,0,1\n")
    assert read.iloc[0].to_dict() == {
        "cell_id": "010",
        "gene": "007",
        "nuclear": True,
        "cytoplasmic": False,
    }


def test_csv_names_are_not_taken_for_missing_values(tmp_path):
    read, _ = labels_csv(tmp_path, "cell,gene,nuclear,cytoplasmic\n1,NA,0,1\n")
    assert read["gene"].tolist() == ["NA"]


def test_csv_rows_that_disagree_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"1 pairs? .*differ.* cell 1-0, gene B"):
        labels_csv(tmp_path, CSV)


def test_csv_pairs_that_disagree_are_counted_once(tmp_path):
    text = "cell,gene,nuclear,cytoplasmic\n1,A,0,0\n1,A,0,1\n1,A,1,1\n"
    with pytest.raises(SourceError, match="1 pair"):
        labels_csv(tmp_path, text)


@pytest.mark.parametrize("value", ["2", "0.5", "-1", "yes", ""])
def test_csv_value_other_than_0_and_1_is_refused(tmp_path, value):
    with pytest.raises(SourceError, match=r"data row 2: expected a cell, a gene and 0 or 1"):
        labels_csv(tmp_path, f"cell,gene,nuclear,cytoplasmic\n1,A,1,0\n1,B,{value},1\n")


def test_csv_value_in_rows_of_others_does_not_matter(tmp_path):
    read, _ = labels_csv(tmp_path, CSV + "1-0,C,unsure,,other\n", {"dataset": "mine"})
    assert len(read) == 2


@pytest.mark.parametrize(
    ("text", "where", "missing"),
    [
        ("cell,nuclear\n1,1\n", {}, "gene, cytoplasmic"),
        ("cell,gene,nuclear,cytoplasmic\n1,A,1,0\n", {"set": "x"}, "set"),
    ],
)
def test_csv_missing_columns_are_named(tmp_path, text, where, missing):
    with pytest.raises(SourceError, match=f"lacks the columns {missing}; it has cell"):
        labels_csv(tmp_path, text, where)


def test_csv_that_is_empty_is_refused(tmp_path):
    with pytest.raises(SourceError, match="cannot be read as a csv"):
        labels_csv(tmp_path, "")


def test_csv_in_another_encoding_is_one_short_error(tmp_path):
    rows = "".join(f"1,Gé{k},0,1\n" for k in range(50_000))
    text = f"cell,gene,nuclear,cytoplasmic\n{rows}"
    (tmp_path / "labels.csv").write_bytes(text.encode("cp1252"))
    with pytest.raises(SourceError, match=r"it is not UTF-8 text \(byte 0xe9\); save it") as caught:
        read_labels_csv(tmp_path / "labels.csv", PATTERNS, {})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        f"cell,gene,nuclear,cytoplasmic\n{'x' * 10**6},A,2,1\n",
        f"cell,gene,nuclear,cytoplasmic\n{'x' * 10**6},A,0,1\n{'x' * 10**6},A,1,1\n",
        f"cell,gene,{','.join(map(str, range(2_000)))}\n",
    ],
    ids=["value", "cell", "columns"],
)
def test_an_error_never_prints_the_file(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(SourceError) as caught:
        read_labels_csv(tmp_path / "labels.csv", PATTERNS, {})
    assert len(str(caught.value)) < 2_200


def test_csv_where_no_row_is_meant_says_so(tmp_path):
    with pytest.raises(SourceError, match=r"dataset.*nobody"):
        labels_csv(tmp_path, CSV, {"dataset": "nobody"})


def test_csv_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="no labels at"):
        read_labels_csv(tmp_path / "absent.csv", PATTERNS, {})


# Bento's h5ad


POINTS = {
    "x": [10.0, 20.0, 30.0, 210.0, 999.0],
    "y": [10.0, 20.0, 30.0, 10.0, 999.0],
    "gene": ["A", "A", "B", "A", "B"],
    "cell": ["1-0", "1-0", "1-0", "2-0", "-1"],
    "nucleus": ["1-0", "-1", "-1", "-1", "-1"],
    "batch": ["0", "0", "0", "0", "0"],
}
LAYERS = {
    "nuclear": [[1, 0, np.nan], [np.nan, np.nan, np.nan]],
    "cytoplasmic": [[0, 1, np.nan], [np.nan, np.nan, np.nan]],
    "nuclear_p": [[0.9, 0.1, np.nan], [np.nan, np.nan, np.nan]],
}


def write_categorical(group: h5py.Group, name: str, values: list[str], *, old: bool) -> None:
    """A categorical column with a category that no row has, as AnnData wrote and writes it."""
    levels = ["unused", *sorted(set(values), reverse=True)]
    codes = np.array([levels.index(value) for value in values], dtype=np.int8)
    if old:
        kept = group.require_group("__categories").create_dataset(name, data=levels)
        group.create_dataset(name, data=codes).attrs["categories"] = kept.ref
    else:
        column = group.create_group(name)
        column.attrs["encoding-type"] = "categorical"
        column.create_dataset("codes", data=codes)
        column.create_dataset("categories", data=levels)


def write_bento(
    path: Path,
    *,
    old: bool = True,
    obs_batch: list[str] | None = None,
    layers: dict[str, Any] | None = None,
    **changed: list[Any],
) -> Path:
    """An h5ad of two cells and three genes, as Bento writes it."""
    with h5py.File(path, "w") as file:
        obs, var = file.create_group("obs"), file.create_group("var")
        obs.attrs["_index"], var.attrs["_index"] = "cell", "gene"
        obs["cell"], var["gene"] = list(SQUARE), ["A", "B", "notarget001"]
        obs["cell_shape"] = changed.pop("cell_shape", [shape.wkt for shape in SQUARE.values()])
        obs["nucleus_shape"] = changed.pop("nucleus_shape", [box(40, 40, 60, 60).wkt, "None"])
        if obs_batch is not None:
            write_categorical(obs, "batch", obs_batch, old=old)
        points = file.create_group("uns/points")
        for name, values in {**POINTS, **changed}.items():
            if values is None:
                continue
            if isinstance(values[0], str):
                write_categorical(points, name, values, old=old)
            else:
                points[name] = values
        for name, values in (layers or {}).items():
            file[f"layers/{name}"] = np.asarray(values)
    return path


@pytest.mark.parametrize("old", [True, False], ids=["__categories", "codes"])
def test_bento_file_is_read_in_both_encodings(tmp_path, old):
    path = write_bento(tmp_path / "bento.h5ad", old=old, layers=LAYERS)
    read = read_bento(path, PATTERNS)
    assert read.molecules["cell_id"].isna().tolist() == [False, False, False, False, True]
    assert read.molecules["gene"].tolist() == POINTS["gene"]
    assert read.molecules["x"].tolist() == POINTS["x"]
    assert read.cells["cell_id"].tolist() == ["1-0", "2-0"]
    assert read.cells["fov"].tolist() == ["0", "0"]  # from the points
    assert read.cells["cell_boundary"].tolist() == list(SQUARE.values())
    assert read.cells["nucleus_boundary"].isna().tolist() == [False, True]
    assert read.labels.to_dict("list") == {
        "cell_id": ["1-0", "1-0"],
        "gene": ["A", "B"],
        "nuclear": [True, False],
        "cytoplasmic": [False, True],
    }


def write_with_anndata(path: Path, kinds: dict[str, str]) -> Path:
    """The same file with columns of other types, by AnnData's own writer; `kinds`: pandas types."""
    anndata = pytest.importorskip("anndata", reason="not installed (extra: spatial)")
    write_bento(path)
    shapes = [shape.wkt for shape in SQUARE.values()]
    obs = {"cell_shape": shapes, "nucleus_shape": [box(40, 40, 60, 60).wkt, None]}
    frames = {
        "obs": pd.DataFrame(obs, pd.Index(SQUARE, name="cell")),
        "var": pd.DataFrame(index=pd.Index(["A", "B", "notarget001"], name="gene")),
        "uns/points": pd.DataFrame({**POINTS, "x": [10, 20, 30, 210, 999]}),
    }
    with (
        h5py.File(path, "r+") as file,
        anndata.settings.override(allow_write_nullable_strings=True),
    ):
        for element, frame in frames.items():
            del file[element]
            frame = frame.astype({name: kinds[name] for name in set(kinds) & set(frame)})
            if "index" in kinds:
                frame.index = frame.index.astype(kinds["index"])
            anndata.io.write_elem(file, element, frame)
    return path


NULLABLE = {
    **dict.fromkeys(("gene", "cell", "cell_shape", "nucleus_shape", "index"), "string"),
    "batch": "Int64",
    "x": "Int64",
}


@pytest.mark.parametrize(
    "kinds",
    [NULLABLE, {name: kind if kind == "Int64" else "category" for name, kind in NULLABLE.items()}],
    ids=["nullable", "categorical"],
)
def test_columns_are_read_in_any_encoding_of_anndata(tmp_path, kinds):
    kinds = {name: kind for name, kind in kinds.items() if (name, kind) != ("index", "category")}
    expected = read_bento(write_bento(tmp_path / "old.h5ad"), PATTERNS)
    read = read_bento(write_with_anndata(tmp_path / "new.h5ad", kinds), PATTERNS)
    for found, known in ((read.molecules, expected.molecules), (read.cells, expected.cells)):
        pd.testing.assert_frame_equal(found.astype(str), known.astype(str))
    assert read.molecules["cell_id"].isna().tolist() == [False, False, False, False, True]
    assert read.cells["nucleus_boundary"].isna().tolist() == [False, True]


def test_what_is_missing_in_a_nullable_column_is_no_name(tmp_path):
    path = write_with_anndata(tmp_path / "new.h5ad", NULLABLE)
    with h5py.File(path, "r+") as file:
        file["uns/points/cell/mask"][1] = True
        file["uns/points/gene/mask"][2] = True
    made = apply_rules(read_bento(path, PATTERNS), RECIPE)
    assert made.dropped["molecules"] == {
        "outside every cell": 2,
        "gene not in var": 1,
    }


def test_an_unknown_encoding_is_named(tmp_path):
    path = write_with_anndata(tmp_path / "new.h5ad", NULLABLE)
    with h5py.File(path, "r+") as file:
        file["uns/points/cell"].attrs["encoding-type"] = "awkward-array"
    with pytest.raises(SourceError, match="/uns/points/cell is stored as awkward-array, expected"):
        read_bento(path, PATTERNS)


def write_sparse(file: h5py.File, name: str, values: Any, kind: str) -> None:
    matrix = (scipy.sparse.csr_matrix if kind == "csr_matrix" else scipy.sparse.csc_matrix)(values)
    group = file.create_group(name)
    group.attrs["encoding-type"], group.attrs["shape"] = kind, matrix.shape
    for part in ("data", "indices", "indptr"):
        group[part] = getattr(matrix, part)


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix"])
def test_sparse_layers_are_labels_too(tmp_path, kind):
    path = write_bento(tmp_path / "bento.h5ad")
    with h5py.File(path, "r+") as file:
        for name in PATTERNS:
            write_sparse(file, f"layers/{name}", LAYERS[name], kind)
    expected = read_bento(write_bento(tmp_path / "dense.h5ad", layers=LAYERS), PATTERNS)
    pd.testing.assert_frame_equal(read_bento(path, PATTERNS).labels, expected.labels)


@pytest.mark.parametrize(
    ("part", "value"), [("indices", 99), ("indptr", 99), ("shape", (1 << 20, 1 << 20))]
)
def test_a_sparse_layer_that_points_outside_is_refused(tmp_path, part, value):
    path = write_bento(tmp_path / "bento.h5ad", layers=LAYERS)
    with h5py.File(path, "r+") as file:
        del file["layers/nuclear"]
        write_sparse(file, "layers/nuclear", LAYERS["nuclear"], "csr_matrix")
        if part == "shape":
            file["layers/nuclear"].attrs["shape"] = value
        else:
            file[f"layers/nuclear/{part}"][1] = value
    with pytest.raises(SourceError, match="cannot be read as numbers, one per cell and gene"):
        read_bento(path, PATTERNS)


def test_bento_file_becomes_tables_without_its_unused_categories(tmp_path):
    path = write_bento(tmp_path / "bento.h5ad", layers=LAYERS)
    made = apply_rules(read_bento(path, PATTERNS), RECIPE)
    for name in ("cell_id", "gene", "fov"):
        dictionary = made.molecules[name].chunk(0).dictionary.to_pylist()
        assert dictionary == sorted(set(made.molecules[name].to_pylist()))
    assert made.dropped == {"molecules": {"outside every cell": 1}, "cells": {}, "labels": {}}


def test_bento_fov_is_the_batch_of_the_cell_where_there_is_one(tmp_path):
    path = write_bento(tmp_path / "bento.h5ad", obs_batch=["3", "4"])
    assert read_bento(path, PATTERNS).cells["fov"].tolist() == ["3", "4"]


def test_bento_fov_comes_from_points_inside_cells(tmp_path):
    batch = ["3", "3", "3", "4", "0"]
    path = write_bento(tmp_path / "bento.h5ad", batch=batch)
    assert read_bento(path, PATTERNS).cells["fov"].tolist() == ["3", "4"]


def test_bento_numbers_as_ids_are_text(tmp_path):
    path = write_bento(tmp_path / "bento.h5ad", batch=[8, 8, 8, 8, 8])
    assert read_bento(path, PATTERNS).cells["fov"].tolist() == ["8", "8"]


def test_bento_file_without_label_layers_has_no_labels(tmp_path):
    layers = {"spliced": np.zeros((2, 3))}
    assert read_bento(write_bento(tmp_path / "bento.h5ad", layers=layers), PATTERNS).labels is None


def test_bento_gene_that_var_lacks_is_counted(tmp_path):
    path = write_bento(tmp_path / "bento.h5ad", gene=["A", "A", "X", "A", "X"])
    made = apply_rules(read_bento(path, PATTERNS), RECIPE)
    assert made.dropped["molecules"] == {"gene not in var": 1, "outside every cell": 1}


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ({"nuclear": LAYERS["nuclear"]}, "has label layers nuclear but lacks cytoplasmic"),
        (
            {**LAYERS, "nuclear": [[1, 0.7, np.nan], [np.nan] * 3]},
            r"cell 1-0, gene B has \[0.7, 1.0\] \(1 such",
        ),
        (
            {**LAYERS, "nuclear": [[1, np.nan, np.nan], [np.nan] * 3]},
            "cell 1-0, gene B",  # half labelled: silently unlabelled would lose a label
        ),
        ({**LAYERS, "nuclear": [[1, 0]]}, "nuclear"),
    ],
    ids=["one absent", "not 0 or 1", "half labelled", "other shape"],
)
def test_bento_label_layers_that_are_wrong_are_refused(tmp_path, layers, text):
    with pytest.raises(SourceError, match=text):
        read_bento(write_bento(tmp_path / "bento.h5ad", layers=layers), PATTERNS)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"x": None}, "lacks the column x; it has .*batch"),
        ({"batch": None}, "lacks the column batch"),
        ({"cell_shape": ["POLYGON ((0 0, 1", "None"]}, "cell_shape"),
        ({"x": ["here"] * 5}, "x"),
        ({"x": [1.0, 2.0]}, "x"),
    ],
    ids=["no x", "no batch", "no WKT", "text as x", "fewer x"],
)
def test_bento_file_with_wrong_columns_is_refused(tmp_path, changed, text):
    with pytest.raises(SourceError, match=text):
        read_bento(write_bento(tmp_path / "bento.h5ad", **changed), PATTERNS)


def test_bento_path_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="no file at"):
        read_bento(tmp_path / "absent.h5ad", PATTERNS)


def test_bento_file_that_is_not_hdf5(tmp_path):
    path = tmp_path / "page.h5ad"
    path.write_text("<html>")
    with pytest.raises(SourceError, match="cannot be read as a Bento h5ad"):
        read_bento(path, PATTERNS)


def test_bento_file_that_is_cut_off(tmp_path):
    path = write_bento(tmp_path / "bento.h5ad")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match=str(path)):
        read_bento(path, PATTERNS)


def test_other_hdf5_file_is_refused(tmp_path):
    path = tmp_path / "other.h5ad"
    with h5py.File(path, "w") as file:
        file.create_group("obs")
    with pytest.raises(SourceError, match="lacks uns/points, var"):
        read_bento(path, PATTERNS)


# SpatialData


def transformation(**step: Any) -> dict[str, Any]:
    return {"input": {"name": "xy"}, "output": {"name": "global"}, **(step or {"type": "identity"})}


def write_shapes(
    group: zarr.Group, name: str, shapes: dict[str, Any], step: dict[str, Any]
) -> None:
    _, coordinates, offsets = shapely.to_ragged_array(list(shapes.values()))
    element = group.require_group(name)
    element.attrs["coordinateTransformations"] = [step]
    element.create_array("coords", data=coordinates)
    for i, offset in enumerate(offsets):
        element.create_array(f"offset{i}", data=offset)
    index = element.create_array("Index", shape=(len(shapes),), dtype=str)
    index[:] = np.array(list(shapes), dtype=object)


def write_points(group: zarr.Group, points: pa.Table, **attributes: Any) -> None:
    element = group.require_group("points/transcripts")
    element.attrs["coordinateTransformations"] = [transformation()]
    element.attrs["spatialdata_attrs"] = {
        "feature_key": "target",
        "instance_key": "cell_boundaries",
    }
    element.attrs.update(attributes)
    folder = Path(str(group.store_path.store.root)) / "points/transcripts/points.parquet"
    folder.mkdir()
    half = len(points) // 2
    pq.write_table(points[:half], folder / "part.0.parquet")
    pq.write_table(points[half:], folder / "part.1.parquet")


def write_spatialdata(
    path: Path,
    *,
    outlines: dict[str, Any] | None = None,
    step: dict[str, Any] | None = None,
    attributes: dict[str, Any] | None = None,
    **changed: Any,
) -> Path:
    """A SpatialData zarr of format 2 with points, cells and one nucleus."""
    columns = {
        "x": POINTS["x"],
        "y": POINTS["y"],
        "batch": pa.array([8, 8, 8, 9, 8]),
        "target": pa.array(POINTS["gene"]).dictionary_encode(),
        "cell_boundaries": pa.array(["1-0", "1-0", "1-0", "2-0", ""], pa.large_string()),
        "nucleus_boundaries": pa.array(["1-0", "", "", "", ""]),
        **changed,
    }
    group = zarr.open_group(path, mode="w", zarr_format=2)
    write_points(
        group,
        pa.table({name: column for name, column in columns.items() if column is not None}),
        **(attributes or {}),
    )
    step = step or transformation()
    write_shapes(group, "shapes/cell_boundaries", outlines or SQUARE, step)
    write_shapes(group, "shapes/nucleus_boundaries", {"1-0": box(40, 40, 60, 60)}, step)
    return path


def test_spatialdata_is_read(tmp_path):
    read = read_spatialdata(write_spatialdata(tmp_path / "s.zarr"), fov_column="batch")
    assert read.molecules["cell_id"].isna().tolist() == [False, False, False, False, True]
    assert read.molecules["gene"].tolist() == POINTS["gene"]
    assert read.molecules["y"].tolist() == POINTS["y"]
    assert read.cells["cell_id"].tolist() == ["1-0", "2-0"]
    assert read.cells["fov"].tolist() == ["8", "9"]
    assert read.cells["cell_boundary"].tolist() == list(SQUARE.values())
    assert read.cells["nucleus_boundary"].tolist() == [box(40, 40, 60, 60), None]
    assert read.labels is None


def test_spatialdata_reads_no_column_that_tells_the_compartment(tmp_path):
    read = read_spatialdata(write_spatialdata(tmp_path / "s.zarr"))
    assert set(read.molecules) - {"z"} == {"fov", "cell_id", "gene", "x", "y"}


def test_spatialdata_without_a_fov_column_is_one_fov(tmp_path):
    read = read_spatialdata(write_spatialdata(tmp_path / "s.zarr"))
    assert read.cells["fov"].tolist() == ["0", "0"]


def test_spatialdata_fov_comes_from_a_molecule_that_has_one(tmp_path):
    path = write_spatialdata(tmp_path / "s.zarr", batch=pa.array([None, 8, 8, 9, 8]))
    assert read_spatialdata(path, fov_column="batch").cells["fov"].tolist() == ["8", "9"]


@pytest.mark.parametrize("outside", ["", "-1", "UNASSIGNED", None])
def test_spatialdata_knows_molecules_outside_cells(tmp_path, outside):
    cell = pa.array(["1-0", "1-0", "1-0", "2-0", outside])
    path = write_spatialdata(tmp_path / "s.zarr", cell_boundaries=cell)
    made = apply_rules(read_spatialdata(path), RECIPE)
    assert made.dropped["molecules"] == {"outside every cell": 1}


def test_spatialdata_keeps_z(tmp_path):
    path = write_spatialdata(tmp_path / "s.zarr", z=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert read_spatialdata(path).molecules["z"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_spatialdata_with_geoparquet_shapes(tmp_path):
    path = write_spatialdata(tmp_path / "s.zarr")
    for element in ("cell_boundaries", "nucleus_boundaries"):
        folder = path / "shapes" / element
        shapes = read_spatialdata(path).cells.set_index("cell_id")
        column = "cell_boundary" if element == "cell_boundaries" else "nucleus_boundary"
        frame = geopandas.GeoDataFrame(geometry=shapes[column].dropna())
        for name in ("coords", "offset0", "offset1", "Index"):
            shutil.rmtree(folder / name)
        frame.to_parquet(folder / "shapes.parquet")
    read = read_spatialdata(path)
    assert read.cells["cell_boundary"].tolist() == list(SQUARE.values())
    assert read.cells["nucleus_boundary"].isna().tolist() == [False, True]


def test_spatialdata_outlines_of_several_parts_are_read(tmp_path):
    parts = MultiPolygon([box(0, 0, 100, 50), box(0, 60, 100, 100)])
    path = write_spatialdata(tmp_path / "s.zarr", outlines={**SQUARE, "1-0": parts})
    assert read_spatialdata(path).cells["cell_boundary"][0].equals(parts)


def test_spatialdata_duplicate_cell_ids_are_refused(tmp_path):
    path = write_spatialdata(tmp_path / "s.zarr")
    index = zarr.open_group(path / "shapes/cell_boundaries", mode="r+")["Index"]
    index[:] = np.array(["1-0", "1-0"], dtype=object)
    with pytest.raises(SourceError, match="1-0"):
        apply_rules(read_spatialdata(path), RECIPE)


def test_spatialdata_in_one_frame_is_read_whatever_it_is(tmp_path):
    step = transformation(type="scale", scale=[0.2, 0.2])
    attributes = {"coordinateTransformations": [step]}
    path = write_spatialdata(tmp_path / "s.zarr", step=step, attributes=attributes)
    assert read_spatialdata(path).molecules["x"].tolist() == POINTS["x"]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"x": None}, "lacks the columns x; it has y"),
        ({"target": None}, "lacks the columns target"),
        ({"x": ["here"] * 5}, "x"),
        (
            {"attributes": {"spatialdata_attrs": {}}},
            r"names no feature_key \(--gene-column\) and no instance_key",
        ),
    ],
    ids=["no x", "no gene", "text as x", "no keys"],
)
def test_spatialdata_with_wrong_points_is_refused(tmp_path, changed, text):
    with pytest.raises(SourceError, match=text):
        read_spatialdata(write_spatialdata(tmp_path / "s.zarr", **changed))


def test_spatialdata_with_an_unknown_fov_column_is_refused(tmp_path):
    with pytest.raises(SourceError, match="lacks the columns fov"):
        read_spatialdata(write_spatialdata(tmp_path / "s.zarr"), fov_column="fov")


@pytest.mark.parametrize(
    ("removed", "text"),
    [
        ("", "no folder at"),
        ("points/transcripts", "no element points/transcripts.* it has shapes/cell_boundaries, sh"),
        ("points/transcripts/.zattrs", "points/transcripts has no readable .zattrs"),
        ("points/transcripts/points.parquet", "points.parquet"),
        ("shapes/cell_boundaries", r"it has points/transcripts, .*nucleus_boundaries.*\(--cells\)"),
        ("shapes/cell_boundaries/offset1", "lacks the arrays offset1"),
    ],
)
def test_spatialdata_without_a_part_is_refused(tmp_path, removed, text):
    path = write_spatialdata(tmp_path / "s.zarr")
    (Path.unlink if (path / removed).is_file() else shutil.rmtree)(path / removed)
    with pytest.raises(SourceError, match=text):
        read_spatialdata(path)


def test_spatialdata_with_damaged_points_is_refused(tmp_path):
    path = write_spatialdata(tmp_path / "s.zarr")
    (path / "points/transcripts/points.parquet/part.1.parquet").write_text("<html>")
    with pytest.raises(SourceError, match="cannot be read"):
        read_spatialdata(path)


def test_spatialdata_whose_outlines_are_no_zarr_group_is_refused(tmp_path):
    path = write_spatialdata(tmp_path / "s.zarr")
    (path / "shapes/cell_boundaries/.zgroup").unlink()
    with pytest.raises(SourceError, match="cell_boundaries"):
        read_spatialdata(path)


def test_spatialdata_with_damaged_geoparquet_is_refused(tmp_path):
    path = write_spatialdata(tmp_path / "s.zarr")
    (path / "shapes/cell_boundaries/shapes.parquet").write_text("<html>")
    with pytest.raises(SourceError, match="cell_boundaries"):
        read_spatialdata(path)


def test_spatialdata_without_nuclei_is_read(tmp_path):
    path = write_spatialdata(tmp_path / "s.zarr")
    shutil.rmtree(path / "shapes/nucleus_boundaries")
    assert read_spatialdata(path).cells["nucleus_boundary"].isna().all()


def test_recipe_reads_a_source_and_its_labels(tmp_path):
    write_spatialdata(tmp_path / "s.zarr")
    (tmp_path / "labels.csv").write_text(CSV, encoding="utf-8")
    asked = recipe(
        format="spatialdata",
        path="s.zarr",
        labels="labels.csv",
        labels_where={"dataset": "mine"},
    )
    [piece] = read_release(asked, tmp_path, tmp_path / "scratch")
    made = apply_rules(piece(), asked)
    assert made.labels["gene"].to_pylist() == ["A", "B"]
    assert made.dropped == {
        "molecules": {"outside every cell": 1},
        "cells": {},
        "labels": {"row of another dataset": 1, "duplicate row": 1},
    }


# Molecules in their cells


@pytest.mark.parametrize("form", ["bento-h5ad", "spatialdata"])
def test_ids_of_another_segmentation_are_refused(tmp_path, form):
    """Cells that exchanged their ids: an error with the share, and nothing is left."""
    rng = np.random.Generator(np.random.Philox(1))
    at = rng.uniform(5, 95, (40, 2))
    cell = ["1-0"] * 20 + ["2-0"] * 20
    columns = {
        "x": (at[:, 0] + np.repeat([200, 0], 20)).tolist(),
        "y": at[:, 1].tolist(),
        "batch": ["0"] * 40,
    }
    if form == "bento-h5ad":
        path = write_bento(
            tmp_path / "r", **columns, cell=cell, gene=["A"] * 40, nucleus=["-1"] * 40
        )
    else:
        path = write_spatialdata(
            tmp_path / "r",
            **columns,
            cell_boundaries=cell,
            nucleus_boundaries=None,
            target=["A"] * 40,
        )
    asked = recipe(format=form, path="r")
    with pytest.raises(SourceError, match=r"r: only 0\.0% of the 40 molecules lie in their cells"):
        curate(asked, tmp_path, tmp_path / "made", name="r", version="1.0.0")
    assert list(tmp_path.iterdir()) == [path]


def test_molecules_near_their_outline_count_as_inside():
    """1 um is 10 px here; a hole is outside, and so is what lies in another cell."""
    ring = Polygon(SQUARE["1-0"].exterior, [box(30, 30, 70, 70).exterior])
    rows = [("1-0", "A", 109.0, 50.0), ("1-0", "A", 111.0, 50.0), ("1-0", "A", 50.0, 50.0)]
    rows += [("1-0", "A", 35.0, 50.0), ("1-0", "A", 250.0, 50.0), ("2-0", "A", 250.0, 50.0)]
    made = tables(molecules=molecules(rows), cells=cells({**SQUARE, "1-0": ring}), labels=None)
    assert made.measured["inside"].tolist() == [2, 1]
    assert made.measured["overlaps"].tolist() == [False, False]


@pytest.mark.parametrize(("left", "overlap"), [(100, False), (96, False), (94, True), (20, True)])
def test_cells_that_overlap_are_counted(tmp_path, left, overlap):
    """Neighbours may share an edge, and up to 5 % of the smaller one's area."""
    outlines = {"1-0": box(0, 0, 100, 100), "2-0": box(left, 0, left + 100, 100)}
    rows = [("1-0", "A", 10.0, 50.0), ("2-0", "A", left + 90.0, 50.0)]
    made = tables(molecules=molecules(rows), cells=cells(outlines), labels=None)
    assert made.measured["overlaps"].tolist() == [overlap] * 2
    placement = manifest(write_to(tmp_path / "set", made))["placement"]
    assert placement["overlapping_cells"] == 2 * overlap
    assert (placement["molecules"], placement["inside"], placement["worst"]) == (2, 2, {})


# Writing


def test_dataset_folder_is_whole(tmp_path):
    made = tables()
    folder = write_to(tmp_path / "parent" / "set", made, about={"licence": "CC0-1.0"})
    about = manifest(folder)
    assert (about["name"], about["version"], about["unit"]) == ("small", "1.0.0", "um")
    assert about["patterns"] == list(PATTERNS)
    assert about["genes"] == ["A", "B", "C"]
    assert about["licence"] == "CC0-1.0"
    assert (
        about["dropped"]
        == made.dropped
        == {"molecules": {}, "cells": {}, "labels": {"no pattern": 1}}
    )
    assert about["curation"]["unit_um"] == 0.1
    assert {path.name for path in folder.iterdir()} == {*about["files"], "manifest.json"}
    for name, file in about["files"].items():
        table = pq.read_table(folder / name)
        assert file == {
            "rows": len(table),
            "bytes": (folder / name).stat().st_size,
            "sha256": file_sha256(folder / name),
            "content_sha256": content_sha256(table),
        }


def test_manifest_counts(tmp_path):
    made = apply_rules(release(), recipe(patternless="keep"))
    counts = manifest(write_to(tmp_path / "set", made))["counts"]
    expected = {
        "fovs": 1,
        "cells": 2,
        "molecules": 5,
        "pairs": 4,
        "labelled_pairs": 3,
        "labelled_molecules": 4,
        "patterns": {"nuclear": 2, "cytoplasmic": 1, "none": 1, "several": 1},
    }
    assert counts == {**expected, "splits": {"test": expected}}


def test_dataset_without_labels_has_no_labels_file(tmp_path):
    folder = write_to(tmp_path / "set", tables(labels=None))
    assert not (folder / "labels.parquet").exists()
    assert "labelled_pairs" not in manifest(folder)["counts"]


def test_geopandas_opens_the_cells(tmp_path):
    parts = MultiPolygon([box(0, 0, 100, 50), box(0, 60, 100, 100)])
    made = tables(cells=cells({**SQUARE, "1-0": parts}, nucleus_boundary=[None, box(1, 1, 2, 2)]))
    frame = geopandas.read_parquet(write_to(tmp_path / "set", made) / "cells.parquet")
    assert frame.geometry.name == "cell_boundary"
    assert frame.geometry.area.tolist() == pytest.approx([90, 100])
    assert frame.crs is None
    assert list(frame) == schema.CELLS.names


def test_files_carry_nothing_of_the_library_that_made_them(tmp_path):
    folder = write_to(tmp_path / "set", tables())
    for path in folder.glob("*.parquet"):
        assert set(pq.read_schema(path).metadata or {}) <= {b"geo"}


def test_same_input_same_bytes(tmp_path):
    shuffled = release().molecules.sample(frac=1, random_state=0)
    folders = [
        write_to(tmp_path / "one", tables(), about={"licence": "CC0-1.0"}),
        write_to(tmp_path / "two", tables(molecules=shuffled), about={"licence": "CC0-1.0"}),
    ]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.parametrize("error", [SourceError("broken row"), KeyboardInterrupt()], ids=repr)
def test_failure_half_way_leaves_nothing(tmp_path, error):
    def pieces():
        yield tables(cells=cells(SQUARE, fov=["7", "8"]))
        raise error

    with pytest.raises(type(error)):
        write.write_dataset(
            pieces(), tmp_path / "set", name="small", version="1.0.0", recipe=RECIPE
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_full_disk_is_an_error_in_words_and_the_old_version_stays(tmp_path):
    # A limit on the size of files is the nearest to a full disk that any user can set.
    script = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from pathlib import Path
from gpattern_bench.curate.build import curate
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.errors import TableError
patterns = ("cell_edge", "cytoplasmic", "nuclear", "nuclear_edge")
recipe = Recipe(format="simulated", patterns=patterns, split="test")
try:
    curate(recipe, Path("."), Path({str(tmp_path / "set")!r}), name="s", version="2.0.0")
except TableError as error:
    sys.exit(str(error))
"""
    (tmp_path / "old").mkdir()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "cannot be written" in done.stderr
    assert "nothing was left behind" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_folder_in_use_is_refused_and_stays(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("mine")
    with pytest.raises(TableError, match="not empty"):
        write_to(tmp_path / "set", tables())
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "notes.txt"]


def test_file_in_the_place_of_the_folder_is_called_a_file(tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(TableError) as caught:
        write_to(tmp_path / "set", tables())
    assert "not empty" not in str(caught.value)


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / "set").mkdir()
    assert (write_to(tmp_path / "set", tables()) / "manifest.json").is_file()


def test_current_folder_is_taken_or_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        write_to(Path(), tables())
    except GPatternBenchError:
        assert list(tmp_path.iterdir()) == []
    else:
        assert (tmp_path / "manifest.json").is_file()


def test_leaking_splits_are_not_written(tmp_path):
    # Both cells hold the same five molecules, 20 um apart.
    rows = [
        (cell, "A", x + 10 * k, 7 * k) for cell, x in (("1-0", 0), ("2-0", 200)) for k in range(5)
    ]
    made = tables(molecules=molecules(rows), cells=cells(SQUARE, fov=["7", "8"]), labels=None)
    named = recipe(splits={"7": "train", "8": "test"})
    with pytest.raises(TableError, match=r"in different splits: 1-0 \(train\) and 2-0 \(test\)"):
        write_to(tmp_path / "set", made, recipe=named)
    assert list(tmp_path.iterdir()) == []


# The real sets


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the real sets, made once with the source files as the mirror."""
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MIRROR, str(shared))
        return {name: build(find_entry(name), root) for name in REAL}


# Counts, dropped rows and labelled pairs (patterns, without any, with several) of each set,
# found by an independent script.
REAL = {
    "nih3t3_gold": (
        {"fovs": 1, "cells": 15, "genes": 161, "molecules": 25869, "pairs": 1708},
        {"molecules": {}, "cells": {}, "labels": {}},
        (9, 125, 6, 21, 6, 3),
    ),
    "u2os_gold": (
        {"fovs": 1, "cells": 15, "genes": 130, "molecules": 174523, "pairs": 1937},
        {
            "molecules": {"control target": 304},
            "cells": {},
            # Of the csv's 23 duplicate rows 22 are of U-2 OS; 22 pairs lie in two cells that the
            # extract lacks.
            "labels": {
                "row of another dataset": 165,
                "duplicate row": 22,
                "pair without molecules": 22,
                "control target": 2,
            },
        },
        (9, 28, 33, 33, 100, 11),
    ),
    "u2os_sample": (
        {"fovs": 1, "cells": 15, "genes": 130, "molecules": 220725, "pairs": 1942},
        {"molecules": {"control target": 365}, "cells": {}, "labels": {}},
        None,
    ),
}
N_LABELLED = {"nih3t3_gold": 164, "u2os_gold": 192}
N_NUCLEI = {"nih3t3_gold": 15, "u2os_gold": 13, "u2os_sample": 15}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_set_has_the_known_counts(real, name):
    about = manifest(real[name])
    expected, _, patterns = REAL[name]
    counts = {"genes": len(about["genes"]), **about["counts"]}
    assert {key: counts[key] for key in expected} == expected
    assert counts.get("labelled_pairs") == N_LABELLED.get(name)
    if patterns is not None:
        assert tuple(counts["patterns"].values()) == patterns


@pytest.mark.parametrize("name", REAL)
def test_real_set_has_the_counts_of_the_registry(real, name):
    about = manifest(real[name])
    counts = {"genes": len(about["genes"]), **about["counts"]}
    assert {key: counts[key] for key in find_entry(name).counts} == find_entry(name).counts


@pytest.mark.parametrize("name", REAL)
def test_real_set_lost_only_the_known_rows(real, name):
    assert manifest(real[name])["dropped"] == REAL[name][1]


@pytest.mark.parametrize("name", REAL)
def test_real_set_has_only_the_columns_of_the_schema(real, name):
    folder = real[name]
    assert pq.read_schema(folder / "molecules.parquet").equals(schema.MOLECULES)
    assert pq.read_schema(folder / "cells.parquet").equals(schema.CELLS)
    if name in N_LABELLED:
        expected = schema.labels(find_entry(name).recipe.patterns)
        assert pq.read_schema(folder / "labels.parquet").equals(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_molecules_of_real_sets_lie_inside_their_cells(real, name):
    cells = geopandas.read_parquet(real[name] / "cells.parquet").set_index("cell_id")
    assert cells["nucleus_boundary"].notna().sum() == N_NUCLEI[name]
    assert cells.geometry.is_valid.all()
    frame = pq.read_table(real[name] / "molecules.parquet").to_pandas()
    outline = cells["cell_boundary"].loc[frame["cell_id"].astype(str)].to_numpy()
    # float32 moves a molecule on the outline by less than 1e-4 um
    assert shapely.dwithin(shapely.points(frame[["x", "y"]]), outline, 1e-4).all()


@pytest.mark.parametrize("name", REAL)
def test_real_set_names_its_source_files(real, name):
    about, entry = manifest(real[name]), find_entry(name)
    published = {"checksum": "published"}
    assert about["source"] == [file.model_dump(mode="json") | published for file in entry.files]
    assert (about["licence"], about["citation"]) == (entry.licence, entry.citation)
    assert about["warnings"] == []


def test_real_set_is_not_made_twice(real, shared):
    folder = real["nih3t3_gold"]
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert build(find_entry("nih3t3_gold"), folder.parents[1], download=False) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_values_other_than_the_registry_pins_are_not_written(mirror, tmp_path):
    entry = find_entry("nih3t3_gold")
    pinned = {**entry.content_sha256, "labels": "0" * 64}
    with pytest.raises(TableError, match=r"labels: .*the registry pins 0000"):
        build(entry.model_copy(update={"content_sha256": pinned}), tmp_path)
    assert not (tmp_path / entry.name / entry.version).exists()
