"""Charts as geometry, for the page's template to draw as inline SVG without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10

import shapely

__all__ = ["Chart", "Line", "Style", "bins_chart", "styles", "time_chart", "unit_chart"]

_HUES = 7  # of a palette for the colour-blind; within one, dashes and marks
_UNSEEN = 0.2  # pixels
_Point = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """How every chart draws a method: classes of the style sheet, and the shape of its marks.

    Shapes are 0 to 3: disc, square, diamond, triangle.
    """

    method: str
    label: str
    classes: str
    shape: int = 0


@dataclass(frozen=True)
class Line:
    """One method in a chart: a path, dots, a note, and the height of its label if it has one."""

    style: Style
    path: str
    dots: Sequence[_Point] = ()
    note: str = ""
    label_y: float | None = None


@dataclass(frozen=True)
class Chart:
    """A chart in pixels: origin at the upper left, plot area from (left, top) to (right, bottom).

    Ticks are (position, text); guides are paths of no method.
    """

    title: str
    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float
    x_title: str
    y_title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line] = ()
    guides: Sequence[str] = field(default_factory=tuple)


def styles(methods: Iterable[tuple[str, str, str]]) -> dict[str, Style]:
    """Give every method its style: a hue per family, in it dashes and marks; controls are grey.

    A family are the names with the same first word (``boosted``, ``boosted_gene``).

    Parameters
    ----------
    methods : iterable of (name, label, kind)
        In any order, each once.
    """
    ordered = sorted(methods)
    families = dict.fromkeys(_family(name) for name, _, kind in ordered if kind != "control")
    hues = {family: k % _HUES for k, family in enumerate(families)}
    used: dict[int, int] = {}
    found = {}
    for name, label, kind in ordered:
        hue = _HUES if kind == "control" else hues[_family(name)]
        k = used[hue] = used.get(hue, -1) + 1
        # Sixteen pairs of dash and mark per hue; neighbouring hues begin with other marks, for
        # who sees no hues.
        shape = (hue + k + k // 4) % 4
        colour = "s-control" if kind == "control" else f"s{hue}"
        found[name] = Style(name, label, f"{colour} d{k % 4} m{shape}", shape)
    return found


def _family(name: str) -> str:
    return name.split("_")[0]


def unit_chart(
    title: str,
    x_title: str,
    y_title: str,
    curves: Iterable[tuple[Style, Sequence[Sequence[float]]]],
    *,
    dots: bool = False,
    guides: Sequence[Sequence[_Point]] = (),
) -> Chart:
    """Draw curves in the unit square.

    Parameters
    ----------
    title, x_title, y_title : str
    curves : iterable of (Style, points)
        Points begin with x and y, fractions.
    dots : bool
        Mark the points.
    guides : sequence of points
        Lines of no method.
    """
    left, top, size = 34.0, 8.0, 180.0

    def place(points: Iterable[Sequence[float]]) -> list[_Point]:
        return [
            (round(left + size * p[0], 1) + 0.0, round(top + size * (1 - p[1]), 1) + 0.0)
            for p in points
        ]

    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    names = ("0", "", "0.5", "", "1")
    return Chart(
        title, 224, 224, left, top, left + size, top + size, x_title, y_title,
        [(left + size * t, name) for t, name in zip(ticks, names, strict=True)],
        [(top + size * (1 - t), name) for t, name in zip(ticks, names, strict=True)],
        [
            Line(style, _path(placed if dots else _thinned(placed)), placed if dots else ())
            for style, points in curves
            if (placed := place(points))
        ],
        [_path(place(guide)) for guide in guides],
    )  # fmt: skip


def bins_chart(
    title: str,
    bins: Sequence[str],
    curves: Iterable[tuple[Style, Sequence[float | None]]],
    floors: Sequence[float | None] = (),
) -> Chart:
    """Draw fractions by bin, on an axis from 0 to 100 %; undefined ones are left out."""
    left, top, right, bottom = 34.0, 8.0, 390.0, 208.0
    step = (right - left) / max(len(bins), 1)

    def place(values: Sequence[float | None]) -> list[_Point]:
        return [
            (round(left + step * (i + 0.5), 1), round(bottom - (bottom - top) * v, 1))
            for i, v in enumerate(values)
            if v is not None
        ]

    return Chart(
        title, 400, 244, left, top, right, bottom, "molecules per pair", f"{title}, %",
        [(left + step * (i + 0.5), name) for i, name in enumerate(bins)],
        [(bottom - (bottom - top) * t / 100, str(t)) for t in (0, 25, 50, 75, 100)],
        [Line(style, _path(p), p) for style, values in curves if (p := place(values))],
        [_path(p)] if (p := place(floors)) else [],
    )  # fmt: skip


def time_chart(rows: Iterable[tuple[Style, float, float]]) -> Chart:
    """Draw seconds (log axis) against F1 (fraction), with labels at the right, by F1."""
    found = sorted(rows, key=lambda row: (-row[2], row[0].method))
    left, top, right, bottom = 34.0, 10.0, 420.0, 10.0 + max(200.0, 15.0 * len(found))
    times = [max(seconds, 0.01) for _, seconds, _ in found]
    low = floor(log10(min(times, default=0.1)))
    high = max(ceil(log10(max(times, default=10.0))), low + 1)
    highest = max((f1 for _, _, f1 in found), default=1.0)
    y_ends = 0.0, min(1.0, ceil(highest * 5 + 0.05) / 5)

    def x(seconds: float) -> float:
        return round(left + (right - left) * (log10(max(seconds, 0.01)) - low) / (high - low), 1)

    def y(f1: float) -> float:
        return round(bottom - (bottom - top) * (f1 - y_ends[0]) / (y_ends[1] - y_ends[0]), 1)

    wanted = _spread([y(f1) for _, _, f1 in found], 13.0, top + 4, bottom)
    lines = []
    for (style, seconds, f1), label_y in zip(found, wanted, strict=True):
        at = x(seconds), y(f1)
        leader = _path([at, (right + 4, label_y), (right + 10, label_y)])
        note = f"{seconds:.1f} s, F1 {100 * f1:.2f}"
        lines.append(Line(style, leader, [at], note, label_y))
    steps = range(round(100 * y_ends[1]) // 20 + 1)
    return Chart(
        "Time against F1", 640, int(bottom) + 36, left, top, right, bottom,
        "seconds of predicting the test split, log scale", "F1, %",
        [(x(10.0**k), f"{10.0**k:g}") for k in range(low, high + 1)],
        [(y(k / 5), str(20 * k)) for k in steps],
        lines,
    )  # fmt: skip


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Space positions (ascending) at least a gap apart, between low and high.

    They move least in the sum of squares: neighbours that would overlap move as one block.
    """
    blocks: list[list[float]] = []  # [sum, size] of positions less the gaps before them
    for i, value in enumerate(wanted):
        blocks.append([value - i * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] > blocks[-1][0] * blocks[-2][1]:
            total, size = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + size]
    means = [total / size for total, size in blocks for _ in range(int(size))]
    last = max(high - gap * (len(wanted) - 1), low)
    return [round(min(max(m, low), last) + i * gap, 1) for i, m in enumerate(means)]


def _thinned(points: Sequence[_Point]) -> list[_Point]:
    """Leave out points that move a line by less than the eye sees: curves are most of the page."""
    if len(points) < 3:
        return list(points)
    kept = shapely.simplify(shapely.linestrings(points), _UNSEEN, preserve_topology=False)
    return [(float(x), float(y)) for x, y in shapely.get_coordinates(kept)]


def _path(points: Sequence[_Point]) -> str:
    return "M" + " ".join(f"{x:g},{y:g}" for x, y in points) if points else ""
