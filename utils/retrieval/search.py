"""Search and re-ranking (paper, section III-D): exact L2, exact Hamming, and re-ordering of the first results.

faiss is imported by the functions that use it, because it is slow to load and `--help` does not need it.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from model import InputError
from utils.retrieval.features import DiskArray, Features
from utils.retrieval.gpu_search import search_hamming_on_device
from utils.retrieval.quantization import QuantizedArray

QUERY_BLOCK = 32  # queries between two updates of the progress bar
DATABASE_BLOCK_BYTES = 256 << 20
MIN_CODES_PER_THREAD = 500_000  # below this, starting a thread costs more than it saves


class SearchResult(NamedTuple):
    """The K best database images of each of Q queries, best first.

    distances: [Q, K]. indices: [Q, K] int64. metric: of the distances at each of the K ranks, "l2" or "hamming", or
    those of `test_methods.merge_crops`.
    """

    distances: np.ndarray
    indices: np.ndarray
    metric: list[str]

    def first(self, k: int) -> "SearchResult":
        """The first k ranks."""
        return SearchResult(self.distances[:, :k], self.indices[:, :k], self.metric[:k])


class RemoteCodes(Protocol):
    """Codes [N, 64] of a database that a search engine holds."""

    def __len__(self) -> int: ...

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """The k <= N nearest to packed codes [Q, 64], as search_hamming gives them."""


def search(database: Features, queries: Features, k: int, *, device: str = "cpu") -> SearchResult:
    """The k nearest images: by Hamming distance, on the device, if there are codes; else by L2 distance."""
    if database.codes is not None:
        return search_hamming(database.codes, queries.codes, k, device=device)
    return search_l2(database.descriptors, queries.descriptors, k)


def search_l2(database: np.ndarray | DiskArray | QuantizedArray, queries: np.ndarray, k: int) -> SearchResult:
    """The k nearest of database [N, d] to each of queries [Q, d], float32 or float16, by exact L2 distance.

    Queries [Q, C, d] with C crops each give Q*C rows of results. Distances are float32. K is min(k, N). Raises
    InputError for descriptors that are not finite.
    """
    import faiss

    queries = np.ascontiguousarray(queries, np.float32).reshape(-1, queries.shape[-1])
    block_size = max(1, DATABASE_BLOCK_BYTES // (4 * queries.shape[1]))
    squares = np.empty((len(queries), 0), np.float32)
    indices = np.empty((len(queries), 0), np.int64)
    for start in block_starts(len(database), block_size, "Searching"):
        block = np.ascontiguousarray(database[start : start + block_size], np.float32)
        block_squares, block_indices = faiss.knn(queries, block, min(k, len(block)))
        if (block_indices < 0).any():  # what faiss returns for NaN
            raise InputError("Descriptors with NaN or infinity cannot be searched. Check the weights, and --precision.")
        squares, indices = _smallest(
            np.hstack([squares, block_squares]), np.hstack([indices, block_indices + start]), k
        )
    return SearchResult(np.sqrt(np.maximum(squares, 0)), indices, ["l2"] * indices.shape[1])


def search_hamming(
    database: np.ndarray | RemoteCodes, queries: np.ndarray, k: int, *, device: str = "cpu"
) -> SearchResult:
    """The k nearest of database [N, b] to queries [Q, b], packed codes of 8*b bits, by exact Hamming distance.

    Queries [Q, C, b] with C crops each give Q*C rows of results. Distances are int32. K is min(k, N). Among equal
    distances the smaller index comes first. The search runs on the CPU, or on a CUDA device if its memory suffices.
    """
    import faiss

    queries = queries.reshape(-1, queries.shape[-1])
    k = min(k, len(database))
    if not isinstance(database, np.ndarray):
        return database.search(queries, k)
    if device.startswith("cuda"):
        try:
            return SearchResult(*search_hamming_on_device(database, queries, k, device=device), ["hamming"] * k)
        except torch.OutOfMemoryError:
            logging.warning("The GPU's memory does not suffice for the search by codes, which runs on the CPU instead.")
    threads = faiss.omp_get_max_threads()
    # faiss gives each query to one thread. With fewer queries than threads, each thread searches a part of the
    # database instead.
    parts = min(threads, len(database) // MIN_CODES_PER_THREAD) if len(queries) < threads else 1
    if parts > 1:
        bounds = [len(database) * i // parts for i in range(parts + 1)]
        ranges = list(zip(bounds, bounds[1:], strict=False))
        with ThreadPoolExecutor(parts, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
            found = list(pool.map(lambda r: _knn_hamming(queries, database[r[0] : r[1]], k), ranges))
        shifted = [indices + start for (_, indices), start in zip(found, bounds, strict=False)]
        distances, indices = _smallest(np.hstack([d for d, _ in found]), np.hstack(shifted), k)
    else:
        distances, indices = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
        for start in block_starts(len(queries), QUERY_BLOCK, "Searching"):
            block = slice(start, start + QUERY_BLOCK)
            distances[block], indices[block] = _knn_hamming(queries[block], database, k)
    return SearchResult(distances, indices, ["hamming"] * k)


def rerank(
    candidates: SearchResult, database: np.ndarray | DiskArray | QuantizedArray, queries: np.ndarray, *, rerank_num: int
) -> SearchResult:
    """Orders the first `rerank_num` candidates by the L2 distance of descriptors. The others keep their order.

    database [N, d] float32 or float16, of which only the candidates' rows are read; queries [Q, d], or [Q, C, d] with C
    crops each, of which the smallest distance counts. Distances are float32: L2 at the first `rerank_num` ranks, the
    candidates' own at the others. Candidates at equal distances keep their order.
    """
    import faiss

    distances, indices = candidates.distances.astype(np.float32), candidates.indices.copy()
    queries = np.ascontiguousarray(queries, np.float32)
    for i in block_starts(len(queries), 1, "Re-ranking"):
        first = indices[i, :rerank_num]
        rows = np.ascontiguousarray(database[first], np.float32)
        squares = np.full(len(rows), np.inf, np.float32)
        crop_squares, crop_indices = faiss.knn(queries[i].reshape(-1, rows.shape[1]), rows, len(rows))
        np.minimum.at(squares, crop_indices, crop_squares)
        order = squares.argsort(kind="stable")
        distances[i, :rerank_num], indices[i, :rerank_num] = np.sqrt(squares[order]), first[order]
    metric = ["l2"] * min(rerank_num, len(candidates.metric)) + candidates.metric[rerank_num:]
    return SearchResult(distances, indices, metric)


def _knn_hamming(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """faiss's counting search ("mc"): faster than its heap for short codes, with ties in database order."""
    import faiss

    return faiss.knn_hamming(
        np.ascontiguousarray(queries), np.ascontiguousarray(database), min(k, len(database)), variant="mc"
    )


def _smallest(distances: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each row [Q, n] and their indices, smallest first. Equal ones keep their order."""
    order = distances.argsort(axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)


def block_starts(count: int, size: int, description: str) -> Iterable[int]:
    """The start of each block of `size`, with a progress bar if there are several."""
    starts, unit = range(0, count, size), "block" if size > 1 else "query"
    return tqdm(starts, desc=description, unit=unit, leave=False) if len(starts) > 1 else starts
