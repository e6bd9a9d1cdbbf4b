"""Approximate search by codes with an inverted file (faiss's IndexBinaryIVF), which an index keeps.

The file ivf_<nlist>.bin in the index's folder: a line with a JSON object, {"format": 1, "codes_sha256": checksum of
codes.bin, "sha256": checksum of what follows}; the centres of the lists [nlist, 64] uint8, packed as codes are; and the
list of each code [N] int32, little-endian. It holds no data of faiss's own, whose reader trusts what it reads.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model import InputError
from model.files import open_regular
from model.index.metadata import parse_object
from utils.retrieval.config import IVFConfig
from utils.retrieval.features import SearchResult
from utils.retrieval.search import QUERY_BLOCK, with_progress
from utils.runtime.atomic_files import atomic_write

FORMAT = 1
MAX_HEADER_BYTES = 1 << 10
TRAINING_CODES_PER_LIST = 64  # a quarter of faiss's default: training is 4 times faster, the lists nearly the same
BLOCK_SIZE = 1 << 17


class Lists(NamedTuple):
    """How codes are sorted: centres [nlist, b] uint8, packed; numbers [N] int32, the list of each code."""

    centres: np.ndarray
    numbers: np.ndarray


class InvertedFile:
    """Packed codes [N, b] uint8, sorted into lists around centres. faiss keeps a copy of them, b + 8 bytes per code.

    lists: those of an earlier inverted file of the same codes; by default they are computed. Raises InputError if there
    are fewer codes than lists.
    """

    def __init__(self, codes: np.ndarray, config: IVFConfig, lists: Lists | None = None) -> None:
        import faiss  # slow to load, and --help does not need it

        config.check_size(len(codes))
        bits = 8 * codes.shape[1]
        self._quantizer = faiss.IndexBinaryFlat(bits)  # kept here, because faiss holds only a bare pointer to it
        self.index = faiss.IndexBinaryIVF(self._quantizer, bits, config.nlist)
        self.index.nprobe = config.nprobe
        if lists is None:
            lists = self._sort(codes)
        else:
            self._quantizer.add(lists.centres)
            self.index.is_trained = True
        self.lists = lists
        for start in with_progress(range(0, len(codes), BLOCK_SIZE), "Filling the inverted file"):
            block = np.ascontiguousarray(codes[start : start + BLOCK_SIZE])
            numbers = lists.numbers[start : start + BLOCK_SIZE].astype(np.int64)
            pointers = faiss.swig_ptr(block), None, faiss.swig_ptr(numbers)
            self.index.add_core(len(block), *pointers)  # type: ignore[attr-defined]

    def _sort(self, codes: np.ndarray) -> Lists:
        """Computes centres from a sample of the codes, and finds the nearest centre of each code."""
        import faiss

        nlist = self.index.nlist
        self.index.cp.max_points_per_centroid = TRAINING_CODES_PER_LIST
        self.index.cp.min_points_per_centroid = 1  # without faiss's warning on small databases
        self.index.cp.seed = 1
        sample_size = min(len(codes), TRAINING_CODES_PER_LIST * nlist)
        sample = np.random.default_rng(0).choice(len(codes), sample_size, replace=False)
        self.index.train(np.ascontiguousarray(codes[np.sort(sample)]))
        centres = faiss.vector_to_array(self._quantizer.xb).reshape(nlist, codes.shape[1])  # type: ignore[attr-defined]
        numbers = np.empty(len(codes), np.int32)
        for start in with_progress(range(0, len(codes), BLOCK_SIZE), "Sorting the codes into lists"):
            block = np.ascontiguousarray(codes[start : start + BLOCK_SIZE])
            numbers[start : start + BLOCK_SIZE] = self._quantizer.search(block, 1)[1][:, 0]
        return Lists(centres, numbers)

    def __len__(self) -> int:
        return self.index.ntotal

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """The k <= N nearest to each of queries [Q, b] in the lists that it probes. Distances are int32.

        Raises InputError if the probed lists hold fewer than k codes.
        """
        distances, indices = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
        for start in with_progress(range(0, len(queries), QUERY_BLOCK), "Searching"):
            block = slice(start, start + QUERY_BLOCK)
            distances[block], indices[block] = self.index.search(np.ascontiguousarray(queries[block]), k)
        if (indices < 0).any():
            raise InputError(
                f"--ivf: the {self.index.nprobe} probed lists hold fewer than {k} codes for some queries. Use a "
                "larger NPROBE or a smaller NLIST."
            )
        return SearchResult(distances, indices, ["hamming"] * k)


def open_inverted_file(codes: np.ndarray, config: IVFConfig, folder: Path | None) -> InvertedFile:
    """The inverted file of an index's codes, from the index's folder; computed and kept there if it is not there yet.

    One that is damaged, or of other codes, is computed anew with a warning. Without a folder none is kept.
    """
    if folder is None:
        return InvertedFile(codes, config)
    path = folder / f"ivf_{config.nlist}.bin"
    checksum = hashlib.sha256(np.ascontiguousarray(codes).data).hexdigest()
    lists = _read(path, (config.nlist, codes.shape[1]), len(codes), checksum)
    inverted_file = InvertedFile(codes, config, lists)
    if lists is None:
        _write(path, inverted_file.lists, checksum)
    return inverted_file


def _read(path: Path, shape: tuple[int, int], count: int, codes_sha256: str) -> Lists | None:
    """The lists in a file, with centres of this shape; None, with a warning, if they cannot be used."""
    try:
        with open(open_regular(path), "rb") as file:
            header = parse_object(file.readline(MAX_HEADER_BYTES))
            if header.get("format") != FORMAT or header.get("codes_sha256") != codes_sha256:
                logging.warning("%s belongs to other codes than the index holds now. Building it again.", path)
                return None
            size = shape[0] * shape[1]
            data = file.read(size + 4 * count + 1)
        if hashlib.sha256(data).hexdigest() != header.get("sha256"):
            raise ValueError("its checksum differs")
        centres, numbers = np.frombuffer(data[:size], np.uint8).reshape(shape), np.frombuffer(data[size:], "<i4")
        if len(numbers) != count or numbers.min() < 0 or numbers.max() >= shape[0]:
            raise ValueError("a code without a list")
        return Lists(centres, numbers)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.warning("%s cannot be used (%s). Building it again.", path, error)
        return None


def _write(path: Path, lists: Lists, codes_sha256: str) -> None:
    """Keeps the lists in a file or, with a warning, does not, where nothing can be written."""
    data = lists.centres.tobytes() + lists.numbers.astype("<i4").tobytes()
    header: dict[str, Any] = {
        "format": FORMAT,
        "codes_sha256": codes_sha256,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    try:
        with atomic_write(path, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(data)
    except InputError as error:
        logging.warning("%s The next run builds the inverted file again.", error)
