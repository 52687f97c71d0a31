"""Training on several datasets: the cells of all as those of one, and which protocol that makes."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from samples import dataset_of, small_dataset

from gpattern_bench.curate.release import Release
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.dataset import Dataset, load_datasets
from gpattern_bench.errors import MethodError, TableError, UnknownDatasetError
from gpattern_bench.methods import get_method
from gpattern_bench.methods.controls import GenePrior
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.predictions import read_predictions
from gpattern_bench.runs.robustness import run_robustness
from gpattern_bench.runs.run import run_method
from gpattern_bench.runs.saved_model import load_model
from gpattern_bench.runs.training import training_cells, val_cells
from gpattern_bench.tables.predictions import Origin

pytestmark = pytest.mark.usefixtures("brief_training")

IDS = ("fov", "cell_id")
SIZE = {"n_fovs": 6, "cells_per_fov": 3, "mean_molecules": 60}


def renamed(release: Release, change) -> Release:
    """The release with other gene names."""
    molecules, labels = (
        table.assign(gene=table["gene"].map(change))
        for table in (release.molecules, release.labels)
    )
    return replace(release, molecules=molecules, labels=labels)


def prefixed(release: Release, prefix: str) -> Release:
    """The release with a prefix before its cells and fields of view."""
    cells, molecules, labels = (
        table.assign(
            **{
                name: prefix + table[name].astype(str)
                for name in ("fov", "cell_id")
                if name in table
            }
        )
        for table in (release.cells, release.molecules, release.labels)
    )
    return replace(release, molecules=molecules, cells=cells, labels=labels)


def merged(releases: list[Release]) -> Release:
    molecules, cells, labels = (
        pd.concat([getattr(release, name) for release in releases], ignore_index=True)
        for name in ("molecules", "cells", "labels")
    )
    return Release(molecules, cells, labels)


@pytest.fixture(scope="module")
def releases() -> dict[str, Release]:
    """Of one simulator, so with the same ids of cells, and panels that overlap: G04 to G10."""
    first = simulate(7, n_genes=10, **SIZE)
    second = simulate(8, n_genes=10, **SIZE)
    return {
        "first": first,
        "second": renamed(second, lambda gene: f"G{int(gene[1:]) + 3:02d}"),
    }


@pytest.fixture(scope="module")
def sets(tmp_path_factory, releases) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("sets")
    return [dataset_of(folder / name, each, name=name) for name, each in releases.items()]


@pytest.fixture(scope="module")
def one(tmp_path_factory, releases, sets) -> Dataset:
    """The same cells, merged into one dataset before curation."""
    splits = {f"{each.name}/{fov}": s for each in sets for fov, s in each.split_of.items()}
    whole = merged([prefixed(each, f"{name}/") for name, each in releases.items()])
    return dataset_of(tmp_path_factory.mktemp("one") / "one", whole, splits=splits)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "sim": small_dataset(folder, "sim", n_fovs=6),
        "wide": small_dataset(folder, "wide", seed=8, n_fovs=6),
        "real": small_dataset(folder, "real", seed=9, form="bento-h5ad", n_fovs=6),
        "other": small_dataset(folder, "other", seed=10, form="bento-h5ad", n_fovs=6),
        "gold": small_dataset(folder, "gold", seed=11, split="test", form="bento-h5ad", n_fovs=6),
        "unlabelled": small_dataset(folder, "unlabelled", labels=False, n_fovs=6),
    }


@pytest.fixture(scope="module")
def model(made, brief_training, tmp_path_factory) -> Path:
    """GPSNet, fitted on simulated cells."""
    out = tmp_path_factory.mktemp("pre")
    run_method("gpsnet", made["gold"], out, train_on=[made["sim"]])
    return out / "gold" / "model-seed0-simulation-sim"


def another_version(dataset: Dataset, folder: Path) -> Dataset:
    for path in dataset.folder.iterdir():
        folder.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": "2.0.0"}))
    return Dataset(folder)


class TestCells:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_are_those_of_the_datasets_merged(self, sets, one, split):
        found = (training_cells if split == "train" else val_cells)(sets[::-1])
        expected = one.iter_cells(split)
        assert found.genes == expected.genes == tuple(f"G{i:02d}" for i in range(1, 14))
        assert found.patterns == expected.patterns
        assert len(found) == len(expected) > 0
        for _ in range(2):  # any number of times
            for a, b in zip(found, expected, strict=True):
                assert (a.cell_id, a.fov) == (b.cell_id, b.fov)
                for name in ("xy", "gene", "genes", "counts", "labels", "labelled"):
                    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
                assert shapely.equals_exact(a.boundary, b.boundary)
                assert (a.nucleus is None) == (b.nucleus is None)

    def test_of_one_dataset_are_its_own(self, sets):
        found = training_cells(sets[:1])
        assert found.genes == sets[0].genes
        ids = [cell.cell_id for cell in found]
        assert ids == sets[0].cells("train")["cell_id"].tolist()

    def test_without_a_train_split_are_all(self, made):
        ids = [cell.cell_id for cell in training_cells([made["gold"], made["sim"]])]
        gold = [f"gold/{name}" for name in made["gold"].cells()["cell_id"]]
        assert ids == gold + [f"sim/{name}" for name in made["sim"].cells("train")["cell_id"]]
        assert {cell.cell_id[:3] for cell in val_cells([made["gold"], made["sim"]])} == {"sim"}
        assert val_cells([made["gold"]]) is None

    def test_of_val_have_the_panel_of_training(self, sets, made):
        assert not set(sets[1].genes) <= set(made["gold"].genes)
        both = [made["gold"], sets[1]]
        assert val_cells(both).genes == training_cells(both).genes

    def test_hide_their_labels(self, sets):
        assert all(cell.labels is None for cell in training_cells(sets).without_labels())

    def test_are_read_one_after_the_other(self, sets, tmp_path):
        second = another_version(sets[1], tmp_path / "second")
        cells = training_cells([sets[0], second])
        (second.folder / "molecules.parquet").unlink()
        stream = iter(cells)
        assert next(stream).cell_id.startswith("first/")
        with pytest.raises(TableError):
            list(stream)

    def test_can_be_sent_to_a_worker(self, sets):
        cells = training_cells(sets)
        sent = pickle.loads(pickle.dumps(cells))
        assert [cell.cell_id for cell in sent] == [cell.cell_id for cell in cells]


class TestMethods:
    def same_scores(self, make, sets, one) -> None:
        """Fitted on the datasets it scores a third panel as when they were one before."""
        target = one.iter_cells("test")
        scores = []
        for train in (training_cells(sets), one.iter_cells("train")):
            method = make()
            method.fit(train, 3)
            scores.append(predict_cells(method, target, bar=False))
        pd.testing.assert_frame_equal(*scores)
        values = scores[0][list(one.patterns)].to_numpy()
        assert np.isfinite(values).all()
        assert values.std() > 0

    @pytest.mark.parametrize("name", ["prevalence", "gene_prior"])
    def test_controls(self, sets, one, name):
        self.same_scores(lambda: get_method(name), sets, one)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["bento", "boosted", "boosted_gene", "locfish_2018", "ella"])
    def test_of_features(self, sets, one, name):
        self.same_scores(lambda: get_method(name), sets, one)


class TestProtocol:
    @pytest.mark.parametrize(
        ("dataset", "train_on", "protocol", "stem"),
        [
            ("gold", "sim wide", "simulation", "test-seed0-simulation-sim-and-wide"),
            ("gold", "wide sim", "simulation", "test-seed0-simulation-sim-and-wide"),
            ("gold", "sim real", "transfer", "test-seed0-transfer-real-and-sim"),
            ("gold", "real other", "transfer", "test-seed0-transfer-other-and-real"),
            ("real", "real sim", "fit", "test-seed0-fit-sim"),
            ("real", "sim wide real", "fit", "test-seed0-fit-sim-and-wide"),
            ("real", "real other", "transfer", "test-seed0-transfer-other-and-real"),
            ("sim", "wide sim", "fit", "test-seed0-fit-wide"),
            ("sim", "sim real", "transfer", "test-seed0-transfer-real-and-sim"),
        ],
    )
    def test_and_names(self, made, tmp_path, dataset, train_on, protocol, stem):
        chosen = [made[name] for name in train_on.split()]
        path = run_method("gene_prior", made[dataset], tmp_path, train_on=chosen)[-1]
        assert path.stem == stem
        origin = read_predictions(path)[1]
        ids = tuple(sorted(f"{name}@1.2.0" for name in train_on.split()))
        assert (origin.protocol, origin.trained_on) == (protocol, ids)
        report = json.loads(path.with_name(f"{origin.stem('run')}.json").read_text())
        assert (report["protocol"], report["trained_on"]) == (protocol, list(ids))
        _, model = load_model(path.with_name(origin.stem("model")))
        assert model.fitted_on == ids

    def test_fit_learns_nothing_from_test(self, made):
        ids = {cell.cell_id for cell in training_cells([made["real"], made["sim"]])}
        assert not ids & {f"real/{name}" for name in made["real"].cells("test")["cell_id"]}

    def test_of_several_orders_is_one_run(self, made, tmp_path):
        a, b = (
            run_method("gene_prior", made["gold"], tmp_path / str(k), train_on=chosen)[-1]
            for k, chosen in enumerate([[made["sim"], made["real"]], [made["real"], made["sim"]]])
        )
        assert a.read_bytes() == b.read_bytes()

    def test_robustness_finds_the_model(self, made, tmp_path):
        chosen = [made["wide"], made["sim"]]
        run_method("gene_prior", made["gold"], tmp_path, train_on=chosen)
        path, report = run_robustness("gene_prior", made["gold"], tmp_path, train_on=chosen)
        assert path.name == "robustness-seed0-simulation-sim-and-wide.json"
        assert report.trained_on == ("sim@1.2.0", "wide@1.2.0")
        assert json.loads(path.read_text())["trained_on"] == ["sim@1.2.0", "wide@1.2.0"]
        with pytest.raises(MethodError, match="gene_prior must be fitted, and there is no"):
            run_robustness("gene_prior", made["gold"], tmp_path, train_on=chosen[:1])

    def test_names_of_three_differ(self):
        def stem(*names: str) -> str:
            return Origin("d", "1", "test", "m", 0, "simulation", names).stem()

        stems = {stem("a@1", f"b{k}@1", f"c{j}@1") for k in range(20) for j in range(20)}
        assert len(stems) == 400
        assert max(map(len, stems)) == len("test-seed0-simulation-a-and-2-more-01234567")


class TestBesideFolds:
    def test_each_fold_is_fitted_on_the_others_and_on_what_is_beside(self, made, tmp_path):
        fitted = []

        class Noting(GenePrior):
            about = replace(GenePrior.about, name="noting")

            def fit(self, train, seed):
                fitted.append({cell.cell_id for cell in train})
                super().fit(train, seed)

        chosen = [made["sim"], made["other"]]
        path = run_method(Noting(), made["gold"], tmp_path, train_on=chosen, cv=True)[-1]
        assert path.stem == "test-seed0-cv-cell-other-and-sim"
        origin = read_predictions(path)[1]
        assert (origin.protocol, origin.trained_on) == ("cv-cell", ("other@1.2.0", "sim@1.2.0"))
        beside = {cell.cell_id for cell in training_cells(chosen)}
        own = {f"gold/{name}" for name in made["gold"].cells()["cell_id"]}
        assert len(fitted) == 5
        left_out = [own - ids for ids in fitted]
        assert all(ids - own == beside for ids in fitted)
        assert sorted(name for some in left_out for name in some) == sorted(own)


@pytest.mark.slow
@pytest.mark.usefixtures("brief_training")
class TestStartingFromAModel:
    SIM = "test-seed0-simulation-sim"

    def test_gives_what_one_command_gives(self, made, model, tmp_path):
        chosen = [made["sim"], made["other"]]
        files = [
            run_method("gpsnet", made["gold"], tmp_path / str(k), train_on=chosen, init=init)[-1]
            for k, init in enumerate([None, model])
        ]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert files[0].stem == "test-seed0-transfer-other-and-sim"
        assert not list(files[0].parent.glob("training*"))

    def test_counts_its_training_data(self, made, model, tmp_path):
        chosen = [made["sim"], made["real"]]
        path = run_method("gpsnet", made["real"], tmp_path, train_on=chosen, init=model)[-1]
        origin = read_predictions(path)[1]
        assert (origin.protocol, origin.trained_on) == ("fit", ("real@1.2.0", "sim@1.2.0"))
        shutil.copytree(model, tmp_path / "other")
        card = json.loads((model / "model.json").read_text()) | {"fitted_on": ["synthetic@1.0.0"]}
        (tmp_path / "other" / "model.json").write_text(json.dumps(card))
        path = run_method("gpsnet", made["real"], tmp_path, init=tmp_path / "other")[-1]
        origin = read_predictions(path)[1]
        assert (origin.protocol, origin.trained_on) == ("fit", ("real@1.2.0", "synthetic@1.0.0"))
        with pytest.raises(MethodError, match=r"fitted on sim@1\.2\.0, which is not"):
            run_method("gpsnet", made["real"], tmp_path, init=model)

    def test_refuses_one_that_has_seen_the_labels(self, made, model, tmp_path):
        run_method("gpsnet", made["real"], tmp_path, train_on=[made["gold"]])
        seen = tmp_path / "real" / "model-seed0-transfer-gold"
        with pytest.raises(MethodError, match=r"was fitted on the labels of gold@1\.2\.0"):
            run_method("gpsnet", made["gold"], tmp_path, cv=True, init=seen)
        with pytest.raises(MethodError, match="bento cannot start from a model"):
            run_method("bento", made["gold"], tmp_path, train_on=[made["sim"]], init=model)
        with pytest.raises(MethodError, match="is a model of gpsnet; expected one of gpsnet_coord"):
            run_method("gpsnet_coordinates", made["gold"], tmp_path, cv=True, init=model)


@pytest.mark.slow
@pytest.mark.usefixtures("brief_training")
class TestStartingFromOtherPatterns:
    @pytest.fixture(scope="class")
    @classmethod
    def three(cls, tmp_path_factory) -> Dataset:
        """Labelled for three of the four patterns, under other names."""
        release = simulate(12, n_genes=10, **SIZE)
        names = {"nuclear": "inside", "cell_edge": "rim", "cytoplasmic": "around"}
        labels = release.labels.drop(columns="nuclear_edge").rename(columns=names)
        patterns = tuple(sorted(names.values()))
        folder = tmp_path_factory.mktemp("three") / "three"
        return dataset_of(folder, replace(release, labels=labels), patterns, name="three")

    def test_is_a_run_like_others(self, made, three, model, tmp_path, caplog):
        caplog.set_level("INFO")
        a, b, other = (
            run_method(
                "gpsnet", three, tmp_path / str(k), train_on=[made["sim"]], seed=seed, init=model
            )[-1]
            for k, seed in enumerate((0, 0, 1))
        )
        said = "edge: its last layer begins anew, for around, inside, rim"
        assert caplog.text.count(said) == 3
        assert "fitting on three@1.0.0\n" in caplog.text
        assert a.read_bytes() == b.read_bytes()
        assert not read_predictions(a)[0].equals(read_predictions(other)[0])
        origin = read_predictions(a)[1]
        assert a.stem == "test-seed0-fit-sim"
        assert (origin.protocol, origin.trained_on) == ("fit", ("sim@1.2.0", "three@1.0.0"))
        report = json.loads(a.with_name("run-seed0-fit-sim.json").read_text())
        assert report["trained_on"] == ["sim@1.2.0", "three@1.0.0"]
        folder = a.with_name("model-seed0-fit-sim")
        assert load_model(folder)[1].fitted_on == ("sim@1.2.0", "three@1.0.0")
        path, found = run_robustness("gpsnet", three, tmp_path / "0", train_on=[made["sim"]])
        assert path.name == "robustness-seed0-fit-sim.json"
        assert found.trained_on == origin.trained_on

    def test_a_model_of_a_registered_dataset_needs_no_names(self, made, three, model, tmp_path):
        shutil.copytree(model, tmp_path / "model")
        card = json.loads((model / "model.json").read_text()) | {"fitted_on": ["synthetic@1.0.0"]}
        (tmp_path / "model" / "model.json").write_text(json.dumps(card))
        path = run_method("gpsnet", three, tmp_path, init=tmp_path / "model")[-1]
        assert path.stem == "test-seed0-fit-synthetic"
        with pytest.raises(
            MethodError, match=r"gpsnet must be fitted, and gold@1\.2\.0 has no train"
        ):
            run_method("gpsnet", made["gold"], tmp_path, init=tmp_path / "model")

    def test_real_labels_are_told(self, made, three, tmp_path):
        run_method("gpsnet", made["real"], tmp_path)
        init = tmp_path / "real" / "model-seed0"
        path = run_method("gpsnet", three, tmp_path, train_on=[made["real"]], init=init)[-1]
        assert path.stem == "test-seed0-transfer-real-and-three"

    def test_what_cannot_serve_is_refused(self, made, three, model, tmp_path):
        out = tmp_path / "out"

        def refused(*args, **more) -> str:
            with pytest.raises(MethodError) as caught:
                run_method(*args, init=model, **more)
            assert not out.exists()
            return str(caught.value)

        text = refused("gpsnet", three, out)
        assert "fitted on sim@1.2.0, which is not in the registry: name its folder with" in text
        text = refused("gpsnet", three, out, train_on=[made["wide"], made["sim"]])
        assert text.startswith("gpsnet cannot be fitted on wide@1.2.0 for three@1.0.0: it needs")
        text = refused("gpsnet_context", three, out, train_on=[made["sim"]])
        assert "is a model of gpsnet; expected one of gpsnet_context" in text

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("copy", "which has the molecules of the dataset to predict, copy@1.0.0: start from"),
            ("sim", "which is another version of the dataset to predict, sim@1.0.0, and may"),
        ],
    )
    def test_one_that_saw_the_cells_is_refused(self, made, model, tmp_path, name, expected):
        release = simulate(7, n_genes=10, **SIZE)
        labels = release.labels.drop(columns="nuclear_edge")
        patterns = ("cell_edge", "cytoplasmic", "nuclear")
        same = dataset_of(tmp_path / name, replace(release, labels=labels), patterns, name=name)
        with pytest.raises(MethodError) as caught:
            run_method("gpsnet", same, tmp_path / "out", train_on=[made["sim"]], init=model)
        text = f"the model of --init was fitted on sim@1.2.0, {expected}"
        assert str(caught.value).startswith(text)
        assert not (tmp_path / "out").exists()


class TestRefused:
    def test_the_same_molecules_under_another_name(self, made, tmp_path):
        other = another_version(made["real"], tmp_path / "copy")
        manifest = json.loads((other.folder / "manifest.json").read_text()) | {"name": "copy"}
        (other.folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(MethodError, match="has the molecules of the dataset to predict"):
            run_method("gene_prior", made["real"], tmp_path, train_on=[Dataset(other.folder)])

    @pytest.mark.parametrize(
        ("dataset", "train_on", "expected"),
        [
            ("gold", "sim sim", "--train-on names sim@1.2.0 twice: name each dataset once"),
            ("real", "real real", "--train-on names real@1.2.0 twice"),
            ("gold", "gold sim", "the dataset to predict, and has no train split (only test)"),
            ("real", "real", "is the dataset to predict: leave it out to fit on its train split"),
            ("gold", "sim unlabelled", "cannot be fitted on unlabelled@1.2.0 for gold@1.2.0"),
        ],
    )
    def test_lists(self, made, tmp_path, dataset, train_on, expected):
        chosen = [made[name] for name in train_on.split()]
        with pytest.raises(MethodError) as caught:
            run_method("gene_prior", made[dataset], tmp_path / "out", train_on=chosen)
        assert expected in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_other_patterns_name_the_dataset(self, made, tmp_path):
        release = simulate(7, n_genes=5, **SIZE)
        labels = release.labels.drop(columns="nuclear_edge")
        patterns = ("cell_edge", "cytoplasmic", "nuclear")
        three = dataset_of(tmp_path / "three", replace(release, labels=labels), patterns)
        with pytest.raises(MethodError) as caught:
            run_method("bento", made["gold"], tmp_path / "out", train_on=[made["sim"], three])
        assert str(caught.value) == (
            "bento cannot be fitted on small@1.0.0 for gold@1.2.0: it needs labels of the patterns "
            "cell_edge, cytoplasmic, nuclear, nuclear_edge, there are cell_edge, cytoplasmic, "
            "nuclear"
        )

    @pytest.mark.parametrize(
        ("dataset", "expected"),
        [("gold", "several versions of sim"), ("sim", "another version of the dataset to predict")],
    )
    def test_versions_of_one_dataset(self, made, tmp_path, dataset, expected):
        newer = another_version(made["sim"], tmp_path / "newer")
        with pytest.raises(MethodError, match=expected):
            run_method("gene_prior", made[dataset], tmp_path / "out", train_on=[made["sim"], newer])

    def test_scores_after_other_training_stay(self, made, tmp_path):
        newer = another_version(made["sim"], tmp_path / "newer")
        chosen = [[each, made["wide"]] for each in (made["sim"], newer)]
        run_method("gene_prior", made["gold"], tmp_path / "out", train_on=chosen[0])
        with pytest.raises(MethodError, match="have the same name: name another --out"):
            run_method("gene_prior", made["gold"], tmp_path / "out", train_on=chosen[1])

    def test_unknown_names_are_all_said(self):
        with pytest.raises(UnknownDatasetError) as caught:
            load_datasets(["synthetic", "sinthetic", "synthetic@9.9.9"])
        text = str(caught.value)
        assert "no dataset named 'sinthetic'" in text
        assert "dataset synthetic has no version '9.9.9'" in text


class TestCommands:
    def test_repeat_the_option(self, cli, made, tmp_path):
        more = ["--train-on", made["sim"].folder, "--train-on", made["wide"].folder]
        where = ["--dataset", made["gold"].folder, "--out", tmp_path]
        assert cli("run", "gene_prior", *where, *more)[0] == 0
        assert (tmp_path / "gold" / "test-seed0-simulation-sim-and-wide.parquet").is_file()
        assert cli("robustness", "gene_prior", *where, *more)[0] == 0
        assert (tmp_path / "gold" / "robustness-seed0-simulation-sim-and-wide.json").is_file()

    def test_say_what_is_unknown(self, cli, tmp_path):
        more = ["--train-on", "nothing_a", "--train-on", "nothing_b"]
        where = ["--dataset", "nothing_c", "--out", tmp_path]
        code, err = cli("run", "gene_prior", *where, *more)
        assert code == 2
        assert "'nothing_a'" in err
        assert "'nothing_b'" in err
        assert "'nothing_c'" in err
        assert not list(tmp_path.iterdir())
