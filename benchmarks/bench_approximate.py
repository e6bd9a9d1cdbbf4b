"""Approximate searches by codes that faiss offers, one query at a time: time and recall against the exact search.

    python -m benchmarks.bench_approximate [--threads N] [--json [FILE]] [--large]

The codes are those of bench_retrieval. Only the inverted file is part of this project (--ivf).
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np

from benchmarks.bench_retrieval import CODE_BYTES, IMAGES_PER_PLACE, K, make_codes, timed
from benchmarks.common import Row, parse_arguments, report
from utils.retrieval.config import IVFConfig
from utils.retrieval.index.inverted_file import InvertedFile, open_inverted_file
from utils.retrieval.search import search_hamming
from utils.runtime.script import cli_main

QUERIES = 100
TARGET_RECALL, TARGET_MS = 95, 2
Search = Callable[[np.ndarray], np.ndarray]  # of a query [1, 64]; gives the indices [1, K] of what it finds


def start_row(codes: np.ndarray) -> Row:
    """The start of a search with --ivf: the first one, which builds the inverted file, and another one."""
    config = IVFConfig(nlist=list_count(codes), nprobe=1)
    with tempfile.TemporaryDirectory() as folder:
        first, again = (timed(lambda: open_inverted_file(codes, config, Path(folder)))[1] for _ in range(2))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    note = f"baseline: the first search, which builds and keeps it; ours: another one; {size / 1e6:.1f} MB on disk"
    return Row(
        name=f"start with --ivf {config.nlist}", baseline=first, ours=again, unit="s", ratio=first / again, note=note
    )


def list_count(codes: np.ndarray) -> int:
    """About as many lists as a list has codes: a power of 2."""
    return 1 << round(np.log2(len(codes)) / 2)


def inverted_files(codes: np.ndarray) -> Iterator[tuple[str, Search]]:
    """--ivf with more and more probes."""
    nlist = list_count(codes)
    inverted_file, seconds = timed(lambda: InvertedFile(codes, IVFConfig(nlist=nlist, nprobe=1)))
    for share in (32, 16, 8, 4):
        inverted_file.index.nprobe = nlist // share
        name = f"--ivf {nlist} {nlist // share}, built in {seconds:.0f} s"
        yield name, lambda query: inverted_file.search(query, K).indices


def graphs(codes: np.ndarray) -> Iterator[tuple[str, Search]]:
    """A graph of neighbours: each code has up to 2 * 16 links on the lowest level."""
    graph = faiss.IndexBinaryHNSW(8 * CODE_BYTES, 16)
    _, seconds = timed(lambda: graph.add(codes))
    for width in (100, 200, 400, 800):
        graph.hnsw.efSearch = width
        yield f"HNSW 16, efSearch {width}, built in {seconds:.0f} s", lambda query: graph.search(query, K)[1]


def hash_tables(codes: np.ndarray) -> Iterator[tuple[str, Search]]:
    """Codes that agree with the query in all but `flips` of the first bits, or of one of several groups of bits."""
    bits = 8 * CODE_BYTES
    for name, table, flips in (
        ("hash of 20 bits", faiss.IndexBinaryHash(bits, 20), (2, 4)),
        ("16 hashes of 16 bits", faiss.IndexBinaryMultiHash(bits, 16, 16), (1, 2)),
    ):
        _, seconds = timed(lambda: table.add(codes))  # noqa: B023
        for flip in flips:
            table.nflip = flip
            label = f"{name}, {flip} flips, built in {seconds:.0f} s"
            yield label, lambda query: table.search(query, K)[1]  # noqa: B023 - used before the next one


def milliseconds(search: Search, queries: np.ndarray) -> tuple[float, list[np.ndarray]]:
    """The median time of a query, and what each finds."""
    times, found = [], []
    for i in range(len(queries)):
        start = time.perf_counter()
        found.append(search(queries[[i]])[0])
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), found


def rows(count: int) -> list[Row]:
    """Each method against the exact search, which is the baseline."""
    codes = make_codes(count, 8)
    queries = make_codes(QUERIES, 9, np.random.default_rng(10).integers(0, count // IMAGES_PER_PLACE, QUERIES))
    baseline, exact = milliseconds(lambda query: search_hamming(codes, query, K).indices, queries)
    table = [start_row(codes)]
    for methods in (inverted_files, graphs, hash_tables):
        for name, search in methods(codes):
            ours, found = milliseconds(search, queries)
            recall = 100 * np.mean([len(np.intersect1d(*pair)) / K for pair in zip(found, exact, strict=True)])
            reached = "reaches" if recall >= TARGET_RECALL and ours <= TARGET_MS else "misses"
            name, _, built = name.rpartition(", ")
            table.append(
                Row(
                    name=name,
                    baseline=baseline,
                    ours=ours,
                    unit="ms/query",
                    ratio=baseline / ours,
                    note=f"finds {recall:.1f} % of the exact first {K}; {built}; {reached} {TARGET_RECALL} % in "
                    f"{TARGET_MS} ms",
                )
            )
    return table


def main() -> None:
    args = parse_arguments("Approximate searches of made-up codes.", large_help="use 1 million codes, not 100,000")
    faiss.omp_set_num_threads(args.threads)
    count = 1_000_000 if args.large else 100_000
    report(f"Approximate search of {count:,} codes", rows(count), args.json)


if __name__ == "__main__":
    cli_main(main)
