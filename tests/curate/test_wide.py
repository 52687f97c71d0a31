"""`synthetic_wide` in small draws: patterns are where labels say, what is none has no label."""

import hashlib
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import shapely

from gpattern_bench.curate.release import Release
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.simulate import wide
from gpattern_bench.curate.simulate.cells import PATTERNS
from gpattern_bench.curate.simulate.wide import (
    FOREIGN,
    HELD_OUT,
    VARIANT_2,
    VARIANT_3,
    Settings,
    simulate_wide,
    wide_pieces,
)
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.dataset import load_dataset
from gpattern_bench.errors import SourceError
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import find_entry

pytestmark = pytest.mark.slow

COLUMNS = list(PATTERNS)
RECIPE = find_entry("synthetic_wide").recipe
ALL = pytest.mark.parametrize(
    "settings", [VARIANT_2, VARIANT_3, HELD_OUT], ids=["variant_2", "variant_3", "held_out"]
)


@pytest.fixture(scope="module")
def fields() -> list[list[wide._Cell]]:
    return [wide._draw_fov(7, 0, k, VARIANT_2) for k in range(30)]


@pytest.fixture(scope="module")
def release(fields) -> Release:
    return wide._release([f"any-{k:03d}" for k in range(30)], fields, range(30))


def text_digest(release: Release) -> str:
    """SHA-256 over every value as text."""
    cells = release.cells.copy()
    for column in ("cell_boundary", "nucleus_boundary"):
        cells[column] = shapely.to_wkb(cells[column].to_numpy(), hex=True, byte_order=1)
    frames = (release.molecules, cells, release.labels)
    text = "".join(frame.to_csv(index=False, float_format="%.17g") for frame in frames)
    return hashlib.sha256(text.encode()).hexdigest()


def within(share: float, expected: float, n: int) -> bool:
    """Whether a share of n lies within four standard deviations of a binomial one."""
    return abs(share - expected) < 4.0 * np.sqrt(expected * (1.0 - expected) / n)


# The same values everywhere


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        (VARIANT_2, "9c7c43509718867af6d9a442e4c10ac5f987892035c63e00c14ff9e924bc0146"),
        (VARIANT_3, "9e39ca7de7931208a1442aa3b2894a75d507a53d6bc40627a5b02083a2c4553d"),
        (HELD_OUT, "395949116890f924046791c6547e0f43a608e984e4f0ba2c86c7ea91d143edd8"),
    ],
    ids=["variant_2", "variant_3", "held_out"],
)
def test_values_are_pinned(settings, digest):
    # A change here is a new version of `synthetic_wide`, whatever caused it.
    assert text_digest(simulate_wide(0, settings=settings, cells=12)) == digest


def test_another_process_draws_the_same():
    code = (
        "import pickle, sys; from gpattern_bench.curate.simulate.wide import simulate_wide;"
        "pickle.dump(simulate_wide(3, cells=12), sys.stdout.buffer)"
    )
    drawn = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    other = pickle.loads(drawn.stdout)
    assert text_digest(other) == text_digest(simulate_wide(3, cells=12))


def test_seeds_and_settings_differ():
    draws = [simulate_wide(seed, cells=2) for seed in (1, 2)]
    draws += [simulate_wide(1, settings=settings, cells=2) for settings in (VARIANT_3, HELD_OUT)]
    assert len({text_digest(draw) for draw in draws}) == 4


def test_a_field_of_view_does_not_depend_on_the_others():
    few, many = simulate_wide(3, cells=20), simulate_wide(3, cells=35)
    assert many.cells["fov"].value_counts(sort=False).tolist() == [10, 10, 10, 5]
    assert (few.cells["cell_boundary"] == many.cells["cell_boundary"][:20]).all()
    n = len(few.molecules)
    for axis in "xy":
        np.testing.assert_array_equal(few.molecules[axis], many.molecules[axis][:n])


def test_no_cell_is_drawn_twice():
    """Neither by two parts of the dataset, nor by two of its fields of view."""
    fields = [wide._draw_fov(5, part, k, VARIANT_2, 1) for part in range(5) for k in range(3)]
    assert len({cell.boundary.tobytes() for field in fields for cell in field}) == 15


# The dataset


def test_pieces_are_named_by_split_and_sorted():
    fovs = [piece.args[1] for piece in wide_pieces(RECIPE.seed)]
    assert fovs == sorted(set(fovs))
    splits, n = np.unique([fov.split("-")[0] for fov in fovs], return_counts=True)
    assert dict(zip(splits.tolist(), n.tolist(), strict=True)) == {
        "test": 30,
        "train": 305,
        "val": 30,
    }
    assert {fov.rsplit("-", 1)[0] for fov in fovs} == {
        *("train-v2", "train-v3", "val-v2", "val-v3", "test-heldout")
    }
    assert len({piece.args[-1] for piece in wide_pieces(RECIPE.seed)}) == len(fovs)  # places


def test_first_piece_is_a_test_field_of_the_held_out_settings():
    piece = next(wide_pieces(RECIPE.seed))()
    assert piece.cells["fov"].unique().tolist() == ["test-heldout-001"]
    assert text_digest(piece) == "a8918e233db05a1b80c098524d2096e51ac409f2f8101a48744a37b61f10b546"


def test_tables(tmp_path):
    pieces = {piece.args[1]: piece for piece in wide_pieces(RECIPE.seed)}
    names = ["test-heldout-001", "train-v2-001", "train-v3-001", "val-v2-001", "val-v3-015"]
    folder = write_dataset(
        (apply_rules(pieces[name](), RECIPE) for name in names),
        tmp_path / "tables",
        name="wide",
        version="0.0.0",
        recipe=RECIPE,
    )
    dataset = load_dataset(folder, verify=True)  # no cell in two splits, no molecules twice
    assert dataset.manifest.is_simulated
    assert {s: dataset.fovs(s) for s in dataset.splits} == {
        "train": names[1:3],
        "val": names[3:],
        "test": names[:1],
    }
    assert not any(dataset.manifest.dropped.values())
    assert not dataset.manifest.warnings


def test_named_split_needs_names_of_splits(tmp_path):
    recipe = Recipe(
        format="simulated",
        like="synthetic_wide",
        patterns=PATTERNS,
        patternless="keep",
        split="named",
    )
    tables = apply_rules(simulate_wide(1, cells=1, name="field"), recipe)
    with pytest.raises(SourceError, match=r"must begin with train-, val-, test-; .* field-001"):
        write_dataset([tables], tmp_path / "t", name="wide", version="0.0.0", recipe=recipe)


# Cells


@ALL
def test_release(settings):
    release = simulate_wide(11, settings=settings, cells=60)
    molecules, cells, labels = release.molecules, release.cells, release.labels
    boundary, nucleus = (cells[f"{part}_boundary"].to_numpy() for part in ("cell", "nucleus"))
    assert shapely.is_valid(boundary).all()
    assert shapely.is_valid(nucleus[~shapely.is_missing(nucleus)]).all()
    a, b = shapely.STRtree(boundary).query(boundary, predicate="intersects")
    assert (a == b).all()
    per_pair = molecules.groupby(["cell_id", "gene"], observed=True).size()
    assert list(per_pair.index) == list(zip(labels["cell_id"], labels["gene"], strict=True))
    assert set(labels[COLUMNS].sum(axis=1)) == {0, 1, 2}
    assert molecules["cell_id"].value_counts().max() <= settings.max_molecules
    outlines = shapely.get_coordinates(np.concatenate([boundary, nucleus]))
    for um in (molecules[["x", "y"]].to_numpy(), outlines):
        np.testing.assert_array_equal(um * 1024, np.rint(um * 1024))
    codes = molecules["cell_id"].cat.codes
    outside = ~shapely.contains_xy(boundary[codes], molecules["x"], molecules["y"])
    assert outside.mean() < 0.1
    radius = np.sqrt(shapely.area(boundary) / np.pi)
    assert radius.min() > 0.8 * settings.radius_um[0]
    assert radius.max() < 1.3 * settings.radius_um[1]


def test_whole_slide_is_exact_in_float32():
    *_, last = (piece.args[-1] for piece in wide_pieces(RECIPE.seed))
    release = wide._release(["any"], [wide._draw_fov(1, 0, 0, VARIANT_2)], [max(last, 364)])
    xy = release.molecules[["x", "y"]].to_numpy()
    np.testing.assert_array_equal(xy, xy.astype(np.float32))
    assert wide.TILES * wide.COLUMNS * wide.PITCH < 2**24 / wide.GRID


def test_share_without_nucleus(release):
    there = release.cells["nucleus_boundary"].notna()
    assert within(1.0 - there.mean(), VARIANT_2.without_nucleus, len(there))
    labels = release.labels
    blind = ~there.to_numpy()[labels["cell_id"].cat.codes]
    assert labels.loc[blind, "nuclear"].mean() > 0.1  # their labels stay


def test_share_of_coarse_outlines(release):
    """Two thirds of the coarse outlines have fewer vertices: a third few, a third a hull's."""
    vertices = shapely.get_num_coordinates(release.cells["cell_boundary"].to_numpy()) - 1
    assert within((vertices < wide.N_RAYS).mean(), VARIANT_2.coarse * 2 / 3, len(vertices))
    low, high = VARIANT_2.coarse_vertices
    few = (vertices >= low) & (vertices <= high)
    assert within(few.mean(), VARIANT_2.coarse / 3, len(vertices))


def test_coarse_outlines_lie_around_the_cell():
    """A hull is convex and holds the cell, as does a grown cell; fewer vertices cut into it."""
    rng = np.random.default_rng(0)
    settings = replace(VARIANT_2, coarse=1.0, segmentation=0.0)
    shape = wide._draw_shape(rng, settings, 100.0)
    cell = shapely.polygons(shape.cell * 10.0)
    seen = {"few": 0, "hull": 0, "grown": 0}
    for _ in range(60):
        outline = shapely.polygons(wide._segment(rng, settings, shape, 10.0)[0])
        assert shapely.is_valid(outline)
        if shapely.get_num_coordinates(outline) == wide.N_RAYS + 1:
            seen["grown"] += 1
            assert outline.buffer(0.01).contains(cell)
            assert outline.hausdorff_distance(cell) < settings.growth_um[1] + 0.01
        elif shapely.get_num_coordinates(outline) <= settings.coarse_vertices[1] + 1:
            seen["few"] += 1
        else:
            seen["hull"] += 1
            assert outline.symmetric_difference(cell.convex_hull).area < 0.01 * cell.area
    assert min(seen.values()) > 5


def test_duplicates():
    """In about 30 % of the cells, molecules lie two to four at a place."""
    settings = replace(VARIANT_2, jitter_um=0.0, thinned=0.0)
    apart = []
    for k in range(20):
        for cell in wide._draw_fov(2, 0, k, settings):
            start = np.cumsum(cell.count) - cell.count
            pair = np.repeat(np.arange(len(start)), cell.count)
            near = [
                np.sort(np.hypot(*(cell.xy[pair == p] - at).T))[1]
                for p, at in enumerate(cell.xy[start])
                if cell.count[p] > 3
            ]
            radius = np.sqrt(shapely.area(shapely.polygons(cell.boundary)) / np.pi)
            apart.append(np.mean(np.asarray(near) < 0.03 * radius))
    repeated = np.asarray(apart) > 0.9
    assert within(repeated.mean(), settings.duplicated, len(repeated))


def test_genes_tell_nothing_across_cells(release):
    labels = release.labels
    assert release.molecules["gene"].cat.categories[[0, -1]].tolist() == ["G001", "G200"]
    per_cell = labels.groupby("cell_id", observed=True).size()
    assert per_cell.max() == VARIANT_2.n_genes
    # Over genes, shares of a pattern vary as binomial ones do.
    by_gene = labels.groupby("gene", observed=True)[COLUMNS]
    share, n = labels[COLUMNS].mean(), by_gene.size()
    excess = (by_gene.mean() - share) ** 2
    chi = (excess.mul(n, axis=0) / (share * (1 - share))).mean()
    assert (chi < 1.6).all()  # within cells genes share a preference, hence not quite 1


# Patterns


def strong(**options) -> list[wide._Cell]:
    settings: Settings = replace(
        VARIANT_2,
        strength=(0.95, 0.97),
        coarse=0.0,
        segmentation=0.0,
        without_nucleus=0.0,
        jitter_um=0.0,
        nuclear_leak=0.0,
        **options,
    )
    return [cell for k in range(8) for cell in wide._draw_fov(4, 0, k, settings)]


def test_molecules_lie_where_their_pattern_says():
    shares = {name: [] for name in (*PATTERNS, "none")}
    for cell in strong(two_patterns=0.0, foreign=0.0, weak_share=0.0):
        boundary, nucleus = shapely.polygons(cell.boundary), shapely.polygons(cell.nucleus)
        size = np.sqrt(boundary.area / np.pi)
        at = shapely.points(cell.xy)
        inside = shapely.contains(nucleus, at)
        to_nucleus = shapely.distance(nucleus.boundary, at) / size
        to_rim = shapely.distance(boundary.boundary, at) / size
        zones = np.stack([to_rim < 0.25, ~inside, inside, to_nucleus < 0.25], axis=1)
        pair = np.repeat(np.arange(len(cell.gene)), cell.count)
        for p, labels in enumerate(cell.labels):
            name = PATTERNS[int(labels.argmax())] if labels.any() else "none"
            shares[name].append(zones[pair == p].mean(axis=0))
    mean = {name: np.mean(found, axis=0) for name, found in shares.items()}
    for k, name in enumerate(PATTERNS):
        assert min(len(found) for found in shares.values()) > 100
        assert mean[name][k] > 0.85, name
        assert mean[name][k] > mean["none"][k] + 0.1, name


def test_foreign_arrangements_have_no_label(fields):
    cells = [cell for field in fields for cell in field]
    foreign = np.concatenate([cell.foreign for cell in cells])
    labels = np.concatenate([cell.labels for cell in cells])
    assert not labels[foreign >= 0].any()
    none = foreign[~labels.any(axis=1)]
    assert within((none >= 0).mean(), VARIANT_2.foreign, len(none))
    share = np.bincount(none[none >= 0], minlength=len(FOREIGN)) / (none >= 0).sum()
    assert (share > 0.1).all()
    assert (share < 0.3).all()


@ALL
def test_foreign_arrangements_are_none_of_the_patterns(settings):
    """They move fewer molecules into a pattern's zone than the weakest pair with that pattern."""
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(25):
        pool = wide._draw_pool(rng, settings, wide._draw_shape(rng, settings, 100.0))
        for _ in range(10):
            kind, weight = wide._draw_foreign(rng, settings, pool)
            seen.add(FOREIGN[kind])
            moved = dict(zip(PATTERNS, wide._moved(pool, weight), strict=True))
            assert moved["nuclear"] < settings.strength[0]
            assert moved["nuclear_edge"] < settings.strength[0]
            if FOREIGN[kind] != "protrusion":
                assert moved["cell_edge"] < settings.strength[0]
            if FOREIGN[kind] in ("radial", "depth_graded"):
                assert moved["cytoplasmic"] < settings.strength[0]
            if FOREIGN[kind] != "depth_graded":  # nor are they background
                ratio = np.sort(weight / weight.mean())
                assert ratio[-100:].mean() > 1.5 * ratio[:1000].mean()
    assert seen == set(FOREIGN)


def test_zones_of_strong_patterns():
    """The measure that foreign arrangements are held to finds the patterns themselves."""
    rng = np.random.default_rng(2)
    settings = replace(
        VARIANT_2, arc=0.0, cell_edge_width=(0.03, 0.06), nuclear_edge_width=(0.02, 0.05)
    )
    pools = [
        wide._draw_pool(rng, settings, wide._draw_shape(rng, settings, 100.0)) for _ in range(10)
    ]
    for k, form in enumerate(wide._FORMS):
        moved = [wide._moved(pool, form(rng, settings, pool))[k] for pool in pools]
        assert np.mean(moved) > 0.6, PATTERNS[k]
