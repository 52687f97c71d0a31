"""GPSNet and its rivals on the same training data: simulated cells, human labels, lung tissue.

Each row is a training and a table that it is scored on, macro AUC and F1 of the test split in per
cent: the mean over seeds of single models and their standard deviation. Rivals are fitted on the
same cells. The difference is that of the means, with a paired 95 % interval from the resampled
fields of view (or cells) of the evaluator, averaged over seeds replicate by replicate.

- *simulation*: trained on the train splits of `synthetic` and `synthetic_wide`; scored on
  `synthetic` (protocol fit), `synthetic_wide` (whose test has other settings than its train), and
  both gold sets
- *transfer*: the same, then fine-tuned on the gold set of the other cell line
- *out of fold*: the same, then fine-tuned on the other folds of cells beside
- *tissue*: both directions between the two fields of `cosmx_lung_mini`, no nuclei, with and without
  the context of other genes, and from the models of *simulation* with a new last layer
- *calibration*: the scores of *simulation*, as probabilities: expected calibration error
- *absence*: the models of *simulation*, on cells without their nuclei, and without any outline
- *speed*: processor time of a training of *simulation*, of scoring CosMx-like cells in batches of
  eight and one by one, and memory; for all 100,149 cells of the release, scaled
- *ablation*: GPSNet with one thing changed, a shorter training, scored on `synthetic` val and on
  the held-out settings of `synthetic_wide`

Prediction files go to ``--out`` as `gpattern-bench run` writes them, ready for `submit`; those that
are there are not made again. Needs the gold sets' and the lung set's files (mirror or network).

Rerun: `python benchmarks/gpsnet_real.py --out runs/gpsnet_real` (two hours on two cores), parts
of it with ``--parts``, or ``--quick``: one seed, two steps, five trees, some simulated cells only,
and with ``--jobs 1`` one process.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from costs import Size, curating, draw
from timing import fresh, here, parsed, report, resident, show
from timing import told as told_memory

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.base.geometry import surrogate_outline
from gpattern_bench.base.workers import in_order, workers
from gpattern_bench.data.cells import Cell
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.evaluate.bootstrap import Resamples, interval, is_biased
from gpattern_bench.evaluate.calls import val_thresholds
from gpattern_bench.methods import get_method
from gpattern_bench.methods.base import Network
from gpattern_bench.methods.boosted import method as boosted
from gpattern_bench.methods.gpsnet import method as gpsnet
from gpattern_bench.methods.gpsnet.config import TRAININGS
from gpattern_bench.methods.gpsnet.method import GPSNetEnsemble, GPSNetMethod
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.predictions import counted
from gpattern_bench.runs.cost import Cost
from gpattern_bench.runs.run import fit_method, run_method, run_origins, write_run
from gpattern_bench.runs.saved_model import Model, save_model
from gpattern_bench.runs.training import choose_protocol, fitted_on, training_cells, training_ids

SIMULATED = ("synthetic", "synthetic_wide")
GOLD = {"u2os_gold": "nih3t3_gold", "nih3t3_gold": "u2os_gold"}
TISSUE = ("cosmx_lung_mini", "cosmx_lung_mini_exchanged")
RIVALS = ("boosted", "locfish_2018", "bento")
SINGLE = ("gpsnet", "gpsnet_context")  # run by all seeds; the others have seed 0
SEEDS = 5
ABLATION_STEPS = 600
TISSUE_CELLS = 3000
QUICK_CELLS = 40  # of a training


@dataclass(frozen=True)
class Row:
    """A training, and the table that it is scored on.

    Attributes
    ----------
    part, method, dataset : str
    train_on : tuple of str
        Empty: the dataset's own train split.
    cv : bool
    pretrained : bool
        Starts from the model of `simulation`, of other patterns.
    """

    part: str
    method: str
    dataset: str
    train_on: tuple[str, ...] = ()
    cv: bool = False
    pretrained: bool = False

    @property
    def before(self) -> tuple[str, ...]:
        """What the model that the training starts from was fitted on; empty: there is none."""
        tuned = self.method == "gpsnet" and len(self.train_on) > len(SIMULATED)
        return SIMULATED if tuned or self.pretrained else ()


def main() -> None:
    """Make the prediction files that lack, score all, print the tables, and JSON last."""
    parser = argparse.ArgumentParser(description="GPSNet and its rivals on the same training data.")
    parser.add_argument("--out", type=Path, help="folder of the runs; default a temporary one")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of GPSNet; rivals have seed 0")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, few steps, `synthetic` only"
    )
    given = parsed(parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as name:
        out = given.out or Path(name)
        found: dict[str, list[dict[str, Any]]] = {}
        for part in given.parts:
            found[part] = PARTS[part](out, given.seeds, given.jobs, given.quick)
            print(f"{part}\n")
            show([{k: v for k, v in row.items() if k != "each"} for row in found[part]])
    report(found, given.record)


# Rows that are runs


def simulation(out: Path, seeds: int, jobs: int, quick: bool) -> list[dict[str, Any]]:
    """Trained on simulated cells only."""
    tables = ("synthetic",) if quick else ("synthetic", "synthetic_wide", *GOLD)
    sources = ("synthetic",) if quick else SIMULATED
    methods = ("gpsnet", "boosted") if quick else ("gpsnet", "gpsnet_ensemble", *RIVALS)
    return compared(
        [Row("simulation", m, t, () if quick else sources) for t in tables for m in methods],
        out, seeds, jobs, quick,
    )  # fmt: skip


def transfer(out: Path, seeds: int, jobs: int, quick: bool) -> list[dict[str, Any]]:
    """Trained on simulated cells and the labels of the other cell line."""
    if quick:
        return []
    rows = [
        Row("transfer", m, t, (*SIMULATED, other))
        for t, other in GOLD.items()
        for m in ("gpsnet", "boosted")
    ]
    return compared(rows, out, seeds, jobs, quick)


def out_of_fold(out: Path, seeds: int, jobs: int, quick: bool) -> list[dict[str, Any]]:
    """Trained on simulated cells, the other cell line and the other folds."""
    if quick:
        return []
    rows = [
        Row("out of fold", m, t, (*SIMULATED, other), cv=True)
        for t, other in GOLD.items()
        for m in ("gpsnet", "boosted")
    ]
    return compared(rows, out, seeds, jobs, quick)


def tissue(out: Path, seeds: int, jobs: int, quick: bool) -> list[dict[str, Any]]:
    """Both directions between two fields of lung tissue without nuclei."""
    if quick:
        return []
    methods = ("gpsnet", "gpsnet_context", "boosted", "boosted_context")
    rows = [Row("tissue", m, t) for t in TISSUE for m in methods]
    rows += [Row("tissue", "gpsnet", t, pretrained=True) for t in TISSUE]
    return compared(rows, out, seeds, jobs, quick)


def compared(
    rows: list[Row], out: Path, seeds: int, jobs: int, quick: bool
) -> list[dict[str, Any]]:
    """Run rows by all their seeds, and compare each with `boosted` of the same training."""
    tasks = [
        (row, seed)
        for row in rows
        for seed in range(seeds if row.method in SINGLE and not quick else 1)
    ]
    # one training serves several tables: first those, then the others
    first = {
        (row.method, row.train_on or row.dataset, row.pretrained, row.cv, seed): (row, seed)
        for row, seed in reversed(tasks)
    }
    with workers(jobs, None) as pool:
        for some in (list(first.values()), tasks):
            list(in_order(pool, made, [(r, s, out, quick) for r, s in some]))
    results: dict[Row, list[Any]] = {}
    for row, seed in tasks:
        file = made(row, seed, out, quick)
        results.setdefault(row, []).append(evaluator(row.dataset).eval(file, replicates=1000))
    return [told(row, results) for row in results]


def made(row: Row, seed: int, out: Path, quick: bool) -> Path:
    """Run a row with a seed, unless that is done; return the test file."""
    if quick:
        gpsnet.steps_for = lambda cells: 2 + 0 * cells
        boosted._TREES, boosted._ROUNDS = 5, 5
    dataset, sources = load_dataset(row.dataset), [load_dataset(name) for name in row.train_on]
    folder = out / row.method
    method = get_method(row.method)
    before = [load_dataset(name) for name in row.before]
    protocol = choose_protocol(method, dataset, sources, row.cv, before)
    trained_on = fitted_on(dataset, sources, row.cv, before)
    origins = run_origins(row.method, dataset, seed, protocol, trained_on)
    file = folder / row.dataset / f"{origins[-1].stem()}.parquet"
    if file.is_file():
        return file
    init = saved("gpsnet", row.before, seed, out, quick)[0] if row.before else None
    if row.cv:
        run_method(row.method, dataset, folder, train_on=sources, cv=True, seed=seed, init=init)
        return file
    train_on = row.train_on or (row.dataset,)
    model, fit = saved(row.method, train_on, seed, out, quick, init, row.before)
    method.load(model)
    method.batch = 1
    scores, costs = {}, {"fit": fit}
    for origin in origins:
        began = Cost.now()
        found = predict_cells(method, dataset.iter_cells(origin.split), bar=False)
        costs[origin.split] = Cost.now() - began
        scores[origin.split] = [(dataset.fovs(origin.split), found)]
    by_batch = {1: costs["test"]} if isinstance(method, Network) else None
    write_run(
        method, dataset, origins, scores, folder / row.dataset,
        costs=costs, costs_by_batch=by_batch,
    )  # fmt: skip
    return file


def saved(
    name: str, train_on: tuple[str, ...], seed: int, out: Path, quick: bool,
    init: Path | None = None, before: tuple[str, ...] = (),
) -> tuple[Path, Cost]:  # fmt: skip
    """Fit a method, unless that is done: the folder of the model, and what the fit cost."""
    sets = dict.fromkeys((*before, *train_on))
    folder = out / "models" / f"{name}-{'-'.join(sets)}-{seed}"
    note = folder / "cost.json"
    if not note.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        method = get_method(name)
        sources = [load_dataset(one) for one in train_on]
        if isinstance(method, GPSNetEnsemble):  # of seed 0: the networks of seeds 0 to 4
            members = [saved("gpsnet", train_on, k, out, quick) for k in range(len(method.members))]
            for member, (model, _) in zip(method.members, members, strict=True):
                member.load(model)
            spent = sum((cost for _, cost in members), Cost())
        else:
            spent = fit_method(
                method, sources, seed, folder / "training.safetensors",
                init=init, sample_cells=QUICK_CELLS if quick else None,
            )  # fmt: skip
        ids = training_ids([load_dataset(one) for one in sets])
        card = Model(name, list(sources[0].patterns), ids, None, seed)
        save_model(method, card, folder)
        note.write_text(json.dumps(asdict(spent)))
    return folder, Cost(**json.loads(note.read_text()))


@cache
def evaluator(name: str, split: str = "test") -> Evaluator:
    """The evaluator of a table."""
    return Evaluator(load_dataset(name), split)


def told(row: Row, results: dict[Row, list[Any]]) -> dict[str, Any]:
    """One line of a table: means, spread, differences with their intervals."""
    each = results[row]
    name = f"{row.method}, pretrained" if row.pretrained else row.method
    line: dict[str, Any] = {"table": row.dataset, "method": name, "seeds": len(each)}
    rivals = {"boosted": results.get(replace(row, method="boosted", pretrained=False))}
    if row.method == "boosted":
        rivals = {}
    elif row.pretrained:
        rivals["not pretrained"] = results.get(replace(row, pretrained=False))
    for metric, short in (("auc_macro", "AUC"), ("f1_macro", "F1")):
        values = [100 * result[metric] for result in each]
        line[short] = round(float(np.mean(values)), 2)
        line[f"{short} sd"] = round(float(np.std(values, ddof=1)), 2) if len(each) > 1 else None
        for rival, some in rivals.items():
            if some is not None:
                line[f"{short} - {rival}"] = apart(each, some, metric)
    return line | {"each": [[r["auc_macro"], r["f1_macro"]] for r in each]}


def apart(each: list[Any], others: list[Any], metric: str) -> str:
    """Tell the difference of the means of results, with its paired interval, per cent."""
    mine, its = (
        np.mean([result.replicates[metric] for result in some], axis=0) for some in (each, others)
    )
    difference = np.mean([r[metric] for r in each]) - np.mean([r[metric] for r in others])
    low, high = interval(
        float(difference), mine - its, each[0].degrees_of_freedom, (-1.0, 1.0),
        biased=is_biased(metric),
    )  # fmt: skip
    return f"{100 * difference:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


# Scores as probabilities


BINS = 15


def calibration(out: Path, seeds: int, jobs: int, quick: bool) -> list[dict[str, Any]]:
    """Expected calibration error of the scores of `simulation`, and F1 at thresholds of val.

    The error is the mean over pairs of the distance between the mean score and the share of
    positives of their bin, one of 15 of equal width; of each pattern, and of the pairs of all
    patterns together. Nothing is fitted to the scored cells: thresholds are those of `synthetic`
    val. Intervals are over cells; replicates are averaged over seeds, and their bias is taken off,
    as for F1: bins of few pairs make any error too large, and a replicate's more so.
    """
    del jobs
    rows = []
    sources = () if quick else SIMULATED
    methods = ("gpsnet", "boosted") if quick else ("gpsnet", "gpsnet_ensemble", "boosted")
    for table in ("synthetic",) if quick else ("synthetic", *GOLD):
        judge = evaluator(table)
        truth = judge.labels[list(judge.patterns)].to_numpy(bool)
        resamples = Resamples.draw(judge.labels.assign(fov="all"))  # of cells
        for name in methods:
            each, f1 = [], []
            for seed in range(seeds if name in SINGLE and not quick else 1):
                file = made(Row("simulation", name, table, sources), seed, out, quick)
                scores = judge.check(file).require()
                each.append(calibration_errors(truth, scores, resamples))
                trained = made(Row("simulation", name, "synthetic", sources), seed, out, quick)
                val = trained.with_name(trained.name.replace("test", "val", 1))
                at = list(val_thresholds(load_dataset("synthetic"), val).values())
                f1.append(f1_at(truth, scores, at))
            line: dict[str, Any] = {"table": table, "method": name, "seeds": len(each)}
            freedom = resamples.degrees_of_freedom
            for k, what in enumerate(("all", *judge.patterns)):
                values = np.mean([one[:, k] for one in each], axis=0)  # the error, then replicates
                low, high = interval(float(values[0]), values[1:], freedom, biased=True)
                line[f"ECE {what}"] = f"{values[0]:.3f} [{low:.3f}, {high:.3f}]"
            rows.append(line | {"F1 at val thresholds": round(100 * float(np.mean(f1)), 1)})
    return rows


def calibration_errors(truth: Any, scores: Any, resamples: Resamples) -> Any:
    """Errors (1 + B, 1 + C): of the pairs and of each replicate; of all patterns, then of each."""
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)  # (N, C)
    weights = np.vstack([np.ones(resamples.n), resamples.weights])  # (1 + B, K)
    gaps, sizes = [], []
    for k in range(truth.shape[1]):
        group = resamples.of_pair * BINS + bins[:, k]

        def summed(values: Any, group: Any = group) -> Any:
            table = np.bincount(group, values, resamples.n * BINS).reshape(resamples.n, BINS)
            return weights @ table  # (1 + B, bins)

        gaps.append(summed(scores[:, k] - truth[:, k]))
        sizes.append(summed(np.ones(len(truth))))
    each = [np.abs(g).sum(1) / n.sum(1) for g, n in zip(gaps, sizes, strict=True)]
    return np.column_stack([np.abs(sum(gaps)).sum(1) / sum(sizes).sum(1), *each])


def f1_at(truth: Any, scores: Any, thresholds: list[float]) -> float:
    """Macro F1 of calls at thresholds (C,), over patterns with positives."""
    called = scores >= np.array(thresholds, scores.dtype)
    some = truth.any(axis=0)
    f1 = 2 * (called & truth).sum(0) / np.maximum(called.sum(0) + truth.sum(0), 1)
    return float(f1[some].mean())


# What absent outlines cost


def absence(out: Path, seeds: int, jobs: int, quick: bool) -> list[dict[str, Any]]:
    """The models of `simulation` on cells without nuclei, and without outlines."""
    del jobs
    rows = []
    sources = ("synthetic",) if quick else SIMULATED
    for table in ("synthetic",) if quick else ("synthetic", *GOLD):
        dataset = load_dataset(table)
        for name, change in CHANGES.items():
            values = []
            for seed in range(1 if quick else seeds):
                method = GPSNetMethod()
                method.load(saved("gpsnet", sources, seed, out, quick)[0])
                cells = dataset.iter_cells("test").without_labels().mapped(change)
                values.append(scored(method, cells, dataset, "test"))
            rows.append({"table": table, "cells have": name, **means(values)})
    return rows


def without_nucleus(cell: Cell) -> Cell:
    """The cell as if no nucleus had been segmented."""
    return replace(cell, nucleus=None)


def without_outlines(cell: Cell) -> Cell:
    """The cell as if nothing had been segmented: its molecules tell the outline."""
    outline = surrogate_outline(cell.xy)
    return replace(cell, nucleus=None, boundary=cell.boundary if outline is None else outline)


def with_nucleus_only(cell: Cell) -> Cell:
    """The cell as if its nucleus alone had been segmented."""
    return replace(without_outlines(cell), nucleus=cell.nucleus)


CHANGES = {
    "both outlines": lambda cell: cell,
    "the cell's only": without_nucleus,
    "the nucleus' only": with_nucleus_only,
    "none": without_outlines,
}


# What it costs


def speed(out: Path, seeds: int, jobs: int, quick: bool) -> list[dict[str, Any]]:
    """Processor time and memory of training and scoring, one thread, each in a fresh process."""
    del out, seeds, jobs
    call = here if quick else fresh
    return [*call(training_cost, quick), *call(scoring_cost, quick)]


def training_cost(quick: bool) -> list[dict[str, Any]]:
    """A training on the simulated cells."""
    torch.set_num_threads(1)
    cells = training_cells([load_dataset(one) for one in (SIMULATED[:1] if quick else SIMULATED)])
    cells = cells.sampled(QUICK_CELLS, 0) if quick else cells
    method = GPSNetMethod(training=replace(TRAININGS["gpsnet"], steps=2) if quick else None)
    began = process_time()
    method.fit(cells, 0)
    return [{"what": "training", "cells": len(cells), "cpu_s": process_time() - began, **memory()}]


def scoring_cost(quick: bool) -> list[dict[str, Any]]:
    """Scoring of tissue, by a network that has seen a few of its cells."""
    torch.set_num_threads(1)
    rows = []
    fovs, cells = (1, 40) if quick else (4, TISSUE_CELLS)
    size = Size(fovs, cells, molecules_per_cell=303, genes=960)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        draw(size, home)
        curating(home, home / "tables")()
        tissue = Dataset(home / "tables")
        method = GPSNetMethod(training=replace(TRAININGS["gpsnet"], steps=2))
        method.fit(tissue.iter_cells(keep=tissue.cells()["cell_id"][:20].tolist()), 0)
        resident(reset=True)
        for batch in (8, 1):
            method.batch = batch
            began = process_time()
            pairs = [len(scores) for _, scores in method.predict(tissue.iter_cells())]
            seconds = process_time() - began
            rows.append(
                {
                    "what": f"scoring, batches of {batch}",
                    "cells": len(pairs),
                    "cpu_s": seconds,
                    **memory(),
                    "pairs": sum(pairs),
                    "cpu_s_100149_cells": seconds / len(pairs) * 100_149,
                }
            )
    return rows


def memory() -> dict[str, float | None]:
    """Largest memory of this process, GiB."""
    return {"peak_gib": told_memory(resident()[1] / 2**30)}


# What each choice is worth


VARIANTS: dict[str, dict[str, Any]] = {
    "gpsnet": {},
    "attends to both": {"attends_to": "both"},
    "self-attention": {"self_attention": True},
    "no counts": {"counts": False},
    "width 128": {"width": 128},
    "decoder depth 4": {"decoder_depth": 4},
    "KNN block, K = 16": {"encoder_depth": 1, "neighbours": 16, "distance_bias": True},
    "inputs: no Fourier": {"fourier": 0},
    "decoder depth 1": {"decoder_depth": 1},
    "width 32": {"width": 32},
    "inputs: distances in um": {"inputs": "micrometres"},
    "attends to all molecules": {"attends_to": "all"},
    "inputs: coordinates, Fourier": {"inputs": "coordinates", "fourier": 32},
    "inputs: coordinates, as the paper": {"inputs": "coordinates", "fourier": 0},
    "KNN block, K = 4": {"encoder_depth": 1, "neighbours": 4, "distance_bias": True},
    "KNN block, K = 64": {"encoder_depth": 1, "neighbours": 64, "distance_bias": True},
    "two KNN blocks, K = 16": {"encoder_depth": 2, "neighbours": 16, "distance_bias": True},
}
SOURCES = {
    "trained on synthetic only": ("synthetic",),
    "trained on synthetic_wide only": ("synthetic_wide",),
}
SHARES = (2, 4, 8, 16)  # one n-th of the training cells


def ablation(out: Path, seeds: int, jobs: int, quick: bool) -> list[dict[str, Any]]:
    """GPSNet with one thing changed, after a shorter training."""
    tasks = [(name, changes, SIMULATED, 1) for name, changes in VARIANTS.items()]
    tasks += [(name, {}, sources, 1) for name, sources in SOURCES.items()]
    tasks += [(f"1/{part} of the cells", {}, SIMULATED, part) for part in SHARES]
    if quick:
        tasks, seeds = [("gpsnet", {}, ("synthetic",), 1)], 1
    asked = [(*task, seed, out, quick) for task in tasks for seed in range(seeds)]
    with workers(jobs, None) as pool:
        found = list(in_order(pool, variant, asked))
    rows = []
    for k, (name, *_) in enumerate(tasks):
        some = found[k * seeds : (k + 1) * seeds]
        line = {"setting": name, "fit_cpu_s": round(np.mean([one["fit_cpu_s"] for one in some]), 1)}
        for table in some[0]["scores"]:
            values = means([one["scores"][table] for one in some])
            line |= {f"{table} {key}": value for key, value in values.items()}
        rows.append(line)
    return rows


def variant(
    name: str, changes: dict[str, Any], train_on: tuple[str, ...], part: int, seed: int, out: Path,
    quick: bool,
) -> dict[str, Any]:  # fmt: skip
    """Train and score one variant, unless that is done."""
    file = out / "ablation" / f"{name.replace('/', ' of ')}-{seed}.json"
    if file.is_file():
        return json.loads(file.read_text())
    cells = training_cells([load_dataset(one) for one in train_on])
    if quick:
        cells = cells.sampled(QUICK_CELLS, seed)
    if part > 1:
        cells = Every(cells, part)
    steps = 2 if quick else ABLATION_STEPS
    method = GPSNetMethod(training=replace(TRAININGS["gpsnet"], steps=steps), **changes)
    began = process_time()
    method.fit(cells, seed)
    found: dict[str, Any] = {"fit_cpu_s": process_time() - began, "scores": {}}
    tables = [("synthetic", "val")] if quick else [("synthetic", "val"), ("synthetic_wide", "test")]
    for table, split in tables:
        dataset = load_dataset(table)
        found["scores"][table] = scored(method, dataset.iter_cells(split), dataset, split)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found))
    return found


class Every:
    """Every n-th of some cells."""

    def __init__(self, cells: Any, part: int) -> None:
        self.cells, self.part = cells, part
        self.genes, self.patterns = cells.genes, cells.patterns
        self.simulated = cells.simulated

    @property
    def parts(self) -> tuple[Every, ...]:
        """Those of each dataset, as of all cells: datasets keep their weights."""
        parts = self.cells.parts
        return (self,) if len(parts) == 1 else tuple(Every(part, self.part) for part in parts)

    def __iter__(self) -> Iterator[Cell]:
        return (cell for k, cell in enumerate(self.cells) if k % self.part == 0)

    def __len__(self) -> int:
        return -(-len(self.cells) // self.part)


def scored(method: Any, cells: Any, dataset: Dataset, split: str) -> tuple[float, float]:
    """Macro AUC and F1 of a split."""
    scores = predict_cells(method, cells, bar=False)
    result = evaluator(dataset.name, split).eval(
        counted(scores, dataset.pairs(split)), replicates=0
    )
    return result["auc_macro"], result["f1_macro"]


def means(values: list[tuple[float, float]]) -> dict[str, Any]:
    """Means over seeds and their standard deviations, per cent."""
    found: dict[str, Any] = {}
    for name, column in zip(("AUC", "F1"), 100 * np.array(values).T, strict=True):
        found[name] = round(float(column.mean()), 2)
        found[f"{name} sd"] = round(float(column.std(ddof=1)), 2) if len(column) > 1 else None
    return found


PARTS = {
    "simulation": simulation,
    "transfer": transfer,
    "out of fold": out_of_fold,
    "tissue": tissue,
    "calibration": calibration,
    "absence": absence,
    "speed": speed,
    "ablation": ablation,
}


if __name__ == "__main__":
    main()
