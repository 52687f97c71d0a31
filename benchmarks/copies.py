"""How alike the submissions rank the pairs, and how much noise hides a copy of one.

Rerun: `python benchmarks/copies.py` (a minute), or `--quick` (one method and level of noise).
Run it where `submissions/` is. Levels of noise are standard deviations, as shares of that of the
ranks.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr
from tabulate import tabulate

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.board.duplicates import CORRELATION, CORRELATION_MEAN
from gpattern_bench.board.submission import read_submissions

NOISE = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5)
METHODS = ("gpsnet", "boosted_gene", "bento", "sprawl")
VARIANTS = (
    {"boosted", "boosted_gene"},
    {"coordinate_mlp", "gpsnet", "gpsnet_outlines"},
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
    for submission in read_submissions(Path("submissions")):
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
        table = pd.read_parquet(Path("submissions") / method / FILE)
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


def main() -> None:
    """Measure; the last line printed is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one method and level of noise")
    quick = parser.parse_args().quick
    found = {
        "nearest": nearest(quick),
        "copies": copies(METHODS[:1] if quick else METHODS, NOISE[2:3] if quick else NOISE),
    }
    for rows in found.values():
        print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4f"), "\n")
    print(json.dumps({"benchmark": "copies", **found}))


if __name__ == "__main__":
    main()
