"""Make tables: of a dataset in the registry (`build`), or of any source release (`curate`)."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock

from gpattern_bench.base.files import MANIFEST, file_sha256
from gpattern_bench.base.progress import Progress
from gpattern_bench.base.workers import Workers, in_order, workers
from gpattern_bench.curate.readers import read_release
from gpattern_bench.curate.release import Piece, move_cells, writing
from gpattern_bench.curate.rules import Tables, apply_rules
from gpattern_bench.curate.write import new_folder, write_dataset
from gpattern_bench.errors import ChecksumError, FetchError, SourceError, TableError
from gpattern_bench.sources.cache import CACHE
from gpattern_bench.sources.fetch import fetch, fetch_tables, provenance
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import FOREST, Entry, FinishedTables

__all__ = ["build", "curate", "export_tables", "making"]

_Task = tuple[Piece, Recipe, bool]  # the arguments of `_curated`

_log = logging.getLogger(__name__)


def build(entry: Entry, root: Path, *, download: bool = True) -> Path:
    """Return the dataset's folder ``root/name/version``; make it if it does not exist.

    Fetches the source files to ``root/sources``, curates them by the entry's recipe, compares the
    values with the registry's content hashes and writes all or nothing. If the entry names
    finished tables, fetches these instead. One process at a time makes a dataset.

    Raises
    ------
    FetchError
        A source file cannot be fetched.
    SourceError
        A source file has another format than its reader expects.
    MethodError
        The classifier that makes the labels is damaged.
    TableError
        The values differ from those that the registry pins; nothing is written.
    """
    folder = root / entry.name / entry.version
    if (folder / MANIFEST).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TableError(
            str(folder), [f"the cache cannot be written ({error}); set {CACHE} to another folder"]
        ) from error
    with _alone(folder):
        if (folder / MANIFEST).is_file():  # made by another process meanwhile
            return folder
        sources = root / "sources"
        if entry.tables is not None:
            try:
                return _fetch_finished(entry, entry.tables, sources, folder, download=download)
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
        made = _curate(
            entry.recipe,
            sources,
            folder,
            name=entry.name,
            version=entry.version,
            about=about,
            pinned=entry.content_sha256,
            labelled="labelled_pairs" in entry.counts
            # a classifier's calls can be made again, see `label`
            or (bool(entry.published) and entry.labelled_by is None),
        )
        if entry.labelled_by and not (made / "labels.parquet").is_file():
            _log.warning(
                "%s: the release has no labels, which are to be calls of %s; `gpattern-bench label "
                "%s --with %s --out DIR` makes them",
                entry.id, entry.labelled_by, entry.name, FOREST,
            )  # fmt: skip
        return made


def _fetch_finished(
    entry: Entry, tables: FinishedTables, sources: Path, folder: Path, *, download: bool
) -> Path:
    """Fetch finished tables into the dataset's folder."""
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

    The bytes do not depend on the number of workers. One process at a time makes a folder; what a
    killed one left beside it is removed. Workers of a cluster must see `sources` and
    the parent of `folder` under the same paths.

    Parameters and errors are those of :func:`read_release`, :func:`apply_rules`,
    :func:`write_dataset` and, for `jobs` and `cluster`,
    :func:`gpattern_bench.base.workers.workers`. With `labelled`, a release without labels is a
    SourceError.
    """
    with making(folder) as here:
        return _curate(
            recipe,
            sources.absolute(),
            here,
            name=name,
            version=version,
            about=about,
            pinned=pinned,
            labelled=labelled,
            jobs=jobs,
            cluster=cluster,
        )


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Make a folder outside the cache as its only maker; gives its absolute path."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as lock:
        try:
            yield folder
        finally:
            with suppress(OSError):  # nothing stays in a folder that is not the cache
                lock.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Keep other processes from making the same folder; remove what killed ones left."""
    lock = folder.parent / f".{folder.name}.lock"
    with FileLock(lock):
        for stale in folder.parent.glob(f".{escape(folder.name)}-{'?' * 8}"):
            shutil.rmtree(stale, ignore_errors=True)
        yield lock


def _curate(
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
    if recipe.classifier is not None:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as home:
            plain: dict[str, Any] = {"classifier": None, "split": "test", "splits": {}}
            options: dict[str, Any] = {"name": name, "version": version}
            unlabelled = _curate(
                recipe.model_copy(update=plain),
                sources,
                Path(home) / "unlabelled",
                **options,
                jobs=jobs,
                cluster=cluster,
            )
            from gpattern_bench.runs.label import load_classifier, write_labelled

            classifier = load_classifier(sources / recipe.classifier)
            options |= {"recipe": recipe, "about": about, "pinned": pinned}
            return write_labelled(unlabelled, classifier, folder, **options)
    _log.info("%s: making its tables", name)
    with (
        workers(jobs, cluster) as pool,
        # Errors ignored: after one worker fails, another may still write here.
        tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as scratch,
    ):
        tasks = (
            (piece, part, labelled)
            for part in _parts(recipe)
            for piece in read_release(part, sources, Path(scratch))
        )
        one_by_one = (_curated(*task) for task in tasks)
        tables = one_by_one if pool is None else _from_workers(pool, tasks, Path(scratch))
        with closing(tables):  # after an error, stop the workers before removing their folder
            shown = Progress(name, unit="fields of view").over(tables)
            return write_dataset(
                shown, folder, name=name, version=version, recipe=recipe, about=about, pinned=pinned
            )


def _parts(recipe: Recipe) -> Iterator[Recipe]:
    """Yield the recipe of each source."""
    for part in recipe.parts or (recipe,):
        yield part.model_copy(update={"cells_apart": recipe.cells_apart})


def _curated(piece: Piece, recipe: Recipe, labelled: bool) -> Tables:
    """Read a piece and apply the rules; `labelled`: raise if it has no labels."""
    release = move_cells(piece(), recipe.cells_apart)
    if labelled and release.labels is None:
        raise SourceError(
            f"{recipe.path} has no labels of {', '.join(recipe.patterns)}, which the registry "
            "expects; fetch the publisher's file again"
        )
    return apply_rules(release, recipe)


def _from_workers(
    pool: Workers, tasks: Iterable[_Task], scratch: Path
) -> Generator[Tables, None, None]:
    """Yield the workers' tables; they wait in files, not in memory."""
    jobs = ((task, scratch / f"tables-{k}.pickle") for k, task in enumerate(tasks))
    for path in in_order(pool, _save_tables, jobs):
        with path.open("rb") as file:
            yield pickle.load(file)  # noqa: S301 - written by our own worker
        path.unlink()


def _save_tables(task: _Task, path: Path) -> Path:
    tables = _curated(*task)
    with writing(path), path.open("wb") as file:
        pickle.dump(tables, file, protocol=5)
    return path


def export_tables(folder: Path, out: Path) -> str:
    """Copy a dataset's folder and add ``SHA256SUMS``, ready to be served from any address.

    Parameters
    ----------
    folder : pathlib.Path
        Verified tables.
    out : pathlib.Path
        Must not exist, or be empty.

    Returns
    -------
    str
        SHA-256 of the manifest, to pin in
        :class:`gpattern_bench.sources.registry.FinishedTables`; the manifest holds those of the
        other files.

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
