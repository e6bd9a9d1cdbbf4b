"""Features of images, in memory or on disk."""

import math
import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from datasets.benchmark import ImageSet
from model.errors import InputError

CHUNK_SIZE = 1024  # images that are extracted, and stored, at a time


class DiskArray:
    """Rows [N, ...] of a binary file. `array[start:stop]` and `array[indices]` read them into a new NumPy array.

    Each access maps the file anew: a long-lived mapping would count every page read as the process's memory.
    """

    def __init__(self, file: IO[bytes] | Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self.file, self.dtype, self.shape = file, dtype, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        mapped = np.memmap(self.file, self.dtype, "r", shape=self.shape)  # type: ignore[call-overload]
        return np.array(mapped[rows]) if isinstance(rows, slice) else mapped[rows]


class Features(NamedTuple):
    """Features of N images. A field is None if that branch is absent or was not computed.

    codes: [N, 64] uint8, 512 bits packed in np.packbits order. descriptors: [N, dim] float32 or float16. Of queries
    with C crops whose results are merged: [N, C, 64] and [N, C, dim].
    """

    images: ImageSet
    codes: Any  # np.ndarray, or RemoteCodes
    descriptors: Any  # np.ndarray, DiskArray, QuantizedArray, or that of a search engine


class FeatureBuffer:
    """Collects the features of `images` in memory; descriptors of over `max_bytes` in a temporary file.

    The file is anonymous, in `folder`: the system frees it when the process ends, even if it is killed.
    """

    def __init__(self, images: ImageSet, max_bytes: float, folder: Path | None) -> None:
        self.images = images
        self.max_bytes = max_bytes
        self.folder = folder
        self.count = 0
        self.codes: Any = None
        self.descriptors: Any = None

    def to_extract(self, images: ImageSet) -> np.ndarray:
        """The indices of the images to extract: all of them."""
        return np.arange(len(images))

    def append(self, chunk: Features) -> None:
        """Adds the features of the next images. Raises InputError if the temporary file cannot be written."""
        rows = slice(self.count, self.count + len(chunk.images))
        self.count = rows.stop
        if chunk.codes is not None:
            if self.codes is None:
                self.codes = np.empty((len(self.images), *chunk.codes.shape[1:]), np.uint8)
            self.codes[rows] = chunk.codes
        if chunk.descriptors is not None:
            if self.descriptors is None:
                self.descriptors = self._allocate(chunk.descriptors)
            if isinstance(self.descriptors, np.ndarray):
                self.descriptors[rows] = chunk.descriptors
            else:
                self._write(self.descriptors.file, chunk.descriptors)

    def features(self) -> Features:
        """The features of all images."""
        return Features(self.images, self.codes, self.descriptors)

    def _allocate(self, descriptors: np.ndarray) -> np.ndarray | DiskArray:
        shape = len(self.images), *descriptors.shape[1:]
        if math.prod(shape) * descriptors.itemsize <= self.max_bytes:
            return np.empty(shape, descriptors.dtype)
        file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - open as long as the array
        return DiskArray(file, descriptors.dtype, shape)

    def _write(self, file: IO[bytes], descriptors: np.ndarray) -> None:
        try:
            file.write(descriptors.data)
            file.flush()
        except OSError as error:
            raise InputError(
                f"Cannot write descriptors to a temporary file in {self.folder}: {error.strerror or error}. Free "
                "space there, or keep descriptors in memory with a larger --memory_share."
            ) from error
