"""CosMx flat files: every molecule and pixel where it belongs, or an error that tells why not."""

import gzip
import io
import json
import logging
import resource
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from exports import IMAGE, IMAGES, PLACES, H, W, atomx, make_molecules, positions, write_cosmx

from gpattern_bench.curate.build import curate
from gpattern_bench.curate.readers.cosmx import read_cosmx
from gpattern_bench.curate.release import Release
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.errors import MissingExtraError, SourceError, TableError
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import find_entry

PATTERNS = ("nuclear", "membrane", "cytoplasmic")
CROPS = {"2": (4800, 0), "3": (0, 0)}  # of the real extract


def read(path: Path, scratch: Path, **options: Any) -> list[Release]:
    scratch.mkdir(exist_ok=True)
    return [piece() for piece in read_cosmx(path, scratch, **options)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "release"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def joined(pieces: list[Release], table: str = "molecules") -> pd.DataFrame:
    frames = [getattr(piece, table) for piece in pieces]
    names = [name for name in ("fov", "cell_id", "gene") if name in frames[0]]
    return pd.concat([frame.astype(dict.fromkeys(names, str)) for frame in frames])


def assert_same(first: list[Release], second: list[Release]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dropped == b.dropped
        for table in ("molecules", "labels", "cells"):
            pd.testing.assert_frame_equal(getattr(a, table), getattr(b, table))


# The real extract


@pytest.fixture
def lung(shared: Path, scratch: Path) -> list[Release]:
    return read(shared / "cosmx_lung12", scratch, crops=CROPS)


def test_real_molecules_and_cells(lung):
    molecules, cells = joined(lung), joined(lung, "cells")
    assert [piece.dropped["molecules"]["outside every cell"] for piece in lung] == [2695, 4165]
    assert (len(molecules), molecules["cell_id"].nunique(), len(cells)) == (18_965, 120, 120)
    assert molecules["gene"].nunique() == 980
    genes = molecules[~molecules["gene"].str.startswith("NegPrb")]
    assert (len(genes), genes["gene"].nunique()) == (18_783, 960)
    assert cells["nucleus_boundary"].isna().all()
    assert (~cells["touches_border"]).sum() == 85
    assert shapely.get_num_geometries(cells["cell_boundary"]).tolist().count(2) == 1


def test_real_molecules_lie_in_their_outlines(lung):
    molecules, cells = joined(lung), joined(lung, "cells").set_index("cell_id")
    outline = cells["cell_boundary"].loc[molecules["cell_id"]].to_numpy()
    inside = shapely.intersects(outline, shapely.points(molecules[["x", "y"]]))
    assert round(100 * inside.mean(), 2) == 99.86


def test_real_pixels(lung, shared):
    cells = joined(lung, "cells").set_index("cell_id")["cell_boundary"]
    for fov in "23":
        image = tifffile.imread(shared / f"cosmx_lung12/CellLabels/CellLabels_F00{fov}.tif")
        ids, pixels = np.unique(image[image > 0].astype(int), return_counts=True)
        area = shapely.area(cells.loc[[f"{cell}-{fov}" for cell in ids]])
        np.testing.assert_allclose(area, pixels, rtol=1e-9)


def test_real_labels(lung):
    labels = joined(lung, "labels")
    labels = labels[~labels["gene"].str.startswith("NegPrb")]
    assert len(labels) == 11_648
    assert labels[list(PATTERNS)].sum().to_dict() == {
        "nuclear": 7_651,
        "membrane": 993,
        "cytoplasmic": 3_412,
    }
    several = labels[list(PATTERNS)].sum(axis=1).value_counts()
    assert several.to_dict() == {1: 11_168, 2: 444, 0: 36}
    size = joined(lung).value_counts(["cell_id", "gene"])
    assert (
        round(100 * (size[~size.index.get_level_values(1).str.startswith("N")] == 1).mean()) == 76
    )


def test_real_molecules_keep_the_coordinates_of_the_release(lung, shared):
    source = pd.read_csv(shared / "cosmx_lung12/Lung12_tx_file.csv").query("cell_ID > 0")
    np.testing.assert_array_equal(
        joined(lung)[["x", "y"]],
        source.sort_values("fov", kind="stable")[["x_global_px", "y_global_px"]],
    )


@pytest.mark.parametrize("crops", [{}, {"2": (4799, 300), "3": (0, 0)}, {"2": (0, 0)}])
def test_real_crops_at_the_wrong_place_are_noticed(shared, tmp_path, crops):
    recipe = find_entry("cosmx_lung_mini").recipe.model_copy(update={"crops": crops})
    with pytest.raises(SourceError, match=r"only \d+\.\d% of the 18,783 molecules .* crop"):
        curate(recipe, shared, tmp_path / "made", name="crops", version="1.0.0")
    assert not any(tmp_path.iterdir())


# What is where


def test_fields_of_view_come_in_the_order_of_text(folder, scratch):
    pieces = read(write_cosmx(folder), scratch)
    assert [piece.cells["fov"].unique().tolist() for piece in pieces] == [["1"], ["10"], ["2"]]
    for piece in pieces:
        assert set(piece.molecules["fov"]) == set(piece.cells["fov"])


def test_molecules_are_those_in_cells_in_the_order_of_the_csv(folder, scratch):
    source = make_molecules()
    pieces = read(write_cosmx(folder, source), scratch)
    for piece in pieces:
        fov = int(piece.cells["fov"].iloc[0])
        here = source.query("cell_ID > 0 and fov == @fov")
        expected = here["cell_ID"].astype(str) + f"-{fov}"
        assert piece.molecules["cell_id"].tolist() == expected.tolist()
        assert piece.molecules["gene"].tolist() == here["target"].tolist()
        np.testing.assert_array_equal(piece.molecules[["x", "y"]], here.filter(like="global"))
        outside = len(source.query("fov == @fov")) - len(here)
        assert piece.dropped["molecules"]["outside every cell"] == outside


def test_no_column_tells_a_compartment_or_plane(folder, scratch):
    for piece in read(write_cosmx(folder), scratch):
        assert list(piece.molecules) == ["fov", "cell_id", "gene", "x", "y"]
        assert list(piece.labels) == ["cell_id", "gene", *PATTERNS]


def test_outlines_lie_around_the_pixels(folder, scratch):
    first = read(write_cosmx(folder), scratch)[0].cells.set_index("cell_id")
    assert first.index.tolist() == ["1-1", "2-1", "7-1"]
    # Columns 3 to 8, rows 2 to 5: local x 2.5 to 8.5, local y 12 + 0.5 - (2 to 6).
    x, y = PLACES[1]
    assert first["cell_boundary"]["1-1"].equals(shapely.box(x + 2.5, y + 6.5, x + 8.5, y + 10.5))
    assert first["cell_boundary"]["2-1"].area == 39  # with a hole
    assert first["touches_border"].tolist() == [False, True, False]


def test_all_molecules_lie_in_their_outlines(folder, scratch):
    pieces = read(write_cosmx(folder), scratch)
    cells = joined(pieces, "cells").set_index("cell_id")["cell_boundary"]
    molecules = joined(pieces)
    points = shapely.points(molecules[["x", "y"]])
    assert shapely.contains(cells.loc[molecules["cell_id"]].to_numpy(), points).all()


def test_nuclei_are_where_the_compartment_is_1(folder, scratch):
    compartments = np.full((H, W), 1, np.uint8)  # also outside the cells
    compartments[:, 6:] = 2
    pieces = read(write_cosmx(folder, compartments={1: compartments}), scratch)
    nuclei = pieces[0].cells.set_index("cell_id")["nucleus_boundary"]
    x, y = PLACES[1]
    assert nuclei["1-1"].equals(shapely.box(x + 2.5, y + 6.5, x + 5.5, y + 10.5))
    assert nuclei["2-1"] is None
    assert all(piece.cells["nucleus_boundary"].isna().all() for piece in pieces[1:])


def test_crops_are_placed_in_the_whole_image(folder, scratch):
    rows = 3648
    shift = {fov: (x, y - (rows - H)) for fov, (x, y) in PLACES.items()}  # y counts from below
    molecules = make_molecules()
    molecules["y_local_px"] += rows - H
    whole = read(write_cosmx(folder / "whole", make_molecules()), scratch)
    images = {fov: image[1:, 2:] for fov, image in IMAGES.items()}
    path = write_cosmx(folder / "crop", molecules, images=images, listed=positions(shift))
    cropped = read(path, scratch, crops=dict.fromkeys(("1", "2", "10"), (2, 1)))
    for a, b in zip(whole, cropped, strict=True):
        assert shapely.equals_exact(
            a.cells["cell_boundary"], b.cells["cell_boundary"], tolerance=1e-6
        ).all()


# Labels


def test_a_pattern_is_the_compartment_of_half_the_molecules_or_more(folder, scratch):
    pairs = {  # gene -> compartments of its molecules
        "half": ["Nuclear", "Nuclear", "Cytoplasm", "0"],
        "tie": ["Nuclear", "Membrane"],
        "one": ["Cytoplasm"],
        "none": ["Membrane", "Nuclear", "Cytoplasm"],
        "nowhere": ["None", "0", "Membrane"],
    }
    rows = [(gene, value) for gene, values in pairs.items() for value in values]
    molecules = make_molecules().iloc[: len(rows)].assign(fov=1, cell_ID=1)
    molecules["x_local_px"], molecules["y_local_px"] = 5.0, 9.0
    molecules["x_global_px"], molecules["y_global_px"] = 5 + PLACES[1][0], 9 + PLACES[1][1]
    molecules["target"], molecules["CellComp"] = zip(*rows, strict=True)
    piece = read(write_cosmx(folder, molecules, images={1: IMAGE}), scratch)[0]
    labels = piece.labels.set_index("gene")[list(PATTERNS)].astype(int)
    assert labels.T.to_dict("list") == {
        "half": [1, 0, 0],
        "tie": [1, 1, 0],
        "one": [0, 0, 1],
        "none": [0, 0, 0],
        "nowhere": [0, 0, 0],
    }
    assert set(piece.labels["cell_id"]) == {"1-1"}


def test_without_compartments_there_are_no_labels(folder, scratch):
    pieces = read(write_cosmx(folder, make_molecules().drop(columns="CellComp")), scratch)
    assert [piece.labels for piece in pieces] == [None] * 3


def test_other_compartments_are_none_of_the_patterns_and_told(folder, scratch, caplog):
    molecules = make_molecules().assign(CellComp="Golgi")
    pieces = read(write_cosmx(folder, molecules), scratch)
    assert not joined(pieces, "labels")[list(PATTERNS)].to_numpy().any()
    assert "CellComp has ['Golgi']" in caplog.text


# Archives


def pack(folder: Path, archive: Path, *, backwards: bool = False) -> Path:
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for file in sorted(folder.rglob("*"), reverse=backwards):
            tar.add(file, file.relative_to(folder), recursive=False)
    return archive


@pytest.mark.parametrize("backwards", [False, True])
def test_an_archive_is_the_same_whatever_its_order(folder, scratch, tmp_path, backwards):
    compartments = {1: np.ones((H, W), np.uint8)}
    write_cosmx(folder, listed=positions(), compartments=compartments)
    archive = pack(folder, tmp_path / "S1.tar.gz", backwards=backwards)
    before = archive.read_bytes()
    assert_same(read(archive, scratch), read(folder, scratch))
    assert archive.read_bytes() == before
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        "S1.tar.gz",
        "release",
        "scratch",
    ]


def test_links_and_hidden_files_in_an_archive_are_passed_over(folder, scratch, tmp_path):
    archive = pack(write_cosmx(folder), tmp_path / "S1.tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "S1")
        for name in ("._S1_tx_file.csv", "S1_exprMat_file.csv"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"junk"))
        link = tarfile.TarInfo("other_tx_file.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert_same(read(archive, scratch), read(folder, scratch))


def test_an_archive_that_is_cut_is_an_error(folder, scratch, tmp_path):
    archive = pack(write_cosmx(folder, make_molecules(n=20_000)), tmp_path / "S1.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-20_000])
    with pytest.raises(SourceError, match="fetch it again"):
        read(archive, scratch)


@pytest.mark.parametrize("limit", [100, 5_000])
def test_a_full_disk_is_an_error(folder, scratch, tmp_path, limit):
    archive = pack(write_cosmx(folder, make_molecules(n=20_000)), tmp_path / "S1.tar.gz")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(TableError, match="make room"):
            read(archive, scratch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Exports of other versions


def test_quoted_headers_other_cases_more_columns_and_gzip(folder, scratch):
    plain = read(write_cosmx(folder / "plain"), scratch)
    molecules = make_molecules()
    molecules["cell"] = "c_1_1_" + molecules["cell_ID"].astype(str)
    molecules["CellComp"] = molecules["CellComp"].replace("0", "None")
    molecules.columns = [name.upper() if name != "cell" else name for name in molecules]
    molecules = molecules[sorted(molecules, reverse=True)]
    path = write_cosmx(folder / "other", "")
    text = "\ufeff" + molecules.to_csv(quoting=1).replace("\n", "\r\n")  # with row names
    csv = next(path.rglob("*_tx_file.csv"))
    csv.with_name(csv.name + ".gz").write_bytes(gzip.compress(text.encode()))
    csv.unlink()
    assert_same(read(path, scratch), plain)


def test_local_y_may_count_the_rows(folder, scratch):
    upward = read(write_cosmx(folder / "up"), scratch)
    molecules = make_molecules()
    molecules["y_local_px"] = H - molecules["y_local_px"]  # its sum with global y is constant
    downward = read(write_cosmx(folder / "down", molecules), scratch)
    for a, b in zip(upward, downward, strict=True):
        pd.testing.assert_frame_equal(a.molecules, b.molecules)
        outlines = (piece.cells["cell_boundary"] for piece in (a, b))
        assert shapely.equals_exact(*outlines, tolerance=1e-6).all()


def test_rounded_local_coordinates(folder, scratch):
    molecules = make_molecules()
    molecules[["x_local_px", "y_local_px"]] = molecules[["x_local_px", "y_local_px"]].round()
    pieces = read(write_cosmx(folder, molecules), scratch)
    x, y = PLACES[1]
    got = shapely.bounds(pieces[0].cells["cell_boundary"].iloc[0])
    np.testing.assert_allclose(got, [x + 2.5, y + 6.5, x + 8.5, y + 10.5], atol=0.5)


@pytest.mark.parametrize("kept", ["local", "global"])
def test_places_are_taken_from_the_positions_where_molecules_do_not_tell(folder, scratch, kept):
    whole = read(write_cosmx(folder / "whole"), scratch)
    gone = "global" if kept == "local" else "local"
    molecules = make_molecules().drop(columns=[f"x_{gone}_px", f"y_{gone}_px"])
    pieces = read(write_cosmx(folder / "part", molecules, listed=positions()), scratch)
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a.molecules[["x", "y"]], b.molecules[["x", "y"]], atol=1e-6)
        outlines = (piece.cells["cell_boundary"] for piece in (a, b))
        assert shapely.equals_exact(*outlines, tolerance=1e-6).all()


@pytest.mark.parametrize("listed", [None, positions({1: (0, 0), 2: (0, 0)})])
def test_a_place_that_nothing_tells_is_an_error(folder, scratch, listed):
    molecules = make_molecules().drop(columns=["x_global_px", "y_global_px"])
    with pytest.raises(SourceError, match=r"FOV 10? has no position"):
        read(write_cosmx(folder, molecules, listed=listed), scratch)


def test_positions_that_differ_from_the_molecules_are_told(folder, scratch, caplog):
    listed = positions({**PLACES, 2: (0.0, 0.0)})
    pieces = read(write_cosmx(folder / "a", listed=listed), scratch)
    assert caplog.text.count("lies at") == 1
    assert "FOV 2 lies at [7000.0, -5000.5]" in caplog.text
    assert_same(pieces, read(write_cosmx(folder / "b"), scratch))


def test_positions_in_other_units_are_not_used(folder, scratch, caplog):
    listed = positions().rename(columns={"x_global_px": "X_mm", "y_global_px": "Y_mm"})
    assert len(read(write_cosmx(folder, listed=listed), scratch)) == 3
    assert "is not used" in caplog.text


# What does not match: counted


def rules(pieces: list[Release]) -> dict[str, dict[str, int]]:
    recipe = Recipe(format="cosmx", patterns=PATTERNS, unit_um=0.18, controls="NegPrb")
    total: dict[str, dict[str, int]] = {}
    for piece in pieces:
        for table, reasons in apply_rules(piece, recipe).dropped.items():
            for reason, rows in reasons.items():
                of_table = total.setdefault(table, {})
                of_table[reason] = of_table.get(reason, 0) + rows
    return total


def test_what_cannot_be_used_is_counted(folder, scratch):
    molecules = make_molecules().query("cell_ID != 7").reset_index(drop=True)
    n = (molecules["cell_ID"] == 0).sum()
    good = molecules.index[(molecules["cell_ID"] > 0) & (molecules["target"] == "CD3E")]
    molecules.loc[good[:2], "cell_ID"] = 99  # no such pixel
    molecules.loc[good[2:5], "x_global_px"] = np.nan
    molecules.loc[good[5], "y_global_px"] = np.inf
    molecules["fov"] = molecules["fov"].astype("Int64")
    molecules.loc[good[6:10], "fov"] = pd.NA
    molecules.loc[good[10], "target"] = ""
    molecules["cell_ID"] = molecules["cell_ID"].astype("Int64")
    molecules.loc[good[11], "cell_ID"] = pd.NA
    molecules.loc[good[12], "cell_ID"] = -1
    dropped = rules(read(write_cosmx(folder, molecules), scratch))
    assert dropped["molecules"] == {
        "outside every cell": n + 2,
        "without a field of view": 4,
        "cell without an outline": 2,
        "coordinate not finite": 4,
        "without a gene": 1,
        "control target": ((molecules["target"] == "NegPrb1") & (molecules["cell_ID"] > 0)).sum(),
    }
    assert dropped["cells"] == {"without molecules": 2}  # cell 7 in FOVs 1 and 10


def test_quality_of_cosmx_molecules_counts_where_it_is_stated(folder, scratch):
    molecules = make_molecules().query("cell_ID > 0 and target != 'NegPrb1'").reset_index(drop=True)
    molecules["qv"], molecules["is_gene"] = 40.0, "True"
    molecules.loc[:4, "qv"], molecules.loc[3:9, "is_gene"] = 10.0, "False"
    dropped = rules(read(write_cosmx(folder, molecules), scratch))
    assert dropped["molecules"] == {"quality (qv) below 20": 5, "control target": 5}


def test_a_field_of_view_without_an_image_has_no_outlines(folder, scratch, caplog):
    molecules = make_molecules()
    pieces = read(write_cosmx(folder, molecules, images={1: IMAGE, 2: IMAGES[2]}), scratch)
    assert "no CellLabels of FOV ['10']" in caplog.text
    assert len(pieces[1].cells) == 0
    lost = len(molecules.query("fov == 10 and cell_ID > 0"))
    assert rules(pieces)["molecules"]["cell without an outline"] == lost


def test_a_field_of_view_without_molecules(folder, scratch):
    molecules = make_molecules().query("fov != 2")
    unplaced = read(write_cosmx(folder / "a", molecules), scratch)
    assert unplaced[2].dropped["cells"] == {"without molecules": 2}
    placed = read(write_cosmx(folder / "b", molecules, listed=positions()), scratch)
    assert placed[2].cells["cell_id"].tolist() == ["1-2", "2-2"]
    for piece in (unplaced[2], placed[2]):
        assert len(piece.molecules) == len(piece.labels) == 0
        assert list(piece.labels) == ["cell_id", "gene", *PATTERNS]
    assert rules(unplaced) == rules(placed)


def test_a_field_of_view_with_all_molecules_outside(folder, scratch):
    molecules = make_molecules()
    molecules.loc[molecules["fov"] == 2, "cell_ID"] = 0
    piece = read(write_cosmx(folder, molecules, images={1: IMAGE, 10: IMAGE}), scratch)[2]
    assert (len(piece.molecules), len(piece.cells), len(piece.labels)) == (0, 0, 0)
    assert piece.dropped["molecules"]["outside every cell"] == (molecules["fov"] == 2).sum()


# What is broken: an error that says so

CSV = make_molecules(n=30).to_csv(index=False)
HEADER, ROWS = CSV.split("\n", 1)


def spoilt(row: int, column: str, value: str) -> str:
    lines = CSV.splitlines()
    cells = lines[row].split(",")
    cells[HEADER.split(",").index(column)] = value
    lines[row] = ",".join(cells)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (spoilt(21, "x_global_px", "left"), "Row #21.*'left'.*"),
        (spoilt(21, "cell_ID", "1.5"), "Row #21.*'1.5'"),
        (spoilt(21, "cell_ID", "99999999999"), "Row #21.*'99999999999'"),
        (spoilt(21, "fov", "F002"), "Row #21.*'F002'"),
        (spoilt(21, "target", "A,B"), "Row #21: Expected 9 columns, got 10"),
        (spoilt(21, "target", '"A'), "Row #21: Expected 9 columns, got 8"),
        (spoilt(21, "CellComp", '"0'), "a quote in the column cellcomp"),
        (CSV[: CSV.rindex(",")], "Row #30: Expected 9 columns, got 8"),
        (HEADER + "\n", "Empty CSV file"),
        ("", "expected the columns fov, cell_ID, target .* only none"),
        ("a,b\n1,2\n", "expected the columns fov, cell_ID, target .* only none"),
        (CSV.replace("cell_ID", "id", 1), "it has only cellcomp, fov, target, x_global_px"),
        (CSV.replace("y_global", "", 1).replace("y_local", "", 1), "x_global_px, y_global_px or"),
        (CSV.replace("CellComp", "Target", 1), "a column twice"),
        ("\x00\x01\x02" * 9, "expected the columns"),
    ],
)
def test_broken_csv(folder, scratch, text, says):
    with pytest.raises(SourceError, match=r"S1_tx_file\.csv.*" + says):
        read(write_cosmx(folder, text), scratch)


@pytest.mark.slow
def test_a_broken_row_deep_in_an_archive(folder, scratch, tmp_path):
    text = make_molecules(n=100_000).to_csv(index=False) + "1,2,3\n"  # more than one block
    archive = pack(write_cosmx(folder, text), tmp_path / "S1.tar.gz")
    with pytest.raises(SourceError, match="Row #100001: Expected 9 columns, got 3"):
        read(archive, scratch)


def test_csv_that_is_not_text(folder, scratch):
    path = write_cosmx(folder)
    next(path.rglob("*_tx_file.csv")).write_bytes(HEADER.encode() + b"\n\xff\xfe" + ROWS.encode())
    with pytest.raises(SourceError, match=r"S1_tx_file\.csv cannot be read"):
        read(path, scratch)


def test_frames_that_do_not_go_together(folder, scratch):
    molecules = make_molecules()
    molecules.loc[5, "x_local_px"] += 4
    with pytest.raises(SourceError, match=r"FOV \d+ do not match.* vary .* by [34]"):
        read(write_cosmx(folder, molecules), scratch)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (IMAGE / 3, "whole numbers"),
        (np.where(IMAGE, np.nan, 0).astype(np.float32), "whole numbers"),
        (IMAGE.astype(np.int16) - 1, "got -1 to 6 in int16"),
        (IMAGE.astype(np.uint32) << 30, "whole numbers"),
        (np.zeros((2, H, W), np.uint8), r"one plane of numbers, got uint8 of shape \(2, 12, 20\)"),
    ],
)
def test_images_that_are_no_label_images(folder, scratch, image, says):
    path = write_cosmx(folder, make_molecules(n=8_000), images={**IMAGES, 2: image})
    with pytest.raises(SourceError, match=r"CellLabels_F002\.tif.*" + says):
        read(path, scratch)


@pytest.mark.parametrize("image", [np.roll(IMAGE, 6, axis=0), IMAGE[:-5]])
def test_an_image_of_another_field_of_view_is_refused(folder, tmp_path, image):
    """In 2 of 3 fields of view all molecules lie in their cells: the pooled share is not enough."""
    write_cosmx(folder, make_molecules(n=8_000), images={**IMAGES, 2: image})
    recipe = Recipe(format="cosmx", patterns=PATTERNS, path=folder.name, split="test")
    with pytest.raises(SourceError, match=r"molecules of field of view 2 lie in .* CellLabels"):
        curate(recipe, tmp_path, tmp_path / "made", name="images", version="1.0.0")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_cosmx_ids_of_another_segmentation_are_refused(folder, tmp_path):
    molecules = make_molecules()
    molecules["cell_ID"] = molecules["cell_ID"].map({0: 0, 1: 2, 2: 7, 7: 1})
    write_cosmx(folder, molecules)
    recipe = Recipe(format="cosmx", patterns=PATTERNS, path=folder.name, split="test")
    with pytest.raises(SourceError, match=r"only \d\.\d% of the \d+ molecules lie in their cells"):
        curate(recipe, tmp_path, tmp_path / "made", name="stale", version="1.0.0")


@pytest.mark.parametrize("content", [b"", b"<html>no such file</html>", b"II*\0" + bytes(9)])
def test_images_that_are_no_tif(folder, scratch, content):
    path = write_cosmx(folder)
    next(path.rglob("CellLabels_F002.tif")).write_bytes(content)
    with pytest.raises(
        SourceError, match=r"CellLabels_F002\.tif (is not a|cannot be read as a) label"
    ):
        read(path, scratch)


def test_an_image_that_is_cut(folder, scratch):
    path = write_cosmx(folder)
    image = next(path.rglob("CellLabels_F002.tif"))
    image.write_bytes(image.read_bytes()[:-100])
    with pytest.raises(SourceError, match=r"CellLabels_F002\.tif"):
        read(path, scratch)


def test_a_compression_that_needs_another_package_is_named(folder, scratch):
    path = write_cosmx(folder)
    image = next(path.rglob("CellLabels_F002.tif"))
    with tifffile.TiffFile(image, mode="r+b") as tif:
        tif.pages[0].tags["Compression"].overwrite(5)  # LZW
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"gpattern-bench\[spatial\]"):
            read(path, scratch)
    else:
        pytest.skip("imagecodecs is installed, so that any compression is read")


def test_compartments_of_another_size(folder, scratch):
    path = write_cosmx(folder, compartments={1: np.ones((H, W + 1), np.uint8)})
    with pytest.raises(SourceError, match=r"CompartmentLabels_F001.tif has \(12, 21\)"):
        read(path, scratch)


def test_two_samples_at_once(folder, scratch):
    path = write_cosmx(folder)
    write_cosmx(folder / "more")
    with pytest.raises(SourceError, match=r"in both .*one sample at a time"):
        read(path, scratch)


def test_positions_listed_twice(folder, scratch):
    listed = pd.concat([positions(), positions()])
    with pytest.raises(SourceError, match="a FOV more than once"):
        read(write_cosmx(folder, listed=listed), scratch)


def test_what_is_missing_is_named(folder, scratch):
    with pytest.raises(SourceError, match="nothing at"):
        read(folder, scratch)
    path = write_cosmx(folder, images={})
    with pytest.raises(SourceError, match=r"has no CellLabels_F###\.tif and no \*-polygons\.csv"):
        read(path, scratch)
    next(path.rglob("*_tx_file.csv")).unlink()
    with pytest.raises(SourceError, match=r"has no \*_tx_file\.csv"):
        read(path, scratch)


def check_atomx(pieces: list[Release]) -> None:
    """Five cells, each with its hundred molecules, all of which lie inside."""
    cells = pd.concat([piece.cells for piece in pieces]).set_index("cell_id")
    assert sorted(cells.index) == ["1-1", "1-12", "2-1", "2-12", "3-1"]
    assert (cells["fov"] == cells.index.str.split("-").str[1]).all()
    assert set(shapely.area(cells["cell_boundary"].to_numpy(object))) == {60 * 40}
    molecules = joined(pieces)
    assert molecules["cell_id"].value_counts().to_dict() == dict.fromkeys(cells.index, 100)
    outline = cells["cell_boundary"].reindex(molecules["cell_id"]).to_numpy(object)
    assert shapely.intersects(outline, shapely.points(molecules[["x", "y"]])).all()
    assert sum(piece.dropped["molecules"]["outside every cell"] for piece in pieces) == 25
    assert set(cells["nucleus_boundary"]) == set(cells["touches_border"]) == {None}


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("lacking", [(), ("molecules",), ("polygons",), ("molecules", "polygons")])
def test_cells_of_atomx_come_from_polygons(folder, scratch, down, lacking):
    """Also where the molecules or the polygons have no global coordinates."""
    molecules, polygons, listed = atomx(down)
    gone = ["x_global_px", "y_global_px"]
    if "molecules" in lacking:
        molecules = molecules.drop(columns=gone)
    if "polygons" in lacking:
        polygons = polygons.drop(columns=gone)
    path = write_cosmx(folder, molecules, images={}, listed=listed, polygons=polygons)
    check_atomx(read(path, scratch))


def test_polygons_are_read_from_an_archive_and_in_any_order(folder, scratch):
    molecules, polygons, listed = atomx()
    ids = {"fov": "FOV", "cellID": "cell_ID"}
    mixed = pd.concat([part for _, part in polygons.groupby(["cellID", "fov"], sort=False)][::-1])
    path = write_cosmx(
        folder, molecules, images={}, listed=listed, polygons=mixed.rename(columns=ids)
    )
    with tarfile.open(folder.parent / "S1.tar.gz", "w:gz") as archive:
        archive.add(path, "S1")
    check_atomx(read(folder.parent / "S1.tar.gz", scratch))


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_ids_may_be_floats_and_columns_separated_otherwise(folder, scratch, sign):
    molecules, polygons, listed = atomx()
    molecules["cell_ID"] = molecules["cell_ID"].where(molecules["cell_ID"] > 0)  # NaN: outside
    path = write_cosmx(
        folder,
        molecules.astype({"fov": float}).to_csv(index=False, sep=sign),
        images={},
        listed=listed,
        polygons=polygons.astype({"cellID": float}),
    )
    check_atomx(read(path, scratch))


def test_two_samples_in_one_file_are_refused(folder, scratch):
    """Their cells have the same names."""
    frames = [frame.drop(columns=["x_local_px", "y_local_px"]) for frame in atomx()[:2]]
    shifted = [frame.assign(x_global_px=frame["x_global_px"] + 50_000) for frame in frames]
    both = [pd.concat(pair) for pair in zip(frames, shifted, strict=True)]
    path = write_cosmx(folder, both[0], images={}, polygons=both[1])
    with pytest.raises(SourceError, match="cell 1 of FOV 1 are in several places of the file"):
        read(path, scratch)


def test_a_label_image_counts_before_polygons(folder, scratch):
    expected = read(write_cosmx(folder / "images", make_molecules()), scratch)
    _, polygons, _ = atomx()
    path = write_cosmx(folder / "both", make_molecules(), polygons=polygons[polygons["fov"] == 1])
    assert_same(read(path, scratch), expected)


def test_a_fov_without_an_image_has_the_cells_of_its_polygons(folder, scratch):
    molecules, images = make_molecules(), {1: IMAGE, 10: IMAGE}
    ring = pd.DataFrame({"x_local_px": [9, 20, 20, 9], "y_local_px": [0, 0, 6, 6]})
    x, y = PLACES[2]
    ring = ring.assign(x_global_px=ring["x_local_px"] + x, y_global_px=ring["y_local_px"] + y)
    path = write_cosmx(folder, molecules, images=images, polygons=ring.assign(fov=2, cellID=2))
    found = {piece.cells["fov"].iloc[0]: piece for piece in read(path, scratch)}
    assert found["2"].cells["cell_id"].tolist() == ["2-2"]
    assert found["1"].cells["cell_id"].tolist() == ["1-1", "2-1", "7-1"]


@pytest.mark.parametrize(
    ("of_molecules", "of_polygons", "listed", "says"),
    [
        ("local", "global", False, "FOV 1 have no coordinates in common"),
        ("global", "local", False, "FOV 1 have no coordinates in common"),
        ("local", "both", False, "FOV 1 has no position"),
        ("both", "none", True, "polygons.csv.gz is not a csv of CosMx outlines: expected the col"),
    ],
)
def test_polygons_in_other_coordinates_are_refused(
    folder, scratch, of_molecules, of_polygons, listed, says
):
    def only(frame: pd.DataFrame, kept: str) -> pd.DataFrame:
        return frame[[n for n in frame if "_px" not in n or kept == "both" or f"_{kept}_" in n]]

    molecules, polygons, places = atomx()
    path = write_cosmx(
        folder,
        only(molecules, of_molecules),
        images={},
        listed=places if listed else None,
        polygons=only(polygons, of_polygons),
    )
    with pytest.raises(SourceError, match=says):
        read(path, scratch)


@pytest.mark.real
def test_the_place_of_a_crop_is_an_option(shared, tmp_path, command):
    given = ["curate", "cosmx", shared / "cosmx_lung12", "--unit-um", 0.18, "--split", "test"]
    out = tmp_path / "made"
    code, _, err = command(*given, "--crop", "2=4800,0", "--crop", "3=0,0", "--out", out)
    assert code == 0, err
    assert json.loads((out / "manifest.json").read_text())["counts"]["molecules"] == 18_783
    code, _, err = command(*given, "--crop", "2=4800", "--out", tmp_path / "not")
    assert (code, "expected FOV=COLUMN,ROW, got '2=4800'" in " ".join(err.split())) == (2, True)


def test_crops_of_an_unknown_field_of_view(folder, scratch):
    with pytest.raises(SourceError, match="crops name FOV 02, which has no CellLabels"):
        read(write_cosmx(folder), scratch, crops={"02": (0, 0)})


def test_the_same_release_gives_the_same_values(folder, scratch, caplog):
    path = write_cosmx(folder, listed=positions())
    with caplog.at_level(logging.WARNING):
        assert_same(read(path, scratch), read(path, scratch))
    assert not caplog.records
