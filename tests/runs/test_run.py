"""Runs: files, protocols, folds, hidden labels, and every way in which a run is refused."""

from __future__ import annotations

import json
import platform
import shutil
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from samples import dataset_of, small_dataset

from gpattern_bench import Evaluator, __version__
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, MethodError, UnknownMethodError
from gpattern_bench.methods import METHODS
from gpattern_bench.methods.base import About, Untrained
from gpattern_bench.predictions import Origin, read_predictions
from gpattern_bench.runs.run import FOLDS, run_method
from gpattern_bench.runs.run_all import run_all
from gpattern_bench.sources.recipe import Recipe


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "whole": small_dataset(folder, "whole"),
        "gold": small_dataset(folder, "gold", seed=8, split="test", n_fovs=4),
        "real": small_dataset(folder, "real", seed=9, form="bento-h5ad"),
        "all_test": small_dataset(folder, "all_test", seed=10, split="test", form="bento-h5ad"),
        "unlabelled": small_dataset(folder, "unlabelled", labels=False),
        "tiny": small_dataset(folder, "tiny", seed=11, split="test", n_fovs=1),
    }


class Spy(Untrained):
    """Scores 0.5 for every pair and notes what it is shown."""

    about = About("spy", "Spy", "model", "Looks.", "none", ("coordinates",), learns=True)
    made: list[Spy] = []  # noqa: RUF012 - filled anew by the fixture

    def __init__(self):
        self.fits, self.predicts = [], []
        Spy.made.append(self)

    def fit(self, train, seed):
        self.fits.append(({cell.cell_id: cell.labels is not None for cell in train}, seed))

    def predict(self, cells):
        seen = {}
        self.predicts.append(seen)
        for cell in cells:
            seen[cell.cell_id] = (cell.labels, cell.labelled)
            yield cell, self.scores(cell, len(cells.patterns))

    def scores(self, cell, patterns):
        return np.full((len(cell.genes), patterns), 0.5, np.float32)


class Untaught(Spy):
    about = About("untaught", "U", "model", "Looks.", "none", ("coordinates",), learns=False)


class Shuffled(Spy):
    """Gives its cells in reverse order, with scores that tell the pairs apart."""

    def predict(self, cells):
        rows = [(cell, self.scores(cell, len(cells.patterns))) for cell in cells]
        yield from reversed(rows)

    def scores(self, cell, patterns):
        return np.repeat(cell.counts[:, None] / 1000, patterns, axis=1).astype(np.float32)


class BadInTest(Spy):
    """Fine on val, NaN on test: recognised by the first molecule count it sees."""

    def predict(self, cells):
        self.calls = getattr(self, "calls", 0) + 1
        for cell in cells:
            scores = self.scores(cell, len(cells.patterns))
            yield cell, scores * np.nan if self.calls == 2 else scores


class Lazy(Spy):
    """Leaves the first cell out."""

    def predict(self, cells):
        stream = iter(cells)
        next(stream)
        for cell in stream:
            yield cell, self.scores(cell, len(cells.patterns))


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    for cls in (Spy, Untaught, Shuffled, BadInTest, Lazy):
        monkeypatch.setitem(METHODS, cls.__name__.lower(), f"{__name__}:{cls.__name__}")
    monkeypatch.setattr(Spy, "made", [])


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def origin(path: Path):
    return read_predictions(path)[1]


MODEL_FILES = {
    "prevalence": ["model-seed0/model.json", "model-seed0/state.json"],
    "gene_prior": ["model-seed0/model.json", "model-seed0/state.json"],
    "sprawl": ["model-seed0/model.json"],
    "oracle": [],  # on other data it has nothing to show
}


class TestFiles:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["prevalence", "gene_prior", "sprawl", "oracle"])
    def test_are_val_and_test_and_the_report(self, made, tmp_path, name):
        files = run_method(name, made["whole"], tmp_path)
        assert [path.name for path in files] == ["val-seed0.parquet", "test-seed0.parquet"]
        assert listing(tmp_path / "whole") == [
            *MODEL_FILES[name],
            "run-seed0.json",
            "test-seed0.parquet",
            "val-seed0.parquet",
        ]

    def test_are_valid_and_have_the_pairs_of_their_split(self, made, tmp_path):
        for path in run_method("sprawl", made["whole"], tmp_path):
            assert Evaluator(made["whole"], origin(path).split).check(path).problems == []

    def test_of_a_dataset_of_test_alone_are_test_alone(self, made, tmp_path):
        run_method("sprawl", made["gold"], tmp_path)
        assert listing(tmp_path) == [
            "gold/model-seed0/model.json",
            "gold/run-seed0.json",
            "gold/test-seed0.parquet",
        ]

    def test_of_a_dataset_without_labels_score_every_pair(self, made, tmp_path):
        files = run_method("sprawl", made["unlabelled"], tmp_path)
        pairs = made["unlabelled"].pairs("test")
        assert pq.read_metadata(files[1]).num_rows == len(pairs)

    def test_are_replaced_by_a_second_run(self, made, tmp_path):
        run_method("sprawl", made["gold"], tmp_path)
        before = listing(tmp_path)
        run_method("sprawl", made["gold"], tmp_path)
        assert listing(tmp_path) == before

    def test_of_two_training_sets_do_not_replace_each_other(self, made, tmp_path):
        for source in ("real", "all_test"):
            run_method("gene_prior", made["gold"], tmp_path, train_on=[made[source]])
        assert len([name for name in listing(tmp_path) if name.endswith(".parquet")]) == 2

    def test_of_another_version_of_the_training_set_stay(self, made, tmp_path):
        folder = tmp_path / "newer"
        shutil.copytree(made["real"].folder, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"version": "2.0.0"}))
        out = tmp_path / "out"
        path = run_method("gene_prior", made["gold"], out, train_on=[made["real"]])[0]
        before = path.read_bytes()
        expected = r"after training on real@1\.2\.0; those after real@2\.0\.0 have the same name"
        with pytest.raises(MethodError, match=expected):
            run_method("gene_prior", made["gold"], out, train_on=[Dataset(folder)])
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("protocol", "trained_on", "stem"),
        [
            ("fit", None, "test-seed3"),
            ("untrained", None, "test-seed3"),
            ("transfer", ("real@1.2.0",), "test-seed3-transfer-real"),
            ("simulation", ("whole@1.2.0",), "test-seed3-simulation-whole"),
            ("simulation", ("a@1.0.0", "b@1.0.0"), "test-seed3-simulation-a-and-b"),
            ("fit", ("a@1.0.0", "d@1.0.0"), "test-seed3-fit-a"),
            ("fit", ("a@1.0.0", "b@1.0.0", "d@1.0.0"), "test-seed3-fit-a-and-b"),
            ("transfer", ("d@1.0.0", "e@1.0.0"), "test-seed3-transfer-d-and-e"),
            (
                "transfer",
                ("a@1.0.0", "b@1.0.0", "c@1.0.0"),
                "test-seed3-transfer-a-and-2-more-3e37221d",
            ),
            ("cv-cell", None, "test-seed3-cv-cell"),
        ],
    )
    def test_names_tell_the_protocol(self, protocol, trained_on, stem):
        origin = Origin("d", "1.0.0", "test", "m", 3, protocol, trained_on)
        assert origin.stem() == stem

    def test_scores_do_not_depend_on_the_order_in_which_a_method_yields(self, made, tmp_path):
        path = run_method("shuffled", made["whole"], tmp_path)[1]
        table = pq.read_table(path).to_pandas()
        labels = made["whole"].labels("test")
        assert table["cell_id"].tolist() == labels["cell_id"].tolist()
        expected = (labels["n_molecules"] / 1000).astype(np.float32)
        np.testing.assert_array_equal(table["nuclear"], expected)


class TestReport:
    @pytest.fixture
    def report(self, made, tmp_path) -> dict:
        run_method("gene_prior", made["whole"], tmp_path, seed=2)
        return json.loads((tmp_path / "whole" / "run-seed2.json").read_text())

    def test_says_what_ran(self, report):
        assert {key: report[key] for key in ("method", "dataset", "version", "seed")} == {
            "method": "gene_prior",
            "dataset": "whole",
            "version": "1.2.0",
            "seed": 2,
        }
        assert (report["protocol"], report["trained_on"]) == ("fit", None)
        assert report["package_version"] == __version__

    def test_has_measured_what_it_cost(self, report, made):
        assert set(report["seconds"]) == {"fit", "val", "test"}
        assert all(0 <= seconds < 60 for seconds in report["seconds"].values())
        assert set(report["cpu_seconds"]) == {"fit", "val", "test"}
        assert all(0 <= seconds < 60 for seconds in report["cpu_seconds"].values())
        assert report["cells"] == {s: len(made["whole"].cells(s)) for s in ("val", "test")}
        assert 50 < report["peak_rss_mib"] < 100_000
        assert "cores" in report["device"]

    def test_names_the_versions_that_scores_rest_on(self, report):
        versions = report["versions"]
        assert list(versions) == sorted(versions)
        assert versions["gpattern-bench"] == __version__
        assert versions["numpy"] == np.__version__
        assert versions["python"] == platform.python_version()
        assert {"numba", "scikit-learn", "scipy"} <= set(versions)

    def test_out_of_fold_has_fits_and_predictions_apart(self, made, tmp_path):
        began = time.perf_counter()
        run_method("gene_prior", made["gold"], tmp_path, cv=True)
        passed = time.perf_counter() - began
        report = json.loads((tmp_path / "gold" / "run-seed0-cv-cell.json").read_text())
        assert set(report["seconds"]) == set(report["cpu_seconds"]) == {"fit", "test"}
        assert min(report["seconds"].values()) > 0
        assert sum(report["seconds"].values()) < passed

    def test_of_a_method_that_learns_nothing_names_no_training(self, made, tmp_path):
        run_method("sprawl", made["gold"], tmp_path)
        report = json.loads((tmp_path / "gold" / "run-seed0.json").read_text())
        assert report["trained_on"] is None
        assert set(report["seconds"]) == set(report["cpu_seconds"]) == {"test"}
        assert report["parameters"] == 0


class TestOwnMethods:
    """Methods that the package does not know."""

    class Mine(Spy):
        about = About("mine", "Mine", "model", "Looks.", "none", ("coordinates",), learns=True)
        parameters = np.int64(7)

    def test_are_measured_in_the_same_way(self, made, tmp_path):
        files = run_method(self.Mine(), made["whole"], tmp_path, seed=3)
        assert [origin(path).method for path in files] == ["mine", "mine"]
        report = json.loads((tmp_path / "whole" / "run-seed3.json").read_text())
        assert set(report["seconds"]) == {"fit", "val", "test"}
        assert report["parameters"] == 7
        assert date.fromisoformat(report["date"])

    def test_are_not_fitted_themselves(self, made, tmp_path):
        mine = self.Mine()
        run_method(mine, made["whole"], tmp_path)
        run_method(mine, made["gold"], tmp_path, cv=True)
        assert mine.fits == []

    def test_are_given_the_context_if_fit_takes_it(self, made, tmp_path):
        given = []

        class Long(self.Mine):
            def fit(self, train, seed, context):
                given.append(context)

        run_method(Long(), made["whole"], tmp_path)
        (context,) = given
        val = made["whole"].cells("val")["cell_id"].tolist()
        assert [cell.cell_id for cell in context.val] == val
        assert all(cell.labels is not None for cell in context.val)
        assert context.checkpoint.parent == tmp_path / "whole"

    def test_see_no_labels(self, made, tmp_path):
        seen = []

        class Curious(self.Mine):
            def predict(self, cells):
                for cell in cells:
                    seen.append((cell.labels, cell.labelled))
                    yield cell, self.scores(cell, len(cells.patterns))

        run_method(Curious(), made["whole"], tmp_path)
        assert set(seen) == {(None, None)}

    def test_cannot_have_the_name_of_one_that_ships(self, made, tmp_path):
        class Sprawl(Spy):
            about = About("sprawl", "S", "model", "Looks.", "none", (), learns=True)

        with pytest.raises(MethodError, match="sprawl is the name of a method of this package"):
            run_method(Sprawl(), made["whole"], tmp_path)
        assert listing(tmp_path) == []

    def test_one_without_parameters_has_null(self, made, tmp_path):
        class Silent(Spy):
            about = About("silent", "Silent", "model", "Looks.", "none", (), learns=True)
            parameters = None

        run_method(Silent(), made["whole"], tmp_path)
        report = json.loads((tmp_path / "whole" / "run-seed0.json").read_text())
        assert report["parameters"] is None


class TestProtocols:
    @pytest.mark.parametrize(
        ("method", "dataset", "options", "protocol", "trained_on"),
        [
            ("gene_prior", "whole", {}, "fit", None),
            ("sprawl", "whole", {}, "untrained", None),
            ("gene_prior", "gold", {"train_on": "real"}, "transfer", ["real@1.2.0"]),
            ("gene_prior", "gold", {"train_on": "all_test"}, "transfer", ["all_test@1.2.0"]),
            ("gene_prior", "real", {"train_on": "whole"}, "simulation", ["whole@1.2.0"]),
            ("gene_prior", "gold", {"cv": True}, "cv-cell", None),
        ],
    )
    def test_are_in_the_file_its_name_and_the_report(
        self, made, tmp_path, method, dataset, options, protocol, trained_on
    ):
        if "train_on" in options:
            options = {"train_on": [made[name] for name in options["train_on"].split()]}
        path = run_method(method, made[dataset], tmp_path, **options)[-1]
        assert origin(path).protocol == protocol
        named = origin(path).trained_on
        assert (named and list(named), path.stem) == (trained_on, origin(path).stem())
        report = path.with_name(origin(path).stem("run") + ".json")
        found = json.loads(report.read_text())
        assert (found["protocol"], found["trained_on"]) == (protocol, trained_on)

    def test_fit_sees_the_train_split_alone(self, made, tmp_path):
        run_method("spy", made["whole"], tmp_path, seed=4)
        [(seen, seed)] = Spy.made[0].fits
        assert list(seen) == made["whole"].cells("train")["cell_id"].tolist()
        assert all(seen.values())
        assert seed == 4

    def test_transfer_sees_the_other_dataset_alone(self, made, tmp_path):
        run_method("spy", made["gold"], tmp_path, train_on=[made["all_test"]])
        [(seen, _)] = Spy.made[0].fits
        assert list(seen) == made["all_test"].cells()["cell_id"].tolist()

    def test_a_method_that_learns_nothing_is_not_fitted(self, made, tmp_path):
        run_method("untaught", made["whole"], tmp_path)
        assert Spy.made[0].fits == []


class TestFolds:
    @pytest.fixture
    def folds(self, made, tmp_path):
        """(cells fitted on, cells predicted) of each fold."""
        run_method("spy", made["gold"], tmp_path, cv=True, seed=1)
        fits = [set(fit) for spy in Spy.made for fit, _ in spy.fits]
        predicts = [set(seen) for spy in Spy.made for seen in spy.predicts]
        return list(zip(fits, predicts, strict=True))

    def test_cover_each_cell_exactly_once(self, made, folds):
        assert len(folds) == FOLDS
        held_out = [cell for _, cells in folds for cell in cells]
        assert sorted(held_out) == made["gold"].cells()["cell_id"].tolist()

    def test_never_train_on_the_cells_that_they_predict(self, made, folds):
        every = set(made["gold"].cells()["cell_id"])
        for fitted, held_out in folds:
            assert fitted == every - held_out

    def test_are_of_nearly_equal_size(self, folds):
        sizes = [len(held_out) for _, held_out in folds]
        assert max(sizes) - min(sizes) <= 1

    def test_depend_on_the_seed(self, made, tmp_path):
        held_out = []
        for seed in (0, 1):
            Spy.made.clear()
            run_method("spy", made["gold"], tmp_path, cv=True, seed=seed)
            held_out.append({frozenset(seen) for spy in Spy.made for seen in spy.predicts})
        assert held_out[0] != held_out[1]

    def test_are_fitted_afresh(self, made, tmp_path):
        # "called once": what one fold learnt must not reach the next, which predicts those cells.
        run_method("spy", made["gold"], tmp_path, cv=True)
        assert max(len(spy.fits) for spy in Spy.made) == 1


class TestSamples:
    def seen(self, made, folder, seed=0, dataset="whole", **options) -> list[str]:
        run_method("spy", made[dataset], folder, seed=seed, sample_cells=5, **options)
        [(seen, _)] = Spy.made[-1].fits
        assert all(seen.values())
        return sorted(seen)

    def test_of_training_cells_are_seeded_and_in_the_report(self, made, tmp_path):
        first = self.seen(made, tmp_path / "a")
        assert len(first) == 5
        assert set(first) < {cell.cell_id for cell in made["whole"].iter_cells("train")}
        assert first == self.seen(made, tmp_path / "b") != self.seen(made, tmp_path / "c", seed=1)
        report = json.loads((tmp_path / "a" / "whole" / "run-seed0.json").read_text())
        assert report["sample_cells"] == 5

    def test_of_several_datasets_are_of_all_of_them_together(self, made, tmp_path):
        train_on = [made["gold"], made["real"]]
        assert len(self.seen(made, tmp_path, dataset="tiny", train_on=train_on)) == 5

    def test_of_folds_are_of_the_other_folds(self, made, tmp_path):
        assert len(self.seen(made, tmp_path, dataset="gold", cv=True)) == 5

    def test_larger_than_there_are_cells_are_all(self, made, tmp_path):
        run_method("ella", made["whole"], tmp_path / "a", sample_cells=10_000)
        run_method("ella", made["whole"], tmp_path / "b")
        a, b = (tmp_path / name / "whole" / "test-seed0.parquet" for name in "ab")
        assert a.read_bytes() == b.read_bytes()

    def test_need_a_method_that_learns(self, made, tmp_path):
        with pytest.raises(MethodError, match="learns nothing: leave out --sample-cells"):
            run_method("sprawl", made["whole"], tmp_path, sample_cells=5)


class TestHiddenLabels:
    @pytest.mark.parametrize(
        ("method", "dataset", "options"),
        [("spy", "whole", {}), ("untaught", "whole", {}), ("spy", "gold", {"cv": True})],
    )
    def test_no_method_sees_labels_when_it_predicts(self, made, tmp_path, method, dataset, options):
        run_method(method, made[dataset], tmp_path, **options)
        shown = [pair for spy in Spy.made for seen in spy.predicts for pair in seen.values()]
        assert len(shown) > 0
        assert set(shown) == {(None, None)}

    def test_the_oracle_does(self, made, tmp_path):
        path = run_method("oracle", made["gold"], tmp_path)[0]
        assert Evaluator(made["gold"]).eval(path)["f1_macro"] == 1.0


class TestRepeats:
    @pytest.mark.parametrize(
        ("method", "dataset", "options"),
        [
            ("gene_prior", "whole", {}),
            ("prevalence", "gold", {"cv": True}),
            ("sprawl", "whole", {}),
            ("molecule_count", "whole", {}),
        ],
    )
    def test_the_same_seed_gives_the_same_bytes(self, made, tmp_path, method, dataset, options):
        a = run_method(method, made[dataset], tmp_path / "a", seed=5, **options)
        b = run_method(method, made[dataset], tmp_path / "b", seed=5, **options)
        assert [path.read_bytes() for path in a] == [path.read_bytes() for path in b]


class TestRefused:
    @pytest.mark.parametrize(
        ("method", "dataset", "options", "expected"),
        [
            ("sprawl", "gold", {"cv": True}, "sprawl learns nothing from labels: leave out"),
            ("sprawl", "gold", {"train_on": "real"}, "learns nothing from labels"),
            (
                "gene_prior",
                "gold",
                {"cv": True, "train_on": "gold"},
                "leave it out, --cv cell fits on its folds",
            ),
            ("gene_prior", "whole", {"cv": True}, "has a train split: run gene_prior without --cv"),
            (
                "gene_prior",
                "gold",
                {},
                r"no train split \(only test\): add --train-on NAME .* or --cv cell",
            ),
            ("gene_prior", "gold", {"train_on": "unlabelled"}, "there are no labels"),
            ("gene_prior", "tiny", {"cv": True}, "3 cells in test: 5 or more are needed"),
            ("gene_prior", "unlabelled", {}, "labels"),
            ("oracle", "unlabelled", {}, "labels"),
            # The labels of `gold` are all in test: fitting on them is fitting on what is scored.
            ("gene_prior", "gold", {"train_on": "gold"}, "gold"),
            ("gene_prior", "whole", {"train_on": "whole"}, "whole"),
        ],
    )
    def test_with_what_to_do_and_nothing_written(
        self, made, tmp_path, method, dataset, options, expected
    ):
        if "train_on" in options:
            options = options | {"train_on": [made[name] for name in options["train_on"].split()]}
        with pytest.raises(MethodError, match=expected):
            run_method(method, made[dataset], tmp_path / "out", **options)
        assert listing(tmp_path) == []

    def test_other_patterns(self, made, tmp_path):
        release = simulate(7, n_fovs=3, cells_per_fov=2, n_genes=5, mean_molecules=40)
        recipe = Recipe(format="simulated", patterns=PATTERNS[:2], patternless="keep")
        folder = write_dataset(
            [apply_rules(release, recipe)], tmp_path / "two", name="two", version="1", recipe=recipe
        )
        with pytest.raises(MethodError, match="it needs labels of the patterns cell_edge"):
            run_method("gene_prior", made["gold"], tmp_path / "out", train_on=[Dataset(folder)])
        assert not (tmp_path / "out").exists()

    def test_nothing_but_a_train_split(self, tmp_path):
        release = simulate(7, n_fovs=3, cells_per_fov=2, n_genes=5, mean_molecules=40)
        named = dict.fromkeys(release.cells["fov"].unique(), "train")
        only = dataset_of(tmp_path / "only", release, splits=named)
        expected = r"small@1\.0\.0 has no split to predict: expected val or test, got train only"
        with pytest.raises(MethodError, match=expected):
            run_method("gene_prior", only, tmp_path / "out")
        (outcome,) = run_all(["gene_prior"], only, tmp_path / "out", jobs=1)
        assert outcome.outcome == "failed"
        assert "no split to predict" in outcome.why
        assert not (tmp_path / "out").exists()

    def test_an_unknown_method(self, made, tmp_path):
        with pytest.raises(UnknownMethodError, match="no method named 'nope'"):
            run_method("nope", made["gold"], tmp_path)

    def test_a_negative_seed(self, made, tmp_path):
        with pytest.raises(GPatternBenchError, match="seed"):
            run_method("prevalence", made["gold"], tmp_path, cv=True, seed=-1)

    @pytest.mark.parametrize("method", ["badintest", "lazy"])
    def test_wrong_scores_of_a_method_write_nothing(self, made, tmp_path, method):
        with pytest.raises(GPatternBenchError):
            run_method(method, made["whole"], tmp_path)
        assert listing(tmp_path) == []

    def test_a_pattern_without_a_rule_is_a_warning(self, made, tmp_path, caplog):
        run_method("sprawl", made["gold"], tmp_path)
        assert "sprawl has no rule for nuclear_edge: scored 0 everywhere" in caplog.text
