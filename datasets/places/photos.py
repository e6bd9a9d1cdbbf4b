"""The photos of a folder: where each was taken, when, in which direction, and why one cannot be used."""

import hashlib
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.exif_gps import CameraNotes, camera_notes
from datasets.file_names import HEADING, TIMESTAMP, name_field
from datasets.folder import locate_images
from datasets.ground import Ground, warn_of_far
from datasets.image_set import ImageSet
from datasets.layouts import list_images
from datasets.places.config import OwnPhotosConfig
from datasets.places.panorama import is_panorama, view_of
from datasets.positions import PositionTable
from datasets.zones import UNKNOWN_ZONE, UTM_LATITUDES
from model.errors import InputError
from model.image_files import load_image
from utils.runtime.text_files import number_of

T = TypeVar("T")
TIME = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])[0-9]*")  # YYYYMM and what follows
EARTH_RADIUS = 6_371_008.8  # metres, the mean
MAX_RADIANS = 2 * math.pi + 1e-3
DISTINCT = 4  # headings, at least, to tell their unit
HEADING_REMEDY = "Choose another source (names, csv, exif), or ignore headings (--headings none)."


class Photo(NamedTuple):
    """A photo, or a view of a panorama. row: of the file in PhotoFolder.images. yaw: of a view, in degrees from the
    panorama's middle; None for a whole photo. heading: in degrees, from 0 to below 360; NaN where unknown. taken:
    digits that sort by time, from YYYYMM on; "" where unknown. is_turned: it must be turned to be upright.
    """

    row: int
    yaw: float | None
    heading: float
    taken: str
    is_turned: bool


@dataclass(frozen=True, kw_only=True)
class PhotoFolder:
    """The photos of a folder that can be used.

    images: the files, sorted, with their positions. photos: the photos and views, in the order of the files. grid
    [N, 2]: metres of each file, of which the grid makes cells. on_map [N, 2]: metres east and north on one map.
    left_out: {path: why a file is not among them}. has_headings: of all photos, or of none.
    """

    folder: Path
    images: ImageSet
    photos: list[Photo]
    grid: np.ndarray
    on_map: np.ndarray
    left_out: dict[str, str]
    has_headings: bool


def read_photos(config: OwnPhotosConfig) -> PhotoFolder:
    """The photos of a folder. What cannot be used is left out, each with its reason.

    Raises InputError if nothing is left, if positions are metres whose zone is unknown beside others, if less than half
    of the photos have a heading and it is not said what to do, or if the headings are no degrees.
    """
    paths = list_images(config.folder)
    table = PositionTable(config.positions.csv, config.folder) if config.positions.csv else None
    images = locate_images(paths, config.folder, config.positions, table)
    warn_of_far(images, config.folder)
    notes = _in_threads(_notes_of, paths, config.workers, "Reading headers")
    left_out = _unusable(images, notes, config.workers)
    used = np.array([row for row in range(len(paths)) if row not in left_out], np.int64)
    headings = _headings(paths, notes, config, table)
    if uses_headings(headings[used], config):
        left_out |= {row: "no heading" for row in used.tolist() if math.isnan(headings[row])}
        used = used[np.isfinite(headings[used])]
    else:
        headings[:] = np.nan
    located = images[used]
    photos = [
        photo
        for row, file in enumerate(used.tolist())
        for photo in _photos_of(row, paths[file], notes[file], heading=headings[file], config=config)
    ]
    _check_panoramas(photos, [notes[file] for file in used.tolist()], config)
    is_flat = in_one_zone(located)
    mapped = located if is_flat else ImageSet.at_degrees(located.paths, located.degrees)
    return PhotoFolder(
        folder=config.folder,
        images=located,
        photos=photos,
        grid=np.asarray(located.utms) if is_flat else grid_metres(located, config.cell_size),
        on_map=Ground(mapped, mapped).on_map(mapped),
        left_out={paths[row]: reason for row, reason in sorted(left_out.items())},
        has_headings=bool(len(used)) and bool(np.isfinite(headings[used]).all()),
    )


def load_photo(path: str | Path, photo: Photo) -> Image.Image:
    """The pixels of a photo, or of a view of a panorama: RGB, upright. Raises InputError if the file cannot be read."""
    image = load_image(path, exif_orientation=True)
    return image if photo.yaw is None else view_of(image, photo.yaw)


# ---- What cannot be used


def _unusable(images: ImageSet, notes: Sequence[CameraNotes | None], workers: int) -> dict[int, str]:
    """{row: reason}. Raises InputError if no image is left."""
    left_out = {row: "cannot be read" for row, found in enumerate(notes) if found is None}
    low, high = UTM_LATITUDES
    latitude = images.degrees[:, 0]
    for reason, is_so in (
        ("no position", ~images.is_located),
        ("at 0, 0, as devices without a fix write", (images.degrees == 0).all(axis=1) | (images.utms == 0).all(axis=1)),
        ("nearer to a pole than UTM reaches", (latitude < low) | (latitude > high)),
    ):
        left_out = dict.fromkeys(np.flatnonzero(is_so).tolist(), reason) | left_out
    rows = [row for row in range(len(images)) if row not in left_out]
    is_whole = _in_threads(_is_whole, [str(images.paths[row]) for row in rows], workers, "Decoding")
    left_out |= {row: "cannot be read" for row, whole in zip(rows, is_whole, strict=True) if not whole}
    rows = [row for row in rows if row not in left_out]
    if not rows:
        counts = ", ".join(f"{count} {reason}" for reason, count in Counter(left_out.values()).most_common())
        raise InputError(
            f"None of the {len(images)} images can be used: {counts}. Places need positions in file names "
            "(@easting@northing@...), in EXIF data, or in a CSV file (--positions_csv)."
        )
    repeated = _repeated([str(images.paths[row]) for row in rows], workers)
    return left_out | {rows[i]: "the same content as an earlier file" for i in repeated}


def _is_whole(path: str) -> bool:
    """Whether all pixels can be decoded, at the smallest size: the header of a truncated file does not tell."""
    try:
        load_image(path, draft_size=(1, 1))
    except InputError as error:
        logging.debug("%s", error)
        return False
    return True


def _repeated(paths: Sequence[str], workers: int) -> list[int]:
    """The files whose content an earlier one has. Only files of equal size are read."""
    sizes = _in_threads(os.path.getsize, paths, workers, "Sizes")
    counts = Counter(sizes)
    candidates = [i for i, size in enumerate(sizes) if counts[size] > 1]
    digests = _in_threads(_digest, [paths[i] for i in candidates], workers, "Comparing files")
    first: dict[bytes, int] = {}
    return [i for i, digest in zip(candidates, digests, strict=True) if first.setdefault(digest, i) != i]


def _digest(path: str) -> bytes:
    return hashlib.blake2b(Path(path).read_bytes()).digest()


def _notes_of(path: str) -> CameraNotes | None:
    """None for a file that is no image."""
    try:
        return camera_notes(path)
    except InputError as error:
        logging.debug("%s", error)
        return None


def _in_threads(function: Callable[[str], T], paths: Sequence[str], workers: int, title: str) -> list[T]:
    pool = ThreadPoolExecutor(workers)
    try:
        return list(tqdm(pool.map(function, paths), title, len(paths), unit=" images", leave=False, delay=1))
    finally:
        pool.shutdown(cancel_futures=True)  # a stop signal does not wait for the rest


# ---- Headings


def _headings(
    paths: Sequence[str], notes: Sequence[CameraNotes | None], config: OwnPhotosConfig, table: PositionTable | None
) -> np.ndarray:
    """The headings [N] as the sources state them; NaN where unknown. Of several, CSV comes before names and EXIF."""
    sources = {
        "csv": lambda: table.headings(paths, config.folder) if table else np.full(len(paths), np.nan),
        "names": lambda: np.array([number_of(name_field(path, HEADING)) for path in paths]),
        "exif": lambda: np.array([found.heading if found else np.nan for found in notes]),
    }
    headings = np.full(len(paths), np.nan)
    for source in sources if config.headings == "auto" else {config.headings} - {"none"}:
        headings = np.where(np.isnan(headings), sources[source](), headings)
    return headings


def uses_headings(headings: np.ndarray, config: OwnPhotosConfig) -> bool:
    """Whether places are made by these headings [N], NaN where unknown.

    Raises InputError if a source that was asked for has none, if less than half of the photos have one, or if they are
    no degrees.
    """
    known = headings[np.isfinite(headings)]
    if config.headings != "auto" and config.headings != "none" and not len(known):
        raise InputError(f"--headings {config.headings}: none of the {len(headings)} photos has one. {HEADING_REMEDY}")
    if not len(known):
        return False
    largest = float(known[np.abs(known).argmax()])
    if abs(largest) > 360:
        raise InputError(
            f"A heading is {largest:g}. Expected degrees clockwise from north, from -360 to 360. {HEADING_REMEDY}"
        )
    if np.abs(known).max() <= MAX_RADIANS and len(np.unique(known)) >= DISTINCT:
        raise InputError(
            f"All {len(known)} headings lie from {known.min():.3g} to {known.max():.3g}, as radians do. "
            "Expected degrees clockwise from north, from 0 to 360. Convert them. If they are degrees, all photos "
            "look north, and --headings none makes the same places."
        )
    if config.headings == "auto" and 2 * len(known) < len(headings):
        raise InputError(
            f"{len(known)} of {len(headings)} photos have a heading. Photos without one find no place among those with "
            f"one. Use the {len(known)} alone: --headings names, csv or exif. {HEADING_REMEDY}"
        )
    if config.model:
        raise InputError(
            f"--model divides photos without headings, and {len(known)} of {len(headings)} have one. Leave --model "
            "out, or ignore the headings (--headings none)."
        )
    return True


# ---- Photos and views


def _photos_of(
    row: int, path: str, notes: CameraNotes | None, *, heading: float, config: OwnPhotosConfig
) -> Iterator[Photo]:
    assert notes, "others are left out"
    stated = name_field(path, TIMESTAMP)
    taken = stated if TIME.fullmatch(stated) else notes.taken
    if config.panorama_views and is_panorama(notes.width, notes.height):
        yaws = [360 * k / config.panorama_views for k in range(config.panorama_views)]
        for yaw in yaws:
            yield Photo(row, yaw, (heading + yaw) % 360, taken, notes.is_turned)
    else:
        yield Photo(row, None, heading % 360, taken, notes.is_turned)


def _check_panoramas(photos: Sequence[Photo], notes: Sequence[CameraNotes | None], config: OwnPhotosConfig) -> None:
    """Raises InputError if views in all directions would make one place. Warns of panoramas that are not cut."""
    panoramas = sum(found is not None and is_panorama(found.width, found.height) for found in notes)
    if panoramas and not config.panorama_views:
        message = "%d of %d photos are twice as wide as high. If they are panoramas, --panorama_views 12 cuts them."
        logging.warning(message, panoramas, len(notes))
    if config.panorama_views and not panoramas:
        raise InputError(
            f"--panorama_views: none of the {len(notes)} photos is twice as wide as high. Leave it out, or give "
            "panoramas that show all directions (equirectangular)."
        )
    if any(photo.yaw is not None and math.isnan(photo.heading) for photo in photos) and not config.model:
        raise InputError(
            f"The {panoramas} panoramas have no headings, so that views of opposite directions would be one place. "
            "Give the heading of the middle of each (a column heading in --positions_csv, EXIF or XMP), or divide the "
            "views by what a model finds alike (--model)."
        )


# ---- Metres for the grid of cells


def in_one_zone(images: ImageSet) -> bool:
    """Whether the positions are metres that can be compared: of one UTM zone, or of zones that are not known."""
    zones = np.unique(images.zones[images.zones != UNKNOWN_ZONE])
    return bool(np.isfinite(images.utms).all()) and len(zones) < 2


def grid_metres(images: ImageSet, cell_size: int) -> np.ndarray:
    """Easting and northing [N, 2] of which a grid makes cells anywhere on Earth, of latitudes and longitudes.

    On a sphere: the northing is the length of the meridian, and the easting that of the parallel in the middle of the
    row of cells. So cells are squares, within 1 %, and photos on both sides of a UTM border share one. Raises
    InputError if the latitude and longitude of an image are unknown.
    """
    unknown = np.flatnonzero(np.isnan(images.degrees).any(axis=1))
    if len(unknown):
        raise InputError(
            f"The positions of {len(unknown)} of {len(images)} images are metres without a UTM zone, such as "
            f"{images.paths[int(unknown[0])]}, and those of others are latitudes and longitudes, or lie in another "
            "zone. Give all positions in one CSV file (--positions_csv)."
        )
    latitude, longitude = np.radians(images.degrees).T
    north = EARTH_RADIUS * latitude
    middle = (np.floor(north / cell_size) + 0.5) * cell_size / EARTH_RADIUS
    return np.stack([EARTH_RADIUS * np.cos(middle) * longitude, north], axis=1)
