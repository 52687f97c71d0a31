"""The manifest of a dataset's folder: what its tables are and what they must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from gpattern_bench.base.files import MANIFEST
from gpattern_bench.base.validation import invalid_text
from gpattern_bench.errors import TableError

__all__ = ["read_manifest"]


class _File(TypedDict):
    bytes: int
    sha256: str
    content_sha256: str


class _Counts(TypedDict):
    cells: int
    molecules: int
    splits: dict[str, dict[str, Any]]


class _Curation(TypedDict):
    format: str
    unit_um: float


class _Manifest(TypedDict):
    """What is needed of ``manifest.json``; it says more."""

    name: str
    version: str
    patterns: list[str]
    genes: list[str]
    counts: _Counts
    files: dict[
        Literal["molecules.parquet", "cells.parquet", "labels.parquet", "splits.parquet"], _File
    ]
    curation: _Curation
    dropped: NotRequired[dict[str, dict[str, int]]]


_TABLES = ("molecules", "cells", "splits")  # labels may be missing
_MOST = 5  # problems that are told


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of tables, whose files must have the sizes that it states.

    Raises
    ------
    TableError
        No manifest, not what curation writes, or files of other sizes.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        TypeAdapter(_Manifest).validate_python(manifest, strict=True)
    except (OSError, ValueError, RecursionError) as error:
        what = invalid_text(error, _MOST) if isinstance(error, ValidationError) else repr(error)
        raise TableError(
            str(folder),
            [f"{MANIFEST} is missing or not readable ({what}); make tables with `curate`"],
        ) from error
    sizes = {name: about["bytes"] for name, about in manifest["files"].items()}
    if lacking := [name for table in _TABLES if (name := f"{table}.parquet") not in sizes]:
        raise TableError(str(folder), [f"{MANIFEST} lists no {', '.join(lacking)}"])
    for key in ("patterns", "genes"):
        if len(set(manifest[key])) < len(manifest[key]):
            raise TableError(str(folder), [f"{MANIFEST} has {key} that occur more than once"])
    problems = [
        f"{name}: expected {size:,} bytes, "
        + (f"got {path.stat().st_size:,}" if path.is_file() else "it is not there")
        for name, size in sizes.items()
        if not (path := folder / name).is_file() or path.stat().st_size != size
    ]
    if problems:
        where = f"{folder.absolute()} ({manifest['name']}@{manifest['version']})"
        raise TableError(where, [*problems, "remove the folder and make it again"])
    return manifest
