"""Training of GPSNet: batches, seeds, going on after kill -9, two processes, a lost loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import PATIENCE_S, dataset_of

from gpattern_bench.base.threads import one_thread
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.cells import Cells
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MethodError
from gpattern_bench.methods.context import GeneScores
from gpattern_bench.methods.gpsnet import loader as data
from gpattern_bench.methods.gpsnet import train
from gpattern_bench.methods.gpsnet.config import PRESETS, TRAININGS, Config, TrainingConfig
from gpattern_bench.methods.gpsnet.loader import (
    LabelledTokens,
    drop_molecules,
    epoch_batches,
    generator,
    mask_genes,
    rotate,
)
from gpattern_bench.methods.gpsnet.model import GPSNet
from gpattern_bench.methods.gpsnet.train import start_from, train_network
from gpattern_bench.methods.gpsnet.weights import read_tensors

pytestmark = pytest.mark.slow

TRAINING = TrainingConfig(
    epochs=3, rate=3e-3, warmup=3, decay=True, bf16=False, turned=True, thinned=0.5, forgotten=0.3
)


@pytest.fixture(autouse=True)
def _one_thread():
    """As in the processes that are started here: the same bits."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Dataset:
    release = simulate(7, n_fovs=10, cells_per_fov=2, n_genes=8, mean_molecules=40)
    return dataset_of(tmp_path_factory.mktemp("data") / "tiny", release, name="tiny")


def config_of(cells: Cells) -> Config:
    return Config.preset(
        "small", cells.genes, cells.patterns, width=8, heads=2, encoder_depth=1, decoder_depth=1,
        neighbours=8, fourier=4,
    )  # fmt: skip


def small_gpsnet(cells: Cells) -> Config:
    return Config.preset(
        "gpsnet", cells.genes, cells.patterns, width=8, heads=2, decoder_depth=1, neighbours=8
    )


def trained(dataset, training=TRAINING, seed=0, config_of=config_of, **more):
    cells = dataset.iter_cells("train")
    return train_network(config_of(cells), training, cells, seed, **more)


def weights(network: GPSNet) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(("config_of", "expected"), [(config_of, 2), (small_gpsnet, 1)])
def test_without_an_encoder_one_thread_computes(tiny, monkeypatch, config_of, expected):
    torch.set_num_threads(2)  # taken back by the fixture
    seen = []
    forward = GPSNet.forward

    def spied(self, batch):
        seen.append(torch.get_num_threads())
        return forward(self, batch)

    monkeypatch.setattr(GPSNet, "forward", spied)
    network = trained(tiny, replace(TRAINING, epochs=1), config_of=config_of).network
    steps = len(seen)
    tokens = LabelledTokens(tiny.iter_cells("val"), network.config).tokens(0)
    train.logits(network, [tokens])
    assert steps > 0
    assert set(seen) == {expected}
    assert len(seen) == steps + 1
    assert torch.get_num_threads() == 2


class TestSettings:
    def test_the_paper_s_are_those_of_its_table_3(self):
        rows = {
            name: (t.epochs, t.batch, t.warmup)
            for name, t in TRAININGS.items()
            if name not in ("small", "gpsnet")
        }
        assert rows == {"nih3t3": (10, 4, 1000), "u2os": (5, 4, 1000), "cosmx_lung": (10, 64, 5000)}
        for name in rows:
            t = TRAININGS[name]
            assert (t.rate, t.weight_decay, t.betas, t.clip) == (1e-5, 0.03, (0.9, 0.9), 1.0)
            assert (t.bf16, t.decay, t.patience, t.turned) == (True, False, 0, False)
        assert set(TRAININGS) == set(PRESETS)

    def test_small_is_trained_for_twelve_epochs(self):
        small = TRAININGS["small"]  # the demo's, whose own test shortens it
        assert (small.epochs, small.batch, small.warmup) == (12, 4, 200)

    def test_the_rate_warms_up_then_stays_or_falls(self):
        constant = TrainingConfig(epochs=1, rate=2.0, warmup=4)
        assert [constant.rate_at(step, 100) for step in (0, 1, 3, 4, 99)] == [0.5, 1, 2, 2, 2]
        falling = replace(constant, decay=True)
        rates = [falling.rate_at(step, 100) for step in range(100)]
        assert rates[:4] == [0.5, 1, 1.5, 2]
        assert (np.diff(rates[4:]) < 0).all()
        assert rates[52] == pytest.approx(1.0)
        assert 0 < rates[-1] < 0.01

    def test_a_warm_up_below_1_is_a_share_of_the_run(self):
        training = TrainingConfig(epochs=1, rate=1.0, warmup=0.1)
        assert [training.rate_at(step, 40) for step in (0, 3, 4)] == [0.25, 1, 1]
        assert training.warmup_steps(40) == 4
        assert TrainingConfig(epochs=1, warmup=0).warmup_steps(40) == 0

    def test_a_run_is_counted_in_epochs_or_in_steps(self):
        assert TrainingConfig(epochs=3, batch=4).steps_of(10) == 9
        assert TrainingConfig(epochs=3, batch=4, steps=7).steps_of(10) == 7

    @pytest.mark.parametrize(
        "wrong",
        [
            {"epochs": 0},
            {"batch": 0},
            {"rate": 0.0},
            {"clip": float("nan")},
            {"forgotten": 1.5},
            {"steps": -1},
        ],
    )
    def test_those_that_make_no_sense_are_refused(self, wrong):
        with pytest.raises(MethodError, match=next(iter(wrong))):
            replace(TRAINING, **wrong)


class TestBatches:
    @given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
    def test_each_cell_once_in_steps_of_nearly_one_size(self, n, batch, seed, epoch):
        lengths = np.arange(n) % 7
        steps = epoch_batches(lengths, batch, seed, epoch)
        assert sorted(np.concatenate(steps).tolist()) == list(range(n))
        sizes = [len(step) for step in steps]
        assert max(sizes) <= batch
        assert max(sizes) - min(sizes) <= 1
        again = epoch_batches(lengths, batch, seed, epoch)
        assert all((a == b).all() for a, b in zip(steps, again, strict=True))

    def test_cells_of_a_step_are_of_similar_length(self):
        lengths = np.random.Generator(np.random.Philox(1)).integers(1, 1000, 640)
        spread = np.mean([np.ptp(lengths[step]) for step in epoch_batches(lengths, 8, 0, 0)])
        assert spread < 100

    def test_epochs_and_seeds_differ(self):
        orders = {
            tuple(np.concatenate(epoch_batches(np.ones(50), 4, seed, epoch)).tolist())
            for seed in range(3)
            for epoch in range(3)
        }
        assert len(orders) == 9

    def test_cells_are_drawn_by_their_weights(self):
        weights = np.where(np.arange(50) < 40, 0.6 / 40, 0.4 / 10)
        drawn = np.concatenate(
            [np.concatenate(epoch_batches(np.ones(50), 8, 0, e, weights)) for e in range(40)]
        )
        assert len(drawn) == 2000
        assert 0.36 < (drawn >= 40).mean() < 0.44

    def test_datasets_weigh_as_the_root_of_their_cells_and_real_ones_as_asked(self, tiny):
        cells = tiny.iter_cells("train")
        n = len(list(cells))
        assert LabelledTokens(cells, config_of(cells)).weights(0.4) is None
        parts = [replace(cells._tables[0], simulated=k < 2) for k in range(3)]
        parts[1] = replace(parts[1], keep=frozenset(c.cell_id for c in list(cells)[: n // 4]))
        joined = Cells(parts, genes=cells.genes, patterns=cells.patterns, labels=True)
        tokens = LabelledTokens(joined, config_of(cells))
        bounds = np.cumsum([0, n, n // 4, n])
        for real, expected in ((0.0, [0.4, 0.2, 0.4]), (0.1, [0.6, 0.3, 0.1])):
            weights = tokens.weights(real)
            sums = [weights[a:b].sum() for a, b in pairwise(bounds)]
            assert sums == pytest.approx(expected)
        assert joined.only_simulated().parts[-1]._tables == [parts[1]]
        parts[2] = replace(parts[2], keep=frozenset())  # no real cell after all
        joined = Cells(parts, genes=cells.genes, patterns=cells.patterns, labels=True)
        weights = LabelledTokens(joined, config_of(cells)).weights(0.4)
        assert [weights[:n].sum(), weights[n:].sum()] == pytest.approx([2 / 3, 1 / 3])


class TestAugmentation:
    def test_turning_keeps_distances_and_mirrors_half_of_the_time(self, tiny):
        cells = tiny.iter_cells("train")
        cell = LabelledTokens(cells, config_of(cells)).tokens(0)
        mirrored, angles = 0, []
        for epoch in range(200):
            new = rotate(cell, generator(0, epoch, 1))
            matrix = torch.linalg.lstsq(cell.xy, new.xy).solution
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(2), atol=1e-4, rtol=0)
            mirrored += float(torch.linalg.det(matrix)) < 0
            angles.append(float(torch.atan2(matrix[0, 1], matrix[0, 0])))
        assert 70 < mirrored < 130
        assert np.histogram(angles, 4, (-np.pi, np.pi))[0].min() > 25

    def test_thinning_takes_molecules_and_the_labels_of_absent_genes(self, tiny):
        cell = next(iter(tiny.iter_cells("train")))
        whole = {tuple(at): gene for at, gene in zip(cell.xy, cell.gene, strict=True)}
        labels = dict(zip(cell.genes.tolist(), cell.labels.tolist(), strict=True))
        shares = []
        for epoch in range(100):
            less = drop_molecules(cell, generator(0, epoch, 1), 0.6)
            shares.append(len(less.gene) / len(cell.gene))
            assert all(whole[tuple(at)] == g for at, g in zip(less.xy, less.gene, strict=True))
            assert dict(zip(less.genes.tolist(), less.labels.tolist(), strict=True)) == {
                gene: labels[gene] for gene in less.genes.tolist()
            }
            assert len(less.labelled) == len(less.genes)
        assert 0.25 < min(shares) < 0.5
        assert max(shares) > 0.9

    def test_large_cells_are_thinned_below_the_limit(self, tiny):
        cell = next(iter(tiny.iter_cells("train")))
        n, limit = len(cell.gene), len(cell.gene) // 2
        kept = [len(drop_molecules(cell, generator(0, e, 1), 0.0, limit).gene) for e in range(200)]
        assert 0.45 * limit < np.mean(kept) < 0.75 * limit
        assert max(kept) < 0.8 * n
        assert len(drop_molecules(cell, generator(0, 0, 1), 0.0, n).gene) == n

    def test_a_cell_is_never_left_empty(self, tiny):
        cell = next(iter(tiny.iter_cells("train")))
        lone = drop_molecules(cell, generator(0, 0, 1), 0.0)
        rng = generator(1, 0, 0)
        for _ in range(50):
            lone = drop_molecules(lone, rng, 1.0)
            assert len(lone.gene) >= 1
        assert len(lone.gene) < 5

    def test_forgetting_makes_any_share_of_the_genes_unknown(self, tiny):
        cells = tiny.iter_cells("train")
        cell = LabelledTokens(cells, config_of(cells)).tokens(0)
        shares = []
        for epoch in range(200):
            query = mask_genes(cell, generator(0, epoch, 1), unknown=8).query
            assert ((query == cell.query) | (query == 8)).all()
            shares.append(float((query == 8).float().mean()))
        assert min(shares) < 0.1
        assert max(shares) > 0.9
        assert 0.4 < np.mean(shares) < 0.6

    def test_the_unknown_embedding_is_learnt_from_it_only(self, tiny):
        before = trained_rows(tiny, forgotten=0.0)
        after = trained_rows(tiny, forgotten=1.0)
        assert before == pytest.approx(0, abs=1e-7)
        assert after > 1e-3


def trained_rows(dataset, forgotten) -> float:
    """How far training moves the "unknown" row of the genes' embedding."""
    cells = dataset.iter_cells("train")
    training = replace(TRAINING, epochs=1, weight_decay=0.0, forgotten=forgotten)
    torch.manual_seed(0)
    first = GPSNet(config_of(cells)).gene.weight[len(cells.genes)].detach()
    found = trained(dataset, training).network.gene.weight[len(cells.genes)].detach()
    return float((found - first).abs().max())


class TestSeeds:
    def test_the_seed_decides_the_weights_to_the_bit(self, tiny):
        torch.manual_seed(5)
        state = torch.get_rng_state()
        first, again, other = (weights(trained(tiny, seed=s).network) for s in (1, 1, 2))
        assert first == again != other
        assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were used"

    def test_cells_that_do_not_fit_into_memory_are_prepared_again(self, tiny, monkeypatch):
        kept = weights(trained(tiny).network)
        monkeypatch.setattr(data, "KEPT", 0)
        assert weights(trained(tiny).network) == kept

    def test_memory_of_prepared_cells_is_bounded(self, tiny, monkeypatch):
        monkeypatch.setattr(data, "KEPT", 3000)
        cells = tiny.iter_cells("train")
        tokens = LabelledTokens(cells, config_of(cells))
        sizes = [len(tokens.tokens(i)) for i in range(len(tokens.cells))]
        assert 0 < sum(tokens.tokens(i) is tokens.tokens(i) for i in range(len(sizes))) < len(sizes)

    def test_it_learns_and_says_how(self, tiny):
        result = trained(tiny, replace(TRAINING, epochs=6), val=tiny.iter_cells("val"))
        assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5, 6]
        assert result.history[-1]["loss"] < result.history[0]["loss"]
        assert all(0 <= row["val_auc"] <= 1 and row["val_loss"] > 0 for row in result.history)
        assert not result.network.training


class TestSteps:
    def test_a_run_of_steps_ends_after_them_with_at_most_ten_epochs(self, tiny, monkeypatch):
        counted = []
        step = train._Trainer._step
        monkeypatch.setattr(
            train._Trainer, "_step", lambda self, *a: (counted.append(1), step(self, *a))[1]
        )
        for steps, epochs in ((3, 1), (57, 10), (8, 3)):
            counted.clear()
            found = trained(tiny, replace(TRAINING, batch=6, steps=steps))
            assert len(counted) == steps
            assert len(found.history) == epochs

    def test_a_warm_up_that_never_ends_is_told(self, tiny, caplog):
        trained(tiny, replace(TRAINING, warmup=1000))
        assert "the warm-up of 1000 steps is longer than this run of" in caplog.text
        caplog.clear()
        trained(tiny, replace(TRAINING, warmup=0.5))
        assert "warm-up" not in caplog.text


class TestStartingFromAnother:
    def test_genes_are_matched_by_name_and_new_ones_begin_as_unknown(self):
        old = GPSNet(Config.preset("small", ["a", "b", "c"], ["x", "y"], outlines=True))
        new = GPSNet(Config.preset("small", ["d", "c", "a"], ["x", "y"], outlines=True))
        start_from(new, old)
        for table in ("gene", "query"):
            there, here = getattr(old, table).weight, getattr(new, table).weight
            assert torch.equal(here[:4], there[[3, 2, 0, 3]])
        assert torch.equal(new.gene.weight[4:], old.gene.weight[4:])  # points of the outlines
        assert torch.equal(new.head.weight, old.head.weight)
        assert new.outline_rows.tolist() == [4, 5]

    def test_of_other_patterns_the_last_layer_begins_anew(self):
        old = GPSNet(Config.preset("gpsnet", ["a"], ["x", "y"]))
        new = GPSNet(Config.preset("gpsnet", ["a"], ["x", "y", "z"]))
        head = new.head.weight.clone()
        start_from(new, old)
        assert torch.equal(new.head.weight, head)
        assert torch.equal(new.pool.weight, old.pool.weight)

    def test_a_training_of_other_patterns_begins_at_the_other_s_weights_with_a_new_head(self, tiny):
        cells = tiny.iter_cells("train")
        config = Config.preset("gpsnet", cells.genes, cells.patterns)
        torch.manual_seed(5)
        init = GPSNet(replace(config, patterns=("x", "y", "z")))
        torch.nn.init.normal_(init.bias.weight)
        found = [train._Trainer(config, TRAINING, cells, seed, None, init) for seed in (1, 1, 2)]
        first, again, other = (trainer.network.state_dict() for trainer in found)
        new = {"head.weight", "head.bias", "bias.weight"}
        for name, value in first.items():
            assert torch.equal(value, again[name])
            if name in new:
                assert value.shape[-1 if name == "bias.weight" else 0] == len(cells.patterns)
            else:
                assert torch.equal(value, init.state_dict()[name])
                assert torch.equal(value, other[name])
        assert not torch.equal(first["head.weight"], other["head.weight"])
        assert not first["bias.weight"].any()

    def test_the_context_of_other_patterns_is_refused(self):
        old, new = (
            GPSNet(Config.preset("gpsnet", ["a"], patterns, context=True))
            for patterns in (["x", "y"], ["x", "z"])
        )
        with pytest.raises(MethodError, match="scores of x, y; here these would be scores of x, z"):
            start_from(new, old)

    def test_another_shape_is_refused(self):
        old = GPSNet(Config.preset("small", ["a"], ["x"]))
        with pytest.raises(MethodError, match="width 64, not 32"):
            start_from(GPSNet(Config.preset("small", ["a"], ["x"], width=32)), old)

    def test_weights_do_not_depend_on_more_genes_where_these_are_a_bias(self):
        networks = []
        for genes in (["a"], ["a", "b", "c"]):
            torch.manual_seed(0)
            networks.append(GPSNet(Config.preset("gpsnet", genes, ["x", "y"])))
        one, other = (n.state_dict() for n in networks)
        assert all(torch.equal(one[n], other[n]) for n in one if n != "bias.weight")


class TestContext:
    def test_a_training_cell_does_not_see_its_own_labels(self, tiny):
        cells = list(tiny.iter_cells("train"))
        config = Config.preset("gpsnet", tiny.genes, tiny.patterns, context=True)
        rng = np.random.Generator(np.random.Philox(0))
        shuffled = [replace(cells[0], labels=rng.random(cells[0].labels.shape) < 0.5), *cells[1:]]
        fields = []
        for some in (cells, shuffled):
            counted = GeneScores.count(listed(tiny, some))
            tokens = LabelledTokens(listed(tiny, some), config, counted)
            fields.append([tokens.tokens(k).fields for k in range(2)])
        assert torch.equal(fields[0][0], fields[1][0])
        assert not torch.equal(fields[0][1], fields[1][1])  # others' labels it sees

    def test_held_out_cells_see_all_training_cells(self, tiny):
        cells = tiny.iter_cells("train")
        config = Config.preset("gpsnet", tiny.genes, tiny.patterns, context=True)
        counted = GeneScores.count(cells)
        own = LabelledTokens(cells, config, counted).tokens(0)
        held_out = LabelledTokens(cells, config, counted, held_out=True).tokens(0)
        assert not torch.equal(own.fields, held_out.fields)


def listed(dataset, cells):
    """Cells of a list."""
    found = dataset.iter_cells("train")
    given = {cell.cell_id: cell for cell in cells}
    return found.mapped(lambda cell: given[cell.cell_id])


class TestRefusals:
    def test_without_labels(self, tiny):
        cells = tiny.iter_cells("train").without_labels()
        with pytest.raises(MethodError, match="labelled pairs"):
            train_network(config_of(cells), TRAINING, cells, 0)

    def test_early_stopping_without_val_cells(self, tiny):
        with pytest.raises(MethodError, match="val cells"):
            trained(tiny, replace(TRAINING, patience=2))


class TestEarlyStopping:
    def test_it_stops_and_takes_the_best_epoch(self, tiny, tmp_path):
        # a rate at which this soon gets worse
        training = replace(TRAINING, epochs=40, rate=0.1, decay=False, patience=2)
        path, val = tmp_path / "state.safetensors", tiny.iter_cells("val")
        result = trained(tiny, training, val=val, checkpoint=path)
        losses = [row["val_loss"] for row in result.history]
        best = int(np.argmin(losses))
        assert len(losses) == best + 1 + training.patience < 40
        same = trained(tiny, replace(training, epochs=best + 1, patience=0))
        assert weights(result.network) == weights(same.network)
        again = trained(tiny, training, val=val, checkpoint=path)
        assert again.history == result.history
        assert weights(again.network) == weights(result.network)


class TestLostLoss:
    def test_it_stops_and_the_last_good_checkpoint_stays(self, tiny, tmp_path, monkeypatch):
        steps = 4  # of an epoch
        rates = TrainingConfig.rate_at
        monkeypatch.setattr(
            TrainingConfig,
            "rate_at",
            lambda self, step, of: rates(self, step, of) if step < steps else 1e30,
        )
        path = tmp_path / "state.safetensors"
        with pytest.raises(MethodError, match="is not finite in epoch 2") as caught:
            trained(tiny, checkpoint=path)
        assert f"after epoch 1, is in {path}" in str(caught.value)
        assert "lower rate than 0.003" in str(caught.value)
        tensors, note = read_tensors(path)
        assert len(note["history"]) == 1
        assert all(torch.isfinite(value).all() for value in tensors.values())
        monkeypatch.undo()
        assert len(trained(tiny, checkpoint=path).history) == 3

    def test_without_a_checkpoint_it_says_so(self, tiny):
        with pytest.raises(MethodError, match="no checkpoint was asked for"):
            trained(tiny, replace(TRAINING, rate=1e30, warmup=0))


SCRIPT = """
import json, logging, os, signal, sys
from pathlib import Path

import torch
import torch._dynamo  # once, not in each child
from accelerate import PartialState, debug_launcher

torch.set_num_threads(1)
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods.gpsnet import train
from gpattern_bench.methods.gpsnet.config import Config
from gpattern_bench.methods.gpsnet.config import TrainingConfig
from gpattern_bench.methods.gpsnet.weights import read_tensors, write_tensors


def main(settings):
    if settings["processes"] > 1:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    dataset, out = Dataset(Path(settings["dataset"])), Path(settings["out"])
    state = out / "state.safetensors"
    shown, show = [], train._Trainer._shown

    def noted(self, epoch, index):
        if settings["killed"] and state.exists():
            if len(read_tensors(state)[1]["history"]) >= settings["killed"]:
                os.kill(os.getpid(), signal.SIGKILL)
        shown.append([epoch, self.data.cells[index].cell_id])
        return show(self, epoch, index)

    train._Trainer._shown = noted
    result = train.train_network(
        Config.from_json(settings["config"]),
        TrainingConfig(**settings["training"]),
        dataset.iter_cells("train"),
        0,
        val=dataset.iter_cells("val"),
        checkpoint=state,
    )
    rank = PartialState().process_index
    write_tensors(out / f"{rank}.safetensors", result.network.state_dict())
    (out / f"{rank}.json").write_text(json.dumps({"history": result.history, "shown": shown}))


for settings in map(json.loads, sys.argv[1:]):
    if settings["processes"] > 1:
        debug_launcher(main, (settings,), settings["processes"])
    elif not (child := os.fork()):
        main(settings)
        os._exit(0)
    else:
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""

KILLED = replace(TRAINING, epochs=12)
SHARED = replace(TRAININGS["gpsnet"], epochs=3, batch=4, warmup=3, decay=False)


@pytest.fixture(scope="module")
def apart(tiny, tmp_path_factory) -> tuple[Path, str]:
    """Trained in other processes, one thread each, with val cells and a checkpoint.

    In a folder and what was said: one process that ends itself by SIGKILL after three epochs, and
    two processes together.
    """
    folder, cells = tmp_path_factory.mktemp("apart"), tiny.iter_cells("train")
    settings = [
        {
            "dataset": str(tiny.folder),
            "out": str(folder / name),
            "config": config.to_json(),
            "training": asdict(training),
            "processes": processes,
            "killed": killed,
        }
        for name, config, training, processes, killed in (
            ("killed", config_of(cells), KILLED, 1, 3),
            ("shared", small_gpsnet(cells), SHARED, 2, 0),
        )
    ]
    for each in settings:
        Path(each["out"]).mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(script), *map(json.dumps, settings)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


class TestGoingOn:
    def test_after_kill_9_the_weights_are_the_same_to_the_bit(self, tiny, apart):
        training, val = KILLED, tiny.iter_cells("val")
        path = apart[0] / "killed" / "state.safetensors"
        assert 3 <= len(read_tensors(path)[1]["history"]) < 12
        resumed = trained(tiny, training, val=val, checkpoint=path)
        whole = trained(tiny, training, val=val)
        assert weights(resumed.network) == weights(whole.network)
        assert resumed.history == whole.history

    def test_it_does_not_begin_again(self, tiny, tmp_path, monkeypatch):
        path = tmp_path / "state.safetensors"
        result = trained(tiny, checkpoint=path)
        before = path.stat().st_mtime_ns
        monkeypatch.setattr(LabelledTokens, "tokens", None)  # not a cell is asked for
        again = trained(tiny, checkpoint=path)
        assert weights(again.network) == weights(result.network)
        assert path.stat().st_mtime_ns == before
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("other", ["seed", "training", "cells", "val"])
    def test_another_run_s_checkpoint_is_refused(self, tiny, tmp_path, other):
        path = tmp_path / "state.safetensors"
        trained(tiny, replace(TRAINING, epochs=1), checkpoint=path)
        before = path.read_bytes()
        cells = tiny.iter_cells("train", keep=tiny.cells("train")["cell_id"].tolist()[1:])
        full = tiny.iter_cells("train")
        training = replace(TRAINING, epochs=1, rate=1e-3 if other == "training" else TRAINING.rate)
        with pytest.raises(MethodError, match="another run"):
            train_network(
                config_of(full),
                training,
                cells if other == "cells" else full,
                1 if other == "seed" else 0,
                val=tiny.iter_cells("val") if other == "val" else None,
                checkpoint=path,
            )
        assert path.read_bytes() == before

    @pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
    def test_a_damaged_one_is_refused(self, tiny, tmp_path, damage):
        path = tmp_path / "state.safetensors"
        trained(tiny, replace(TRAINING, epochs=1), checkpoint=path)
        whole = path.read_bytes()
        bad = {"cut": whole[: len(whole) // 2], "garbage": b"<html>" * 99, "empty": b""}
        path.write_bytes(bad[damage])
        with pytest.raises(MethodError, match="no readable weights"):
            trained(tiny, replace(TRAINING, epochs=1), checkpoint=path)


class TestTwoProcesses:
    def test_they_do_together_what_one_does(self, tiny, apart):
        training, folder, errors = SHARED, apart[0] / "shared", apart[1]
        alone = trained(tiny, training, config_of=small_gpsnet, val=tiny.iter_cells("val"))
        told = [line[:12] for line in errors.splitlines() if line.startswith("epoch")]
        assert told == [f"epoch {k} of 3" for k in (1, 2, 3)], "one of them speaks"
        parts = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]

        cells = tiny.cells("train")["cell_id"].tolist()
        once = sorted([epoch, cell] for epoch in range(training.epochs) for cell in cells)
        assert sorted(parts[0]["shown"] + parts[1]["shown"]) == once
        assert len(parts[0]["shown"]) == len(parts[1]["shown"])
        assert parts[0]["history"] == parts[1]["history"]
        for ours, theirs in zip(parts[0]["history"], alone.history, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        written = [folder / f"{rank}.safetensors" for rank in (0, 1)]
        assert written[0].read_bytes() == written[1].read_bytes()
        found = read_tensors(written[0])[0]
        for name, value in alone.network.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)

    def test_too_few_cells_for_them(self, tiny, monkeypatch):
        monkeypatch.setattr(accelerate.Accelerator, "num_processes", 5)
        with pytest.raises(MethodError, match="5 processes share a step of 4 cells"):
            trained(tiny)
