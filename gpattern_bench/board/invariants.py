"""Invariants: what holds of every result that was computed, and seldom of one that was typed.

They need no dataset, so `leaderboard --check` finds most false numbers anywhere; only computing the
scores again finds all.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from math import isclose, isnan, nan
from typing import Any

import numpy as np

from gpattern_bench.board.submission import Score, Submission, origin_of
from gpattern_bench.errors import UnknownDatasetError
from gpattern_bench.evaluate.bootstrap import interval
from gpattern_bench.evaluate.metrics import exact_mean
from gpattern_bench.sources.registry import Entry, find_entry

__all__ = ["impossible"]

_MACRO = {
    "auc_macro": "auc",
    "acc_macro": "acc",
    "f1_macro": "f1",
    "ap_macro": "ap",
    "f1_val_macro": "f1_val",
    "acc_val_macro": "acc_val",
}
_ROUNDING = 1e-9  # of sums in another order
_DRAWN = 1e-5  # replicates are stored as float32
_MOST = 5  # problems told of one result


def impossible(submissions: Sequence[Submission]) -> list[str]:
    """Name stored results that no scoring can have given.

    Of each result: its name is that of its training, its dataset version is registered, counts are
    those of the registry's labels, each metric follows from the others where it does, each value
    lies in its interval, macro averages are means, curves belong to the counts. All results of a
    dataset version rest on the same clusters.
    """
    problems = []
    clusters: dict[tuple[str, str], tuple[object, str]] = {}
    for submission in submissions:
        seen: set[str] = set()
        for score in submission.results:
            where = f"{submission.folder.name}/{score['predictions']}"
            found = list(_problems(submission, score))
            if score["predictions"] in seen:
                found.append("its results are stored twice")
            seen.add(score["predictions"])
            metrics = score["metrics"]
            key = score["dataset"], score["version"]
            rest = (metrics["n_clusters"], metrics["clusters"], score["degrees_of_freedom"])
            first, other = clusters.setdefault(key, (rest, where))
            if rest != first:
                found.append(f"rests on other clusters than {other}")
            problems += [f"{where}: {text}" for text in found[:_MOST]]
            if len(found) > _MOST:
                problems.append(f"{where}: and {len(found) - _MOST} more of this kind")
    return problems


def _problems(submission: Submission, score: Score) -> Iterator[str]:
    origin = origin_of(submission.metadata.method, score)
    named = f"predictions/{origin.dataset}/{origin.stem('test')}.parquet"
    if score["predictions"] != named or score["split"] != "test":
        yield f"its dataset, seed, protocol and training give it the name {named}"
    try:
        entry = find_entry(f"{score['dataset']}@{score['version']}")
    except UnknownDatasetError as error:
        yield f"{error} The board has registered datasets only"
        return
    metrics: Mapping[str, Any] = score["metrics"]
    for flag in set(submission.suspicions(metrics["auc_macro"])) - set(score["flags"]):
        yield f"the flag is missing: {flag}"
    patterns = metrics["per_pattern"]
    if sorted(patterns) != sorted(entry.recipe.patterns):
        yield f"patterns are {', '.join(patterns)}, those of {entry.id} are " + ", ".join(
            entry.recipe.patterns
        )
        return
    n = metrics["n"]
    if entry.test and n != entry.test["pairs"]:
        yield f"n is {n}, the test split of {entry.id} has {entry.test['pairs']} pairs"
    for pattern, values in patterns.items():
        for problem in _of_pattern(values, n, entry, pattern):
            yield f"{pattern}: {problem}"
    yield from _macros(metrics, patterns)
    yield from _curves(score, patterns, n)
    yield from _replicates(score)


def _macros(metrics: Mapping[str, Any], patterns: Mapping[str, Any]) -> Iterator[str]:
    for key, metric in _MACRO.items():
        if key not in metrics and all(metric not in values for values in patterns.values()):
            continue  # without val scores
        mean = exact_mean(_number(values.get(metric)) for values in patterns.values())
        if not _equal(metrics.get(key), mean):
            yield f"{key} is {metrics.get(key)}, the mean of its patterns is {_shown(mean)}"
    accuracies = [v["acc"] for v in patterns.values() if v.get("acc") is not None]
    subset = metrics["accuracy_subset"]
    if (subset is None) != (not accuracies) or (
        accuracies and subset is not None and subset > min(accuracies) + _ROUNDING
    ):
        yield f"accuracy_subset is {subset}, above the accuracy of a pattern or not defined"
    if "f1_val_macro" in metrics:
        gap = _number(metrics["f1_macro"]) - _number(metrics["f1_val_macro"])
        if not _equal(metrics.get("f1_gap_macro"), gap):
            yield f"f1_gap_macro is {metrics.get('f1_gap_macro')}, expected {_shown(gap)}"
    missing = {*_MACRO, "accuracy_subset", "f1_gap_macro"} & metrics.keys() - metrics["ci"].keys()
    if missing:
        yield f"no interval of {', '.join(sorted(missing))}"
    for key, ends in metrics["ci"].items():
        if not _inside(metrics.get(key), ends):
            yield f"{key} is {metrics.get(key)}, outside its interval {ends}"


def _of_pattern(values: Mapping[str, Any], n: int, entry: Entry, pattern: str) -> Iterator[str]:
    positives = values.get("n_positive")
    if values.get("n") != n or not isinstance(positives, int) or not 0 <= positives <= n:
        yield f"n and n_positive are {values.get('n')} and {positives}, of {n} pairs"
        return
    if entry.test and positives != entry.test[pattern]:
        yield f"n_positive is {positives}, the labels of {entry.id} have {entry.test[pattern]}"
    floor = 2 * positives / (n + positives) if n else nan
    for key, expected in (("prevalence", positives / n if n else nan), ("floor", floor)):
        if not _equal(values.get(key), expected):
            yield f"{key} is {values.get(key)}, expected {_shown(expected)}"
    ci = values.get("ci") or {}
    if missing := {*_MACRO.values(), "precision", "recall"} & values.keys() - ci.keys():
        yield f"no interval of {', '.join(sorted(missing))}"
    for key, ends in ci.items():
        if not _inside(values.get(key), ends):
            yield f"{key} is {values.get(key)}, outside its interval {ends}"
    threshold, threshold_val = values.get("threshold"), values.get("threshold_val")
    for key, value in (("threshold", threshold), ("threshold_val", threshold_val)):
        if value is not None and not (_is_number(value) and 0 <= value <= 1):
            yield f"{key} is {value}, expected a number from 0 to 1"
    needs = dict.fromkeys(("f1", "acc", "ap", "precision", "recall", "threshold"), positives > 0)
    needs["auc"] = 0 < positives < n
    for key, needed in needs.items():
        if (values.get(key) is not None) != needed:
            yield f"{key} is {values.get(key)}, with {positives} of {n} pairs positive"
            return
    if positives:
        yield from _at_threshold(values, n, positives, floor)


def _at_threshold(values: Mapping[str, Any], n: int, positives: int, floor: float) -> Iterator[str]:
    """Check that whole numbers of pairs give precision, recall, F1 and accuracy."""
    f1, acc, precision, recall = (values[key] for key in ("f1", "acc", "precision", "recall"))
    tp = round(recall * positives)
    called = round(tp / precision) if precision > tp / (n + 1) else 0
    expected = {
        "recall": tp / positives,
        "precision": tp / called if called else nan,
        "f1": 2 * tp / (called + positives),
        "acc": (n - positives - called + 2 * tp) / n,
    }
    for key, value in expected.items():
        if not _equal(values[key], value) or not 0 <= tp <= called <= n:
            yield (
                f"precision {precision}, recall {recall}, F1 {f1} and accuracy {acc} are not of "
                f"whole numbers of pairs ({key} would be {_shown(value)})"
            )
            return
    if f1 < floor - _ROUNDING:
        yield f"the largest F1 is {f1}, below that of calling all positive, {floor}"
    f1_val = values.get("f1_val")
    if f1_val is not None and f1_val > f1 + _ROUNDING:
        yield f"f1_val is {f1_val}, above the largest F1, {f1}"


def _curves(score: Score, patterns: Mapping[str, Any], n: int) -> Iterator[str]:
    curves = score["curves"]
    if sorted(curves["per_pattern"]) != sorted(patterns):
        yield "curves are of other patterns"
        return
    for pattern, found in curves["per_pattern"].items():
        points = [*found["roc"], *found["pr"], *(point[:2] for point in found["reliability"])]
        fits = all(len(p) == 2 and all(_is_number(v) and 0 <= v <= 1 for v in p) for p in points)
        counts = [point[2] if len(point) == 3 else -1 for point in found["reliability"]]
        if not fits or min(counts, default=0) < 0 or sum(counts) != n:
            yield f"{pattern}: curves with values outside 0 to 1, or of another number of pairs"
    for one in curves["molecules"]:
        for metric in ("f1", "auc", "floor"):
            of: Mapping[str, float | None] = one[metric]
            shares = [value for value in of.values() if value is not None]
            if sorted(of) != sorted(patterns) or not all(0 <= v <= 1 for v in shares):
                yield f"{metric} by molecules: other patterns, or values outside 0 to 1"
    if sum(one["n"] for one in curves["molecules"]) != n:
        yield f"the pairs by molecules are not {n} together"


def _replicates(score: Score) -> Iterator[str]:
    """Compare the interval of macro F1 with that of its replicates, which decide ties."""
    f1, ends = score["metrics"]["f1_macro"], score["metrics"]["ci"].get("f1_macro")
    drawn = np.frombuffer(b64decode(score["f1_replicates"]), "<f4").astype(np.float64)
    expected = interval(_number(f1), drawn, score["degrees_of_freedom"], biased=True)
    stored = [nan, nan] if ends is None else [_number(end) for end in ends]
    if not all(_equal(a, b, _DRAWN) for a, b in zip(stored, expected, strict=True)):
        shown = ", ".join(map(_shown, expected))
        yield f"the interval of f1_macro is {ends}, its replicates give [{shown}]"


def _inside(value: Any, ends: Sequence[float | None]) -> bool:
    """Test whether a value lies in its interval; one that is not defined holds all."""
    low, high = (_number(end) for end in ends)
    if isnan(low) or isnan(high):
        return isnan(low) and isnan(high)
    return _is_number(value) and low - _ROUNDING <= value <= high + _ROUNDING


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -1e9 < value < 1e9  # not NaN, and no integer beyond floats


def _number(value: float | None) -> float:
    return nan if value is None else float(value)


def _equal(stored: float | None, expected: float, tolerance: float = _ROUNDING) -> bool:
    value = _number(stored)
    if isnan(value) or isnan(expected):
        return isnan(value) and isnan(expected)
    return isclose(value, expected, rel_tol=0, abs_tol=tolerance)


def _shown(value: float) -> str:
    return "not defined" if isnan(value) else f"{value:.6g}"
