"""Which photo becomes which file: the places to train on, in groups, and the images of the other parts."""

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import utm

from datasets.places.config import MIN_PLACES, OwnPhotosConfig
from datasets.places.overlap import describe, divide_cells, similarity_threshold
from datasets.places.parts import BORDER, TEST, TRAIN, VAL, divide_by_area
from datasets.places.photos import PhotoFolder, in_one_zone
from datasets.unified.names import source_name
from datasets.unified.places import MIN_IMAGES, STREET_GRID, Cell, Grid, group_places
from datasets.unified.planning import CityPlan, PlannedImage
from datasets.zones import zone_text
from model.errors import InputError

SOUTHERN = 1e7  # metres, which UTM adds to northings south of the equator
NO_DATE = "000001"  # year 0, month 1: the format needs numbers
ZONE_DEGREES = 9.0  # of longitude from a zone's middle, up to which its metres are good enough for one neighbourhood


@dataclass(frozen=True, kw_only=True)
class Split:
    """The photos of one part of the benchmark, by their numbers in PhotoFolder.photos."""

    database: list[int]
    queries: list[int]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of a folder of photos.

    cities: with the places of a group each. members: of each city, the photos in the order of its images. splits:
    {"val" or "test": its photos}. names: {photo: its file name in a split}. unused: {photo: why}. threshold: the cosine
    from which a model finds photos alike; None without one.
    """

    photos: PhotoFolder
    cities: list[CityPlan]
    members: list[list[int]]
    splits: dict[str, Split]
    names: dict[int, str]
    unused: dict[int, str]
    threshold: float | None

    def places(self) -> list[list[int]]:
        """The photos of each place to train on, group by group."""
        found: list[list[int]] = []
        for city, members in zip(self.cities, self.members, strict=True):
            of_place: dict[int, list[int]] = {}
            for image, photo in zip(city.images, members, strict=True):
                of_place.setdefault(image.place, []).append(photo)
            found += of_place.values()
        return found

    def counts(self) -> dict[str, object]:
        """{what: how many} of photos, places and parts, as the terminal and the page show them."""
        places, groups = self.places(), len(self.cities)
        sizes = sorted(map(len, places))
        views = sum(photo.yaw is not None for photo in self.photos.photos)
        found: list[tuple[str, str]] = [
            ("files", f"{len(self.photos.images) + len(self.photos.left_out):,}"),
            ("files that can be used", f"{len(self.photos.images):,}"),
            *([("views of panoramas", f"{views:,}")] if views else []),
            ("headings", "known" if self.photos.has_headings else "unknown or ignored"),
            ("places to train on", f"{len(places):,} in {groups} group{'s' * (groups > 1)}"),
            ("their photos", f"{sum(sizes):,}; {sizes[0]} to {sizes[-1]} a place, half have {sizes[len(sizes) // 2]}+"),
        ]
        for part, split in self.splits.items():
            found.append((part, f"{len(split.queries):,} queries, {len(split.database):,} database images"))
        return dict(found)

    def reasons(self) -> dict[str, list[str]]:
        """{why photos are not used: their names}, the most frequent first."""
        found: dict[str, list[str]] = {}
        for path, reason in self.photos.left_out.items():
            found.setdefault(reason, []).append(path)
        for number, reason in self.unused.items():
            found.setdefault(reason, []).append(str(self.photos.images.paths[self.photos.photos[number].row]))
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def plan_places(photos: PhotoFolder, config: OwnPhotosConfig) -> Plan:
    """Places and parts of the photos of a folder.

    Raises InputError if a part has nothing in it, or the model cannot be used.
    """
    grid = Grid(cell_size=config.cell_size, cell_groups=STREET_GRID.cell_groups)
    cells = []
    for photo in photos.photos:
        easting, northing = photos.grid[photo.row].tolist()
        cells.append(grid.cell(easting, northing, 0 if math.isnan(photo.heading) else photo.heading))
    rows = np.array([photo.row for photo in photos.photos])
    squares = np.unique([cell[:2] for cell in cells], axis=0, return_inverse=True)[1].reshape(-1)
    parts = divide_by_area(photos.on_map[rows], squares, val=config.val_fraction, test=config.test_fraction)
    unused = dict.fromkeys(np.flatnonzero(parts == BORDER).tolist(), "at the border between two parts")
    threshold = None
    if config.model:
        cells, threshold = _divide(photos, cells, config, step=grid.heading_step)
    training = np.flatnonzero(parts == TRAIN).tolist()
    if not training:
        raise InputError(
            f"No photo of {config.folder} is left to train on: all of its {_extent(photos)} went to validation, test "
            "or the border between them, which are cut by area. Give photos of a larger area, or smaller parts "
            "(--val_fraction, --test_fraction; 0 for no such part)."
        )
    found = _groups([cells[i] for i in training], config)
    groups = [[[training[i] for i in place] for place in group] for group in found]
    in_places = {i for group in groups for place in group for i in place}
    unused |= {i: f"fewer than {MIN_IMAGES} photos at its place" for i in training if i not in in_places}
    groups = [[_thinned(photos, place, config.max_images, unused) for place in group] for group in groups]
    splits = {
        part: _split(photos, _by_cell(cells, np.flatnonzero(parts == part).tolist()), config.max_images, unused)
        for part, fraction in ((VAL, config.val_fraction), (TEST, config.test_fraction))
        if fraction
    }
    _check(groups, splits, photos=photos, config=config)
    names = _names(photos, [i for group in groups for place in group for i in place])
    cities = [_city(photos, f"{config.name}{number}", group, names) for number, group in enumerate(groups)]
    for split in splits.values():
        names |= _names(photos, [*split.database, *split.queries])
    return Plan(
        photos=photos,
        cities=cities,
        members=[[i for place in group for i in place] for group in groups],
        splits=splits,
        names=names,
        unused=unused,
        threshold=threshold,
    )


def _groups(cells: Sequence[Cell], config: OwnPhotosConfig) -> list[list[list[int]]]:
    """As `group_places`, with as many groups as the settings say, or else as leave MIN_PLACES places in each."""
    for cell_groups in (config.cell_groups,) if config.cell_groups else range(STREET_GRID.cell_groups, 0, -1):
        groups = group_places(cells, Grid(cell_size=config.cell_size, cell_groups=cell_groups))
        if sum(map(len, groups)) >= MIN_PLACES * len(groups):
            break
    return groups


def _divide(photos: PhotoFolder, cells: list[Cell], config: OwnPhotosConfig, *, step: int) -> tuple[list[Cell], float]:
    """The cells, in which what the model finds alike has a heading of its own, and the cosine that decided it.

    So two kinds of photos of one cell are in different groups, as two neighbouring headings are.
    """
    shared = [members for members in _by_cell(cells, range(len(cells))) if len(members) >= MIN_IMAGES]
    described = [i for members in shared for i in members]
    if not described:
        return cells, math.nan  # no place: an error says so
    descriptors = describe(photos, described, config)
    rows = np.array([photos.photos[i].row for i in described])
    threshold = similarity_threshold(descriptors, photos.on_map[rows])
    numbers = divide_cells(shared, dict(zip(described, descriptors, strict=True)), threshold)
    return [(*cell[:2], step * numbers.get(i, 0)) for i, cell in enumerate(cells)], threshold


def _by_cell(cells: Sequence[Cell], indices: Iterable[int]) -> list[list[int]]:
    """The photos of each cell, in the order of the cells' first photos."""
    found: dict[Cell, list[int]] = {}
    for i in indices:
        found.setdefault(cells[i], []).append(i)
    return list(found.values())


def _by_time(photos: PhotoFolder, members: Sequence[int]) -> list[int]:
    return sorted(members, key=lambda i: (photos.photos[i].taken, i))


def _thinned(photos: PhotoFolder, members: Sequence[int], most: int, unused: dict[int, str]) -> list[int]:
    """At most so many photos of a place, evenly over time. The others are added to `unused`."""
    if len(members) <= most:
        return list(members)
    ordered = _by_time(photos, members)
    kept = {ordered[i] for i in np.linspace(0, len(ordered) - 1, most).round().astype(int)}
    unused |= {i: f"its place has {most} others (--max_images)" for i in members if i not in kept}
    return sorted(kept)


def _split(photos: PhotoFolder, places: list[list[int]], most: int, unused: dict[int, str]) -> Split:
    """Queries are the last quarter of the files of each place, by time, so that they differ most from the others.

    The first place of a panorama decides for all its views: a query among the others would find its own pixels.
    """
    split = Split(database=[], queries=[])
    is_query: dict[int, bool] = {}  # of each file
    for place in places:
        ordered = _by_time(photos, _thinned(photos, place, most, unused))
        files = list(dict.fromkeys(photos.photos[i].row for i in ordered))
        first = len(files) - max(1, len(files) // 4) if len(files) > 1 else 1
        for number, file in enumerate(files):
            is_query.setdefault(file, number >= first)
        for i in ordered:
            (split.queries if is_query[photos.photos[i].row] else split.database).append(i)
    return split


def _check(
    groups: list[list[list[int]]], splits: dict[str, Split], *, photos: PhotoFolder, config: OwnPhotosConfig
) -> None:
    """Raises InputError if there is nothing to train on, or no query."""
    found = _extent(photos)
    if not groups:
        raise InputError(
            f"No place of {config.folder} has {MIN_IMAGES} or more photos; it holds {found}. A place is a cell of "
            f"{config.cell_size} m{' and 60 degrees of heading' if photos.has_headings else ''}. Give more photos, "
            "larger cells (--cell_size), or smaller parts for validation and test (--val_fraction, --test_fraction)."
        )
    for part, split in splits.items():
        if not split.queries:
            raise InputError(
                f"--{part}_fraction {getattr(config, f'{part}_fraction'):g} leaves {len(split.database)} photos and no "
                f"place with two for {part}; {config.folder} holds {found}. Give a larger fraction, or 0 for no such "
                "part."
            )


def _extent(photos: PhotoFolder) -> str:
    """How many photos there are, and how far apart."""
    width, height = np.ptp(photos.on_map, axis=0)
    return f"{len(photos.photos)} photos within {width:,.0f} x {height:,.0f} m"


# ---- Names


def _city(photos: PhotoFolder, name: str, group: list[list[int]], names: dict[int, str]) -> CityPlan:
    images = [
        PlannedImage(number, names[i], os.path.relpath(photos.images.paths[photos.photos[i].row], photos.folder))
        for number, place in enumerate(group)
        for i in place
    ]
    return CityPlan(name=name, folder=Path(os.path.abspath(photos.folder)), images=images)


def _names(photos: PhotoFolder, indices: Sequence[int]) -> dict[int, str]:
    """{photo: its name in `file_names.LAYOUT`}. Of a part, so that its metres can be compared: they are of one zone
    where the photos lie in one neighbourhood.
    """
    rows = sorted({photos.photos[i].row for i in indices})
    positions = dict(zip(rows, _positions(photos, rows), strict=True))
    names = {}
    for i in indices:
        photo = photos.photos[i]
        source = os.path.relpath(photos.images.paths[photo.row], photos.folder)
        text = f"{source}\n{'' if photo.yaw is None else photo.yaw}"
        image_id = hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()
        heading = "" if math.isnan(photo.heading) else int(photo.heading)
        names[i] = source_name(positions[photo.row], image_id, heading=heading, timestamp=photo.taken[:6] or NO_DATE)
    return names


def _positions(photos: PhotoFolder, rows: Sequence[int]) -> list[str]:
    """Easting to longitude of a name, joined by @. Latitude and longitude are 0 where only metres without a zone are
    known. A neighbourhood on both sides of the equator has metres without a zone, negative in the south: those of two
    zones would not be compared.
    """
    images = photos.images[np.array(rows, np.int64)]
    texts = []
    if in_one_zone(images):
        for (easting, northing), zone, degrees in zip(images.utms, images.zones.tolist(), images.degrees, strict=True):
            latitude, longitude = np.nan_to_num(degrees)
            band = utm.latitude_to_zone_letter(latitude) if zone else ""
            metres = f"{easting:010.2f}@{northing:010.2f}@{(zone_text(zone) or '')[:-1]}@{band or ''}"
            texts.append(f"{metres}@{latitude:09.5f}@{longitude:010.5f}")
        return texts
    zone = _common_zone(images.degrees)
    is_south = images.degrees[:, 0] < 0
    crosses_equator = zone is not None and len(np.unique(is_south)) == 2
    for (latitude, longitude), south in zip(images.degrees, is_south.tolist(), strict=True):
        easting, northing, number, band = utm.from_latlon(latitude, longitude, force_zone_number=zone)
        stated = f"{number:02d}@{band}"
        if crosses_equator:
            northing, stated = northing - SOUTHERN * south, "@"
        texts.append(f"{easting:010.2f}@{northing:010.2f}@{stated}@{latitude:09.5f}@{longitude:010.5f}")
    return texts


def _common_zone(degrees: np.ndarray) -> int | None:
    """The zone in the middle of latitudes and longitudes [N, 2]; None if some are far from it."""
    longitudes = degrees[:, 1]
    number = utm.latlon_to_zone_number(*np.median(degrees, axis=0))
    is_near = (np.abs(longitudes - (6 * number - 183)) <= ZONE_DEGREES).all()  # the zone's middle
    return number if is_near else None
