"""Methods of other packages, by entry points of one that is really installed in a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from samples import small_dataset

from gpattern_bench.errors import MethodError, UnknownMethodError
from gpattern_bench.features import compute_features
from gpattern_bench.methods import METHODS, get_method, plugins
from gpattern_bench.runs.run import Run, run_method
from gpattern_bench.runs.saved_model import load_model

MODULE = """
import numpy as np
import pandas as pd
from gpattern_bench.methods.base import About, Untrained


class Inside(Untrained):
    about = About(name="inside", label="Inside", kind="model", summary="One line.",
                  reference="none", inputs=("coordinates", "nucleus outline"), learns=False)

    def predict(self, cells):
        for cell in cells:
            pair = np.searchsorted(cell.genes, cell.gene)
            share = np.bincount(pair, cell.geometry.in_nucleus, len(cell.genes)) / cell.counts
            yield cell, np.repeat(share[:, None], len(cells.patterns), 1).astype(np.float32)

    def features(self, cells):
        for cell in cells:
            names = [cells.genes[g] for g in cell.genes]
            yield pd.DataFrame({"cell_id": cell.cell_id, "gene": names, "n_molecules": cell.counts})


class Renamed(Inside):
    pass


def broken():
    raise RuntimeError("no licence")
"""
POINTS = """[gpattern_bench.methods]
inside = my_package_of_methods:Inside
renamed = my_package_of_methods:Renamed
broken = my_package_of_methods:broken
gone = my_package_of_methods:Gone
sprawl = my_package_of_methods:Inside
"""


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """What pip leaves in site-packages."""
    site = tmp_path / "site"
    about = site / "my_package_of_methods-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)
    (site / "my_package_of_methods.py").write_text(MODULE)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "my_package_of_methods", raising=False)
    return site


@pytest.mark.usefixtures("installed")
class TestInstalled:
    def test_are_found_without_an_import(self):
        assert sorted(plugins()) == ["broken", "gone", "inside", "renamed"]  # sprawl is ours
        assert "my_package_of_methods" not in sys.modules

    def test_run_measure_and_predict_as_ours_do(self, tmp_path):
        dataset = small_dataset(tmp_path)
        files = run_method("inside", dataset, tmp_path / "runs")
        assert [file.name for file in files] == ["val-seed0.parquet", "test-seed0.parquet"]
        run = Run(**json.loads(files[0].with_name("run-seed0.json").read_text()))
        assert (tuple(run.depends_on), run.repeats) == (("coordinates", "nucleus outline"), True)
        method, _ = load_model(files[0].with_name("model-seed0"))
        assert method.about.label == "Inside"

    def test_their_features_are_known(self, tmp_path):
        dataset = small_dataset(tmp_path)
        assert len(compute_features("inside", dataset)) == dataset.counts["pairs"]

    def test_a_name_of_ours_stays_ours(self):
        assert get_method("sprawl").about.label == "SPRAWL"

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("broken", r"broken, which my_package_of_methods:broken \(my-package\) .*no licence"),
            ("gone", "gone, which .* cannot be made: AttributeError"),
            ("renamed", "says about.name = 'inside'; expected 'renamed'"),
        ],
    )
    def test_a_bad_one_is_one_error(self, name, expected):
        with pytest.raises(MethodError, match=expected):
            get_method(name)

    def test_an_unknown_name_lists_them(self):
        with pytest.raises(UnknownMethodError, match=r"Did you mean inside\?.*sprawl, .*inside"):
            get_method("insid")

    def test_are_listed_last_and_bad_ones_told(self, command):
        code, out, err = command("methods")
        names = [line.partition(":")[0] for line in out.splitlines() if line[0] != " "]
        assert (code, names) == (0, [*METHODS, "inside"])
        assert err.count("warning: ") == 3
