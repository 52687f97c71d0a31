"""Labels by a classifier: of a saved model, of Bento's forest, and datasets made so."""

from __future__ import annotations

import json
import shutil

import h5py
import pandas as pd
import pytest
from samples import dataset_of, flat_forest, small_dataset

from gpattern_bench import load_dataset
from gpattern_bench.base.files import MANIFEST
from gpattern_bench.curate.build import build
from gpattern_bench.curate.release import Release, by_fov
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.curate.simulate.releases import write_bento_h5ad
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.data.datasheet import datasheet
from gpattern_bench.errors import FetchError, MethodError, SourceError, TableError
from gpattern_bench.evaluate.calls import call_patterns
from gpattern_bench.methods import get_method
from gpattern_bench.methods.bento.method import bento_features
from gpattern_bench.methods.bento.rnaforest import CLASSES, RnaForest
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.runs.label import label
from gpattern_bench.runs.run import run_method
from gpattern_bench.runs.saved_model import Model, load_model, save_model
from gpattern_bench.sources.registry import Entry, find_entry


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Unlabelled tables, a model with thresholds, and a forest of arrays."""
    folder = tmp_path_factory.mktemp("label")
    own = small_dataset(folder, "own", n_fovs=6)
    bare = small_dataset(folder, "bare", labels=False, seed=8, n_fovs=6)
    run_method("sprawl", own, folder / "runs")
    flat_forest(folder / "flat.npz")
    return folder, own, bare


def keyed(dataset: Dataset) -> pd.DataFrame:
    labels = dataset.labels().astype({"cell_id": str, "gene": str})
    return labels.set_index(["cell_id", "gene"]).sort_index()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestSavedModel:
    def test_labels_are_the_calls_at_its_thresholds(self, home, tmp_path):
        folder, _, bare = home
        made = Dataset(label(bare, folder / "runs", tmp_path / "made", patternless="keep"))
        made.verify()
        method, model = load_model(folder / "runs/own/model-seed0")
        scores = predict_cells(method, bare.iter_cells(), bar=False)
        calls = call_patterns(scores, {name: model.thresholds[name] for name in bare.patterns})
        wanted = calls.set_index(["cell_id", "gene"]).sort_index()
        found = keyed(made)
        assert len(found) == len(wanted) == made.counts["pairs"]
        pd.testing.assert_frame_equal(found[list(PATTERNS)], wanted[list(PATTERNS)])
        assert wanted.to_numpy().any(axis=0).sum() > 2

    def test_cells_and_molecules_are_those_of_the_tables(self, home, tmp_path):
        folder, own, _ = home
        made = Dataset(label(own, folder / "runs", tmp_path / "made"))
        for name in ("molecules.parquet", "cells.parquet"):
            files = (made.manifest.files[name], own.manifest.files[name])
            assert len({file.content_sha256 for file in files}) == 1
        assert made.splits == ("train", "val", "test")
        assert made.labels()[list(PATTERNS)].any(axis=1).all()  # patternless: drop
        dropped = made.manifest.dropped["labels"]
        assert made.counts["labelled_pairs"] + dropped["no pattern"] == own.counts["pairs"]
        assert made.manifest.placement == own.manifest.placement

    def test_the_manifest_names_the_model(self, home, tmp_path):
        folder, own, bare = home
        made = Dataset(label(bare, folder / "runs", tmp_path / "made"))
        by = made.manifest.labelled_by
        assert (by.name, by.fitted_on, by.min_molecules) == ("sprawl, seed 0", None, 1)
        assert by.thresholds == load_model(folder / "runs")[1].thresholds
        assert made.manifest.raw["curation"]["classifier"] == "runs"
        assert "**Labelled by a classifier, not by people**: sprawl, seed 0" in datasheet(made)
        assert "No labels. `gpattern-bench label bare" in datasheet(bare)
        assert "abelled by" not in datasheet(own)

    def test_another_model_has_another_hash_and_the_same_tables_have_the_same_bytes(
        self, home, tmp_path
    ):
        folder, _, bare = home
        one, again = (label(bare, folder / "runs", tmp_path / name / "d") for name in "ab")
        assert contents(one) == contents(again)
        method, model = load_model(folder / "runs")
        save_model(method, Model(**vars(model) | {"seed": 3}), tmp_path / "other")
        other = Dataset(label(bare, tmp_path / "other", tmp_path / "c"))
        assert other.manifest.labelled_by.sha256 != Dataset(one).manifest.labelled_by.sha256

    def test_a_pattern_without_a_threshold_is_never_called(self, home, tmp_path):
        folder, _, bare = home
        method, model = load_model(folder / "runs")
        at = model.thresholds | {"cell_edge": None}
        save_model(method, Model(**vars(model) | {"thresholds": at}), tmp_path / "model")
        made = Dataset(label(bare, tmp_path / "model", tmp_path / "made"))
        assert not made.labels()["cell_edge"].any()
        assert made.manifest.labelled_by.thresholds["cell_edge"] is None

    def test_a_pattern_that_nearly_all_pairs_get_is_warned_about(self, home, tmp_path, caplog):
        folder, _, bare = home
        method, model = load_model(folder / "runs")
        at = model.thresholds | {"nuclear": 0.0}
        save_model(method, Model(**vars(model) | {"thresholds": at}), tmp_path / "model")
        label(bare, tmp_path / "model", tmp_path / "made")
        assert "sprawl, seed 0: nuclear is called for 100.0 % of the labelled pairs" in caplog.text

    def test_the_models_patterns_replace_those_of_the_tables(self, home, tmp_path):
        folder, _, _ = home
        release = simulate(5, n_fovs=4, cells_per_fov=2, n_genes=6, mean_molecules=40)
        bare = Release(release.molecules, release.cells)
        other = dataset_of(tmp_path / "other", bare, ("membrane", "nuclear"), split="test")
        assert Dataset(label(other, folder / "runs", tmp_path / "made")).patterns == PATTERNS


class TestSplits:
    @pytest.mark.parametrize(
        ("split", "expected"), [("fov", ("train", "val", "test")), ("test", ("test",))]
    )
    def test_by_fields_of_view_or_all_in_test(self, home, tmp_path, split, expected):
        folder, _, bare = home
        made = label(bare, folder / "flat.npz", tmp_path / "made", split=split)
        assert Dataset(made).splits == expected

    def test_named_splits_stay(self, home, tmp_path):
        folder, _, _ = home
        release = simulate(5, n_fovs=2, cells_per_fov=3, n_genes=6, mean_molecules=60)
        fovs = sorted(set(release.cells["fov"].astype(str)))
        named = dict(zip(fovs, ("test", "train"), strict=True))
        source = dataset_of(tmp_path / "source", release, splits=named)
        assert Dataset(label(source, folder / "runs", tmp_path / "a")).split_of == named
        with pytest.raises(SourceError, match="cannot split by field of view"):
            label(source, folder / "runs", tmp_path / "b", split="fov")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "source"]

    def test_the_seed_changes_the_split_alone(self, home, tmp_path):
        folder, _, bare = home
        made = [
            Dataset(label(bare, folder / "flat.npz", tmp_path / str(seed), seed=seed))
            for seed in range(3)
        ]
        assert len({json.dumps(each.split_of) for each in made}) > 1
        assert len({each.labels_sha256 for each in made}) == 1


class TestForest:
    def test_labels_are_its_calls_for_pairs_of_five_molecules(self, home, tmp_path):
        folder, _, bare = home
        made = Dataset(label(bare, folder / "flat.npz", tmp_path / "made", patternless="keep"))
        made.verify()
        forest, found = RnaForest(folder / "flat.npz"), keyed(made)
        few = 0
        for cell in bare.iter_cells():
            called = forest.predict(bento_features(cell, unit_um=0.1))[1]
            for gene, n, row in zip(cell.genes, cell.counts, called, strict=True):
                pair = cell.cell_id, bare.genes[gene]
                few += n < 5
                assert (pair in found.index) == (n >= 5)
                if n >= 5:
                    wanted = dict(zip(CLASSES, row.tolist(), strict=True))
                    wanted.pop("none")
                    assert found.loc[pair, list(PATTERNS)].to_dict() == wanted
        assert few == made.manifest.dropped["labels"]["fewer than 5 molecules"] > 0
        assert found[list(PATTERNS)].to_numpy().any()
        by = made.manifest.labelled_by
        assert (by.sha256, by.min_molecules, by.unit_um) == (forest.sha256, 5, 0.1)
        assert list(by.thresholds.values()) == [0.453, 0.434, 0.437, 0.505]

    def test_pixels_are_those_of_the_source(self, home, tmp_path):
        bare = small_dataset(tmp_path, "px", labels=False, form="bento-h5ad", unit_um=0.108)
        made = Dataset(label(bare, home[0] / "flat.npz", tmp_path / "made"))
        assert made.manifest.labelled_by.unit_um == 0.108

    def test_a_cell_without_a_nucleus_gets_no_labels(self, home, tmp_path):
        release = simulate(5, n_fovs=4, cells_per_fov=2, n_genes=6, mean_molecules=60)
        cells = release.cells.copy()
        without = str(cells["cell_id"].iloc[0])
        cells.loc[cells.index[0], "nucleus_boundary"] = None
        source = dataset_of(tmp_path / "source", Release(release.molecules, cells), split="test")
        made = label(source, home[0] / "flat.npz", tmp_path / "made", patternless="keep")
        assert without not in set(Dataset(made).labels()["cell_id"])
        reason = "a feature is missing (no nucleus)"
        assert Dataset(made).manifest.dropped["labels"][reason] > 0


class TestRefused:
    def test_what_is_no_classifier(self, home, tmp_path):
        bare = home[2]
        with pytest.raises(MethodError, match=r"there is no classifier .*expected rnaforest"):
            label(bare, tmp_path / "absent", tmp_path / "made")
        (tmp_path / "empty").mkdir()
        with pytest.raises(MethodError, match="holds no readable model"):
            label(bare, tmp_path / "empty", tmp_path / "made")
        (tmp_path / "text.npz").write_text("text")
        with pytest.raises(MethodError, match="does not hold Bento's published forest"):
            label(bare, tmp_path / "text.npz", tmp_path / "made")
        assert not (tmp_path / "made").exists()

    def test_a_model_without_thresholds(self, home, tmp_path):
        folder, _, bare = home
        method, model = load_model(folder / "runs")
        for at in (None, dict.fromkeys(model.patterns)):
            save_model(method, Model(**vars(model) | {"thresholds": at}), tmp_path / "model")
            with pytest.raises(MethodError, match="has no thresholds for calls"):
                label(bare, tmp_path / "model", tmp_path / "made")

    def test_a_method_that_reads_labels(self, home, tmp_path):
        folder, _, bare = home
        model = load_model(folder / "runs")[1]
        seeing = Model(**vars(model) | {"method": "oracle"})
        save_model(get_method("oracle"), seeing, tmp_path / "model")
        with pytest.raises(MethodError, match="oracle reads labels"):
            label(bare, tmp_path / "model", tmp_path / "made")

    def test_a_model_of_damaged_numbers_leaves_nothing_behind(self, home, tmp_path):
        _, own, bare = home
        run_method("gene_prior", own, tmp_path / "runs")
        state = tmp_path / "runs/own/model-seed0/state.json"
        state.write_text(state.read_text().replace("0.", "7.", 1))
        with pytest.raises(MethodError):
            label(bare, tmp_path / "runs", tmp_path / "made")
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    def test_nothing_called_is_an_error_that_leaves_nothing_behind(self, home, tmp_path):
        folder, _, bare = home
        method, model = load_model(folder / "runs")
        at = dict.fromkeys(model.patterns, 2.0)
        save_model(method, Model(**vars(model) | {"thresholds": at}), tmp_path / "model")
        with pytest.raises(MethodError, match=r"gives none of the .* pairs of bare@1.2.0 a label"):
            label(bare, tmp_path / "model", tmp_path / "made")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_a_folder_in_use_stays_as_it_is(self, home):
        folder, _, bare = home
        before = contents(bare.folder)
        with pytest.raises(TableError, match="the folder is not empty"):
            label(bare, folder / "flat.npz", bare.folder)
        assert contents(bare.folder) == before

    def test_a_manifest_whose_recipe_was_edited(self, home, tmp_path):
        folder, _, bare = home
        shutil.copytree(bare.folder, tmp_path / "edited")
        manifest = tmp_path / "edited" / MANIFEST
        manifest.write_text(manifest.read_text().replace('"controls": "', '"controls": "(', 1))
        with pytest.raises(TableError, match="no recipe: controls"):
            label(Dataset(tmp_path / "edited"), folder / "flat.npz", tmp_path / "made")


class TestCommand:
    def test_says_by_what_the_labels_are(self, home, tmp_path, command):
        folder, _, bare = home
        words = ("label", bare.folder, "--with", folder / "flat.npz", "--out", tmp_path / "made")
        code, out, _ = command(*words, "--patternless", "keep", "--name", "mine")
        assert code == 0
        assert "<Dataset mine@0.0.0: 18 cells" in out
        assert "labels: calls of Bento's published forest (RNAforest), SHA-256" in out
        assert "dropped from labels:" in out
        assert "labelled_by:" in command("info", tmp_path / "made")[1]
        assert "labelled_by:" in command("info", "u2os_bento")[1]
        assert (
            "one file is made of the model file of bento-tools" in command("cite", "u2os_bento")[1]
        )

    def test_without_the_arrays_it_says_how_they_are_made(self, home, tmp_path, cli, monkeypatch):
        monkeypatch.setenv("GPATTERN_BENCH_DATA", str(tmp_path / "cache"))
        code, err = cli("label", home[2].folder, "--with", "rnaforest", "--out", tmp_path / "made")
        assert code == 2
        assert "nobody publishes it" in err
        assert "docs/methods/bento.md#the-published-forest" in err
        assert str(tmp_path / "cache" / "sources" / "reference" / "rnaforest_flat.npz") in err

    def test_arrays_of_other_values_are_refused(self, tmp_path, monkeypatch, home):
        (tmp_path / "mirror/reference").mkdir(parents=True)
        flat_forest(tmp_path / "mirror/reference/rnaforest_flat.npz")
        monkeypatch.setenv("GPATTERN_BENCH_DATA", str(tmp_path / "cache"))
        monkeypatch.setenv("GPATTERN_BENCH_MIRROR", str(tmp_path / "mirror"))
        with pytest.raises(FetchError, match=r"expected SHA-256 ee801ab7.* over its arrays, got"):
            label(home[2], "rnaforest", tmp_path / "made")


class TestReleaseWithoutLabels:
    def test_it_loads_and_says_how_labels_are_made(self, tmp_path, caplog, home):
        source = tmp_path / "sources/u2os/merfish.h5ad"
        source.parent.mkdir(parents=True)
        release = simulate(5, n_fovs=3, cells_per_fov=2, n_genes=4, mean_molecules=60)
        pieces = list(by_fov(release))
        write_bento_h5ad(pieces, source, PATTERNS)
        with h5py.File(source, "a") as file:
            for name in PATTERNS:
                del file["layers"][name]
        u2os = Dataset(build(find_entry("u2os"), tmp_path, download=False))
        assert (u2os.has_labels, u2os.splits) == (False, ("train", "val", "test"))
        assert "gpattern-bench label u2os --with rnaforest --out DIR" in caplog.text
        with pytest.raises(TableError, match="or make labels"):
            u2os.labels()
        made = Dataset(label(u2os, home[0] / "flat.npz", tmp_path / "made"))
        assert made.manifest.published == dict(find_entry("u2os").published)
        assert made.splits == ("train", "val", "test")

    def test_other_datasets_of_the_registry_still_need_theirs(self, mirror, tmp_path):
        entry = find_entry("u2os_sample").model_dump()
        entry |= {"published": find_entry("u2os").published}
        with pytest.raises(SourceError, match="has no labels of cell_edge"):
            build(Entry.model_validate(entry), tmp_path)


@pytest.mark.slow
class TestU2osBento:
    """Two real fields of view, labelled by the published forest."""

    def test_counts_of_both_fields(self, mirror):
        for name, test in (("u2os_bento", 1186), ("u2os_bento_exchanged", 921)):
            dataset = load_dataset(name, verify=name == "u2os_bento")
            splits = dataset.manifest.counts.splits
            assert splits["test"].labelled_pairs == test
            assert splits["train"].labelled_pairs + splits["val"].labelled_pairs == 2107 - test
            assert all(min(part.patterns[p] for p in PATTERNS) >= 16 for part in splits.values())
            assert len({*dataset.cells()["cell_id"]}) == 30
            assert len(dataset.manifest.raw["source"]) == len(find_entry(name).files)

    def test_two_cells_have_no_nucleus_and_no_labels(self, mirror):
        dataset = load_dataset("u2os_bento")
        cells = dataset.cells()
        assert sorted(cells["cell_id"][cells["nucleus_boundary"].isna()]) == ["30-0", "32-0"]
        assert {"30-0", "32-0"}.isdisjoint(dataset.labels()["cell_id"])
        assert dataset.manifest.dropped["labels"]["a feature is missing (no nucleus)"] == 247

    def test_labels_are_those_that_upstream_gives(self, mirror):
        upstream = pd.read_parquet(mirror / "reference" / "bento_proba.parquet")
        upstream = upstream.set_index(["cell", "gene"])[[f"label_{name}" for name in PATTERNS]]
        labels = keyed(load_dataset("u2os_bento_exchanged"))
        labels = labels[labels["fov"] == "0"]
        wanted = upstream.loc[list(labels.index)].to_numpy(bool)
        differ = (labels[list(PATTERNS)].to_numpy() != wanted).any(axis=1)
        assert differ.mean() < 0.01  # pairs of molecules at a whole radius, see docs

    def test_bento_agrees_with_people_in_half_of_the_pairs(self, mirror, tmp_path):
        gold = load_dataset("u2os_gold")
        path = label(gold, "rnaforest", tmp_path / "made", split="test", patternless="keep")
        made = Dataset(path)
        people, bento = keyed(gold)[list(PATTERNS)], keyed(made)[list(PATTERNS)]
        called = bento.reindex(people.index).fillna(False).astype(bool)
        agree = (called.to_numpy() == people.to_numpy()).all(axis=1)
        assert (len(agree), round(100 * float(agree.mean()), 1)) == (192, 53.6)

    def test_without_the_arrays_nothing_is_made(self, shared, tmp_path, monkeypatch):
        mirror = tmp_path / "mirror"
        mirror.mkdir()
        for name in ("u2os_batch0", "u2os_batch8"):
            (mirror / name).symlink_to(shared / name)
        monkeypatch.setenv("GPATTERN_BENCH_MIRROR", str(mirror))
        with pytest.raises(FetchError, match=r"rnaforest_flat\.npz.*docs/methods/bento\.md"):
            load_dataset("u2os_bento", root=tmp_path / "cache")
        assert not list(tmp_path.glob("cache/u2os_bento/1*"))
        left = (tmp_path / "cache/u2os_bento").iterdir()
        assert [path.name for path in left] == [".1.0.0.lock"]
