"""Reading an index."""

import abc
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.image_set import ImageSet
from model import InputError
from model.index.files import POSITION_LIMITS, DiskArray, IndexFiles, JoinedPaths, JoinedRows
from model.index.metadata import ORIGINS, IndexMetadata, read_projections
from model.index.projections import Projections
from model.index.quantization import QuantizedArray
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.features import Features


class OpenIndex(abc.ABC):
    """An index opened for reading, in a folder or in a search engine.

    Attributes: metadata; images; projections, which are applied to the descriptors of queries, as to its own.
    str() names the index in messages.
    """

    metadata: IndexMetadata
    images: ImageSet
    projections: Projections

    @abc.abstractmethod
    def features(self) -> Features:
        """Images, codes and descriptors; each may stay where the index is, and be read on demand."""

    def __len__(self) -> int:
        return len(self.images)


def turned_as(metadata: IndexMetadata, config: ExtractionConfig) -> ExtractionConfig:
    """The settings of queries, which are turned as the images of an index were.

    Raises InputError for queries that are to be turned upright although those images were not.
    """
    if config.exif_orientation and not metadata.exif_orientation:
        raise InputError(
            "The images of the index were read as they are stored, and so are queries. Leave --exif_orientation out."
        )
    return replace(config, exif_orientation=metadata.exif_orientation)


class Index(OpenIndex):
    """An index in a folder, as it is when it is opened. In memory: codes, positions and offsets of paths, 150 bytes per
    image.

    Attributes: folder; ids [N] int64 of the images; and those of OpenIndex. With `verify` every byte is read and its
    checksum compared. image_root: the folder of the images, if they were moved. Raises InputError, which names the
    file, if the folder is not an index, has another format, is damaged, or (without `allow_incomplete`) is incomplete.
    """

    def __init__(
        self,
        folder: Path,
        *,
        verify: bool = True,
        allow_incomplete: bool = False,
        image_root: Path | None = None,
    ) -> None:
        self.folder = folder
        self._files = files = IndexFiles(folder, unmarked=allow_incomplete, root=image_root)
        self.metadata = files.metadata
        manifest = files.manifest
        if not manifest.is_marked and not allow_incomplete:
            raise InputError(
                f"The index {folder} is incomplete: it holds {manifest.images} images, and building it was interrupted "
                "or is still in progress. Continue building it with --append, or use it as it is with "
                "--allow_incomplete_index."
            )
        if manifest.images == 0:
            raise InputError(f"The index {folder} holds no images: all were removed. Add some with --append.")
        if verify:
            verify_files(files)
        self.projections = read_projections(folder, self.metadata)
        self._rows = np.flatnonzero(~manifest.removed) if manifest.removed.any() else None
        records = files.records() if self._rows is None else files.records()[self._rows]
        paths = files.paths if self._rows is None else JoinedPaths([(files.paths, self._rows)])
        self.ids = records["id"].copy()
        self.images = image_set(paths, records)
        logging.info("The index %s holds %d images.", folder, len(self))
        if not manifest.is_marked:
            logging.warning("The index %s is incomplete: results do not cover the whole database.", folder)
        elif manifest.rows_behind:
            message = (
                "A change of the index %s is in progress, or was interrupted: %d images are not searched yet. Continue "
                "an interrupted one with --append."
            )
            logging.warning(message, folder, manifest.rows_behind)

    def __str__(self) -> str:
        return str(self.folder)

    def features(self) -> Features:
        """Codes and scales, in memory, and descriptors, on disk."""
        columns = self._files.columns
        codes = _select(columns["codes"][:], self._rows) if "codes" in columns else None
        descriptors: DiskArray | QuantizedArray | JoinedRows | None = columns.get("descriptors")
        if self.metadata.is_quantized:
            descriptors = QuantizedArray(columns["descriptors"], columns["scales"][:])
        if descriptors is not None and self._rows is not None:
            descriptors = JoinedRows([(descriptors, self._rows)])
        return Features(self.images, codes, descriptors)


class SeveralIndexes(OpenIndex):
    """Several indexes that are searched as one: the images of each after those of the one before.

    An image that several hold, by its path, is that of the first. Raises InputError if they were not built with the
    same model and settings.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        self._indexes = indexes
        self.metadata = indexes[0].metadata
        for other in indexes[1:]:
            message = f"The indexes {indexes[0]} and {other} (now) were built differently"
            self.metadata.require_same(other.metadata, {*ORIGINS, "descriptor_dtype"}, message)
        self.projections = indexes[0].projections
        self._rows = distinct_rows([index.images.paths for index in indexes])
        paths = JoinedPaths(self._parts([index.images.paths for index in indexes]))
        images = [index.images for index in indexes]
        utms, zones, degrees = (
            np.concatenate([getattr(part, name)[rows] for part, rows in zip(images, self._rows, strict=True)])
            for name in ("utms", "zones", "degrees")
        )
        self.images = ImageSet(paths, utms, zones=zones, degrees=degrees)

    def __str__(self) -> str:
        return ", ".join(map(str, self._indexes))

    def _parts(self, arrays: list[Any]) -> list[tuple[Any, np.ndarray]]:
        return list(zip(arrays, self._rows, strict=True))

    def features(self) -> Features:
        """Codes in memory, and descriptors, on disk."""
        features = [index.features() for index in self._indexes]
        codes, descriptors = None, None
        if features[0].codes is not None:
            codes = JoinedRows(self._parts([part.codes for part in features]))[:]
        if features[0].descriptors is not None:
            descriptors = JoinedRows(self._parts([part.descriptors for part in features]))
        return Features(self.images, codes, descriptors)


def distinct_rows(paths: Iterable[Sequence[str | Path]]) -> list[np.ndarray]:
    """For each list of paths, the indices of those that no list before it holds. A path of "" is always another one."""
    seen: set[str] = set()
    rows = []
    for part in paths:
        names = list(map(str, part))
        rows.append(np.array([i for i, name in enumerate(names) if not name or name not in seen], np.int64))
        seen.update(names)
    return rows


def verify_files(files: IndexFiles, names: Iterable[str] | None = None) -> None:
    """Compares the checksums of all files, or some, with a progress bar. Raises InputError for damage."""
    with tqdm(total=files.manifest.rows, unit="image", leave=False) as bar:
        for name, done in files.verify(names):
            bar.desc = f"Verifying {name}: "
            bar.update(done - bar.n)


def image_set(paths: Sequence[str], records: np.ndarray) -> ImageSet:
    """Images as an index describes them."""
    utms, degrees = (np.stack([records[name] for name in names], axis=1) for names in POSITION_LIMITS)
    return ImageSet(paths, utms, zones=records["zone"].copy(), degrees=degrees)


def _select(array: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    return array if rows is None else array[rows]
