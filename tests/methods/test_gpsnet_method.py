"""GPSNet as a method: files, panels, streams, symmetries, damage; and its ablations."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import dataset_of
from scipy.special import expit, logit

from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MethodError
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.methods.base import FitContext
from gpattern_bench.methods.gpsnet import method as module
from gpattern_bench.methods.gpsnet import train
from gpattern_bench.methods.gpsnet.config import PRESETS, TRAININGS
from gpattern_bench.methods.gpsnet.method import (
    CoordinateMLP,
    GPSNetCoordinates,
    GPSNetEnsemble,
    GPSNetMethod,
)
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.runs import ablation as ablations
from gpattern_bench.runs.ablation import REPORTED, STUDIES, ablation_table, train_variants
from gpattern_bench.runs.run import run_method
from gpattern_bench.runs.saved_model import Model, load_model, predict_tables, save_model
from gpattern_bench.runs.training import training_cells, val_cells

pytestmark = pytest.mark.slow

TINY = {"width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 1, "neighbours": 16}
TRAINING = replace(TRAININGS["small"], epochs=4, warmup=4)


def simulated(folder, seed=7, **size) -> Dataset:
    """A small dataset, named as the folder."""
    size = {"n_fovs": 12, "cells_per_fov": 2, "n_genes": 12, "mean_molecules": 80} | size
    return dataset_of(folder, simulate(seed, **size), name=folder.name)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return simulated(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def fitted(dataset) -> GPSNetCoordinates:
    method = GPSNetCoordinates(training=TRAINING, **TINY)
    method.fit(dataset.iter_cells("train"), 0)
    return method


@pytest.fixture
def folder(fitted, dataset, tmp_path):
    """A model folder."""
    return save_model(
        fitted,
        Model("gpsnet_coordinates", list(dataset.patterns), (dataset.id,), None, 0),
        tmp_path / "model",
    )


class Given(Cells):
    """Cells from a list that counts how many were taken."""

    def __init__(self, cells, genes, patterns=PATTERNS):
        self.genes, self.patterns = tuple(genes), tuple(patterns)
        self._cells, self.taken = cells, 0

    def __len__(self):
        return len(self._cells)

    def without_labels(self):
        return self

    def __iter__(self):
        for cell in self._cells:
            self.taken += 1
            yield cell


def scores_of(method, cells: list[Cell], genes) -> dict[str, np.ndarray]:
    return {cell.cell_id: values for cell, values in method.predict(Given(cells, genes))}


class TestSeveralTrainingSets:
    def test_have_one_vocabulary(self, dataset, tmp_path):
        more = simulated(tmp_path / "more", seed=8, n_genes=16)
        assert set(dataset.genes) < set(more.genes)
        given = simulated(tmp_path / "given", seed=9, n_genes=14).iter_cells("test")
        scores = []
        for sources in ([dataset, more], [more, dataset], [dataset]):
            method = GPSNetMethod(training=replace(TRAINING, epochs=1), **TINY)
            method.fit(training_cells(sources), 0, FitContext(val_cells(sources)))
            genes = set().union(*(each.genes for each in sources))
            assert method.network.config.genes == tuple(sorted(genes))
            scores.append(predict_cells(method, given))
        pd.testing.assert_frame_equal(scores[0], scores[1])
        assert not scores[0].equals(scores[2])


class TestScores:
    def test_every_pair_once_in_the_order_of_its_cell(self, fitted, dataset):
        cells = {cell.cell_id: cell for cell in dataset.iter_cells("test")}
        found = list(fitted.predict(dataset.iter_cells("test").without_labels()))
        assert sorted(cell.cell_id for cell, _ in found) == sorted(cells)
        for cell, values in found:
            assert values.dtype == np.float32
            assert values.shape == (len(cells[cell.cell_id].genes), len(dataset.patterns))
            assert ((values >= 0) & (values <= 1)).all()

    def test_the_order_of_molecules_does_not_matter_to_the_bit(self, fitted, dataset):
        cells = list(dataset.iter_cells("test"))
        rng = np.random.Generator(np.random.Philox(3))
        shuffled = []
        for cell in cells:
            order = rng.permutation(len(cell.gene))
            shuffled.append(replace(cell, xy=cell.xy[order], gene=cell.gene[order]))
        first, second = (scores_of(fitted, each, dataset.genes) for each in (cells, shuffled))
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name])

    def test_which_cells_are_scored_together_hardly_matters(self, fitted, dataset):
        cells = list(dataset.iter_cells(None))
        together = scores_of(fitted, cells, dataset.genes)
        for cell in cells[::5]:
            alone = scores_of(fitted, [cell], dataset.genes)[cell.cell_id]
            np.testing.assert_allclose(alone, together[cell.cell_id], atol=1e-5)

    def test_it_learns_where_molecules_lie(self, tmp_path):
        dataset = simulated(tmp_path / "more", n_fovs=24, mean_molecules=80)
        scores = {}
        for seen in ("positions", "genes"):
            method = GPSNetCoordinates(training=replace(TRAINING, epochs=8), **TINY)
            cells, held_out = (list(dataset.iter_cells(split)) for split in ("train", "test"))
            if seen == "genes":
                cells, held_out = (
                    [replace(cell, xy=np.zeros_like(cell.xy)) for cell in some]
                    for some in (cells, held_out)
                )
            method.fit(Given(cells, dataset.genes), 0)
            found = predict_cells(method, Given(held_out, dataset.genes))
            scores[seen] = Evaluator(dataset, split="test").eval(found)["auc_macro"]
        assert scores["positions"] > scores["genes"] + 0.05

    def test_the_seed_decides_the_files(self, dataset, tmp_path):
        written = []
        for seed, name in [(1, "a"), (1, "b"), (2, "c")]:
            method = GPSNetCoordinates(training=replace(TRAINING, epochs=1), **TINY)
            method.fit(dataset.iter_cells("train"), seed)
            method.save(tmp_path / name)
            written.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
        assert written[0] == written[1] != written[2]


class TestStream:
    def test_memory_is_that_of_a_window_of_cells(self, fitted, dataset, monkeypatch):
        monkeypatch.setattr(module, "_WINDOW", 4)
        cells = list(dataset.iter_cells(None))
        given = Given(cells, dataset.genes)
        stream = fitted.predict(given)
        assert given.taken == 0
        ahead = []
        for done, _ in enumerate(stream):
            ahead.append(given.taken - done)
        assert done + 1 == len(cells)
        assert max(ahead) <= 8 < len(cells)

    def test_large_cells_go_alone(self, fitted, dataset, monkeypatch):
        monkeypatch.setattr(module, "_MOLECULES", 1)
        sizes = []
        logits = module.logits
        monkeypatch.setattr(
            module, "logits", lambda n, cells, b: sizes.append(len(cells)) or logits(n, cells, b)
        )
        assert len(list(fitted.predict(dataset.iter_cells("test")))) == len(sizes)
        assert set(sizes) == {1}

    def test_cells_can_be_scored_one_by_one(self, fitted, dataset, monkeypatch):
        sizes = []
        monkeypatch.setattr(fitted, "batch", 1)
        logits = module.logits
        monkeypatch.setattr(
            module, "logits", lambda n, cells, b: sizes.append(len(cells)) or logits(n, cells, b)
        )
        assert len(list(fitted.predict(dataset.iter_cells("val")))) == len(sizes)
        assert sizes == [1] * len(dataset.iter_cells("val"))


class TestOtherPanels:
    def test_unknown_genes_are_forgotten_genes(self, fitted, dataset):
        cell = next(iter(dataset.iter_cells("test")))
        known = scores_of(fitted, [cell], dataset.genes)[cell.cell_id]
        gone = cell.genes[1]
        renamed = [gene if at != gone else "NEW" for at, gene in enumerate(dataset.genes)]
        found = scores_of(fitted, [cell], renamed)[cell.cell_id]
        assert not np.allclose(found[1], known[1], atol=1e-4)
        every = scores_of(fitted, [cell], [f"NEW{at}" for at in range(len(dataset.genes))])
        values = every[cell.cell_id]
        assert ((values >= 0) & (values <= 1)).all()
        assert len(np.unique(values, axis=0)) == len(values), "their molecules tell them apart"

    def test_genes_are_known_by_name(self, fitted, dataset):
        cell = next(iter(dataset.iter_cells("test")))
        known = scores_of(fitted, [cell], dataset.genes)[cell.cell_id]
        # the same cell in a panel with another order of genes
        order = np.arange(len(dataset.genes))[::-1]
        code = len(order) - 1 - cell.gene
        back = np.argsort(code, kind="stable")
        other = replace(cell, xy=cell.xy[back], gene=code[back].astype(np.int32), labels=None)
        found = scores_of(fitted, [other], [dataset.genes[at] for at in order])[cell.cell_id]
        np.testing.assert_allclose(found, known[::-1], atol=1e-5)

    def test_other_patterns_are_refused(self, fitted, dataset):
        cells = Given(list(dataset.iter_cells("test")), dataset.genes, ("nuclear", "membrane"))
        with pytest.raises(MethodError, match="nuclear, membrane"):
            next(fitted.predict(cells))

    def test_other_tables_are_scored(self, folder, tmp_path):
        other = simulated(tmp_path / "other", seed=9, n_genes=20, n_fovs=3)
        path = predict_tables(*load_model(folder), other, tmp_path / "scores.parquet")
        assert pq.read_metadata(path).num_rows == other.counts["pairs"]


class TestFolder:
    def test_what_is_loaded_scores_the_same(self, fitted, folder, dataset):
        method, model = load_model(folder)
        assert model.method == "gpsnet_coordinates"
        cells = dataset.iter_cells("test")
        pd.testing.assert_frame_equal(predict_cells(method, cells), predict_cells(fitted, cells))
        assert method.parameters == fitted.parameters == 10564
        assert method.training == fitted.training
        assert method.history == fitted.history

    def test_it_holds_json_and_safetensors_only(self, folder):
        names = {"config.json", "model.json", "training.json", "model.safetensors"}
        assert {path.name for path in folder.iterdir()} == names
        for name in names - {"model.safetensors"}:
            json.loads((folder / name).read_text())

    def test_saving_again_gives_the_same_bytes(self, folder, tmp_path):
        method, _ = load_model(folder)
        method.save(tmp_path / "again")
        for path in (tmp_path / "again").iterdir():
            assert path.read_bytes() == (folder / path.name).read_bytes()

    @pytest.mark.parametrize("name", ["config.json", "training.json", "model.safetensors"])
    @pytest.mark.parametrize("damage", ["missing", "cut", "empty", "html", "list"])
    def test_a_damaged_file_is_named(self, folder, name, damage):
        path = folder / name
        whole = path.read_bytes()
        path.unlink()
        bad = {"cut": whole[: len(whole) // 2], "empty": b"", "html": b"<html>", "list": b"[1]"}
        if damage != "missing":
            path.write_bytes(bad[damage])
        with pytest.raises(MethodError) as caught:
            load_model(folder)
        assert str(folder) in str(caught.value)

    def test_weights_of_another_model(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"decoder_depth": 2}))
        with pytest.raises(MethodError, match=r"decoder\.1.*expected .* got nothing.* more"):
            load_model(folder)

    def test_weights_that_are_no_numbers(self, folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["head.bias"][0] = torch.nan
        save_file(tensors, path, {"gpattern_bench": "null"})
        with pytest.raises(MethodError, match=r"head\.bias: has values that are not finite"):
            load_model(folder)

    def test_a_wrong_folder(self, tmp_path):
        with pytest.raises(MethodError, match="holds no readable GPSNet"):
            GPSNetMethod().load(tmp_path)

    def test_before_it_is_fitted(self, dataset, tmp_path):
        with pytest.raises(MethodError, match="not fitted"):
            next(GPSNetMethod().predict(dataset.iter_cells("test")))
        with pytest.raises(MethodError, match="not fitted"):
            GPSNetMethod().save(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("brief_training")
class TestEnsemble:
    def test_scores_are_the_mean_of_the_members_logits(self, dataset, tmp_path):
        ensemble = GPSNetEnsemble()
        checkpoint = tmp_path / "training.safetensors"
        ensemble.fit(dataset.iter_cells("train"), 2, FitContext(checkpoint=checkpoint))
        assert list(tmp_path.iterdir()) == []
        alone = GPSNetMethod()
        alone.fit(dataset.iter_cells("train"), 11)  # the second of seed 2
        cells = dataset.iter_cells("test").without_labels()
        found = [
            {cell.cell_id: scores for cell, scores in method.predict(cells)}
            for method in (ensemble, alone, *ensemble.members)
        ]
        for name, scores in found[0].items():
            assert (found[1][name] == found[3][name]).all()
            members = np.array([some[name] for some in found[2:]], float)
            assert scores == pytest.approx(expit(logit(members).mean(axis=0)), abs=1e-6)
            assert scores.dtype == np.float32


class TestVariants:
    def test_the_plain_one_differs_in_the_coordinates_only(self, dataset):
        plain = CoordinateMLP(training=replace(TRAINING, epochs=1), **TINY)
        fourier = GPSNetCoordinates(training=replace(TRAINING, epochs=1), **TINY)
        for method in (plain, fourier):
            method.fit(dataset.iter_cells("train"), 0)
        ours, theirs = (m.network.config for m in (plain, fourier))
        assert ours.fourier == 0 < theirs.fourier
        assert replace(ours, fourier=theirs.fourier) == theirs
        assert plain.about.name == "coordinate_mlp"

    def test_presets_are_the_model_s(self):
        for preset in PRESETS:
            assert GPSNetMethod(preset).training == TRAININGS[preset]
        with pytest.raises(MethodError, match="no GPSNet named 'large'"):
            GPSNetMethod("large")

    def test_a_checkpoint_is_written_and_gone_on_from(self, dataset, tmp_path, fitted):
        path = tmp_path / "state.safetensors"
        for _ in range(2):
            method = GPSNetCoordinates(training=TRAINING, **TINY)
            method.fit(dataset.iter_cells("train"), 0, FitContext(checkpoint=path))
            assert path.is_file()
            assert method.history == fitted.history


class TestRuns:
    """`run` trains with a checkpoint, reports val scores and measures cells one by one."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setitem(TRAININGS, "small", TRAINING)
        for name, value in TINY.items():
            monkeypatch.setitem(PRESETS["small"], name, value)

    def test_one_that_was_interrupted_goes_on(self, dataset, tmp_path, monkeypatch):
        whole = run_method("gpsnet_coordinates", dataset, tmp_path / "whole", seed=3)
        epoch = train._Trainer._epoch

        def interrupted(self, *args):
            if len(self.history) == 2:
                raise KeyboardInterrupt
            epoch(self, *args)

        monkeypatch.setattr(train._Trainer, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_method("gpsnet_coordinates", dataset, tmp_path / "again", seed=3)
        folder = tmp_path / "again" / dataset.name
        assert [path.name for path in folder.iterdir()] == ["training-seed3.safetensors"]
        begun = []
        monkeypatch.setattr(
            train._Trainer,
            "_epoch",
            lambda self, *args: begun.append(len(self.history)) or epoch(self, *args),
        )
        again = run_method("gpsnet_coordinates", dataset, tmp_path / "again", seed=3)
        assert begun == [2, 3]
        assert not (folder / "training-seed3.safetensors").exists()
        for ours, theirs in zip(again, whole, strict=True):
            assert ours.read_bytes() == theirs.read_bytes()
        history = load_model(folder / "model-seed3")[0].history
        assert [set(row) for row in history] == [
            {"epoch", "loss", "val_loss", "val_auc", "val_f1"}
        ] * TRAINING.epochs

    def test_cells_are_scored_one_by_one(self, dataset, tmp_path, monkeypatch):
        sizes = []
        logits = module.logits
        monkeypatch.setattr(
            module, "logits", lambda n, cells, b: sizes.append(len(cells)) or logits(n, cells, b)
        )
        run_method("gpsnet_coordinates", dataset, tmp_path)
        assert sizes == [1] * sum(len(dataset.iter_cells(split)) for split in ("val", "test"))

    def test_of_several_processes_one_writes(self, dataset, tmp_path, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        assert run_method("prevalence", dataset, tmp_path) == []
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["coordinate_mlp", "gpsnet_outlines"])
    def test_variants_run(self, dataset, tmp_path, name):
        assert len(run_method(name, dataset, tmp_path)) == 2


class TestAblation:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(ablations, "_QUICK_CELLS", 6)
        monkeypatch.setattr(ablations, "_QUICK_EPOCHS", 1)
        for name, value in {"width": 8, "heads": 2, "fourier": 4}.items():
            monkeypatch.setitem(PRESETS["small"], name, value)

    def test_the_paper_s_figures_are_complete(self):
        assert set(REPORTED) == {"neighbours", "depths"} < set(STUDIES)
        for table, rows in [("neighbours", 7), ("depths", 5)]:
            for name in ("nih3t3", "u2os"):
                assert len(REPORTED[table][name]) == rows
                for auc, acc, f1 in REPORTED[table][name].values():
                    assert auc > acc > f1 > 60
        # what the paper's text says of them
        best = {
            n: max(rows, key=lambda k: rows[k][0]) for n, rows in REPORTED["neighbours"].items()
        }
        assert best == {"nih3t3": "64", "u2os": "256"}
        for name in ("nih3t3", "u2os"):
            assert REPORTED["neighbours"][name]["256"] == REPORTED["depths"][name]["2:1"]

    def test_each_setting_is_trained_once_and_scored(self, dataset, monkeypatch):
        trained = []
        fit = GPSNetMethod.fit

        def noted(self, train, seed, context):
            fit(self, train, seed, context)
            config = self.network.config
            depths = (config.encoder_depth, config.decoder_depth)
            trained.append((config.neighbours, *depths, len(train)))

        monkeypatch.setattr(GPSNetMethod, "fit", noted)
        rows = list(train_variants(dataset, quick=True))
        assert len(rows) == 6 + 5 + 5
        assert len(trained) == len(set(trained)) == 6 + 4 + 2
        assert {(64, e, d, 6) for e, d in [(5, 1), (4, 2), (3, 3), (2, 4), (1, 5)]} < set(trained)
        assert {n for *_, n in trained} == {1, 3, 6}
        assert all(0 < value < 1 for row in rows for value in (row.auc, row.acc, row.f1))
        same = [row for row in rows if row.setting in ("64", "1:2", "all")]
        assert len({(row.auc, row.acc, row.f1) for row in same}) == 1
        text = ablation_table(rows)
        assert "90.77 / 84.84 / 72.16" in text
        assert text.count("\n") == 1 + len(rows)

    def test_an_unknown_study(self, dataset):
        with pytest.raises(MethodError, match="no study named width"):
            list(train_variants(dataset, studies=["width"]))
