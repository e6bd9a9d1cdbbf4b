"""Mapillary Street-Level Sequences (Warburg et al., CVPR 2020) as it is published: a folder for each city, with the
folders database and query, each with images and three CSV files.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.file_names import mapillary_city
from datasets.image_set import ImageSet
from datasets.msls_layout import DATABASE, IMAGES, QUERIES
from model.errors import InputError
from utils.runtime.text_files import CsvRow, read_csv, shorten

SUBTASKS = ("all", "s2w", "w2s", "o2n", "n2o", "d2n", "n2d")
EXPECTED = "<city>/{query,database}/{raw,postprocessed,subtask_index}.csv"


class Tables(NamedTuple):
    """What the CSV files of a folder say of its N images: their keys; utms [N, 2] in metres, NaN if they were not
    asked for; is_panorama [N]; subtasks [N, S], whether they belong to each of the subtasks that were asked for.
    """

    keys: list[str]
    utms: np.ndarray
    is_panorama: np.ndarray
    subtasks: np.ndarray


def read_tables(folder: Path, *, subtasks: Sequence[str] = (), positions: bool = True) -> Tables:
    """Reads `folder/{raw,postprocessed,subtask_index}.csv`, as far as they are needed.

    Raises InputError if a file or a column is missing, a line cannot be parsed, or the files do not fit together.
    """
    rows = _read_rows(folder / "raw.csv", ("key", "pano"))
    places = _read_rows(folder / "postprocessed.csv", ("key", "easting", "northing")) if positions else rows
    members = _read_rows(folder / "subtask_index.csv", subtasks) if subtasks else rows
    if not len(rows) == len(places) == len(members):
        raise InputError(
            f"The CSV files in {folder} have {len(rows)}, {len(places)} and {len(members)} rows. Expected the same "
            "number of rows in each."
        )
    keys = []
    for row, place in zip(rows, places, strict=True):
        keys.append(row.text("key"))
        if place.values["key"] != keys[-1]:
            raise place.error(f"the key is {place.values['key']}, but {keys[-1]} in raw.csv.")
    utms = [(row.number("easting"), row.number("northing")) for row in places] if positions else []
    return Tables(
        keys,
        np.array(utms).reshape(-1, 2) if positions else np.full((len(keys), 2), np.nan),
        is_panorama=np.array([_is_true(row, "pano") for row in rows], bool),
        subtasks=np.array([[_is_true(row, name) for name in subtasks] for row in members], bool),
    )


def _read_rows(path: Path, columns: Sequence[str]) -> list[CsvRow]:
    if not path.is_file():
        raise InputError(
            f"No file {path}. Expected MSLS as it is published, not converted: {EXPECTED}. The ground truth of its "
            "test cities is public since 2026-04-13: unpack it there, or evaluate without it (--no_labels)."
        )
    return list(read_csv(path, columns)[1])


def _is_true(row: CsvRow, column: str) -> bool:
    return row.text(column).strip().lower() == "true"


class CityImages(NamedTuple):
    """The images of a folder without panoramas; subtasks: {key: to which of SUBTASKS it belongs, bool [7]}."""

    images: ImageSet
    subtasks: dict[str, np.ndarray]


def match_images(folder: Path, paths: Sequence[str], *, labels: bool) -> CityImages:
    """The images with these paths in `folder/images`, with positions and subtasks unless there are no labels.

    Raises InputError as read_tables does, if an image is in no CSV file, or if one that is there has no file.
    """
    tables = read_tables(folder, subtasks=SUBTASKS if labels else (), positions=labels)
    rows = {key: i for i, key in enumerate(tables.keys)}
    files = {key_of(path): path for path in paths}
    unnamed = [path for key, path in files.items() if key not in rows]
    if unnamed:
        raise InputError(
            f"{len(unnamed)} of {len(paths)} images in {folder} are not in {folder / 'raw.csv'}, such as {unnamed[0]}. "
            "Move them to another folder."
        )
    absent = [key for key, row in rows.items() if key not in files and not tables.is_panorama[row]]
    if absent:
        raise InputError(
            f"{folder / 'raw.csv'} lists {len(absent)} images that are not in {folder / IMAGES}, such as "
            f"{shorten(absent[0])}.jpg. Unpack all parts of MSLS."
        )
    chosen = {path: rows[key] for key, path in files.items() if not tables.is_panorama[rows[key]]}
    if not chosen:
        raise InputError(f"All {len(paths)} images in {folder} are panoramas, which the evaluation of MSLS leaves out.")
    indices = np.array(list(chosen.values()))
    subtasks = dict(zip(map(key_of, chosen), tables.subtasks[indices], strict=True)) if labels else {}
    return CityImages(ImageSet.at_utms(list(chosen), tables.utms[indices]), subtasks)


def key_of(path: str | Path) -> str:
    """The key of an image that MSLS publishes: its name."""
    return os.path.splitext(os.path.basename(path))[0]


def read_subtasks(folder: Path) -> dict[str, np.ndarray]:
    """{key: to which of SUBTASKS it belongs, bool [7]} of all images that a folder's CSV files list, without looking
    for the images. Raises InputError as read_tables does.
    """
    tables = read_tables(folder, subtasks=SUBTASKS, positions=False)
    return dict(zip(tables.keys, tables.subtasks, strict=True))


def city_of(path: str | Path) -> str | None:
    """The city of an image of MSLS, by its folders or, as VPR-datasets-downloader writes it, its name; None if neither
    states one.
    """
    *_, city, part, images, _ = ("", "", "", *str(path).split(os.sep))
    if part in (DATABASE, QUERIES) and images == IMAGES:
        return city
    return mapillary_city(path)


def published_key(path: str | Path) -> str:
    """The key of an image that lies in MSLS's own folders; "" elsewhere."""
    *_, part, images, _ = ("", "", *str(path).split(os.sep))
    return key_of(path) if part in (DATABASE, QUERIES) and images == IMAGES else ""


class Cities(NamedTuple):
    """The cities of a benchmark: their names, and their numbers for each database image [N] and query [Q]."""

    names: list[str]
    database: np.ndarray
    queries: np.ndarray


def cities_of(database: Iterable[str | Path], queries: Iterable[str | Path]) -> Cities | None:
    """The cities of images; None if some are unknown. Raises InputError if queries are of cities without a database."""
    asked = _known_cities(queries)  # first: the paths of a search engine's database are read one by one
    known = _known_cities(database) if asked is not None else None
    if asked is None or known is None or not (asked or known):
        return None
    names = sorted({*known, *asked})
    numbers = {city: number for number, city in enumerate(names)}
    lonely = {*asked} - {*known}
    if lonely and known:
        raise InputError(f"There are queries of {min(lonely)}, but the database has no image of it. Add that city.")
    return Cities(names, *(np.array([numbers[city] for city in side], np.int64) for side in (known, asked)))


def _known_cities(paths: Iterable[str | Path]) -> list[str] | None:
    """The cities of images; None if one is unknown, after which no other path is read."""
    cities: list[str] = []
    for path in paths:
        city = city_of(path)
        if not city:
            return None
        cities.append(city)
    return cities
