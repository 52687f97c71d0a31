"""The datasets that are known by name: ``datasets.yaml``, checked and read-only."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field

from gpattern_bench.curate.recipe import Recipe
from gpattern_bench.errors import UnknownDatasetError

__all__ = ["Entry", "SourceFile", "find_entry", "list_datasets", "registry"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceFile(_Frozen):
    """One file of a source release.

    Attributes
    ----------
    path : str
        Where it lies below a mirror and below the cache's folder of source files.
    url : str
        The pinned address.
    bytes : int
    sha256 : str
    """

    path: str
    url: str
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _NamedFile(_Frozen):
    name: str
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class _Source(_Frozen):
    url: str
    path: str
    files: tuple[_NamedFile, ...] = Field(min_length=1)


class Entry(_Frozen):
    """What the registry knows of one dataset version.

    Attributes
    ----------
    name, version : str
        Together the dataset's identity, ``name@version``.
    title, technology, species, licence, citation, notes : str
        For people.
    sources : tuple
        The source release: address prefix, path prefix and files. Empty for simulated data.
    recipe : Recipe
        How the sources become tables.
    counts : dict of str to int
        What curation finds (fovs, cells, genes, molecules, pairs, labelled_pairs), for people.
    content_sha256 : dict of str to str
        Table -> hash over its values that curation must reproduce.
    """

    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    title: str
    technology: str
    species: str
    licence: str
    citation: str
    notes: str = ""
    sources: tuple[_Source, ...] = ()
    recipe: Recipe
    counts: dict[str, int]
    content_sha256: dict[str, str]

    @property
    def id(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Every file of the source release, with whole path and address."""
        return tuple(
            SourceFile(
                path=f"{source.path}/{file.name}".lstrip("/"),
                url=f"{source.url}/{file.name}",
                bytes=file.bytes,
                sha256=file.sha256,
            )
            for source in self.sources
            for file in source.files
        )


@cache
def registry() -> tuple[Entry, ...]:
    """All entries of ``datasets.yaml``, in its order."""
    text = files("gpattern_bench").joinpath("datasets.yaml").read_text(encoding="utf-8")
    return tuple(Entry.model_validate(entry) for entry in yaml.safe_load(text))


def list_datasets() -> list[str]:
    """Names of the datasets that :func:`gpattern_bench.load_dataset` knows.

    Examples
    --------
    >>> "synthetic" in list_datasets()
    True
    """
    return list(dict.fromkeys(entry.name for entry in registry()))


def find_entry(name: str) -> Entry:
    """Look up ``name`` (newest version) or ``name@version``.

    Raises
    ------
    UnknownDatasetError
        The text has the nearest names and the whole list.
    """
    wanted, _, version = name.partition("@")
    entries = [entry for entry in registry() if entry.name == wanted]
    if not entries:
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
