"""Outlines are repaired without losing area; where molecules lie agrees with shapely."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from shapely import LineString, MultiPolygon, Point, Polygon, box

from gpattern_bench.base.geometry import (
    CellGeometry,
    contains,
    mean_ranks,
    moments,
    outline_distance,
    polygonal,
    ray_radius,
    rings_of,
    surrogate_outline,
)
from gpattern_bench.data.cells import Cell

HOLED = Polygon(box(0, 0, 10, 10).exterior, [box(4, 4, 6, 6).exterior])
PARTS = MultiPolygon([box(0, 0, 2, 2), box(8, 0, 12, 3)])
BOW_TIE = Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])


@st.composite
def outlines(draw):
    """Stars about (50, 50), of 3 to 90 vertices, some with a hole or a second part."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(3, 90))
    angle = (np.arange(count) + rng.uniform(0, 0.9, count)) * 2 * np.pi / count
    radius = rng.uniform(8, 30, count)
    star = Polygon(np.c_[50 + radius * np.cos(angle), 50 + radius * np.sin(angle)])
    if draw(st.booleans()):
        star = star - Point(50, 50).buffer(1 + rng.uniform(0, 2))
    if draw(st.booleans()):
        star = star | box(85, 40, 90 + rng.uniform(0, 9), 47)
    return polygonal(star)


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
    assert rings_of(HOLED).exterior_xy.shape == (5, 2)
    vertices = rings_of(PARTS).exterior_xy
    assert vertices.shape == (10, 2)
    assert vertices[0].tolist() == vertices[4].tolist()
    assert vertices[5].tolist() == vertices[9].tolist()


# Inside or not


@pytest.mark.parametrize("outline", [box(0, 0, 3, 2), HOLED, PARTS], ids=["box", "hole", "parts"])
def test_contains_agrees_with_shapely(outline):
    xy = np.random.default_rng(1).uniform(-3, 13, (500, 2))
    on = np.floor(xy)  # many on outlines, holes and corners
    for points in (xy, on):
        expected = shapely.intersects_xy(outline, points)
        assert 0 < expected.sum() < len(points)
        np.testing.assert_array_equal(contains(points, outline), expected)


@given(outlines(), st.integers(0, 2**32 - 1))
def test_contains_and_distance_agree_with_shapely_on_any_outline(outline, seed):
    low, high = np.reshape(outline.bounds, (2, 2))
    xy = np.random.default_rng(seed).uniform(low - 5, high + 5, (60, 2))
    np.testing.assert_array_equal(contains(xy, outline), shapely.intersects_xy(outline, xy))
    rings = shapely.multilinestrings([part.exterior for part in shapely.get_parts(outline)])
    expected = shapely.distance(shapely.points(xy), rings)
    np.testing.assert_allclose(outline_distance(xy, outline), expected, rtol=1e-12, atol=1e-300)


# Radii


def test_ray_radius_of_a_box_by_hand():
    xy = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, -7.0], [-4.0, 2.0]])
    radius = ray_radius(xy, np.zeros(2), box(-3, -2, 3, 2))
    np.testing.assert_allclose(radius, [3, np.hypot(2, 2), 2, np.hypot(3, 1.5)], rtol=1e-15)


def test_ray_radius_is_to_the_farthest_crossing_and_holes_do_not_count():
    notched = Polygon([(-1, -1), (9, -1), (9, 2), (6, 2), (6, 0.25), (2, 0.25), (2, 2), (-1, 2)])
    xy = np.array([[1.0, 0.125], [-1.0, 0.0]])  # out of the notch's near wall, in at its far one
    expected = [9 * np.hypot(1, 0.125), 1.0]
    assert ray_radius(xy, np.zeros(2), notched).tolist() == pytest.approx(expected, rel=1e-15)
    assert ray_radius(np.array([[6.0, 5.0]]), np.array([5.0, 5.0]), HOLED).tolist() == [5.0]


def test_a_ray_along_an_edge_reaches_its_far_end():
    step = Polygon([(0, -2), (4, -2), (4, 0), (7, 0), (7, 3), (0, 3)])
    assert ray_radius(np.array([[2.0, 0.0]]), np.array([1.0, 0.0]), step).tolist() == [6.0]


def test_ray_radius_without_a_crossing_or_direction_is_the_distance_to_the_rings():
    origin = np.array([5.0, 1.0])  # between the parts
    xy = np.array([[5.0, 4.0], [5.0, 1.0], [6.0, 1.0]])
    assert ray_radius(xy, origin, PARTS).tolist() == [3.0, 3.0, 7.0]


@given(outlines(), st.integers(0, 2**32 - 1))
def test_ray_radius_agrees_with_shapely_on_any_outline(outline, seed):
    low, high = np.reshape(outline.bounds, (2, 2))
    draws = np.random.default_rng(seed).uniform(low, high, (21, 2))
    origin, xy = draws[0], draws[1:]
    rings = shapely.multilinestrings([part.exterior for part in shapely.get_parts(outline)])
    away = xy - origin
    ends = origin + away / np.hypot(*away.T)[:, None] * 2 * np.hypot(*(high - low))
    for found, end in zip(ray_radius(xy, origin, outline), ends, strict=True):
        met = shapely.get_coordinates(shapely.intersection(LineString([origin, end]), rings))
        expected = (
            np.hypot(*(met - origin).T) if len(met) else [shapely.distance(Point(origin), rings)]
        )
        assert found == pytest.approx(max(expected), rel=1e-9)


# Moments


def test_moments_of_a_box_with_a_hole_by_hand():
    area, centroid, second = moments(HOLED)
    assert area == pytest.approx(96, rel=1e-15)
    np.testing.assert_allclose(centroid, [5, 5], rtol=1e-14)
    spread = (100 * 100 / 12 - 4 * 4 / 12) / 96
    np.testing.assert_allclose(second, [[spread, 0], [0, spread]], atol=1e-13)


@given(outlines())
def test_moments_add_up_and_depend_on_neither_direction_nor_place(outline):
    area, centroid, second = moments(outline)
    assert area == pytest.approx(outline.area, rel=1e-12)
    np.testing.assert_allclose(centroid, [outline.centroid.x, outline.centroid.y], rtol=1e-9)
    away = np.array([3e4, -2e4])
    far = moments(shapely.transform(outline.reverse(), lambda xy: xy + away))
    np.testing.assert_allclose(far.centroid - away, centroid, rtol=0, atol=1e-9)
    np.testing.assert_allclose(far.second, second, rtol=0, atol=1e-8 * np.trace(second))
    side = box(-1e3, -1e3, centroid[0], 1e3)
    total = np.zeros((2, 2))
    for half in (outline & side, outline - side):
        m = moments(polygonal(half))
        total += m.area * (m.second + np.outer(m.centroid - centroid, m.centroid - centroid))
    np.testing.assert_allclose(total / area, second, rtol=0, atol=1e-9 * np.trace(second))


# Cells


def test_cell_geometry_is_what_the_functions_give():
    xy = np.random.default_rng(2).uniform(-1, 11, (50, 2))
    nucleus = box(2, 3, 5, 8)
    cell = CellGeometry(xy, HOLED, nucleus)
    np.testing.assert_array_equal(cell.boundary_distance, outline_distance(xy, HOLED))
    np.testing.assert_array_equal(cell.nucleus_distance, outline_distance(xy, nucleus))
    np.testing.assert_array_equal(cell.in_boundary, contains(xy, HOLED))
    np.testing.assert_array_equal(cell.in_nucleus, contains(xy, nucleus))
    np.testing.assert_array_equal(cell.boundary_rank, rankdata(cell.boundary_distance))
    np.testing.assert_allclose(cell.origin, [3.5, 5.5])
    np.testing.assert_array_equal(cell.ray_radius, ray_radius(xy, cell.origin, HOLED))
    np.testing.assert_allclose(cell.relative_radius * cell.ray_radius, cell.radius)
    outside = ~contains(xy, box(0, 0, 10, 10))
    np.testing.assert_array_equal(cell.relative_radius > 1, outside)


def test_cell_geometry_without_a_nucleus():
    cell = CellGeometry(np.array([[5.0, 5.0], [5.0, 7.5]]), HOLED, None)
    assert np.isnan(cell.nucleus_distance).all()
    assert not cell.in_nucleus.any()
    assert cell.nucleus_moments is None
    assert cell.relative_radius.tolist() == [0.0, 0.5]


def test_relative_radius_is_finite_where_the_outline_passes_the_origin():
    notched = Polygon([(-2, -1), (2, -1), (2, 1), (0, 0), (-2, 1)])
    cell = CellGeometry(np.array([[0.0, 5.0], [0.0, 0.0]]), notched, box(-1, -1, 1, 1))
    assert cell.relative_radius.tolist() == [1.0, 0.0]


def test_a_cell_computes_its_geometry_once():
    cell = Cell("c", "f", np.zeros((1, 2)), np.zeros(1, np.int32), HOLED, None)
    assert cell.geometry is cell.geometry
    assert cell.geometry.boundary_distance is cell.geometry.boundary_distance


def test_mean_ranks_agree_with_scipy():
    values = np.random.default_rng(3).integers(0, 20, 100)
    np.testing.assert_array_equal(mean_ranks(values), rankdata(values))
    assert mean_ranks(np.empty(0)).tolist() == []


def test_a_surrogate_outline_surrounds_the_molecules_and_moves_with_them():
    rng = np.random.Generator(np.random.Philox(0))
    xy = rng.random((400, 2)) * [20, 8]
    outline = surrogate_outline(xy)
    assert shapely.covers(outline, shapely.points(xy)).all()
    assert 150 < outline.area < 200
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    moved = surrogate_outline(3 * xy @ turn.T + [100, -50])
    expected = shapely.transform(outline, lambda at: 3 * at @ turn.T + [100, -50])
    assert moved.symmetric_difference(expected).area < 0.01 * moved.area


@pytest.mark.parametrize("xy", [[[0, 0]], [[0, 0], [1, 1]], [[0, 0], [1, 1], [3, 3]]])
def test_molecules_on_a_line_have_no_surrogate_outline(xy):
    assert surrogate_outline(np.array(xy, float)) is None


def test_positions_between_the_outlines_by_hand():
    rings = [Point(0, 0).buffer(r, quad_segs=64) for r in (10, 4)]
    cell = CellGeometry(np.array([[9.0, 0], [0, 7], [2, 0], [11, 0]]), *rings)
    assert cell.size == pytest.approx(10, rel=1e-3)
    assert cell.depth == pytest.approx([0.1, 0.3, 0.8, -0.1], abs=2e-3)
    assert cell.from_nucleus == pytest.approx([0.5, 0.3, -0.2, 0.7], abs=2e-3)
    assert cell.between == pytest.approx([5 / 6, 0.5, -0.5, 7 / 8], abs=2e-3)
    bare = CellGeometry(cell.xy, rings[0], None)
    assert np.isnan(bare.between).all()
    assert np.isnan(bare.from_nucleus).all()
