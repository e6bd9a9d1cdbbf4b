"""Reading an index."""

import abc
import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from datasets.file_names import MAX_METRES
from datasets.image_set import ImageSet
from datasets.zones import MAX_ZONE
from model import InputError
from model.files import open_regular
from model.zoo import PublishedModel, find_published
from utils.retrieval.features import DiskArray, Features
from utils.retrieval.index.format import (
    PATHS,
    IndexMetadata,
    Manifest,
    check_sizes,
    damaged,
    read_pca,
    verify_checksums,
    verify_metadata,
)
from utils.retrieval.pca import PCA
from utils.retrieval.quantization import QuantizedArray

READ_BLOCK = 1 << 20  # bytes of paths that are scanned at a time


class OpenIndex(abc.ABC):
    """An index opened for reading, in a folder or in a search engine.

    Attributes: metadata; images; pca, which projects the descriptors of queries, if it reduced those of the index.
    str() names the index in messages.
    """

    metadata: IndexMetadata
    images: ImageSet
    pca: PCA | None = None

    @abc.abstractmethod
    def features(self) -> Features:
        """Images, codes and descriptors; each may stay where the index is, and be read on demand."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def weights(self) -> PublishedModel | Path:
        """The model's weights when the index was built. Raises InputError for published ones that do not exist."""
        file = self.metadata.weights_file
        return find_published(self.metadata.model_config) if file == "published" else Path(file)

    def require_compatible(self, metadata: IndexMetadata) -> None:
        """Raises InputError if the index was built with another model or resize than this metadata's."""
        message = f"The index {self} was built with another model or resize"
        ignored = {"weights_file", "precision", "descriptor_dtype", "exif_orientation"}
        self.metadata.require_same(metadata, ignored, message)


class Index(OpenIndex):
    """An index in a folder. In memory: codes, positions and offsets of paths, 105 bytes per image.

    Attributes: folder; and those of OpenIndex. With `verify` every byte is read and its checksum compared. Raises
    InputError, which names the file, if the folder is not an index, has another format, is damaged, or (without
    `allow_incomplete`) is incomplete.
    """

    def __init__(self, folder: Path, *, verify: bool = True, allow_incomplete: bool = False) -> None:
        self.folder = folder
        self.metadata = IndexMetadata.read(folder)
        manifest = Manifest.read(folder)
        verify_metadata(folder, manifest)
        check_sizes(folder, self.metadata, manifest)
        if not manifest.chunks:
            raise InputError(f"The index {folder} is empty, probably because building it was interrupted. Rebuild it.")
        if not manifest.complete and not allow_incomplete:
            raise InputError(
                f"The index {folder} is incomplete: it holds {manifest.images} images, and building it was interrupted "
                "or is still in progress. Continue building it with --append, or use it as it is with "
                "--allow_incomplete_index."
            )
        if verify:
            verify_checksums(folder, self.metadata, manifest)
        self.pca = read_pca(folder, self.metadata)
        self._columns = {
            name: DiskArray(folder / f"{name}.bin", dtype, (manifest.images, width))
            for name, (dtype, width) in self.metadata.columns.items()
        }
        paths = PathList(folder / PATHS, manifest.path_bytes, manifest.images)
        utms, zones, degrees = (self._columns[name][:] for name in ("utms", "zones", "degrees"))
        self.images = ImageSet(paths, utms, zones=zones[:, 0], degrees=degrees)
        _check_positions(folder / "utms.bin", utms, most=MAX_METRES)
        _check_positions(folder / "zones.bin", zones, most=MAX_ZONE)
        _check_positions(folder / "degrees.bin", degrees, most=(90, 180))
        logging.info("The index %s holds %d images.", folder, len(self))
        if not manifest.complete:
            logging.warning("The index %s is incomplete: results do not cover the whole database.", folder)

    def __str__(self) -> str:
        return str(self.folder)

    def features(self) -> Features:
        """Codes and scales, in memory, and descriptors, on disk."""
        codes = self._columns["codes"][:] if "codes" in self._columns else None
        descriptors: DiskArray | QuantizedArray | None = self._columns.get("descriptors")
        if self.metadata.is_quantized:
            descriptors = QuantizedArray(self._columns["descriptors"], self._columns["scales"][:])
        return Features(self.images, codes, descriptors)


def _check_positions(path: Path, rows: np.ndarray, *, most: ArrayLike) -> None:
    """Raises InputError for values beyond `most`, which no image has, and for what is unknown (NaN) only in part."""
    unknown = np.isnan(rows)
    bad = np.flatnonzero((np.abs(rows.astype(np.float64)) > most).any(axis=1) | (unknown[:, 0] != unknown[:, -1]))
    if len(bad):
        raise damaged(path, f"the position of image {bad[0]} is {rows[bad[0]].tolist()}")


class PathList(Sequence[str]):
    """The lines of a file, read on demand: as strings, the paths of millions of images would take gigabytes.

    Raises InputError if there are not `count` lines in the first `size` bytes, or one contains a NUL byte.
    """

    def __init__(self, path: Path, size: int, count: int) -> None:
        ends = []
        with open(open_regular(path), "rb") as file:  # read rather than mapped, so that the pages do not stay in memory
            for start in range(0, size, READ_BLOCK):
                block = np.frombuffer(file.read(min(READ_BLOCK, size - start)), np.uint8)
                if not block.all():  # no system opens such a path
                    raise damaged(path, "a path contains a NUL byte")
                ends.append(np.flatnonzero(block == ord("\n")) + start)
            self._text = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        self._ends = np.concatenate(ends)
        if len(self._ends) != count or self._ends[-1] != size - 1:
            raise damaged(path, f"it does not hold one line for each of {count} images")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        end = self._ends[i]
        start = self._ends[i - 1] + 1 if i % len(self) else 0
        return os.fsdecode(self._text[start:end])
