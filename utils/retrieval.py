"""Search on arrays: exact L2, exact Hamming, an inverted file, and re-ranking (paper, section III-D). Databases may be memory-mapped files."""
import mmap
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
from tqdm import tqdm

from model import InputError

QUERY_BLOCK, RERANK_BLOCK = 32, 8
RELEASE_BYTES = 8 << 20  # of a memory-mapped database that are read before its pages are given back; Linux maps many times as much
NOT_FINITE = "descriptors that are not finite numbers cannot be searched: are the weights whole? fp16 overflows with some models, bf16 does not"
DATABASE_BLOCK_BYTES = 256 << 20
LEAST_SPLIT_CODES = 500_000  # fewer than this a thread, and starting the thread costs more than it gives


def search_float(database: np.ndarray, queries: np.ndarray, k: int, progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of database [N, d] for each of queries [Q, d], float32 or float16, by exact L2 distance.

    Returns distances [Q, k'] float32 and predictions [Q, k'] int64, nearest first, k' = min(k, N). Raises InputError for descriptors that
    are not finite.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if not np.isfinite(queries).all():
        raise InputError(NOT_FINITE)
    rows = max(1, DATABASE_BLOCK_BYTES // (4 * database.shape[1]))
    best_squares = np.empty((len(queries), 0), np.float32)
    best_ids = np.empty((len(queries), 0), np.int64)
    for start in _starts(len(database), rows, "Searching", progress):
        block = np.ascontiguousarray(database[start:start + rows], np.float32)
        if not np.isfinite(block).all():
            raise InputError(NOT_FINITE)
        squares, ids = faiss.knn(queries, block, min(k, len(block)))
        best_squares, best_ids = _best(np.hstack([best_squares, squares]), np.hstack([best_ids, ids + start]), k)
        _release(database)
    return np.sqrt(np.maximum(best_squares, 0)), best_ids


def search_hamming(database: np.ndarray, queries: np.ndarray, k: int, progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of database [N, b] for each of queries [Q, b], packed codes of 8*b bits (uint8, contiguous), by exact Hamming distance.

    Returns distances [Q, k'] int32 and predictions [Q, k'] int64, nearest first and the smaller number first among equals, k' = min(k, N).
    The database is read in place.
    """
    k = min(k, len(database))
    # faiss gives each query to one thread: for fewer queries than threads, each thread takes a part of the database.
    threads = faiss.omp_get_max_threads()
    parts = min(threads, len(database) // LEAST_SPLIT_CODES) if len(queries) < threads else 1
    if parts > 1:
        bounds = [len(database) * i // parts for i in range(parts + 1)]
        with ThreadPoolExecutor(parts, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:  # else each starts threads of its own
            found = list(pool.map(lambda first, last: _knn_hamming(queries, database[first:last], min(k, last - first)), bounds, bounds[1:]))
        return _best(np.hstack([distances for distances, _ in found]),
                     np.hstack([ids + first for first, (_, ids) in zip(bounds, found, strict=False)]), k)
    distances = np.empty((len(queries), k), np.int32)
    predictions = np.empty((len(queries), k), np.int64)
    for start in _starts(len(queries), QUERY_BLOCK, "Searching", progress):
        block = slice(start, start + QUERY_BLOCK)
        distances[block], predictions[block] = _knn_hamming(queries[block], database, k)
    return distances, predictions


def check_lists(lists: int, codes: int) -> None:
    """Raises InputError for an inverted file of more lists than codes."""
    if lists > codes:
        raise InputError(f"an inverted file of {lists} lists needs as many codes or more; the database has {codes}")


def build_inverted_file(database: np.ndarray, lists: int, progress: bool = True) -> faiss.IndexBinaryIVF:
    """Packed codes [N, b] uint8 sorted into `lists` lists by their nearest centre; faiss keeps a copy, b + 8 bytes a code.

    Raises InputError for more lists than codes.
    """
    check_lists(lists, len(database))
    bits = 8 * database.shape[1]
    quantizer = faiss.IndexBinaryFlat(bits)
    index = faiss.IndexBinaryIVF(quantizer, bits, lists)
    index.referenced_objects = [quantizer]  # faiss holds a bare pointer to it
    index.cp.max_points_per_centroid = 64  # a quarter of faiss's default: four times faster, for about the same lists
    index.cp.seed = 1
    sample = np.random.default_rng(0).choice(len(database), min(len(database), 64 * lists), replace=False)
    index.train(np.ascontiguousarray(database[np.sort(sample)]))
    for start in _starts(len(database), 1 << 17, "Filling the lists", progress):
        index.add(np.ascontiguousarray(database[start:start + (1 << 17)]))
    return index


def search_inverted_file(index: faiss.IndexBinaryIVF, queries: np.ndarray, k: int, probes: int,
                         progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each of queries [Q, b] among the codes of the `probes` lists nearest to it: approximate.

    Returns distances [Q, k'] int32 and predictions [Q, k'] int64, k' = min(k, N), nearest first. Raises InputError where the lists probed
    hold fewer than k' codes.
    """
    k = min(k, index.ntotal)
    index.nprobe = probes
    distances = np.empty((len(queries), k), np.int32)
    predictions = np.empty((len(queries), k), np.int64)
    for start in _starts(len(queries), QUERY_BLOCK, "Searching", progress):
        block = slice(start, start + QUERY_BLOCK)
        distances[block], predictions[block] = index.search(np.ascontiguousarray(queries[block]), k)
    if (predictions < 0).any():
        raise InputError(f"the {probes} lists probed hold fewer than {k} codes for some query: give a larger NPROBE or a smaller NLIST")
    return distances, predictions


def rerank(distances: np.ndarray, predictions: np.ndarray, database: np.ndarray, queries: np.ndarray, rerank_num: int,
           progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Orders the first `rerank_num` of each query's predictions by the L2 distance of descriptors; the others stay as they are.

    distances and predictions [Q, k] are those of the first stage; database [N, d] float32 or float16, contiguous, and queries [Q, d]. Only
    the candidates' rows of the database are read. Returns distances [Q, k] float32, L2 for the first `rerank_num` and the first stage's
    for the others, and predictions [Q, k]. Equals keep the order of the first stage.
    """
    distances, predictions = distances.astype(np.float32), predictions.copy()
    queries = np.ascontiguousarray(queries, np.float32)
    touched = 0
    for start in _starts(len(queries), RERANK_BLOCK, "Re-ranking", progress):
        block = slice(start, start + RERANK_BLOCK)
        candidates = np.ascontiguousarray(predictions[block, :rerank_num])
        lengths = _candidate_distances(database, queries[block], candidates)
        distances[block, :rerank_num], predictions[block, :rerank_num] = _best(lengths, candidates, rerank_num)
        touched += candidates.size * database.shape[1] * database.itemsize
        if touched > RELEASE_BYTES:
            _release(database)
            touched = 0
    return distances, predictions


def _knn_hamming(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """faiss's counting search, on arrays in place: faster than its heap for short codes, and equals come in the order of the database."""
    return faiss.knn_hamming(np.ascontiguousarray(queries), np.ascontiguousarray(database), k, variant="mc")


def _candidate_distances(database: np.ndarray, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """L2 distances [Q, R] of queries [Q, d] float32 to the database's rows candidates [Q, R] int64."""
    (Q, R), d = candidates.shape, database.shape[1]
    if database.dtype != np.float32:
        return np.stack([np.linalg.norm(database[rows].astype(np.float32) - query, axis=1) for rows, query in zip(candidates, queries, strict=True)])
    assert database.flags.c_contiguous, "faiss reads the database's rows in place"
    # faiss gives each query to one thread: of fewer queries than threads, each stands in several rows, with a part of its candidates in each.
    parts = next(parts for parts in range(max(1, faiss.omp_get_max_threads() // Q), 0, -1) if R % parts == 0)
    queries = np.repeat(queries, parts, axis=0)
    squares = np.empty((Q, R), np.float32)
    faiss.fvec_L2sqr_by_idx(*map(faiss.swig_ptr, (squares, queries, database, candidates)), d, Q * parts, R // parts)
    return np.sqrt(squares)


def _best(distances: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each row [Q, n], with their ids, smallest first; equals keep their order."""
    order = distances.argsort(axis=1, kind="stable")[:, :k]
    rows = np.arange(len(order))[:, None]
    return distances[rows, order], ids[rows, order]


def _starts(count: int, size: int, what: str, progress: bool) -> Iterable[int]:
    """The first numbers of blocks. Without a bar a bare range: for a single query, making a bar takes longer than the search."""
    starts = range(0, count, size)
    return tqdm(starts, desc=what, unit="block") if progress else starts


def _release(database: np.ndarray) -> None:
    """Lets the system take a memory-mapped file's pages back: those read count as this process's memory until then."""
    mapped = database
    while mapped is not None and not isinstance(mapped, mmap.mmap):
        mapped = getattr(mapped, "base", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
