"""Approximate search by codes with an inverted file (faiss's IndexBinaryIVF)."""

import numpy as np

from model import InputError
from utils.retrieval.config import IVFConfig
from utils.retrieval.search import QUERY_BLOCK, SearchResult, block_starts

TRAINING_CODES_PER_LIST = 64  # a quarter of faiss's default: training is 4 times faster, the lists nearly the same
BLOCK_SIZE = 1 << 17


class InvertedFile:
    """Packed codes [N, b] uint8, sorted into lists around centres. faiss keeps a copy of them, b + 8 bytes per code.

    Raises InputError if there are fewer codes than lists.
    """

    def __init__(self, codes: np.ndarray, config: IVFConfig) -> None:
        import faiss  # slow to load, and --help does not need it

        config.check_size(len(codes))
        bits = 8 * codes.shape[1]
        self._quantizer = faiss.IndexBinaryFlat(bits)  # kept here, because faiss holds only a bare pointer to it
        self.index = faiss.IndexBinaryIVF(self._quantizer, bits, config.nlist)
        self.index.nprobe = config.nprobe
        self.index.cp.max_points_per_centroid = TRAINING_CODES_PER_LIST
        self.index.cp.seed = 1
        sample_size = min(len(codes), TRAINING_CODES_PER_LIST * config.nlist)
        sample = np.random.default_rng(0).choice(len(codes), sample_size, replace=False)
        self.index.train(np.ascontiguousarray(codes[np.sort(sample)]))
        for start in block_starts(len(codes), BLOCK_SIZE, "Filling the inverted file"):
            self.index.add(np.ascontiguousarray(codes[start : start + BLOCK_SIZE]))

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """The k nearest to each of queries [Q, b] in the lists that it probes. Distances are int32; K is min(k, N).

        Queries [Q, C, b] with C crops each give Q*C rows of results. Raises InputError if the probed
        lists hold fewer than K codes.
        """
        queries = queries.reshape(-1, queries.shape[-1])
        k = min(k, self.index.ntotal)
        distances, indices = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
        for start in block_starts(len(queries), QUERY_BLOCK, "Searching"):
            block = slice(start, start + QUERY_BLOCK)
            distances[block], indices[block] = self.index.search(np.ascontiguousarray(queries[block]), k)
        if (indices < 0).any():
            raise InputError(
                f"--ivf: the {self.index.nprobe} probed lists hold fewer than {k} codes for some queries. Use a "
                "larger NPROBE or a smaller NLIST."
            )
        return SearchResult(distances, indices, ["hamming"] * k)
