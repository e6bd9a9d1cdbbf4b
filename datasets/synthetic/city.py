"""Writing a city: a training set in the GSV-Cities format and a benchmark in the benchmark format."""

import csv
import math
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.cities import COLUMNS
from datasets.synthetic.config import CITIES, CityConfig
from datasets.synthetic.photo import Photo, draw_photo
from datasets.synthetic.randomness import PLACES_PER_STREET, PlaceId, between
from datasets.synthetic.scene import draw_place
from utils.runtime.atomic_files import atomic_folder, make_folder, require_new_folder
from utils.runtime.workers import leave_stopping_to_the_main_process

STREETS_PER_COLUMN = 25
PLACE_SPACING, STREET_SPACING = 45.0, 80.0  # metres; photos stray at most 5 m from their place
PLACES_PER_TASK = 4  # that one process draws in a row
UTM_ORIGIN = (500000.0, 4600000.0)  # east and north of the benchmark's first place, in metres
METRES_PER_DEGREE = 111320.0
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def make_city(output: str | Path, config: CityConfig, progress: bool = True) -> None:
    """Writes a training set and a benchmark under the new or empty folder `output`, on as many processes as CPUs.

    `output`/gsv_cities is in the GSV-Cities format, `output`/synthetic/images/{val,test}/{database,queries} in the
    benchmark format. The same config gives the same bytes. The folder appears under its name only when it is
    complete.

    Raises InputError if `output` is a file, a folder with something in it, or cannot be written, and BrokenExecutor
    if the system ended a process that draws.
    """
    output = Path(output).absolute()
    require_new_folder(output)
    make_folder(output.parent, exist_ok=True)
    with (
        atomic_folder(output) as folder,
        ProcessPoolExecutor(os.cpu_count(), initializer=leave_stopping_to_the_main_process) as pool,
        tqdm(total=config.num_photos, unit="photo", disable=not progress) as bar,
    ):
        for city in config.cities:
            gsv_cities = folder / "gsv_cities"
            images, table = gsv_cities / "Images" / city, gsv_cities / "Dataframes" / f"{city}.csv"
            images.mkdir(parents=True)
            table.parent.mkdir(exist_ok=True)
            write_place = partial(write_training_place, images=images, city=city, config=config)
            with open(table, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                for rows in pool.map(write_place, range(config.places_of(city)), chunksize=PLACES_PER_TASK):
                    writer.writerows(rows)
                    bar.update(len(rows))
        for split, places in (("val", config.val_places), ("test", config.test_places)):
            images = folder / "synthetic" / "images" / split
            for kind in ("database", "queries"):
                (images / kind).mkdir(parents=True)
            draw = partial(write_benchmark_place, images=images, split=split, config=config)
            for photos in pool.map(draw, range(places), chunksize=PLACES_PER_TASK):
                bar.update(photos)


def write_training_place(number: int, *, images: Path, city: str, config: CityConfig) -> list[tuple]:
    """Writes a place's photos into the folder `images`. Returns their rows of the CSV file."""
    place = PlaceId(config.seed, city, number)
    scene, names = draw_place(place, config.size, config.domain), place.place_stream(1)
    origin = PlaceId(config.seed, city, 0).street_stream(2)
    south, west = between(origin, 36, 54), between(origin, 2, 24)  # the city's first place, in degrees
    place_east, place_north = place_position(number)
    rows = []
    for index in range(config.photos_per_place):
        photo = draw_photo(scene, index)
        east, north = place_east + photo.offset[0], place_north + photo.offset[1]
        lat = round(south + north / METRES_PER_DEGREE, 7)
        lon = round(west + east / METRES_PER_DEGREE / math.cos(math.radians(south)), 7)
        # The first one is a letter, so that no CSV reader takes the name for a number.
        panoid = LETTERS[names.integers(52)] + "".join(LETTERS[i] for i in names.integers(len(LETTERS), size=21))
        rows.append((number, photo.year, photo.month, photo.heading, city, lat, lon, panoid))
        taken = f"{photo.year:04d}_{photo.month:02d}_{photo.heading:03d}"
        save_photo(photo, images / f"{city}_{number:07d}_{taken}_{lat}_{lon}_{panoid}.jpg")
    return rows


def write_benchmark_place(number: int, *, images: Path, split: str, config: CityConfig) -> int:
    """Writes a place's photos, with their UTM positions in the names. Returns how many they are."""
    scene = draw_place(PlaceId(config.seed, split, number), config.size, config.domain)
    place_east, place_north = place_position(number)
    roles = ["database"] * config.database_photos + ["query"] * config.queries
    for index, role in enumerate(roles):
        photo = draw_photo(scene, index, role)
        east, north = UTM_ORIGIN[0] + place_east + photo.offset[0], UTM_ORIGIN[1] + place_north + photo.offset[1]
        name = f"@{east:.2f}@{north:.2f}@{number:07d}_{index:02d}@.jpg"
        save_photo(photo, images / ("queries" if role == "query" else "database") / name)
    return len(roles)


def place_position(number: int) -> tuple[float, float]:
    """East and north of a place in its city, in metres. Streets run east, in columns on a grid."""
    street, along = divmod(number, PLACES_PER_STREET)
    column, row = divmod(street, STREETS_PER_COLUMN)
    return column * (PLACES_PER_STREET + 2) * PLACE_SPACING + along * PLACE_SPACING, row * STREET_SPACING


def save_photo(photo: Photo, path: Path) -> None:
    """Writes a photo as JPEG, in the photo's own quality."""
    Image.fromarray(photo.pixels).save(path, quality=photo.quality)


def contact_sheet(path: str | Path, config: CityConfig) -> None:
    """Writes one picture of eight photos of each of eight places of a city: a row for each place.

    Size, seed and domain are those of `config`. Raises OSError or ValueError like Image.save.
    """
    scenes = [draw_place(PlaceId(config.seed, CITIES[0], number), config.size, config.domain) for number in range(8)]
    rows = [np.hstack([draw_photo(scene, index).pixels for index in range(8)]) for scene in scenes]
    Image.fromarray(np.vstack(rows)).save(path)
