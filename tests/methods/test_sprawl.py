"""SPRAWL's exact p, its random scores and sums over cells: by enumeration and against upstream.

Upstream is subcellular-sprawl 0.5, on 15 U-2 OS cells and on its own example of 20 mouse cells in
seven slices each. How peripheral and central compare on the former is in test_methods.py.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from math import comb, sqrt

import h5py
import numpy as np
import pandas as pd
import pytest
import shapely
from samples import dataset_of
from scipy.special import expit
from scipy.stats import chi2_contingency, chisquare, hypergeom, ks_2samp, kstest, norm

from gpattern_bench.base.geometry import outline_distance, rings_of
from gpattern_bench.curate.readers.bento import read_bento
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods.sprawl import permutation as sprawl_random
from gpattern_bench.methods.sprawl.method import (
    STATISTICS,
    Sprawl,
    aggregate,
    cell_features,
    features,
    median_rank_p,
    median_rank_scores,
    median_rank_variance,
    polarised_scores,
)
from gpattern_bench.methods.sprawl.permutation import DRAW_VARIANCE, pair_scores

METRICS = pytest.mark.parametrize("metric", ["punctate", "radial"])


def score_of(median, n):
    return ((n + 1) / 2 - median) / ((n - 1) / 2)


def p_of(median, m, n):
    return float(median_rank_p(np.array([score_of(median, n)]), np.array([m]), n)[0])


def exact_p(median, m, n):
    """By integers: all pairs of middle ranks (odd m: all middle ranks) and their combinations."""
    twice = int(2 * min(median, n + 1 - median) // 1)
    ranks, r = range(1, n + 1), (m + 1) // 2
    if m % 2:
        ways = sum(comb(a - 1, r - 1) * comb(n - a, r - 1) for a in ranks if 2 * a <= twice)
    else:
        middle = ((a, b) for a in ranks for b in range(a + 1, n + 1) if a + b <= twice)
        ways = sum(comb(a - 1, r - 1) * comb(n - b, r - 1) for a, b in middle)
    return min(1.0, 2 * ways / comb(n, m))


class TestP:
    @pytest.mark.slow
    @pytest.mark.parametrize("n", range(2, 11))
    def test_is_twice_the_share_of_all_draws_of_ranks_also_between_two_ranks(self, n):
        for m in range(1, n + 1):
            medians = [np.median(ranks) for ranks in itertools.combinations(range(1, n + 1), m)]
            for quarters in range(4, 4 * n + 1):  # ties make medians in steps of a quarter
                x = quarters / 4
                expected = min(1, 2 * np.mean(np.array(medians) <= min(x, n + 1 - x)))
                assert p_of(x, m, n) == pytest.approx(expected, rel=1e-12, abs=0)

    @pytest.mark.parametrize(
        ("median", "m", "n"),
        [
            (20.0, 30, 300),  # far out: p = 3e-26
            (15.5, 30, 300),  # the farthest
            (149.5, 30, 300),
            (3.5, 2, 300),
            (1.5, 2, 300),
            (60.0, 101, 300),
            (150.0, 298, 300),
            (149.5, 299, 300),
        ],
    )
    def test_is_right_to_ten_digits_however_small(self, median, m, n):
        assert p_of(median, m, n) == pytest.approx(exact_p(median, m, n), rel=1e-10, abs=0)

    @pytest.mark.parametrize("m", [1, 3, 17, 501])
    def test_of_odd_m_is_a_hypergeometric_tail(self, m):
        n = 14_000
        for median in (7_000, 6_500, 5_800):
            tail = 2 * hypergeom.sf((m - 1) // 2, n, median, m)
            assert p_of(median, m, n) == pytest.approx(min(1, tail), rel=1e-8)

    @pytest.mark.parametrize("m", [1001, 1000])
    def test_of_many_molecules_is_nearly_that_of_the_normal_tail(self, m):
        n = 20_000
        score = np.array([0.02, -0.05, 0.08])
        z = score / np.sqrt(median_rank_variance(np.array([m]), n))
        p = median_rank_p(score, np.full(3, m), n)
        np.testing.assert_allclose(p, 2 * norm.sf(abs(z)), rtol=0.03)

    def test_of_both_sides_is_the_same(self):
        rng = np.random.default_rng(0)
        distance, gene = rng.permutation(500) / 500, rng.integers(0, 40, 500).astype(np.int32)
        m = np.bincount(gene)
        near, far = (median_rank_scores(d, gene) for d in (distance, -distance))
        np.testing.assert_array_equal(median_rank_p(near, m, 500), median_rank_p(far, m, 500))

    def test_is_at_most_1(self):
        assert p_of(4, 3, 7) == 1.0  # upstream's own helper says 1.26

    def test_of_a_gene_that_is_the_whole_cell_is_1(self):
        p = [median_rank_p(np.zeros(1), np.array([n]), n)[0] for n in (1, 2, 7, 8)]
        assert p == [1, 1, 1, 1]

    def test_is_uniform_under_shuffled_genes(self):
        rng = np.random.default_rng(1)
        n, m = 900, 31
        medians = [np.median(rng.choice(n, m, replace=False) + 1) for _ in range(3000)]
        p = median_rank_p(score_of(np.array(medians), n), np.full(3000, m), n)
        assert kstest(p, "uniform").pvalue > 1e-3


# Punctate and radial


def slow_pair(metric, a, b):
    """Distance of two points, or the angle between them as seen from (0, 0)."""
    if metric == "punctate":
        return sqrt(np.sum((a - b) ** 2))
    return np.arccos(np.clip(a @ b / sqrt((a @ a) * (b @ b)), -1, 1))


def places(metric, xy):
    """The points as the compiled kernels read them."""
    return xy if metric == "punctate" else np.arctan2(xy[:, 1], xy[:, 0])[:, None].copy()


def null_sums(metric, xy, m, draws, seed=7):
    sums = np.empty(draws)
    sprawl_random._null_draws(
        places(metric, xy), m, np.arange(len(xy)), np.uint64(seed * 0x123456789ABCDEF), sums
    )
    return sums


class TestNull:
    @METRICS
    @pytest.mark.parametrize("m", [2, 3, 4, 5])
    def test_is_that_of_all_subsets_and_all_choices_of_four_pairs(self, metric, m):
        xy = np.random.default_rng(m).normal(size=(5, 2))
        ways = Counter()
        for subset in itertools.combinations(xy, m):
            apart = [slow_pair(metric, a, b) for a, b in itertools.combinations(subset, 2)]
            for four in itertools.product(apart, repeat=4):
                ways[round(sum(four), 9)] += 1
        sums, found = np.unique(null_sums(metric, xy, m, 200_000).round(9), return_counts=True)
        assert set(sums) <= set(ways)
        expected = np.array([ways[s] for s in sorted(ways)]) * 200_000 / ways.total()
        got = np.array([dict(zip(sums, found, strict=True)).get(s, 0) for s in sorted(ways)])
        frequent = expected >= 5
        if not frequent.all():  # the others as one class
            got, expected = (np.append(x[frequent], x[~frequent].sum()) for x in (got, expected))
        assert chisquare(got, expected).pvalue > 1e-4

    @pytest.mark.slow
    @METRICS
    @pytest.mark.parametrize("m", [2, 5, 12, 40])
    def test_is_that_of_permuting_all_molecules(self, metric, m):
        rng = np.random.default_rng(m)
        xy = rng.normal(size=(40, 2))
        slow = []
        for _ in range(4000):
            subset = xy[rng.permutation(40)[:m]]
            pairs = [subset[rng.choice(m, 2, replace=False)] for _ in range(4)]
            slow.append(sum(slow_pair(metric, a, b) for a, b in pairs))
        assert ks_2samp(slow, null_sums(metric, xy, m, 40_000)).pvalue > 1e-3

    def test_draws_do_not_depend_on_the_one_before(self):
        sums = null_sums("punctate", np.array([[0.0, 0], [1, 0], [3, 0]]), 2, 60_000)
        kind = np.searchsorted([4, 8, 12], sums)
        table = np.bincount(3 * kind[:-1] + kind[1:], minlength=9).reshape(3, 3)
        assert chi2_contingency(table).pvalue > 1e-3

    @pytest.mark.slow
    @METRICS
    def test_ranks_are_those_of_a_sort_less_what_is_equal_to_rounding(self, metric):
        sums = null_sums(metric, np.random.default_rng(0).normal(size=(9, 2)), 3, 1000)
        null = sprawl_random._bucketed(sums)
        for value in (*sums, *(sums * (1 + 1e-12)), *(sums * 1.001), 0.0, 1e9):
            assert sprawl_random._count_less(null, value) == np.sum(sums < value * (1 - 1e-9))

    def test_ranks_where_all_draws_are_equal(self):
        null = sprawl_random._bucketed(np.full(1000, 3.0))
        assert [sprawl_random._count_less(null, v) for v in (2.0, 3.0, 4.0)] == [0, 0, 1000]


@pytest.fixture(scope="module")
def cloud():
    """300 molecules of genes of 1 to 60 molecules: xy, gene."""
    rng = np.random.default_rng(11)
    sizes = [1, 2, 3, 4, 5, 8, 13, 40, 60, 2, 1]
    sizes.append(300 - sum(sizes))
    return rng.normal(size=(300, 2)), np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)


def scored(cloud, seed=0, name="c", **options):
    xy, gene = cloud
    return pair_scores(xy, gene, np.array([0.1, -0.2]), seed=seed, name=name, **options)


class TestPairScores:
    @pytest.mark.slow
    def test_one_draw_is_on_the_grid_of_a_thousand(self, cloud):
        for scores in scored(cloud, obs_draws=1):
            steps = scores[~np.isnan(scores)] * 500
            np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)

    @pytest.mark.slow
    def test_the_expected_value_is_the_mean_of_single_draws(self, cloud):
        expected = [scored(cloud, seed=s) for s in range(10)]
        single = [scored(cloud, seed=s, obs_draws=1) for s in range(1000, 2000)]
        for metric in ("punctate", "radial"):
            many = np.stack([getattr(s, metric) for s in single])
            steady = np.stack([getattr(s, metric) for s in expected])
            error = np.hypot(many.std(0) / sqrt(1000), steady.std(0) / sqrt(10))
            z = (many.mean(0) - steady.mean(0)) / error
            assert np.nanmax(abs(z)) < 4.5
            assert np.nanmax(steady.std(0)) < 0.05
            assert np.nanmean(many.std(0)) > 0.3

    @METRICS
    @pytest.mark.parametrize("m", [2, 3, 4])
    def test_few_molecules_are_enumerated(self, metric, m):
        xy = np.random.default_rng(m).normal(size=(30, 2))
        null = null_sums(metric, xy, m, 1000)
        apart = [slow_pair(metric, a, b) for a, b in itertools.combinations(xy[:m], 2)]
        fours = itertools.product(apart, repeat=4)
        slow = np.mean([np.sum(null < sum(four) * (1 - 1e-8)) for four in fours])
        own = places(metric, xy[:m])
        fast = sprawl_random._mean_rank_enumerated(own, sprawl_random._bucketed(null))
        assert fast == pytest.approx(slow, abs=1e-9)

    def test_the_same_seed_and_cell_give_the_same_bytes(self, cloud):
        for a, b in zip(scored(cloud), scored(cloud), strict=True):
            assert a.tobytes() == b.tobytes()

    @pytest.mark.parametrize("other", [{"seed": 1}, {"name": "d"}])
    def test_another_seed_or_cell_draws_anew(self, cloud, other):
        for a, b in zip(scored(cloud), scored(cloud, **other), strict=True):
            assert np.sum(a[1:] != b[1:]) > 5

    def test_punctate_and_radial_draw_separately(self):
        # On a thin ring, far from the middle, both would be one function of the same pairs.
        rng = np.random.default_rng(2)
        angle = rng.random(400) * 0.02
        xy = 100 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        gene = np.repeat(np.arange(80), 5).astype(np.int32)
        both = pair_scores(xy, gene, np.zeros(2), seed=0, name="c", obs_draws=1)
        assert 0 < np.corrcoef(both.punctate, both.radial)[0, 1] < 0.8

    def test_genes_of_one_molecule_are_left_out_of_the_cell(self, cloud):
        xy, gene = cloud
        counts = np.bincount(gene)
        many = counts[gene] > 1
        rest = scored((xy[many], gene[many]))
        for a, b in zip(scored(cloud), rest, strict=True):
            assert (np.isnan(a) == (counts == 1)).all()
            np.testing.assert_array_equal(a[counts > 1], b)

    def test_the_order_of_the_genes_in_the_table_does_not_matter(self, cloud):
        xy, gene = cloud
        order = np.argsort(-gene, kind="stable")
        for a, b in zip(scored(cloud), scored((xy[order], gene[order])), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_the_place_and_the_unit_do_not_matter(self, cloud):
        xy, gene = cloud
        middle = np.array([0.1, -0.2])
        here = pair_scores(xy, gene, middle, seed=0, name="c")
        for unit, step in ((0.108, 0.0), (1.0, 40.0)):
            there = pair_scores(unit * xy + step, gene, unit * middle + step, seed=0, name="c")
            for a, b in zip(here, there, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-12)

    def test_a_cluster_is_punctate_and_a_ray_is_radial(self):
        rng = np.random.default_rng(3)
        angle, radius = rng.random(500) * 2 * np.pi, np.sqrt(rng.random(500))
        cluster = np.array([0.0, 0.02]) + 0.03 * rng.normal(size=(30, 2))
        ray = np.stack([np.linspace(-1, -0.1, 30), 0.02 * rng.normal(size=30)], axis=1)
        disc = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        gene = np.repeat([0, 1, 2], [30, 30, 500]).astype(np.int32)
        found = pair_scores(
            np.concatenate([cluster, ray, disc]), gene, np.zeros(2), seed=0, name=""
        )
        assert found.punctate[0] > 0.99
        assert abs(found.radial[0]) < 0.6
        assert found.radial[1] > 0.99
        assert abs(found.punctate[2]) < 0.2

    def test_shuffled_genes_have_mean_0_and_upstreams_variance_in_one_draw(self):
        rng = np.random.default_rng(4)
        gene = np.repeat(np.arange(300), 6).astype(np.int32)
        scores = []
        for cell in range(12):
            found = pair_scores(
                rng.normal(size=(1800, 2)), gene, np.zeros(2), seed=0, name=f"{cell}", obs_draws=1
            )
            scores.append(np.concatenate(found))
        scores = np.concatenate(scores)
        assert abs(scores.mean()) < 4 * sqrt(DRAW_VARIANCE / len(scores))
        assert scores.var() == pytest.approx(DRAW_VARIANCE, rel=0.03)

    def test_equal_draws_count_as_concentrated(self):
        # As upstream: nothing is strictly less than the only pair that there is.
        found = pair_scores(np.eye(2), np.zeros(2, np.int32), np.zeros(2), seed=0, name="c")
        assert found.punctate.tolist() == found.radial.tolist() == [1.0]

    def test_molecules_at_one_point_are_no_trouble(self):
        gene = np.repeat([0, 1], 6).astype(np.int32)
        found = pair_scores(np.zeros((12, 2)), gene, np.zeros(2), seed=0, name="c")
        assert found.punctate.tolist() == found.radial.tolist() == [1.0, 1.0]

    def test_a_molecule_on_the_middle_is_seen_at_a_right_angle(self):
        xy = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0], [-1, 0], [-2, 0]])
        gene = np.array([0, 0, 1, 1, 2, 2], np.int32)
        radial = pair_scores(xy, gene, np.zeros(2), seed=0, name="c").radial
        # Pairs of the null: 4 at 0, 5 at 90 and 6 at 180 degrees.
        assert radial[1:].tolist() == [1.0, 1.0]
        assert radial[0] == pytest.approx(1 - 2 * 4 / 15, abs=0.15)

    def test_a_cell_without_a_gene_of_two_molecules_has_no_scores(self):
        found = pair_scores(np.eye(2), np.array([3, 5], np.int32), np.zeros(2), seed=0, name="c")
        assert np.isnan(found).all()
        assert found.punctate.shape == found.radial.shape == (2,)


class TestPolarised:
    """The paper's rule: punctate and radial significantly positive."""

    @pytest.fixture
    def cell(self) -> Cell:
        rng = np.random.default_rng(0)
        xy, gene = rng.normal(size=(300, 2)) * 5, np.sort(rng.integers(0, 5, 300))
        xy[gene == 3] = rng.normal([12, 0], size=((gene == 3).sum(), 2))  # one side, together
        xy = np.vstack([xy, [[3, 4]]])
        gene = np.append(gene, 5).astype(np.int32)
        return Cell("c", "f", xy, gene, shapely.Point(0, 0).buffer(20), None)

    def test_is_high_for_a_gene_on_one_side(self, cell):
        scores = polarised_scores(cell)
        assert scores.argmax() == 3
        assert scores[3] > expit(1.96) > scores[[0, 1, 2, 4]].max()
        assert scores[5] == 0.5  # a single molecule is no evidence

    def test_is_on_the_scale_of_the_other_rules(self, cell):
        found = pair_scores(
            cell.xy, cell.gene, np.zeros(2), seed=0, name="c"
        )  # the buffer's vertices have their mean close to the origin
        share = (1 + np.minimum(found.punctate, found.radial)[:5]) / 2
        assert polarised_scores(cell)[:5] == pytest.approx(expit(norm.ppf(share)), abs=0.05)

    def test_the_only_gene_of_a_cell_is_no_evidence(self, cell):
        alone = replace(cell, xy=cell.xy[cell.gene == 3], gene=cell.gene[cell.gene == 3])
        assert polarised_scores(alone).tolist() == [0.5]

    @pytest.mark.parametrize("name", ["polarised", "polarized"])
    def test_is_a_score_where_a_dataset_has_the_pattern(self, cell, name):
        class One(Cells):
            def __iter__(self):
                yield cell

        cells = One([], genes=tuple("abcdef"), patterns=("nuclear", name), labels=False)
        [(_, scores)] = Sprawl().predict(cells)
        assert scores[:, 1].tolist() == np.float32(polarised_scores(cell)).tolist()
        plain = One([], genes=tuple("abcdef"), patterns=("nuclear", "other"), labels=False)
        [(_, before)] = Sprawl().predict(plain)
        assert scores[:, 0].tolist() == before[:, 0].tolist()
        assert not before[:, 1].any()


# Upstream


def pooled_slices(shared):
    """Upstream's example: cell id, list of (xy, gene names, vertices) per slice, stored variances.

    Rings are closed; genes are in the order of their names where variances are stored.
    """
    path = shared / "merfish_biccn" / "merfish_m1s4_vignette.hdf5"
    with h5py.File(path, "r") as file:
        for name, cell in file["cells"].items():
            yield (
                name,
                [
                    (
                        cell["spot_coords"][z][:],
                        cell["spot_genes"][z][:].astype(str),
                        cell["boundaries"][z][:],
                    )
                    for z in cell.attrs["zslices"]
                ],
                cell["gene_vars"][:],
            )


def pooled(slices):
    """All slices together: xy, gene codes, gene names, and the mean of all their vertices."""
    xy, genes, vertices = (np.concatenate(part) for part in zip(*slices, strict=True))
    names, code = np.unique(genes, return_inverse=True)
    return xy, code.astype(np.int32), names, vertices.mean(axis=0)


def u2os_cells(shared):
    """Source molecules of 15 cells, in pixels: cell id, xy, gene codes, gene names, middle."""
    release = read_bento(shared / "u2os_batch8" / "merfish_sample.h5ad", PATTERNS)
    outlines = release.cells.set_index("cell_id")["cell_boundary"]
    for name, rows in release.molecules.dropna(subset="cell_id").groupby("cell_id", observed=True):
        names, code = np.unique(rows["gene"].astype(str), return_inverse=True)
        middle = rings_of(outlines[name]).exterior_xy.mean(axis=0)
        yield name, rows[["x", "y"]].to_numpy(), code.astype(np.int32), names, middle


@pytest.fixture(scope="module")
def reference(shared) -> pd.DataFrame:
    return pd.read_parquet(shared / "reference" / "sprawl_scores.parquet")


class TestSlices:
    """Cells of seven slices, each with its outline: distances per slice, ranks over all."""

    @pytest.fixture(scope="class")
    @classmethod
    def joined(cls, shared, reference) -> pd.DataFrame:
        found = []
        for name, slices, variances in pooled_slices(shared):
            _, code, names, _ = pooled(slices)
            to_outline = [outline_distance(xy, shapely.Polygon(ring)) for xy, _, ring in slices]
            to_middle = [np.square(xy - ring.mean(axis=0)).sum(axis=1) for xy, _, ring in slices]
            for metric, distance in (("periph", to_outline), ("central", to_middle)):
                columns = {"cell": name, "gene": names, "metric": metric, "stored": variances}
                columns["ours"] = median_rank_scores(np.concatenate(distance), code)
                columns["closed"] = median_rank_variance(np.bincount(code), len(code))
                columns["tied"] = len(np.unique(np.concatenate(distance))) < len(code)
                found.append(pd.DataFrame(columns))
        rows = reference.query("dataset == 'm1s4' and metric in ('periph', 'central')")
        return rows.merge(pd.concat(found), on=["cell", "gene", "metric"], how="outer")

    def test_scores_are_upstreams(self, joined):
        assert joined.groupby("metric").size().to_dict() == {"central": 2257, "periph": 2257}
        rows = joined[~joined["tied"]]
        assert len(rows) > 3700
        np.testing.assert_allclose(rows["ours"], rows["score"], rtol=0, atol=1e-12)

    def test_where_two_molecules_tie_they_share_the_rank(self, joined):
        # Upstream ranks one of them first by chance: in 4 of the 4,514 pairs that is in a median.
        ranks = (joined["ours"] - joined["score"]).abs() * (joined["n_molecules"] - 1) / 2
        assert joined.loc[ranks > 1e-9, "tied"].all()
        assert (ranks > 1e-9).sum() <= 4
        assert ranks.max() <= 0.5 + 1e-9

    def test_variances_are_upstreams(self, joined):
        np.testing.assert_allclose(joined["closed"], joined["variance"], rtol=1e-12)
        np.testing.assert_allclose(joined["closed"], joined["stored"], rtol=1e-12)


class TestAgainstUpstream:
    """Upstream's law: its scores fall anywhere among many single draws of ours."""

    SEEDS = 40

    @pytest.fixture(scope="class", params=["u2os", "m1s4"])
    @classmethod
    def joined(cls, request, shared, reference) -> pd.DataFrame:
        cells = (
            u2os_cells(shared)
            if request.param == "u2os"
            else ((name, *pooled(slices)) for name, slices, _ in pooled_slices(shared))
        )
        found = []
        for name, xy, gene, names, middle in cells:
            options = {"xy": xy, "gene": gene, "middle": middle, "name": name}
            expected = pair_scores(seed=0, **options)
            single = [pair_scores(seed=s + 1, obs_draws=1, **options) for s in range(cls.SEEDS)]
            for metric, ours in (("puncta", "punctate"), ("radial", "radial")):
                columns = {"cell": name, "gene": names, "metric": metric}
                columns["expected"] = getattr(expected, ours)
                columns["draws"] = list(np.stack([getattr(s, ours) for s in single], axis=1))
                found.append(pd.DataFrame(columns))
        rows = reference.query("dataset == @request.param and metric in ('puncta', 'radial')")
        joined = rows.merge(
            pd.concat(found).dropna(subset="expected"), on=["cell", "gene", "metric"], how="outer"
        )
        assert not joined[["score", "expected"]].isna().any(axis=None)
        return joined

    @pytest.mark.parametrize("metric", ["puncta", "radial"])
    @pytest.mark.slow
    def test_the_law_is_the_same(self, joined, metric):
        rng = np.random.default_rng(5)
        for _, rows in joined[joined["metric"] == metric].groupby("rep"):
            assert len(rows) in (1991, 1367)
            draws, up = np.stack(rows["draws"]), rows["score"].to_numpy()[:, None]
            less = (draws < up - 1e-9).sum(axis=1)
            equal = (abs(draws - up) <= 1e-9).sum(axis=1)
            placed = (less + rng.random(len(rows)) * (equal + 1)) / (self.SEEDS + 1)
            assert kstest(placed, "uniform").pvalue > 1e-3

    @pytest.mark.parametrize("metric", ["puncta", "radial"])
    @pytest.mark.slow
    def test_upstream_scatters_about_the_expected_value(self, joined, metric):
        for _, rows in joined[joined["metric"] == metric].groupby("rep"):
            off = rows["score"] - rows["expected"]
            assert abs(off.mean()) < 4 * off.std() / sqrt(len(rows))
            assert off.std() > 0.4  # why the expected value is what features have

    @pytest.mark.slow
    def test_the_variance_is_upstreams(self, joined):
        np.testing.assert_allclose(joined["variance"], DRAW_VARIANCE, rtol=1e-14)

    @pytest.mark.slow
    def test_the_expected_value_is_that_of_400_draws_of_the_prototype(self, shared):
        path = shared / "reference" / "sprawl_fidelity_u2os.parquet"
        rows = pd.read_parquet(path).dropna(subset="pit")
        found = []
        for name, xy, gene, names, middle in u2os_cells(shared):
            scores = pair_scores(xy, gene, middle, seed=3, name=name)
            for metric, ours in (("puncta", scores.punctate), ("radial", scores.radial)):
                columns = {"cell": name, "gene": names, "metric": metric, "ours": ours}
                found.append(pd.DataFrame(columns))
        joined = rows.merge(pd.concat(found), on=["cell", "gene", "metric"], validate="1:1")
        off = joined["ours"] - joined["mean"]
        assert len(joined) == 2 * 1991
        assert abs(off.mean()) < 0.005
        assert off.std() < 0.06  # measured 0.043; both sides' draws alone make 0.036
        assert off.abs().max() < 0.25


# Frames


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    release = simulate(7, n_fovs=4, cells_per_fov=3, n_genes=10, mean_molecules=60)
    return dataset_of(tmp_path_factory.mktemp("data") / "small", release)


class TestFeatures:
    def test_one_frame_per_cell_with_the_documented_columns(self, dataset):
        cells = dataset.iter_cells()
        for cell, frame in zip(cells, features(cells), strict=True):
            assert list(frame.columns) == [
                *("cell_id", "gene", "n_molecules", *STATISTICS),
                *(f"var_{name}" for name in STATISTICS),
                *("p_peripheral", "p_central"),
            ]
            assert (frame["cell_id"] == cell.cell_id).all()
            assert frame["gene"].tolist() == [dataset.genes[code] for code in cell.genes]
            assert frame["n_molecules"].tolist() == cell.counts.tolist()
            for name in STATISTICS:
                known = frame["n_molecules"] > (0 if name in ("peripheral", "central") else 1)
                assert (frame[name].notna() == known).all()
                assert (frame[f"var_{name}"].notna() == known).all()
                assert frame.loc[known, name].between(-1, 1).all()

    def test_values_are_those_of_the_functions(self, dataset):
        cells = dataset.iter_cells()
        cell, frame = next(zip(cells, features(cells, seed=4), strict=False))
        n, middle = len(cell.gene), cell.geometry.boundary_rings.exterior_xy.mean(axis=0)
        to_outline = outline_distance(cell.xy, cell.boundary)
        np.testing.assert_array_equal(
            frame["peripheral"], median_rank_scores(to_outline, cell.gene)
        )
        np.testing.assert_array_equal(frame["var_central"], median_rank_variance(cell.counts, n))
        p = median_rank_p(frame["peripheral"].to_numpy(), cell.counts, n)
        np.testing.assert_array_equal(frame["p_peripheral"], p)
        pairs = pair_scores(cell.xy, cell.gene, middle, seed=4, name=cell.cell_id)
        np.testing.assert_array_equal(frame["punctate"], pairs.punctate)
        np.testing.assert_array_equal(frame["radial"], pairs.radial)

    def test_seed_and_draws_are_handed_on(self, dataset):
        frames = [
            pd.concat(features(dataset.iter_cells(), **options))
            for options in ({}, {"seed": 1}, {"obs_draws": 1})
        ]
        for other in frames[1:]:
            assert (frames[0]["punctate"] != other["punctate"]).mean() > 0.5
            pd.testing.assert_frame_equal(
                frames[0].drop(columns=["punctate", "radial"]),
                other.drop(columns=["punctate", "radial"]),
            )
        steps = frames[2]["radial"].dropna() * 500
        np.testing.assert_allclose(steps, steps.round(), atol=1e-9)

    def test_a_cell_alone_is_as_among_others_and_the_unit_does_not_matter(self, dataset):
        whole = pd.concat(features(dataset.iter_cells()))
        some = whole["cell_id"].unique()[[5, 2]]
        alone = pd.concat(features(dataset.iter_cells(keep=some), unit_um=0.108))
        pd.testing.assert_frame_equal(alone, whole[whole["cell_id"].isin(some)])

    def test_two_molecules_are_enough(self):
        cell = Cell(
            "c", "f", np.eye(2), np.array([0, 4], np.int32), shapely.box(-9, -9, 9, 9), None
        )
        found = cell_features(cell)
        assert found["peripheral"].tolist() == [0.0, 0.0]  # both at 8 from the outline
        assert found["p_central"].tolist() == [1.0, 1.0]
        assert np.isnan(found["punctate"]).all()

    def test_one_molecule_is_enough(self):
        one = np.zeros((1, 2))
        cell = Cell("c", "f", one, np.array([4], np.int32), shapely.box(-9, -9, 9, 9), None)
        found = cell_features(cell)
        assert found["peripheral"].tolist() == found["var_central"].tolist() == [0.0]
        assert found["p_peripheral"].tolist() == [1.0]


class TestAggregate:
    @pytest.fixture
    def frame(self) -> pd.DataFrame:
        """Gene A in three cells, B in two, and W, which is all of two cells."""
        frame = pd.DataFrame(
            [
                ("c1", "A", 5, 0.5, 0.04),
                ("c2", "A", 7, 0.3, 0.05),
                ("c3", "A", 90, -0.1, 0.01),
                ("c1", "B", 2, -0.2, 0.02),
                ("c2", "B", 4, np.nan, np.nan),
                ("c4", "W", 8, 0.0, 0.0),
                ("c5", "W", 9, 0.0, 0.0),
            ],
            columns=["cell_id", "gene", "n_molecules", "peripheral", "var_peripheral"],
        )
        for name in STATISTICS[1:]:
            frame[name], frame[f"var_{name}"] = -frame["peripheral"], frame["var_peripheral"]
        return frame

    def test_by_hand(self, frame):
        found = aggregate(frame, "gene").set_index(["statistic", "gene"])
        assert list(found.index) == list(itertools.product(STATISTICS, "ABW"))
        rows = found.loc["peripheral"]
        assert rows["n_cells"].tolist() == [3, 1, 2]
        assert rows["median_molecules"].tolist() == [7, 2, 8.5]
        assert rows["median_score"].tolist() == [0.3, -0.2, 0.0]
        z = [0.7 / sqrt(0.1), -0.2 / sqrt(0.02)]
        p = [2 * norm.sf(abs(x)) for x in z]
        np.testing.assert_allclose(rows["z"], [*z, np.nan], rtol=1e-12)
        np.testing.assert_allclose(rows["p"], [*p, np.nan], rtol=1e-12)
        # Two tests, not three: the smaller p doubles, the larger stays.
        np.testing.assert_allclose(rows["p_adjusted"], [2 * p[0], p[1], np.nan], rtol=1e-12)
        np.testing.assert_allclose(found.loc["radial", "z"], -rows["z"], rtol=1e-12)

    def test_by_several_columns(self, frame):
        kinds = frame["cell_id"].map({"c1": "x", "c2": "y", "c3": "x", "c4": "y", "c5": "y"})
        found = aggregate(frame.assign(kind=kinds), ["gene", "kind"])
        rows = found[found["statistic"] == "central"]
        keys = list(zip(rows["gene"], rows["kind"], strict=True))
        assert keys == [("A", "x"), ("A", "y"), ("B", "x"), ("W", "y")]
        assert rows["z"].iloc[0] == pytest.approx(-0.4 / sqrt(0.05))

    def test_p_does_not_vanish_far_out(self, frame):
        far = frame.assign(peripheral=frame["peripheral"] * 10)
        p = aggregate(far, "gene")["p"][0]
        assert p == pytest.approx(2 * norm.sf(7 / sqrt(0.1)), rel=1e-12)
        assert 0 < p < 1e-100

    def test_where_nothing_is_evidence_nothing_is_tested(self, frame):
        found = aggregate(frame[frame["gene"] == "W"], "gene")
        assert found["p"].isna().all()
        assert found["p_adjusted"].isna().all()

    def test_statistics_without_a_score_have_no_rows(self, frame):
        found = aggregate(frame.assign(radial=np.nan), "gene")
        assert set(found["statistic"]) == {"peripheral", "central", "punctate"}

    def test_finds_simulated_edge_and_nuclear_genes(self, dataset):
        frame = pd.concat(features(dataset.iter_cells()))
        labels = dataset.labels()[["cell_id", "gene", *PATTERNS]]
        frame = frame.merge(labels, on=["cell_id", "gene"])
        for pattern, sign in (("cell_edge", 1), ("nuclear", -1)):
            others = [name for name in PATTERNS if name != pattern]
            pure = frame[frame[pattern] & ~frame[others].any(axis=1)].assign(one="all")
            found = aggregate(pure, "one").set_index("statistic")
            assert sign * found.loc["peripheral", "z"] > 4
            assert sign * found.loc["central", "z"] < -4
            assert found.loc["peripheral", "p"] < 1e-4
