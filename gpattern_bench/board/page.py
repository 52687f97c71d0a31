"""The board's page: one HTML file that holds all it needs, a pure function of the submissions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Literal

from gpattern_bench.board.charts import Chart, Style, bins_chart, styles, time_chart, unit_chart
from gpattern_bench.board.gallery import Gallery, build_gallery
from gpattern_bench.board.submission import Score, Submission
from gpattern_bench.evaluate.curves import Curves
from gpattern_bench.evaluate.metrics import exact_mean

__all__ = ["Mark", "best_two", "build_page"]

Mark = Literal["best", "second"]
"""How a number is marked among those of its column."""

INPUTS = ("coordinates", "gene", "cell outline", "nucleus outline")
_COLUMNS = (("f1_macro", "F1"), ("auc_macro", "AUC"), ("acc_macro", "ACC"),
            ("f1_val_macro", "F1 (val)"), ("ap_macro", "AP"))  # fmt: skip
_OF_PATTERN = ("auc", "acc", "f1")
_FEW = 5  # scores in a tenth below which no share is drawn
_NAN = float("nan")
_NONE = "\N{EN DASH}"


def build_page(
    board: Mapping[str, Any], submissions: Sequence[Submission], protocols: Mapping[str, str]
) -> str:
    """``index.html`` of a board.

    Every text of a submission is escaped; numbers stand in tables, charts are inline SVG, and
    scripts only sort, filter and switch: the page is whole without them, and asks nothing of any
    network.

    Parameters
    ----------
    board : mapping
        As :func:`gpattern_bench.board.leaderboard.build_board` gives it.
    submissions : sequence of Submission
        Of which it was made: their curves and, of `synthetic`, their prediction files.
    protocols : mapping of str to str
        Protocol -> what it means, in words.
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
    environment.filters |= {"percent": percent, "seconds": seconds, "count": count}
    about = sorted((s.metadata for s in submissions if s.results), key=lambda m: m.method)
    drawn = styles((m.method, m.label, m.kind) for m in about)
    gallery = build_gallery(submissions)
    tables = [_table(table, submissions, drawn, protocols) for table in board["tables"]]
    names = list(dict.fromkeys(table["dataset"] for table in tables))
    return environment.get_template("page.html.j2").render(
        tables=tables,
        datasets=names,
        reported=[_reported(table) for table in board["reported"]],
        versions=board["versions"],
        methods=about,
        styles=drawn,
        inputs=INPUTS,
        gallery=gallery,
        reach=_reach(gallery),
        of_pattern=_OF_PATTERN,
        few=_FEW,
    )


def percent(value: float | None, form: str = ".2f") -> str:
    """A fraction in per cent; a dash where it is undefined."""
    return _NONE if value is None else f"{100 * value:{form}}".replace("-", "\N{MINUS SIGN}")


def best_two(printed: Iterable[str]) -> dict[str, Mark]:
    """Which of some printed numbers are the best and the second best; larger is better.

    Readers compare what is printed: numbers that are equal in print have the same mark, however
    they differ beyond it.

    >>> best_two(["90.00", "89.99", "90.00", "70.00"])
    {'90.00': 'best', '89.99': 'second'}
    """
    texts = dict.fromkeys(printed)
    ranks = sorted({float(text) for text in texts}, reverse=True)[:2]
    marks: dict[float, Mark] = dict(zip(ranks, ("best", "second"), strict=False))
    return {text: marks[value] for text in texts if (value := float(text)) in marks}


def seconds(value: float | None) -> str:
    """A duration as people say it."""
    if value is None:
        return _NONE
    if value < 100:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def count(value: int | None) -> str:
    """A number of parameters, to three digits."""
    if value is None:
        return _NONE
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def _table(
    table: Mapping[str, Any],
    submissions: Sequence[Submission],
    drawn: Mapping[str, Style],
    protocols: Mapping[str, str],
) -> dict[str, Any]:
    """One table of the board with what its section draws."""
    rows, found = [], []
    for row in table["rows"]:
        scores = _scores_of(row, table, submissions)
        rows.append(
            {
                **row,
                "style": drawn[row["method"]],
                "by_seed": [score["metrics"]["f1_macro"] for score in scores],
            }
        )
        found.append((rows[-1]["style"], scores[0]["curves"]))
    candidates = [row for row in rows if row["kind"] != "control"]
    patterns = list(rows[0]["per_pattern"])
    controls = [
        row for row in rows
        if row["kind"] == "control" and "labels" not in row["inputs"]
        and row["f1_macro"] is not None
    ]  # fmt: skip
    timed = [
        (row["style"], row["seconds"], row["f1_macro"])
        for row in rows
        if row["seconds"] is not None and row["f1_macro"] is not None
    ]
    leaders = [row for row in candidates if row["f1_macro"] is not None]
    return {
        **table,
        "id": f"{table['dataset']}-{table['version']}-{table['protocol']}",
        "protocol_text": protocols[table["protocol"]],
        "rows": rows,
        "patterns": patterns,
        "columns": [
            (metric, name)
            for metric, name in _COLUMNS
            if metric != "f1_val_macro" or any(row[metric] is not None for row in rows)
        ],
        "leader": leaders[0] if leaders else None,
        "tied": sum(r["tie_group"] == leaders[0]["tie_group"] for r in leaders) if leaders else 0,
        "control": controls[0] if controls else None,
        "marks": {metric: _marks([row[metric] for row in candidates]) for metric, _ in _COLUMNS},
        "pattern_marks": {
            (pattern, metric): _marks([row["per_pattern"][pattern][metric] for row in candidates])
            for pattern in patterns
            for metric in _OF_PATTERN
        },
        "has": {
            key: any(row[key] is not None for row in rows)
            for key in ("parameters", "fit_seconds", "date", "robustness")
        },
        "devices": sorted({row["device"] for row in rows if row["device"]}),
        "curves": [_curve_charts(pattern, found) for pattern in patterns],
        "molecules": _molecules(found),
        "time": time_chart(timed) if timed else None,
    }


def _scores_of(
    row: Mapping[str, Any], table: Mapping[str, Any], submissions: Iterable[Submission]
) -> list[Score]:
    """The results that a row is the mean of, by seed."""
    return sorted(
        (
            score
            for submission in submissions
            if submission.metadata.method == row["method"]
            for score in submission.results
            if (score["dataset"], score["version"]) == (table["dataset"], table["version"])
            and score["protocol"] in (table["protocol"], "untrained")
            and score["trained_on"] == row["trained_on"]
        ),
        key=lambda score: (score["seed"], score["predictions"]),
    )


def _marks(values: Iterable[float | None]) -> dict[str, Mark]:
    """Marks of fractions by how they are printed."""
    return best_two(percent(value) for value in values if value is not None)


def _curve_charts(pattern: str, found: Sequence[tuple[Style, Curves]]) -> dict[str, Any]:
    of_pattern = [(style, curves["per_pattern"][pattern]) for style, curves in found]
    return {
        "pattern": pattern,
        "roc": unit_chart(
            f"ROC, {pattern}", "false positive rate", "recall",
            [(style, c["roc"]) for style, c in of_pattern],
            guides=[[(0, 0), (1, 1)]],
        ),
        "pr": unit_chart(
            f"Precision and recall, {pattern}", "recall", "precision",
            [(style, c["pr"]) for style, c in of_pattern],
        ),
        "reliability": unit_chart(
            f"Reliability, {pattern}", "mean score", "share of positives",
            [
                (style, [point for point in c["reliability"] if point[2] >= _FEW])
                for style, c in of_pattern
            ],
            dots=True,
            guides=[[(0, 0), (1, 1)]],
        ),
    }  # fmt: skip


def _molecules(found: Sequence[tuple[Style, Curves]]) -> dict[str, Any]:
    """Macro F1 and AUC by molecules per pair: charts and the table below them."""
    bins = found[0][1]["molecules"]
    names = [one["molecules"] for one in bins]

    def macro(curves: Curves, metric: str) -> list[float | None]:
        values: list[dict[str, float | None]] = [b[metric] for b in curves["molecules"]]  # type: ignore[literal-required]
        return [_mean(value.values()) for value in values]

    rows = [
        {"style": style, "f1": macro(curves, "f1"), "auc": macro(curves, "auc")}
        for style, curves in found
    ]
    floors = macro(found[0][1], "floor")
    charts: list[Chart] = [
        bins_chart("F1", names, [(style, macro(c, "f1")) for style, c in found], floors),
        bins_chart("AUC", names, [(style, macro(c, "auc")) for style, c in found]),
    ]
    return {"bins": names, "n": [b["n"] for b in bins], "rows": rows, "floors": floors,
            "charts": charts}  # fmt: skip


def _mean(values: Iterable[float | None]) -> float | None:
    mean = exact_mean(_NAN if value is None else value for value in values)
    return None if mean != mean else mean


def _reach(gallery: Gallery | None) -> float:
    """Half the side of the square that holds any cell of the gallery, um."""
    pictures = gallery.pictures if gallery else ()
    rings = [ring for picture in pictures for ring in picture.boundary]
    return max((abs(value) for ring in rings for point in ring for value in point), default=0.0) + 1


def _reported(table: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset of the paper's table 2, best and second best marked."""
    marks = {}
    for metric in ("auc", "acc", "f1"):
        marks[metric] = best_two(row[metric] for row in table["rows"] if row[metric] is not None)
    return {**table, "marks": marks}
