"""locFISH: features against big-fish's and the 2018 code's own, closed forms; methods on top."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import shapely
from samples import dataset_of
from shapely import affinity

from gpattern_bench.curate.readers.label_images import outlines
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.cells import Cell
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MethodError
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.methods import _forest
from gpattern_bench.methods.base import Method
from gpattern_bench.methods.locfish import method as locfish
from gpattern_bench.methods.locfish.bigfish import BIGFISH_FEATURES, bigfish_features
from gpattern_bench.methods.locfish.features_2018 import SAMACOITS_FEATURES, samacoits_features
from gpattern_bench.methods.locfish.method import (
    LabelClusters,
    Locfish,
    Locfish2018,
    LocfishUnsupervised,
    features,
)
from gpattern_bench.methods.predict import predict_cells

AT = {name: k for k, name in enumerate(BIGFISH_FEATURES)}
RINGS = [name.removeprefix("index_rna_") for name in BIGFISH_FEATURES[13:37:2]]
OF_NUCLEUS = {
    "index_mean_distance_nuc",
    "index_median_distance_nuc",
    "proportion_rna_in_nuc",
    "nb_rna_out_nuc",
    "nb_rna_in_nuc",
    "index_peripheral_distribution",
    *(name for name in BIGFISH_FEATURES if "_rna_nuc_" in name),
    "proportion_nuc_area",
    "nuc_area",
    "cell_area_out_nuc",
}
AREAS = ("protrusion_area", "cell_area", "nuc_area", "cell_area_out_nuc")
METHODS = (Locfish, Locfish2018, LocfishUnsupervised)


def cell_of(xy, boundary, nucleus=None, gene=None, cell_id="c") -> Cell:
    xy = np.asarray(xy, float).reshape(-1, 2)
    codes = np.zeros(len(xy), np.int32) if gene is None else np.asarray(gene, np.int32)
    return Cell(cell_id, "f", xy, codes, boundary, nucleus)


def scattered(outline, n: int, seed: int = 0):
    """Points all over an outline."""
    rng = np.random.Generator(np.random.Philox(seed))
    low_x, low_y, high_x, high_y = outline.bounds
    xy = rng.uniform((low_x, low_y), (high_x, high_y), (20 * n, 2))
    return xy[shapely.contains_xy(outline, *xy.T)][:n]


def lobed(radius: float = 6.0):
    """A cell with lobes, some of which are protrusions, and an oval nucleus off its middle."""
    angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    away = radius * (1 + 0.3 * np.sin(3 * angle) + 0.15 * np.cos(7 * angle))
    boundary = shapely.Polygon(np.stack([away * np.cos(angle), away * np.sin(angle)], axis=1))
    nucleus = affinity.scale(shapely.Point(0.4, -0.3).buffer(0.4 * radius), 1.2, 0.8)
    return boundary, nucleus


def lobed_cell(n: int = 600, genes: int = 12) -> Cell:
    boundary, nucleus = lobed()
    return cell_of(scattered(boundary, n), boundary, nucleus, np.arange(n) * genes // n)


def reference_cells(shared) -> dict[str, tuple[Cell, list[str]]]:
    """The cells that upstream was run on (1 px = 100 nm), and their genes by code."""
    points = pd.read_parquet(shared / "reference" / "merfish_sample_points.parquet")
    shapes = pd.read_parquet(shared / "reference" / "merfish_sample_shapes.parquet")
    names = sorted(points["gene"].unique())
    points["code"] = points["gene"].map({name: k for k, name in enumerate(names)})
    cells = {}
    for row in shapes.dropna(subset="nucleus_wkt").itertuples():
        here = points[points["cell"] == row.cell].sort_values("code", kind="stable")
        outlines = [
            shapely.transform(shapely.from_wkt(text), lambda xy: xy * 0.1)
            for text in (row.cell_wkt, row.nucleus_wkt)
        ]
        cells[row.cell] = cell_of(here[["x", "y"]] * 0.1, *outlines, here["code"], row.cell), names
    return cells


def table(cells, compute, columns) -> pd.DataFrame:
    frames = [
        pd.DataFrame(compute(cell), columns=list(columns)).assign(
            cell=cell.cell_id, gene=[names[code] for code in cell.genes]
        )
        for cell, names in cells
    ]
    return pd.concat(frames).set_index(["cell", "gene"])


@pytest.fixture(scope="module")
def bigfish(shared) -> tuple[pd.DataFrame, list]:
    """big-fish's own features, and the cells that they are of."""
    reference = pd.read_parquet(shared / "reference" / "bigfish_features.parquet")
    return reference.set_index(["cell", "gene"]), list(reference_cells(shared).values())


@pytest.fixture(scope="module")
def on_outlines(bigfish) -> pd.DataFrame:
    reference, cells = bigfish
    return table(cells, bigfish_features, BIGFISH_FEATURES).loc[reference.index]


class TestAgainstBigfish:
    @pytest.mark.slow
    def test_on_pixels_all_41_are_bigfishs_own(self, bigfish):
        reference, cells = bigfish
        ours = table(cells, lambda cell: bigfish_features(cell, pixels=True), BIGFISH_FEATURES)
        assert len(ours) == len(reference) == 1738
        ours = ours.loc[reference.index]
        for name in BIGFISH_FEATURES:
            counted = name.startswith(("nb_", "proportion_")) or name.endswith("area")
            # upstream averages distances in float32
            rtol = 0 if counted else 2e-6 if "distance" in name else 1e-13
            np.testing.assert_allclose(ours[name], reference[name], rtol=rtol, err_msg=name)

    @pytest.mark.parametrize(
        ("names", "correlation", "typical", "nearly_all"),
        [
            (["index_mean_distance_cell", "index_median_distance_cell"], 0.9998, 0.008, 0.025),
            (["index_mean_distance_nuc", "index_median_distance_nuc"], 0.99, 0.007, 0.035),
            (["proportion_rna_in_nuc"], 0.999, 0, 0.001),
            (["nb_rna_out_nuc", "nb_rna_in_nuc"], 0.9999, 0, 1),
            (["index_rna_protrusion"], 0.93, 0, 0.4),
            (["proportion_rna_protrusion"], 0.92, 0, 0.012),
            (["protrusion_area"], 0.99, 200, 400),
            (["index_polarization"], 0.9998, 0.003, 0.008),
            (["index_dispersion", "index_peripheral_distribution"], 0.97, 0.03, 0.15),
            ([f"index_rna_{ring}" for ring in RINGS], 0.84, 0.13, 1.9),
            ([f"proportion_rna_{ring}" for ring in RINGS], 0.79, 0, 0.08),
            (["proportion_nuc_area"], 1 - 1e-12, 1e-12, 1e-12),
            (["cell_area", "nuc_area", "cell_area_out_nuc"], 1 - 1e-12, 1e-6, 1e-6),
        ],
    )
    def test_on_outlines_they_agree_as_documented(
        self, bigfish, on_outlines, names, correlation, typical, nearly_all
    ):
        reference, _ = bigfish
        for name in names:
            ours, upstream = on_outlines[name], reference[name]
            apart = (ours - upstream).abs()
            assert np.corrcoef(ours, upstream)[0, 1] >= correlation, name
            assert apart.median() <= typical, name
            assert apart.quantile(0.95) <= nearly_all, name

    def test_the_differences_shrink_with_the_pixel(self):
        # they are upstream's pixel, so at a fifth of it a fifth of the molecules is elsewhere
        cell = lobed_cell(6000, genes=300)
        ours, apart = bigfish_features(cell), []
        for unit in (0.1, 0.02):
            theirs = bigfish_features(cell, pixels=True, unit_um=unit)
            theirs[:, [AT[name] for name in AREAS]] *= (unit / 0.1) ** 2
            apart.append(abs(ours - theirs).mean(axis=0))
        unbiased = [AT[name] for name in (*AREAS[1:], "proportion_nuc_area")]
        np.testing.assert_allclose(theirs[:, unbiased], ours[:, unbiased], rtol=1e-3)
        shrunk = np.delete(apart[1] / apart[0], unbiased)
        assert shrunk.max() < 0.4
        assert np.median(shrunk) < 0.25

    def test_rounded_coordinates_move_only_molecules_on_the_edge_of_a_ring(
        self, bigfish, on_outlines
    ):
        # tables hold float32 micrometres; this source has whole pixels, which lie on such edges
        _, cells = bigfish
        moved = [
            (replace(cell, xy=(cell.xy + 3000).astype(np.float32).astype(float) - 3000), names)
            for cell, names in cells
        ]
        rounded = table(moved, bigfish_features, BIGFISH_FEATURES).loc[on_outlines.index]
        for name in BIGFISH_FEATURES:
            same = np.isclose(rounded[name], on_outlines[name], rtol=1e-4, atol=1e-4).mean()
            assert same > (0.95 if "_rna_" in name else 0.9999), name


SQUARE = shapely.box(-10, -10, 10, 10)
MIDDLE = shapely.box(-4, -4, 4, 4)


class TestClosedForms:
    """A square cell of 20 um with a square nucleus of 8 um in its middle."""

    def of(self, xy, nucleus=MIDDLE):
        values = bigfish_features(cell_of(xy, SQUARE, nucleus))[0]
        return dict(zip(BIGFISH_FEATURES, values, strict=True))

    def test_areas_are_in_pixels(self):
        f = self.of([[0, 0]])
        areas = [f["cell_area"], f["nuc_area"], f["cell_area_out_nuc"]]
        assert areas == pytest.approx([40000, 6400, 33600])
        assert f["proportion_nuc_area"] == pytest.approx(0.16)
        # the disk of 3 um does not reach into the corners
        assert f["protrusion_area"] == pytest.approx(100 * (4 - np.pi) * 9, rel=0.01)

    def test_distances_are_over_the_means_and_medians_of_the_cell(self):
        f = self.of([[9, 0], [0, -7], [2, 2]])
        # at depth d a square of side 20 - 2 d is left: mean 20 / 6, median where half the area is
        assert f["index_mean_distance_cell"] == pytest.approx((1 + 3 + 8) / 3 / (20 / 6), rel=1e-3)
        assert f["index_median_distance_cell"] == pytest.approx(3 / (10 - 50**0.5), rel=1e-3)
        lattice = np.stack(np.meshgrid(*2 * [np.arange(-9.99, 10, 0.02)]), -1).reshape(-1, 2)
        out = np.hypot(*np.maximum(abs(lattice) - 4, 0).T)
        assert f["index_mean_distance_nuc"] == pytest.approx((5 + 3) / 3 / out.mean(), rel=2e-3)
        assert f["index_median_distance_nuc"] == pytest.approx(3 / np.median(out), rel=5e-3)

    def test_rings_count_molecules_over_their_share_of_the_area(self):
        depths = np.arange(0.25, 3, 0.5)  # one in each ring of the cell, two in the second
        xy = [[10 - depth, 0] for depth in depths] + [[0, 9.25]]
        f = self.of(xy)
        for k, depth in enumerate(depths):
            ring = f"{500 * k}_{500 * k + 500}"
            n = 2 if k == 1 else 1
            outer, inner = (20 - 2 * (depth - 0.25)) ** 2, (20 - 2 * (depth + 0.25)) ** 2
            assert f[f"proportion_rna_cell_radius_{ring}"] == n / 7
            expected = (outer - inner) / 400
            assert f[f"index_rna_cell_radius_{ring}"] == pytest.approx(n / 7 / expected, rel=2e-3)

    def test_the_first_ring_of_the_nucleus_has_both_sides(self):
        f = self.of([[4.3, 0], [3.7, 0], [3.4, 0], [4.7, 1], [0, -6.9]])
        area = 8**2 - 7**2 + 4 * 8 * 0.5 + np.pi / 4  # a strip inwards, and one with round corners
        assert f["proportion_rna_nuc_edge"] == 2 / 5
        assert f["index_rna_nuc_edge"] == pytest.approx(2 / 5 / (area / 400), rel=2e-3)
        assert f["proportion_rna_nuc_radius_500_1000"] == 1 / 5
        assert f["proportion_rna_nuc_radius_2500_3000"] == 1 / 5
        area = 4 * 8 * 0.5 + np.pi * (9 - 2.5**2)
        assert f["index_rna_nuc_radius_2500_3000"] == pytest.approx(1 / 5 / (area / 400), rel=5e-3)
        assert f["proportion_rna_in_nuc"] == 2 / 5
        assert [f["nb_rna_out_nuc"], f["nb_rna_in_nuc"]] == [3, 2]

    def test_protrusions_are_where_the_disk_does_not_reach(self):
        corner = 7 + 3 / 2**0.5  # of the disk's arc on the diagonal
        f = self.of([[9.9, 9.9], [corner + 0.02] * 2, [corner - 0.02] * 2, [9.99, 0]])
        assert f["proportion_rna_protrusion"] == 2 / 4
        expected = (4 - np.pi) * 9 / 400
        assert f["index_rna_protrusion"] == pytest.approx(2 / 4 / expected, rel=0.01)

    @pytest.mark.slow
    def test_protrusions_of_an_outline_made_of_pixels_are_its_own(self):
        boundary, _ = lobed(10)
        edges = 0.18 * np.arange(-80, 80)
        inside = shapely.contains_xy(boundary, *np.meshgrid(edges + 0.09, -edges - 0.09))
        (stairs,) = outlines(inside.astype(np.int32))[1]
        stairs = affinity.scale(affinity.translate(stairs, -80, 80), 0.18, 0.18, origin=(0, 0))
        assert stairs.symmetric_difference(boundary).area < 0.02 * boundary.area
        opened = stairs.buffer(-3, quad_segs=64).buffer(3, quad_segs=64)
        xy = scattered(stairs, 4000)
        clear = shapely.distance(shapely.points(xy), opened.boundary) > 0.03
        cell = cell_of(xy[clear], stairs, None, np.arange(clear.sum()))
        f = pd.DataFrame(bigfish_features(cell), columns=list(BIGFISH_FEATURES))
        lost = stairs.difference(opened).area
        assert f["protrusion_area"].iloc[0] / 100 == pytest.approx(lost, abs=0.01 * stairs.length)
        out = ~shapely.contains_xy(opened, *cell.xy.T)
        assert 0.02 < out.mean() < 0.5
        np.testing.assert_array_equal(f["proportion_rna_protrusion"], out)

    def test_chords_of_a_ragged_outline_may_cross_it(self):
        rng = np.random.Generator(np.random.Philox(0))
        for (outline,) in (outlines(rng.integers(0, 2, (40, 40)))[1] for _ in range(20)):
            ragged = affinity.scale(outline, 0.12, 0.12, origin=(0, 0))
            f = bigfish_features(cell_of(scattered(ragged, 20), ragged))[0]
            assert 0 <= f[AT["protrusion_area"]] <= 100 * ragged.area + 1e-9

    def test_spreads_are_over_those_of_the_cell(self):
        f = self.of([[3, 0], [5, 2]], nucleus=affinity.translate(MIDDLE, 1, 1))
        spread = 2 * 20**2 / 12
        assert f["index_polarization"] == pytest.approx((17 / spread) ** 0.5)
        assert f["index_dispersion"] == pytest.approx(2 / (spread + 17))
        peripheral = ((4 + 1) + (16 + 1)) / 2
        assert f["index_peripheral_distribution"] == pytest.approx(peripheral / (spread + 2))

    def test_the_unit_is_that_of_areas_alone(self):
        cell = lobed_cell()
        small, large = (bigfish_features(cell, unit_um=unit) for unit in (0.1, 0.2))
        areas = np.isin(BIGFISH_FEATURES, AREAS)
        np.testing.assert_allclose(small[:, areas], 4 * large[:, areas])
        np.testing.assert_allclose(small[:, ~areas], large[:, ~areas], rtol=1e-9)

    def test_a_turned_cell_has_the_same_features(self):
        cell = lobed_cell(3000)
        angle = np.deg2rad(33)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        boundary, nucleus = (
            affinity.rotate(outline, 33, origin=(0, 0)) for outline in (cell.boundary, cell.nucleus)
        )
        turned = cell_of(cell.xy @ turn, boundary, nucleus, cell.gene)
        np.testing.assert_allclose(
            bigfish_features(turned), bigfish_features(cell), rtol=0.01, atol=0.01
        )

    @pytest.mark.parametrize("compute", [bigfish_features, samacoits_features])
    def test_the_order_of_molecules_does_not_matter(self, compute):
        cell = lobed_cell()
        order = np.random.Generator(np.random.Philox(1)).permutation(len(cell.gene))
        mixed = replace(cell, xy=cell.xy[order], gene=cell.gene[order])
        np.testing.assert_allclose(compute(mixed), compute(cell), rtol=1e-12)


RING = SQUARE.difference(shapely.box(5, 5, 7, 7))
PARTS = shapely.union_all([shapely.box(-10, -10, -1, 10), shapely.box(1, -10, 10, 10)])
ODD = {
    "one molecule": ([[1, 1]], SQUARE, MIDDLE),
    "outside": ([[30, 0], [0, 10.001], [-400, 0]], SQUARE, MIDDLE),
    "on the outlines": ([[10, 0], [10, 10], [4, 0], [4, 4]], SQUARE, MIDDLE),
    "hole": ([[6, 6], [0, 0], [8, 8]], RING, MIDDLE),
    "parts": ([[-9, 0], [9, 9], [0, 0]], PARTS, shapely.box(-8, -2, -4, 2)),
    "nucleus of parts": ([[-9, 0], [4, 4]], SQUARE, PARTS.buffer(-1)),
    "nucleus fills the cell": ([[0, 0], [9, 9]], SQUARE, SQUARE),
    "nucleus sticks out": ([[0, 0], [11, 0]], SQUARE, shapely.box(5, 5, 15, 15)),
    "nucleus elsewhere": ([[0, 0]], SQUARE, shapely.box(20, 20, 30, 30)),
    "smaller than a pixel": ([[0.03, 0]], shapely.box(0.01, 0, 0.04, 0.03), None),
    "narrow": ([[0, 0], [50, 0.1]], shapely.box(-100, 0, 100, 0.2), None),
    "a sliver": ([[0, 0]], shapely.box(-10, 0, 10, 1e-7), None),
    "large": ([[0, 0], [90, 0]], shapely.Point(0, 0).buffer(100), MIDDLE),
}


class TestOddCells:
    @pytest.mark.parametrize("pixels", [False, True])
    @pytest.mark.parametrize("what", ODD)
    def test_nothing_warns_and_nothing_is_infinite(self, what, pixels):
        cell = cell_of(*ODD[what])
        values = bigfish_features(cell, unit_um=0.5 if what == "large" else 0.1, pixels=pixels)
        assert not np.isinf(values).any()
        proportions = [k for name, k in AT.items() if name.startswith("proportion_rna")]
        known = values[:, proportions]
        assert ((known >= 0) & (known <= 1))[~np.isnan(known)].all()

    @pytest.mark.parametrize("what", [what for what in ODD if what != "large"])
    def test_nor_in_the_set_of_2018(self, what):
        values = samacoits_features(cell_of(*ODD[what]))
        assert not np.isinf(values).any()

    @pytest.mark.parametrize("pixels", [False, True])
    def test_without_a_nucleus_21_are_missing_and_the_others_as_with_one(self, pixels):
        cell = lobed_cell()
        without = bigfish_features(replace(cell, nucleus=None), pixels=pixels)
        missing = {name for name, k in AT.items() if np.isnan(without[:, k]).all()}
        assert missing == OF_NUCLEUS
        assert len(missing) == 21
        assert not np.isnan(np.delete(without, [AT[name] for name in missing], axis=1)).any()
        plain = [AT[name] for name in ("index_mean_distance_cell", "index_dispersion", "cell_area")]
        np.testing.assert_array_equal(
            without[:, plain], bigfish_features(cell, pixels=pixels)[:, plain]
        )

    def test_molecules_outside_count_as_on_the_outline(self):
        outside = bigfish_features(cell_of([[10.4, 2]], SQUARE, MIDDLE))[0]
        assert outside[AT["index_mean_distance_cell"]] == 0
        assert outside[AT["proportion_rna_cell_radius_0_500"]] == 1
        assert outside[AT["proportion_rna_protrusion"]] == 0

    def test_a_cell_that_no_disk_fits_into_is_all_protrusion_but_its_nucleus(self):
        narrow = shapely.box(-10, -2, 10, 2)
        cell = cell_of([[0, 0], [6, 0]], narrow, shapely.box(-1, -1, 1, 1))
        f = bigfish_features(cell)[0]
        assert f[AT["proportion_rna_protrusion"]] == 0.5
        assert f[AT["protrusion_area"]] == pytest.approx(7600)


class TestSet2018:
    @pytest.fixture
    def upstream(self, shared):
        reference = pd.read_parquet(shared / "reference" / "samacoits21_features.parquet")
        reference = reference.set_index(["cell", "gene"])
        cells = reference_cells(shared)
        wanted = [cells[name] for name in reference.index.unique("cell")]
        return reference, wanted

    @pytest.mark.slow
    def test_all_21_are_the_old_codes_own(self, upstream):
        reference, cells = upstream
        ours = table(
            cells, lambda cell: samacoits_features(cell, cut_frame=True), SAMACOITS_FEATURES
        ).loc[reference.index]
        assert len(ours) == 108
        for name in SAMACOITS_FEATURES:  # upstream sums in float32
            np.testing.assert_allclose(ours[name], reference[name], rtol=2e-5, atol=2e-6)

    def test_ripleys_function_by_brute_force(self):
        boundary, nucleus = lobed(4.0)
        xy = scattered(boundary, 60)
        f = samacoits_features(cell_of(xy, boundary, nucleus))[0]
        low = np.array(boundary.bounds[:2])
        pixel = np.unique(np.floor((xy - low) / 0.1 + 1e-6), axis=0)
        grid = np.stack(np.meshgrid(*2 * [np.arange(-60, 160)]), -1).reshape(-1, 2)
        inside = grid[shapely.contains_xy(boundary, *(low + (grid + 0.5) * 0.1).T)]
        pixel = pixel[[(inside == p).all(axis=1).any() for p in pixel]]
        n, totals = len(pixel), np.zeros(40)
        for p in pixel:
            covered, disk, others = (np.hypot(*(at - p).T) for at in (inside, grid, pixel))
            for r in range(40):
                share = (covered <= r).sum() / (disk <= r).sum()
                totals[r] += ((others <= r).sum() - 1) * np.floor(255 * share) / 255
        values = (totals * len(inside) / n**2 / np.pi) ** 0.5 - np.arange(40)
        smooth = [np.mean(values[k : k + 4]) for k in range(37)]
        assert f[SAMACOITS_FEATURES.index("ripley_max")] == pytest.approx(max(smooth), abs=1e-6)
        assert f[SAMACOITS_FEATURES.index("ripley_radius_max")] == np.argmax(smooth)

    def test_without_a_nucleus_three_are_missing(self):
        values = samacoits_features(replace(lobed_cell(), nucleus=None))
        missing = [SAMACOITS_FEATURES[k] for k in np.flatnonzero(np.isnan(values).all(axis=0))]
        assert missing == ["average_dist_nuc", "average_dist_nuc_centroid", "ratio_in_out_nuc"]
        assert np.isnan(values).sum() == 3 * len(values)

    def test_a_gene_without_a_molecule_in_the_cell_has_none(self):
        values = samacoits_features(cell_of([[0, 0], [30, 0]], SQUARE, MIDDLE, [0, 1]))
        assert not np.isnan(values[0]).any()
        assert np.isnan(values[1]).all()


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Dataset:
    """Small, with the four patterns of NIH/3T3 and U-2 OS."""
    return simulated(tmp_path_factory.mktemp("data") / "four", n_fovs=20)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Dataset:
    """Small, without nuclei."""
    return simulated(tmp_path_factory.mktemp("data") / "bare", nuclei=False)


def simulated(folder, n_fovs: int = 12, nuclei: bool = True) -> Dataset:
    release = simulate(7, n_fovs=n_fovs, cells_per_fov=3, n_genes=12, mean_molecules=200)
    if not nuclei:
        release = replace(release, cells=release.cells.assign(nucleus_boundary=None))
    return dataset_of(folder, release)


def brief(kind: type[Method], dataset: Dataset, seed: int) -> Method:
    """Fit with few trees, and few steps of t-SNE."""
    method = kind()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_forest, "_TREES", 30)
        patch.setattr(locfish, "_STEPS", 250)
        method.fit(dataset.iter_cells("train"), seed)
    return method


@pytest.fixture(scope="module")
def fitted(four, bare) -> Callable[[type[Method], str], tuple[Method, pd.DataFrame]]:
    """Each method once on each dataset, and its scores there; read only."""
    datasets = {"four": four, "bare": bare}

    @cache
    def fit(kind: type[Method], which: str) -> tuple[Method, pd.DataFrame]:
        method = brief(kind, datasets[which], 3)
        return method, predict_cells(method, datasets[which].iter_cells("test"))

    return fit


class TestMethods:
    @pytest.mark.parametrize("kind", METHODS)
    @pytest.mark.parametrize("which", ["four", "bare"])
    @pytest.mark.slow
    def test_every_pair_has_scores_and_the_model_keeps_them(
        self, request, fitted, tmp_path, kind, which
    ):
        dataset = request.getfixturevalue(which)
        (method, scores), loaded = fitted(kind, which), kind()
        values = scores[list(dataset.patterns)].to_numpy()
        assert values.dtype == np.float32
        assert ((values >= 0) & (values <= 1)).all()
        assert len(scores) == sum(len(cell.genes) for cell in dataset.iter_cells("test"))
        method.save(tmp_path)
        loaded.load(tmp_path)
        pd.testing.assert_frame_equal(predict_cells(loaded, dataset.iter_cells("test")), scores)

    @pytest.mark.parametrize("kind", [Locfish, LocfishUnsupervised])
    @pytest.mark.slow
    def test_the_seed_decides_the_bytes(self, bare, fitted, tmp_path, kind):
        written = []
        methods = fitted(kind, "bare")[0], brief(kind, bare, 3), brief(kind, bare, 2)
        for method, name in zip(methods, "abc", strict=True):
            (tmp_path / name).mkdir()
            method.save(tmp_path / name)
            written.append([path.read_bytes() for path in (tmp_path / name).iterdir()])
        assert written[0] == written[1] != written[2]

    @pytest.mark.parametrize(
        ("kind", "least"), [(Locfish, 0.85), (Locfish2018, 0.85), (LocfishUnsupervised, 0.75)]
    )
    @pytest.mark.slow
    def test_they_learn(self, four, fitted, kind, least):
        _, scores = fitted(kind, "four")
        wanted = four.labels("test")[["cell_id", "gene"]].astype(str)
        counted = wanted.merge(scores, on=["cell_id", "gene"])
        assert Evaluator(four, split="test").eval(counted)["auc_macro"] > least

    @pytest.mark.parametrize("kind", METHODS)
    def test_they_differ_in_name_and_need_labels(self, kind):
        assert kind.about.learns
        assert "labels" not in kind.about.inputs

    def test_the_sample_that_t_sne_gets_is_bounded(self, bare, monkeypatch):
        monkeypatch.setattr(locfish, "SAMPLE", 40)
        method = brief(LocfishUnsupervised, bare, 0)
        assert len(method._clusters.point) == 40

    @pytest.mark.parametrize("which", ["bigfish", "2018"])
    def test_features_are_one_row_for_each_pair(self, four, which):
        cells = list(four.iter_cells("test"))
        frames = list(features(four.iter_cells("test"), which=which))
        columns = BIGFISH_FEATURES if which == "bigfish" else SAMACOITS_FEATURES
        for cell, frame in zip(cells, frames, strict=True):
            assert list(frame) == ["cell_id", "gene", "n_molecules", *columns]
            assert set(frame["cell_id"]) == {cell.cell_id}
            assert frame["gene"].tolist() == [four.genes[code] for code in cell.genes]
            assert frame["n_molecules"].tolist() == cell.counts.tolist()
        first = samacoits_features(cells[0]) if which == "2018" else bigfish_features(cells[0])
        np.testing.assert_array_equal(frames[0][list(columns)], first)


class TestClusters:
    @pytest.fixture
    def few_steps(self, monkeypatch):
        monkeypatch.setattr(locfish, "_STEPS", 250)

    def planted(self, n: int, seed: int = 0):
        """Pairs of three kinds, far apart in two features of five, with a pattern each."""
        rng = np.random.Generator(np.random.Philox(seed))
        kind = rng.integers(0, 3, n)
        values = rng.normal(size=(n, 5))
        values[:, :2] += 12 * np.array([[0, 0], [1, 0], [0, 1]])[kind]
        return values, kind[:, None] == np.arange(3)

    def test_new_pairs_share_in_the_clusters_that_they_lie_in(self):
        values, labels = self.planted(240)
        clusters = LabelClusters.fit(values, labels, 0)
        assert len(np.unique(clusters.cluster)) == 8
        new, expected = self.planted(60, seed=1)
        scores = clusters.predict(new)
        assert (scores.argmax(axis=1) == expected.argmax(axis=1)).all()
        assert scores[expected].min() > 0.8

    def test_a_cluster_has_the_share_of_its_pairs_drawn_to_that_of_all(self, few_steps):
        values, labels = self.planted(120)
        clusters = LabelClusters.fit(values, labels, 0)
        for k in range(8):
            of = labels[clusters.cluster == k]
            expected = (of.sum(axis=0) + labels.mean(axis=0)) / (len(of) + 1)
            np.testing.assert_allclose(clusters.share[k], expected)

    def test_missing_features_count_as_the_mean(self, few_steps):
        values, labels = self.planted(60)
        values[:, 4] = np.nan
        values[::7, 3] = np.nan
        clusters = LabelClusters.fit(values, labels, 0)
        new = values[:5].copy()
        new[0] = np.nan
        filled = np.where(np.isnan(new), clusters.mean, new)
        np.testing.assert_array_equal(clusters.predict(new), clusters.predict(filled))

    @pytest.mark.parametrize("n", [1, 3, 8, 9, 12])
    def test_a_handful_of_pairs_will_do(self, few_steps, n):
        values, labels = self.planted(n)
        scores = LabelClusters.fit(values, labels, 0).predict(values)
        assert scores.shape == (n, 3)
        assert ((scores >= 0) & (scores <= 1)).all()

    def test_neighbours_are_the_nearest(self):
        rng = np.random.Generator(np.random.Philox(2))
        points, queries = (rng.normal(size=(n, 4)).astype(np.float32) for n in (50, 7))
        near = locfish._nearest(queries, points, 10)
        for query, found in zip(queries, near, strict=True):
            away = np.linalg.norm(points - query, axis=1)
            np.testing.assert_array_equal(found, np.argsort(away)[:10])
            assert all(a <= b for a, b in pairwise(away[found]))

    @pytest.mark.parametrize("content", [b"", b"PK not an archive"])
    def test_a_damaged_file_is_named(self, tmp_path, content):
        path = tmp_path / "clusters.npz"
        path.write_bytes(content)
        with pytest.raises(MethodError, match=r"clusters\.npz"):
            LabelClusters.load(path)
