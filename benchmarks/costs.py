"""How time and memory grow with cells, molecules per cell and genes: points and fitted exponents.

Releases are drawn like those of CosMx (small cells, fields of view of the same image size), at a
base size and with one of its three measures twice and four times as large, the other two as they
were. More cells are more fields of view, as in a larger sample. Each row of a table is

- *curation*: from CosMx flat files, as their users have them, to tables; drawing is not counted;
- *evaluation*: a prediction file of random scores, read, checked, joined to the labels and scored,
  without and with intervals (cells are drawn within fields of view, of which there are too few);
- *predict*: a method's scores of all cells, in pieces, as `run-all` and `predict` have them;
- *fit*: of a fixed number of cells, so that it has no curve over cells; one epoch of GPSNet.

*call* has a table of its own: from flat files to an answer by the model of the package, at a tenth
of the size of `cosmx_lung`; in one process, its curation alone, and in two processes (all of their
seconds and memory, imports included).

Each point is a process of its own, which first does the same with a few cells: modules are imported
and compiled code is read from disk before anything counts. Such a process sorts and grows trees in
one thread. Seconds are of the processor, and memory is the peak beyond what the process held by
then; only Linux tells it. The exponent is the slope of a straight line through the logarithms: 1 =
twice as much of it takes twice as long. There is none where a point is too small to be told from
noise. The last line is one JSON object with all points.

Rerun: `python benchmarks/costs.py` (about twenty minutes, 2 GB of disk), or `--quick` (seconds).
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from full import command, watched
from timing import fresh, here, parsed, report, resident, show, told

from gpattern_bench import Evaluator
from gpattern_bench.curate.build import curate
from gpattern_bench.curate.simulate.cells import COMPARTMENTS, simulate_tissue
from gpattern_bench.curate.simulate.releases import write_cosmx
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.evaluate.bootstrap import REPLICATES
from gpattern_bench.methods import get_method
from gpattern_bench.methods.predict import predict_pieces
from gpattern_bench.predictions import write_predictions
from gpattern_bench.sources.recipe import Recipe

METHODS_TIMED = (
    "prevalence",
    "gene_prior",
    "molecule_count",
    "oracle",
    "sprawl",
    "bento",
    "ella",
    "locfish",
    "boosted",
    "gpsnet",
)  # the others cost what their siblings cost
AXES = ("cells", "molecules_per_cell", "genes")
LEAST = {"cpu_s": 0.02, "peak_mib": 8.0}  # less is noise
SEED = 1
TRAIN = 50  # cells that methods are fitted on
SCORES = "scores.parquet"
RECIPE = Recipe(
    format="cosmx",
    path="release",
    patterns=tuple(sorted(COMPARTMENTS)),
    unit_um=0.18,
    controls="NegPrb",
    split="test",
)


@dataclass(frozen=True)
class Size:
    """How large a release is."""

    fovs: int
    cells: int
    molecules_per_cell: float
    genes: int


TINY = Size(1, 30, 300.0, 240)
FULL = (  # base; whether it is curated and evaluated; methods
    (Size(1, 3_000, 300.0, 240), True, ()),  # a full field of view
    (Size(1, 200, 300.0, 240), False, METHODS_TIMED),
)
QUICK = ((Size(1, 60, 300.0, 60), True, ("gene_prior",)),)
TENTH = Size(3, 10_015, 303.0, 960)  # of cosmx_lung


def main() -> None:
    """Run the parts, print their tables, and all points as JSON in the last line."""
    parser = argparse.ArgumentParser(description="Cost curves of curation, methods and evaluator.")
    parser.add_argument(
        "--quick", action="store_true", help="one method, few cells, two points, one process"
    )
    parser.add_argument("--tmp", type=Path, help="folder for the files, which are removed")
    options = parsed(parser)
    bases = QUICK if options.quick else FULL
    factors, call = ((1, 2), here) if options.quick else ((1, 2, 4), fresh)
    methods = [method for _, _, methods in bases for method in methods]
    points: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.tmp) as name:
        tiny, home, models = (Path(name) / part for part in ("tiny", "home", "models"))
        draw(TINY, tiny)
        curating(tiny, tiny / "tables")()
        write_scores(tiny)
        for base, with_pipeline, some in bases:
            for axis, size in sizes(base, factors):
                draw(size, home)
                if with_pipeline:
                    points += pipeline(call, axis, home, tiny)
                else:
                    curating(home, home / "tables")()
                # more cells are scored by the model of the base
                model = models if axis in ("base", "cells") else home / "models"
                for method in some:
                    points += of_method(call, method, axis, home, tiny, model / method)
                shutil.rmtree(home)
        called = of_call(call, TINY if options.quick else TENTH, home, tiny)
    learning = [method for method in methods if get_method(method).about.learns]
    tables = [
        curves(points, ["curation", "evaluation", "evaluation with intervals"]),
        curves(points, [f"predict, {method}" for method in methods]),
        curves(points, [f"fit, {method}" for method in learning]),
    ]
    for rows in (*tables, called):
        show(rows)
    curved = [row for rows in tables for row in rows]
    report({"points": points, "curves": curved, "call": called}, options.record)


def sizes(base: Size, factors: tuple[int, ...]) -> Iterator[tuple[str, Size]]:
    """The base, then what is larger along one axis."""
    yield "base", base
    for k in factors[1:]:
        yield "cells", replace(base, fovs=base.fovs * k, cells=base.cells * k)
        yield "molecules_per_cell", replace(base, molecules_per_cell=base.molecules_per_cell * k)
        yield "genes", replace(base, genes=base.genes * k)


def draw(size: Size, home: Path) -> None:
    """Write flat files."""
    pieces = simulate_tissue(
        SEED,
        n_fovs=size.fovs,
        n_cells=size.cells,
        n_genes=size.genes,
        mean_molecules=size.molecules_per_cell,
    )
    write_cosmx(pieces, home / RECIPE.path)


def write_scores(home: Path) -> None:
    """Write a prediction file of random scores."""
    dataset = Dataset(home / "tables")
    rng = np.random.Generator(np.random.Philox(SEED))
    scores = dataset.pairs("test")
    drawn = {name: rng.random(len(scores), dtype=np.float32) for name in dataset.patterns}
    write_predictions(home / SCORES, scores.assign(**drawn), dataset, "test", method="random")


# Points


def pipeline(call: Callable[..., Any], axis: str, home: Path, tiny: Path) -> list[dict[str, Any]]:
    """Points of curation, which leaves the tables, and of the evaluator."""
    again = home / "again"
    costs = {"curation": call(measured, curating, (tiny, again), (home, home / "tables"))}
    write_scores(home)
    for what, replicates in (("evaluation", 0), ("evaluation with intervals", REPLICATES)):
        costs[what] = call(measured, evaluating, (tiny, replicates), (home, replicates))
    return [point(what, axis, home, cost) for what, cost in costs.items()]


def of_method(
    call: Callable[..., Any], method: str, axis: str, home: Path, tiny: Path, model: Path
) -> list[dict[str, Any]]:
    """Points of a method, which is fitted unless there are only more cells to score."""
    found = []
    if get_method(method).about.learns and axis != "cells":
        trained = call(
            measured, fitting, (method, tiny, home / "again" / method), (method, home, model)
        )
        found.append(point(f"fit, {method}", axis, home, trained))
    scored = call(measured, predicting, (method, tiny, model), (method, home, model))
    return [*found, point(f"predict, {method}", axis, home, scored)]


def of_call(call: Callable[..., Any], size: Size, home: Path, tiny: Path) -> list[dict[str, Any]]:
    """Costs of an answer, from flat files, and of its first part alone."""
    draw(size, home)
    costs = {
        "call": call(measured, calling, (tiny, tiny / "called"), (home, home / "called")),
        "of this, curation": call(
            measured, curating, (tiny, home / "again"), (home, home / "tables")
        ),
    }
    if call is fresh:
        words = ("call", home / RECIPE.path, "--unit-um", RECIPE.unit_um, "--out", home / "two")
        whole = watched(command(*map(str, words), "--jobs", "2"))
        costs["call, two processes"] = whole
    counts = Dataset(home / "tables").counts
    shutil.rmtree(home)
    keys = ("cells", "molecules", "pairs")
    return [{"what": what, **{k: counts[k] for k in keys}, **cost} for what, cost in costs.items()]


def point(what: str, axis: str, home: Path, cost: dict[str, Any]) -> dict[str, Any]:
    """A point: how large the tables are, and what it cost."""
    dataset = Dataset(home / "tables")
    counts = dataset.counts
    return {
        "what": what,
        "axis": axis,
        "cells": counts["cells"],
        "molecules_per_cell": counts["molecules"] / counts["cells"],
        "genes": len(dataset.genes),
        "labelled_pairs": counts["labelled_pairs"],
        **cost,
    }


def measured(
    job: Callable[..., Callable[[], object]], few: tuple[Any, ...], args: tuple[Any, ...]
) -> dict[str, Any]:
    """What a job costs in this process, once it was done with few cells."""
    warm(job, *few)
    gc.collect()
    before, _ = resident(reset=True)
    run = job(*args)
    clock, cpu = perf_counter(), process_time()
    run()
    return {
        "seconds": perf_counter() - clock,
        "cpu_s": process_time() - cpu,
        "before_mib": told(before / 2**20),
        "peak_mib": told((resident()[1] - before) / 2**20),
    }


@cache
def warm(job: Callable[..., Callable[[], object]], *few: Any) -> None:
    """Do a job with few cells: once is enough, also for all points of `--quick`."""
    job(*few)()


# Jobs


def curating(home: Path, out: Path) -> Callable[[], object]:
    """From flat files to tables."""
    return partial(curate, RECIPE, home, out, name="drawn", version="1.0.0")


def calling(home: Path, out: Path) -> Callable[[], object]:
    """From flat files to an answer."""
    from gpattern_bench.answers.call import call  # imports torch with the model

    options: dict[str, Any] = {"form": RECIPE.format, "unit_um": RECIPE.unit_um, "jobs": 1}
    return partial(call, home / RECIPE.path, out, **options)


def evaluating(home: Path, replicates: int) -> Callable[[], object]:
    """A prediction file against the labels."""
    dataset = Dataset(home / "tables")
    return lambda: Evaluator(dataset, "test").eval(home / SCORES, replicates=replicates)


def fitting(name: str, home: Path, folder: Path) -> Callable[[], object]:
    """Learn from some cells, and save what was learnt."""
    method: Any = get_method(name)
    if name == "gpsnet":  # imported here: torch would be in the memory of all
        from gpattern_bench.methods.gpsnet.config import TRAININGS

        method = type(method)(training=replace(TRAININGS["gpsnet"], steps=20))
    dataset = Dataset(home / "tables")
    train = dataset.iter_cells(keep=dataset.cells(columns=["cell_id"])["cell_id"][:TRAIN])
    folder.mkdir(parents=True)

    def run() -> None:
        method.fit(train, SEED)
        method.save(folder)

    return run


def predicting(name: str, home: Path, folder: Path) -> Callable[[], object]:
    """Score all cells, and keep no scores."""
    method = get_method(name)
    if method.about.learns:
        method.load(folder)
    cells = Dataset(home / "tables").iter_cells()
    return lambda: deque(predict_pieces(method, cells, bar=False), maxlen=0)


# Curves


def curves(points: list[dict[str, Any]], whats: list[str]) -> list[dict[str, Any]]:
    """Costs at the base, and their exponents."""
    rows = []
    for what in whats:
        mine = [point for point in points if point["what"] == what]
        row: dict[str, Any] = {"": what, "cells": mine[0]["cells"]}
        for cost, name in (("cpu_s", "s"), ("peak_mib", "MiB")):
            row[name] = mine[0][cost]
            row |= {f"{name} ~ {axis}": exponent(mine, axis, cost) for axis in AXES}
        rows.append(row)
    return rows


def exponent(points: list[dict[str, Any]], axis: str, cost: str) -> float | None:
    """Slope of log cost on log size along an axis; None without points, or if they are noise."""
    along = [point for point in points if point["axis"] in ("base", axis)]
    costs = [point[cost] for point in along]
    if len(along) < 2 or None in costs or min(costs) < LEAST[cost]:
        return None
    return float(np.polyfit(np.log([point[axis] for point in along]), np.log(costs), 1)[0])


if __name__ == "__main__":
    main()
