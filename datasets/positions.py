"""Positions of images whose file names hold none, from a CSV file."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.errors import InputError
from utils.runtime.text_files import read_csv, shorten

UTM_COLUMNS = ("easting", "northing")
DEGREE_COLUMNS = ("latitude", "longitude")
DEGREE_RANGES = {"latitude": (-80.0, 84.0), "longitude": (-180.0, 180.0)}  # UTM covers no more
UTM_ZONE = re.compile("([1-9]|[1-5][0-9]|60)([NS])")


class UTMPositions(NamedTuple):
    """Easting and northing [N, 2] in metres, float64, in one UTM zone, such as "32N" (N or S of the equator)."""

    utms: np.ndarray
    zone: str


class PositionTable:
    """Positions of images from a CSV file: the columns image, easting, northing, or image, latitude, longitude.

    An image is named by its path relative to `folder`, relative to the database or queries folder that contains it,
    or absolute. Latitudes and longitudes (degrees, WGS 84) are converted to UTM, all in one zone: that of most images.
    Attribute: zone, the UTM zone, such as "32N", of positions that were latitudes and longitudes; otherwise None.

    Raises InputError if a column is missing, an image is listed twice, a number is invalid or out of range, or the
    images lie in zones that are not neighbours.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        columns, names, values = _read_table(path)
        self._rows = {name: i for i, name in enumerate(names)}
        self._images: dict[int, str] = {}  # {row: the image that it belongs to}
        if len(self._rows) < len(names):
            duplicate = next(name for i, name in enumerate(names) if self._rows[name] != i)
            raise InputError(f"{path} lists {duplicate} more than once. Tell images apart by their folders.")
        positions = np.array(values, np.float64).reshape(-1, 2)
        self.zone: str | None = None
        if columns == DEGREE_COLUMNS:
            positions, self.zone = utm_of_degrees(positions, names, path)
        elif (np.abs(positions) <= 180).all():
            message = (
                "%s: all eastings and northings are small. If they are degrees, name the columns longitude, latitude."
            )
            logging.warning(message, path)
        self._utms = positions

    def utms(self, paths: Sequence[str], image_folder: Path) -> np.ndarray:
        """[N, 2] float64: easting and northing in metres of images in `image_folder`, its subfolders included.

        Raises InputError if the file lacks one of them, or lists one under two names.
        """
        return self._utms[[self._row(path, image_folder) for path in paths]]

    def _row(self, path: str, image_folder: Path) -> int:
        names = {
            os.path.relpath(path, self.folder),
            os.path.relpath(path, image_folder),
            os.path.abspath(path),
        }
        rows = [self._rows[name] for name in sorted(names) if name in self._rows]
        if len(rows) != 1:
            problem = "has no position for" if not rows else "has two positions for"
            expected = dict.fromkeys(os.path.relpath(path, folder) for folder in (self.folder, image_folder))
            raise InputError(
                f"{self.path} {problem} {path}. Expected one row whose column image is {' or '.join(expected)}."
            )
        other = self._images.setdefault(rows[0], os.path.abspath(path))
        if other != os.path.abspath(path):
            raise InputError(
                f"{self.path}: one row stands for both {other} and {path}. Give each its own row, with their paths "
                f"relative to {self.folder}."
            )
        return rows[0]


def utm_of_degrees(degrees: np.ndarray, names: Sequence[str], source: Path) -> UTMPositions:
    """Latitudes and longitudes [N, 2] -> positions in one UTM zone, that of most images.

    Distances between images are only meaningful in one zone. Next to its border a zone's grid goes on without a
    visible error, but not far: raises InputError, which names `source` and one of the images, for zones that are not
    neighbours. Northing is negative south of the equator if some images lie north of it, and the zone is then "N".
    """
    import utm

    zones = np.array([utm.latlon_to_zone_number(lat, lon) for lat, lon in degrees])
    numbers, counts = np.unique(zones, return_counts=True)
    zone = int(numbers[counts.argmax()])
    distances = np.abs(zones - zone)
    far = np.flatnonzero(np.minimum(distances, 60 - distances) > 1)
    if len(far):
        raise InputError(
            f"{source} has positions in UTM zones that are not neighbours, so distances would be wrong: "
            f"most are in zone {zone}, but {names[far[0]]} is in zone {zones[far[0]]}. Correct the position, "
            "split the images into one dataset for each region, or do without positions (--no_labels; --positions none "
            "in build_index.py)."
        )
    south = degrees[:, 0] < 0
    utms = np.empty_like(degrees)
    for part in (south, ~south):
        if part.any():
            easting, northing, *_ = utm.from_latlon(*degrees[part].T, force_zone_number=zone)
            utms[part] = np.stack([easting, northing], axis=1)
    if south.any() and not south.all():
        utms[south, 1] -= 10_000_000  # the offset that keeps northings of the southern hemisphere positive
    return UTMPositions(utms, f"{zone}{'S' if south.all() else 'N'}")


def degrees_of_utm(utms: np.ndarray, zone: str) -> np.ndarray:
    """Easting and northing [N, 2] in metres in a zone such as "32N" -> latitude and longitude [N, 2], float64, WGS 84.

    Unknown positions (NaN) stay unknown.
    """
    import utm

    match = UTM_ZONE.fullmatch(zone)
    assert match, "a zone of this module"
    latitude, longitude = utm.to_latlon(*utms.T, int(match[1]), northern=match[2] == "N", strict=False)
    return np.stack([latitude, longitude], axis=1)


def _read_table(path: Path) -> tuple[tuple[str, str], list[str], list[tuple[float, ...]]]:
    """The columns of the positions, the images' names and their positions."""
    names, values = [], []
    header, rows = read_csv(path, other_bytes=True)
    columns = _position_columns(path, header)
    for row in rows:
        values.append(tuple(row.number(column, DEGREE_RANGES.get(column)) for column in columns))
        names.append(os.path.normpath(row.text("image")))
    if not names:
        raise InputError(f"{path} lists no images.")
    return columns, names, values


def _position_columns(path: Path, names: Sequence[str]) -> tuple[str, str]:
    for columns in (UTM_COLUMNS, DEGREE_COLUMNS):
        if {"image", *columns} <= set(names):
            return columns
    raise InputError(
        f"{path} has the columns {shorten(', '.join(names)) or '(none)'}. Expected image, easting and northing, or "
        "image, latitude and longitude, separated by commas."
    )
