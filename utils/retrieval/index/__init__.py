"""An index: the features of a database in a folder, written in chunks, so that an interrupted build can continue.

A search engine may hold a copy of it: see `utils.retrieval.index.engines`.
"""

import logging
from pathlib import Path

from model import InferenceModel
from utils.retrieval.config import EngineAddress, ExtractionConfig
from utils.retrieval.features import Features
from utils.retrieval.index.engines import engine_of
from utils.retrieval.index.format import IndexMetadata
from utils.retrieval.index.reader import Index, OpenIndex
from utils.retrieval.index.writer import IndexWriter
from utils.runtime import distributed

__all__ = ["Index", "IndexMetadata", "IndexWriter", "OpenIndex", "open_index", "read_index"]


def read_index(location: Path | EngineAddress, *, verify: bool = True, allow_incomplete: bool = False) -> OpenIndex:
    """The index in a folder or a search engine. `verify` and `allow_incomplete` apply to a folder: see Index.

    Raises InputError if there is no index, or it is incomplete or damaged.
    """
    if isinstance(location, EngineAddress):
        return engine_of(location).open_index(location)
    return Index(location, verify=verify, allow_incomplete=allow_incomplete)


def open_index(
    location: Path | EngineAddress,
    model: InferenceModel,
    config: ExtractionConfig,
    *,
    verify: bool = True,
    allow_incomplete: bool = False,
) -> Features | None:
    """The features in an index that was made with this model and these settings, on the main rank; None on the others.

    Raises InputError if there is no index, it was made with another model or resize, it is incomplete (unless
    `allow_incomplete`), or it is damaged; with `verify` all checksums are compared.
    """

    def read() -> Features:
        index = read_index(location, verify=verify, allow_incomplete=allow_incomplete)
        index.require_compatible(IndexMetadata.of(model.original, config, pca=index.pca))
        if index.metadata.exif_orientation != config.exif_orientation:
            kinds = ("upright, as their EXIF orientation says", "as they are stored")
            database, queries = kinds if index.metadata.exif_orientation else kinds[::-1]
            logging.warning("The images of the index %s were read %s, and the queries %s.", index, database, queries)
        return index.features()

    return distributed.run_on_main(read, share=False)
