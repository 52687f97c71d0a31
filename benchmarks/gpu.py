"""What GPSNet of the paper's sizes costs on a CUDA device, and whether it computes the same there.

*Attention*: forward and backward pass of one cell, 12 heads of 64, K = 256, in float32 and in
bfloat16: `knn_attention`, `scaled_dot_product_attention` with the neighbours as a mask and without
one, and FlexAttention, compiled, with the neighbours as its block mask. Molecules are in the order
of the plan, which makes blocks of neighbours for all. Best of some repeats; memory is the most that
torch held at once. In float32 our gradients must be those of the CPU to 1e-3, or it stops.

*Gradients*: of all weights of the preset `u2os`, drawn at random, on the device against the CPU, in
float32; a difference above 1e-4 of their norm stops it.

*Training*: `u2os` in the precision of its preset, for about `--minutes` each on `u2os_bento` and on
drawn cells of the size of the paper's U-2 OS cells. Cells per second are those of the whole
training call, with start, neighbour plans and transfers. A dataset that cannot be had is named.

Rerun: `python benchmarks/gpu.py` on a machine with a CUDA device; `--quick` runs small sizes and a
narrow network anywhere, in seconds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from gpsnet import DIM, HEADS, K, cell_of, cloud, random
from gpsnet_small import drawn
from timing import parsed, report, resident, show, told
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gpattern_bench import load_dataset
from gpattern_bench.data.cells import Cells
from gpattern_bench.errors import GPatternBenchError
from gpattern_bench.methods.gpsnet import knn_attention, knn_plan
from gpattern_bench.methods.gpsnet.config import TRAININGS, Config
from gpattern_bench.methods.gpsnet.model import GPSNet
from gpattern_bench.methods.gpsnet.tokens import collate, prepare, vocabulary_rows
from gpattern_bench.methods.gpsnet.train import train_network

MIB = 2**20
PRESET = "u2os"
TRIAL = 50  # steps whose time tells how many fit into the minutes
NARROW = {"width": 48, "encoder_depth": 1, "decoder_depth": 1}  # with --quick


def main() -> None:
    """Run all parts, print their tables and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="of each of two trainings, about"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, on a CPU too: seconds")
    options = parsed(parser)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.quick:
        sys.exit("error: torch finds no CUDA device here; --quick runs small sizes on the CPU")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU, no CUDA device"
    print(f"torch {torch.__version__} on {name}\n")
    found = {
        "device": name,
        "attention": attention(device, *((600, 1) if options.quick else (10_405, 5))),
        "gradients": gradients(device, options.quick),
        "training": list(training(device, options.minutes, options.quick)),
    }
    report(found, options.record)


def most_held(device: torch.device, reset: bool = False) -> float | None:
    """MiB at most since the reset: of torch on the device, or of this process on the CPU."""
    if device.type == "cpu":
        return told(round(resident(reset)[1] / MIB))
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return round(torch.cuda.max_memory_allocated() / MIB)


# Attention


def attention(device: torch.device, n: int, repeats: int) -> list[dict[str, Any]]:
    """Times, memory and differences of every way to attend to the neighbours."""
    plan = knn_plan(cloud(n), K).in_order()
    mask = plan.mask().to(device)
    precisions = [torch.float32] if device.type == "cpu" else [torch.float32, torch.bfloat16]
    rows: list[dict[str, Any]] = []
    for precision in precisions:
        parts = [x.to(device, precision).requires_grad_() for x in random(HEADS, n, DIM)]
        here = plan.to(device)
        ways: dict[str, Callable[..., Tensor]] = {
            "knn_attention": lambda q, k, v, here=here: knn_attention(q, k, v, here),
            "SDPA, masked": lambda q, k, v: fused(q, k, v, mask),
            "SDPA, all molecules": lambda q, k, v: fused(q, k, v, None),
            "FlexAttention": flex(mask),
        }
        expected = None
        if precision == torch.float32:  # of the CPU
            local = [x.detach().cpu().requires_grad_() for x in parts]
            expected = differentiated(lambda q, k, v: knn_attention(q, k, v, plan), local)
        for way, attend in ways.items():
            row = {"attention": way, "molecules": n, "precision": str(precision).split(".")[-1]}
            rows.append(row | timed(way, attend, parts, expected, repeats))
    show([{k: v for k, v in row.items() if k != "why"} for row in rows])
    for row in rows:
        if row["why"]:
            print(f"{row['attention']}, {row['precision']}: not run, {row['why']}", end="\n\n")
    return rows


def timed(
    name: str,
    attend: Callable[..., Tensor],
    parts: list[Tensor],
    expected: Tensor | None,
    repeats: int,
) -> dict[str, Any]:
    """Measure one way; what does not run there says why."""
    device = parts[0].device
    seconds, apart, why, held = [], None, None, None
    try:
        found = differentiated(attend, parts)  # compiled, warm
        held = most_held(device, reset=True)
        for _ in range(repeats):
            begin = perf_counter()
            found = differentiated(attend, parts)
            seconds.append(perf_counter() - begin)
        held = most_held(device)
        if expected is not None and name != "SDPA, all molecules":
            apart = float((found.cpu() - expected).abs().max())
    except (RuntimeError, NotImplementedError, ImportError) as error:  # memory, no kernel, triton
        why = " ".join(str(error).split())[:200] or type(error).__name__
    if name == "knn_attention" and apart is not None and not apart <= 1e-3:
        sys.exit(f"error: gradients of {name} differ from the CPU's by {apart:.3g}")
    best = min(seconds, default=None)
    return {"seconds": best, "most MiB": held, "gradients apart": apart, "why": why}


def differentiated(attend: Callable[..., Tensor], parts: list[Tensor]) -> Tensor:
    """Output and gradients (4, heads, L, D), computed to the end."""
    out = attend(*parts)
    grads = torch.autograd.grad(out, parts, out.detach())
    if out.device.type == "cuda":
        torch.cuda.synchronize()
    return torch.stack([out.detach(), *grads])


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Torch's own attention of (heads, L, D)."""
    return scaled_dot_product_attention(q[None], k[None], v[None], mask)[0]


def flex(mask: Tensor) -> Callable[..., Tensor]:
    """FlexAttention, compiled, of a dense mask."""
    made: list[tuple[Any, Any]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.device.type == "cpu":  # where compiling it takes longer than to be told so
            raise NotImplementedError("FlexAttention has no backward pass on a CPU")
        if not made:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            near = create_block_mask(
                lambda _b, _h, q_at, k_at: mask[q_at, k_at],
                None, None, *mask.shape, device=mask.device,
            )  # fmt: skip
            made.append((torch.compile(flex_attention), near))
        way, near = made[0]
        out: Tensor = way(q[None], k[None], v[None], block_mask=near)[0]
        return out

    return attend


# Gradients


def gradients(device: torch.device, quick: bool) -> dict[str, Any]:
    """Compare the gradient of all weights on the device with the CPU's."""
    names = [f"gene{i}" for i in range(130)]
    config = Config.preset(PRESET, names, ["a", "b", "c", "d"], **(NARROW if quick else {}))
    torch.manual_seed(0)
    network = GPSNet(config).eval()
    n = 300 if quick else 2_000
    batch = collate([prepare(cell_of(n, len(names), None), vocabulary_rows(names, names), config)])

    def of(place: torch.device) -> Tensor:
        network.to(place).zero_grad()
        network(batch.to(place)).square().mean().backward()
        return torch.cat(
            [p.grad.cpu().flatten() for p in network.parameters() if p.grad is not None]
        )

    expected, found = of(torch.device("cpu")), of(device)
    apart = float((found - expected).norm() / expected.norm())
    itself = ", that is with itself" if device.type == "cpu" else ""
    print(f"gradients of {len(expected):,} weights, {n:,} molecules, beside the CPU's{itself}:")
    print(f"they differ by {apart:.2g} of their norm", end="\n\n")
    if not apart <= 1e-4:
        sys.exit(f"error: gradients on the device differ from the CPU's by {apart:.3g}")
    return {"weights": len(expected), "molecules": n, "difference": apart}


# Training


def training(device: torch.device, minutes: float, quick: bool) -> Iterator[dict[str, Any]]:
    """Train on both datasets, each for the minutes, and tell what it took."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        large = {"n_fovs": 16, "cells_per_fov": 4, "n_genes": 130, "mean_molecules": 10_405}
        small = {"n_fovs": 6, "cells_per_fov": 1, "n_genes": 12, "mean_molecules": 60}
        sets: dict[str, Callable[[], Any]] = {
            "u2os_bento": lambda: load_dataset("u2os_bento"),
            "drawn": lambda: drawn(Path(name) / "drawn", 3, **(small if quick else large)),
        }
        if quick:  # nothing is downloaded
            del sets["u2os_bento"]
        for label, made in sets.items():
            try:
                cells = made().iter_cells("train")
            except GPatternBenchError as error:
                print(f"{label}: not trained, {error}", end="\n\n")
                continue
            row = {"training on": label, **trained(device, cells, minutes, quick)}
            rows.append(row)
            yield row
    show(rows)


def trained(device: torch.device, cells: Cells, minutes: float, quick: bool) -> dict[str, Any]:
    """Train for about the minutes: a few steps tell how many fit."""
    config = Config.preset(PRESET, cells.genes, cells.patterns, **(NARROW if quick else {}))

    def spent(steps: int) -> tuple[float, list[dict[str, Any]]]:
        begin = perf_counter()
        done = train_network(config, replace(TRAININGS[PRESET], steps=steps), cells, 0)
        return perf_counter() - begin, done.history

    steps = 2
    if not quick:
        spent(steps)  # the device warms up
        few, _ = spent(TRIAL)  # with the start: rather less than the minutes
        steps = max(TRIAL, round(60 * minutes * TRIAL / few))
    most_held(device, reset=True)
    seconds, history = spent(steps)
    held = most_held(device)
    of_epoch = -(-len(cells) // TRAININGS[PRESET].batch)
    return {
        "cells": len(cells),
        "steps": steps,
        "seconds": seconds,
        "cells/s": steps * len(cells) / of_epoch / seconds,
        "most MiB": held,
        "first loss": history[0]["loss"],
        "last loss": history[-1]["loss"],
    }


if __name__ == "__main__":
    main()
