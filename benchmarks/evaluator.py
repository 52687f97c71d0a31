"""How fast, how frugal and how exact the evaluation is, beside scikit-learn and torchmetrics.

Three parts, each with a table; the last line is one JSON object with every figure.

*Scores*: all metrics of one pattern by `score_pattern`, against scikit-learn's `roc_auc_score` and
`precision_recall_curve` (`average_precision_score` is timed apart) and torchmetrics' exact
functions, on the same data, in turn, the best of some repeats. A difference from scikit-learn in
AUC, AP or the largest F1 of more than 1e-12 stops the benchmark. Compiling is timed apart.

*Memory*: the kernel's own peak of resident memory in a fresh process (VmHWM, reset after the inputs
are there), so that numpy, numba and Arrow all count; only Linux tells it.

*Join*: a prediction file with rows in random order, read, checked, joined to a table of labels and
scored, in a fresh process.

Rerun: `python benchmarks/evaluator.py` (about five minutes), or `--quick` (seconds).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from tabulate import tabulate
from timing import fresh, here, parsed, report, resident, told

from gpattern_bench import Evaluator
from gpattern_bench.evaluate.metrics import PatternScore, score_pattern
from gpattern_bench.predictions import Origin, write_tables
from gpattern_bench.tables import schema

PATTERNS = ("cell_edge", "cytoplasmic", "nuclear", "nuclear_edge")
GENES, PER_CELL = 960, 100  # a panel of 960 genes, of which a cell shows 100
DTYPES = ("float32", "float64")
TOLERANCE = 1e-12
COARSE = 10**6  # rows below which the kernel's pages are too coarse a measure of memory


def main() -> None:
    """Run the parts, print their tables, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description="Benchmark of the evaluation.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--join", type=int, default=10**7, metavar="ROWS", help="0: no join")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes, in seconds")
    options = parsed(parser)
    call, compiled = fresh, DTYPES
    if options.quick:
        options.sizes, options.join, options.repeats = [1_000, 10_000], 10_000, 1
        call, compiled = here, DTYPES[:1]
    scores = [figures(n, dtype, options.repeats) for n in options.sizes for dtype in DTYPES]
    headers = ["pairs", "dtype", "ours (s)", "scikit-learn (s)", "its AP (s)", "torchmetrics (s)"]
    headers += ["x scikit-learn", "x torchmetrics", "bytes per row", "largest difference"]
    names = ["n", "dtype", "ours_s", "sklearn_s", "sklearn_ap_s", "torchmetrics_s"]
    names += ["ratio_sklearn", "ratio_torchmetrics", "bytes_per_row", "max_difference"]
    show(headers, [[row[name] for name in names] for row in scores])
    if scores[0]["torchmetrics_s"] is None:
        print("torchmetrics is not installed: left out")
    compile_s = {dtype: compiling(dtype) for dtype in compiled}
    print(f"\nThe first call ever also compiles: {compile_s['float32']:.1f} s for float32.\n")
    join = joined(call, options.join, options.repeats) if options.join else None
    if join is not None:
        show(list(join), [list(join.values())])
    every: dict[str, Any] = {
        "scores": scores,
        "compile_s": compile_s,
        "join": join,
    }
    if "torchmetrics" in sys.modules:
        every["versions"] = {"torchmetrics": version("torchmetrics")}
    print()
    report(every, options.record)


def show(headers: list[str], rows: list[list[Any]]) -> None:
    """Print a table."""
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".3g", intfmt=",", missingval="-"))


def drawn(n: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,), a fifth of them positive, and scores that are higher for those."""
    rng = np.random.default_rng(0)
    true = rng.random(n, dtype=np.float32) < 0.2
    scores = rng.random(n, dtype=dtype)
    scores[true] = np.sqrt(scores[true])
    return true, scores


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Time of one call, and what it returns."""
    begin = perf_counter()
    value = call()
    return perf_counter() - begin, value


# Scores


def figures(n: int, dtype: str, repeats: int) -> dict[str, Any]:
    """Best times of all contestants on the same data, in turn."""
    true, scores = drawn(n, dtype)
    score_pattern(*drawn(10, dtype))  # compiled, or read from numba's cache
    contestants: dict[str, Callable[[], Any]] = {
        "ours_s": lambda: score_pattern(true, scores),
        "sklearn_s": lambda: (roc_auc_score(true, scores), precision_recall_curve(true, scores)),
        "sklearn_ap_s": lambda: average_precision_score(true, scores),
    }
    rival = torchmetrics_of(true, scores)
    if rival is not None:
        contestants["torchmetrics_s"] = rival
    best: dict[str, float] = dict.fromkeys(contestants, float("inf"))
    values: dict[str, Any] = {}
    for _ in range(repeats):
        for name, call in contestants.items():
            spent, values[name] = seconds(call)
            best[name] = min(best[name], spent)
    found: PatternScore = values["ours_s"]
    difference = differences(found, *values["sklearn_s"], values["sklearn_ap_s"])
    if not max(difference.values()) <= TOLERANCE:
        sys.exit(f"error: not what scikit-learn finds ({n:,} pairs, {dtype}): {difference}")
    rivals = best.get("torchmetrics_s")
    return {
        "n": n,
        "dtype": dtype,
        **best,
        "torchmetrics_s": rivals,
        "ratio_sklearn": best["sklearn_s"] / best["ours_s"],
        "ratio_torchmetrics": None if rivals is None else rivals / best["ours_s"],
        "bytes_per_row": fresh(bytes_per_row, n, dtype) if n >= COARSE else None,
        "max_difference": max(difference.values()),
        "torchmetrics_auc_difference": None
        if rivals is None
        else abs(found.auc - float(values["torchmetrics_s"][0])),
    }


def torchmetrics_of(true: np.ndarray, scores: np.ndarray) -> Callable[[], Any] | None:
    """Exact AUC and precision-recall curve by torchmetrics; None where it is not installed."""
    try:
        import torch
        from torchmetrics.functional.classification import (
            binary_auroc,
            binary_precision_recall_curve,
        )
    except ImportError:
        return None
    preds, target = torch.from_numpy(scores), torch.from_numpy(true.astype(np.int64))
    return lambda: (binary_auroc(preds, target), binary_precision_recall_curve(preds, target))


def differences(found: PatternScore, auc: float, curve: Any, ap: float) -> dict[str, float]:
    """Differences from what scikit-learn finds."""
    precision, recall = curve[0], curve[1]
    total = precision + recall
    largest = np.max(2 * precision * recall / np.where(total > 0, total, 1))
    return {
        "auc": abs(found.auc - auc),
        "ap": abs(found.ap - ap),
        "f1": abs(found.f1 - float(largest)),
    }


def compiling(dtype: str) -> float:
    """Seconds that the first call takes longer than the second with nothing in numba's cache."""
    before = os.environ.get("NUMBA_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        try:
            first, second = fresh(first_and_second, dtype)
        finally:
            del os.environ["NUMBA_CACHE_DIR"]
            os.environ |= {} if before is None else {"NUMBA_CACHE_DIR": before}
    return float(first - second)


def first_and_second(dtype: str) -> tuple[float, float]:
    """Seconds of two calls."""
    data = drawn(10, dtype)
    return seconds(lambda: score_pattern(*data))[0], seconds(lambda: score_pattern(*data))[0]


# Memory


def bytes_per_row(n: int, dtype: str) -> float | None:
    """Peak memory of `score_pattern` beyond its inputs."""
    score_pattern(*drawn(10, dtype))
    true, scores = drawn(n, dtype)
    before, _ = resident(reset=True)
    score_pattern(true, scores)
    return told((resident()[1] - before) / n)


# Join


def joined(call: Callable[..., Any], n: int, repeats: int) -> dict[str, Any]:
    """Best time of scoring a prediction file against a table of labels, and its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        size = call(write_shuffled, n, path)
        runs = [call(scored, n, path) for _ in range(repeats)]
    best = min(runs, key=lambda run: run["total_s"])
    return {**best, "file_mib": size / 2**20}


def labels(n: int) -> pd.DataFrame:
    """Labels of n pairs: 100 genes of 960 in each cell, ids as categories, in sorted order."""
    rng = np.random.default_rng(1)
    cells = -(-n // PER_CELL)
    steps = np.array([step for step in range(1, GENES, 2) if step % 3 and step % 5])
    first, step = rng.integers(0, GENES, (cells, 1)), rng.choice(steps, (cells, 1))
    gene = np.sort((first + step * np.arange(PER_CELL)) % GENES).astype(np.int16)
    cell = np.repeat(np.arange(cells, dtype=np.int32), PER_CELL)
    ids = {
        "cell_id": pd.Categorical.from_codes(cell[:n], [f"c_1_{i:06}" for i in range(cells)]),
        "gene": pd.Categorical.from_codes(gene.ravel()[:n], [f"GENE{i}" for i in range(GENES)]),
    }
    return pd.DataFrame(ids | {name: rng.random(n, dtype=np.float32) < 0.2 for name in PATTERNS})


def write_shuffled(n: int, path: Path) -> int:
    """Write random scores of those pairs in random order; return the size of the file."""
    rng = np.random.default_rng(2)
    table = pa.Table.from_pandas(labels(n)[["cell_id", "gene"]], preserve_index=False)
    table = table.take(pa.array(rng.permutation(n)))
    for name in PATTERNS:
        table = table.append_column(name, pa.array(rng.random(n, dtype=np.float32)))
    table = table.cast(schema.predictions(PATTERNS))
    origin = json.dumps(asdict(Origin("large", "1.0.0", "test", "random")))
    write_tables([table.replace_schema_metadata({"gpattern_bench": origin})], path)
    return path.stat().st_size


def scored(n: int, path: Path) -> dict[str, Any]:
    """Score the file in this process."""
    with tempfile.TemporaryDirectory() as folder:  # a small file first: compiled, all imported
        small = Path(folder) / "small.parquet"
        write_shuffled(1_000, small)
        Evaluator(labels(1_000)).eval(small)
    frame = labels(n)
    before, _ = resident(reset=True)
    cpu = process_time()
    of_labels, evaluator = seconds(lambda: Evaluator(frame))
    of_eval, result = seconds(lambda: evaluator.eval(path))
    cpu, peak = process_time() - cpu, resident()[1]
    assert result["n"] == n
    return {
        "rows": n,
        "evaluator_s": of_labels,
        "eval_s": of_eval,
        "total_s": of_labels + of_eval,
        "cpu_s": cpu,
        "before_gib": told(before / 2**30),
        "peak_gib": told(peak / 2**30),
    }


if __name__ == "__main__":
    main()
