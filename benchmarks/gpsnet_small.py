"""What the preset `small` of GPSNet costs on `synthetic`, and what its choices are worth there.

All on one thread. The last line is one JSON object.

*Scores*: AUC and F1 of the test split, of one seed, and the seconds of the fit and of scoring the
split's cells one by one, as `gpattern-bench run gpsnet --dataset synthetic` measures them (the val
split is scored after each epoch). The rows: the model; the same model with every gene unknown, as
on a panel that has none of its genes; trained again on cells that are never turned or mirrored; and
gradient-boosted trees on quantiles of the radii of each pair's molecules, which see no outline.

*Prediction*: the model on 4,000 cells that were drawn for it, twice, in a fresh process; resident
memory at the first cell and after each time.

Rerun: `python benchmarks/gpsnet_small.py` (about seven minutes on a free core), or `--quick`
(a minute, on a few cells and for one epoch).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from tabulate import tabulate
from timing import fresh, here, parsed, report, resident, told

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods.base import Method
from gpattern_bench.methods.gpsnet.config import TRAININGS
from gpattern_bench.methods.gpsnet.method import GPSNetCoordinates
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.predictions import counted
from gpattern_bench.runs.run import fit_method
from gpattern_bench.sources.recipe import Recipe

QUANTILES = np.linspace(0, 1, 21)


def main() -> None:
    """Run the parts, print their tables, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description="Benchmark of GPSNet's preset `small`.")
    parser.add_argument("--quick", action="store_true", help="few cells, one epoch")
    options = parsed(parser)
    quick = options.quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"n_fovs": 20, "cells_per_fov": 2, "n_genes": 12, "mean_molecules": 100}
        dataset = drawn(folder / "drawn", 7, **sizes) if quick else load_dataset("synthetic")
        training = replace(TRAININGS["small"], epochs=1) if quick else TRAININGS["small"]
        rows = []

        model = GPSNetCoordinates(training=training)
        fitted = fitting(model, dataset, folder)
        rows.append({"model": "small", **fitted, **scoring(model, dataset)})
        rows.append({"model": "... every gene unknown", **scoring(model, dataset, unknown=True)})
        model.save(folder / "model")

        upright = GPSNetCoordinates(training=replace(training, turned=False))
        fitted = fitting(upright, dataset, folder)
        rows.append({"model": "... never turned", **fitted, **scoring(upright, dataset)})
        rows.append({"model": "trees on radii", **trees(dataset)})
        print(tabulate(rows, "keys", tablefmt="github", floatfmt=".4g", missingval="-"), "\n")

        many = {"cells_per_fov": 10, "n_genes": 60, "mean_molecules": 150}
        drawn(folder / "many", 9, n_fovs=4 if quick else 400, **many)
        call = here if quick else fresh
        prediction = call(predicting, folder / "model", folder / "many")
        print(tabulate([prediction], "keys", tablefmt="github", floatfmt=".3g", intfmt=","), "\n")
    report({"scores": rows, "prediction": prediction}, options.record)


def drawn(folder: Path, seed: int, **sizes: Any) -> Dataset:
    """Simulated cells as a dataset."""
    recipe = Recipe(format="simulated", patterns=PATTERNS, patternless="keep")
    tables = apply_rules(simulate(seed, **sizes), recipe)
    return Dataset(
        write_dataset([tables], folder, name=folder.name, version="1.0.0", recipe=recipe)
    )


# Scores


class Renamed(Cells):
    """Cells whose genes have names that no model knows."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells.without_labels()
        self.genes = tuple(f"unknown {name}" for name in cells.genes)
        self.patterns = cells.patterns

    def without_labels(self) -> Renamed:
        """The same: labels are hidden already."""
        return self

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)


def fitting(method: GPSNetCoordinates, dataset: Dataset, folder: Path) -> dict[str, float]:
    """Seconds of a fit."""
    path = folder / "training.safetensors"
    spent = fit_method(method, [dataset], 0, path)
    path.unlink()  # the next one begins anew
    return {"fit_s": spent.seconds, "fit_cpu_s": spent.cpu_seconds}


def scoring(method: Method, dataset: Dataset, *, unknown: bool = False) -> dict[str, float]:
    """Scores of the test split, and the seconds that its cells took."""
    cells = dataset.iter_cells("test")
    began = perf_counter()
    scores = predict_cells(method, Renamed(cells) if unknown else cells, bar=False)
    seconds = perf_counter() - began
    if unknown:
        scores["gene"] = scores["gene"].str.removeprefix("unknown ")
    return {"test_s": seconds, **evaluated(dataset, scores)}


def evaluated(dataset: Dataset, scores: pd.DataFrame) -> dict[str, float]:
    """Macro AUC and F1 of the test split."""
    rows = counted(scores, dataset.pairs("test"))
    result = Evaluator(dataset, "test").eval(rows, replicates=0)
    return {"auc": result["auc_macro"], "f1": result["f1_macro"]}


def trees(dataset: Dataset) -> dict[str, float]:
    """Scores of one classifier per pattern, fitted on the radii of the train split's pairs."""
    features, labels, _ = radii(dataset.iter_cells("train"))
    asked, _, pairs = radii(dataset.iter_cells("test"))
    for k, pattern in enumerate(dataset.patterns):
        grown = HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.06, l2_regularization=1.0, min_samples_leaf=40,
            random_state=0,
        ).fit(features, labels[:, k])  # fmt: skip
        pairs[pattern] = grown.predict_proba(asked)[:, 1].astype(np.float32)
    return evaluated(dataset, pairs)


def radii(cells: Cells) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Features (n, F) and labels (n, C) of pairs, and which they are: distances from the centroid.

    Quantiles of a gene's radii and of their ranks among all of the cell's, the cell's own
    quantiles, counts, and how far the gene's molecules lie to one side.
    """
    features, labels, names = [], [], []
    for cell in cells:
        radius = np.hypot(*cell.xy.T)
        rank = np.argsort(np.argsort(radius)) / len(radius)
        outer = np.quantile(radius, [0.5, 0.75, 0.9, 0.98])
        for gene, truth in zip(cell.genes, cell.labels, strict=True):
            own = cell.gene == gene
            r, xy = radius[own], cell.xy[own]
            shape = [r.mean(), r.std(), *np.abs(xy.mean(0)), xy.std()]
            quantiles = [*np.quantile(r, QUANTILES), *np.quantile(rank[own], QUANTILES)]
            features.append([*quantiles, *outer, own.sum(), len(radius), *shape])
            labels.append(truth)
            names.append((cell.cell_id, cells.genes[gene]))
    pairs = pd.DataFrame(names, columns=["cell_id", "gene"])
    return np.array(features), np.array(labels), pairs


# Prediction


def predicting(model: Path, tables: Path) -> dict[str, float | None]:
    """Seconds of scoring all cells, and memory on the way, GiB."""
    torch.set_num_threads(1)
    method = GPSNetCoordinates()
    method.load(model)
    cells = Dataset(tables).iter_cells().without_labels()
    found: dict[str, float | None] = {"cells": len(cells), "pairs": 0}
    began = perf_counter(), process_time()
    for _, scores in method.predict(cells):
        found.setdefault("first_gib", held())
        found["pairs"] += len(scores)
    found["seconds"], found["cpu_s"] = perf_counter() - began[0], process_time() - began[1]
    found["gib"] = held()
    for _ in method.predict(cells):
        pass
    return {**found, "again_gib": held()}


def held() -> float | None:
    """Memory of this process at the moment, GiB; None where the system does not tell."""
    return told(round(resident()[0] / 2**30, 2))


if __name__ == "__main__":
    main()
