"""How many images per second the input gives, where its time goes, and how fast a device it can feed.

    python -m benchmarks.bench_loader [--json [FILE]]

Drawn JPEGs of quality 90, read by the datasets and loaders of the scripts, with base as the model. The time of each
part is CPU time, which other load affects less than the clock; images per second by workers are by the clock.
"""

import csv
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.bench_extract import image_gflop
from benchmarks.bench_input import EVALUATION_SIZE, TRAINING_SIZE, our_training_transform, write_images
from benchmarks.bench_train import make_step
from benchmarks.common import count_gflop, parse_arguments, report_table
from datasets.cities import COLUMNS, image_name
from datasets.config import PlacesConfig
from datasets.gsv_cities import GSVCities, PlaceSample, collate_places
from datasets.images import ImageDataset, ImageSample, collate_images
from datasets.resizing import resize_image
from model.image_files import load_image
from utils.runtime.script import cli_main
from utils.runtime.workers import start_worker
from utils.training.config import TrainingConfig
from utils.training.loader import PlaceLoader

SIZES = ((640, 480), (1600, 1200))
PLACES, IMAGES_PER_PLACE, BATCH = 16, 4, 16
IMAGES = PLACES * IMAGES_PER_PLACE
WORKERS, CORES, ROUNDS = (0, 1, 2), (2, 8, 16), 3
READY_REPEATS = 20  # of samples that need no preparation


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input of base: gflop, 10^9 operations of the model per image; how an image is decoded and prepared; how
    prepared images become samples, and samples a batch; the loader with a number of workers.
    """

    name: str
    gflop: float
    paths: Sequence[Path]
    decode: Callable[[Path], Image.Image]
    prepare: Callable[[Image.Image], Tensor]
    to_samples: Callable[[list[Tensor]], list]
    collate: Callable[[list], Any]
    make_loader: Callable[[int], DataLoader]


class ReadySamples(Dataset):
    """Samples that need no preparation: what remains is to collate and to send them."""

    def __init__(self, samples: list) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return READY_REPEATS * len(self.samples)

    def __getitem__(self, i: int) -> Any:
        return self.samples[i % len(self.samples)]


# ---- The inputs


def evaluation_input(paths: list[Path], size: str, gflop: float) -> Input:
    """What eval*.py read: float32 images."""
    dataset = ImageDataset(paths, EVALUATION_SIZE)
    return Input(
        name=f"evaluation at {EVALUATION_SIZE[0]} x {EVALUATION_SIZE[1]}, images of {size}",
        gflop=gflop,
        paths=paths,
        decode=load_image,
        prepare=partial(resize_image, size=EVALUATION_SIZE),
        to_samples=lambda images: [ImageSample(image, turned=False) for image in images],
        collate=collate_images,
        make_loader=partial(batches_of, dataset, collate_images, BATCH),
    )


def training_input(folder: Path, size: str, gflop: float) -> Input:
    """What train*.py read: places of uint8 images, augmented. `folder` is written by write_places."""
    places = GSVCities(folder, PlacesConfig(cities=("City",), image_size=TRAINING_SIZE))
    config = TrainingConfig(batch_size=BATCH // IMAGES_PER_PLACE)
    return Input(
        name=f"training at {TRAINING_SIZE[0]} x {TRAINING_SIZE[1]}, images of {size}",
        gflop=gflop,
        paths=sorted(folder.glob("Images/City/*.jpg")),
        decode=partial(load_image, draft_size=TRAINING_SIZE),
        prepare=our_training_transform,
        to_samples=lambda images: [PlaceSample(place, 0, []) for place in torch.stack(images).split(IMAGES_PER_PLACE)],
        collate=collate_places,
        make_loader=lambda workers: PlaceLoader(places, config, workers).loader,
    )


def write_places(folder: Path, paths: list[Path]) -> Path:
    """A city in the format of GSV-Cities whose places have the images `paths`, again and again."""
    (folder / "Images/City").mkdir(parents=True)
    (folder / "Dataframes").mkdir()
    with open(folder / "Dataframes/City.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for i in range(IMAGES):
            place, month = i // IMAGES_PER_PLACE, 1 + i % IMAGES_PER_PLACE
            row = dict(zip(COLUMNS, map(str, (place, 2020, month, 0, "City", 0.0, 0.0, "pano")), strict=True))
            writer.writerow(row)
            os.link(paths[i % len(paths)], folder / "Images/City" / image_name(row))
    return folder


def batches_of(dataset: Dataset, collate: Callable[[list], Any], batch: int, workers: int) -> DataLoader:
    """Batches as utils.retrieval.extraction reads them. The workers stay alive, so that their start is not measured."""
    return DataLoader(
        dataset,
        batch,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
    )


# ---- Measuring


def measure(source: Input) -> dict[str, Any]:
    """A row of the table. Estimates assume that the workers share all cores with the one process that receives."""
    images = [source.decode(path) for path in source.paths]
    prepared = [source.prepare(image) for image in images]
    samples = source.to_samples(prepared)
    batch = len(samples) * BATCH // IMAGES
    decode = cpu_ms(lambda: [source.decode(path) for path in source.paths], IMAGES)
    prepare = cpu_ms(lambda: [source.prepare(image) for image in images], IMAGES)
    collate = cpu_ms(lambda: [source.collate(samples[i : i + batch]) for i in range(0, len(samples), batch)], IMAGES)
    sender = batches_of(ReadySamples(samples), source.collate, batch, 1)
    receive, send = loader_cpu_ms(sender, READY_REPEATS * IMAGES)
    total = decode + prepare + receive + send
    rates = {cores: 1e3 * min(cores / total, 1 / receive) for cores in CORES}
    return {
        "input": source.name,
        "decoding, ms": decode,
        "resizing, augmenting, ms": prepare,
        "collating, ms": collate,
        "sending, ms": send - collate,
        "receiving, ms": receive,
        **{f"images/s, {n} worker(s)": clocked_rate(source.make_loader(n)) for n in WORKERS},
        **{f"images/s, {cores} cores (estimate)": rate for cores, rate in rates.items()},
        **{f"TFLOP/s fed by {cores} cores": 1e-3 * source.gflop * rate for cores, rate in rates.items()},
    }


def cpu_ms(function: Callable[[], object], items: int) -> float:
    """Median CPU time per item, in milliseconds, after a first call."""
    function()
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times) / items


def loader_cpu_ms(loader: DataLoader, items: int) -> tuple[float, float]:
    """CPU time per item, in milliseconds, of the process that receives the batches, and of the workers."""
    run(loader)
    main, workers = time.process_time(), workers_seconds()
    run(loader)
    return 1e3 * (time.process_time() - main) / items, 1e3 * (workers_seconds() - workers) / items


def clocked_rate(loader: DataLoader) -> float:
    """Images per second, median."""
    run(loader)
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run(loader)
        rates.append(IMAGES / (time.perf_counter() - start))
    return statistics.median(rates)


def run(loader: DataLoader) -> None:
    """Reads all batches."""
    for _ in loader:
        pass


def workers_seconds() -> float:
    """CPU time of the worker processes so far. Linux only."""
    stats = [Path(f"/proc/{child.pid}/stat").read_text() for child in multiprocessing.active_children()]
    ticks = sum(sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats)
    return ticks / os.sysconf("SC_CLK_TCK")


def inputs(folder: Path) -> list[Input]:
    """Both inputs, of small and large images."""
    extraction = image_gflop("dinov2-base")
    training = count_gflop(make_step("dinov2-base", "stage one", IMAGES_PER_PLACE)) / IMAGES_PER_PLACE
    found = []
    for width, height in SIZES:
        part, size = folder / str(width), f"{width} x {height}"
        part.mkdir()
        paths = write_images(part, (width, height))
        many = [paths[i % len(paths)] for i in range(IMAGES)]
        found.append(evaluation_input(many, size, extraction))
        found.append(training_input(write_places(part / "places", paths), size, training))
    return found


def main() -> None:
    args = parse_arguments("Images per second that the input gives.")
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(source) for source in inputs(Path(folder))]
    title = "Input: CPU time per image by part, images per second, and the device that they feed"
    report_table(title, rows, args.json)


if __name__ == "__main__":
    cli_main(main)
