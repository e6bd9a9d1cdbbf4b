"""The procedural city: repeatable bytes, both formats on disk, no shared places, clear errors."""
import csv
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import scenes, synthetic

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"cities": ("Alder", "Birch"), "places": 5, "val_places": 3, "test_places": 10, "photos_per_place": 2,
         "size": (64, 48), "seed": 19, "progress": False}  # a seed with headings below 100
FLAGS = ["--cities", "2", "--places", "5", "--val_places", "3", "--test_places", "10", "--photos_per_place", "2",
         "--size", "64", "48", "--seed", "19"]


def digest(folder):
    """One hash over the names and the bytes of all files under `folder`."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def run(arguments, hash_seed="0"):
    return subprocess.run([sys.executable, "-m", "datasets.synthetic", *map(str, arguments)], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})


def utm_positions(folder):
    """The UTM positions in the names of a folder: float [n, 2]."""
    names = sorted(path.name for path in folder.iterdir())
    return np.array([[float(text) for text in name.split("@")[1:3]] for name in names])


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    output = tmp_path_factory.mktemp("synthetic") / "city"
    synthetic.make_city(output, **SMALL)
    return output


def test_same_seed_same_bytes_in_another_process(city, tmp_path):
    (tmp_path / "again").mkdir()  # an empty folder may be there already
    result = run([tmp_path / "again", *FLAGS], hash_seed="7")
    assert result.returncode == 0, result.stderr
    assert digest(tmp_path / "again") == digest(city)


def test_other_seed_other_photos(city, tmp_path):
    synthetic.make_city(tmp_path / "other", **{**SMALL, "seed": 1})
    same = {p.read_bytes() for p in city.rglob("*.jpg")} & {p.read_bytes() for p in tmp_path.rglob("*.jpg")}
    assert not same


def test_a_photo_does_not_depend_on_what_else_is_drawn(city, tmp_path):
    synthetic.make_city(tmp_path / "more", **{**SMALL, "places": 7, "photos_per_place": 3})
    kept = {p.name: p.read_bytes() for p in (city / "gsv_cities").rglob("*.jpg")}
    more = {p.name: p.read_bytes() for p in (tmp_path / "more" / "gsv_cities").rglob("*.jpg")}
    assert kept.items() <= more.items()


def test_gsv_cities_format(city):
    root = city / "gsv_cities"
    listed, places = set(), 0
    assert sorted(p.name for p in (root / "Dataframes").iterdir()) == ["Alder.csv", "Birch.csv"]
    for table in (root / "Dataframes").iterdir():
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid"]
        ids = [int(row["place_id"]) for row in rows]
        assert ids == sorted(2 * list(range(max(ids) + 1)))
        places += max(ids) + 1
        for row in rows:
            assert row["city_id"] == table.stem
            assert 1 <= int(row["month"]) <= 12 and 0 <= int(row["northdeg"]) < 360
            listed.add(root / "Images" / row["city_id"] / (
                f"{row['city_id']}_{int(row['place_id']):07d}_{int(row['year']):04d}_{int(row['month']):02d}_"
                f"{int(row['northdeg']):03d}_{float(row['lat'])}_{float(row['lon'])}_{row['panoid']}.jpg"))
    assert places == 5
    assert listed == set((root / "Images").rglob("*.jpg"))
    for path in listed:
        assert Image.open(path).size == (64, 48)


@pytest.mark.parametrize("split, places", [("val", 3), ("test", 10)])
def test_benchmark_positions(city, split, places):
    folder = city / "synthetic" / "images" / split
    database, queries = utm_positions(folder / "database"), utm_positions(folder / "queries")
    assert len(database) == 2 * places and len(queries) == places
    everything = np.concatenate([database, queries])
    numbers = np.array([int(path.name.split("@")[3].split("_")[0]) for kind in ("database", "queries")
                        for path in sorted((folder / kind).iterdir())])
    apart = np.linalg.norm(everything[:, None] - everything[None], axis=2)
    same = numbers[:, None] == numbers[None]
    assert apart[same].max() <= 10 and apart[~same].min() > 30
    assert ((apart[len(database):, :len(database)] <= 25).sum(axis=1) == 2).all()


def test_positions_stay_apart_over_many_streets():
    positions = np.array([synthetic.place_position(place) for place in range(1000)])
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    assert apart[~np.eye(1000, dtype=bool)].min() >= synthetic.PLACE_SPACING


def test_training_and_benchmark_share_no_place():
    views = [scenes.draw_place(0, name, place, (32, 32)) for name in ("Alder", "Birch", "val", "test")
             for place in (0, 9)]
    walls = [next(s for s in scene.surfaces if s.kind == "wall").colour.tobytes() for scene in views]
    assert len(set(walls)) == len(walls)
    assert len({scene.style for scene in views}) == len(views)  # 0 and 9 lie in different streets
    with pytest.raises(ValueError, match="neither val nor test"):
        synthetic.make_city("unused", **{**SMALL, "cities": ("Alder", "test")})


def test_neighbours_share_their_street():
    first, neighbour = (scenes.draw_place(0, "Alder", place, (32, 32)) for place in (0, 1))
    assert first.style == neighbour.style and first.heading == neighbour.heading


@pytest.mark.parametrize("size", [(32, 32), (33, 57), (201, 64), (64, 201), (320, 240)])
def test_sizes(size):
    for place in (0, 8, 16, 24):
        pixels = scenes.render_photo(0, "Cedar", place, 0, size)
        assert pixels.dtype == np.uint8 and pixels.shape == (size[1], size[0], 3)
        assert pixels.std() > 10


@pytest.mark.parametrize("number", range(4))
def test_a_painted_mark_lies_where_the_camera_sees_it(number):
    scene, rng = scenes.draw_place(0, "Elm", 0, (160, 120)), np.random.default_rng(number)
    camera, _ = scenes.draw_camera(rng, scene, 1.0)
    white, black = scenes.planes((1, 1, 1)), scenes.planes((0, 0, 0))
    light = scenes.Light(white, black, np.zeros(3), black, black, 0.0, 0.0, "noon", None)
    texture = Image.new("RGBA", (200, 100))
    texture.paste((255, 0, 0, 255), (98, 48, 102, 52))
    wall = scenes.Surface("wall", texture.convert("RGBa"), None, np.array((-10.0, 7.0, 12.0)),
                             np.array((0.1, 0, 0)), np.array((0, -0.1, 0)))
    canvas = np.zeros((3, 120, 160), np.float32)
    scenes.paint(canvas, rng, wall, camera, light, [0] * 256, canvas)
    u, v, depth = camera.intrinsics @ camera.rotation @ (np.array((0.0, 2.0, 12.0)) - camera.position)
    rows, columns = np.nonzero(canvas[0] > 60)
    assert abs(columns.mean() + 0.5 - u / depth) < 0.7 and abs(rows.mean() + 0.5 - v / depth) < 0.7
    assert 0.7 < canvas[0].sum() / 255 / (0.4 * camera.intrinsics[0, 0] / depth) ** 2 < 1.5


def test_written_photo_is_the_rendered_one(city):
    folder = city / "synthetic" / "images" / "test" / "queries"
    path, = (p for p in folder.iterdir() if p.name.split("@")[3] == "0000004_02")
    drawn = scenes.render_photo(SMALL["seed"], "test", 4, 2, (64, 48), role="query").astype(float)
    assert np.abs(np.asarray(Image.open(path)) - drawn).mean() < 15  # what JPEG changes


def test_photos_of_a_place_differ_and_resemble():
    """Photos by day of one place lie nearer to each other than to those of other streets, in coarse colours."""
    def coarse(place, photo):
        pixels = Image.fromarray(scenes.render_photo(0, "val", place, photo, (64, 48), "database"))
        return np.asarray(pixels.resize((8, 6), Image.Resampling.BOX), float)
    drawn = np.array([[coarse(place, photo) for photo in range(4)] for place in range(0, 64, 8)])
    within = np.abs(drawn[:, :, None] - drawn[:, None]).mean((3, 4, 5))[:, ~np.eye(4, dtype=bool)]
    between = np.abs(drawn[:, None, :, None] - drawn[None, :, None]).mean((4, 5, 6))[~np.eye(8, dtype=bool)]
    assert within.min() > 1 and within.mean() < 0.95 * between.mean()


@pytest.mark.parametrize("flags, message", [
    (["--places", "0"], "places is 0"), (["--test_places", "-1"], "test_places is -1"),
    (["--size", "31", "64"], "31 x 64"), (["--cities", "99"], "--cities"),
    (["--cities", "9", "--places", "3"], "9 cities"), (["--seed", "-1"], "seed is -1"),
    (["--places", "many"], "--places")])
def test_bad_arguments(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        synthetic.main([str(tmp_path / "city"), *flags])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_output_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = run([tmp_path, *FLAGS])
    assert result.returncode == 2 and len(result.stderr.splitlines()) <= 2 and "not an empty folder" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_output_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    result = run([tmp_path / "file" / "city", *FLAGS])
    assert result.returncode == 2 and len(result.stderr.splitlines()) <= 2 and "Traceback" not in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error, status", [(OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)])
def test_nothing_is_left_of_a_run_that_broke_off(error, status, tmp_path, monkeypatch, capsys):
    saved = []

    def break_off(photo, path):
        saved.append(path)
        if len(saved) == 7:
            raise error

    monkeypatch.setattr(synthetic, "save", break_off)
    assert synthetic.main([str(tmp_path / "city"), *FLAGS]) == status
    assert not list(tmp_path.iterdir()) and "Traceback" not in capsys.readouterr().err


def test_contact_sheet(tmp_path):
    synthetic.contact_sheet(tmp_path / "sheet.png", places=range(2), photos_per_place=3, size=(40, 32))
    assert Image.open(tmp_path / "sheet.png").size == (120, 64)
