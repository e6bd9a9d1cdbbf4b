"""File names: those of the sources, whose fields are separated by @, and those of the GSV-Cities format."""

import math
import re

from datasets.cities import COLUMNS
from datasets.file_names import EASTING, HEADING, IMAGE_ID, LAT, LAYOUT, LON, NORTHING, TIMESTAMP
from datasets.unified.places import Cell, Grid
from utils.runtime.text_files import number_of

NORTH_DEGREES = 10  # of every image: the format needs a heading, and training ignores it


def source_name(position: str, image_id: str, *, heading: int | str, timestamp: str) -> str:
    """A source's file name. position: easting to lon, already joined by @; heading: "" if unknown; timestamp:
    YYYYMM.
    """
    return f"@{position}@{image_id}@@{heading}@@@@{timestamp}@@.jpg"


def split_name(path: str, last: int = TIMESTAMP) -> list[str]:
    """The fields of a source's file name. Raises ValueError if it ends before the field `last`."""
    fields = path.rpartition("/")[2].split("@")
    if len(fields) <= last + 1:  # the suffix follows the last field
        raise ValueError(f"the file name has {max(len(fields) - 2, 0)} fields; expected {last} or more of {LAYOUT}")
    return fields


def cell_of(name: str, grid: Grid) -> Cell:
    """The cell of a source's image. Raises ValueError if its name lacks a field or a number."""
    fields = split_name(name)
    texts = fields[EASTING], fields[NORTHING], fields[HEADING]
    try:
        return grid.cell(*map(number_of, texts))
    except ValueError:
        raise ValueError(f"easting, northing and heading are {', '.join(texts)}; expected finite numbers") from None


def row_of(name: str, *, city: str, place: int) -> dict[str, str]:
    """The row of a source's image: the values of COLUMNS. Raises ValueError if its date or position cannot be used."""
    fields = split_name(name)
    lat, lon, timestamp = fields[LAT], fields[LON], fields[TIMESTAMP]
    if not re.fullmatch(r"[0-9]{4}(0[1-9]|1[0-2])", timestamp):
        raise ValueError(f"the timestamp is {timestamp!r}; expected YYYYMM")
    if not (math.isfinite(number_of(lat)) and math.isfinite(number_of(lon))):
        raise ValueError(f"latitude and longitude are {lat!r} and {lon!r}; expected numbers")
    values = str(place), timestamp[:4], timestamp[4:], str(NORTH_DEGREES), city, lat, lon, fields[IMAGE_ID]
    return dict(zip(COLUMNS, values, strict=True))
