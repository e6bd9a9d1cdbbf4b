"""Positions on the Earth: distances in metres, and local maps, of latitudes and longitudes in degrees (WGS 84).

Geodesics by T. Vincenty, "Direct and inverse solutions of geodesics on the ellipsoid with application of nested
equations", Survey Review 23 (176), 1975, whose symbols the code keeps. All values are float64, and unknown ones NaN.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

EQUATOR_RADIUS, FLATTENING = 6_378_137.0, 1 / 298.257223563  # of the ellipsoid WGS 84
POLE_RADIUS = EQUATOR_RADIUS * (1 - FLATTENING)
HALF_MERIDIAN = 20_003_931.4586  # metres from pole to pole, and between points of the equator that are antipodes
MAX_ITERATIONS, TOLERANCE = 50, 1e-13  # of an angle in radians: less than a micrometre


def wrap_longitude(degrees: Any) -> Any:
    """Degrees, a number or an array -> the same direction from -180 (included) to 180."""
    return degrees - 360 * np.floor((degrees + 180) / 360)  # exact where nothing changes


def earth_centred(degrees: ArrayLike) -> np.ndarray:
    """Latitudes and longitudes [..., 2] -> points [..., 3] in metres from the Earth's centre (ECEF), at height 0.

    The straight line between two points is shorter than the geodesic: at 100 km by 1.04 m, at 10 km by a millimetre.
    """
    latitude, longitude = np.moveaxis(np.radians(np.asarray(degrees, np.float64)), -1, 0)
    squared = FLATTENING * (2 - FLATTENING)  # of the eccentricity
    radius = EQUATOR_RADIUS / np.sqrt(1 - squared * np.sin(latitude) ** 2)
    x, y = (radius * np.cos(latitude) * part for part in (np.cos(longitude), np.sin(longitude)))
    return np.stack([x, y, radius * (1 - squared) * np.sin(latitude)], axis=-1)


def distance_metres(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """The lengths [...] of the geodesics between latitudes and longitudes a and b [..., 2], which broadcast.

    The error is less than a millimetre, but for points within 110 km of each other's antipode. There Vincenty's
    iteration need not converge, and half the length of a meridian is given, up to 110 km (0.6 %) too much.
    """
    return _geodesic(np.asarray(a, np.float64), np.asarray(b, np.float64)).metres


def local_metres(degrees: ArrayLike, origin: ArrayLike) -> np.ndarray:
    """Latitudes and longitudes [N, 2] -> metres [N, 2] east and north of an origin [2], which may lie anywhere.

    The azimuthal equidistant map: distances and directions from the origin are those of geodesics. Distances between
    two images that are up to 100 km from it are right within 1 cm per 250 m; up to 10 km, within 1 mm per 2 km.
    """
    path = _geodesic(np.asarray(origin, np.float64), np.asarray(degrees, np.float64))
    return path.metres[..., None] * np.stack([np.sin(path.azimuth), np.cos(path.azimuth)], axis=-1)


def degrees_of_local(metres: ArrayLike, origin: ArrayLike) -> np.ndarray:
    """What `local_metres` maps to these metres [N, 2]: latitudes and longitudes [N, 2]. Vincenty's direct solution."""
    metres, (latitude, longitude) = np.asarray(metres, np.float64), np.asarray(origin, np.float64)
    azimuth, length = np.arctan2(metres[..., 0], metres[..., 1]), np.hypot(metres[..., 0], metres[..., 1])
    u1 = _reduced(latitude)
    sin_alpha = np.cos(u1) * np.sin(azimuth)
    cos2_alpha = 1 - sin_alpha**2
    sigma1 = np.arctan2(np.sin(u1), np.cos(u1) * np.cos(azimuth))
    scale, _ = _series(cos2_alpha)
    first = sigma = length / (POLE_RADIUS * scale)
    for _ in range(MAX_ITERATIONS):
        last, sigma = sigma, first + _sigma_correction(sigma, np.cos(2 * sigma1 + sigma), cos2_alpha)
        if not (np.abs(sigma - last) > TOLERANCE).any():
            break
    sin_u2 = np.sin(u1) * np.cos(sigma) + np.cos(u1) * np.sin(sigma) * np.cos(azimuth)
    away = np.sin(u1) * np.sin(sigma) - np.cos(u1) * np.cos(sigma) * np.cos(azimuth)
    latitudes = np.arctan2(sin_u2, (1 - FLATTENING) * np.hypot(sin_alpha, away))
    on_sphere = np.arctan2(
        np.sin(sigma) * np.sin(azimuth),
        np.cos(u1) * np.cos(sigma) - np.sin(u1) * np.sin(sigma) * np.cos(azimuth),
    )
    difference = on_sphere - _longitude_correction(sigma, np.cos(2 * sigma1 + sigma), sin_alpha)
    return np.stack([np.degrees(latitudes), wrap_longitude(longitude + np.degrees(difference))], axis=-1)


class _Geodesic(NamedTuple):
    """Geodesics [...]: their lengths, and their directions at the start, in radians clockwise from north."""

    metres: np.ndarray
    azimuth: np.ndarray


def _geodesic(start: np.ndarray, end: np.ndarray) -> _Geodesic:
    """From latitudes and longitudes to others [..., 2]: Vincenty's inverse solution."""
    u1, u2 = _reduced(start[..., 0]), _reduced(end[..., 0])
    difference = np.radians(wrap_longitude(end[..., 1] - start[..., 1]))
    on_sphere = difference  # lambda, the difference of longitudes on the auxiliary sphere
    for _ in range(MAX_ITERATIONS):
        east = np.cos(u2) * np.sin(on_sphere)
        north = np.cos(u1) * np.sin(u2) - np.sin(u1) * np.cos(u2) * np.cos(on_sphere)
        sin_sigma = np.hypot(east, north)
        cos_sigma = np.sin(u1) * np.sin(u2) + np.cos(u1) * np.cos(u2) * np.cos(on_sphere)
        sigma = np.arctan2(sin_sigma, cos_sigma)
        sin_alpha = np.cos(u1) * _ratio(east, sin_sigma)
        cos2_alpha = 1 - sin_alpha**2
        middle = cos_sigma - _ratio(2 * np.sin(u1) * np.sin(u2), cos2_alpha)  # cos of 2 sigma_m
        last, on_sphere = on_sphere, difference + _longitude_correction(sigma, middle, sin_alpha)
        is_open = np.abs(on_sphere - last) > TOLERANCE
        if not is_open.any():
            break
    scale, _ = _series(cos2_alpha)
    metres = POLE_RADIUS * scale * (sigma - _sigma_correction(sigma, middle, cos2_alpha))
    return _Geodesic(np.where(is_open, HALF_MERIDIAN, metres), np.arctan2(east, north))


def _reduced(latitude: np.ndarray) -> np.ndarray:
    """The reduced latitude U in radians, of one in degrees."""
    angle = np.radians(latitude)
    return np.arctan2((1 - FLATTENING) * np.sin(angle), np.cos(angle))


def _series(cos2_alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vincenty's A and B."""
    u2 = cos2_alpha * (EQUATOR_RADIUS**2 / POLE_RADIUS**2 - 1)
    a = 1 + u2 / 16384 * (4096 + u2 * (-768 + u2 * (320 - 175 * u2)))
    return a, u2 / 1024 * (256 + u2 * (-128 + u2 * (74 - 47 * u2)))


def _sigma_correction(sigma: np.ndarray, middle: np.ndarray, cos2_alpha: np.ndarray) -> np.ndarray:
    """Vincenty's delta sigma. middle: the cosine of 2 sigma_m."""
    _, b = _series(cos2_alpha)
    sin, cos = np.sin(sigma), np.cos(sigma)
    third = b / 6 * middle * (4 * sin**2 - 3) * (4 * middle**2 - 3)
    return b * sin * (middle + b / 4 * (cos * (2 * middle**2 - 1) - third))


def _longitude_correction(sigma: np.ndarray, middle: np.ndarray, sin_alpha: np.ndarray) -> np.ndarray:
    """By how much longitudes differ more on the auxiliary sphere than on the ellipsoid, in radians."""
    cos2_alpha = 1 - sin_alpha**2
    c = FLATTENING / 16 * cos2_alpha * (4 + FLATTENING * (4 - 3 * cos2_alpha))
    inner = middle + c * np.cos(sigma) * (2 * middle**2 - 1)
    return (1 - c) * FLATTENING * sin_alpha * (sigma + c * np.sin(sigma) * inner)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, or 0 where the denominator is 0: of one point twice, and of two points of the equator."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator != 0)
