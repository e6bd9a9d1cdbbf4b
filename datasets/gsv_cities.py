"""GSV-Cities (Ali-bey et al., Neurocomputing 2022) and datasets of its format: places with several images each, for
training.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datasets.cities import COLUMNS, image_name
from datasets.config import PlacesConfig
from datasets.layouts import is_system_name
from datasets.transforms import training_transform
from model.errors import InputError
from model.image_files import load_image
from utils.runtime.text_files import CsvRow, read_csv, shorten

MAX_FILE_NAME = 255  # bytes, of all usual file systems


class PlaceSample(NamedTuple):
    """Images [K, 3, H, W] uint8 of a place, or None if too few can be read; its label; unreadable files."""

    images: Tensor | None
    label: int
    unreadable: list[str]


class PlaceBatch(NamedTuple):
    """P places x K images: images [P*K, 3, H, W] uint8; labels [P*K] int64; the unreadable images, with the reason."""

    images: Tensor
    labels: Tensor
    unreadable: list[str]


class GSVCities(Dataset):
    """Places with at least `config.images_per_place` images each.

    `<folder>/Dataframes/<City>.csv` and
    `<folder>/Images/<city_id>/<city_id>_<place_id>_<year>_<month>_<northdeg>_<lat>_<lon>_<panoid>.jpg`

    Indexed by (epoch, place). The choice of images and the augmentation are seeded with (seed, epoch, place).
    Attributes: places, the names of each place's images below Images; city_places, the range of each city's place
    numbers, which are distinct over all cities. Raises InputError if a folder, CSV file or column is missing, a
    number cannot be parsed, or no place has enough images.
    """

    def __init__(self, folder: str | Path, config: PlacesConfig) -> None:
        self.folder = Path(folder)
        self.config = config
        self.transform = training_transform(config.image_size, config.randaugment_ops)
        _check_folders(self.folder, config.cities)
        self.places: list[list[str]] = []
        self.city_places: list[range] = []
        max_images = 0
        for city in config.cities:
            places = _read_city(self.folder / "Dataframes" / f"{city}.csv")
            max_images = max([max_images, *map(len, places)])
            first = len(self.places)
            self.places += [names for names in places if len(names) >= config.images_per_place]
            self.city_places.append(range(first, len(self.places)))
        if not self.places:
            raise InputError(
                f"No place of {', '.join(config.cities)} in {self.folder} has {config.images_per_place} or more "
                f"images; the largest has {max_images}. Use a smaller --images_per_place."
            )

    @property
    def num_images(self) -> int:
        """Number of images of all places."""
        return sum(map(len, self.places))

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of what the training draws from: the names of the images of each place, in order."""
        digest = hashlib.sha256()
        for names in self.places:
            digest.update("\n".join([*names, "\n"]).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: tuple[int, int]) -> PlaceSample:
        epoch, place = key
        config = self.config
        draft_size = None if config.exact_decoding else config.image_size
        rng = np.random.default_rng([config.seed, epoch, place])
        images: list[Tensor] = []
        unreadable = []
        with torch.random.fork_rng(devices=[]):  # RandAugment draws from PyTorch's global generator
            torch.default_generator.manual_seed(int(rng.integers(2**62)))
            for i in rng.permutation(len(self.places[place])):
                try:
                    image = load_image(self.folder / "Images" / self.places[place][i], draft_size)
                    images.append(self.transform(image))
                except InputError as error:
                    unreadable.append(str(error))
                if len(images) == config.images_per_place:
                    return PlaceSample(torch.stack(images), place, unreadable)
        return PlaceSample(None, place, unreadable)


class PlaceBatches(Sampler):
    """Batches of places, city by city. Each city is shuffled with (seed, epoch); the last, smaller batch is dropped.

    Yields lists of (epoch, place). Of each batch, rank r of `world_size` takes the r-th share. Raises InputError if a
    batch is larger than all places together, or cannot be split evenly over the ranks.
    """

    def __init__(
        self, city_places: Sequence[range], batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        places = sum(map(len, city_places))
        if batch_size > places:
            raise InputError(f"--train_batch_size {batch_size} exceeds the {places} places of all cities.")
        if batch_size % world_size:
            raise InputError(
                f"--train_batch_size {batch_size} cannot be split over {world_size} ranks. Use a multiple of "
                f"{world_size}."
            )
        self.city_places = city_places
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_batches = places // batch_size
        self.epoch = self.first_batch = 0

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Makes the next iteration start at this batch of this epoch."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return self.num_batches - self.first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = np.concatenate([rng.permutation(places) for places in self.city_places])
        share = self.batch_size // self.world_size
        for batch in range(self.first_batch, self.num_batches):
            start = batch * self.batch_size + self.rank * share
            yield [(self.epoch, int(place)) for place in order[start : start + share]]


def collate_places(samples: list[PlaceSample]) -> PlaceBatch:
    """One batch of the places. Those without enough readable images are left out."""
    complete = [(sample.images, sample.label) for sample in samples if sample.images is not None]
    unreadable = [name for sample in samples for name in sample.unreadable]
    if not complete:
        return PlaceBatch(torch.empty(0), torch.empty(0, dtype=torch.int64), unreadable)
    images, labels = zip(*complete, strict=True)
    return PlaceBatch(torch.cat(images), torch.tensor(labels).repeat_interleave(len(images[0])), unreadable)


def _check_folders(folder: Path, cities: Sequence[str]) -> None:
    for needed in (folder, folder / "Dataframes", folder / "Images"):
        if not needed.is_dir():
            raise InputError(
                f"No folder {needed}. Expected <gsv_cities_folder>/Dataframes/<City>.csv and "
                "<gsv_cities_folder>/Images/<City>/*.jpg."
            )
    missing = {
        "Dataframes/<City>.csv": [city for city in cities if not (folder / "Dataframes" / f"{city}.csv").is_file()],
        "Images/<City>": [city for city in cities if not (folder / "Images" / city).is_dir()],
    }
    if any(missing.values()):
        tables = (folder / "Dataframes").glob("*.csv")
        available = sorted(path.stem for path in tables if not is_system_name(path.name))
        problems = [f"{what} of {len(names)} cities ({', '.join(names)})" for what, names in missing.items() if names]
        raise InputError(
            f"{folder} lacks {' and '.join(problems)}. CSV files exist for: {', '.join(available) or 'no city'}. "
            "Select cities with --cities."
        )


def _read_city(path: Path) -> list[list[str]]:
    """The names below Images of each place's images, in the order of the place ids. Logs repeated rows."""
    places: dict[int, list[str]] = {}
    names: set[str] = set()
    repeated = 0
    for row in read_csv(path, COLUMNS)[1]:
        place_id, name = _parse_row(row)
        if name in names:  # it would be a positive pair with itself
            repeated += 1
            continue
        names.add(name)
        places.setdefault(place_id, []).append(name)
    if repeated:
        message = "%s: %d rows describe an image that an earlier row describes. They are ignored."
        logging.warning(message, path, repeated)
    return [places[place_id] for place_id in sorted(places)]


def _parse_row(row: CsvRow) -> tuple[int, str]:
    """The place id of a row and the name of its image below Images."""
    try:
        values = {column: value for column, value in row.values.items() if value is not None}
        place_id, name = int(values["place_id"]), image_name(values)
        city = values["city_id"]
    except (KeyError, ValueError):
        text = shorten(", ".join(map(str, row.values.values())))
        raise row.error(f"a number is missing or invalid: {text}") from None
    if len(name.encode()) > MAX_FILE_NAME:
        raise row.error(
            f"the name of the image has {len(name.encode())} bytes; a file name has at most {MAX_FILE_NAME}: "
            f"{shorten(name)}"
        )
    return place_id, f"{city}/{name}"
