"""Read ids as the export meant them: text, whole numbers, or whole numbers stored as floats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from gpattern_bench.base.validation import shorten
from gpattern_bench.errors import SourceError

__all__ = ["plain_ids", "with_plain_ids"]

_FLOAT = re.compile(r"[+-]?(\d+)\.0*")
_ROUNDED = re.compile(r"[+-]?\d+(\.\d+)?[eE]\+\d+")
_EXACT = 15  # digits that a float64 holds


def plain_ids(column: pa.ChunkedArray, where: Path, name: str) -> pa.ChunkedArray:
    """Return ids as plain text: ``12.0`` becomes ``12``, blank ones null.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Dictionary-encoded text.
    where, name : pathlib.Path, str
        File and column, for messages.

    Raises
    ------
    SourceError
        Ids are floats that have lost their last digits.
    """
    chunks = []
    for chunk in column.chunks:
        texts = [_plain(text, where, name) for text in chunk.dictionary.to_pylist()]
        plain = pa.array(texts, pa.string()).dictionary_encode()
        chunks.append(
            pa.DictionaryArray.from_arrays(plain.indices.take(chunk.indices), plain.dictionary)
        )
    return pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))


def with_plain_ids(block: pa.Table, where: Path, names: Sequence[str]) -> pa.Table:
    """Replace those of the columns that a block has (:func:`plain_ids`)."""
    for name in names:
        if name in block.column_names:
            at = block.column_names.index(name)
            block = block.set_column(at, name, plain_ids(block[name], where, name))
    return block


def _plain(text: str | None, where: Path, name: str) -> str | None:
    if text is None or not text.strip():
        return None
    whole = _FLOAT.fullmatch(text)
    if _ROUNDED.fullmatch(text) or (whole and len(whole[1]) > _EXACT):
        raise SourceError(
            f"{where}: {name} has {shorten(text)}, a number that has lost its last digits, so "
            "different cells may have the same; store ids as text or as whole numbers"
        )
    return text.partition(".")[0] if whole else text
