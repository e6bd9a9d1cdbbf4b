"""Writing an index."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from datasets.image_set import ImageSet
from model import InputError
from model.files import open_regular, read_regular, remove_leftovers
from utils.retrieval.config import IndexConfig
from utils.retrieval.features import DiskArray, Features, as_array
from utils.retrieval.index.format import (
    MANIFEST,
    MAX_METADATA_BYTES,
    METADATA,
    PATHS,
    PROJECTION,
    IndexMetadata,
    Manifest,
    check_sizes,
    verify_checksums,
    verify_metadata,
)
from utils.retrieval.index.reader import Index, PathList
from utils.retrieval.pca import PCA
from utils.retrieval.quantization import quantize
from utils.runtime.atomic_files import atomic_write, lock_folder, make_folder

SAME_POSITION_METRES, SAME_POSITION_DEGREES = 0.01, 1e-7  # what is less is rounding, in file names to centimetres


class IndexWriter:
    """Builds an index, or with `append` continues one. A context manager that locks out other writers.

    pca: the projection that the metadata describes, which a new index stores. Descriptors of chunks are projected
    already.

    Raises InputError if the folder is in use, cannot be written, contains something else, or contains an index that is
    damaged or was built with another model, resize, precision, descriptor type or projection.
    """

    def __init__(self, config: IndexConfig, metadata: IndexMetadata, pca: PCA | None = None) -> None:
        self.folder = folder = config.folder
        self.metadata = metadata
        check_folder(folder, append=config.append)
        make_folder(folder, exist_ok=True)
        self._lock = lock_folder(folder)
        try:
            check_folder(folder, append=config.append)  # again, because another process may have built one meanwhile
            self._open(metadata, pca, append=config.append)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, metadata: IndexMetadata, pca: PCA | None, *, append: bool) -> None:
        """Opens the files of the index for writing; creates them if there is none yet."""
        folder = self.folder
        remove_leftovers(folder)
        if append and (folder / METADATA).exists():
            message = f"--append: the index {folder} was built differently"
            self.metadata = IndexMetadata.read(folder)
            self.metadata.require_same(metadata, {"weights_file"}, message)
        else:
            if pca:  # before the metadata, which makes the folder an index
                with atomic_write(folder / PROJECTION, "wb") as file:
                    file.write(pca.to_bytes())
            with atomic_write(folder / METADATA, new=True) as file:  # so even without a lock only one process begins
                file.write(metadata.to_json(indent=2))
        manifest = Manifest.read(folder)
        verify_metadata(folder, manifest)
        check_sizes(folder, metadata, manifest)
        verify_checksums(folder, metadata, manifest)
        self.count = manifest.images
        paths = PathList(folder / PATHS, manifest.path_bytes, manifest.images) if manifest.chunks else ()
        self._rows = {path: row for row, path in enumerate(paths)}
        self._metadata_sha256 = hashlib.sha256(read_regular(folder / METADATA, MAX_METADATA_BYTES)).hexdigest()
        self._is_complete = manifest.complete
        self._sizes = {name: manifest.images * row for name, row in metadata.row_bytes.items()}
        self._sizes |= {PATHS: manifest.path_bytes, MANIFEST: manifest.size}
        self._files = {name: _open_to_append(folder / name) for name in self._sizes}
        if not manifest.complete:
            self._remove_unfinished()

    def to_extract(self, images: ImageSet) -> np.ndarray:
        """The indices of the images that the index does not contain yet.

        Warns of images that it contains with other positions, which it keeps. Raises InputError for a path with a line
        break.
        """
        paths = [os.path.abspath(path) for path in images.paths]
        for path in paths:
            if "\n" in path:
                raise InputError(
                    f"The path {path!r} contains a line break, which an index cannot store. Rename the file or folder."
                )
        missing = np.array([i for i, path in enumerate(paths) if path not in self._rows], int)
        self._warn_of_other_positions(paths, images)
        return missing

    def _warn_of_other_positions(self, paths: list[str], images: ImageSet) -> None:
        """Warns if the index contains images with other positions than these, as far as these are known."""
        known = [i for i in np.flatnonzero(images.is_located) if paths[i] in self._rows]
        if not known:
            return
        rows, same = np.array([self._rows[paths[i]] for i in known]), np.ones(len(known), bool)
        for name, tolerance in (("utms", SAME_POSITION_METRES), ("degrees", SAME_POSITION_DEGREES)):
            dtype, width = self.metadata.columns[name]
            saved = DiskArray(self.folder / f"{name}.bin", dtype, (self.count, width))[rows]
            same &= np.isclose(saved, getattr(images, name)[known], rtol=0, atol=tolerance, equal_nan=True).all(axis=1)
        if not same.all():
            message = (
                "%d images are in the index %s already, with other positions or none, such as %s. The index keeps "
                "those. Build a new index to change them."
            )
            logging.warning(message, (~same).sum(), self.folder, paths[known[int(same.argmin())]])

    def append(self, chunk: Features) -> None:
        """Adds the features of up to CHUNK_SIZE images: all of them or, if the process dies, none.

        Raises InputError if it cannot write.
        """
        paths = [os.path.abspath(path) for path in chunk.images.paths]
        images = chunk.images
        arrays: dict[str, Any] = {"utms": images.utms, "zones": images.zones[:, None], "degrees": images.degrees}
        arrays |= {"codes": chunk.codes, "descriptors": chunk.descriptors}
        if self.metadata.is_quantized:
            arrays["descriptors"], arrays["scales"] = quantize(as_array(chunk.descriptors))
        content = {PATHS: os.fsencode("".join(f"{path}\n" for path in paths))}
        for name, (dtype, width) in self.metadata.columns.items():
            array = np.ascontiguousarray(arrays[name], dtype)
            assert array.shape == (len(paths), width), "one row per image"
            content[f"{name}.bin"] = array.tobytes()
        checksums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        checksums[METADATA] = self._metadata_sha256
        if self._is_complete:
            self._remove_unfinished()
        for name, data in content.items():
            self._write(name, data)
        # Last, because from here on the chunk belongs to the index.
        self._write_manifest({"images": len(paths), "path_bytes": len(content[PATHS]), "sha256": checksums})
        self.count += len(paths)

    def features(self) -> Features:
        """Marks the index as complete, and returns the features of all its images."""
        if not self._is_complete:
            self._write_manifest({"complete": self.count})
            self._is_complete = True
        return Index(self.folder, verify=False).features()

    def _remove_unfinished(self) -> None:
        """Removes an unfinished chunk, or the end mark: an index that has one never has an unfinished chunk."""
        for name, size in self._sizes.items():
            self._files[name].truncate(size)
        os.fsync(self._files[MANIFEST].fileno())
        self._is_complete = False

    def _write_manifest(self, entry: dict) -> None:
        self._write(MANIFEST, json.dumps(entry).encode() + b"\n")

    def _write(self, name: str, data: bytes) -> None:
        file = self._files[name]
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError as error:
            raise InputError(
                f"Cannot write {self.folder / name}: {error.strerror or error}. The index is valid up to the last "
                "chunk; continue with --append once this is solved."
            ) from error

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()
        self._lock.release()


def _open_to_append(path: Path) -> IO[bytes]:
    """The file, unbuffered. Raises InputError for a link: what it leads to is not the index's."""
    return open(open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab", buffering=0)


def check_folder(folder: Path, *, append: bool) -> None:
    """Raises InputError if an index cannot be built in a folder, which need not exist.

    It may contain nothing else or, with `append`, an index.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        kind = "a file" if folder.is_file() else "not a folder"
        raise InputError(f"{folder} is {kind}. An index is a folder. Choose a new one.")
    entries = sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.exists() else []
    if METADATA in entries and not append:
        raise InputError(f"{folder} already contains an index. Use --append to add to it, or to complete it.")
    if append and entries == [PROJECTION]:
        return  # killed before it wrote the metadata
    if "header.json" in entries:
        IndexMetadata.read(folder)  # raises the error for an index of version 0.1.0
    if entries and METADATA not in entries:
        raise InputError(
            f"{folder} contains {', '.join(entries[:5])} but no {METADATA}: it is neither empty nor an index. "
            "Choose a new folder."
        )
