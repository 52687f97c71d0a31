"""KNN-attention: each molecule attends to exactly its K nearest, at the speed of dense products.

    plan = knn_plan(positions, k)                  # (L, 2) or (L, 3); once per cell
    out = knn_attention(query, key, value, plan)   # (heads, L, head_dim) each, in the same order

A block of queries attends to the union of its queries' neighbours, with a mask. Time and memory are
linear in L; the backward pass recomputes the scores block by block instead of storing them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from gpattern_bench.errors import MethodError
from gpattern_bench.methods.gpsnet.plan import KNNPlan, Step

__all__ = ["KNNAttention", "knn_attention"]

# Scores of a step: many, so that threads seldom wait; but on a CPU, few enough that the copied keys
# stay in the cache. Clouds of one block copy no keys.
_COPIED = {"cpu": 2**22}
_MOST = 2**26
_UNCOPIED = 2**28


def knn_attention(query: Tensor, key: Tensor, value: Tensor, plan: KNNPlan) -> Tensor:
    """Attend from each molecule to its neighbours (scaled dot products).

    Parameters
    ----------
    query, key, value : torch.Tensor
        (heads, L, head_dim) each, on the plan's device, in the order of :func:`knn_plan`'s
        positions.
    plan : KNNPlan

    Returns
    -------
    torch.Tensor
        (heads, L, head_dim), in the same order. Differentiable once.

    Raises
    ------
    MethodError
        The tensors do not have the plan's length.
    """
    parts = (query, key, value)
    if any(x.ndim != 3 or x.shape[1] != len(plan) for x in parts):
        shapes = ", ".join(str(tuple(x.shape)) for x in parts)
        raise MethodError(f"expected (heads, {len(plan)}, head_dim) for this plan, got {shapes}")
    q, k, v = parts if plan.order is None else (x[:, plan.order] for x in parts)
    with torch.autocast(query.device.type, enabled=False):
        if all(plan.whole):
            out = _attend_whole(q, k, v, plan)
        else:  # gathering rows takes thirty times as long if not contiguous
            out = _Attend.apply(q.contiguous(), k.contiguous(), v.contiguous(), plan)  # type: ignore[no-untyped-call]
    return out if plan.order is None else torch.empty_like(out).index_copy(1, plan.order, out)


def _attend_whole(query: Tensor, key: Tensor, value: Tensor, plan: KNNPlan) -> Tensor:
    """Attend in small clouds, by padded, masked products with autograd's own gradient."""
    steps = plan.steps(len(query), _UNCOPIED)
    # split, not slice: a slice's gradient has the full length
    sizes = [step.end - step.begin for step in steps]
    cut = [torch.split(x, sizes, dim=1) for x in (query, key, value)]
    out = []
    for step, *parts in zip(steps, *cut, strict=True):
        q, k, v = (step.padded(x) for x in parts)
        out.append(step.unpadded(_fused(q, k, v, step)))
    return out[0] if len(out) == 1 else torch.cat(out, dim=1)


def _fused(query: Tensor, key: Tensor, value: Tensor, step: Step) -> Tensor:
    """(heads, blocks, B, D) and (heads, blocks, U, D) twice -> (heads, blocks, B, D)."""
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))
    bias = step.bias[:, None].to(query.dtype)  # (blocks, 1, B, U)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(0, 1)


class _Attend(torch.autograd.Function):
    """Attend step by step; the backward pass recomputes each step instead of storing its keys."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: KNNPlan) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.steps = plan.steps(len(query), _COPIED.get(query.device.type, _MOST))
        out = torch.empty_like(value)
        for step in ctx.steps:
            q, k, v = step.queries(query), step.gathered(key), step.gathered(value)
            step.write(out, _fused(q, k, v, step))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        d_query = torch.empty_like(query)
        # gradients of shared keys add up over blocks: at least float32
        wide = torch.promote_types(key.dtype, torch.float32)
        d_key, d_value = (torch.zeros_like(x, dtype=wide) for x in (key, value))
        for step in ctx.steps:
            parts = (step.queries(query), step.gathered(key), step.gathered(value))
            q, k, v = (x.detach().requires_grad_() for x in parts)
            with torch.enable_grad():
                out = _fused(q, k, v, step)
            d_q, d_k, d_v = torch.autograd.grad(out, (q, k, v), step.queries(grads[0]))
            step.write(d_query, d_q)
            step.add(d_key, d_k)
            step.add(d_value, d_v)
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None


class KNNAttention(nn.Module):
    """Multi-head KNN-attention with projections, for use in other transformers.

    Parameters
    ----------
    dim : int
        Width of the tokens.
    heads : int
        Divides `dim`.
    biased : bool
        Add a learnt bias to the scores: of the distance, and of whether two molecules are of the
        same group.
    """

    def __init__(self, dim: int, heads: int, *, biased: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise MethodError(f"{heads} heads do not divide the width of {dim}; choose a divisor")
        self.heads = heads
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.bias = _DistanceBias(heads) if biased else None

    def forward(
        self,
        x: Tensor,
        plan: KNNPlan,
        positions: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """Attend among the molecules of a plan: (L, dim) or (B, L, dim) -> the same shape.

        All B share the plan's positions. Lay clouds with different positions end to end and use
        :func:`join_plans`. With a bias, `positions` (L, 2 or 3) and `groups` (L,) are in the plan's
        order, and there is one cloud.
        """
        if self.bias is not None:
            assert x.ndim == 2
            assert positions is not None
            assert groups is not None
            return self._biased(x, plan, positions, groups)
        B, L = (1, *x.shape[:-1])[-2:]
        parts = self.query_key_value(x).view(B, L, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4).flatten(1, 2)  # (B * heads, L, head_dim) each
        out = knn_attention(q, k, v, plan).view(B, self.heads, L, -1)
        projected: Tensor = self.out(out.transpose(1, 2).reshape(x.shape))
        return projected

    def _biased(self, x: Tensor, plan: KNNPlan, positions: Tensor, groups: Tensor) -> Tensor:
        assert plan.order is None
        assert self.bias is not None
        q, k, v = self.query_key_value(x).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        places = torch.cat([positions, groups[:, None].to(positions.dtype)], dim=1)[None]
        out = []
        for step in plan.steps(self.heads, _COPIED.get(x.device.type, _MOST)):
            bias = self.bias(step.queries(places)[0], step.gathered(places)[0]) + step.bias[:, None]
            sliced = (step.queries(q), step.gathered(k), step.gathered(v))
            query, key, value = (part.transpose(0, 1) for part in sliced)
            found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(q.dtype))
            out.append(step.unpadded(found.transpose(0, 1)))
        projected: Tensor = self.out(torch.cat(out, dim=1).transpose(0, 1).flatten(1))
        return projected


class _DistanceBias(nn.Module):
    """MLP of the log distance of two molecules and of whether they are of one group."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, heads))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """(blocks, B, D) and (blocks, U, D), place and group -> (blocks, heads, B, U)."""
        apart = query[:, :, None] - key[:, None]  # (blocks, B, U, D), D = 3, or 4 with heights
        distance = torch.linalg.vector_norm(apart[..., :-1], dim=-1)
        same = (apart[..., -1] == 0).to(query.dtype)
        told = torch.stack([(distance + 0.003).log() / 2 + 1, same], dim=-1)
        out: Tensor = self.mlp(told).permute(0, 3, 1, 2)
        return out
