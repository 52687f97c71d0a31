"""Tell the format of a source by the files in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpattern_bench.base.validation import shorten
from gpattern_bench.errors import SourceError

__all__ = ["FORMATS", "detect_format"]

_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".parquet")
_ARCHIVES = (".tar", ".tar.gz", ".tgz")


def _xenium(path: Path) -> bool:
    endings = (".parquet", ".csv.gz", ".csv")
    return any(
        all(
            any((folder / f"{stem}{ending}").is_file() for ending in endings)
            for stem in ("transcripts", "cell_boundaries")
        )
        for folder in (path, path / "outs")
    )


def _merscope(path: Path) -> bool:
    return path.is_dir() and any(path.glob("detected_transcripts.*"))


def _cosmx(path: Path) -> bool:
    if path.is_file():
        return path.name.lower().endswith(_ARCHIVES)
    if _spatialdata(path):
        return False  # thousands of files, none of which is one
    names = (file.name.lower() for file in path.rglob("*"))
    return any(
        name.endswith(("tx_file.csv", "tx_file.csv.gz")) and not name.startswith(".")
        for name in names
    )


def _spatialdata(path: Path) -> bool:
    marks = (".zgroup", ".zattrs", ".zmetadata", "zarr.json")
    return any((path / name).is_file() for name in marks) and (path / "points").is_dir()


def _bento(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".h5ad"


def _table(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(_TABLES)


_SIGNS: dict[str, tuple[Callable[[Path], bool], str]] = {
    "xenium": (_xenium, "a folder with transcripts and cell_boundaries (.parquet, .csv.gz, .csv)"),
    "merscope": (_merscope, "a folder with detected_transcripts (.csv, .csv.gz, .parquet)"),
    "cosmx": (_cosmx, "a folder with a file ...tx_file.csv in it, or a tar archive"),
    "spatialdata": (_spatialdata, "a zarr folder with points"),
    "bento-h5ad": (_bento, "a file .h5ad"),
    "table": (_table, f"a file {', '.join(_TABLES)}"),
}

FORMATS = tuple(_SIGNS)
"""Formats that can be told."""


def detect_format(path: Path) -> str:
    """Tell the format of a source release.

    Parameters
    ----------
    path : pathlib.Path
        A file or folder.

    Returns
    -------
    str
        One of :data:`FORMATS`.

    Raises
    ------
    SourceError
        There is nothing, or it looks like none of the formats or like several; the text says what
        was looked for.
    """
    if not path.exists():
        raise SourceError(f"nothing at {path}: expected an instrument's folder or a file")
    found = [name for name, (is_it, _) in _SIGNS.items() if is_it(path)]
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(
            f"{path} looks like {' and '.join(found)}: give one of them with --format"
        )
    looked = "; ".join(f"{name}: {sign}" for name, (_, sign) in _SIGNS.items())
    inside = ""
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir())
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        held = ", ".join(map(shorten, names[:5])) + more if names else "nothing"
        inside = f"; the folder holds {held}"
    raise SourceError(
        f"{path} looks like no format that is read{inside}. Looked for, by --format: {looked}. "
        "Name the folder that holds these files itself"
    )
