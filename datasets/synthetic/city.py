"""Writing a city: a training set in the GSV-Cities format and a benchmark in the benchmark format."""

import csv
import math
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.cities import COLUMNS
from datasets.synthetic.config import CITIES, CityConfig
from datasets.synthetic.photo import Photo, draw_photo
from datasets.synthetic.randomness import PLACES_PER_STREET, PlaceId, Purpose, between, random_stream
from datasets.synthetic.scene import draw_place
from model.errors import InputError
from utils.runtime.atomic_files import atomic_folder, make_folder, remove_leftovers
from utils.runtime.workers import leave_stopping_to_the_main_process

STREETS_PER_COLUMN = 25
PLACE_SPACING, STREET_SPACING = 45.0, 80.0  # metres; photos stray at most 5 m from their place
PLACES_PER_TASK = 4  # that one process draws in a row
UTM_ORIGIN = (500000.0, 4600000.0)  # east and north of the benchmark's first place, in metres
METRES_PER_DEGREE = 111320.0
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

Point = tuple[float, float]


def make_city(output: str | Path, config: CityConfig, progress: bool = True) -> None:
    """Writes a training set and a benchmark under the new or empty folder `output`.

    `output`/gsv_cities is in the GSV-Cities format, `output`/synthetic/images/{val,test}/{database,queries} in the
    benchmark format. The same config gives the same bytes. The folder appears under its name only when it is
    complete.

    Raises InputError if `output` is a file, a folder with something in it, or cannot be written, and BrokenExecutor
    if the system ended a process that draws.
    """
    output = Path(output).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not an empty folder. Name a new one.")
    make_folder(output.parent, exist_ok=True)
    remove_leftovers(output.parent, name=output.name)
    with atomic_folder(output) as folder:
        write_city(folder, config, progress)


def write_city(folder: Path, config: CityConfig, progress: bool) -> None:
    """Writes all files of a city, on as many processes as there are CPUs."""
    with (
        ProcessPoolExecutor(os.cpu_count(), initializer=leave_stopping_to_the_main_process) as pool,
        tqdm(total=config.num_photos, unit="photo", disable=not progress) as bar,
    ):
        for city in config.cities:
            write_training_city(pool, folder / "gsv_cities", city, config=config, bar=bar)
        for split in ("val", "test"):
            split_folder = folder / "synthetic" / "images" / split
            write_benchmark_split(pool, split_folder, split, config=config, bar=bar)


# ---- The GSV-Cities format


def write_training_city(pool: Executor, folder: Path, city: str, *, config: CityConfig, bar: tqdm) -> None:
    """Writes a city's CSV file and photos under `folder`, on the pool's processes."""
    images, table = folder / "Images" / city, folder / "Dataframes" / f"{city}.csv"
    images.mkdir(parents=True)
    table.parent.mkdir(exist_ok=True)
    write_place = partial(write_training_place, images=images, city=city, config=config)
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for rows in pool.map(write_place, range(config.places_of(city)), chunksize=PLACES_PER_TASK):
            writer.writerows(rows)
            bar.update(len(rows))


def write_training_place(number: int, *, images: Path, city: str, config: CityConfig) -> list[tuple]:
    """Writes a place's photos into the folder `images`. Returns their rows of the CSV file."""
    place = PlaceId(config.seed, city, number)
    scene, corner = draw_place(place, config.size, config.domain), city_corner(config.seed, city)
    names = random_stream(config.seed, city, purpose=Purpose.PLACE, number=number, part=1)
    rows = []
    for index in range(config.photos_per_place):
        photo = draw_photo(scene, index)
        lat, lon = degrees(corner, place_position(number), photo.offset)
        panoid = panorama_id(names)
        rows.append((number, photo.year, photo.month, photo.heading, city, lat, lon, panoid))
        taken = f"{photo.year:04d}_{photo.month:02d}_{photo.heading:03d}"
        save_photo(photo, images / f"{city}_{number:07d}_{taken}_{lat}_{lon}_{panoid}.jpg")
    return rows


def panorama_id(rng: np.random.Generator) -> str:
    """22 letters and digits. The first one is a letter, so that no CSV reader takes the name for a number."""
    return LETTERS[rng.integers(52)] + "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=21))


# ---- The benchmark format


def write_benchmark_split(pool: Executor, folder: Path, split: str, *, config: CityConfig, bar: tqdm) -> None:
    """Writes the split "val" or "test" as `folder`/{database,queries}, on the pool's processes."""
    for name in ("database", "queries"):
        (folder / name).mkdir(parents=True)
    places = config.val_places if split == "val" else config.test_places
    write_place = partial(write_benchmark_place, folder=folder, split=split, config=config)
    for photos in pool.map(write_place, range(places), chunksize=PLACES_PER_TASK):
        bar.update(photos)


def write_benchmark_place(number: int, *, folder: Path, split: str, config: CityConfig) -> int:
    """Writes a place's photos, with their UTM positions in the names. Returns how many they are."""
    scene = draw_place(PlaceId(config.seed, split, number), config.size, config.domain)
    east, north = place_position(number)
    roles = ["database"] * config.database_photos + ["query"] * config.queries
    for index, role in enumerate(roles):
        photo = draw_photo(scene, index, role)
        utm_east, utm_north = UTM_ORIGIN[0] + east + photo.offset[0], UTM_ORIGIN[1] + north + photo.offset[1]
        name = f"@{utm_east:.2f}@{utm_north:.2f}@{number:07d}_{index:02d}@.jpg"
        save_photo(photo, folder / ("queries" if role == "query" else "database") / name)
    return len(roles)


# ---- Positions and files


def place_position(number: int) -> Point:
    """East and north of a place in its city, in metres. Streets run east, in columns on a grid."""
    street, along = divmod(number, PLACES_PER_STREET)
    column, row = divmod(street, STREETS_PER_COLUMN)
    return column * (PLACES_PER_STREET + 2) * PLACE_SPACING + along * PLACE_SPACING, row * STREET_SPACING


def city_corner(seed: int, city: str) -> Point:
    """Latitude and longitude of a training city's first place, in degrees."""
    rng = random_stream(seed, city, purpose=Purpose.STREET, number=0, part=2)
    return between(rng, 36, 54), between(rng, 2, 24)


def degrees(corner: Point, position: Point, offset: Point) -> Point:
    """Latitude and longitude of the point `position` + `offset` (metres east, north) from `corner` (degrees)."""
    east, north = position[0] + offset[0], position[1] + offset[1]
    latitude = corner[0] + north / METRES_PER_DEGREE
    longitude = corner[1] + east / METRES_PER_DEGREE / math.cos(math.radians(corner[0]))
    return round(latitude, 7), round(longitude, 7)


def save_photo(photo: Photo, path: Path) -> None:
    """Writes a photo as JPEG, in the photo's own quality."""
    Image.fromarray(photo.pixels).save(path, quality=photo.quality)


def contact_sheet(
    path: str | Path,
    config: CityConfig,
    *,
    city: str = CITIES[0],
    places: Sequence[int] = range(8),
    roles: Sequence[str] = ("train",) * 8,
) -> None:
    """Writes one picture of many photos: a row for each place, a column for each role (a key of ROLES).

    Size, seed and domain are those of `config`. Raises OSError or ValueError like Image.save.
    """
    rows = []
    for number in places:
        scene = draw_place(PlaceId(config.seed, city, number), config.size, config.domain)
        rows.append(np.hstack([draw_photo(scene, index, role).pixels for index, role in enumerate(roles)]))
    Image.fromarray(np.vstack(rows)).save(path)
