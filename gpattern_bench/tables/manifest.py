"""Read and check the manifest of a dataset's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gpattern_bench.base.files import MANIFEST
from gpattern_bench.base.validation import invalid_text
from gpattern_bench.errors import TableError

__all__ = [
    "Counts",
    "Curation",
    "LabelledBy",
    "Manifest",
    "Placement",
    "TableFile",
    "read_manifest",
]

_REQUIRED = ("molecules.parquet", "cells.parquet", "splits.parquet")  # labels may be absent
_MOST = 5  # fields named in one error


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class TableFile(_Frozen):
    """One table; `sha256` hashes its bytes, `content_sha256` its values."""

    bytes: int
    sha256: str
    content_sha256: str
    rows: int | None = None


class _SplitCounts(_Frozen):
    """Rows of one split; `patterns`: labelled pairs per pattern, ``none`` and ``several``."""

    fovs: int | None = None
    cells: int
    molecules: int
    pairs: int | None = None
    labelled_pairs: int | None = None
    labelled_molecules: int | None = None
    patterns: dict[str, int] = {}

    @property
    def totals(self) -> dict[str, int]:
        """The numbers stated, by name."""
        return {name: value for name, value in self if isinstance(value, int)}


class Counts(_SplitCounts):
    """Rows of the whole dataset and of each split."""

    splits: dict[str, _SplitCounts]


class Curation(_Frozen):
    """Source format and micrometres per unit of its coordinates."""

    format: str
    unit_um: float


class Placement(_Frozen):
    """How many molecules lie in the cells under which they are filed.

    Attributes
    ----------
    tolerance_um : float
        Molecules at most so far beyond the outline count as inside.
    molecules, inside : int
    overlapping_cells : int
        Cells whose outline overlaps that of another cell.
    worst : dict of str to (int, int)
        Cell -> its molecules inside, its molecules; the cells of the lowest share.
    """

    tolerance_um: float
    molecules: int
    inside: int
    overlapping_cells: int
    worst: dict[str, tuple[int, int]] = {}

    @property
    def share(self) -> float:
        """Share of the molecules inside; 1 without molecules."""
        return self.inside / self.molecules if self.molecules else 1.0


class LabelledBy(_Frozen):
    """The classifier whose calls the labels are.

    Attributes
    ----------
    name : str
        For people.
    sha256 : str
        Hash over its values (arrays) or files (a saved model).
    thresholds : dict of str to float or None
        A pair has a pattern if its score is at least this; None: no calls.
    min_molecules : int
        Pairs with fewer molecules have no labels.
    unit_um : float or None
        Length of the pixel in which features were computed, if the classifier needs one.
    fitted_on : tuple of str or None
        Datasets that it was fitted on, ``name@version``, if known.
    """

    name: str
    sha256: str
    thresholds: dict[str, float | None]
    min_molecules: int = 1
    unit_um: float | None = None
    fitted_on: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """The classifier in words."""
        at = ", ".join(
            f"{name} {'-' if value is None else f'{value:g}'}"
            for name, value in self.thresholds.items()
        )
        least = f"; pairs of {self.min_molecules} or more molecules" * (self.min_molecules > 1)
        return f"{self.name}, SHA-256 {self.sha256[:12]}, thresholds {at}{least}"


class Manifest(_Frozen):
    """Contents of ``manifest.json``, read-only.

    Attributes
    ----------
    name, version : str
    patterns, genes : tuple of str
    counts : Counts
    files : dict of str to TableFile
    curation : Curation
    dropped : dict of str to dict of str to int
        Table -> reason -> rows that curation dropped.
    placement : Placement or None
        None in tables of older versions.
    warnings : tuple of str
    labelled_by : LabelledBy or None
        Set if the labels are the calls of a classifier that this package ran.
    published : dict of str to int or None
        Counts in the paper's table 1, for its datasets.
    raw : dict
        The whole JSON, with recipe, sources, licence and citation.
    """

    name: str
    version: str
    patterns: tuple[str, ...]
    genes: tuple[str, ...]
    counts: Counts
    files: dict[
        Literal["molecules.parquet", "cells.parquet", "labels.parquet", "splits.parquet"], TableFile
    ]
    curation: Curation
    dropped: dict[str, dict[str, int]] = {}
    placement: Placement | None = None
    warnings: tuple[str, ...] = ()
    labelled_by: LabelledBy | None = None
    published: dict[str, int] | None = None
    raw: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def has_labels(self) -> bool:
        """Whether the folder has a table of labels."""
        return "labels.parquet" in self.files

    @property
    def is_simulated(self) -> bool:
        """Whether the molecules were simulated, not measured."""
        return self.curation.format == "simulated"

    @property
    def unit_um(self) -> float:
        """Micrometres per unit of the source's coordinates."""
        return self.curation.unit_um


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder of tables and compare the files' sizes with it.

    Raises
    ------
    TableError
        The manifest is missing or invalid, or files have other sizes.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        raw = json.loads(text)
        manifest = Manifest.model_validate_json(text, strict=True).model_copy(update={"raw": raw})
    except (OSError, ValueError, RecursionError) as error:
        what = invalid_text(error, _MOST) if isinstance(error, ValidationError) else repr(error)
        raise TableError(
            str(folder),
            [f"{MANIFEST} is missing or not readable ({what}); make tables with `curate`"],
        ) from error
    if lacking := [name for name in _REQUIRED if name not in manifest.files]:
        problem = f"{MANIFEST} lists no {', '.join(lacking)}; make the tables again"
        raise TableError(str(folder), [problem])
    for key in ("patterns", "genes"):
        if len(set(getattr(manifest, key))) < len(getattr(manifest, key)):
            raise TableError(str(folder), [f"{MANIFEST} repeats {key}; make the tables again"])
    problems = [
        f"{name}: expected {file.bytes:,} bytes, "
        + (f"got {path.stat().st_size:,}" if path.is_file() else "it is not there")
        for name, file in manifest.files.items()
        if not (path := folder / name).is_file() or path.stat().st_size != file.bytes
    ]
    if problems:
        where = f"{folder.absolute()} ({manifest.id})"
        raise TableError(where, [*problems, "remove the folder and make it again"])
    return manifest
