"""A curation recipe: format, options and rules, stored in the manifest."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from gpattern_bench.sources.controls import CONTROLS

__all__ = ["Recipe"]


class Recipe(BaseModel):
    """Everything but the source files that determines a dataset's tables.

    Attributes
    ----------
    format : {"bento-h5ad", "cosmx", "merscope", "spatialdata", "table", "xenium", "simulated", \
"joined"}
        The reader; ``joined``: those of `parts`.
    parts : tuple of Recipe
        Joined only: sources to read one after the other, each by its own recipe, in the order of
        their fields of view.
    path : str
        Path of the source below the folder of source files; unused for ``simulated``.
    patterns : tuple of str
        Classes, in the order of the label columns.
    unit_um : float
        Micrometres per unit of the source's coordinates (its pixel size).
    controls : str
        Regular expression, matched from the start of a gene's name in any case: control targets
        (blanks, negative probes), whose molecules and labels are dropped. If empty, also what the
        source itself marks as no gene stays (:mod:`gpattern_bench.curate.quality`).
    patternless : {"keep", "drop"}
        Keep labelled pairs without any pattern as rows of False, or drop them.
    split : {"fov", "test", "auto", "named"}
        Split whole fields of view 80:10:10, put every cell into test, the first if there are
        labels and else the second, or put each field of view into the split that its name begins
        with: ``train-``, ``val-`` or ``test-``.
    splits : dict of str to str
        FOV -> split; replaces the random split.
    cells_apart : dict of str to tuple of str
        FOV -> cells that are taken out of the source's own field of view and form this one, so
        that one field of view can serve two splits.
    seed : int
        Seed of the simulation and of the split.
    points, cells, nuclei : str or None
        SpatialData: elements; None: the usual ones
        (:func:`gpattern_bench.curate.readers.spatialdata.read_spatialdata`). Plain tables: files
        of outlines.
    x_column, y_column, gene_column, cell_column, fov_column : str or None
        Columns of the points (SpatialData) or of the table; None: the usual ones, and tiles instead
        of named fields of view.
    surrogate_outlines : bool
        Plain tables only: the cells' outlines are drawn around their molecules.
    tile_um : float
        Side of the square tiles used as fields of view if the source has none; 0: one FOV, "0".
    min_qv : float
        Drop molecules of lower quality, if the source has ``qv``.
    crops : dict of str to (int, int)
        CosMx only: FOV -> column and row of a cropped mask's first pixel in the whole image.
    like : {"synthetic", "synthetic_wide", "nih3t3", "u2os", "cosmx_lung"}
        Simulated only: simulated dataset to draw, or dataset whose size to imitate.
    n_cells : int or None
        Simulated only: number of cells to draw; None: as many as that dataset has.
    labels, labels_where
        A csv with columns ``cell``, ``gene`` and the patterns (0/1), below the folder of source
        files; only rows with these column values count.
    classifier : str or None
        The labels are the calls of this classifier: arrays of Bento's published forest below the
        folder of source files, or a saved model (:mod:`gpattern_bench.runs.label`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[
        "bento-h5ad", "cosmx", "merscope", "spatialdata", "table", "xenium", "simulated", "joined"
    ]
    path: str = ""
    parts: tuple[Recipe, ...] = ()
    patterns: tuple[str, ...] = Field(min_length=1)
    unit_um: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    controls: str = CONTROLS
    patternless: Literal["keep", "drop"] = "drop"
    split: Literal["fov", "test", "auto", "named"] = "fov"
    splits: dict[str, Literal["train", "val", "test"]] = {}
    cells_apart: dict[str, tuple[str, ...]] = {}
    seed: int = 0
    points: str | None = None
    cells: str | None = None
    nuclei: str | None = None
    x_column: str | None = None
    y_column: str | None = None
    gene_column: str | None = None
    cell_column: str | None = None
    fov_column: str | None = None
    surrogate_outlines: bool = False
    tile_um: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    min_qv: float = 20.0
    crops: dict[str, tuple[int, int]] = {}
    like: Literal["synthetic", "synthetic_wide", "nih3t3", "u2os", "cosmx_lung"] = "synthetic"
    n_cells: int | None = None
    labels: str | None = None
    labels_where: dict[str, str] = {}
    classifier: str | None = None

    @model_serializer(mode="wrap")
    def _as_stated(self, all_fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a number of cells that was not asked for, so that old manifests stay."""
        found: dict[str, Any] = all_fields(self)
        return {k: v for k, v in found.items() if k != "n_cells" or v is not None}

    @field_validator("patterns")
    @classmethod
    def _distinct_columns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        taken = {"fov", "cell_id", "gene", "n_molecules", ""}
        if len(set(patterns)) < len(patterns) or taken & set(patterns):
            raise ValueError("patterns must be distinct and must not be names of other columns")
        return patterns

    @field_validator("controls")
    @classmethod
    def _regular_expression(cls, controls: str) -> str:
        try:
            re.compile(controls)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return controls
