"""The procedural city: repeatable bytes, both formats on disk, no shared places, clear errors."""

import csv
import hashlib
import itertools
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
from helpers.processes import run_python, start_script
from PIL import Image, ImageDraw

from datasets.synthetic import CityConfig, Domain, PlaceId, contact_sheet, draw_photo, draw_place, make_city
from datasets.synthetic.__main__ import main
from datasets.synthetic.camera import draw_camera
from datasets.synthetic.city import PLACE_SPACING, place_position
from datasets.synthetic.config import CHOICES
from datasets.synthetic.drawing import Box, fill_rounded_rectangle, planes
from datasets.synthetic.interior import draw_decor
from datasets.synthetic.light import Light, draw_indoor_light, draw_light
from datasets.synthetic.rendering import Shot, bilinear, paint
from datasets.synthetic.scene import STEP, Surface
from datasets.synthetic.style import draw_style
from model import InputError
from model.files import try_lock
from utils.runtime.signals import Stopped

COUNTS = {"places": 5, "val_places": 3, "test_places": 10, "photos_per_place": 2}
SMALL = CityConfig(cities=("Alder", "Birch"), size=(64, 48), seed=19, **COUNTS)  # a seed with headings below 100
FLAGS = ["--cities=2", "--size", "64", "48", "--seed=19", *(f"--{name}={count}" for name, count in COUNTS.items())]


def digest(folder: Path) -> str:
    """One hash over the names and the bytes of all files under `folder`."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def render(place: PlaceId, number: int, size: tuple[int, int], role: str = "train") -> np.ndarray:
    """The pixels of one photo: uint8 [H, W, 3]."""
    return draw_photo(draw_place(place, size), number, role).pixels


def utm_positions(folder: Path) -> np.ndarray:
    """The UTM positions in the names of a folder: float [n, 2]."""
    names = sorted(path.name for path in folder.iterdir())
    return np.array([[float(text) for text in name.split("@")[1:3]] for name in names])


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("synthetic") / "city"
    make_city(output, SMALL, progress=False)
    return output


def test_same_seed_same_bytes_in_another_process_without_heavy_packages(city, tmp_path):
    (tmp_path / "again").mkdir()  # the folder may exist if it is empty
    code = "import datasets.unified.__main__, datasets.synthetic.__main__ as synthetic\nsynthetic.main()\n"
    result = run_python(code + "print(*sys.modules)", "again", *FLAGS, cwd=tmp_path, env={"PYTHONHASHSEED": "7"})
    assert result.status == 0, result.stderr
    assert digest(tmp_path / "again") == digest(city)
    assert not {"torchvision", "faiss", "sklearn", "matplotlib"} & set(result.stdout.split())


def test_a_photo_does_not_depend_on_what_else_is_drawn(city, tmp_path):
    make_city(tmp_path / "more", replace(SMALL, places=7, photos_per_place=3), progress=False)
    few = {p.name: p.read_bytes() for p in (city / "gsv_cities").rglob("*.jpg")}
    more = {p.name: p.read_bytes() for p in (tmp_path / "more" / "gsv_cities").rglob("*.jpg")}
    assert few.items() <= more.items()


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
            assert 1 <= int(row["month"]) <= 12
            assert 0 <= int(row["northdeg"]) < 360
            taken = f"{int(row['year']):04d}_{int(row['month']):02d}_{int(row['northdeg']):03d}"
            position = f"{float(row['lat'])}_{float(row['lon'])}"
            name = f"{row['city_id']}_{int(row['place_id']):07d}_{taken}_{position}_{row['panoid']}.jpg"
            listed.add(root / "Images" / row["city_id"] / name)
    assert places == 5
    assert listed == set((root / "Images").rglob("*.jpg"))
    for path in listed:
        assert Image.open(path).size == (64, 48)


@pytest.mark.parametrize("split, places", [("val", 3), ("test", 10)])
def test_benchmark_positions(city, split, places):
    folder = city / "synthetic" / "images" / split
    database, queries = utm_positions(folder / "database"), utm_positions(folder / "queries")
    assert len(database) == 2 * places
    assert len(queries) == places
    everything = np.concatenate([database, queries])
    paths = [path for kind in ("database", "queries") for path in sorted((folder / kind).iterdir())]
    numbers = np.array([int(path.name.split("@")[3].split("_")[0]) for path in paths])
    distances = np.linalg.norm(everything[:, None] - everything[None], axis=2)
    same = numbers[:, None] == numbers[None]
    assert distances[same].max() <= 10
    assert distances[~same].min() > 30
    assert ((distances[len(database) :, : len(database)] <= 25).sum(axis=1) == 2).all()


def test_positions_stay_apart_over_many_streets():
    positions = np.array([place_position(number) for number in range(1000)])
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    assert distances[~np.eye(1000, dtype=bool)].min() >= PLACE_SPACING


def test_a_written_photo_is_the_drawn_one(city):
    folder = city / "synthetic" / "images" / "test" / "queries"
    (path,) = (p for p in folder.iterdir() if p.name.split("@")[3] == "0000004_02")
    drawn = render(PlaceId(SMALL.seed, "test", 4), 2, SMALL.size, role="query").astype(float)
    assert np.abs(np.asarray(Image.open(path)) - drawn).mean() < 15  # JPEG changes this much


def test_training_and_benchmark_share_no_place():
    names = ("Alder", "Birch", "val", "test")
    scenes = [draw_place(PlaceId(0, name, number), (32, 32)) for name in names for number in (0, 9)]
    walls = [next(s for s in scene.surfaces if s.kind == "wall").colour.tobytes() for scene in scenes]
    assert len(set(walls)) == len(walls)
    assert len({scene.style for scene in scenes}) == len(scenes)  # 0 and 9 lie in different streets


def test_neighbours_share_their_street():
    first, neighbour = (draw_place(PlaceId(0, "Alder", number), (32, 32)) for number in (0, 1))
    assert first.style == neighbour.style
    assert first.heading == neighbour.heading


@pytest.mark.parametrize("size", [(32, 32), (33, 57), (201, 64), (64, 201), (320, 240)])
def test_sizes(size):
    for number in (0, 8, 16, 24):
        pixels = render(PlaceId(0, "Cedar", number), 0, size)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (size[1], size[0], 3)
        assert pixels.std() > 10


@pytest.mark.parametrize("lens", ["straight", "fisheye"])
@pytest.mark.parametrize("number", range(4))
def test_a_painted_mark_lies_where_the_camera_sees_it(number, lens):
    rng = np.random.default_rng(number)
    camera = draw_camera(rng, draw_place(PlaceId(0, "Elm", 0), (160, 120), Domain(lenses=(lens,))), 1.0)
    texture = Image.new("RGBA", (200, 100))
    texture.paste((255, 0, 0, 255), (98, 48, 102, 52))
    origin, right, down = np.array((-10.0, 7.0, 12.0)), np.array((0.1, 0, 0)), np.array((0, -0.1, 0))
    colour = texture.convert("RGBa")
    wall = Surface(kind="wall", colour=colour, label=None, origin=origin, right=right, down=down)
    black = planes((0, 0, 0))
    sky = {"sun": black, "zenith": black, "horizon": black, "direction": np.zeros(3), "weather": "noon", "leaf": None}
    light = Light(ambient=planes((1, 1, 1)), dark=0.0, haze=0.0, **sky)
    canvas = np.zeros((3, 120, 160), np.float32)
    paint(canvas, rng, wall, shot=Shot(camera=camera, light=light, glow=[0] * 256, lamps=np.zeros_like(canvas)))
    direction = camera.rotation @ (np.array((0.0, 2.0, 12.0)) - camera.position)
    if lens == "straight":
        u, v, depth = camera.intrinsics @ direction
        x, y, metre = u / depth, v / depth, camera.intrinsics[0, 0] / depth
    else:
        x, y = fisheye_pixel(camera.fisheye, direction)
        metre = camera.fisheye.focal / np.linalg.norm(direction)
    weights = canvas[0] / canvas[0].sum()
    assert abs((weights.sum(0) * (np.arange(160) + 0.5)).sum() - x) < 0.7
    assert abs((weights.sum(1) * (np.arange(120) + 0.5)).sum() - y) < 0.7
    assert 0.6 < canvas[0].sum() / 255 / (0.4 * metre) ** 2 < 1.5


def fisheye_pixel(fisheye, direction):
    """Where an equidistant lens shows a direction (right, up, ahead)."""
    right, up, ahead = direction / np.linalg.norm(direction)
    angle, turn = math.acos(ahead), math.atan2(up, right)
    distance = fisheye.focal * angle
    return fisheye.centre[0] + distance * math.cos(turn), fisheye.centre[1] - distance * math.sin(turn)


def test_a_fisheye_lens_projects_to_where_its_pixels_look():
    scene = draw_place(PlaceId(0, "Elm", 0), (160, 120), Domain(lenses=("fisheye",)))
    fisheye = draw_camera(np.random.default_rng(0), scene, 1.0).fisheye
    for row, column in ((0, 80), (60, 80), (100, 30), (119, 159)):
        direction = fisheye.directions[:, row, column].astype(float)
        assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-6)
        assert fisheye_pixel(fisheye, direction) == pytest.approx((column + 0.5, row + 0.5), abs=1e-3)
        seen = fisheye.project(3.0 * direction)
        assert (seen.x, seen.y) == pytest.approx((column + 0.5, row + 0.5), abs=1e-3)
        assert seen.depth == pytest.approx(3.0 * direction[2])
    ahead = fisheye.project(np.array((0.0, 0.0, 4.0)))
    assert (ahead.x, ahead.y, ahead.scale) == pytest.approx((*fisheye.centre, fisheye.focal / 4), abs=1e-6)
    for degrees in (1, 45, 80):  # a millimetre up, where the point lies to the right
        point = 4 * np.array((math.sin(math.radians(degrees)), 0, math.cos(math.radians(degrees))))
        low, high = fisheye.project(point), fisheye.project(point + (0, 0.001, 0))
        assert math.hypot(high.x - low.x, high.y - low.y) / 0.001 == pytest.approx(low.scale, rel=1e-3)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4)])
def test_bilinear_interpolation(shape):
    texture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    s, t = np.random.default_rng(1).uniform(-1, (shape[1], shape[0]), (200, 2)).T
    found = bilinear(texture, s, t)
    for i in range(200):
        expected = 0
        for row in range(shape[0]):
            for column in range(shape[1]):
                weight = max(0, 1 - abs(t[i] - row)) * max(0, 1 - abs(s[i] - column))
                expected = expected + weight * texture[row, column].astype(float)
        np.testing.assert_allclose(found[i], expected, atol=1e-3)


@pytest.mark.parametrize("lens", ["straight", "fisheye"])
def test_nothing_behind_a_camera_is_seen(lens):
    scene = draw_place(PlaceId(0, "Elm", 0), (160, 120), Domain(lenses=(lens,)))
    camera = draw_camera(np.random.default_rng(0), scene, 0.0)
    ahead = camera.rotation.T @ np.array((0.3, 0.2, 5.0))
    assert camera.project(camera.position + ahead) is not None
    assert camera.project(camera.position - ahead) is None


def test_photos_of_a_place_differ_and_resemble():
    """Photos by day of one place are more alike than those of other streets, in coarse colours."""

    def coarse(number: int, photo: int) -> np.ndarray:
        pixels = Image.fromarray(render(PlaceId(0, "val", number), photo, (64, 48), "database"))
        return np.asarray(pixels.resize((8, 6), Image.Resampling.BOX), float)

    drawn = np.array([[coarse(number, photo) for photo in range(4)] for number in range(0, 64, 8)])
    within = np.abs(drawn[:, :, None] - drawn[:, None]).mean((3, 4, 5))[:, ~np.eye(4, dtype=bool)]
    between = np.abs(drawn[:, None, :, None] - drawn[None, :, None]).mean((4, 5, 6))[~np.eye(8, dtype=bool)]
    assert within.min() > 1
    assert within.mean() < 0.95 * between.mean()


def test_contact_sheet(tmp_path):
    config = CityConfig(size=(40, 32))
    contact_sheet(tmp_path / "sheet.png", config)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (8 * 32, 8 * 40, 3)
    assert (sheet[32:64, 80:120] == render(PlaceId(0, "Alder", 1), 2, (40, 32))).all()


NIGHT = Domain(windows=("ribbon",), roofs=("hip", "mansard"), views=("along",), lights=("night",), months=(12, 1))


def test_a_domain_restricts_streets_and_photos():
    scenes = [draw_place(PlaceId(0, "Elm", number), (32, 32), NIGHT) for number in range(0, 80, 8)]
    assert all(scene.style.along for scene in scenes)
    assert {kind for scene in scenes for kind in scene.style.windows} == {"ribbon"}
    assert {kind for scene in scenes for kind in scene.style.roofs} == {"hip", "mansard"}
    assert {draw_photo(scene, number).month for scene in scenes for number in range(2)} == {12, 1}


@pytest.mark.parametrize(
    "lights, hard, expected",
    [
        (("noon", "fog"), 0.0, {"noon"}),
        (("noon", "fog"), 1.0, {"fog"}),
        (("fog", "snow"), 0.0, {"fog", "snow"}),
        (("noon",), 1.0, {"noon"}),
    ],
)
def test_a_domain_restricts_the_light(lights, hard, expected):
    rng, domain = np.random.default_rng(0), Domain(lights=lights)
    assert {draw_light(rng, hard, month=6, domain=domain).weather for _ in range(40)} == expected


def test_the_default_domain_is_drawn_as_cities_were_before_there_were_domains():
    default = Domain()
    styles = [draw_style(PlaceId(0, "Alder", number), default) for number in range(0, 80, 8)]
    lights = [draw_light(np.random.default_rng(number), 0.5, month=6, domain=default).weather for number in range(40)]
    scene = draw_place(PlaceId(0, "Alder", 0), (32, 32))
    months = [draw_photo(scene, number).month for number in range(10)]
    drawn = repr([(style.windows, style.roofs, style.along, style.hue) for style in styles] + lights + months)
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "a137388efce25bfc"


INDOORS = Domain(views=("indoors",), lenses=("fisheye", "straight"))


@pytest.mark.parametrize("size", [(32, 32), (160, 120)])
def test_corridors_are_drawn_through_both_lenses(size):
    lenses = set()
    for number in range(0, 64, 8):
        scene = draw_place(PlaceId(0, "Elm", number), size, INDOORS)
        assert scene.style.indoors and {surface.kind for surface in scene.surfaces} == {"wall"}
        photo = draw_photo(scene, 0)
        assert photo.pixels.shape == (size[1], size[0], 3)
        fisheye = draw_camera(np.random.default_rng(0), scene, 0.0).fisheye
        lenses.add("straight" if fisheye is None else "fisheye")
        if fisheye is not None and math.hypot(*fisheye.centre) > 1.1 * fisheye.radius:
            assert photo.pixels[0, 0].max() < 40  # outside of the circle
            assert photo.pixels.max() > 100
    assert lenses == {"straight", "fisheye"}


def test_places_of_a_building_lie_along_one_corridor():
    first, second, other = (draw_decor(PlaceId(0, "Elm", number)) for number in (0, 7, 8))
    assert first == second != other
    for number, steps in ((0, 7), (3, 2)):
        here, further = (draw_place(PlaceId(0, "Elm", n), (64, 48), INDOORS).surfaces for n in (number, number + steps))
        for one, same in zip(here[:3], further[:3], strict=True):  # end, floor and ceiling
            assert one.colour.tobytes() == same.colour.tobytes()
            np.testing.assert_allclose(one.origin - same.origin, (0, 0, steps * STEP), atol=1e-9)
    end = [draw_place(PlaceId(0, "Elm", number), (64, 48), INDOORS).surfaces[0].colour for number in (0, 8)]
    assert end[0].tobytes() != end[1].tobytes()


def test_all_views_of_a_domain_occur():
    places = [PlaceId(0, "Elm", number) for number in range(0, 800, 8)]
    for views in itertools.chain.from_iterable(itertools.permutations(CHOICES["views"], count) for count in (1, 2, 3)):
        styles = [draw_style(place, Domain(views=views)) for place in places]
        found = {"indoors" if style.indoors else "along" if style.along else "across" for style in styles}
        assert found == set(views)
        if "indoors" in views:
            assert sum(style.indoors for style in styles) == pytest.approx(100 / len(views), abs=15)


@pytest.mark.parametrize("lens", CHOICES["lenses"])
def test_walls_floor_and_ceiling_of_a_corridor_leave_no_gap(lens):
    domain = Domain(views=("indoors",), lenses=(lens,))
    light = draw_indoor_light(np.random.default_rng(0))
    for number in range(0, 80, 8):
        scene = draw_place(PlaceId(0, "Elm", number), (240, 180), domain)
        camera = draw_camera(np.random.default_rng(number), scene, 0.45)
        canvas = np.full((3, 180, 240), -1e6, np.float32)
        shot = Shot(camera=camera, light=light, glow=[0] * 256, lamps=np.zeros_like(canvas))
        for surface in scene.surfaces:
            paint(canvas, np.random.default_rng(0), surface, shot=shot)
        if lens == "fisheye":
            behind = camera.fisheye.directions[2] < math.cos(math.radians(85))
            canvas = canvas[:, (camera.fisheye.circle() > 0) & ~behind]
        assert (canvas < 0).mean() < 0.001  # along the edges of the distant end


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lights", "dark"], "--lights: invalid choice: 'dark'"),
        (["--months", "13"], "--months: invalid choice: 13"),
        (["--roofs", "hip", "hip"], "roofs are hip, hip; give one or more of"),
        (["--windows"], "--windows: expected at least one argument"),
        (["--views", "along", "indoors", "along"], "each once"),
        (["--views", "up"], "--views: invalid choice: 'up'"),
        (["--lenses", "round"], "--lenses: invalid choice: 'round'"),
    ],
)
def test_unknown_kinds_of_a_domain_are_refused(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "city"), *flags])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_the_command_draws_the_domain_of_its_flags(tmp_path):
    flags = "--lights night --months 12 1 --views along indoors --lenses fisheye".split()
    main([str(tmp_path / "night"), *FLAGS, *flags])
    domain = Domain(lights=("night",), months=(1, 12), views=("along", "indoors"), lenses=("fisheye",))
    config = replace(SMALL, domain=domain)
    make_city(tmp_path / "expected", config, progress=False)
    assert digest(tmp_path / "night") == digest(tmp_path / "expected")


@pytest.mark.parametrize("size", [(33, 57), (160, 120)])
def test_shapes_are_drawn_with_sorted_corners_only(size, monkeypatch):
    """Pillow refuses swapped corners, and up to version 12.0 its own rounded_rectangle can produce them."""
    drawn = []

    def check(name: str) -> None:
        original = getattr(ImageDraw.ImageDraw, name)

        def sorted_only(self: ImageDraw.ImageDraw, box: Sequence[float], *args: object, **options: object) -> None:
            x0, y0, x1, y1 = box
            assert x0 <= x1 and y0 <= y1, f"{name} {box}"
            drawn.append(name)
            original(self, box, *args, **options)

        monkeypatch.setattr(ImageDraw.ImageDraw, name, sorted_only)

    def refuse(self: ImageDraw.ImageDraw, *args: object, **options: object) -> None:
        pytest.fail("use fill_rounded_rectangle; rounded_rectangle fails in older versions of Pillow")

    for name in ("rectangle", "ellipse", "pieslice"):
        check(name)
    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", refuse)
    for number in range(0, 96, 4):
        scene = draw_place(PlaceId(number % 3, "test", number), size)
        for index, role in enumerate(("train", "database", "query", "query")):
            draw_photo(scene, index, role)
    assert set(drawn) == {"rectangle", "ellipse", "pieslice"}


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="earlier versions draw other pixels")
def test_rounded_rectangles_are_those_of_pillow_13():
    def difference(box: Box, radius: float, bottom: bool) -> np.ndarray:
        actual, expected = Image.new("L", (100, 100)), Image.new("L", (100, 100))
        fill_rounded_rectangle(ImageDraw.Draw(actual), box, radius, fill=255, bottom=bottom)
        corners = (True, True, bottom, bottom)
        ImageDraw.Draw(expected).rounded_rectangle(box, radius, 255, corners=corners)
        return np.argwhere(np.asarray(actual) != np.asarray(expected))

    rng = np.random.default_rng(0)
    for (x, y), size, radius in zip(
        rng.uniform(-40, 90, (1000, 2)), 2 ** rng.uniform(-2, 6, (1000, 2)), rng.uniform(0, 40, 1000), strict=True
    ):
        for bottom in (True, False):
            width, height = size if bottom else size + 2  # Pillow fails on less if only the upper corners are round
            box = (x, y, x + width, y + height)
            assert not difference(box, radius, bottom).size, (box, radius, bottom)


@pytest.mark.parametrize(
    "changes, message",
    [
        *(({name: 0}, f"{name} is 0; it must be 1 or more") for name in (*COUNTS, "database_photos", "queries")),
        ({"test_places": -1}, "test_places is -1"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"cities": ()}, "0 cities for 5 places"),
        ({"places": 1}, "2 cities for 1 places; give 1 city or more, and a place for each"),
        ({"cities": ("Alder", "Alder")}, "must differ"),
        ({"cities": ("Alder", "test")}, "neither val nor test"),
        ({"cities": ("val",)}, "neither val nor test"),
        ({"size": (31, 64)}, "31 x 64 pixels; both must be 32 or more"),
        ({"size": (64, 31)}, "64 x 31 pixels"),
    ],
)
def test_a_config_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_a_config_shares_out_all_places_and_counts_all_photos(city):
    config = CityConfig(cities=("A", "B", "C"), places=11)
    assert [config.places_of(name) for name in config.cities] == [4, 4, 3]
    assert SMALL.num_photos == len(list(city.rglob("*.jpg")))


def test_bad_flags_are_refused(tmp_path, capsys):
    for flags, message in ((["--size", "31", "64"], "31 x 64"), (["--cities", "99"], "--cities")):
        with pytest.raises(SystemExit, match="2"):
            main([str(tmp_path / "city"), *flags])
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_output_that_holds_something_or_cannot_be_made_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for output, message in ((tmp_path, "not an empty folder"), (tmp_path / "mine.txt" / "city", "mine.txt")):
        with pytest.raises(InputError, match=message):
            main([str(output), *FLAGS])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "error, expected", [(OSError(28, "No space left on device"), InputError), (Stopped(signal.SIGTERM), Stopped)]
)
def test_an_interrupted_run_leaves_nothing(error, expected, tmp_path, monkeypatch):
    saved = []

    def interrupt(photo, path):
        saved.append(path)
        if len(saved) == 7:
            raise error

    monkeypatch.setattr("datasets.synthetic.city.save_photo", interrupt)
    with pytest.raises(expected):
        main([str(tmp_path / "city"), *FLAGS])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_stop_signal_leaves_nothing(number, status, tmp_path):
    stops = f"""
import os, datasets.synthetic.city as city
main, save = os.getpid(), city.save_photo
city.save_photo = lambda photo, path: (os.kill(main, {int(number)}), save(photo, path))
"""
    running = start_script("datasets.synthetic", "city", *FLAGS, cwd=tmp_path, prelude=stops)
    result = running.result(60)
    assert result.status == status
    assert result.stderr.endswith("interrupted; nothing was written\n") and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_cities_of_killed_processes_are_removed_and_those_of_running_ones_are_not(tmp_path):
    """A process that runs holds a lock on its folder."""
    names = ("city.host.0123456789ab", "city.host.ba9876543210", "other.host.0123456789ab")
    leftovers = [tmp_path / f".{name}.tmp" for name in names]
    for folder in leftovers:
        (folder / "gsv_cities").mkdir(parents=True)
    held = os.open(leftovers[1], os.O_RDONLY)
    assert try_lock(held)
    make_city(tmp_path / "city", SMALL, progress=False)
    os.close(held)
    assert [folder.exists() for folder in leftovers] == [False, True, True]
