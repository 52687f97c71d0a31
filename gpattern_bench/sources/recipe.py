"""How a source release becomes tables: format, options and rules, as data in the manifest."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["Recipe"]


class Recipe(BaseModel):
    """Everything that decides the values of a dataset's tables, besides the source files.

    Attributes
    ----------
    format : {"bento-h5ad", "cosmx", "merscope", "spatialdata", "xenium", "simulated"}
        Which reader reads the source.
    path : str
        The source below the folder of source files; unused for ``simulated``.
    patterns : tuple of str
        The classes, in the order of the label columns.
    unit_um : float
        Micrometres per unit of the source's coordinates (its pixel size).
    controls : str
        Regular expression, matched from the start of a gene's name whatever its case: control
        targets (blanks, negative probes), whose molecules and labels are dropped.
    patternless : {"keep", "drop"}
        What happens to labelled pairs that have none of the patterns: they stay as rows without
        a pattern, or they do not count.
    split : {"fov", "test"}
        Split whole fields of view 80:10:10, or put every cell into test.
    splits : dict of str to str
        FOV -> split, where it is not drawn but named.
    seed : int
        Seed of the simulation and of the split.
    fov_column : str or None
        SpatialData only: column of the points that names the field of view; None = tiles.
    tile_um : float
        Side of the square tiles that serve as fields of view where the source has none; 0 = one
        FOV, "0".
    min_qv : float
        Xenium only: molecules of lower quality are dropped.
    crops : dict of str to (int, int)
        CosMx only: FOV -> column and row, in the whole image, of the first pixel of its masks,
        where they are crops.
    like : {"synthetic", "nih3t3", "u2os", "cosmx_lung"}
        Simulated only: which dataset the release is like in size.
    labels, labels_where
        A csv with columns ``cell``, ``gene`` and the patterns (0/1), below the folder of source
        files; only rows whose columns equal these values are used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["bento-h5ad", "cosmx", "merscope", "spatialdata", "xenium", "simulated"]
    path: str = ""
    patterns: tuple[str, ...] = Field(min_length=1)
    unit_um: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    controls: str = "notarget|blank"
    patternless: Literal["keep", "drop"] = "drop"
    split: Literal["fov", "test"] = "fov"
    splits: dict[str, Literal["train", "val", "test"]] = {}
    seed: int = 0
    fov_column: str | None = None
    tile_um: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    min_qv: float = 20.0
    crops: dict[str, tuple[int, int]] = {}
    like: Literal["synthetic", "nih3t3", "u2os", "cosmx_lung"] = "synthetic"
    labels: str | None = None
    labels_where: dict[str, str] = {}

    @field_validator("patterns")
    @classmethod
    def _distinct_columns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        taken = {"fov", "cell_id", "gene", "n_molecules", ""}
        if len(set(patterns)) < len(patterns) or taken & set(patterns):
            raise ValueError("patterns must be distinct, and no names of other columns")
        return patterns

    @field_validator("controls")
    @classmethod
    def _regular_expression(cls, controls: str) -> str:
        try:
            re.compile(controls)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return controls
