"""Files: hashes, values as JSON holds them, and writes that are whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import Any

__all__ = ["MANIFEST", "alone", "file_sha256", "irregular", "plain", "replacing", "write_text"]

MANIFEST = "manifest.json"
"""Name of the file that says what a dataset's folder of tables is."""


def file_sha256(path: Path) -> str:
    """Hash a file: SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def irregular(folder: Path, largest: Mapping[str, int]) -> list[str]:
    """Say what in a stranger's folder must not be opened: all but regular files of bounded size.

    A link may lead anywhere, to a device that never ends or to a file that is not the stranger's.

    Parameters
    ----------
    folder : pathlib.Path
        Not followed if it is a link.
    largest : mapping of str to int
        Suffix -> most bytes of a file; those of ``""`` are for all others.
    """
    if folder.is_symlink():
        return [f"{folder.name!a} is a link, expected a folder"]
    problems = []
    for here, folders, files in os.walk(folder, followlinks=False):
        for name in sorted([*folders, *files]):
            path = Path(here) / name
            shown = ascii(path.relative_to(folder).as_posix())
            stat = path.lstat()
            if not name.isprintable():
                problems.append(f"{shown}: a name with characters that cannot be printed")
            elif S_ISLNK(stat.st_mode):
                problems.append(f"{shown} is a link, expected a file; put the file itself there")
            elif not (S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)):
                problems.append(f"{shown} is a device, pipe or socket, expected a file")
            elif stat.st_size > (most := largest.get(path.suffix, largest[""])):
                problems.append(f"{shown} has {stat.st_size:,} bytes, expected at most {most:,}")
    return problems


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a new file beside `path` to write to; it takes the place of `path` at the end.

    If the block raises, `path` stays as it was and the new file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o644)  # mkstemp makes files private
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes from reading and writing a file again meanwhile, if they ask the same.

    The lock beside it stays: removed, two processes could hold one of its name each.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def plain(value: Any) -> Any:
    """Make a nested value fit for JSON: NaN becomes null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
