"""GSV-Cities (Ali-bey et al., Neurocomputing 2022) and datasets of its format: places, each with several photos, for training."""
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datasets.photos import read_photo
from datasets.transforms import training_transform
from model.errors import InputError

COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
GSV_CITIES = (
    "Bangkok BuenosAires LosAngeles MexicoCity OSL Rome Barcelona Chicago Madrid Miami Phoenix TRT Boston Lisbon Medellin Minneapolis PRG "
    "WashingtonDC Brussels London Melbourne Osaka PRS"
).split()
_GROUPED = (
    "Trondheim Amsterdam Helsinki Tokyo Toronto Saopaulo Moscow Zurich Paris Budapest Austin Berlin Ottawa Goa Amman Nairobi Manila bangkok "
    "boston london melbourne phoenix Pitts30k"
).split()
_WITHOUT_GROUP_17 = ("Amman", "Nairobi")
TRAINING_DATASETS = {
    "gsv_cities": (*GSV_CITIES,),
    "unified_dataset": (
        *GSV_CITIES, "SFXL", *(f"{name}{g}" for name in _GROUPED for g in range(18) if not (g == 17 and name in _WITHOUT_GROUP_17)),
    ),
}


class PlaceSample(NamedTuple):
    """K photos of a place, images [K, 3, H, W] uint8, or None where too few can be read; label, the place's number; unreadable photos."""

    images: Tensor | None
    label: int
    unreadable: list[str]


class PlaceBatch(NamedTuple):
    """P places x K photos: images [P*K, 3, H, W] uint8; labels [P*K] int64, the places' numbers; unreadable photos, with the reason."""

    images: Tensor
    labels: Tensor
    unreadable: list[str]


class GSVCities(Dataset):
    """Places with at least `images_per_place` photos. An item is asked for as (epoch, place): what is random depends on (seed, epoch, place).

    `<folder>/Dataframes/<City>.csv` and `<folder>/Images/<city_id>/<city_id>_<place_id>_<year>_<month>_<northdeg>_<lat>_<lon>_<panoid>.jpg`

    Attributes: places, for each the photos' names below Images; city_places, for each city the range of its places' numbers, which are
    distinct over all cities. Unless `exact_decoding` is set, JPEG photos are decoded at a fraction of their size, no smaller than image_size.
    Raises InputError where a folder, CSV or column is missing, a number is none, or no place has enough photos.
    """

    def __init__(self, folder: str | Path, cities: Sequence[str], image_size: tuple[int, int], images_per_place: int = 4, seed: int = 0,
                 randaugment_ops: int = 3, exact_decoding: bool = False) -> None:
        self.folder = Path(folder)
        self.images_per_place = images_per_place
        self.seed = seed
        self.draft_size = None if exact_decoding else image_size
        self.transform = training_transform(image_size, randaugment_ops)
        _check_folders(self.folder, cities)
        self.places: list[list[str]] = []
        self.city_places: list[range] = []
        most = 0
        for city in cities:
            photos = _read_city(self.folder / "Dataframes" / f"{city}.csv")
            most = max(most, *map(len, photos))
            first = len(self.places)
            self.places += [names for names in photos if len(names) >= images_per_place]
            self.city_places.append(range(first, len(self.places)))
        if not self.places:
            raise InputError(f"no place of {', '.join(cities)} in {self.folder} has {images_per_place} photos or more (the most is {most}): "
                             "give a smaller --images_per_place")

    @property
    def num_photos(self) -> int:
        """Photos of all places."""
        return sum(map(len, self.places))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: tuple[int, int]) -> PlaceSample:
        epoch, place = key
        rng = np.random.default_rng([self.seed, epoch, place])
        images, unreadable = [], []
        with torch.random.fork_rng(devices=[]):  # RandAugment draws from PyTorch's own generator
            torch.default_generator.manual_seed(int(rng.integers(2**62)))
            for i in rng.permutation(len(self.places[place])):
                try:
                    photo = read_photo(self.folder / "Images" / self.places[place][i], self.draft_size)
                    images.append(self.transform(photo))
                except InputError as error:
                    unreadable.append(str(error))
                if len(images) == self.images_per_place:
                    return PlaceSample(torch.stack(images), place, unreadable)
        return PlaceSample(None, place, unreadable)


class PlaceBatches(Sampler):
    """Batches of places, city by city, the places of each city in an order drawn from (seed, epoch); the incomplete last one is left out.

    Yields lists of (epoch, place). Of each batch, rank r of `world_size` takes the r-th share. Raises InputError where a batch holds more
    places than there are, or does not split over the ranks.
    """

    def __init__(self, city_places: Sequence[range], batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        places = sum(map(len, city_places))
        if batch_size > places:
            raise InputError(f"--train_batch_size {batch_size} is more than the {places} places of all cities together")
        if batch_size % world_size:
            raise InputError(f"--train_batch_size {batch_size} places do not split over {world_size} ranks: give a multiple of {world_size}")
        self.city_places = city_places
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_batches = places // batch_size
        self.epoch = self.first_batch = 0

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """The next pass goes through this epoch from this batch on."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return self.num_batches - self.first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = np.concatenate([rng.permutation(places) for places in self.city_places])
        share = self.batch_size // self.world_size
        for batch in range(self.first_batch, self.num_batches):
            start = batch * self.batch_size + self.rank * share
            yield [(self.epoch, int(place)) for place in order[start:start + share]]


def collate_places(samples: list[PlaceSample]) -> PlaceBatch:
    """One batch of the places; those without enough readable photos are left out."""
    whole = [sample for sample in samples if sample.images is not None]
    unreadable = [name for sample in samples for name in sample.unreadable]
    if not whole:
        return PlaceBatch(torch.empty(0), torch.empty(0, dtype=torch.int64), unreadable)
    labels = torch.tensor([sample.label for sample in whole]).repeat_interleave(len(whole[0].images))
    return PlaceBatch(torch.cat([sample.images for sample in whole]), labels, unreadable)


def _check_folders(folder: Path, cities: Sequence[str]) -> None:
    for needed in (folder, folder / "Dataframes", folder / "Images"):
        if not needed.is_dir():
            raise InputError(f"no folder {needed}; expected <gsv_cities_folder>/Dataframes/<City>.csv and <gsv_cities_folder>/Images/<City>/*.jpg")
    missing = {
        "Dataframes/<City>.csv": [city for city in cities if not (folder / "Dataframes" / f"{city}.csv").is_file()],
        "Images/<City>": [city for city in cities if not (folder / "Images" / city).is_dir()],
    }
    if any(missing.values()):
        there = sorted(path.stem for path in (folder / "Dataframes").glob("*.csv"))
        lacks = "; and ".join(f"{what} of {len(names)} cities: {', '.join(names)}" for what, names in missing.items() if names)
        raise InputError(f"{folder} lacks {lacks}. There are CSVs of: {', '.join(there) or 'no city'}. Choose with --cities")


def _read_city(path: Path) -> list[list[str]]:
    """The photos' names below Images for each place of a city, in the order of the place ids."""
    places: dict[int, list[str]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise InputError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(rows.fieldnames or ()) or 'none'}")
        for row in rows:
            try:
                places.setdefault(int(row["place_id"]), []).append(_photo_name(row))
            except (TypeError, ValueError):
                raise InputError(f"{path}, line {rows.line_num}: a number is missing or is none: {', '.join(map(str, row.values()))}") from None
    return [places[place_id] for place_id in sorted(places)] or [[]]


def _photo_name(row: dict[str, str]) -> str:
    place, year, month, north = (int(row[column]) for column in ("place_id", "year", "month", "northdeg"))
    city, lat, lon = row["city_id"], float(row["lat"]), float(row["lon"])
    return f"{city}/{city}_{place:07d}_{year:04d}_{month:02d}_{north:03d}_{lat}_{lon}_{row['panoid']}.jpg"
