"""Copying an index into Milvus."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.image_set import ImageSet
from model.errors import InputError
from model.index.manifest import CHUNK_SIZE, Manifest
from utils.integrations.milvus.collections import (
    LOAD_SECONDS,
    MAX_PATH_BYTES,
    POSITION_FIELDS,
    Collections,
    Connection,
    State,
    split_rows,
)
from utils.integrations.milvus.reader import MilvusDescriptors
from utils.retrieval.config import EngineAddress
from utils.retrieval.features import Features, as_array
from utils.retrieval.index.reader import Index

SAMPLE_SIZE = 256  # rows that are compared after an export


def export_index(index: Index, address: EngineAddress, *, append: bool = False, shards: int | None = None) -> int:
    """Copies an index, or what is missing of it. Returns the number of images that were copied.

    Rows are written in order, and a row that is there already is replaced by itself, so that an export may end at any
    moment and continue. Names are checked before anything is changed, and what a copy held already can be searched
    until the rest has arrived. At the end the numbers of rows, and a sample of them, are compared. Raises InputError if
    the name holds something else, or (without `append`) fewer images of this index; or the server fails.
    """
    if not index.metadata.hashing:
        raise InputError(
            f"The index {index.folder} has no codes, which the search in Milvus needs. Export one of eval_hashing.py "
            "or eval_rerank.py."
        )
    if index.metadata.has_pca:
        raise InputError(
            f"PCA reduced the descriptors of the index {index.folder}, and its projection cannot be stored in Milvus. "
            "Export an index that was built without --pca_dim."
        )
    collections = Collections(Connection(address))
    digest = content_sha256(index, len(index))
    assert digest, "the whole index"
    new = State(images=len(index), sha256=digest, complete=False)
    done = None  # the state of a copy of fewer images, which stays searchable until the others have arrived
    if collections.exists:
        _require_same_content(index, collections, append=append, shards=shards)
        if collections.state == replace(new, complete=True):
            return 0
        done = collections.state if collections.state.complete else None
    base = done.images if done else 0
    for i in range(base, len(index)):  # before anything is changed
        require_text(str(index.images.paths[i]))
    collections.create(index.metadata, new, shards or 1)
    collections.load()
    start = base
    if not done or done.pending_sha256 == digest:  # an export that was interrupted, if any
        # The codes of a chunk are written after its descriptors, so their number tells which chunks have arrived. Of
        # the next one, some shards may have got their rows, and others not: it is written again.
        arrived = min(collections.count(collections.codes), len(index)) - base
        start += max(0, arrived) // CHUNK_SIZE * CHUNK_SIZE
    elif done.pending_sha256:  # rows of an interrupted export of other images
        for name in collections.names:
            collections.connection.call("delete", name, filter=f"id >= {base}")
    collections.set_state(replace(done, pending_sha256=digest) if done else new)
    features = index.features()
    with tqdm(total=len(index), initial=start, desc="Exporting", unit="image") as bar:
        for first in range(start, len(index), CHUNK_SIZE):
            chunk = range(first, min(first + CHUNK_SIZE, len(index)))
            _write_chunk(collections, features, chunk)
            bar.update(len(chunk))
    for name in collections.names:
        collections.connection.call("flush", name, timeout=LOAD_SECONDS)
    _verify(collections, features)
    collections.set_state(replace(new, complete=True))
    return len(index) - start


def content_sha256(index: Index, images: int) -> str | None:
    """What identifies the first images of an index: the checksums of their chunks. None if no chunk ends there."""
    digest, count = hashlib.sha256(), 0
    for chunk in Manifest.read(index.folder).chunks:
        digest.update(json.dumps(chunk["sha256"], sort_keys=True).encode())
        count += chunk["images"]
        if count == images:
            return digest.hexdigest()
    return None


def _require_same_content(index: Index, collections: Collections, *, append: bool, shards: int | None) -> None:
    state, address = collections.state, collections.address
    if collections.metadata != index.metadata or content_sha256(index, state.images) != state.sha256:
        raise InputError(f"{address} holds another index than {index.folder}. Choose another name.")
    if state.images < len(index) and not append:
        raise InputError(
            f"{address} holds the first {state.images} of {len(index)} images of {index.folder}. Use --append to add "
            "the others."
        )
    if shards and shards != collections.shards:
        raise InputError(
            f"--shards {shards}: {address} exists with {collections.shards} and keeps that number. Leave it out, or "
            "choose another name."
        )


def _write_chunk(collections: Collections, features: Features, chunk: range) -> None:
    """The descriptors first: see export_index."""
    call, rows = collections.connection.call, slice(chunk.start, chunk.stop)
    if features.descriptors is not None:
        descriptors = features.descriptors[rows].astype(np.float32)
        for part in split_rows(chunk, descriptors.shape[1]):
            content = [{"id": i, "descriptor": descriptors[i - chunk.start]} for i in part]
            call("upsert", collections.descriptors, content)
    images = features.images[rows]
    content = [
        {"id": i, "code": code.tobytes(), "path": require_text(str(path)), **position}
        for i, code, path, position in zip(
            chunk, as_array(features.codes)[rows], images.paths, _positions(images), strict=True
        )
    ]
    call("upsert", collections.codes, content)


def _positions(images: ImageSet) -> Iterator[dict[str, Any]]:
    """The fields of the position of each image."""
    for utm, zone, degrees in zip(
        *(rows.tolist() for rows in (images.utms, images.zones, images.degrees)), strict=True
    ):
        yield dict(zip(POSITION_FIELDS, (*utm, zone, *degrees), strict=True))


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


def _verify(collections: Collections, features: Features) -> None:
    """Raises InputError if the number of rows, or one of a sample, differs from the index."""
    remedy = "Drop the collections and export the index again."
    images = len(features.images)
    for name in collections.names:
        count = collections.count(name)
        if count != images:
            raise InputError(f"{collections.address} holds {count} rows in {name} instead of {images}. {remedy}")
    ids = np.unique(np.linspace(0, images - 1, SAMPLE_SIZE).astype(int))
    rows = collections.rows(collections.codes, ids.tolist(), ["code", "path", *POSITION_FIELDS])
    expected = features.images[ids]
    descriptors, codes = features.descriptors, as_array(features.codes)[ids]
    same = descriptors is None or np.array_equal(MilvusDescriptors(collections)[ids], descriptors[ids])
    for i, code, path, position in zip(ids.tolist(), codes, expected.paths, _positions(expected), strict=True):
        row = rows[i]
        same = same and (row["code"], row["path"]) == (code.tobytes(), path)
        same = same and np.array_equal([row[name] for name in position], list(position.values()), equal_nan=True)
    if not same:
        raise InputError(f"Rows of {collections.address} differ from the index after the export. {remedy}")
