"""Bento's features against upstream's own values and by definition; its published forest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import shapely
from samples import dataset_of, flat_forest
from scipy.spatial.distance import cdist, pdist
from scipy.stats import spearmanr

from gpattern_bench import load_dataset
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.cells import Cell
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MethodError
from gpattern_bench.methods._forest import Forest
from gpattern_bench.methods.bento.method import BENTO_FEATURES, Bento, bento_features, features
from gpattern_bench.methods.bento.rnaforest import CLASSES, THRESHOLDS, RnaForest, pixel_um

COLUMN = {name: k for k, name in enumerate(BENTO_FEATURES)}
RIPLEY = [k for k, name in enumerate(BENTO_FEATURES) if name.startswith("l_")]
OF_NUCLEUS = [k for k, name in enumerate(BENTO_FEATURES) if name.startswith("nucleus_")]
CIRCLE = shapely.Point(0.3, -0.2).buffer(31.7, quad_segs=5)
NUCLEUS = shapely.Point(4, 3).buffer(12.2, quad_segs=4)


def cell_of(xy, gene=None, boundary=CIRCLE, nucleus=NUCLEUS) -> Cell:
    gene = np.zeros(len(xy)) if gene is None else gene
    return Cell("c", "f", np.asarray(xy, float), np.asarray(gene, np.int32), boundary, nucleus)


def by_definition(cell: Cell) -> np.ndarray:
    """Features of the cell's genes, each formula of the specification one by one."""
    boundary, nucleus = cell.boundary, cell.nucleus
    parts = shapely.get_parts(boundary)
    rings = shapely.multilinestrings([part.exterior for part in parts])
    vertices = shapely.get_coordinates(rings)
    middle = shapely.get_coordinates(boundary.centroid)[0]
    radius = np.linalg.norm(vertices - middle, axis=1).mean()
    span = int(pdist(vertices).max())
    low, high = np.floor(vertices.min(axis=0)), np.ceil(vertices.max(axis=0))
    x, y = (np.arange(low[axis], high[axis] + 1) for axis in (0, 1))
    grid = np.stack(np.meshgrid(x, y), -1)
    filled = shapely.multipolygons([shapely.Polygon(part.exterior) for part in parts])
    lattice = grid.reshape(-1, 2)[shapely.contains_xy(filled, grid.reshape(-1, 2))]

    def far(xy, shape):
        return shapely.distance(shapely.points(xy), shape)

    def away(xy, point):
        return np.linalg.norm(xy - point, axis=1)

    def moment(point):
        return np.square(cdist(lattice, [point])).mean()

    rows = []
    for gene in cell.genes:
        xy = cell.xy[cell.gene == gene]
        n, row = len(xy), dict.fromkeys(BENTO_FEATURES, np.nan)
        row["cell_inner_proximity"] = 1 - far(xy, rings).mean() / radius
        row["cell_inner_asymmetry"] = away(xy, middle).mean() / radius
        mean = xy.mean(axis=0)
        row["point_dispersion_norm"] = np.square(away(xy, mean)).mean() / moment(mean)
        if nucleus is not None:
            centre = shapely.get_coordinates(nucleus.centroid)[0]
            inside = shapely.intersects_xy(nucleus, xy)
            for where, part in (("inner", xy[inside]), ("outer", xy[~inside])):
                near = 1 - far(part, nucleus.exterior).mean() / radius if len(part) else 0.0
                row[f"nucleus_{where}_proximity"] = near
                off = away(part, centre).mean() / radius if len(part) else 0.0
                row[f"nucleus_{where}_asymmetry"] = off
            spread = np.square(away(xy, centre)).mean()
            row["nucleus_dispersion_norm"] = spread / moment(centre)
        row["l_max_gradient"] = row["l_min_gradient"] = 0.0
        if n > 1:
            radii = np.linspace(1, span / 2, int(span / 2))
            apart = pdist(xy)

            def h(r, apart=apart, n=n):
                k = 2 * boundary.area * (apart[:, None] < r).sum(axis=0) / (n * (n - 1))
                return np.sqrt(k / np.pi) - r

            curve = h(radii)
            row["l_max"] = curve.max()
            smooth = np.convolve(curve, np.full(5, 0.2), "valid") if len(curve) >= 5 else []
            if len(smooth) > 1:
                slope = np.gradient(smooth)
                row["l_max_gradient"], row["l_min_gradient"] = slope.max(), slope.min()
            row["l_monotony"] = spearmanr(radii, curve).statistic
            row["l_half_radius"] = h(np.array([span / 4]))[0]
        rows.append([row[name] for name in BENTO_FEATURES])
    return np.array(rows)


@pytest.fixture(scope="module")
def sample(shared):
    """The 15 cells that upstream was run on, in its pixels, and its values."""
    points = pd.read_parquet(shared / "reference" / "merfish_sample_points.parquet")
    shapes = pd.read_parquet(shared / "reference" / "merfish_sample_shapes.parquet")
    shapes = shapes.set_index("cell")
    genes = np.sort(points["gene"].unique())
    cells = []
    for name, rows in points.groupby("cell"):
        code = np.searchsorted(genes, rows["gene"])
        order = np.argsort(code, kind="stable")
        boundary, nucleus = shapes.loc[name, ["cell_wkt", "nucleus_wkt"]]
        cells.append(
            Cell(
                name,
                "0",
                rows[["x", "y"]].to_numpy()[order],
                code[order].astype(np.int32),
                shapely.from_wkt(boundary),
                shapely.from_wkt(nucleus) if isinstance(nucleus, str) else None,
            )
        )
    expected = pd.read_parquet(shared / "reference" / "bento_features.parquet")
    return genes, cells, expected.set_index(["cell", "gene"])


class TestAgainstUpstream:
    def test_features_agree_and_the_same_ones_are_missing(self, sample):
        genes, cells, expected = sample
        compared = 0
        for cell in cells:
            rows = expected.loc[[(cell.cell_id, gene) for gene in genes[cell.genes]]]
            np.testing.assert_array_equal(rows["n_molecules"], cell.counts)
            found = bento_features(cell, unit_um=1.0)
            np.testing.assert_allclose(
                found, rows[list(BENTO_FEATURES)], rtol=0, atol=1e-12, err_msg=cell.cell_id
            )
            compared += len(found)
        assert compared == len(expected) == 2008

    @pytest.mark.slow
    def test_the_published_forest_gives_the_published_labels(self, sample, shared):
        genes, cells, _ = sample
        expected = pd.read_parquet(shared / "reference" / "bento_proba.parquet")
        expected = expected.set_index(["cell", "gene"])
        names = [(cell.cell_id, gene) for cell in cells for gene in genes[cell.genes]]
        expected = expected.loc[names]
        values = np.concatenate([bento_features(cell, unit_um=1.0) for cell in cells])
        forest = RnaForest(shared / "reference" / "rnaforest_flat.npz")
        probability, label = forest.predict(values)
        columns = [f"p_{name}" for name in CLASSES]
        np.testing.assert_allclose(probability, expected[columns], rtol=0, atol=2e-3)
        columns = [f"label_{name}" for name in CLASSES]
        np.testing.assert_array_equal(label, expected[columns])
        assert label.sum(axis=0).tolist() == [169, 329, 669, 327, 175]

    @pytest.mark.slow
    def test_tables_give_the_same_but_for_pairs_at_a_radius(self, mirror, sample):
        dataset = load_dataset("u2os_gold")
        frame = pd.concat(features(dataset.iter_cells("test"), unit_um=0.108))
        assert list(frame) == ["cell_id", "gene", "n_molecules", *BENTO_FEATURES]
        assert len(frame) == 1937
        rows = sample[2].loc[list(zip(frame["cell_id"], frame["gene"], strict=True))]
        names = list(BENTO_FEATURES)
        apart = np.abs(frame[names].to_numpy() - rows[names].to_numpy())
        assert (np.isnan(frame[names].to_numpy()) == rows[names].isna().to_numpy()).all()
        assert np.nanmax(np.delete(apart, RIPLEY, axis=1)) < 1e-6
        equal = np.nanmean(apart[:, RIPLEY] < 1e-4, axis=0)
        assert (equal > 0.98).all()


class TestPublishedForest:
    """Bento's published classifier, here of few small trees."""

    def test_scores_and_labels_by_definition(self, tmp_path):
        arrays = flat_forest(tmp_path / "flat.npz")
        rng = np.random.default_rng(5)
        x = rng.normal(0.5, 0.3, (200, 13))
        x[::7, 4] = np.nan
        probability, label = RnaForest(tmp_path / "flat.npz").predict(x)
        scaled = ((x - arrays["mean"]) / arrays["scale"]).astype(np.float32)
        for row, found, called in zip(scaled, probability, label, strict=True):
            values = [self.walk(row, arrays, k) for k in range(5)]
            np.testing.assert_allclose(found, np.array(values) / sum(values), rtol=0, atol=1e-6)
            missing = np.isnan(row).any()
            np.testing.assert_array_equal(called, ~missing & (found >= np.array(THRESHOLDS)))
        assert label.any(axis=0).sum() > 2

    @staticmethod
    def walk(row, arrays, k):
        """One class's calibrated value of a pair, node by node."""
        names = ("feature", "threshold", "left", "right", "default_left", "root", "iso_x", "iso_y")
        feature, threshold, left, right, missing, root, x, y = (arrays[f"{k}_{n}"] for n in names)
        margin = 0.0
        for node in root:
            while left[node] != -1:
                value = row[feature[node]]
                goes_left = missing[node] if np.isnan(value) else value < threshold[node]
                node = (left if goes_left else right)[node]
            margin += float(threshold[node])
        return np.interp(1 / (1 + np.exp(-margin)), x, y)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"mean": np.zeros(12)}, r"mean is float64 \(12,\), expected float64 \(13,\)"),
            ({"scale": np.zeros(13)}, "scale is 0, expected positive"),
            ({"0_feature": np.zeros(3, np.int8)}, "cell_edge: threshold is .* expected float32"),
            ({"1_feature": 13}, "cytoplasmic: a node asks for none of the 13 features"),
            ({"1_feature": -1}, "cytoplasmic: a node asks for none of the 13 features"),
            ({"2_left": 0}, "none: left"),
            ({"2_right": 10**6}, "none: right"),
            ({"3_root": np.array([0, 0], np.int32)}, "nuclear: some nodes are below none or"),
            ({"3_root": np.array([], np.int32)}, "nuclear: 0 trees"),
            ({"4_threshold": np.nan}, "nuclear_edge: threshold is not finite"),
            ({"4_threshold": 1e30}, "nuclear_edge: a node has 1e"),
            ({"4_iso_y": np.array([0, 2], np.float32)}, "nuclear_edge: the isotonic map"),
            ({"4_iso_x": np.array([1, 0], np.float32)}, "nuclear_edge: the isotonic map"),
            ({"0_left": np.zeros(7, np.int64)}, "cell_edge: left is int64"),
            ({"mean": None}, "mean"),
        ],
    )
    def test_arrays_that_no_training_gives_are_refused(self, tmp_path, change, problem):
        path = tmp_path / "flat.npz"
        flat_forest(path, change)
        with pytest.raises(
            MethodError, match=f"does not hold Bento's published forest .*{problem}"
        ):
            RnaForest(path)

    @pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
    def test_another_file_is_refused(self, tmp_path, content):
        (tmp_path / "flat.npz").write_bytes(content)
        with pytest.raises(MethodError, match="does not hold Bento's published forest"):
            RnaForest(tmp_path / "flat.npz")

    def test_objects_are_never_unpickled(self, tmp_path):
        flat_forest(tmp_path / "flat.npz", {"mean": np.array([print] * 13, object)})
        with pytest.raises(MethodError, match="allow_pickle"):
            RnaForest(tmp_path / "flat.npz")

    def test_compression_does_not_change_the_hash(self, tmp_path):
        arrays = flat_forest(tmp_path / "a.npz")
        np.savez(tmp_path / "b.npz", **dict(reversed(arrays.items())))
        hashes = {RnaForest(tmp_path / name).sha256 for name in ("a.npz", "b.npz")}
        flat_forest(tmp_path / "c.npz", {"0_threshold": 0.25})
        assert len(hashes) == 1
        assert RnaForest(tmp_path / "c.npz").sha256 not in hashes

    def test_pixels_are_the_sources_where_these_are_about_100_nm(self):
        assert [pixel_um(unit) for unit in (0.05, 0.108, 0.2)] == [0.05, 0.108, 0.2]
        assert {pixel_um(unit) for unit in (0.049, 0.21, 1.0)} == {0.1}


class TestByDefinition:
    @pytest.mark.parametrize("seed", range(4))
    def test_a_random_cell(self, seed):
        rng = np.random.default_rng(seed)
        gene = np.sort(rng.integers(0, 12, 90))
        angle = np.sort(rng.uniform(0, 2 * np.pi, 40))
        ring = rng.uniform(12, 40, 40)[:, None] * np.c_[np.cos(angle), np.sin(angle)]
        cell = cell_of(rng.normal(0, 12, (90, 2)), gene, shapely.Polygon(ring))
        np.testing.assert_allclose(
            bento_features(cell, unit_um=1.0), by_definition(cell), rtol=0, atol=1e-10
        )

    def test_an_outline_of_two_parts_with_a_hole_and_molecules_outside(self):
        ring = CIRCLE - shapely.Point(-15, 3.1).buffer(4.3, quad_segs=3)
        parts = shapely.multipolygons([ring, shapely.Point(50.1, 0).buffer(9.3, quad_segs=3)])
        rng = np.random.default_rng(5)
        cell = cell_of(rng.uniform(-40, 70, (60, 2)), np.repeat([0, 4], 30), parts)
        np.testing.assert_allclose(
            bento_features(cell, unit_um=1.0), by_definition(cell), rtol=0, atol=1e-10
        )

    def test_one_molecule_and_none_in_the_nucleus(self):
        cell = cell_of([[-20.0, 0.0], [5.0, 5.0], [5.5, 5.0]], [0, 1, 1])
        found = bento_features(cell, unit_um=1.0)
        np.testing.assert_allclose(found, by_definition(cell), rtol=0, atol=1e-12)
        missing = [COLUMN[name] for name in ("l_max", "l_monotony", "l_half_radius")]
        assert np.flatnonzero(np.isnan(found[0])).tolist() == missing
        assert found[0, COLUMN["nucleus_inner_proximity"]] == 0
        assert found[1, COLUMN["nucleus_outer_proximity"]] == 0

    def test_far_molecules_give_the_straight_line(self):
        found = bento_features(cell_of([[-25.0, 0.0], [25.0, 0.0]]), unit_um=1.0)[0]
        assert found[RIPLEY][[0, 1, 3]].tolist() == [-1, pytest.approx(-1, abs=0.02), -1]

    def test_a_pair_at_a_radius_is_not_below_it(self):
        xy = [[0.0, 0.0], [5.0, 0.0]]
        box = shapely.box(-20, -20, 20, 20)  # its diagonal: 56, so radii are 1, 2, .. 28
        curve = np.sqrt(1600 / np.pi) - 6  # K is the area at 6, not at 5
        found = bento_features(cell_of(xy, boundary=box), unit_um=1.0)[0]
        assert found[COLUMN["l_max"]] == pytest.approx(curve, abs=1e-12)

    @pytest.mark.parametrize("size", [0.4, 1.1, 3.0, 7.0])
    def test_a_cell_of_a_few_pixels(self, size):
        xy = np.random.default_rng(0).uniform(0.1, 0.3, (6, 2))
        box = shapely.box(0.05, 0.05, size, size)
        found = bento_features(cell_of(xy, boundary=box, nucleus=None), unit_um=1.0)
        assert np.isfinite(found[:, COLUMN["point_dispersion_norm"]]).all()
        assert np.isnan(found[0, COLUMN["l_max"]]) == (size < 1.4)  # no radius
        assert found[0, COLUMN["l_max_gradient"]] == 0

    def test_without_a_nucleus_its_features_are_missing(self):
        xy = np.random.default_rng(1).normal(0, 9, (20, 2))
        without = bento_features(cell_of(xy, nucleus=None), unit_um=1.0)
        assert np.flatnonzero(np.isnan(without[0])).tolist() == OF_NUCLEUS
        with_it = bento_features(cell_of(xy), unit_um=1.0)
        np.testing.assert_array_equal(
            np.delete(without, OF_NUCLEUS, axis=1), np.delete(with_it, OF_NUCLEUS, axis=1)
        )


class TestUnits:
    def test_a_pixel_is_a_tenth_of_a_micrometre_unless_said_otherwise(self):
        xy = np.random.default_rng(2).normal(0, 9, (40, 2))
        um = [shapely.transform(shape, lambda xy: xy / 10) for shape in (CIRCLE, NUCLEUS)]
        np.testing.assert_allclose(
            bento_features(cell_of(xy / 10, None, *um)),
            bento_features(cell_of(xy), unit_um=1.0),
            rtol=0,
            atol=1e-9,
        )

    def test_outlines_of_whole_pixels_give_the_same_wherever_the_frame_is(self):
        steps = [(0, 0), (9, 0), (9, 4), (15, 4), (15, 20), (3, 20), (3, 12), (0, 12)]
        ring, xy = np.array(steps), np.random.default_rng(3).uniform(3, 12, (30, 2))
        here = bento_features(cell_of(xy, None, shapely.Polygon(ring)), unit_um=1.0)
        away = np.array([-7.3, 1234.56]) * 0.108
        there = cell_of(xy * 0.108 + away, None, shapely.Polygon(ring * 0.108 + away))
        found = bento_features(there, unit_um=0.108)
        same = np.setdiff1d(np.arange(13), OF_NUCLEUS)
        np.testing.assert_allclose(found[:, same], here[:, same], rtol=0, atol=1e-9)

    @pytest.mark.parametrize("unit", [0, -0.1, np.nan, np.inf])
    def test_a_unit_that_is_no_length_is_refused(self, unit):
        with pytest.raises(MethodError, match="expected a positive number"):
            bento_features(cell_of([[0.0, 0.0]]), unit_um=unit)

    def test_the_order_of_molecules_does_not_matter(self):
        rng = np.random.default_rng(4)
        xy, gene = rng.normal(0, 9, (60, 2)), rng.integers(0, 5, 60)
        order = np.argsort(gene, kind="stable")
        np.testing.assert_array_equal(
            bento_features(cell_of(xy, gene)), bento_features(cell_of(xy[order], gene[order]))
        )

    def test_genes_below_the_minimum_are_missing(self):
        xy = np.random.default_rng(5).normal(0, 9, (9, 2))
        cell = cell_of(xy, [0] * 4 + [1] * 5)
        found = bento_features(cell, unit_um=1.0, min_count=5)
        assert np.isnan(found[0]).all()
        np.testing.assert_array_equal(found[1], bento_features(cell, unit_um=1.0)[1])


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Dataset:
    release = simulate(7, n_fovs=12, cells_per_fov=3, n_genes=10, mean_molecules=60)
    return dataset_of(tmp_path_factory.mktemp("data") / "small", release)


class TestMethod:
    @pytest.mark.slow
    def test_scores_are_those_of_a_forest_on_the_labelled_pairs(self, small):
        method = Bento()
        method.fit(small.iter_cells("train"), seed=3)
        train = [c for c in small.iter_cells("train") if c.labels is not None]
        x = np.concatenate([bento_features(cell)[cell.labelled] for cell in train])
        y = np.concatenate([cell.labels[cell.labelled] for cell in train])
        forest = Forest.fit(x, y, 3)
        for cell, scores in method.predict(small.iter_cells("test").without_labels()):
            assert scores.dtype == np.float32
            np.testing.assert_array_equal(scores, forest.predict(bento_features(cell)))

    def test_it_learns_and_survives_saving(self, small, tmp_path):
        method = Bento()
        method.fit(small.iter_cells("train"), seed=0)
        method.save(tmp_path)
        assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
        again = Bento()
        again.load(tmp_path)
        test = small.iter_cells("test")
        kept = [scores for _, scores in method.predict(test)]
        for scores, loaded in zip(kept, again.predict(test), strict=True):
            np.testing.assert_array_equal(scores, loaded[1])
        labels = np.concatenate([cell.labels for cell in test])
        scores = np.concatenate(kept)
        assert (scores[labels].mean() - scores[~labels].mean()) > 0.15

    def test_cells_without_a_nucleus_and_single_molecules_get_scores(self, small):
        method = Bento()
        method.fit(small.iter_cells("train"), seed=0)
        bare = [Cell(c.cell_id, c.fov, c.xy[:1], c.gene[:1], c.boundary, None)
                for c in small.iter_cells("test")]  # fmt: skip
        values = np.concatenate([bento_features(cell) for cell in bare])
        assert np.isnan(values).any(axis=1).all()
        scores = method._forest.predict(values)
        assert np.isfinite(scores).all()
        assert ((scores >= 0) & (scores <= 1)).all()
