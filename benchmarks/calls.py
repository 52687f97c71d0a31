"""How far calls can be trusted: probabilities, thresholds, shares of cells, wrong calls, few molecules.

All of it is fitted to simulated val (the val splits of `synthetic` and `synthetic_wide` together)
and measured on `synthetic` test, on `synthetic_wide` test, whose cells have other settings than any
that the model has seen, and on both sets of human labels. Means over the seeds of a model trained
on simulated cells; 95 % intervals over cells, replicates averaged over seeds.

- *calibration*: error of the scores as probabilities, as they are and recalibrated
- *reliability*: share of pairs with the pattern, by probability
- *thresholds*: F1 at thresholds that no label of the scored set chose
- *quantification*: error of a gene's share of cells with a pattern
- *discoveries*: share of calls that are wrong, expected and true
- *abstention*: what is known of pairs with few molecules

The choices, with their rules, which were written before the first look at the gold sets here:

1. *Calibration by simulated val* is the way, of those fitted to simulated val, with the lowest Brier
   score on `synthetic_wide` test; the scores as they are, unless the difference from them has an
   interval without 0. *By human labels* (both gold sets pooled) is shipped instead only if
   calibrating each cell line by the labels of the other has a lower Brier score than that, over both
   lines, with an interval without 0.
2. *Thresholds*: the rule with the highest macro F1 over shifts of prevalence of `synthetic_wide`
   test (each pattern at .02 to .8 of the pairs); today's, the threshold of largest F1 on simulated
   val, unless the difference from it has an interval without 0. Gold shows what it is worth.
3. *Shares*: the estimator with the lowest mean absolute error on `synthetic_wide` test, the mean of
   that over shifts (samples of 10 and 50 pairs, of few, many or any molecules, shares 0 to .8) and
   that of its genes as they are, unless on the gold sets it is worse than counting calls with an
   interval without 0.
4. *Confident calls* (expected share of wrong ones at most .10) are shipped if their true share is at
   most .15 on `synthetic_wide` test and on the gold sets together, and each interval reaches .10.
5. *Not called* are pairs with fewer molecules than the least number from which on, in every larger
   bin too, three calls of four are right on simulated val (all patterns together).

Rerun: `python benchmarks/calls.py --out runs/gpsnet_real` with the runs of `gpsnet_real.py` (made if
they lack: five trainings), `--model FOLDER` for a saved model, or ``--quick``: one seed, two steps,
simulated cells only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from gpsnet_real import BINS, GOLD, SEEDS, SIMULATED, Row, calibration_errors, made
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from timing import show

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.evaluate.bootstrap import Resamples, interval
from gpattern_bench.evaluate.calibration import calibrate, fit_calibration
from gpattern_bench.evaluate.metrics import score_pattern
from gpattern_bench.evaluate.quantify import count_odds, expected_shares, likeliest_shares
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.runs.saved_model import load_model

VAL = tuple((name, "val") for name in SIMULATED)
SEEN, UNSEEN = ("synthetic", "test"), ("synthetic_wide", "test")
REAL = tuple((name, "test") for name in GOLD)
SHIFTS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # prevalence
SHARES = (0.0, 0.05, 0.2, 0.5, 0.8)
DRAWS = 200
WRONG = 0.1
MOLECULES = (1, 2, 3, 4, 5, 7, 10, 20, 50)  # lower ends of bins
ENOUGH = 0.75  # of calls are right


@dataclass
class Set:
    """Labelled pairs and their scores, one array per seed."""

    name: str
    truth: Any
    scores: list[Any]
    labels: pd.DataFrame
    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        self.cells = Resamples.draw(self.labels.assign(fov="all"))
        self.weights = np.vstack([np.ones(self.cells.n), self.cells.weights])  # (1 + B, K)
        self.molecules = self.labels["n_molecules"].to_numpy()

    def summed(self, values: Any) -> Any:
        """Sums (1 + B,) of values (N,) over all pairs, and over those of each replicate."""
        return self.weights @ np.bincount(self.cells.of_pair, values, self.cells.n)

    def mean(self, values: Any) -> Any:
        """Means (1 + B,), likewise."""
        return self.summed(values) / self.summed(np.ones(len(values)))

    def of_pairs(self) -> Any:
        """Weights (1 + B, N) of the pairs."""
        return self.weights[:, self.cells.of_pair]


def told(values: Any, freedom: int, *, biased: bool = False, signed: bool = False) -> str:
    """An estimate, followed by its replicates, as text with its 95 % interval."""
    limits = (-1.0, 1.0) if signed else (0.0, 1.0)
    low, high = interval(float(values[0]), values[1:], freedom, limits, biased=biased)
    sign = "+" if signed else ""
    return f"{values[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def main() -> None:
    """Score all sets, print the tables, and JSON last."""
    parser = argparse.ArgumentParser(description="How far calls can be trusted.")
    parser.add_argument("--out", type=Path, help="folder of the runs of gpsnet_real.py")
    parser.add_argument("--model", type=Path, help="a saved model, instead of those of the runs")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the runs")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="one seed, `synthetic` only")
    given = parser.parse_args()
    if given.quick:
        files = Path(__file__).parents[1] / "submissions/gpsnet/predictions/synthetic"
        sets = {
            ("synthetic", split): loaded(
                "synthetic", split, [files / f"{split}-seed0-fit-synthetic_wide.parquet"]
            )
            for split in ("val", "test")
        }
    else:
        sets = {
            (name, split): loaded(name, split, list(scored(name, split, given)))
            for name, split in (*VAL, SEEN, UNSEEN, *REAL)
        }
    val = joined("simulated val", [sets[key] for key in VAL if key in sets])
    tests = {key: sets[key] for key in (SEEN, UNSEEN, *REAL) if key in sets}
    found = {}
    for part in given.parts:
        found[part] = PARTS[part](val, tests)
        print(f"{part}\n")
        show(found[part])
    print(json.dumps(found))


def scored(name: str, split: str, given: Any) -> Iterator[Any]:
    """Prediction files, or tables, of a split by each seed."""
    if given.model is not None:
        method, _ = load_model(given.model)
        yield predict_cells(method, load_dataset(name).iter_cells(split), bar=False)
        return
    for seed in range(given.seeds):
        file = made(Row("simulation", "gpsnet", name, SIMULATED), seed, given.out, False)
        yield file.with_name(file.name.replace("test", split, 1))


def loaded(name: str, split: str, predictions: list[Any]) -> Set:
    """A split with its scores."""
    judge = Evaluator(name, split)
    truth = judge.labels[list(judge.patterns)].to_numpy(bool)
    scores = [judge.check(one).require() for one in predictions]
    what = name if split == "test" else f"{name} {split}"
    return Set(what, truth, scores, judge.labels.assign(set=what), judge.patterns)


def joined(name: str, sets: list[Set]) -> Set:
    """Several sets as one."""
    labels = pd.concat([one.labels.assign(cell_id=one.name + one.labels["cell_id"].astype(str))
                        for one in sets], ignore_index=True)  # fmt: skip
    scores = [np.vstack(each) for each in zip(*(one.scores for one in sets), strict=True)]
    truth = np.vstack([one.truth for one in sets])
    return Set(name, truth, scores, labels, sets[0].patterns)


# Scores as probabilities


def platt(scores: Any, truth: Any) -> Callable[[Any], Any]:
    """The curve of the package."""
    names = [str(k) for k in range(scores.shape[1])]
    found = fit_calibration(scores, truth, names)
    return lambda new: calibrate(new, names, found)


def log_odds(scores: Any) -> Any:
    """Finite log-odds."""
    p = np.clip(scores.astype(float), 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def temperature(scores: Any, truth: Any) -> Callable[[Any], Any]:
    """A slope per pattern, and no intercept."""
    x = log_odds(scores)
    slopes = [
        LogisticRegression(C=np.inf, fit_intercept=False).fit(x[:, [k]], truth[:, k]).coef_[0, 0]
        for k in range(x.shape[1])
    ]
    return lambda new: 1 / (1 + np.exp(-log_odds(new) * slopes))


def isotonic(scores: Any, truth: Any) -> Callable[[Any], Any]:
    """Steps per pattern."""
    fits = [
        IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1).fit(scores[:, k], truth[:, k])
        for k in range(scores.shape[1])
    ]
    return lambda new: np.column_stack([f.predict(new[:, k]) for k, f in enumerate(fits)])


WAYS: dict[str, Callable[[Any, Any], Callable[[Any], Any]]] = {
    "as they are": lambda scores, truth: lambda new: new,
    "temperature": temperature,
    "logistic": platt,
    "isotonic": isotonic,
}


def shifted(p: Any, prior: Any, weights: Any = None) -> Any:
    """Probabilities, if the patterns are as frequent as the unlabelled scores make likeliest."""
    counts = count_odds(p, prior, np.zeros(len(p), int), 1, weights)[0]
    share = np.clip(likeliest_shares(counts)[0], 0.005, 0.995)
    odds = np.exp(log_odds(p)) * (share / (1 - share)) * ((1 - prior) / prior)
    return odds / (1 + odds)


def calibration(val: Set, tests: dict[Any, Set]) -> list[dict[str, Any]]:
    """Expected calibration error (15 bins) and Brier score, and its difference from the scores'."""
    rows = []
    prior = val.truth.mean(0)
    differences: dict[str, list[Any]] = {}
    for key, test in tests.items():
        probabilities = {
            name: [way(s, val.truth)(t) for s, t in zip(val.scores, test.scores, strict=True)]
            for name, way in WAYS.items()
        }
        probabilities["logistic, shifted"] = [shifted(p, prior) for p in probabilities["logistic"]]
        if key in REAL:
            other = tests[(GOLD[key[0]], "test")]
            probabilities["logistic, by the other line"] = [
                platt(s, other.truth)(t) for s, t in zip(other.scores, test.scores, strict=True)
            ]
        brier = {
            name: np.mean([test.mean(((p - test.truth) ** 2).mean(1)) for p in each], axis=0)
            for name, each in probabilities.items()
        }
        freedom = test.cells.degrees_of_freedom
        for name, each in probabilities.items():
            errors = np.mean([calibration_errors(test.truth, np.asarray(p, np.float64), test.cells)
                              for p in each], axis=0)  # fmt: skip
            line = {"table": test.name, "probabilities": name}
            for k, what in enumerate(("all", *test.patterns)):
                line[f"ECE {what}"] = told(errors[:, k], freedom, biased=True)
            line["Brier"] = round(float(brier[name][0]), 4)
            less = brier[name] - brier["as they are"]
            line["Brier - scores'"] = told(less, freedom, signed=True)
            rows.append(line)
            if key in REAL:
                differences.setdefault(name, []).append(brier[name] - brier["logistic"])
    for name, each in differences.items():  # replicates of independent sets
        both = np.mean(each, axis=0)
        freedom = sum(tests[key].cells.degrees_of_freedom for key in REAL)
        rows.append({"table": "both gold sets", "probabilities": name,
                     "Brier - logistic's": told(both, freedom, signed=True)})  # fmt: skip
    return rows


def reliability(val: Set, tests: dict[Any, Set]) -> list[dict[str, Any]]:
    """Share of pairs with the pattern by fifths of the probability, all patterns together."""
    rows = []
    for test in tests.values():
        each = [platt(s, val.truth)(t) for s, t in zip(val.scores, test.scores, strict=True)]
        for fifth in range(5):
            shares, means, sizes = [], [], []
            for p in each:
                inside = np.minimum((p * 5).astype(int), 4) == fifth
                pairs = test.summed(inside.sum(1))
                with np.errstate(invalid="ignore", divide="ignore"):
                    shares.append(test.summed((inside & test.truth).sum(1)) / pairs)
                    means.append((p * inside).sum() / inside.sum())
                sizes.append(inside.sum())
            rows.append({
                "table": test.name, "probability": f"{fifth / 5:.1f} to {fifth / 5 + 0.2:.1f}",
                "mean": round(float(np.nanmean(means)), 3), "pairs": round(float(np.mean(sizes))),
                "with the pattern": told(np.mean(shares, axis=0), test.cells.degrees_of_freedom),
            })  # fmt: skip
    return rows


# Thresholds


def best_expected(p: Any, weights: Any) -> float:
    """The threshold of the largest F1 that probabilities (N,) expect of themselves."""
    order = np.argsort(-p)
    called = np.cumsum(weights[order])
    right = np.cumsum((p * weights)[order])
    last = np.append(p[order][1:] < p[order][:-1], True)
    f1 = np.where(last, 2 * right / np.maximum(called + right[-1], 1e-12), 0)
    return float(p[order][f1.argmax()])


RULES = (
    "largest F1 on simulated val", "0.5", "0.5, shifted", "largest expected F1",
    "largest expected F1, shifted",
)  # fmt: skip


def called_by(p: Any, prior: float, weights: Any, val_threshold: float) -> dict[str, Any]:
    """Calls (N,) of a pattern by every rule."""
    moved = shifted(p[:, None], np.array([prior]), weights)[:, 0]
    return {
        RULES[0]: p >= val_threshold,
        RULES[1]: p >= 0.5,
        RULES[2]: moved >= 0.5,
        RULES[3]: p >= best_expected(p, weights),
        RULES[4]: moved >= best_expected(moved, weights),
    }


def f1(called: Any, truth: Any, weights: Any) -> float:
    """F1 of weighted pairs."""
    both = (weights * (called & truth)).sum()
    return float(2 * both / max((weights * called).sum() + (weights * truth).sum(), 1e-12))


def thresholds(val: Set, tests: dict[Any, Set]) -> list[dict[str, Any]]:
    """Macro F1 by each rule: of sets as they are, and of `synthetic_wide` test at other shares."""
    rows = []
    for key, test in tests.items():
        runs = [thresholded(val, test, seed, tests.get((GOLD.get(key[0]), "test")))
                for seed in range(len(val.scores))]  # fmt: skip
        rows += ruled(test.name, runs, test.cells.degrees_of_freedom)
    test = tests.get(UNSEEN, tests[SEEN])
    runs = [at_shifts(val, test, seed) for seed in range(len(val.scores))]
    rows += ruled(f"{test.name}, shifted", runs, test.cells.degrees_of_freedom)
    return rows


def ruled(name: str, runs: list[dict[str, Any]], freedom: int) -> list[dict[str, Any]]:
    """Lines of a table: the means of runs, and their differences from the first rule."""
    means = {rule: np.mean([run[rule] for run in runs], axis=0) for rule in runs[0]}
    return [
        {"table": name, "threshold": rule, "F1": told(values, freedom),
         "F1 - first": told(values - means[RULES[0]], freedom, signed=True)}
        for rule, values in means.items()
    ]  # fmt: skip


def thresholded(val: Set, test: Set, seed: int, other: Set | None) -> dict[str, Any]:
    """Macro F1 (1 + B,) by rule."""
    curve = platt(val.scores[seed], val.truth)
    p, before = (curve(one.scores[seed]).astype(float) for one in (test, val))
    drawn = test.of_pairs()[: DRAWS + 1]
    found: dict[str, Any] = {}
    for k in range(len(test.patterns)):
        at = score_pattern(val.truth[:, k], before[:, k]).threshold
        prior = val.truth[:, k].mean()
        for b, weights in enumerate(drawn):
            calls = called_by(p[:, k], prior, weights, at)
            if other is not None:
                theirs = curve(other.scores[seed])[:, k].astype(float)
                best = score_pattern(other.truth[:, k], theirs).threshold
                calls["largest F1 on the other line"] = p[:, k] >= best
            if not (weights * test.truth[:, k]).any():
                continue
            for rule, called in calls.items():
                table = found.setdefault(rule, np.full((len(drawn), p.shape[1]), np.nan))
                table[b, k] = f1(called, test.truth[:, k], weights)
    return {rule: np.nanmean(table, axis=1) for rule, table in found.items()}


def at_shifts(val: Set, test: Set, seed: int) -> dict[str, Any]:
    """Macro F1 (1 + B,) by rule, mean over prevalences that pairs are weighted to."""
    curve = platt(val.scores[seed], val.truth)
    p, before = (curve(one.scores[seed]).astype(float) for one in (test, val))
    drawn = test.of_pairs()[: DRAWS // 4 + 1]
    found = {rule: np.zeros(len(drawn)) for rule in RULES}
    for k in range(len(test.patterns)):
        truth, prior = test.truth[:, k], val.truth[:, k].mean()
        at = score_pattern(val.truth[:, k], before[:, k]).threshold
        for b, weights in enumerate(drawn):
            with_it, without = (weights * truth).sum(), (weights * ~truth).sum()
            for share in SHIFTS:
                moved = weights * np.where(truth, share / with_it, (1 - share) / without)
                for rule, called in called_by(p[:, k], prior, moved, at).items():
                    found[rule][b] += f1(called, truth, moved)
    return {rule: values / len(SHIFTS) / p.shape[1] for rule, values in found.items()}


# Shares of cells


@dataclass
class Rates:
    """What simulated val says of one pattern: at its threshold, and of the mean probability."""

    threshold: float
    prior: float
    called: Any  # (bins + 1, 2): share of pairs without and with it that are called; last: all
    mean: Any  # likewise: mean probability


def rates(p: Any, truth: Any, molecules: Any) -> Rates:
    """Of probabilities and labels (N,), by bins of molecules."""
    threshold = score_pattern(truth, p).threshold
    where = binned(molecules)
    masks = [where == b for b in range(len(MOLECULES))] + [np.ones(len(p), bool)]
    tables = [
        np.array([[values[m & (truth == y)].mean() for y in (False, True)] for m in masks])
        for values in (p >= threshold, p)
    ]
    return Rates(threshold, truth.mean(), *tables)


def binned(molecules: Any) -> Any:
    """The bin of each pair."""
    return np.searchsorted(MOLECULES, molecules, side="right") - 1


ESTIMATORS = (
    "counted calls", "adjusted count", "adjusted count, by molecules", "mean probability",
    "adjusted mean", "adjusted mean, by molecules", "likeliest", "expected, of all groups",
)  # fmt: skip


def estimates(p: Any, molecules: Any, group: Any, groups: int, known: Rates) -> dict[str, Any]:
    """Shares (G,) of the pairs of groups by every estimator, and the likeliest one's interval."""
    where = binned(molecules)

    def mean(values: Any) -> Any:
        return np.bincount(group, values, groups) / np.bincount(group, minlength=groups)

    found = {}
    for name, values, table in (
        ("count", (p >= known.threshold).astype(float), known.called),
        ("mean", p.astype(float), known.mean),
    ):
        plain = mean(values)
        low, high = table[-1]
        found["counted calls" if name == "count" else "mean probability"] = plain
        found[f"adjusted {name}"] = np.clip((plain - low) / (high - low), 0, 1)
        above, span = mean(values - table[where, 0]), mean(table[where, 1] - table[where, 0])
        found[f"adjusted {name}, by molecules"] = np.clip(above / span, 0, 1)
    counts = count_odds(p[:, None], [known.prior], group, groups)
    found["likeliest"], found["low"], found["high"] = (x[:, 0] for x in likeliest_shares(counts))
    found[ESTIMATORS[-1]] = expected_shares(counts)[:, 0]
    return found


def quantification(val: Set, tests: dict[Any, Set]) -> list[dict[str, Any]]:
    """Mean absolute error of shares: of drawn samples, of genes, and of whole sets."""
    curves = [platt(s, val.truth) for s in val.scores]
    known = []
    for seed, curve in enumerate(curves):
        p = curve(val.scores[seed])
        known.append([rates(p[:, k], val.truth[:, k], val.molecules) for k in range(p.shape[1])])
    test = tests.get(UNSEEN, tests[SEEN])
    rows = at_shares(test, [c(s) for c, s in zip(curves, test.scores, strict=True)], known)
    for key, one in tests.items():
        each = [c(s) for c, s in zip(curves, one.scores, strict=True)]
        rows += of_genes(one, each, known)
        if key in REAL:
            rows += of_sets(one, each, known)
    return rows


def errors_told(name: str, errors: dict[str, Any], freedom: int) -> list[dict[str, Any]]:
    """Lines of a table: errors (1 + B,) by estimator, and their differences from counting."""
    return [
        {"table": name, "estimator": e, "error": told(errors[e], freedom),
         "error - counted": told(errors[e] - errors[ESTIMATORS[0]], freedom, signed=True)}
        for e in ESTIMATORS
    ]  # fmt: skip


KINDS = {"any": (1, 10**9), "1 to 4": (1, 4), "10 or more": (10, 10**9)}


def at_shares(test: Set, each: list[Any], known: list[list[Rates]]) -> list[dict[str, Any]]:
    """Samples of 10 and 50 pairs of a test split, of every share, drawn from drawn cells."""
    rng = np.random.default_rng(0)
    replicates = DRAWS // 2
    tables = {(kind, n): {e: np.zeros(replicates) for e in (*ESTIMATORS, "held")}
              for kind in KINDS for n in (10, 50)}  # fmt: skip
    for b in range(replicates):
        weights = test.cells.weights[b][test.cells.of_pair]
        for (kind, n), table in tables.items():
            low, high = KINDS[kind]
            pairs = np.flatnonzero((test.molecules >= low) & (test.molecules <= high))
            for k in range(len(test.patterns)):
                chance = weights[pairs] * test.truth[pairs, k], weights[pairs] * ~test.truth[pairs, k]
                sizes = [round(n * share) for share in SHARES for _ in range(4)]
                drawn = np.concatenate([
                    np.r_[rng.choice(pairs, size, p=chance[0] / chance[0].sum()),
                          rng.choice(pairs, n - size, p=chance[1] / chance[1].sum())]
                    for size in sizes
                ])  # fmt: skip
                truth = np.array(sizes) / n
                group = np.repeat(np.arange(len(sizes)), n)
                for p, rate in zip(each, known, strict=True):
                    found = estimates(
                        p[drawn, k], test.molecules[drawn], group, len(sizes), rate[k]
                    )
                    weight = 1 / len(each) / len(test.patterns)
                    for e in ESTIMATORS:
                        table[e][b] += weight * np.abs(found[e] - truth).mean()
                    held = (found["low"] <= truth) & (truth <= found["high"])
                    table["held"][b] += weight * held.mean()
    rows = []
    freedom = test.cells.degrees_of_freedom

    def with_mean(values: Any) -> Any:
        return np.r_[values.mean(), values]

    whole = {e: np.mean([t[e] for t in tables.values()], axis=0) for e in (*ESTIMATORS, "held")}
    for (kind, n), table in {("all of these", ""): whole, **tables}.items():
        name = f"{test.name}: {kind}" + (f" molecules, {n} pairs" if n else "")
        rows += errors_told(name, {e: with_mean(table[e]) for e in ESTIMATORS}, freedom)
        rows[-2]["interval holds the share"] = round(float(table["held"].mean()), 3)
    return rows


def of_genes(test: Set, each: list[Any], known: list[list[Rates]]) -> list[dict[str, Any]]:
    """Genes with two or more labelled pairs, resampled."""
    code, _ = pd.factorize(test.labels["gene"])
    size = np.bincount(code)
    kept = size[code] > 1
    group, names = pd.factorize(code[kept])
    if len(names) < 3:
        return []
    count = np.bincount(group)
    errors = {e: np.zeros(len(names)) for e in ESTIMATORS}
    for k in range(len(test.patterns)):
        truth = np.bincount(group, test.truth[kept, k]) / count
        for p, rate in zip(each, known, strict=True):
            found = estimates(p[kept, k], test.molecules[kept], group, len(names), rate[k])
            for e in ESTIMATORS:
                errors[e] += np.abs(found[e] - truth) / len(each) / len(test.patterns)
    drawn = Resamples.of_genes(len(names)).weights
    means = {e: np.r_[v.mean(), drawn @ v / len(names)] for e, v in errors.items()}
    name = f"{test.name}: {len(names)} genes of {kept.sum() / len(names):.1f} pairs"
    return errors_told(name, means, len(names) - 1)


def of_sets(test: Set, each: list[Any], known: list[list[Rates]]) -> list[dict[str, Any]]:
    """All pairs of a set together, cells resampled; mean over the patterns."""
    drawn = test.of_pairs()[: DRAWS + 1].astype(int)
    errors = {e: np.zeros(len(drawn)) for e in ESTIMATORS}
    for b, weights in enumerate(drawn):
        pairs = np.repeat(np.arange(len(test.truth)), weights)
        for k in range(len(test.patterns)):
            truth = test.truth[pairs, k].mean()
            for p, rate in zip(each, known, strict=True):
                found = estimates(
                    p[pairs, k], test.molecules[pairs], np.zeros(len(pairs), int), 1, rate[k]
                )
                for e in ESTIMATORS:
                    errors[e][b] += abs(found[e][0] - truth) / len(each) / len(test.patterns)
    return errors_told(f"{test.name}: all pairs", errors, test.cells.degrees_of_freedom)


# Wrong calls


def confident(p: Any) -> float:
    """The lowest threshold above which the expected share of wrong calls is small; 2: none."""
    falling = np.sort(p)[::-1]
    wrong = np.cumsum(1 - falling) / np.arange(1, len(p) + 1)
    some = np.flatnonzero(wrong <= WRONG)
    return float(falling[some[-1]]) if len(some) else 2.0


def discoveries(val: Set, tests: dict[Any, Set]) -> list[dict[str, Any]]:
    """Share of calls that are wrong, by the probabilities and by the labels."""
    prior = val.truth.mean(0)
    sets = dict(tests)
    if all(key in tests for key in REAL):
        sets["gold"] = joined("both gold sets", [tests[key] for key in REAL])  # type: ignore[index]
    rows = []
    for test in sets.values():
        for name in ("threshold of val", "confident", "confident, shifted"):
            expected, wrong, made_ = [], [], []
            by_pattern = np.zeros((len(test.patterns), 2))
            for seed, s in enumerate(test.scores):
                curve = platt(val.scores[seed], val.truth)
                p, before = curve(s).astype(float), curve(val.scores[seed])
                if name == "confident, shifted":
                    p = shifted(p, prior)
                at = [
                    confident(p[:, k]) if name != "threshold of val"
                    else score_pattern(val.truth[:, k], before[:, k]).threshold
                    for k in range(len(test.patterns))
                ]  # fmt: skip
                called = p >= np.array(at)
                by_pattern += np.c_[(called & ~test.truth).sum(0), called.sum(0)]
                total = test.summed(called.sum(1))
                with np.errstate(invalid="ignore", divide="ignore"):
                    wrong.append(test.summed((called & ~test.truth).sum(1)) / total)
                expected.append(((1 - p) * called).sum() / max(called.sum(), 1))
                made_.append(called.mean())
            freedom = test.cells.degrees_of_freedom
            line = {
                "table": test.name, "calls": name, "called": round(float(np.mean(made_)), 3),
                "expected wrong": round(float(np.mean(expected)), 3),
                "wrong": told(np.nanmean(wrong, axis=0), freedom),
            }  # fmt: skip
            for k, pattern in enumerate(test.patterns):
                bad, all_ = by_pattern[k]
                line[pattern] = round(bad / all_, 3) if all_ else None
            rows.append(line)
    return rows


# Few molecules


def abstention(val: Set, tests: dict[Any, Set]) -> list[dict[str, Any]]:
    """AUC and balanced accuracy by molecules, then what abstaining does to the calls that remain."""
    sets = {"val": val, **tests}
    if all(key in tests for key in REAL):
        sets["gold"] = joined("both gold sets", [tests[key] for key in REAL])
    rows = []
    at = []
    for s in val.scores:
        p = platt(s, val.truth)(s)
        at.append(np.array([score_pattern(y, q).threshold for y, q in zip(val.truth.T, p.T, strict=True)]))
    least = 1
    for key, one in sets.items():
        where = binned(one.molecules)
        each = [platt(v, val.truth)(s) for v, s in zip(val.scores, one.scores, strict=True)]
        for b, low in enumerate(MOLECULES):
            inside = where == b
            if not inside.any():
                continue
            truth = one.truth[inside]
            auc = float(np.mean([macro_auc(truth, p[inside]) for p in each]))
            drawn = np.array([macro_auc(*taken(one, each[0], inside, r)) for r in range(DRAWS)])
            freedom = one.cells.degrees_of_freedom
            calls = [p[inside] >= t for p, t in zip(each, at, strict=True)]
            right, found = (np.mean([(c & truth).sum() / max(of(c).sum(), 1) for c in calls])
                            for of in (lambda c: c, lambda c, y=truth: y))  # fmt: skip
            rows.append({
                "table": one.name, "molecules": upper(b), "pairs": int(inside.sum()),
                "AUC": told(np.r_[auc, drawn - np.nanmean(drawn) + auc], freedom),
                "calls right": round(float(right), 3), "found": round(float(found), 3),
            })  # fmt: skip
            if key == "val" and right < ENOUGH:
                least = MOLECULES[b + 1]
    rows.append({"table": "least molecules", "molecules": str(least)})
    for one in sets.values():
        each = [platt(v, val.truth)(s).astype(float) for v, s in zip(val.scores, one.scores, strict=True)]
        few = np.repeat((one.molecules < least)[:, None], one.truth.shape[1], axis=1)
        for name in ("nothing", f"below {least} molecules", "as many near the threshold"):
            left, wrong, score = [], [], []
            for p, t in zip(each, at, strict=True):
                out = few & (name != "nothing")
                if name.startswith("as many"):
                    near = np.abs(log_odds(p) - log_odds(t))
                    out = near <= np.sort(near, axis=0)[max(few[:, 0].sum() - 1, 0)]
                    out &= few[:, 0].any()
                called = p >= t
                left.append(1 - out.mean())
                wrong.append(one.summed(((called != one.truth) & ~out).sum(1)) / one.summed((~out).sum(1)))
                score.append(np.mean([
                    2 * one.summed(c & y & ~o) / np.maximum(one.summed(c & ~o) + one.summed(y & ~o), 1)
                    for c, y, o in zip(called.T, one.truth.T, out.T, strict=True)
                ], axis=0))  # fmt: skip
            freedom = one.cells.degrees_of_freedom
            rows.append({
                "table": one.name, "abstains": name, "called or not": round(float(np.mean(left)), 3),
                "wrong": told(np.mean(wrong, axis=0), freedom), "F1": told(np.mean(score, axis=0), freedom),
            })  # fmt: skip
    return rows


def upper(b: int) -> str:
    """The name of a bin."""
    low = MOLECULES[b]
    if b + 1 == len(MOLECULES):
        return f"{low} or more"
    return str(low) if MOLECULES[b + 1] == low + 1 else f"{low} to {MOLECULES[b + 1] - 1}"


def taken(one: Set, p: Any, inside: Any, replicate: int) -> tuple[Any, Any]:
    """Labels and probabilities of the pairs of a bin in a replicate."""
    weights = one.cells.weights[replicate][one.cells.of_pair] * inside
    pairs = np.repeat(np.arange(len(p)), weights.astype(int))
    return one.truth[pairs], p[pairs]


def macro_auc(truth: Any, p: Any) -> float:
    """Mean AUC of the patterns that have one; NaN without."""
    each = [score_pattern(y, q).auc for y, q in zip(truth.T, p.T, strict=True)] if len(p) else []
    return float(np.nanmean(each)) if np.isfinite(each).any() else np.nan


PARTS: dict[str, Callable[[Set, dict[Any, Set]], list[dict[str, Any]]]] = {
    "calibration": calibration,
    "reliability": reliability,
    "thresholds": thresholds,
    "quantification": quantification,
    "discoveries": discoveries,
    "abstention": abstention,
}


if __name__ == "__main__":
    main()
