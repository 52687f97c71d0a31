"""The registry of datasets: ``datasets.yaml``, checked and read-only."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import PureWindowsPath
from types import MappingProxyType
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from gpattern_bench.base.validation import invalid_text
from gpattern_bench.errors import GPatternBenchError, UnknownDatasetError
from gpattern_bench.sources.recipe import Recipe

__all__ = [
    "FOREST",
    "Entry",
    "FinishedTables",
    "SourceFile",
    "find_entry",
    "forest_file",
    "is_registered",
    "list_datasets",
    "read_registry",
    "registry",
]

_log = logging.getLogger(__name__)

_REGISTRY = "datasets.yaml"

FOREST = "rnaforest"
"""Name of Bento's published classifier, a file in the registry (:func:`forest_file`)."""

PUBLISHED = ("molecules", "cells", "genes", "molecules_per_cell", "patterns")
"""Columns of the paper's table 1, in its order."""

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Counts = Annotated[Mapping[str, int], AfterValidator(MappingProxyType), PlainSerializer(dict)]
_Hashes = Annotated[Mapping[str, _Sha256], AfterValidator(MappingProxyType), PlainSerializer(dict)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Checked(_Frozen):
    """Size and checksum as published; null: not published."""

    bytes: int | None = Field(gt=0)
    sha256: _Sha256 | None
    git_blob: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    arrays_sha256: _Sha256 | None = None

    @model_validator(mode="after")
    def _one_checksum(self) -> Self:
        if sum(map(bool, (self.sha256, self.git_blob, self.arrays_sha256))) > 1:
            raise ValueError("one of sha256, git_blob and arrays_sha256, not both")
        return self


class SourceFile(_Checked):
    """One file of a source release.

    Attributes
    ----------
    path : str
        Path below a mirror and below the cache's folder of source files.
    urls : tuple of str
        Publishers' addresses, in the order of trying; empty if nobody publishes it.
    made : str
        How to make a file that nobody publishes.
    bytes : int or None
        None: not published.
    sha256 : str or None
    git_blob : str or None
        Git's id of the content: SHA-1 of ``blob <size>``, a zero byte and the content.
    arrays_sha256 : str or None
        Of an ``.npz``, over the values of its arrays
        (:func:`gpattern_bench.base.arrays.arrays_sha256`), for a file that each user compresses.
        Without any of the three, no checksum is published.
    """

    path: str
    urls: tuple[str, ...]
    made: str = ""

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        if not self.urls and not self.made:
            raise ValueError("expected at least 1 item in urls, or how the file is made")
        return self

    @model_serializer(mode="wrap")
    def _as_stated(self, all_fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what only files that nobody publishes have, so that old manifests stay."""
        found: dict[str, Any] = all_fields(self)
        return {k: v for k, v in found.items() if v or k not in ("made", "arrays_sha256")}

    @field_validator("path")
    @classmethod
    def _stays_below(cls, path: str) -> str:
        parts = PureWindowsPath(path)  # splits at / and \\, knows drives
        if not parts.parts or parts.anchor or ".." in parts.parts:
            raise ValueError(f"{path!r} does not stay below a folder")
        return path

    @property
    def checksum(self) -> str | None:
        """Published checksum in words, or None."""
        if self.sha256:
            return f"SHA-256 {self.sha256}"
        if self.arrays_sha256:
            return f"SHA-256 over its arrays {self.arrays_sha256}"
        return f"Git blob id {self.git_blob}" if self.git_blob else None


class _NamedFile(_Checked):
    name: str
    address: str | None = None


class _Source(_Frozen):
    urls: tuple[str, ...]
    made: str = ""
    path: str
    files: tuple[_NamedFile, ...] = Field(min_length=1)


class FinishedTables(_Frozen):
    """A dataset's curated folder, served by any address.

    Attributes
    ----------
    urls : tuple of str
        Addresses of the folder, in the order of trying.
    sha256 : str
        Of its ``manifest.json``, which pins every other file.
    """

    urls: tuple[str, ...] = Field(min_length=1)
    sha256: _Sha256


class Entry(_Frozen):
    """Registry entry of one dataset version; read-only.

    Attributes
    ----------
    name, version : str
        Identify the dataset, as ``name@version``.
    title, technology, species, notes : str
        For people.
    release : str
        The source release in words.
    licence, terms : str
        The sources' licence, and who may redistribute them.
    citation : str
        The publications to cite.
    sources : tuple
        Files of the source release: address prefixes, path prefix and names. Empty for simulated
        data.
    tables : FinishedTables or None
        Curated tables, used instead of the sources.
    recipe : Recipe
        How the sources become tables.
    labelled_by : str or None
        The classifier whose calls the labels are; None: they are of other origin.
    published : mapping of str to int
        The paper's table 1 (:data:`PUBLISHED`); empty for other datasets.
    counts : mapping of str to int
        Counts after curation (fovs, cells, genes, molecules, pairs, labelled_pairs), for people.
        Empty before the first curation.
    test : mapping of str to int
        Labelled pairs of the test split: all (``pairs``) and those of each pattern. Empty before
        the first curation.
    content_sha256 : mapping of str to str
        Table -> hash of its values, which curation must reproduce.
    """

    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    title: str
    technology: str
    species: str
    release: str
    licence: str
    terms: str
    citation: str
    notes: str = ""
    sources: tuple[_Source, ...] = ()
    tables: FinishedTables | None = None
    recipe: Recipe
    labelled_by: str | None = None
    published: _Counts = Field(default={}, validate_default=True)
    counts: _Counts
    test: _Counts = Field(default={}, validate_default=True)
    content_sha256: _Hashes

    @field_validator("published")
    @classmethod
    def _all_of_table_1(cls, published: Mapping[str, int]) -> Mapping[str, int]:
        if published and tuple(published) != PUBLISHED:
            raise ValueError(f"expected {', '.join(PUBLISHED)}")
        return published

    @property
    def id(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def is_pinned(self) -> bool:
        """Whether anybody can make it, and gets the same labels or an error."""
        return "labels" in self.content_sha256 and all(
            file.checksum and file.urls for file in self.files
        )

    @property
    def download(self) -> str:
        """What making it fetches, in words: files, and their size as far as it is stated."""
        if self.tables is not None:
            return "finished tables, size not stated"
        if not self.files:
            return "nothing: simulated here"
        sizes = [file.bytes for file in self.files if file.urls]
        stated = [size for size in sizes if size is not None]
        size = f"{sum(stated) / 1e6:,.1f} MB" if stated else "size not stated"
        if stated and len(stated) < len(sizes):
            size += f" and {len(sizes) - len(stated)} of size not stated"
        text = f"{len(sizes)} file{'s' if len(sizes) > 1 else ''}, {size}" if sizes else "nothing"
        n_made = len(self.files) - len(sizes)
        return text + (f"; {n_made} to make (see info)" if n_made else "")

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Files of the source release, with complete paths and addresses."""
        return tuple(
            SourceFile(
                path=f"{source.path}/{file.name}".lstrip("/"),
                urls=tuple(f"{url}/{file.address or file.name}" for url in source.urls),
                bytes=file.bytes,
                sha256=file.sha256,
                git_blob=file.git_blob,
                arrays_sha256=file.arrays_sha256,
                made=source.made,
            )
            for source in self.sources
            for file in source.files
        )


@cache
def registry() -> tuple[Entry, ...]:
    """Return the sound entries of ``datasets.yaml``, in its order; logs an error for each other.

    Raises
    ------
    GPatternBenchError
        The file is not YAML, or no list of entries.
    """
    entries, problems = _of_the_package()
    for problem in problems.values():
        _log.error("%s", problem)
    return entries


@cache
def _of_the_package() -> tuple[tuple[Entry, ...], dict[str, str]]:
    return read_registry(_text())


def _text() -> str:
    return files("gpattern_bench.sources").joinpath(_REGISTRY).read_text(encoding="utf-8")


def read_registry(text: str) -> tuple[tuple[Entry, ...], dict[str, str]]:
    """Read entries of datasets: those that are sound, and what is wrong with the others.

    Parameters
    ----------
    text : str
        YAML, as that of ``datasets.yaml``.

    Returns
    -------
    entries : tuple of Entry
    problems : dict of str to str
        ``name@version`` of an entry, or what stands there -> every problem with it.

    Raises
    ------
    GPatternBenchError
        The text is not YAML, or no list of entries.
    """
    # The C parser is ten times faster; some builds of PyYAML lack it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load(text, loader)  # noqa: S506 - a safe one
    except yaml.YAMLError as error:
        raise GPatternBenchError(f"{_REGISTRY} is not YAML: {error}") from error
    if not isinstance(found, list):
        raise GPatternBenchError(
            f"{_REGISTRY}: expected a list of entries, each beginning with `- name:`, got "
            f"{type(found).__name__}"
        )
    entries: list[Entry] = []
    problems: dict[str, str] = {}
    for k, values in enumerate(found, 1):
        values = values if isinstance(values, dict) else {}
        known = f"{values.get('name', f'entry {k}')}@{values.get('version', '?')}"
        try:
            entry = Entry.model_validate(values)
        except ValidationError as error:
            problems[known] = f"{_REGISTRY}, {known}: {invalid_text(error)}"
            continue
        if entry.id in {other.id for other in entries}:
            problems[known] = f"{_REGISTRY}, {known}: stands there twice; the first counts"
            continue
        entries.append(entry)
    return tuple(entries), problems


def list_datasets() -> list[str]:
    """List the names that :func:`gpattern_bench.load_dataset` knows.

    Examples
    --------
    >>> "synthetic" in list_datasets()
    True
    """
    return list(dict.fromkeys(entry.name for entry in registry()))


def forest_file() -> SourceFile:
    """Return the file of Bento's published classifier as flat arrays.

    >>> forest_file().path
    'reference/rnaforest_flat.npz'
    """
    entries = [entry for entry in registry() if entry.recipe.classifier]
    return next(file for e in entries for file in e.files if file.path == e.recipe.classifier)


def is_registered(name: str) -> bool:
    """Test whether it is a registered name, with or without a version (known or not).

    >>> is_registered("synthetic@1.0.0"), is_registered("./synthetic"), is_registered("mine")
    (True, False, False)
    """
    return "/" not in name and name.partition("@")[0] in list_datasets()


def find_entry(name: str) -> Entry:
    """Look up ``name`` (newest version) or ``name@version``.

    Raises
    ------
    UnknownDatasetError
        The text gives the nearest names and the whole list.
    """
    wanted, _, version = name.partition("@")
    entries = [entry for entry in registry() if entry.name == wanted]
    if not entries:
        for known, problem in _of_the_package()[1].items():
            if known.partition("@")[0] == wanted:
                raise UnknownDatasetError(problem)
        near = difflib.get_close_matches(wanted.lower(), list_datasets(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownDatasetError(
            f"no dataset named {wanted!r}, and no folder of tables at that path.{hint} "
            f"Known: {', '.join(list_datasets())}."
        )
    if not version:
        return max(entries, key=lambda entry: tuple(map(int, entry.version.split("."))))
    for entry in entries:
        if entry.version == version:
            return entry
    raise UnknownDatasetError(
        f"dataset {wanted} has no version {version!r}; known: "
        f"{', '.join(entry.version for entry in entries)}."
    )
