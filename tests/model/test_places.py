"""Positions estimated from first matches, and the radius around them, against naive loops."""

import math

import numpy as np
import pytest

from model.places import DECAY, MATCHES, REACH, SHARE, Place, calibrated_radius, estimate_place


def naive_place(positions, distances):
    """(easting, northing, members) of the densest group, by loops."""
    matches = [(p, d) for p, d in zip(positions[:MATCHES], distances[:MATCHES], strict=True) if not math.isnan(p[0])]
    best = (0, None)
    for centre, _ in matches:
        group = [
            (p, math.exp(-(d - matches[0][1]) / (DECAY * matches[0][1])))
            for p, d in matches
            if math.dist(p, centre) <= REACH
        ]
        total = sum(weight for _, weight in group)
        if total > best[0] + 1e-12:
            middle = [sum(weight * p[axis] for p, weight in group) / total for axis in (0, 1)]
            best = (total, (*middle, len(group)))
    return best[1]


@pytest.mark.parametrize("seed", range(20))
def test_the_place_is_that_of_a_naive_loop(seed):
    random = np.random.default_rng(seed)
    positions = random.uniform(0, 120, (12, 2))
    positions[random.random(12) < 0.2] = np.nan
    distances = np.sort(random.uniform(0.5, 0.7, 12))
    place = estimate_place(positions, distances)
    easting, northing, members = naive_place(positions.tolist(), distances.tolist())
    assert place.position == pytest.approx((easting, northing)) and place.matches == members and place.radius is None


@pytest.mark.parametrize("wrong", range(5))
def test_one_wrong_match_far_away_does_not_move_the_place(wrong):
    positions = np.array([[500.0, 0], [510, 0], [505, 5], [495, 0], [500, 10]])
    distances = np.array([0.80, 0.81, 0.82, 0.83, 0.84])
    positions[wrong] = [90_000, 90_000]
    place = estimate_place(positions, distances, radius=7.0)
    assert math.dist(place.position, (502, 3)) < 8 and place.matches == 4 and place.radius == 7
    assert np.isfinite(estimate_place(positions, np.array([0, 0, 1, 1, 512])).position).all()


def test_without_positions_there_is_no_place_and_one_is_the_place_itself():
    assert estimate_place(np.full((3, 2), np.nan), np.arange(3)) is None
    assert estimate_place(np.empty((0, 2)), np.empty(0)) is None
    unknown_first = np.array([[np.nan, np.nan], [3.0, 4.0]])
    assert estimate_place(unknown_first, np.array([0, 5])) == Place((3.0, 4.0), None, 1)


def test_the_radius_holds_further_cases_in_the_stated_share():
    random, held = np.random.default_rng(0), []
    for _ in range(3000):
        errors = random.exponential(10, 25)
        held.append(errors[-1] <= calibrated_radius(errors[:-1]))
    assert SHARE - 0.02 < np.mean(held) < SHARE + 1 / 25 + 0.02
    assert calibrated_radius(np.arange(8)) is None and calibrated_radius(np.arange(9)) == 8
    assert calibrated_radius(np.array([*range(8), np.nan])) is None
