"""Variants of GPSNet: settings, names and files, from the command line to a submission."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from samples import dataset_of, metadata_of, small_dataset

from gpattern_bench.board.submission import _cost
from gpattern_bench.board.submit import submit_run
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MethodError, SubmissionError
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.methods.gpsnet.config import FINE_TUNING, PRESETS, TRAININGS, TrainingConfig
from gpattern_bench.methods.gpsnet.method import GPSNetMethod
from gpattern_bench.methods.gpsnet.variants import make_variant, parse_settings, split_settings
from gpattern_bench.runs import ablation as ablations
from gpattern_bench.runs.ablation import train_variants
from gpattern_bench.runs.run import run_method
from gpattern_bench.runs.saved_model import load_model
from gpattern_bench.tables.model_output import Variant, read_model_output
from gpattern_bench.tables.predictions import read_origin

TINY = {"width": 8, "heads": 2, "encoder_depth": 1, "decoder_depth": 1, "neighbours": 4}
SET = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
VARIANT = ["--preset", "u2os", *SET, "--set", "epochs=1", "--name", "mine"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def out(dataset, tmp_path_factory):
    """A run of a variant, as the command line makes it."""
    from gpattern_bench.cli import app

    folder = tmp_path_factory.mktemp("runs")
    words = ["run", "gpsnet", "--dataset", str(dataset.folder), "--out", str(folder), *VARIANT]
    app([*words, "--batch-size", "3"], standalone_mode=False)
    return folder


def values(network) -> dict:
    return {key: getattr(network.config, key) for key in TINY}


class TestFiles:
    def test_say_what_it_is(self, out):
        report = json.loads((out / "small" / "run-seed0.json").read_text())
        said = {"base": "gpsnet", "preset": "u2os", "settings": TINY | {"epochs": 1}}
        assert report["method"] == "mine"
        assert report["variant"] == said
        model = json.loads((out / "small" / "model-seed0" / "model.json").read_text())
        assert (model["method"], model["variant"]) == ("mine", said)
        assert read_origin(out / "small" / "test-seed0.parquet").method == "mine"

    def test_have_the_time_at_each_batch_size(self, out):
        report = json.loads((out / "small" / "run-seed0.json").read_text())
        assert report["batch_size"] == 3
        assert set(report["seconds_by_batch"]) == {"1", "3"}
        assert report["seconds_by_batch"]["3"] == report["seconds"]["test"]
        assert set(report["cpu_seconds_by_batch"]) == {"1", "3"}
        assert "torch" in report["versions"]

    def test_bring_the_time_cell_by_cell_to_the_board(self, out, tmp_path):
        report = out / "small" / "run-seed0.json"
        told = json.loads(report.read_text())["seconds_by_batch"]["1"]
        assert _cost(report, "test")["seconds_batch_1"] == told
        older = json.loads(report.read_text()) | {"seconds_by_batch": None}
        (tmp_path / "run-seed0.json").write_text(json.dumps(older))
        for there in (tmp_path / "run-seed0.json", tmp_path / "none.json"):
            assert "seconds_batch_1" not in _cost(there, "test")

    def test_out_of_fold_have_fits_and_predictions_apart(self, tmp_path):
        gold = small_dataset(tmp_path, "gold", split="test", n_fovs=2)
        made = make_variant(Variant("gpsnet", "u2os", TINY | {"steps": 1}), "mine")()
        run_method(made, gold, tmp_path / "out", cv=True)
        report = json.loads((tmp_path / "out" / "gold" / "run-seed0-cv-cell.json").read_text())
        assert report["batch_size"] == 8
        assert set(report["seconds_by_batch"]) == {"1", "8"}
        assert report["seconds_by_batch"]["8"] == report["seconds"]["test"]
        for key in ("seconds", "cpu_seconds"):
            assert set(report[key]) == {"fit", "test"}
            assert min(report[key].values()) > 0

    def test_make_the_method_again(self, out, dataset):
        method, model = load_model(out)
        assert (method.about.name, method.about.kind) == ("mine", "model")
        assert values(method.network) == TINY
        assert (method.preset, method.training) == ("u2os", TrainingConfig(epochs=1))
        assert model.variant == method.variant

    def test_of_predict_say_it_too(self, out, dataset, command, tmp_path):
        file = tmp_path / "scores.parquet"
        code, *_ = command("predict", dataset.folder, "--model", out, "--out", file)
        assert code == 0
        assert read_model_output(file).model.variant.settings["width"] == 8
        assert Evaluator(dataset).eval(file, replicates=0)["n"] == len(dataset.pairs("test"))

    def test_of_another_method_hold_no_such_key(self, dataset, tmp_path):
        run_method("prevalence", dataset, tmp_path)
        model = json.loads((tmp_path / "small" / "model-seed0" / "model.json").read_text())
        assert "variant" not in model

    def test_are_those_of_the_method_with_these_settings(self, out, dataset, tmp_path):
        variant = Variant("gpsnet", "u2os", TINY | {"epochs": 1})
        run_method(make_variant(variant, "mine")(), dataset, tmp_path, batch_size=3)
        for name in ("val-seed0.parquet", "test-seed0.parquet", "model-seed0/model.safetensors"):
            assert (tmp_path / "small" / name).read_bytes() == (out / "small" / name).read_bytes()


class TestGoesOn:
    def test_to_robustness(self, out, dataset, command):
        words = ["robustness", "mine", "--dataset", dataset.folder, "--out", out, "--json"]
        code, told, _ = command(*words)
        assert code == 0
        assert json.loads(told)["method"] == "mine"

    def test_to_a_fine_tuning(self, out, dataset, command, tmp_path):
        words = ["run", "gpsnet", "--dataset", dataset.folder, "--out", tmp_path, *VARIANT]
        code, *_ = command(*words, "--set", "rate=1e-4", "--init", out)
        assert code == 0
        assert load_model(tmp_path)[0].training.rate == 1e-4

    def test_to_a_submission(self, out, dataset, tmp_path, monkeypatch):
        from gpattern_bench.board import submit

        monkeypatch.setattr(submit, "load_dataset", lambda _: dataset)
        to = tmp_path / "submissions" / "mine"
        with pytest.raises(SubmissionError, match="is missing, and there is no template"):
            submit_run(out, to)
        to.mkdir(parents=True)
        metadata_of("mine", inputs=["coordinates", "gene"]).write(to)
        assert [file.path for file in submit_run(out, to).files] == [
            f"predictions/small/{split}-seed0.parquet" for split in ("test", "val")
        ]


class TestSettings:
    def test_hold_in_all_stages_of_the_training(self):
        method = make_variant(Variant("gpsnet", "gpsnet", {"thinned": 0.1}), "mine")()
        assert method._scheduled
        assert method.training.thinned == 0.1
        assert method.training.rate == TRAININGS["gpsnet"].rate != FINE_TUNING.rate
        assert not make_variant(Variant("gpsnet", "gpsnet", {"epochs": 2}), "mine")()._scheduled

    def test_are_beside_those_of_the_method(self):
        method = make_variant(Variant("gpsnet_context", "gpsnet", {"width": 32}), "mine")()
        assert method._changes["context"]
        assert method._changes["width"] == 32

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("neighbors=64", "no setting neighbors (did you mean neighbours?)"),
            ("genes=A", "no setting genes"),
            ("neighbours", "expected KEY=VALUE"),
            ("neighbours=many", "neighbours is many, expected a whole number"),
            ("neighbours=6.5", "expected a whole number"),
            ("rate=nan", "rate is nan, expected a number"),
            ("pooled=1", "pooled is 1, expected true or false"),
            ("inputs=pixels", "expected coordinates or micrometres or invariant"),
            ("betas=0.9", "expected two numbers"),
        ],
    )
    def test_that_are_none_are_told_with_those_there_are(self, text, told):
        with pytest.raises(MethodError) as caught:
            parse_settings(["width=8", text])
        assert told in str(caught.value)
        if "no setting" in told:
            assert "neighbours (a whole number)" in str(caught.value)
            assert "epochs (a whole number)" in str(caught.value)

    def test_are_set_once(self):
        with pytest.raises(MethodError, match="width is set twice"):
            parse_settings(["width=8", "width=16"])

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"heads": 5}, "5 heads do not divide the width of 768"),
            ({"betas": (0.9, 1.0)}, "betas are"),
            ({"weight_decay": -0.1}, "weight_decay is -0.1"),
            ({"rate": float("inf")}, "rate and clip"),
            ({"epochs": 0}, "epochs is 0"),
        ],
    )
    def test_that_no_network_or_training_can_have(self, settings, told):
        with pytest.raises(MethodError, match=told):
            split_settings("u2os", settings)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gpsnet", "--set", "width=8"], "add --name"),
        (["gpsnet", "--preset", "u2os"], "add --name"),
        (["gpsnet", "--name", "mine"], "say by --preset or --set what differs"),
        (["gpsnet", "--preset", "u2os", "--name", "boosted"], "a method of this package"),
        (["gpsnet", "--preset", "u2os", "--name", "My Net"], "lower-case letters"),
        (["gpsnet", "--preset", "u2so", "--name", "mine"], "no GPSNet named 'u2so'"),
        (["bento", "--set", "width=8", "--name", "mine"], "bento takes no --preset"),
        (["bentto", "--set", "width=8", "--name", "mine"], "Did you mean bento"),
        (["sprawl", "--batch-size", "2"], "leave out --batch-size"),
    ],
)
def test_what_is_no_variant_is_refused_before_anything_is_read(
    words, told, dataset, cli, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, err = cli("run", *words, "--dataset", dataset.folder)
    assert code == 2
    assert told in err
    assert not list(tmp_path.iterdir())


class TestAblation:
    def test_of_the_papers_models_has_the_rows_of_its_tables(self):
        rows = list(ablations._rows("neighbours", "u2os", PRESETS["u2os"], 2))
        assert [name for name, *_ in rows] == list(ablations.REPORTED["neighbours"]["u2os"])
        assert rows[-1] == ("2048", {"neighbours": 2048}, 2)
        rows = list(ablations._rows("depths", "nih3t3", PRESETS["nih3t3"], 2))
        depths = [(changes["encoder_depth"], changes["decoder_depth"]) for _, changes, _ in rows]
        assert [name for name, *_ in rows] == list(ablations.REPORTED["depths"]["nih3t3"])
        assert depths == [(11, 1), (8, 4), (6, 6), (4, 8), (1, 11)]

    def test_changes_the_preset_in_all_rows(self, dataset, monkeypatch):
        trained = []
        fit = GPSNetMethod.fit

        def noted(self, *given):
            fit(self, *given)
            config = self.network.config
            trained.append((config.neighbours, config.width, self.training))

        monkeypatch.setattr(GPSNetMethod, "fit", noted)
        monkeypatch.setattr(ablations, "_QUICK_CELLS", 2)
        monkeypatch.setattr(ablations, "_NEIGHBOURS", (1,))
        settings = TINY | {"epochs": 1, "rate": 0.001}
        options = {"studies": ["neighbours"], "preset": "u2os", "settings": settings}
        found = list(train_variants(dataset, quick=True, **options))
        assert [row.reported["u2os"] for row in found] == [
            ablations.REPORTED["neighbours"]["u2os"][k] for k in ("1", "2048")
        ]
        training = TrainingConfig(epochs=1, rate=0.001, warmup=0.1)
        assert trained == [(1, 8, training), (2048, 8, training)]

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"preset": "u2so"}, "no GPSNet named"),
            ({"preset": "gpsnet", "studies": ["neighbours"]}, "no part without an encoder"),
            ({"preset": "gpsnet", "studies": ["depths"]}, "2 layers cannot be divided"),
            ({"settings": {"heads": 5}}, "5 heads do not divide"),
        ],
    )
    def test_what_cannot_be_is_refused(self, dataset, options, told):
        with pytest.raises(MethodError, match=told):
            list(train_variants(dataset, quick=True, **options))


class TestDepth:
    """GPSNet with `depth` reads z, from the tables to the scores."""

    @pytest.fixture(scope="class")
    @classmethod
    def deep(cls, tmp_path_factory) -> Dataset:
        """Cells whose z is their gene's number, but for some molecules without."""
        release = simulate(7, n_fovs=12, cells_per_fov=3, n_genes=10, mean_molecules=60)
        z = pd.factorize(release.molecules["gene"])[0].astype(float)
        z[::7] = np.nan
        release.molecules["z"] = z
        return dataset_of(tmp_path_factory.mktemp("data") / "deep", release, name="deep")

    def test_cells_have_heights_only_if_asked_for(self, deep, dataset):
        cells = deep.iter_cells("test")
        assert cells.has_depth
        assert all(cell.z is None for cell in cells)
        table = deep.molecules("test").to_pandas()
        found = {cell.cell_id: cell for cell in cells.with_depth()}
        for name, rows in table.groupby("cell_id", observed=True):
            np.testing.assert_array_equal(found[name].z, rows["z"])
            assert np.isnan(found[name].z).any()
        flat = dataset.iter_cells("test")
        assert not flat.has_depth
        assert all(cell.z is None for cell in flat.with_depth())

    def test_reach_the_scores(self, deep, command, tmp_path):
        words = ["run", "gpsnet_coordinates", "--dataset", deep.folder, *SET, "--set", "epochs=1"]
        files = {}
        for depth in ("true", "false"):
            out = tmp_path / depth
            named = ["--set", f"depth={depth}", "--name", "mine", "--out", out]
            assert command(*words, *named)[0] == 0
            files[depth] = (out / "deep" / "test-seed0.parquet").read_bytes()
        assert files["true"] != files["false"]
        method, _ = load_model(tmp_path / "true")
        assert method.network.config.depth
        words = ["robustness", "mine", "--dataset", deep.folder, "--out", tmp_path / "true"]
        code, out, _ = command(*words, "--json")
        assert code == 0
        changes = json.loads(out)["perturbations"]
        assert changes["shuffled"]["largest_change"] == 0

    def test_of_flat_cells_are_told(self, deep, dataset, tmp_path, caplog):
        made = make_variant(Variant("gpsnet", "gpsnet", TINY | {"steps": 2, "depth": True}), "mine")
        with pytest.raises(MethodError, match="no molecule of the training cells has a z"):
            run_method(made(), dataset, tmp_path)
        run_method(made(), dataset, tmp_path, train_on=[deep])
        assert "mine reads z, and these cells have none" in caplog.text
