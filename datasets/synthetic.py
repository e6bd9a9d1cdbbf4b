"""A procedural city of street places, in the GSV-Cities format and in the benchmark format.

    python -m datasets.synthetic OUTPUT --places 400 --val_places 60 --test_places 100 --seed 0
"""
import argparse
import csv
import math
import os
import shutil
import signal
import sys
import tempfile
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.scenes import PLACE, PLACES_PER_STREET, STREET, between, draw_photo, draw_place, generator

CITIES = ("Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Ilex", "Juniper", "Katsura", "Linden",
          "Maple", "Nutmeg", "Olive", "Poplar")
CSV_HEADER = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
MIN_SIZE = 32  # pixels; smaller photos show nothing of a window
STREETS_PER_COLUMN = 25
PLACE_SPACING, STREET_SPACING = 45.0, 80.0  # metres; photos stray at most 5 m from their place
PLACES_PER_TASK = 4  # that one process draws in a row
UTM_ORIGIN = (500000.0, 4600000.0)  # metres
METRES_PER_DEGREE = 111320.0


def place_position(place):
    """East and north of a place in its city, in metres: streets run east, in columns on a grid."""
    street, along = divmod(place, PLACES_PER_STREET)
    column, row = divmod(street, STREETS_PER_COLUMN)
    return column * (PLACES_PER_STREET + 2) * PLACE_SPACING + along * PLACE_SPACING, row * STREET_SPACING


def degrees(corner, position, offset):
    """Latitude and longitude of a point at `position` + `offset` (metres east, north) from `corner` (degrees)."""
    east, north = position[0] + offset[0], position[1] + offset[1]
    latitude = corner[0] + north / METRES_PER_DEGREE
    return round(latitude, 7), round(corner[1] + east / METRES_PER_DEGREE / math.cos(math.radians(corner[0])), 7)


def save(photo, path):
    """Writes a photo as JPEG, in its own quality."""
    Image.fromarray(photo.pixels).save(path, quality=photo.quality)


def panorama_id(rng):
    """22 letters and digits, a letter first so that no CSV reader takes it for a number."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    return letters[rng.integers(52)] + "".join(letters[i] for i in rng.integers(len(letters), size=21))


def write_training_city(pool, folder, seed, city, places, photos_per_place, size, progress):
    """Writes a city's CSV file and photos in the GSV-Cities format under `folder`, on the pool's processes."""
    images, table = folder / "Images" / city, folder / "Dataframes" / f"{city}.csv"
    images.mkdir(parents=True)
    table.parent.mkdir(exist_ok=True)
    rng = generator(seed, city, STREET, 0, 2)
    corner = (between(rng, 36, 54), between(rng, 2, 24))  # latitude and longitude
    write_place = partial(write_training_place, images=images, seed=seed, city=city, corner=corner, photos=photos_per_place, size=size)
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for rows in pool.map(write_place, range(places), chunksize=PLACES_PER_TASK):
            writer.writerows(rows)
            progress.update(len(rows))


def write_training_place(place, images, seed, city, corner, photos, size):
    """Writes a place's photos into the folder `images`; returns their rows of the CSV file."""
    scene, names = draw_place(seed, city, place, size), generator(seed, city, PLACE, place, 1)
    rows = []
    for number in range(photos):
        photo = draw_photo(seed, city, place, number, scene)
        lat, lon = degrees(corner, place_position(place), photo.offset)
        panoid = panorama_id(names)
        rows.append((place, photo.year, photo.month, photo.heading, city, lat, lon, panoid))
        save(photo, images / f"{city}_{place:07d}_{photo.year:04d}_{photo.month:02d}_{photo.heading:03d}_{lat}_{lon}_{panoid}.jpg")
    return rows


def write_benchmark_split(pool, folder, seed, split, places, database_photos, queries, size, progress):
    """Writes `places` places of "val" or "test" as `folder`/{database,queries}, positions in the names, on the pool's processes."""
    roles = ["database"] * database_photos + ["query"] * queries
    for name in ("database", "queries"):
        (folder / name).mkdir(parents=True)
    write_place = partial(write_benchmark_place, folder=folder, seed=seed, split=split, roles=roles, size=size)
    for photos in pool.map(write_place, range(places), chunksize=PLACES_PER_TASK):
        progress.update(photos)


def write_benchmark_place(place, folder, seed, split, roles, size):
    """Writes a place's photos, one for each of the roles "database" and "query"; returns how many."""
    scene, (east, north) = draw_place(seed, split, place, size), place_position(place)
    for number, role in enumerate(roles):
        photo = draw_photo(seed, split, place, number, scene, role)
        utm = (UTM_ORIGIN[0] + east + photo.offset[0], UTM_ORIGIN[1] + north + photo.offset[1])
        name = f"@{utm[0]:.2f}@{utm[1]:.2f}@{place:07d}_{number:02d}@.jpg"
        save(photo, folder / ("queries" if role == "query" else "database") / name)
    return len(roles)


def check_counts(cities, places, val_places, test_places, photos_per_place, database_photos, queries, size):
    """Raises ValueError for counts below 1 or photos below MIN_SIZE pixels."""
    counts = {"places": places, "val_places": val_places, "test_places": test_places,
              "photos_per_place": photos_per_place, "database_photos": database_photos, "queries": queries}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be 1 or more")
    if not 1 <= len(cities) <= places:
        raise ValueError(f"{len(cities)} cities for {places} places; give 1 city or more, and a place for each")
    if len(set(cities)) < len(cities) or {"val", "test"} & set(cities):
        raise ValueError(f"the names of the cities, {', '.join(cities)}, must differ and be neither val nor test")
    if min(size) < MIN_SIZE:
        raise ValueError(f"the size is {size[0]} x {size[1]} pixels; both must be {MIN_SIZE} or more")


def make_city(output, cities=CITIES[:4], places=400, val_places=60, test_places=100, photos_per_place=8,
              database_photos=2, queries=1, size=(160, 120), seed=0, progress=True):
    """Writes a training set and a benchmark of a city under the new or empty folder `output`.

    `output`/gsv_cities is in the GSV-Cities format, with `places` places in all, shared out over `cities`, each with
    `photos_per_place` photos. `output`/synthetic/images/{val,test}/{database,queries} is in the benchmark format, with
    `database_photos` photos and `queries` queries of each place. `size` is (width, height) in pixels. The same
    arguments give the same bytes. The folder appears under its name only when it is whole.

    Raises ValueError for counts below 1 or a size below 32, FileExistsError where `output` holds something already,
    OSError where it cannot be written, BrokenExecutor where the system ended a process that draws.
    """
    check_counts(cities, places, val_places, test_places, photos_per_place, database_photos, queries, size)
    output = Path(output).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder; name a new one")
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    total = places * photos_per_place + (val_places + test_places) * (database_photos + queries)
    try:
        with ProcessPoolExecutor(os.cpu_count(), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool, \
                tqdm(total=total, unit="photo", disable=not progress) as bar:
            for index, city in enumerate(cities):
                share = places // len(cities) + (index < places % len(cities))
                write_training_city(pool, scratch / "city" / "gsv_cities", seed, city, share, photos_per_place, size, bar)
            for split, count in (("val", val_places), ("test", test_places)):
                folder = scratch / "city" / "synthetic" / "images" / split
                write_benchmark_split(pool, folder, seed, split, count, database_photos, queries, size, bar)
        os.replace(scratch / "city", output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def contact_sheet(path, city=CITIES[0], places=range(8), photos_per_place=8, size=(160, 120), seed=0, roles=None):
    """Writes one picture of many photos: a row for each place, a column for each photo of it.

    `roles` gives the role of each column (default: all "train"). Raises OSError or ValueError as Image.save does.
    """
    rows = []
    for place in places:
        scene = draw_place(seed, city, place, size)
        rows.append(np.hstack([draw_photo(seed, city, place, number, scene, role).pixels
                               for number, role in enumerate(roles or ["train"] * photos_per_place)]))
    Image.fromarray(np.vstack(rows)).save(path)


def parse_arguments(argv=None):
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m datasets.synthetic", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("output", help="new or empty folder; gets gsv_cities/ and synthetic/")
    parser.add_argument("--places", type=int, default=400, help="training places, over all cities")
    parser.add_argument("--val_places", type=int, default=60, help="places of the benchmark's val split")
    parser.add_argument("--test_places", type=int, default=100, help="places of the benchmark's test split")
    parser.add_argument("--photos_per_place", type=int, default=8, help="photos of each training place")
    parser.add_argument("--database_photos", type=int, default=2, help="database photos of each benchmark place")
    parser.add_argument("--queries", type=int, default=1, help="queries of each benchmark place")
    parser.add_argument("--cities", type=int, default=4, choices=range(1, len(CITIES) + 1), metavar="N",
                        help=f"training cities, 1 to {len(CITIES)}")
    parser.add_argument("--size", type=int, nargs=2, default=(160, 120), metavar=("WIDTH", "HEIGHT"), help="pixels")
    parser.add_argument("--seed", type=int, default=0, help="0 or more; the same seed gives the same bytes")
    parser.add_argument("--contact_sheet", metavar="FILE", help="also draw eight places in one picture")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"seed is {args.seed}; it must be 0 or more")
    try:
        check_counts(CITIES[:args.cities], args.places, args.val_places, args.test_places, args.photos_per_place,
                     args.database_photos, args.queries, args.size)
    except ValueError as error:
        parser.error(str(error))
    return args


def main(argv=None):
    args = parse_arguments(argv)
    try:
        make_city(args.output, CITIES[:args.cities], args.places, args.val_places, args.test_places,
                  args.photos_per_place, args.database_photos, args.queries, tuple(args.size), args.seed)
        if args.contact_sheet:
            contact_sheet(args.contact_sheet, size=tuple(args.size), seed=args.seed)
    except (OSError, ValueError, BrokenExecutor) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
