"""KNN-attention: each molecule attends to its K nearest, exactly, at the speed of dense products.

    plan = knn_plan(positions, k)                  # (L, 2) or (L, 3); once per cell
    out = knn_attention(query, key, value, plan)   # (heads, L, head_dim) each, in the same order

A block of queries attends to the union of its queries' neighbours, with a mask. Time and memory
grow with L; the backward pass recomputes the scores block by block, so that none are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from gpattern_bench.errors import MethodError
from gpattern_bench.methods.gpsnet.plan import KNNPlan, Step

__all__ = ["KNNAttention", "knn_attention"]

# Scores of a step: many, so that threads seldom wait for each other, but on a CPU not so many that
# the keys copied for them leave the cache. Nothing is copied where a cloud is one block.
_COPIED = {"cpu": 2**22}
_MOST = 2**26
_UNCOPIED = 2**28


def knn_attention(query: Tensor, key: Tensor, value: Tensor, plan: KNNPlan) -> Tensor:
    """Scaled dot-product attention of each molecule to its neighbours.

    Parameters
    ----------
    query, key, value : torch.Tensor
        (heads, L, head_dim) each, on the plan's device, molecules in the order of the positions
        that the plan was made from.
    plan : KNNPlan
        Of :func:`knn_plan`.

    Returns
    -------
    torch.Tensor
        (heads, L, head_dim), in the same order. Differentiable, once.

    Raises
    ------
    MethodError
        The tensors are not of the plan's length.
    """
    parts = (query, key, value)
    if any(x.ndim != 3 or x.shape[1] != len(plan) for x in parts):
        shapes = ", ".join(str(tuple(x.shape)) for x in parts)
        raise MethodError(f"expected (heads, {len(plan)}, head_dim) for this plan, got {shapes}")
    q, k, v = parts if plan.order is None else (x[:, plan.order] for x in parts)
    with torch.autocast(query.device.type, enabled=False):
        if all(plan.whole):
            out = _attend_whole(q, k, v, plan)
        else:  # contiguous: gathering rows of any other layout takes thirty times as long
            out = _Attend.apply(q.contiguous(), k.contiguous(), v.contiguous(), plan)  # type: ignore[no-untyped-call]
    return out if plan.order is None else torch.empty_like(out).index_copy(1, plan.order, out)


def _attend_whole(query: Tensor, key: Tensor, value: Tensor, plan: KNNPlan) -> Tensor:
    """Small clouds only: padded, masked products, as autograd knows them."""
    steps = plan.steps(len(query), _UNCOPIED)
    # split, for the gradient of a slice is as long as what it was cut from
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
    """Step by step; the backward pass computes each anew, so that no copy of the keys is kept."""

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
        # keys add up over the blocks that share them
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
    """Multi-head KNN-attention with its projections, for use in other transformers.

    Parameters
    ----------
    dim : int
        Width of the tokens.
    heads : int
        A divisor of it.
    biased : bool
        Add a learnt bias to the scores: of the distance, and of whether two molecules are of the
        same group.
    """

    def __init__(self, dim: int, heads: int, *, biased: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise MethodError(f"{heads} heads do not divide the width of {dim}")
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

        With (B, L, dim), all B share the plan's positions; clouds with positions of their own go
        end to end, with :func:`join_plans`. With a bias, `positions` (L, 2) and `groups` (L,) in
        the plan's order, and one cloud only.
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
        """(blocks, B, 3) and (blocks, U, 3), x, y and group -> (blocks, heads, B, U)."""
        apart = query[:, :, None] - key[:, None]  # (blocks, B, U, 3)
        distance = torch.linalg.vector_norm(apart[..., :2], dim=-1)
        same = (apart[..., 2] == 0).to(query.dtype)
        told = torch.stack([(distance + 0.003).log() / 2 + 1, same], dim=-1)
        out: Tensor = self.mlp(told).permute(0, 3, 1, 2)
        return out
