"""Bound what the pages of a Parquet file unpack to, before Arrow unpacks them.

A footer may lie: Arrow takes the sizes that each page's own header states, up to 2 GiB a page. The
headers are few bytes, in front of each page (Thrift, compact protocol), and not compressed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow.parquet as pq

__all__ = ["Page", "pages"]

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 8: "RLE_DICTIONARY", 9: "BYTE_STREAM"}
"""Those that unpack to values no larger than the page, or as many as there are rows."""
_HEAD, _LONGEST_HEAD = 1 << 10, 1 << 20  # bytes read for a header; statistics can be long
_DEPTH = 8
_STRUCT = 12
# Arrow reads 100 bytes beyond the pages of earlier versions, for a fault of theirs.
_SOUND_PARQUET_MR = r"parquet-mr version 1\.[1-9][0-9]\.[0-9]+ \(build [0-9a-f]+\)"


@dataclass(frozen=True)
class Page:
    """What the header of a page states: values, bytes when unpacked, dictionary or data."""

    values: int
    unpacked: int
    is_dictionary: bool


def pages(file: BinaryIO, metadata: pq.FileMetaData, group: int, column: int) -> Iterator[Page]:
    """Read the headers of all pages that Arrow reads of a column in a row group.

    Stricter than Arrow: what is not understood here, or is not where the footer says, is refused.

    Parameters
    ----------
    file : binary file
    metadata : pyarrow.parquet.FileMetaData
        Its footer.
    group, column : int

    Raises
    ------
    ValueError
        A header is damaged, or its page of a kind that may unpack to any size.
    """
    made_by = metadata.created_by or ""
    if "parquet-mr" in made_by.lower() and not re.fullmatch(_SOUND_PARQUET_MR, made_by):
        raise ValueError(f"written by {made_by[:60]!a}, which is not supported")
    chunk = metadata.row_group(group).column(column)
    if chunk.num_values <= 0:  # Arrow reads no page then
        return
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    while at < end:
        header, length = _header(file, at)
        size = _number(header, 3)
        yield _page(header)
        at += length + size
    if at != end:
        raise ValueError("its pages do not end where the footer says")


def _page(header: dict[int, Any]) -> Page:
    kind = _number(header, 1)
    # Where the header of this kind of page is, and in it the encoding.
    where = {_DATA: (5, 2), _DICTIONARY: (7, 2), _DATA_V2: (8, 4)}.get(kind)
    if where is None or not isinstance(inner := header.get(where[0]), dict):
        raise ValueError(f"a page of unknown kind {kind}")
    if (encoding := _number(inner, where[1])) not in _ENCODINGS:
        allowed = ", ".join(_ENCODINGS.values())
        raise ValueError(f"a page in encoding {encoding}, expected one of {allowed}")
    return Page(_number(inner, 1), _number(header, 2), kind == _DICTIONARY)


def _number(struct: dict[int, Any], field: int) -> int:
    value = struct.get(field)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"a page header without field {field}")
    return value


def _header(file: BinaryIO, at: int) -> tuple[dict[int, Any], int]:
    """Read the header at a position: its fields by number, and its length."""
    size = _HEAD
    while True:
        file.seek(at)
        data = file.read(size)
        reader = _Compact(data)
        try:
            return reader.struct(_DEPTH), reader.at
        except IndexError:
            if len(data) < size or size >= _LONGEST_HEAD:
                raise ValueError("a page header that does not end") from None
            size *= 32


class _Compact:
    """Thrift's compact protocol, as far as page headers need it. IndexError: the bytes end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        field = 0
        while kind := self._byte():
            if not kind >> 4 or depth == 0:  # long steps between fields: no writer needs them
                raise ValueError("a page header that is not understood")
            field += kind >> 4
            fields[field] = self._value(kind & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 5:
            return self._int32()
        if kind == 6:
            self._varint()
            return None
        if kind == 8:
            length = self._varint()
            self.at += length
            if self.at > len(self.data):
                raise IndexError
            return None
        if kind == _STRUCT:
            return self.struct(depth - 1)
        raise ValueError("a page header that is not understood")

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a page header with a number beyond 64 bits")

    def _int32(self) -> int:
        value = self._varint()
        if value >> 32:
            raise ValueError("a page header with a number beyond 32 bits")
        return (value >> 1) ^ -(value & 1)
