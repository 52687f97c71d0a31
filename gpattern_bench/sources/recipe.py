"""How a source release becomes tables: format, options and rules, as data in the manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    from gpattern_bench.curate.release import Piece

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

    def read(self, sources: Path, scratch: Path) -> Iterator[Piece]:
        """Yield the pieces of the source release below the folder `sources`, in its own units.

        Parameters
        ----------
        sources : pathlib.Path
        scratch : pathlib.Path
            Folder for what a reader must put aside; there until all pieces are read.

        Raises
        ------
        SourceError
            The source is missing or not in the stated format.
        MissingExtraError
            The format needs an extra that is not installed.
        """
        from gpattern_bench.curate.release import Release, by_fov, in_memory

        path = sources / self.path
        tile = self.tile_um / self.unit_um
        if self.format == "simulated":
            from gpattern_bench.curate.simulate import pieces_like

            return pieces_like(self.like, self.seed)
        if self.format == "cosmx":
            from gpattern_bench.curate.cosmx import read_cosmx

            return read_cosmx(path, scratch, crops=self.crops)
        if self.format == "merscope":
            from gpattern_bench.curate.merscope import read_merscope

            return read_merscope(path, scratch, tile=tile)
        if self.format == "xenium":
            from gpattern_bench.curate.xenium import read_xenium

            return read_xenium(path, scratch, tile=tile, min_qv=self.min_qv)
        if self.format == "bento-h5ad":
            from gpattern_bench.curate.bento import read_bento

            release = read_bento(path, self.patterns)
        else:
            from gpattern_bench.curate.spatialdata import read_spatialdata

            release = read_spatialdata(path, fov_column=self.fov_column, tile=tile)
        if self.labels is not None:
            from gpattern_bench.curate.labels import read_labels_csv

            labels, dropped = read_labels_csv(
                sources / self.labels, self.patterns, self.labels_where
            )
            release = Release(release.molecules, release.cells, labels, release.dropped | dropped)
        return (in_memory(piece) for piece in by_fov(release))
