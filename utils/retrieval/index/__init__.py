"""An index: the features of a database in a folder, written in chunks, so that an interrupted build can continue."""

from pathlib import Path

from model import GeoLocalizationNet
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.features import Features
from utils.retrieval.index.format import IndexMetadata
from utils.retrieval.index.reader import Index
from utils.retrieval.index.writer import IndexWriter
from utils.runtime import distributed

__all__ = ["Index", "IndexMetadata", "IndexWriter", "open_index"]


def open_index(
    folder: Path, model: GeoLocalizationNet, config: ExtractionConfig, *, verify: bool = True
) -> Features | None:
    """The features in an index that was made with this model and these settings, on the main rank; None on the others.

    Raises InputError if there is no index, it was made with another model or resize, or (checked with `verify`) it is
    damaged.
    """
    if not distributed.is_main():
        return None
    index = Index(folder, verify=verify)
    index.require_compatible(IndexMetadata.of(model, config))
    return index.features()
