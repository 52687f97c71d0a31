"""Check what a GeoParquet file says of its outlines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gpattern_bench.curate.release import reading
from gpattern_bench.errors import SourceError

__all__ = ["check_frame"]


def check_frame(path: Path) -> None:
    """Refuse outlines on the globe: coordinates here are lengths in the plane of the slide.

    A file without GeoParquet metadata, or without a reference system in them (``crs``), is fine.

    Raises
    ------
    SourceError
        A column has a coordinate reference system, or is not stored as WKB; or the file is damaged.
    """
    with reading(path, "GeoParquet"):
        geo = (pq.read_schema(path).metadata or {}).get(b"geo")
        columns = {} if geo is None else json.loads(geo)["columns"]
        flaws = {name: flaw for name, about in columns.items() if (flaw := _flaw(about))}
    for name, flaw in flaws.items():
        raise SourceError(f"{path}: {name} {flaw}")


def _flaw(about: dict[str, Any]) -> str:
    if (encoding := about.get("encoding", "WKB")) != "WKB":
        return f"is stored as {encoding!r}, expected WKB; write it again"
    crs = about.get("crs")
    if crs is None:
        return ""
    named = crs.get("name", crs.get("id")) if isinstance(crs, dict) else crs
    return (
        f"has the coordinate reference system {named!r}, expected none: outlines are in the plane "
        "of the slide, in the unit of the molecules. Write the file again with crs=None"
    )
