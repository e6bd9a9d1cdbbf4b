"""PlaceRecognizer in a program: from a frame to an answer, the search beside faiss, and what remembering costs.

    python -m benchmarks.bench_recognizer [--threads N] [--json [FILE]]

Two-branch models with random weights, random frames, and made-up descriptions. Frames and additions are measured in CPU
time, which other work on the machine hardly changes. Needs 2 GB of disk (see TMPDIR) and 4 GB of memory.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import faiss
import numpy as np
import torch
from torch import nn

from benchmarks.bench_retrieval import image_path, make_codes
from benchmarks.common import (
    Arguments,
    Row,
    compare,
    parse_arguments,
    peak_memory_mb,
    report,
    report_table,
    resident_mb,
)
from datasets.image_set import ImageSet
from model import Description, GeoLocalizationNet, ModelConfig, PlaceRecognizer
from model import recognizer as recognizer_module
from model import rows as rows_module
from model.index.manifest import CHUNK_SIZE
from model.rows import Found, Rows
from utils.retrieval.config import ExtractionConfig, IndexConfig
from utils.retrieval.features import Features
from utils.retrieval.index import IndexWriter, metadata_of
from utils.runtime.script import cli_main

BACKBONES = ("vit-tiny", "dinov2-small", "dinov2-base")
FRAME, SMALL_FRAME = (720, 1280, 3), (240, 320, 3)
COUNTS = (10_000, 100_000)  # remembered images
DIM, BASE_DIM = 512, 2048  # of descriptors of vit-tiny and dinov2-base
FRAMES, WARM_UP, K, RERANK_NUM = 100, 3, 5, 100
SMALL_SIZE, LIVE_COUNTS = (56, 70), (1000, 10_000, 20_000)  # of a program that runs for long
DISK_IMAGES = 1_000_000
ROUNDS, QUERIES = 15, 20
TARGET = 0.67  # ratio to faiss: at most 1.5 times its time


def make_model(backbone: str) -> GeoLocalizationNet:
    """A two-branch model with random weights. The adapters, which start at zero, are random too."""
    torch.manual_seed(0)
    model = GeoLocalizationNet(ModelConfig(backbone=backbone, hashing=True, rerank=True)).eval()
    for name, parameter in model.named_parameters():
        if "adapters" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def make_frames(shape: tuple[int, int, int]) -> list[np.ndarray]:
    """A few frames of random pixels."""
    return list(np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8))


def make_description(count: int, dim: int, seed: int) -> Description:
    """Features of images that do not exist: codes of places, and descriptors of length 1."""
    descriptor = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    descriptor /= np.linalg.norm(descriptor, axis=1, keepdims=True)
    return Description(make_codes(count, seed), descriptor)


def each_of(features: Description) -> Iterator[Description]:
    """The images of a description, one by one."""
    for i in range(len(features)):
        yield Description(*(None if array is None else array[i : i + 1] for array in features))


def cpu_timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The function's result, and the CPU seconds that it takes."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


# ---- From a frame to an answer


def frame_rows(backbone: str) -> list[dict[str, Any]]:
    """The parts of describing frames one after another, and searching for each among few and among many images."""
    model, frames = make_model(backbone), make_frames(FRAME)
    recognizers = [PlaceRecognizer(model, rerank_num=RERANK_NUM) for _ in COUNTS]
    first = recognizers[0].describe(frames[0])
    assert first.descriptor is not None
    dim = first.descriptor.shape[1]
    for recognizer, count in zip(recognizers, COUNTS, strict=True):
        recognizer.add(make_description(count, dim, count))
    measured: list[list[dict[str, float]]] = [[] for _ in COUNTS]
    with ExitStack() as patches:
        seconds = {
            "resize": _measure(recognizer_module, "resize_pixels", patches),
            "re-rank": _measure(rows_module, "_by_l2", patches),
        }
        for i in range(WARM_UP + FRAMES):
            description, described = cpu_timed(lambda: recognizers[0].describe(frames[i % len(frames)]))  # noqa: B023
            for recognizer, parts in zip(recognizers, measured, strict=True):
                _, searched = cpu_timed(lambda: recognizer.search(description, K))  # noqa: B023 - called at once
                resize, rerank = (values[-1] for values in seconds.values())
                rest = {"forward": described - resize, "search": searched - rerank, "re-rank": rerank}
                parts.append({"all": described + searched, "resize": resize, **rest})
    return [
        {"model": backbone, "dimensions": dim, "images": count, **percentiles(parts[WARM_UP:])}
        for count, parts in zip(COUNTS, measured, strict=True)
    ]


def _measure(owner: Any, name: str, patches: ExitStack) -> list[float]:
    """The CPU seconds of each call of a function of the owner from now on, until `patches` is closed."""
    function, seconds = getattr(owner, name), list[float]()

    def measured(*arguments: Any, **options: Any) -> Any:
        result, taken = cpu_timed(lambda: function(*arguments, **options))
        seconds.append(taken)
        return result

    patches.enter_context(mock.patch.object(owner, name, measured))
    return seconds


def percentiles(parts: list[dict[str, float]]) -> dict[str, float]:
    """The median and the 99th percentile of each part, in ms."""
    columns: dict[str, float] = {}
    for name in parts[0]:
        p50, p99 = np.percentile([1e3 * each[name] for each in parts], [50, 99]).tolist()
        columns |= {f"{name}, p50": p50, f"{name}, p99": p99}
    return columns


# ---- Searching


def search_rows(count: int) -> list[Row]:
    """Single queries beside faiss's flat index of codes: their first candidates, and these re-ranked, with NumPy for
    faiss.
    """
    recognizer = PlaceRecognizer(make_model("dinov2-base"), rerank_num=RERANK_NUM)
    database = make_description(count, BASE_DIM, 1)
    recognizer.add(database)
    flat, descriptors, rows = faiss.IndexBinaryFlat(512), database.descriptor, Rows()
    flat.add(database.code)  # type: ignore[arg-type]
    rows.append(Description(database.code, None))
    queries = [query for i, query in enumerate(each_of(database)) if i % (count // QUERIES) == 0]
    codes = [Description(query.code, None) for query in queries]

    def faiss_candidates(query: Description) -> np.ndarray:
        return flat.search(query.code, RERANK_NUM)[1][0]  # type: ignore[arg-type]

    def faiss_two_stages(query: Description) -> np.ndarray:
        candidates = faiss_candidates(query)
        distances = np.square(descriptors[candidates] - query.descriptor).sum(axis=1)  # type: ignore[index]
        return candidates[np.argsort(distances, kind="stable")[:K]]

    def our_candidates(query: Description) -> Found:
        return rows_module.search(rows.snapshot(), query, RERANK_NUM, rerank_num=RERANK_NUM, among=None)

    measured = [
        compare(
            f"codes, the first {RERANK_NUM}",
            lambda: [faiss_candidates(query) for query in codes],
            lambda: [our_candidates(query) for query in codes],
            rounds=ROUNDS,
            target=TARGET,
        ),
        compare(
            f"  the same, re-ranked by {BASE_DIM} dimensions",
            lambda: [faiss_two_stages(query) for query in queries],
            lambda: [recognizer.search(query, K) for query in queries],
            rounds=ROUNDS,
            target=TARGET,
            note="ours is `PlaceRecognizer.search`, its matches included",
        ),
    ]
    return [row.per_item(len(queries), "ms") for row in measured]


# ---- Remembering


def row_of(what: str, images: int, function: Callable[[], Any]) -> dict[str, Any]:
    """A row with the time of a call."""
    start = time.perf_counter()
    _, cpu = cpu_timed(function)
    return {"": what, "images": images, "s": time.perf_counter() - start, "CPU s": cpu}


def memory_rows(folder: Path) -> list[dict[str, Any]]:
    """Adding, saving, opening and searching on the disk."""
    recognizer = PlaceRecognizer(make_model("vit-tiny"), rerank_num=RERANK_NUM)
    count, tenth, index = COUNTS[-1], COUNTS[-1] // 10, folder / "index"
    pieces = list(each_of(make_description(count, DIM, 1)))

    def add(part: slice) -> None:
        for piece in pieces[part]:
            recognizer.add(piece)

    before = resident_mb()
    rows = [
        row_of("adding one by one", tenth, lambda: add(slice(tenth))),
        row_of("  the next", count - 2 * tenth, lambda: add(slice(tenth, -tenth))),
        row_of("  the last", tenth, lambda: add(slice(-tenth, None))),
    ]
    rows[-1]["memory, MB"] = resident_mb() - before
    rows.append(row_of("saving", count, lambda: recognizer.save(index)) | {"disk, MB": size_mb(index)})
    recognizer.add(make_description(tenth, DIM, 2))
    rows.append(row_of("  what was added since", tenth, lambda: recognizer.save(index)))
    rows += opening_rows(index, count + tenth)
    write_index(folder / "large")
    return [*rows, *opening_rows(folder / "large", DISK_IMAGES)]


def opening_rows(index: Path, count: int) -> list[dict[str, Any]]:
    """Opening an index, with and without checksums, and searching it."""
    model = make_model("vit-tiny")
    memory = peak_memory_mb(lambda: PlaceRecognizer.open(index, model))
    rows = [
        row_of("opening", count, lambda: PlaceRecognizer.open(index, model))
        | {"memory, MB": memory, "disk, MB": size_mb(index)},
        row_of("  without checksums", count, lambda: PlaceRecognizer.open(index, model, verify=False)),
    ]
    opened = PlaceRecognizer.open(index, model, verify=False)
    queries = list(each_of(make_description(QUERIES * ROUNDS, DIM, 5)))
    times = [cpu_timed(lambda: opened.search(query, K))[1] for query in queries]  # noqa: B023 - called at once
    return [*rows, {"": "  a search, descriptors in the page cache", "images": count, "CPU s": np.median(times).item()}]


def write_index(folder: Path) -> None:
    """An index of DISK_IMAGES made-up images with fp16 descriptors, as build_index.py writes it."""
    config = IndexConfig(folder=folder, descriptor_dtype="fp16")
    codes, features = make_codes(DISK_IMAGES, 5), make_description(CHUNK_SIZE, DIM, 4)
    assert features.descriptor is not None
    with IndexWriter(config, metadata_of(make_model("vit-tiny"), ExtractionConfig(), config)) as writer:
        for start in range(0, DISK_IMAGES, CHUNK_SIZE):
            chunk = range(start, min(start + CHUNK_SIZE, DISK_IMAGES))
            images = ImageSet.at_utms([image_path(i) for i in chunk], np.zeros((len(chunk), 2)))
            rows = np.roll(features.descriptor[: len(chunk)], start // CHUNK_SIZE, axis=1)
            writer.append(Features(images, codes[chunk.start : chunk.stop], rows))
        writer.features()  # marks the index as complete


def live_rows() -> list[dict[str, Any]]:
    """The resident memory of a program that describes frames and searches among 10,000 images, after so many."""
    recognizer = PlaceRecognizer(make_model("vit-pico"), resize=SMALL_SIZE, rerank_num=RERANK_NUM)
    recognizer.add(make_description(COUNTS[0], DIM, 1))
    frames, rows, done = make_frames(SMALL_FRAME), list[dict[str, Any]](), 0

    def search(start: int, end: int) -> None:
        for i in range(start, end):
            recognizer.search(frames[i % len(frames)], K)

    for count in LIVE_COUNTS:
        row = row_of("a program, after so many frames", count, lambda: search(done, count))  # noqa: B023
        rows.append(row | {"memory, MB": resident_mb()})
        done = count
    return rows


def size_mb(folder: Path) -> float:
    """The size of the files in a folder, in MB."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def beside(args: Arguments, part: str) -> Path | None:
    """The JSON file of a further table."""
    return args.json and args.json.with_stem(f"{args.json.stem}_{part}")


def main() -> None:
    args = parse_arguments("A recogniser in a program.")
    faiss.omp_set_num_threads(1)
    rows = live_rows()  # first: in memory that others have freed, growth would not be seen
    with tempfile.TemporaryDirectory() as folder:
        rows = [*memory_rows(Path(folder)), *rows]
    report_table(f"Remembering images, descriptors of {DIM} dimensions", rows, beside(args, "memory"))
    searches = search_rows(COUNTS[-1])
    report(f"A search among {COUNTS[-1]:,} images in memory", searches, beside(args, "search"))
    frames = [row for backbone in BACKBONES for row in frame_rows(backbone)]
    report_table(f"A frame of {FRAME[1]} x {FRAME[0]} to its {K} nearest images, ms of CPU time", frames, args.json)


if __name__ == "__main__":
    cli_main(main)
