"""Which image becomes which file of which city. All input is checked here, before anything is written."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from datasets.cities import COLUMNS, image_name
from datasets.unified.config import UnifiedConfig, output_names
from datasets.unified.names import cell_of, row_of
from datasets.unified.places import MIN_IMAGES, Cell, group_places
from datasets.unified.sources import Source, check_sources, read_sources
from model.errors import InputError


class PlannedImage(NamedTuple):
    """An image of a place: its name in the form `names.LAYOUT` and its path relative to the source's folder."""

    place: int
    name: str
    file: str


@dataclass(frozen=True, kw_only=True)
class CityPlan:
    """One output city: its name, the source's folder, and the images in the order of the CSV file."""

    name: str
    folder: Path
    images: list[PlannedImage]

    def rows(self) -> Iterator[dict[str, str]]:
        """The rows of the CSV file."""
        for image in self.images:
            yield row_of(image.name, city=self.name, place=image.place)

    def table(self) -> bytes:
        """The CSV file."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue().encode("utf-8", "surrogateescape")

    def files(self) -> dict[str, str]:
        """{file name in the city's folder: path of the source image}. Of images with one name, the last counts."""
        pairs = zip(self.rows(), self.images, strict=True)
        return {image_name(row): f"{self.folder}/{image.file}" for row, image in pairs}


@dataclass(frozen=True, kw_only=True)
class CitySummary:
    """Counts of one source city: output cities (groups), places, images, and images left out for each reason."""

    city: str
    groups: int
    places: int
    images: int
    panoramas: int
    empty_files: int
    in_small_places: int
    in_other_groups: int
    name_collisions: int


def make_plans(config: UnifiedConfig) -> tuple[list[CityPlan], list[CitySummary]]:
    """The output cities and the counts of their sources.

    Raises InputError for missing sources and images, for lines and file names that cannot be parsed, and for a city
    without any place.
    """
    check_sources(config)
    plans: list[CityPlan] = []
    summaries = []
    for source in tqdm(read_sources(config), "Reading", len(config.cities), unit="city", disable=None):
        city_plans, summary = plan_city(source, config.allow_name_collisions)
        plans += city_plans
        summaries.append(summary)
    return plans, summaries


def plan_city(source: Source, allow_name_collisions: bool = False) -> tuple[list[CityPlan], CitySummary]:
    """The output cities that are made of one source. Raises InputError for bad file names, or if there is no place."""
    groups = group_places(_cells(source), source.grid)
    used = list(zip(output_names(source.city), groups, strict=False))
    plans = [_plan_group(source, name, places, allow_name_collisions) for name, places in used]
    if not any(plan.images for plan in plans):
        empty = f", and {source.empty_files} empty files" if source.empty_files else ""
        raise InputError(
            f"No place of {source.city} has {MIN_IMAGES} or more images; {source.folder} holds {len(source.names)} in "
            f"all{empty}. Complete the source, or choose other cities with --cities."
        )
    in_places = sum(len(place) for places in groups for place in places)
    in_used_groups = sum(len(place) for _, places in used for place in places)
    images = sum(len(plan.images) for plan in plans)
    summary = CitySummary(
        city=source.city,
        groups=len(plans),
        places=sum(len({image.place for image in plan.images}) for plan in plans),
        images=images,
        panoramas=source.panoramas,
        empty_files=source.empty_files,
        in_small_places=len(source.names) - in_places,
        in_other_groups=in_places - in_used_groups,
        name_collisions=in_used_groups - images,
    )
    return plans, summary


def _cells(source: Source) -> Iterator[Cell]:
    bar = tqdm(source.names, f"Grouping {source.city}", unit=" images", leave=False, disable=None)
    for name, file in zip(bar, source.files, strict=True):
        try:
            yield cell_of(name, source.grid)
        except ValueError as error:
            raise InputError(f"{source.folder / file}: {error}.") from None


def _plan_group(source: Source, name: str, places: list[list[int]], allow_name_collisions: bool) -> CityPlan:
    images = [
        PlannedImage(place, source.names[index], source.files[index])
        for place, members in enumerate(places)
        for index in members
    ]
    last_of_name: dict[str, PlannedImage] = {}
    for image in images:
        try:
            last_of_name[image_name(row_of(image.name, city=name, place=image.place))] = image
        except ValueError as error:
            raise InputError(f"{source.folder / image.file}: {error}.") from None
    if not allow_name_collisions:
        counts = Counter(image.place for image in last_of_name.values())
        images = [image for image in last_of_name.values() if counts[image.place] >= MIN_IMAGES]
    return CityPlan(name=name, folder=source.folder, images=images)
