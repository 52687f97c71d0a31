"""How fast and how frugal simulated releases are drawn and written, at the sizes of table 1.

One fresh process per row: seconds by the clock and of the processor, and the peak of resident
memory (ru_maxrss; GiB on Linux). *Drawing* consumes the pieces and keeps none; *writing* draws
again and writes the files of one source format. The last line is one JSON object.

Rerun: `python benchmarks/data.py` (about five minutes and 7 GB of disk), or `--quick` (seconds).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from tabulate import tabulate

from gpattern_bench.curate.releases import write_bento_h5ad, write_cosmx
from gpattern_bench.curate.simulate import PATTERNS, simulate_like

LIKES = ("nih3t3", "u2os", "cosmx_lung")
SEED = 1


def main() -> None:
    """Run the parts, print their tables, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description="Benchmark of releases and their curation.")
    parser.add_argument("--quick", action="store_true", help="only the smallest, in seconds")
    parser.add_argument("--tmp", type=Path, help="folder for the files, which are removed")
    options = parser.parse_args()
    likes = LIKES[:1] if options.quick else LIKES
    drawing = [fresh(drawn, like) for like in likes]
    writing = []
    for like in likes:
        kinds = ("cosmx", "cosmx archive") if like == "cosmx_lung" else ("bento-h5ad",)
        for kind in kinds:
            with tempfile.TemporaryDirectory(dir=options.tmp) as folder:
                writing.append(fresh(written, like, kind, Path(folder) / "out"))
    for rows in (drawing, writing):
        show(rows)
    print(json.dumps({"drawing": drawing, "writing": writing}))


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(tabulate(rows, "keys", tablefmt="github", floatfmt=".3g", intfmt=","), end="\n\n")


def fresh(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Call a function in a process of its own that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, function, *args).result()


def measured(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What a function returns, with its cost."""
    clock, cpu = perf_counter(), process_time()
    found = function(*args)
    return {
        **found,
        "seconds": perf_counter() - clock,
        "cpu_s": process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def drawn(like: str) -> dict[str, Any]:
    """Draw all pieces; count what they hold."""
    counts, genes = {"fovs": 0, "cells": 0, "molecules": 0, "pairs": 0}, set()
    for piece in simulate_like(like, SEED):
        genes.update(piece.molecules["gene"].cat.codes.unique().tolist())
        sizes = (1, len(piece.cells), len(piece.molecules), len(piece.labels))
        counts = {name: n + size for (name, n), size in zip(counts.items(), sizes, strict=True)}
    return {"like": like, **counts, "genes": len(genes)}


def written(like: str, kind: str, out: Path) -> dict[str, Any]:
    """Draw all pieces and write them."""
    pieces = simulate_like(like, SEED)
    if kind == "bento-h5ad":
        write_bento_h5ad(pieces, out, PATTERNS)
    else:
        write_cosmx(pieces, out, archive=kind == "cosmx archive")
    files = [out] if out.is_file() else [file for file in out.rglob("*") if file.is_file()]
    return {"like": like, "format": kind, "bytes": sum(file.stat().st_size for file in files)}


if __name__ == "__main__":
    main()
