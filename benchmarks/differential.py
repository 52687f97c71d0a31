"""Differential localisation: does its p hold under the null, what does it find, what fools it.

Parts one and two draw calibrated probabilities: a pair has the pattern or not, by chance; the
probability of its gene differs between donors and fields of view; what a classifier sees of a pair
says more, the more molecules there are. Part three scores cells of this package's simulator with a
model fitted on others of them. Each run writes an answer and reads it, as the command does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import (
    false_discovery_control,
    kstest,
    ttest_ind,
    ttest_ind_from_stats,
    ttest_rel,
)
from tabulate import tabulate
from timing import parsed, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from samples import dataset_of, write_answer

from gpattern_bench import load_dataset
from gpattern_bench.answers.differential import differential
from gpattern_bench.curate.simulate.cells import PATTERNS as FOUR
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.runs.run import run_method
from gpattern_bench.runs.saved_model import load_model, predict_tables

GENES, CELLS, FOVS = 100, 150, 6  # cells of a donor on average
PATTERNS = ("nuclear", "cell_edge")
PRIOR = 0.25  # share of pairs with a pattern
DONOR, FOV = 0.4, 0.2  # standard deviations of the log odds; of a donor, a part is common to genes
FEW, MANY = 200.0, 1000.0  # molecules of a simulated cell
OLD_MODEL = Path(__file__).resolve().parents[1] / "tests/files/runs_of_2026_11/boosted"  # --quick

Draw = Callable[..., tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]]


def drawn(
    seed: int,
    donors: tuple[int, int],
    *,
    shifted: float = 0.0,
    shift: float = 0.0,
    expression: float = 1.0,
    paired: bool = False,
    alike: bool = False,
    genes: int = GENES,
    cells: int = CELLS,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Draw pairs, cells with condition and donor, and which genes were shifted in the second group.

    Parameters
    ----------
    donors : (int, int)
        Of each group.
    shifted, shift : float
        Share of the genes and patterns that differ, and by how much in log odds.
    expression : float
        Factor on the molecules of half of the genes in the second group.
    paired : bool
        Whether both groups are of the same donors.
    alike : bool
        Whether donors differ in nothing; fields of view do.
    genes, cells : int
        How many; cells of a donor on average.
    """
    rng = np.random.default_rng([seed, *donors])
    n_units = sum(donors)
    group = np.repeat([0, 1], donors)
    donor = np.arange(n_units) % donors[0] if paired else np.arange(n_units)
    n_people = donor.max() + 1
    spread = DONOR * np.sqrt(4 / rng.chisquare(4, (genes, len(PATTERNS))))  # differs between genes
    person = rng.normal(size=(n_people, genes, len(PATTERNS))) * spread
    person += 0.25 * DONOR * rng.normal(size=(n_people, 1, len(PATTERNS)))
    unit = person[donor] * (not alike)
    if paired:  # donors respond differently, too
        unit = unit + 0.5 * DONOR * rng.normal(size=unit.shape)
    base = rng.normal(logit(PRIOR), 1.2, (genes, len(PATTERNS)))
    planted = rng.random(base.shape) < shifted
    moved = planted * shift * rng.choice([-1, 1], base.shape)
    field = FOV * rng.normal(size=(n_units, FOVS, genes, len(PATTERNS)))

    cell = np.arange(n_units * cells)
    weight = rng.uniform(0.4, 1.6, n_units)  # donors have more or fewer cells
    of_unit = np.sort(rng.choice(n_units, len(cell), p=weight / weight.sum()))
    fov = rng.integers(0, FOVS, len(cell))
    size = rng.normal(0, 0.3, len(cell)) + rng.normal(0, 0.1, n_units)[of_unit]
    mean = np.exp(rng.normal(1.2, 0.8, genes))
    factor = np.where(np.arange(genes) % 2 == 0, expression, 1.0)
    expected = mean * np.exp(size)[:, None] * np.where(group[of_unit, None] == 1, factor, 1.0)
    expected = expected * rng.gamma(2, 0.5, expected.shape)
    count = rng.poisson(expected)
    at, gene = np.nonzero(count)
    n = count[at, gene]
    u = of_unit[at]
    odds = base[gene] + unit[u, gene] + field[u, fov[at], gene] + moved[gene] * group[u, None]
    truth = rng.random(odds.shape) < expit(odds)
    sight = np.sqrt(1.5 * np.log2(1 + n))[:, None]  # how far apart the two kinds of pairs look
    evidence = np.where(truth, 0.5, -0.5) * sight**2 + sight * rng.normal(size=odds.shape)
    score = expit(logit(PRIOR) + evidence)
    pairs = pd.DataFrame(
        {
            "cell_id": np.char.add("c", at.astype(str)),
            "gene": np.char.add("G", gene.astype(str)),
            "n_molecules": n,
            **dict(zip(PATTERNS, score.T, strict=True)),
        }
    )
    table = pd.DataFrame(
        {
            "cell_id": np.char.add("c", cell.astype(str)),
            "fov": [f"{s}-{f}" for s, f in zip(of_unit, fov, strict=True)],
            "area_um2": 300 * np.exp(size),
            "condition": np.array(["a", "b"])[group[of_unit]],
            "donor": np.char.add("d", donor[of_unit].astype(str)),
        }
    )
    names = pd.MultiIndex.from_product([[f"G{g}" for g in range(genes)], PATTERNS])
    return pairs, table, pd.DataFrame({"planted": planted.ravel()}, names)


def compare(pairs: pd.DataFrame, cells: pd.DataFrame, *, blind: bool = False) -> pd.DataFrame:
    """Run `differential` on drawn pairs; `blind`: all molecules and areas said to be the same."""
    if blind:
        pairs, cells = pairs.assign(n_molecules=2), cells.assign(area_um2=100.0)
    with tempfile.TemporaryDirectory() as folder:
        write_answer(Path(folder), pairs, cells)
        groups = cells[["cell_id", "condition", "donor"]]
        table = differential(folder, groups, "condition", "donor").table
    return table.set_index(["gene", "pattern"]).sort_index()


def simple_tests(pairs: pd.DataFrame, cells: pd.DataFrame, *, paired: bool) -> dict[str, pd.Series]:
    """The p of Student's t over cells, and of Welch's over samples' means, without covariates."""
    joined = pairs.merge(cells[["cell_id", "condition", "donor"]])
    over_cells, over_samples = {}, {}
    for pattern in [n for n in pairs.columns if n not in ("cell_id", "gene", "n_molecules")]:
        of_cells = joined.groupby(["gene", "condition"])[pattern].agg(["mean", "std", "count"])
        of_cells = of_cells.unstack().dropna()
        stats = [
            of_cells[name, side].to_numpy()
            for side in ("a", "b")
            for name in ("mean", "std", "count")
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            p = ttest_ind_from_stats(*stats).pvalue
        over_cells[pattern] = pd.Series(p, of_cells.index)
        means = joined.groupby(["gene", "condition", "donor"])[pattern].agg(["mean", "count"])
        means = means["mean"][means["count"] >= 20].unstack("donor")
        a, b = (means.xs(side, level="condition") for side in ("a", "b"))
        a, b = a.align(b, join="inner", axis=0)
        if paired:
            a, b = a.where(b.notna()), b.where(a.notna())
        enough = (a.notna().sum(axis=1) >= 3) & (b.notna().sum(axis=1) >= 3)
        a, b = (part[enough].dropna(axis=1, how="all") for part in (a, b))
        test = ttest_rel if paired else partial(ttest_ind, equal_var=False)
        found = test(a.to_numpy(), b.to_numpy(), axis=1, nan_policy="omit").pvalue
        over_samples[pattern] = pd.Series(np.ma.filled(found, np.nan), a.index)
    return {
        name: pd.concat(found).swaplevel().rename_axis(["gene", "pattern"])
        for name, found in (("cells", over_cells), ("welch", over_samples))
    }


def share(values: list[float]) -> tuple[float, float, float]:
    """Mean over runs, with its 95 % interval: genes of a run are not independent, runs are."""
    mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    return (
        round(float(mean), 4),
        round(float(mean - 2 * error), 4),
        round(float(mean + 2 * error), 4),
    )


def below(p: pd.Series) -> float:
    """Share of p below 0.05."""
    return float((p.dropna() < 0.05).mean())


def fdr(p: pd.Series) -> pd.Series:
    """Benjamini and Hochberg's, within each pattern."""
    parts = [
        pd.Series(false_discovery_control(part), part.index)
        for _, part in p.dropna().groupby(level=1)
    ]
    return pd.concat(parts)


def null_part(runs: int, draw: Draw) -> list[dict[str, object]]:
    """Nothing differs but the donors."""
    rows = []
    for donors, paired in (
        ((3, 3), False), ((4, 4), False), ((6, 6), False), ((3, 6), False), ((3, 3), True),
        ((6, 6), True),
    ):  # fmt: skip
        ours, cells, welch, pooled, covered = [], [], [], [], []
        for seed in range(runs):
            pairs, of_cells, _ = draw(seed, donors, paired=paired)
            table = compare(pairs, of_cells)
            simple = simple_tests(pairs, of_cells, paired=paired)
            known = table["p"].notna()
            ours.append(below(table["p"]))
            cells.append(below(simple["cells"]))
            welch.append(below(simple["welch"]))
            pooled.append(table["p"].dropna())
            holds = (table["difference_low"] <= 0) & (table["difference_high"] >= 0)
            covered.append(float(holds[known].mean()))
        p = np.concatenate(pooled)
        rows.append(
            {
                "samples": f"{donors[0]} + {donors[1]}" if not paired else f"{donors[0]} pairs",
                "tests": len(p),
                "p < .05": share(ours),
                "p < .001": round(float((p < 0.001).mean()), 5),
                "KS distance": round(float(kstest(p, "uniform").statistic), 4),
                "intervals hold 0": share(covered),
                "Welch": share(welch),
                "t over cells": share(cells),
            }
        )
    return rows


def fields_part(runs: int, draw: Draw) -> list[dict[str, object]]:
    """One sample a group, intervals over fields of view: what they hold, and what they do not."""
    rows = []
    for alike in (True, False):
        covered = []
        for seed in range(runs):
            pairs, of_cells, _ = draw(30_000 + seed, (1, 1), alike=alike)
            table = compare(pairs, of_cells)
            known = table["difference_low"].notna()
            holds = (table["difference_low"] <= 0) & (table["difference_high"] >= 0)
            covered.append(float(holds[known].mean()))
        rows.append({"donors": "alike" if alike else "differ", "intervals hold 0": share(covered)})
    return rows


def power_part(runs: int, draw: Draw) -> list[dict[str, object]]:
    """A tenth of the genes and patterns are shifted."""
    rows = []
    for donors, paired in (((3, 3), False), ((6, 6), False), ((3, 3), True)):
        for shift in (0.5, 1.0, 1.5):
            found: dict[str, list[float]] = {"ours": [], "Welch": [], "false": [], "effect": []}
            for seed in range(max(2, runs // 2)):
                pairs, of_cells, truth = draw(
                    10_000 + seed, donors, shifted=0.1, shift=shift, paired=paired
                )
                table = compare(pairs, of_cells)
                simple = simple_tests(pairs, of_cells, paired=paired)
                planted = truth["planted"].reindex(table.index) & table["p"].notna()
                hits = table["fdr"] < 0.05
                found["ours"].append(float(hits[planted].mean()))
                welch = fdr(simple["welch"]) < 0.05
                found["Welch"].append(float(welch[planted.reindex(welch.index)].mean()))
                wrong = hits & ~truth["planted"].reindex(table.index)
                found["false"].append(float(wrong.sum() / max(hits.sum(), 1)))
                found["effect"].append(float(table["difference"].abs()[planted].mean()))
            rows.append(
                {
                    "samples": f"{donors[0]} pairs" if paired else f"{donors[0]} + {donors[1]}",
                    "shift, log odds": shift,
                    "mean difference": round(float(np.mean(found["effect"])), 3),
                    "found": share(found["ours"]),
                    "found, Welch": share(found["Welch"]),
                    "false among found": share(found["false"]),
                }
            )
    return rows


def expression_part(runs: int, draw: Draw) -> list[dict[str, object]]:
    """Half of the genes have three times the molecules in one group; nothing else differs."""
    rows = []
    for donors in ((3, 3), (6, 6)):
        shares: dict[str, list[float]] = {"with": [], "without": []}
        for seed in range(runs):
            pairs, of_cells, _ = draw(20_000 + seed, donors, expression=3.0)
            pairs = pairs[pairs["gene"].str[1:].astype(int) % 2 == 0]
            shares["with"].append(below(compare(pairs, of_cells)["p"]))
            shares["without"].append(below(compare(pairs, of_cells, blind=True)["p"]))
        rows.append(_expression_row("drawn", donors[0], shares))
    return rows


def _expression_row(cells: str, donors: int, shares: dict[str, list[float]]) -> dict[str, object]:
    return {
        "cells": cells,
        "samples": f"{donors} + {donors}",
        "with covariates": share(shares["with"]),
        "without": share(shares["without"]),
    }


def simulated_donor(
    folder: Path, model: tuple[object, object], seed: int, genes: int, molecules: float, cells: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs and cells of a donor: three fields of view, each with its nuclei, drift, detection."""
    release = simulate(
        seed, n_fovs=3, cells_per_fov=cells // 3, mean_molecules=molecules, gene_seed=genes
    )
    dataset = dataset_of(folder / f"{seed}-{genes}-{molecules:.0f}", release, FOUR, split="test")
    path = predict_tables(*model, dataset, folder / "scores.parquet")
    scores = pd.read_parquet(path).astype({"cell_id": str, "gene": str})
    counted = release.molecules.groupby(["cell_id", "gene"], observed=True).size()
    counted = counted.rename("n_molecules").reset_index().astype({"cell_id": str, "gene": str})
    table = release.cells
    area = [polygon.area for polygon in table["cell_boundary"]]
    of_cells = pd.DataFrame({"cell_id": table["cell_id"], "fov": table["fov"], "area_um2": area})
    return scores.merge(counted), of_cells


def simulator_part(runs: int, model: Path, donors: int, cells: int) -> list[dict[str, object]]:
    """Donors of this package's simulator, scored by a fitted model; groups drawn among them."""
    method, about = load_model(model)
    n = 3
    shares: dict[str, list[float]] = {"null": [], "with": [], "without": []}
    pooled = []
    with tempfile.TemporaryDirectory() as folder:
        for genes in range(runs):
            pools = {
                molecules: [
                    simulated_donor(
                        Path(folder), (method, about), 1000 * genes + k, genes, molecules, cells
                    )
                    for k in range(start, start + donors)
                ]
                for start, molecules in ((0, FEW), (500, MANY))
            }
            rng = np.random.default_rng(genes)
            for _ in range(3):
                few = rng.permutation(donors)
                low = [pools[FEW][k] for k in few[: 2 * n]]
                high = [pools[MANY][k] for k in few[:n]]
                null = compare(*_joined(low[:n], low[n:]))
                shares["null"].append(below(null["p"]))
                pooled.append(null["p"].dropna())
                mixed = _joined(low[:n], high)
                shares["with"].append(below(compare(*mixed)["p"]))
                shares["without"].append(below(compare(*mixed, blind=True)["p"]))
    p = np.concatenate(pooled)
    row = _expression_row("simulator, boosted", n, shares)
    row["null: p < .05"] = share(shares["null"])
    row["null: KS distance"] = round(float(kstest(p, "uniform").statistic), 4)
    return [row]


def speed_part(n_cells: int, n_genes: int = 1000) -> list[dict[str, object]]:
    """Time of an answer in which every cell has a hundred of the genes."""
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(n_cells), 100)
    names = np.array([f"c{k}" for k in range(n_cells)], object)
    genes = np.array([f"G{k}" for k in range(n_genes)], object)
    first = rng.integers(0, n_genes, n_cells)
    gene = (first[cell] + 7 * np.tile(np.arange(100), n_cells)) % n_genes
    pairs = pd.DataFrame(
        {"cell_id": names[cell], "gene": genes[gene], "n_molecules": rng.geometric(0.3, len(cell))}
        | {pattern: rng.random(len(cell), np.float32) for pattern in FOUR}
    )
    sample = rng.integers(0, 12, n_cells)
    cells = pd.DataFrame(
        {
            "cell_id": names,
            "fov": (sample * 20 + rng.integers(0, 20, n_cells)).astype(str),
            "area_um2": rng.lognormal(4, 0.3, n_cells),
            "condition": np.where(sample < 6, "a", "b"),
            "donor": np.char.add("d", sample.astype(str)),
        }
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_answer(Path(folder), pairs, cells)
        for by_sample in ("donor", None):
            began = time.process_time()
            differential(folder, cells, "condition", by_sample)
            seconds = round(time.process_time() - began, 2)
            over = "samples" if by_sample else "fields of view"
            rows.append({"pairs": len(pairs), "intervals over": over, "CPU s": seconds})
    return rows


def _joined(
    first: list[tuple[pd.DataFrame, pd.DataFrame]], other: list[tuple[pd.DataFrame, pd.DataFrame]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs and cells of two groups of donors, whose cells have the same names."""
    pairs, cells = [], []
    for condition, group in (("a", first), ("b", other)):
        for k, (of_pairs, of_cells) in enumerate(group):
            donor = f"{condition}{k}"
            pairs.append(of_pairs.assign(cell_id=f"{donor}-" + of_pairs["cell_id"]))
            named = of_cells.assign(cell_id=f"{donor}-" + of_cells["cell_id"].astype(str))
            cells.append(named.assign(condition=condition, donor=donor))
    return pd.concat(pairs, ignore_index=True), pd.concat(cells, ignore_index=True)


def main() -> None:
    """Run the parts; the last line printed is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=24, help="of each row; half for power")
    parser.add_argument(
        "--quick", action="store_true", help="two small runs, and an old small model"
    )
    parser.add_argument("--model", type=Path, help="of boosted; default: fitted on synthetic")
    options = parsed(parser)
    runs = 2 if options.quick else options.runs
    draw = partial(drawn, genes=24, cells=60) if options.quick else drawn
    parts = {"null": null_part, "fields of view": fields_part, "power": power_part}
    parts["expression"] = expression_part
    found = {name: part(runs, draw) for name, part in parts.items()}
    if options.quick:
        found["simulator"] = simulator_part(1, OLD_MODEL, 6, 24)
    elif options.model:
        found["simulator"] = simulator_part(6, options.model, 9, 60)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run_method("boosted", load_dataset("synthetic"), folder)
            found["simulator"] = simulator_part(6, Path(folder), 9, 60)
    found["speed"] = speed_part(1_000 if options.quick else 100_000)
    for name, rows in found.items():
        print(f"\n{name}\n")
        print(tabulate([_printed(row) for row in rows], headers="keys", tablefmt="github"))
    report({"runs": runs, **found}, options.record)


def _printed(row: dict[str, object]) -> dict[str, object]:
    return {
        name: "{:.3f} [{:.3f}, {:.3f}]".format(*value) if isinstance(value, tuple) else value
        for name, value in row.items()
    }


if __name__ == "__main__":
    main()
