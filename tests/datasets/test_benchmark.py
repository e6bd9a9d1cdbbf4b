"""Benchmarks on disk: listing, positions from file names, positives, and what is refused."""

import math

import numpy as np
import pytest
from helpers.photos import make_split

from datasets.benchmark import Benchmark, ImageSet, find_positives
from datasets.file_names import common_utm_zone, frame_of, utm_position
from datasets.layouts import BenchmarkConfig, list_images
from model import InputError


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


@pytest.mark.parametrize(
    ("zones", "refused"),
    [(("32@V", "32@V"), False), (("32@V", "33@V"), True), (("32@N", "32@M"), True), (("32@V", "@"), False)],
)
def test_positions_in_different_utm_zones_are_not_compared(tmp_path, zones, refused):
    """Of a database in files, and of one in an index."""
    database, queries = ([f"@1@2@{zone}@.jpg"] for zone in zones)
    make_split(tmp_path / "both", database, queries)
    make_split(tmp_path / "queries", database, queries)
    only_queries = Benchmark(town(tmp_path / "queries"), has_database=False)
    index = ImageSet(database, np.array([[1, 2]]), common_utm_zone(database))
    for compare in (lambda: Benchmark(town(tmp_path / "both")), lambda: only_queries.with_database(index)):
        if refused:
            with pytest.raises(InputError, match=r"zone 32N, but those of the queries in zone (33N|32S), so"):
                compare()
        else:
            assert [positives.tolist() for positives in compare().positives] == [[0]]
    unlabelled = Benchmark(town(tmp_path / "both", labels=False))
    assert unlabelled.with_database(index).database is index


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
