"""Writing a plan: training places, validation and test, and a table that says what became of each photo."""

import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from datasets.cities import image_name
from datasets.places.config import OwnPhotosConfig
from datasets.places.photos import load_photo
from datasets.places.planning import Plan
from datasets.unified.builder import require_space, transfer_file
from utils.runtime.atomic_files import atomic_write, make_folder

QUALITY = 95  # of views, and of photos that were turned
COLUMNS = ("photo", "view", "part", "city", "place_id", "file", "note")


class Target(NamedTuple):
    """Where a photo goes: its part, city and place, if it has one, and its file, relative to the output."""

    part: str
    city: str
    place: str
    file: str


def write_places(plan: Plan, folder: Path, config: OwnPhotosConfig) -> dict[int, Path]:
    """Writes `gsv_cities/`, `<name>/images/{val,test}/` and `photos.csv` into an empty folder.

    Returns {photo: its file}. Raises InputError if the disk is too small, or a photo cannot be read or written.
    """
    photos, targets = plan.photos, targets_of(plan, config.name)
    if not config.symlink:
        sizes = {row: os.path.getsize(photos.images.paths[row]) for row in {photos.photos[i].row for i in targets}}
        require_space(sum(sizes.values()), folder, "move some photos out of the folder")
    for target in {os.path.dirname(target.file) for target in targets.values()}:
        make_folder(folder / target, exist_ok=True)
    tables = make_folder(folder / "gsv_cities" / "Dataframes")
    for city in plan.cities:
        (tables / f"{city.name}.csv").write_bytes(city.table())
    pool, tasks = ThreadPoolExecutor(config.workers), list(targets)
    title = "Linking" if config.symlink else "Copying"
    try:
        write = partial(_write_photo, plan, folder=folder, symlink=config.symlink, targets=targets)
        for _ in tqdm(pool.map(write, tasks), title, len(tasks), unit=" images", disable=None):
            pass
    finally:  # after an error or a signal, the pool waits for no tasks but those that have begun
        pool.shutdown(cancel_futures=True)
    with atomic_write(folder / "photos.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_rows(plan, targets))
    return {photo: folder / target.file for photo, target in targets.items()}


def targets_of(plan: Plan, name: str) -> dict[int, Target]:
    """{photo: where it goes}."""
    targets = {}
    for city, members in zip(plan.cities, plan.members, strict=True):
        for row, photo in zip(city.rows(), members, strict=True):
            file = f"gsv_cities/Images/{city.name}/{image_name(row)}"
            targets[photo] = Target("train", city.name, row["place_id"], file)
    for part, split in plan.splits.items():
        for kind, members in (("database", split.database), ("queries", split.queries)):
            for photo in members:
                targets[photo] = Target(f"{part} {kind}", "", "", f"{name}/images/{part}/{kind}/{plan.names[photo]}")
    return targets


def _write_photo(plan: Plan, number: int, *, folder: Path, symlink: bool, targets: dict[int, Target]) -> None:
    photo, target = plan.photos.photos[number], folder / targets[number].file
    source = str(plan.photos.images.paths[photo.row])
    if photo.yaw is None and not photo.is_turned:
        transfer_file(source, target, symlink=symlink)
    else:
        load_photo(source, photo).save(target, format="jpeg", quality=QUALITY)


def _rows(plan: Plan, targets: dict[int, Target]) -> Iterator[Sequence[str]]:
    """A row for each photo and view, in the order of the files; then those that could not be used."""
    photos = plan.photos
    for number, photo in enumerate(photos.photos):
        name = os.path.relpath(photos.images.paths[photo.row], photos.folder)
        target = targets.get(number, Target("", "", "", ""))
        yield name, "" if photo.yaw is None else f"{photo.yaw:g}", *target, plan.unused.get(number, "")
    for path, reason in photos.left_out.items():
        yield os.path.relpath(path, photos.folder), "", "", "", "", "", reason
