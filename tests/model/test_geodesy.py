"""Distances and local maps on the Earth, against GeographicLib (Karney, 2013), which is right within nanometres."""

import numpy as np
import pytest
from geographiclib.geodesic import Geodesic

from model.geodesy import HALF_MERIDIAN, degrees_of_local, distance_metres, earth_centred, local_metres

SAN_FRANCISCO, PARIS, SVALBARD = (37.7749, -122.4194), (48.8566, 2.3522), (78.22, 21.0)
FIJI_WEST, FIJI_EAST = (-16.8, 179.999), (-16.8, -179.999)
PLACES = [SAN_FRANCISCO, PARIS, SVALBARD, FIJI_WEST, FIJI_EAST, (0.0, 180.0), (90.0, 7.0), (-90.0, 0.0), (89.9999, 120)]
CM_PER_KM = 1e-5


def geodesic(a, b):
    return Geodesic.WGS84.Inverse(*a, *b)["s12"]


def neighbours(place, reach, count=50):
    """Points around a place, up to `reach` degrees of latitude away."""
    rng = np.random.default_rng(0)
    latitude = np.clip(place[0] + rng.uniform(-reach, reach, count), -90, 90)
    widening = 1 / max(np.cos(np.radians(place[0])), 1e-3)
    return np.stack([latitude, place[1] + rng.uniform(-reach, reach, count) * widening], axis=1)


def random_points(count, seed):
    rng = np.random.default_rng(seed)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, count))), rng.uniform(-180, 180, count)], axis=1)


def test_distances_between_all_places_are_those_of_geographiclib_within_a_millimetre():
    found = distance_metres(np.array(PLACES)[:, None], PLACES)
    expected = [[geodesic(a, b) for b in PLACES] for a in PLACES]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reach", [1e-8, 1e-5, 1e-3, 0.1, 10])
def test_distances_of_neighbours_are_those_of_geographiclib(place, reach):
    points = neighbours(place, reach)
    expected = [geodesic(place, point) for point in points]
    np.testing.assert_allclose(distance_metres(place, points), expected, rtol=1e-8, atol=1e-7)


def test_distances_of_random_points_are_those_of_geographiclib():
    a, b = random_points(1000, seed=0), random_points(1000, seed=1)
    np.testing.assert_allclose(distance_metres(a, b), list(map(geodesic, a, b)), rtol=0, atol=1e-3)


def test_the_distance_to_an_antipode_is_half_a_meridian_and_close_to_one_as_the_docstring_says():
    a = random_points(500, seed=0)
    b = -a[:, :1], a[:, 1:] + 180
    near = np.hstack(b) + np.random.default_rng(1).uniform(-2, 2, a.shape)
    near[:, 0] = near[:, 0].clip(-90, 90)
    found, expected = distance_metres(a, near), np.array(list(map(geodesic, a, near)))
    is_given_up = found == HALF_MERIDIAN
    assert is_given_up.any() and (np.abs(found - expected)[~is_given_up] < 1e-3).all()
    assert (np.abs(found - expected)[is_given_up] < 110_000).all()
    assert distance_metres((90, 0), (-90, 50)) == pytest.approx(HALF_MERIDIAN, abs=1e-3)
    assert distance_metres((0, 10), (0, -170)) == HALF_MERIDIAN


def test_distances_of_equal_and_of_unknown_points():
    assert distance_metres(PARIS, PARIS) == 0
    assert distance_metres((90, 0), (90, 77)) < 1e-8
    assert distance_metres((10, 180), (10, -180)) == 0
    found = distance_metres(PARIS, [(np.nan, np.nan), SVALBARD])
    assert np.isnan(found[0]) and found[1] == pytest.approx(geodesic(PARIS, SVALBARD))
    assert distance_metres(PARIS, np.empty((0, 2))).shape == (0,)


def test_points_of_the_earth_lie_on_the_ellipsoid_whose_normal_there_has_that_latitude_and_longitude():
    degrees = np.concatenate([PLACES, random_points(100, seed=0)])
    points, half_axes = earth_centred(degrees), np.array([6378137, 6378137, 6356752.314245])
    np.testing.assert_allclose(((points / half_axes) ** 2).sum(axis=1), 1, rtol=1e-12)
    normals = points / half_axes**2
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    latitude, longitude = np.radians(degrees.T)
    expected = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
    np.testing.assert_allclose(normals.T, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_straight_lines_up_to_100_km_are_a_centimetre_a_kilometre_shorter_than_geodesics(place):
    points = degrees_of_local(np.random.default_rng(0).uniform(-70_000, 70_000, (100, 2)), place)
    straight = np.linalg.norm(earth_centred(points) - earth_centred(np.array(place)), axis=1)
    np.testing.assert_allclose(straight, [geodesic(place, point) for point in points], rtol=1.05 * CM_PER_KM)


@pytest.mark.parametrize("origin", PLACES)
@pytest.mark.parametrize("reach", [100, 10_000, 1_000_000])
def test_a_local_map_keeps_distances_and_directions_from_its_origin(origin, reach):
    metres = np.random.default_rng(0).uniform(-reach, reach, (40, 2))
    degrees = degrees_of_local(metres, origin)
    assert (np.abs(degrees) <= (90, 180)).all()
    lines = [Geodesic.WGS84.Inverse(*origin, *point) for point in degrees]
    expected = [(line["s12"] * f(np.radians(line["azi1"]))) for line in lines for f in (np.sin, np.cos)]
    np.testing.assert_allclose(metres.ravel(), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(local_metres(degrees, origin), metres, rtol=0, atol=1e-5)


@pytest.mark.parametrize("origin", PLACES)
def test_a_local_map_of_10_km_keeps_all_distances(origin):
    a, b = np.random.default_rng(0).uniform(-7000, 7000, (2, 100, 2))
    on_map = np.hypot(*(a - b).T)
    on_earth = list(map(geodesic, degrees_of_local(a, origin), degrees_of_local(b, origin)))
    np.testing.assert_allclose(on_map, on_earth, rtol=0.05 * CM_PER_KM)


def test_a_local_map_spans_the_meridian_of_180_degrees():
    ((east, north),) = local_metres([FIJI_EAST], FIJI_WEST)
    assert east == pytest.approx(geodesic(FIJI_WEST, FIJI_EAST)) and 0 < east < 214 and abs(north) < 0.01
    assert np.isnan(local_metres([(np.nan, np.nan)], FIJI_WEST)).all()
