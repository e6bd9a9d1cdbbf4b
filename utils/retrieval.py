"""Search on arrays: exact L2, exact Hamming, and re-ranking (paper, section III-D)."""
import faiss
import numpy as np
from tqdm import tqdm

from model import InputError

QUERY_BLOCK = 256
NOT_FINITE = "descriptors that are not finite numbers cannot be searched: are the weights whole? fp16 overflows with some models, bf16 does not"
DATABASE_BLOCK_BYTES = 256 << 20


def search_float(database: np.ndarray, queries: np.ndarray, k: int, progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of database [N, d] for each of queries [Q, d], float32, by exact L2 distance.

    Returns distances [Q, k'] float32 and predictions [Q, k'] int64, nearest first, k' = min(k, N). The database may be a memory-mapped
    file: it is read block by block. Raises InputError for descriptors that are not finite.
    """
    if not np.isfinite(queries).all():
        raise InputError(NOT_FINITE)
    rows = max(1, DATABASE_BLOCK_BYTES // (4 * database.shape[1]))
    starts = range(0, len(database), rows)
    best_squares = np.empty((len(queries), 0), np.float32)
    best_ids = np.empty((len(queries), 0), np.int64)
    for start in tqdm(starts, desc="Searching", unit="block", disable=not progress):
        block = np.ascontiguousarray(database[start:start + rows], np.float32)
        if not np.isfinite(block).all():
            raise InputError(NOT_FINITE)
        squares, ids = faiss.knn(np.ascontiguousarray(queries, np.float32), block, min(k, len(block)))
        squares, ids = np.hstack([best_squares, squares]), np.hstack([best_ids, ids + start])
        order = np.argsort(squares, axis=1, kind="stable")[:, :k]
        best_squares, best_ids = np.take_along_axis(squares, order, 1), np.take_along_axis(ids, order, 1)
    return np.sqrt(np.maximum(best_squares, 0)), best_ids


def search_hamming(database: np.ndarray, queries: np.ndarray, k: int, progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of database [N, b] for each of queries [Q, b], packed codes of 8*b bits (uint8), by exact Hamming distance.

    Returns distances [Q, k'] int32 and predictions [Q, k'] int64, nearest first and the smaller number first among equals, k' = min(k, N).
    """
    k = min(k, len(database))
    index = faiss.IndexBinaryFlat(8 * database.shape[1])
    index.use_heap = False  # faiss's counting search: faster for short codes, and equals come in the order of the database
    index.add(np.ascontiguousarray(database))
    distances = np.empty((len(queries), k), np.int32)
    predictions = np.empty((len(queries), k), np.int64)
    for start in tqdm(range(0, len(queries), QUERY_BLOCK), desc="Searching", unit="block", disable=not progress):
        block = slice(start, start + QUERY_BLOCK)
        distances[block], predictions[block] = index.search(np.ascontiguousarray(queries[block]), k)
    return distances, predictions


def rerank(distances: np.ndarray, predictions: np.ndarray, database: np.ndarray, queries: np.ndarray, rerank_num: int,
           progress: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Orders the first `rerank_num` of each query's predictions by the L2 distance of descriptors; the others stay as they are.

    distances and predictions [Q, k] are those of the first stage; database [N, d] and queries [Q, d] float32, contiguous. Only the
    candidates' rows of the database are read, in place, so it may be a memory-mapped file. Returns distances [Q, k] float32, L2 for the
    first `rerank_num` and the first stage's for the others, and predictions [Q, k]. Equals keep the order of the first stage.
    """
    distances, predictions = distances.astype(np.float32), predictions.copy()
    for start in tqdm(range(0, len(queries), QUERY_BLOCK), desc="Re-ranking", unit="block", disable=not progress):
        block = slice(start, start + QUERY_BLOCK)
        candidates = np.ascontiguousarray(predictions[block, :rerank_num])
        lengths = _candidate_distances(database, queries[block], candidates)
        order = np.argsort(lengths, axis=1, kind="stable")
        predictions[block, :rerank_num] = np.take_along_axis(candidates, order, 1)
        distances[block, :rerank_num] = np.take_along_axis(lengths, order, 1)
    return distances, predictions


def _candidate_distances(database: np.ndarray, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """L2 distances [Q, R] of queries [Q, d] to the database's rows candidates [Q, R] int64."""
    (Q, R), d = candidates.shape, database.shape[1]
    queries = np.ascontiguousarray(queries, np.float32)
    assert database.dtype == np.float32 and database.flags.c_contiguous, "faiss reads the database's rows in place"
    squares = np.empty((Q, R), np.float32)
    faiss.fvec_L2sqr_by_idx(*map(faiss.swig_ptr, (squares, queries, database, candidates)), d, Q, R)
    return np.sqrt(squares)
