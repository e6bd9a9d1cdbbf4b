"""A GPU in eight minutes: training, extraction, search and the tests that need one, each beside what the card could do.

    python -m benchmarks.bench_gpu [--json FILE] [--only TEXT] [--minutes N]
    python -m benchmarks.bench_gpu --rehearse --json FILE

Rows are written one by one, and the same command goes on where it stopped: after a kill, at the end of its minutes,
with rows that failed. The rehearsal runs all of it on the CPU with a vit-tiny: it works before there is a card.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import faiss
import torch

from benchmarks import session
from benchmarks.bench_decoders import device_row
from benchmarks.bench_extract import SIZE, batch_row, files_row
from benchmarks.bench_input import IMAGES, write_images
from benchmarks.bench_retrieval import device_rerank_row, device_search_row
from benchmarks.bench_train import CONFIG, STAGES, stage_row
from benchmarks.common import DEFAULT_FILE, Row, add_json_flag, json_file, short_name
from benchmarks.session import Measurement
from model.errors import InputError
from utils.retrieval.config import ExtractionConfig
from utils.runtime.flags import ArgumentParser, positive_float
from utils.runtime.script import cli_main

MINUTES = 8
TITLE = "A GPU in eight minutes"
ROOT = Path(__file__).parents[1]
TESTS = "tests/test_gpu.py"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured: of the card, and of the rehearsal.

    slack: a factor of the most seconds that each measurement may take. batches: sizes of which extraction takes the
    fastest. files: images that are extracted from files; decoded: images that the device decodes at a time.
    reranked: images with descriptors.
    """

    device: str
    slack: int
    backbones: tuple[str, ...]
    precision: str
    training_batch: int
    batches: tuple[int, ...]
    files: int
    decoded: int
    codes: tuple[int, ...]
    queries: int
    reranked: int


CARD = Sizes(
    device="cuda",
    slack=1,
    backbones=("dinov2-base", "dinov2-large"),
    precision="bf16",
    training_batch=120,
    batches=(128, 64, 256),
    files=8192,
    decoded=256,
    codes=(1_000_000, 10_000_000, 100_000_000),
    queries=100,
    reranked=20_000,
)
REHEARSAL = Sizes(
    device="cpu",
    slack=20,  # whatever else the machine does: times are not what is rehearsed
    backbones=("vit-tiny",),
    precision="fp32",
    training_batch=4,
    batches=(2, 1),
    files=8,
    decoded=8,
    codes=(20_000,),
    queries=4,
    reranked=500,
)


def plan(sizes: Sizes, folder: Path) -> list[Measurement]:
    """All measurements, the quickest and most wanted first. Those of CARD take MINUTES at most. folder: for images."""
    measurements = [
        *training(sizes, compiled=False),
        *extraction(sizes, compiled=False),
        *searches(sizes),
        *files(sizes, folder),
        Measurement(name=f"pytest {TESTS}", seconds=75, measure=tests_row),
        *extraction(sizes, compiled=True),
        *training(sizes, compiled=True),
        *captured(sizes),
    ]
    return [replace(one, seconds=sizes.slack * one.seconds) for one in measurements]


def training(sizes: Sizes, *, compiled: bool) -> Iterator[Measurement]:
    """Steps of all stages."""
    config = replace(CONFIG, device=sizes.device, precision=sizes.precision, compile=compiled)
    for backbone, seconds in zip(sizes.backbones, (25, 40) if compiled else (4, 6), strict=False):
        for stage in STAGES:
            measure = partial(stage_row, backbone, stage, config=config, batch=sizes.training_batch)
            name = f"training, {short_name(backbone)}, {stage}" + " --compile" * compiled
            yield Measurement(name=name, seconds=seconds, measure=measure)


def captured(sizes: Sizes) -> Iterator[Measurement]:
    """A step of the smallest backbone in CUDA graphs: there, the GPU waits for Python most."""
    config = replace(CONFIG, device=sizes.device, precision=sizes.precision)
    backbone = sizes.backbones[0]
    measure = partial(stage_row, backbone, "stage one", config=config, batch=sizes.training_batch, captured=True)
    yield Measurement(name=f"training, {short_name(backbone)}, stage one, CUDA graphs", seconds=25, measure=measure)


def extraction(sizes: Sizes, *, compiled: bool) -> Iterator[Measurement]:
    """Batches in the device's memory."""
    config = ExtractionConfig(resize=SIZE, device=sizes.device, precision=sizes.precision, compile=compiled)
    for backbone, seconds in zip(sizes.backbones, (20, 32) if compiled else (5, 8), strict=False):
        # Each further size would be compiled again.
        measure = partial(batch_row, backbone, config, batches=sizes.batches[:1] if compiled else sizes.batches)
        name = f"extraction, {short_name(backbone)}" + " --compile" * compiled
        yield Measurement(name=name, seconds=seconds, measure=measure)


def files(sizes: Sizes, folder: Path) -> Iterator[Measurement]:
    """Images from files, with a worker for each core; and the device as their decoder."""
    config = ExtractionConfig(
        resize=SIZE,
        batch_size=sizes.batches[0],
        num_workers=os.cpu_count() or 1,
        device=sizes.device,
        precision=sizes.precision,
    )

    def extracting(backbone: str) -> Row:
        return files_row(backbone, config, write_images(folder) * (sizes.files // IMAGES))

    def decoding() -> Row:
        return device_row(write_images(folder) * (sizes.decoded // IMAGES), sizes.device)

    for backbone in sizes.backbones:
        name = f"extraction, {short_name(backbone)}, from files"
        yield Measurement(name=name, seconds=12, measure=partial(extracting, backbone))
    yield Measurement(name="decoding on the device", seconds=8, measure=decoding)


def searches(sizes: Sizes) -> Iterator[Measurement]:
    """Codes and re-ranking, for one query and for several at a time."""
    for count, seconds in zip(sizes.codes, (3, 6, 14), strict=False):
        for queries in (1, sizes.queries):
            name = f"search of {queries} among {count:,} codes"
            measure = partial(device_search_row, count, queries, sizes.device)
            yield Measurement(name=name, seconds=seconds, measure=measure)
    for queries in (1, sizes.queries):
        measure = partial(device_rerank_row, queries, sizes.device, images=sizes.reranked)
        yield Measurement(name=f"re-ranking of {queries}", seconds=4, measure=measure)


def tests_row() -> Row:
    """How long the tests take that need a GPU: results equal to the CPU's, memory that does not suffice, two ranks on
    one card. Raises RuntimeError if one fails.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS]
    command += ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    start = time.perf_counter()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        print(result.stdout, result.stderr, sep="\n", file=sys.stderr)
        raise RuntimeError(f"{TESTS}: {result.stdout.strip().splitlines()[-1]}")
    return Row(
        name=TESTS, ours=time.perf_counter() - start, unit="s", note=result.stdout.strip().splitlines()[-1].strip("= ")
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--rehearse", action="store_true", help="run all of it on the CPU, with a vit-tiny; needs --json"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="measure only rows whose name contains this")
    parser.add_argument(
        "--minutes", type=positive_float, default=MINUTES, help="start no row that may not be done after so many"
    )
    add_json_flag(parser)
    parser.set_defaults(json=DEFAULT_FILE)
    args = parser.parse_args()
    if args.rehearse and args.json == DEFAULT_FILE:
        raise InputError("A rehearsal is not among the results. Name a file for its rows with --json FILE.")
    if not args.rehearse and not torch.cuda.is_available():
        raise InputError(
            f"PyTorch {torch.__version__} finds no CUDA device. On a CPU, --rehearse --json FILE shows that this works."
        )
    sizes = REHEARSAL if args.rehearse else CARD
    path = json_file(args.json, "gpu", gpu=not args.rehearse)
    assert path is not None, "there is a default"
    faiss.omp_set_num_threads(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        measurements = [one for one in plan(sizes, Path(folder)) if args.only in one.name]
        minutes = sizes.slack * args.minutes
        if not session.run(measurements, path, title=TITLE, device=sizes.device, minutes=minutes):
            sys.exit(1)


if __name__ == "__main__":
    cli_main(main)
