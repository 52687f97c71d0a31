"""Outlines are repaired without losing area; distances are those to the exterior rings."""

import numpy as np
import pytest
import shapely
from shapely import LineString, MultiPolygon, Point, Polygon, box

from gpattern_bench.geometry import exterior_vertices, outline_distance, polygonal

HOLED = Polygon(box(0, 0, 10, 10).exterior, [box(4, 4, 6, 6).exterior])
PARTS = MultiPolygon([box(0, 0, 2, 2), box(8, 0, 12, 3)])
BOW_TIE = Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])


# Repair


@pytest.mark.parametrize("outline", [box(0, 0, 3, 2), HOLED, PARTS], ids=["box", "hole", "parts"])
def test_valid_outlines_stay_vertex_by_vertex(outline):
    assert shapely.equals_identical(polygonal(outline), outline)


def test_collinear_vertices_stay():
    outline = Polygon([(0, 0), (1, 0), (2, 0), (2, 2), (0, 2)])
    assert len(polygonal(outline).exterior.coords) == 6


def test_bow_tie_becomes_two_triangles():
    repaired = polygonal(BOW_TIE)
    assert repaired.is_valid
    assert repaired.geom_type == "MultiPolygon"
    assert repaired.area == pytest.approx(2.0)


def test_self_touching_outline_is_repaired():
    outline = Polygon([(0, 0), (4, 0), (4, 4), (2, 0), (0, 4)])  # touches its own base
    assert not outline.is_valid
    assert polygonal(outline).is_valid
    assert polygonal(outline).area == pytest.approx(8.0)


def test_overlapping_parts_cover_their_union():
    outline = MultiPolygon([box(0, 0, 2, 2), box(1, 1, 3, 3)])
    assert polygonal(outline).area == pytest.approx(7.0)


def test_a_loop_over_the_outline_itself_leaves_no_hole():
    # The ring crosses itself; the square (4, 4)-(6, 6) is passed twice, in one direction.
    ring = [(0, 0), (10, 0), (10, 6), (4, 6), (4, 4), (6, 4), (6, 10), (0, 10)]
    assert polygonal(Polygon(ring)).contains(Point(5, 5))


def test_lines_that_a_repair_leaves_are_dropped():
    spike = Polygon([(0, 0), (4, 0), (4, 4), (4, 9), (4, 4), (0, 4)])
    repaired = polygonal(spike)
    assert repaired.geom_type == "Polygon"
    assert repaired.equals(box(0, 0, 4, 4))


def test_polygons_are_taken_out_of_a_collection():
    collection = shapely.GeometryCollection([PARTS, LineString([(0, 0), (9, 9)]), Point(1, 1)])
    assert polygonal(collection).equals(PARTS)


@pytest.mark.parametrize(
    "nothing",
    [
        None,
        Polygon(),
        MultiPolygon(),
        Point(0, 0),
        LineString([(0, 0), (1, 1)]),
        Polygon([(0, 0), (1, 1), (2, 2)]),
        shapely.GeometryCollection([LineString([(0, 0), (1, 1)])]),
    ],
    ids=["None", "empty", "no parts", "point", "line", "flat", "line in a collection"],
)
def test_what_has_no_area_is_none(nothing):
    assert polygonal(nothing) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # shapely's own
def test_outline_with_coordinates_that_are_not_finite_is_none(value):
    assert polygonal(Polygon([(0, 0), (value, 0), (1, 1), (0, 1)])) is None


# Distances


@pytest.mark.parametrize("outline", [box(0, 0, 3, 2), HOLED, PARTS], ids=["box", "hole", "parts"])
def test_distance_agrees_with_shapely_one_by_one(outline):
    xy = np.random.default_rng(0).uniform(-3, 13, (200, 2))
    rings = [part.exterior for part in shapely.get_parts(outline)]
    expected = [min(Point(x, y).distance(ring) for ring in rings) for x, y in xy]
    np.testing.assert_allclose(outline_distance(xy, outline), expected, rtol=0, atol=1e-12)


def test_distance_ignores_holes():
    assert outline_distance(np.array([[5.0, 5.0], [4.0, 5.0]]), HOLED).tolist() == [5.0, 4.0]


def test_distance_is_to_the_nearest_part_and_zero_on_the_outline():
    xy = np.array([[5.0, 1.0], [7.0, 1.0], [2.0, 1.0], [12.0, 3.0]])
    assert outline_distance(xy, PARTS).tolist() == [3.0, 1.0, 0.0, 0.0]


def test_distance_takes_float32_and_no_points():
    assert outline_distance(np.float32([[1.0, 1.0]]), PARTS).dtype == np.float64
    assert outline_distance(np.empty((0, 2)), PARTS).shape == (0,)


def test_exterior_vertices_close_each_ring_and_leave_out_holes():
    assert exterior_vertices(HOLED).shape == (5, 2)
    vertices = exterior_vertices(PARTS)
    assert vertices.shape == (10, 2)
    assert vertices[0].tolist() == vertices[4].tolist()
    assert vertices[5].tolist() == vertices[9].tolist()
