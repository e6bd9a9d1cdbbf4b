"""Features of images, in memory, on disk or in a search engine; and what a search among them finds."""

import math
import tempfile
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from datasets.image_set import ImageSet
from model import CODE_BITS
from model.errors import InputError
from model.index.files import DiskArray
from utils.retrieval.config import CropConfig


class SearchResult(NamedTuple):
    """The K best database images of each of Q queries, best first.

    distances: [Q, K]. indices: [Q, K] int64. metric: of the distances at each of the K ranks, "l2" or "hamming", or
    those of `crops.merge_crops`.
    """

    distances: np.ndarray
    indices: np.ndarray
    metric: list[str]

    def first(self, k: int) -> "SearchResult":
        """The first k ranks."""
        return SearchResult(self.distances[:, :k], self.indices[:, :k], self.metric[:k])


class Descriptors(Protocol):
    """Descriptors [N, dim], float32 or float16: an array, or what reads them from a file or a search engine."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, dim]."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """The descriptors of these images."""


class SearchableCodes(Protocol):
    """Codes [N, b] that search by themselves: in a search engine, or in an inverted file."""

    def __len__(self) -> int: ...

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        """The k <= N nearest to packed codes [Q, b] by Hamming distance, as search_hamming gives them."""


class Features(NamedTuple):
    """Features of N images. A field is None if that branch is absent or was not computed.

    codes: [N, bits / 8] uint8, packed in np.packbits order. descriptors: [N, dim]. Of queries with C crops each:
    [N, C, bits / 8] and [N, C, dim]; merging: how the results of the crops become those of the query.
    """

    images: ImageSet
    codes: np.ndarray | SearchableCodes | None
    descriptors: Descriptors | None
    merging: CropConfig | None = None

    @property
    def dim(self) -> int:
        """The dimension of the descriptors, or else the bits of a code."""
        return CODE_BITS if self.descriptors is None else self.descriptors.shape[-1]


def as_array(features: Descriptors | SearchableCodes | None) -> np.ndarray:
    """Features that are in memory, or fit into it: those of queries, and of a chunk of images."""
    assert features is not None and not hasattr(features, "search"), "of a branch that was computed, and not remote"
    return np.asarray(features[:])  # type: ignore[index]


class FeatureBuffer:
    """Collects the features of `images` in memory; descriptors of over `max_bytes` in a temporary file.

    The file is anonymous, in `folder`: the system frees it when the process ends, even if it is killed.
    """

    def __init__(self, images: ImageSet, max_bytes: float, folder: Path | None) -> None:
        self.images = images
        self.max_bytes = max_bytes
        self.folder = folder
        self.count = 0
        self.codes: np.ndarray | None = None
        self.descriptors: np.ndarray | DiskArray | None = None

    def to_extract(self, images: ImageSet) -> np.ndarray:
        """The indices of the images to extract: all of them."""
        return np.arange(len(images))

    def append(self, chunk: Features) -> None:
        """Adds the features of the next images. Raises InputError if the temporary file cannot be written."""
        rows = slice(self.count, self.count + len(chunk.images))
        self.count = rows.stop
        if chunk.codes is not None:
            codes = as_array(chunk.codes)
            if self.codes is None:
                self.codes = np.empty((len(self.images), *codes.shape[1:]), np.uint8)
            self.codes[rows] = codes
        if chunk.descriptors is not None:
            descriptors = as_array(chunk.descriptors)
            if self.descriptors is None:
                self.descriptors = self._allocate(descriptors)
            if isinstance(self.descriptors, np.ndarray):
                self.descriptors[rows] = descriptors
            else:
                self._write(self.descriptors, descriptors)

    def features(self) -> Features:
        """The features of all images."""
        return Features(self.images, self.codes, self.descriptors)

    def _allocate(self, descriptors: np.ndarray) -> np.ndarray | DiskArray:
        shape = len(self.images), *descriptors.shape[1:]
        if math.prod(shape) * descriptors.itemsize <= self.max_bytes:
            return np.empty(shape, descriptors.dtype)
        file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - open as long as the array
        return DiskArray(file, descriptors.dtype, shape)

    def _write(self, array: DiskArray, descriptors: np.ndarray) -> None:
        assert not isinstance(array.file, Path), "_allocate opens a file"
        try:
            array.file.write(descriptors.data)
            array.file.flush()
        except OSError as error:
            raise InputError(
                f"Cannot write descriptors to a temporary file in {self.folder}: {error.strerror or error}. Free "
                "space there, or keep descriptors in memory with a larger --memory_share."
            ) from error
