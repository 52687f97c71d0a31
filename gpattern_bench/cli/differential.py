"""The command that compares localisation between groups of cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gpattern_bench.base.validation import on_one_line
from gpattern_bench.cli.options import app, echo, examples, print_rows
from gpattern_bench.errors import EvaluationError, GPatternBenchError

_SHOWN = 15


@app.command(
    "differential",
    epilog=examples(
        "differential answer --groups cells.csv --by condition --sample donor",
        "differential answer --groups cells.csv --by condition --reference control",
    ),
)
def differential_(
    answer: Annotated[Path, typer.Argument(metavar="ANSWER", help="A folder of `call`.")],
    groups: Annotated[
        Path,
        typer.Option(metavar="FILE", help="csv, tsv or Parquet: cell_id, and a column per option."),
    ],
    by: Annotated[str, typer.Option(metavar="COLUMN", help="The groups, such as conditions.")],
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The samples, such as donors. Without it there is no p. A sample in two groups: "
            "they are compared within it.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP", help="The others are compared with it. Default: the first by name."
        ),
    ] = None,
    min_pairs: Annotated[
        int,
        typer.Option(min=2, help="Fewest called cells of a sample with a gene for it to count."),
    ] = 20,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Default: ANSWER/differential.csv, also shown in ANSWER/report.html.",
        ),
    ] = None,
) -> None:
    """Compare how often genes show each pattern between groups of cells, sample by sample."""
    from gpattern_bench.answers.answer import ANSWER, FILES, REPORT
    from gpattern_bench.answers.differential import (
        DIFFERENTIAL,
        differential,
        write_differential,
    )
    from gpattern_bench.answers.report import write_report

    table = answer / DIFFERENTIAL if out is None else out
    if table.resolve() in {groups.resolve(), *(answer.resolve() / name for name in FILES)}:
        raise EvaluationError(f"{table} (--out) is read by this command: give another file")
    found = differential(answer, groups, by, sample, reference=reference, min_pairs=min_pairs)
    compared = found.table.dropna(subset=["difference"])
    print_rows([_row(row) for row in compared.head(_SHOWN).to_dict("records")])
    tested = int(compared["p"].notna().sum())
    if tested:
        n = int((compared["fdr"] < 0.05).sum())
        echo(f"\n{n:,} of {tested:,} tested differ at a false discovery rate of 5 %")
    else:
        echo(f"\n{len(compared):,} compared, without p; the largest differences are above")
    for note in found.notes:
        echo(note)
    echo(str(write_differential(found, table)))
    if out is None and (answer / ANSWER).is_file():
        try:
            echo(str(write_report(answer, groups=groups, by=by)))
        except GPatternBenchError as error:  # the tables that were asked of may be gone
            echo(f"{answer / REPORT} stays as it was: {error}")


def _row(row: Mapping[Any, Any]) -> dict[str, str]:
    """Format a row for people."""

    def number(name: str, form: str = ".3f") -> str:
        return "-" if row[name] != row[name] else format(row[name], form)

    def interval(name: str, form: str) -> str:
        low, high = (number(f"{name}_{end}", form) for end in ("low", "high"))
        return f"{number(name, form)} [{low}, {high}]"

    return {
        "gene": on_one_line(row["gene"]),
        "pattern": row["pattern"],
        "groups": on_one_line(f"{row['group']} - {row['reference']}"),
        "samples": f"{row['samples_group']}, {row['samples_reference']}",
        "probability": f"{number('probability_group')}, {number('probability_reference')}",
        "difference [95 %]": interval("difference", "+.3f"),
        "odds ratio [95 %]": interval("odds_ratio", ".3g"),
        "p": number("p", ".1e"),
        "fdr": number("fdr", ".1e"),
    }
