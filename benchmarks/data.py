"""How fast and how frugal releases are drawn, written, curated and loaded, at the sizes of table 1.

One fresh process per row: seconds by the clock and of the processor, and the peak of resident
memory (ru_maxrss; GiB on Linux). *Drawing* consumes the pieces and keeps none; *writing* draws
again and writes the files of one source format; *curating* reads these, applies the rules and
writes the tables (*tables*: the same without files in between); *loading* reads the tables back.
The last line is one JSON object.

Rerun: `python benchmarks/data.py` (about fifteen minutes, 10 GB of disk), or `--quick` (seconds).
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import pyarrow.parquet as pq
from timing import fresh, here, parsed, report, show

from gpattern_bench import load_dataset
from gpattern_bench.curate.build import curate
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate_like
from gpattern_bench.curate.simulate.releases import write_bento_h5ad, write_cosmx
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.tables.parquet import fov_row_groups

LIKES = ("nih3t3", "u2os", "cosmx_lung")
SEED = 1


def main() -> None:
    """Run the parts, print their tables, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description="Benchmark of releases and their curation.")
    parser.add_argument("--quick", action="store_true", help="80 cells of `synthetic`, one process")
    parser.add_argument("--tmp", type=Path, help="folder for the files, which are removed")
    options = parsed(parser)
    likes, cells, call = (("synthetic",), 80, here) if options.quick else (LIKES, None, fresh)
    found: dict[str, list[dict[str, Any]]] = {"drawing": [], "writing": [], "curating": []}
    found["loading"] = []
    for like in likes:
        found["drawing"].append(call(measured, drawn, like, cells))
        kinds = ("cosmx", "cosmx archive") if like == "cosmx_lung" else ("bento-h5ad",)
        with tempfile.TemporaryDirectory(dir=options.tmp) as name:
            folder = Path(name)
            for kind in kinds:
                found["writing"].append(call(measured, written, like, cells, kind, folder / "out"))
                found["curating"].append(
                    call(measured, curated, like, cells, kind, folder / "out", folder / kind)
                )
                remove(folder / "out")
                remove(folder / kind)
            found["curating"].append(
                call(measured, curated, like, cells, "tables", folder, folder / "tables")
            )
            found["loading"].append(call(measured, loaded, like, folder / "tables"))
    for rows in found.values():
        show(rows)
    report(found, options.record)


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


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


def drawn(like: str, cells: int | None) -> dict[str, Any]:
    """Draw all pieces; count what they hold."""
    counts, genes = {"fovs": 0, "cells": 0, "molecules": 0, "pairs": 0}, set()
    for piece in simulate_like(like, SEED, cells):
        genes.update(piece.molecules["gene"].cat.codes.unique().tolist())
        sizes = (1, len(piece.cells), len(piece.molecules), len(piece.labels))
        counts = {name: n + size for (name, n), size in zip(counts.items(), sizes, strict=True)}
    return {"like": like, **counts, "genes": len(genes)}


def written(like: str, cells: int | None, kind: str, out: Path) -> dict[str, Any]:
    """Draw all pieces and write them."""
    pieces = simulate_like(like, SEED, cells)
    if kind == "bento-h5ad":
        write_bento_h5ad(pieces, out, PATTERNS)
    else:
        write_cosmx(pieces, out, archive=kind == "cosmx archive")
    files = [out] if out.is_file() else [file for file in out.rglob("*") if file.is_file()]
    return {"like": like, "format": kind, "bytes": sum(file.stat().st_size for file in files)}


def curated(like: str, cells: int | None, kind: str, source: Path, folder: Path) -> dict[str, Any]:
    """Turn a release into tables."""
    rules: dict[str, Any] = {"format": kind, "controls": "notarget|blank", "unit_um": 0.108}
    if kind.startswith("cosmx"):
        rules = {"format": "cosmx", "controls": "NegPrb", "unit_um": 0.18}
        source = next(source.glob("*.tar.gz"), source)
    elif kind == "tables":
        rules = {"format": "simulated", "like": like, "seed": SEED, "n_cells": cells}
    patterns = ("cytoplasmic", "membrane", "nuclear") if like == "cosmx_lung" else PATTERNS
    recipe = Recipe(path=source.name, patterns=patterns, **rules)
    dataset = Dataset(curate(recipe, source.parent, folder, name=like, version="0.0.0"))
    counts = dataset.counts
    kept = {name: counts[name] for name in ("cells", "molecules", "labelled_pairs")}
    return {"like": like, "format": kind, **kept}


def loaded(like: str, folder: Path) -> dict[str, Any]:
    """Open a dataset; read the molecules of test, ours and bare, and the cells of train."""
    began = perf_counter()
    dataset = load_dataset(folder)
    opened = perf_counter() - began
    path = dataset.folder / "molecules.parquet"
    groups = fov_row_groups(path, dataset.fovs("test"))
    ours, bare = [], []
    for _ in range(5):  # in turn; the best of each
        began = perf_counter()
        with pq.ParquetFile(path) as file:
            file.read_row_groups(groups)
        bare.append(perf_counter() - began)
        began = perf_counter()
        dataset.molecules("test")
        ours.append(perf_counter() - began)
    began = perf_counter()
    n = sum(1 for _ in dataset.iter_cells("train"))
    cells = n / (perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    began = perf_counter()
    dataset.verify()
    return {
        "like": like,
        "open_s": opened,
        "test_molecules_s": min(ours),
        "x pyarrow": min(ours) / min(bare),
        "train_cells_per_s": cells,
        "train_peak_gib": memory,
        "verify_s": perf_counter() - began,
    }


if __name__ == "__main__":
    main()
