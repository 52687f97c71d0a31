"""The README's picture: a simulated cell, its molecules, and what the board says.

Run ``python docs/picture.py`` after the board changes; a test compares. The cell is CC0, of
`synthetic`; the numbers are those of ``leaderboard/leaderboard.json``.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from gpattern_bench import load_dataset
from gpattern_bench.base.files import write_text
from gpattern_bench.data.cells import Cell

__all__ = ["picture"]

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "_static" / "picture.svg"

TITLE = "A simulated cell and its molecules; mean skill of the methods on the board"
WIDTH, HEIGHT = 1000, 380
MIDDLE, RADIUS = (152, 190), 168  # of the cell, px
LEGEND = (305, 70)  # its left end, and the line below its title
TEXT, CHART = 580, (800, 970, 112)  # of the board: left end; of its chart: left, right, top
ROW = 24
METHODS = 8  # most rows of the chart
LARGEST = 60  # skill at the right end of the chart

# Patterns apart for colour-blind readers too: hues of Okabe and Ito, darker on white.
STYLE = """
.card{fill:#fff;stroke:#d9dee3}.ink{fill:#1c2024}.soft{fill:#5d666f}
.cell{fill:#f3f5f7;stroke:#5d666f}.nucleus{fill:#e3e8ec;stroke:#5d666f}.rest{stroke:#b4bcc4}
.p0{stroke:#c2410c}.p1{stroke:#0072b2}.p2{stroke:#009e73}.p3{stroke:#aa3377}
.axis{stroke:#d9dee3}.zero{stroke:#5d666f}.ci{stroke:#00568c;stroke-width:3}.dot{fill:#00568c}
.dots{fill:none;stroke-linecap:round}
text{font:13px system-ui,sans-serif}.big{font-size:15px;font-weight:600}.small{font-size:11px}
@media (prefers-color-scheme:dark){
.card{fill:#14181c;stroke:#3a434c}.ink{fill:#e4e8ec}.soft{fill:#9da7b1}
.cell{fill:#1c2228;stroke:#9da7b1}.nucleus{fill:#29313a;stroke:#9da7b1}.rest{stroke:#56616c}
.p0{stroke:#ff9460}.p1{stroke:#62b6f0}.p2{stroke:#3fd0a3}.p3{stroke:#ea8ccb}
.axis{stroke:#3a434c}.zero{stroke:#9da7b1}.ci{stroke:#7cc0f0}.dot{fill:#7cc0f0}}
"""


def picture() -> str:
    """Draw it, as SVG that follows the reader's light or dark."""
    board = json.loads((ROOT / "leaderboard" / "leaderboard.json").read_text(encoding="utf-8"))
    labels = {row["method"]: row["label"] for table in board["tables"] for row in table["rows"]}
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{TITLE}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="8"/>',
            *_draw_cell(),
            *_draw_board(board["overview"], labels),
            "</svg>\n",
        ]
    )


def _draw_cell() -> Iterator[str]:
    dataset = load_dataset("synthetic")
    cell, genes = _clearest(dataset.iter_cells("train"))
    ring = np.asarray(cell.boundary.exterior.coords)
    scale = RADIUS / np.abs(ring).max()
    yield _outline("cell", ring, scale)
    if cell.nucleus is not None:
        yield _outline("nucleus", np.asarray(cell.nucleus.exterior.coords), scale)
    pair = np.searchsorted(cell.genes, cell.gene)
    yield _dots("rest", cell.xy[~np.isin(pair, genes)], scale, 1.5)
    x, y = LEGEND
    yield f'<text class="ink big" x="{x}" y="{y - 26}">One cell, {len(cell.genes)} genes.</text>'
    yield f'<text class="ink big" x="{x}" y="{y - 6}">What does each show?</text>'
    for k, (pattern, gene) in enumerate(zip(dataset.patterns, genes, strict=True)):
        yield _dots(f"p{k}", cell.xy[pair == gene], scale, 3.2)
        at = y + 22 + 26 * k
        name = dataset.genes[cell.genes[gene]]
        yield f'<path class="dots p{k}" stroke-width="10" d="M{x + 5},{at - 4}h0"/>'
        yield f'<text class="ink" x="{x + 18}" y="{at}">{escape(name)}: {pattern}</text>'
    at = y + 22 + 26 * len(genes)
    yield f'<path class="dots rest" stroke-width="6" d="M{x + 5},{at - 4}h0"/>'
    yield f'<text class="soft" x="{x + 18}" y="{at}">all other genes</text>'
    notes = ("Simulated, so that the truth is known.", "Outlines: cell and nucleus.")
    for k, line in enumerate(notes):
        yield f'<text class="soft small" x="{x}" y="{at + 30 + 15 * k}">{line}</text>'


def _clearest(cells: Iterable[Cell]) -> tuple[Cell, list[int]]:
    """Find the cell that shows each pattern by one gene with most molecules, and these genes."""
    best: tuple[int, Cell, list[int]] | None = None
    for cell in cells:
        if cell.nucleus is None or cell.labels is None:
            continue
        only = (cell.labels == 1) & (cell.labels.sum(axis=1, keepdims=True) == 1)
        counts = np.where(only, cell.counts[:, None], 0)
        least = int(counts.max(axis=0).min())
        if best is None or least > best[0]:
            best = least, cell, counts.argmax(axis=0).tolist()
    assert best is not None, "synthetic has cells"
    return best[1:]


def _outline(name: str, ring: np.ndarray[Any, Any], scale: float) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _placed(ring, scale))
    return f'<polygon class="{name}" points="{points}"/>'


def _dots(name: str, xy: np.ndarray[Any, Any], scale: float, radius: float) -> str:
    """Draw points as one path: lines of no length with round ends."""
    path = "".join(f"M{x:.1f},{y:.1f}h0" for x, y in _placed(xy, scale))
    return f'<path class="dots {name}" stroke-width="{2 * radius:g}" d="{path}"/>'


def _placed(xy: np.ndarray[Any, Any], scale: float) -> np.ndarray[Any, Any]:
    return np.asarray(MIDDLE) + xy * (scale, -scale)


def _draw_board(overview: dict[str, Any], labels: dict[str, str]) -> Iterator[str]:
    x, (left, right, top) = TEXT, CHART
    ranked = [each for each in overview["methods"] if each["skill"]][:METHODS]
    for k, line in enumerate(textwrap.wrap(overview["headline"], 38)):
        yield f'<text class="ink big" x="{x}" y="{44 + 20 * k}">{escape(line)}</text>'
    bottom = top + ROW * len(ranked)

    def at(skill: float) -> float:
        return left + (right - left) * skill / LARGEST

    for tick in range(0, LARGEST + 1, 20):
        kind = "axis" if tick else "zero"
        yield f'<path class="{kind}" d="M{at(tick):.1f},{top - 14}V{bottom - 8}"/>'
        place = f'x="{at(tick):.1f}" y="{bottom + 8}" text-anchor="middle"'
        yield f'<text class="soft small" {place}>{tick}</text>'
    for k, each in enumerate(ranked):
        y, skill = top + ROW * k, each["skill"]
        yield f'<text class="ink" x="{x}" y="{y}">{escape(labels[each["method"]])}</text>'
        if skill["ci"]:
            low, high = (at(end) for end in skill["ci"])
            yield f'<path class="ci" d="M{low:.1f},{y - 4}H{high:.1f}"/>'
        yield f'<circle class="dot" cx="{at(skill["value"]):.1f}" cy="{y - 4}" r="5"/>'
    notes = (
        "Mean skill: 0 is the best control that is blind to the labels, 100 is perfect.",
        "Lines: 95 % intervals.",
    )
    for k, line in enumerate(notes):
        yield f'<text class="soft small" x="{x}" y="{bottom + 30 + 15 * k}">{line}</text>'


if __name__ == "__main__":
    write_text(PICTURE, picture())
