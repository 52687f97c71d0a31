"""The leaderboard: a pure function of the submissions' results and the paper's reported rows."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan, nan
from typing import Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from gpattern_bench.base.files import plain
from gpattern_bench.board.challenge import Outcome
from gpattern_bench.board.metadata import CONTROLS
from gpattern_bench.board.submission import (
    MACROS,
    OF_PATTERN,
    Metadata,
    RobustnessSummary,
    Score,
    Submission,
)
from gpattern_bench.board.suspicions import falls_on_new_cells, near_labels
from gpattern_bench.errors import SubmissionError, UnknownDatasetError
from gpattern_bench.evaluate.bootstrap import interval, tie_groups
from gpattern_bench.evaluate.metrics import exact_mean
from gpattern_bench.sources.registry import find_entry

__all__ = ["PROTOCOLS", "Board", "ReportedRow", "ReportedTable", "Row", "Table", "build_board"]

PROTOCOLS = {
    "fit": "fitted on its own train split",
    "untrained": "by methods that learn nothing",
    "transfer": "fitted on another dataset",
    "simulation": "fitted on simulated cells",
    "cv-cell": "out of fold, 5 folds by cell",
}
"""Protocol -> how the methods of a table were fitted, in words."""
_LABELLER = "bento"  # the method whose published classifier labels datasets
_LEFT_OUT = (  # of a row of `leaderboard.json`, where there is none
    "std",
    "variant_of",
    "new_cells",
    "seconds_batch_1",
    "cpu_seconds_batch_1",
    "versions",
    "holds_fits",
)
_NOT_STORED = ("degrees_of_freedom", "replicates")  # of a table: results.json has them


class ReportedRow(TypedDict):
    """A row of the paper's table 2, as printed."""

    method: str
    auc: str | None
    acc: str | None
    f1: str | None
    time: str | None
    training: NotRequired[str | None]


class ReportedTable(TypedDict):
    """A dataset of the paper's table 2; ``datasets`` are ours of the same kind."""

    dataset: str
    datasets: NotRequired[list[str]]
    rows: list[ReportedRow]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method in one table, in the order of ``leaderboard.json``.

    Metrics are fractions, averaged over seeds, None = undefined. ``macro``, ``std`` (over seeds,
    None for one) and ``ci`` go by macro metric, ``per_pattern`` by pattern, then metric.
    ``status`` is "measured" or "not verified" (:mod:`gpattern_bench.board.verified`);
    ``new_cells`` the outcome on cells drawn after the submission
    (:mod:`gpattern_bench.board.challenge`). ``cpu_`` is processor time, None unless the run of
    every seed measured it; ``versions`` alike, several of one package with commas between.
    ``holds_fits`` is true if the prediction's time, out of fold, holds the fits of a seed.
    """

    rank: int | None = None
    tie_group: int | None = None
    lift_f1: float | None = None
    lift_f1_ci: list[float | None] | None = None
    method: str
    label: str
    kind: str
    status: str = "measured"
    submission_status: str
    variant_of: list[str]
    labels_used: list[str] | None
    inputs: list[str]
    no_rule_for: list[str]
    seeds: list[int]
    trained_on: tuple[str, ...] | None
    seconds: float | None
    fit_seconds: float | None
    device: str | None
    parameters: int | None
    date: str | None
    robustness: RobustnessSummary | None
    flags: list[str]
    macro: dict[str, float | None]
    std: dict[str, float | None] | None
    ci: dict[str, list[float | None]]
    per_pattern: dict[str, dict[str, float | None]]
    new_cells: Outcome | None = None
    seconds_batch_1: float | None = None
    cpu_seconds: float | None = None
    cpu_fit_seconds: float | None = None
    cpu_seconds_batch_1: float | None = None
    versions: dict[str, str] | None = None
    holds_fits: bool = False

    @property
    def f1(self) -> float | None:
        """Macro F1."""
        return self.macro["f1_macro"]

    @property
    def by_clock(self) -> bool:
        """Whether its times are by the clock, for want of processor time."""
        return self.seconds is not None and self.cpu_seconds is None

    @property
    def fit_time(self) -> float | None:
        """Seconds of the fit, as the board shows them: of the processor, or else by the clock."""
        return self.fit_seconds if self.cpu_seconds is None else self.cpu_fit_seconds

    @property
    def prediction_time(self) -> float | None:
        """Seconds of predicting the test split, alike."""
        return self.seconds if self.cpu_seconds is None else self.cpu_seconds

    @property
    def one_by_one_time(self) -> float | None:
        """Seconds of predicting it cell by cell, alike."""
        return self.seconds_batch_1 if self.cpu_seconds is None else self.cpu_seconds_batch_1

    @property
    def total_time(self) -> float | None:
        """Seconds of fit and prediction, alike."""
        time = self.prediction_time
        return None if time is None else (self.fit_time or 0.0) + time

    @property
    def is_control(self) -> bool:
        """Whether it is a control or sees the labels, and so has no rank."""
        return self.kind == "control" or self.sees_labels

    @property
    def is_reference(self) -> bool:
        """Whether lift may be measured from it: a control of the package, blind to the labels."""
        return self.method in CONTROLS and self.is_control and not self.sees_labels

    @property
    def is_ranked(self) -> bool:
        """Whether it has a rank: candidates whose scores can be trusted."""
        return not self.is_control and self.is_verified

    @property
    def is_verified(self) -> bool:
        """Whether its scores are computed again by every check, or were by a maintainer."""
        return self.status == "measured"

    @property
    def sees_labels(self) -> bool:
        """Whether the method is shown the labels."""
        return "labels" in self.inputs

    def to_json(self) -> dict[str, Any]:
        """Give the row of ``leaderboard.json``: macro metrics are keys of their own."""
        found: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if key == "macro":
                found |= value
            elif value or key not in _LEFT_OUT:
                found[key] = value
        return found


@dataclass(frozen=True)
class Table:
    """The methods of one dataset version that were fitted in one way.

    ``labelled_by``: the classifier whose calls the labels are, None if they are of other origin.
    ``replicates`` are those of each row's macro F1, which are too many for ``leaderboard.json``.
    """

    dataset: str
    version: str
    protocol: str
    labels_sha256: str
    n: int
    floor: float
    n_clusters: int
    clusters: str
    rows: list[Row]
    degrees_of_freedom: int
    replicates: list[NDArray[np.float64]] = field(repr=False, compare=False)
    labelled_by: str | None = None

    @property
    def id(self) -> str:
        """Where it stands on the page."""
        return f"{self.dataset}-{self.version}-{self.protocol}"

    def to_json(self) -> dict[str, Any]:
        """Give the table of ``leaderboard.json``."""
        kept = {key: value for key, value in vars(self).items() if key not in _NOT_STORED}
        if self.labelled_by is None:
            del kept["labelled_by"]
        return kept | {"rows": [row.to_json() for row in self.rows]}


@dataclass(frozen=True)
class Board:
    """All tables, the paper's rows, and the versions that reproduce the scores."""

    versions: str | None
    tables: list[Table]
    reported: list[ReportedTable]

    def to_json(self) -> dict[str, Any]:
        """Give what ``leaderboard.json`` holds; null = undefined."""
        return {"format": 1, **vars(self), "tables": [table.to_json() for table in self.tables]}


def build_board(
    submissions: Sequence[Submission],
    reported: Sequence[ReportedTable] = (),
    versions: str | None = None,
    unverified: Collection[tuple[str, str]] = (),
    outcomes: Sequence[Outcome] = (),
) -> Board:
    """Put stored results into tables, one per dataset version and protocol.

    Bento has no row where the labels are the calls of its own classifier.

    Parameters
    ----------
    submissions : sequence of Submission
        Their results must belong to their files (:meth:`Submission.stale`). Withdrawn ones are
        left out.
    reported : sequence of ReportedTable
        The paper's table 2; never mixed with measured rows.
    versions : str, optional
        Versions that reproduce the scores
        (:func:`gpattern_bench.board.publish.read_versions`).
    unverified : collection of (str, str)
        Method and file of results that have no rank
        (:func:`gpattern_bench.board.verified.unverified`).
    outcomes : sequence of Outcome
        Of challenges (:func:`gpattern_bench.board.challenge.read_outcomes`).

    Raises
    ------
    SubmissionError
        Results of one dataset version were scored on different labels.
    """
    scored = [
        (sub.metadata, score)
        for sub in submissions
        if sub.metadata.status != "withdrawn"
        for score in sub.results
        if sub.metadata.method != _LABELLER or _labelled_by(_version_of(score)) is None
    ]
    tables = []
    for version in sorted({_version_of(score) for _, score in scored}):
        here = [(about, score) for about, score in scored if _version_of(score) == version]
        _check_same_labels(version, [score for _, score in here])
        protocols = sorted({score["protocol"] for _, score in here} - {"untrained"})
        made = [_table(here, protocol, unverified) for protocol in protocols or ["untrained"]]
        tables += [_suspected(table, here, outcomes) for table in made]
    return Board(versions, tables, list(reported))


def _version_of(score: Score) -> tuple[str, str]:
    return score["dataset"], score["version"]


def _labelled_by(version: tuple[str, str]) -> str | None:
    """Name the classifier that made a dataset's labels; None if there is none, or unknown."""
    try:
        return find_entry("@".join(version)).labelled_by
    except UnknownDatasetError:
        return None


def _check_same_labels(version: tuple[str, str], scores: Sequence[Score]) -> None:
    hashes = {score["labels_sha256"]: score["predictions"] for score in scores}
    if len(hashes) > 1:
        listed = ", ".join(f"{path}: {sha[:12]}" for sha, path in sorted(hashes.items()))
        raise SubmissionError(
            "@".join(version),
            [f"results were scored on different labels ({listed}); run leaderboard --rescore"],
        )


def _table(
    scored: Sequence[tuple[Metadata, Score]],
    protocol: str,
    unverified: Collection[tuple[str, str]],
) -> Table:
    """Make the table of a protocol from all scores of a dataset version."""
    seeds: dict[tuple[str, tuple[str, ...]], tuple[Metadata, list[Score]]] = {}
    for about, score in scored:
        if score["protocol"] in (protocol, "untrained"):
            key = about.method, tuple(score["trained_on"] or ())
            seeds.setdefault(key, (about, []))[1].append(score)
    entries = [seeds[key] for key in sorted(seeds)]
    first = scored[0][1]
    metrics = first["metrics"]
    rows, replicates = _ranked(
        [_row(about, scores, unverified) for about, scores in entries],
        [_replicates(scores) for _, scores in entries],
        first["degrees_of_freedom"],
    )
    return Table(
        dataset=first["dataset"],
        version=first["version"],
        protocol=protocol,
        labels_sha256=first["labels_sha256"],
        n=metrics["n"],
        floor=exact_mean(values["floor"] for values in metrics["per_pattern"].values()),
        n_clusters=metrics["n_clusters"],
        clusters=metrics["clusters"],
        rows=rows,
        degrees_of_freedom=first["degrees_of_freedom"],
        replicates=replicates,
        labelled_by=_labelled_by(_version_of(first)),
    )


def _row(about: Metadata, entries: Sequence[Score], unverified: Collection[tuple[str, str]]) -> Row:
    """Average a method's results over its seeds."""
    typed = any((about.method, entry["predictions"]) in unverified for entry in entries)
    entries = sorted(entries, key=lambda entry: entry["seed"])
    metrics: list[Any] = [entry["metrics"] for entry in entries]
    patterns = list(metrics[0]["per_pattern"])
    values = {key: [_number(found.get(key)) for found in metrics] for key in MACROS}
    several, rules = len(entries) > 1, about.rules_for
    robust = [found for entry in entries if (found := entry["robustness"])]
    return Row(
        method=about.method,
        label=about.label,
        kind=about.kind,
        status="not verified" if typed else "measured",
        submission_status=about.status,
        variant_of=list(about.variant_of),
        labels_used=None if about.trained_on is None else list(about.trained_on),
        inputs=list(about.inputs),
        no_rule_for=[] if rules is None else [name for name in patterns if name not in rules],
        seeds=[entry["seed"] for entry in entries],
        trained_on=entries[0]["trained_on"],
        seconds=_mean(v for entry in entries if (v := entry["seconds"]) is not None),
        seconds_batch_1=_mean(v for e in entries if (v := e.get("seconds_batch_1")) is not None),
        fit_seconds=_mean(v for entry in entries if (v := entry["fit_seconds"]) is not None),
        cpu_seconds=_mean_of_all(entry.get("cpu_seconds") for entry in entries),
        cpu_fit_seconds=_mean_of_all(entry.get("cpu_fit_seconds") for entry in entries),
        cpu_seconds_batch_1=_mean_of_all(entry.get("cpu_seconds_batch_1") for entry in entries),
        versions=_joined_versions([entry.get("versions") for entry in entries]),
        holds_fits=any(
            entry["protocol"] == "cv-cell"
            and entry["fit_seconds"] is None
            and entry["seconds"] is not None
            for entry in entries
        ),
        device=entries[0]["device"],
        parameters=next((v for e in entries if (v := e["parameters"]) is not None), None),
        date=max((date for entry in entries if (date := entry["date"])), default=None),
        robustness=_worst(robust) if robust else None,
        flags=sorted({flag for entry in entries for flag in entry["flags"]}),
        macro={key: _mean(found) for key, found in values.items()},
        # Over seeds: sample standard deviation.
        std={k: plain(float(np.std(v, ddof=1))) for k, v in values.items()} if several else None,
        # Of several seeds the mean of their intervals: they rest on the same cells.
        ci={
            key: [_mean(_number(found["ci"][key][end]) for found in metrics) for end in (0, 1)]
            for key in MACROS
            if all(key in found["ci"] for found in metrics)
        },
        per_pattern={
            pattern: {
                key: _mean(_number(found["per_pattern"][pattern].get(key)) for found in metrics)
                for key in OF_PATTERN
            }
            for pattern in patterns
        },
    )


def _suspected(
    table: Table, scored: Sequence[tuple[Metadata, Score]], outcomes: Sequence[Outcome]
) -> Table:
    """Add outcomes on new cells, and the flags that rest on those or on all of `scored`."""
    version = table.dataset, table.version
    drawn = {o["method"]: o for o in outcomes if (o["dataset"], o["version"]) == version}
    rows = []
    for row in table.rows:
        # New cells are of the table's dataset: of a method fitted elsewhere they say nothing.
        new = drawn.get(row.method) if row.trained_on is None else None
        flags = falls_on_new_cells(row.ci.get("f1_macro"), new)
        if not row.sees_labels:
            flags += near_labels(row.method, row.macro, scored)
        rows.append(replace(row, new_cells=new, flags=sorted({*row.flags, *flags})))
    return replace(table, rows=rows)


def _mean(values: Iterable[float]) -> float | None:
    mean: float | None = plain(exact_mean(values))
    return mean


def _mean_of_all(values: Iterable[float | None]) -> float | None:
    """Average values; None if one is missing."""
    found = list(values)
    return None if None in found else _mean(value for value in found if value is not None)


def _joined_versions(found: Sequence[dict[str, str] | None]) -> dict[str, str] | None:
    """Join the versions of all seeds; None if one is missing."""
    known = [versions for versions in found if versions is not None]
    if len(known) < len(found):
        return None
    each: dict[str, set[str]] = {}
    for versions in known:
        for package, version in versions.items():
            each.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(each[package])) for package in sorted(each)}


def _worst(found: Sequence[RobustnessSummary]) -> RobustnessSummary:
    return {
        "f1_worst_drop": max(each["f1_worst_drop"] for each in found),
        "largest_change": max(each["largest_change"] for each in found),
    }


def _replicates(entries: Sequence[Score]) -> NDArray[np.float64]:
    """Average the bootstrap replicates of a method's macro F1 over its seeds."""
    decoded = [np.frombuffer(b64decode(entry["f1_replicates"]), "<f4") for entry in entries]
    mean: NDArray[np.float64] = np.stack(decoded).astype(np.float64).mean(axis=0)
    return mean


def _ranked(
    rows: Sequence[Row], replicates: Sequence[NDArray[np.float64]], freedom: int
) -> tuple[list[Row], list[NDArray[np.float64]]]:
    """Sort rows by F1, undefined ones and those not verified last; add rank, tie group and lift.

    The replicates come back in the order of the rows.

    Tie groups leave out methods that see the labels, lift is over the package's own controls, and
    both leave out rows that are not verified.
    """
    f1 = [_number(row.f1) for row in rows]
    blind = [i for i, row in enumerate(rows) if not row.sees_labels and row.is_verified]
    controls = [i for i in blind if rows[i].is_reference and not isnan(f1[i])]
    best = max(controls, key=lambda i: f1[i], default=None)
    groups = tie_groups(
        {str(i): f1[i] for i in blind}, {str(i): replicates[i] for i in blind}, freedom
    )

    def order(i: int) -> tuple[bool, bool, float, str]:
        f1_of = 0.0 if isnan(f1[i]) else -f1[i]
        return not rows[i].is_verified, isnan(f1[i]), f1_of, rows[i].method

    rank = 0
    ranked = []
    places = sorted(range(len(rows)), key=order)
    for i in places:
        row = replace(rows[i], tie_group=groups.get(str(i)))
        if row.is_ranked:
            rank += 1
            row = replace(row, rank=rank)
            if best is not None and not isnan(f1[i]):
                lift = f1[i] - f1[best]
                drawn = interval(
                    lift, replicates[i] - replicates[best], freedom, (-1.0, 1.0), biased=True
                )
                row = replace(row, lift_f1=lift, lift_f1_ci=[plain(end) for end in drawn])
        ranked.append(row)
    return ranked, [replicates[i] for i in places]


def _number(value: float | None) -> float:
    return nan if value is None else float(value)
