"""HTML with all text escaped: small tables for notebooks, and templates of whole pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["html_table", "templates"]


def html_table(
    title: str, heads: Sequence[str], rows: Iterable[Sequence[object]], note: str = ""
) -> str:
    """Give an HTML table: a title above, a note below, the first column as row heads.

    Numbers have thousands separators, fractions four digits, NaN and None a dash.

    Examples
    --------
    >>> html_table("a < b", ["", "n"], [["x", 1200]])[:28]
    '<div><strong>a &lt; b</stron'
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr><th>{_shown(first)}</th>" + "".join(f"<td>{_shown(v)}</td>" for v in rest) + "</tr>"
        for first, *rest in rows
    )
    below = f"<small>{escape(note)}</small>" if note else ""
    return (
        f"<div><strong>{escape(title)}</strong><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{below}</div>"
    )


def templates(*packages: str) -> Environment:
    """Give Jinja's templates that lie in packages; a name that is not defined is an error."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        autoescape=True,
        loader=ChoiceLoader([PackageLoader(package, "") for package in packages]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _shown(value: object) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
