"""Choices in the input: the current pipeline against other decoders, and resizing in bands against one product.

python -m benchmarks.bench_decoders [--threads N] [--json [FILE]]
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import io

from benchmarks.bench_input import EVALUATION_SIZE, IMAGES, for_each, write_images
from benchmarks.bench_loader import SIZES
from benchmarks.common import Row, compare, parse_arguments, report, steady_seconds
from datasets.resizing import resize_image
from model.image_files import load_image
from model.resizing import resizing_matrix
from utils.runtime.script import cli_main

ROUNDS = 15


def decode(path: Path) -> np.ndarray:
    """[H, W, 3] uint8, as the scripts decode images."""
    return np.asarray(load_image(path))


def torchvision_decode(path: Path) -> np.ndarray:
    """The same by torchvision's decoder."""
    return io.decode_jpeg(io.read_file(str(path)), mode=io.ImageReadMode.RGB).permute(1, 2, 0).numpy()


def evaluation_input(path: Path, draft_size: tuple[int, int] | None = None) -> torch.Tensor:
    """[3, H, W] float32 in [0, 1], of an image that is decoded at full size or, with draft_size, at a fraction."""
    return resize_image(load_image(path, draft_size), EVALUATION_SIZE)


def rows_in_one_product(image: Image.Image) -> torch.Tensor:
    """resize_image without bands of rows."""
    width, height = image.size
    pixels = torch.from_numpy(np.array(image)).view(height, 3 * width).float()
    rows = resizing_matrix(height, EVALUATION_SIZE[0], True) @ pixels
    columns = resizing_matrix(width, EVALUATION_SIZE[1], True) @ rows.t().reshape(width, 3 * EVALUATION_SIZE[0])
    return columns.view(EVALUATION_SIZE[1], 3, EVALUATION_SIZE[0]).permute(1, 2, 0).contiguous().div_(255)


def decoder_rows(paths: list[Path], size: str) -> list[Row]:
    """Today's way is the baseline of the decoders, and ours of the bands."""
    images = [load_image(path) for path in paths]
    resize = partial(resize_image, size=EVALUATION_SIZE)
    equal = all(np.array_equal(decode(path), torchvision_decode(path)) for path in paths)
    draft = partial(evaluation_input, draft_size=EVALUATION_SIZE)
    difference = max((evaluation_input(path) - draft(path)).abs().max().item() for path in paths)
    bands = all(torch.equal(rows_in_one_product(image), resize(image)) for image in images)

    def row(name: str, baseline: Callable[[], None], other: Callable[[], None], note: str) -> Row:
        return compare(f"{name}, {size}", baseline, other, rounds=ROUNDS, note=note).per_item(IMAGES, "ms")

    return [
        row(
            "decoding by torchvision",
            for_each(paths, decode),
            for_each(paths, torchvision_decode),
            f"not in use; its pixels are {'equal' if equal else 'DIFFERENT'}",
        ),
        row(
            "evaluation input, decoded at a fraction of the size",
            for_each(paths, evaluation_input),
            for_each(paths, draft),
            f"not in use; values in [0, 1] differ by up to {difference:.2f}",
        ),
        row(
            "resizing in bands of rows",
            for_each(images, rows_in_one_product),
            for_each(images, resize),
            f"in use; baseline: one product; the values are {'equal' if bands else 'DIFFERENT'}",
        ),
    ]


def device_row(paths: list[Path], device: str) -> Row:
    """Evaluation inputs per image: on one core, and from the files' bytes on the device, decoded and resized there."""
    files = [io.read_file(str(path)) for path in paths]

    def decoded() -> list[torch.Tensor]:
        return io.decode_jpeg(files, mode=io.ImageReadMode.RGB, device=device)  # type: ignore[return-value]

    def on_device() -> torch.Tensor:
        pixels = torch.stack(decoded()).float().div_(255)
        return F.interpolate(pixels, EVALUATION_SIZE, mode="bilinear", antialias=True)

    pairs = zip(decoded(), map(decode, paths), strict=True)
    errors = [abs(ours.permute(1, 2, 0).cpu().numpy().astype(int) - pixels) for ours, pixels in pairs]
    inputs = (on_device().cpu() - torch.stack([evaluation_input(path) for path in paths])).abs()
    row = Row(
        name="decoding on the device",
        ours=1e3 * steady_seconds(on_device, device),
        unit="ms/image",
        note=f"not in use; batches of {len(paths)}; baseline: one core; pixels differ by up to {np.max(errors)} of "
        f"255, {np.mean(errors):.2f} on average, values of the resized image in [0, 1] by up to {inputs.max():.3f}",
    )
    baseline = 1e3 * steady_seconds(for_each(paths, evaluation_input), "cpu")
    return row.against(baseline).per_item(len(paths), "ms/image")


def main() -> None:
    args = parse_arguments("Choices in the input.")
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            rows += decoder_rows(write_images(Path(folder), size), f"{size[0]} x {size[1]}")
    report("Input: current pipeline against alternatives", rows, args.json)


if __name__ == "__main__":
    cli_main(main)
