"""Positions of images whose file names hold none, from a CSV file."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.file_names import MAX_METRES
from datasets.image_rows import ImageRows
from datasets.image_set import ImageSet
from datasets.zones import UNKNOWN_ZONE, zone_of_text
from model.errors import InputError
from utils.runtime.text_files import CsvRow, number_of, read_csv, shorten

UTM_COLUMNS = ("easting", "northing")
DEGREE_COLUMNS = ("latitude", "longitude")
ZONE_COLUMN, HEADING_COLUMN = "zone", "heading"
DEGREE_RANGES = {"latitude": (-90.0, 90.0), "longitude": (-180.0, 180.0)}
RANGES = {**DEGREE_RANGES, **dict.fromkeys(UTM_COLUMNS, (-MAX_METRES, MAX_METRES))}
EASTINGS = (100_000, 900_000)  # in a zone
INHABITED = (-60, 72)  # latitudes of nearly all photos
SWAPPED = "Are latitude and longitude swapped?"


class _Rows(NamedTuple):
    """The content of a table: images' names, their positions [N, 2] in these columns, their zones [N], and their
    headings [N], NaN where there is no number.
    """

    names: list[str]
    columns: tuple[str, str]
    positions: np.ndarray
    zones: np.ndarray
    headings: np.ndarray


class PositionTable:
    """Positions of images from a CSV file: the columns image, easting, northing, or image, latitude, longitude.

    An image is named by its path relative to `folder`, relative to the database or queries folder that contains it,
    or absolute. Eastings and northings may have a further column: zone, such as 32N, in which N and S are the
    hemispheres; empty where it is unknown. Both may have a column heading, which only `headings` reads.

    Raises InputError if a column is missing or appears twice, if there are both pairs of columns, if an image is listed
    twice, or if a number or zone is invalid or out of range.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self._content = names, columns, positions, *_ = _read_table(path)
        self._rows = ImageRows(path, names, folder=folder, content="position")
        if columns == DEGREE_COLUMNS:
            _warn_of_swapped(path, "latitude and longitude", _are_uninhabited(positions))
            return
        _warn_of_swapped(path, "easting and northing", _are_northings(positions))
        if (np.abs(positions) <= 180).all():
            message = (
                "%s: all eastings and northings are small. If they are degrees, name the columns longitude, latitude."
            )
            logging.warning(message, path)

    def locate(self, paths: Sequence[str], image_folder: Path) -> ImageSet:
        """The images with these paths in `image_folder`, its subfolders included, with their positions.

        Raises InputError if the file lacks one of them, or lists one under two names.
        """
        rows = [self._rows.row_of(path, [image_folder]) for path in paths]
        positions = self._content.positions[rows]
        if self._content.columns == DEGREE_COLUMNS:
            return ImageSet.at_degrees(paths, positions)
        return ImageSet.at_utms(paths, positions, self._content.zones[rows])

    def headings(self, paths: Sequence[str], image_folder: Path) -> np.ndarray:
        """The column heading [N] of these images, as it is; NaN where it holds no number.

        Raises InputError as `locate` does.
        """
        return self._content.headings[[self._rows.row_of(path, [image_folder]) for path in paths]]


def _read_table(path: Path) -> _Rows:
    names, values, zones, headings = [], [], [], []
    header, rows = read_csv(path, file_names=True)
    columns = _position_columns(path, header)
    for row in rows:
        values.append(_position(row, columns))
        names.append(row.text("image"))
        zones.append(_zone(row) if columns == UTM_COLUMNS else UNKNOWN_ZONE)
        headings.append(number_of(row.values.get(HEADING_COLUMN)))
    if not names:
        raise InputError(f"{path} lists no images.")
    positions = np.array(values, np.float64).reshape(-1, 2)
    return _Rows(names, columns, positions, np.array(zones, np.int8), headings=np.array(headings))


def _position(row: CsvRow, columns: tuple[str, str]) -> tuple[float, ...]:
    try:
        return tuple(row.number(column, RANGES[column]) for column in columns)
    except InputError as error:
        first, second = (number_of(row.values[column]) for column in columns)
        if columns == DEGREE_COLUMNS and abs(first) <= 180 and abs(second) <= 90:
            raise InputError(f"{error} {SWAPPED}") from None
        raise


def _zone(row: CsvRow) -> int:
    text = (row.values.get(ZONE_COLUMN) or "").strip()
    zone = zone_of_text(text) if text else UNKNOWN_ZONE
    if zone is None:
        raise row.error(
            f"zone is {shorten(repr(text))}. Expected a UTM zone with its hemisphere, such as 32N or 56S, or nothing."
        )
    return zone


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
