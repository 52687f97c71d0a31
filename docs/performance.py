"""The page of times and memory: ``performance.md.j2``, filled in from the records of benchmarks.

Run ``python docs/performance.py`` after a record in ``benchmarks/results`` or the template changes;
a test compares. A section whose record lacks says which script makes it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment

from gpattern_bench.base.files import write_text

__all__ = ["make"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
TEMPLATE = PAGE.with_name("performance.md.j2")
BENCHMARKS = ROOT / "benchmarks"

Row = Mapping[str, Any]


class Lacking(ChainableUndefined):
    """A record that is not there, or a part of it: false, and an error where it is printed."""

    __str__ = ChainableUndefined._fail_with_undefined_error  # type: ignore[assignment]


def make(results: Path = BENCHMARKS / "results") -> str:
    """Fill in the template.

    Parameters
    ----------
    results : pathlib.Path
        Folder of records, ``<script>.json``.
    """
    records = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(results.glob("*.json"))
    }
    environment = Environment(  # noqa: S701 - Markdown
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=Lacking
    )
    functions: list[Callable[..., Any]] = [
        against, answer, attention, beside_paper, busy, count, curves, drawn, figure, forest_rows,
        jobs, missing, notes, per_pair, signed, sizes, small_cells, steps, table, verdict, whole,
    ]  # fmt: skip
    known = records | {function.__name__: function for function in functions}
    known |= {
        "machines": lambda: machines(records),
        "how": lambda: how(records),
        "versions": lambda: versions(records),
        "unmeasured": lambda: unmeasured(records),
    }
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(known)
    return re.sub(r"\n{3,}", "\n\n", text)


def scripts() -> dict[str, str]:
    """Benchmarks that record what they find, and what each is about."""
    found = {}
    for path in sorted(BENCHMARKS.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        if any(node.module == "timing" and "report" in names(node) for node in imported):
            text = ast.get_docstring(tree) or ""
            found[path.stem] = " ".join(text.partition("\n\n")[0].split())
    return found


def names(node: ast.ImportFrom) -> set[str]:
    """What is imported."""
    return {each.name for each in node.names}


# Figures


def figure(value: Any) -> str:
    """A figure with two or three digits."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 10:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.2g}" if abs(value) < 1 else f"{value:.1f}"


def count(value: int) -> str:
    """A whole number."""
    return f"{value:,}"


# Tables


def table(rows: Iterable[Row], columns: Mapping[str, str], code: str | tuple[str, ...] = ()) -> str:
    """A table in Markdown; its text is left, its figures right.

    Parameters
    ----------
    rows : iterable of mappings
    columns : mapping of str to str
        Header -> key. A column without a figure is left out.
    code : str or tuple of str
        Headers of columns whose text is code.
    """
    rows = list(rows)
    code = (code,) if isinstance(code, str) else code
    kept = {
        name: key for name, key in columns.items() if any(row.get(key) is not None for row in rows)
    }
    first = next(iter(kept), None)
    left = [
        name == first or all(isinstance(one, str) and not one[:1].isdigit() for one in values)
        for name, key in kept.items()
        if (values := [row[key] for row in rows if row.get(key) is not None])
    ]

    def cell(name: str, row: Row) -> str:
        text = figure(row.get(kept[name])).replace("|", "\\|")
        return f"`{text}`" if name in code else text

    lines = [list(kept), ["---" if one else "---:" for one in left]]
    lines += [[cell(name, row) for name in kept] for row in rows]
    head, bar, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, bar.replace(" ", ""), *body])


def busy(record: Row) -> str:
    """Say so if other work ran beside a benchmark."""
    found = [
        f"`{record['benchmark']}.py`{about and f' for {about}'} (load {load:.1f} on {cores} cores)"
        for about, session in sessions(record)
        if (load := session["load_at_start"]) > (cores := session["machine"]["cores"]) / 2
    ]
    if not found:
        return ""
    return (
        f"*Other work ran beside {' and '.join(found)}: it lengthens seconds by the clock, and "
        "those of the processor less.*"
    )


def sessions(record: Row) -> Iterator[tuple[str, Row]]:
    """What was measured, and by which code, when and where: at once, or in sessions."""
    likes = of_likes(record)
    if not likes:
        yield "", record
    for like, found in likes.items():
        rows = [row for part in ("steps", "methods", "jobs") for row in found[part]]
        for k, session in enumerate(found["sessions"]):
            names = [row.get("step") or row["method"] for row in rows if row["session"] == k]
            part = "" if len(names) == len(rows) else f": {', '.join(dict.fromkeys(names))}"
            if names:
                yield f"`{like}`{part}", session


def missing(name: str) -> str:
    """Say that a section has no record."""
    return f"Not measured yet (`benchmarks/{name}.py`)."


def of_likes(full: Row) -> dict[str, Row]:
    """What was found at each size, the smallest first."""
    found = [like for like in full if isinstance(full[like], dict) and "steps" in full[like]]
    return {
        like: full[like]
        for like in sorted(found, key=lambda like: full[like]["counts"].get("molecules", 0))
    }


def sizes(full: Row) -> str:
    """What the datasets hold."""
    rows = []
    for like, found in of_likes(full).items():
        stored = {name: value / 1e6 for name, value in found.get("bytes", {}).items()}
        rows.append({"like": like} | found["counts"] | stored)
    names = ("cells", "genes", "molecules", "pairs")
    columns = {"": "like"} | {name: name for name in names}
    columns |= {f"{name}, MB": name for name in ("source", "tables", "predictions")}
    return table(rows, columns, code="")


def steps(full: Row) -> str:
    """Steps from source files to a board, each size in two columns."""
    likes = {like: every_step(found) for like, found in of_likes(full).items()}
    rows = {name: {"": name} for costs in likes.values() for name in costs}
    for like, costs in likes.items():
        for name, cost in costs.items():
            rows[name] |= {f"`{like}`, s": cost.get("failed") or cost.get("seconds")}
            rows[name] |= {f"GiB, `{like}`": cost.get("peak_gib")}
    columns = [name for like in likes for name in (f"`{like}`, s", f"GiB, `{like}`")]
    return table(rows.values(), {name: name for name in ("", *columns)})


def every_step(found: Row) -> dict[str, Row]:
    """Costs by step; `run-all` is the sum of its methods."""
    steps = {row["step"]: row for row in found["steps"]}
    done = [row for row in found["methods"] if "failed" not in row]
    if done:
        whole = {"seconds": sum(row["seconds"] for row in done)}
        whole["peak_gib"] = max(row["peak_gib"] for row in done)
        before = ("curate", "curate, two processes", "call")
        first = {name: steps.pop(name) for name in before if name in steps}
        steps = first | {f"run-all, {len(done)} methods": whole} | steps
    return steps


def jobs(full: Row) -> list[dict[str, Any]]:
    """Rows of one method in one and two processes."""
    return [
        {"like": like, **row}
        for like, found in of_likes(full).items()
        for row in found.get("jobs", ())
    ]


def beside_paper(full: Row) -> str:
    """Seconds of each method beside the paper's."""
    likes = of_likes(full)
    rows: dict[str, dict[str, Any]] = {}
    for like, found in likes.items():
        for one in found["methods"]:
            row = rows.setdefault(one["method"], {"method": one["method"]})
            row |= {
                like: one.get("failed") or one.get("seconds"),
                f"{like}, fit": one.get("fit_s"),
                f"{like}, paper": one.get("paper"),
            }
            if like == list(likes)[-1]:
                row |= {key: one.get(key) for key in ("pairs_per_s", "peak_gib")}
    columns = {"": "method"}
    for like in likes:
        columns |= {f"`{like}`, s": like, f"fit, `{like}`": f"{like}, fit"}
        columns[f"the paper, `{like}`"] = f"{like}, paper"
    columns[f"GiB, `{list(likes)[-1]}`"] = "peak_gib"
    columns["pairs per s and process"] = "pairs_per_s"
    return table(rows.values(), columns, code="")


def answer(costs: Row) -> list[dict[str, Any]]:
    """What an answer costs; memory with that of a process that has imported all."""
    rows = []
    for row in costs["call"]:
        peak = row.get("peak_gib")
        if peak is None and row.get("peak_mib") is not None:
            peak = (row["before_mib"] + row["peak_mib"]) / 1024
        rows.append({"what": row["what"], "cpu_s": row["cpu_s"], "peak_gib": peak})
    return rows


def forest_rows(forests: Row) -> list[Row]:
    """Rows with four digits of each score."""
    return [row | {name: f"{row[name]:.4f}" for name in ("AUC", "F1")} for row in forests["rows"]]


def signed(rows: Iterable[Row], key: str) -> str:
    """The range of a change, but for the rows that others are compared with."""
    changes = [row[key] for row in rows if row[key]]
    return f"{min(changes):+.4f} to {max(changes):+.4f}"


def per_pair(found: Row) -> list[Row]:
    """Rows of `methods.py`: features, then scores."""
    scores = [
        {"what": f"scores, {row['method']}", **row, "cpu_s": row["predict_cpu_s"]}
        for row in found["scores"]
    ]
    return [*found["drawn"], *scores]


def curves(costs: Row) -> str:
    """Costs at the base, and their exponents."""
    axes = ("cells", "molecules_per_cell", "genes")
    columns = {"": "", "cells": "cells"}
    for cost, header in (("s", "CPU s"), ("MiB", "MiB")):
        columns[header] = cost
        columns |= {f"{header} ~ {axis.replace('_', ' ')}": f"{cost} ~ {axis}" for axis in axes}
    return table(costs["curves"], columns)


def against(peers: Row) -> str:
    """Ours, peer, ratio, limit."""
    rows = []
    for row in peers["rows"]:
        share = None if row["share"] is None else f"{100 * row['share']:.0f} % of {row['limit_is']}"
        theirs = "not run" if row["theirs"] is None and row["peer"] is not None else row["theirs"]
        rows.append({**row, "theirs": theirs, "of it": share})
    names = ("what", "unit", "ours", "peer", "theirs", "ratio", "limit", "of it")
    return table(rows, {"" if name == "what" else name: name for name in names})


def notes(peers: Row) -> str:
    """What is said of single rows."""
    noted = [row for row in peers["rows"] if row.get("note")]
    return "\n".join(f"- {row['what']}, {row['peer']}: {row['note']}" for row in noted)


def attention(gpsnet: Row) -> str:
    """Seconds of KNN-attention and its rivals, with ratios."""
    ways = {"gather": "gather", "full": "full attention", "masked": "full with a mask"}
    rows = []
    parts = [("forward", gpsnet["forward"])]
    parts += [("forward and backward", part) for part in gpsnet["backward"]]
    for name, part in parts:
        row = {"what": f"{name}, {part['n']:,}", "ours": part["seconds"]["knn_attention"]}
        for way, header in ways.items():
            if way in part["seconds"]:
                row[header] = f"{figure(part['seconds'][way])}: {figure(part['ratios'][way])} x"
        rows.append(row)
    columns = {"molecules": "what", "ours, s": "ours"}
    return table(rows, columns | {f"{header}, s": header for header in ways.values()})


def small_cells(gpsnet: Row) -> list[dict[str, Any]]:
    """Rows of the ways to score a batch of small cells."""
    parts = {
        name: gpsnet["small_cells"][name]["seconds"] for name in ("forward", "forward and backward")
    }
    ways = sorted(parts["forward"], key=lambda way: way != "knn_attention")  # ours first
    return [{"way": way, **{name: part[way] for name, part in parts.items()}} for way in ways]


def whole(gpsnet: Row) -> str:
    """Seconds of the whole model for a cell."""
    rows = []
    for part in gpsnet["whole_model"]:
        row = {"preset": part["preset"], "n": part["n"]}
        row |= part["seconds"]
        rows.append(row | {"ratio": part["ratios"]["straightforward"]})
    ways = list(gpsnet["whole_model"][0]["seconds"])
    columns = {"": "preset", "molecules": "n"} | {f"{way}, s": way for way in ways}
    return table(rows, columns | {"straightforward to GPSNet": "ratio"}, code="")


def drawn(contention: Row) -> str:
    """Say which commands were drawn, how often, and how many were killed."""
    rows = [row for row in contention["commands"] if not row[""].startswith("rm ")]
    left, kinds = contention["not_drawn"], f"all {len(rows)} kinds of command"
    if left:
        kinds = f"{len(rows) - len(left)} of {len(rows)} kinds of command (not {', '.join(left)})"
    starts, killed = (sum(row[key] for row in rows) for key in ("times", "killed"))
    return f"{kinds}, {starts:,} starts, {killed:,} of them killed with SIGKILL and run again"


def verdict(contention: Row) -> str:
    """Say what the run found."""
    wrong = contention["wrong"]
    if wrong:
        return f"{len(wrong)} things were wrong: {'; '.join(wrong)}."
    return "No file and no printed result differed from the command run alone."


# How


def machines(records: Mapping[str, Row]) -> str:
    """Describe the machines."""
    found = {
        f"{one['cores']} cores ({one['processor']}) and {figure(one['memory_gib'])} GiB of memory"
        for record in records.values()
        for _, session in sessions(record)
        if (one := session["machine"])
    }
    if not found:
        return "no machine yet"
    return "a machine with " + ", and one with ".join(sorted(found))


def how(records: Mapping[str, Row]) -> str:
    """What each script measures, when, which code, beside how much other work and where."""
    about = scripts()
    rows = [
        {
            "script": f"`{name}.py`",
            "about": about.get(name, "").rstrip(".") + (part and f"; {part}"),
            "date": session["date"],
            "commit": commit(session["commit"]),
            "load": f"{session['load_at_start']:.1f}",
            "processor": session["machine"]["processor"],
        }
        for name, record in records.items()
        for part, session in sessions(record)
    ]
    columns = {"script in `benchmarks/`": "script", "measures": "about"}
    return table(rows, columns | {name: name for name in ("date", "commit", "load", "processor")})


def commit(name: str | None) -> str:
    """A commit, short."""
    if name is None:
        return "unknown"
    code, dirty, _ = name.partition("-dirty")
    return f"{code[:7]}, changed" if dirty else code[:7]


def versions(records: Mapping[str, Row]) -> str:
    """Versions, with the scripts that had them."""
    found: dict[str, list[str]] = {}
    for name, record in records.items():
        for _, one in sessions(record):
            told = ", ".join(f"{package} {of}" for package, of in sorted(one["versions"].items()))
            found.setdefault(told, []).append(f"`{name}`")
    return "\n".join(f"- {', '.join(dict.fromkeys(of))}: {told}" for told, of in found.items())


def unmeasured(records: Mapping[str, Row]) -> str:
    """Name scripts without a record."""
    without = [f"`{name}.py`" for name in scripts() if name not in records]
    return f"Not recorded yet: {', '.join(without)}." if without else "All scripts are recorded."


if __name__ == "__main__":
    write_text(PAGE, make())
