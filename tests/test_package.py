"""The package as a whole: what importing it loads, what it exports, and no network."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import gpattern_bench

HEAVY = {"torch", "pandas", "pyarrow", "sklearn", "numba", "scipy", "h5py", "zarr", "pooch"}
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(gpattern_bench.__path__, "gpattern_bench.")
    if module.name != "gpattern_bench.__main__"
)


def loaded_by(statement: str, *, whole_names: bool = False) -> set[str]:
    """Modules, or only their top-level packages, that a fresh Python has loaded."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = json.loads(found.stdout.splitlines()[-1])
    return {name if whole_names else name.partition(".")[0] for name in names}


class TestImport:
    def test_of_the_package_loads_nothing_but_itself(self):
        loaded = loaded_by("import gpattern_bench")
        assert not loaded & {*HEAVY, "numpy", "shapely", "pydantic", "yaml", "typer", "tqdm"}

    def test_of_the_command_line_loads_no_library_but_typer(self):
        loaded = loaded_by("import gpattern_bench.cli")
        assert not loaded & {*HEAVY, "numpy", "shapely", "pydantic", "yaml"}

    @pytest.mark.slow
    def test_of_loaders_runs_and_boards_loads_nothing_that_takes_a_second(self):
        code = "from gpattern_bench import load_dataset, Evaluator; "
        code += "import gpattern_bench.board.publish, gpattern_bench.runs.run_all, "
        code += "gpattern_bench.methods.ella.method, gpattern_bench.methods.sprawl.method"
        assert not loaded_by(code, whole_names=True) & {"torch", "scipy.stats", "sklearn", "joblib"}

    def test_loading_cached_tables_compiles_nothing_and_curates_nothing(self):
        gpattern_bench.load_dataset("synthetic")
        loaded = loaded_by(
            "import gpattern_bench; gpattern_bench.load_dataset('synthetic')", whole_names=True
        )
        assert not loaded & {"pandas", "numba", "scipy", "sklearn", "shapely", "requests", "joblib"}
        curation = {name for name in loaded if name.startswith("gpattern_bench.curate.")}
        assert curation <= {"gpattern_bench.sources.recipe"}  # data only

    @pytest.mark.slow
    def test_an_evaluator_compiles_nothing_before_it_scores(self):
        gpattern_bench.load_dataset("synthetic")
        loaded = loaded_by("import gpattern_bench; gpattern_bench.Evaluator('synthetic')")
        assert not loaded & {"numba", "scipy", "sklearn", "torch"}

    @pytest.mark.parametrize("arguments", [["list"], ["info", "synthetic"]])
    def test_what_is_known_is_shown_without_reading_tables(self, arguments):
        gpattern_bench.load_dataset("synthetic")
        run = f"from gpattern_bench.cli import app; app({arguments}, standalone_mode=False)"
        assert not loaded_by(run) & {"numpy", "pandas", "pyarrow", "shapely", "requests"}

    @pytest.mark.slow
    def test_of_methods_loads_no_method(self):
        assert "scipy.special" not in loaded_by("import gpattern_bench.methods")


class TestNames:
    @pytest.mark.parametrize("module", ["gpattern_bench", *MODULES])
    def test_every_exported_name_is_there(self, module):
        loaded = importlib.import_module(module)
        for name in getattr(loaded, "__all__", ()):
            assert hasattr(loaded, name), f"{module}.{name}"

    @pytest.mark.parametrize("module", MODULES)
    def test_every_module_says_what_it_is(self, module):
        assert importlib.import_module(module).__doc__

    def test_the_package_exports_what_the_readme_needs(self):
        assert set(gpattern_bench.__all__) == {
            "Evaluator",
            "__version__",
            "call",
            "list_datasets",
            "load_dataset",
        }
        assert dir(gpattern_bench) == sorted(gpattern_bench.__all__)

    def test_an_unknown_attribute_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="'gpattern_bench' has no attribute 'nope'"):
            gpattern_bench.nope  # noqa: B018 - the access is the test

    def test_an_unknown_import_is_an_import_error(self):
        with pytest.raises(ImportError, match="nope"):
            exec("from gpattern_bench import nope")

    def test_every_error_has_the_one_base_class(self):
        errors = importlib.import_module("gpattern_bench.errors")
        for name in errors.__all__:
            assert issubclass(getattr(errors, name), errors.GPatternBenchError)


class TestErrors:
    def test_that_carry_problems_number_and_keep_them(self):
        from gpattern_bench.errors import TableError

        error = TableError("here", ["one", "two"])
        assert error.problems == ("one", "two")
        assert str(error) == "here: 2 problems\n  1. one\n  2. two"

    def test_can_be_sent_between_processes(self):
        import copy
        import pickle

        from gpattern_bench.errors import PredictionError

        error = PredictionError("here", ["one"])
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (str(again), again.problems) == (str(error), error.problems)


@pytest.mark.slow
class TestNetwork:
    def test_synthetic_needs_none_wherever_it_is_made(self, socket_disabled, tmp_path):
        dataset = gpattern_bench.load_dataset("synthetic", root=tmp_path)
        assert tmp_path in dataset.folder.parents
        labels = dataset.labels("test")
        scores = labels[["cell_id", "gene"]].join(labels[list(dataset.patterns)].astype("float32"))
        assert gpattern_bench.Evaluator(dataset).eval(scores)["f1_macro"] == 1.0
