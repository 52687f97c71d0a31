"""Point in polygon and tiles: against brute force, on borders, and on what is not valid."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import MultiPolygon, Polygon, box

from gpattern_bench.curate.readers import assign
from gpattern_bench.curate.readers.assign import CellFinder, tiles
from gpattern_bench.errors import SourceError

HOLED = Polygon(box(0, 0, 10, 10).exterior, [box(4, 4, 6, 6).exterior])
BOW_TIE = Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])


def brute_force(xy, outlines):
    """The smallest outline that a point lies in or on, by its distance to each; then the first."""
    found = []
    for x, y in xy:
        inside = [
            k
            for k, shape in enumerate(outlines)
            if shape is not None and shapely.distance(shape, shapely.Point(x, y)) == 0
        ]
        found.append(min(inside, key=lambda k: (outlines[k].area, k)) if inside else -1)
    return found


@settings(max_examples=60)
@given(
    corners=st.lists(st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(1, 5)] * 2), max_size=6),
    points=st.lists(st.tuples(*[st.integers(-1, 14)] * 2), max_size=12),
)
def test_points_go_to_the_smallest_cell_that_holds_them(corners, points):
    outlines = [box(x, y, x + w, y + h) for x, y, w, h in corners]
    xy = np.array(points, dtype=float).reshape(-1, 2)
    assert CellFinder(outlines).find(xy).tolist() == brute_force(xy, outlines)


def test_round_cells_that_overlap_against_brute_force():
    rng = np.random.Generator(np.random.Philox(5))
    outlines = shapely.buffer(shapely.points(rng.uniform(0, 30, (40, 2))), rng.uniform(1, 5, 40))
    xy = rng.uniform(0, 30, (2000, 2))
    found = CellFinder(outlines).find(xy)
    assert found.tolist() == brute_force(xy, outlines)
    several = shapely.intersects(outlines[:, None], shapely.points(xy)[None]).sum(axis=0) > 1
    assert several.sum() > 100  # the order of cells is really needed


def test_a_border_is_inside_a_hole_is_not_and_all_parts_count():
    parts = MultiPolygon([box(20, 0, 21, 1), box(30, 0, 31, 1)])
    xy = [(0, 5), (10, 10), (5, 5), (4, 5), (20.5, 0.5), (30.5, 1), (25, 0.5)]
    assert CellFinder([HOLED, parts]).find(np.array(xy, float)).tolist() == [0, 0, -1, 0, 1, 1, -1]


def test_outlines_that_are_not_valid_count_as_curation_repairs_them():
    xy = np.array([(3.5, 2.0), (0.5, 2.0), (2.0, 3.0)])  # the two wings, and between them
    assert CellFinder([BOW_TIE]).find(xy).tolist() == [0, 0, -1]
    overlapping = MultiPolygon([box(0, 0, 4, 4), box(2, 0, 6, 4)])  # both parts hold (3, 2)
    assert CellFinder([overlapping]).find(np.array([(3.0, 2.0)])).tolist() == [0]


def test_nothing_lies_in_what_is_missing_empty_or_not_finite():
    line = Polygon([(0, 0), (1, 1), (2, 2)])
    with np.errstate(invalid="ignore"):
        lost = Polygon([(0, 0), (np.nan, 1), (1, 0)])
    xy = np.array([(0.5, 0.5), (0.1, 0.1)])
    assert CellFinder([None, Polygon(), line, lost]).find(xy).tolist() == [-1, -1]
    assert CellFinder([None, Polygon(), line, lost, box(0, 0, 1, 1)]).find(xy).tolist() == [4, 4]
    assert CellFinder([]).find(xy).tolist() == [-1, -1]
    assert CellFinder([HOLED]).find(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_lie_nowhere(lost):
    xy = np.array([(lost, 1.0), (1.0, 1.0), (1.0, lost)], dtype=np.float32)
    assert CellFinder([HOLED]).find(xy).tolist() == [-1, 0, -1]


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.Generator(np.random.Philox(6))
    finder = CellFinder(shapely.buffer(shapely.points(rng.uniform(0, 9, (9, 2))), 2))
    xy = rng.uniform(0, 9, (100, 2))
    whole = finder.find(xy)
    monkeypatch.setattr(assign, "_BLOCK", 7)
    assert finder.find(xy).tolist() == whole.tolist()
    assert -1 in whole
    assert len(set(whole.tolist())) > 4


def test_the_outlines_that_were_given_stay_as_they_are():
    outlines = np.array([BOW_TIE, HOLED], dtype=object)
    CellFinder(outlines).find(np.zeros((1, 2)))
    assert outlines[0] is BOW_TIE
    assert not outlines[0].is_valid


def test_tiles_hold_their_points_and_sort_as_text_like_numbers():
    rng = np.random.Generator(np.random.Philox(7))
    xy = rng.uniform(-5000, 15000, (3000, 2))
    names = tiles(xy, 12.5)
    index = np.floor(xy / 12.5).astype(int)
    expected, code = np.unique(index, axis=0, return_inverse=True)
    unique, text_code = np.unique(names.astype(str), return_inverse=True)
    assert len(unique) == len(expected)
    assert text_code.tolist() == code.ravel().tolist()
    assert unique[0].startswith("x0000y")  # four digits: there are more than 999 tiles


def test_no_side_is_one_tile():
    assert tiles(np.array([[1.0, 2.0], [1e9, 3.0]]), 0).tolist() == ["0", "0"]
    assert tiles(np.empty((0, 2)), 10).tolist() == []


def test_a_point_between_two_tiles_lies_in_the_upper_one():
    assert tiles(np.array([[0.0, 0.0], [10.0, 9.999]]), 10).tolist() == ["x000y000", "x001y000"]


@pytest.mark.parametrize("xy", [[[0, 0], [1e300, 0]], [[np.nan, 0], [0, 0]], [[np.inf, 0]]])
def test_tiles_that_cannot_be_numbered_are_refused(xy):
    with pytest.raises(SourceError, match="larger tile"):
        tiles(np.array(xy, float), 1e-3)
