"""The simulator keeps its docstring's promises; its defaults have the difficulty fixed for them."""

import hashlib
import time
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import shapely
from sklearn.metrics import roc_auc_score

from gpattern_bench.curate.release import Release
from gpattern_bench.curate.simulate import PATTERNS, simulate

COLUMNS = list(PATTERNS)


@pytest.fixture(scope="module")
def release() -> Release:
    return simulate(20251122)  # the seed of `synthetic`


def digest(release: Release) -> str:
    """SHA-256 over every value."""
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
        digest(simulate(0, n_fovs=3))
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
    start = time.perf_counter()
    simulate(1)
    assert time.perf_counter() - start < 20
