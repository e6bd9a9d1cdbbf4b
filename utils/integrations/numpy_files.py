"""Features of an index for NumPy: a folder of arrays, and the names of their images."""

import os
from pathlib import Path
from typing import IO

import numpy as np

from model.config import FLOAT_DTYPES
from model.index.manifest import CHUNK_SIZE
from model.saving import TEXT_OPTIONS
from utils.integrations.shared import relative_name, require_descriptors
from utils.retrieval.features import Descriptors, as_array
from utils.retrieval.index import Index
from utils.retrieval.search import with_progress
from utils.runtime.atomic_files import atomic_folder


def export_npy(index: Index, folder: Path, root: str | Path, *, dtype: str | None) -> None:
    """Writes a folder with database_descriptors.npy [N, dim] and database_codes.npy [N, 64] uint8, as far as the index
    has them, and database_paths.txt: the names of the images in the same order.

    dtype: a key of FLOAT_DTYPES; None: that of the index, or float32 for int8. Raises InputError if it is given, but
    the index has no descriptors.
    """
    if dtype:
        require_descriptors(index)
    features = index.features()
    with atomic_folder(folder) as temporary:
        if features.codes is not None:
            _write_array(temporary / "database_codes.npy", as_array(features.codes), np.dtype(np.uint8))
        if features.descriptors is not None:
            file_dtype = np.dtype(FLOAT_DTYPES[dtype]) if dtype else features.descriptors[:0].dtype
            _write_array(temporary / "database_descriptors.npy", features.descriptors, file_dtype)
        with open(temporary / "database_paths.txt", "w", **TEXT_OPTIONS) as file:
            file.writelines(f"{relative_name(path, root)}\n" for path in features.images.paths)
            _flush_to_disk(file)


def _write_array(path: Path, array: Descriptors, dtype: np.dtype) -> None:
    """Writes rows [N, d], of an array or read from the disk, as np.save does, in blocks."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in with_progress(range(0, len(array), CHUNK_SIZE), f"Exporting {path.name}"):
            file.write(array[start : start + CHUNK_SIZE].astype(dtype).tobytes())
        _flush_to_disk(file)


def _flush_to_disk(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())
