"""Search and re-ranking: faiss's flat search of floats, and a Python loop of norms, against codes and descriptors read
from disk.

    python -m benchmarks.bench_retrieval [--threads N] [--json [FILE]] [--large]

The data are made up: descriptors of length 1 from a normal distribution; codes that are signs of projections of places.
"""

import functools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np
import torch

from benchmarks.common import Row, compare, measure, number, parse_arguments, peak_memory_mb, report, steady_seconds
from datasets.image_set import ImageSet
from model import GeoLocalizationNet, InputError, ModelConfig
from model.index.manifest import CHUNK_SIZE
from model.index.quantization import QuantizedArray, quantize
from utils.retrieval.config import ExtractionConfig, IndexConfig, IVFConfig
from utils.retrieval.features import DiskArray, Features, SearchResult, as_array
from utils.retrieval.gpu_search import DATABASE_BLOCK, search_hamming_on_device
from utils.retrieval.index import Index, IndexWriter, metadata_of
from utils.retrieval.index.inverted_file import InvertedFile
from utils.retrieval.metrics import recalls_at
from utils.retrieval.search import rerank, search, search_and_rerank, search_hamming
from utils.runtime.script import cli_main

DIM, CODE_BYTES, K = 4096, 64, 100
IMAGES, IMAGES_PER_PLACE = 100_000, 10
SINGLE_QUERIES, MEMORY_QUERIES, CODE_QUERIES, CODE_SINGLE_QUERIES = 20, 1000, 256, 8
LATENT_DIM, NOISE = 32, 0.3  # dimensions of a place; noise of its images, whose codes differ in about 60 of 512 bits
BLOCK = 1 << 16
ROUNDS, CODE_ROUNDS = 7, 3
MOST_SECONDS = 3.0  # for the median of a search that takes long
T = TypeVar("T")


# ---- Made-up data


def make_descriptors(count: int, seed: int) -> np.ndarray:
    """[count, 4096] float32 of length 1."""
    descriptors = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return descriptors


def make_codes(count: int, seed: int, places: np.ndarray | None = None) -> np.ndarray:
    """[count, 64] uint8: signs of 512 projections of 32 latent numbers of an image's place, plus noise.

    places: the place of each image; by default each place has 10 images.
    """
    places = np.arange(count) // IMAGES_PER_PLACE if places is None else places
    projection = np.random.default_rng(0).standard_normal((LATENT_DIM, 8 * CODE_BYTES), dtype=np.float32)
    latents = np.random.default_rng(1).standard_normal((places.max() + 1, LATENT_DIM), dtype=np.float32)
    noise = np.random.default_rng(seed)
    codes = np.empty((count, CODE_BYTES), np.uint8)
    for start in range(0, count, BLOCK):
        block = latents[places[start : start + BLOCK]]
        block = block + NOISE * noise.standard_normal(block.shape, dtype=np.float32)
        codes[start : start + BLOCK] = np.packbits(block @ projection > 0, axis=1)
    return codes


def make_features(codes: np.ndarray, descriptors: np.ndarray) -> Features:
    """Features without images."""
    return Features(ImageSet.without_positions([]), codes, descriptors)


# ---- Single queries


def baseline_rerank(candidates: np.ndarray, database: np.ndarray, query: np.ndarray) -> np.ndarray:
    """One query's candidates [K] in the order of their distances, computed in a loop."""
    return candidates[np.argsort([np.linalg.norm(database[i] - query) for i in candidates], kind="stable")]


def two_stage_search(database: Features, queries: Features) -> SearchResult:
    """The first 100 by Hamming distance of the codes, ordered by L2 distance of the descriptors."""
    return search_and_rerank(database, queries, K, rerank_num=K)[-1]


def make_single_queries(database: Features) -> list[Features]:
    """Queries of different places, each with a code and a descriptor near those of an image of its place."""
    places = np.arange(SINGLE_QUERIES) * (IMAGES // IMAGES_PER_PLACE // SINGLE_QUERIES)
    codes = make_codes(SINGLE_QUERIES, 3, places)
    near = as_array(database.descriptors)[places * IMAGES_PER_PLACE]
    descriptors = near + make_descriptors(SINGLE_QUERIES, 2) / 4
    return [make_features(codes[[i]], descriptors[[i]]) for i in range(SINGLE_QUERIES)]


def search_rows(folder: Path) -> list[Row]:
    """Single queries among 100,000 images."""
    database = make_features(make_codes(IMAGES, 1), make_descriptors(IMAGES, 0))
    queries = make_single_queries(database)
    flat = faiss.IndexFlatL2(DIM)
    flat.add(as_array(database.descriptors))
    row = compare(
        f"two-stage search, {SINGLE_QUERIES} single queries",
        lambda: [flat.search(as_array(query.descriptors), K) for query in queries],
        lambda: [two_stage_search(database, query) for query in queries],
        rounds=ROUNDS,
        target=300,
        note=f"one after another, of different places; baseline: flat L2 search of {IMAGES:,} x {DIM} floats; "
        f"ours: codes, then {K} descriptors",
    )
    cold = compare(
        "  a query alone, cold caches",
        lambda: flat.search(as_array(queries[0].descriptors), K),
        lambda: two_stage_search(database, queries[0]),
        rounds=ROUNDS,
        note="ours runs right after a flat search, which fills the caches with other data",
    )
    return [
        row.per_item(SINGLE_QUERIES, "ms/query"),
        cold,
        rerank_row(database, queries[0]),
        *smaller_rows(folder, database, queries),
    ]


def rerank_row(database: Features, query: Features) -> Row:
    """Re-ranking of one query's candidates."""
    candidates = search(database, query, K)
    descriptors = as_array(database.descriptors)

    def baseline() -> np.ndarray:
        return baseline_rerank(candidates.indices[0], descriptors, as_array(query.descriptors)[0])

    def ours() -> np.ndarray:
        return rerank(candidates, database, query, rerank_num=K).indices[0]

    order = "the same" if (baseline() == ours()).all() else "DIFFERENT"
    note = f"baseline: a loop of norms; the order is {order}"
    return compare(f"re-ranking {K} candidates", baseline, ours, rounds=20 * ROUNDS, target=2, note=note)


def smaller_rows(folder: Path, database: Features, queries: list[Features]) -> list[Row]:
    """Re-ranking with descriptors of fewer bits, read from a file in the page cache."""
    candidates = [search(database, query, K) for query in queries]
    descriptors = as_array(database.descriptors)
    codes, scales = quantize(descriptors)
    arrays: dict[str, DiskArray | QuantizedArray] = {
        "fp32": write_array(folder / "fp32", descriptors),
        "fp16": write_array(folder / "fp16", descriptors.astype(np.float16)),
        "int8": QuantizedArray(write_array(folder / "int8", codes), scales),
    }

    def rerank_all(dtype: str) -> None:
        for query, results in zip(queries, candidates, strict=True):
            rerank(results, database._replace(descriptors=arrays[dtype]), query, rerank_num=K)

    rows = [
        compare(
            f"  from a file, {dtype}",
            lambda: rerank_all("fp32"),
            lambda: rerank_all(dtype),  # noqa: B023 - called at once
            rounds=2 * ROUNDS,
            note=f"baseline: fp32; the file has {(folder / dtype).stat().st_size / 1e6:.0f} MB",
        )
        for dtype in ("fp16", "int8")
    ]
    return [row.per_item(SINGLE_QUERIES, "ms/query") for row in rows]


def write_array(path: Path, array: np.ndarray) -> DiskArray:
    """The array in a file."""
    array.tofile(path)
    return DiskArray(path, array.dtype, array.shape)


# ---- Memory


def memory_row(folder: Path, images: int) -> Row:
    """Resident memory of a two-stage evaluation with an index on disk; the baseline's is the size of its arrays."""
    check_free_space(folder, images)
    index = write_index(folder / "index", images)
    queries = make_features(make_codes(MEMORY_QUERIES, 6), make_descriptors(MEMORY_QUERIES, 7))
    start = time.perf_counter()
    ours = peak_memory_mb(lambda: evaluate_index(index, queries), warm=False)
    seconds = time.perf_counter() - start
    baseline = images * (DIM * 4 + CODE_BYTES) / 1e6
    return Row(
        name=f"two-stage evaluation, {images:,} images",
        baseline=baseline,
        ours=ours,
        unit="MB",
        ratio=baseline / ours,
        baseline_mb=baseline,
        ours_mb=ours,
        note=f"resident memory, {MEMORY_QUERIES} queries, all checksums verified, {seconds:.0f} s; "
        "baseline: the size of its arrays (not run)",
    )


def check_free_space(folder: Path, images: int) -> None:
    """Raises InputError if the disk is too small for an index of so many images."""
    status = os.statvfs(folder)
    free, needed = status.f_bavail * status.f_frsize, 1.2 * images * DIM * 4
    if free < needed:
        raise InputError(
            f"{folder} has {free / 1e9:.0f} GB free, but {images:,} images x {DIM} floats need {needed / 1e9:.0f} GB. "
            "Set TMPDIR to a folder on a larger disk."
        )


def write_index(folder: Path, count: int) -> Path:
    """An index of made-up features, as a two-branch model with 4096 dimensions would write it."""
    model = GeoLocalizationNet(ModelConfig(hashing=True, rerank=True))
    descriptors, codes = make_descriptors(CHUNK_SIZE, 4), make_codes(count, 5)
    with IndexWriter(IndexConfig(folder=folder), metadata_of(model, ExtractionConfig())) as writer:
        for start in range(0, count, CHUNK_SIZE):
            chunk = range(start, min(start + CHUNK_SIZE, count))
            images = ImageSet.at_utms([image_path(i) for i in chunk], np.zeros((len(chunk), 2)))
            rows = np.roll(descriptors[: len(chunk)], start // CHUNK_SIZE, axis=1)
            writer.append(Features(images, codes[chunk.start : chunk.stop], rows))
        writer.features()  # marks the index as complete
    return folder


def image_path(i: int) -> str:
    """A path as long as those of real datasets."""
    return f"/a/folder/with/datasets/city/images/test/database/@{500000 + i:.2f}@4500000.00@@@@{i:09d}@@@@.jpg"


def evaluate_index(folder: Path, queries: Features) -> None:
    """What eval_rerank.py does with --load_index: opens the index, searches, re-ranks. One thread (see
    peak_memory_mb).
    """
    faiss.omp_set_num_threads(1)
    two_stage_search(Index(folder).features(), queries)


# ---- Many codes


def code_rows(count: int, nlist: int, nprobes: tuple[int, ...]) -> list[Row]:
    """Exact search of codes, one query at a time (baseline) and in batches (ours); then inverted files (ours) against
    exact batches (baseline).
    """
    codes = make_codes(count, 8)
    places = np.random.default_rng(10).integers(0, count // IMAGES_PER_PLACE, CODE_QUERIES)
    queries = make_codes(CODE_QUERIES, 9, places)
    single_queries = [queries[[i]] for i in range(CODE_SINGLE_QUERIES)]
    one, batch = measure(
        lambda: [search_hamming(codes, query, K) for query in single_queries],
        lambda: search_hamming(codes, queries, K),
        CODE_ROUNDS,
    )
    one, batch = 1e3 * one / CODE_SINGLE_QUERIES, 1e3 * batch / CODE_QUERIES
    exact_row = Row(
        name=f"exact, {count:,} codes",
        baseline=one,
        ours=batch,
        unit="ms/query",
        ratio=one / batch,
        note=f"baseline: one query at a time; ours: batches, {CODE_QUERIES} queries",
    )
    exact = search_hamming(codes, queries, K)
    inverted_file, seconds = timed(lambda: InvertedFile(codes, IVFConfig(nlist=nlist, nprobe=max(nprobes))))
    rows = [exact_row]
    for nprobe in nprobes:
        inverted_file.index.nprobe = nprobe
        row = ivf_row(inverted_file, queries, exact=exact, exact_ms=batch)
        rows.append(replace(row, note=f"{row.note}; built in {seconds:.0f} s"))
    return rows


def ivf_row(inverted_file: InvertedFile, queries: np.ndarray, *, exact: SearchResult, exact_ms: float) -> Row:
    """An inverted file against the exact search, which takes `exact_ms` per query."""
    inverted_file.search(queries, K)
    result, seconds = timed(lambda: inverted_file.search(queries, K))
    milliseconds = 1e3 * seconds / len(queries)
    single_queries = [queries[[i]] for i in range(CODE_SINGLE_QUERIES)]
    _, single_seconds = timed(lambda: [inverted_file.search(query, K) for query in single_queries])
    pairs = zip(result.indices, exact.indices, strict=True)
    shared = 100 * np.mean([len(np.intersect1d(approximate, best)) / K for approximate, best in pairs])
    nearest = recalls_at(result.indices == exact.indices[:, :1], [K])[K]
    return Row(
        name=f"  --ivf {inverted_file.index.nlist} {inverted_file.index.nprobe}",
        baseline=exact_ms,
        ours=milliseconds,
        unit="ms/query",
        ratio=exact_ms / milliseconds,
        note=f"finds {shared:.1f} % of the exact first {K}, and for {nearest:.1f} % of the queries the exact first; "
        f"{1e3 * single_seconds / CODE_SINGLE_QUERIES:.2f} ms for a single query",
    )


# ---- On a GPU


@functools.lru_cache(maxsize=1)
def random_codes(count: int) -> np.ndarray:
    """[count, 64] uint8 of random bits, which are drawn much faster than those of make_codes. Kept for the next row."""
    return np.random.default_rng(11).integers(0, 1 << 64, (count, CODE_BYTES // 8), np.uint64).view(np.uint8)


def device_search_row(count: int, num_queries: int, device: str) -> Row:
    """The exact search of `num_queries` queries at a time among random codes: on the CPU, and on the device, which has
    to read every code once.
    """
    codes, queries = random_codes(count), make_codes(num_queries, 12)
    found: dict[str, np.ndarray] = {}

    def on_cpu() -> None:
        found["cpu"] = search_hamming(codes, queries, K).indices

    def on_device() -> None:
        found["device"] = search_hamming_on_device(codes, queries, K, device=device)[1]

    baseline = 1e3 * steady_seconds(on_cpu, "cpu", warm_up=0, most=MOST_SECONDS)
    ours = 1e3 * steady_seconds(on_device, device, most=MOST_SECONDS)
    copying = 1e3 * steady_seconds(partial(copy_in_blocks, codes, device), device, warm_up=0, most=0)
    same = "equal" if np.array_equal(found["device"], found["cpu"]) else "DIFFERENT"
    row = Row(
        name=f"search of {num_queries} among {count:,} codes",
        ours=ours,
        unit="ms",
        note=f"baseline: {faiss.omp_get_max_threads()} CPU threads; the results are {same}; copying the codes to the "
        f"device takes {number(copying)} ms of ours",
    )
    return row.with_memory_share(1e-9 * codes.nbytes, device).against(baseline)


def copy_in_blocks(codes: np.ndarray, device: str) -> None:
    """Copies codes to the device as the search does."""
    for start in range(0, len(codes), DATABASE_BLOCK):
        torch.from_numpy(codes[start : start + DATABASE_BLOCK]).to(device)


def rerank_on_device(
    candidates: np.ndarray, descriptors: np.ndarray, queries: np.ndarray, *, device: str
) -> np.ndarray:
    """The candidates [Q, K] of queries [Q, d] in the order of their distances, which the device computes."""
    rows = torch.from_numpy(descriptors[candidates]).to(device)
    squares = (rows - torch.from_numpy(queries).to(device)[:, None]).square().sum(dim=2)
    return np.take_along_axis(candidates, squares.argsort(dim=1, stable=True).cpu().numpy(), axis=1)


def device_rerank_row(num_queries: int, device: str, *, images: int) -> Row:
    """Re-ranking of 100 candidates of each query, of so many images: by the scripts on the CPU, and on the device."""
    descriptors, queries = make_descriptors(images, 13), make_descriptors(num_queries, 14)
    candidates = np.random.default_rng(15).integers(0, images, (num_queries, K))
    database = make_features(np.empty((images, 0), np.uint8), descriptors)
    found = SearchResult(np.zeros((num_queries, K), np.int32), candidates, ["hamming"] * K)
    asked = make_features(np.empty((num_queries, 0), np.uint8), queries)
    on_cpu = partial(rerank, found, database, asked, rerank_num=K)
    on_device = partial(rerank_on_device, candidates, descriptors, queries, device=device)
    same = 100 * np.mean(on_device() == on_cpu().indices)
    row = Row(
        name=f"re-ranking of {num_queries}",
        ours=1e3 * steady_seconds(on_device, device),
        unit="ms",
        note=f"not in use; {K} candidates each, {DIM} floats, copied from memory; baseline: as the scripts do it; "
        f"{same:.1f} % of the ranks are the same",
    )
    return row.against(1e3 * steady_seconds(on_cpu, "cpu", most=MOST_SECONDS))


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """The function's result, and the seconds that it takes."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main() -> None:
    args = parse_arguments(
        "Search and re-ranking of made-up data.",
        threads=None,
        large_help="use the largest databases: 1 million images on disk (17 GB), and 10 million codes",
    )
    faiss.omp_set_num_threads(args.threads)
    images, codes, nlist = (1_000_000, 10_000_000, 4096) if args.large else (50_000, 500_000, 512)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*search_rows(Path(folder)), memory_row(Path(folder), images), *code_rows(codes, nlist, (8, 32, 128))]
    report("Retrieval", rows, args.json)


if __name__ == "__main__":
    cli_main(main)
