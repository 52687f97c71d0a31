"""Time the cluster bootstrap against numpy alone, and as the number of clusters grows.

Both draw the same weights, sort each pattern once and find the same metrics; numpy alone then
needs cumulative sums over all rows for every replicate, and is timed on a few and scaled. Then the
growth with the number of cells, where cells are the clusters. Times are processor seconds of all
threads: other work changes them little. The last line of the output is one JSON object.

Rerun: `python benchmarks/bootstrap.py` (four minutes), or `--quick` (seconds).
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from timing import parsed, report, resident, show, told

from gpattern_bench.evaluate.bootstrap import Resamples, bootstrap

MIB = 2**20


def table(
    n: int, patterns: int, fovs: int
) -> tuple[pd.DataFrame, NDArray[np.bool_], NDArray[np.float32]]:
    """Pairs in clusters of unequal size, with labels and float32 scores."""
    rng = np.random.Generator(np.random.Philox(0))
    fov = rng.choice(fovs, n, p=rng.dirichlet(np.full(fovs, 20.0)))
    truth = rng.random((n, patterns)) < np.linspace(0.03, 0.5, patterns)
    shift = 0.3 * rng.standard_normal((fovs, patterns))
    signal = truth + shift[fov] + rng.standard_normal(truth.shape)
    scores = (1 / (1 + np.exp(-signal))).astype(np.float32)
    return pd.DataFrame({"fov": fov, "cell_id": fov}), truth, scores


def numpy_sorted(
    truth: NDArray[np.bool_], scores: NDArray[np.float32], clusters: Resamples
) -> list[tuple[Any, ...]]:
    """Sort each pattern once: order, labels, clusters and ends of ties by falling score."""
    found = []
    for k in range(truth.shape[1]):
        order = np.argsort(-scores[:, k], kind="stable")
        falling = scores[order, k]
        ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
        found.append((order, truth[order, k], clusters.of_pair[order], ends))
    return found


def numpy_replicate(
    truth: NDArray[np.bool_], ordered: list[tuple[Any, ...]], weight: Any, of_pair: Any
) -> dict[str, list[float]]:
    """Compute the metrics of one replicate by cumulative sums of weights."""
    out: dict[str, list[float]] = {m: [] for m in ("auc", "acc", "f1", "ap", "precision", "recall")}
    right = np.ones(len(truth), dtype=bool)
    for k, (order, true, cluster, ends) in enumerate(ordered):
        drawn = weight[cluster].astype(np.int64)
        tps, ms = np.cumsum(drawn * true)[ends], np.cumsum(drawn)[ends]
        size, P = ms[-1], tps[-1]
        pos, neg = np.diff(tps, prepend=0.0), np.diff(ms - tps, prepend=0.0)
        two_u = np.sum(pos * (2 * (size - P - (ms - tps)) + neg))
        f1s = 2 * tps / (ms + P)
        at = len(f1s) - 1 - int(np.argmax(f1s[::-1]))
        tp, m = tps[at], ms[at]
        out["auc"].append(two_u / (2 * P * (size - P)))
        out["ap"].append(np.sum(pos * tps / np.maximum(ms, 1.0)) / P)
        out["f1"].append(2 * tp / (m + P))
        out["acc"].append((size - P - m + 2 * tp) / size)
        out["precision"].append(tp / m)
        out["recall"].append(tp / P)
        called = np.zeros(len(truth), dtype=bool)
        called[order[: ends[at] + 1]] = True
        right &= called == truth[:, k]
    drawn = weight[of_pair].astype(np.int64)
    out["accuracy_subset"] = [float(drawn @ right / drawn.sum())]
    return out


def numpy_bootstrap(
    truth: NDArray[np.bool_], scores: NDArray[np.float32], clusters: Resamples, replicates: int
) -> tuple[dict[str, list[list[float]]], float, float]:
    """Return metrics of the first replicates, seconds of sorting, seconds of each replicate."""
    start = time.process_time()
    ordered = numpy_sorted(truth, scores, clusters)
    middle = time.process_time()
    rows = [
        numpy_replicate(truth, ordered, clusters.weights[b], clusters.of_pair)
        for b in range(replicates)
    ]
    end = time.process_time()
    found = {name: [row[name] for row in rows] for name in rows[0]}
    return found, middle - start, (end - middle) / replicates


def peak(work: Callable[[], object]) -> float:
    """MiB that the work allocates at once, beyond what is there before."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / MIB


def growth(sizes: tuple[int, ...], replicates: int) -> list[dict[str, Any]]:
    """Time numbers of cells, of 100 pairs each, below five fields of view: cells are clusters."""
    rows = []
    for cells in sizes:
        _, truth, scores = table(100 * cells, 4, 4)
        cell = np.repeat(np.arange(cells), 100)
        pairs = pd.DataFrame({"fov": cell % 4, "cell_id": cell})
        before, _ = resident(reset=True)
        clock, start = time.perf_counter(), time.process_time()
        clusters = Resamples.draw(pairs, replicates=replicates)
        drawn = time.process_time()
        bootstrap(truth, scores, clusters)
        rows.append(
            {
                "cells": cells,
                "pairs": len(pairs),
                "draw, CPU s": round(drawn - start, 3),
                "bootstrap, CPU s": round(time.process_time() - drawn, 3),
                "both, s": round(time.perf_counter() - clock, 3),
                "more MiB": told(round((resident()[1] - before) / MIB, 1)),
            }
        )
    return rows


def slope(rows: list[dict[str, Any]]) -> float:
    """Exponent of processor time in cells: slope of the line through the logarithms."""
    times = [row["draw, CPU s"] + row["bootstrap, CPU s"] for row in rows]
    return float(np.polyfit(np.log([row["cells"] for row in rows]), np.log(times), 1)[0])


def main() -> None:
    """Run, print a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 pairs, 100 replicates")
    options = parsed(parser)
    quick = options.quick
    n, replicates, fewer = (20_000, 100, 5) if quick else (1_000_000, 1000, 10)
    patterns, fovs = 4, 30
    pairs, truth, scores = table(n, patterns, fovs)

    first = Resamples.draw(pairs, replicates=1)
    start = time.perf_counter()
    bootstrap(truth[:1000], scores[:1000], Resamples(first.of_pair[:1000], first.weights, "fov", 1))
    compiling = time.perf_counter() - start

    start = time.process_time()
    clusters = Resamples.draw(pairs, replicates=replicates)
    drawing = time.process_time() - start
    start = time.process_time()
    got = bootstrap(truth, scores, clusters)
    ours = time.process_time() - start

    expected, sorting, each = numpy_bootstrap(truth, scores, clusters, fewer)
    numpy_alone = sorting + each * replicates
    apart = max(
        float(np.abs(got[name][:fewer].reshape(fewer, -1) - np.array(values)).max())
        for name, values in expected.items()
    )
    if apart > 1e-11:
        sys.exit(f"the two disagree by {apart:.3g}: the times mean nothing")

    # Memory depends on the number of replicates only by the results: 216 bytes for each.
    some = Resamples(clusters.of_pair, clusters.weights[:fewer], clusters.level, fovs - 1)
    memory = peak(lambda: bootstrap(truth, scores, some))
    numpy_memory = peak(lambda: numpy_bootstrap(truth, scores, some, 1))

    print(f"{n:,} pairs x {patterns} patterns, {fovs} clusters, {replicates:,} replicates")
    print(
        f"{platform.machine()}, {numba.get_num_threads()} threads, python {sys.version.split()[0]}"
    )
    print(
        f"compiling or loading compiled code: {compiling:.1f} s; drawing weights: {drawing:.2f} s"
    )
    print(f"{'':<12}{'CPU s':>10}{'peak MiB':>10}{'bytes/row':>11}")
    for name, seconds, mib in (
        ("ours", ours, memory),
        ("numpy alone", numpy_alone, numpy_memory),
    ):
        print(f"{name:<12}{seconds:>10.2f}{mib:>10.0f}{mib * MIB / n:>11.0f}")
    print(f"ratio {numpy_alone / ours:.1f}; numpy alone timed on {fewer} replicates and scaled")
    print(f"largest difference of a metric: {apart:.2g}", end="\n\n")

    cells = growth((50, 100, 200) if quick else (6_250, 25_000, 100_000), replicates)
    exponent = slope(cells)
    print(f"every cell a cluster, 4 patterns, {replicates:,} replicates")
    show(cells)
    print(f"processor time grows with cells^{exponent:.2f}")
    found = {
        "pairs": n,
        "patterns": patterns,
        "clusters": fovs,
        "replicates": replicates,
        "threads": numba.get_num_threads(),
        "seconds": round(ours, 3),
        "seconds_drawing": round(drawing, 3),
        "seconds_compiling": round(compiling, 3),
        "numpy_seconds": round(numpy_alone, 3),
        "numpy_replicates_timed": fewer,
        "ratio": round(numpy_alone / ours, 2),
        "peak_mib": round(memory, 1),
        "numpy_peak_mib": round(numpy_memory, 1),
        "largest_difference": apart,
        "cells": cells,
        "exponent": round(exponent, 3),
    }
    report(found, options.record)


if __name__ == "__main__":
    main()
