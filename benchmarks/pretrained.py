"""The models that the package brings along, made again: weights, thresholds and cards.

- `gpsnet-four-patterns`: GPSNet fitted on the train splits of `synthetic` and `synthetic_wide`; it
  forgets their genes. Thresholds and rates are of their val splits, and scores stand for
  probabilities (`benchmarks/calls.py` says why); both gold sets only score it.
- `gpsnet-cosmx`: GPSNet fitted on simulated CosMx-like cells, half of them without nuclei, then
  fine-tuned on both fields of `cosmx_lung_mini`. No cells are left to measure it on, so its scores
  are those of the same recipe fitted on one field and scored on the other, both ways; probabilities
  and thresholds of the shipped weights are fitted to these out-of-field scores, and F1 at
  thresholds is measured with those of the other direction.

How to fine-tune was chosen inside the field that is fitted on (``--compare``): each half of its
cells scored by a model of the other half. The recipe with the highest mean AUC is shipped, if it
has seen nuclei. Its first version, real and simulated cells together, was worse there, and had
been scored on the other field once.

The seed is 0, whatever scores others give. Files are the same bytes again on the versions that the
card names. One thread. Needs the gold sets' and the lung set's files (mirror or network).

Rerun: `python benchmarks/pretrained.py --out gpattern_bench/pretrained` (about ten minutes of
processor time), with ``--only NAME`` one of them, with ``--work FOLDER`` without fitting again what
was fitted there; ``--quick``: few cells and steps, on simulated cells only, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from timing import parsed, report, show

from gpattern_bench import Evaluator, __version__, load_dataset
from gpattern_bench.answers.card import CARD, read_card
from gpattern_bench.answers.scope import measure_scope
from gpattern_bench.base.files import plain, write_text
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.simulate.cells import COMPARTMENTS, simulate_tissue
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.cells import Cell, Cells, CellTables
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.evaluate.calibration import Calibration, fit_calibration
from gpattern_bench.evaluate.metrics import at_threshold, score_pattern
from gpattern_bench.methods import get_method
from gpattern_bench.methods.base import FitContext, fit_in_context
from gpattern_bench.methods.gpsnet import method as gpsnet
from gpattern_bench.methods.gpsnet.model import GPSNet
from gpattern_bench.methods.gpsnet.train import Trained
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.runs.saved_model import Model, save_model
from gpattern_bench.runs.training import training_cells, training_ids
from gpattern_bench.sources.recipe import Recipe

SEED = 0
SIMULATED = ("synthetic", "synthetic_wide")
GOLD = ("u2os_gold", "nih3t3_gold")
FIELDS = ("cosmx_lung_mini", "cosmx_lung_mini_exchanged")  # 3 -> 2, and 2 -> 3
SEEDS = 3  # of the recipe's scores on tissue
TISSUE = {"n_fovs": 4, "n_cells": 3000, "n_genes": 960, "mean_molecules": 303.0}
QUICK_TISSUE = TISSUE | {"n_cells": 40, "n_genes": 20, "n_fovs": 2}
UNSEEN = {"n_fovs": 1, "n_cells": 200, "n_genes": 100}
BOARD = Path(__file__).resolve().parents[1] / "leaderboard" / "leaderboard.json"
LEAST = 5  # molecules of a called pair, of the four patterns (docs/metrics.md)
BINS = (1, 2, 3, 5, 10)  # molecules of a pair, lower ends
METRICS = ("auc_macro", "f1_macro", "ap_macro")


def main() -> None:
    """Make the models, and print their cards as one JSON object."""
    parser = argparse.ArgumentParser(description="The models of the package, made again.")
    parser.add_argument("--out", type=Path, help="folder; each has its own in it")
    parser.add_argument("--only", choices=list(MODELS), help="make only this model")
    parser.add_argument("--work", type=Path, help="folder of fits, kept: what is there is not made")
    parser.add_argument("--compare", action="store_true", help="how to fine-tune on tissue, only")
    parser.add_argument("--quick", action="store_true", help="few cells and steps, to see it run")
    given = parsed(parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if given.quick:
        gpsnet.steps_for = lambda cells: 2 + 0 * cells
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        if given.compare:
            rows = compared(work)
            show(rows)
            report({"compared": rows}, given.record)
            return
        for name in [given.only] if given.only else MODELS:
            MODELS[name](given.out / name, work, given.quick)
            card = read_card(given.out / name)
            assert card is not None
            found[name] = card.raw
    report({"models": found}, given.record)


# Four patterns


def four_patterns(folder: Path, work: Path, quick: bool) -> None:
    """Fit on simulated cells of all kinds."""
    sources = [load_dataset(name) for name in (SIMULATED[:1] if quick else SIMULATED)]
    train = training_cells(sources)
    method = knowing(fitted(train, work / "four"), ())
    val = pd.concat([scored(method, one, "val") for one in sources], ignore_index=True)
    as_they_are = Calibration(*(dict.fromkeys(sources[0].patterns, x) for x in (1.0, 0.0)))
    chosen = choose(val, sources[0].patterns, LEAST, as_they_are)
    save(method, sources, chosen, folder)
    tests = [(name, "test") for name in (SIMULATED[:1] if quick else (*SIMULATED, *GOLD))]
    scores = []
    for name, split in tests:
        dataset = load_dataset(name)
        scores.append(result(dataset, split, scored(method, dataset, split), chosen))
    known = [] if quick else [on_board(name, "gpsnet", SIMULATED) for name in ("synthetic", *GOLD)]
    write_card(
        folder,
        chosen,
        train,
        title="Nuclear, nuclear edge, cytoplasmic and cell edge, in cells of any size and panel",
        serves=(
            "any technology that locates single molecules, with outlines of the cells; with or "
            "without nuclei; any unit, panel and cell size. It knows no gene."
        ),
        trained_on=[about(source, "train") for source in sources],
        chosen_on=(
            "val splits of the training datasets, all labelled pairs: thresholds of largest F1. "
            "Scores stand for probabilities: no calibration on simulated val was better"
        ),
        scores=scores,
        recipe_scores={
            "what": (
                "the same training, seeds 0 to 4, on the board: mean and standard deviation; these "
                "models know the genes of the simulations, which helps on `synthetic`"
            ),
            "rows": known,
        },
        known_failures=[
            "Without nuclei it loses 10 points of AUC on cells that people labelled.",
            (
                "Cytoplasmic genes are hard to tell from genes without a pattern; where most pairs "
                "are cytoplasmic, as on NIH/3T3, their probabilities are far too low."
            ),
            (
                "Thresholds and probabilities are those of cells with the simulated shares of the "
                "patterns; other cells have others."
            ),
            "A pair of one or two molecules has hardly any evidence.",
            "Cell edge on U-2 OS rests on nine positive pairs: nothing is known of it there.",
        ],
    )


# CosMx


def cosmx(folder: Path, work: Path, quick: bool) -> None:
    """Fit on simulated CosMx-like cells, then on these and on tissue."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn = draw(Path(scratch) / "cosmx_lung_simulated", QUICK_TISSUE if quick else TISSUE)
        unseen = draw(Path(scratch) / "simulated_unseen", QUICK_TISSUE | UNSEEN, SEED + 1)
        # the second names one cells as test that the first names as train
        real = [] if quick else [load_dataset(one) for one in FIELDS]
        if quick:
            train = tissue_cells(drawn)
            method = fitted(train, work / "cosmx")
            chosen = choose(scored(method, drawn, "test"), drawn.patterns, 1)
            recipe: dict[str, Any] = {}
        else:
            train = tissue_cells(drawn, real[0], real[0].fovs())
            tuned = train.parts[1]
            recipe, out_of_field = exchanged(drawn, real, work)
            chosen = choose(out_of_field, drawn.patterns, 1)
            recipe["calls_right_by_molecules"] = right_by_molecules(out_of_field, chosen)
            method = fitted(tuned, work / "cosmx", SEED, pretrained(train, SEED, work))
            method = knowing(method, real[0].genes)
        save(method, [drawn, *real[:1]], chosen, folder)
        write_card(
            folder,
            chosen,
            train,
            title="Nuclear, membrane and cytoplasmic, as CosMx's compartments say",
            serves=(
                "CosMx: in which compartment most of a gene's molecules lie, where the export "
                "lacks the compartments. Genes of its 960-gene panel are known to it, others not."
            ),
            trained_on=[about(drawn, None), *(about(one, None) for one in real[:1])],
            chosen_on=(
                "out-of-field scores of cosmx_lung_mini, seed 0: each field scored by the same "
                "recipe fitted on the other field; probabilities by logistic regression on the "
                "scores' log-odds, thresholds of largest F1"
            ),
            scores=[result(unseen, "test", scored(method, unseen, "test"), chosen)],
            recipe_scores=recipe,
            known_failures=[
                (
                    "Its real labels are of 120 cells, of two fields of one lung tumour: nothing "
                    "is known of other tissues and slides."
                ),
                "Only its simulated training cells have nuclei, and it was fine-tuned without.",
                (
                    "76 % of the labelled pairs have one molecule, whose compartment is hardly "
                    "visible without a nucleus."
                ),
                "Membrane is rare and badly told from cytoplasmic.",
            ],
        )


def draw(folder: Path, size: dict[str, Any], seed: int = SEED) -> Dataset:
    """Make tables of simulated CosMx-like cells, all with their nuclei, all in test."""
    recipe = Recipe(
        format="simulated",
        like="cosmx_lung",
        patterns=tuple(sorted(COMPARTMENTS)),
        split="test",
        seed=seed,
    )
    pieces = (apply_rules(release, recipe) for release in simulate_tissue(seed, **size))
    write_dataset(pieces, folder, name=folder.name, version="0.0.0", recipe=recipe)
    return Dataset(folder)


def tissue_cells(
    drawn: Dataset,
    real: Dataset | None = None,
    fovs: Sequence[str] = (),
    keep: frozenset[str] | None = None,
) -> Cells:
    """Cells to train on: the simulated ones, half of them without nuclei, and real fields."""
    tables = [CellTables(drawn.folder, drawn.fovs(), prefix="simulated/", simulated=True)]
    genes = set(drawn.genes)
    if real is not None:
        tables.append(CellTables(real.folder, fovs, keep, prefix="real/"))
        genes |= set(real.genes)
    cells = Cells(tables, genes=tuple(sorted(genes)), patterns=drawn.patterns, labels=True)
    return cells.mapped(without_some_nuclei)


def without_some_nuclei(cell: Cell) -> Cell:
    """The cell; of every second, by its name, as if no nucleus had been segmented."""
    return replace(cell, nucleus=None) if crc32(cell.cell_id.encode()) % 2 else cell


def exchanged(
    drawn: Dataset, real: list[Dataset], work: Path
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Scores of the recipe fitted on one field and scored on the other, and those of seed 0."""
    first: list[pd.DataFrame] = []
    results: list[list[dict[str, Any]]] = [[] for _ in real]
    for seed in range(SEEDS):
        there = []
        for dataset in real:
            train = tissue_cells(drawn, dataset, dataset.fovs("train"))
            folder = work / f"{dataset.name}-{seed}"
            method = fitted(train.parts[1], folder, seed, pretrained(train, seed, work))
            there.append(scored(method, dataset, "test"))
        # each field's calls at the thresholds of the other
        at = [choose(one, drawn.patterns, 1) for one in reversed(there)]
        for k, dataset in enumerate(real):
            results[k].append(result(dataset, "test", there[k], at[k]))
        first = first or there
    rows = []
    for dataset, found in zip(real, results, strict=True):
        train, test = (", ".join(dataset.fovs(split)) for split in ("train", "test"))
        row: dict[str, Any] = {"dataset": dataset.id, "fields": f"{train} -> {test}"}
        row |= {"seeds": len(found), "pairs": found[0]["pairs"]}
        for metric in (*METRICS, "f1_at_thresholds"):
            values = [one[metric] for one in found]
            row[metric] = round(float(np.mean(values)), 4)
            row[f"{metric}_sd"] = round(float(np.std(values, ddof=1)), 4)
            if f"{metric}_ci" in found[0]:
                row[f"{metric}_ci_seed_0"] = found[0][f"{metric}_ci"]
        rows.append(row)
    what = (
        "the same recipe fitted on one field and scored on the other, whose cells and labels it "
        "has not seen; thresholds of `f1_at_thresholds` are those of the other direction"
    )
    return {"what": what, "rows": rows}, pd.concat(first, ignore_index=True)


def compared(work: Path) -> list[dict[str, Any]]:
    """AUC of ways to fine-tune, inside the field that is fitted on: on the other half of it."""
    ways: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        drawn = draw(Path(scratch) / "cosmx_lung_simulated", TISSUE)
        for dataset in map(load_dataset, FIELDS):
            names = frozenset(dataset.cells("train", ["cell_id"])["cell_id"])
            for fold in range(2):
                keep = frozenset(
                    name for name in names if crc32(f"fold{name}".encode()) % 2 == fold
                )
                both = tissue_cells(drawn, dataset, dataset.fovs("train"), keep)
                start, real = pretrained(both, SEED, work), both.parts[1]
                for way, train, init in (
                    ("simulated, then real", real, start),
                    ("simulated, then both", both, start),
                    ("real only, no nuclei seen", real, None),
                ):
                    folder = work / f"{way}-{dataset.name}-{fold}"
                    method = fitted(train, folder, SEED, init)
                    pairs = scored(method, dataset, "train")
                    pairs = pairs[~pairs["cell_id"].isin(keep)]
                    aucs = [
                        score_pattern(pairs[one], pairs[f"{one}_score"]).auc
                        for one in dataset.patterns
                    ]
                    ways.setdefault(way, []).append(100 * float(np.mean(aucs)))
    keys = ["3, first half", "3, second", "2, first half", "2, second"]
    return [
        {"fine-tuned": way, "mean": np.mean(found)} | dict(zip(keys, found, strict=True))
        for way, found in ways.items()
    ]


def pretrained(train: Cells, seed: int, work: Path) -> Path:
    """Fit on the simulated cells alone: what fine-tuning starts from."""
    folder = work / f"simulated-{seed}"
    fitted(train.only_simulated(), folder, seed)
    return folder


# Both


def fitted(train: Cells, folder: Path, seed: int = SEED, init: Path | None = None) -> Any:
    """Fit GPSNet, unless that is done and kept in the folder."""
    method = get_method("gpsnet")
    if (folder / "done").is_file():
        method.load(folder)
        return method
    folder.mkdir(parents=True, exist_ok=True)
    fit_in_context(method, train, seed, FitContext(init=init))
    method.save(folder)
    (folder / "done").touch()
    return method


def scored(method: Any, dataset: Dataset, split: str) -> pd.DataFrame:
    """Labels, molecules and scores (`<pattern>_score`) of a split's labelled pairs."""
    scores = predict_cells(method, dataset.iter_cells(split), bar=False)
    names = {pattern: f"{pattern}_score" for pattern in dataset.patterns}
    return dataset.labels(split).merge(scores.rename(columns=names), on=["cell_id", "gene"])


@dataclass(frozen=True)
class Chosen:
    """What the labels of training decide beside the weights."""

    calibration: Calibration
    thresholds: dict[str, float]
    rates: dict[str, dict[str, float]]
    min_molecules: int


def choose(
    pairs: pd.DataFrame,
    patterns: Sequence[str],
    least: int,
    calibration: Calibration | None = None,
) -> Chosen:
    """Choose thresholds of largest F1; fit probabilities, unless they are given."""
    columns = [f"{pattern}_score" for pattern in patterns]
    scores, labels = pairs[columns].to_numpy(np.float32), pairs[list(patterns)].to_numpy(bool)
    thresholds, rates = {}, {}
    for k, pattern in enumerate(patterns):
        thresholds[pattern] = score_pattern(labels[:, k], scores[:, k]).threshold
        called, truth = scores[:, k] >= np.float32(thresholds[pattern]), labels[:, k]
        rates[pattern] = {
            "sensitivity": round(float(called[truth].mean()), 4),
            "specificity": round(float((~called[~truth]).mean()), 4),
            "prevalence": round(float(truth.mean()), 4),
        }
    calibration = calibration or fit_calibration(scores, labels, patterns)
    return Chosen(calibration, thresholds, rates, least)


def right_by_molecules(pairs: pd.DataFrame, chosen: Chosen) -> list[dict[str, Any]]:
    """Share of calls that are right, over all patterns, by the molecules of the pair."""
    rows = []
    for low, high in pairwise([*BINS, np.inf]):
        here = pairs[(pairs["n_molecules"] >= low) & (pairs["n_molecules"] < high)]
        called = [here[f"{name}_score"] >= np.float32(t) for name, t in chosen.thresholds.items()]
        right = [here[name][c] for name, c in zip(chosen.thresholds, called, strict=True)]
        row = {"from": low, "pairs": len(here), "calls": int(sum(map(len, right)))}
        rows.append(row | {"right": round(float(pd.concat(right).mean()), 3)})
    return rows


def knowing(method: Any, genes: Sequence[str]) -> Any:
    """The same network with a smaller vocabulary: it shall know no gene of a simulation."""
    network = method.network
    old = network.config
    kept = tuple(gene for gene in old.genes if gene in set(genes))
    rows = [*(old.genes.index(gene) for gene in kept), len(old.genes)]  # the last: unknown
    state = network.state_dict()
    state["bias.weight"] = state["bias.weight"][rows]
    small = GPSNet(replace(old, genes=kept))
    small.load_state_dict(state)
    other = get_method("gpsnet")
    other.training, other._trained = method.training, Trained(small.eval(), method.history)
    return other


def result(dataset: Dataset, split: str, pairs: pd.DataFrame, chosen: Chosen) -> dict[str, Any]:
    """Macro scores of a split's labelled pairs, with intervals."""
    patterns = list(dataset.patterns)
    names = {f"{pattern}_score": pattern for pattern in patterns}
    table = pairs[["cell_id", "gene", *names]].rename(columns=names)
    found = Evaluator(dataset, split).eval(table)
    row: dict[str, Any] = {"dataset": dataset.id, "split": split, "pairs": found["n"]}
    for metric in METRICS:
        row[metric] = round(found[metric], 4)
        row[f"{metric}_ci"] = [round(end, 4) for end in found["ci"][metric]]
    f1 = [
        at_threshold(pairs[name], pairs[f"{name}_score"], chosen.thresholds[name])[0]
        for name in patterns
        if pairs[name].any()
    ]
    return row | {"f1_at_thresholds": round(float(np.mean(f1)), 4)}


def on_board(dataset: str, method: str, trained_on: Sequence[str]) -> dict[str, Any]:
    """The board's row of a method fitted on these datasets: means over seeds."""
    ids = sorted(f"{name}@1.0.0" for name in trained_on)
    for table in json.loads(BOARD.read_text(encoding="utf-8"))["tables"]:
        for row in table["rows"]:
            if (table["dataset"], row["method"], row["trained_on"]) == (dataset, method, ids):
                told: dict[str, Any] = {"dataset": f"{dataset}@{table['version']}"}
                told |= {"seeds": len(row["seeds"]), "pairs": table["n"]}
                for metric in METRICS:
                    told[metric] = round(row[metric], 4)
                    told[f"{metric}_sd"] = round(row["std"][metric], 4)
                    told[f"{metric}_ci"] = [round(end, 4) for end in row["ci"][metric]]
                return told
    raise SystemExit(f"{BOARD} has no row of {method} on {dataset}, fitted on {', '.join(ids)}")


def about(dataset: Dataset, split: str | None) -> dict[str, Any]:
    """What training data are called in a card."""
    raw = dataset.manifest.raw
    return {
        "dataset": dataset.id,
        "split": split or "all cells",
        "cells": len(dataset.iter_cells(split)),
        "licence": raw.get("licence", "drawn by this package, free for any use"),
    }


def save(method: Any, sources: Sequence[Dataset], chosen: Chosen, folder: Path) -> None:
    """Write the model as runs do."""
    patterns = list(sources[0].patterns)
    ids = training_ids(sources)
    save_model(method, Model("gpsnet", patterns, ids, dict(chosen.thresholds), SEED), folder)


def write_card(
    folder: Path, chosen: Chosen, train: Cells, *, title: str, serves: str, **more: Any
) -> None:
    """Write the card; its scope is that of the training cells."""
    cells = pd.DataFrame(
        [(c.boundary.area, len(c.gene), c.nucleus is not None) for c in train],
        columns=["area_um2", "n_molecules", "has_nucleus"],
    )
    card = {
        "title": title,
        "for": serves,
        "patterns": list(train.patterns),
        "method": "gpsnet: a transformer over the molecules of a cell (docs/methods/gpsnet.md)",
        "seed": SEED,
        **more,
        "calibration": asdict(chosen.calibration),
        "thresholds": chosen.thresholds,
        "rates": chosen.rates,
        "min_molecules": chosen.min_molecules,
        "scope": measure_scope(cells).record(),
        "licence": "MIT, as the package; no training data are in it",
        "made_by": f"python benchmarks/pretrained.py --out FOLDER --only {folder.name}",
        "versions": {
            "gpattern-bench": __version__,
            "numpy": np.__version__,
            "torch": torch.__version__.partition("+")[0],
        },
    }
    write_text(folder / CARD, json.dumps(plain(card), indent=1) + "\n")


MODELS = {"gpsnet-four-patterns": four_patterns, "gpsnet-cosmx": cosmx}


if __name__ == "__main__":
    main()
