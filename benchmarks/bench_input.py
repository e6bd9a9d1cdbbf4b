"""From photo files to input tensors: the plain ways of PIL and torchvision against ours.

    python -m benchmarks.bench_input [--threads N] [--json FILE] [--gpu]

The photos are 640 x 480 JPEGs of quality 90, street scenes that datasets.scenes draws.
"""
import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.common import Row, compare, measure, parse_arguments, report
from datasets.photos import PhotoDataset, collate_photos, read_photo
from datasets.scenes import draw_photo, draw_place
from datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize, resize_photo, training_transform
from utils.logs import run_script

PHOTOS, GPU_PHOTOS = 8, 512
WIDTH, HEIGHT = 640, 480
EVALUATION_SIZE, TRAINING_SIZE = (322, 322), (224, 224)
BILINEAR = v2.InterpolationMode.BILINEAR
ROUNDS = 10
GPU_WORKERS, GPU_BATCH = 8, 32

plain_evaluation_transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
                                         v2.Resize(EVALUATION_SIZE, interpolation=BILINEAR, antialias=True)])
plain_training_transform = v2.Compose([v2.Resize(TRAINING_SIZE, interpolation=BILINEAR), v2.RandAugment(3, interpolation=BILINEAR), v2.ToImage(),
                                       v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
our_training_transform = training_transform(TRAINING_SIZE, 3)


def write_photos(folder: Path) -> list[Path]:
    """Files of photos, each of a place of its own."""
    paths = [folder / f"{place:02d}.jpg" for place in range(PHOTOS)]
    for place, path in enumerate(paths):
        photo = draw_photo(0, "Alder", place, 0, draw_place(0, "Alder", place, (WIDTH, HEIGHT)))
        Image.fromarray(photo.pixels).save(path, quality=90)
    return paths


def plain_read(path: Path) -> Image.Image:
    """The decoded RGB photo, at full size."""
    with Image.open(path) as photo:
        return photo.convert("RGB")


def plain_evaluation_input(path: Path) -> Tensor:
    """[3, H, W] float32, normalised at full size, then resized."""
    return plain_evaluation_transform(plain_read(path))


def our_evaluation_input(path: Path) -> Tensor:
    """The same, resized, then normalised."""
    return normalize(resize_photo(read_photo(path), EVALUATION_SIZE))


def plain_training_input(path: Path) -> Tensor:
    """[3, H, W] float32, normalised, by torchvision's transforms."""
    return plain_training_transform(plain_read(path))


def our_training_input(path: Path, exact: bool = False) -> Tensor:
    """The same kind of tensor by ours; in training the last step is done on the device for a whole batch."""
    return normalize(our_training_transform(read_photo(path, None if exact else TRAINING_SIZE)).float().div(255))


def over(paths: list[Path], function: Callable[[Path], object]) -> Callable[[], None]:
    """A pass of the function over all photos, with the same random numbers each time."""
    def run() -> None:
        torch.manual_seed(0)
        for path in paths:
            function(path)
    return run


def input_rows(paths: list[Path]) -> list[Row]:
    """Whole ways, then their stages. Memory is that of the photo of a pass that takes the most."""
    photos = {path: read_photo(path) for path in paths}
    drafts = {path: read_photo(path, TRAINING_SIZE) for path in paths}
    difference = max((plain_evaluation_input(path) - our_evaluation_input(path)).abs().max().item() for path in paths)
    plain_augmentation = v2.Compose([*plain_training_transform.transforms[:2], v2.PILToTensor()])

    def row(what: str, plain: Callable[[Path], object], ours: Callable[[Path], object], target: float | None = None, note: str = "") -> Row:
        row = compare(what, over(paths, plain), over(paths, ours), ROUNDS, target, note)
        return row._replace(plain=row.plain / PHOTOS, ours=row.ours / PHOTOS)

    return [
        row("evaluation input", plain_evaluation_input, our_evaluation_input, 1.6, f"values differ by at most {difference:.1e} after normalisation"),
        row("  of a decoded photo", lambda path: plain_evaluation_transform(photos[path]),
            lambda path: normalize(resize_photo(photos[path], EVALUATION_SIZE))),
        row("training input", plain_training_input, our_training_input, 1.5, "with the same 3 operations of RandAugment"),
        row("  with --exact_decoding", plain_training_input, partial(our_training_input, exact=True)),
        row("  decoding", plain_read, partial(read_photo, draft_size=TRAINING_SIZE)),
        row("  resizing and RandAugment", lambda path: plain_augmentation(photos[path]), lambda path: our_training_transform(drafts[path])),
    ]


class PlainDataset(Dataset):
    """Photo files as plain evaluation inputs."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        return plain_evaluation_input(self.paths[i])


def load_to_gpu(loader: DataLoader, finish: Callable[[Tensor], Tensor]) -> None:
    """A pass of the loader, whose workers live on from pass to pass, to the GPU."""
    for images in loader:
        finish(images.to("cuda", non_blocking=True))
    torch.cuda.synchronize()


def gpu_row(paths: list[Path]) -> Row:
    """Photos a second from files to normalised batches on the GPU."""
    paths = list(itertools.islice(itertools.cycle(paths), GPU_PHOTOS))
    settings = {"batch_size": GPU_BATCH, "num_workers": GPU_WORKERS, "pin_memory": True, "persistent_workers": True}
    plain = DataLoader(PlainDataset(paths), **settings)
    ours = DataLoader(PhotoDataset(paths, EVALUATION_SIZE), collate_fn=collate_photos, **settings)
    plain_time, our_time = measure(partial(load_to_gpu, plain, lambda images: images), partial(load_to_gpu, ours, normalize), ROUNDS)
    return Row("files to the GPU", GPU_PHOTOS / plain_time, GPU_PHOTOS / our_time, "photos/s", plain_time / our_time,
               note=f"evaluation inputs, DataLoader with {GPU_WORKERS} workers, {torch.cuda.get_device_name()}")


def main() -> None:
    args = parse_arguments("From photo files to input tensors: the plain ways of PIL and torchvision against ours.",
                           "also measure how fast a DataLoader feeds a GPU")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder))
        rows = input_rows(paths) + ([gpu_row(paths)] if args.gpu else [])
    report(f"Input, a photo of {WIDTH} x {HEIGHT}", rows, args.json)


if __name__ == "__main__":
    run_script(main)
