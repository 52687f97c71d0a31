"""Outlines of label images cover exactly the pixels, whatever the labels look like."""

import time

import numpy as np
import pytest
import scipy.ndimage
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpattern_bench.curate.readers.label_images import border_labels, outlines

IMAGES = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)
)


def image(*rows: str) -> np.ndarray:
    return np.array([[int(pixel) for pixel in row] for row in rows])


def squares(mask: np.ndarray, corner: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Every pixel of a mask as the square that it is."""
    row, column = np.nonzero(mask)
    x, y = corner[0] + column, corner[1] - row
    return shapely.box(x, y - 1, x + 1, y)


def only(labels: np.ndarray) -> shapely.Geometry:
    ids, geometries = outlines(labels)
    assert len(ids) == 1
    return geometries[0]


@settings(max_examples=400)
@given(IMAGES, st.integers(-5000, 5000), st.integers(-5000, 5000))
@pytest.mark.slow
def test_an_outline_is_the_union_of_its_pixels(labels, x, y):
    corner = (x - 0.5, y + 0.5)
    ids, geometries = outlines(labels, corner)
    np.testing.assert_array_equal(ids, np.unique(labels[labels > 0]))
    assert shapely.is_valid(geometries).all()
    for label, outline in zip(ids, geometries, strict=True):
        mask = labels == label
        assert outline.area == mask.sum()  # to the last bit
        assert outline.equals(shapely.union_all(squares(mask, corner)))
        parts = shapely.get_parts(outline)
        assert len(parts) == scipy.ndimage.label(mask)[1]  # connected through sides
        assert (outline.geom_type == "MultiPolygon") == (len(parts) > 1)
        assert shapely.is_ccw(shapely.get_exterior_ring(parts)).all()


@settings(max_examples=200)
@given(IMAGES)
def test_rings_turn_at_every_vertex(labels):
    _, geometries = outlines(labels)
    for ring in shapely.get_rings(geometries):
        steps = np.diff(shapely.get_coordinates(ring), axis=0)
        assert ((steps != 0).sum(axis=1) == 1).all()  # along rows or columns
        along_x = steps[:, 0] != 0
        assert (along_x != np.roll(along_x, 1)).all()


@settings(max_examples=100)
@given(IMAGES)
def test_neighbours_neither_overlap_nor_leave_gaps(labels):
    _, geometries = outlines(labels)
    assert shapely.union_all(geometries).area == np.count_nonzero(labels)


def test_holes_stay():
    outline = only(image("11111", "10001", "10111", "11111"))
    assert (outline.geom_type, len(outline.interiors), outline.area) == ("Polygon", 1, 16)


def test_a_label_that_meets_itself_at_a_corner_encloses_a_hole_there():
    outline = only(image("111", "101", "110"))
    assert outline.is_valid
    assert [len(ring.coords) - 1 for ring in (outline.exterior, *outline.interiors)] == [6, 4]


def test_holes_that_meet_at_a_corner_are_two():
    outline = only(image("1111", "1011", "1101", "1111"))
    assert (outline.is_valid, len(outline.interiors), outline.area) == (True, 2, 14)


def test_pixels_that_meet_at_a_corner_only_are_two_parts():
    outline = only(image("10", "01"))
    assert outline.is_valid
    assert shapely.get_num_geometries(outline) == 2


def test_a_part_in_the_hole_of_another_keeps_its_own_hole():
    labels = np.zeros((11, 11), int)
    for margin, label in ((0, 1), (1, 0), (3, 1), (4, 0)):  # a frame around a frame
        labels[margin : 11 - margin, margin : 11 - margin] = label
    labels[5, 5] = 1
    parts = sorted(only(labels).geoms, key=lambda part: part.area)
    assert [(part.area, len(part.interiors)) for part in parts] == [(1, 0), (16, 1), (40, 1)]


def test_x_grows_with_columns_and_y_falls_with_rows():
    ids, geometries = outlines(image("00", "09", "30"), corner=(100.0, 50.0))
    assert ids.tolist() == [3, 9]
    assert [shapely.bounds(outline).tolist() for outline in geometries] == [
        [100, 47, 101, 48],
        [101, 48, 102, 49],
    ]


def test_an_image_without_labels():
    ids, geometries = outlines(np.zeros((4, 3), np.uint16))
    assert len(ids) == len(geometries) == 0


def test_large_labels_and_other_dtypes():
    big = 2**31 - 1
    for dtype in (np.uint32, np.int64, np.float64):
        ids, geometries = outlines(np.array([[big, 0], [0, 1]], dtype))
        assert ids.tolist() == [1, big]
        assert shapely.area(geometries).tolist() == [1, 1]


def test_the_same_image_gives_the_same_bytes():
    labels = np.random.default_rng(0).integers(0, 3, (40, 50))
    first, second = (shapely.to_wkb(outlines(labels)[1]).tolist() for _ in range(2))
    assert first == second


def test_labels_at_the_border():
    assert border_labels(image("1002", "0300", "0450", "0006")).tolist() == [1, 2, 6]
    assert border_labels(image("0120")).tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["cells", "noise"])
@pytest.mark.slow
def test_a_whole_field_of_view_takes_seconds(kind):
    shape = (3648, 5472)
    if kind == "cells":
        row, column = np.indices(shape, np.int32)
        labels = (row // 64) * 86 + column // 64 + 1  # 57 x 86 squares
        labels[(row % 64 == 0) | (column % 64 == 0)] = 0
    else:  # hundreds of thousands of parts and holes of one label
        labels = np.random.default_rng(0).random((shape[0] // 4, shape[1] // 4)) < 0.7
    outlines(labels[:2, :2])  # compiles
    began = time.process_time()
    ids, geometries = outlines(labels)
    assert time.process_time() - began < 60  # two, of this process's own
    assert len(ids) == labels.max()
    assert shapely.area(geometries).sum() == np.count_nonzero(labels)
