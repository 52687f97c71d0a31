"""Pydantic's validators, and its errors as short texts: the field, what is wrong, its value."""

from __future__ import annotations

from reprlib import Repr
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

__all__ = ["adapter", "invalid_fields", "invalid_text", "on_one_line", "printable", "shorten"]

_T = TypeVar("_T")

_ADAPTERS: dict[Any, Any] = {}

_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 80


def adapter(kind: type[_T]) -> TypeAdapter[_T]:
    """Return pydantic's validator of a type, which is slow to make: each is made once."""
    from pydantic import TypeAdapter  # slow to import; most errors come from elsewhere

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    made: TypeAdapter[_T] = _ADAPTERS[kind]
    return made


def invalid_fields(error: ValidationError) -> list[tuple[str, str]]:
    """List every refused field with the reason and its value.

    Examples
    --------
    >>> from pydantic import TypeAdapter, ValidationError
    >>> try:
    ...     TypeAdapter(dict[str, int]).validate_python({"n": "many"}, strict=True)
    ... except ValidationError as error:
    ...     invalid_fields(error)
    [('n', "Input should be a valid integer, got 'many'")]
    """
    fields = []
    for found in error.errors(include_url=False):
        value = shorten(found["input"])
        got = f", got {value!r}" if isinstance(found["input"], str) else f", got {value}"
        known = found["type"] not in ("missing", "json_invalid")
        where = ".".join(map(str, found["loc"])) or "the file"
        fields.append((where, found["msg"] + got * known))
    return fields


def invalid_text(error: ValidationError, most: int | None = None) -> str:
    """Join the first `most` (None: all) of :func:`invalid_fields`."""
    return "; ".join(f"{field}: {reason}" for field, reason in invalid_fields(error)[:most])


def printable(text: str) -> str:
    r"""Escape what a terminal would obey or hide, but for line breaks and tabs.

    Examples
    --------
    >>> print(printable("naïve, two lines\nand \x1b[2J\u202e\udce9"))
    naïve, two lines
    and \x1b[2J\u202e\udce9
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def on_one_line(text: str) -> str:
    """Escape line breaks: what stands after one may look like another message, or a command."""
    return text.translate({ord(c): repr(c)[1:-1] for c in "\n\r"})


def shorten(value: Any, most: int = 80) -> str:
    """Give the beginning of a value's text, however large or deep the value is."""
    try:
        nested = isinstance(value, dict | list | tuple | set)
        return (_SHORT.repr(value) if nested else on_one_line(str(value)))[:most]
    except (ValueError, RecursionError):
        return f"<{type(value).__name__} too large to show>"
