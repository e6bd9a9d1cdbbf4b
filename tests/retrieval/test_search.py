"""search.py end to end: an index of the tiny benchmark, single photos, phone images, folders, patterns, JSON."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import utm
from helpers.evaluations import SCRIPTS, SIZE, flags_for
from helpers.photos import gps_tags, save_photo
from helpers.processes import run_here, run_script
from PIL import Image

from datasets.layouts import find_images
from model import InputError
from search import warn_of_large_images
from utils.retrieval.matches import Match

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def indexes(tiny_benchmark, checkpoints, tmp_path_factory):
    """{mode: index folder}."""
    folder = tmp_path_factory.mktemp("indexes")
    images = tiny_benchmark / "tiny" / "images" / "test" / "database"
    for mode in SCRIPTS:
        flags = [images, f"--index={folder / mode}", f"--resume={checkpoints[mode]}", *SIZE]
        result = run_script("build_index.py", *flags, cwd=folder)
        assert result.status == 0, result.stderr
    return {mode: folder / mode for mode in SCRIPTS}


@pytest.mark.parametrize("mode", SCRIPTS)
def test_a_database_image_finds_itself(tmp_path, tiny_benchmark, indexes, mode):
    photos = sorted((tiny_benchmark / "tiny" / "images" / "test" / "database").iterdir())[3:5]
    flags = [f"--index={indexes[mode]}", "--results=3", "--save_pictures=pictures", "--device=cpu"]
    result = run_script("search.py", *photos, *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "3"] * 2
    for photo, first in zip(photos, rows[::3], strict=True):
        assert first[5] == str(photo) and float(first[1]) == pytest.approx(0, abs=1e-3)
        assert first[2] == ("hamming" if mode == "hashing" else "l2")
        assert [f"{float(number):.2f}" for number in first[3:5]] == photo.name.split("@")[1:3]
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == 2
    assert Image.open(pictures[0]).size[0] > Image.open(pictures[0]).size[1]


def test_a_match_whose_file_is_gone_is_drawn_as_an_empty_frame(tmp_path, tiny_benchmark, checkpoints):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_benchmark, copy)
    result = run_script("eval.py", *flags_for(copy, checkpoints["float"], "--save_index=index"), cwd=tmp_path)
    assert result.status == 0, result.stderr
    shutil.rmtree(copy)
    photo = next((tiny_benchmark / "tiny" / "images" / "test" / "queries").iterdir())
    result = run_script("search.py", "--index=index", photo, "--save_pictures=pictures", "--device=cpu", cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_results_are_printed_before_pictures_whose_names_are_shortened(tmp_path, tiny_benchmark, indexes):
    photo = next((tiny_benchmark / "tiny" / "images" / "test" / "queries").iterdir())
    long = tmp_path / f"{'é' * 125}.jpg"  # 254 bytes
    shutil.copy(photo, long)
    flags = [f"--index={indexes['float']}", "--save_pictures=pictures", "--device=cpu", long]
    result = run_script("search.py", *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == f"001_{'é' * 119}.png" and f"Picture: pictures/{picture.name}" in result.stdout
    picture.unlink()
    picture.mkdir()
    result = run_script("search.py", *flags, cwd=tmp_path)
    assert result.status == 2 and "is a folder. Expected a regular file" in result.stderr
    assert result.stdout.count("\n") > 5


def test_an_index_of_huge_images_is_a_warning(caplog):
    warn_of_large_images((322, 322))
    warn_of_large_images((644, 644))
    assert not caplog.messages
    warn_of_large_images((4480, 4480))
    assert "built with images of 4480 x 4480 pixels" in caplog.text


@pytest.fixture(scope="module")
def calibrated(tiny_benchmark, checkpoints, tmp_path_factory):
    """{mode: a folder with `index`, which an evaluation has saved}."""
    folders = {mode: tmp_path_factory.mktemp(f"calibrated_{mode}") for mode in SCRIPTS}
    for mode, folder in folders.items():
        result = run_script(
            SCRIPTS[mode], *flags_for(tiny_benchmark, checkpoints[mode], "--save_index=index"), cwd=folder
        )
        assert result.status == 0, result.stderr
        (written,) = folder.glob("logs/eval/*/calibration.json")
        content = json.loads(written.read_text())
        assert (folder / "index" / "calibration.json").read_text() == written.read_text()
        # The model is not trained, so that no distance may reach a precision. This is what one that was may find:
        content["first_match"]["at_precision"]["99"] = {"distance": 1e-3, "radius": 12.34, "accepted": 0.5}
        (folder / "index" / "calibration.json").write_text(json.dumps(content))
    return folders


@pytest.mark.parametrize("mode", SCRIPTS)
def test_images_are_accepted_or_unknown_by_the_threshold_of_an_evaluation(calibrated, tiny_benchmark, mode):
    split, cwd = tiny_benchmark / "tiny" / "images" / "test", calibrated[mode]
    known, unknown = (min((split / name).iterdir()) for name in ("database", "queries"))
    flags = ["search.py", known, unknown, "--index=index", "--device=cpu", "--results=2"]
    result = run_script(*flags, "--save_pictures=pictures", cwd=cwd)
    assert result.status == 0, result.stderr
    lines, metric = result.stdout.splitlines(), "hamming" if mode == "hashing" else "l2"
    line = (
        f"First matches up to 0.0010 ({metric}) are accepted: of 5 queries, 99 % are right in index/calibration.json."
    )
    assert line in lines and f"{known}: accepted" in lines and f"{unknown}: unknown place" in lines
    place = "Estimated place: 500000.00 E 6950000.00 N +- 12.3 m, in 90% of cases"
    assert [text for text in lines if text.startswith("Estimated")] == [place]
    found = json.loads(run_script(*flags, "--json", cwd=cwd).stdout)
    position = {"easting": 500000.0, "northing": 6950000.0, "latitude": None, "longitude": None}
    assert [query["place"] for query in found["queries"]] == [{**position, "radius": 12.34, "matches": 2}, None]
    assert found["accept"] == {"max_distance": 1e-3, "source": "index/calibration.json"}
    assert [query["accepted"] for query in found["queries"]] == [True, False]
    assert all(len(query["matches"]) == 2 for query in found["queries"])
    (written,) = cwd.glob("logs/eval/*/results.json")
    for more, accepted in (
        (["--max_distance=1e3"], [True, True]),
        ([f"--accept={written}", "--accept_precision=100"], None),
    ):
        found = json.loads(run_script(*flags, "--json", *more, cwd=cwd).stdout)
        limit = found["accept"]["max_distance"]
        firsts = [query["matches"][0]["distance"] for query in found["queries"]]
        expected = [limit is not None and distance <= limit for distance in firsts]
        assert [query["accepted"] for query in found["queries"]] == expected == (accepted or expected)


def test_a_threshold_of_other_distances_is_refused(calibrated, tiny_benchmark):
    photo = min((tiny_benchmark / "tiny/images/test/queries").iterdir())
    (other,) = calibrated["hashing"].glob("logs/eval/*/calibration.json")
    for flags, words in (
        ([f"--accept={other}"], ["calibrated on other distances: weights_sha256", "metric hamming (now l2)"]),
        (["--accept=nowhere.json"], ["Cannot read nowhere.json"]),
        (["--max_distance=1", "--accept_precision=95"], ["--max_distance is the threshold"]),
        (["--accept_precision=98"], ["invalid choice"]),
        (["--max_distance=-1"], ["'-1'"]),
    ):
        result = run_here("search.py", photo, "--index=index", "--device=cpu", *flags, cwd=calibrated["two_branch"])
        assert result.status == 2 and all(word in result.stderr for word in words), (flags, result.stderr)


@pytest.fixture(scope="module")
def tours(tmp_path_factory):
    """A dataset of 12 places in a row, with queries that go the other way."""
    datasets = tmp_path_factory.mktemp("tours")
    for folder, places in (("database", range(12)), ("queries", range(10, 2, -1))):
        target = datasets / "tiny" / "images" / "test" / folder
        target.mkdir(parents=True)
        for frame, place in enumerate(places):
            image = pattern(chr(ord("a") + place)).resize((120, 90) if folder == "database" else (100, 75))
            image.save(target / f"@{500000 + 50 * place}.00@6950000.00@tour_{frame}@.jpg")
    return datasets


@pytest.mark.parametrize("mode", SCRIPTS)
def test_sequences_in_evaluations_and_searches(tours, checkpoints, tmp_path, mode):
    flags = flags_for(tours, checkpoints[mode], "--save_index=index", "--sequence=3", "--recall_values", 1, 2)
    result = run_script(SCRIPTS[mode], *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    (folder,) = (tmp_path / "logs" / "eval").iterdir()
    results = json.loads((folder / "results.json").read_text())
    metric = "hamming_mean3" if mode == "hashing" else "l2_mean3"
    *_, single, last = results["stage_recalls"]
    assert last == "Sequences of 3" and results["stage_recalls"][last] == results["recalls"]
    assert single in ("Float", "Binary", "Re-ranked") and "sequences" in results["seconds"]
    assert results["first_match"]["metric"] == metric
    page = (folder / "report.html").read_text()
    assert f">{single}</th>" in page and ">Sequences of 3</th>" in page
    queries = tours / "tiny" / "images" / "test" / "queries"
    found = run_script("search.py", queries, "--index=index", "--sequence=3", "--json", "--device=cpu", cwd=tmp_path)
    assert found.status == 0, found.stderr
    with open(folder / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rank"] == "1"]
    firsts = {Path(query["image"]).name: query["matches"][0] for query in json.loads(found.stdout)["queries"]}
    for row in rows:
        first = firsts[Path(row["query"]).name]
        assert (
            Path(first["path"]).name == Path(row["database_photo"]).name and first["metric"] == row["metric"] == metric
        )
        assert first["distance"] == pytest.approx(float(row["distance"]), rel=1e-5)
    table = run_script("search.py", queries, "--index=index", "--sequence=3", "--device=cpu", cwd=tmp_path)
    assert len({line.index("/tiny/") for line in table.stdout.splitlines() if f" {metric} " in line}) == 1


def test_images_without_an_order_are_no_sequence(phone, tours, checkpoints, tmp_path):
    photo = phone / "queries" / "trip [1]" / "a upright.png"
    result = run_here("search.py", photo, "--index=index", "--sequence=2", "--device=cpu", cwd=phone)
    assert result.status == 2 and "--sequence needs frames of recordings: queries whose names" in result.stderr


def test_wrong_input(tmp_path, tiny_benchmark, indexes, checkpoints):
    photo = next((tiny_benchmark / "tiny" / "images" / "test" / "queries").iterdir())
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:100])
    for flags, words in (
        ([f"--index={tmp_path}", photo], ["No index in"]),
        ([f"--index={indexes['float']}", tmp_path / "missing.jpg"], ["missing.jpg"]),
        ([f"--index={indexes['float']}", tmp_path / "broken.jpg"], ["broken.jpg"]),
        ([f"--index={indexes['float']}", photo, f"--resume={checkpoints['two_branch']}"], ["--hashing"]),
        ([f"--index={indexes['float']}", photo, "--resume=nowhere.pth"], ["nowhere.pth", "--model"]),
        ([f"--index={indexes['float']}"], ["IMAGE"]),
        ([f"--index={indexes['float']}", photo, "--results=0"], ["'0'"]),
        ([f"--index={indexes['float']}", "*.png"], ["No images match *.png"]),
    ):
        result = run_here("search.py", *flags, "--device=cpu", cwd=tmp_path)
        assert result.status == 2 and all(word in result.stderr for word in words), (flags, result.stderr)
        assert "Traceback" not in result.stderr


PLACES = {"a": (37.78, -122.41), "b": (37.781, -122.411), "c": None}


def pattern(name):
    """An image that differs from those of other names, and from itself when it is turned."""
    values = np.random.default_rng(ord(name)).uniform(0, 255, (3, 4, 3)).astype(np.uint8)
    return Image.fromarray(values).resize((120, 90), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def phone(checkpoints, tmp_path_factory):
    """A folder with `index`, of the images in `photos`, and their upright twins in `queries`."""
    folder = tmp_path_factory.mktemp("phone")
    for name, orientation in zip(PLACES, (6, 3, 8), strict=True):
        tags = gps_tags(*PLACES[name]) if PLACES[name] else None
        save_photo(folder / "photos" / f"{name}.png", tags, orientation, pattern(name))
        save_photo(folder / "queries" / "trip [1]" / f"{name} upright.png", image=pattern(name))
    flags = ["photos", "--index=index", f"--resume={checkpoints['two_branch']}", *SIZE]
    result = run_script("build_index.py", *flags, cwd=folder)
    assert result.status == 0 and "Positions: 2 from EXIF GPS, 1 unknown." in result.stdout
    return folder


def search_json(*flags, cwd):
    result = run_script("search.py", "--index=index", *flags, "--device=cpu", "--json", cwd=cwd)
    assert result.status == 0 and "The index index holds 3 images." in result.stderr
    return json.loads(result.stdout)


def test_a_turned_image_is_found_by_its_upright_twin_with_its_position_as_json(phone, checkpoints):
    found = search_json("queries", "--results=2", "--save_pictures=pictures", cwd=phone)
    assert found["index"] == {"folder": "index", "images": 3}
    model = {"backbone": "vit-tiny", "aggregation": "gem", "hashing": True, "rerank": True, "resize": [56, 56]}
    assert found["model"] == {**model, "weights": str(checkpoints["two_branch"])}
    assert [query["image"] for query in found["queries"]] == [f"queries/trip [1]/{name} upright.png" for name in PLACES]
    for i, (name, query) in enumerate(zip(PLACES, found["queries"], strict=True)):
        first, second = query["matches"]
        assert (first["rank"], second["rank"]) == (1, 2) and first["metric"] == "l2"
        assert first["path"] == str(phone / "photos" / f"{name}.png")
        assert first["distance"] == pytest.approx(0, abs=1e-3) and second["distance"] > 1e-2
        assert query["picture"] == f"pictures/{i + 1:03d}_{name} upright.png" and (phone / query["picture"]).exists()
        assert [first[field] for field in ("easting", "northing", "utm_zone")] == [None] * 3
        degrees = first["latitude"], first["longitude"]
        assert degrees == (pytest.approx(PLACES[name], abs=1e-8) if PLACES[name] else (None, None))
    refused = run_script("search.py", "--index=index", "photos/a.png", "--ignore_exif_orientation", cwd=phone)
    assert refused.status == 2 and "queries are turned as the images of the index were" in refused.stderr


def test_the_table_has_columns_for_what_is_known(phone, tmp_path, checkpoints):
    result = run_script("search.py", "--index=index", "queries/*/*.png", "--device=cpu", cwd=phone)
    assert result.status == 0, result.stderr
    tables = [block.splitlines()[1:] for block in result.stdout.strip().split("\n\n")[1:]]
    assert [len(table) for table in tables] == [5, 5, 5]
    assert tables[0][4].startswith("Estimated place: 37.780000, -122.410000")
    assert tables[0][0].split() == ["rank", "distance", "latitude", "longitude", "image"]
    assert tables[0][1].split()[3:] == ["37.780000", "-122.410000", f"{phone / 'photos' / 'a.png'}"]
    assert tables[2][1].split()[3:5] == ["unknown"] * 2
    flags = [phone / "photos", "--index=index", f"--resume={checkpoints['float']}", *SIZE, "--positions=none"]
    assert run_script("build_index.py", *flags, cwd=tmp_path).status == 0
    result = run_script("search.py", "--index=index", phone / "photos/a.png", "--device=cpu", cwd=tmp_path)
    lines = result.stdout.strip().splitlines()
    assert lines[3].split() == ["rank", "distance", "image"] and "unknown" not in result.stdout
    assert "Estimated" not in result.stdout
    assert lines[4].split()[2:] == ["l2", str(phone / "photos/a.png")]


WORLD = {
    **{"San Francisco": (37.7749, -122.4194), "Paris": (48.8566, 2.3522)},
    **{"Svalbard, west of 21 E": (78.2, 20.9995), "Svalbard, east of it": (78.2, 21.0005)},
    **{"Fiji, west of 180": (-16.8, 179.9999), "Fiji, east of it": (-16.8, -179.9999), "Fiji, at 180": (-16.8, 180.0)},
}


def test_the_whole_world_in_one_index_and_metres_of_names_beside_it(tmp_path, checkpoints):
    names = dict(zip("abcdefg", WORLD, strict=True))
    for letter, place in names.items():
        save_photo(tmp_path / "photos" / f"{place}.png", gps_tags(*WORLD[place]), image=pattern(letter))
        save_photo(tmp_path / "queries" / f"{letter}.png", image=pattern(letter))
    easting, northing, *_ = utm.from_latlon(-33.8568, 151.2153)
    sydney = f"@{easting:.2f}@{northing:.2f}@56@H@.png"
    save_photo(tmp_path / "photos" / sydney, image=pattern("h"))
    save_photo(tmp_path / "queries" / "h.png", image=pattern("h"))
    flags = ["photos", "--index=index", f"--resume={checkpoints['two_branch']}", *SIZE]
    result = run_script("build_index.py", *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert "Positions: 1 from file names (UTM zone 56S), 7 from EXIF GPS." in result.stdout
    result = run_script("search.py", "--index=index", "queries", "--results=1", "--device=cpu", "--json", cwd=tmp_path)
    assert result.status == 0, result.stderr
    found = [query["matches"][0] for query in json.loads(result.stdout)["queries"]]
    assert [match["path"] for match in found] == [
        str(tmp_path / "photos" / name) for name in (*(f"{place}.png" for place in WORLD), sydney)
    ]
    for match, place in zip(found, [*WORLD.values(), (-33.8568, 151.2153)], strict=True):
        assert (match["latitude"], match["longitude"]) == pytest.approx(place, abs=1e-6)
    metres = {"easting": pytest.approx(easting, abs=0.01), "northing": pytest.approx(northing, abs=0.01)}
    assert {key: found[-1][key] for key in ("easting", "northing", "utm_zone")} == {**metres, "utm_zone": "56S"}
    result = run_script("search.py", "--index=index", "queries/h.png", "--results=8", "--device=cpu", cwd=tmp_path)
    header, first, *_ = result.stdout.strip().splitlines()[3:]
    assert header.split()[2:] == ["easting", "northing", "latitude", "longitude", "image"]
    assert first.split()[3:7] == [f"{easting:.2f}", f"{northing:.2f}", "-33.856800", "151.215300"]


def test_the_pictures_show_turned_images_upright(phone):
    result = run_script(
        *["search.py", "queries/trip [1]/a upright.png", "--index=index", "--results=1", "--save_pictures=upright"],
        "--device=cpu",
        cwd=phone,
    )
    assert result.status == 0, result.stderr
    with Image.open(phone / "upright" / "001_a upright.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    coloured = np.ptp(pixels, axis=2) > 30  # not the text, the frames, nor the background
    left, right = (np.argwhere(half) for half in np.split(coloured, [coloured.shape[1] // 2], axis=1))
    sizes = [np.ptp(half, axis=0) + 1 for half in (left, right)]
    assert sizes[0] == pytest.approx(sizes[1], abs=4) and sizes[1][1] / sizes[1][0] == pytest.approx(4 / 3, rel=0.05)


def test_the_captions_of_a_match():
    match = Match(2, "a.jpg", 0.123456, "l2", 551955.2, 4181569.9, "10N", 37.78, -122.41)
    assert match.captions == ["2: 0.1235", "551955 E  4181570 N", "37.78000, -122.41000"]
    assert match._replace(easting=None, latitude=None).captions == ["2: 0.1235"]


def test_files_folders_and_patterns(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.JPG", "notes.txt", "c.webp", "sub/d.png", "sub/deep/e.jpeg", "[x]*.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for names, expected in (
        (["b.jpg", "a.JPG"], ["b.jpg", "a.JPG"]),
        (["sub"], ["sub/d.png", "sub/deep/e.jpeg"]),
        (["sub/*", "b.jpg"], ["sub/d.png", "b.jpg"]),
        (["sub/**"], ["sub/d.png", "sub/deep/e.jpeg"]),
        (["**/*.jp*g"], ["[x]*.jpg", "b.jpg", "sub/deep/e.jpeg"]),
        (["[ab].*"], ["a.JPG", "b.jpg"]),
        (["[x]*.jpg"], ["[x]*.jpg"]),
        (["notes.txt"], ["notes.txt"]),  # reading it says what is wrong
    ):
        assert find_images(names) == expected, names
    assert not caplog.messages
    assert find_images(["?.*"]) == ["a.JPG", "b.jpg"]
    assert caplog.messages == ["1 files in ?.* are ignored, such as c.webp. Convert them to JPEG or PNG. (1 .webp)"]
    with pytest.raises(InputError, match=r"Cannot read the image missing\.jpg: there is no such file"):
        find_images(["b.jpg", "missing.jpg"])
    (tmp_path / "empty").mkdir()
    for name, words in (("*.tif", "No images match"), ("emp*", "No images match"), ("empty", "No images in")):
        with pytest.raises(InputError, match=words):
            find_images([name])
