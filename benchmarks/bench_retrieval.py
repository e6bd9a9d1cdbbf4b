"""Search and re-ranking: faiss's flat search of floats and a Python loop of norms against codes, and memory-mapped descriptors.

    python -m benchmarks.bench_retrieval [--threads N] [--json FILE] [--large]

Made-up data: descriptors drawn from a normal distribution, of length 1; codes that are signs of projections of places.
"""
import os
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from benchmarks.common import Row, compare, measure, parse_arguments, peak_memory_mb, report
from model import InputError, build_model
from utils.features import ExtractionSettings, Features
from utils.index import Index, IndexWriter, make_header, pieces_of
from utils.logs import run_script
from utils.recall import recalls_at
from utils.retrieval import build_inverted_file, rerank, search_hamming, search_inverted_file

DIM, CODE_BYTES, K = 4096, 64, 100
PHOTOS, PHOTOS_PER_PLACE, SINGLE_QUERIES = 100_000, 10, 20
LATENT_DIM, NOISE = 32, 0.3  # of a place, and between its photos: codes that differ in about 60 bits of 512
ROUNDS = 7


def make_descriptors(count: int, seed: int) -> np.ndarray:
    """[count, 4096] float32 of length 1."""
    descriptors = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return descriptors


def make_codes(count: int, seed: int, of: np.ndarray | None = None) -> np.ndarray:
    """[count, 64] uint8: the signs of 512 projections of a photo's place, 32 numbers, and noise. `of`: the places' numbers, else 10 photos each."""
    projection = np.random.default_rng(0).standard_normal((LATENT_DIM, 8 * CODE_BYTES), dtype=np.float32)
    places = np.random.default_rng(1).standard_normal((-(-count // PHOTOS_PER_PLACE) if of is None else of.max() + 1, LATENT_DIM), dtype=np.float32)
    of = np.arange(count) // PHOTOS_PER_PLACE if of is None else of
    noise = np.random.default_rng(seed)
    codes = np.empty((count, CODE_BYTES), np.uint8)
    for start in range(0, count, 1 << 16):
        block = places[of[start:start + (1 << 16)]]
        block = block + NOISE * noise.standard_normal(block.shape, dtype=np.float32)
        codes[start:start + (1 << 16)] = np.packbits(block @ projection > 0, axis=1)
    return codes


def plain_rerank(candidates: np.ndarray, database: np.ndarray, query: np.ndarray) -> np.ndarray:
    """One query's candidates in the order of their distances, by a loop."""
    return candidates[np.argsort([np.linalg.norm(database[i] - query) for i in candidates], kind="stable")]


def two_stage(codes: np.ndarray, descriptors: np.ndarray, query_code: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Predictions [Q, 100]: by Hamming distance, then by L2 distance."""
    distances, predictions = search_hamming(codes, query_code, K, progress=False)
    return rerank(distances, predictions, descriptors, query, K, progress=False)[1]


def search_rows() -> list[Row]:
    """Single queries among 100,000 photos."""
    descriptors, codes = make_descriptors(PHOTOS, 0), make_codes(PHOTOS, 1)
    places = np.arange(SINGLE_QUERIES) * (PHOTOS // PHOTOS_PER_PLACE // SINGLE_QUERIES)
    asked, asked_codes = descriptors[places * PHOTOS_PER_PLACE] + make_descriptors(SINGLE_QUERIES, 2) / 4, make_codes(SINGLE_QUERIES, 3, of=places)
    queries = [(asked_codes[[i]], asked[[i]]) for i in range(SINGLE_QUERIES)]
    query_code, query = queries[0]
    flat = faiss.IndexFlatL2(DIM)
    flat.add(descriptors)
    candidates = search_hamming(codes, query_code, K, progress=False)[1]
    distances = np.zeros(candidates.shape, np.int32)
    same = (rerank(distances, candidates, descriptors, query, K, progress=False)[1][0] == plain_rerank(candidates[0], descriptors, query[0])).all()
    row = compare(f"two-stage search, {SINGLE_QUERIES} single queries", lambda: [flat.search(query, K) for _, query in queries],
                  lambda: [two_stage(codes, descriptors, code, query) for code, query in queries], ROUNDS, 300,
                  f"one after another, of places of their own; plain: flat L2 search of {PHOTOS:,} x {DIM} floats; ours: codes, then {K} descriptors",
                  memory=False)
    return [
        row._replace(plain=row.plain / SINGLE_QUERIES, ours=row.ours / SINGLE_QUERIES, unit="ms/query"),
        compare("  a query alone, caches cold", lambda: flat.search(query, K), lambda: two_stage(codes, descriptors, query_code, query), ROUNDS,
                note="ours right after a flat search, which has filled the caches with other data", memory=False),
        compare(f"re-ranking {K} candidates", lambda: plain_rerank(candidates[0], descriptors, query[0]),
                lambda: rerank(distances, candidates, descriptors, query, K, progress=False), 20 * ROUNDS, 2,
                f"plain: a loop of norms; the order is {'the same' if same else 'ANOTHER'}", memory=False),
    ]


def write_index(folder: Path, count: int) -> Path:
    """An index of made-up features, as a two-branch model of 4096 dims would leave one."""
    model = build_model("dinov2-large", "gem", hashing=True, rerank=True)
    block, codes = make_descriptors(1024, 4), make_codes(count, 5)
    with IndexWriter(folder, make_header(model, "dinov2-large", "gem", None, ExtractionSettings(), "fp32")) as writer:
        for piece in pieces_of(count):
            rows = np.roll(block[:len(piece)], piece.start // 1024, axis=1)
            photos = [f"/a/folder/with/datasets/city/images/test/database/@{500000 + i:.2f}@4500000.00@@@@{i:09d}@@@@.jpg" for i in piece]
            writer.append(photos, np.zeros((len(piece), 2)), Features(codes[piece.start:piece.stop], rows))
    return folder


def evaluate_index(folder: Path, queries: Features) -> None:
    """What eval_rerank.py does with the index of a database: opens it, searches, re-ranks. On one thread: see peak_memory_mb."""
    faiss.omp_set_num_threads(1)
    index = Index(folder)
    distances, predictions = search_hamming(index.codes, queries.codes, K)
    rerank(distances, predictions, index.descriptors, queries.descriptors, K)


def memory_row(folder: Path, photos: int, queries: int = 1000) -> Row:
    """Resident memory of a two-stage evaluation of an index on the disk; what plain takes is its arrays' size."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    if free < 1.2 * photos * DIM * 4:
        raise InputError(f"{folder} has {free / 1e9:.0f} GB free; {photos:,} photos x {DIM} floats need {1.2 * photos * DIM * 4 / 1e9:.0f} GB. "
                         "Set TMPDIR to a larger disk")
    write_index(folder / "index", photos)
    made_up = Features(make_codes(queries, 6), make_descriptors(queries, 7))
    start = time.perf_counter()
    ours = peak_memory_mb(lambda: evaluate_index(folder / "index", made_up), warm=False)
    seconds = time.perf_counter() - start
    plain = photos * (DIM * 4 + CODE_BYTES) / 1e6
    return Row(f"two-stage evaluation, {photos:,} photos", plain, ours, "MB", plain / ours, plain_mb=plain, ours_mb=ours,
               note=f"resident memory, {queries} queries, every checksum compared, {seconds:.0f} s; plain: the size of its arrays (not run)")


def codes_rows(count: int, lists: int, all_probes: tuple[int, ...], queries: int = 256) -> list[Row]:
    """Exact search among so many codes, one by one (plain) and in batches (ours); an inverted file against exact batches."""
    codes = make_codes(count, 8)
    asked = make_codes(queries, 9, of=np.random.default_rng(10).integers(0, count // PHOTOS_PER_PLACE, queries))
    single = [asked[[i]] for i in range(8)]
    one, batch = measure(lambda: [search_hamming(codes, query, K, progress=False) for query in single],
                         lambda: search_hamming(codes, asked, K, progress=False), 3)
    exact = search_hamming(codes, asked, K, progress=False)[1]
    one, batch = 1e3 * one / len(single), 1e3 * batch / queries
    rows = [Row(f"exact, {count:,} codes", one, batch, "ms/query", one / batch, note=f"plain: one query at a time; ours: batches, {queries} queries")]
    start = time.perf_counter()
    index = build_inverted_file(codes, lists)
    built = time.perf_counter() - start
    for probes in all_probes:
        search_inverted_file(index, asked, K, probes, progress=False)
        start = time.perf_counter()
        found = search_inverted_file(index, asked, K, probes, progress=False)[1]
        taken = 1e3 * (time.perf_counter() - start) / queries
        start = time.perf_counter()
        for query in single:
            search_inverted_file(index, query, K, probes, progress=False)
        alone = 1e3 * (time.perf_counter() - start) / len(single)
        shared = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, exact, strict=True)])
        nearest = recalls_at(found[:, :K] == exact[:, :1], [K])[K]
        rows.append(Row(f"  --ivf {lists} {probes}", batch, taken, "ms/query", batch / taken,
                        note=f"{100 * shared:.1f} % of the exact first {K}, {nearest:.1f} % of the exact first; {alone:.2f} ms for a single query; "
                             f"built in {built:.0f} s"))
    return rows


def main() -> None:
    args = parse_arguments("Search and re-ranking, made-up data.", threads=os.cpu_count(),
                           large_help="the sizes of the largest databases: 1 million photos on the disk (17 GB), 10 million codes")
    faiss.omp_set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*search_rows(), memory_row(Path(folder), 1_000_000 if args.large else 50_000),
                *codes_rows(10_000_000 if args.large else 500_000, 4096 if args.large else 512, (8, 32, 128))]
    report("Retrieval", rows, args.json)


if __name__ == "__main__":
    run_script(main)
