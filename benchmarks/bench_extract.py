"""Extraction of descriptors: a plain forward pass with images prepared by the baseline, against --precision and
--compile. The baseline computes in float32 on the CPU and in the same precision on the GPU.

    python -m benchmarks.bench_extract [--threads N] [--json [FILE]] [--gpu]

dinov2-base with gem at 322 x 322, random weights, on drawn images of 640 x 480; with --gpu dinov2-large as well.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter as time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.baseline_model import baseline_forward
from benchmarks.bench_input import GPU_WORKERS, IMAGES, baseline_evaluation_input, write_images
from benchmarks.common import Row, compare, count_gflop, parse_arguments, report, short_name, steady_seconds, top_ten
from datasets.image_set import ImageSet
from model import GeoLocalizationNet, ModelConfig
from model.images import normalize
from model.inference import Describer, dtype_of
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import Extractor, Forward, extract, extract_chunks, prepare
from utils.retrieval.features import as_array
from utils.runtime.devices import cpu_supports
from utils.runtime.script import cli_main

SIZE = (322, 322)
BATCH, ROUNDS = 8, 3
GPU_IMAGES, GPU_BATCH = 8192, 128  # images: so many that all workers prepare several batches each
SHARE_TARGET = 0.6  # of the limit, in half precision on a GPU


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


def batch_row(backbone: str, config: ExtractionConfig, *, batches: Sequence[int]) -> Row:
    """Time per image for a batch in the device's memory, from pixels to arrays, of the fastest size in `batches`, and
    the peak of the GPU's memory. The baseline of --compile is the same without it, otherwise a plain forward pass.
    """
    device, precision = config.device, config.precision
    model = make_model(backbone, device)

    def milliseconds(function: Callable[[Tensor], object], batch: int) -> float:
        images = torch.rand(batch, 3, *SIZE, device=device)
        return 1e3 * steady_seconds(partial(function, images), device) / batch

    def plain(images: Tensor) -> np.ndarray:
        autocast = torch.autocast(device, dtype_of(precision), enabled=precision != "fp32")
        with torch.no_grad(), autocast:
            return baseline_descriptors(model, normalize(images))

    def ours(compiled: bool) -> Forward:
        used = replace(config, compile=compiled, batch_size=max(batches))
        return Forward(prepare(model, used), used)

    forward = ours(config.compile)
    times = {batch: milliseconds(forward, batch) for batch in batches}
    best = min(batches, key=times.__getitem__)
    baseline = milliseconds(ours(compiled=False) if config.compile else plain, best)
    images = torch.rand(best, 3, *SIZE, device=device)
    row = Row(
        name=f"{short_name(backbone)}, {precision}{' --compile' if config.compile else ''}",
        ours=times[best],
        unit="ms/image",
        ours_mb=added_gpu_mb(partial(forward, images)) if device == "cuda" else None,
        share_target=None if precision == "fp32" else SHARE_TARGET,
        note=f"the fastest of batches of {', '.join(map(str, batches))}: {best}" if len(batches) > 1 else "",
    ).with_share(image_gflop(backbone), precision, device)
    if row.is_below_share:
        row = replace(row, note="; ".join(filter(None, [row.note, top_ten(partial(forward, images), device)])))
    return row.against(baseline)


def added_gpu_mb(function: Callable[[], object]) -> float:
    """The peak of the GPU's memory during a call, in MB (10^6 bytes), beyond what was there before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


class TimedModel:
    """A prepared model that knows for which share of the time since its first call it did not compute."""

    def __init__(self, model: Describer, device: str) -> None:
        self.model, self.on_gpu = model, device == "cuda"
        self.calls: list[tuple[Any, Any]] = []  # start and end of each

    def __call__(self, images: Tensor, float_branch: bool = True) -> Any:
        start = self._now()
        output = self.model(images, float_branch)
        self.calls.append((start, self._now()))
        return output

    def _now(self) -> Any:
        """The time, on a GPU that of its own."""
        return torch.cuda.current_stream().record_event(torch.cuda.Event(enable_timing=True)) if self.on_gpu else time()

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self.on_gpu else end - start

    def waiting(self) -> float:
        """The share. All calls must be done."""
        busy = sum(self._seconds(start, end) for start, end in self.calls)
        return 1 - busy / self._seconds(self.calls[0][0], self.calls[-1][1])


def files_row(backbone: str, config: ExtractionConfig, paths: Sequence[Path]) -> Row:
    """Time per image as the scripts extract them, from files, with workers that read ahead, and how long the model
    waits for them.
    """
    prepared = prepare(make_model(backbone, config.device), config)
    Forward(prepared, config)(torch.rand(config.batch_size, 3, *SIZE))  # kernels are loaded, and chosen
    model = TimedModel(prepared, config.device)
    start = time()
    features = list(extract_chunks(model, ImageSet.without_positions(list(paths)), config))
    seconds = time() - start
    assert sum(len(chunk.images) for chunk in features if chunk) == len(paths)
    return Row(
        name=f"{short_name(backbone)}, {config.precision}, from files",
        ours=1e3 * seconds / len(paths),
        unit="ms/image",
        note=f"{len(paths)} images in batches of {config.batch_size}, {config.num_workers} workers and their start; "
        f"between its first and last batch, the model waits for {100 * model.waiting():.0f} % of the time",
    ).with_share(image_gflop(backbone), config.precision, config.device)


def gpu_rows(paths: list[Path]) -> list[Row]:
    """dinov2-base and dinov2-large on the GPU."""
    rows = [
        batch_row(
            backbone,
            ExtractionConfig(resize=SIZE, device="cuda", precision=precision, compile=compiled),
            batches=(GPU_BATCH,),
        )
        for backbone in ("dinov2-base", "dinov2-large")
        for precision, compiled in (("fp32", False), ("bf16", False), ("fp16", False), ("bf16", True), ("fp16", True))
    ]
    config = ExtractionConfig(
        resize=SIZE, batch_size=GPU_BATCH, num_workers=GPU_WORKERS, device="cuda", precision="bf16"
    )
    return [*rows, files_row("dinov2-base", config, paths * (GPU_IMAGES // len(paths)))]


def main() -> None:
    args = parse_arguments("Extraction of descriptors.", threads=None, gpu_help="measure base and large on the GPU")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder))
        rows = gpu_rows(paths) if args.gpu else cpu_rows(paths)
    batch = GPU_BATCH if args.gpu else BATCH
    report(f"Extraction at {SIZE[0]} x {SIZE[1]}, batches of {batch}", rows, args.json, gpu=args.gpu)


if __name__ == "__main__":
    cli_main(main)
