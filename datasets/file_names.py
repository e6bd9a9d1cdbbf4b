"""What the file names of benchmarks tell, as VPR-datasets-downloader writes them: fields separated by @."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.zones import UNKNOWN_ZONE
from model.errors import InputError
from model.index.metadata import MAX_METRES
from utils.runtime.text_files import number_of

LAYOUT = "@easting@northing@zone@letter@lat@lon@id@tile@heading@pitch@roll@height@timestamp@note@.jpg"
EASTING, NORTHING, ZONE, BAND, LAT, LON, IMAGE_ID, TILE, HEADING, TIMESTAMP, NOTE = 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14
ZONE_NUMBER, LATITUDE_BAND = re.compile("0?[1-9]|[1-5][0-9]|60"), re.compile("[C-HJ-NP-X]")
EXPECTED_NAME = "Expected @<utm_easting>@<utm_northing>@...@.jpg with two numbers."
SUFFIX, LAST_NUMBER = re.compile(r"\.[A-Za-z]\w*$"), re.compile(r"\d+(?:\.\d+)?")
MSLS_NOTE = re.compile(r"(?P<light>day|night)_(?P<view>forward|backward|sideways)_(?P<city>.+)")


def order_in_sequence(path: str | Path) -> list[str | int]:
    """A key that sorts the images of a sequence by their names, in which 10 comes after 9."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]


def utm_position(path: str | Path) -> tuple[float, float]:
    """(easting, northing) in metres. Raises InputError, which names the file, if its name does not begin with them."""
    position = find_utm_position(path)
    if position is None:
        raise InputError(
            f"No UTM position in the file name {path}. {EXPECTED_NAME} Give positions with --positions_csv, take those "
            "of EXIF data with --positions exif, or evaluate without them with --no_labels."
        )
    return position


def find_utm_position(path: str | Path) -> tuple[float, float] | None:
    """(easting, northing) in metres; None if the file name does not begin with them."""
    fields = os.path.basename(path).split("@")
    if len(fields) <= NORTHING:
        return None
    position = number_of(fields[EASTING]), number_of(fields[NORTHING])
    return position if all(abs(metres) <= MAX_METRES for metres in position) else None  # NaN is not


def utm_zone(path: str | Path) -> int:
    """The UTM zone that a file name states, as in datasets.zones; 0 if it states none.

    Names have the letter of the latitude band: C to M in the south, N to X in the north.
    """
    number, band = name_field(path, ZONE), name_field(path, BAND)
    if not (ZONE_NUMBER.fullmatch(number) and LATITUDE_BAND.fullmatch(band)):
        return UNKNOWN_ZONE
    return int(number) if band >= "N" else -int(number)


def image_key(path: str | Path) -> str:
    """The id of an image, in MSLS its Mapillary key; "" if its name holds none."""
    return name_field(path, IMAGE_ID)


def mapillary_conditions(paths: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """{condition: indices of the images}: day and night, direction of view, and city, as the notes of MSLS say.

    Empty if a name has no such note.
    """
    notes = [MSLS_NOTE.fullmatch(name_field(path, NOTE)) for path in paths]
    conditions: dict[str, list[int]] = {}
    for group in ("light", "view", "city"):
        for value in sorted({note[group] for note in notes if note}):
            conditions[value] = [i for i, note in enumerate(notes) if note and note[group] == value]
    return {name: np.array(indices) for name, indices in conditions.items()} if all(notes) else {}


def mapillary_city(path: str | Path) -> str | None:
    """The city in the note of an image of MSLS; None if its name has no such note."""
    note = MSLS_NOTE.fullmatch(name_field(path, NOTE))
    return note["city"] if note else None


def frame_of(path: str | Path) -> tuple[str, float]:
    """The recording of which an image is a frame, and the frame's number, or its time, in it.

    The number is the last one in the file name, and what comes before it, with the folder, names the recording. Of
    names in LAYOUT it is the timestamp in the recording of the folder, or else the id counts in place of the name, or
    what follows the position. An image without a number is a recording of its own.
    """
    folder, name = os.path.split(path)
    fields = name.split("@")
    text = SUFFIX.sub("", name)
    if len(fields) > NORTHING + 1:
        time = number_of(name_field(path, TIMESTAMP))
        if math.isfinite(time):
            return folder, time
        text = image_key(path) or SUFFIX.sub("", fields[NORTHING + 1])
    *_, last = (None, *LAST_NUMBER.finditer(text))
    return (os.path.join(folder, text[: last.start()]), float(last[0])) if last else (str(path), 0.0)


def name_field(path: str | Path, number: int) -> str:
    """A field of a file name in LAYOUT, as text; "" if the name has no such field."""
    fields = os.path.basename(path).split("@")
    return fields[number] if len(fields) > number + 1 else ""  # the last field is the suffix
