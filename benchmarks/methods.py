"""Time the baselines' features and scores per pair on a CosMx-like draw.

The first cells of a simulated CosMx release. One fresh process per row, kernels compiled before.
The last line is one JSON object. `peers.py` times the same features beside the upstream programs.

Rerun: `python benchmarks/methods.py [--quick]`.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from timing import fresh, here, parsed, report, show

from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.simulate.cells import simulate_like
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods import get_method
from gpattern_bench.sources.recipe import Recipe

METHODS_TIMED = ("bento", "ella", "ella_robust", "locfish", "locfish_unsupervised", "sprawl")


def bento(cells: list[Cell]) -> None:
    """All 13 features."""
    from gpattern_bench.methods.bento.method import bento_features

    for cell in cells:
        bento_features(cell)


def peripheral(cells: list[Cell]) -> None:
    """Peripheral scores, distances included."""
    from gpattern_bench.methods.sprawl.method import median_rank_scores

    for cell in cells:
        median_rank_scores(cell.geometry.boundary_distance, cell.gene)


def punctate_radial(cells: list[Cell]) -> None:
    """Punctate and radial scores, which share their draws: each is charged with both."""
    from gpattern_bench.methods.sprawl.permutation import pair_scores

    for cell in cells:
        pair_scores(cell.xy, cell.gene, np.zeros(2), seed=0, name=cell.cell_id)


def ella(cells: list[Cell]) -> None:
    """Fit 22 kernels to every gene, registration included."""
    from gpattern_bench.methods.ella.kernels import fit_kernels
    from gpattern_bench.methods.ella.radii import relative_radius

    gene = np.concatenate([cell.gene for cell in cells])
    order = np.argsort(gene, kind="stable")
    radius = np.concatenate([relative_radius(cell) for cell in cells])[order]
    starts = np.searchsorted(gene[order], np.arange(gene.max() + 2))
    fit_kernels(radius, starts)


def locfish(cells: list[Cell]) -> None:
    """All 41 features."""
    from gpattern_bench.methods.locfish.bigfish import bigfish_features

    for cell in cells:
        bigfish_features(cell)


FEATURES: dict[str, Callable[[list[Cell]], None]] = {
    "bento features": bento,
    "sprawl peripheral": peripheral,
    "sprawl punctate": punctate_radial,
    "sprawl radial": punctate_radial,
    "ella fit": ella,
    "locfish features": locfish,
}


def main() -> None:
    """Run the parts, print their tables, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description="Benchmark of the methods.")
    parser.add_argument("--quick", action="store_true", help="few cells, one repeat, one process")
    options = parsed(parser)
    n_cells, of, call = (20, 90, here) if options.quick else (3000, None, fresh)
    found: dict[str, list[dict[str, Any]]] = {"drawn": [], "scores": []}
    with tempfile.TemporaryDirectory() as name:
        folder = call(draw, Path(name), n_cells, of)  # not here: children count the parent's memory
        for name in dict.fromkeys(FEATURES):
            found["drawn"] += call(drawn, name, folder, 1)
        for name in METHODS_TIMED:
            found["scores"] += call(scored, name, folder)
    for rows in found.values():
        if rows:
            show(rows)
    report(found, options.record)


def best(compute: Callable[[list[Cell]], None], fresh_cells: Cells, repeats: int) -> dict[str, Any]:
    """Least seconds by the clock and of the processor, on cells that nothing was computed of."""
    compute(list(islice(fresh_cells, 1)))  # compiles, or reads what was compiled
    clock, cpu = [], []
    for _ in range(repeats):
        cells = list(fresh_cells)
        began = perf_counter(), process_time()
        compute(cells)
        clock.append(perf_counter() - began[0])
        cpu.append(process_time() - began[1])
    pairs = sum(len(cell.genes) for cell in cells)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"pairs": pairs, "seconds": min(clock), "cpu_s": min(cpu), "peak_gib": peak}


def draw(folder: Path, n_cells: int, of: int | None) -> Path:
    """Tables of the first cells of a simulated CosMx release of `of` cells, None: of all."""
    piece = next(simulate_like("cosmx_lung", 1, of))
    cells = piece.cells.iloc[:n_cells]
    kept = {
        name: frame[frame["cell_id"].isin(cells["cell_id"])]
        for name, frame in (("molecules", piece.molecules), ("labels", piece.labels))
    }
    patterns = ("cytoplasmic", "membrane", "nuclear")
    recipe = Recipe(format="simulated", patterns=patterns, split="test")
    tables = apply_rules(replace(piece, cells=cells, **kept), recipe)
    return write_dataset([tables], folder / "drawn", name="drawn", version="1.0.0", recipe=recipe)


def drawn(name: str, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Features of drawn cells."""
    cost = best(FEATURES[name], Dataset(folder).iter_cells(), repeats)
    return [{"what": name, **cost, "pairs_per_s": cost["pairs"] / cost["cpu_s"]}]


def scored(name: str, folder: Path) -> list[dict[str, Any]]:
    """Fit a method on a tenth of the drawn cells, and score all of them."""
    dataset = Dataset(folder)
    names = dataset.cells(columns=["cell_id"])["cell_id"].tolist()
    method = get_method(name)
    began = process_time()
    if method.about.learns:
        method.fit(dataset.iter_cells(keep=names[::10]), 0)
    fitted = process_time() - began
    cells = dataset.iter_cells().without_labels()
    next(iter(method.predict(dataset.iter_cells(keep=names[:1]).without_labels())))
    began = process_time()
    pairs = sum(len(scores) for _, scores in method.predict(cells))
    seconds = process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        {
            "method": name,
            "fit_cpu_s": fitted,
            "pairs": pairs,
            "predict_cpu_s": seconds,
            "pairs_per_s": pairs / seconds,
            "peak_gib": peak,
        }
    ]


if __name__ == "__main__":
    main()
