"""An index: the features of a database in a folder, written in chunks, so that an interrupted build can continue.

A search engine may hold a copy of it: see `utils.retrieval.index.engines`.
"""

from pathlib import Path

from model.index.metadata import IndexMetadata
from utils.retrieval.config import EngineAddress
from utils.retrieval.index.engines import engine_of
from utils.retrieval.index.reader import Index, OpenIndex, turned_as
from utils.retrieval.index.writer import IndexWriter, metadata_of

__all__ = ["Index", "IndexMetadata", "IndexWriter", "OpenIndex", "metadata_of", "open_index", "turned_as"]


def open_index(location: Path | EngineAddress, *, verify: bool = True, allow_incomplete: bool = False) -> OpenIndex:
    """The index in a folder or a search engine. `verify` and `allow_incomplete` apply to a folder: see Index.

    Raises InputError if there is no index, or it is incomplete or damaged.
    """
    if isinstance(location, EngineAddress):
        return engine_of(location).open_index(location)
    return Index(location, verify=verify, allow_incomplete=allow_incomplete)
