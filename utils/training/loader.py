"""Training batches on the device."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.gsv_cities import GSVCities, PlaceBatches, collate_places
from model import InputError
from model.images import normalize
from utils.runtime import distributed
from utils.runtime.workers import start_worker
from utils.training.config import TrainingConfig

MAX_UNREADABLE_FRACTION = 0.01  # of all images


class Batch(NamedTuple):
    """This rank's share, on the device: normalised images [B, 3, H, W], labels [B]; rank_sizes, B of each rank."""

    images: Tensor
    labels: Tensor
    rank_sizes: list[int]


class PlaceLoader:
    """Batches of `config.batch_size` places, over all ranks, on the device.

    Unreadable images are replaced by others of the same place, logged and counted. Attributes: places; num_batches
    per epoch; unreadable, the messages so far. Raises InputError if a batch is larger than the dataset or cannot be
    split over the ranks and, while iterating, if more than 1 % of all images are unreadable.
    """

    def __init__(self, places: GSVCities, config: TrainingConfig, num_workers: int = 0) -> None:
        self.places = places
        self.config = config
        rank, world_size = distributed.rank(), distributed.world_size()
        self.sampler = PlaceBatches(
            places.city_places, config.batch_size, seed=config.seed, rank=rank, world_size=world_size
        )
        self.num_batches = self.sampler.num_batches
        self.loader = DataLoader(
            places,
            batch_sampler=self.sampler,
            num_workers=num_workers,
            collate_fn=collate_places,
            pin_memory=config.device.startswith("cuda"),
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker,
        )
        self.unreadable: set[str] = set()

    def batches(self, epoch: int, first_batch: int) -> Iterator[Batch | None]:
        """The epoch's batches from `first_batch` on. None replaces a batch to skip: some rank has no readable place."""
        if first_batch == self.num_batches:
            return
        self.sampler.set_position(epoch, first_batch)
        device = self.config.device
        for images, labels, unreadable in self.loader:
            self._count_unreadable(unreadable)
            rank_sizes = distributed.all_gather_int(len(labels))
            if min(rank_sizes) == 0:
                yield None
                continue
            images = normalize(images.to(device, non_blocking=True).float().div(255))
            yield Batch(images, labels.to(device, non_blocking=True), rank_sizes)

    def _count_unreadable(self, reasons: list[str]) -> None:
        for reason in set(reasons) - self.unreadable:
            logging.warning("Unreadable image replaced by another one of the same place: %s", reason)
        self.unreadable.update(reasons)
        total = self.places.num_images
        if len(self.unreadable) > MAX_UNREADABLE_FRACTION * total:
            raise InputError(
                f"{len(self.unreadable)} of {total} training images cannot be read, more than "
                f"{MAX_UNREADABLE_FRACTION:.0%}. Is the dataset in {self.places.folder} complete? The last one: "
                f"{reasons[-1]}"
            )


def mix_seeds(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
