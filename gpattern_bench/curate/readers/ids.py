"""Read ids as the export meant them: text, whole numbers, or whole numbers stored as floats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from gpattern_bench.base.validation import shorten
from gpattern_bench.curate.readers.columns import renamed
from gpattern_bench.curate.release import MISSING
from gpattern_bench.errors import SourceError

__all__ = ["plain_id", "plain_ids", "with_plain_ids"]

_NOTHING = {*map(str.lower, MISSING), "null", "-1", "unassigned"}  # in any case
_FLOAT = re.compile(r"([+-]?\d+)\.0*")
_ROUNDED = re.compile(r"[+-]?\d+(\.\d+)?[eE]\+\d+")
_EXACT = 15  # digits that a float64 holds


def plain_id(text: str | None, where: Path | str, name: str) -> str | None:
    """Return an id as plain text: ``12.0`` and ``" 12"`` become ``12``.

    None for what names nothing: blank text, ``-1``, ``UNASSIGNED``, and what libraries write for a
    missing value. The ids of molecules, outlines and labels all come from here, so that they match.

    Parameters
    ----------
    text : str or None
    where, name : pathlib.Path or str, str
        File and column, for messages.

    Raises
    ------
    SourceError
        It is a float that has lost its last digits.
    """
    text = "" if text is None else text.strip()
    whole = _FLOAT.fullmatch(text)
    if _ROUNDED.fullmatch(text) or (whole and len(whole[1].lstrip("+-")) > _EXACT):
        raise SourceError(
            f"{where}: {name} has {shorten(text)}, a number that has lost its last digits, so "
            "different cells may have the same; store ids as text or as whole numbers"
        )
    text = whole[1] if whole else text
    return None if text == "NA" or text.lower() in _NOTHING else text


def plain_ids(column: pa.ChunkedArray, where: Path | str, name: str) -> pa.ChunkedArray:
    """Return a column of dictionary-encoded text as plain ids (:func:`plain_id`)."""
    chunks = [
        renamed(chunk, [plain_id(text, where, name) for text in chunk.dictionary.to_pylist()])
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))


def with_plain_ids(block: pa.Table, where: Path, names: Sequence[str]) -> pa.Table:
    """Replace those of the columns that a block has (:func:`plain_ids`)."""
    for name in names:
        if name in block.column_names:
            at = block.column_names.index(name)
            block = block.set_column(at, name, plain_ids(block[name], where, name))
    return block
