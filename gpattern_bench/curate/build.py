"""A dataset of the registry, from its source files to its folder of tables."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import tempfile
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock

from gpattern_bench.base.files import MANIFEST, file_sha256
from gpattern_bench.base.progress import Progress
from gpattern_bench.base.workers import Workers, in_order, workers
from gpattern_bench.curate.readers import read_release
from gpattern_bench.curate.release import Piece
from gpattern_bench.curate.rules import Tables, apply_rules
from gpattern_bench.curate.write import new_folder, write_dataset
from gpattern_bench.errors import ChecksumError, FetchError, SourceError, TableError
from gpattern_bench.sources.cache import CACHE
from gpattern_bench.sources.fetch import fetch, fetch_tables, provenance
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import Entry, FinishedTables

__all__ = ["build", "curate", "export_tables"]

_Task = tuple[Piece, Recipe, bool]  # a piece, its recipe, and whether it must have labels

_log = logging.getLogger(__name__)


def build(entry: Entry, root: Path, *, download: bool = True) -> Path:
    """Return the dataset's folder ``root/name/version``; make it if it does not exist.

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


def _finished(
    entry: Entry, tables: FinishedTables, sources: Path, folder: Path, *, download: bool
) -> Path:
    """Fetch published tables."""
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
    jobs: int | None = None,
    cluster: str | None = None,
) -> Path:
    """Read a source release, apply the rules and write the tables, field of view by field of view.

    Parameters and errors are those of :func:`read_release`, :func:`apply_rules`,
    :func:`write_dataset` and, for `jobs` and `cluster`,
    :func:`gpattern_bench.base.workers.workers`; besides, `labelled` makes a release without labels
    a SourceError. The bytes do not depend on how many workers there are; those of a cluster must
    see `sources` and the parent of `folder` under the same paths.
    """
    sources, folder = sources.absolute(), folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _log.info("%s: making its tables", name)
    with (
        workers(jobs, cluster) as pool,
        # A worker may still write here after another has failed.
        tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as scratch,
    ):
        tasks = (
            (piece, recipe, labelled) for piece in read_release(recipe, sources, Path(scratch))
        )
        tables = _one_by_one(tasks) if pool is None else _from_workers(pool, tasks, Path(scratch))
        with closing(tables):  # after an error, workers stop before their folder goes
            shown = Progress(name, unit="fields of view").over(tables)
            return write_dataset(
                shown, folder, name=name, version=version, recipe=recipe, about=about, pinned=pinned
            )


def _one_by_one(tasks: Iterable[_Task]) -> Generator[Tables, None, None]:
    for task in tasks:
        yield _tables(*task)


def _tables(piece: Piece, recipe: Recipe, labelled: bool) -> Tables:
    release = piece()
    if labelled and release.labels is None:
        raise SourceError(
            f"{recipe.path} has no labels of {', '.join(recipe.patterns)}, which this dataset is "
            "for: the publisher's file is not the one that the registry expects"
        )
    return apply_rules(release, recipe)


def _from_workers(
    pool: Workers, tasks: Iterable[_Task], scratch: Path
) -> Generator[Tables, None, None]:
    """Yield the workers' tables, passed through files to save memory."""
    put_aside = ((task, scratch / f"tables-{k}.pickle") for k, task in enumerate(tasks))
    for path in in_order(pool, _put_aside, put_aside):
        with path.open("rb") as file:
            yield pickle.load(file)  # noqa: S301 - a worker of ours has just written it
        path.unlink()


def _put_aside(task: _Task, path: Path) -> Path:
    tables = _tables(*task)
    try:
        with path.open("wb") as file:
            pickle.dump(tables, file, protocol=5)
    except OSError as error:
        raise TableError(
            str(path), [f"cannot be written ({error}); make room on that disk and try again"]
        ) from error
    return path


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
        :class:`gpattern_bench.sources.registry.FinishedTables` pins.

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
