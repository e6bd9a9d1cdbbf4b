"""build_index.py: the files of eval.py --save_index, positions from names, EXIF and CSV files, broken and bad input."""

import csv
import math
import random
import shutil
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import utm
from helpers.evaluations import SCRIPTS, SIZE, flags_for
from helpers.indexes import content
from helpers.photos import LAT, LAT_LETTER, LON, LON_LETTER, gps_tags, save_photo
from helpers.processes import ROOT, last_of_each, run_script, start_script
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

import build_index
from datasets.config import PositionConfig
from datasets.exif_gps import InvalidGPS, gps_position
from datasets.file_names import utm_zone
from datasets.folder import locate_folder
from datasets.layouts import list_images
from datasets.zones import degrees_of_utm, zone_of_text, zone_text
from model import InputError
from model.image_files import load_image
from utils.cli.search import BuildIndexArguments
from utils.retrieval.index import Index
from utils.runtime.parser import parse


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("degrees", [(55.6761, 12.56834), (-33.8568, 151.2153), (37.78, -122.41), (-54.8, -68.3)])
def test_the_gps_position_of_a_photo(tmp_path, degrees, suffix):
    path = save_photo(tmp_path / f"a.{suffix}", gps_tags(*degrees), orientation=6)
    assert gps_position(path) == pytest.approx(degrees, abs=0.005 / 3600)


@pytest.mark.parametrize(
    ("changes", "degrees"),
    [
        ({LAT_LETTER: "s", LON_LETTER: "w "}, (-10.5, -20.25)),
        ({LAT: (IFDRational(10, 1), IFDRational(305, 10), IFDRational(0, 1))}, (10 + 30.5 / 60, 20.25)),
        ({LAT: (IFDRational(105, 10), IFDRational(0, 1), IFDRational(0, 1))}, (10.5, 20.25)),
        ({LON: (IFDRational(0, 1),) * 3}, (10.5, 0)),
        ({0x001D: "2026:01:31"}, (10.5, 20.25)),
    ],
)
def test_other_ways_to_write_it(tmp_path, changes, degrees):
    assert gps_position(save_photo(tmp_path / "a.jpg", {**gps_tags(10.5, 20.25), **changes})) == pytest.approx(degrees)


@pytest.mark.parametrize("tags", [None, {}, {0: b"\2\3\0\0"}, {LAT_LETTER: "N", LON_LETTER: "E"}])
def test_a_photo_without_a_gps_position(tmp_path, tags):
    assert gps_position(save_photo(tmp_path / "a.jpg", tags)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({LAT_LETTER: None}, "latitude has no letter N or S"),
        ({LON_LETTER: "?"}, "longitude has no letter E or W"),
        ({LON_LETTER: "N"}, "longitude has no letter E or W"),
        ({LON: None}, "no longitude"),
        ({LAT: None}, "no latitude"),
        (
            {LAT: (IFDRational(10, 1), IFDRational(0, 0), IFDRational(0, 0))},
            "latitude has neither minutes nor a fraction",
        ),
        ({LON: (IFDRational(1, 0), IFDRational(0, 1), IFDRational(0, 1))}, "longitude is nan degrees"),
        ({LAT: (IFDRational(10, 1), IFDRational(61, 1), IFDRational(0, 1))}, "61 minutes"),
        ({LAT: (IFDRational(10, 1), IFDRational(0, 1), IFDRational(6001, 100))}, "60.01 seconds"),
        ({LAT: (IFDRational(91, 1), IFDRational(0, 1), IFDRational(0, 1))}, "not from -90 to 90"),
        ({LAT_LETTER: "S", LAT: (IFDRational(90, 1), IFDRational(0, 1), IFDRational(1, 1))}, "not from -90 to 90"),
        ({LON: (IFDRational(181, 1), IFDRational(0, 1), IFDRational(0, 1))}, "not from -180 to 180"),
        ({LAT: (IFDRational(10, 1),)}, "neither minutes nor a fraction"),
        ({LAT: (IFDRational(10, 1),) * 4}, "latitude has 4 numbers"),
        ({LAT: (IFDRational(0, 1),) * 3, LON: (IFDRational(0, 1),) * 3}, "latitude and longitude are 0"),
    ],
)
def test_a_position_that_cannot_be_used_says_why(tmp_path, changes, words):
    tags = {**gps_tags(10.5, 20.25), **changes}
    path = save_photo(tmp_path / "a.jpg", {tag: value for tag, value in tags.items() if value is not None})
    with pytest.raises(InvalidGPS, match=words):
        gps_position(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
def test_damaged_exif_data_never_ends_the_reading(tmp_path):
    """Random bytes of the EXIF data are changed: there is a position, none, or a reason."""
    path = tmp_path / "a.jpg"
    save_photo(path, gps_tags(10.5, 20.25))
    original = path.read_bytes()
    start, end = original.index(b"Exif"), original.index(b"\xff\xdb")
    rng, outcomes = random.Random(0), set()
    for _ in range(400):
        damaged = bytearray(original)
        for _ in range(rng.choice([1, 1, 3, 20])):
            damaged[rng.randrange(start + 6, end)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            position = gps_position(path)
            outcomes.add(None if position is None else "a position")
        except InvalidGPS as error:
            outcomes.add(str(error).split()[-1])
    assert {None, "a position", "damaged"} <= outcomes


def test_only_the_header_is_read_and_nothing_is_written(tmp_path):
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    save_photo(path, gps_tags(10.5, 20.25), image=Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:2000])  # the pixels are cut off
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert gps_position(path) is not None
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match="text.jpg: this is not a JPEG or PNG file"):
        gps_position(tmp_path / "text.jpg")


PHOTOS = ROOT / "tests" / "data" / "photos"


@pytest.mark.parametrize(
    ("name", "degrees"),
    [  # as exiftool 12.57 reads them
        ("ascii.jpg", (55.67611, 12.56819)),
        ("one_value.jpg", (55.67611, 12.56819)),
        ("seconds_0_0.jpg", (55.676, 12.568167)),
        ("letter_byte.jpg", (55.676111, 12.568194)),
        ("letter_word.jpg", (-55.676111, -12.568194)),
        ("seconds_60.00001.jpg", (55.683333, 12.568056)),
        ("exif_after_pixels.png", (55.676111, 12.568194)),
    ],
)
def test_other_forms_that_cameras_write(name, degrees):
    assert gps_position(PHOTOS / name) == pytest.approx(degrees, abs=2e-6)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iTXt compressed"])
@pytest.mark.parametrize("name", [b"exif", b"APP1"])
@pytest.mark.parametrize("place", ["before the pixels", "after them"])
def test_a_raw_profile_of_a_png_file(tmp_path, kind, name, place):
    save_photo(tmp_path / "a.png", gps_tags(10.5, 20.25))
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", data[start : start + 4])
    exif, data = data[start + 8 : start + 8 + length], data[:start] + data[start + 12 + length :]
    text = b"\n" + name + b"\n%8d\n" % (6 + len(exif)) + (b"Exif\0\0" + exif).hex().encode() + b"\n"
    packed = zlib.compress(text)
    body = {
        b"tEXt": text,
        b"zTXt": b"\0" + packed,
        b"iTXt": b"\0\0\0\0" + text,
        b"iTXt compressed": b"\1\0en\0name\0" + packed,
    }
    content = kind[:4] + b"Raw profile type " + name + b"\0" + body[kind]
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    at = data.index(b"IDAT" if place == "before the pixels" else b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + chunk + data[at:])
    assert gps_position(tmp_path / "a.png") == pytest.approx((10.5, 20.25))
    assert load_image(tmp_path / "a.png").size == (60, 40)


def test_every_reason_is_counted(tmp_path, caplog):
    for i, tags in enumerate(({LAT_LETTER: "?"}, {LAT_LETTER: "?"}, {LON_LETTER: "?"}, {})):
        save_photo(tmp_path / f"{i}.jpg", {**gps_tags(10.5, 20.25), **tags})
    assert located(tmp_path).summary.startswith("Positions: 1 from EXIF GPS, 3 unknown")
    assert caplog.messages == [
        "3 of 4 images have EXIF GPS data that cannot be used: 2 such as 0.jpg (its latitude has no letter N or S); "
        "1 such as 2.jpg (its longitude has no letter E or W). Their positions are unknown."
    ]


# ---- Positions


def test_one_wrong_letter_is_a_warning_and_the_position_stays(tmp_path, caplog):
    for i in range(9):
        save_photo(tmp_path / f"p{i}.jpg", gps_tags(55.676 + i * 1e-4, 12.568))
    save_photo(tmp_path / "p9.jpg", gps_tags(55.676, -12.568))
    images, summary = located(tmp_path)
    assert summary == "Positions: 10 from EXIF GPS."
    assert images.degrees[9] == pytest.approx((55.676, -12.568), abs=1e-5)
    assert caplog.messages == [
        f"1 of 10 images in {tmp_path} lie more than 100 km from all others: p9.jpg. Check the letters and signs of "
        "their positions, and the order of latitude and longitude."
    ]


WORLD = {
    **{"san francisco a": (37.7749, -122.4194), "san francisco b": (37.7751, -122.4194)},
    **{"paris a": (48.8566, 2.3522), "paris b": (48.8568, 2.3522)},
    **{"svalbard a": (78.2, 20.9995), "svalbard b": (78.2, 21.0005)},
    **{"fiji west": (-16.8, 179.9999), "fiji east": (-16.8, -179.9999), "fiji 180": (-16.8, 180.0)},
    **{"north pole": (90.0, 0.0), "near it": (89.9999, 170.0), "south pole": (-90.0, 0.0), "no place": None},
}


def test_the_whole_world_in_one_folder(tmp_path, caplog):
    """Both sides of 21 E on Svalbard and of 180 degrees at Fiji lie in zones that are no neighbours; poles in none."""
    for name, place in WORLD.items():
        save_photo(tmp_path / f"{name}.jpg", gps_tags(*place) if place else None)
    images, summary = located(tmp_path)
    assert summary == "Positions: 12 from EXIF GPS, 1 unknown."
    assert len(caplog.messages) == 1 and "others: south pole.jpg. Check" in caplog.text
    found = {Path(path).stem: degrees for path, degrees in zip(images.paths, images.degrees, strict=True)}
    for name, place in WORLD.items():
        np.testing.assert_allclose(found[name], place or (np.nan, np.nan), rtol=0, atol=0.005 / 3600)
    assert np.isnan(images.utms).all() and not images.zones.any()


def test_degrees_of_metres_that_no_place_has_are_unknown():
    utms = np.array([[5e5, 4e6], [9e7, 4e6], [5e5, 9e7], [5e5, -9e7], [np.nan, np.nan], [5e5, 4e6]])
    degrees = degrees_of_utm(utms, np.array([33, 33, 33, 33, 33, 0], np.int8))
    assert np.isfinite(degrees).all(axis=1).tolist() == [True, False, False, False, False, False]
    assert degrees[0] == pytest.approx(utm.to_latlon(5e5, 4e6, 33, northern=True))


def located(folder, source="auto", csv=None):
    return locate_folder(list_images(folder), folder, PositionConfig(source="csv" if csv else source, csv=csv))


def test_positions_of_names_and_their_zones(tmp_path):
    for name in ("@551937.34@4181580.89@10@S@37.78@-122.41@.jpg", "@551937.5@4181580@10@T@.jpg", "other.jpg"):
        save_photo(tmp_path / name)
    for source in ("auto", "names"):
        images, summary = located(tmp_path, source)
        assert images.zones.tolist() == [10, 10, 0]
        assert summary == "Positions: 2 from file names (UTM zone 10N), 1 unknown."
        np.testing.assert_array_equal(images.utms, [[551937.34, 4181580.89], [551937.5, 4181580], [math.nan, math.nan]])
        expected = [utm.to_latlon(*metres, 10, northern=True) for metres in images.utms[:2]]
        np.testing.assert_allclose(images.degrees, [*expected, (math.nan, math.nan)])
    images, summary = located(tmp_path, "none")
    assert not images.is_located.any() and summary == "Positions: 3 unknown."
    for zone in (*range(21, 27), ""):
        save_photo(tmp_path / f"@551937@4181580@{zone}@G@.jpg")
    summary = "9 from file names (UTM zones 26S, 25S, 24S, 23S, 22S and 3 more), 1 unknown"
    assert located(tmp_path).summary == f"Positions: {summary}."


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("@1@2@04@Q@.jpg", 4),
        ("@1@2@4@G@a.jpg", -4),
        ("@1@2@60@M@a.jpg", -60),
        ("@1@2@4@N@a.jpg", 4),
        ("@1@2@.jpg", 0),
        ("@1@2@3_0@G@.jpg", 0),
        ("@1@2@61@G@.jpg", 0),
        ("@1@2@0@G@.jpg", 0),
        ("@1@2@4@I@.jpg", 0),
    ],
)
def test_the_zone_in_a_file_name(name, zone):
    assert utm_zone(name) == zone


def test_the_zone_that_a_text_states():
    for zone in [*range(-60, 0), *range(1, 61)]:
        assert zone_of_text(zone_text(zone)) == zone
    assert zone_of_text("04S") == -4 and zone_text(0) is None
    assert [zone_of_text(text) for text in ("", "N", "0N", "61N", "32", "32V", "-3N", "032N")] == [None] * 8


def test_names_with_metres_and_exif_data_in_one_folder(tmp_path):
    """Each image keeps its own position: names come first."""
    save_photo(tmp_path / "@551955.00@4181569.90@10@S@.jpg", gps_tags(10, 10))
    save_photo(tmp_path / "@500000@4000000@.jpg", gps_tags(37.78, -122.41))
    save_photo(tmp_path / "b.jpg", gps_tags(37.78, -122.41))
    save_photo(tmp_path / "c.jpg", gps_tags(0, 0))
    images, summary = located(tmp_path)
    expected = "Positions: 2 from file names (UTM zones unknown, 10N), 1 from EXIF GPS, 1 unknown."
    assert summary == expected
    assert images.zones.tolist() == [0, 10, 0, 0] and images.is_located.tolist() == [True, True, True, False]
    np.testing.assert_allclose(images.degrees[[0, 3]], np.nan)
    np.testing.assert_allclose(images.degrees[[1, 2]], [(37.78, -122.41)] * 2, atol=1e-5)
    assert located(tmp_path, "exif").summary == "Positions: 3 from EXIF GPS, 1 unknown."


def test_a_source_in_which_no_image_has_a_position_is_refused(tmp_path):
    save_photo(tmp_path / "a.jpg")
    for source, words in (("names", "no UTM position in the names of the 1"), ("exif", "none of the 1 images")):
        with pytest.raises(InputError, match=f"--positions {source}: {words}"):
            located(tmp_path, source)


def test_positions_of_a_csv_file(tmp_path):
    for name in ("a.jpg", "trip/b.jpg"):
        save_photo(tmp_path / "images" / name, gps_tags(0, 0))
    rows = [["image", "latitude", "longitude"], ["trip/b.jpg", -33.8, 151.2], ["a.jpg", -33.9, 151.1]]
    table = tmp_path / "p.csv"
    for count, header in ((3, rows[0]), (3, ["image", "northing", "easting"]), (2, rows[0])):
        with open(table, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows[1:count]])
        if count == 2:
            with pytest.raises(InputError, match=r"no position for .*a.jpg. Expected one row whose column image is a"):
                located(tmp_path / "images", csv=table)
        elif "latitude" in header:
            images, summary = located(tmp_path / "images", csv=table)
            assert summary == f"Positions: 2 from {table}."
            assert images.degrees.tolist() == [[-33.9, 151.1], [-33.8, 151.2]]
        else:
            images, summary = located(tmp_path / "images", csv=table)
            assert summary == f"Positions: 2 from {table} (UTM zone unknown)."
            assert images.utms.tolist() == [[151.1, -33.9], [151.2, -33.8]]


def build(folder, checkpoint, cwd, *more):
    return run_script("build_index.py", folder, "--index=index", f"--resume={checkpoint}", *SIZE, *more, cwd=cwd)


def database_of(datasets):
    return datasets / "tiny" / "images" / "test" / "database"


@pytest.mark.slow
@pytest.mark.parametrize("mode", SCRIPTS)
def test_the_files_are_those_of_an_evaluation(tmp_path, tiny_benchmark, checkpoints, mode):
    """Of all kinds of models, which are recognised, with the zone of the names, and in half precision."""
    datasets, more = tmp_path / "datasets", ["--descriptor_dtype=fp16"] if mode == "two_branch" else []
    shutil.copytree(tiny_benchmark, datasets)
    for path in database_of(datasets).iterdir():
        _, easting, northing, name, _ = path.name.split("@")
        path.rename(path.with_name(f"@{easting}@{northing}@32@V@@@{name}@.jpg"))
    flags = flags_for(datasets, checkpoints[mode], "--save_index=expected", "--exif_orientation", *more)
    assert run_script(SCRIPTS[mode], *flags, cwd=tmp_path).status == 0
    result = build(database_of(datasets), checkpoints[mode], tmp_path, "--positions=names", *more)
    assert result.status == 0, result.stderr
    assert "16 images" in result.stdout and "Positions: 16 from file names (UTM zone 32N)." in result.stdout
    assert "The index index is complete and holds 16 images." in result.stdout
    (tmp_path / "expected" / "calibration.json").unlink()  # which lies beside an index
    assert content(tmp_path / "index") == content(tmp_path / "expected")
    assert set(Index(tmp_path / "index").images.zones) == {32}


@pytest.mark.slow
def test_killed_and_repeated_it_gives_the_files_of_one_run(tmp_path, tiny_benchmark, checkpoints):
    """kill -9 after some chunks. The index lies in the folder of images, which is no obstacle."""
    images = tmp_path / "images"
    shutil.copytree(database_of(tiny_benchmark), images)
    flags = [images, f"--resume={checkpoints['float']}", *SIZE, "--infer_batch_size=1", "--append"]
    slowly = """
import time
from utils.retrieval import extraction
extraction.CHUNK_SIZE = 2
extraction.IndexWriter.append = lambda *a, append=extraction.IndexWriter.append: (time.sleep(0.1), append(*a))
"""
    running = start_script("build_index.py", *flags, "--index=images/index", cwd=tmp_path, prelude=slowly)
    manifest = images / "index" / "manifest.jsonl"
    while not (manifest.exists() and manifest.read_bytes().count(b"\n") >= 2):
        assert running.process.is_alive()
        time.sleep(0.002)
    running.process.kill()
    running.result()
    assert 2 <= manifest.read_bytes().count(b"\n") < 8, "killed too late to test anything"
    for index in ("images/index", "complete"):
        running = start_script("build_index.py", *flags, f"--index={index}", cwd=tmp_path, prelude=slowly)
        assert running.result().status == 0
    assert content(images / "index") == content(tmp_path / "complete")


@pytest.mark.slow
def test_images_of_the_whole_world_are_added_whatever_their_positions(tmp_path, checkpoints):
    checkpoint = checkpoints["hashing"]
    for name, place in (("a", (37.78, -122.41)), ("b", (48.86, 2.35)), ("c", (-16.8, 180.0))):
        save_photo(tmp_path / name / "IMG.jpg", gps_tags(*place))
    save_photo(tmp_path / "d" / "no position.jpg")
    save_photo(tmp_path / "e" / "@500000@4000000@33@S@.jpg")
    assert build(tmp_path / "a", checkpoint, tmp_path).status == 0
    before = content(tmp_path / "index")
    refused = build(tmp_path / "a", checkpoint, tmp_path)
    assert refused.status == 2 and "index already contains an index. Use --append" in refused.stderr
    refused = build(tmp_path / "b", checkpoint, tmp_path, "--append", "--ignore_exif_orientation")
    assert refused.status == 2 and "exif_orientation True (now False)" in refused.stderr
    assert content(tmp_path / "index") == before
    for count, name in enumerate("bcde", 2):
        result = build(tmp_path / name, checkpoint, tmp_path, "--append")
        assert result.status == 0 and f"is complete and holds {count} images" in result.stdout, result.stderr
    images = Index(tmp_path / "index").images
    assert images.zones.tolist() == [0, 0, 0, 0, 33]
    expected = [(37.78, -122.41), (48.86, 2.35), (-16.8, 180.0), (math.nan, math.nan), utm.to_latlon(5e5, 4e6, 33, "S")]
    np.testing.assert_allclose(images.degrees, expected, atol=1e-6)
    np.testing.assert_array_equal(images.utms, [[math.nan] * 2] * 4 + [[5e5, 4e6]])


@pytest.fixture
def refusal(tmp_path, checkpoints, monkeypatch, capsys):
    """refusal(*flags): the message with which the script refuses them, run in this process."""
    monkeypatch.chdir(tmp_path)

    def message_of(*flags):
        defaults = ["build_index.py", "--index=index", f"--resume={checkpoints['float']}", *SIZE]
        monkeypatch.setattr(sys, "argv", last_of_each([*defaults, *flags]))
        with pytest.raises((InputError, SystemExit)) as caught:
            build_index.main(parse(BuildIndexArguments, None))
        text = capsys.readouterr().err.splitlines()[-1] if caught.type is SystemExit else str(caught.value)
        assert "\n" not in text
        return text

    return message_of


def test_bad_input_is_refused_in_a_line(tmp_path, checkpoints, refusal):
    save_photo(tmp_path / "images" / "a.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "positions.csv").write_text("image,easting,northing\nb.jpg,1000,1000\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "b.jpg").write_bytes((tmp_path / "images/a.jpg").read_bytes()[:300])
    for folder, more, words in (
        ("nowhere", [], "No folder nowhere."),
        ("images/a.jpg", [], "images/a.jpg is a file. Expected a folder of images."),
        ("empty", [], "No images in empty. Looked for .jpg"),
        ("broken", ["--index=new"], "Cannot read the image broken/b.jpg"),
        ("images", ["--positions=exif"], "none of the 1 images in images has a GPS position"),
        ("images", ["--positions=names"], "no UTM position in the names of the 1 images in images"),
        ("images", ["--positions_csv=positions.csv"], "positions.csv has no position for images/a.jpg"),
        ("images", ["--positions_csv=missing.csv"], "--positions_csv: no file missing.csv."),
        ("images", ["--positions=none", "--positions_csv=positions.csv"], "Give either that or --positions."),
        ("images", ["--resume=nowhere.pth"], "--resume: no file nowhere.pth."),
        ("images", ["--resume=images/a.jpg"], "is not a checkpoint"),
        ("images", [f"--resume={checkpoints['salad']}"], "SALAD needs more than 64 patches"),
        ("images", ["--pretrained"], "Give one model, with --model NAME_OR_FILE"),
        ("images", ["--index=images"], "images contains a.jpg but no metadata.json"),
        ("images", ["--index=images", "--resume=images/a.jpg"], "no metadata.json"),  # known before the model is read
        (
            "images",
            [f"--resume={checkpoints['hashing']}", "--descriptor_dtype=int8"],
            "which hashing-only models do not",
        ),
    ):
        message = refusal(folder, *more)
        assert words in message, (folder, more, message)


def test_an_index_of_another_model_or_size_is_refused(tmp_path, checkpoints, refusal, monkeypatch):
    save_photo(tmp_path / "images" / "a.jpg")
    flags = ["images", "--index=index", "--append", f"--resume={checkpoints['float']}", *SIZE]
    monkeypatch.setattr(sys, "argv", list(map(str, ["build_index.py", *flags])))
    build_index.main(parse(BuildIndexArguments, None))  # as with --save_index DIR --append, the index need not exist
    for index, (more, words) in enumerate(
        (
            ([f"--resume={checkpoints['two_branch']}"], "hashing False (now True)"),
            (["--resize", 70, 56], "resize [56, 56] (now [70, 56])"),
            (["--descriptor_dtype=fp16"], "descriptor_dtype fp32 (now fp16)"),
        )
    ):
        shutil.copytree("index", str(index))  # the error may keep an index locked for a while
        message = refusal("images", "--append", f"--index={index}", *more)
        assert message.startswith(f"--append: the index {index} was built differently: ") and words in message
