"""Where an image was taken, as its EXIF data says."""

import math
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from datasets.images import DAMAGED, open_image
from datasets.positions import DEGREE_RANGES

LETTERS = {"latitude": ("N", "S"), "longitude": ("E", "W")}
TAGS = {  # of the value and of its letter
    "latitude": (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef),
    "longitude": (ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef),
}


class InvalidGPS(ValueError):
    """Why the GPS position in an image's EXIF data cannot be used."""


def gps_position(path: str | Path) -> tuple[float, float] | None:
    """(latitude, longitude) in degrees, WGS 84, of an image file; None if its EXIF data holds no GPS position.

    Reads the header of the file, not its pixels; of a PNG file, the EXIF data before the pixels. Raises InvalidGPS for
    data that is damaged or incomplete, for a position outside UTM, and for 0, 0, which devices without a fix write.
    Raises InputError if the file is not an image.
    """
    with open_image(path) as image:
        data = image.info.get("exif", b"")
    try:
        gps = _gps_tags(data)
        if not any(value in gps for value, _ in TAGS.values()):
            return None
        latitude, longitude = _degrees("latitude", gps), _degrees("longitude", gps)
    except InvalidGPS:
        raise
    except DAMAGED as error:
        raise InvalidGPS("its EXIF data is damaged") from error
    if latitude == longitude == 0:
        raise InvalidGPS("its latitude and longitude are 0")
    return latitude, longitude


def _gps_tags(data: bytes) -> dict[int, Any]:
    """The values of the GPS directory in EXIF data, by tag."""
    exif = Image.Exif()
    exif.load(data)
    return exif.get_ifd(ExifTags.IFD.GPSInfo)


def _number(value: Any) -> float:
    """A rational of Pillow as a float, NaN if its denominator is 0, for which older versions raise an error."""
    return math.nan if getattr(value, "denominator", 1) == 0 else float(value)


def _degrees(name: str, gps: dict[int, Any]) -> float:
    """The latitude or longitude (name). Raises InvalidGPS, or one of DAMAGED for values of the wrong type."""
    value_tag, letter_tag = TAGS[name]
    positive, negative = LETTERS[name]
    if value_tag not in gps:
        raise InvalidGPS(f"it has no {name}")
    degrees, minutes, seconds = map(_number, gps[value_tag])
    if not (degrees >= 0 and 0 <= minutes <= 60 and 0 <= seconds <= 60):
        raise InvalidGPS(f"its {name} is {degrees:g} degrees, {minutes:g} minutes, {seconds:g} seconds")
    letter = str(gps.get(letter_tag, "")).strip("\0 ").upper()
    if letter not in (positive, negative):
        raise InvalidGPS(f"its {name} has no letter {positive} or {negative}")
    value = math.copysign(degrees + minutes / 60 + seconds / 3600, 1 if letter == positive else -1)
    low, high = DEGREE_RANGES[name]
    if not low <= value <= high:
        raise InvalidGPS(f"its {name} of {value:g} degrees is outside UTM ({low:g} to {high:g})")
    return value
