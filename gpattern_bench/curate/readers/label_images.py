"""Trace the outlines of the labels in a label image, exact to the pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import shapely
import tifffile
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit
from gpattern_bench.curate.release import reading
from gpattern_bench.errors import MissingExtraError, SourceError

__all__ = ["border_labels", "label_image", "outlines"]

# A walk along pixel edges heads west, south, east or north (rows run south). For each: the step,
# and the pixel ahead to the left, as row and column relative to the corner. The pixel ahead to the
# right is that ahead to the left of the previous direction.
_STEP = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])
_LEFT = np.array([[0, -1], [0, 0], [-1, 0], [-1, -1]])

_MOST_PIXELS = 1 << 28  # an image of CosMx has 20 million


def label_image(source: Path) -> NDArray[np.int32]:
    """Read a label image (h, w) from a tif of whole numbers below 2^31, of any type.

    Raises
    ------
    SourceError
        Not a tif, or not a label image.
    MissingExtraError
        Reading its compression needs another package.
    """
    with reading(source, "a label image (tif)"):
        try:
            # not multi-file: the series of an OME-TIFF may lie in other files
            with tifffile.TiffFile(source, _multifile=False) as file:
                series = file.series[0]
                if series.size > _MOST_PIXELS:
                    raise SourceError(
                        f"{source} states {series.size:,} pixels (shape {series.shape}), expected "
                        f"at most {_MOST_PIXELS:,}; it is not read"
                    )
                image = np.asarray(series.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise MissingExtraError(
                f"{source} is compressed ({error}); install gpattern-bench[spatial]"
            ) from error
    if image.ndim != 2 or image.dtype.kind not in "uif":
        raise SourceError(
            f"{source} is not a label image: expected one plane of numbers, got {image.dtype} of "
            f"shape {image.shape}"
        )
    with np.errstate(invalid="ignore"):
        labels = image.astype(np.int32, copy=False)
    if not np.array_equal(labels, image) or labels.min(initial=0) < 0:
        raise SourceError(
            f"{source} is not a label image: expected whole numbers from 0 to 2^31 - 1, got "
            f"{image.min()} to {image.max()} in {image.dtype}"
        )
    return labels


def outlines(
    labels: NDArray[Any], corner: tuple[float, float] = (0.0, 0.0)
) -> tuple[NDArray[np.int32], NDArray[np.object_]]:
    """Outline every label of an image: exactly the area of its pixels.

    A pixel is a unit square; rings follow pixel edges, with vertices only at turns. Pixels connect
    through their sides (4-connectivity); a label in several such parts is a MultiPolygon. Keeps
    holes. Outlines are valid, exteriors counter-clockwise, and neighbours share their edges.

    Parameters
    ----------
    labels : numpy.ndarray
        (h, w) whole numbers from 0 to 2^31 - 1, of any dtype; 0 is background.
    corner : (float, float)
        x and y of the first pixel's outer corner; x grows with columns, y falls with rows.

    Returns
    -------
    ids : numpy.ndarray
        (n,) int32, the labels in the image, ascending.
    geometries : numpy.ndarray
        (n,) of shapely Polygon or MultiPolygon.

    Examples
    --------
    >>> ids, geometries = outlines(np.array([[7, 7, 0], [0, 7, 4]]), corner=(0.0, 2.0))
    >>> ids.tolist()
    [4, 7]
    >>> print(geometries[1])
    POLYGON ((0 2, 0 1, 1 1, 1 0, 2 0, 2 2, 0 2))
    """
    h, w = labels.shape
    framed = np.zeros((h + 2, w + 2), np.int32)  # a frame: every pixel has neighbours
    framed[1:-1, 1:-1] = labels
    # `met` stays virtual memory: it is written only where a label touches itself at a corner.
    walked, met = np.zeros(framed.shape, np.bool_), np.zeros(framed.shape, np.int64)
    corners, ends, label, exterior = _trace(framed, walked, met, _STEP, _LEFT)
    xy = np.empty(corners.shape)
    xy[:, 0] = corner[0] + (corners[:, 1] - 1)
    xy[:, 1] = corner[1] - (corners[:, 0] - 1)
    of_ring = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    return _polygons(shapely.linearrings(xy, indices=of_ring), label, exterior)


def border_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """List the labels (n,) at the border of an image, ascending, without the background."""
    rim = [labels[:1].ravel(), labels[-1:].ravel(), labels[:, :1].ravel(), labels[:, -1:].ravel()]
    found = np.unique(np.concatenate(rim))
    return np.asarray(found[found != 0])


def _polygons(
    rings: NDArray[np.object_], label: NDArray[np.int32], exterior: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.object_]]:
    """Make one geometry per label from its rings, parts in the order of their first pixels."""
    order = np.argsort(label, kind="stable")
    rings, label, exterior = rings[order], label[order], exterior[order]
    ids, parts = np.unique(label[exterior], return_counts=True)
    shells, holes = np.flatnonzero(exterior), np.flatnonzero(~exterior)
    first = np.cumsum(parts) - parts  # of each label, among the shells
    part = np.empty(len(rings), np.intp)
    part[shells] = np.arange(len(shells))
    of_hole = np.searchsorted(ids, label[holes])
    part[holes] = first[of_hole]
    mixed = holes[parts[of_hole] > 1]
    if len(mixed):
        part[mixed] = _enclosing(rings[mixed], label[mixed], rings[shells], label[shells])
    order = np.lexsort((~exterior, part))  # each part's exterior, then its holes
    polygons = shapely.polygons(rings[order], indices=part[order])
    geometries = shapely.multipolygons(polygons, indices=np.repeat(np.arange(len(ids)), parts))
    geometries[parts == 1] = polygons[first[parts == 1]]
    return ids, geometries


def _enclosing(
    holes: NDArray[np.object_],
    of_hole: NDArray[np.int32],
    shells: NDArray[np.object_],
    of_shell: NDArray[np.int32],
) -> NDArray[np.intp]:
    """Find the exterior around each hole: the smallest of its label that covers it."""
    filled = shapely.polygons(shells)
    shell, hole = shapely.STRtree(holes).query(filled, predicate="covers")
    same = of_hole[hole] == of_shell[shell]
    hole, shell = hole[same], shell[same]
    order = np.lexsort((shapely.area(filled[shell]), hole))
    _, smallest = np.unique(hole[order], return_index=True)
    return np.asarray(shell[order][smallest])


@njit(cache=True, nogil=True)
def _trace(labels: Any, walked: Any, met: Any, step: Any, left: Any) -> Any:
    """Walk around every label, its pixels to the left, and record the corners where it turns.

    The image has a frame of background. `walked` (all false) marks upper edges already walked,
    `met` (all 0) the step at which a walk met a corner. Returns the corners (v, 2) of all rings as
    row and column of the framed image; and of each ring its end among them, its label, and
    whether it is an exterior.
    """
    n = _count_corners(labels)
    corners, path = np.empty((n, 2), np.int32), np.empty((n, 2), np.int32)
    ends = np.empty(n // 4, np.int64)
    label, exterior = np.empty(n // 4, np.int32), np.empty(n // 4, np.bool_)
    rings, earlier = 0, 0
    for row in range(1, labels.shape[0] - 1):
        for column in range(1, labels.shape[1] - 1):
            here = labels[row, column]
            if here == 0 or here == labels[row - 1, column] or walked[row, column]:
                continue
            n = _walk(labels, walked, row, column, path, step, left)
            before, length = rings, 0
            for i in range(n):
                r, c = path[i]
                if r < 0:  # two pixels of the label meet at this corner only
                    r = -r
                    since = met[r, c] - earlier
                    if since > 0:  # met twice: the corners in between are a separate ring
                        _store_ring(path[since - 1 : length], rings, corners, ends, exterior)
                        rings += 1
                        length = since
                        continue
                    met[r, c] = earlier + length + 1
                path[length, 0], path[length, 1] = r, c
                length += 1
            _store_ring(path[:length], rings, corners, ends, exterior)
            rings += 1
            label[before:rings] = here
            earlier += n
    return corners, ends[:rings], label[:rings], exterior[:rings]


@njit(cache=True, nogil=True)
def _count_corners(labels: Any) -> int:
    """Count the corners of all rings, convex and concave."""
    n = 0
    for r in range(1, labels.shape[0] - 1):
        for c in range(1, labels.shape[1] - 1):
            here = labels[r, c]
            if here == 0:
                continue
            for dr in (-1, 1):
                for dc in (-1, 1):
                    vertical, horizontal = labels[r + dr, c] == here, labels[r, c + dc] == here
                    if vertical == horizontal and not (vertical and labels[r + dr, c + dc] == here):
                        n += 1
    return n


@njit(cache=True, nogil=True)
def _walk(labels: Any, walked: Any, row: int, column: int, path: Any, step: Any, left: Any) -> int:
    """Record the corners of a ring from the west end of its first upper edge; count them.

    The row is negative where two pixels of the label meet at that corner only.
    """
    here = labels[row, column]
    walked[row, column] = True
    r, c, d, n = row, column, 0, 0
    while True:
        ahead = labels[r + left[d, 0], c + left[d, 1]] == here
        right = labels[r + left[d - 1, 0], c + left[d - 1, 1]] == here
        if right or not ahead:
            path[n, 0], path[n, 1] = (-r if right and not ahead else r), c
            n += 1
            d = (d + 3) % 4 if ahead else (d + 1) % 4
        if d == 0:
            if walked[r, c - 1]:
                return n
            walked[r, c - 1] = True
        r += step[d, 0]
        c += step[d, 1]


@njit(cache=True, nogil=True)
def _store_ring(path: Any, ring: int, corners: Any, ends: Any, exterior: Any) -> None:
    begin = ends[ring - 1] if ring else 0
    ends[ring] = begin + len(path)
    area = 0  # doubled, in columns and rows: negative if counter-clockwise
    r0, c0 = path[-1]
    for i in range(len(path)):
        r, c = path[i]
        corners[begin + i, 0], corners[begin + i, 1] = r, c
        area += np.int64(c0) * r - np.int64(c) * r0
        r0, c0 = r, c
    exterior[ring] = area < 0
