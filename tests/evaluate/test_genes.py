"""Genes: labels and scores derived from pairs, their evaluation, summaries and figure."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from samples import random_scores, small_dataset
from sklearn.metrics import roc_auc_score

from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import EvaluationError, GPatternBenchError
from gpattern_bench.evaluate.calls import summarise_genes, write_calls
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.evaluate.genes import gene_means, gene_shares, has_pattern
from gpattern_bench.predictions import write_predictions

PATTERNS = ["p", "q"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def labels() -> pd.DataFrame:
    """Genes with one pattern, with two (in half of the cells each), and with none."""
    rows = [("one", 1, 0)] * 3 + [("one", 0, 0)] + [("two", 1, 0), ("two", 1, 1)] * 2
    rows += [("none", 0, 1), ("none", 1, 0), ("none", 0, 0)]
    table = pd.DataFrame(rows, columns=["gene", *PATTERNS])
    return table.assign(cell_id=[f"c{k}" for k in range(len(table))])


def scores_of(labels: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    noise = rng.random((len(labels), 2)).astype(np.float32) / 4
    values = labels[PATTERNS].to_numpy(np.float32) / 2 + noise
    return labels[["cell_id", "gene"]].assign(p=values[:, 0], q=values[:, 1])


class TestRule:
    def test_a_gene_has_what_half_of_its_labelled_cells_show(self, labels):
        names, cells, shares = gene_shares(labels["gene"], labels[PATTERNS].to_numpy(bool))
        assert names == ["none", "one", "two"]
        assert cells.tolist() == [3, 4, 4]
        assert shares[1].tolist() == [0.75, 0.0]
        assert has_pattern(shares).tolist() == [[False, False], [True, False], [True, True]]
        assert has_pattern(shares, 0.3).tolist() == [[True, True], [True, False], [True, True]]

    @pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
    def test_the_share_is_one(self, labels, share):
        with pytest.raises(EvaluationError, match="expected a share of cells"):
            Evaluator(labels).eval_genes(scores_of(labels), share=share)

    def test_means_do_not_depend_on_the_order_of_pairs(self, labels):
        scores = scores_of(labels)
        expected = gene_means(scores["gene"], scores[PATTERNS].to_numpy())
        assert expected[1, 0] == np.float32(scores["p"][:4].astype(float).mean())
        for seed in range(5):
            mixed = scores.sample(frac=1, random_state=seed)
            found = gene_means(mixed["gene"], mixed[PATTERNS].to_numpy())
            assert found.tobytes() == expected.tobytes()

    def test_equal_scores_have_equal_means(self):
        genes = pd.Series(["a"] * 3 + ["b"] * 7 + ["c"] * 11)
        found = gene_means(genes, np.full((21, 1), np.float32(0.3)))
        assert set(found[:, 0].tolist()) == {float(np.float32(0.3))}


class TestEvaluation:
    def test_is_that_of_a_table_of_genes(self, dataset):
        scores = random_scores(dataset)
        found = Evaluator(dataset).eval_genes(scores, replicates=50)
        frame = dataset.labels("test").merge(
            scores, on=["cell_id", "gene"], suffixes=("", "_score")
        )
        grouped = frame.groupby("gene", observed=True)
        assert found["n"] == grouped.ngroups
        for pattern in dataset.patterns:
            truth = grouped[pattern].mean() >= 0.5
            values = found.per_pattern[pattern]
            assert values["n_positive"] == truth.sum()
            if 0 < truth.sum() < len(truth):
                auc = roc_auc_score(truth, grouped[f"{pattern}_score"].mean())
                assert values["auc"] == pytest.approx(auc)
        assert (found["clusters"], found["n_clusters"]) == ("gene", found["n"])
        assert found["n_pairs"] == len(frame)
        assert "genes; fractions" in str(found)

    def test_says_how_ambiguous_genes_are_told(self, labels):
        found = Evaluator(labels).eval_genes(scores_of(labels), replicates=0)
        assert (found["n_ambiguous"], found["ambiguous"]["auc"]) == (1, 1.0)

    def test_intervals_are_over_genes_and_seeded(self, labels):
        many = pd.concat(
            [labels.assign(gene=labels["gene"] + str(k)) for k in range(10)], ignore_index=True
        )
        scores = scores_of(many).assign(q=np.random.default_rng(1).random(len(many)))
        a, b = (Evaluator(many).eval_genes(scores, replicates=50) for _ in range(2))
        assert a["ci"] == b["ci"]
        assert a.degrees_of_freedom == a["n"] - 1 == 29
        low, high = a["ci"]["auc_macro"]
        assert 0 <= low < a["auc_macro"] < high <= 1

    def test_thresholds_of_val_are_those_of_genes(self, dataset, tmp_path):
        rng = np.random.default_rng(0)
        for split in ("val", "test"):
            pairs = dataset.pairs(split)
            scores = pairs.assign(**{p: rng.random(len(pairs)) for p in dataset.patterns})
            write_predictions(tmp_path / f"{split}.parquet", scores, dataset, split, method="mine")
        val, test = tmp_path / "val.parquet", tmp_path / "test.parquet"
        found = Evaluator(dataset).eval_genes(test, val, replicates=0)
        of_val = Evaluator(dataset, "val").eval_genes(val, replicates=0)
        for pattern, values in found.per_pattern.items():
            chosen = of_val.per_pattern[pattern]["threshold"]
            assert values["threshold_val"] == chosen or isnan(chosen)

    def test_arrays_have_no_genes(self, labels):
        arrays = {"y_true": labels[PATTERNS].to_numpy(), "y_pred": np.zeros((len(labels), 2))}
        with pytest.raises(EvaluationError, match="genes need the pairs' names"):
            Evaluator(labels).eval_genes(arrays)

    def test_is_a_command(self, dataset, command, tmp_path):
        file = tmp_path / "test.parquet"
        write_predictions(file, random_scores(dataset), dataset, "test", method="mine")
        words = ["evaluate", file, "--dataset", dataset.folder, "--genes", "--replicates", 20]
        code, out, _ = command(*words)
        assert code == 0
        assert "a gene has the patterns of at least 50% of its labelled cells" in out
        code, out, _ = command(*words, "--json")
        assert json.loads(out)["clusters"] == "gene"
        assert command(*words, "--by", "molecules")[0] == 2


class TestSummaries:
    def test_name_a_gene_s_patterns_and_its_score(self, labels):
        scores = scores_of(labels)
        calls = labels.astype(dict.fromkeys(PATTERNS, bool))
        table = summarise_genes([calls[:5], calls[5:]], [scores]).set_index("gene")
        assert table["patterns"].to_dict() == {"none": "", "one": "p", "two": "p+q"}
        assert table["ambiguous"].tolist() == [False, False, True]
        expected = scores.groupby("gene")["q"].mean()
        assert table["q_score"].tolist() == pytest.approx(expected.tolist())

    def test_of_other_genes_are_refused(self, labels):
        calls = labels.astype(dict.fromkeys(PATTERNS, bool))
        with pytest.raises(EvaluationError, match="not of the same genes"):
            summarise_genes([calls], [scores_of(labels)[:4]])

    @pytest.mark.parametrize("name", ["cells", "ambiguous", "patterns"])
    def test_columns_are_not_patterns(self, name):
        calls = pd.DataFrame({"cell_id": ["a"], "gene": ["X"], name: [True]})
        with pytest.raises(EvaluationError, match=f"cannot be named {name}"):
            summarise_genes([calls])

    def test_are_written_beside_calls(self, labels, tmp_path: Path):
        scores_of(labels).to_parquet(tmp_path / "scores.parquet")
        _, genes = write_calls(
            tmp_path / "scores.parquet", {"p": 0.5, "q": 0.5}, tmp_path / "calls.parquet"
        )
        table = pd.read_csv(genes).set_index("gene")
        assert table.loc["two", "patterns"] == "p+q"
        assert 0 < table.loc["one", "p_score"] < 1


class TestFigure:
    def test_counts_genes(self, dataset):
        pytest.importorskip("matplotlib")
        from gpattern_bench.figures import plot_patterns

        [axes] = plot_patterns(dataset, by="gene").axes
        heights = np.array([bar.get_height() for bar in axes.patches]).reshape(3, -1)
        np.testing.assert_allclose(heights.sum(axis=1), 100)
        labels = dataset.labels("test")
        _, _, shares = gene_shares(labels["gene"], labels[list(dataset.patterns)].to_numpy(bool))
        several = has_pattern(shares).sum(axis=1) > 1
        assert heights[2, -2] == pytest.approx(100 * several.mean())
        assert axes.get_ylabel() == "labelled genes (%)"

    def test_counts_nothing_else(self, dataset):
        pytest.importorskip("matplotlib")
        from gpattern_bench.figures import plot_patterns

        with pytest.raises(GPatternBenchError, match="by pair or by gene"):
            plot_patterns(dataset, by="cell")
