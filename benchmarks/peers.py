r"""Time this package beside what others offer, on the same data, in one run.

One table, *what, ours, peer, ratio, limit*, in seconds of the processor of one thread each; the
last line is one JSON object. A peer that does not run here is named with the reason.

*Evaluator*: `Evaluator.eval` of N pairs x 4 patterns without intervals, against scikit-learn's
`roc_auc_score` and `precision_recall_curve` of each pattern, and torchmetrics' exact functions.
Limit: the bytes that no sweep over sorted scores can spare (labels and scores read, keys written,
read and written by one pass of a sort, read by the sweep), at the rate of a copy in this run.

*Features*: each baseline on real U-2 OS cells against its upstream program, per pair (ELLA: per
gene). Values are compared where the specification says that they agree; a difference beyond its
tolerance stops the benchmark. They need GPATTERN_BENCH_MIRROR and are left out without it. The slow
peers get every third cell, eighth pair or two genes.

*Attention*: `knn_attention` and its neighbour plan against a gather, fused attention with and
without the neighbours as a mask, FlexAttention and scipy's tree; a layer of the encoder of `u2os`.
Limit: their matrix products alone, of the same sizes, by torch in this run.

Peers live in an environment of their own, whose interpreter is named with `--peers`:

    python3.11 -m venv peers && peers/bin/pip install torch==2.13.0 -c constraints/peers.txt
    git clone https://github.com/jadexq/ELLA ELLA && git -C ELLA checkout 4528376
    peers/bin/pip install -c constraints/peers.txt ./ELLA \
        bento-tools big-fish subcellular-sprawl torchmetrics setuptools
    realpath ELLA/benchmark > peers/lib/python3.11/site-packages/ella_adam.pth

Rerun: `python benchmarks/peers.py --peers peers/bin/python` (half an hour), or `--quick`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import shapely
import torch
from gpsnet import DIM, HEADS, TOLERANCE, K, cloud, gather, neighbours, random
from methods import FEATURES, best
from scipy.stats import kstest
from sklearn.metrics import precision_recall_curve, roc_auc_score
from timing import fresh, here, parsed, report, show
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.evaluate.threshold_sweep import sorted_keys, sweep
from gpattern_bench.methods.bento.method import BENTO_FEATURES, bento_features
from gpattern_bench.methods.ella.kernels import fit_kernels
from gpattern_bench.methods.ella.radii import collect_radii
from gpattern_bench.methods.gpsnet import KNNPlan, knn_attention, knn_plan
from gpattern_bench.methods.gpsnet.config import Config
from gpattern_bench.methods.gpsnet.model import EncoderBlock
from gpattern_bench.methods.locfish.bigfish import BIGFISH_FEATURES, bigfish_features
from gpattern_bench.methods.sprawl.method import median_rank_variance, peripheral_central
from gpattern_bench.methods.sprawl.permutation import pair_scores
from gpattern_bench.sources.fetch import MIRROR

PARTS = ("evaluator", "features", "attention")
SIZES = (("float32", 10**6), ("float32", 10**7), ("float64", 10**6))
UPSTREAM = Path(__file__).with_name("upstream.py")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
U2OS_UM = 0.108  # pixel of the U-2 OS cells
PIXEL_UM = 0.1  # pixel of big-fish's masks
ON_LATTICE = 1e-4  # pixels: float32 moves whole pixels by less
CPU_SCORES = 2**22  # scores of a step of KNN-attention on a CPU
DRAWS = 40  # of ours, among which a random score of upstream must fall anywhere

Row = dict[str, Any]


def main() -> None:
    """Run the parts, print the table, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="an interpreter that has them")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat: seconds")
    options = parsed(parser)
    if options.peers is not None and not options.peers.exists():
        parser.error(f"no interpreter {options.peers}")
    if options.peers is not None and options.quick:
        parser.error("--peers is not for --quick: its cells have no lattice of pixels")
    torch.set_num_threads(1)  # else threads that wait for each other count
    quick, peers = options.quick, options.peers
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        parts: dict[str, Callable[[], list[Row]]] = {
            "evaluator": lambda: evaluator(peers, work, quick),
            "features": lambda: features(peers, work, quick),
            "attention": lambda: attention(
                *((600, 1) if quick else (10_405, 2)), compiled=not quick
            ),
        }
        rows = [row | {"part": name} for name in options.parts for row in parts[name]()]
    show([cells_of(row) for row in rows])
    for row in rows:
        if row["note"]:
            print(f"{row['what']}, {row['peer']}: {row['note']}")
    report({"rows": rows, "quick": quick}, options.record)


def row_of(
    what: str, unit: str, ours: float, peer: str | None = None, theirs: float | None = None,
    limit: float | None = None, limit_is: str | None = None, note: str | None = None, **more: Any,
) -> Row:  # fmt: skip
    """One row: times in `unit`, with their ratio and the share of the limit that ours reaches."""
    return {
        "what": what,
        "unit": unit,
        "ours": ours,
        "peer": peer,
        "theirs": theirs,
        "ratio": None if theirs is None else theirs / ours,
        "limit": limit,
        "limit_is": limit_is,
        "share": None if limit is None else limit / ours,
        "note": note,
        **more,
    }


def cells_of(row: Row) -> dict[str, Any]:
    """What the table shows of a row."""
    share = None if row["share"] is None else f"{100 * row['share']:.0f} % of {row['limit_is']}"
    shown = {"what": row["what"], "unit": row["unit"], "ours": row["ours"], "peer": row["peer"]}
    theirs = None if row["peer"] is None else "not run"
    if row["theirs"] is not None:
        theirs = f"{row['theirs']:.3g}"
    return shown | {"theirs": theirs, "ratio": row["ratio"], "limit": row["limit"], "of it": share}


def upstream(program: str, peers: Path | None, work: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Run a program in the peers' interpreter: its seconds and values, or why it does not run."""
    if peers is None:
        return {"why": "not run: no --peers"}
    source, target = work / "input.json", work / "output.json"
    source.write_text(json.dumps(given))
    target.unlink(missing_ok=True)
    command = [peers.absolute(), "-W", "ignore", UPSTREAM, program, source, target]
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(  # noqa: S603
        command, cwd=work, env=known | ONE_THREAD, stderr=subprocess.PIPE, text=True
    )
    if not target.exists():
        return {"why": f"ended with {done.returncode}: {done.stderr.strip()[-200:]}"}
    found: dict[str, Any] = json.loads(target.read_text())
    print(f"{program}: {found.get('why', 'done')}", file=sys.stderr, flush=True)
    return found


def least(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least seconds of the processor of some calls, and what the last returned."""
    spent = []
    for _ in range(repeats):
        began = process_time()
        value = call()
        spent.append(process_time() - began)
    return min(spent), value


def demand(holds: bool, what: str, found: Any) -> None:
    """Stop if values that must agree do not."""
    if not holds:
        sys.exit(f"error: {what} is not upstream's: {found}")


# Evaluator


def evaluator(peers: Path | None, work: Path, quick: bool) -> list[Row]:
    """Time one call, and its stages, against scikit-learn and torchmetrics."""
    sizes, repeats = ((("float32", 10_000),), 1) if quick else (SIZES, 3)
    return [row for dtype, n in sizes for row in evaluated(dtype, n, repeats, peers, work)]


def evaluated(dtype: str, n: int, repeats: int, peers: Path | None, work: Path) -> list[Row]:
    """The rows of one size."""
    patterns = [f"p{k}" for k in range(4)]
    pair = pd.DataFrame({"cell_id": ["1"], "gene": ["A"]} | {name: [True] for name in patterns})
    scorer = Evaluator(pair)
    rng = np.random.default_rng(0)
    true = rng.random((n, 4), dtype=np.float32) < 0.2
    scores = rng.random((n, 4), dtype=dtype)
    scores[true] = np.sqrt(scores[true])

    def ours(rows: int = n) -> float:
        found = scorer.eval({"y_true": true[:rows], "y_pred": scores[:rows]})
        return float(found["auc_macro"])

    def sklearn(rows: int = n) -> float:
        columns = [(true[:rows, k], scores[:rows, k]) for k in range(4)]
        return float(np.mean([(roc_auc_score(*c), precision_recall_curve(*c))[0] for c in columns]))

    ours(100), sklearn(100)  # compiled
    spent, auc = least(ours, repeats)
    others, expected = least(sklearn, 1)
    demand(abs(auc - expected) <= 1e-12, "the AUC of scikit-learn", (auc, expected))
    paths = {name: str(work / f"{name}.npy") for name in ("true", "scores")}
    np.save(paths["true"], true)
    np.save(paths["scores"], scores)
    tm = upstream("torchmetrics", peers, work, paths)
    if "values" in tm:  # in float32
        apart = abs(auc - float(np.mean(tm["values"]["auc"])))
        tm["note"] = f"macro AUC differs by {apart:.1g}"
        demand(apart <= 1e-4, "the AUC of torchmetrics", apart)

    columns = [(np.ascontiguousarray(true[:, k]), scores[:, k].copy()) for k in range(4)]
    keys = [sorted_keys(*column)[0] for column in columns]
    unsorted = [rng.permutation(each) for each in keys]
    rate = copied(keys[0].nbytes)
    size = scores.itemsize
    name = f"{n:,} pairs x 4, {dtype}"
    memory = {"limit_is": f"a copy, {rate / 1e9:.0f} GB/s"}
    whole = 4 * n * (1 + size + size + 2 * size + size) / rate
    sorting, _ = least(lambda: [np.sort(each) for each in unsorted], repeats)
    sweeping, _ = least(
        lambda: [
            sweep(key, int(column[0].sum())) for key, column in zip(keys, columns, strict=True)
        ],
        repeats,
    )
    return [
        row_of(name, "s", spent, "scikit-learn", others, whole, **memory),
        row_of(
            name, "s", spent, "torchmetrics", tm.get("cpu_s"), whole, **memory,
            note=tm.get("why", tm.get("note")), version=tm.get("version"),
        ),
        row_of(f"{name}: numpy's sort", "s", sorting, limit=8 * n * size / rate, **memory),
        row_of(f"{name}: the sweep", "s", sweeping, limit=4 * n * size / rate, **memory),
    ]  # fmt: skip


def copied(size: int) -> float:
    """Bytes per second, read and written, of numpy's copy of an array of some bytes."""
    source = np.ones(size, np.uint8)
    target = np.zeros_like(source)
    times = max(1, 2**28 // size)

    def copies() -> None:
        for _ in range(times):
            np.copyto(target, source)

    return 2 * size * times / least(copies, 5)[0]


# Features


def features(peers: Path | None, work: Path, quick: bool) -> list[Row]:
    """Time every baseline against its upstream program, and compare their values."""
    if quick:
        names, call, repeats = ("synthetic", "synthetic"), here, 1
    elif os.environ.get(MIRROR):
        names, call, repeats = ("u2os_gold", "u2os_sample"), fresh, 3
    else:
        print(f"{MIRROR} is not set: real cells are left out\n")
        return []
    gold, sample = (cells_named(name, 1, 3 if quick else None) for name in names)
    some = cells_named(names[1], 3, 3 if quick else None)
    panel = len(genes_present(sample))
    bento = "Bento, 13 features", "bento features", gold, like_bento
    adam = {"genes": middling(sample)}
    locfish = "locFISH, 41 features", "locfish features", gold, like_bigfish
    ella = "ELLA, radii and 22 kernels", "ella fit", sample
    compared: list[tuple[str, str, Cells, Check, str, dict[str, Any]]] = [
        (*bento, "bento", {}),
        (*bento, "bento, as shipped", {}),
        ("SPRAWL, peripheral", "sprawl peripheral", sample, like_peripheral,
         "sprawl peripheral", variances(sample)),
        ("SPRAWL, punctate (ours: and radial)", "sprawl punctate", some, like_punctate,
         "sprawl punctate", variances(some)),
        ("SPRAWL, radial (ours: and punctate)", "sprawl radial", some, like_radial,
         "sprawl radial", variances(some)),
        (*ella, like_ella, "ella", {}),
        (*ella, unlike_adam, "ella, Adam", adam),
        (*locfish, "big-fish", {"every": 8}),
        (*locfish, "big-fish, without protrusion", {"every": 8}),
    ]  # fmt: skip
    rows = []
    for what, feature, cells, check, program, more in compared:
        cost = call(best, FEATURES[feature], cells, repeats)
        unit, units = "ms per pair", cost["pairs"]
        if feature == "ella fit":
            unit, units = "ms per gene", panel
        pixel = PIXEL_UM if program.startswith("big-fish") else U2OS_UM
        given = in_pixels(cells, pixel)
        found = upstream(program, peers, work, {"cells": plain(given), **more})
        theirs, note = None, found.get("why")
        if "values" in found:
            theirs = 1000 * found["cpu_s"] / len(found["values"])
            note = check(given, found["values"])
        ours = 1000 * cost["cpu_s"] / units
        also = {"units": units, "version": found.get("version")}
        rows.append(row_of(what, unit, ours, program, theirs, note=note, **also))
    return rows


def cells_named(name: str, step: int, most: int | None) -> Cells:
    """Every so-manieth cell of a dataset, at most so many."""
    dataset = load_dataset(name)
    ids = sorted(dataset.cells(columns=["cell_id"])["cell_id"])
    return dataset.iter_cells(keep=ids[:most:step])


def plain(cells: Cells) -> list[dict[str, Any]]:
    """Cells as any program can read them."""
    found = []
    for cell in cells:
        outlines = {
            name: None if shape is None else shapely.to_wkb(shape, hex=True)
            for name, shape in (("boundary", cell.boundary), ("nucleus", cell.nucleus))
        }
        genes = [cells.genes[code] for code in cell.gene]
        found.append({"name": cell.cell_id, "gene": genes, "xy": cell.xy.tolist(), **outlines})
    return found


def in_pixels(cells: Cells, unit_um: float) -> Cells:
    """The cells in pixels, with the lower corner of each outline at 0, 0.

    Whole pixels are whole again, as they were before tables kept them in float32: outlines lie on
    the lattice of an image, and some molecules on outlines.
    """

    def changed(cell: Cell) -> Cell:
        low = np.array(cell.boundary.bounds[:2])

        def pixels(xy: np.ndarray) -> np.ndarray:
            found = (xy - low) / unit_um
            whole = np.rint(found)
            return np.where(abs(found - whole) < ON_LATTICE, whole, found)

        return moved(cell, pixels)

    return cells.mapped(changed)


def moved(cell: Cell, change: Callable[[np.ndarray], np.ndarray]) -> Cell:
    """The cell with all its coordinates changed."""
    boundary, nucleus = (
        None if shape is None else shapely.transform(shape, change)
        for shape in (cell.boundary, cell.nucleus)
    )
    return replace(cell, xy=change(cell.xy), boundary=boundary, nucleus=nucleus)


def variances(cells: Cells) -> dict[str, Any]:
    """Null variances of the genes of each cell, sorted, as SPRAWL's files hold them."""
    return {"variances": [median_rank_variance(c.counts, len(c.gene)).tolist() for c in cells]}


def genes_present(cells: Cells) -> np.ndarray:
    """Codes of the genes that some cell has, by falling number of molecules."""
    counts = np.bincount(np.concatenate([cell.gene for cell in cells]))
    return np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]


def middling(cells: Cells) -> list[str]:
    """Two genes, a third and two thirds down the list by molecules."""
    codes = genes_present(cells)
    return [cells.genes[codes[len(codes) * k // 3]] for k in (1, 2)]


Check = Callable[[Cells, dict[str, Any]], str]
"""Compares upstream's values of cells with ours: stops where they must agree and do not."""


def beside(
    cells: Cells, found: dict[str, Any], compute: Callable[[Cell], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Ours (n, ...) and upstream's values of the pairs that upstream was asked for."""
    ours = {
        f"{cell.cell_id} {cells.genes[code]}": values
        for cell in cells
        for code, values in zip(cell.genes, compute(cell), strict=True)
    }
    return np.array([ours[key] for key in found]), np.array(list(found.values()))


def like_bento(cells: Cells, found: dict[str, Any]) -> str:
    """Equal."""
    ours, theirs = beside(cells, found, lambda cell: bento_features(cell, unit_um=1.0))
    missing = np.isnan(theirs)
    apart = np.where(missing, 0, abs(ours - theirs))
    worst = BENTO_FEATURES[int(apart.max(axis=0).argmax())]
    demand(bool((np.isnan(ours) == missing).all()), "where Bento's features miss", missing.sum())
    demand(apart.max() <= 1e-9, "Bento's feature", (worst, apart.max()))
    return f"{len(ours):,} pairs, equal to {apart.max():.1g}"


def like_peripheral(cells: Cells, found: dict[str, Any]) -> str:
    """Equal, but for few pairs; upstream breaks ties at random."""
    ours, theirs = beside(cells, found, lambda cell: peripheral_central(cell)[0])
    apart = abs(ours - theirs)
    same = float((apart <= 1e-12).mean())
    demand(apart.max() <= 1e-3 and same > 0.9, "SPRAWL's peripheral score", apart.max())
    return f"{len(ours):,} pairs, {100 * same:.1f} % equal, the rest to {apart.max():.2g}"


def like_punctate(cells: Cells, found: dict[str, Any]) -> str:
    """The same law."""
    return same_law(cells, found, "punctate")


def like_radial(cells: Cells, found: dict[str, Any]) -> str:
    """The same law."""
    return same_law(cells, found, "radial")


def same_law(cells: Cells, found: dict[str, Any], score: str) -> str:
    """Upstream's random scores fall anywhere among single draws of ours."""

    def drawn(cell: Cell) -> np.ndarray:
        middle = cell.geometry.boundary_rings.exterior_xy.mean(axis=0)
        draws = [
            pair_scores(cell.xy, cell.gene, middle, seed=seed, name=cell.cell_id, obs_draws=1)
            for seed in range(DRAWS)
        ]
        return np.stack([getattr(draw, score) for draw in draws], axis=1)

    ours, theirs = beside(cells, found, drawn)
    above = theirs[:, None] - ours
    less, equal = (above > 1e-9).sum(axis=1), (abs(above) <= 1e-9).sum(axis=1)
    place = (less + np.random.default_rng(0).random(len(less)) * (equal + 1)) / (DRAWS + 1)
    p = float(kstest(place, "uniform").pvalue)
    demand(p > 1e-3, f"the law of SPRAWL's {score} score", p)
    return f"{len(ours):,} pairs, the same law (Kolmogorov-Smirnov p = {p:.2g})"


def like_ella(cells: Cells, found: dict[str, Any]) -> str:
    """Equal, with radii at whole degrees as upstream."""
    ours, theirs = likelihood_ratios(cells, found)
    apart = float((abs(ours - theirs) / np.maximum(1, theirs)).max())
    demand(apart <= 1e-6, "ELLA's likelihood ratios", apart)
    return f"{len(ours)} genes x 22 kernels, likelihood ratios equal to {apart:.1g}"


def unlike_adam(cells: Cells, found: dict[str, Any]) -> str:
    """Not equal: it stops before the optimum."""
    ours, theirs = likelihood_ratios(cells, found)
    missed = ours.max(axis=1) - theirs.max(axis=1)
    demand(bool((missed > -0.1).all()), "at most ELLA's optimum", missed)
    told = ", ".join(f"{a:.1f} of {b:.1f}" for a, b in zip(missed, ours.max(axis=1), strict=True))
    return f"{', '.join(found)}: without registration; it misses {told} of the likelihood ratio"


def likelihood_ratios(cells: Cells, found: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Ours and upstream's (G, 22)."""
    radii = collect_radii(cells, "grid")
    ours = fit_kernels(radii.r, radii.starts).t
    rows = [cells.genes.index(gene) for gene in found]
    return ours[rows], np.array(list(found.values()))


def like_bigfish(cells: Cells, found: dict[str, Any]) -> str:
    """Equal on the same pixels but for upstream's rounding; what is timed is on the outlines."""

    def drawn(cell: Cell) -> np.ndarray:
        return bigfish_features(moved(cell, lambda xy: xy * PIXEL_UM), pixels=True)

    ours, theirs = beside(cells, found, drawn)
    names = [name for name in BIGFISH_FEATURES if theirs.shape[1] == 41 or "protru" not in name]
    ours = ours[:, [BIGFISH_FEATURES.index(name) for name in names]]
    apart = abs(ours - theirs) - 1e-6 * abs(theirs)
    demand(apart.max() <= 0.0051, "big-fish's features", names[int(apart.max(axis=0).argmax())])
    return f"{len(ours)} pairs; on its pixels equal to its two decimals"


# Attention


@torch.no_grad()
def attention(n: int, repeats: int, compiled: bool) -> list[Row]:
    """Time KNN-attention and its plan in one cell against other ways, and an encoder layer."""
    points = cloud(n)
    knn_plan(cloud(600), 16)  # compiled
    planning, plan = least(lambda: knn_plan(points, K), repeats)
    searching, nearest = least(lambda: neighbours(points, K), repeats)
    q, k, v = random(HEADS, n, DIM)
    mask = plan.mask()
    ours, out = least(lambda: knn_attention(q, k, v, plan), repeats + 1)
    alone = product_seconds(plan, q, k)
    rate, needed = 4 * HEADS * DIM * scores_of(plan) / alone, n * K / scores_of(plan)
    products = {"limit": alone, "limit_is": f"its products, {rate / 1e9:.0f} GFLOP/s"}
    products |= {"needed": needed}  # share of the scores; the others are masked
    rivals: dict[str, Callable[[], Tensor]] = {
        "gather": lambda: gather(q, k, v, nearest),
        "SDPA, neighbours as a mask": lambda: fused(q, k, v, mask),
        "SDPA, all molecules": lambda: fused(q, k, v, None),
        "FlexAttention": flex(q, k, v, plan, mask, compiled),
    }
    what = f"KNN-attention, {n:,} molecules"
    rows = [row_of(f"{what}: plan", "s", planning, "scipy's cKDTree", searching)]
    for peer, rival in rivals.items():
        theirs, note = None, None
        try:
            rival()  # compiled
            theirs, found = least(rival, repeats)
        except Exception as error:  # noqa: BLE001 - whatever a compiler says
            note = f"not run: {' '.join(str(error).split())[:200]}"
        else:
            apart = float((found - out).abs().max())
            if peer != "SDPA, all molecules":
                demand(apart <= TOLERANCE, f"the attention by {peer}", apart)
                note = f"differs by {apart:.1g}"
        rows.append(row_of(what, "s", ours, peer, theirs, **products, note=note))
    return [*rows, encoder_layer(points, plan, alone, repeats)]


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Torch's own attention of (heads, L, D)."""
    return scaled_dot_product_attention(q[None], k[None], v[None], mask)[0]


def flex(
    q: Tensor, k: Tensor, v: Tensor, plan: KNNPlan, mask: Tensor, compiled: bool
) -> Callable[[], Tensor]:
    """FlexAttention; molecules in the order of the plan: neighbours make blocks."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    order = torch.arange(len(plan)) if plan.order is None else plan.order
    sorted_mask = mask[order][:, order]
    near = create_block_mask(
        lambda _b, _h, q_at, k_at: sorted_mask[q_at, k_at], None, None, *mask.shape, device="cpu"
    )
    way = torch.compile(flex_attention) if compiled else flex_attention  # compiling takes a minute
    parts = [x[None, :, order] for x in (q, k, v)]
    place = torch.argsort(order)
    return lambda: way(*parts, block_mask=near)[0][:, place]


def scores_of(plan: KNNPlan) -> int:
    """Scores that KNN-attention computes for a head: of all queries and keys of each block."""
    return sum(step.bias.numel() for step in plan.steps(HEADS, CPU_SCORES))


def product_seconds(plan: KNNPlan, q: Tensor, k: Tensor) -> float:
    """Seconds of the two products of each step alone, which no way of the same blocks can spare."""
    total = 0.0
    for step in plan.steps(HEADS, CPU_SCORES):
        a, b = step.queries(q).flatten(0, 1), step.gathered(k).flatten(0, 1)
        spent, scores = least(lambda a=a, b=b: torch.bmm(a, b.transpose(1, 2)), 3)
        total += spent + least(lambda scores=scores, b=b: torch.bmm(scores, b), 3)[0]
    return total


def encoder_layer(points: np.ndarray, plan: KNNPlan, attending: float, repeats: int) -> Row:
    """A layer of the paper's encoder, against its matrix products alone."""
    n = len(points)
    config = Config.preset("u2os", ["A"], ["p"])
    block = EncoderBlock(config).eval()
    width, hidden = config.width, config.mlp_ratio * config.width
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(0))
    places, row = torch.from_numpy(points).float(), torch.zeros(n, dtype=torch.long)
    ours, _ = least(lambda: block(x, plan, places, row), repeats + 1)
    total = attending
    for inside, outside in ((width, 3 * width), (width, width), (width, hidden), (hidden, width)):
        a, b = torch.randn(n, inside), torch.randn(inside, outside)
        total += least(lambda a=a, b=b: torch.mm(a, b), 3)[0]
    dense = 2 * n * width * (4 * width + 2 * hidden)
    flop = dense + 4 * HEADS * DIM * scores_of(plan)
    limit_is = f"its products, {flop / total / 1e9:.0f} GFLOP/s"
    name = f"a layer of the encoder, {n:,} molecules"
    return row_of(name, "s", ours, limit=total, limit_is=limit_is)


if __name__ == "__main__":
    main()
