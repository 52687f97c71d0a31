"""The command line, ``gpattern-bench``: a thin layer over the library.

Exit codes: 0 fine; 1 the check failed (validate, verify, leaderboard --check); 2 wrong usage or
unreadable input. Libraries are imported by the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import Annotated

import typer

from gpattern_bench.base.launcher import process_index
from gpattern_bench.base.progress import Lines
from gpattern_bench.base.threads import calm_threads
from gpattern_bench.base.version import __version__
from gpattern_bench.cli.options import app, echo
from gpattern_bench.errors import GPatternBenchError

# Each adds its commands to the application, in this order.
from gpattern_bench.cli import data, curate, answers, differential, methods  # isort: skip # noqa: F401
from gpattern_bench.cli import robustness, scores, plots, board, challenge  # isort: skip # noqa: F401

__all__ = ["app", "main"]

_debug = False


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


_WELCOME = """\
Benchmark of gene spatial pattern classification. To begin, none of these downloads anything:

  gpattern-bench demo                                  all methods on simulated cells, and a board
  gpattern-bench run sprawl --dataset synthetic        one method, to prediction files
  gpattern-bench evaluate runs/sprawl/synthetic/test-seed0.parquet --dataset synthetic
  gpattern-bench plot cell synthetic --out cell.svg    a cell, its genes and their patterns
  gpattern-bench list                                  the datasets there are

`gpattern-bench COMMAND --help` ends with examples of each.
"""


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    global _debug
    _debug = debug
    # Of processes that train together, the first logs.
    level = logging.INFO if process_index() == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[Lines()])
    if context.invoked_subcommand is None:
        typer.echo(_WELCOME)
        typer.echo(context.get_help())


_command = cache(typer.main.get_command)  # it makes all commands: once


def main() -> None:
    """Run the command line; errors of this package become one paragraph on stderr."""
    calm_threads()
    try:
        _command(app)()
    except (GPatternBenchError, OSError) as error:
        if _debug:
            raise
        echo(f"error: {error}", err=True)
        sys.exit(2)
