"""How fast, how frugal and how exact KNN-attention and GPSNet are, beside what else one could do.

Every part is a table of rivals timed in turn, in this process, on the same data, best of some
repeats; only ratios within a table mean anything on a machine that does other work. A result that
differs from the rival's by more than 1e-4 stops the benchmark. The last line is one JSON object.

*Forward*, *forward and backward*: `knn_attention` against the gather (the K keys and values of each
query copied beside each other, in chunks of queries), against full attention, and against full
attention with the neighbours as a mask, both by `scaled_dot_product_attention`. The neighbour plan
is made once per cell; its time and that of scipy's search are given beside.

*Growth*: time at doubling numbers of molecules, and peak memory of a fresh process.

*Small cells*: a batch of 64 cells of 303 molecules, against padded and single products.

*Whole model*: inference of one cell at the paper's size, weights drawn at random, against the same
network written straightforwardly: gather attention, and a query for every gene of the vocabulary;
and in bfloat16, in which `predict` computes the paper's models where the processor has it.
A cell of the NIH/3T3 kind has 15,222 molecules of 15 a gene, as in the real cells of `nih3t3_gold`,
where genes of fewer than five molecules in a cell were left out.

Rerun: `python benchmarks/gpsnet.py` (about ten minutes on two cores), or `--quick` (seconds,
one process).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
import shapely
import torch
from scipy.spatial import cKDTree
from tabulate import tabulate
from timing import fresh, here, parsed, report, resident, told
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gpattern_bench.data.cells import Cell
from gpattern_bench.methods.gpsnet import join_plans, knn_attention, knn_plan
from gpattern_bench.methods.gpsnet.config import Config
from gpattern_bench.methods.gpsnet.model import GPSNet, parameter_table
from gpattern_bench.methods.gpsnet.tokens import Batch, collate, prepare, vocabulary_rows
from gpattern_bench.methods.gpsnet.train import logits

TOLERANCE = 1e-4
CHUNK = 128  # queries of a chunk of the gather
HEADS, DIM, K = 12, 64, 256


def main() -> None:
    """Run all parts, print their tables and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, narrow models: seconds")
    parser.add_argument("--repeats", type=int, default=2)
    options = parsed(parser)
    quick, repeats = options.quick, options.repeats
    narrow = {"width": 96} if quick else {}
    knn_plan(cloud(1000), 16)  # compiled, or read from numba's cache
    every = {
        "forward": forward(400 if quick else 10_405, repeats),
        "backward": [
            backward(300 if quick else 5_200, "gather", repeats),
            backward(400 if quick else 20_800, "full", repeats),
        ],
        "growth": growth(
            [200, 400] if quick else [5_000 * 2**i for i in range(5)],
            repeats,
            here if quick else fresh,
        ),
        "small_cells": small_cells(2 if quick else 64, repeats),
        "whole_model": [
            whole_model("nih3t3", 300 if quick else 15_222, 100 if quick else 3_721, **narrow),
            whole_model("u2os", 300 if quick else 15_222, 20 if quick else 130, **narrow),
        ],
    }
    print(f"\n{parameter_table()}\n")
    every["threads"] = torch.get_num_threads()
    report(every, options.record)


# Timing


def best(ways: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict]:
    """Best time of each way, tried in turn, and what each returned last."""
    seconds = dict.fromkeys(ways, float("inf"))
    values: dict[str, Any] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            values.pop(name, None)
            begin = perf_counter()
            values[name] = way()
            seconds[name] = min(seconds[name], perf_counter() - begin)
    return seconds, values


def show(title: str, seconds: dict[str, float], ours: str) -> dict[str, float]:
    """Print a table of times and of ratios to ours; return the ratios."""
    ratios = {name: spent / seconds[ours] for name, spent in seconds.items() if name != ours}
    rows = [[name, spent, ratios.get(name)] for name, spent in seconds.items()]
    print(f"\n{title}\n")
    headers = ["", "seconds", f"x {ours}"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".3g", missingval="-"), flush=True)
    return ratios


def compare(values: dict[str, Tensor], ours: str, exact: list[str]) -> float:
    """Largest difference between ours and the ways that must give the same."""
    apart = max(float((values[ours] - values[name]).abs().max()) for name in exact)
    if not apart <= TOLERANCE:
        sys.exit(f"error: {ours} differs from {', '.join(exact)} by {apart:.3g}")
    return apart


# Data


def cloud(n: int, seed: int = 0) -> np.ndarray:
    """Molecules (n, 2) of an oval cell of 60 x 40 um."""
    rng = np.random.Generator(np.random.Philox(seed))
    radius, angle = np.sqrt(rng.random(n)), 2 * np.pi * rng.random(n)
    return np.stack([30 * radius * np.cos(angle), 20 * radius * np.sin(angle)], axis=1)


def random(*shape: int) -> list[Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


# Rivals


def gather(query: Tensor, key: Tensor, value: Tensor, nearest: Tensor) -> Tensor:
    """KNN-attention (heads, L, D) with the keys of every query copied; nearest is (L, K)."""
    parts = zip(query.split(CHUNK, 1), nearest.split(CHUNK), strict=True)
    return torch.cat([gathered(q, key, value, near) for q, near in parts], dim=1)


def gathered(query: Tensor, key: Tensor, value: Tensor, nearest: Tensor) -> Tensor:
    """The same for a few queries (heads, n, D) and their neighbours (n, K)."""
    keys, values = key[:, nearest], value[:, nearest]  # (heads, n, K, D)
    scores = query[:, :, None] @ keys.transpose(2, 3) * query.shape[-1] ** -0.5
    return (scores.softmax(-1) @ values)[:, :, 0]


def neighbours(points: np.ndarray, k: int) -> Tensor:
    """Nearest molecules (L, K) by scipy."""
    return torch.from_numpy(cKDTree(points).query(points, min(k, len(points)))[1])


# Parts


@torch.no_grad()
def forward(n: int, repeats: int) -> dict[str, Any]:
    """Forward pass of one cell."""
    points = cloud(n)
    planning, found = best(
        {"plan": lambda: knn_plan(points, K), "scipy": lambda: neighbours(points, K)}, repeats
    )
    plan, nearest = found["plan"], found["scipy"]
    q, k, v = random(HEADS, n, DIM)
    mask = plan.mask()
    ways = {
        "knn_attention": lambda: knn_attention(q, k, v, plan),
        "gather": lambda: gather(q, k, v, nearest),
        "full": lambda: scaled_dot_product_attention(q[None], k[None], v[None])[0],
        "masked": lambda: scaled_dot_product_attention(q[None], k[None], v[None], mask)[0],
    }
    seconds, values = best(ways, repeats)
    ratios = show(f"Forward, {n:,} molecules, K = {K}", seconds, "knn_attention")
    print(f"\nplan {planning['plan']:.3f} s; scipy's search alone {planning['scipy']:.3f} s")
    apart = compare(values, "knn_attention", ["gather", "masked"])
    return {
        "n": n,
        "seconds": seconds,
        "ratios": ratios,
        "plan_s": planning["plan"],
        "scipy_s": planning["scipy"],
        "difference": apart,
    }


def backward(n: int, rival: str, repeats: int) -> dict[str, Any]:
    """Forward and backward pass of one cell, gradients of queries, keys and values."""
    points = cloud(n)
    plan = knn_plan(points, K)
    parts = [x.requires_grad_() for x in random(HEADS, n, DIM)]
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(HEADS, n, DIM, generator=generator)

    def gradients(run: Callable[[], None]) -> Tensor:
        for x in parts:
            x.grad = None
        run()
        return torch.stack([x.grad for x in parts if x.grad is not None])

    def by_gather() -> None:  # chunk by chunk: all at once does not fit into memory
        nearest = neighbours(points, K)
        pieces = zip(
            parts[0].split(CHUNK, 1), nearest.split(CHUNK), upstream.split(CHUNK, 1), strict=True
        )
        for q, near, grad in pieces:
            gathered(q, parts[1], parts[2], near).backward(grad)

    def by_full() -> None:
        scaled_dot_product_attention(*(x[None] for x in parts))[0].backward(upstream)

    ways = {
        "knn_attention": lambda: gradients(lambda: knn_attention(*parts, plan).backward(upstream)),
        rival: lambda: gradients(by_gather if rival == "gather" else by_full),
    }
    seconds, values = best(ways, repeats)
    title = f"Forward and backward, {n:,} molecules, K = {K}"
    ratios = show(title, seconds, "knn_attention")
    apart = compare(values, "knn_attention", ["gather"]) if rival == "gather" else None
    return {"n": n, "seconds": seconds, "ratios": ratios, "difference": apart}


def growth(sizes: list[int], repeats: int, call: Callable[..., Any]) -> dict[str, Any]:
    """Times at doubling sizes; peak memory of the forward pass of the largest."""
    rows = []
    for n in sizes:
        points, parts = cloud(n), random(HEADS, n, DIM)
        planning, found = best({"plan": partial(knn_plan, points, K)}, 1)
        attend = partial(knn_attention, *parts, found["plan"])
        with torch.no_grad():
            alone, _ = best({"forward": attend}, repeats)
        for x in parts:
            x.requires_grad_()
        both, _ = best({"both": done(attend, parts)}, repeats)
        rows.append({"n": n, "plan_s": planning["plan"], "forward_s": alone["forward"], **both})
    for before, row in pairwise(rows):
        row["doubling"] = row["forward_s"] / before["forward_s"]
        row["doubling_both"] = row["both"] / before["both"]
    print(f"\nGrowth, K = {K}\n")
    table = [
        [
            row.get(name)
            for name in ("n", "plan_s", "forward_s", "doubling", "both", "doubling_both")
        ]
        for row in rows
    ]
    headers = ["molecules", "plan (s)", "forward (s)", "x", "forward, backward (s)", "x"]
    print(tabulate(table, headers, tablefmt="github", floatfmt=".3g", intfmt=",", missingval="-"))
    memory = call(peak, sizes[-1])
    print(f"\npeak memory of the process, forward, {sizes[-1]:,} molecules: {memory} GiB")
    return {"rows": rows, "peak_gib": memory}


def peak(n: int) -> float | None:
    """Most memory, GiB, that this process had: torch, inputs, plan, forward pass."""
    with torch.no_grad():
        knn_attention(*random(HEADS, n, DIM), knn_plan(cloud(n), K))
    most = told(resident()[1] / 2**30)
    return None if most is None else round(most, 2)


def small_cells(cells: int, repeats: int, n: int = 303) -> dict[str, Any]:
    """A batch of small cells, without and with gradients."""
    plans = [knn_plan(cloud(n, seed), K).in_order() for seed in range(cells)]
    mask = torch.stack([plan.mask() for plan in plans])[:, None]  # (cells, 1, n, n)
    # as a transformer has them: views of one projection
    projected = random(cells * n, 3, HEADS, DIM)[0]
    plan = join_plans(plans)

    def ours() -> Tensor:
        out = knn_attention(*projected.permute(1, 2, 0, 3), plan)
        return out.unflatten(1, (cells, n)).transpose(0, 1)

    def padded(way: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: way(*projected.unflatten(0, (cells, n)).permute(2, 0, 3, 1, 4))

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2) * DIM**-0.5).masked_fill(~mask, -torch.inf)
        return scores.softmax(-1) @ v

    def one_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        each = [
            scaled_dot_product_attention(*(x[i : i + 1] for x in (q, k, v)), mask[i : i + 1])
            for i in range(cells)
        ]
        return torch.cat(each)

    rivals = {
        "padded, fused": padded(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask)),
        "padded, written out": padded(eager),
        "cell by cell, fused": padded(one_by_one),
    }
    found: dict[str, Any] = {"cells": cells, "n": n}
    for grads in (False, True):
        projected.requires_grad_(grads)
        with torch.set_grad_enabled(grads):
            ways = {"knn_attention": ours, **rivals}
            timed = {name: done(way, [projected]) for name, way in ways.items()}
            seconds, values = best(timed, 2 * repeats)
        compare(values, "knn_attention", list(rivals))
        name = "forward and backward" if grads else "forward"
        title = f"Small cells, {name}: {cells} of {n} molecules, K = {K}"
        ratios = show(title, seconds, "knn_attention")
        found[name] = {"seconds": seconds, "ratios": ratios}
    return found


def done(way: Callable[[], Tensor], parts: list[Tensor]) -> Callable[[], Tensor]:
    """Run a way forward, and backward where gradients are on."""

    def run() -> Tensor:
        out = way()
        if out.requires_grad:
            torch.autograd.grad(out, parts, torch.ones_like(out))
        return out.detach()

    return run


# Whole model


def cell_of(n: int, genes: int, per_gene: float | None) -> Cell:
    """A cell of n molecules: of all genes, or of as many as make `per_gene` molecules each."""
    rng = np.random.Generator(np.random.Philox(2))
    present = genes if per_gene is None else min(genes, round(n / per_gene))
    gene = np.sort(rng.permutation(genes)[np.arange(n) % present]).astype(np.int32)
    outline = shapely.Point(0, 0).buffer(30)
    return Cell("cell", "fov", cloud(n), gene, outline, None)


class Straightforward(torch.nn.Module):
    """The same network with the same weights, as one would write it down."""

    def __init__(self, model: GPSNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, nearest: Tensor) -> Tensor:
        """Logits (V, C) of the whole vocabulary; those of absent genes mean nothing."""
        model = self.model
        x = model.gene(batch.query[batch.row]) + model.place(batch.xy)
        for block in model.encoder:
            a = block.attention
            parts = a.query_key_value(block.near(x)).unflatten(-1, (3, a.heads, -1))
            q, k, v = parts.permute(1, 2, 0, 3)  # (heads, L, D) each
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            x = x + a.out(gather(q, k, v, nearest).transpose(0, 1).flatten(1))
            x = x + block.mlp(block.norm(x))
        memory = model.memory(x)
        vocabulary = len(model.config.genes)
        present = torch.zeros(vocabulary, dtype=torch.bool)
        present[batch.query] = True
        y = model.query(torch.arange(vocabulary))
        for block in model.decoder:
            normed = block.among(y)
            y = y + self.attend(block.self_attention, normed, normed, present)
            y = y + self.attend(block.cross_attention, block.across(y), memory, None)
            y = y + block.mlp(block.norm(y))
        return model.head(model.norm(y))

    def attend(self, part: Any, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of all queries."""
        q = part.query(x).unflatten(-1, (part.heads, -1)).transpose(0, 1)[None]
        k, v = part.key_value(memory).unflatten(-1, (2, part.heads, -1)).permute(1, 2, 0, 3)
        near = None if mask is None else mask.expand(1, 1, len(x), -1)
        out = scaled_dot_product_attention(q, k[None], v[None], near)
        return part.out(out[0].transpose(0, 1).flatten(1))


def in_bfloat16(way: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same, in bfloat16 where torch has it."""

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return way()

    return run


@torch.no_grad()
def whole_model(preset: str, n: int, genes: int, **changes: int) -> dict[str, Any]:
    """Inference of one cell, its plan or its neighbours included."""
    names = [f"gene{i}" for i in range(genes)]
    patterns = ["cell_edge", "cytoplasmic", "nuclear", "nuclear_edge"]
    config = Config.preset(preset, names, patterns, **changes)
    torch.manual_seed(0)
    model = GPSNet(config).eval()
    cell = cell_of(n, genes, 15.0 if preset == "nih3t3" else None)
    rows = vocabulary_rows(names, names)
    straightforward = Straightforward(model)

    def rival() -> Tensor:
        batch = collate([prepare(cell, rows, config)])
        nearest = neighbours(batch.xy.numpy(), config.neighbours)
        return straightforward(batch, nearest)[batch.query]

    ways = {
        "GPSNet": lambda: model(collate([prepare(cell, rows, config)])),
        "GPSNet, bfloat16": lambda: logits(model, [prepare(cell, rows, config)], bf16=True)[0],
        "straightforward": rival,
        "straightforward, bfloat16": in_bfloat16(rival),
    }
    seconds, values = best(ways, 1)
    present = len(cell.genes)
    title = (
        f"Whole model, {preset}: {n:,} molecules, {present:,} genes present of {genes:,}, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters"
    )
    ratios = show(title, seconds, "GPSNet")
    apart = compare(values, "GPSNet", ["straightforward"])
    return {
        "preset": preset,
        "n": n,
        "vocabulary": genes,
        "present": present,
        "seconds": seconds,
        "ratios": ratios,
        "difference": apart,
    }


if __name__ == "__main__":
    main()
