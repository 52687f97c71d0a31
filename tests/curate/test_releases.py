"""Simulated releases as files: what is written, and what the readers make of it."""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

from gpattern_bench.curate.readers.bento import read_bento
from gpattern_bench.curate.readers.cosmx import read_cosmx
from gpattern_bench.curate.release import Release, by_fov
from gpattern_bench.curate.simulate.cells import (
    _SIZES,
    COMPARTMENTS,
    PATTERNS,
    _pieces,
    simulate,
    simulate_like,
)
from gpattern_bench.curate.simulate.releases import _paint, write_bento_h5ad, write_cosmx
from gpattern_bench.errors import SourceError

pytestmark = pytest.mark.slow

HEIGHT, PIXEL = 3648, 0.18
UNIT = 0.103
CELLS = replace(_SIZES["nih3t3"], n_fovs=11, n_cells=60, n_genes=40, mean_molecules=300.0)
TISSUE = replace(_SIZES["cosmx_lung"], n_fovs=2, n_cells=500, n_genes=60, mean_molecules=150.0)


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder."""
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file()
    }


def real(piece: Release) -> pd.DataFrame:
    """Molecules in cells, of targets that are no controls, in a fixed order."""
    frame = piece.molecules.astype({"cell_id": object, "gene": object, "fov": str})
    frame = frame[frame["cell_id"].notna() & frame["gene"].str.match(r"G\d+$")]
    return frame.sort_values(["cell_id", "gene", "x", "y"], ignore_index=True)


def same_molecules(read: Release, drawn: Release, unit: float) -> None:
    """All of them, each as float32 exactly where it was drawn."""
    a, b = real(read), real(drawn)
    for axis in ("x", "y"):
        a[axis] = (a[axis] * unit).astype(np.float32)
        b[axis] = b[axis].astype(np.float32)
    columns = ["fov", "cell_id", "gene", "x", "y"]
    pd.testing.assert_frame_equal(a[columns], b[columns], check_dtype=False)


def labels_of(piece: Release, patterns: tuple[str, ...]) -> dict[tuple[str, str], tuple[bool, ...]]:
    """Pair -> labels, without controls."""
    frame = piece.labels.astype({"cell_id": str, "gene": str})
    frame = frame[frame["gene"].str.match(r"G\d+$")]
    values = frame[list(patterns)].to_numpy(bool).tolist()
    return dict(
        zip(zip(frame["cell_id"], frame["gene"], strict=True), map(tuple, values), strict=True)
    )


# Bento


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bento") / "cells.h5ad"
    write_bento_h5ad(_pieces(CELLS, 4), path, PATTERNS, unit_um=UNIT)
    return path


def test_bento_comes_back(h5ad):
    """Through the reader: molecules, outlines, and the labels of pairs with five molecules."""
    drawn, read = list(_pieces(CELLS, 4)), list(by_fov(read_bento(h5ad, PATTERNS)))
    assert [piece.cells["fov"].unique().tolist() for piece in read] == [
        piece.cells["fov"].unique().tolist() for piece in drawn
    ]
    for a, b in zip(read, drawn, strict=True):
        same_molecules(a, b, UNIT)
        cells = a.cells.set_index("cell_id").loc[b.cells["cell_id"]]
        for column in ("cell_boundary", "nucleus_boundary"):
            expected = b.cells[column].to_numpy()
            got = shapely.transform(cells[column].to_numpy(), lambda xy: xy * UNIT)
            assert (shapely.is_missing(got) == shapely.is_missing(expected)).all()
            there = ~shapely.is_missing(got)
            assert shapely.equals_exact(got[there], expected[there], 1e-9).all()
        size = b.molecules.groupby(["cell_id", "gene"], observed=True).size()
        expected = labels_of(b, PATTERNS)
        assert labels_of(a, PATTERNS) == {k: v for k, v in expected.items() if size[k] >= 5}
        assert (size < 5).any()


def test_bento_holds_what_must_be_dropped(h5ad):
    with h5py.File(h5ad) as file:
        points = file["uns/points"]

        def text(column: str) -> np.ndarray:
            names = points[points[column].attrs["categories"]][:]
            names = [n.decode() if isinstance(n, bytes) else str(n) for n in names]
            return np.array(names)[points[column][:]]

        gene, cell, nucleus = text("gene"), text("cell"), text("nucleus")
        control = np.char.startswith(gene, ("blank")) | np.char.startswith(gene, "notarget")
        assert (cell == "-1").mean() == pytest.approx(0.3, abs=0.001)
        assert control[cell != "-1"].mean() == pytest.approx(0.01, abs=0.001)
        assert (nucleus[cell == "-1"] == "-1").all()
        assert 0.1 < (nucleus[cell != "-1"] != "-1").mean() < 0.9
        assert (points["_index"][:] == np.arange(len(gene))).all()
        genes = file["var/gene"].asstr()[:]
        assert len(genes) == 45
        labelled = ~np.isnan(file["layers/none"][:])
        assert (labelled == (file["X"][:] >= 5)).all()
        patterns = np.stack([file[f"layers/{name}"][:] for name in PATTERNS])[:, labelled]
        assert ((patterns.sum(axis=0) == 0) == (file["layers/none"][:][labelled] == 1)).all()
        xy = np.stack([points["x"][:], points["y"][:]], axis=1)[cell == "-1"] * UNIT
        assert file["X"][:].sum() == (cell != "-1").sum()
    boundary = np.concatenate([piece.cells["cell_boundary"] for piece in _pieces(CELLS, 4)])
    hits = shapely.STRtree(boundary).query(shapely.points(xy), predicate="intersects")
    assert hits.size == 0


@pytest.mark.filterwarnings("ignore")  # that the encoding is old
def test_bento_by_anndata(h5ad):
    """Those who wrote the format can read the file."""
    anndata = pytest.importorskip("anndata", reason="anndata is not installed")
    read = anndata.read_h5ad(h5ad)
    assert read.obs_names.tolist() == [c for p in _pieces(CELLS, 4) for c in p.cells["cell_id"]]
    assert set(read.layers) == {*PATTERNS, "none"}
    points = read.uns["points"]
    assert points.columns.tolist() == ["x", "y", "gene", "cell", "nucleus", "batch"]
    per_cell = points["cell"].value_counts()[read.obs_names]
    assert (per_cell.to_numpy() == read.X.sum(axis=1)).all()


def test_bento_same_bytes(h5ad, tmp_path):
    again = tmp_path / "again.h5ad"
    write_bento_h5ad(_pieces(CELLS, 4), again, PATTERNS, unit_um=UNIT)
    assert again.read_bytes() == h5ad.read_bytes()


def test_bento_of_synthetic(tmp_path):
    path = tmp_path / "synthetic.h5ad"
    pieces = [piece for piece, _ in zip(simulate_like("synthetic", 1), range(3), strict=False)]
    write_bento_h5ad(pieces, path, PATTERNS)
    for a, b in zip(by_fov(read_bento(path, PATTERNS)), pieces, strict=True):
        same_molecules(a, b, 0.108)


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken() -> Iterator[Release]:
        yield next(_pieces(TISSUE, 4))
        yield simulate(1, n_fovs=2)

    path = tmp_path / "x.h5ad"
    with pytest.raises(SourceError, match="must hold one field of view, this one holds 2"):
        write_bento_h5ad(broken(), path, COMPARTMENTS)
    with pytest.raises(SourceError, match="must hold one field of view, this one holds 2"):
        write_cosmx(broken(), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# CosMx


@pytest.fixture(scope="module")
def drawn() -> list[Release]:
    return list(_pieces(TISSUE, 4))


@pytest.fixture(scope="module")
def flat(drawn: list[Release], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cosmx(drawn, tmp_path_factory.mktemp("cosmx") / "flat")


@pytest.fixture(scope="module")
def tx(flat: Path) -> pd.DataFrame:
    return pd.read_csv(flat / "Lung5_Rep1_tx_file.csv", dtype={"CellComp": str})


def pixels(tx: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each molecule."""
    column = np.floor(tx["x_local_px"] + 0.5).to_numpy(int)
    return np.floor(HEIGHT - tx["y_local_px"] + 0.5).to_numpy(int), column


def test_cosmx_files(flat):
    assert set(digests(flat)) == {
        "Lung5_Rep1_tx_file.csv",
        "Lung5_Rep1_fov_positions_file.csv",
        "Lung5_Rep1_metadata_file.csv",
        "CellLabels/CellLabels_F001.tif",
        "CellLabels/CellLabels_F002.tif",
        "CompartmentLabels/CompartmentLabels_F001.tif",
        "CompartmentLabels/CompartmentLabels_F002.tif",
    }


def test_cosmx_molecules(flat, tx, drawn):
    assert tx.columns.tolist() == [
        "fov", "cell_ID", "x_global_px", "y_global_px", "x_local_px", "y_local_px", "z", "target",
        "CellComp",
    ]  # fmt: skip
    assert (tx["cell_ID"] == 0).mean() == pytest.approx(0.18, abs=0.001)
    probe = tx["target"].str.startswith("NegPrb")
    assert probe[tx["cell_ID"] > 0].mean() == pytest.approx(0.01, abs=0.001)
    assert tx["target"][probe].nunique() == 20
    assert set(tx["CellComp"]) == {"Nuclear", "Membrane", "Cytoplasm", "0"}
    assert set(tx["CellComp"][tx["cell_ID"] > 0]) == {"Nuclear", "Membrane", "Cytoplasm"}
    assert set(tx["CellComp"][tx["cell_ID"] == 0]) == {"Nuclear", "Membrane", "0"}
    place = pd.read_csv(flat / "Lung5_Rep1_fov_positions_file.csv").set_index("fov")
    for axis in "xy":
        shift = tx[f"{axis}_global_px"] - tx[f"{axis}_local_px"]
        assert np.abs(shift - tx["fov"].map(place[f"{axis}_global_px"])).max() < 1e-8
    assert ((~probe) & (tx["cell_ID"] > 0)).sum() == sum(len(piece.molecules) for piece in drawn)


def test_cosmx_masks(flat, tx):
    """Every molecule's pixel is of its cell, or of none; compartments are where the csv says."""
    for fov, rows in tx.groupby("fov"):
        labels = tifffile.imread(flat / "CellLabels" / f"CellLabels_F{fov:03d}.tif")
        parts = tifffile.imread(flat / "CompartmentLabels" / f"CompartmentLabels_F{fov:03d}.tif")
        assert labels.shape == parts.shape == (3648, 5472)
        assert (labels[pixels(rows)] == rows["cell_ID"]).all()
        assert ((parts > 0) == (labels > 0)).all()
        inside = rows[rows["cell_ID"] > 0]
        names = np.array(["0", "Nuclear", "Membrane", "Cytoplasm"])
        assert (names[parts[pixels(inside)]] == inside["CellComp"]).mean() > 0.9
        cells = pd.read_csv(flat / "Lung5_Rep1_metadata_file.csv").set_index("fov").loc[fov]
        area = np.bincount(labels.ravel())[1:]
        assert cells["cell_ID"].tolist() == list(range(1, len(area) + 1))
        assert cells["Area"].tolist() == area.tolist()
        centre = (HEIGHT - cells["CenterY_local_px"], cells["CenterX_local_px"])
        assert (labels[centre] == cells["cell_ID"]).mean() > 0.99


def check_cosmx(read: list[Release], drawn: list[Release]) -> None:
    """Pieces as read are those drawn, but for the steps of the pixels in outlines."""
    assert len(read) == len(drawn)
    for a, b in zip(read, drawn, strict=True):
        same_molecules(a, b, PIXEL)
        assert labels_of(a, COMPARTMENTS) == labels_of(b, COMPARTMENTS)
        cells = a.cells.set_index("cell_id").loc[b.cells["cell_id"]]
        for column, larger in (("cell_boundary", True), ("nucleus_boundary", False)):
            expected = b.cells[column].to_numpy()
            got = shapely.transform(cells[column].to_numpy(), lambda xy: xy * PIXEL)
            there = ~shapely.is_missing(expected)
            assert (shapely.is_missing(got) == ~there).all()
            got, expected = got[there], expected[there]
            if larger:
                assert shapely.contains(got, expected).all()
            assert (shapely.hausdorff_distance(got, expected) < 3 * PIXEL).all()


def test_cosmx_comes_back(flat, drawn, tmp_path):
    check_cosmx([piece() for piece in read_cosmx(flat, tmp_path)], drawn)


def test_cosmx_archive(flat, drawn, tmp_path):
    path = write_cosmx(iter(drawn), tmp_path / "one", archive=True)
    assert path == tmp_path / "one" / "Lung5_Rep1+SMI+Flat+data.tar.gz"
    assert list(digests(tmp_path)) == ["one/Lung5_Rep1+SMI+Flat+data.tar.gz"]
    with tarfile.open(path) as tar:
        members = {
            member.name: hashlib.sha256(tar.extractfile(member).read()).hexdigest()
            for member in tar
        }
        times = {member.mtime for member in tar}
    prefix = "Lung5_Rep1/Lung5_Rep1-Flat_files_and_images/"
    assert members == {prefix + name: digest for name, digest in digests(flat).items()}
    assert times == {0}
    check_cosmx([piece() for piece in read_cosmx(path, tmp_path / "one")], drawn)


def test_cosmx_same_bytes(flat, tmp_path):
    assert digests(write_cosmx(_pieces(TISSUE, 4), tmp_path / "again")) == digests(flat)


def test_cosmx_where_it_cannot_be(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(SourceError, match="is there and not empty; choose another"):
        write_cosmx([], tmp_path)
    piece = simulate(1, n_fovs=1)
    nameless = Release(piece.molecules, piece.cells.assign(fov="middle"), piece.labels)
    with pytest.raises(SourceError, match="'middle' does not end with a number"):
        write_cosmx([nameless], tmp_path / "y")
    wide = simulate(1, n_fovs=1, cells_per_fov=600, n_genes=2)
    with pytest.raises(SourceError, match="F001 does not fit into an image of 5472 x 3648 pixels"):
        write_cosmx([wide], tmp_path / "y")


# Images


@pytest.mark.parametrize("touched", [False, True])
def test_paint_against_shapely(touched):
    """Pixels whose centre is inside, or of which the outline's area has a part."""
    rng = np.random.default_rng(0)
    angles = np.arange(12) * (2 * np.pi / 12)
    for _ in range(20):
        radius = rng.uniform(1, 9, 12)[:, None]
        ring = rng.uniform(5, 15, 2) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        image = np.zeros((18, 20), np.uint16)  # some reach beyond
        _paint(image, ring[None], np.array([3], np.uint16), touched)
        row, column = np.indices(image.shape)
        polygon = shapely.polygons(ring)
        if touched:
            expected = shapely.intersects(polygon, shapely.box(column, row, column + 1, row + 1))
        else:
            expected = shapely.contains(polygon, shapely.points(column + 0.5, row + 0.5))
        assert (image == np.where(expected, 3, 0)).all()
