"""Read the numbers that a fitted method keeps as JSON; a file that was edited is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from gpattern_bench.base.validation import adapter, invalid_text
from gpattern_bench.errors import MethodError

__all__ = ["Number", "Share", "read_state"]

Number = Annotated[float, Field(allow_inf_nan=False)]
"""A finite number."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""


def read_state(path: Path, kind: Any) -> dict[str, Any]:
    """Read JSON of a type, a TypedDict.

    Raises
    ------
    MethodError
        It is something else; the text names the first fields.
    """
    try:
        found: dict[str, Any] = adapter(kind).validate_python(
            json.loads(path.read_text(encoding="utf-8"))
        )
    except (ValueError, RecursionError) as error:
        what = invalid_text(error, 3) if isinstance(error, ValidationError) else str(error)
        raise MethodError(f"{path} is damaged ({what}); fit the method again") from error
    return found
