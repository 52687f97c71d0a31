"""Compare coordinate frames: transformations of NGFF elements as affine maps of the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.validation import shorten

__all__ = ["GLOBAL", "moved", "plane_maps", "relative_map"]

GLOBAL = "global"
"""The coordinate system of an element that names none."""

_AXES = ("x", "y", "z")
_SAME = 1e-6  # of the largest coordinate: outlines moved by less stay as they are
_WORST = 1e9  # condition of a matrix: what is flatter has no inverse


def plane_maps(attributes: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Read the transformations of an element.

    Understands all types that spatialdata writes: identity, translation, scale, rotation, affine,
    mapAxis and sequences of them, in two or three dimensions.

    Parameters
    ----------
    attributes : mapping
        Of the element; without ``coordinateTransformations`` it lies in the system "global" as is.

    Returns
    -------
    dict of str to numpy.ndarray
        Coordinate system -> (3, 3) matrix that maps (x, y, 1) into it.

    Raises
    ------
    ValueError
        A transformation is not an affine map of the plane that can be inverted; the text says why.
    """
    axes = _names(attributes.get("axes") or _AXES)
    maps = {}
    for step in attributes.get("coordinateTransformations") or [{"type": "identity"}]:
        reached = step.get("output") or GLOBAL
        system = reached if isinstance(reached, str) else str(reached.get("name", GLOBAL))
        maps[system] = _plane(*_then(np.eye(4), _AXES, step, axes))
    return maps


def relative_map(
    of: Mapping[str, NDArray[np.float64]], to: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Map one element's coordinates to another's, through a system that both have.

    "global" counts, if both have it; else all systems that both have must give the same map.

    Parameters
    ----------
    of, to : mapping
        From :func:`plane_maps`.

    Returns
    -------
    numpy.ndarray
        (3, 3): coordinates of `of` -> coordinates of `to`.

    Raises
    ------
    ValueError
        They share no system, or those that they share contradict each other.
    """
    shared = [name for name in of if name in to]
    if not shared:
        raise ValueError(f"they share no coordinate system ({', '.join(of)}; {', '.join(to)})")
    chosen = [GLOBAL] if GLOBAL in shared else shared
    maps = [np.linalg.solve(to[name], of[name]) for name in chosen]
    for name, other in zip(chosen, maps, strict=True):
        if not np.allclose(other, maps[0], rtol=1e-5, atol=1e-6 * np.abs(maps[0]).max()):
            raise ValueError(
                f"by the coordinate system {chosen[0]} they lie otherwise than by {name}"
            )
    return np.asarray(maps[0])


def moved(shapes: NDArray[np.object_], matrix: NDArray[np.float64]) -> NDArray[np.object_]:
    """Map outlines (n,) by a (3, 3) matrix; the same array if it moves none of them."""
    left, bottom, right, top = shapely.total_bounds(shapes)
    corners = np.array([[x, y, 1.0] for x in (left, right) for y in (bottom, top)])
    with np.errstate(invalid="ignore"):
        moves = np.abs((corners @ matrix.T - corners)[:, :2]).max()
        if not moves > _SAME * np.abs(corners).max():
            return shapes
    return np.asarray(
        shapely.transform(shapes, lambda xy: xy @ matrix[:2, :2].T + matrix[:2, 2]), object
    )


def _plane(matrix: NDArray[np.float64], axes: Sequence[str]) -> NDArray[np.float64]:
    """Reduce a map of (x, y, z, 1) to one of (x, y, 1)."""
    if not {"x", "y"} <= set(axes):
        raise ValueError(f"it leads to the axes {', '.join(axes)}, expected x and y")
    rows = matrix[[axes.index("x"), axes.index("y"), -1]]
    if rows[:, 2].any():
        raise ValueError("x or y depend on z")
    plane = rows[:, [0, 1, 3]]
    if not np.isfinite(plane).all() or np.linalg.cond(plane[:2, :2]) > _WORST:
        raise ValueError("it has no inverse")
    return plane


def _then(
    before: NDArray[np.float64], have: Sequence[str], step: Mapping[str, Any], axes: Sequence[str]
) -> tuple[NDArray[np.float64], list[str]]:
    """Apply a step after the map `before` of (x, y, z, 1), which leads to the axes `have`.

    Returns a matrix with a row per axis that the step leads to and one of 1, and these axes.
    """
    taken = _axes_of(step, "input") or list(axes)[: _size(step)]
    if not set(taken) <= {*have, "z"}:
        raise ValueError(f"it maps the axes {', '.join(taken)}, expected some of {', '.join(have)}")
    at = dict(zip(have, before, strict=False))
    # What is flat has z = 0.
    before = np.array([*(at.get(name, np.zeros(4)) for name in taken), before[-1]])
    kind, n = step.get("type"), len(taken)
    if kind == "sequence":
        have = taken
        for each in step["transformations"]:
            before, have = _then(before, have, each, have)
        return before, list(have)
    matrix, after = np.eye(n + 1), taken
    if kind == "translation":
        matrix[:-1, -1] = _numbers(step[kind], n)
    elif kind == "scale":
        matrix[range(n), range(n)] = _numbers(step[kind], n)
    elif kind == "rotation":
        matrix[:-1, :-1] = _numbers(np.ravel(step[kind]), n * n).reshape(n, n)
    elif kind == "affine":
        named = _axes_of(step, "output") or taken
        rows = np.asarray(step[kind], np.float64)[: len(named)]  # perhaps with a row 0 ... 0 1
        rows = _numbers(rows.ravel(), len(named) * (n + 1)).reshape(-1, n + 1)
        matrix, after = np.vstack([rows, matrix[-1:]]), named
    elif kind == "mapAxis":
        source = {name: name for name in taken} | dict(step[kind])
        after = _axes_of(step, "output") or list(source)
        picked = [taken.index(source[name]) for name in after]
        matrix = np.eye(n + 1)[[*picked, n]]
    elif kind != "identity":
        raise ValueError(f"its type is {shorten(kind)}, expected an affine one")
    return matrix @ before, list(after)


def _size(step: Mapping[str, Any]) -> int | None:
    """Count the axes that a step's numbers are for; None: it has no numbers."""
    kind = step.get("type")
    if kind in ("translation", "scale"):
        return len(step[kind])
    if kind == "affine":
        return len(step[kind][0]) - 1
    return None


def _axes_of(step: Mapping[str, Any], side: str) -> list[str]:
    system = step.get(side)
    return _names(system.get("axes", ())) if isinstance(system, Mapping) else []


def _names(axes: Any) -> list[str]:
    return [str(axis["name"] if isinstance(axis, Mapping) else axis) for axis in axes]


def _numbers(values: Any, n: int) -> NDArray[np.float64]:
    numbers = np.asarray(values, np.float64)
    if numbers.shape != (n,):
        raise ValueError(f"it has {numbers.size} numbers, expected {n}")
    return numbers
