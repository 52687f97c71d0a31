"""A dataset of the registry, from its source files to its folder of tables."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from gpattern_bench.curate.recipe import Recipe
from gpattern_bench.curate.release import Release
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.write import MANIFEST, new_folder, write_dataset
from gpattern_bench.errors import ChecksumError, FetchError, SourceError, TableError
from gpattern_bench.fetch import CACHE, fetch, fetch_tables, provenance
from gpattern_bench.files import file_sha256
from gpattern_bench.registry import Entry, Tables

__all__ = ["build", "curate", "export_tables"]

_log = logging.getLogger(__name__)


def build(entry: Entry, root: Path, *, download: bool = True) -> Path:
    """Return the dataset's folder ``root/name/version``, made first if it is not there.

    Source files are fetched to ``root/sources``, curated by the entry's recipe, compared with the
    content hashes of the registry and written whole; where the entry names finished tables, these
    are fetched instead. Of several processes one does the work.

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
        for stale in folder.parent.glob(f".{folder.name}-*"):  # of a run that was killed
            shutil.rmtree(stale, ignore_errors=True)
        sources = root / "sources"
        if entry.tables is not None:
            try:
                return _finished(entry, entry.tables, sources, folder, download=download)
            except ChecksumError:
                raise
            except FetchError as error:
                if not entry.files:
                    raise
                _log.warning("%s; curating the source files instead", error)
        for file in entry.files:
            fetch(file, sources, download=download)
        about: dict[str, Any] = {
            "title": entry.title,
            "release": entry.release,
            "source": [provenance(file, sources) for file in entry.files],
            "licence": entry.licence,
            "terms": entry.terms,
            "citation": entry.citation,
            "published": dict(entry.published),
        }
        return curate(
            entry.recipe,
            sources,
            folder,
            name=entry.name,
            version=entry.version,
            about=about,
            pinned=entry.content_sha256,
            labelled=bool(entry.published) or "labelled_pairs" in entry.counts,
        )


def _finished(entry: Entry, tables: Tables, sources: Path, folder: Path, *, download: bool) -> Path:
    """Fetch the tables that somebody has curated before."""
    path = f"tables/{entry.name}/{entry.version}"
    fetched = fetch_tables(tables, path, sources, download=download)
    manifest = json.loads((fetched / MANIFEST).read_text(encoding="utf-8"))
    found = f"{manifest.get('name')}@{manifest.get('version')}"
    if found != entry.id:
        raise TableError(
            str(fetched), [f"expected the tables of {entry.id}, the manifest names {found}"]
        )
    fetched.replace(folder)
    return folder


def curate(
    recipe: Recipe,
    sources: Path,
    folder: Path,
    *,
    name: str,
    version: str,
    about: Mapping[str, Any] | None = None,
    pinned: Mapping[str, str] | None = None,
    labelled: bool = False,
) -> Path:
    """Read a source release, apply the rules and write the tables, field of view by field of view.

    Parameters and errors are those of :meth:`Recipe.read`, :func:`apply_rules` and
    :func:`write_dataset`; besides, `labelled` makes a release without labels a SourceError.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        pieces = recipe.read(sources, Path(scratch))
        # disable=None: a bar on a terminal only
        bar = tqdm(pieces, desc=name, unit=" fields of view", disable=None)
        tables = (apply_rules(_checked(piece, recipe, labelled), recipe) for piece in bar)
        return write_dataset(
            tables, folder, name=name, version=version, recipe=recipe, about=about, pinned=pinned
        )


def _checked(piece: Release, recipe: Recipe, labelled: bool) -> Release:
    if labelled and piece.labels is None:
        raise SourceError(
            f"{recipe.path} has no labels of {', '.join(recipe.patterns)}, which this dataset is "
            "for: the publisher's file is not the one that the registry expects"
        )
    return piece


def export_tables(folder: Path, out: Path) -> str:
    """Copy a dataset's folder, with ``SHA256SUMS``, for any address to serve.

    Parameters
    ----------
    folder : pathlib.Path
        Tables that were verified.
    out : pathlib.Path
        Must not exist, or be empty.

    Returns
    -------
    str
        SHA-256 of the manifest, which names the size and SHA-256 of every other file: what
        :class:`gpattern_bench.registry.Tables` pins.

    Raises
    ------
    TableError
        The folder is in use or cannot be written.
    """
    with new_folder(out) as beside:
        sums = {}
        for file in [*sorted(folder.glob("*.parquet")), folder / MANIFEST]:
            shutil.copyfile(file, beside / file.name)
            sums[file.name] = file_sha256(beside / file.name)
        text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
        (beside / "SHA256SUMS").write_text(text, encoding="utf-8")
    return sums[MANIFEST]
