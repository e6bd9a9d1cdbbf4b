"""Benchmarks on disk: listing, positions from file names, positives, and what is refused."""

import math

import numpy as np
import pytest
import utm
from geographiclib.geodesic import Geodesic
from helpers.photos import make_split

from datasets.benchmark import Benchmark
from datasets.file_names import frame_of, utm_position
from datasets.ground import Ground, find_far, find_positives
from datasets.image_set import ImageSet
from datasets.layouts import BenchmarkConfig, list_images
from model import InputError
from model.geodesy import degrees_of_local


def town(datasets, **options):
    """The configuration of the dataset that make_split writes."""
    return BenchmarkConfig(datasets_folder=datasets, name="town", **options)


def test_images_are_found_in_nested_folders_whatever_the_case_of_their_suffix(tmp_path):
    names = ["@5@0@.jpg", "b/@4@0@.jpeg", "a/c/@3@0@.png", "a/@2@0@.JPG", "@1@0@.Png", "@6@0@.JPEG"]
    split = make_split(tmp_path, names + ["notes.txt", "a/@9@9@.gif", "jpg", ".jpg.swp"])
    benchmark = Benchmark(town(tmp_path))
    assert [path.removeprefix(f"{split}/database/") for path in benchmark.database.paths] == sorted(names)
    assert benchmark.database.utms[:, 0].tolist() == [float(name.split("@")[1]) for name in sorted(names)]
    assert list_images(split / "database") == benchmark.database.paths


def test_benchmark_attributes(tmp_path):
    make_split(
        tmp_path,
        database=["@100@200@a@.jpg", "@130@200@b@.jpg", "@900@900@c@.jpg"],
        queries=["x/@110.5@200@.jpg", "@500@-500.25@.jpg", "@900@875@.jpg"],
    )
    benchmark = Benchmark(town(tmp_path, threshold=25))
    assert benchmark.queries.utms.tolist() == [[500, -500.25], [900, 875], [110.5, 200]]
    assert [positives.tolist() for positives in benchmark.positives] == [[], [2], [0, 1]]
    assert all(word in str(benchmark) for word in ("town", "3 database", "3 queries"))


def name_at(degrees, zone):
    """A file name that states a position in a zone, or in none (0)."""
    easting, northing, *_ = utm.from_latlon(*degrees, force_zone_number=abs(zone) or None)
    if zone < 0 <= degrees[0]:
        northing += 10_000_000
    return f"@{easting:.3f}@{northing:.3f}@{abs(zone) or ''}@{'V' if zone > 0 else 'G' if zone else ''}@.jpg"


@pytest.mark.parametrize(
    ("place", "zones", "is_flat"),
    [
        ((56.0, 12.0), (32, 32), True),
        ((56.0, 10.0), (32, 0), True),
        ((56.0, 12.0), (32, 33), False),
        ((0.0001, 10.0), (32, -32), False),
    ],
)
def test_positions_in_different_utm_zones_are_compared_as_degrees(tmp_path, place, zones, is_flat):
    """Of a database in files, and of one in an index. The second image is some 30 m away, beyond the threshold."""
    names = [name_at((place[0] + north, place[1]), zones[0]) for north in (0, 27e-5)]
    queries = [name_at(place, zones[1])]
    make_split(tmp_path / "both", names, queries)
    make_split(tmp_path / "queries", names, queries)
    both = Benchmark(town(tmp_path / "both"))
    index = ImageSet.at_utms(names, both.database.utms, both.database.zones)
    for benchmark in (both, Benchmark(town(tmp_path / "queries"), has_database=False).with_database(index)):
        assert benchmark.ground.is_flat is is_flat
        first = int(benchmark.ground.metres(0, np.array([0, 1])).argmin())
        assert [positives.tolist() for positives in benchmark.positives] == [[first]]
        assert benchmark.ground.metres(0, np.array([first, 1 - first])) == pytest.approx([0, 30], abs=0.2)
    unlabelled = Benchmark(town(tmp_path / "both", labels=False))
    assert unlabelled.with_database(index).database is index


def test_distances_between_metres_without_a_zone_and_degrees_are_refused(tmp_path):
    make_split(tmp_path, ["@500000@6000000@a@.jpg"], [name_at((54.1, 9.0), 32)])
    queries = Benchmark(town(tmp_path)).queries
    index = ImageSet.at_degrees(["/a.jpg"], np.array([[54.1, 9.0]]))
    benchmark = Benchmark(town(tmp_path), has_database=False)
    assert benchmark.with_database(index).ground.metres(0, np.array([0])) == pytest.approx([0], abs=2e-3)
    split = make_split(tmp_path / "plain", queries=["@500000@6000000@.jpg"])
    assert queries.zones.tolist() == [32] and len(list_images(split / "queries")) == 1
    with pytest.raises(
        InputError, match=r"1 of 1 images are metres without a UTM zone, such as .*@500000@6000000@.jpg"
    ):
        Benchmark(town(tmp_path / "plain"), has_database=False).with_database(index)
    unknown = ImageSet.without_positions(["/a.jpg"])
    with pytest.raises(InputError, match=r"holds images without positions.*Use --no_labels"):
        benchmark.with_database(unknown)


@pytest.mark.parametrize("place", [(37.78, -122.42), (48.86, 2.35), (78.22, 21.0), (-16.8, 180.0), (90.0, 0.0)])
@pytest.mark.parametrize("threshold", [25, 5000])
def test_positives_by_degrees_are_those_that_geographiclib_finds(place, threshold):
    random = np.random.default_rng(0)
    database, queries = (degrees_of_local(random.uniform(-3, 3, (n, 2)) * threshold, place) for n in (300, 20))
    ground = Ground(ImageSet.at_degrees([""] * 300, database), ImageSet.at_degrees([""] * 20, queries))
    for i, (query, positives) in enumerate(zip(queries, ground.positives(threshold), strict=True)):
        metres = np.array([Geodesic.WGS84.Inverse(*query, *point)["s12"] for point in database])
        assert positives.tolist() == np.flatnonzero(metres <= threshold).tolist() and positives.dtype == np.int64
        np.testing.assert_allclose(ground.metres(i, np.arange(300)), metres, rtol=1e-7, atol=1e-5)


def test_the_distance_to_an_image_of_another_zone_is_not_that_of_the_metres():
    """One set may span several zones, as in MSLS: metres are compared within a zone alone."""
    utms, zones = np.full((3, 2), (500_000, 6_000_000.0)), np.array([32, 33, 0], np.int8)
    database = ImageSet.at_utms(["a", "b", "c"], utms, zones)
    ground = Ground(database, database[:2])
    assert ground.is_flat and [found.tolist() for found in ground.positives(25)] == [[0, 2], [1, 2]]
    away = Geodesic.WGS84.Inverse(*database.degrees[0], *database.degrees[1])["s12"]
    assert away > 390_000 and ground.metres(0, np.arange(3)) == pytest.approx([0, away, 0])


def test_metres_that_their_zone_does_not_have_are_not_on_the_map_of_degrees():
    sets = [ImageSet.at_utms([""], np.array([[9e7, 9e7]]), np.array([zone], np.int8)) for zone in (32, 33)]
    ground = Ground(*sets)
    assert not ground.is_flat and np.isnan(ground.on_map(sets[0])).all()
    with pytest.raises(InputError, match="1 of 1 images are metres without a UTM zone"):
        ground.require_positions()


@pytest.mark.parametrize("place", [(37.78, -122.42), (-16.8, 180.0), (90.0, 0.0)])
def test_the_map_of_degrees_keeps_distances_and_north_is_up(place):
    images = ImageSet.at_degrees(
        [""] * 40, degrees_of_local(np.random.default_rng(0).uniform(-2e3, 2e3, (40, 2)), place)
    )
    ground = Ground(images[:30], images[30:])
    places = np.concatenate([ground.on_map(images[:30]), ground.on_map(images[30:])])
    for query in range(10):
        metres = np.hypot(*(places[:30] - places[30 + query]).T)
        np.testing.assert_allclose(ground.metres(query, np.arange(30)), metres, rtol=1e-6)
    north_of_origin = images.degrees[:, 0] > ground._origin[0]
    assert place[0] == 90 or ((places[:, 1] > 0) == north_of_origin)[np.abs(places[:, 1]) > 1].all()


@pytest.mark.parametrize("number", [4, 50])
def test_an_image_far_from_all_others_is_found(number):
    near = degrees_of_local(np.random.default_rng(0).uniform(-40_000, 40_000, (number, 2)), (55.7, 12.6))
    unknown, wrong, fiji = (np.nan, np.nan), (55.7, -12.6), [(-16.8, 179.99), (-16.8, -179.99)]
    assert find_far(near).tolist() == find_far(near[:1]).tolist() == find_far(near[:0]).tolist() == []
    assert find_far(np.vstack([unknown, near, wrong])).tolist() == [number + 1]
    assert find_far(np.vstack([near, fiji])).tolist() == []  # across 180 degrees they are neighbours
    assert find_far(np.array([wrong, fiji[0], (0, 0), (90, 0), near[0]])).tolist() == []  # a trip around the world
    at = degrees_of_local([[0, 0], [0, 1000], [0, 98_000], [0, 205_000]], (55.7, 12.6))
    assert find_far(at).tolist() == [3]


def test_without_its_database_only_the_queries_are_looked_at(tmp_path):
    split = make_split(tmp_path, database=["no_position.jpg"], queries=["@1@2@.jpg"])
    benchmark = Benchmark(town(tmp_path), has_database=False)
    assert benchmark.database.paths == [] and benchmark.queries.paths == [str(split / "queries" / "@1@2@.jpg")]
    assert "database" not in str(benchmark).split(": ")[1]


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("@500320.00@6950000.50@0000032@.jpg", (500320, 6950000.5)),
        ("@-1.5@2@.jpg", (-1.5, 2)),
        ("@1e3@0002@ place @ more @.png", (1000, 2)),
    ],
)
def test_position(tmp_path, name, position):
    assert utm_position(tmp_path / "@7@8@folder" / name) == position


@pytest.mark.parametrize(
    "name", "photo.jpg @12@.jpg @12.jpg @1@two@.jpg @@2@.jpg @nan@1@.jpg @1@inf@.jpg @1@-inf@.jpg".split()
)
def test_a_file_name_without_position_is_named(tmp_path, name):
    split = make_split(tmp_path / "@3@4@", queries=["@1@2@.jpg", name])  # the folder's numbers are not the file's
    with pytest.raises(InputError) as caught:
        Benchmark(town(tmp_path / "@3@4@"))
    assert str(split / "queries" / name) in str(caught.value)
    assert "UTM" in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "name", "split", "missing", "there"),
    [
        ("nowhere", "town", "test", "nowhere", "sets"),
        ("sets", "city", "test", "sets/city", "town"),
        ("sets", "town", "val", "sets/town/images/val", "test"),
    ],
)
def test_what_is_missing_is_named_and_what_is_there_instead_too(tmp_path, folder, name, split, missing, there):
    make_split(tmp_path / "sets")
    with pytest.raises(InputError) as caught:
        Benchmark(BenchmarkConfig(datasets_folder=tmp_path / folder, name=name, split=split))
    assert f"No folder {tmp_path / missing}." in str(caught.value)
    if there != "sets":  # what lies beside the datasets folder is no help
        assert f" contains {there}" in str(caught.value)


@pytest.mark.parametrize("which", ["database", "queries"])
@pytest.mark.parametrize("state", ["empty", "missing", "no images"])
def test_an_empty_database_or_queries(tmp_path, which, state):
    split = make_split(tmp_path, **{which: ["notes.txt"] if state == "no images" else []})
    if state == "missing":
        (split / which).rmdir()
    with pytest.raises(InputError) as caught:
        Benchmark(town(tmp_path))
    assert str(split / which) in str(caught.value)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 3, 8, 200])  # scikit-learn takes other algorithms for few points
def test_positives_are_those_at_most_the_threshold_away(seed, size):
    random = np.random.default_rng(seed)
    origin = np.array([500000.0, 6950000.0])
    queries = origin + random.integers(-60, 60, (15, 2))
    exactly_25 = queries[:2] + [[15, -20], [0, 25]]  # right: the threshold is inclusive
    just_beyond = queries[:2] + [[25.001, 0], [-15.001, 20]]
    database = np.concatenate([origin + random.integers(-60, 60, (size, 2)), exactly_25, just_beyond])[
        random.permutation(size + 4)
    ]
    for threshold in (25, 10, 0.5):
        found = find_positives(database, queries, threshold)
        for query, positives in zip(queries, found, strict=True):
            naive = [
                i
                for i, point in enumerate(database)
                if math.hypot(point[0] - query[0], point[1] - query[1]) <= threshold
            ]
            assert positives.tolist() == naive
            assert positives.dtype == np.int64


@pytest.mark.parametrize(
    ("path", "recording", "time"),
    [
        ("a/day_left_007.jpg", "a/day_left_", 7),
        ("a/f10_hall_frame_000016.jpg", "a/f10_hall_frame_", 16),
        ("a/1403636579.763555.png", "a/", 1403636579.763555),
        ("tour.mp4#t=12.40", "tour.mp4#t=", 12.4),
        ("a/@500010.00@6950000.00@0000001@.jpg", "a/", 1),
        ("a/@0@1000@day_left_100@.jpg", "a/day_left_", 100),
        ("a/@1@2@32@T@53@10@pano_12@1@90@@@@@@.jpg", "a/pano_", 12),
        ("a/@1@2@32@T@53@10@pano_12@1@90@@@@1554.5@@.jpg", "a", 1554.5),
        ("a/church.jpg", "a/church.jpg", 0),
        ("a/@1@2@.jpg", "a/@1@2@.jpg", 0),
    ],
)
def test_the_recording_and_the_number_of_a_frame(path, recording, time):
    assert frame_of(path) == (recording, time)
