"""A dataset of the registry, from its source files to its folder of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock

from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.write import MANIFEST, write_dataset
from gpattern_bench.errors import TableError
from gpattern_bench.fetch import CACHE, fetch
from gpattern_bench.registry import Entry
from gpattern_bench.storage import content_sha256

__all__ = ["build"]


def build(entry: Entry, root: Path, *, download: bool = True) -> Path:
    """Return the dataset's folder ``root/name/version``, made first if it is not there.

    Source files are fetched to ``root/sources``, curated by the entry's recipe, compared with the
    content hashes of the registry and written whole; of several processes one does the work.

    Raises
    ------
    FetchError
        A source file cannot be had.
    SourceError
        A source file is not what its reader expects.
    TableError
        Curation gave other values than the registry pins; nothing is written.
    """
    folder = root / entry.name / entry.version
    if (folder / MANIFEST).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TableError(
            str(folder), [f"the cache cannot be written ({error}); choose another with {CACHE}"]
        ) from error
    with FileLock(folder.parent / f".{entry.version}.lock"):
        if (folder / MANIFEST).is_file():  # another process was faster
            return folder
        sources = root / "sources"
        for file in entry.files:
            fetch(file, sources, download=download)
        tables = apply_rules(entry.recipe.read(sources), entry.recipe)
        differences = [
            f"{name}: the values have content hash {got}, the registry pins {pinned}"
            for name, pinned in entry.content_sha256.items()
            if (got := content_sha256(getattr(tables, name))) != pinned
        ]
        if differences:
            raise TableError(
                f"{entry.id} as curated here differs from the registry (a fault of this package "
                "or of an untested library version: please report it)",
                differences,
            )
        about: dict[str, Any] = {
            "source": [file.model_dump() for file in entry.files],
            "licence": entry.licence,
            "citation": entry.citation,
        }
        return write_dataset(
            tables, folder, name=entry.name, version=entry.version, recipe=entry.recipe, about=about
        )
