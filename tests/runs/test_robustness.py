"""Robustness: what perturbations do to cells, and what they show of methods that are made up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from samples import small_dataset

from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, MethodError
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.methods import METHODS
from gpattern_bench.methods.base import About, Untrained
from gpattern_bench.runs.robustness import (
    ABSENCES,
    MEANINGLESS,
    PERTURBATIONS,
    measure_robustness,
    perturbed,
    pixel_um,
    run_robustness,
)
from gpattern_bench.runs.run import run_method

GEOMETRIC = ("rotated", "reflected", "translated")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"), seed=3)


class MadeUp(Untrained):
    """Scores every pair by `value` of its molecules, all patterns alike."""

    about = About("made_up", "M", "model", "Looks.", "none", ("coordinates",), learns=False)

    def predict(self, cells):
        assert len(list(cells)) == len(cells)  # a stream can be read any number of times
        for cell in cells:
            assert cell.labels is None
            assert (np.diff(cell.gene) >= 0).all()
            values = [self.value(cell, cell.xy[cell.gene == code]) for code in cell.genes]
            scores = 1 / (1 + np.exp(-np.array(values, np.float32)))
            yield cell, np.repeat(scores[:, None], len(cells.patterns), axis=1)


class MeanX(MadeUp):
    def value(self, cell, xy):
        return xy[:, 0].mean()


class Radius(MadeUp):
    def value(self, cell, xy):
        return np.sqrt(np.hypot(*xy.T).mean())


class Share(MadeUp):
    def value(self, cell, xy):
        return len(xy) / len(cell.xy)


class First(MadeUp):
    def value(self, cell, xy):
        return np.hypot(*xy[0])


class Distance(MadeUp):
    def value(self, cell, xy):
        return np.float64(shapely.distance(cell.boundary.exterior, shapely.points(xy)).mean())


class Everywhere(MadeUp):
    def value(self, cell, xy):
        return 0.0


def changes(method, dataset):
    found = measure_robustness(method, dataset)[1]
    return {name: one.largest_change for name, one in found.items()}


class TestMethodsMadeUp:
    def test_one_that_looks_at_nothing_shows_nothing(self, dataset):
        found = measure_robustness(Everywhere(), dataset)[1]
        assert tuple(found) == tuple(PERTURBATIONS)
        for one in found.values():
            assert (one.f1_drop, one.auc_drop, one.largest_change) == (0, 0, 0)

    def test_one_that_counts_shows_only_the_thinned(self, dataset):
        found = changes(Share(), dataset)
        assert found.pop("thinned") > 0.001
        assert set(found.values()) == {0}

    def test_one_that_uses_x_shows_turns_and_mirrors(self, dataset):
        found = changes(MeanX(), dataset)
        assert min(found["rotated"], found["reflected"]) > 0.5
        assert found["translated"] < 1e-3
        assert found["shuffled"] < 1e-6

    @pytest.mark.parametrize("method", [Radius, Distance])
    def test_one_that_looks_at_distances_shows_no_move_of_the_plane(self, dataset, method):
        found = changes(method(), dataset)
        assert max(found["rotated"], found["reflected"], found["shuffled"]) < 1e-5
        assert found["translated"] < 1e-3
        assert min(found["thinned"], found["jittered"]) > 1e-3

    def test_one_that_trusts_the_order_shows_the_shuffled(self, dataset):
        found = changes(First(), dataset)
        assert found["shuffled"] > 0.1
        assert found["reflected"] == 0

    def test_numbers_are_those_of_the_evaluator_on_the_same_pairs(self, dataset):
        result, found = measure_robustness(Radius(), dataset)
        labels = dataset.labels("test")
        assert result["n"] == found["rotated"].n == len(labels)
        assert 0 < found["thinned"].n < len(labels)
        for name in ("rotated", "jittered"):  # all pairs are there
            assert found[name].f1_drop == pytest.approx(result["f1_macro"] - found[name].f1_macro)


def stream(dataset, name, seed=0, pixel=0.1):
    frame = dataset.cells("test", ["cell_id", "x", "y"])
    places = frame[["x", "y"]].to_numpy(float)
    origins = dict(zip(frame["cell_id"].astype(str), places, strict=True))
    cells = dataset.iter_cells("test")
    return cells, perturbed(cells, name, origins=origins, seed=seed, pixel_um=pixel)


class TestPerturbations:
    @pytest.mark.parametrize("name", PERTURBATIONS)
    def test_the_same_every_time_and_other_with_another_seed(self, dataset, name):
        one, again = list(stream(dataset, name)[1]), list(stream(dataset, name)[1])
        other = list(stream(dataset, name, seed=1)[1])
        assert all(np.array_equal(a.xy, b.xy) for a, b in zip(one, again, strict=True))
        if name not in ("reflected", *ABSENCES):
            assert not all(np.array_equal(a.xy, b.xy) for a, b in zip(one, other, strict=True))

    @pytest.mark.parametrize("name", PERTURBATIONS)
    def test_cells_keep_their_names_and_hide_their_labels(self, dataset, name):
        for cell, found in zip(*stream(dataset, name), strict=True):
            assert (found.cell_id, found.fov) == (cell.cell_id, cell.fov)
            assert found.labels is found.labelled is None
            assert (np.diff(found.gene) >= 0).all()

    def test_outlines_are_taken_away(self, dataset):
        for cell, found in zip(*stream(dataset, "without_nucleus"), strict=True):
            assert found.nucleus is None
            assert found.boundary.equals(cell.boundary)
        for cell, found in zip(*stream(dataset, "without_outlines"), strict=True):
            assert found.nucleus is None
            assert not found.boundary.equals(cell.boundary)
            assert shapely.covers(found.boundary, shapely.points(cell.xy)).all()

    @pytest.mark.parametrize("name", GEOMETRIC)
    def test_molecules_and_outlines_move_together(self, dataset, name):
        for cell, found in zip(*stream(dataset, name), strict=True):
            for shape, moved in ((cell.boundary, found.boundary), (cell.nucleus, found.nucleus)):
                before = shapely.distance(shape.exterior, shapely.points(cell.xy))
                after = shapely.distance(moved.exterior, shapely.points(found.xy))
                np.testing.assert_allclose(after, before, atol=1e-3)
                assert moved.area == pytest.approx(shape.area, abs=1e-6)
            assert np.array_equal(found.gene, cell.gene)

    def test_each_cell_is_turned_by_its_own_angle_about_its_centroid(self, dataset):
        angles = []
        for cell, found in zip(*stream(dataset, "rotated"), strict=True):
            before, after = (np.arctan2(*one.xy[0, ::-1]) for one in (cell, found))
            angles.append((after - before) % (2 * np.pi))
            np.testing.assert_allclose(np.hypot(*found.xy.T), np.hypot(*cell.xy.T))
        assert len(np.unique(np.round(angles, 6))) == len(angles)

    def test_a_move_in_the_slide_costs_what_float32_costs(self, dataset):
        for cell, found in zip(*stream(dataset, "translated"), strict=True):
            assert 0 < np.abs(found.xy - cell.xy).max() <= 0.0005

    def test_shuffled_within_each_gene(self, dataset):
        for cell, found in zip(*stream(dataset, "shuffled"), strict=True):
            assert np.array_equal(found.gene, cell.gene)
            assert not np.array_equal(found.xy, cell.xy)
            both = [np.column_stack([one.gene, one.xy]) for one in (cell, found)]
            assert np.array_equal(*(np.unique(rows, axis=0) for rows in both))

    def test_thinned_to_one_half_of_the_molecules(self, dataset):
        for cell, found in zip(*stream(dataset, "thinned"), strict=True):
            assert len(found.xy) == len(found.gene) == (len(cell.xy) + 1) // 2
            assert {tuple(row) for row in found.xy} <= {tuple(row) for row in cell.xy}

    def test_jittered_by_a_pixel(self, dataset):
        moves = [b.xy - a.xy for a, b in zip(*stream(dataset, "jittered", pixel=0.3), strict=True)]
        assert np.concatenate(moves).std() == pytest.approx(0.3, rel=0.1)

    def test_pixel_of_the_source_or_a_tenth_of_a_micrometre(self, dataset, tmp_path):
        assert pixel_um(dataset) == 0.1
        assert pixel_um(small_dataset(tmp_path, unit_um=0.108)) == 0.108


class TestRun:
    def test_a_fitted_method_from_its_run(self, dataset, tmp_path):
        with pytest.raises(MethodError, match=r"must be fitted.*gpattern-bench run bento"):
            run_robustness("bento", dataset, tmp_path)
        assert not list(tmp_path.iterdir())
        files = run_method("bento", dataset, tmp_path, seed=2)
        with pytest.raises(MethodError, match="model-seed0"):
            run_robustness("bento", dataset, tmp_path)
        path, found = run_robustness("bento", dataset, tmp_path, seed=2)
        assert path == tmp_path / "small" / "robustness-seed2.json"
        # Unperturbed it is what the run wrote.
        result = Evaluator(dataset).eval(files[-1], replicates=0)
        assert (found.f1_macro, found.auc_macro) == (result["f1_macro"], result["auc_macro"])

    def test_the_file(self, dataset, tmp_path, monkeypatch):
        monkeypatch.setitem(METHODS, "made_up", f"{__name__}:Radius")
        path, _ = run_robustness("made_up", dataset, tmp_path)
        text = path.read_text()
        stored = json.loads(text)
        assert list(stored) == [
            *("method", "dataset", "version", "seed", "protocol", "trained_on"),
            *("f1_macro", "auc_macro", "f1_worst_drop", "largest_change", "perturbations"),
        ]
        assert (stored["method"], stored["protocol"]) == ("made_up", "untrained")
        each = stored["perturbations"]
        assert list(each) == list(PERTURBATIONS)
        keys = {"n", "f1_macro", "f1_drop", "auc_drop", "largest_change"}
        assert all(set(one) == keys for one in each.values())
        moved = [one["f1_drop"] for name, one in each.items() if name not in ABSENCES]
        assert stored["f1_worst_drop"] == max(moved)
        assert stored["largest_change"] == max(each[name]["largest_change"] for name in MEANINGLESS)
        assert run_robustness("made_up", dataset, tmp_path)[0].read_text() == text

    def test_a_model_of_something_else_is_refused(self, dataset, tmp_path):
        run_method("bento", dataset, tmp_path)
        (tmp_path / "small" / "model-seed0").rename(tmp_path / "small" / "model-seed1")
        with pytest.raises(MethodError, match="holds another model"):
            run_robustness("bento", dataset, tmp_path, seed=1)

    @pytest.mark.parametrize(
        ("method", "seed", "expected"),
        [("oracle", 0, "shows the labels"), ("sprawl", -1, "seed of 0 or more")],
    )
    def test_refused(self, dataset, tmp_path, method, seed, expected):
        with pytest.raises(MethodError, match=expected):
            run_robustness(method, dataset, tmp_path / "out", seed=seed)
        assert not (tmp_path / "out").exists()

    def test_without_labels_there_is_nothing_to_score(self, tmp_path):
        dataset = small_dataset(tmp_path, "bare", seed=3, labels=False)
        with pytest.raises(GPatternBenchError, match="labelled test split"):
            run_robustness("sprawl", dataset, tmp_path / "out")

    def test_pairs_that_a_method_leaves_out_are_told(self, dataset):
        class Lazy(Share):
            def predict(self, cells):
                yield from list(super().predict(cells))[1:]

        with pytest.raises(MethodError, match="gives no scores for some pairs"):
            measure_robustness(Lazy(), dataset)
