"""Where the images of a folder were taken: as their names say, their EXIF data, or a CSV file."""

import logging
import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.config import PositionConfig
from datasets.exif_gps import InvalidGPS, gps_position
from datasets.file_names import EXPECTED_NAME, find_utm_position, utm_position, utm_zone
from datasets.ground import warn_of_far
from datasets.image_set import ImageSet
from datasets.positions import PositionTable
from datasets.zones import UNKNOWN_ZONE, degrees_of_utm, zone_text
from model.errors import InputError

UNKNOWN = (np.nan, np.nan)
MAX_REASONS, MAX_ZONES = 8, 5  # that a message lists


def locate_images(
    paths: Sequence[str], folder: Path, config: PositionConfig, table: PositionTable | None = None
) -> ImageSet:
    """The images of a folder with their positions, as far as they are known.

    table: that of config.csv, where several folders share it. Raises InputError if the CSV file lacks an image.
    """
    if config.csv:
        return (table or PositionTable(config.csv, folder)).locate(paths, folder)
    utms = np.full((len(paths), 2), np.nan)
    if config.source in ("auto", "names") and paths:
        utms[:] = [find_utm_position(path) or UNKNOWN for path in paths]
    has_name = np.isfinite(utms[:, 0])
    zones = np.array(
        [utm_zone(path) if named else UNKNOWN_ZONE for path, named in zip(paths, has_name, strict=True)], np.int8
    )
    degrees = degrees_of_utm(utms, zones)
    if config.source in ("auto", "exif"):
        degrees[~has_name] = _gps_positions(list(compress(paths, ~has_name)))
    return ImageSet(paths, utms, zones=zones, degrees=degrees)


def require_positions(images: ImageSet, folder: Path, config: PositionConfig) -> None:
    """Raises InputError, which names the first, if images of a folder have no position."""
    unknown = np.flatnonzero(~images.is_located)
    if not len(unknown):
        return
    path = images.paths[int(unknown[0])]
    if config.source == "names":
        utm_position(path)
    where = "EXIF data" if config.source == "exif" else "names and EXIF data"
    raise InputError(
        f"{len(unknown)} of {len(images)} images in {folder} have no position in their {where}, such as {path}. Move "
        "them to another folder, give the positions of all images with --positions_csv, or evaluate without positions "
        "(--no_labels)."
    )


class LocatedImages(NamedTuple):
    """Images, and a sentence that says how many positions came from where."""

    images: ImageSet
    summary: str


def locate_folder(paths: Sequence[str], folder: Path, config: PositionConfig) -> LocatedImages:
    """The images of a folder that need no positions. A warning names those that are far from all others.

    Raises InputError as locate_images does, and if no image has a position in the given source ("names" or "exif").
    """
    images = locate_images(paths, folder, config)
    if config.source == "names" and not images.is_located.any():
        raise InputError(
            f"--positions names: no UTM position in the names of the {len(paths)} images in {folder}. {EXPECTED_NAME} "
            "Choose another source, or --positions none."
        )
    if config.source == "exif" and not images.is_located.any():
        raise InputError(
            f"--positions exif: none of the {len(paths)} images in {folder} has a GPS position in its EXIF data. "
            "Choose another source, or --positions none."
        )
    warn_of_far(images, folder)
    return LocatedImages(images, _summary(images, config))


def _gps_positions(paths: Sequence[str]) -> np.ndarray:
    """Latitude and longitude [N, 2] in degrees, NaN where unknown. Warns of data that cannot be used, and counts it by
    its reason. An image that cannot be read has no position: the extraction names all such images.
    """
    positions = np.full((len(paths), 2), np.nan)
    invalid: dict[str, list[str]] = {}  # {reason: images}
    for i, path in enumerate(tqdm(paths, desc="Reading EXIF", unit="image", leave=False, delay=1)):
        try:
            positions[i] = gps_position(path) or UNKNOWN
        except InvalidGPS as error:
            invalid.setdefault(str(error), []).append(os.path.basename(path))
        except InputError:
            continue
    if invalid:
        most = sorted(invalid.items(), key=lambda item: -len(item[1]))
        reasons = [f"{len(names)} such as {names[0]} ({reason})" for reason, names in most[:MAX_REASONS]]
        others = sum(len(names) for _, names in most[MAX_REASONS:])
        reasons += [f"{others} for other reasons"] * (others > 0)
        message = "%d of %d images have EXIF GPS data that cannot be used: %s. Their positions are unknown."
        logging.warning(message, sum(map(len, invalid.values())), len(paths), "; ".join(reasons))
    return positions


def _summary(images: ImageSet, config: PositionConfig) -> str:
    has_metres, is_located = np.isfinite(images.utms[:, 0]), images.is_located
    metres, degrees = (str(config.csv),) * 2 if config.csv else ("file names", "EXIF GPS")
    parts = []
    if has_metres.any():
        zones = [zone_text(zone) or "unknown" for zone in np.unique(images.zones[has_metres]).tolist()]
        more = f" and {len(zones) - MAX_ZONES} more" if len(zones) > MAX_ZONES else ""
        named = f"UTM zone{'s' * (len(zones) > 1)} {', '.join(zones[:MAX_ZONES])}{more}"
        parts.append(f"{has_metres.sum()} from {metres} ({named})")
    if (is_located & ~has_metres).any():
        parts.append(f"{(is_located & ~has_metres).sum()} from {degrees}")
    if not is_located.all():
        parts.append(f"{(~is_located).sum()} unknown")
    return f"Positions: {', '.join(parts)}."
