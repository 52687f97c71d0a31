"""Ranking games: how alike submissions are, what hides a copy, scores near labels, new cells.

Rerun: `python benchmarks/games.py` (a minute), or `--quick` (less of each). Levels of noise are
standard deviations, as shares of that of the ranks.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr
from tabulate import tabulate
from timing import parsed, report

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.board.challenge import LEAST_SEED, score_challenge
from gpattern_bench.board.duplicates import CORRELATION, CORRELATION_MEAN
from gpattern_bench.board.submission import read_submissions
from gpattern_bench.runs.run import run_method

SUBMISSIONS = Path(__file__).resolve().parents[1] / "submissions"
NOISE = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5)
METHODS = ("gpsnet_coordinates", "boosted_gene", "bento", "sprawl")
NEW = ("gene_prior", "bento", "locfish", "ella_robust")
VARIANTS = (
    {"boosted", "boosted_gene"},
    {"coordinate_mlp", "gpsnet", "gpsnet_coordinates", "gpsnet_outlines"},
    {"ella", "ella_robust"},
    {"locfish", "locfish_2018", "locfish_unsupervised"},
)
FILE = "predictions/synthetic/test-seed0.parquet"
KEYS = ["cell_id", "gene"]


def correlations(one: pd.DataFrame, other: pd.DataFrame) -> list[float]:
    """Rank correlation of each pattern that neither scores constantly."""
    return [
        float(spearmanr(one[name], other[name]).statistic)
        for name in one.columns
        if one[name].nunique() > 1 and other[name].nunique() > 1
    ]


def nearest(quick: bool) -> list[dict[str, object]]:
    """The most alike files of two methods, of each dataset and kind of pair."""
    files = {}
    for submission in read_submissions(SUBMISSIONS):
        if submission.metadata.kind == "control":
            continue
        for result in submission.results:
            if quick and result["protocol"] != "cv-cell":
                continue
            table = pd.read_parquet(submission.folder / result["predictions"])
            name = Path(result["predictions"]).stem.removeprefix("test-")
            scores = table.sort_values(KEYS, ignore_index=True).drop(columns=KEYS)
            files[result["dataset"], submission.metadata.method, name] = scores
    rows = []
    for (a, one), (b, other) in combinations(files.items(), 2):
        if a[0] != b[0] or not (found := correlations(one, other)):
            continue
        kind = "another method" if a[1] != b[1] else "the same, fitted otherwise"
        if a[1] != b[1] and any({a[1], b[1]} <= each for each in VARIANTS):
            kind = "a variant of it"
        if a[1] == b[1] and a[2].partition("-")[2] == b[2].partition("-")[2]:
            kind = "the same, another seed"
        rows.append(
            {
                "dataset": a[0],
                "compared with": kind,
                "one": f"{a[1]} {a[2]}",
                "other": f"{b[1]} {b[2]}",
                "one pattern": max(found),
                "mean": sum(found) / len(found),
            }
        )
    frame = pd.DataFrame(rows)
    most = []
    for _, group in frame.groupby(["compared with", "dataset"]):
        most += [
            {"by": key} | group.loc[group[key].idxmax()].to_dict()
            for key in ("one pattern", "mean")
        ]
    return most


def noisy(values: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Scores whose ranks are those of `values` and noise."""
    ranks = rankdata(values) / len(values)
    drawn = rng.normal(size=len(values)) * noise * ranks.std()
    return (rankdata(ranks + drawn) / len(values)).astype(np.float32)


def copies(methods: tuple[str, ...], levels: tuple[float, ...]) -> list[dict[str, object]]:
    """Correlation of noisy copies with their original, and the F1 that the noise costs."""
    dataset = load_dataset("synthetic")
    evaluator = Evaluator(dataset)
    rows = []
    for method in methods:
        table = pd.read_parquet(SUBMISSIONS / method / FILE)
        before = evaluator.eval(table, replicates=0)["f1_macro"]
        for noise in levels:
            rng = np.random.Generator(np.random.Philox(int(1000 * noise)))
            copy = table.assign(**{p: noisy(table[p], noise, rng) for p in dataset.patterns})
            found = correlations(table[list(dataset.patterns)], copy[list(dataset.patterns)])
            mean = sum(found) / len(found)
            rows.append(
                {
                    "copy of": method,
                    "noise": noise,
                    "one pattern": max(found),
                    "mean": mean,
                    "flagged": max(found) > CORRELATION or mean > CORRELATION_MEAN,
                    "F1 lost": before - evaluator.eval(copy, replicates=0)["f1_macro"],
                }
            )
    return rows


def near_labels() -> list[dict[str, object]]:
    """Scores of labels of which some are flipped, and of Bento's where some pairs show theirs."""
    dataset = load_dataset("synthetic")
    evaluator = Evaluator(dataset)
    patterns = list(dataset.patterns)
    bento = pd.read_parquet(SUBMISSIONS / "bento" / FILE).astype(dict.fromkeys(KEYS, str))
    table = evaluator.labels[KEYS].astype(str).merge(bento, on=KEYS)
    truth, scores = evaluator.labels[patterns].to_numpy(), table[patterns].to_numpy()
    rng = np.random.Generator(np.random.Philox(0))
    shown = rng.random((len(truth), 1)) < 0.4
    made = {
        "labels, 0.2 % flipped": truth ^ (rng.random(truth.shape) < 0.002),
        "labels of 40 % of the pairs, else bento": np.where(shown, 0.3 + 0.4 * truth, scores),
    }
    rows = []
    for name, values in made.items():
        columns = dict(zip(patterns, values.T.astype(np.float32), strict=True))
        found = evaluator.eval(table[KEYS].assign(**columns), replicates=0)
        rows.append(
            {"scores": name}
            | {key: found[key] for key in ("auc_macro", "f1_macro", "accuracy_subset")}
        )
    return rows


def new_cells(methods: tuple[str, ...]) -> list[dict[str, object]]:
    """F1 on the test split of `synthetic`, and on new cells."""
    dataset = load_dataset("synthetic")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for method in methods:
            _, test = run_method(method, dataset, Path(folder) / method)
            model = Path(folder) / method / "synthetic" / "model-seed0"
            [found] = score_challenge("synthetic", LEAST_SEED, models=[model])
            before = Evaluator(dataset).eval(test)
            rows.append(
                {"method": method, "test": before["f1_macro"], "new cells": found["f1_macro"]}
                | {"ci of test": before["ci"]["f1_macro"], "of new cells": found["ci"]["f1_macro"]}
            )
    return rows


def main() -> None:
    """Measure; the last line printed is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of each")
    options = parsed(parser)
    quick = options.quick
    found = {
        "nearest": nearest(quick),
        "copies": copies(METHODS[:1] if quick else METHODS, NOISE[2:3] if quick else NOISE),
        "near_labels": near_labels(),
        "new_cells": new_cells(NEW[:1] if quick else NEW),
    }
    for rows in found.values():
        print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4f"), "\n")
    report(found, options.record)


if __name__ == "__main__":
    main()
