"""The board's page: one HTML file that holds all it needs, a pure function of the submissions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from math import isnan, nan

from gpattern_bench.board import format as printed
from gpattern_bench.board.charts import Chart, Style, bins_chart, styles, time_chart, unit_chart
from gpattern_bench.board.format import Mark, best_two, percent, typeset
from gpattern_bench.board.gallery import Gallery, build_gallery
from gpattern_bench.board.leaderboard import PROTOCOLS, Board, ReportedRow, Row, Table
from gpattern_bench.board.submission import Score, Submission
from gpattern_bench.evaluate.curves import Curves
from gpattern_bench.evaluate.metrics import exact_mean

__all__ = ["build_page"]

_INPUTS = ("coordinates", "gene", "cell outline", "nucleus outline")
_COLUMNS = (("f1_macro", "F1"), ("auc_macro", "AUC"), ("acc_macro", "ACC"),
            ("f1_val_macro", "F1 (val)"), ("ap_macro", "AP"))  # fmt: skip
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
    id: str
    protocol: str  # in words
    patterns: list[str]
    columns: list[tuple[str, str]]  # macro metrics and their headers
    by_seed: list[list[float | None]]  # macro F1, per row
    lines: list[Style]  # in charts, per row
    leader: Row | None  # the best candidate
    tied: int  # candidates of the leader's tie group
    control: Row | None  # the best that does not see the labels
    marks: dict[str, dict[str, Mark]]  # by macro metric
    pattern_marks: dict[tuple[str, str], dict[str, Mark]]  # by pattern and metric
    has: dict[str, bool]  # optional columns
    devices: list[str]
    curves: list[PatternCharts]
    molecules: Molecules
    time: Chart | None


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
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(lambda name: (files(__package__) / name).read_text("utf-8")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("percent", "interval", "duration", "count"):
        environment.filters[name] = _typeset(getattr(printed, name))
    about = sorted((s.metadata for s in submissions if s.results), key=lambda m: m.method)
    drawn = styles((m.method, m.label, m.kind) for m in about)
    gallery = build_gallery(submissions)
    return environment.get_template("page.html.j2").render(
        sections=[_section(table, submissions, drawn) for table in board.tables],
        datasets=list(dict.fromkeys(table.dataset for table in board.tables)),
        reported=[(table, _reported_marks(table["rows"])) for table in board.reported],
        versions=board.versions,
        methods=about,
        styles=drawn,
        inputs=_INPUTS,
        gallery=gallery,
        reach=_reach(gallery),
        of_pattern=_OF_PATTERN,
        few=_FEW,
        labelled_by=printed.LABELLED_BY,
    )


def _typeset(function: Callable[..., str]) -> Callable[..., str]:
    return lambda *args: typeset(function(*args))


def _section(table: Table, submissions: Sequence[Submission], drawn: dict[str, Style]) -> Section:
    rows = table.rows
    scores = [_scores_of(row, table, submissions) for row in rows]
    lines = [_line_style(row, rows, drawn) for row in rows]
    curves = [(line, of[0]["curves"]) for line, of in zip(lines, scores, strict=True)]
    candidates = [row for row in rows if row.is_ranked]
    patterns = list(rows[0].per_pattern)
    leaders = [row for row in candidates if row.f1 is not None]
    controls = [row for row in rows if row.is_reference and row.is_verified]
    timed = [
        (line, row.seconds, row.f1)
        for line, row in zip(lines, rows, strict=True)
        if row.seconds is not None and row.f1 is not None
    ]
    return Section(
        table=table,
        id=f"{table.dataset}-{table.version}-{table.protocol}",
        protocol=PROTOCOLS[table.protocol],
        patterns=patterns,
        columns=[
            (metric, name)
            for metric, name in _COLUMNS
            if metric != "f1_val_macro" or any(row.macro[metric] is not None for row in rows)
        ],
        by_seed=[[score["metrics"]["f1_macro"] for score in of] for of in scores],
        lines=lines,
        leader=next(iter(leaders), None),
        tied=sum(row.tie_group == leaders[0].tie_group for row in leaders),
        control=next((row for row in controls if row.f1 is not None), None),
        marks={metric: _marks(row.macro[metric] for row in candidates) for metric, _ in _COLUMNS},
        pattern_marks={
            (pattern, metric): _marks(row.per_pattern[pattern][metric] for row in candidates)
            for pattern in patterns
            for metric in _OF_PATTERN
        },
        has={
            key: any(getattr(row, key) is not None for row in rows)
            for key in (
                "parameters",
                "fit_seconds",
                "date",
                "robustness",
                "new_cells",
                "seconds_batch_1",
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
    return replace(style, label=f"{style.label} ({training})")


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
