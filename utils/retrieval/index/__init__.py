"""An index: the features of a database in a folder, written in chunks, so that an interrupted build can continue.

A search engine may hold a copy of it: see `utils.retrieval.index.engines`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.index.metadata import IndexMetadata, weights_of
from utils.retrieval.config import EngineAddress
from utils.retrieval.index.engines import engine_of
from utils.retrieval.index.reader import Index, OpenIndex, SeveralIndexes, turned_as
from utils.retrieval.index.writer import IndexWriter, metadata_of

__all__ = [
    "Index",
    "IndexMetadata",
    "IndexWriter",
    "OpenIndex",
    "metadata_of",
    "open_index",
    "open_indexes",
    "turned_as",
    "weights_of",
]


def open_index(location: Path | EngineAddress, **options: Any) -> OpenIndex:
    """The index in a folder or a search engine. The options apply to a folder: see Index.

    Raises InputError if there is no index, or it is incomplete or damaged.
    """
    if isinstance(location, EngineAddress):
        return engine_of(location).open_index(location)
    return Index(location, **options)


def open_indexes(locations: Sequence[Path | EngineAddress], **options: Any) -> OpenIndex:
    """One index, or several folders as one. Raises InputError as open_index, and for several of a search engine."""
    if len(locations) == 1:
        return open_index(locations[0], **options)
    if options.get("image_root"):
        raise InputError("--image_root is the folder of one index. Search several without it, or merge them.")
    opened = [open_index(location, **options) for location in locations]
    folders = [index for index in opened if isinstance(index, Index)]
    if len(folders) < len(opened):
        raise InputError("Several indexes are searched as one in folders only. Give one milvus:// address alone.")
    return SeveralIndexes(folders)
