"""What a forest of 300 trees, and the fewer trees of many pairs, costs and scores.

Cells are drawn at the sizes of the paper's table 1 (of `cosmx_lung` a tenth). Forests are fitted on
Bento's and locFISH's features of at most 50,000 labelled pairs of train, and score those of val;
test is not read. Each row is a mean over seeds, which draw the pairs and grow the trees. The last
line is one JSON object.

Rerun: `python benchmarks/forests.py` (a quarter of an hour), or `--quick` (seconds).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from timing import parsed, report, show

from gpattern_bench.curate.build import curate
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.evaluate.metrics import score_pattern
from gpattern_bench.methods._forest import Forest, LabelledPairs, labelled_pairs
from gpattern_bench.methods.bento.method import bento_features
from gpattern_bench.methods.locfish.method import Locfish
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import find_entry

SIZES = {"nih3t3": None, "u2os": None, "cosmx_lung": 10_000}
"""What cells are like -> how many; None: all."""
QUICK_CELLS = 12
FEATURES = {"bento": bento_features, "locfish": Locfish._features}
TREES = 300
SEEDS = (0, 1, 2)


def main() -> None:
    """Run, print a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description="Benchmark of the number of trees.")
    parser.add_argument("--quick", action="store_true", help="few cells, one size, one seed")
    options = parsed(parser)
    sizes = {"u2os": QUICK_CELLS} if options.quick else SIZES
    seeds = SEEDS[:1] if options.quick else SEEDS
    most = 2 * TREES if options.quick else TREES  # of few pairs the default is 300, too
    rows = []
    for like, cells in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            dataset = drawn(like, Path(folder) / like, cells)
            for method in FEATURES:
                rows += compared(dataset, method, seeds, most)
    show(rows)
    report({"rows": rows, "seeds": len(seeds)}, options.record)


def drawn(like: str, folder: Path, cells: int | None) -> Dataset:
    """Simulated cells as a dataset."""
    recipe = Recipe(
        format="simulated", like=like, patterns=find_entry(like).recipe.patterns, seed=1,
        n_cells=cells, patternless="keep",
    )  # fmt: skip
    return Dataset(curate(recipe, Path(), folder, name=like, version="1.0.0"))


def compared(
    dataset: Dataset, method: str, seeds: tuple[int, ...], most: int
) -> list[dict[str, Any]]:
    """Rows of the most trees and of those of the default; changes are of means over seeds."""
    features = FEATURES[method]
    val = labelled_pairs(dataset.iter_cells("val"), features, 0)
    grown(val, val, 0, 1)  # imports and compiles
    found: dict[str, list[dict[str, float]]] = {"most": [], "default": []}
    pairs, computing = 0, []
    for seed in seeds:
        began = perf_counter()
        train = labelled_pairs(dataset.iter_cells("train"), features, seed)
        computing.append(perf_counter() - began)
        pairs = len(train.features)
        found["most"].append(grown(train, val, seed, most))
        found["default"].append(grown(train, val, seed, None))
    means = {
        name: {key: float(np.mean([one[key] for one in each])) for key in each[0]}
        for name, each in found.items()
    }
    about = {"like": dataset.name, "method": method, "pairs": pairs, "of val": len(val.features)}
    about["features, s"] = float(np.mean(computing))
    first = means["most"]
    return [
        {
            **about,
            **mean,
            "trees": int(mean["trees"]),
            "AUC - first": mean["AUC"] - first["AUC"],
            "F1 - first": mean["F1"] - first["F1"],
            "F1 over seeds": float(np.ptp([one["F1"] for one in found[name]])),
        }
        for name, mean in means.items()
    ]


def grown(
    train: LabelledPairs, val: LabelledPairs, seed: int, trees: int | None
) -> dict[str, float]:
    """Costs of a forest, and its macro scores of val."""
    clock, cpu = perf_counter(), process_time()
    forest = Forest.fit(train.features, train.labels, seed, trees=trees)
    fitted, fitted_cpu = perf_counter() - clock, process_time() - cpu
    cpu = process_time()
    scores = forest.predict(val.features)
    scored = process_time() - cpu
    patterns = [score_pattern(y, s) for y, s in zip(val.labels.T, scores.T, strict=True)]
    return {
        "trees": len(forest.root),
        "fit, s": fitted,
        "fit, CPU s": fitted_cpu,
        "scores of val, CPU s": scored,
        "AUC": float(np.mean([one.auc for one in patterns])),
        "F1": float(np.mean([one.f1 for one in patterns])),
    }


if __name__ == "__main__":
    main()
