"""Protocols are recognised by counts, names, positions and threshold; the official MSLS queries are derived."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from datasets.benchmark import Benchmark
from datasets.image_set import ImageSet
from datasets.layouts import BenchmarkConfig
from datasets.protocols import PROTOCOLS, recognise
from datasets.protocols.__main__ import main
from datasets.protocols.recognition import keys_sha256
from datasets.protocols.table import MSLS_740_SHA256
from model import InputError

COUNTS = [  # from the table of facts: name, database, queries, spacing of the positions in metres
    ("Pitts30k val", 10_000, 7_608, 3),
    ("Pitts30k test", 10_000, 6_816, 3),
    ("MSLS val, all 11,084 queries", 18_871, 11_084, 3),
    ("Nordland, 27,592 queries, within 10 frames", 27_592, 27_592, 2.381),
    ("Nordland*, 2,760 queries, within 1 frame", 27_592, 2_760, 25),
    ("Nordland*, 2,760 queries, within 1 frame", 27_592, 2_760, 13),
    ("Nordland (SelaVPR), 3,450 queries, within 2 frames", 3_450, 3_450, 12.5),
    ("Nordland (SelaVPR), 3,450 queries, within 2 frames", 3_450, 3_450, 10),
    ("Tokyo 24/7", 75_984, 315, 3),
    ("SF-XL test v1", 2_805_840, 1_000, 3),
    ("SF-XL test v2", 2_805_840, 598, 3),
    ("SF-XL test night", 2_805_840, 466, 3),
    ("SF-XL test occlusion", 2_805_840, 76, 3),
    ("SF-XL small test, v1", 27_191, 1_000, 3),
    ("SVOX night", 17_166, 823, 3),
    ("Eynsham", 23_935, 23_935, 3),
    ("AmsterTime", 1_231, 1_231, 50),
    ("SPED", 607, 607, 50),
]


class Names(Sequence):
    """Made-up file names, without holding millions of them."""

    def __init__(self, count: int, pattern: str = "images/@0@{i}@.jpg") -> None:
        self.count, self.pattern = count, pattern

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i):
        return self.pattern.format(i=range(self.count)[i])


def images(count: int, spacing: float = 3, pattern: str = "images/@0@{i}@.jpg") -> ImageSet:
    """Images along a line, with positions to the centimetre."""
    utms = np.stack([np.zeros(count), np.round(np.arange(count) * spacing, 2)], axis=1)
    return ImageSet.at_utms(Names(count, pattern), utms)


@pytest.mark.parametrize(("name", "database", "queries", "spacing"), COUNTS)
def test_protocols_are_recognised(name, database, queries, spacing):
    """The counts alone tell it, but for sequences, or with the name of the dataset."""
    found = recognise(images(database, spacing), images(queries), 25)
    assert found.protocol.name == name
    assert str(found).startswith(name if name.startswith("Nordland") else f"looks like {name}")
    assert ("by its counts alone" in str(found)) is not name.startswith("Nordland")
    assert found.protocol.verified and "unverified" not in str(found)
    dataset = name.split()[0].rstrip("*").lower()
    named = recognise(images(database, spacing), images(queries), 25, (dataset, "test"))
    assert named.name == name and "alone" not in str(named)


def test_unverified_protocols_say_so():
    for protocol in PROTOCOLS:
        if not protocol.verified and isinstance(protocol.database, int):
            found = recognise(images(protocol.database), images(protocol.queries), protocol.threshold)
            assert found.protocol == protocol and "counts unverified" in str(found)


@pytest.mark.parametrize(
    ("database", "queries", "threshold", "spacing", "reason"),
    [
        (10_000, 6_816, 10, 3, "counts of Pitts30k test, but with 10 m instead of 25 m"),
        (10_000, 6_815, 25, 3, ""),
        (18_871, 740, 25, 3, "counts of MSLS val, official 740 queries, but other queries"),
        (18_871, 11_083, 25, 3, ""),
        (
            27_592,
            27_592,
            25,
            25,
            "counts of Nordland, 27,592 queries, within 10 frames, but within 1 frame instead of within 10",
        ),
        (
            27_592,
            2_760,
            25,
            2.381,
            "counts of Nordland*, 2,760 queries, within 1 frame, but within 10 frames instead of within 1",
        ),
        (500_000, 598, 25, 3, ""),
    ],
)
def test_near_misses_are_not_recognised(database, queries, threshold, spacing, reason):
    found = recognise(images(database, spacing), images(queries), threshold)
    assert found.protocol is None and found.reason == reason
    assert str(found) == (f"none known: {reason}" if reason else "")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ("pitts30k", "test"),
            "100 database images and 50 queries found, expected are 10,000 and 6,816 (Pitts30k test)",
        ),
        (("tokyo_24-7", "test"), "75,984 and 315 (Tokyo 24/7)"),
        (("svox", "test", "queries_night"), "17,166 and 823 (SVOX night)"),
        (("sf_xl", "test", "queries_v2"), "(SF-XL test v2) or 25,650 to 28,350 and 598 (SF-XL small test, v2)"),
        (("msls", "val"), "18,871 and 11,084 (MSLS val, all 11,084 queries) or 18,871 and 740 (MSLS val, official"),
        (("holiday", "test"), ""),
        (("sf", "test"), ""),
        ((), ""),
    ],
)
def test_a_known_dataset_is_told_which_counts_it_should_have(names, expected):
    found = recognise(images(100), images(50), 25, names)
    assert found.protocol is None and expected in found.reason and bool(found.reason) == bool(expected)


def test_nordland_with_its_seasons_exchanged_is_not_recognised():
    summer, winter = "nordland/summer/@0@{i}@.jpg", "nordland/winter/@0@{i}@.jpg"
    pair = [images(27_592, 2.381, pattern) for pattern in (summer, winter)]
    assert str(recognise(*pair, 25)).startswith("Nordland, 27,592")
    assert "database of winter instead of summer" in recognise(*reversed(pair), 25).reason


def test_nordland_with_positions_that_are_no_sequence_is_not_recognised():
    database = images(27_592, 2.381)
    database.utms[100, 1] += 500
    assert "do not form a sequence" in recognise(database, images(27_592, 2.381), 25).reason


def test_san_francisco_landmark_is_not_sf_xl_v2():
    assert recognise(images(1_046_587), images(598), 25).protocol.name == "SF Landmark"
    assert recognise(images(2_805_840), images(598), 25).protocol.name == "SF-XL test v2"


def test_the_official_queries_are_recognised_by_the_checksum_of_their_keys(monkeypatch):
    """The official keys are not distributed here, so that the checksum of made-up ones takes their place."""
    pattern = "@1@2@32@V@55@12@key{i}@@90@@@@201901@day_forward_cph@.jpg"
    queries = images(740, pattern=pattern)
    keys = sorted(f"key{i}" for i in range(740))
    checksum = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    assert keys_sha256(keys[::-1]) == checksum
    official = next(protocol for protocol in PROTOCOLS if protocol.keys_sha256)
    assert official.keys_sha256 == MSLS_740_SHA256 and recognise(images(18_871), queries, 25).protocol is None
    made_up = replace(official, keys_sha256=checksum)
    monkeypatch.setattr("datasets.protocols.recognition.PROTOCOLS", (made_up,))
    assert recognise(images(18_871), queries, 25).protocol is made_up
    assert recognise(images(18_871), queries, 25).name == made_up.name


def test_conditions_come_from_the_notes_in_the_names(tmp_path):
    split = tmp_path / "msls/val"
    notes = ["day_forward_cph", "night_forward_cph", "day_sideways_sf"]
    for part in ("database", "queries"):
        (split / part).mkdir(parents=True)
        for i, note in enumerate(notes):
            (split / part / f"@{i}@0@32@V@55@12@KEY{i}@@90@@@@201901@{note}@.jpg").touch()
    config = BenchmarkConfig(name="msls", datasets_folder=tmp_path, split="val")
    conditions = Benchmark(config).conditions
    expected = {"day": [0, 2], "night": [1], "forward": [0, 1], "sideways": [2], "cph": [0, 1], "sf": [2]}
    assert {name: indices.tolist() for name, indices in conditions.items()} == expected
    (split / "queries" / "@9@0@.jpg").touch()  # without a note
    assert Benchmark(config).conditions == {}


def write_msls(raw, city, part, rows):
    """The three CSV files of a folder, in MSLS's columns. rows: (key, easting, northing, panorama, in subtask all)."""
    folder = raw / "train_val" / city / part
    folder.mkdir(parents=True)
    tables = {
        "raw": [["", "key", "lon", "lat", "ca", "captured_at", "pano"]],
        "postprocessed": [",key,easting,northing,unique_cluster,night,control_panel,view_direction".split(",")],
        "subtask_index": [["", "all", "s2w", "w2s"]],
    }
    for i, (key, easting, northing, panorama, member) in enumerate(rows):
        tables["raw"].append([i, key, 12.5, 55.7, 90.0, "2019-01-01", panorama])
        tables["postprocessed"].append([i, key, easting, northing, 1, False, False, "Forward"])
        tables["subtask_index"].append([i, member, False, False])
    for name, table in tables.items():
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(table)


@pytest.fixture
def raw(tmp_path):
    """Of six queries, three are official: one is a panorama, one not in the subtask, one without a positive."""
    database = [("d0", 0, 0, False, True), ("d1", 500, 0, True, True)]
    queries = [("near", 20, 15, False, True), ("panorama", 0, 0, True, True)]  # near: exactly 25 m
    queries += [("other", 0, 0, False, False), ("far", 0, 25.01, False, True), ("lonely", 500, 0, False, True)]
    for city in ("cph", "sf"):
        write_msls(tmp_path, city, "database", database)
        write_msls(tmp_path, city, "query", [(f"{city} {key}", *row) for key, *row in queries])
    return tmp_path


def run(raw, tmp_path):
    main(["msls_val", "--raw", str(raw), "--output", str(tmp_path / "list.txt")])


def test_official_queries_are_derived(raw, tmp_path, monkeypatch, capsys):
    expected = ["cph near", "sf near"]
    monkeypatch.setattr("datasets.protocols.__main__.MSLS_740_SHA256", keys_sha256(expected))
    run(raw, tmp_path)
    assert (tmp_path / "list.txt").read_text().splitlines() == expected
    assert "the 2 official queries" in capsys.readouterr().out


def test_other_queries_than_the_official_ones_are_refused(raw, tmp_path):
    with pytest.raises(InputError, match="yield 2 queries, which are not the official 740"):
        run(raw, tmp_path)
    assert not (tmp_path / "list.txt").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("postprocessed", "20,15", "20,north", "postprocessed.csv, line 2: northing is 'north'. Expected a number"),
        ("postprocessed", "sf near", "sf far", "postprocessed.csv, line 2: the key is sf far, but sf near in raw.csv"),
        ("subtask_index", ",all,", ",every,", "subtask_index.csv lacks the columns all"),
        ("subtask_index", "0,True,False,False", "0", "subtask_index.csv, line 2: the column all is empty"),
        ("raw", "0,sf near,12.5,55.7,90.0,2019-01-01,False\n", "", "have 4, 5 and 5 rows"),
    ],
)
def test_damaged_csv_files_are_named(raw, tmp_path, file, old, new, message):
    path = raw / "train_val/sf/query" / f"{file}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        run(raw, tmp_path)
