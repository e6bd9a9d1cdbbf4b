"""Training places of one's own photos: the unified dataset's rule, oracles, and photos that cannot be used."""

import csv
import itertools
import math
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.photos import GPS_DIRECTORY, dms, gps_tags, save_photo
from helpers.processes import ROOT, run_here
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from datasets.benchmark import Benchmark
from datasets.cities import training_cities
from datasets.config import PlacesConfig, PositionConfig
from datasets.exif_gps import camera_notes
from datasets.folder import locate_images
from datasets.ground import Ground
from datasets.gsv_cities import GSVCities
from datasets.image_set import ImageSet
from datasets.layouts import BenchmarkConfig
from datasets.places.config import OwnPhotosConfig
from datasets.places.overlap import connected, divide_cells, similarity_threshold
from datasets.places.panorama import view_of
from datasets.places.parts import BORDER, MARGIN, divide_by_area
from datasets.places.photos import Photo, grid_metres, read_photos
from datasets.places.planning import _groups, _positions, _split, plan_places
from datasets.unified.builder import transfer_file
from datasets.unified.places import MIN_IMAGES, STREET_GRID, Grid, group_places
from model import InputError
from model.geodesy import degrees_of_local, distance_metres

DIRECTION = 17  # GPSImgDirection
COMMAND = "datasets.places"


def mark(path, number):
    """Makes the content of a file its own. Decoders ignore what follows the image."""
    with open(path, "ab") as file:
        file.write(str(number).encode())


def save_own(path, degrees, *, heading=None, taken="", number=0):
    """A photo of a phone, with a content of its own."""
    tags = gps_tags(*degrees)
    if heading is not None:
        tags[DIRECTION] = IFDRational(round(heading * 100), 100)
    exif = Image.Exif()
    exif[GPS_DIRECTORY] = tags
    if taken:
        exif[0x8769] = {36867: taken}
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), (90, 120, 60)).save(path, exif=exif)
    mark(path, number)


def town(folder, *, places=20, photos=5, spacing=60.0, origin=(48.1, 11.5), headings=True):
    """A street of places, each with photos within a metre that look the same way. Positions are in EXIF data alone."""
    rng = np.random.default_rng(0)
    for number in range(places):
        for k in range(photos):
            metres = np.array([number * spacing + 7.5, 7.5]) + rng.uniform(-0.5, 0.5, 2)
            heading = (90.0 + rng.uniform(-10, 10)) if headings else None
            taken = f"20{10 + k:02d}:0{k + 1}:15 12:00:00"
            save_own(
                folder / f"{number:02d}" / f"IMG_{k}.jpg",
                degrees_of_local(metres, origin).tolist(),
                heading=heading,
                taken=taken,
                number=number * photos + k,
            )
    return folder


def config_of(folder, **options):
    return OwnPhotosConfig(folder=folder, output=folder.parent / "out", **options)


def whole(folder, **options):
    """Everything is for training."""
    return config_of(folder, val_fraction=0.0, test_fraction=0.0, **options)


def plan_of(config):
    return plan_places(read_photos(config), config)


def names_of(plan, members):
    return sorted(
        os.path.relpath(plan.photos.images.paths[plan.photos.photos[i].row], plan.photos.folder) for i in members
    )


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The command's output for a street, and the street."""
    above = tmp_path_factory.mktemp("own")
    town(above / "photos")
    result = run_here(COMMAND, "photos", "--output=out", "--cell_groups=3", cwd=above)
    assert result.status == 0, result.stderr
    return above, result.stdout


# ---- The rule


def test_photos_with_metres_in_their_names_make_the_places_of_the_unified_dataset(tmp_path):
    rng = np.random.default_rng(1)
    cells = []
    for i in range(300):
        east, north, heading = rng.uniform(0, 60), rng.uniform(0, 60), int(rng.integers(360))
        name = f"@{500_000 + east:.2f}@{5_300_000 + north:.2f}@32@U@@@{i:03d}@@{heading}@@@@201501@@.jpg"
        mark(save_photo(tmp_path / "photos" / name), i)
    config = whole(tmp_path / "photos", max_images=1000, cell_groups=3)
    plan = plan_of(config)
    for path in sorted(os.listdir(tmp_path / "photos")):
        fields = path.split("@")
        cells.append(STREET_GRID.cell(float(fields[1]), float(fields[2]), float(fields[9])))
    expected = group_places(cells, STREET_GRID)
    found = [
        [
            [i for i, image in zip(members, city.images, strict=True) if image.place == place]
            for place in range(len(group))
        ]
        for city, members, group in zip(plan.cities, plan.members, expected, strict=True)
    ]
    assert found == expected and sum(map(len, expected)) > 20


def test_few_places_make_fewer_groups():
    line = [(15 * i, 0, 0) for i in range(700) for _ in range(MIN_IMAGES)]
    config = whole(Path("photos"))
    assert [len(_groups(line[: MIN_IMAGES * n], config)) for n in (700, 299, 199, 50)] == [3, 2, 1, 1]


def test_cells_on_the_globe_are_squares_whose_groups_have_no_neighbours():
    rng = np.random.default_rng(2)
    size, grid = 15, Grid(cell_size=15, cell_groups=3)
    for origin in ((48.1, 11.5), (-33.9, 179.99), (78.2, -150.0), (0.0, 6.0)):
        degrees = degrees_of_local(rng.uniform(-100, 100, (400, 2)), origin)
        metres = grid_metres(ImageSet.at_degrees(range(400), degrees), size)
        cells = [grid.cell(*xy, 0) for xy in metres]
        groups = [grid.group(cell) for cell in cells]
        first, second = np.triu_indices(400, 1)
        metres_apart = distance_metres(degrees[first], degrees[second])
        for i, j, distance in zip(first.tolist(), second.tolist(), metres_apart.tolist(), strict=True):
            if cells[i] == cells[j]:
                assert distance < math.hypot(size, size) * 1.01
            elif groups[i] == groups[j]:
                assert distance > 2 * size * 0.98
        area = len(set(cells)) * size * size
        assert 0.7 * 200**2 < area < 1.6 * 200**2


def test_photos_on_both_sides_of_a_utm_border_share_a_place_and_their_metres_are_compared(tmp_path):
    degrees = degrees_of_local(np.random.default_rng(3).uniform(-4, 4, (12, 2)) + (0, 0), (48.0, 6.0))
    metres = grid_metres(ImageSet.at_degrees(range(12), degrees), 15)
    assert (degrees[:, 1] < 6).any() and (degrees[:, 1] > 6).any()
    assert np.ptp(metres, axis=0).max() < 10
    for part in range(3):  # three such spots, 200 m apart from north to south
        for i, (lat, lon) in enumerate(degrees.tolist()):
            save_own(tmp_path / "photos" / f"{part}_{i}.jpg", (lat + part * 0.002, lon), number=20 * part + i)
    config = config_of(tmp_path / "photos", cell_size=60, val_fraction=0.3, test_fraction=0.3)
    plan = plan_of(config)
    used = [i for split in plan.splits.values() for i in (*split.database, *split.queries)]
    zones = {plan.names[i].split("@")[3] for i in used}
    assert len(used) == 24 and zones in ({"31"}, {"32"})
    for split in plan.splits.values():
        east = [float(plan.names[i].split("@")[1]) for i in (*split.database, *split.queries)]
        assert np.ptp(east) < 10


def test_photos_on_both_sides_of_the_equator_are_compared():
    degrees = degrees_of_local(np.random.default_rng(3).uniform(-4, 4, (12, 2)), (0.0, 32.5))
    assert len(np.unique(degrees[:, 0] < 0)) == 2
    images = SimpleNamespace(images=ImageSet.at_degrees(range(12), degrees))
    names = [f"@{text}@x@.jpg" for text in _positions(images, range(12))]
    read = locate_images(names, Path(), PositionConfig(source="names"))
    assert [len(found) for found in Ground(read, read).positives(25)] == [12] * 12
    np.testing.assert_allclose([[float(field) for field in name.split("@")[5:7]] for name in names], degrees, atol=1e-5)


def test_without_headings_a_place_is_a_cell(tmp_path):
    town(tmp_path / "photos", places=3, headings=False)
    plan = plan_of(whole(tmp_path / "photos"))
    assert not plan.photos.has_headings
    assert [len(place) for place in plan.places()] == [5, 5, 5]
    town(tmp_path / "turned", places=3)
    for k, path in enumerate(sorted((tmp_path / "turned").rglob("*.jpg"))):
        degrees = degrees_of_local([60.0 * (k // 5) + 7.5, 7.5], (48.1, 11.5)).tolist()
        save_own(path, degrees, heading=10 + 180 * (k % 2), number=k)
    with pytest.raises(InputError, match="No place of .* has 4 or more photos"):
        plan_of(whole(tmp_path / "turned"))
    assert len(plan_of(whole(tmp_path / "turned", headings="none")).places()) == 3


# ---- Parts


def test_parts_lie_apart_and_cover_the_fractions_that_were_asked_for():
    rng = np.random.default_rng(4)
    places = rng.uniform(0, 1, (3000, 2)) * (3000, 500)
    places[:500] = places[0]  # a burst counts once
    cells = np.unique(places // 15, axis=0, return_inverse=True)[1].reshape(-1)
    parts = divide_by_area(places, cells, val=0.1, test=0.2)
    members = {part: places[parts == part] for part in ("train", "val", "test", BORDER)}
    for one, other in itertools.combinations(("train", "val", "test"), 2):
        nearest = min(np.linalg.norm(members[other] - xy, axis=1).min() for xy in members[one])
        assert nearest >= MARGIN
    assert len(np.unique(cells[parts == "val"])) == pytest.approx(0.1 * len(np.unique(cells)), rel=0.1)
    assert len(np.unique(cells[parts == "test"])) == pytest.approx(0.2 * len(np.unique(cells)), rel=0.1)


def test_the_output_is_what_trainings_and_evaluations_read(built):
    above, stdout = built
    output = above / "out"
    cities = sorted(path.stem for path in (output / "gsv_cities" / "Dataframes").iterdir())
    places = GSVCities(output / "gsv_cities", PlacesConfig(cities=tuple(cities), image_size=(28, 28)))
    rows = rows_of(output / "photos.csv")
    assert len(rows) == 100 and f"places to train on: {len(places)} in" in stdout
    assert (places[0, 0].images is not None) and places.num_images == sum(row["part"] == "train" for row in rows)
    for part in ("val", "test"):
        benchmark = Benchmark(BenchmarkConfig(name="photos", datasets_folder=output, split=part))
        assert len(benchmark.queries) == sum(row["part"] == f"{part} queries" for row in rows) > 0
        assert all(len(positives) for positives in benchmark.positives)
    assert {row["note"] for row in rows if not row["file"]} == {"at the border between two parts"}
    for row in rows:
        if row["file"]:
            assert (output / row["file"]).read_bytes() == (above / "photos" / row["photo"]).read_bytes()
    of_part = {
        part: {Path(r["photo"]).parent for r in rows if r["part"].startswith(part)} for part in ("tr", "val", "te")
    }
    assert not of_part["tr"] & of_part["val"] and not of_part["tr"] & of_part["te"] and of_part["val"] and of_part["te"]


def test_queries_are_the_latest_photos_of_a_place(built):
    rows = rows_of(built[0] / "out" / "photos.csv")
    queries = [row["photo"] for row in rows if row["part"].endswith("queries")]
    assert queries and all(name.endswith("IMG_4.jpg") for name in queries)


def test_the_page_shows_map_counts_and_places(built):
    page = (built[0] / "out" / "places.html").read_text()
    assert page.count("<svg") >= 2 and page.count("data:image/jpeg") > 20 and "<script" not in page
    assert "at the border between two parts" in page and "IMG_0.jpg" in page


def test_all_cities_of_a_folder_are_trained_on_group_by_group(built):
    folder = built[0] / "out" / "gsv_cities"
    found = training_cities("all", folder)
    assert found == sorted(found, key=lambda city: int(city.removeprefix("photos"))) and len(found) > 2
    with pytest.raises(InputError, match="no .*Dataframes"):
        training_cities("all", built[0])


# ---- What cannot be used


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path):
    photos = town(tmp_path / "photos", places=4)
    save_photo(photos / "a_no_position.jpg")
    save_photo(photos / "b_zero.jpg", gps_tags(0, 0))
    (photos / "c_broken.jpg").write_bytes(b"no image")
    (photos / "d_copy.jpg").write_bytes((photos / "00" / "IMG_0.jpg").read_bytes())
    save_own(photos / "e_pole.jpg", (85.0, 10.0), heading=3, number=999)
    save_own(photos / "f_heading.jpg", (48.1, 11.5), number=998)
    tags = gps_tags(48.1, 11.5) | {DIRECTION: IFDRational(90, 1)}
    truncated = Path(save_photo(photos / "g_truncated.jpg", tags, image=panorama(120)))
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size * 3 // 4])
    assert camera_notes(truncated).width == 120
    found = read_photos(whole(photos)).left_out
    assert {Path(path).name: reason for path, reason in found.items()} == {
        "a_no_position.jpg": "no position",
        "b_zero.jpg": "no position",  # as its EXIF data has none that can be used
        "c_broken.jpg": "cannot be read",
        "d_copy.jpg": "the same content as an earlier file",
        "e_pole.jpg": "nearer to a pole than UTM reaches",
        "f_heading.jpg": "no heading",
        "g_truncated.jpg": "cannot be read",
    }
    listed = "image,latitude,longitude\n" + "".join(f"{n}/IMG_{k}.jpg,0,0\n" for n in ("00", "01") for k in range(5))
    (tmp_path / "zero.csv").write_text(listed)
    for folder in ("02", "03"):
        for path in (photos / folder).iterdir():
            path.unlink()
    for path in photos.glob("*.jpg"):
        path.unlink()
    result = run_here(COMMAND, "photos", "--output=out", "--positions_csv=zero.csv", cwd=tmp_path)
    assert result.status == 2 and "10 at 0, 0" in result.stderr and not (tmp_path / "out").exists()


def test_a_burst_is_thinned_evenly_over_time(tmp_path):
    for k in range(60):
        save_own(tmp_path / "photos" / f"{k:03d}.jpg", (48.1, 11.5), taken=f"2020:05:01 12:00:{59 - k:02d}", number=k)
    plan = plan_of(whole(tmp_path / "photos", max_images=7))
    (place,) = plan.places()
    assert names_of(plan, place) == [f"{k:03d}.jpg" for k in (0, 10, 20, 29, 39, 49, 59)]
    assert Counter(plan.unused.values()) == {"its place has 7 others (--max_images)": 53}


@pytest.mark.parametrize(
    ("headings", "options", "message"),
    [
        (np.linspace(0.1, 6.2, 12), {}, "as radians do"),
        (np.linspace(-3.1, 3.1, 12), {}, "as radians do"),
        (np.full(12, 361.0), {}, "A heading is 361"),
        ([10.0] * 4 + [None] * 8, {}, "4 of 12 photos have a heading"),
        ([None] * 12, {"headings": "csv"}, "none of the 12 photos has one"),
        (np.linspace(0, 300, 12), {"model": "any"}, "--model divides photos without headings"),
    ],
)
def test_headings_that_cannot_be_used_are_refused(headings, options, message, tmp_path):
    lines = ["image,latitude,longitude,heading"]
    for k, heading in enumerate(headings):
        mark(save_photo(tmp_path / "photos" / f"{k:02d}.jpg"), k)
        lines.append(f"{k:02d}.jpg,48.1,11.5,{'' if heading is None else heading}")
    (tmp_path / "positions.csv").write_text("\n".join(lines))
    flags = [f"--{name}={value}" for name, value in options.items()]
    result = run_here(COMMAND, "photos", "--output=out", "--positions_csv=positions.csv", *flags, cwd=tmp_path)
    assert result.status == 2 and message in result.stderr


def test_headings_of_a_csv_file_come_first_and_wrap_around(tmp_path):
    lines = ["image,latitude,longitude,heading"]
    for k in range(8):
        save_own(tmp_path / "photos" / f"{k}.jpg", (48.1, 11.5), heading=200, number=k)
        lines.append(f"{k}.jpg,48.1,11.5,{[-20, 340, 700 - 360, ''][k % 4]}")
    (tmp_path / "positions.csv").write_text("\n".join(lines))
    result = run_here(
        *(COMMAND, "photos", "--output=out", "--positions_csv=positions.csv", "--val_fraction=0", "--test_fraction=0"),
        cwd=tmp_path,
    )
    assert result.status == 0, result.stderr
    assert [row["note"] for row in rows_of(tmp_path / "out" / "photos.csv")][3::4] == [
        "fewer than 4 photos at its place"
    ] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output=photos/out"], "lies in the folder of photos"),
        (["--output=photos"], "lies in the folder of photos"),
        (["--output=full"], "not an empty folder"),
        (["--output=out", "--name=a b"], "expected letters"),
        (["--output=out", "--name=town2"], "no digit at the end"),
        (["--output=out", "--panorama_views=1"], "expected 2 to 36"),
        (["--output=out", "--panorama_views=12"], "twice as wide as high"),
        (["--output=out", "--headings=csv"], "Give that file"),
        (["--output=out", "--positions=none"], "leaves no places"),
        (["--output=out", "--val_fraction=0.7"], "from 0 to 0.5"),
        (["--output=out"], "is left to train on: all of its 6 photos within 0 x 0 m went to validation, test"),
    ],
)
def test_what_cannot_be_made_is_refused(flags, message, tmp_path):
    for k in range(6):
        save_own(tmp_path / "photos" / f"{k}.jpg", (48.1, 11.5), number=k)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    result = run_here(COMMAND, "photos", *flags, cwd=tmp_path)
    assert result.status == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_while_it_copies_leaves_nothing(tmp_path, monkeypatch):
    town(tmp_path / "photos", places=12)
    copied = []

    def copy(source, target, *, symlink):
        copied.append(target)
        if len(copied) > 30:
            raise InputError("The disk is full.")
        transfer_file(source, target, symlink=symlink)

    monkeypatch.setattr("datasets.places.writing.transfer_file", copy)
    result = run_here(COMMAND, "photos", "--output=out", cwd=tmp_path)
    assert result.status == 2 and "The disk is full" in result.stderr and len(copied) > 30
    assert os.listdir(tmp_path) == ["photos"]


# ---- Panoramas and turned photos


@pytest.mark.parametrize("most", [4, 40])
def test_all_views_of_a_panorama_are_queries_or_all_are_in_the_database(most):
    """Also where only some headings have photos beside the panoramas, and where a place has too many."""
    yaws = [30.0 * k for k in range(12)]
    photos = [Photo(file, yaw, yaw, f"20{file:02}01", False) for file in range(8) for yaw in yaws]
    photos += [Photo(8 + k, None, 90.0, f"20{8 + k:02}01", False) for k in range(6)]
    cells = [[i for i, photo in enumerate(photos) if photo.heading // 60 == cell] for cell in range(6)]
    split = _split(SimpleNamespace(photos=photos), cells, most, {})
    queries, database = ({photos[i].row for i in part} for part in (split.queries, split.database))
    assert queries and database and not queries & database


def panorama(width=360):
    """Red falls and green rises from left to right; blue from top to bottom."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(width // 2))
    red = 127.5 + 120 * np.cos(2 * np.pi * columns / width)
    green = 127.5 + 120 * np.sin(2 * np.pi * columns / width)
    pixels = np.stack([red, green, 200 * rows / (width // 2)], axis=2)
    return Image.fromarray(pixels.round().astype(np.uint8))


@pytest.mark.parametrize("yaw", [0.0, 90.0, 210.0, 345.0])
def test_a_view_is_what_a_camera_sees_in_a_panorama(yaw):
    view, focal = np.asarray(view_of(panorama(), yaw)).astype(float), 30 / math.tan(math.radians(30))
    height, width = view.shape[:2]
    assert (width, height) == (60, 45)
    for row, column in itertools.product(range(0, height, 11), range(0, width, 7)):
        x, y = column + 0.5 - width / 2, row + 0.5 - height / 2
        ray = np.array([x, focal, -y]) / math.sqrt(x * x + y * y + focal * focal)
        longitude, latitude = math.atan2(ray[0], ray[1]) + math.radians(yaw), math.asin(ray[2])
        place = (longitude / (2 * math.pi) + 0.5) * 360 - 0.5
        expected = [
            127.5 + 120 * math.cos(2 * math.pi * place / 360),
            127.5 + 120 * math.sin(2 * math.pi * place / 360),
            200 * ((0.5 - latitude / math.pi) * 180 - 0.5) / 180,
        ]
        np.testing.assert_allclose(view[row, column], expected, atol=2)


def test_panoramas_are_cut_into_views_with_headings_of_their_own(tmp_path):
    tags = gps_tags(48.1, 11.5) | {DIRECTION: IFDRational(90, 1)}
    for k in range(4):
        mark(save_photo(tmp_path / "photos" / f"{k}.jpg", tags, image=panorama(120)), k)
    flags = ["--output=out", "--panorama_views=12", "--val_fraction=0", "--test_fraction=0"]
    result = run_here(COMMAND, "photos", *flags, cwd=tmp_path)
    assert result.status == 0, result.stderr
    rows = rows_of(tmp_path / "out" / "photos.csv")
    assert len(rows) == 48 and {row["view"] for row in rows} == {str(30 * k) for k in range(12)}
    of_place = Counter((row["city"], row["place_id"]) for row in rows)
    assert len(of_place) == 6 and set(of_place.values()) == {8}  # two views of each panorama look into 60 degrees
    with Image.open(tmp_path / "out" / rows[0]["file"]) as view:
        assert view.size == (20, 15)
    result = run_here(COMMAND, "photos", *flags, "--output=two", "--headings=none", cwd=tmp_path)
    assert result.status == 2 and "views of opposite directions would be one place" in result.stderr


def test_photos_are_written_upright(tmp_path):
    image = Image.new("RGB", (60, 40), (250, 10, 10))
    image.paste((10, 10, 250), (0, 0, 60, 8))  # blue on top
    for k in range(4):
        mark(save_photo(tmp_path / "photos" / f"{k}.jpg", gps_tags(48.1, 11.5), orientation=6, image=image), k)
    result = run_here(
        COMMAND, "photos", "--output=out", "--val_fraction=0", "--test_fraction=0", "--symlink", cwd=tmp_path
    )
    assert result.status == 0, result.stderr
    file = tmp_path / "out" / rows_of(tmp_path / "out" / "photos.csv")[0]["file"]
    with Image.open(file) as written:
        pixels = np.asarray(written)
    assert pixels.shape == (40, 60, 3) and pixels[2, 30, 2] > 200 and pixels[35, 10, 0] > 200
    assert not camera_notes(file).is_turned and not file.is_symlink()


def test_links_stand_in_for_copies(tmp_path):
    town(tmp_path / "photos", places=1)
    flags = ["--output=out", "--val_fraction=0", "--test_fraction=0", "--symlink"]
    assert run_here(COMMAND, "photos", *flags, cwd=tmp_path).status == 0
    row = rows_of(tmp_path / "out" / "photos.csv")[0]
    assert Path(os.readlink(tmp_path / "out" / row["file"])) == tmp_path / "photos" / row["photo"]


# ---- Overlap


def test_connected_components_are_those_of_a_naive_search():
    rng = np.random.default_rng(5)
    for _ in range(30):
        n = int(rng.integers(1, 12))
        linked = rng.random((n, n)) < 0.15
        linked |= linked.T | np.eye(n, dtype=bool)
        reach = np.linalg.matrix_power(linked.astype(int), n) > 0
        found = connected(linked)
        assert all((found[i] == found[j]) == reach[i, j] for i in range(n) for j in range(n))
        assert list(dict.fromkeys(found)) == list(range(max(found) + 1))


def test_photos_of_a_cell_are_divided_by_what_is_as_alike_as_no_far_photos_are():
    rng = np.random.default_rng(6)
    scenes = rng.standard_normal((40, 64))
    descriptors = np.repeat(scenes, 6, axis=0) + 0.3 * rng.standard_normal((240, 64))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    places = np.repeat(np.arange(20), 12)[:, None] * (250.0, 0.0)  # two scenes in each cell
    threshold = similarity_threshold(descriptors, places)
    cells = [list(range(12 * i, 12 * i + 12)) for i in range(20)]
    numbers = divide_cells(cells, dict(enumerate(descriptors)), threshold)
    assert [numbers[i] for i in range(240)] == [i // 6 % 2 for i in range(240)]
    with pytest.raises(InputError, match="pairs of photos are more than 200 m apart"):
        similarity_threshold(descriptors, 0 * places)


def test_a_model_divides_the_photos_of_a_cell(tmp_path):
    rng = np.random.default_rng(7)
    for cell in range(10):
        degrees = degrees_of_local([250.0 * cell, 0], (48.1, 11.5)).tolist()
        for scene, pixels in enumerate(rng.integers(0, 256, (2, 4, 6, 3))):
            for k in range(4):
                image = Image.fromarray((pixels * (0.9 + 0.03 * k)).astype(np.uint8)).resize((60, 40), Image.NEAREST)
                save_photo(tmp_path / "photos" / f"{cell}_{scene}_{k}.jpg", gps_tags(*degrees), image=image)
    plan = plan_of(whole(tmp_path / "photos", model=str(ROOT / "assets" / "try" / "model.safetensors")))
    scenes = [{name[:3] for name in names_of(plan, place)} for place in plan.places()]
    assert len(scenes) > 15 and all(len(scene) == 1 for scene in scenes)


def test_the_model_runs_on_the_device_that_was_asked_for(tmp_path, monkeypatch):
    def recognizer(model, *, device):
        raise InputError(f"{model} on {device}")

    town(tmp_path / "photos", places=2, headings=False)
    monkeypatch.setattr("model.recognizer.PlaceRecognizer", recognizer)
    with pytest.raises(InputError, match="mine on cuda"):
        plan_of(whole(tmp_path / "photos", model="mine", device="cuda"))


def test_the_smallest_place_has_the_images_that_a_training_takes():
    assert PlacesConfig(cities=()).images_per_place == MIN_IMAGES


def test_dates_and_headings_of_other_forms_are_read(tmp_path):
    exif = Image.Exif()
    exif[GPS_DIRECTORY] = {DIRECTION: IFDRational(3599, 10), 2: dms(3.0)}
    exif[306] = "2021:07:09"
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert camera_notes(tmp_path / "a.jpg")[3:] == (359.9, "20210709")
    pose = b'http://ns.adobe.com/xap/1.0/\0<rdf GPano:PoseHeadingDegrees="123.5"/>'
    data = (tmp_path / "a.jpg").read_bytes()
    app1 = b"\xff\xe1" + (len(pose) + 2).to_bytes(2, "big") + pose
    (tmp_path / "b.jpg").write_bytes(data[:2] + app1 + data[2:])
    assert camera_notes(tmp_path / "b.jpg").heading == 123.5
