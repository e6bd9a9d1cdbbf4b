"""What the file names of benchmarks tell, as VPR-datasets-downloader writes them: fields separated by @."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.errors import InputError
from utils.runtime.text_files import number_of

LAYOUT = "@easting@northing@zone@letter@lat@lon@id@tile@heading@pitch@roll@height@timestamp@note@.jpg"
EASTING, NORTHING, ZONE, BAND, LAT, LON, IMAGE_ID, TILE, HEADING, TIMESTAMP, NOTE = 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14
ZONE_NUMBER, LATITUDE_BAND = re.compile("0?[1-9]|[1-5][0-9]|60"), re.compile("[C-HJ-NP-X]")
MAX_METRES = 1e8  # of an easting or northing; those of national grids that begin with the zone have eight digits
EXPECTED_NAME = "Expected @<utm_easting>@<utm_northing>@...@.jpg with two numbers."
SUFFIX, LAST_NUMBER = re.compile(r"\.[A-Za-z]\w*$"), re.compile(r"\d+(?:\.\d+)?")
MSLS_NOTE = re.compile(r"(?P<light>day|night)_(?P<view>forward|backward|sideways)_(?P<city>.+)")


def utm_position(path: str | Path) -> tuple[float, float]:
    """(easting, northing) in metres. Raises InputError, which names the file, if its name does not begin with them."""
    position = find_utm_position(path)
    if position is None:
        raise InputError(
            f"No UTM position in the file name {path}. {EXPECTED_NAME} Give positions with --positions_csv, or "
            "evaluate without them with --no_labels."
        )
    return position


def find_utm_position(path: str | Path) -> tuple[float, float] | None:
    """(easting, northing) in metres; None if the file name does not begin with them."""
    fields = os.path.basename(path).split("@")
    if len(fields) <= NORTHING:
        return None
    position = number_of(fields[EASTING]), number_of(fields[NORTHING])
    return position if all(abs(metres) <= MAX_METRES for metres in position) else None  # NaN is not


def common_utm_zone(paths: Sequence[str | Path]) -> str | None:
    """The UTM zone that all these file names state, such as "32N"; None if one states none, or another one.

    N and S stand for the hemispheres. The names have the letter of the latitude band: C to M in the south, N to X in
    the north.
    """
    zones = {_zone(*fields) for fields in {(_field(path, ZONE), _field(path, BAND)) for path in paths}}
    return zones.pop() if len(zones) == 1 else None


def utm_zone(path: str | Path) -> str | None:
    """The UTM zone that a file name states, such as "32N"; None if it states none."""
    return _zone(_field(path, ZONE), _field(path, BAND))


def _zone(number: str, band: str) -> str | None:
    if not (ZONE_NUMBER.fullmatch(number) and LATITUDE_BAND.fullmatch(band)):
        return None
    return f"{int(number)}{'N' if band >= 'N' else 'S'}"


def image_key(path: str | Path) -> str:
    """The id of an image, in MSLS its Mapillary key; "" if its name holds none."""
    return _field(path, IMAGE_ID)


def mapillary_conditions(paths: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """{condition: indices of the images}: day and night, direction of view, and city, as the notes of MSLS say.

    Empty if a name has no such note.
    """
    notes = [MSLS_NOTE.fullmatch(_field(path, NOTE)) for path in paths]
    conditions: dict[str, list[int]] = {}
    for group in ("light", "view", "city"):
        for value in sorted({note[group] for note in notes if note}):
            conditions[value] = [i for i, note in enumerate(notes) if note and note[group] == value]
    return {name: np.array(indices) for name, indices in conditions.items()} if all(notes) else {}


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
        time = number_of(_field(path, TIMESTAMP))
        if math.isfinite(time):
            return folder, time
        text = image_key(path) or SUFFIX.sub("", fields[NORTHING + 1])
    *_, last = (None, *LAST_NUMBER.finditer(text))
    return (os.path.join(folder, text[: last.start()]), float(last[0])) if last else (str(path), 0.0)


def _field(path: str | Path, number: int) -> str:
    fields = os.path.basename(path).split("@")
    return fields[number] if len(fields) > number + 1 else ""  # the last field is the suffix
