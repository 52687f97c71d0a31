"""Parts of the pairs, and comparisons of methods."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import EvaluationError
from gpattern_bench.evaluate.strata import STRATA, stratify


@pytest.fixture(scope="module")
def ds() -> Dataset:
    return load_dataset("synthetic")


@pytest.fixture(scope="module")
def evaluator(ds: Dataset) -> Evaluator:
    return Evaluator(ds)


def labels(*counts: int) -> pd.DataFrame:
    return pd.DataFrame({"n_molecules": counts})


def test_bins_of_molecules() -> None:
    part, names = stratify(
        "molecules", labels(1, 2, 4, 5, 9, 10, 19, 20, 49, 50, 999), None, "test"
    )
    assert names == ["1", "2-4", "5-9", "10-19", "20-49", "50+"]
    assert part.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_cells_are_parted_in_thirds_by_area(ds: Dataset, evaluator: Evaluator) -> None:
    part, _ = stratify("cell_size", evaluator.labels, ds, "test")
    area = ds.cells("test").set_index("cell_id")["cell_boundary"].map(lambda shape: shape.area)
    of_pair = area.loc[evaluator.labels["cell_id"].astype(str)].to_numpy()
    assert of_pair[part == 0].max() < of_pair[part == 1].min()
    assert of_pair[part == 1].max() < of_pair[part == 2].min()
    cells = pd.Series(part, evaluator.labels["cell_id"].astype(str)).groupby(level=0).first()
    assert np.bincount(cells).max() - np.bincount(cells).min() <= 1


def test_genes_of_the_train_split_are_seen(ds: Dataset, evaluator: Evaluator) -> None:
    part, names = stratify("gene_seen", evaluator.labels, ds, "test")
    assert names == ["seen", "unseen"]
    assert not part.any()
    strange = evaluator.labels.assign(gene="new")
    assert stratify("gene_seen", strange, ds, "test")[0].all()


@pytest.mark.parametrize("by", STRATA)
def test_parts_make_up_the_whole(evaluator: Evaluator, by: str) -> None:
    found = evaluator.strata(evaluator.example(), by, replicates=50)
    assert sum(part["n"] for part in found.values()) == len(evaluator.labels)
    for part in found.values():
        assert part["n_clusters"] > 1
        assert len(part["ci"]["auc_macro"]) == 2


def test_a_part_is_scored_as_if_it_were_all(evaluator: Evaluator) -> None:
    scores = evaluator.example()
    rows = evaluator.labels["n_molecules"].between(5, 9)
    alone = Evaluator(evaluator.labels[rows]).eval(scores[rows.to_numpy()])
    part = evaluator.strata(scores, "molecules")["5-9"]
    assert part == alone


def test_val_thresholds_are_those_of_the_whole_split(ds: Dataset, evaluator: Evaluator) -> None:
    val = Evaluator(ds, "val").example()
    whole = evaluator.eval(evaluator.example(), val, replicates=0)
    for part in evaluator.strata(evaluator.example(), "molecules", val, replicates=0).values():
        for pattern, values in part.per_pattern.items():
            assert values["threshold_val"] == whole.per_pattern[pattern]["threshold_val"]


@pytest.mark.parametrize("by", ["molecules", "gene_seen", "cell_size"])
def test_what_labels_do_not_tell_is_refused(by: str) -> None:
    with pytest.raises(EvaluationError, match=f"by {by}: it needs"):
        stratify(by, pd.DataFrame({"gene": ["A"]}), None, "test")


def test_an_unknown_part_names_those_there_are() -> None:
    with pytest.raises(EvaluationError, match="known: molecules, gene_seen, cell_size"):
        stratify("colour", labels(1), None, "test")


def test_arrays_cannot_be_broken_down(evaluator: Evaluator) -> None:
    with pytest.raises(EvaluationError, match="arrays have no strata"):
        evaluator.strata({"y_true": [], "y_pred": []}, "molecules")


def test_a_method_is_tied_with_itself(evaluator: Evaluator) -> None:
    found = evaluator.compare(evaluator.example(), evaluator.example())
    for values in found.values():
        assert (values["difference"], values["ci"], values["tied"]) == (0.0, [0.0, 0.0], True)


def test_the_labels_differ_from_noise(evaluator: Evaluator) -> None:
    truth = evaluator.labels[["cell_id", "gene"]].join(
        evaluator.labels[list(evaluator.patterns)] * 1.0
    )
    found = evaluator.compare(truth, evaluator.example())
    assert not any(values["tied"] for values in found.values())
    assert found["auc_macro"]["ci"][0] > 0.4
    back = evaluator.compare(evaluator.example(), truth)
    assert back["auc_macro"]["difference"] == -found["auc_macro"]["difference"]


def test_each_pattern_is_compared_as_the_two_results_say(evaluator: Evaluator) -> None:
    a, b = evaluator.example(1), evaluator.example(2)
    val_a, val_b = (Evaluator(evaluator.dataset, "val").example(seed) for seed in (1, 2))
    found = evaluator.compare(a, b, val_a, val_b)
    one, other = evaluator.eval(a, val_a), evaluator.eval(b, val_b)
    assert list(found) == list(one.replicates)
    for pattern in evaluator.patterns:
        for metric in ("auc", "acc", "f1", "ap", "precision", "recall", "f1_val", "acc_val"):
            values = found.per_pattern[pattern][metric]
            x, y = one.per_pattern[pattern][metric], other.per_pattern[pattern][metric]
            assert (values["a"], values["b"], values["difference"]) == (x, y, x - y)
            assert values["tied"] == (values["ci"][0] <= 0 <= values["ci"][1])
    # Of one pattern alone, the macro average is the pattern's metric.
    alone = evaluator.labels[["fov", "cell_id", "gene", "nuclear"]]
    single = Evaluator(alone).compare(*(x[["cell_id", "gene", "nuclear"]] for x in (a, b)))
    for metric in ("auc", "acc", "f1", "ap"):
        assert single[f"{metric}_macro"] == single.per_pattern["nuclear"][metric]
        assert single.per_pattern["nuclear"][metric] == found.per_pattern["nuclear"][metric]


def test_a_comparison_is_a_table(evaluator: Evaluator) -> None:
    found = evaluator.compare(evaluator.example(1), evaluator.example(2))
    frame = found.to_frame()
    assert list(frame.columns) == [
        "metric",
        "pattern",
        "a",
        "b",
        "difference",
        "low",
        "high",
        "tied",
    ]
    assert list(frame["metric"][:5]) == ["auc", "acc", "f1", "ap", "accuracy_subset"]
    assert frame["pattern"].value_counts().to_dict() == {"macro": 5} | dict.fromkeys(
        evaluator.patterns, 6
    )
    row = frame.set_index(["metric", "pattern"]).loc[("f1", "nuclear")]
    values = found.per_pattern["nuclear"]["f1"]
    assert [row["a"], row["low"], row["high"]] == [values["a"], *values["ci"]]
    assert f"{found['auc_macro']['difference']:.4f}" in str(found)
    assert len(str(found).splitlines()) == 2 + 5


def test_comparing_at_val_thresholds_needs_both(evaluator: Evaluator) -> None:
    val = Evaluator(evaluator.dataset, "val").example()
    with pytest.raises(EvaluationError, match="val scores of both"):
        evaluator.compare(evaluator.example(), evaluator.example(), val)


def test_comparing_needs_fields_of_view(evaluator: Evaluator) -> None:
    plain = Evaluator(evaluator.labels.drop(columns="fov"))
    with pytest.raises(EvaluationError, match="fields of view"):
        plain.compare(evaluator.example(), evaluator.example())


def test_the_example_is_valid_and_seeded(evaluator: Evaluator) -> None:
    assert evaluator.check(evaluator.example()).problems == []
    assert evaluator.example(1).equals(evaluator.example(1))
    assert not evaluator.example(1).equals(evaluator.example(2))
