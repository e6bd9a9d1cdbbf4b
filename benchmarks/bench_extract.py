"""Extraction of descriptors: float32, eager, photos prepared the plain way, against --precision and --compile.

    python -m benchmarks.bench_extract [--threads N] [--json FILE] [--gpu]

dinov2-base with gem at 322 x 322, random weights, on drawn photos of 640 x 480; on a GPU dinov2-large too.
"""
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.bench_input import GPU_WORKERS, PHOTOS, PlainDataset, plain_evaluation_input, write_photos
from benchmarks.common import Row, compare, measure, parse_arguments, report
from benchmarks.plain_model import plain_forward
from model import build_model
from utils.features import ExtractionSettings, cpu_computes, extract
from utils.logs import run_script

SIZE = (322, 322)
BATCH, ROUNDS = 8, 3
GPU_PHOTOS, GPU_BATCH = 2048, 128


def make_model(backbone: str, device: str, compiled: bool = False) -> nn.Module:
    """A model of random weights, the adapters' too, the same each time."""
    torch.manual_seed(0)
    model = build_model(backbone, "gem").eval().to(device)
    for parameter in model.backbone.adapters.parameters():
        nn.init.normal_(parameter, std=0.02)
    if compiled:
        model.compile()
    return model


def plain_extract(model: nn.Module, paths: list[Path]) -> np.ndarray:
    """Descriptors, float32: photos prepared one after the other, batches in a loop."""
    descriptors = []
    with torch.no_grad():
        for i in range(0, len(paths), BATCH):
            images = torch.stack([plain_evaluation_input(path) for path in paths[i:i + BATCH]])
            descriptors.append(plain_forward(model, images)[0].numpy())
    return np.concatenate(descriptors)


def plain_gpu_extract(model: nn.Module, paths: list[Path]) -> np.ndarray:
    """Descriptors, float32: photos prepared the plain way by as many workers, batches in a loop."""
    loader = DataLoader(PlainDataset(paths), GPU_BATCH, num_workers=GPU_WORKERS)
    with torch.no_grad():
        return np.concatenate([plain_forward(model, images.to("cuda"))[0].cpu().numpy() for images in loader])


def our_extract(model: nn.Module, paths: list[Path], settings: ExtractionSettings) -> np.ndarray:
    """Descriptors, float32, as the scripts extract them."""
    return extract(model, paths, settings).descriptors


def row(what: str, plain: Callable[[], np.ndarray], ours: Callable[[], np.ndarray], target: float | None) -> Row:
    """Time a photo; the note says how far the descriptors lie apart."""
    apart = np.linalg.norm(plain() - ours(), axis=1).max()
    result = compare(what, plain, ours, ROUNDS, target, f"descriptors of length 1 lie {apart:.1e} apart at most", memory=False)
    return result._replace(plain=result.plain / PHOTOS, ours=result.ours / PHOTOS, unit="ms/photo")


def cpu_rows(paths: list[Path]) -> list[Row]:
    """dinov2-base on this CPU; in bf16 where it has instructions for that."""
    model = make_model("dinov2-base", "cpu")
    rows = []
    ways = [("base, fp32", "fp32", False, None)]
    if cpu_computes("bf16"):
        ways += [("base, --precision bf16", "bf16", False, 2.5), ("base, --precision bf16 --compile", "bf16", True, None)]
    else:
        print("This CPU has no bf16 instructions: --precision bf16 is not measured")
    for what, precision, compiled, target in ways:
        settings = ExtractionSettings(SIZE, True, BATCH, 0, "cpu", precision)
        ready = make_model("dinov2-base", "cpu", compiled)
        rows.append(row(what, partial(plain_extract, model, paths), partial(our_extract, ready, paths, settings), target))
    return rows


def gpu_rows(paths: list[Path]) -> list[Row]:
    """base and large on the GPU, with workers that read ahead."""
    rows = []
    paths = paths * (GPU_PHOTOS // len(paths))
    for backbone in ("dinov2-base", "dinov2-large"):
        model = make_model(backbone, "cuda")
        for precision, compiled in (("fp32", False), ("bf16", False), ("fp16", False), ("bf16", True)):
            settings = ExtractionSettings(SIZE, True, GPU_BATCH, GPU_WORKERS, "cuda", precision)
            ready = make_model(backbone, "cuda", compiled)
            ours = partial(our_extract, ready, paths, settings)
            plain_time, our_time = (1e3 * seconds / len(paths) for seconds in measure(partial(plain_gpu_extract, model, paths), ours, ROUNDS))
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            ours()
            rows.append(Row(f"{backbone}, {precision}{' --compile' if compiled else ''}", plain_time, our_time, "ms/photo", plain_time / our_time,
                            ours_mb=(torch.cuda.max_memory_allocated() - before) / 1e6, note=f"{GPU_WORKERS} workers each, batches of {GPU_BATCH}"))
    return rows


def main() -> None:
    args = parse_arguments("Extraction of descriptors.", "measure on the GPU, base and large", threads=os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder))
        rows = gpu_rows(paths) if args.gpu else cpu_rows(paths)
    report(f"Extraction at {SIZE[0]} x {SIZE[1]}, batches of {GPU_BATCH if args.gpu else BATCH}", rows, args.json)


if __name__ == "__main__":
    run_script(main)
