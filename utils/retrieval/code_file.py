"""The file of train_codes.py: a coding, and what its descriptors are.

A line with a JSON object, then the rows of the coding, [1 + bits, dim] little-endian float32.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from model.config import check_code_bits
from model.errors import InputError
from model.files import open_regular
from model.index.coding import Coding
from model.index.metadata import MAX_DESCRIPTOR_DIM, METADATA_ERRORS, IndexMetadata, parse_object
from utils.runtime.atomic_files import atomic_write

FORMAT, METHOD = 1, "trained"
MAX_HEADER_BYTES = 1 << 10
COMPARED = ("weights_sha256", "pca_sha256", "descriptor_dim")  # of an index's metadata: what its descriptors are


def write_code_file(path: Path, coding: Coding, metadata: IndexMetadata) -> None:
    """Writes a coding for descriptors like those of an index with this metadata. Raises InputError if it is not
    finite.
    """
    if not np.isfinite(coding.rows).all():
        raise InputError("The training diverged: its weights contain NaN or infinity. Choose a smaller --lr.")
    data = coding.rows.astype("<f4").tobytes()
    header = {"format": FORMAT, **{name: getattr(metadata, name) for name in COMPARED}}
    header |= {"code_bits": coding.bits, "sha256": hashlib.sha256(data).hexdigest()}
    with atomic_write(path, "wb") as file:
        file.write(json.dumps(header).encode() + b"\n" + data)


def read_code_file(path: Path, metadata: IndexMetadata) -> Coding:
    """The coding. Raises InputError if the file is damaged, none of train_codes.py, or for other descriptors than those
    of an index with this metadata.
    """
    with open(path, "rb", opener=lambda name, _: open_regular(name)) as file:
        try:
            header = parse_object(file.readline(MAX_HEADER_BYTES))
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}; this version reads format {FORMAT}")
            dim, bits = int(header["descriptor_dim"]), int(header["code_bits"])
            check_code_bits(bits)
            if not 0 < dim <= MAX_DESCRIPTOR_DIM:
                raise ValueError(f"descriptors of dimension {dim}")
            data = file.read(4 * (1 + bits) * dim + 1)
            if hashlib.sha256(data).hexdigest() != header["sha256"]:
                raise ValueError("its checksum differs")
            rows = np.frombuffer(data, "<f4").reshape(1 + bits, dim)
            if not np.isfinite(rows).all():
                raise ValueError("NaN or infinity")
            stated = {name: header[name] for name in COMPARED}
        except (*METADATA_ERRORS, InputError) as error:
            raise InputError(f"{path} is damaged, or no file of train_codes.py: {error}. Train it again.") from error
    now = {name: getattr(metadata, name) for name in COMPARED}
    changed = [f"{name} {stated[name]} (now {now[name]})" for name in COMPARED if stated[name] != now[name]]
    if changed:
        raise InputError(
            f"{path} was trained for the descriptors of another model: {', '.join(changed)}. Train one for this model."
        )
    return Coding.from_rows(METHOD, rows)
