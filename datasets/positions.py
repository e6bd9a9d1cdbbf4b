"""Positions of images whose file names hold none, from a CSV file."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.file_names import MAX_METRES
from model.errors import InputError
from utils.runtime.text_files import CsvRow, NameTable, number_of, read_csv, shorten

UTM_COLUMNS = ("easting", "northing")
DEGREE_COLUMNS = ("latitude", "longitude")
DEGREE_RANGES = {"latitude": (-80.0, 84.0), "longitude": (-180.0, 180.0)}  # UTM covers no more
RANGES = {**DEGREE_RANGES, **dict.fromkeys(UTM_COLUMNS, (-MAX_METRES, MAX_METRES))}
MAX_DISTANCE = 9  # degrees of a great circle from the middle of a zone: to the far edges of the neighbours
MAX_METRES_IN_ZONE = 2e7  # of a northing; farther is no point on Earth
EASTINGS = (100_000, 900_000)  # in a zone
INHABITED = (-60, 72)  # latitudes of nearly all photos
SWAPPED = "Are latitude and longitude swapped?"
UTM_ZONE = re.compile("([1-9]|[1-5][0-9]|60)([NS])")


class UTMPositions(NamedTuple):
    """Easting and northing [N, 2] in metres, float64, in one UTM zone, such as "32N" (N or S of the equator). Those of
    the images `far` [n], int64, ascending, are unknown (NaN), because they lie too far from that zone.
    """

    utms: np.ndarray
    zone: str
    far: np.ndarray


class PositionTable:
    """Positions of images from a CSV file: the columns image, easting, northing, or image, latitude, longitude.

    An image is named by its path relative to `folder`, relative to the database or queries folder that contains it,
    or absolute. Latitudes and longitudes (degrees, WGS 84) are converted to UTM, all in one zone: that of most images.
    Attribute: zone, the UTM zone, such as "32N", of positions that were latitudes and longitudes; otherwise None.
    far_are_unknown: positions too far from that zone are unknown (NaN), with a warning, rather than an error.

    Raises InputError if a column is missing or appears twice, if there are both pairs of columns, if an image is listed
    twice, if a number is invalid or out of range, and for positions too far from the zone of most.
    """

    def __init__(self, path: Path, folder: Path, *, far_are_unknown: bool = False) -> None:
        self.path = path
        self.folder = folder
        columns, names, values = _read_table(path)
        self._rows = NameTable((name, i) for i, name in enumerate(names))
        self._images: dict[int, str] = {}  # {row: the image that it belongs to}
        if len(set(names)) < len(names):
            duplicate = next(name for name, count in Counter(names).items() if count > 1)
            raise InputError(f"{path} lists {duplicate} more than once. Tell images apart by their folders.")
        positions = np.array(values, np.float64).reshape(-1, 2)
        self.zone: str | None = None
        if columns == DEGREE_COLUMNS:
            _warn_of_swapped(path, "latitude and longitude", _are_uninhabited(positions))
            self._utms, self.zone = self._convert(positions, names, far_are_unknown)
            return
        self._utms = positions
        _warn_of_swapped(path, "easting and northing", _are_northings(positions))
        if (np.abs(positions) <= 180).all():
            message = (
                "%s: all eastings and northings are small. If they are degrees, name the columns longitude, latitude."
            )
            logging.warning(message, path)

    def _convert(self, degrees: np.ndarray, names: list[str], far_are_unknown: bool) -> tuple[np.ndarray, str]:
        utms, zone, far = utm_of_degrees(degrees)
        if len(far) and far_are_unknown:
            warn_of_far([names[i] for i in far], zone, self.path)
        elif len(far):
            lat, lon = degrees[far[0]]
            is_other_way = abs(lon) <= 84 and abs(_zone_number(lon, lat) - int(zone[:-1])) <= 1
            swapped = f" {SWAPPED}" if is_other_way else ""
            raise InputError(
                f"{self.path} has positions in UTM zones that are not neighbours, so distances would be wrong: most "
                f"are in zone {zone[:-1]}, but {names[far[0]]} is in zone {_zone_number(lat, lon)}.{swapped} Correct "
                "the position, split the images into one dataset for each region, or do without positions "
                "(--no_labels)."
            )
        return utms, zone

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
        rows = list(self._rows.find(*names))
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


def utm_of_degrees(degrees: np.ndarray) -> UTMPositions:
    """Latitudes and longitudes [N, 2] -> positions in one UTM zone, that of most images.

    Distances between images are only meaningful in one zone. Next to its border a zone's grid goes on without a
    visible error, but not beyond the neighbouring zones. Northing is negative south of the equator if some images lie
    north of it, and the zone is then "N".
    """
    import utm

    latitudes, longitudes = degrees[:, 0], wrap_longitude(degrees[:, 1])
    numbers = [_zone_number(*position) for position in zip(latitudes, longitudes, strict=True)]
    ((zone, _),) = Counter(sorted(numbers)).most_common(1)
    from_middle = wrap_longitude(longitudes - (6 * zone - 183)) * np.cos(np.radians(latitudes))
    is_far = np.abs(from_middle) > MAX_DISTANCE
    south, utms = latitudes < 0, np.full_like(degrees, np.nan)
    for part in (south & ~is_far, ~south & ~is_far):
        if part.any():
            easting, northing, *_ = utm.from_latlon(latitudes[part], longitudes[part], force_zone_number=zone)
            utms[part] = np.stack([easting, northing], axis=1)
    south, north = (south & ~is_far), (~south & ~is_far)
    if south.any() and north.any():
        utms[south, 1] -= 10_000_000  # the offset that keeps northings of the southern hemisphere positive
    return UTMPositions(utms, f"{zone}{'N' if north.any() else 'S'}", np.flatnonzero(is_far))


def wrap_longitude(degrees: Any) -> Any:
    """Degrees -> the same from -180 (included) to 180. utm before 0.8 puts 180 in a zone 61."""
    return degrees - 360 * np.floor((degrees + 180) / 360)  # exact where nothing changes


def warn_of_far(names: Sequence[str], zone: str, source: str | Path) -> None:
    """Warns of images whose positions utm_of_degrees left out."""
    message = "%s: %d positions are too far from UTM zone %s, in which most lie, and count as unknown: %s"
    logging.warning(message, source, len(names), zone, shorten(", ".join(names)))


def _zone_number(latitude: float, longitude: float) -> int:
    import utm

    return utm.latlon_to_zone_number(latitude, wrap_longitude(longitude))


def degrees_of_utm(utms: np.ndarray, zone: str) -> np.ndarray:
    """Easting and northing [N, 2] in metres in a zone such as "32N" -> latitude and longitude [N, 2], float64, WGS 84.

    Unknown positions (NaN) stay unknown. Those that no point on Earth has in the zone become unknown.
    """
    import utm

    match = UTM_ZONE.fullmatch(zone)
    assert match, "a zone of this module"
    latitude, longitude = utm.to_latlon(*utms.T, int(match[1]), northern=match[2] == "N", strict=False)
    degrees = np.stack([latitude, longitude], axis=1)
    degrees[~((np.abs(utms) <= MAX_METRES_IN_ZONE) & (np.abs(degrees) <= (90, 180))).all(axis=1)] = np.nan
    return degrees


def _read_table(path: Path) -> tuple[tuple[str, str], list[str], list[tuple[float, ...]]]:
    """The columns of the positions, the images' names and their positions."""
    names, values = [], []
    header, rows = read_csv(path, file_names=True)
    columns = _position_columns(path, header)
    for row in rows:
        values.append(_position(row, columns))
        names.append(os.path.normpath(row.text("image")))
    if not names:
        raise InputError(f"{path} lists no images.")
    return columns, names, values


def _position(row: CsvRow, columns: tuple[str, str]) -> tuple[float, ...]:
    try:
        return tuple(row.number(column, RANGES[column]) for column in columns)
    except InputError as error:
        first, second = (number_of(row.values[column]) for column in columns)
        if columns == DEGREE_COLUMNS and abs(first) <= 180 and abs(second) <= 84:
            raise InputError(f"{error} {SWAPPED}") from None
        raise


def _are_uninhabited(degrees: np.ndarray) -> bool:
    """Whether all latitudes are those of ice and open sea, and the longitudes would be common latitudes."""
    low, high = INHABITED
    is_common = (low <= degrees) & (degrees <= high)
    return bool((~is_common[:, 0] & is_common[:, 1]).all())


def _are_northings(utms: np.ndarray) -> bool:
    """Whether all eastings lie outside UTM's range, and all northings in it."""
    low, high = EASTINGS
    in_range = (low <= utms) & (utms <= high)
    return bool((~in_range[:, 0] & in_range[:, 1]).all())


def _warn_of_swapped(path: Path, columns: str, is_plausible: bool) -> None:
    if is_plausible:
        logging.warning(
            "%s: the values of %s would be more likely the other way round. Are they swapped?", path, columns
        )


def _position_columns(path: Path, names: Sequence[str]) -> tuple[str, str]:
    if {*UTM_COLUMNS, *DEGREE_COLUMNS} <= set(names):
        raise InputError(f"{path} has positions both in metres and in degrees. Remove one pair of columns.")
    for columns in (UTM_COLUMNS, DEGREE_COLUMNS):
        if {"image", *columns} <= set(names):
            return columns
    raise InputError(
        f"{path} has the columns {shorten(', '.join(names)) or '(none)'}. Expected image, easting and northing, or "
        "image, latitude and longitude, separated by commas."
    )
