"""The images of the sources: MSLS, Pitts30k and SF-XL, each with a file name in one common form."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import utm
from tqdm import tqdm

from datasets.file_names import EASTING, IMAGE_ID, LON, TILE
from datasets.layouts import is_system_name, warn_of_skipped
from datasets.unified.config import MSLS_CITIES, PITTS30K, SF_XL, UnifiedConfig
from datasets.unified.names import source_name, split_name
from datasets.unified.places import SF_XL_GRID, STREET_GRID, Grid
from datasets.zones import UTM_LATITUDES
from model.errors import InputError
from model.geodesy import wrap_longitude
from utils.runtime.text_files import CsvRow, read_csv

MSLS_PARTS = ("database", "query")
MSLS_COLUMNS = ("key", "lon", "lat", "ca", "captured_at", "pano")
MSLS_TABLES = "train_val/<city>/{database,query}/raw.csv"
MOVED_PARTS = ("database", "queries")  # of <msls>/train
PITTS30K_FOLDERS = ("images/train/database", "images/train/queries")
PITTS30K_YAWS = 12  # headings, 30 degrees apart
PITTS30K_TIMESTAMP = "202409"  # as in the original; the names of the images tell no date
SF_XL_FOLDER = "images/train"
SUFFIX = ".jpg"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The images of one of CITIES.

    names: in the form `file_names.LAYOUT`, sorted; they number groups and places. files: the images' paths, relative to
    `folder`, in the same order. panoramas, empty_files: images that were left out because they are panoramas, or files
    of 0 bytes.
    """

    city: str
    folder: Path
    names: list[str]
    files: list[str]
    grid: Grid
    panoramas: int = 0
    empty_files: int = 0


def check_sources(config: UnifiedConfig) -> None:
    """Raises one InputError that names everything that is missing."""
    problems = []
    for flag, root, folders, cities in (
        ("--msls", config.msls, (".",), MSLS_CITIES),
        ("--pitts30k", config.pitts30k, PITTS30K_FOLDERS, (PITTS30K,)),
        ("--sf_xl", config.sf_xl, (SF_XL_FOLDER,), (SF_XL,)),
    ):
        if not set(cities) & set(config.cities):
            continue
        if root is None:
            problems.append(f"{flag} is not given")
        else:
            problems += [f"there is no folder {root / folder}" for folder in folders if not (root / folder).is_dir()]
    msls_cities = [city for city in config.cities if city in MSLS_CITIES]
    missing = [city for city in msls_cities if config.msls and not _msls_folder(config.msls, city)]
    if missing:
        problems.append(f"{config.msls} lacks {MSLS_TABLES} for {', '.join(missing)}")
    if problems:
        raise InputError(f"Missing sources: {'; '.join(problems)}. Provide them, or choose other cities with --cities.")


def read_sources(config: UnifiedConfig) -> Iterator[Source]:
    """The source of each city. Raises InputError, which names the file, if one cannot be used."""
    moved = _moved_images(config.msls) if config.msls else {}
    for city in config.cities:
        root = {PITTS30K: config.pitts30k, SF_XL: config.sf_xl}.get(city, config.msls)
        assert root, "check_sources has been called"
        if city == PITTS30K:
            yield read_pitts30k(root)
        elif city == SF_XL:
            yield read_sf_xl(root)
        else:
            yield read_msls_city(root, city, moved)


# ---- MSLS


def read_msls_city(root: Path, city: str, moved: Mapping[str, str]) -> Source:
    """A city of MSLS, database and queries together. moved: {key: file}, images that are not beside their raw.csv.

    Raises InputError, with file and line, if a line cannot be parsed or its image is missing.
    """
    folder = _msls_folder(root, city)
    assert folder, "check_sources has been called"
    images: dict[str, tuple[str, str]] = {}  # key: (name, file)
    panoramas = empty_files = 0
    for part in MSLS_PARTS:
        table, images_folder = folder / part / "raw.csv", folder / part / "images"
        available = set(os.listdir(images_folder)) if images_folder.is_dir() else set()
        prefix = images_folder.relative_to(root).as_posix()
        for row in read_csv(table, MSLS_COLUMNS, exact=True)[1]:
            is_panorama = row.text("pano").strip()
            if is_panorama not in ("True", "False"):
                raise row.error(f"pano is {is_panorama!r}. Expected True or False.")
            if is_panorama == "True":
                panoramas += 1
                continue
            key, name = row.text("key"), _msls_name(row)
            if key in images:
                raise row.error(f"the key {key} is listed for the second time in {city}.")
            file = f"{prefix}/{key}.jpg" if f"{key}.jpg" in available else moved.get(key)
            if not file:
                looked_in = f"{images_folder} or in {root}/train/{{{','.join(MOVED_PARTS)}}}"
                raise row.error(f"the image {key}.jpg is missing: it is neither in {looked_in}.")
            if not os.stat(root / file).st_size:  # MSLS itself holds three
                empty_files += 1
                continue
            images[key] = name, file
    names, files = _sorted_columns(images.values())
    return Source(
        city=city,
        folder=root,
        names=names,
        files=files,
        grid=STREET_GRID,
        panoramas=panoramas,
        empty_files=empty_files,
    )


def _msls_folder(root: Path, city: str) -> Path | None:
    """The folder that holds a city's raw.csv files."""
    for folder in (root / "train_val" / city, root / "train" / city):
        if all((folder / part / "raw.csv").is_file() for part in MSLS_PARTS):
            return folder
    return None


def _moved_images(root: Path) -> dict[str, str]:
    """{key: path relative to `root`} of the images that VPR-datasets-downloader has moved and renamed."""
    files = {}
    for part in MOVED_PARTS:
        folder = root / "train" / part
        for name in os.listdir(folder) if folder.is_dir() else ():
            fields = name.split("@")
            if len(fields) > IMAGE_ID + 1 and name.endswith(SUFFIX) and not is_system_name(name):
                files[fields[IMAGE_ID]] = f"train/{part}/{name}"
    return files


def _msls_name(row: CsvRow) -> str:
    lat, lon = row.number("lat", UTM_LATITUDES), row.number("lon", (-180, 180))
    heading, key, date = int(row.number("ca")), row.text("key"), row.text("captured_at").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise row.error(f"key is {key!r}. Expected letters, digits, - and _.")
    try:
        taken = datetime.strptime(date, "%Y-%m-%d")
    except ValueError:
        raise row.error(f"captured_at is {date!r}. Expected YYYY-MM-DD.") from None
    # One call for each image: called with arrays, utm converts all points in the zone of the first.
    easting, northing, zone, letter = utm.from_latlon(lat, wrap_longitude(lon))
    position = f"{easting:010.2f}@{northing:010.2f}@{zone:02d}@{letter}@{lat:09.5f}@{lon:010.5f}"
    return source_name(position, key, heading=heading, timestamp=f"{taken.year:04d}{taken.month:02d}")


# ---- Pitts30k and SF-XL


def read_pitts30k(root: Path) -> Source:
    """Pitts30k, database and queries of the training split together. Raises InputError, which names the file."""
    images = []
    for folder in PITTS30K_FOLDERS:
        for file in _list_images(root / folder):
            try:
                images.append((_pitts30k_name(file), f"{folder}/{file}"))
            except ValueError as error:
                raise InputError(f"{root / folder / file}: {error}.") from None
    names, files = _sorted_columns(images)
    return Source(city=PITTS30K, folder=root, names=names, files=files, grid=STREET_GRID)


def _pitts30k_name(file: str) -> str:
    fields = split_name(file, last=TILE)
    tile = fields[TILE]
    if not re.fullmatch("[0-9]+", tile):
        raise ValueError(f"the tile is {tile!r}; expected pitch * 24 + yaw")
    # The original draws a random id. This one is the same on every run, and unique as well.
    image_id = f"{fields[IMAGE_ID]}-{tile}"
    heading = int(tile) % PITTS30K_YAWS * (360 // PITTS30K_YAWS)
    position = "@".join(fields[EASTING : LON + 1])
    return source_name(position, image_id, heading=heading, timestamp=PITTS30K_TIMESTAMP)


def read_sf_xl(root: Path) -> Source:
    """The training images of SF-XL. Their names are taken as they are, sorted with the folders they lie in."""
    names = sorted(_list_images(root / SF_XL_FOLDER))
    return Source(city=SF_XL, folder=root / SF_XL_FOLDER, names=names, files=names, grid=SF_XL_GRID)


def _list_images(folder: Path) -> Iterator[str]:
    """Paths relative to `folder` of the images in it and its subfolders, separated by /."""
    skipped: list[str] = []
    with tqdm(desc=f"Listing {folder}", unit=" images", leave=False, disable=None) as bar:
        for path, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
            images = [name for name in files if name.endswith(SUFFIX)]
            skipped += [f"{path}/{name}" for name in (*folders, *images) if is_system_name(name)]
            folders[:] = [name for name in folders if not is_system_name(name)]  # os.walk enters these only
            prefix = Path(path).relative_to(folder).as_posix() + "/"
            names = [name for name in images if not is_system_name(name)]
            yield from (name if prefix == "./" else prefix + name for name in names)
            bar.update(len(names))
    warn_of_skipped(skipped, folder)


def _raise(error: OSError) -> None:
    raise error


def _sorted_columns(images: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    pairs = sorted(images)
    return [name for name, _ in pairs], [file for _, file in pairs]
