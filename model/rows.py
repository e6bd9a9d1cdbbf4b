"""Codes and descriptors in memory that grow, and the exact two-stage search among them."""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .errors import InputError
from .index.files import JoinedRows

WORD_BYTES = 8
BLOCK = 16384  # codes that are compared at a time: what one pass writes stays in the cache
SAMPLE_STEP = 16  # of every so many rows, the k smallest distances bound those of all
L2_MARGIN = 64  # further candidates of the fast comparison of descriptors, whose order is exact up to rounding


Stored = np.ndarray | JoinedRows  # descriptors [N, dim]


class Description(NamedTuple):
    """Features of N images. code: [N, bits / 8] uint8 in np.packbits order; descriptor: [N, dim] float32, each of
    length 1. None for what the model does not give.
    """

    code: np.ndarray | None
    descriptor: np.ndarray | None

    def __len__(self) -> int:
        (rows, *_) = (array for array in self if array is not None)
        return len(rows)


class Found(NamedTuple):
    """The nearest rows of a query, best first: rows [K] int64, distances [K] float32, and what these are."""

    rows: np.ndarray
    distances: np.ndarray
    metric: str


class Snapshot(NamedTuple):
    """The rows at one moment. ids: [N] int64, ascending; words: [W, N] uint64, the codes as `words_of` gives them;
    descriptors: [N, dim], which may be on the disk; removed: [N] bool.
    """

    ids: np.ndarray
    words: np.ndarray | None
    descriptors: Stored | None
    removed: np.ndarray

    def rows_of(self, ids: Sequence[int]) -> list[int]:
        """The rows with these ids. Raises InputError for an id that is unknown."""
        rows = np.searchsorted(self.ids, ids)
        for i, row in zip(ids, rows.tolist(), strict=True):
            if row == len(self.ids) or self.ids[row] != i:
                raise InputError(f"There is no image {i}. Give ids that `add` returned.")
        return rows.tolist()

    def features(self, row: int) -> Description:
        """The features of one row."""
        code = None if self.words is None else codes_of(self.words[:, [row]])
        descriptor = None if self.descriptors is None else self.descriptors[row : row + 1].astype(np.float32)
        return Description(code, descriptor)


class Rows:
    """Rows of features, each with an id: a number that is not used again when the row is removed.

    Those of an index come first: its ids and codes are in memory, and its descriptors stay where they are. Safe in
    threads: one may add while others search a snapshot. Adding takes amortised constant time.
    """

    def __init__(
        self, ids: np.ndarray | None = None, codes: np.ndarray | None = None, descriptors: Any = None, next_id: int = 0
    ) -> None:
        self._lock = threading.Lock()
        self._ids = np.zeros(0, np.int64) if ids is None else ids
        self._count, self.next_id = len(self._ids), next_id
        self._words = None if codes is None else words_of(codes)
        self._stored = descriptors
        self._added: np.ndarray | None = None  # descriptors
        self._removed = np.zeros(self._count, bool)

    def append(self, features: Description) -> range:
        """Adds rows, and returns their ids."""
        with self._lock:
            start, end = self._count, self._count + len(features)
            ids = range(self.next_id, self.next_id + len(features))
            if features.code is not None:
                self._words = _with_room(self._words, words_of(features.code), start, axis=1)
            if features.descriptor is not None:
                first = start - (0 if self._stored is None else len(self._stored))
                self._added = _with_room(self._added, features.descriptor, first, axis=0)
            self._removed = _with_room(self._removed, np.zeros(len(features), bool), start, axis=0)
            self._ids = _with_room(self._ids, np.array(ids, np.int64), start, axis=0)
            self._count, self.next_id = end, ids.stop
            return ids

    def remove(self, ids: list[int]) -> None:
        """Marks rows as removed. Raises InputError, and removes none, if one is unknown, or removed already."""
        with self._lock:
            rows = self._snapshot().rows_of(ids)
            for i, row in zip(ids, rows, strict=True):
                if self._removed[row]:
                    raise InputError(f"There is no image {i}. Give ids of images that were added, and not removed.")
            self._mark(rows, is_removed=True)

    def restore(self, ids: list[int]) -> None:
        """Takes back that rows are removed. Raises InputError, and changes none, if one is unknown, or is not."""
        with self._lock:
            rows = self._snapshot().rows_of(ids)
            for i, row in zip(ids, rows, strict=True):
                if not self._removed[row]:
                    raise InputError(f"Image {i} is not removed. Give ids of images that were removed.")
            self._mark(rows, is_removed=False)

    def _mark(self, rows: list[int], *, is_removed: bool) -> None:
        removed = self._removed.copy()  # searches that have begun keep theirs
        removed[rows] = is_removed
        self._removed = removed

    def snapshot(self) -> Snapshot:
        """The rows as they are now; what is added or removed later does not change it."""
        with self._lock:
            return self._snapshot()

    def _snapshot(self) -> Snapshot:
        n = self._count
        stored = 0 if self._stored is None else len(self._stored)
        descriptors: Any = None if self._added is None else self._added[: n - stored]
        if self._stored is not None:
            parts = [self._stored] if descriptors is None else [self._stored, descriptors]
            descriptors = JoinedRows([(part, None) for part in parts])
        words = None if self._words is None else self._words[:, :n]
        return Snapshot(self._ids[:n], words, descriptors, self._removed[:n])

    def __len__(self) -> int:
        snapshot = self.snapshot()
        return len(snapshot.removed) - int(snapshot.removed.sum())


def search(snapshot: Snapshot, query: Description, k: int, *, rerank_num: int, among: np.ndarray | None) -> Found:
    """The k nearest rows to one query: by Hamming distance, re-ranked by the L2 distance of descriptors if there are
    both (paper, section III-D); else by the one that there is. Among equal distances the smaller row comes first.

    among: bool [N], the rows to search; None for all that are not removed.
    """
    allowed = ~snapshot.removed if among is None else among & ~snapshot.removed
    count = int(np.count_nonzero(allowed))
    k = min(k, count)
    if k == 0:
        return Found(np.zeros(0, np.int64), np.zeros(0, np.float32), "l2" if query.code is None else "hamming")
    if query.code is None:
        assert query.descriptor is not None and snapshot.descriptors is not None
        rows = _nearest_by_product(snapshot.descriptors, query.descriptor[0], k + L2_MARGIN, allowed)
        return _by_l2(snapshot.descriptors, query.descriptor[0], rows, k)
    assert snapshot.words is not None
    distances = hamming_distances(snapshot.words, words_of(query.code)[:, 0])
    distances[~allowed] = np.iinfo(distances.dtype).max
    rows = _smallest(distances, max(k, rerank_num) if query.descriptor is not None else k)[:count]
    if query.descriptor is None:
        return Found(rows, distances[rows].astype(np.float32), "hamming")
    assert snapshot.descriptors is not None
    return _by_l2(snapshot.descriptors, query.descriptor[0], rows[: max(k, rerank_num)], k)


def words_of(codes: np.ndarray) -> np.ndarray:
    """Codes [N, bytes] uint8 as words [W, N] uint64, column by column; the last word is filled up with 0."""
    filled = np.pad(codes, ((0, 0), (0, -codes.shape[1] % WORD_BYTES)))
    return np.ascontiguousarray(filled.view(np.uint64).T)


def codes_of(words: np.ndarray, size: int | None = None) -> np.ndarray:
    """The codes [N, size] uint8 of words [W, N] uint64; None: as many bytes as the words have."""
    return np.ascontiguousarray(words.T).view(np.uint8)[:, :size]


def hamming_distances(words: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The Hamming distances [N] uint16 of codes [W, N] uint64 to a code [W] uint64."""
    distances = np.empty(words.shape[1], np.uint16)
    for start in range(0, len(distances), BLOCK):
        bits = _count_bits(words[:, start : start + BLOCK] ^ query[:, None])
        bits.sum(axis=0, dtype=np.uint16, out=distances[start : start + BLOCK])
    return distances


def _count_bits(words: np.ndarray) -> np.ndarray:
    """The number of bits that are 1 in each of [W, N] uint64."""
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(words)
    return np.unpackbits(words.view(np.uint8).reshape(len(words), -1, WORD_BYTES), axis=2).sum(axis=2, dtype=np.uint8)


def _nearest_by_product(descriptors: Stored, query: np.ndarray, k: int, allowed: np.ndarray) -> np.ndarray:
    """The rows whose descriptors, all of length 1, have the k largest products with the query, and those with the same
    product as the last of these; in ascending order.
    """
    products = np.empty(len(descriptors), np.float32)
    for start in range(0, len(descriptors), BLOCK):
        products[start : start + BLOCK] = descriptors[start : start + BLOCK] @ query
    products[~allowed] = -np.inf
    k = min(k, int(np.count_nonzero(allowed)))
    return np.flatnonzero(products >= np.partition(products, -k)[-k])


def _smallest(distances: np.ndarray, k: int) -> np.ndarray:
    """The rows of the k smallest distances [N] uint16, smallest first; among equal ones in their order."""
    k = min(k, len(distances))
    some = distances[::SAMPLE_STEP] if SAMPLE_STEP * k <= len(distances) else distances
    bound = np.partition(some, k - 1)[k - 1]  # of some rows, and therefore not below that of all
    rows = np.flatnonzero(distances <= bound)
    return rows[np.argsort(distances[rows], kind="stable")][:k]


def _by_l2(descriptors: Stored, query: np.ndarray, rows: np.ndarray, k: int) -> Found:
    squares = np.square(descriptors[rows] - query).sum(axis=1)
    order = np.argsort(squares, kind="stable")[:k]
    return Found(rows[order], np.sqrt(squares[order]), "l2")


def _with_room(array: np.ndarray | None, added: np.ndarray, start: int, *, axis: int) -> np.ndarray:
    """The array with `added` from `start` on, along an axis. It is copied to twice its size where it is too small."""
    end = start + added.shape[axis]
    if array is None or array.shape[axis] < end:
        shape = list(added.shape)
        shape[axis] = max(2 * start, end, 64)
        larger = np.zeros(shape, added.dtype)
        if array is not None:
            larger[_span(axis, 0, start)] = array[_span(axis, 0, start)]
        array = larger
    array[_span(axis, start, end)] = added
    return array


def _span(axis: int, start: int, end: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, end),)
