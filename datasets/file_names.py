"""What the file names of benchmarks tell, as VPR-datasets-downloader writes them: fields separated by @."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.errors import InputError

LAYOUT = "@easting@northing@zone@letter@lat@lon@id@tile@heading@pitch@roll@height@timestamp@note@.jpg"
EASTING, NORTHING, ZONE, BAND, LAT, LON, IMAGE_ID, TILE, HEADING, TIMESTAMP, NOTE = 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14
ZONE_NUMBER, LATITUDE_BAND = re.compile("0?[1-9]|[1-5][0-9]|60"), re.compile("[C-HJ-NP-X]")
EXPECTED_NAME = "Expected @<utm_easting>@<utm_northing>@...@.jpg with two numbers."
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
    try:
        position = float(fields[EASTING]), float(fields[NORTHING])
    except (IndexError, ValueError):
        return None
    return position if all(map(math.isfinite, position)) else None


def common_utm_zone(paths: Sequence[str | Path]) -> str | None:
    """The UTM zone that all these file names state, such as "32N"; None if one states none, or another one.

    N and S stand for the hemispheres. The names have the letter of the latitude band: C to M in the south, N to X in
    the north.
    """
    zones = {(_field(path, ZONE), _field(path, BAND)) for path in paths}
    if not all(ZONE_NUMBER.fullmatch(number) and LATITUDE_BAND.fullmatch(band) for number, band in zones):
        return None
    zones = {(str(int(number)), "N" if band >= "N" else "S") for number, band in zones}
    return "".join(zones.pop()) if len(zones) == 1 else None


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


def _field(path: str | Path, number: int) -> str:
    fields = os.path.basename(path).split("@")
    return fields[number] if len(fields) > number + 1 else ""  # the last field is the suffix
