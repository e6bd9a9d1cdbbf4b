"""Where an image was taken: a position estimated from those of its first matches."""

import math
from typing import NamedTuple

import numpy as np

from .geodesy import degrees_of_local, local_metres

MATCHES = 10  # from which a position is estimated
REACH = 25.0  # metres; matches this near each other show the same place
DECAY = 0.1  # a match that is farther than the first by this share of its distance has the weight 1/e
SHARE = 0.9  # of the places that lie within a calibrated radius


class Place(NamedTuple):
    """An estimated position. position: easting and northing in metres, and degrees: latitude and longitude, WGS 84;
    None if not all matches that agree have one; radius: in metres around it, within which the image was taken in the
    share SHARE of cases, or None if no evaluation calibrated it; matches: how many agree.
    """

    position: tuple[float, float] | None
    radius: float | None
    matches: int
    degrees: tuple[float, float] | None = None


def estimate_place(
    positions: np.ndarray,
    distances: np.ndarray,
    radius: float | None = None,
    *,
    degrees: np.ndarray | None = None,
    zones: np.ndarray | None = None,
) -> Place | None:
    """The middle of the densest group of matches; None if no match has a position.

    positions: [K, 2] in metres, NaN where unknown, best match first, of which the first MATCHES count; zones: [K],
    their UTM zones, 0 where unknown: metres of several zones are no map, and do not count. degrees: [K, 2], latitudes
    and longitudes, which decide where more of them are known; distances: [K], ascending, of any metric.

    A match weighs exp(-e / DECAY), where e is how much farther it is than the first, relative to the first one's
    distance. A group is a match and those within REACH of it. The group with the largest weight wins, of equal ones
    that of the better match, and the position is the weighted mean of its members: a wrong match far away, even the
    first one, does not move it.
    """
    metres = positions[:MATCHES].astype(np.float64)
    if zones is not None and len({*zones[:MATCHES].tolist()} - {0}) > 1:
        metres[:] = np.nan
    on_earth = np.full_like(metres, np.nan) if degrees is None else degrees[:MATCHES].astype(np.float64)
    in_metres, in_degrees = np.isfinite(metres).all(axis=1), np.isfinite(on_earth).all(axis=1)
    known = in_metres if in_metres.sum() >= in_degrees.sum() else in_degrees
    if not known.any():
        return None
    metres, on_earth, near = metres[known], on_earth[known], distances[:MATCHES][known].astype(np.float64)
    local = local_metres(on_earth, on_earth[0])
    places = metres if known is in_metres else local
    weights = np.exp(-(near - near[0]) / (DECAY * max(near[0], 1e-9)))
    together = np.linalg.norm(places[:, None] - places, axis=2) <= REACH
    group = together[(together * weights).sum(axis=1).argmax()]
    position, from_first = (np.average(points[group], axis=0, weights=weights[group]) for points in (metres, local))
    return Place(_pair(position), radius, int(group.sum()), _pair(degrees_of_local(from_first[None], on_earth[0])[0]))


def _pair(values: np.ndarray) -> tuple[float, float] | None:
    first, second = values.tolist()
    return (first, second) if math.isfinite(first) else None


def calibrated_radius(errors: np.ndarray) -> float | None:
    """The radius that holds the true position in the share SHARE of further cases like these; None for too few.

    errors: [N], metres between true and estimated positions; NaN, an unknown one, counts as the largest. Split
    conformal prediction (Vovk et al., 2005): the ceil((N + 1) * SHARE)-th smallest error.
    """
    rank = math.ceil((len(errors) + 1) * SHARE)
    radius = np.sort(errors)[rank - 1] if rank <= len(errors) else np.nan
    return float(radius) if np.isfinite(radius) else None
