"""Sources of an answer: what was asked of, and its tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpattern_bench.base.files import MANIFEST
from gpattern_bench.base.validation import invalid_fields
from gpattern_bench.curate.readers.detect import FORMATS, detect_format
from gpattern_bench.data.dataset import Dataset, load_dataset
from gpattern_bench.errors import SourceError
from gpattern_bench.sources.patterns import FOUR_PATTERNS, THREE_PATTERNS
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import is_registered

__all__ = ["Source", "find_source", "is_spatialdata"]

_UNITS = {
    "cosmx": "0.12028, or 0.18 for the lung release of 2022",
    "spatialdata": "1 if its coordinates are micrometres",
    "bento-h5ad": "its pixel size",
    "table": "1 if its coordinates are micrometres",
}
"""Formats that do not state their unit, with what it may be."""
_TILED = ("xenium", "merscope", "spatialdata", "table")
_TILE_UM = 500.0


@dataclass(frozen=True)
class Source:
    """What is asked of: tables, or a release to curate first.

    Attributes
    ----------
    dataset : Dataset or None
        The tables; None: they are to be made, by `recipe`.
    folder : pathlib.Path or None
        Folder of the release.
    recipe : Recipe or None
    identity : dict
        What tells it from every other: as `answer.json` holds it.
    """

    dataset: Dataset | None
    folder: Path | None
    recipe: Recipe | None
    identity: Mapping[str, Any]

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of the tables."""
        made = self.recipe if self.dataset is None else self.dataset
        assert made is not None
        return made.patterns

    def holds(self, path: Path) -> bool:
        """Tell whether a path is in the release."""
        if self.folder is None or self.recipe is None:
            return False
        return path.resolve().is_relative_to((self.folder / self.recipe.path).resolve())


def find_source(
    source: Any,
    *,
    form: str | None = None,
    unit_um: float | None = None,
    cells: str | None = None,
    nuclei: str | None = None,
    surrogate_outlines: bool = False,
) -> Source:
    """Find what is asked of.

    Parameters
    ----------
    source : Dataset, spatialdata.SpatialData, str or pathlib.Path
        A dataset, its name or its folder of tables; a SpatialData object; or an instrument's folder
        or file.
    form : str, optional
        Format of a release; default: told by the files in it.
    unit_um : float, optional
        Micrometres per unit, of formats that do not state it.
    cells, nuclei : str, optional
        Of a plain table files of outlines; of SpatialData elements.
    surrogate_outlines : bool
        Of a plain table: draw the outlines around the molecules.

    Raises
    ------
    SourceError
        The format cannot be told, or options are missing or are not for it.
    UnknownDatasetError
        No dataset has that name, and no file or folder is there.
    TableError
        The tables are incomplete.
    """
    given = {
        "--format": form,
        "--unit-um": unit_um,
        "--cells": cells,
        "--nuclei": nuclei,
        "--surrogate-outlines": surrogate_outlines or None,
    }
    given = {option: value for option, value in given.items() if value is not None}
    if is_spatialdata(source):
        for option in ("--format", "--surrogate-outlines"):
            _refuse(option, given, "a SpatialData object")
        options = {"unit_um": unit_um, "cells": cells, "nuclei": nuclei}
        known = {name: value for name, value in options.items() if value is not None}
        source = Dataset.from_spatialdata(source, **known)
        given = {}
    if _is_of("anndata", source):
        raise SourceError(
            "an AnnData counts molecules and does not say where they are: give the SpatialData "
            "object or the instrument's folder that it was made of; `to_anndata()` of the answer "
            "has the calls as layers of cells by genes"
        )
    if not isinstance(source, str | Path | Dataset):
        raise SourceError(
            "expected a dataset, its name, a folder or file, or a SpatialData object, got a "
            f"{type(source).__name__}"
        )
    path = None if isinstance(source, Dataset) else Path(source).expanduser()
    if path is None or _is_tables(source, path):
        for option in given:
            _refuse(option, given, "tables, which are curated already")
        dataset = source if isinstance(source, Dataset) else load_dataset(source)
        return Source(dataset, None, None, _identity_of_tables(dataset))
    return _release(path.absolute(), given)


def is_spatialdata(source: Any) -> bool:
    """Test it without importing spatialdata, which takes seconds."""
    return _is_of("spatialdata", source)


def _is_of(library: str, source: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == library for kind in type(source).__mro__)


def _is_tables(source: Any, path: Path) -> bool:
    registered = isinstance(source, str) and is_registered(source)
    return registered or (path / MANIFEST).is_file() or not path.exists()


def _identity_of_tables(dataset: Dataset) -> dict[str, Any]:
    files = dataset.manifest.files
    hashes = {name: files[name].content_sha256 for name in sorted(files)}
    return {"format": "tables", "dataset": dataset.id, "content_sha256": hashes}


def _release(path: Path, given: Mapping[str, Any]) -> Source:
    form = given.get("--format") or detect_format(path)
    if form not in FORMATS:
        raise SourceError(f"--format: expected one of {', '.join(FORMATS)}, got {form}")
    is_table, is_zarr = form == "table", form == "spatialdata"
    if form in _UNITS and "--unit-um" not in given:
        raise SourceError(
            f"{path} ({form}) does not state its unit: give --unit-um, micrometres per unit of the "
            f"coordinates: {_UNITS[form]}"
        )
    if form not in _UNITS:
        _refuse("--unit-um", given, f"{form}, whose unit is known")
    for option in ("--cells", "--nuclei"):
        if not (is_table or is_zarr):
            _refuse(option, given, f"{form}, whose outlines are found by their names")
    if not is_table:
        _refuse("--surrogate-outlines", given, f"{form}, which has outlines")
    outlines = {key: given.get(f"--{key}") for key in ("cells", "nuclei")}
    if is_table:
        outlines = {k: v and str(Path(v).expanduser().absolute()) for k, v in outlines.items()}
    rules: dict[str, Any] = {
        "format": form,
        "path": path.name,
        "patterns": THREE_PATTERNS if form == "cosmx" else FOUR_PATTERNS,
        "split": "test",  # nothing is fitted: all fields of view are of one kind
        "surrogate_outlines": "--surrogate-outlines" in given,
        **outlines,
    }
    if form in _UNITS:
        rules["unit_um"] = given["--unit-um"]
    if form in _TILED:
        rules["tile_um"] = _TILE_UM
    try:
        recipe = Recipe.model_validate(rules)
    except ValidationError as error:
        field, why = invalid_fields(error)[0]
        option = {"unit_um": "--unit-um"}.get(field, field)
        raise SourceError(f"{path} ({form}): {option}: {why}") from error
    files = [path, *(Path(v) for v in outlines.values() if is_table and v is not None)]
    identity = {
        "format": form,
        "path": str(path),
        "files_sha256": _listing_sha256(files),
        "curation": recipe.model_dump(mode="json", exclude_defaults=True),
    }
    return Source(None, path.parent, recipe, identity)


def _refuse(option: str, given: Mapping[str, Any], what: str) -> None:
    if option in given:
        raise SourceError(f"{option} is not for {what}: leave it out")


def _listing_sha256(roots: list[Path]) -> str:
    """Hash the names, sizes and times of change of files: to read gigabytes would take minutes."""
    total = hashlib.sha256()
    for root in roots:
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        for file in files:
            about = file.stat()
            name = file.relative_to(root.parent).as_posix()
            total.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return total.hexdigest()
