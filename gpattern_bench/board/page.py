"""The board's page: one HTML file that holds all it needs, a pure function of the submissions."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, floor, isnan, nan
from typing import TYPE_CHECKING
from urllib.parse import quote

from gpattern_bench.base.html import templates
from gpattern_bench.base.version import __version__
from gpattern_bench.board import format as printed
from gpattern_bench.board.charts import Chart, Style, bins_chart, styles, time_chart, unit_chart
from gpattern_bench.board.format import Mark, best_two, percent, typeset
from gpattern_bench.board.gallery import Gallery, build_gallery
from gpattern_bench.board.leaderboard import PROTOCOLS, Board, ReportedRow, Row, Table
from gpattern_bench.board.overview import LEVELS, Overview, build_overview
from gpattern_bench.board.submission import Metadata, Score, Submission
from gpattern_bench.evaluate.curves import Curves
from gpattern_bench.evaluate.metrics import exact_mean
from gpattern_bench.methods import METHODS

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["build_page"]

_INPUTS = ("coordinates", "gene", "cell outline", "nucleus outline")
_COLUMNS = (("f1_macro", "F1", ""), ("auc_macro", "AUC", ""), ("acc_macro", "ACC", "acc"),
            ("f1_val_macro", "F1 (val)", "val"), ("ap_macro", "AP", "ap"))  # fmt: skip
_MORE = {
    "acc": "ACC", "val": "F1 (val)", "ap": "AP", "robust": "Worst F1 drop", "new": "F1, new cells",
    "seeds": "Seeds", "parameters": "Parameters", "fit": "Training", "predict": "Validation",
    "onebyone": "Cell by cell",
    "looks": "Looks at", "date": "Date",
}  # fmt: skip
"""Columns of the main tables that are shown on demand."""
_CSV = ("dataset", "version", "protocol", "method", "trained_on", "rank", "tie_group", "f1",
        "f1_low", "f1_high", "auc", "lift", "seconds")  # fmt: skip
_OF_PATTERN = ("auc", "acc", "f1")
_FEW = 5  # scores in a tenth below which no share is drawn


@dataclass(frozen=True)
class PatternCharts:
    """Curves of one pattern, a line per method."""

    pattern: str
    roc: Chart
    pr: Chart
    reliability: Chart


@dataclass(frozen=True)
class Molecules:
    """Macro F1 and AUC by molecules per pair: bins, their pairs, and values per row and bin."""

    bins: list[str]
    n: list[int]
    f1: list[list[float | None]]
    auc: list[list[float | None]]
    charts: tuple[Chart, Chart]


@dataclass(frozen=True)
class Section:
    """One table of the board, and what the page draws of it."""

    table: Table
    protocol: str  # in words
    patterns: list[str]
    columns: list[tuple[str, str, str]]  # macro metrics, headers, names of columns on demand
    by_seed: list[list[float | None]]  # macro F1, per row
    lines: list[Style]  # in charts, per row
    marks: dict[str, dict[str, Mark]]  # by macro metric
    pattern_marks: dict[tuple[str, str], dict[str, Mark]]  # by pattern and metric
    has: dict[str, bool]  # optional columns
    devices: list[str]
    curves: list[PatternCharts]
    molecules: Molecules
    time: Chart | None


@dataclass(frozen=True)
class Axis:
    """The axis of mean skill: its ends, and its ticks."""

    low: float
    high: float
    ticks: list[int]

    def at(self, value: float) -> str:
        """Give the place of a value, in per cent of the axis."""
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"


@dataclass(frozen=True)
class Standing:
    """A method's row in a table."""

    section: Section
    row: Row
    n_ranked: int


@dataclass(frozen=True)
class Profile:
    """All that the page has of a method: what it says, its rows, and how to run it."""

    about: Metadata
    standings: list[Standing]
    commands: list[str]
    versions: list[str]  # of its runs, in words


def build_page(board: Board, submissions: Sequence[Submission]) -> str:
    """Render ``index.html`` of a board.

    The page is whole without scripts, which only sort, filter and switch, and asks nothing of any
    network: charts are inline SVG, numbers stand in tables. Texts of submissions are escaped.

    Parameters
    ----------
    board : Board
    submissions : sequence of Submission
        Those of the board: their curves and, of `synthetic`, their prediction files are drawn.
    """
    about = sorted((s.metadata for s in submissions if s.results), key=lambda m: m.method)
    drawn = styles((m.method, m.label, m.kind) for m in about)
    gallery = build_gallery(submissions)
    overview = build_overview(board.tables)
    sections = [_section(table, submissions, drawn) for table in board.tables]
    return _template().render(
        overview=overview,
        levels=LEVELS,
        protocols=PROTOCOLS,
        runners=sorted({author for each in about for author in each.authors}),
        package=__version__,
        axis=_axis(overview),
        differences=_differences(overview),
        sections=sections,
        more=_MORE,
        datasets=list(dict.fromkeys(table.dataset for table in board.tables)),
        reported=[(table, _reported_marks(table["rows"])) for table in board.reported],
        versions=board.versions,
        methods=[_profile(each, sections) for each in about],
        date=max((row.date for t in board.tables for row in t.rows if row.date), default=None),
        csv=quote(_csv(board)),
        styles=drawn,
        inputs=_INPUTS,
        gallery=gallery,
        reach=_reach(gallery),
        of_pattern=_OF_PATTERN,
        few=_FEW,
        labelled_by=printed.LABELLED_BY,
    )


@cache
def _template() -> Template:
    environment = templates("gpattern_bench.board")
    environment.filters["whole"] = lambda value: typeset(f"{value:.0f}")
    for name in ("percent", "interval", "duration", "brief", "count"):
        environment.filters[name] = _typeset(getattr(printed, name))
    return environment.get_template("page.html.j2")


def _typeset(function: Callable[..., str]) -> Callable[..., str]:
    return lambda *args: typeset(function(*args))


def _axis(overview: Overview | None) -> Axis | None:
    found = [entry.skill for entry in overview.entries if entry.skill] if overview else []
    ends = [end for skill in found for pair in (skill.ci, skill.left_out) if pair for end in pair]
    if not ends:
        return None
    low, high = min(0.0, *ends) - 1, max(*ends, 20.0)
    return Axis(low, high, list(range(20 * ceil(low / 20), 20 * floor(high / 20) + 1, 20)))


def _differences(overview: Overview | None) -> str:
    """Write all comparisons of two methods for the script.

    Pairs end with ``;`` and tests, then the mean skill, with ``,``: difference and interval in
    points, nothing where a method was not run.
    """
    if overview is None:
        return ""
    names = [entry.method for entry in overview.entries]
    pairs = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            cells = [""] * (len(overview.tests) + 1)
            for found in overview.compare(one, other):
                at = len(overview.tests) if found.test is None else found.test
                cells[at] = " ".join(f"{v:.1f}" for v in (found.difference, *(found.ci or ())))
            pairs.append(",".join(cells))
    return ";".join(pairs)


def _profile(about: Metadata, sections: Sequence[Section]) -> Profile:
    standings = [
        Standing(section, row, sum(other.is_ranked for other in section.table.rows))
        for section in sections
        for row in section.table.rows
        if row.method == about.method
    ]
    commands = dict.fromkeys(
        _command(about.method, found.section.table, found.row) for found in standings
    )
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in found.row.versions.items())
        for found in standings
        if found.row.versions
    )
    own = list(commands) if about.method in METHODS else []
    return Profile(about, standings, own, list(versions))


def _command(method: str, table: Table, row: Row) -> str:
    words = ["gpattern-bench run", method, "--dataset", table.dataset]
    words += [f"--train-on {name}" for name in row.trained_on or ()]
    if table.protocol == "cv-cell" and row.labels_used is not None:
        words.append("--cv cell")
    return " ".join(words)


def _csv(board: Board) -> str:
    """Write the main numbers of every row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for table in board.tables:
        for row in table.rows:
            low, high = row.ci.get("f1_macro") or (None, None)
            writer.writerow([
                table.dataset, table.version, table.protocol, row.method,
                " ".join(row.trained_on or ()), row.rank, row.tie_group, row.f1, low, high,
                row.macro["auc_macro"], row.lift_f1, row.total_time,
            ])  # fmt: skip
    return text.getvalue()


def _section(table: Table, submissions: Sequence[Submission], drawn: dict[str, Style]) -> Section:
    rows = table.rows
    scores = [_scores_of(row, table, submissions) for row in rows]
    lines = [_line_style(row, rows, drawn) for row in rows]
    curves = [(line, of[0]["curves"]) for line, of in zip(lines, scores, strict=True)]
    candidates = [row for row in rows if row.is_ranked]
    patterns = list(rows[0].per_pattern)
    timed = [
        (line, row.prediction_time, row.f1)
        for line, row in zip(lines, rows, strict=True)
        if row.prediction_time is not None and row.f1 is not None
    ]
    return Section(
        table=table,
        protocol=PROTOCOLS[table.protocol],
        patterns=patterns,
        columns=[
            (metric, name, column)
            for metric, name, column in _COLUMNS
            if metric != "f1_val_macro" or any(row.macro[metric] is not None for row in rows)
        ],
        by_seed=[[score["metrics"]["f1_macro"] for score in of] for of in scores],
        lines=lines,
        marks={
            metric: _marks(row.macro[metric] for row in candidates) for metric, _, _ in _COLUMNS
        },
        pattern_marks={
            (pattern, metric): _marks(row.per_pattern[pattern][metric] for row in candidates)
            for pattern in patterns
            for metric in _OF_PATTERN
        },
        has={
            key: any(getattr(row, key) is not None for row in rows)
            for key in (
                "parameters",
                "fit_time",
                "date",
                "robustness",
                "new_cells",
                "one_by_one_time",
            )
        },
        devices=sorted({row.device for row in rows if row.device}),
        curves=[_pattern_charts(pattern, curves) for pattern in patterns],
        molecules=_molecules(curves),
        time=time_chart(timed) if timed else None,
    )


def _line_style(row: Row, rows: Iterable[Row], drawn: dict[str, Style]) -> Style:
    """Give a row's style; of a method with several rows the label tells the training data."""
    style = drawn[row.method]
    if sum(other.method == row.method for other in rows) == 1:
        return style
    training = ", ".join(row.trained_on or ("train split",))
    weight = [other for other in rows if other.method == row.method].index(row)
    return replace(
        style, label=f"{style.label} ({training})", classes=f"{style.classes} w{min(weight, 2)}"
    )


def _scores_of(row: Row, table: Table, submissions: Iterable[Submission]) -> list[Score]:
    """Collect the results that a row is the mean of, by seed."""
    return sorted(
        (
            score
            for submission in submissions
            if submission.metadata.method == row.method
            for score in submission.results
            if (score["dataset"], score["version"]) == (table.dataset, table.version)
            and score["protocol"] in (table.protocol, "untrained")
            and score["trained_on"] == row.trained_on
        ),
        key=lambda score: (score["seed"], score["predictions"]),
    )


def _marks(values: Iterable[float | None]) -> dict[str, Mark]:
    return best_two(None if value is None else percent(value) for value in values)


def _reported_marks(rows: Sequence[ReportedRow]) -> dict[str, dict[str, Mark]]:
    return {
        "auc": best_two(row["auc"] for row in rows),
        "acc": best_two(row["acc"] for row in rows),
        "f1": best_two(row["f1"] for row in rows),
    }


def _pattern_charts(pattern: str, found: Sequence[tuple[Style, Curves]]) -> PatternCharts:
    of_pattern = [(style, curves["per_pattern"][pattern]) for style, curves in found]
    return PatternCharts(
        pattern,
        roc=unit_chart(
            f"ROC, {pattern}", "false positive rate", "recall",
            [(style, c["roc"]) for style, c in of_pattern],
            guides=[[(0, 0), (1, 1)]],
        ),
        pr=unit_chart(
            f"Precision and recall, {pattern}", "recall", "precision",
            [(style, c["pr"]) for style, c in of_pattern],
        ),
        reliability=unit_chart(
            f"Reliability, {pattern}", "mean score", "share of positives",
            [
                (style, [point for point in c["reliability"] if point[2] >= _FEW])
                for style, c in of_pattern
            ],
            dots=True,
            guides=[[(0, 0), (1, 1)]],
        ),
    )  # fmt: skip


def _molecules(found: Sequence[tuple[Style, Curves]]) -> Molecules:
    bins = found[0][1]["molecules"]
    names = [one["molecules"] for one in bins]

    def macro(curves: Curves, metric: str) -> list[float | None]:
        values: list[dict[str, float | None]] = [b[metric] for b in curves["molecules"]]  # type: ignore[literal-required]
        return [_mean(value.values()) for value in values]

    f1, auc = ([macro(curves, metric) for _, curves in found] for metric in ("f1", "auc"))
    drawn = [style for style, _ in found]
    charts = (
        bins_chart("F1", names, zip(drawn, f1, strict=True), macro(found[0][1], "floor")),
        bins_chart("AUC", names, zip(drawn, auc, strict=True)),
    )
    return Molecules(names, [one["n"] for one in bins], f1, auc, charts)


def _mean(values: Iterable[float | None]) -> float | None:
    mean = exact_mean(nan if value is None else value for value in values)
    return None if isnan(mean) else mean


def _reach(gallery: Gallery | None) -> float:
    """Give half the side of a square that holds every cell of the gallery, um."""
    pictures = gallery.pictures if gallery else ()
    rings = [ring for picture in pictures for ring in picture.boundary]
    return max((abs(value) for ring in rings for point in ring for value in point), default=0.0) + 1
