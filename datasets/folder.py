"""Images of any folder, and where they were taken: as their names say, their EXIF data, or a CSV file."""

import logging
import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.benchmark import ImageSet
from datasets.config import PositionConfig
from datasets.exif_gps import InvalidGPS, gps_position
from datasets.file_names import EXPECTED_NAME, common_utm_zone, find_utm_position
from datasets.positions import PositionTable, utm_of_degrees, warn_of_far
from model.errors import InputError

UNKNOWN = (np.nan, np.nan)
MAX_REASONS = 8  # that a warning lists


class LocatedImages(NamedTuple):
    """Images, and a sentence that says how many positions came from where."""

    images: ImageSet
    summary: str


def locate_images(paths: Sequence[str], folder: Path, config: PositionConfig) -> LocatedImages:
    """The images of a folder with their positions, NaN where unknown.

    All latitudes and longitudes are converted in the UTM zone of most; those too far from it count as unknown. Raises
    InputError if no image has a position in the given source ("names" or "exif"), if some have one in their names and
    others in EXIF, or if the CSV file lacks an image.
    """
    if config.csv:
        table = PositionTable(config.csv, folder, far_are_unknown=True)
        return _located(ImageSet(paths, table.utms(paths, folder), table.zone), str(config.csv))
    named, measured = np.full((2, len(paths), 2), np.nan)
    if config.source in ("auto", "names"):
        named[:] = [find_utm_position(path) or UNKNOWN for path in paths]
    has_name = np.isfinite(named[:, 0])
    if config.source in ("auto", "exif"):
        measured[~has_name] = _gps_positions(list(compress(paths, ~has_name)))
    has_gps = np.isfinite(measured[:, 0])
    if has_name.any() and has_gps.any():
        raise InputError(
            f"{folder}: the names of {has_name.sum()} images hold UTM positions, and {has_gps.sum()} others have only "
            f"EXIF GPS, such as {paths[has_gps.argmax()]}. The two cannot be combined, because UTM zones may differ. "
            "Choose one with --positions names or --positions exif, or list all positions in a CSV file "
            "(--positions_csv)."
        )
    if config.source == "names" and not has_name.any():
        raise InputError(
            f"--positions names: no UTM position in the names of the {len(paths)} images in {folder}. {EXPECTED_NAME} "
            "Choose another source, or --positions none."
        )
    if config.source == "exif" and not has_gps.any():
        raise InputError(
            f"--positions exif: none of the {len(paths)} images in {folder} has a GPS position in its EXIF data. "
            "Choose another source, or --positions none."
        )
    if has_gps.any():
        measured[has_gps], zone, far = utm_of_degrees(measured[has_gps])
        if len(far):
            warn_of_far([os.path.relpath(paths[i], folder) for i in np.flatnonzero(has_gps)[far]], zone, folder)
        return _located(ImageSet(paths, measured, zone), "EXIF GPS")
    return _located(ImageSet(paths, named, common_utm_zone(list(compress(paths, has_name)))), "file names")


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


def _located(images: ImageSet, source: str) -> LocatedImages:
    known = int(np.isfinite(images.utms[:, 0]).sum())
    parts = [f"{known} from {source}"] * (known > 0) + [f"{len(images) - known} unknown"] * (known < len(images))
    zone = f"; UTM zone {images.utm_zone or 'unknown'}" if known else ""
    return LocatedImages(images, f"Positions: {', '.join(parts)}{zone}.")
