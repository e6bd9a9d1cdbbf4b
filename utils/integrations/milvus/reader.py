"""Reading an index in Milvus: objects that stand in for its arrays."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np

from datasets.image_set import ImageSet
from model.errors import InputError
from model.index.projections import Projections
from utils.integrations.milvus.collections import MAX_ROWS, POSITION_FIELDS, Collections, Connection
from utils.retrieval.config import EngineAddress
from utils.retrieval.features import Features, SearchResult
from utils.retrieval.index.engines import EngineIndex, EnginePositions
from utils.retrieval.search import with_progress

MAX_HITS = 1 << 20  # of all queries of one request: some 20 MB, of the 64 MiB that Milvus allows for a message
QUERY_BLOCK = 100
MAX_KNOWN = 1 << 17  # rows that are remembered, some 60 MB, beyond those of the latest search


class MilvusIndex(EngineIndex):
    """An index in Milvus opened for reading. Raises InputError if there is none, or its export is not complete."""

    def __init__(self, address: EngineAddress) -> None:
        self.address = address
        self._collections = collections = Collections(Connection(address))
        if not collections.exists:
            raise InputError(f"No index {address}: there is no such collection. export.py milvus creates one.")
        self.metadata, state = collections.metadata, collections.state
        if not state.images:
            raise InputError(
                f"The index {address} is incomplete: exporting it was interrupted or is still in progress. Run "
                "export.py milvus again."
            )
        collections.load()
        for name in collections.names:
            count = collections.count(name)
            if count < state.images or (count > state.images + len(state.removed) and not state.pending):
                raise collections.error(
                    f"The index {address} is damaged: {name} holds {count} rows instead of {state.images}. Drop the "
                    "collections and export the index again."
                )
        self.projections = Projections(coding=collections.read_coding())
        self._table = ImageTable(collections)
        utms, zones, degrees = (
            cast(np.ndarray, Positions(self._table, fields, dtype))
            for fields, dtype in ((slice(0, 2), np.float64), (2, np.int8), (slice(3, 5), np.float64))
        )
        self.images = ImageSet(Paths(self._table), utms, zones=zones, degrees=degrees)
        logging.info("The index %s holds %d images.", address, len(self))

    def __str__(self) -> str:
        return str(self.address)

    def features(self) -> Features:
        """Nothing is read yet."""
        descriptors = MilvusDescriptors(self._table) if self.metadata.descriptor_dim else None
        return Features(self.images, MilvusCodes(self._table), descriptors)

    def ids_of(self, images: np.ndarray) -> np.ndarray:
        """The ids [n] of images [n], int64."""
        return self._table.ids(images)

    def images_of(self, ids: np.ndarray) -> np.ndarray:
        """The images [n] with these ids, int64; -1 where there is none."""
        return self._table.images(ids)

    def has_changed(self) -> bool:
        """Whether an export has changed the copy since it was opened, or it is gone."""
        return self._collections.has_changed()


class ImageTable:
    """Paths and positions of the images, read on demand. Image i has the i-th id of the copy.

    A search announces what it found. The first access to one of these reads them all, many rows at a time.
    Attributes: collections; count.
    """

    def __init__(self, collections: Collections) -> None:
        self.collections, self.count = collections, collections.state.images
        self._ids = collections.ids() if collections.state.has_gaps else None
        self._known: dict[int, tuple[str, np.ndarray]] = {}
        self._announced = np.empty(0, np.int64)

    def ids(self, images: slice | np.ndarray) -> np.ndarray:
        """The ids [n] of images, int64."""
        if self._ids is not None:
            return self._ids[images]
        return np.arange(*images.indices(self.count)) if isinstance(images, slice) else np.asarray(images)

    def images(self, ids: np.ndarray) -> np.ndarray:
        """The images [n] with these ids, int64; -1 where there is none."""
        if self._ids is None:
            return np.where((ids >= 0) & (ids < self.count), ids, -1)
        places = np.searchsorted(self._ids, ids).clip(max=self.count - 1)
        return np.where(self._ids[places] == ids, places, -1)

    def announce(self, indices: np.ndarray) -> None:
        """These images will probably be asked for. Others may be forgotten, so that a service does not grow."""
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        self._announced = np.union1d(self._announced, indices)

    def path(self, index: int) -> str:
        """The path of an image."""
        return self._row(index)[0]

    def positions(self, indices: Sequence[int]) -> np.ndarray:
        """The values of POSITION_FIELDS of some images, [n, 5] float64."""
        if any(index not in self._known for index in indices):
            self.announce(np.asarray(indices, np.int64))
        return np.array([self._row(index)[1] for index in indices]).reshape(-1, len(POSITION_FIELDS))

    @cached_property
    def all_positions(self) -> np.ndarray:
        """Those of all images, [N, 5] float64."""
        found = np.empty((self.count, len(POSITION_FIELDS)))
        for start in with_progress(range(0, self.count, MAX_ROWS), "Reading positions"):
            page = slice(start, min(start + MAX_ROWS, self.count))
            ids = self.ids(page).tolist()
            rows = self.collections.rows(self.collections.codes, ids, list(POSITION_FIELDS))
            found[page] = [_position(rows[i]) for i in ids]
        return found

    def _row(self, index: int) -> tuple[str, np.ndarray]:
        if index not in self._known:
            wanted = [i for i in np.union1d(self._announced, index).tolist() if i not in self._known]
            self._announced = np.empty(0, np.int64)
            for start in with_progress(range(0, len(wanted), MAX_ROWS), "Reading paths"):
                images = wanted[start : start + MAX_ROWS]
                ids = self.ids(np.array(images)).tolist()
                rows = self.collections.rows(self.collections.codes, ids, ["path", *POSITION_FIELDS])
                for i, number in zip(images, ids, strict=True):
                    self._known[i] = rows[number]["path"], np.array(_position(rows[number]))
        return self._known[index]


def _position(row: dict[str, Any]) -> list[float]:
    return [row[name] for name in POSITION_FIELDS]


class Positions(EnginePositions):
    """Some of the POSITION_FIELDS of all images, in place of an array: [N, 2], or [N] for one field."""

    def __init__(self, table: ImageTable, fields: slice | int, dtype: type) -> None:
        self._table, self._fields, self._dtype = table, fields, dtype

    def __len__(self) -> int:
        return self._table.count

    def __getitem__(self, indices: slice | np.ndarray) -> np.ndarray:
        if isinstance(indices, slice) or "all_positions" in self._table.__dict__:
            rows = self._table.all_positions[indices]
        else:
            rows = self._table.positions(np.asarray(indices).tolist())
        return rows[:, self._fields].astype(self._dtype)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self._table.all_positions[:, self._fields].astype(dtype or self._dtype)


class Paths(Sequence[str]):
    """The paths of the images."""

    def __init__(self, table: ImageTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return self._table.count

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        return self._table.path(range(len(self))[int(i)])


class MilvusCodes:
    """The codes [N, b].

    Milvus orders equal distances as it likes, and may cut them off anywhere. So more results than needed are asked for,
    and more still while the last one is as near as the k-th.
    """

    def __init__(self, table: ImageTable) -> None:
        self._collections, self._table = table.collections, table

    def __len__(self) -> int:
        return self._table.count

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """As search_hamming. Raises InputError for a k beyond MAX_ROWS, and if the server fails."""
        if k > MAX_ROWS:
            raise InputError(f"Milvus returns at most {MAX_ROWS} results for a query, not {k}. Ask for fewer.")
        distances, indices = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.int64)
        for start in with_progress(range(0, len(queries), QUERY_BLOCK), "Searching"):
            block = queries[start : start + QUERY_BLOCK]
            for i, (row_distances, row_indices) in enumerate(self._search_block(block, k), start):
                distances[i], indices[i] = row_distances, row_indices
        self._table.announce(indices)
        return SearchResult(distances, indices, ["hamming"] * k)

    def _search_block(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        found: list[Any] = [None] * len(queries)
        limit = min(3 * k + 100, MAX_ROWS)
        while pending := [i for i, result in enumerate(found) if result is None]:
            for i, (distances, indices) in zip(pending, self._hits(queries[pending], limit), strict=True):
                if limit >= len(self) or distances[-1] > distances[k - 1]:
                    found[i] = distances[:k], indices[:k]
                elif limit == MAX_ROWS:
                    nearer = distances < distances[k - 1]
                    tied = self._first_at(queries[i], distances[k - 1], k - int(nearer.sum()))
                    found[i] = distances[:k], np.concatenate([indices[nearer], tied])
            limit = min(4 * limit, MAX_ROWS)
        return found

    def _first_at(self, query: np.ndarray, distance: int, count: int) -> np.ndarray:
        """The first `count` images at exactly this distance. Images are compared in order until these are found."""
        tied = np.empty(0, np.int64)
        for start in range(0, len(self), MAX_ROWS):
            rows = range(start, min(start + MAX_ROWS, len(self)))
            ((distances, indices),) = self._hits(query[None], MAX_ROWS, rows)
            tied = np.append(tied, indices[distances == distance])
            if len(tied) >= count:
                break
        return tied[:count]

    def _hits(
        self, queries: np.ndarray, limit: int, rows: range | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(distances, indices) of the `limit` nearest to each query, ordered by both; among some rows, or all.

        Raises InputError for an answer that is none: another number of queries or hits, an id twice or out of range.
        """
        size = max(1, MAX_HITS // limit)
        condition = self._collections.state.searchable
        if rows:
            first, last = self._table.ids(np.array([rows.start, rows.stop - 1])).tolist()
            condition = f"id >= {first} and id <= {last}" + (f" and {condition}" if condition else "")
        rows = rows or range(len(self))
        for start in range(0, len(queries), size):
            options: dict[str, Any] = {"limit": limit, "filter": condition, "consistency_level": "Eventually"}
            data = [query.tobytes() for query in queries[start : start + size]]
            answer = self._collections.connection.call("search", self._collections.codes, data=data, **options)
            if len(answer) != len(data):
                raise self._collections.malformed(f"{len(answer)} results for {len(data)} queries")
            for hits in answer:
                try:
                    ids = np.array([hit["id"] for hit in hits])
                    distances = np.array([hit["distance"] for hit in hits], np.float64)
                except (LookupError, TypeError, ValueError, OverflowError):
                    raise self._collections.malformed("a hit without a number and a distance") from None
                if ids.dtype.kind != "i" or len(np.unique(ids)) != min(limit, len(rows)) or len(ids) > limit:
                    raise self._collections.malformed(
                        f"{len(hits)} hits, of which {len(np.unique(ids))} differ, for the {limit} nearest of "
                        f"{len(rows)} images"
                    )
                indices = self._table.images(ids)
                strange = (indices < rows.start) | (indices >= rows.stop)
                if strange.any():
                    raise self._collections.malformed(f"a hit with the id {ids[strange][0]}")
                if not np.isin(distances, np.arange(self._collections.metadata.code_bits + 1)).all():
                    raise self._collections.malformed("a distance that codes cannot have")
                order = np.lexsort((indices, distances))
                yield distances[order].astype(np.int32), indices[order].astype(np.int64)


class MilvusDescriptors:
    """The descriptors [N, dim]. `descriptors[indices]` reads rows [n, dim], float32.

    Milvus could compute the distances as well. But they differ in the last bits from those of faiss, and with them the
    order of close candidates could.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, table: ImageTable) -> None:
        self._table = table
        self.shape = table.count, table.collections.metadata.descriptor_dim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: slice | np.ndarray) -> np.ndarray:
        return self._table.collections.read_descriptors(self._table.ids(indices))
