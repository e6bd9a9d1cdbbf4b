"""Copying an index into Milvus."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from model.errors import InputError
from model.index.manifest import CHUNK_SIZE
from utils.integrations.milvus.collections import (
    LOAD_SECONDS,
    MAX_PATH_BYTES,
    MAX_ROWS,
    POSITION_FIELDS,
    Collections,
    Connection,
    State,
    split_rows,
)
from utils.retrieval.config import EngineAddress
from utils.retrieval.features import Features, as_array
from utils.retrieval.index.engines import Exported
from utils.retrieval.index.reader import Index

SAMPLE_SIZE = 256  # rows that are compared before and after an export
MAX_REMOVED = 10_000  # rows that are removed at a time: the state lists them
REMEDY = "Drop the collections and export the index again."


class Original(NamedTuple):
    """The folder's images: their ids [N] int64, which ascend, and their features."""

    ids: np.ndarray
    features: Features

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """The rows [n] of images with these ids."""
        return np.searchsorted(self.ids, ids)


def export_index(index: Index, address: EngineAddress, *, append: bool = False, shards: int | None = None) -> Exported:
    """Copies an index; or, with `append`, brings a copy in step with it: adds what is missing, removes what is gone.

    An export may end at any moment and continue. Names are checked before anything is changed, and what a copy held can
    be searched until all new images have arrived; then those that are gone disappear, at most MAX_REMOVED at a time. At
    the end the numbers of rows, and a sample of them, are compared. The cost is that of what changed and, where ids
    have gaps, of reading all ids. Raises InputError if the name holds something else, or (without `append`) another
    state of this index; or the server fails.
    """
    if not index.metadata.code_bits:
        raise InputError(
            f"The index {index.folder} has no codes, which the search in Milvus needs. Build one with --codes, or "
            "export one of eval_hashing.py or eval_rerank.py."
        )
    if index.metadata.has_pca:
        raise InputError(
            f"PCA reduced the descriptors of the index {index.folder}, and its projection cannot be stored in Milvus. "
            "Export an index that was built without --pca_dim."
        )
    collections = Collections(Connection(address))
    if collections.exists:
        _require_same_settings(index, collections, shards)
    state = collections.state if collections.exists else State(images=0, end=0, pending=True)
    first = int(np.searchsorted(index.ids, state.end))  # ids ascend and are never used again: new images begin here
    for i in range(first, len(index)):
        require_text(str(index.images.paths[i]))
    is_new = not collections.exists
    collections.create(index.metadata, state, shards or 1)
    collections.load()
    if index.projections.coding and not state.images:
        collections.write_coding(index.projections.coding)
    original, held = Original(index.ids, index.features()), collections.ids()
    _finish_removal(collections)
    if not is_new:
        _require_same_index(index, collections, original)
    gone = np.setdiff1d(held, index.ids, assume_unique=True)
    if state.images and not append and (len(gone) or first < len(index)):
        raise InputError(
            f"{address} holds another state of {index.folder}: it lacks {len(index) - first} images, and {len(gone)} "
            "of its images are gone. Use --append to bring it in step."
        )
    copied = 0
    if state.pending or first < len(index):
        copied = _add(collections, original, first)
        _verify(collections, original, len(index) + len(gone))
        held = np.union1d(held, index.ids)
    _remove(collections, held, gone)
    if len(gone):
        _verify(collections, original, len(index))
    return Exported(copied, len(gone))


def _require_same_settings(index: Index, collections: Collections, shards: int | None) -> None:
    if collections.metadata != index.metadata:
        raise _another_index(index, collections)
    if shards and shards != collections.shards:
        raise InputError(
            f"--shards {shards}: {collections.address} exists with {collections.shards} and keeps that number. Leave "
            "it out, or choose another name."
        )


def _require_same_index(index: Index, collections: Collections, original: Original) -> None:
    """Raises InputError if a sample of the images that both hold differs, or if the folder is not at a later state."""
    state = collections.state
    if state.images:
        held = collections.ids()
    else:  # an export that was interrupted
        held = collections.stored_ids(collections.codes, range(int(index.ids[-1]) + 1))
    common = np.intersect1d(held, index.ids, assume_unique=True)
    # Without a common image it may be a later state: if every image was changed, all ids are new.
    if len(common) and not _equal_rows(collections, original, _sample(common)).all():
        raise _another_index(index, collections)
    if state.images and not np.isin(index.ids[index.ids < state.end], held).all():
        if not len(common):
            raise _another_index(index, collections)
        raise InputError(
            f"{collections.address} holds a later state of {index.folder}: images of the folder were removed from it. "
            "Choose another name."
        )


def _another_index(index: Index, collections: Collections) -> InputError:
    return InputError(f"{collections.address} holds another index than {index.folder}. Choose another name.")


def _add(collections: Collections, original: Original, first: int) -> int:
    """Adds the images from this one on, and returns how many were not there from an interrupted export."""
    if collections.state.pending:
        arrived = _arrived(collections, original, first)
    else:
        arrived = np.empty(0, np.int64)
        collections.set_state(replace(collections.state, pending=True))
    missing = first + np.flatnonzero(~np.isin(original.ids[first:], arrived))
    total = len(original.ids)
    with tqdm(total=total, initial=total - len(missing), desc="Exporting", unit="image") as bar:
        for start in range(0, len(missing), CHUNK_SIZE):
            rows = missing[start : start + CHUNK_SIZE]
            _write_chunk(collections, original, rows)
            bar.update(len(rows))
    for name in collections.names:
        collections.connection.call("flush", name, timeout=LOAD_SECONDS)
    return len(missing)


def _arrived(collections: Collections, original: Original, first: int) -> np.ndarray:
    """The ids of images, from this one on, that an interrupted export has written. Deletes what it wrote of others.

    The codes of a chunk are written after its descriptors, so where there is a code, the descriptor is there too.
    """
    new = range(collections.state.end, int(original.ids[-1]) + 1)
    for name in collections.names:
        collections.connection.call("delete", name, filter=f"id >= {max(new.start, new.stop)}")
    stored = collections.stored_ids(collections.codes, new)
    kept = np.intersect1d(stored, original.ids[first:], assume_unique=True)
    pages = (kept[start : start + MAX_ROWS] for start in range(0, len(kept), MAX_ROWS))
    kept = kept[np.concatenate([np.empty(0, bool), *(_equal_rows(collections, original, page) for page in pages)])]
    collections.delete(collections.codes, np.setdiff1d(stored, kept))
    if collections.metadata.descriptor_dim:
        stored = collections.stored_ids(collections.descriptors, new)
        collections.delete(collections.descriptors, np.setdiff1d(stored, original.ids[first:]))
    return kept


def _write_chunk(collections: Collections, original: Original, rows: np.ndarray) -> None:
    """Writes some rows of the folder: the descriptors first, see _arrived."""
    call, features, ids = collections.connection.call, original.features, original.ids[rows].tolist()
    if features.descriptors is not None:
        descriptors = features.descriptors[rows].astype(np.float32)
        for part in split_rows(len(rows), descriptors.shape[1]):
            pairs = zip(ids[part], descriptors[part], strict=True)
            call("upsert", collections.descriptors, [{"id": i, "descriptor": row} for i, row in pairs])
    content = [{"id": i, **fields} for i, fields in zip(ids, _fields(features, rows), strict=True)]
    call("upsert", collections.codes, content)


def _fields(features: Features, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """What the collection of codes holds of some rows of the folder, but for the id."""
    images, codes = features.images[rows], as_array(features.codes)[rows]
    positions = zip(*(column.tolist() for column in (images.utms, images.zones, images.degrees)), strict=True)
    for code, path, (utm, zone, degrees) in zip(codes, images.paths, positions, strict=True):
        position = dict(zip(POSITION_FIELDS, (*utm, zone, *degrees), strict=True))
        yield {"code": code.tobytes(), "path": require_text(str(path)), **position}


def require_text(path: str) -> str:
    """The path. Raises InputError for one that Milvus cannot store."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise InputError(f"The path {path!r} is not UTF-8, so Milvus cannot store it. Rename the file.") from None
    if size > MAX_PATH_BYTES:
        raise InputError(
            f"The path {path[:80]!r}... has {size} bytes. Milvus stores {MAX_PATH_BYTES}. Rename the file."
        )
    return path


def _remove(collections: Collections, held: np.ndarray, gone: np.ndarray) -> None:
    """Makes the rows `held` without those that are gone the copy. What is gone is left out of searches before it is
    deleted, so that each state is whole.
    """
    for start in range(0, max(len(gone), 1), MAX_REMOVED):
        removed = gone[start : start + MAX_REMOVED]
        held = np.setdiff1d(held, removed, assume_unique=True)
        state = State.of(held, removed)
        if state != collections.state:
            collections.set_state(state)
        _finish_removal(collections)


def _finish_removal(collections: Collections) -> None:
    """Deletes the rows that the state lists as removed."""
    if collections.state.removed:
        for name in collections.names:
            collections.delete(name, np.array(collections.state.removed))
        collections.set_state(replace(collections.state, removed=[]))


def _sample(ids: np.ndarray) -> np.ndarray:
    """Some of these ids, the last one among them: where two indexes have gone different ways, it differs."""
    return ids[np.unique(np.linspace(0, len(ids) - 1, SAMPLE_SIZE).astype(int))]


def _equal_rows(collections: Collections, original: Original, ids: np.ndarray) -> np.ndarray:
    """For each of these ids, MAX_ROWS at most, whether code, path and position are those of the folder: bool [n]."""
    if not len(ids):
        return np.empty(0, bool)
    rows = collections.rows(collections.codes, ids.tolist(), ["code", "path", *POSITION_FIELDS])
    expected = _fields(original.features, original.rows(ids))
    return np.array([_is_equal(rows[i], fields) for i, fields in zip(ids.tolist(), expected, strict=True)])


def _is_equal(row: dict[str, Any], fields: dict[str, Any]) -> bool:
    actual, expected = ([values[name] for name in POSITION_FIELDS] for values in (row, fields))
    is_same = (row["code"], row["path"]) == (fields["code"], fields["path"])
    return is_same and np.array_equal(actual, expected, equal_nan=True)


def _verify(collections: Collections, original: Original, count: int) -> None:
    """Raises InputError if the number of rows, or one of a sample, differs from the index."""
    for name in collections.names:
        found = collections.count(name)
        if found != count:
            raise InputError(f"{collections.address} holds {found} rows in {name} instead of {count}. {REMEDY}")
    ids = _sample(original.ids)
    same = bool(_equal_rows(collections, original, ids).all())
    if original.features.descriptors is not None:
        descriptors = original.features.descriptors[original.rows(ids)]
        same = same and np.array_equal(collections.read_descriptors(ids), descriptors)
    if not same:
        raise InputError(f"Rows of {collections.address} differ from the index after the export. {REMEDY}")
