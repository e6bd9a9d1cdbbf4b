"""From image files to input tensors: PIL and torchvision, used the standard way, against our input pipeline.

    python -m benchmarks.bench_input [--threads N] [--json [FILE]] [--gpu]

The images are 640 x 480 JPEGs of quality 90: street scenes, drawn by datasets.synthetic.
"""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.common import Row, compare_with_memory, measure, parse_arguments, report
from datasets.images import ImageBatch, ImageDataset, ImageSample, collate_images
from datasets.resizing import resize_image
from datasets.synthetic import PlaceId, draw_photo, draw_place
from datasets.transforms import training_transform
from model.errors import InputError
from model.image_files import load_image
from model.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from utils.runtime.script import cli_main

IMAGES, GPU_IMAGES = 8, 512
WIDTH, HEIGHT = 640, 480
EVALUATION_SIZE, TRAINING_SIZE = (322, 322), (224, 224)
RANDAUGMENT_OPS = 3
BILINEAR = v2.InterpolationMode.BILINEAR
ROUNDS = 10
GPU_WORKERS, GPU_BATCH = 8, 32
T = TypeVar("T")

to_normalized_tensor = v2.Compose(
    [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
)
baseline_evaluation_transform = v2.Compose(
    [to_normalized_tensor, v2.Resize(EVALUATION_SIZE, interpolation=BILINEAR, antialias=True)]
)
baseline_augmentation = v2.Compose(
    [v2.Resize(TRAINING_SIZE, interpolation=BILINEAR), v2.RandAugment(RANDAUGMENT_OPS, interpolation=BILINEAR)]
)
baseline_training_transform = v2.Compose([baseline_augmentation, to_normalized_tensor])
our_training_transform = training_transform(TRAINING_SIZE, RANDAUGMENT_OPS)


def write_images(folder: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[Path]:
    """Draws and writes image files of size = (W, H), each of a different place."""
    paths = [folder / f"{place:02d}.jpg" for place in range(IMAGES)]
    for place, path in enumerate(paths):
        photo = draw_photo(draw_place(PlaceId(0, "Alder", place), size), 0)
        Image.fromarray(photo.pixels).save(path, quality=90)
    return paths


# ---- The baseline and ours


def baseline_load(path: Path) -> Image.Image:
    """The RGB image, decoded at full size."""
    with Image.open(path) as image:
        return image.convert("RGB")


def baseline_evaluation_input(path: Path) -> Tensor:
    """[3, H, W] float32: normalised at full size, then resized."""
    return baseline_evaluation_transform(baseline_load(path))


def our_evaluation_input(path: Path) -> Tensor:
    """[3, H, W] float32: resized, then normalised."""
    return normalize(resize_image(load_image(path), EVALUATION_SIZE))


def baseline_training_input(path: Path) -> Tensor:
    """[3, H, W] float32: resized, augmented and normalised by torchvision's transforms."""
    return baseline_training_transform(baseline_load(path))


def our_training_input(path: Path, exact: bool = False) -> Tensor:
    """The same by our transforms. Training normalises a whole batch at a time, on the device."""
    image = load_image(path, None if exact else TRAINING_SIZE)
    return normalize(our_training_transform(image).float().div(255))


def collate_pixels(samples: list[ImageSample | InputError]) -> Tensor:
    """The pixels [B, 3, H, W] of our samples."""
    batch = collate_images(samples)
    assert isinstance(batch, ImageBatch), batch
    return batch.pixels


class BaselineDataset(Dataset):
    """Image files as evaluation inputs, prepared by the baseline."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        return baseline_evaluation_input(self.paths[i])


# ---- Tables


def for_each(items: Sequence[T], function: Callable[[T], object]) -> Callable[[], None]:
    """A function without arguments that calls `function` with each item, with the same random numbers every time."""

    def run() -> None:
        torch.manual_seed(0)
        for item in items:
            function(item)

    return run


def input_rows(paths: list[Path]) -> list[Row]:
    """Times per image: the whole input pipelines, then their stages. The memory is that of the largest image."""

    def row(name: str, baseline: Callable[[Path], object], ours: Callable[[Path], object]) -> Row:
        functions = for_each(paths, baseline), for_each(paths, ours)
        return compare_with_memory(name, *functions, rounds=ROUNDS).per_item(IMAGES, "ms")

    images = {path: load_image(path) for path in paths}
    drafts = {path: load_image(path, TRAINING_SIZE) for path in paths}
    differences = [baseline_evaluation_input(path) - our_evaluation_input(path) for path in paths]
    largest = max(difference.abs().max().item() for difference in differences)
    return [
        replace(
            row("evaluation input", baseline_evaluation_input, our_evaluation_input),
            target=1.6,
            note=f"values differ by at most {largest:.1e} after normalisation",
        ),
        row(
            "  of a decoded image",
            lambda path: baseline_evaluation_transform(images[path]),
            lambda path: normalize(resize_image(images[path], EVALUATION_SIZE)),
        ),
        replace(
            row("training input", baseline_training_input, our_training_input),
            target=1.5,
            note=f"both with the same {RANDAUGMENT_OPS} RandAugment operations",
        ),
        row("  with --exact_decoding", baseline_training_input, partial(our_training_input, exact=True)),
        row("  decoding", baseline_load, partial(load_image, draft_size=TRAINING_SIZE)),
        row(
            "  resizing and RandAugment",
            lambda path: v2.functional.pil_to_tensor(baseline_augmentation(images[path])),
            lambda path: our_training_transform(drafts[path]),
        ),
    ]


def load_to_gpu(loader: DataLoader, finish: Callable[[Tensor], Tensor]) -> None:
    """Loads all batches to the GPU and finishes them there. The loader's workers stay alive for the next call."""
    for images in loader:
        finish(images.to("cuda", non_blocking=True))
    torch.cuda.synchronize()


def gpu_row(paths: list[Path]) -> Row:
    """Images per second, from files to normalised batches on the GPU."""
    paths = list(itertools.islice(itertools.cycle(paths), GPU_IMAGES))
    options: dict[str, Any] = {
        "batch_size": GPU_BATCH,
        "num_workers": GPU_WORKERS,
        "pin_memory": True,
        "persistent_workers": True,
    }
    baseline: DataLoader = DataLoader(BaselineDataset(paths), **options)
    ours: DataLoader = DataLoader(ImageDataset(paths, EVALUATION_SIZE), collate_fn=collate_pixels, **options)
    baseline_time, our_time = measure(
        partial(load_to_gpu, baseline, lambda images: images), partial(load_to_gpu, ours, normalize), ROUNDS
    )
    return Row(
        name="files to the GPU",
        baseline=GPU_IMAGES / baseline_time,
        ours=GPU_IMAGES / our_time,
        unit="images/s",
        ratio=baseline_time / our_time,
        note=f"evaluation inputs, DataLoader with {GPU_WORKERS} workers, {torch.cuda.get_device_name()}",
    )


def main() -> None:
    args = parse_arguments(
        "From image files to input tensors: PIL and torchvision, used the standard way, against our input pipeline.",
        gpu_help="also measure how fast a DataLoader feeds a GPU",
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder))
        rows = input_rows(paths) + ([gpu_row(paths)] if args.gpu else [])
    report(f"Input, an image of {WIDTH} x {HEIGHT}", rows, args.json, gpu=args.gpu)


if __name__ == "__main__":
    cli_main(main)
