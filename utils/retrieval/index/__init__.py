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
    folder: Path,
    model: GeoLocalizationNet,
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
        index = Index(folder, verify=verify, allow_incomplete=allow_incomplete)
        index.require_compatible(IndexMetadata.of(model, config))
        return index.features()

    return distributed.run_on_main(read, share=False)
