"""What notebooks show: well-formed tables, escaped, with the numbers."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree

import pytest

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.base.html import html_table
from gpattern_bench.data.dataset import Dataset


@pytest.fixture
def evaluator() -> Evaluator:
    return Evaluator("synthetic")


def cells(html: str) -> list[list[str]]:
    """Rows of the table; raises where the HTML is not well-formed."""
    tree = ElementTree.fromstring(html)
    return [[cell.text or "" for cell in row] for row in tree.iter("tr")]


class TestTable:
    def test_values(self):
        html = html_table("t", ["a", "b"], [["x", 1234567], ["y", 0.5], ["z", float("nan")]], "n")
        assert cells(html) == [["a", "b"], ["x", "1,234,567"], ["y", "0.5000"], ["z", "-"]]

    def test_everything_is_escaped(self):
        bad = "<script>alert('&')</script>"
        html = html_table(bad, [bad], [[bad, bad]], bad)
        assert "<script" not in html
        assert cells(html) == [[bad], [bad, bad]]


class TestDataset:
    def test_counts_of_each_split(self):
        dataset = load_dataset("synthetic")
        rows = cells(dataset._repr_html_())
        assert [row[0] for row in rows] == ["split", "train", "val", "test", "all"]
        assert rows[-1][rows[0].index("cells")] == "400"
        assert "48 genes" in dataset._repr_html_()

    def test_text_of_the_manifest_is_escaped(self, tmp_path):
        folder = shutil.copytree(load_dataset("synthetic").folder, tmp_path / "copy")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest |= {"name": "<b>x</b>"}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        html = Dataset(folder)._repr_html_()
        assert "&lt;b&gt;x&lt;/b&gt;@1.0.0" in html
        assert "<b>" not in html


class TestResult:
    def test_metrics_per_pattern_means_and_intervals(self, evaluator):
        result = evaluator.eval(evaluator.example())
        rows = cells(result._repr_html_())
        assert rows[0] == ["pattern", "auc", "acc", "f1", "ap"]
        assert [row[0] for row in rows[1:]] == [*evaluator.patterns, "macro", "95 %"]
        assert rows[-2][1] == f"{result['auc_macro']:.4f}"
        assert "10 clusters (fov)" in result._repr_html_()

    def test_without_intervals_and_with_val(self, evaluator):
        val = Evaluator("synthetic", "val").example()
        rows = cells(evaluator.eval(evaluator.example(), val, replicates=0)._repr_html_())
        assert rows[0][-2:] == ["f1_val", "acc_val"]
        assert rows[-1][0] == "macro"

    def test_what_is_undefined_is_named(self, evaluator):
        truth = evaluator.labels[list(evaluator.patterns)].to_numpy(int).copy()
        truth[:, 0] = 0
        html = evaluator.eval({"y_true": truth, "y_pred": truth.astype(float)})._repr_html_()
        assert "undefined auc: cell_edge" in html
        assert cells(html)[1][1] == "-"
