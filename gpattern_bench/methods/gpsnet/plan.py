"""Neighbour plans: which molecules attend to which, in blocks that share most of their neighbours.

Blocks are runs of molecules, sorted so that neighbours in space are neighbours in memory. A block
has few more neighbours than one of its molecules; a mask assigns them, so keys are not copied for
each query. Time and memory are linear in the number of molecules.

A molecule's neighbours are itself and all others no farther than its K-th nearest; ties may make
them more than K. Squared distances within one part in 10^9 are ties, so moving the origin of the
coordinates changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from gpattern_bench.errors import MethodError
from gpattern_bench.methods.gpsnet.neighbours import block_neighbours, order_in_blocks

__all__ = ["KNNPlan", "Step", "join_plans", "knn_plan"]

_BLOCK = 64  # queries of a block
_WHOLE = 1024  # most molecules of a cloud in one block


@dataclass(frozen=True, eq=False)
class KNNPlan:
    """Which molecules attend to which, in blocks; made by :func:`knn_plan`.

    A place is a position in the plan's own order of molecules.

    Attributes
    ----------
    order : torch.Tensor or None
        (L,) int64: the molecule at each place; None if molecules are in that order already.
    bounds : tuple of int
        (blocks + 1,) first places of the blocks of queries, then L.
    sizes : tuple of int
        (blocks,) keys of each block.
    whole : tuple of bool
        (blocks,) True if the keys of a block are its own queries.
    keys : torch.Tensor
        (blocks, U) int32: places of the keys of each block, ascending, padded with zeros.
    bits : torch.Tensor
        (L, U / 8) uint8: mask of each query's neighbours among its block's keys, lowest bit first.
    """

    order: Tensor | None
    bounds: tuple[int, ...]
    sizes: tuple[int, ...]
    whole: tuple[bool, ...]
    keys: Tensor
    bits: Tensor
    _steps: dict[tuple[int, int], list[Step]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return self.bounds[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_steps": {}}

    def to(self, device: torch.device | str) -> KNNPlan:
        """Copy to a device."""
        order = None if self.order is None else self.order.to(device)
        return replace(self, order=order, keys=self.keys.to(device), bits=self.bits.to(device))

    def in_order(self) -> KNNPlan:
        """Return the plan for molecules in its own order: saves a permutation per layer."""
        return replace(self, order=None)

    def mask(self) -> Tensor:
        """Make a dense matrix (L, L) bool of neighbours, in the original order of molecules."""
        dense = torch.zeros(len(self), len(self), dtype=torch.bool, device=self.keys.device)
        for block, size in enumerate(self.sizes):
            begin, end = self.bounds[block : block + 2]
            keys = self.keys[block, :size].long()
            dense[begin:end, keys] = _unpacked(self.bits[begin:end])[:, :size]
        if self.order is None:
            return dense
        place = torch.argsort(self.order)
        return dense[place][:, place]

    def steps(self, heads: int, scores: int) -> list[Step]:
        """Group blocks into steps of at most `scores` scores, or of one block; cached."""
        if (heads, scores) not in self._steps:
            self._steps[heads, scores] = list(_grouped(self, heads, scores))
        return self._steps[heads, scores]


def knn_plan(positions: ArrayLike | Tensor, k: int) -> KNNPlan:
    """Find the K nearest molecules of every molecule and lay them out in blocks.

    Parameters
    ----------
    positions : array or torch.Tensor
        (L, 2) or (L, 3), finite, L at least 1.
    k : int
        Neighbours of a molecule, itself included; all molecules if L <= K.

    Returns
    -------
    KNNPlan
        On the CPU; can be pickled. Independent of the order of molecules, except among molecules
        at one position.

    Raises
    ------
    MethodError
        Positions have another shape or are not finite, or K < 1.
    """
    given = positions.detach().cpu().numpy() if isinstance(positions, Tensor) else positions
    points = np.asarray(given, np.float64)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or len(points) == 0:
        raise MethodError(f"expected positions of shape (L, 2) or (L, 3), got {points.shape}")
    if not np.isfinite(points).all():
        raise MethodError("some positions are not finite numbers; drop those molecules")
    if k < 1:
        raise MethodError(f"expected 1 or more neighbours, got {k}")
    n = len(points)
    # A small cloud is one block: any part's neighbours would be nearly all molecules.
    size = n if n <= min(2 * k + _BLOCK, _WHOLE) else _BLOCK
    order, bounds = order_in_blocks(points, size)
    keys, bits = block_neighbours(np.ascontiguousarray(points[order].T), bounds, min(k, n))
    return KNNPlan(
        order=torch.from_numpy(order),
        bounds=tuple(bounds.tolist()),
        sizes=tuple(map(len, keys)),
        whole=(len(keys) == 1,) * len(keys),
        keys=_stacked([torch.from_numpy(row[None]) for row in keys]),
        bits=_stacked([torch.from_numpy(rows) for rows in bits]),
    )


def join_plans(plans: Sequence[KNNPlan]) -> KNNPlan:
    """Join plans of clouds laid end to end; molecules attend only within their cloud.

    All plans have an order, or none has.
    """
    first = np.cumsum([0, *map(len, plans)]).tolist()
    joined = list(zip(plans, first, strict=False))
    orders = [plan.order + at for plan, at in joined if plan.order is not None]
    return KNNPlan(
        order=torch.cat(orders) if orders else None,
        bounds=(*(begin + at for plan, at in joined for begin in plan.bounds[:-1]), first[-1]),
        sizes=tuple(size for plan in plans for size in plan.sizes),
        whole=tuple(whole for plan in plans for whole in plan.whole),
        keys=_stacked([plan.keys + at for plan, at in joined]),
        bits=_stacked([plan.bits for plan in plans]),
    )


def _stacked(rows: list[Tensor]) -> Tensor:
    """Stack rows, padded with zeros to the longest."""
    width = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(row, (0, width - row.shape[1])) for row in rows])


@dataclass(frozen=True, eq=False)
class Step:
    """Some consecutive blocks, padded to the same numbers of queries B and keys U.

    Attributes
    ----------
    begin, end : int
        Places of the queries.
    slots : torch.Tensor or None
        Positions of the queries in the padded (blocks * B,) layout; None without padding.
    keys : torch.Tensor or None
        (blocks * U,) int32 places; None if the keys of each block are its queries.
    bias : torch.Tensor
        (blocks, B, U) float32 to add to the scores: 0 for neighbours, else minus infinity. Padded
        queries have their first key as neighbour, to avoid NaN.
    """

    begin: int
    end: int
    slots: Tensor | None
    keys: Tensor | None
    bias: Tensor

    def queries(self, x: Tensor) -> Tensor:
        """(heads, L, D) -> (heads, blocks, B, D), padded with zeros."""
        return self.padded(x[:, self.begin : self.end])

    def padded(self, here: Tensor) -> Tensor:
        """(heads, end - begin, D) -> (heads, blocks, B, D), padded with zeros."""
        blocks, B, _ = self.bias.shape
        if self.slots is not None:
            padded = here.new_zeros(here.shape[0], blocks * B, here.shape[2])
            here = padded.index_copy(1, self.slots, here)
        return here.view(here.shape[0], blocks, B, here.shape[2])

    def gathered(self, x: Tensor) -> Tensor:
        """(heads, L, D) -> (heads, blocks, U, D): the keys, or values, of the blocks."""
        if self.keys is None:
            return self.queries(x)
        blocks, _, U = self.bias.shape
        return x.index_select(1, self.keys).view(x.shape[0], blocks, U, x.shape[2])

    def unpadded(self, values: Tensor) -> Tensor:
        """(heads, blocks, B, D) -> (heads, end - begin, D): the inverse of :meth:`queries`."""
        flat = values.flatten(1, 2)
        return flat if self.slots is None else flat.index_select(1, self.slots)

    def write(self, out: Tensor, values: Tensor) -> None:
        """Write (heads, blocks, B, D) to the places that :meth:`queries` reads."""
        if self.slots is None:
            out[:, self.begin : self.end].view(values.shape).copy_(values)
        else:
            out[:, self.begin : self.end] = self.unpadded(values)

    def add(self, out: Tensor, values: Tensor) -> None:
        """Add (heads, blocks, U, D) to the places that :meth:`gathered` reads."""
        if self.keys is None:
            self.write(out, values)
        else:
            out.index_add_(1, self.keys, values.flatten(1, 2).to(out.dtype))


def _grouped(plan: KNNPlan, heads: int, scores: int) -> Iterator[Step]:
    counts = np.diff(plan.bounds)
    begin = 0
    while begin < len(counts):
        end, B, U = begin, 0, 0
        while end < len(counts) and plan.whole[end] == plan.whole[begin]:
            b, u = max(B, int(counts[end])), max(U, plan.sizes[end])
            if end > begin and heads * (end + 1 - begin) * b * u > scores:
                break
            end, B, U = end + 1, b, u
        yield _step(plan, begin, end, B, U)
        begin = end


def _step(plan: KNNPlan, begin: int, end: int, B: int, U: int) -> Step:
    device = plan.keys.device
    counts = np.diff(plan.bounds[begin : end + 1])
    first, last = plan.bounds[begin], plan.bounds[end]
    near = _unpacked(plan.bits[first:last])[:, :U]  # (queries, U)
    bias = torch.full(near.shape, -torch.inf, device=device).masked_fill_(near, 0.0)
    slots = None
    if (counts != B).any():
        slots = torch.cat([torch.arange(n) + at * B for at, n in enumerate(counts.tolist())])
        slots = slots.to(device)
        padded = bias.new_full(((end - begin) * B, U), -torch.inf)
        padded[:, 0] = 0.0
        bias = padded.index_copy_(0, slots, bias)
    keys = None if plan.whole[begin] else plan.keys[begin:end, :U].flatten()
    return Step(first, last, slots, keys, bias.view(end - begin, B, U))


def _unpacked(bits: Tensor) -> Tensor:
    """(n, bytes) uint8 -> (n, 8 * bytes) bool, lowest bit first."""
    powers = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=bits.device)
    return bits[..., None].bitwise_and(powers).ne(0).flatten(-2)
