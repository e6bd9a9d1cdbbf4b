"""Extraction of descriptors: a plain forward pass with images prepared by the baseline, against --precision and
--compile. The baseline computes in float32 on the CPU and in the same precision on the GPU.

    python -m benchmarks.bench_extract [--threads N] [--json [FILE]] [--gpu]

dinov2-base with gem at 322 x 322, random weights, on drawn images of 640 x 480; with --gpu dinov2-large as well.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.baseline_model import baseline_forward
from benchmarks.bench_input import GPU_WORKERS, IMAGES, BaselineDataset, baseline_evaluation_input, write_images
from benchmarks.common import Row, compare, count_gflop, parse_arguments, report
from datasets.image_set import ImageSet
from model import GeoLocalizationNet, ModelConfig
from model.images import normalize
from model.inference import dtype_of
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import Extractor, Forward, extract, prepare
from utils.retrieval.features import as_array
from utils.runtime.devices import cpu_supports
from utils.runtime.script import cli_main

SIZE = (322, 322)
BATCH, ROUNDS = 8, 3
GPU_IMAGES, GPU_BATCH, GPU_ROUNDS = 2048, 128, 10


def make_model(backbone: str, device: str) -> GeoLocalizationNet:
    """A model with random weights, the same each time. The adapters, which start at zero, are random too."""
    torch.manual_seed(0)
    with torch.device(device):
        model = GeoLocalizationNet(ModelConfig(backbone=backbone)).eval()
    for parameter in model.backbone.adapters.parameters():
        nn.init.normal_(parameter, std=0.02)
    return model


# ---- The baseline and ours: descriptors [N, 2048 or 4096], float32


def baseline_descriptors(model: GeoLocalizationNet, images: Tensor) -> np.ndarray:
    """The descriptors of a batch of images [B, 3, H, W]."""
    descriptors, _, _ = baseline_forward(model, images)
    assert descriptors is not None
    return descriptors.float().cpu().numpy()


def baseline_extract(model: GeoLocalizationNet, paths: list[Path]) -> np.ndarray:
    """On the CPU: prepares the images one after another, and loops over batches."""
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    with torch.no_grad():
        images = (torch.stack([baseline_evaluation_input(path) for path in batch]) for batch in batches)
        return np.concatenate([baseline_descriptors(model, batch) for batch in images])


def baseline_gpu_extract(model: GeoLocalizationNet, paths: list[Path]) -> np.ndarray:
    """In bf16 on the GPU: prepares the images in as many workers as ours has, and loops over batches."""
    loader: DataLoader = DataLoader(BaselineDataset(paths), GPU_BATCH, num_workers=GPU_WORKERS)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        return np.concatenate([baseline_descriptors(model, images.to("cuda")) for images in loader])


def our_extract(extractor: Extractor, paths: list[Path]) -> np.ndarray:
    """As the scripts extract them."""
    features = extract(extractor, ImageSet.without_positions(paths))
    assert features is not None, "this script has one process"
    return as_array(features.descriptors)


def make_extractor(backbone: str, config: ExtractionConfig) -> Extractor:
    """The model with random weights, prepared for extraction with these settings."""
    return Extractor(model=prepare(make_model(backbone, config.device), config), config=config)


# ---- Tables


def image_gflop(backbone: str) -> float:
    """10^9 operations of the forward pass per image. The input is not counted."""
    images = torch.zeros(1, 3, *SIZE, device="meta")
    with torch.no_grad():
        return count_gflop(partial(baseline_forward, make_model(backbone, "meta"), images))


def cpu_row(name: str, baseline: Callable[[], np.ndarray], ours: Callable[[], np.ndarray]) -> Row:
    """Time per image, with a note on how far apart the descriptors are."""
    distance = np.linalg.norm(baseline() - ours(), axis=1).max()
    note = f"descriptors of length 1 differ by at most {distance:.1e}"
    return compare(name, baseline, ours, rounds=ROUNDS, note=note).per_item(IMAGES, "ms/image")


def cpu_rows(paths: list[Path]) -> list[Row]:
    """dinov2-base on this CPU; in bf16 only if the CPU has instructions for it."""
    baseline = partial(baseline_extract, make_model("dinov2-base", "cpu"), paths)
    gflop = image_gflop("dinov2-base")

    def row(name: str, precision: str, compiled: bool = False) -> Row:
        config = ExtractionConfig(resize=SIZE, batch_size=BATCH, precision=precision, compile=compiled)
        ours = partial(our_extract, make_extractor("dinov2-base", config), paths)
        return cpu_row(name, baseline, ours).with_share(gflop, precision)

    rows = [row("base, fp32", "fp32"), row("base, fp32 --compile", "fp32", compiled=True)]
    if cpu_supports("bf16"):
        rows.append(replace(row("base, --precision bf16", "bf16"), target=2.5))
        rows.append(row("base, --precision bf16 --compile", "bf16", compiled=True))
    else:
        print("This CPU has no bf16 instructions: --precision bf16 is not measured.")
    return rows


def gpu_row(backbone: str, precision: str, *, compiled: bool) -> Row:
    """Time per image for a batch in the GPU's memory, from pixels to arrays, and the peak of the GPU's memory."""
    images = torch.rand(GPU_BATCH, 3, *SIZE, device="cuda")
    config = ExtractionConfig(resize=SIZE, batch_size=GPU_BATCH, device="cuda", precision=precision, compile=compiled)
    model = make_model(backbone, "cuda")
    forward = Forward(prepare(model, config), config)

    def baseline() -> np.ndarray:
        autocast = torch.autocast("cuda", dtype_of(precision), enabled=precision != "fp32")
        with torch.no_grad(), autocast:
            return baseline_descriptors(model, normalize(images))

    def ours() -> np.ndarray:
        _, descriptors = forward(images)
        assert descriptors is not None
        return descriptors

    name = f"{backbone.removeprefix('dinov2-')}, {precision}{' --compile' if compiled else ''}"
    row = compare(name, baseline, ours, rounds=GPU_ROUNDS)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours()
    memory = (torch.cuda.max_memory_allocated() - before) / 1e6
    row = replace(row.per_item(GPU_BATCH, "ms/image"), ours_mb=memory)
    return row.with_share(image_gflop(backbone), precision, "cuda")


def gpu_files_row(paths: list[Path]) -> Row:
    """base in bf16 as the scripts extract it, from image files, with workers that read ahead."""
    baseline = partial(baseline_gpu_extract, make_model("dinov2-base", "cuda"), paths)
    config = ExtractionConfig(
        resize=SIZE, batch_size=GPU_BATCH, num_workers=GPU_WORKERS, device="cuda", precision="bf16"
    )
    ours = partial(our_extract, make_extractor("dinov2-base", config), paths)
    row = compare("base, bf16, from files", baseline, ours, rounds=ROUNDS, note=f"{GPU_WORKERS} workers each")
    return row.per_item(len(paths), "ms/image").with_share(image_gflop("dinov2-base"), "bf16", "cuda")


def gpu_rows(paths: list[Path]) -> list[Row]:
    """dinov2-base and dinov2-large on the GPU."""
    rows = [
        gpu_row(backbone, precision, compiled=compiled)
        for backbone in ("dinov2-base", "dinov2-large")
        for precision, compiled in (("fp32", False), ("bf16", False), ("fp16", False), ("bf16", True), ("fp16", True))
    ]
    return [*rows, gpu_files_row(paths * (GPU_IMAGES // len(paths)))]


def main() -> None:
    args = parse_arguments("Extraction of descriptors.", threads=None, gpu_help="measure base and large on the GPU")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder))
        rows = gpu_rows(paths) if args.gpu else cpu_rows(paths)
    batch = GPU_BATCH if args.gpu else BATCH
    report(f"Extraction at {SIZE[0]} x {SIZE[1]}, batches of {batch}", rows, args.json, gpu=args.gpu)


if __name__ == "__main__":
    cli_main(main)
