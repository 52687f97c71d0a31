"""Shared by all commands: the application, options and output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from gpattern_bench.base.validation import printable

_NUMBER = re.compile(r"[+-]?[\d,]+(\.\d+)?(e[+-]\d+)?|-").fullmatch


class Group(TyperGroup):
    """A group that lists its commands with whole summaries, in lines of the terminal's width."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands; click cuts summaries at 45 characters."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(limit=1000))
                    for name, command in commands
                    if command is not None and not command.hidden
                ]
            )


class OfMethod(TyperCommand):
    """A command for methods, which its help names: those of the package and of plug-ins."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the names, read when help is asked for, then the examples."""
        from gpattern_bench.methods import METHODS, plugins

        with formatter.section("Methods"):
            formatter.write_text(", ".join([*METHODS, *plugins()]))
        super().format_epilog(ctx, formatter)


app = typer.Typer(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Benchmark of gene spatial pattern classification in subcellular spatial transcriptomics.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name, name@version, or a folder.")]
DatasetOption = Annotated[
    str, typer.Option("--dataset", metavar="NAME", help="Name, name@version, or a folder.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed.")]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", metavar="ADDRESS", help="Dask scheduler; its workers do the work."),
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A prediction file.")]


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text, which may hold names from files: a terminal obeys none of it."""
    typer.echo(printable(text), err=err, nl=nl)


def examples(*lines: str) -> str:
    """Format a command's examples, the end of its help."""
    return "\b\nExamples:\n" + "\n".join(f"  gpattern-bench {line}" for line in lines)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a table; text stays as it is, also where it looks like a number."""
    from tabulate import tabulate

    names = dict.fromkeys(name for row in rows for name in row)
    columns = [[row[name] for row in rows if row.get(name) is not None] for name in names]
    text = [any(isinstance(value, str) for value in column) for column in columns]
    sides = [
        "left" if is_text and not all(map(_NUMBER, map(str, column))) else "decimal"
        for is_text, column in zip(text, columns, strict=True)
    ]
    echo(
        tabulate(
            rows,
            headers="keys",
            tablefmt="github",
            floatfmt=".6f",
            missingval="-",
            disable_numparse=[k for k, is_text in enumerate(text) if is_text],
            colalign=sides,
        )
    )


def print_json(value: Any) -> None:
    """Print JSON, NaN as null."""
    import json

    from gpattern_bench.base.files import plain

    text = json.dumps(plain(value), indent=1, ensure_ascii=False)
    echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def tell(folder: Path) -> None:
    """Print a folder's contents and the rows dropped from it."""
    from gpattern_bench.data.dataset import Dataset
    from gpattern_bench.tables.placement import placement_text

    dataset = Dataset(folder)
    echo(f"{dataset!r} in {folder}")
    if dataset.manifest.labelled_by is not None:
        echo(f"  labels: calls of {dataset.manifest.labelled_by.text}")
    if dataset.manifest.placement is not None:
        echo(f"  {placement_text(dataset.manifest.placement)}")
    for table, reasons in dataset.manifest.dropped.items():
        for reason, rows in reasons.items():
            echo(f"  dropped from {table}: {rows:,} ({reason})")
