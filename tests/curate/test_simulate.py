"""The simulator keeps its docstring's promises; its defaults have the difficulty fixed for them."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import shapely
from sklearn.metrics import roc_auc_score

from gpattern_bench.curate.release import Release
from gpattern_bench.curate.simulate.cells import (
    _SIZES,
    COMPARTMENTS,
    N_VERTICES,
    PATTERNS,
    _pieces,
    compartments,
    membrane_edge,
    simulate,
    simulate_like,
    simulate_tissue,
)
from gpattern_bench.errors import SourceError, UnknownDatasetError

COLUMNS = list(PATTERNS)


@pytest.fixture(scope="module")
def release() -> Release:
    return simulate(20251122)  # the seed of `synthetic`


def digest(release: Release) -> str:
    """SHA-256 over every value."""
    found = hashlib.sha256()
    for frame in (release.molecules, release.cells, release.labels):
        for name, column in frame.items():
            found.update(name.encode())
            if name.endswith("_boundary"):
                found.update(b"".join(wkb or b"none" for wkb in shapely.to_wkb(column.to_numpy())))
            elif column.dtype.kind in "biuf":
                found.update(column.to_numpy().tobytes())
            else:
                found.update("\n".join(column.astype(str)).encode())
    return found.hexdigest()


def text_digest(release: Release) -> str:
    """SHA-256 over every value as text."""
    cells = release.cells.copy()
    for column in ("cell_boundary", "nucleus_boundary"):
        cells[column] = shapely.to_wkb(cells[column].to_numpy(), hex=True)
    frames = (release.molecules, cells, release.labels)
    text = "".join(frame.to_csv(index=False, float_format="%.17g") for frame in frames)
    return hashlib.sha256(text.encode()).hexdigest()


def counts(release: Release) -> pd.Series:
    """Molecules of each pair, in the order of the labels."""
    return release.molecules.groupby(["cell_id", "gene"], observed=True).size()


def points(release: Release) -> np.ndarray:
    return shapely.points(release.molecules["x"], release.molecules["y"])


def outlines(release: Release, column: str) -> np.ndarray:
    """The outline of each molecule's cell."""
    return release.cells[column].to_numpy()[release.molecules["cell_id"].cat.codes]


def test_same_seed_same_release():
    assert digest(simulate(5, n_fovs=3)) == digest(simulate(5, n_fovs=3))
    assert digest(simulate(5, n_fovs=3)) != digest(simulate(6, n_fovs=3))


def test_values_are_pinned():
    # A change here is a new version of `synthetic`, whatever caused it.
    assert (
        text_digest(simulate(0, n_fovs=3))
        == "259022296c5baf4cac6d5c738cdaa6c4f8f25f6c0e6b2f68d1a3bee5c4d5ea59"
    )


def test_a_field_does_not_depend_on_the_others():
    few, many = simulate(3, n_fovs=4), simulate(3, n_fovs=9)
    n_cells = len(few.cells)
    pd.testing.assert_frame_equal(few.cells, many.cells.iloc[:n_cells])
    for name in ("molecules", "labels"):
        a, b = getattr(few, name), getattr(many, name).iloc[: len(getattr(few, name))]
        for column in a:
            assert a[column].astype(object).tolist() == b[column].astype(object).tolist()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed):
    with pytest.raises(OverflowError):
        simulate(seed, n_fovs=1)


def test_smallest():
    release = simulate(2**64 - 1, n_fovs=1, cells_per_fov=1, n_genes=1, mean_molecules=50.0)
    assert release.cells["cell_id"].tolist() == ["F001-01"]
    assert set(release.molecules["gene"]) == {"G01"}


def test_sizes(release):
    molecules, cells, labels = release.molecules, release.cells, release.labels
    assert cells["fov"].nunique() >= 60
    assert 380 <= len(cells) <= 420
    assert molecules["gene"].nunique() >= 40
    assert 450 <= len(molecules) / len(cells) <= 550
    per_pair = counts(release)
    assert per_pair.min() == 1
    assert 80 <= per_pair.max() <= 250
    per_gene = molecules["gene"].value_counts()
    assert per_gene.max() > 10 * per_gene.min()
    # Negative binomial: far wider than Poisson.
    assert (
        per_pair.groupby("gene", observed=True).var().sum()
        > 2 * per_pair.groupby("gene", observed=True).mean().sum()
    )
    assert list(labels.columns) == ["cell_id", "gene", *PATTERNS]


def test_ids(release):
    cells = release.cells
    assert cells["cell_id"].is_unique
    assert (cells["cell_id"].str.rsplit("-", n=1).str[0] == cells["fov"]).all()
    fov = cells.set_index("cell_id")["fov"]
    molecules = release.molecules.astype({"cell_id": "str", "fov": "str"})
    assert (molecules["cell_id"].map(fov) == molecules["fov"]).all()
    assert release.molecules["gene"].cat.categories[[0, -1]].tolist() == ["G01", "G48"]


def test_every_pair_is_labelled_once_in_order(release):
    labels = release.labels
    assert list(counts(release).index) == list(zip(labels["cell_id"], labels["gene"], strict=True))
    assert set(np.unique(labels[COLUMNS])) == {0, 1}
    assert set(labels[COLUMNS].sum(axis=1)) == {0, 1, 2}


def test_molecules_are_ordered(release):
    codes = release.molecules[["fov", "cell_id", "gene"]].apply(lambda column: column.cat.codes)
    rows = list(codes.drop_duplicates().itertuples(index=False, name=None))
    assert all(a < b for a, b in pairwise(rows))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_geometry(seed):
    release = simulate(seed)
    cells = release.cells
    boundary = cells["cell_boundary"].to_numpy()
    nucleus = cells["nucleus_boundary"].to_numpy()
    segmented = cells["nucleus_boundary"].notna().to_numpy()
    assert 0.9 < segmented.mean() < 1.0
    assert all(outline is None for outline in nucleus[~segmented])
    assert shapely.is_valid(boundary).all()
    assert shapely.is_valid(nucleus[segmented]).all()
    assert shapely.contains_properly(boundary[segmented], nucleus[segmented]).all()
    a, b = shapely.STRtree(boundary).query(boundary, predicate="intersects")
    assert (a == b).all()
    assert not cells["touches_border"].any()
    shapely.prepare(boundary)
    assert shapely.contains_properly(outlines(release, "cell_boundary"), points(release)).all()


@pytest.mark.slow
def test_coordinates_are_on_the_grid_and_exact_in_float32():
    release = simulate(0, n_fovs=1, cells_per_fov=20_000, n_genes=1, mean_molecules=2.0)
    xy = release.molecules[["x", "y"]].to_numpy()
    outline = shapely.get_coordinates(release.cells[["cell_boundary", "nucleus_boundary"]])
    for values in (xy, outline):
        assert values.dtype == np.float64
        assert (values * 1024 == np.rint(values * 1024)).all()
        assert (values == values.astype(np.float32)).all()
        assert (values >= 0).all()


def test_difficulty(release):
    """Fixed before any trained method was run; controls as in the docs, over ten random splits."""
    labels = release.labels
    n_molecules = counts(release).to_numpy()
    fov = labels["cell_id"].astype(str).str.split("-").str[0].to_numpy()
    names = np.unique(fov)
    prior, by_count = [], []
    for split in range(10):
        order = np.random.default_rng(split).permutation(names)
        tenth = len(names) // 10
        test, train = np.isin(fov, order[:tenth]), np.isin(fov, order[2 * tenth :])
        per_gene = labels[train].groupby("gene", observed=False)[COLUMNS]
        share = (per_gene.sum() + labels.loc[train, COLUMNS].mean()) / (per_gene.count() + 1)
        scores = share.to_numpy()[labels.loc[test, "gene"].cat.codes]
        truth = labels.loc[test, COLUMNS].to_numpy()
        largest = n_molecules[test].max()
        prior.append([roc_auc_score(truth[:, k], scores[:, k]) for k in range(4)])
        by_count.append([roc_auc_score(y, n_molecules[test] / largest) for y in truth.T])
    macro_prior, macro_count = np.mean(prior, axis=1), np.mean(by_count, axis=1)
    assert 0.77 < macro_prior.min() <= macro_prior.max() < 0.83
    assert 0.45 < macro_count.min() <= macro_count.max() < 0.55
    assert 0.40 < np.min(by_count) <= np.max(by_count) < 0.60
    n_patterns = labels[COLUMNS].sum(axis=1)
    assert 0.10 < (n_patterns == 2).mean() < 0.13
    assert 0.18 < (n_patterns == 0).mean() < 0.23


@pytest.mark.slow
def test_molecules_lie_where_their_pattern_says(release):
    """Most molecules of a pair with one pattern lie in its compartment, far more than of others."""
    at = points(release)
    nucleus, boundary = outlines(release, "nucleus_boundary"), outlines(release, "cell_boundary")
    known = np.array([outline is not None for outline in nucleus])
    at, nucleus, boundary = at[known], nucleus[known], boundary[known]
    nuclear = shapely.contains(nucleus, at)
    to_nucleus = shapely.distance(shapely.boundary(nucleus), at)
    to_rim = shapely.distance(shapely.boundary(boundary), at)
    inside = {
        "cell_edge": to_rim < 2.3,
        "cytoplasmic": ~nuclear & (to_nucleus > 0.7) & (to_rim > 1.7),
        "nuclear": nuclear,
        "nuclear_edge": to_nucleus < 1.3,
    }
    labels = release.labels[COLUMNS].to_numpy()
    pair = np.repeat(np.arange(len(labels)), counts(release))[known]
    n_patterns = labels.sum(axis=1)[pair]
    for k, pattern in enumerate(PATTERNS):
        own = inside[pattern][(n_patterns == 1) & (labels[pair, k] == 1)].mean()
        none = inside[pattern][n_patterns == 0].mean()
        both = inside[pattern][(n_patterns == 2) & (labels[pair, k] == 1)].mean()
        assert own > 0.6, pattern
        assert none + 0.05 < both < own, pattern


@pytest.mark.slow
def test_noise_is_densest_in_the_middle(release):
    pair = np.repeat(np.arange(len(release.labels)), counts(release))
    none = (release.labels[COLUMNS].sum(axis=1) == 0).to_numpy()[pair]
    boundary = outlines(release, "cell_boundary")
    depth = shapely.distance(shapely.boundary(boundary), points(release))[none]
    cells = release.cells["cell_boundary"].to_numpy()
    rim_area = 1 - shapely.area(shapely.buffer(cells, -1.0)).sum() / shapely.area(cells).sum()
    assert 0.35 < (depth < 1.0).mean() / rim_area < 0.65


def test_batch_effects(release):
    """Fields differ in detection rate and in the size of nuclei by more than their cells do."""
    cells = release.cells.dropna()
    nucleus, cell = (cells[f"{part}_boundary"].to_numpy() for part in ("nucleus", "cell"))
    ratio = shapely.area(nucleus) / shapely.area(cell)
    values = {
        "nucleus": pd.Series(ratio, index=cells["fov"].to_numpy()),
        "detection": release.molecules.groupby("cell_id", observed=True)
        .size()
        .set_axis(release.cells["fov"]),
    }
    for name, value in values.items():
        groups = np.log(value).groupby(level=0)
        # The variance of means of four is a quarter of that within, were there no batch effect.
        assert groups.mean().var() > 1.5 * groups.var().mean() / 4, name


def test_fast():
    start = time.process_time()
    simulate(1)
    assert time.process_time() - start < 20  # a fifth of a second, once compiled


# Releases as large as those of the paper

LIKES = ("cosmx_lung", "nih3t3", "u2os")
SMALL = {  # the same in small: more than ten fields of view, so that "10" comes before "2"
    "cosmx_lung": replace(_SIZES["cosmx_lung"], n_fovs=12, n_cells=1_001, n_genes=60),
    "nih3t3": replace(_SIZES["nih3t3"], n_cells=170, n_genes=200, mean_molecules=800.0),
    "u2os": replace(_SIZES["u2os"], n_fovs=11, n_cells=166, n_genes=31, mean_molecules=700.0),
}


def small(like: str, seed: int = 3) -> Iterator[Release]:
    return _pieces(SMALL[like], seed)


@pytest.fixture(scope="module")
def tissue() -> list[Release]:
    return list(small("cosmx_lung"))


def test_published_sizes():
    """Table 1 of the paper."""
    published = {
        "nih3t3": (2_724_808, 179, 3_721),
        "u2os": (10_634_467, 1_022, 130),
        "cosmx_lung": (30_370_769, 100_149, 960),
    }
    assert set(_SIZES) == set(published)
    for like, (molecules, cells, genes) in published.items():
        size = _SIZES[like]
        assert (size.n_cells, size.n_genes) == (cells, genes)
        assert size.n_cells * size.mean_molecules == pytest.approx(molecules, rel=0.005)


@pytest.mark.slow
def test_full_size():
    pieces = list(simulate_like("nih3t3", 1))
    molecules = sum(len(piece.molecules) for piece in pieces)
    assert len(pieces) == 17
    assert sum(len(piece.cells) for piece in pieces) == 179
    assert len(set().union(*(set(piece.molecules["gene"]) for piece in pieces))) == 3_721
    assert molecules == pytest.approx(2_724_808, rel=0.05)


@pytest.mark.parametrize("like", LIKES)
def test_pieces(like):
    size, pieces = SMALL[like], list(small(like))
    per_fov = [len(piece.cells) for piece in pieces]
    assert sum(per_fov) == size.n_cells
    assert len(set(per_fov)) > 1
    assert set().union(*(set(piece.molecules["gene"]) for piece in pieces)) == {
        f"G{k + 1:0{max(2, len(str(size.n_genes)))}d}" for k in range(size.n_genes)
    }
    molecules = sum(len(piece.molecules) for piece in pieces)
    assert molecules == pytest.approx(size.n_cells * size.mean_molecules, rel=0.05)
    fovs = [str(size.first + k) for k in range(size.n_fovs)]
    assert [piece.cells["fov"].unique().tolist() for piece in pieces] == [[f] for f in sorted(fovs)]
    for piece in pieces:
        fov = piece.cells["fov"].iloc[0]
        names = [f"{size.first + k}-{fov}" for k in range(len(piece.cells))]
        assert piece.cells["cell_id"].tolist() == names
        assert set(piece.molecules["fov"]) == {fov}
        assert set(piece.molecules["cell_id"]) == set(names)
        pairs = list(counts(piece).index)
        labels = piece.labels
        assert pairs == list(zip(labels["cell_id"], labels["gene"], strict=True))
        assert tuple(labels.columns[2:]) == size.kind.patterns


@pytest.mark.parametrize("like", LIKES)
@pytest.mark.slow
def test_same_seed_same_pieces(like):
    first, again, other = ([digest(p) for p in small(like, seed)] for seed in (8, 8, 9))
    assert first == again
    assert not set(first) & set(other)


@pytest.mark.parametrize("like", LIKES)
@pytest.mark.slow
def test_geometry_of_pieces(like):
    """No cell overlaps another, of any field of view; all else as `simulate` promises."""
    pieces = list(small(like))
    boundary = np.concatenate([piece.cells["cell_boundary"] for piece in pieces])
    nucleus = np.concatenate([piece.cells["nucleus_boundary"] for piece in pieces])
    there = ~shapely.is_missing(nucleus)
    assert 0.9 < there.mean() < 1
    assert shapely.is_valid(boundary).all()
    assert shapely.is_valid(nucleus[there]).all()
    assert shapely.contains_properly(boundary[there], nucleus[there]).all()
    a, b = shapely.STRtree(boundary).query(boundary, predicate="intersects")
    assert (a == b).all()
    for piece in pieces:
        shapely.prepare(piece.cells["cell_boundary"].to_numpy())
        assert shapely.contains_properly(outlines(piece, "cell_boundary"), points(piece)).all()
        xy = piece.molecules[["x", "y"]].to_numpy()
        for values in (xy, shapely.get_coordinates(boundary)):
            assert (values * 1024 == np.rint(values * 1024)).all()
            assert (values == values.astype(np.float32)).all()
            assert (values >= 0).all()


def test_tissue_of_any_size_is_that_of_cosmx(tissue):
    size = SMALL["cosmx_lung"]
    pieces = simulate_tissue(
        3,
        n_fovs=size.n_fovs,
        n_cells=size.n_cells,
        n_genes=size.n_genes,
        mean_molecules=size.mean_molecules,
    )
    assert [digest(piece) for piece in pieces] == [digest(piece) for piece in tissue]


def test_a_field_of_view_has_room_for_so_many_cells():
    with pytest.raises(SourceError, match=r"room for 3,927 cells, and one would hold 3,928: draw"):
        next(simulate_tissue(1, n_fovs=1, n_cells=3_928, n_genes=1, mean_molecules=1.0))


@pytest.mark.slow
def test_a_full_slide_stays_exact():
    """All cells of a full-size tissue: in float32, and each field of view in its image."""
    size = replace(_SIZES["cosmx_lung"], n_genes=1, mean_molecules=3.0)
    for piece in _pieces(size, 5):
        cells = piece.cells["cell_boundary"].to_numpy()
        bounds = shapely.total_bounds(cells)
        assert bounds.max() < 16_000
        assert (bounds[2:] - bounds[:2] < (983.0, 655.0)).all()  # room in an image of 985 x 656.6
        coordinates = shapely.get_coordinates(cells)
        assert (coordinates == coordinates.astype(np.float32)).all()


@pytest.mark.slow
def test_tissue_labels_follow_the_majority(tissue):
    """By shapely: where each molecule lies, and which compartments hold half of a pair."""
    agree = []
    for piece in tissue:
        at, nucleus = points(piece), outlines(piece, "nucleus_boundary")
        nuclear = ~shapely.is_missing(nucleus) & shapely.contains(nucleus, at)
        boundary = piece.cells["cell_boundary"]
        rings = shapely.get_coordinates(boundary).reshape(len(boundary), -1, 2)[:, :-1]
        origin = np.stack([rings[:, N_VERTICES // 4, 0], rings[:, 0, 1]], axis=1)[:, None]
        inner = shapely.polygons(membrane_edge(rings - origin) + origin)
        shapely.prepare(inner)
        within = shapely.contains(inner[piece.molecules["cell_id"].cat.codes], at)
        where = np.select([nuclear, ~within], [0, 1], 2)
        held = piece.molecules[["cell_id", "gene"]].assign(
            **{name: where == k for k, name in enumerate(COMPARTMENTS)}
        )
        share = held.groupby(["cell_id", "gene"], observed=True).mean()
        agree.append((share.to_numpy() >= 0.5) == piece.labels[list(COMPARTMENTS)].to_numpy(bool))
    agree = np.concatenate(agree)
    # A grid's rounding moves vertices off their rays, so that a molecule there may change sides.
    assert agree.all(axis=1).mean() > 0.9998


def test_tissue_pairs(tissue):
    labels = pd.concat([piece.labels for piece in tissue])
    n_patterns = labels[list(COMPARTMENTS)].sum(axis=1)
    assert (n_patterns > 0).mean() > 0.9
    assert (n_patterns == 2).any()
    assert (labels[list(COMPARTMENTS)].mean() > 0.15).all()
    full = next(_pieces(replace(_SIZES["cosmx_lung"], n_fovs=3, n_cells=300), 1))
    assert (counts(full) <= 2).mean() > 0.8  # a panel of 960 genes: one or two molecules


def test_compartments_of_a_known_cell():
    angles = np.arange(N_VERTICES) * (2 * np.pi / N_VERTICES)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    boundary, nucleus = 5 * circle[None], 2 * circle[None]
    xy = np.array([[0.0, 0.0], [1.9, 0.0], [2.1, 0.0], [0.0, -4.2], [0.0, -4.4], [4.9, 0.0]])
    cell = np.zeros(len(xy), dtype=np.intp)
    names = [COMPARTMENTS[k] for k in compartments(xy, cell, boundary, nucleus)]
    assert names == ["nuclear"] * 2 + ["cytoplasmic"] * 2 + ["membrane"] * 2
    bare = compartments(xy, cell, boundary, np.full_like(nucleus, np.nan))
    assert [COMPARTMENTS[k] for k in bare] == ["cytoplasmic"] * 4 + ["membrane"] * 2
    # No membrane is wider than half of the cell.
    thin = compartments(np.array([[0.4, 0.0]]), cell[:1], 1.0 * circle[None], 0.1 * circle[None])
    assert COMPARTMENTS[thin[0]] == "cytoplasmic"


def test_like_synthetic(release):
    pieces = list(simulate_like("synthetic", 20251122))
    assert len(pieces) == 100
    for name in ("molecules", "cells", "labels"):
        whole = getattr(release, name)
        joined = pd.concat([getattr(piece, name).astype(object) for piece in pieces])
        joined = joined.reset_index(drop=True)
        for column in whole:
            assert joined[column].tolist() == whole[column].tolist(), (name, column)


def test_like_nothing():
    with pytest.raises(UnknownDatasetError, match=r"'u2'; there are synthetic, nih3t3, u2os, cos"):
        simulate_like("u2", 1)


class TestFewerCells:
    @pytest.mark.parametrize(("n_cells", "n_fovs"), [(3, 3), (31, 3), (60, 6)])
    def test_are_drawn_in_fewer_fields_of_view(self, monkeypatch, n_cells, n_fovs):
        monkeypatch.setitem(_SIZES, "nih3t3", SMALL["nih3t3"])  # ten cells in each
        pieces = list(simulate_like("nih3t3", 8, n_cells))
        assert sum(len(piece.cells) for piece in pieces) == n_cells
        assert len(pieces) == n_fovs
        again = simulate_like("nih3t3", 8, n_cells)
        assert [digest(piece) for piece in pieces] == [digest(piece) for piece in again]

    def test_are_alike_in_molecules_per_cell(self):
        pieces = list(simulate_like("u2os", 2, 30))
        molecules = sum(len(piece.molecules) for piece in pieces)
        assert molecules / 30 == pytest.approx(10_405, rel=0.1)

    def test_of_synthetic_are_its_first_fields(self):
        some, whole = (list(simulate_like("synthetic", 1, n)) for n in (12, 400))
        assert [digest(piece) for piece in some] == [digest(piece) for piece in whole[:3]]

    @pytest.mark.parametrize(
        ("like", "n_cells", "problem"),
        [
            ("nih3t3", 2, r"expected 3 to 179 cells \(--cells\), got 2"),
            ("cosmx_lung", 100_150, r"expected 3 to 100,149 cells \(--cells\), got 100,150"),
            ("synthetic", 14, r"a multiple of 4 from 12 to 400 cells \(--cells\), got 14"),
            ("synthetic", 404, "got 404"),
            ("synthetic", 0, "got 0"),
        ],
    )
    def test_too_few_or_too_many(self, like, n_cells, problem):
        with pytest.raises(SourceError, match=problem):
            simulate_like(like, 1, n_cells)
