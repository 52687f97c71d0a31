"""Readers, one per format: a source release in pieces that any process can read.

Readers have no rules of their own: `curate/rules` says what is dropped, for all formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from gpattern_bench.curate.quality import Quality
from gpattern_bench.curate.release import Dropped, Piece, Release, by_fov, in_memory
from gpattern_bench.errors import SourceError
from gpattern_bench.sources.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_release"]


def read_release(recipe: Recipe, sources: Path, scratch: Path) -> Iterator[Piece]:
    """Yield the pieces of a source release, in its own units.

    Parameters
    ----------
    recipe : Recipe
        Format, and path below `sources`.
    sources : pathlib.Path
    scratch : pathlib.Path
        Folder for temporary files; must exist until all pieces are read.

    Raises
    ------
    SourceError
        The source is missing or has another format.
    MissingExtraError
        The format needs an extra that is not installed.
    """
    path = sources / recipe.path
    tile = recipe.tile_um / recipe.unit_um
    if recipe.format == "simulated" and recipe.like == "synthetic_wide":
        from gpattern_bench.curate.simulate.wide import wide_pieces

        return wide_pieces(recipe.seed)
    if recipe.format == "simulated":
        from gpattern_bench.curate.simulate.cells import pieces_like

        return pieces_like(recipe.like, recipe.seed, recipe.n_cells)
    if recipe.format == "cosmx":
        from gpattern_bench.curate.readers.cosmx import read_cosmx

        return read_cosmx(path, scratch, crops=recipe.crops)
    if recipe.format == "merscope":
        from gpattern_bench.curate.readers.merscope import read_merscope

        return read_merscope(path, scratch, tile=tile, quality=Quality.of(recipe))
    if recipe.format == "xenium":
        from gpattern_bench.curate.readers.xenium import read_xenium

        return read_xenium(path, scratch, tile=tile, quality=Quality.of(recipe))
    labels, dropped = _labels(recipe, sources)
    if recipe.format == "table":
        from gpattern_bench.curate.readers.plain_table import plain_pieces, read_plain_table

        if (recipe.cells is None) != recipe.surrogate_outlines:
            raise SourceError(
                f"{path}: expected outlines from a file (--cells) or around the molecules "
                f"(--surrogate-outlines), got {'neither' if recipe.cells is None else 'both'}"
            )
        found = read_plain_table(
            path,
            columns={
                "x": recipe.x_column,
                "y": recipe.y_column,
                "gene": recipe.gene_column,
                "cell": recipe.cell_column,
                "fov": recipe.fov_column,
            },
            cells=None if recipe.cells is None else sources / recipe.cells,
            nuclei=None if recipe.nuclei is None else sources / recipe.nuclei,
        )
        return plain_pieces(
            *found,
            scratch,
            tile=tile,
            quality=Quality.of(recipe),
            labels=labels,
            dropped=dropped,
        )
    if recipe.format == "bento-h5ad":
        from gpattern_bench.curate.readers.bento import read_bento

        release = read_bento(path, recipe.patterns)
    elif recipe.format == "spatialdata":
        from gpattern_bench.curate.readers.spatialdata import read_spatialdata

        release = read_spatialdata(
            path,
            points=recipe.points,
            cells=recipe.cells,
            nuclei=recipe.nuclei,
            gene_column=recipe.gene_column,
            cell_column=recipe.cell_column,
            fov_column=recipe.fov_column,
            tile=tile,
        )
    elif recipe.format == "joined":
        raise SourceError("a recipe of format joined needs parts, one for each source")
    else:
        assert_never(recipe.format)
    if labels is not None:
        release = Release(release.molecules, release.cells, labels, release.dropped | dropped)
    return (in_memory(piece) for piece in by_fov(release))


def _labels(recipe: Recipe, sources: Path) -> tuple[pd.DataFrame | None, Dropped]:
    """Read the recipe's csv of labels, if it has one."""
    if recipe.labels is None:
        return None, {}
    from gpattern_bench.curate.readers.label_csv import read_labels_csv

    return read_labels_csv(sources / recipe.labels, recipe.patterns, recipe.labels_where)
