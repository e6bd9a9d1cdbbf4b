"""Search and re-ranking (paper, section III-D): exact L2, exact Hamming, and re-ordering of the first results.

faiss is imported by the functions that use it, because it is slow to load and `--help` does not need it.
"""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from model import InputError
from utils.retrieval.crops import merge_crops
from utils.retrieval.features import Descriptors, Features, SearchableCodes, SearchResult, as_array
from utils.retrieval.gpu_search import search_hamming_on_device

QUERY_BLOCK = 32  # queries between two updates of the progress bar
DATABASE_BLOCK_BYTES = 256 << 20
MAX_VALUE = 1e4  # of a descriptor, or a distance; a model's descriptors have the length 1
MIN_VARIED = 8  # images; fewer may be copies of one
UNSOUND = (
    f"Descriptors contain NaN, infinity, or values beyond {MAX_VALUE:g}, and cannot be searched. Check the weights and "
    "--precision, and rebuild the index if there is one."
)
MIN_CODES_PER_THREAD = 500_000  # below this, starting a thread costs more than it saves


def search(database: Features, queries: Features, k: int, *, device: str = "cpu") -> SearchResult:
    """The k nearest images: by Hamming distance, on the device, if there are codes; else by L2 distance.

    Of queries with several crops, the results of the crops are merged as `queries.merging` says. Raises InputError if
    the database's images have one and the same code or descriptor, or descriptors are not sound: see check_sound.
    """
    _check_variety(database)
    code_bits = 0
    if database.codes is not None:
        codes = as_array(queries.codes)
        code_bits = 8 * codes.shape[-1]
        found = search_hamming(database.codes, codes, k, device=device)
    else:
        assert database.descriptors is not None, "features have codes, descriptors, or both"
        found = search_l2(database.descriptors, as_array(queries.descriptors), k)
    return merge_crops(found, queries.merging, k, code_bits=code_bits) if queries.merging else found


def search_and_rerank(
    database: Features, queries: Features, k: int, *, rerank_num: int = 0, device: str = "cpu"
) -> list[SearchResult]:
    """The results of each stage: of the search, and with `rerank_num` of the re-ranking.

    Each has k images, or more where re-ranking needs them; all of a smaller database.
    """
    stages = [search(database, queries, max(k, rerank_num), device=device)]
    if rerank_num:
        stages.append(rerank(stages[0], database, queries, rerank_num=rerank_num))
    return stages


def search_l2(database: Descriptors, queries: np.ndarray, k: int) -> SearchResult:
    """The k nearest of database [N, d] to each of queries [Q, d], float32 or float16, by exact L2 distance.

    Queries [Q, C, d] with C crops each give Q*C rows of results. Distances are float32. K is min(k, N). Raises
    InputError for descriptors that check_sound refuses.
    """
    import faiss

    queries = np.ascontiguousarray(queries, np.float32).reshape(-1, queries.shape[-1])
    block_size = max(1, DATABASE_BLOCK_BYTES // (4 * queries.shape[1]))
    check_sound(queries)
    squares = np.empty((len(queries), 0), np.float32)
    indices = np.empty((len(queries), 0), np.int64)
    for start in with_progress(range(0, len(database), block_size), "Searching"):
        block = np.ascontiguousarray(database[start : start + block_size], np.float32)
        check_sound(block)
        block_squares, block_indices = faiss.knn(queries, block, min(k, len(block)))
        squares, indices = _smallest(
            np.hstack([squares, block_squares]), np.hstack([indices, block_indices + start]), k
        )
    return SearchResult(np.sqrt(np.maximum(squares, 0)), indices, ["l2"] * indices.shape[1])


def search_hamming(
    database: np.ndarray | SearchableCodes, queries: np.ndarray, k: int, *, device: str = "cpu"
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
        for start in with_progress(range(0, len(queries), QUERY_BLOCK), "Searching"):
            block = slice(start, start + QUERY_BLOCK)
            distances[block], indices[block] = _knn_hamming(queries[block], database, k)
    return SearchResult(distances, indices, ["hamming"] * k)


def rerank(candidates: SearchResult, database: Features, queries: Features, *, rerank_num: int) -> SearchResult:
    """Orders the first `rerank_num` candidates by the L2 distance of descriptors. The others keep their order.

    Of the database only the candidates' descriptors are read. Of queries with several crops, the smallest distance
    counts. Distances are float32: L2 at the first `rerank_num` ranks, the candidates' own at the others. Candidates at
    equal distances keep their order. Raises InputError for distances that check_sound refuses, as those to descriptors
    that are not sound are.
    """
    import faiss

    assert database.descriptors is not None, "of a two-branch model, or those that codes were made of"
    distances, indices = candidates.distances.astype(np.float32), candidates.indices.copy()
    descriptors = np.ascontiguousarray(as_array(queries.descriptors), np.float32)
    for i in with_progress(range(len(descriptors)), "Re-ranking", "query"):
        first = indices[i, :rerank_num]
        rows = np.ascontiguousarray(database.descriptors[first], np.float32)
        squares = np.full(len(rows), np.inf, np.float32)
        crop_squares, crop_indices = faiss.knn(descriptors[i].reshape(-1, rows.shape[1]), rows, len(rows))
        np.minimum.at(squares, crop_indices, crop_squares)
        check_sound(np.sqrt(squares))
        order = squares.argsort(kind="stable")
        distances[i, :rerank_num], indices[i, :rerank_num] = np.sqrt(squares[order]), first[order]
    metric = ["l2"] * min(rerank_num, len(candidates.metric)) + candidates.metric[rerank_num:]
    return SearchResult(distances, indices, metric)


def check_sound(values: np.ndarray) -> None:
    """Raises InputError if descriptors, or distances, are not finite, or are larger than MAX_VALUE."""
    if values.size and not (values.min() >= -MAX_VALUE and values.max() <= MAX_VALUE):  # false for NaN
        raise InputError(UNSOUND)


def _check_variety(database: Features) -> None:
    """Raises InputError if MIN_VARIED or more images all have the same code, or without codes the same descriptor."""
    rows = database.descriptors if database.codes is None else database.codes
    assert rows is not None, "features have codes, descriptors, or both"
    if len(rows) < MIN_VARIED or hasattr(rows, "search"):  # a search engine does not give its codes
        return
    first = rows[:1]  # type: ignore[index]
    if all((block == first).all() for block in _growing_blocks(rows)):
        kind = "descriptor" if database.codes is None else "code"
        raise InputError(
            f"All {len(rows)} images of the database have one and the same {kind}, so that results would "
            "come in the order of the files. The weights or their export are broken, or all images are copies of one."
        )


def _growing_blocks(rows: Any) -> Iterator[np.ndarray]:
    """Rows [N, d] in blocks, the first of which are small: nearly always, these differ."""
    start, size = 0, MIN_VARIED
    while start < len(rows):
        yield rows[start : start + size]
        start, size = start + size, min(2 * size, 1 << 14)


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


def with_progress(steps: range, description: str, unit: str = "block") -> Iterable[int]:
    """The steps, with a progress bar if there are several."""
    return tqdm(steps, desc=description, unit=unit, leave=False) if len(steps) > 1 else steps
