"""Draw the paper's figures from your data: splits, patterns, cells, ablations, training.

Needs the extra ``[plots]``. Functions return a ``matplotlib.figure.Figure``, without windows or
global state; :func:`save_figure` writes the same bytes for the same figure. Colour-blind safe
colours by Okabe and Ito (2008).
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpattern_bench.base.files import replacing
from gpattern_bench.base.validation import adapter
from gpattern_bench.data.cells import Cell
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, MissingExtraError
from gpattern_bench.evaluate.genes import gene_shares, has_pattern
from gpattern_bench.predictions import check_file
from gpattern_bench.tables.model_output import read_model_output
from gpattern_bench.tables.predictions import read_origin, require_origin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpattern_bench.runs.ablation import AblationRow

__all__ = [
    "SUFFIXES",
    "plot_ablation",
    "plot_cell",
    "plot_patterns",
    "plot_splits",
    "plot_training",
    "save_figure",
]

SUFFIXES = (".svg", ".pdf", ".png")
"""Suffixes that :func:`save_figure` knows."""

_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_YELLOW, _BLUE, _VERMILION, _PURPLE, _GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#BBBBBB"
_SPLIT_COLOURS = {"train": _BLUE, "val": _ORANGE, "test": _GREEN}
_PATTERN_COLOURS = {
    "nuclear": _BLUE,
    "nuclear_edge": _SKY,
    "cytoplasmic": _ORANGE,
    "cell_edge": _VERMILION,
    "membrane": _VERMILION,
}
_OTHER_PATTERNS = (_GREEN, _PURPLE, _YELLOW)
_LINES = (_BLUE, _VERMILION, _GREEN, _ORANGE, _PURPLE, _SKY, _BLACK)

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a gene may be named "$x$"
    "svg.hashsalt": "gpattern-bench",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_TRUTH = "truth"
_PANEL = 2.0  # inches, the longer side of a cell
_MIN_MOLECULES = 10  # enough to show a pattern
_CHOSEN = {"neighbours": "256", "depths": "1:2"}  # in the paper, table 3
_STUDY_LABELS = {
    "neighbours": "neighbours K",
    "depths": "encoder : decoder layers",
    "cells": "training cells",
}


@contextmanager
def _style() -> Iterator[None]:
    """Use matplotlib's defaults and ours, not the user's matplotlibrc."""
    try:
        from matplotlib import style
    except ImportError as error:
        raise MissingExtraError(
            "figures need matplotlib, which is not installed: pip install 'gpattern-bench[plots]'"
        ) from error
    with style.context(["default", _STYLE]):
        yield


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as SVG, PDF or PNG, by suffix; the same bytes for the same figure.

    Raises
    ------
    GPatternBenchError
        The suffix is unknown.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise GPatternBenchError(
            f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, got {kind or 'no suffix'}"
        )
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": None}
    with _style(), replacing(path) as beside:
        figure.savefig(beside, format=kind[1:], metadata=dates[kind])
    return path


@_style()
def plot_splits(dataset: Dataset) -> Figure:
    """Draw the paper's figure 6: cells, and molecules and genes per cell, of each split.

    Boxes: quartiles and median; whiskers: 5th and 95th percentile.
    """
    from matplotlib.figure import Figure

    splits = list(dataset.splits)
    colours = [_SPLIT_COLOURS[split] for split in splits]
    tables = [dataset.cells(split, ["n_molecules", "n_genes"]) for split in splits]
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    figure.suptitle(f"{dataset.id}: {sum(map(len, tables)):,} cells", fontsize=10)
    cells, molecules, genes = figure.subplots(1, 3)
    counts = [len(table) for table in tables]
    bars = cells.bar(splits, counts, color=colours, width=0.6)
    cells.bar_label(bars, [f"{count:,}" for count in counts], padding=2)
    cells.margins(y=0.15)
    cells.set_ylabel("cells")
    for axes, column, label in (
        (molecules, "n_molecules", "molecules per cell"),
        (genes, "n_genes", "genes per cell"),
    ):
        # Not Axes.boxplot: it makes pyplot choose a backend.
        quantiles = [np.quantile(table[column], (0.05, 0.25, 0.5, 0.75, 0.95)) for table in tables]
        least, first, middle, third, most = np.array(quantiles).T
        axes.vlines(splits, least, most, color=_BLACK, lw=1, zorder=0.5)  # behind the boxes
        axes.bar(splits, third - first, 0.5, first, color=colours, edgecolor=_BLACK)
        at = np.arange(len(splits))
        axes.hlines(middle, at - 0.25, at + 0.25, color=_BLACK, lw=1.8)
        axes.set_ylim(0, 1.1 * most.max())
        axes.set_ylabel(label)
    return figure


@_style()
def plot_patterns(dataset: Dataset, by: str = "pair") -> Figure:
    """Draw the paper's figure 7: patterns of the labelled pairs, or genes, of each split.

    Those with several patterns (the paper's ambiguous genes) or none count as such; shares add up
    to 100 %.

    Parameters
    ----------
    dataset : Dataset
    by : {"pair", "gene"}
        What is counted. A gene has a pattern that at least half of its labelled cells in the split
        show (:mod:`gpattern_bench.evaluate.genes`).

    Raises
    ------
    GPatternBenchError
        `by` is something else.
    """
    from matplotlib.figure import Figure

    if by not in ("pair", "gene"):
        raise GPatternBenchError(f"expected patterns by pair or by gene, got {by!r}")
    names = [*dataset.patterns, "several", "none"]
    splits = [split for split in dataset.splits if len(dataset.labels(split, ["gene"]))]
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(splits)
    for k, split in enumerate(splits):
        labels = dataset.labels(split)
        truth = labels[list(dataset.patterns)].to_numpy(bool)
        if by == "gene":
            truth = has_pattern(gene_shares(labels["gene"], truth)[2])
        several = truth.sum(axis=1)
        counts = [int((truth[:, c] & (several == 1)).sum()) for c in range(truth.shape[1])]
        counts += [int((several > 1).sum()), int((several == 0).sum())]
        shares = [100 * count / len(truth) for count in counts]
        at = np.arange(len(names)) + (k - (len(splits) - 1) / 2) * width
        label = f"{split} ({len(truth):,} {by}s)"
        bars = axes.bar(at, shares, width * 0.92, color=_SPLIT_COLOURS[split], label=label)
        axes.bar_label(bars, [f"{share:.1f}" for share in shares], padding=1.5, fontsize=6.5)
    axes.set_xticks(range(len(names)), [_words(name) for name in names])
    axes.set_ylabel(f"labelled {by}s (%)")
    axes.margins(y=0.1)
    axes.set_title(f"{dataset.id}: patterns of a {by}", loc="left")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@dataclass(frozen=True)
class _Source:
    """A column in the figure of a cell: its title, each gene's patterns, how they were called."""

    title: str
    patterns_of: Mapping[str, tuple[str, ...]]
    rule: str = ""


@_style()
def plot_cell(
    dataset: Dataset,
    cell_id: str | None = None,
    genes: Sequence[str] = (),
    predictions: Sequence[str | Path] = (),
) -> Figure:
    """Draw the paper's figures 5 and 8-10: genes of one cell, and their patterns.

    One row per gene; one column for the labels and for each prediction file. Colours show the
    gene's pattern; of several, the first and the last colour half a dot each, and the title names
    all. Predictions are called at the threshold of largest F1 per pattern over the whole split, as
    in the paper; scores of ``gpattern-bench predict`` at the model's thresholds. With neither
    labels nor thresholds, the pattern of the highest score is shown.

    Parameters
    ----------
    dataset : Dataset
    cell_id : str, optional
        Default: in the split (of the predictions, else test, else the first), the cell with most
        different patterns among genes of 10 or more molecules; ties: with most molecules.
    genes : sequence of str
        Default: the gene with most molecules of each pattern, and of several at once.
    predictions : sequence of str or pathlib.Path
        Prediction files of one split, or files of ``gpattern-bench predict``.

    Raises
    ------
    GPatternBenchError
        The cell is unknown, or a gene has no molecules in it; the message names some that exist.
    PredictionError
        A file is not a valid prediction of the split.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    within = _split_of(predictions)
    if cell_id is None:
        first = "test" if "test" in dataset.splits else dataset.splits[0]
        cell_id = _choose_cell(dataset, within or first)
    cell = next(iter(dataset.iter_cells(within, keep=[cell_id])), None)
    if cell is None:
        where = f"in {within} of {dataset.id}" if within else f"in {dataset.id}"
        raise GPatternBenchError(
            f"no cell {cell_id!r} {where}; the first cells are "
            + ", ".join(sorted(dataset.cells(within, ["cell_id"])["cell_id"].astype(str))[:5])
        )
    split = dataset.split_of[cell.fov]
    codes = _choose_genes(dataset, cell, genes)
    columns = [_label_source(dataset, cell)]
    columns += [_prediction_source(dataset, split, cell, Path(path)) for path in predictions]
    left, low, right, high = cell.boundary.bounds
    margin = 0.05 * max(right - left, high - low)
    height = max(_PANEL * min((high - low + 2 * margin) / (right - left + 2 * margin), 1.0), 0.7)
    width = max(_PANEL * len(columns) + 0.5, 3.6)
    figure = Figure(figsize=(width, (height + 0.4) * len(codes) + 1.5), layout="constrained")
    panels = figure.subplots(len(codes), len(columns), squeeze=False)
    for row, code in zip(panels, codes, strict=True):
        gene = dataset.genes[code]
        xy = cell.xy[cell.gene == code]
        for axes, source in zip(row, columns, strict=True):
            _outlines(axes, cell)
            found = source.patterns_of.get(gene)
            colours = [_pattern_colour(dataset, name) for name in found or ()]
            _molecules(axes, xy, colours or [_BLACK if found is None else _GREY])
            verdict = _verdict(found, source, columns[0].patterns_of.get(gene))
            axes.set_title(_wrapped(verdict, _PANEL, 7), fontsize=7)
            axes.set_xlim(left - margin, right + margin)
            axes.set_ylim(high + margin, low - margin)  # images have y downwards
            axes.set_aspect("equal")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(_wrapped(f"{gene}\n{len(xy):,} molecules", height + 0.2, 9))
    lines = max(axes.get_title().count("\n") + 1 for axes in panels[0])
    for axes, source in zip(panels[0], columns, strict=True):
        name = axes.annotate(
            _wrapped(source.title, 0.85 * _PANEL, 9),  # bold is wider
            (0.5, 1),
            (0, 10 + 9 * lines),  # above the verdict
            "axes fraction",
            textcoords="offset points",
            ha="center",
        )
        name.set_fontweight("bold")
    _scale_bar(panels[-1][0], left, right - left)
    title = f"{dataset.id}, cell {cell.cell_id}"
    rules: dict[str, list[str]] = {}
    for source in columns[1:]:
        rules.setdefault(source.rule, []).append(source.title)
    for rule, titles in rules.items():
        title += f"\n{rule}" if len(rules) == 1 else f"\n{', '.join(titles)}: {rule}"
    figure.suptitle(_wrapped(title, width, 9), fontsize=9)
    handles = [Line2D([], [], color=_BLACK, label="cell")]
    if cell.nucleus is not None:
        handles += [Line2D([], [], color=_BLACK, ls=":", label="nucleus")]
    if dataset.has_labels or predictions:
        colours_of = {_words(name): _pattern_colour(dataset, name) for name in dataset.patterns}
        handles += [
            Line2D([], [], color=colour, marker="o", ls="", label=label)
            for label, colour in (colours_of | {"no pattern": _GREY}).items()
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=int(width / 1.2))
    return figure


@_style()
def plot_ablation(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the paper's figure 4: scores by setting, ours and the paper's.

    Parameters
    ----------
    rows : sequence of mapping
        :class:`gpattern_bench.runs.ablation.AblationRow`, as ``gpattern-bench ablation --json``
        prints them.

    Raises
    ------
    GPatternBenchError
        There are no rows, or they have other keys.
    """
    from matplotlib.figure import Figure

    studies: dict[str, list[AblationRow]] = {}
    for row in _checked_rows(rows):
        studies.setdefault(row.study, []).append(row)
    metrics = ("AUC", "ACC", "F1")
    figure = Figure(figsize=(7.2, 2.2 * len(studies) + 0.5), layout="constrained")
    panels = figure.subplots(len(studies), len(metrics), squeeze=False)
    lines: dict[str, Any] = {}
    for line, (study, found) in zip(panels, studies.items(), strict=True):
        if study == "cells":  # a learning curve, from few to many
            found.sort(key=lambda row: row.cells)
        ticks = [f"{row.cells:,}" if study == "cells" else row.setting for row in found]
        at = range(len(found))
        chosen = [k for k, row in enumerate(found) if row.setting == _CHOSEN.get(study)]
        for k, (axes, metric) in enumerate(zip(line, metrics, strict=True)):
            ours = [100 * getattr(row, metric.lower()) for row in found]
            (lines["ours"],) = axes.plot(at, ours, "o-", color=_BLACK, ms=4)
            for dataset, marker, colour in (("nih3t3", "s", _BLUE), ("u2os", "^", _VERMILION)):
                values = [row.reported.get(dataset, (np.nan,) * 3)[k] for row in found]
                if np.isfinite(values).any():
                    name = f"the paper, {dataset}"
                    (lines[name],) = axes.plot(at, values, f"{marker}--", color=colour, ms=4)
            for place in chosen:
                lines["the paper's choice"] = axes.axvspan(
                    place - 0.3, place + 0.3, color=_GREY, alpha=0.35, lw=0
                )
            axes.set_xticks(at, ticks)
            axes.tick_params(axis="x", labelsize=7)
            axes.set_xlabel(_STUDY_LABELS.get(study, study))
            axes.set_ylabel(f"{metric} (%)")
            axes.margins(y=0.15)
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=len(lines))
    return figure


@_style()
def plot_training(folders: Sequence[str | Path]) -> Figure:
    """Draw training curves by epoch: losses, and macro AUC and F1 on val.

    Parameters
    ----------
    folders : sequence of str or pathlib.Path
        Model folders of GPSNet, with ``training.json``.

    Raises
    ------
    GPatternBenchError
        ``training.json`` is missing or damaged.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    paths = [Path(folder) for folder in folders]
    histories = [_history(path) for path in paths]
    if not histories:
        raise GPatternBenchError("no model folder given; name at least one")
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    losses, aucs, f1s = figure.subplots(1, 3)
    curves = []
    for k, (history, name) in enumerate(zip(histories, _run_names(paths), strict=True)):
        look = {"color": _LINES[k % len(_LINES)], "marker": _MARKERS[k % len(_MARKERS)], "ms": 3}
        epochs = [row["epoch"] for row in history]
        for axes, key, scale in (
            (losses, "loss", 1),
            (losses, "val_loss", 1),
            (aucs, "val_auc", 100),
            (f1s, "val_f1", 100),
        ):
            values = [_number(row.get(key)) * scale for row in history]
            if np.isfinite(values).any():
                drawn = axes.plot(epochs, values, ls="--" if key == "loss" else "-", **look)
                if key == "loss":
                    curves.append((drawn[0], name))
    losses.set_ylabel("loss per label (nats)")
    losses.set_title("train dashed, val solid", fontsize=8)
    aucs.set_ylabel("AUC on val, macro (%)")
    f1s.set_ylabel("F1 on val, macro (%)")
    for axes in (losses, aucs, f1s):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*zip(*curves, strict=True), loc="outside lower center", ncols=min(len(curves), 2))
    return figure


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Any) -> float:
    """Read a number from JSON; null is NaN."""
    return float("nan") if value is None else float(value)


def _pattern_colour(dataset: Dataset, pattern: str) -> str:
    others = [name for name in dataset.patterns if name not in _PATTERN_COLOURS]
    if pattern in others:
        return _OTHER_PATTERNS[others.index(pattern) % len(_OTHER_PATTERNS)]
    return _PATTERN_COLOURS[pattern]


def _split_of(predictions: Sequence[str | Path]) -> str | None:
    """Find the split of all prediction files; None if they are of no split alone."""
    found: dict[str, Path] = {}
    for path in map(Path, predictions):
        if read_model_output(path) is None:
            found[require_origin(path).split] = path
    if len(found) > 1:
        each = ", ".join(f"{path} ({split})" for split, path in found.items())
        raise GPatternBenchError(f"expected prediction files of one split, got {each}; keep one")
    return next(iter(found), None)


def _choose_cell(dataset: Dataset, split: str) -> str:
    cells = dataset.cells(split, ["cell_id", "n_molecules"])
    cells["cell_id"] = cells["cell_id"].astype(str)
    kinds = pd.Series(0, index=cells["cell_id"])
    if dataset.has_labels:
        labels = dataset.labels(split)
        labels = labels[labels["n_molecules"] >= _MIN_MOLECULES]
        patterns = labels[list(dataset.patterns)].to_numpy(bool)
        which = patterns @ (1 << np.arange(patterns.shape[1]))
        pairs = pd.DataFrame({"cell_id": labels["cell_id"].astype(str), "which": which})
        kinds = pairs[which > 0].groupby("cell_id")["which"].nunique()
    cells["kinds"] = cells["cell_id"].map(kinds).fillna(0)
    order = cells.sort_values(["kinds", "n_molecules", "cell_id"], ascending=[False, False, True])
    return str(order["cell_id"].iloc[0])


def _choose_genes(dataset: Dataset, cell: Cell, genes: Sequence[str]) -> list[int]:
    """Return the codes of `genes`, else of one gene per pattern."""
    present = {dataset.genes[code]: int(code) for code in cell.genes}
    absent = [gene for gene in genes if gene not in present]
    if absent:
        most = sorted(zip((-cell.counts).tolist(), cell.genes.tolist(), strict=True))[:10]
        raise GPatternBenchError(
            f"no molecules of {', '.join(absent)} in cell {cell.cell_id}; genes with most: "
            + ", ".join(dataset.genes[code] for _, code in most)
        )
    if genes:
        return [present[gene] for gene in dict.fromkeys(genes)]
    order = np.argsort(-cell.counts, kind="stable")
    if cell.labels is None:
        return [int(code) for code in cell.genes[order[:3]]]
    wanted = [cell.labels[order].sum(axis=1) > 1]
    wanted += [
        cell.labels[order, k] & (cell.labels[order].sum(axis=1) == 1)
        for k in range(len(dataset.patterns))
    ]
    rows = [int(order[np.argmax(found)]) for found in (*wanted[1:], wanted[0]) if found.any()]
    return [int(cell.genes[row]) for row in rows or order[:3]]


def _label_source(dataset: Dataset, cell: Cell) -> _Source:
    if cell.labels is None or cell.labelled is None:
        return _Source("molecules", {})
    names = np.array(dataset.patterns)
    return _Source(
        _TRUTH,
        {
            dataset.genes[code]: tuple(names[row])
            for code, row, known in zip(cell.genes, cell.labels, cell.labelled, strict=True)
            if known
        },
    )


def _prediction_source(dataset: Dataset, split: str, cell: Cell, path: Path) -> _Source:
    """Call the pairs of one cell in a file of scores."""
    from gpattern_bench.evaluate.calls import makes_calls
    from gpattern_bench.evaluate.evaluator import Evaluator

    output = read_model_output(path)
    named = read_origin(path) if output is None else output.model
    if output is not None and output.model.thresholds is not None:
        checked = check_file(path, dataset)
        chosen: list[float | None] = [output.model.thresholds.get(p) for p in dataset.patterns]
        rule = "called at the model's thresholds"
    elif dataset.has_labels:
        evaluator = Evaluator(dataset, split)
        checked = evaluator.check(path)
        found = evaluator.eval(checked, replicates=0).per_pattern
        calls = makes_calls(checked.require())
        chosen = [found[p]["threshold"] if c else None for p, c in zip(found, calls, strict=True)]
        rule = f"called at the thresholds of largest F1 on {split}"
    else:
        checked = check_file(path, dataset, None if output else split)
        chosen = []
        rule = "pattern of the highest score: there are no thresholds"
    rows = np.flatnonzero((checked.pairs["cell_id"] == cell.cell_id).to_numpy(bool))
    scores = checked.require()[rows]
    # None becomes NaN: never called.
    at = np.array(chosen, scores.dtype) if chosen else scores.max(axis=1, keepdims=True)
    called = scores >= at
    names = np.array(dataset.patterns)
    genes = checked.pairs["gene"].astype(str).iloc[rows]
    patterns_of = {gene: tuple(names[row]) for gene, row in zip(genes, called, strict=True)}
    return _Source(path.stem if named is None else named.method, patterns_of, rule)


def _verdict(found: tuple[str, ...] | None, source: _Source, truth: tuple[str, ...] | None) -> str:
    """Name the patterns; mark predictions as right or wrong."""
    if found is None:
        return "not labelled" if source.patterns_of else ""
    names = [_words(name) for name in found] or ["no pattern"]
    lines = [" + ".join(names[i : i + 2]) for i in range(0, len(names), 2)]
    text = " +\n".join(lines)
    if source.title == _TRUTH or truth is None:
        return text
    return f"{text} ({'right' if set(found) == set(truth) else 'wrong'})"


def _outlines(axes: Axes, cell: Cell) -> None:
    for shape, line in ((cell.boundary, "-"), (cell.nucleus, ":")):
        for part in () if shape is None else getattr(shape, "geoms", (shape,)):
            x, y = part.exterior.xy
            axes.plot(x, y, line, color=_BLACK, lw=0.9)


def _molecules(axes: Axes, xy: NDArray[np.float64], colours: Sequence[str]) -> None:
    """Draw dots in the colour of one pattern, or half and half in the first and last."""
    first, last = colours[0], colours[-1]
    size = float(np.clip(24 / np.sqrt(len(xy)), 1.5, 5))
    look: dict[str, Any] = {"marker": "o", "ls": "", "markeredgewidth": 0, "markersize": size}
    if len(colours) > 1:
        look |= {"fillstyle": "left", "markerfacecoloralt": last, "markersize": max(size, 3.5)}
    axes.plot(xy[:, 0], xy[:, 1], color=first, **look)


def _scale_bar(axes: Axes, left: float, width: float) -> None:
    """Draw a bar of round length, about a quarter of the cell, below the cell at its left."""
    rough = width / 4
    power = 10.0 ** np.floor(np.log10(rough))
    length = max(n * power for n in (1, 2, 5) if n * power <= rough)
    below = axes.get_xaxis_transform()  # x in micrometres, y in heights of the panel
    axes.plot(
        [left, left + length], [-0.02, -0.02], color=_BLACK, lw=2.5, solid_capstyle="butt",
        transform=below, clip_on=False,
    )  # fmt: skip
    axes.annotate(
        f"{length:g} µm", (left + length / 2, -0.02), (0, -3), below, textcoords="offset points",
        ha="center", va="top", fontsize=7,
    )  # fmt: skip


@lru_cache(maxsize=1000)  # panels have the same titles, and curves are slow to measure
def _wrapped(text: str, inches: float, size: float) -> str:
    """Break lines, between words or else within, so that text of that size in points fits."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family="DejaVu Sans")

    def fits(line: str) -> bool:
        if not line.strip():
            return True
        extents = TextPath((0, 0), line, size=size, prop=font).get_extents()
        return bool(extents.width <= 0.95 * 72 * inches)

    def broken(line: str) -> Iterator[str]:
        while line and not fits(line):
            # The longest that fits; what is longer is never narrower.
            most = max(1, bisect_left(range(1, len(line)), True, key=lambda n: not fits(line[:n])))
            at = line.rfind(" ", 1, most + 1)
            at = most if at < 0 else at
            yield line[:at].rstrip()
            line = line[at:].lstrip()
        yield line

    return "\n".join(part for line in text.split("\n") for part in broken(line))


def _checked_rows(rows: Any) -> list[AblationRow]:
    from pydantic import ValidationError

    from gpattern_bench.runs.ablation import AblationRow

    def whole(row: Mapping[str, Any]) -> dict[str, Any]:
        scores = {name: _number(row.get(name)) for name in ("auc", "acc", "f1")}
        return {**row, **scores}

    try:
        found = adapter(list[AblationRow]).validate_python([whole(row) for row in rows])
    except (ValidationError, AttributeError, TypeError, ValueError) as error:
        raise GPatternBenchError(
            "expected rows as `gpattern-bench ablation --json` prints them (study, setting, cells, "
            f"auc, acc, f1, reported): {error}"
        ) from error
    if not found:
        raise GPatternBenchError("the ablation has no rows; run `gpattern-bench ablation` first")
    return found


def _history(folder: Path) -> list[dict[str, Any]]:
    path = folder / "training.json"
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["history"]
        rows = [{key: row[key] for key in row} for row in history]
        finite = bool(rows) and all(isfinite(r["epoch"]) and isfinite(r["loss"]) for r in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GPatternBenchError(
            f"{path}: no readable training curve ({error!r}); expected a model folder of GPSNet, "
            "as `gpattern-bench run gpsnet` writes"
        ) from error
    if not finite:
        raise GPatternBenchError(f"{path}: expected epochs with a finite loss, got {rows[:1]}")
    return rows


def _run_names(folders: Sequence[Path]) -> list[str]:
    """Name each run by method, data and seed; add the folder to equal names."""
    names = []
    for folder in folders:
        try:
            about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            names.append(f"{about['method']}, {about['fitted_on']}, seed {about['seed']}")
        except (OSError, ValueError, KeyError, TypeError):
            names.append(str(folder))
    return [
        name if names.count(name) == 1 else f"{name} ({folder})"
        for name, folder in zip(names, folders, strict=True)
    ]
