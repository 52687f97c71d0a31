"""ELLA: radii, fits and tests against brute force and upstream, clusters, posterior scores."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import shapely
from samples import dataset_of
from scipy import stats
from scipy.integrate import trapezoid
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score

from gpattern_bench.curate.readers.bento import read_bento
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.data.cells import Cell
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MethodError
from gpattern_bench.methods.ella.kernels import (
    GRID,
    KERNELS,
    MODES,
    cauchy_combined,
    curves,
    false_discovery_rates,
    fit_kernels,
    intensities,
    kernel_densities,
    kernel_p_values,
    kernel_ratios,
)
from gpattern_bench.methods.ella.method import Ella, EllaRobust, features
from gpattern_bench.methods.ella.radii import collect_radii, relative_radius
from gpattern_bench.methods.ella.templates import (
    CLASSES,
    cluster_curves,
    cluster_shares,
    curve_features,
    evidence,
    kernel_groups,
)
from gpattern_bench.methods.predict import predict_cells

A, B = KERNELS.T
SQUARE = shapely.box(-5, -5, 5, 5)
BOTH = [Ella, EllaRobust]


def cell_of(xy, gene=None, boundary=SQUARE, nucleus=None, name="c") -> Cell:
    xy = np.asarray(xy, float).reshape(-1, 2)
    gene = np.zeros(len(xy)) if gene is None else gene
    return Cell(name, "f", xy, np.asarray(gene, np.int32), boundary, nucleus)


class Some:
    """Cells in memory."""

    def __init__(self, cells, genes, patterns=PATTERNS):
        self.cells, self.genes, self.patterns = cells, tuple(genes), tuple(patterns)

    def __iter__(self):
        return iter(self.cells)

    def __len__(self):
        return len(self.cells)

    def without_labels(self):
        return Some(
            [replace(c, labels=None, labelled=None) for c in self], self.genes, self.patterns
        )


def build(folder, seed=7, mean_molecules=80, membrane=False) -> Dataset:
    release = simulate(
        seed, n_fovs=20, cells_per_fov=4, n_genes=12, mean_molecules=12 * mean_molecules
    )
    patterns = PATTERNS
    if membrane:
        labels = release.labels.rename(columns={"cell_edge": "membrane"})
        release = replace(release, labels=labels.drop(columns="nuclear_edge"))
        patterns = ("nuclear", "membrane", "cytoplasmic")
    return dataset_of(folder, release, patterns)


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Dataset:
    return build(tmp_path_factory.mktemp("data") / "four")


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Dataset:
    return build(tmp_path_factory.mktemp("data") / "three", membrane=True)


def fitted(cls, cells, seed=0, **options):
    method = cls(**options)
    method.fit(cells, seed)
    return method


def radii_of(rng, genes, most):
    """Radii of genes of all kinds: uniform, clustered, at both ends, single molecules."""
    counts = rng.integers(1, most, genes)
    counts[0] = 1
    parts = []
    for g, n in enumerate(counts):
        a, b = KERNELS[rng.integers(22)] + [1, 0]
        r = np.where(rng.random(n) < rng.random(), rng.beta(a, b, n), np.sqrt(rng.random(n)))
        parts.append([r, np.zeros(n), np.ones(n) * 1.2, r**3][(g % 9) * (g % 9 < 4)])
    return np.concatenate(parts), np.r_[0, np.cumsum(counts)]


class TestRelativeRadius:
    def test_in_a_square_without_nucleus(self):
        cell = cell_of([[0, 0], [2.5, 0], [2, 4], [-5, -5], [0, -5], [6, 3]])
        np.testing.assert_allclose(relative_radius(cell), [0, 0.5, 0.8, 1, 1, 1], atol=1e-15)

    def test_the_origin_is_the_centroid_of_the_nucleus(self):
        cell = cell_of([[2, 0], [3.5, 0], [-1.5, 0]], nucleus=shapely.box(1, -1, 3, 1))
        np.testing.assert_allclose(relative_radius(cell), [0, 0.5, 0.5], atol=1e-15)

    def test_the_outermost_crossing_counts(self):
        outline = shapely.Polygon([(-5, -5), (5, -5), (5, 5), (3, 5), (3, -3), (-5, -3)])  # an L
        nucleus = shapely.box(-4.5, -4.5, -3.5, -3.5)
        cell = cell_of([[-3, -4], [4, 1], [4.9, 4.9], [0, 0]], boundary=outline, nucleus=nucleus)
        origin = np.array([-4, -4])
        for point, got in zip(cell.xy, relative_radius(cell), strict=True):
            far = origin + (point - origin) * 1e3
            crossings = outline.exterior.intersection(shapely.LineString([origin, far]))
            radius = np.hypot(*(shapely.get_coordinates(crossings) - origin).T).max()
            assert got == pytest.approx(min(np.hypot(*(point - origin)) / radius, 1), rel=1e-12)

    def test_the_grid_looks_up_the_next_whole_degree(self):
        half = np.deg2rad(30.5)
        at = np.deg2rad(31)  # cos 31 > sin 31: the ray meets the right side
        cell = cell_of([np.cos(half), np.sin(half)])
        assert relative_radius(cell, "grid")[0] == pytest.approx(np.cos(at) / 5, rel=1e-9)
        assert relative_radius(cell)[0] == pytest.approx(np.cos(half) / 5, rel=1e-12)

    def test_the_grid_takes_its_last_angle_beyond_359_degrees(self):
        angle = np.deg2rad(359.5)
        cell = cell_of([np.cos(angle), np.sin(angle)])
        assert relative_radius(cell, "grid")[0] == pytest.approx(
            np.cos(np.deg2rad(359)) / 5, rel=1e-9
        )


class TestGather:
    def test_sorts_by_gene_and_keeps_the_order_of_the_cells(self):
        one = cell_of([[1, 0], [2, 0], [3, 0]], [0, 2, 2])
        two = cell_of([[4, 0], [0.5, 0]], [1, 2])
        found = collect_radii(Some([one, two], "abcd"))
        np.testing.assert_allclose(found.r, [0.2, 0.8, 0.4, 0.6, 0.1])
        assert found.starts.tolist() == [0, 1, 2, 5, 5]
        assert found.cells.tolist() == [1, 1, 2, 0]
        assert np.isnan(found.nuclear)

    def test_the_nuclear_radius_is_the_mean_along_the_outlines(self):
        circle = shapely.Point(0, 0).buffer(8, quad_segs=64)
        nuclei = [None, *(shapely.Point(0, 0).buffer(r, quad_segs=64) for r in (2, 4))]
        cells = [cell_of([1, 0], boundary=circle, nucleus=nucleus) for nucleus in nuclei]
        assert collect_radii(Some(cells, "a")).nuclear == pytest.approx(3 / 8, rel=1e-3)

    def test_vertices_that_lie_close_do_not_weigh_more(self):
        ticks = [(x, 1) for x in np.linspace(1, -1, 41)]  # one side of four in 40 edges
        fine = shapely.Polygon([(-1, -1), (1, -1), *ticks])
        assert fine.centroid.coords[0] == pytest.approx([0, 0], abs=1e-12)
        top = [max(abs(a[0] + b[0]) / 2 / 5, 1 / 10) for a, b in itertools.pairwise(ticks)]
        expected = (3 * 2 / 5 + sum(top) * 0.05) / 8
        cell = cell_of([1, 0], boundary=shapely.box(-5, -5, 5, 10), nucleus=fine)
        assert collect_radii(Some([cell], "a")).nuclear == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
    def test_the_correlation_is_what_was_planted(self, share):
        rng = np.random.default_rng(0)
        cells = []
        for _ in range(400):  # per gene, some molecules of a pair lie in one place
            own = np.repeat(rng.random(3), 20)
            squared = np.where(rng.random(60) < np.sqrt(share), own, rng.random(60))
            xy = 5 * np.stack([np.sqrt(squared), np.zeros(60)], axis=1)
            cells.append(cell_of(xy, np.repeat([0, 1, 2], 20)))
        assert collect_radii(Some(cells, "abc")).correlation == pytest.approx(share, abs=0.03)

    def test_the_correlation_is_that_of_the_analysis_of_variance_within_genes(self):
        """Two genes, pairs of unequal sizes, sums of squares by hand."""
        rng = np.random.default_rng(1)
        pairs = {0: [], 1: []}
        cells = []
        for n in (2, 5, 3, 9, 1, 4):
            squared, gene = (rng.random() + rng.random(2 * n)) / 2, np.repeat([0, 1], n)
            for code in pairs:
                pairs[code].append(squared[gene == code])
            cells.append(cell_of(5 * np.stack([np.sqrt(squared), 0 * squared], axis=1), gene))
        between = within = usual = 0.0
        for values in pairs.values():
            mean = np.concatenate(values).mean()
            sizes = np.array([len(v) for v in values])
            between += sum(len(v) * (v.mean() - mean) ** 2 for v in values) / 10
            within += sum(((v - v.mean()) ** 2).sum() for v in values) / (48 - 12)
            usual += (sizes.sum() - (sizes**2).sum() / sizes.sum()) / 10
        expected = (between - within) / (between + (usual - 1) * within)
        assert 0.1 < expected < 0.9
        assert collect_radii(Some(cells, "ab")).correlation == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("cells", [[], [cell_of([1, 0])], [cell_of([[1, 0], [2, 0]])]])
    def test_without_enough_to_tell_the_correlation_is_a_constant(self, cells):
        assert collect_radii(Some(cells, "a")).correlation == 0.02


class TestKernels:
    def test_are_beta_densities(self):
        r = np.linspace(0.01, 0.99, 40)
        expected = stats.beta.pdf(r[:, None], A, B)
        np.testing.assert_allclose(kernel_densities(r), expected, rtol=1e-12)
        np.testing.assert_allclose(kernel_ratios(r), expected * (A + B) / (2 * A), rtol=1e-12)

    def test_peak_at_their_modes(self):
        assert len(KERNELS) == 22
        np.testing.assert_allclose((A - 1) / (A + B - 2), MODES, atol=0.006)

    def test_the_first_eleven_are_the_narrow_ones(self):
        variance = stats.beta.var(A, B)
        assert (variance[:11] < variance[11:]).all()


class TestFit:
    @pytest.mark.parametrize("seed", range(4))
    def test_is_the_maximum_of_the_mixture_likelihood(self, seed):
        r, starts = radii_of(np.random.default_rng(seed), 12, 150)
        fit = fit_kernels(r, starts)
        assert fit.n.tolist() == np.diff(starts).tolist()
        for g in range(12):
            h = kernel_ratios(r[starts[g] : starts[g + 1]])
            for k in range(22):
                best = self.largest_gain(h[:, k])
                assert fit.t[g, k] == pytest.approx(best, abs=1e-7, rel=1e-9)
                reached = self.gain(fit.w[g, k], h[:, k])
                assert reached == pytest.approx(fit.t[g, k], abs=1e-8, rel=1e-11)

    @staticmethod
    def gain(w, h):
        with np.errstate(divide="ignore"):
            return 2 * np.log1p(w * (h - 1)).sum()

    def largest_gain(self, h):
        inner = minimize_scalar(lambda w: -self.gain(w, h), bounds=(0, 1), options={"xatol": 1e-11})
        return max(self.gain(0.0, h), self.gain(1.0, h), -inner.fun)

    def test_is_that_of_the_poisson_process_with_cells_of_any_exposure(self):
        """T, A and B of the full likelihood, with counts and exposures cell by cell."""
        rng = np.random.default_rng(5)
        exposure = 2 * np.pi * rng.integers(1, 30, 40)
        counts = rng.integers(1, 60, 40)
        r = np.where(rng.random(counts.sum()) < 0.6, rng.beta(4, 5, counts.sum()), 0.7)
        fit = fit_kernels(r, np.array([0, len(r)]))
        a, b = intensities(fit, np.array([exposure.sum()]))
        of_molecule = np.repeat(exposure, counts)

        def loglik(k, a, b):
            per_area = a * kernel_densities(r)[:, k] + b
            expected = exposure.sum() * (a * A[k] / (A[k] + B[k]) + b / 2)
            return np.log(of_molecule * r * per_area).sum() - expected

        null = loglik(0, 0, 2 * len(r) / exposure.sum())
        for k in range(22):
            best = loglik(k, a[0, k], b[0, k])
            assert 2 * (best - null) == pytest.approx(fit.t[0, k], abs=1e-8)
            for da, db in [(1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3), (1e-3, -1e-3)]:
                near = (a[0, k] * (1 + da) + max(da, 0) * 1e-3, b[0, k] * (1 + db))
                assert loglik(k, *near) <= best + 1e-9

    def test_uniform_radii_far_from_a_kernel_have_w_and_t_of_exactly_0(self):
        fit = fit_kernels(np.full(10, 0.99), np.array([0, 10]))
        inner = MODES <= 0.5
        assert not fit.t[0, inner].any()
        assert not fit.w[0, inner].any()

    @pytest.mark.parametrize("r", [0.0, 1e-300, 0.5, 1.0, 1.3])
    def test_any_radius_has_a_finite_fit(self, r):
        fit = fit_kernels(np.full(3, r), np.array([0, 1, 3]))
        assert np.isfinite(fit.t).all()
        assert (fit.t >= 0).all()
        assert ((fit.w >= 0) & (fit.w <= 1)).all()
        lam = curves(fit.t, *intensities(fit, np.ones(2)))
        assert np.isfinite(lam).all()

    def test_no_genes_have_no_fit(self):
        fit = fit_kernels(np.empty(0), np.zeros(1, int))
        assert fit.t.shape == (0, 22)


class TestTests:
    def test_p_values_are_half_of_chi_squared(self):
        t = np.array([1e-9, 0.3, 2.7, 40.0])
        np.testing.assert_allclose(kernel_p_values(t), stats.chi2.sf(t, 1) / 2, rtol=1e-12)

    def test_no_gain_gets_the_mid_p(self):
        assert kernel_p_values(np.zeros(1)).tolist() == [0.75]

    def test_the_cauchy_combination(self):
        p = np.array([[0.01, 0.2, 0.7], [0.5, 0.5, 0.5]])
        expected = stats.cauchy.sf(stats.cauchy.isf(p).mean(axis=1))
        np.testing.assert_allclose(cauchy_combined(p), expected, rtol=1e-12)

    def test_is_no_smaller_than_the_floor(self):
        assert cauchy_combined(np.zeros((1, 22)))[0] == pytest.approx(1e-7, rel=1e-6)

    @pytest.mark.parametrize("n", [20, 200])
    def test_5_per_cent_of_uniform_genes_pass_at_5_per_cent(self, n):
        r = np.sqrt(np.random.default_rng(n).random(3000 * n))
        fit = fit_kernels(r, np.arange(0, 3000 * n + 1, n))
        p = cauchy_combined(kernel_p_values(fit.t))
        assert 0.04 <= (p <= 0.05).mean() <= 0.07  # measured: 0.057, 0.055

    def test_a_flat_curve_is_never_significant(self):
        lam = np.stack([np.ones(100), np.arange(100.0)])
        rates = false_discovery_rates(np.array([1e-7, 1e-7]), lam)
        assert rates[0] == 1
        assert rates[1] == pytest.approx(1.5e-7)  # Benjamini-Yekutieli: p (1 + 1/2)


class TestCurves:
    def test_have_the_ring_integral_of_the_counts(self):
        fit = fit_kernels(*radii_of(np.random.default_rng(0), 5, 200))
        weight = np.exp(fit.t / 2 - fit.t.max(axis=1, keepdims=True) / 2)
        weight /= weight.sum(axis=1, keepdims=True)
        a, b = intensities(fit, fit.n.astype(float))
        ring = (weight * (a * A / (A + B) + b / 2)).sum(axis=1)
        np.testing.assert_allclose(ring, 1, rtol=1e-12)
        by_hand = np.einsum("gk,kx->gx", weight * a, stats.beta.pdf(GRID, A[:, None], B[:, None]))
        by_hand += (weight * b).sum(axis=1)[:, None]
        lam = curves(fit.t, a, b)
        np.testing.assert_allclose(lam, by_hand, rtol=1e-9)


class TestClusters:
    @pytest.fixture(scope="class")
    @classmethod
    def lam(cls):
        """Curves of 50 genes that peak in five places, shuffled, and the places."""
        rng = np.random.default_rng(0)
        place = rng.permutation(np.repeat(np.arange(5), 10))
        centre = np.array([0.05, 0.25, 0.5, 0.75, 0.95])[place] + rng.normal(0, 0.01, 50)
        return 1 + np.exp(-(((GRID - centre[:, None]) / 0.12) ** 2)), place

    def test_are_numbered_from_the_centre_outwards(self, lam):
        for seed in range(3):
            np.testing.assert_array_equal(cluster_curves(lam[0], seed), lam[1])

    def test_the_same_seed_gives_the_same_clusters(self):
        lam = np.random.default_rng(1).random((60, 100)).cumsum(axis=1)
        first = cluster_curves(lam, 3)
        np.testing.assert_array_equal(first, cluster_curves(lam, 3))

    def test_need_five_curves_that_differ(self, lam):
        assert cluster_curves(lam[0][:4], 0) is None
        assert cluster_curves(np.tile(lam[0][:4], (5, 1)), 0) is None
        assert cluster_curves(lam[0][:0], 0) is None

    def test_features_are_steps_and_heights_in_0_1(self, lam):
        x = curve_features(lam[0][:1])
        heights = lam[0][0, [*range(0, 100, 5), 99]]
        heights = (heights - heights.min()) / np.ptp(heights)
        steps = np.diff(heights)
        np.testing.assert_allclose(x[0, 20:], heights)
        np.testing.assert_allclose(x[0, :20], (steps - steps.min()) / np.ptp(steps))

    def test_shares_are_largest_for_the_own_cluster(self, lam):
        shares = cluster_shares(curve_features(lam[0]), lam[1])
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        np.testing.assert_array_equal(shares.argmax(axis=1), lam[1])

    @pytest.mark.parametrize("edge", [True, False])
    def test_groups_of_kernels_are_disjoint_and_never_empty(self, edge):
        for radius in [np.nan, *np.linspace(0, 1, 101)]:
            groups = kernel_groups(radius, edge=edge)
            assert list(groups) == [n for n in CLASSES[:4] if edge or n != "nuclear_edge"]
            together = np.concatenate(list(groups.values()))
            assert len(set(together)) == len(together)
            assert all(len(kernels) for kernels in groups.values())

    def test_evidence_is_interpolated_and_summed_over_pairs(self):
        rng = np.random.default_rng(0)
        r, values = np.r_[rng.random(50), 0, 1, 1.4], rng.normal(size=(3, 100))
        found = evidence(r, np.array([0, 20, 20, 53]), values)
        for k in range(3):
            each = np.interp(r, GRID, values[k])
            np.testing.assert_allclose(found[:, k], [each[:20].sum(), 0, each[20:].sum()])


class TestMethods:
    @pytest.mark.parametrize("cls", BOTH)
    @pytest.mark.parametrize("scores", ["posterior", "one-vs-null"])
    @pytest.mark.parametrize("registration", ["exact", "grid"])
    @pytest.mark.parametrize("which", ["four", "three"])
    def test_scores_are_float32_in_0_1_for_every_pair(
        self, request, cls, scores, registration, which
    ):
        dataset = request.getfixturevalue(which)
        options = {"scores": scores, "registration": registration}
        method = fitted(cls, dataset.iter_cells("train"), **options)
        cells = dataset.iter_cells("test")
        found = list(method.predict(cells.without_labels()))
        assert len(found) == len(cells)
        for cell, values in found:
            assert values.dtype == np.float32
            assert values.shape == (len(cell.genes), len(dataset.patterns))
            assert ((values >= 0) & (values <= 1)).all()
            if scores == "posterior":
                assert (values.sum(axis=1) <= 1 + 1e-5).all()

    @pytest.mark.parametrize("cls", BOTH)
    def test_labels_play_no_part(self, cls, four):
        rng = np.random.default_rng(0)
        cells = list(four.iter_cells("train"))
        other = [replace(c, labels=rng.random(c.labels.shape) < 0.5) for c in cells]
        states = [fitted(cls, Some(c, four.genes)).__dict__ for c in (cells, other)]
        for name in states[0]:
            np.testing.assert_equal(states[0][name], states[1][name])

    @pytest.mark.slow
    @pytest.mark.parametrize("cls", BOTH)
    def test_a_saved_model_scores_the_same_and_is_the_same_bytes(self, cls, four, tmp_path):
        method = fitted(cls, four.iter_cells("train"), 5, registration="grid")
        again = cls()
        for name in "ab":
            (tmp_path / name).mkdir()
        method.save(tmp_path / "a")
        fitted(cls, four.iter_cells("train"), 5, registration="grid").save(tmp_path / "b")
        [file] = (tmp_path / "a").iterdir()
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        again.load(tmp_path / "a")
        pd.testing.assert_frame_equal(
            predict_cells(again, four.iter_cells("test")),
            predict_cells(method, four.iter_cells("test")),
        )

    @pytest.mark.parametrize("cls", BOTH)
    def test_no_training_cells_are_an_error(self, cls):
        with pytest.raises(MethodError, match="no training cells"):
            cls().fit(Some([], "a"), 0)

    @pytest.mark.parametrize("cls", BOTH)
    def test_priors_are_probabilities(self, cls, four):
        prior = np.array(list(fitted(cls, four.iter_cells("train")).prior.values()))
        np.testing.assert_allclose(prior.sum(axis=1), 1)
        if cls is Ella:
            assert set(prior[:, 0]) <= {0.0, 0.5}  # significant genes and the others
            assert 0.0 in prior[:, 0]

    def test_templates_of_clusters_are_densities_over_that_of_a_uniform_disk(self, four):
        ratio = np.exp(fitted(Ella, four.iter_cells("train")).log_ratio)
        np.testing.assert_allclose(trapezoid(2 * GRID * ratio, GRID), 1, atol=0.01)
        assert ratio.min() >= 0.01

    def test_templates_of_groups_are_densities_over_that_of_all_rna(self, four):
        cells = four.iter_cells("train")
        method = fitted(EllaRobust, cells)
        ratio = np.exp(method.log_ratio)
        assert ratio.min() >= 0.5
        r = collect_radii(cells).r
        np.testing.assert_allclose([np.interp(r, GRID, c).mean() for c in ratio], 1, rtol=1e-9)

    def test_without_the_pattern_there_is_no_template_of_the_nuclear_edge(self, four, three):
        assert fitted(EllaRobust, four.iter_cells("train")).classes == CLASSES[:4]
        classes = fitted(EllaRobust, three.iter_cells("train")).classes
        assert classes == ("nuclear", "cytoplasmic", "cell_edge")

    @pytest.mark.parametrize("cls", BOTH)
    def test_scores_are_the_posterior_by_its_formula(self, cls, four):
        method = fitted(cls, four.iter_cells("train"))
        single = fitted(cls, four.iter_cells("train"), scores="one-vs-null")
        cell = next(iter(four.iter_cells("test")))
        panel = Some([cell], four.genes)
        [(_, posterior)], [(_, odds)] = method.predict(panel), single.predict(panel)
        r = np.minimum(cell.geometry.relative_radius, 1)
        for row, code in enumerate(cell.genes):
            mine = r[cell.gene == code]
            repeats = 1 + (len(mine) - 1) * method.correlation
            log = [0] + [np.interp(mine, GRID, c).sum() / repeats for c in method.log_ratio]
            prior = np.array(method.prior[four.genes[code]])
            joint = prior * np.exp(log - np.max(log))
            alone = prior / (1 - prior) * np.exp(log)
            for column, pattern in enumerate(four.patterns):
                at = 1 + method.classes.index(pattern)
                assert posterior[row, column] == pytest.approx(joint[at] / joint.sum(), abs=1e-6)
                assert odds[row, column] == pytest.approx(alone[at] / (1 + alone[at]), abs=1e-6)

    @pytest.mark.parametrize("cls", BOTH)
    def test_genes_are_looked_up_by_name_and_new_ones_get_the_mean_prior(self, cls, four):
        method = fitted(cls, four.iter_cells("train"))
        known = four.genes[3]
        priors = np.array(list(method.prior.values()))
        np.testing.assert_allclose(method.unseen, priors.mean(axis=0))
        xy = [[1, 1], [1, 1]]
        panel = Some([cell_of(xy, [0, 1])], ["a new one", known])
        [(_, scores)] = method.predict(panel)
        method.prior["a new one"] = method.prior[known]
        [(_, same)] = method.predict(panel)
        np.testing.assert_array_equal(same[0], same[1])
        np.testing.assert_array_equal(scores[1], same[1])
        assert np.isfinite(scores).all()

    @pytest.mark.parametrize("cls", BOTH)
    def test_no_nuclei_molecules_outside_and_single_molecules(self, cls):
        rng = np.random.default_rng(0)
        cells = [
            cell_of(rng.uniform(-6, 6, (9, 2)), [0, 0, 0, 0, 1, 1, 1, 2, 3], name=f"c{k}")
            for k in range(6)
        ]
        method = fitted(cls, Some([*cells, cell_of([9, 9], [4])], "abcde"))
        everything = [*cells, cell_of([0, 0], [0]), cell_of([50, 0], [4])]
        for _, scores in method.predict(Some(everything, "abcde")):
            assert ((scores >= 0) & (scores <= 1)).all()

    def test_membrane_is_the_cell_edge_and_clusters_without_a_column_are_left_out(self, three):
        method = fitted(Ella, three.iter_cells("train"))
        cell = next(iter(three.iter_cells("test")))
        [(_, found)] = method.predict(Some([cell], three.genes, three.patterns))
        columns = ("cell_edge", "nuclear", "nuclear_edge", "cytoplasmic", "another")
        [(_, wide)] = method.predict(Some([cell], three.genes, columns))
        at = [columns.index(n) if n in columns else 0 for n in three.patterns]
        np.testing.assert_array_equal(found, wide[:, at])
        assert wide[:, 2].any()
        assert not wide[:, 4].any()

    def test_few_significant_genes_fall_back_to_the_groups_of_kernels(self):
        rng = np.random.default_rng(2)
        xy = 5 * np.stack([np.sqrt(rng.random(90)), np.zeros(90)], axis=1)
        uniform = [cell_of(xy[k : k + 30], np.repeat(range(6), 5)) for k in (0, 30, 60)]
        method = fitted(Ella, Some(uniform, "abcdef"))
        assert {tuple(p) for p in method.prior.values()} == {(0.5, 0.1, 0.1, 0.1, 0.1, 0.1)}
        places = GRID[method.log_ratio.argmax(axis=1)]
        groups = kernel_groups(np.nan)
        for name, place in zip(CLASSES, places, strict=False):
            if name != "mixed":
                low, high = MODES[groups[name]].min(), MODES[groups[name]].max()
                assert low - 0.05 <= place <= high + 0.05
        assert not method.log_ratio[4].any()

    def test_what_all_genes_share_is_no_pattern_to_the_robust_variant(self):
        """Every gene piles up in the middle alike: nothing but the prior is left to say."""
        rng = np.random.default_rng(3)
        cells = []
        for k in range(30):
            xy = 5 * np.stack([rng.beta(2, 6, 60), np.zeros(60)], axis=1)
            cells.append(cell_of(xy, np.repeat(range(3), 20), name=f"c{k}"))
        panel = Some(cells, "abc")
        nuclear = {
            cls: np.mean(
                [s[:, PATTERNS.index("nuclear")] for _, s in fitted(cls, panel).predict(panel)]
            )
            for cls in (EllaRobust, Ella)
        }
        assert nuclear[EllaRobust] < 0.35
        assert nuclear[Ella] > 0.6

    @pytest.mark.parametrize(("cls", "floor"), [(Ella, {"nuclear": 0.7}), (EllaRobust, None)])
    def test_planted_patterns_are_found(self, cls, floor, four):
        found = predict_cells(fitted(cls, four.iter_cells("train")), four.iter_cells("test"))
        joined = four.labels("test").merge(found, on=["cell_id", "gene"], suffixes=("", "_score"))
        for pattern in four.patterns:
            least = 0.75 if floor is None else floor.get(pattern)
            if least is not None:
                auc = roc_auc_score(joined[pattern], joined[f"{pattern}_score"])
                assert auc >= least


class TestFeatures:
    def test_one_row_per_gene_and_kernel(self, four):
        cells = four.iter_cells("test")
        [frame] = features(cells)
        names = "gene kernel a b T w p n_molecules n_cells p_cauchy p_fdr_by peak"
        assert frame.columns.tolist() == names.split()
        molecules = four.molecules("test", ["cell_id", "gene"]).to_pandas()
        counts = molecules.groupby("gene", observed=True)["cell_id"].agg(["size", "nunique"])
        assert len(frame) == 22 * len(counts)
        first = frame.groupby("gene").first()
        assert first["n_molecules"].to_dict() == counts["size"].to_dict()
        assert first["n_cells"].to_dict() == counts["nunique"].to_dict()
        gene = frame["gene"].iloc[22]
        mine = [
            np.minimum(c.geometry.relative_radius, 1)[c.gene == four.genes.index(gene)]
            for c in cells
        ]
        r = np.concatenate(mine)
        alone = fit_kernels(r, np.array([0, len(r)]))
        rows = frame[frame["gene"] == gene]
        np.testing.assert_allclose(rows["T"], alone.t[0], rtol=1e-12)
        np.testing.assert_allclose(rows[["a", "b"]], KERNELS)
        assert rows["p_cauchy"].nunique() == 1
        assert cauchy_combined(rows["p"].to_numpy()) == rows["p_cauchy"].iloc[0]

    def test_the_unit_has_no_effect(self, four):
        [one], [other] = (
            features(four.iter_cells("val")),
            features(four.iter_cells("val"), unit_um=3),
        )
        pd.testing.assert_frame_equal(one, other)

    def test_no_cells_have_no_rows(self):
        [frame] = features(Some([], "ab"))
        assert len(frame) == 0
        assert "p_fdr_by" in frame


class TestAgainstUpstream:
    """Outputs of ELLA 1.0.0 (its Newton optimiser) on 15 U-2 OS cells, all 135 genes."""

    @pytest.fixture(scope="class")
    @classmethod
    def radial(cls, shared) -> pd.DataFrame:
        """Upstream's radii of every molecule, beside ours by both rules, sorted by gene."""
        outlines = read_bento(shared / "u2os_batch8" / "merfish_sample.h5ad", PATTERNS).cells
        outlines = outlines.set_index("cell_id")
        frames = []
        for name, rows in pd.read_parquet(shared / "reference" / "ella_radial.parquet").groupby(
            "cell"
        ):
            boundary, nucleus = outlines.loc[name, ["cell_boundary", "nucleus_boundary"]]
            cell = cell_of(rows[["x", "y"]], None, boundary, nucleus)
            ours = {rule: relative_radius(cell, rule) for rule in ("grid", "exact")}
            frames.append(rows.assign(**ours, d=cell.geometry.radius))
        return pd.concat(frames).sort_values(["gene", "molecule"], kind="stable")

    @pytest.fixture(scope="class")
    @classmethod
    def upstream(cls, shared) -> dict[str, np.ndarray]:
        """Column -> (135, 22) values."""
        rows = pd.read_parquet(shared / "reference" / "ella_fit.parquet")
        rows = rows.query("dataset == 'u2os' and version == 'HEAD-newton'")
        rows = rows.sort_values(["gene", "kernel"])
        np.testing.assert_array_equal(rows[["a", "b"]].to_numpy()[:22], KERNELS)
        return {name: rows[name].to_numpy().reshape(-1, 22) for name in rows}

    @pytest.fixture(scope="class")
    @classmethod
    def lam(cls, shared) -> np.ndarray:
        rows = pd.read_parquet(shared / "reference" / "ella_lam.parquet")
        rows = rows.query("dataset == 'u2os' and version == 'HEAD-newton'").sort_values("gene")
        return np.stack(rows["lam"])

    @pytest.fixture(scope="class")
    @classmethod
    def fit(cls, radial):
        starts = np.r_[0, np.cumsum(radial.groupby("gene").size().to_numpy())]
        return fit_kernels(radial["grid"].to_numpy(), starts)

    @pytest.fixture(scope="class")
    @classmethod
    def shapes(cls, fit, upstream):
        return intensities(fit, upstream["exposure_2pi_sum_c0"][:, 0])

    def test_the_registration_is_the_same(self, radial):
        assert len(radial) == 221_090
        np.testing.assert_allclose(radial["d"], radial["d_c"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(radial["grid"], radial["r_head"], rtol=0, atol=1e-9)

    def test_the_exact_registration_is_near(self, radial):
        # Measured: 0.0047 on average, 0.38 at most, where the outline runs along the ray.
        assert (radial["exact"] - radial["r_head"]).abs().mean() <= 0.006
        assert radial["exact"].max() <= 1 < radial["r_head"].max()

    def test_likelihood_ratios_are_the_same(self, fit, upstream):
        assert fit.n.tolist() == upstream["n_molecules"][:, 0].tolist()
        np.testing.assert_allclose(fit.t, upstream["T"], rtol=1e-8, atol=1e-6)

    def test_intensities_are_the_same_as_far_as_upstream_converges(self, shapes, upstream):
        for ours, theirs in zip(shapes, (upstream["A"], upstream["B"]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)

    def test_curves_are_the_same_with_upstreams_last_kernel_left_out(
        self, fit, shapes, upstream, lam
    ):
        a = shapes[0].copy()
        a[:, 21] = 0  # upstream's slip: the outermost kernel adds a flat line
        theirs = lam.max(axis=1, keepdims=True)
        np.testing.assert_allclose(curves(fit.t, a, shapes[1]) / theirs, lam / theirs, atol=1e-6)
        ours = curves(fit.t, *shapes)
        np.testing.assert_allclose(ours / theirs, lam / theirs, atol=1e-4)  # no membrane genes
        peaks = GRID[ours.argmax(axis=1)]
        np.testing.assert_allclose(peaks, upstream["peak_score"][:, 0], atol=1e-12)

    def test_p_values_are_the_same_where_upstream_does_not_draw_them(self, fit, upstream):
        p = kernel_p_values(fit.t)
        gain = upstream["T"] > 1e-6
        held = np.clip(p, 1e-7, 1 - 1e-7)
        np.testing.assert_allclose(held[gain], upstream["p_kernel"][gain], rtol=0, atol=1e-9)
        assert upstream["p_kernel"][~gain].min() >= 0.4999
        combined, theirs = cauchy_combined(p), upstream["p_cauchy"][:, 0]
        low, high = (cauchy_combined(np.where(gain, p, drawn)) for drawn in (0.4999, 1.0))
        for found in (combined, theirs):
            assert ((low <= found) & (found <= high)).all()

    def test_the_same_126_genes_are_significant(self, fit, shapes, upstream):
        lam = curves(fit.t, *shapes)
        ours = false_discovery_rates(cauchy_combined(kernel_p_values(fit.t)), lam) <= 0.05
        np.testing.assert_array_equal(ours, upstream["p_fdr_by"][:, 0] <= 0.05)
        assert ours.sum() == 126

    def test_upstreams_clusters_are_an_optimum_of_the_same_k_means(self, lam, upstream):
        theirs = upstream["cluster_K5"][:, 0].astype(int)
        chosen, x = theirs >= 0, curve_features(lam[theirs >= 0])
        theirs = theirs[chosen]

        def squared(labels):
            centre = np.stack([x[labels == c].mean(axis=0) for c in range(5)])
            return np.square(x[:, None] - centre).sum(axis=2)

        np.testing.assert_array_equal(squared(theirs).argmin(axis=1), theirs)
        medians = [np.median(x[theirs == c, 20:].argmax(axis=1)) for c in range(5)]
        assert medians == sorted(medians)
        inertia = squared(theirs).min(axis=1).sum()
        for seed in range(4):  # k-means finds one of several optima of nearly the same inertia
            ours = squared(cluster_curves(lam[chosen], seed)).min(axis=1).sum()
            assert ours == pytest.approx(inertia, rel=0.06)
