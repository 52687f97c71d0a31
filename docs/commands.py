"""The reference of the command line, as Markdown, from the program itself."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import typer
import typer.main

from gpattern_bench.cli import app
from gpattern_bench.cli.options import OfMethod
from gpattern_bench.methods import METHODS

__all__ = ["reference"]

_PROGRAM = "gpattern-bench"


def reference() -> str:
    """Describe every command: its purpose, arguments, options and examples."""
    return "\n\n".join(["", *_commands(typer.main.get_command(app), _PROGRAM, 2), ""])


def _commands(group: Any, name: str, level: int) -> Iterator[str]:
    for word, command in group.commands.items():
        if command.hidden:
            continue
        path = f"{name} {word}"
        yield f"{'#' * level} {path.removeprefix(_PROGRAM).strip()}"
        yield from _command(command, path)
        if hasattr(command, "commands"):
            yield from _commands(command, path, level + 1)


def _command(command: Any, path: str) -> Iterator[str]:
    context = typer.Context(command, info_name=path)
    yield _text(command.help)
    yield f"```\n{command.get_usage(context).removeprefix('Usage: ')}\n```"
    records = [record for each in command.params if (record := each.get_help_record(context))]
    yield from (f"`{names}`\n: {_text(about)}" for names, about in records)
    if isinstance(command, OfMethod):
        yield f"Methods: {', '.join(f'`{name}`' for name in METHODS)}."
    if command.epilog:
        _, _, lines = command.epilog.partition("Examples:\n")
        yield "Examples:"
        yield f"```\n{textwrap.dedent(lines)}\n```"


def _text(text: str) -> str:
    """Keep what is plain text from becoming markup, and options whole."""
    parts = text.split("`")
    for k in range(0, len(parts), 2):
        plain = re.sub(r"[\\*_<[$]", r"\\\g<0>", parts[k])
        parts[k] = re.sub(r"(?<![\w-])--?[a-z][a-z-]*", r"`\g<0>`", plain)
    return "`".join(parts)
