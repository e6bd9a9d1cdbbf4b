"""Descriptors of an index for hloc: an HDF5 file with <name>/global_descriptor of each image."""

from pathlib import Path

from model.config import FLOAT_DTYPES
from model.errors import InputError
from model.index.manifest import CHUNK_SIZE
from utils.integrations.shared import relative_name, require_descriptors, require_utf8
from utils.retrieval.index import Index
from utils.retrieval.search import with_progress
from utils.runtime.atomic_files import atomic_write


def export_hloc(index: Index, output: Path, root: str | Path, *, dtype: str) -> None:
    """Writes the descriptors to an HDF5 file, in hloc's layout: <name>/global_descriptor, [dim], float16 or float32.

    dtype: a key of FLOAT_DTYPES. Raises InputError if h5py is not installed, the index has no descriptors, or a
    name is not UTF-8 or occurs twice.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(
            "export.py hloc needs the package h5py. Install it with: pip install -r requirements-export.txt"
        ) from None
    descriptors = require_descriptors(index)
    # HDF5 writes to a Python file, because its own file access hides a full disk until the process crashes.
    with (
        atomic_write(output, "w+b", interruptible=True, new=True) as file,
        h5py.File(file, "w", libver="latest") as features,
    ):
        for start in with_progress(range(0, len(index), CHUNK_SIZE), "Exporting"):
            block = descriptors[start : start + CHUNK_SIZE].astype(FLOAT_DTYPES[dtype])
            for i, descriptor in enumerate(block, start):
                name = require_utf8(relative_name(index.images.paths[i], root))
                if name in features:
                    raise InputError(f"The index {index.folder} holds {name} twice. Rebuild it.")
                features.create_dataset(f"{name}/global_descriptor", data=descriptor)
