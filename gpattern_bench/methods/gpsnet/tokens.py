"""What GPSNet reads: cells as tokens, in an order of their own, and batches of them.

:func:`prepare` turns a cell into :class:`Tokens`, once; :func:`collate` lays cells end to end in a
:class:`Batch`. Both run in loader workers.

In the comments on shapes: L tokens and g pairs of a cell, T and G of a batch of N cells, V genes of
the vocabulary, C patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpattern_bench.data.cells import Cell
from gpattern_bench.methods.context import context_fields
from gpattern_bench.methods.gpsnet.plan import KNNPlan, join_plans, knn_plan

if TYPE_CHECKING:
    from gpattern_bench.methods.gpsnet.config import Config

__all__ = ["FIELDS", "Batch", "Spans", "Tokens", "collate", "prepare", "vocabulary_rows"]

FIELDS = ("depth", "from_nucleus", "between", "radius", "in_nucleus", "has_nucleus")
"""Invariant inputs of a molecule, lengths in sizes of the cell; the first four are continuous.

As :class:`~gpattern_bench.base.geometry.CellGeometry` has them, the radius at most 1.2. Without a
nucleus, `from_nucleus`, `between` and both flags are 0.
"""

_UNIT = 10.0  # um: distances of order 1 for the network
OUTLINE_POINTS = 48  # tokens along the outline of a cell, and of its nucleus


@dataclass(frozen=True, eq=False)
class Tokens:
    """One cell as the network reads it, in an order that does not depend on the input's.

    Attributes
    ----------
    xy : torch.Tensor
        (L, 2) float32, cell-centric, along the plan's curve: micrometres, or with invariant
        inputs sizes of the cell.
    row : torch.Tensor
        (L,) int64: the row of `query` whose gene the molecule is of; g for a point of the cell's
        outline and g + 1 for one of the nucleus'.
    query : torch.Tensor
        (g,) int64: rows in the vocabulary of the genes present, as ``cell.genes``; V is unknown.
    count : torch.Tensor
        (g,) float32: molecules of each of `query`.
    plan : KNNPlan or None
        Of these tokens, in this order; None without an encoder.
    fields : torch.Tensor or None
        (L, F) float32: :data:`FIELDS`, if they are the inputs, and the context if it is.
    labels, labelled : torch.Tensor or None
        (g, C) float32 and (g,) bool, as the cell's.
    z : torch.Tensor or None
        (L,) float32: heights above the cell's mean, in the unit of `xy`, if the network reads them.
    """

    xy: Tensor
    row: Tensor
    query: Tensor
    count: Tensor
    plan: KNNPlan | None
    fields: Tensor | None = None
    labels: Tensor | None = None
    labelled: Tensor | None = None
    z: Tensor | None = None

    def __len__(self) -> int:
        return len(self.xy)

    def mapped(self, matrix: NDArray[np.floating[Any]]) -> Tokens:
        """The cell rotated or mirrored by an orthogonal matrix (2, 2): neighbours stay."""
        return replace(self, xy=self.xy @ torch.as_tensor(matrix, dtype=torch.float32).T)

    def without_genes(self, genes: NDArray[np.bool_], unknown: int) -> Tokens:
        """The cell with some of its genes (g,) made unknown; `unknown` is the size of V."""
        return replace(self, query=self.query.masked_fill(torch.from_numpy(genes), unknown))


def vocabulary_rows(genes: Sequence[str], panel: Sequence[str]) -> NDArray[np.int64]:
    """Rows in the vocabulary `genes` of a panel's genes; ``len(genes)`` for those unknown.

    Examples
    --------
    >>> vocabulary_rows(["ACTB", "MYC"], ["MYC", "TP53"]).tolist()
    [1, 2]
    """
    row = {gene: at for at, gene in enumerate(genes)}
    return np.array([row.get(gene, len(genes)) for gene in panel], np.int64)


def prepare(
    cell: Cell,
    rows: NDArray[np.int64],
    config: Config,
    scores: NDArray[np.float64] | None = None,
) -> Tokens:
    """Turn a cell into tokens, with its neighbour plan; for loader workers, once per cell.

    Molecules are sorted by position and gene first, so that the result, to the last bit, is the
    same in whatever order they come.

    Parameters
    ----------
    cell : Cell
    rows : numpy.ndarray
        Of :func:`vocabulary_rows`: the row of each gene code of the cell's panel.
    config : Config
    scores : numpy.ndarray, optional
        (P, C) scores of the genes of the panel, if the configuration has the context.
    """
    row = np.searchsorted(cell.genes, cell.gene)
    xy, fields, z = cell.xy, None, None
    if config.depth:
        z = np.zeros(len(xy)) if cell.z is None else np.nan_to_num(cell.z - np.nanmean(cell.z))
    if config.inputs != "coordinates":
        xy, fields = xy / cell.geometry.size, _fields(cell)
        if config.inputs == "micrometres":
            fields[:, :2] *= cell.geometry.size / _UNIT
        if z is not None:
            unit = _UNIT if config.inputs == "micrometres" else cell.geometry.size
            fields = np.column_stack([fields, np.float32(z / unit)])
            z = z / cell.geometry.size
        if config.context:
            assert scores is not None
            fields = np.column_stack([fields, context_fields(cell, scores)])
    if config.outlines:
        shapes = [cell.boundary] if cell.nucleus is None else [cell.boundary, cell.nucleus]
        points = [_along(shape) for shape in shapes]
        kinds = [np.full(len(p), len(cell.genes) + kind) for kind, p in enumerate(points)]
        if z is not None:
            z = np.append(z, np.zeros(sum(map(len, points))))
        xy, row = np.concatenate([xy, *points]), np.concatenate([row, *kinds])
    at = xy if z is None else np.column_stack([xy, z])
    order = np.lexsort((row, *at.T[::-1]))
    plan = None
    if config.encoder_depth:
        plan = knn_plan(at[order], config.neighbours)
        assert plan.order is not None  # it is new
        order, plan = order[plan.order.numpy()], plan.in_order()
    return Tokens(
        xy=torch.from_numpy(xy[order].astype(np.float32)),
        row=torch.from_numpy(row[order].astype(np.int64)),
        query=torch.from_numpy(rows[cell.genes]),
        count=torch.from_numpy(cell.counts.astype(np.float32)),
        plan=plan,
        fields=None if fields is None else torch.from_numpy(fields[order]),
        labels=None if cell.labels is None else torch.from_numpy(cell.labels).float(),
        labelled=None if cell.labelled is None else torch.from_numpy(cell.labelled),
        z=None if z is None else torch.from_numpy(z[order].astype(np.float32)),
    )


def _fields(cell: Cell) -> NDArray[np.float32]:
    """Compute :data:`FIELDS` of a cell's molecules (n, 6)."""
    geometry, has = cell.geometry, cell.nucleus is not None
    nothing = np.zeros(len(cell.gene))
    return np.column_stack(
        [
            geometry.depth,
            geometry.from_nucleus if has else nothing,
            geometry.between if has else nothing,
            np.minimum(geometry.relative_radius, 1.2),
            geometry.in_nucleus,
            nothing + has,
        ]
    ).astype(np.float32)


def _along(outline: Any) -> NDArray[np.float64]:
    """Points (n, 2) at equal steps along the exterior rings of an outline."""
    rings = shapely.get_exterior_ring(shapely.get_parts(outline))
    share = shapely.length(rings) / shapely.length(rings).sum()
    counts = np.maximum(np.rint(OUTLINE_POINTS * share).astype(int), 1)
    steps = np.concatenate([np.arange(count) / count for count in counts])
    points = shapely.line_interpolate_point(np.repeat(rings, counts), steps, normalized=True)
    return np.asarray(shapely.get_coordinates(points))


@dataclass(frozen=True, eq=False)
class Spans:
    """How the rows of a tensor belong to the cells of a batch, one cell after the other.

    Attributes
    ----------
    sizes : tuple of int
        (N,) rows of each cell.
    device : torch.device
    """

    sizes: tuple[int, ...]
    device: torch.device

    @cached_property
    def most(self) -> int:
        """Rows of the largest cell."""
        return max(self.sizes)

    @cached_property
    def _slots(self) -> Tensor:
        rows = [torch.arange(size) + at * self.most for at, size in enumerate(self.sizes)]
        return torch.cat(rows).to(self.device)

    @cached_property
    def mask(self) -> Tensor | None:
        """(N, 1, 1, most) bool: which rows :meth:`pad` fills; None if all."""
        if min(self.sizes) == self.most:
            return None
        filled = torch.arange(self.most) < torch.tensor(self.sizes)[:, None]
        return filled[:, None, None, :].to(self.device)

    def pad(self, x: Tensor) -> Tensor:
        """(rows, W) -> (N, most, W), zero where nothing is."""
        padded = x.new_zeros(len(self.sizes) * self.most, x.shape[-1])
        return padded.index_copy(0, self._slots, x).view(len(self.sizes), self.most, -1)

    def unpad(self, x: Tensor) -> Tensor:
        """(N, most, W) -> (rows, W)."""
        return x.flatten(0, 1).index_select(0, self._slots)


@dataclass(frozen=True, eq=False)
class Batch:
    """Cells laid end to end.

    Attributes
    ----------
    xy : torch.Tensor
        (T, 2) float32, as :class:`Tokens` has it.
    row : torch.Tensor
        (T,) int64: the row of `query` whose gene the molecule is of; G for points of the cells'
        outlines and G + 1 for those of the nuclei.
    query : torch.Tensor
        (G,) int64: rows in the vocabulary of the genes present, cell after cell.
    count : torch.Tensor
        (G,) float32: molecules of each of `query`.
    plan : KNNPlan or None
        Of all tokens; no cell sees another.
    fields : torch.Tensor or None
        (T, F) float32.
    pairs, tokens : Spans
        Rows of each cell in `query`, and in `xy`.
    labels, labelled : torch.Tensor or None
        (G, C) float32 and (G,) bool, if all cells have them.
    z : torch.Tensor or None
        (T,) float32.
    """

    xy: Tensor
    row: Tensor
    query: Tensor
    count: Tensor
    plan: KNNPlan | None
    pairs: Spans
    tokens: Spans
    fields: Tensor | None = None
    labels: Tensor | None = None
    labelled: Tensor | None = None
    z: Tensor | None = None

    @property
    def places(self) -> Tensor:
        """(T, 2) float32, or (T, 3) with heights."""
        return self.xy if self.z is None else torch.cat([self.xy, self.z[:, None]], dim=-1)

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device."""
        return Batch(
            xy=self.xy.to(device),
            row=self.row.to(device),
            query=self.query.to(device),
            count=self.count.to(device),
            plan=None if self.plan is None else self.plan.to(device),
            fields=None if self.fields is None else self.fields.to(device),
            pairs=replace(self.pairs, device=torch.device(device)),
            tokens=replace(self.tokens, device=torch.device(device)),
            labels=None if self.labels is None else self.labels.to(device),
            labelled=None if self.labelled is None else self.labelled.to(device),
            z=None if self.z is None else self.z.to(device),
        )


def collate(cells: Sequence[Tokens]) -> Batch:
    """Lay cells end to end; no padding, so that any sizes go together.

    The caller groups cells by length, so that batches take similar time and the decoder pads
    little.
    """
    pairs = tuple(len(cell.query) for cell in cells)
    first = np.cumsum([0, *pairs])
    row = [
        # rows of the cell's own pairs, and beyond them the kinds of outline points
        cell.row + torch.where(cell.row < n, int(start), int(first[-1]) - n)
        for cell, n, start in zip(cells, pairs, first, strict=False)
    ]
    labels = [cell.labels for cell in cells if cell.labels is not None]
    labelled = [cell.labelled for cell in cells if cell.labelled is not None]
    known = len(labels) == len(labelled) == len(cells)
    plans = [cell.plan for cell in cells if cell.plan is not None]
    fields = [cell.fields for cell in cells if cell.fields is not None]
    z = [cell.z for cell in cells if cell.z is not None]
    return Batch(
        xy=torch.cat([cell.xy for cell in cells]),
        row=torch.cat(row),
        query=torch.cat([cell.query for cell in cells]),
        count=torch.cat([cell.count for cell in cells]),
        plan=join_plans(plans) if plans else None,
        fields=torch.cat(fields) if fields else None,
        pairs=Spans(pairs, torch.device("cpu")),
        tokens=Spans(tuple(map(len, cells)), torch.device("cpu")),
        labels=torch.cat(labels) if known else None,
        labelled=torch.cat(labelled) if known else None,
        z=torch.cat(z) if z else None,
    )
