"""Matches of sequences against naive loops over everything."""

import numpy as np
import pytest

from model.sequences import SPEEDS, Frames, match_sequences


def naive_later(database, image, delay):
    """The image of the same recording that was recorded nearest to `delay` later; None if none is near."""
    own = [i for i in range(len(database.time)) if database.recording[i] == database.recording[image]]
    times = sorted(database.time[i] for i in own)
    step = np.median(np.diff(times)) if len(own) > 1 else 0
    target = database.time[image] + delay
    if delay == 0:
        return image
    near = min(own, key=lambda i: (round(abs(database.time[i] - target), 9), database.time[i]))
    return near if abs(database.time[near] - target) <= step + 1e-9 else None


def naive_matches(distances, indices, queries, database, length):
    """[(distance, image)] of each query, best first: dictionaries of what each frame's matches speak for."""
    results = []
    for query in range(len(indices)):
        own = [i for i in range(len(indices)) if queries.recording[i] == queries.recording[query]]
        earlier = sorted((i for i in own if queries.time[i] <= queries.time[query]), key=lambda i: queries.time[i])
        window = earlier[-length:]
        best = {}
        for speed in (*SPEEDS, *(-speed for speed in SPEEDS)):
            spoken = []
            for i in window:
                delay = speed * (queries.time[query] - queries.time[i])
                said = {}
                for image, distance in zip(indices[i].tolist(), distances[i].tolist(), strict=True):
                    later = naive_later(database, image, delay)
                    if later is not None:
                        said[later] = min(distance, said.get(later, np.inf))
                spoken.append((said, distances[i, -1]))
            for image in {image for said, _ in spoken for image in said}:
                mean = sum(said.get(image, last) for said, last in spoken) / len(window)
                best[image] = min(mean, best.get(image, np.inf))
        results.append(sorted((mean, image) for image, mean in best.items())[: indices.shape[1]])
    return results


def recordings(random, count, kinds, irregular):
    """Frames in a random order, each time once in its recording."""
    time = np.arange(count) * (1 + irregular * random.random(count).cumsum() / count)
    return Frames(random.integers(0, kinds, count), random.permutation(time))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("length", [1, 2, 5])
def test_matches_are_those_of_naive_loops(seed, length):
    random = np.random.default_rng([seed, length])
    queries = recordings(random, 12, 1 + seed % 3, seed % 2)
    database = recordings(random, 30, 1 + seed % 4, seed % 2)
    indices = np.stack([random.permutation(30)[:8] for _ in range(12)])
    distances = np.sort(random.integers(0, 20, (12, 8)), axis=1)
    found = match_sequences(distances, indices, queries=queries, database=database, length=length)
    expected = naive_matches(distances, indices, queries, database, length)
    for of_query, *ours in zip(expected, *found, strict=True):
        np.testing.assert_allclose(ours[0], [mean for mean, _ in of_query], rtol=1e-6)
        # Of means that are equal but for their last digits, either may come first.
        assert sorted(ours[1].tolist()) == sorted(image for _, image in of_query) or len(set(ours[0])) < 8
    if length == 1:
        assert np.array_equal(found[0], distances.astype(np.float32))
        assert all(set(a) == set(b) for a, b in zip(found[1].tolist(), indices.tolist(), strict=True))


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("speed", [0.8, 1, 1.25])
def test_a_tour_is_found_in_both_directions_and_at_other_speeds(way, speed):
    """Single frames find their place, or one at random, each second time."""
    random = np.random.default_rng(3)
    database = np.arange(200)
    places = (30 + speed * np.arange(60)).round().astype(int) if way > 0 else (170 - speed * np.arange(60)).astype(int)
    scores = 1 + random.random((60, 200)) * 0.1
    scores[np.arange(60), places] -= 0.04
    indices = np.argsort(scores, axis=1)[:, :50]
    distances = np.take_along_axis(scores, indices, axis=1)
    queries, known = (Frames(np.zeros(n, int), np.arange(float(n))) for n in (60, 200))
    right = {}
    for length in (1, 5, 10):
        _, found = match_sequences(distances, indices, queries=queries, database=known, length=length)
        right[length] = (np.abs(database[found[10:, 0]] - places[10:]) <= 1).mean()
    assert right[1] < 0.5 and right[1] < right[5] < right[10] and right[10] > 0.6
