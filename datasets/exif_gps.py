"""Where and when an image was taken, and in which direction, as its EXIF data says."""

import math
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from datasets.positions import DEGREE_RANGES
from model.image_files import DAMAGED, exif_orientation_of, open_image
from utils.runtime.text_files import number_of

LETTERS = {"latitude": ("N", "S"), "longitude": ("E", "W")}
TAGS = {  # of the value and of its letter
    "latitude": (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef),
    "longitude": (ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef),
}
ROUNDING = 0.001  # by which minutes and seconds may exceed 60
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
RAW_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")  # in which ImageMagick keeps EXIF data
MAX_PROFILE = 1 << 22  # bytes; EXIF data in a JPEG file has at most 64 kB, and this is hexadecimal
DATE = re.compile(r"([0-9]{4}):(0[1-9]|1[0-2]):([0-3][0-9])(?: ([0-2][0-9]):([0-5][0-9]):([0-6][0-9]))?")
POSE_HEADING = re.compile(rb"PoseHeadingDegrees(?:=[\"']|>)([0-9.]+)")  # of panoramas, in XMP data (Google's GPano)


class InvalidGPS(ValueError):
    """Why the GPS position in an image's EXIF data cannot be used."""


class CameraNotes(NamedTuple):
    """What a camera notes beside a position. width, height: in pixels, as they are stored; is_turned: they must be
    turned to be upright; heading: the direction of view in degrees clockwise from north, NaN where unknown; taken: the
    local time, YYYYMMDDhhmmss or YYYYMMDD, "" where unknown.
    """

    width: int
    height: int
    is_turned: bool
    heading: float
    taken: str


def camera_notes(path: str | Path) -> CameraNotes:
    """What the header of an image file says. Damaged EXIF data counts as absent. Raises InputError as open_image does.

    A panorama's heading is that of its middle, in XMP data if these have one.
    """
    with open_image(path) as image:
        (width, height), is_turned = image.size, exif_orientation_of(image) != 1
        data = image.info.get("exif", b"") or (_exif_of_png(path) if image.format == "PNG" else b"")
        xmp = image.info.get("xmp", b"") or b"".join(data for _, data in getattr(image, "applist", ()))  # older Pillow
    heading, taken = math.nan, ""
    try:
        exif = Image.Exif()
        exif.load(data)
        heading = _heading(exif.get_ifd(ExifTags.IFD.GPSInfo))
        dates = exif.get_ifd(ExifTags.IFD.Exif)
        tags = ExifTags.Base.DateTimeOriginal, ExifTags.Base.DateTimeDigitized
        written = next((dates[tag] for tag in tags if dates.get(tag)), exif.get(ExifTags.Base.DateTime, ""))
        date = DATE.match(written) if isinstance(written, str) else None
        taken = "".join(filter(None, date.groups())) if date else ""
    except (*DAMAGED, zlib.error):
        pass
    pose = POSE_HEADING.search(xmp) if isinstance(xmp, bytes) else None
    return CameraNotes(width, height, is_turned, number_of(pose[1].decode()) if pose else heading, taken)


def _heading(gps: dict[int, Any]) -> float:
    value = _number(gps.get(ExifTags.GPS.GPSImgDirection, math.nan))
    return value if 0 <= value <= 360 else math.nan


def gps_position(path: str | Path) -> tuple[float, float] | None:
    """(latitude, longitude) in degrees, WGS 84, of an image file; None if its EXIF data holds no GPS position.

    Reads the header of the file, not its pixels; of a PNG file, also the EXIF data after the pixels and in raw
    profiles. Raises InvalidGPS for data that is damaged or incomplete, for degrees out of range, and for 0, 0, which
    devices without a fix write. Raises InputError if the file is not an image.
    """
    with open_image(path) as image:
        data = image.info.get("exif", b"")
        is_png = image.format == "PNG"
    try:
        gps = _gps_tags(data or (_exif_of_png(path) if is_png else b""))
        if not any(value in gps for value, _ in TAGS.values()):
            return None
        latitude, longitude = _degrees("latitude", gps), _degrees("longitude", gps)
    except InvalidGPS:
        raise
    except (*DAMAGED, zlib.error) as error:
        raise InvalidGPS("its EXIF data is damaged") from error
    if latitude == longitude == 0:
        raise InvalidGPS("its latitude and longitude are 0")
    return latitude, longitude


def _exif_of_png(path: str | Path) -> bytes:
    """The EXIF data of a PNG file: the chunk eXIf, wherever it is, or else a raw profile. Pixels are skipped."""
    profile = b""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            content = file.read(length) if kind == b"eXIf" or kind in PNG_TEXTS else b""
            if kind == b"eXIf":
                return content
            name, _, text = content.partition(b"\0")
            if name in RAW_PROFILES:
                profile = _raw_profile(kind, text)
            file.seek(length - len(content) + 4, os.SEEK_CUR)
    return profile


def _raw_profile(kind: bytes, text: bytes) -> bytes:
    """The bytes in a text chunk: an empty line, the profile's type, the number of bytes, and these in hexadecimal."""
    is_compressed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"iTXt":  # whether it is compressed, how, a language and a translated name
        _, _, text = text[2:].split(b"\0", 2)
    elif is_compressed:
        text = text[1:]  # how
    if is_compressed:
        text = zlib.decompressobj().decompress(text, MAX_PROFILE)
    return bytes.fromhex("".join(text.decode("latin-1").split()[2:]))


def _gps_tags(data: bytes) -> dict[int, Any]:
    """The values of the GPS directory in EXIF data, by tag."""
    exif = Image.Exif()
    exif.load(data)
    return exif.get_ifd(ExifTags.IFD.GPSInfo)


def _number(value: Any) -> float:
    """A rational of Pillow as a float, NaN if its denominator is 0, for which older versions raise an error."""
    return math.nan if getattr(value, "denominator", 1) == 0 else float(value)


def _parts(value: Any) -> list[float]:
    """Degrees, minutes and seconds, as far as they are given: as numbers, or as one text."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        return [float(number) for number in re.findall(r"-?[0-9]+(?:\.[0-9]+)?", value)]
    parts = [_number(part) for part in (value if isinstance(value, tuple) else (value,))]
    while len(parts) > 1 and math.isnan(parts[-1]):  # 0/0: what the degrees or minutes hold as a fraction
        parts.pop()
    return parts


def _letter(value: Any) -> str:
    """The first letter of a text, of bytes, or of the number of a character, in upper case."""
    if isinstance(value, tuple):
        value = value[0] if value else ""
    if isinstance(value, int):
        value = chr(value)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return str(value).strip("\0 ")[:1].upper()


def _degrees(name: str, gps: dict[int, Any]) -> float:
    """The latitude or longitude (name). Raises InvalidGPS, or one of DAMAGED for values of the wrong type."""
    value_tag, letter_tag = TAGS[name]
    positive, negative = LETTERS[name]
    if value_tag not in gps:
        raise InvalidGPS(f"it has no {name}")
    parts = _parts(gps[value_tag])
    if not 1 <= len(parts) <= 3:
        raise InvalidGPS(f"its {name} has {len(parts)} numbers")
    if len(parts) == 1 and parts[0].is_integer() and parts[0] != 0:
        raise InvalidGPS(f"its {name} has neither minutes nor a fraction")
    degrees, minutes, seconds = (*parts, 0.0, 0.0)[:3]
    if not (degrees >= 0 and 0 <= minutes <= 60 + ROUNDING and 0 <= seconds <= 60 + ROUNDING):
        raise InvalidGPS(f"its {name} is {degrees:g} degrees, {minutes:g} minutes, {seconds:g} seconds")
    letter = _letter(gps.get(letter_tag, ""))
    if letter not in (positive, negative):
        raise InvalidGPS(f"its {name} has no letter {positive} or {negative}")
    value = math.copysign(degrees + minutes / 60 + seconds / 3600, 1 if letter == positive else -1)
    low, high = DEGREE_RANGES[name]
    if not low <= value <= high:
        raise InvalidGPS(f"its {name} is {value:g} degrees, not from {low:g} to {high:g}")
    return value
