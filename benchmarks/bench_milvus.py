"""The same search by NumPy, by our code on one machine, and by Milvus: time, memory and disk.

    python -m benchmarks.bench_milvus [--images N] [--codes_only] [--json [FILE]]

Starts a real Milvus server (packages milvus==2.3.5 and pymilvus) in a network namespace of its own. The data are made
up, as in bench_retrieval.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch

from benchmarks.bench_retrieval import make_codes
from benchmarks.common import add_json_flag, json_file, report_table
from benchmarks.milvus_server import ISOLATED, PORT, bring_loopback_up, missing, start_server
from datasets.image_set import ImageSet
from model import GeoLocalizationNet, InputError, ModelConfig
from model.index.manifest import CHUNK_SIZE
from utils.integrations.milvus import export_index, open_index
from utils.integrations.milvus.collections import Connection
from utils.retrieval.config import EngineAddress, ExtractionConfig, IndexConfig
from utils.retrieval.features import Features, SearchResult, as_array
from utils.retrieval.index import Index, IndexWriter, metadata_of
from utils.retrieval.search import rerank, search
from utils.runtime.flags import ArgumentParser, positive_int
from utils.runtime.script import cli_main

DIM, K, QUERIES, SHARDS = 2048, 100, 100, (1, 4)
INSIDE = "BENCH_MILVUS_INSIDE"  # environment variable: set within the namespace


@dataclass(kw_only=True)
class EngineFigures:
    """An engine: images per second that it takes in; the median time of one query alone, and of one of 100 together, in
    milliseconds; memory and disk in MB; for how many of 100 queries indices and distances are those of our code.
    """

    engine: str
    insert: float | None = None
    first_stage: float | None = None
    first_stage_batch: float | None = None
    rerank: float | None = None
    memory_mb: float | None = None
    disk_mb: float | None = None
    equal: int = QUERIES

    def cells(self) -> dict[str, str | float | None]:
        """The row with headings."""
        return {
            "engine": self.engine,
            "images/s in": self.insert,
            "first stage, ms": self.first_stage,
            f"in batches of {QUERIES}": self.first_stage_batch,
            "re-ranking, ms": self.rerank,
            "memory, MB": self.memory_mb,
            "disk, MB": self.disk_mb,
            "results equal to ours": f"{self.equal} of {QUERIES}",
        }


class Engine(NamedTuple):
    """search(database, queries) -> the first stage; rerank(candidates, database, queries) -> the second."""

    search: Callable[[Features, Features], SearchResult]
    rerank: Callable[[SearchResult, Features, Features], SearchResult]


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_int, default=100_000, metavar="N", help="size of the database")
    parser.add_argument("--codes_only", action="store_true", help="the index of a hashing-only model")
    add_json_flag(parser)
    args = parser.parse_args()
    if INSIDE not in os.environ:
        if reason := missing():
            raise InputError(f"No Milvus server can be started here: {reason}.")
        command = [*ISOLATED, sys.executable, "-m", "benchmarks.bench_milvus", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env={**os.environ, INSIDE: "1"}).returncode)
    bring_loopback_up()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_all(Path(folder), args.images, codes_only=args.codes_only)
    report(rows, args.images, json_file(args.json, "milvus_codes" if args.codes_only else "milvus"))


def measure_all(folder: Path, images: int, *, codes_only: bool) -> list[EngineFigures]:
    """The rows of the table."""
    start = time.perf_counter()
    index = write_index(folder / "index", images, codes_only=codes_only)
    seconds = time.perf_counter() - start
    local = index.features()
    queries = make_queries(local)
    parts = [as_array(part) for part in (local.codes, local.descriptors) if part is not None]
    arrays = Features(local.images, parts[0], None if codes_only else parts[1])
    expected = results(OURS, local, queries)
    rows = [measure("NumPy", NUMPY, arrays, queries=queries, expected=expected)]
    rows[0].memory_mb = sum(part.nbytes for part in parts) / 1e6
    row = measure("ours, an index in a folder", OURS, local, queries=queries, expected=expected)
    rows.append(replace(row, insert=images / seconds, memory_mb=88 * images / 1e6, disk_mb=size_mb(index.folder)))
    server_folder = folder / "server"
    server = start_server(server_folder)
    try:
        for shards in SHARDS:
            empty_mb, empty_disk = resident_mb(server.server_proc.pid), size_mb(server_folder)
            address = EngineAddress.parse(f"milvus://127.0.0.1:{PORT}/shards_{shards}")
            start = time.perf_counter()
            export_index(index, address, shards=shards)
            seconds = time.perf_counter() - start
            remote = open_index(address).features()
            name = f"Milvus 2.3.5, {shards} shard{'s' * (shards > 1)}"
            row = measure(name, OURS, remote, queries=queries, expected=expected)
            memory, disk = resident_mb(server.server_proc.pid) - empty_mb, size_mb(server_folder) - empty_disk
            rows.append(replace(row, insert=images / seconds, memory_mb=memory, disk_mb=disk))
            if not codes_only:
                engine = Engine(OURS.search, partial(rerank_by_server, Connection(address)))
                row = measure("  re-ranked by Milvus", engine, remote, queries=queries, expected=expected)
                rows.append(replace(row, first_stage=None, first_stage_batch=None))
    finally:
        server.stop()
    return rows


# ---- Made-up data


def write_index(folder: Path, count: int, *, codes_only: bool) -> Index:
    """An index of made-up features."""
    model = GeoLocalizationNet(ModelConfig(backbone="vit-tiny", hashing=True, rerank=not codes_only))
    metadata = metadata_of(model, ExtractionConfig())
    metadata = replace(metadata, descriptor_dim=0 if codes_only else DIM)
    codes = make_codes(count, 1)
    with IndexWriter(IndexConfig(folder=folder), metadata) as writer:
        for start in range(0, count, CHUNK_SIZE):
            chunk = range(start, min(start + CHUNK_SIZE, count))
            images = ImageSet.at_utms([f"/data/city/images/{i:08d}.jpg" for i in chunk], np.zeros((len(chunk), 2)))
            rows = np.random.default_rng(start).standard_normal((len(chunk), DIM), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            writer.append(Features(images, codes[start : chunk.stop], None if codes_only else rows))
        writer.features()
    return Index(folder)


def make_queries(database: Features) -> list[Features]:
    """Queries of different places, near an image of each."""
    chosen = np.linspace(0, len(database.images) - 1, QUERIES).astype(int)
    codes = make_codes(QUERIES, 3, chosen // 10)
    images = ImageSet.without_positions([""])
    noise = np.random.default_rng(2).standard_normal((QUERIES, DIM), dtype=np.float32) / 200
    descriptors = None if database.descriptors is None else database.descriptors[chosen] + noise
    return [Features(images, codes[[i]], None if descriptors is None else descriptors[[i]]) for i in range(len(chosen))]


# ---- Searching


def numpy_search(database: Features, queries: Features) -> SearchResult:
    """The first stage without faiss; needs NumPy 2."""
    words, codes = (as_array(features.codes).view(np.uint64) for features in (database, queries))
    distances = np.stack([np.bitwise_count(words ^ query).sum(axis=1) for query in codes])
    indices = distances.argsort(axis=1, kind="stable")[:, :K]
    return SearchResult(np.take_along_axis(distances, indices, axis=1), indices, ["hamming"] * K)


def numpy_rerank(found: SearchResult, database: Features, queries: Features) -> SearchResult:
    """The second stage without faiss, for one query."""
    candidates = as_array(database.descriptors)[found.indices[0]]
    distances = np.linalg.norm(candidates - as_array(queries.descriptors), axis=1)
    order = distances.argsort(kind="stable")
    return SearchResult(distances[None, order], found.indices[:, order], ["l2"] * K)


def rerank_by_server(
    connection: Connection, found: SearchResult, database: Features, queries: Features
) -> SearchResult:
    """The second stage with distances that Milvus computes, for one query."""
    options: dict[str, Any] = {
        "limit": K,
        "filter": f"id in {found.indices[0].tolist()}",
        "consistency_level": "Eventually",
    }
    name = f"{connection.address.name}_descriptors"
    (hits,) = connection.call("search", name, data=list(as_array(queries.descriptors)), **options)
    distances = np.sqrt(np.array([hit["distance"] for hit in hits], np.float32))
    return SearchResult(distances[None], np.array([[hit["id"] for hit in hits]]), ["l2"] * K)


OURS = Engine(partial(search, k=K), partial(rerank, rerank_num=K))  # as in the scripts
NUMPY = Engine(numpy_search, numpy_rerank)


def results(engine: Engine, database: Features, queries: list[Features]) -> list[SearchResult]:
    """Those of the last stage."""
    found = [engine.search(database, query) for query in queries]
    if database.descriptors is None:
        return found
    return [engine.rerank(first, database, query) for first, query in zip(found, queries, strict=True)]


def measure(
    name: str, engine: Engine, database: Features, *, queries: list[Features], expected: list[SearchResult]
) -> EngineFigures:
    """A row without what the database takes."""
    actual = results(engine, database, queries)  # also warms up
    pairs = list(zip(actual, expected, strict=True))
    equal = sum(all(np.array_equal(a, b) for a, b in zip(left[:2], right[:2], strict=True)) for left, right in pairs)
    together = Features(queries[0].images, np.concatenate([as_array(query.codes) for query in queries]), None)
    row = EngineFigures(engine=name, equal=equal)
    row.first_stage = median_ms(lambda query: engine.search(database, query), queries)
    row.first_stage_batch = median_ms(lambda _: engine.search(database, together), range(3)) / QUERIES
    if database.descriptors is not None:
        found = [(engine.search(database, query), query) for query in queries]
        row.rerank = median_ms(lambda pair: engine.rerank(pair[0], database, pair[1]), found)
    return row


def median_ms(function: Callable[[Any], object], arguments: Iterable[Any]) -> float:
    """The median time of a call."""
    seconds = []
    for argument in arguments:
        start = time.perf_counter()
        function(argument)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


# ---- Results


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6


def size_mb(folder: Path) -> float:
    """What the files of a folder take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / 1e6


def report(rows: list[EngineFigures], images: int, path: Path | None) -> None:
    """Prints the machine and a Markdown table, and writes JSON."""
    title = f"{images:,} images, {'codes only' if rows[0].rerank is None else f'descriptors of {DIM} floats'}"
    report_table(title, [row.cells() for row in rows], path)


if __name__ == "__main__":
    cli_main(main)
