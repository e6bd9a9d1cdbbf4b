"""Indexes of the format before this one, as far as merging reads them: `build_index.py --merge OLD --index NEW`.

Format 5 had positions in one UTM zone (utms.bin, and utm_zone in its metadata) in place of images.bin, absolute paths,
and a manifest of chunks with an end mark after the last one.
"""

import hashlib
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from datasets.zones import UNKNOWN_ZONE, degrees_of_utm, zone_of_text
from model import CODE_BITS, InputError, ModelConfig
from model.files import open_regular, read_regular
from model.index.files import PATHS, DiskArray, PathList, file_state
from model.index.manifest import MANIFEST, MAX_MANIFEST_BYTES, rows_of
from model.index.metadata import (
    FORMAT,
    RECORD,
    REPAIR,
    IndexMetadata,
    damaged,
    parse_object,
    read_metadata,
    read_projections,
    require_format,
)
from model.index.writing import Columns


class Format5Files:
    """An index of format 5. Raises InputError if it is damaged or incomplete."""

    FORMAT = 5
    root = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata, self._zone = read_metadata(folder, _parse)
        self.projections = read_projections(folder, self.metadata)
        chunks = self._chunks()
        count = sum(chunk["images"] for chunk in chunks)
        columns = {**self.metadata.columns, "utms": (np.dtype("<f8"), (2,))}
        del columns["images"]
        self._verify(
            chunks, {f"{name}.bin": dtype.itemsize * math.prod(shape) for name, (dtype, shape) in columns.items()}
        )
        self._columns = {
            name: DiskArray(folder / f"{name}.bin", dtype, (count, *shape)) for name, (dtype, shape) in columns.items()
        }
        with _open(folder / PATHS) as file:
            self._paths = PathList(file, sum(chunk["path_bytes"] for chunk in chunks), count)

    def _chunks(self) -> list[dict[str, Any]]:
        path = self.folder / MANIFEST
        try:
            *chunks, mark = map(parse_object, read_regular(path, MAX_MANIFEST_BYTES).splitlines())
            for chunk in chunks:
                rows_of(chunk)
            if mark != {"complete": sum(chunk["images"] for chunk in chunks)}:
                raise InputError(f"The index {self.folder} is incomplete. Complete it with the version that began it.")
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise damaged(path, repr(error)) from error
        return chunks

    def _verify(self, chunks: list[dict[str, Any]], sizes: dict[str, int]) -> None:
        for name in (*sizes, PATHS):
            with _open(self.folder / name) as file:
                for chunk in chunks:
                    data = file.read(chunk["path_bytes"] if name == PATHS else chunk["images"] * sizes[name])
                    if hashlib.sha256(data).hexdigest() != chunk["sha256"].get(name):
                        raise damaged(self.folder / name, f"its checksum differs from {MANIFEST}")

    def live_rows(self) -> np.ndarray:
        """The rows of its images: all."""
        return np.arange(len(self._paths))

    def path(self, row: int) -> str:
        """A path."""
        return self._paths[row]

    def read(self, rows: np.ndarray) -> Columns:
        """The columns of these rows, as this version has them. Files count as unchanged since they were described."""
        columns = {name: column[rows] for name, column in self._columns.items()}
        records = np.zeros(len(rows), RECORD)
        records["time"] = np.nan
        states = [file_state(self.path(row)) for row in rows.tolist()]
        records["size"], records["mtime_ns"] = np.array(states, np.int64).reshape(-1, 2).T
        records["easting"], records["northing"] = columns.pop("utms").T
        records["zone"] = self._zone
        utms = np.stack([records["easting"], records["northing"]], axis=1)
        records["latitude"], records["longitude"] = degrees_of_utm(utms, records["zone"]).T
        return {**columns, "images": records}


def _open(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb", opener=lambda name, _: open_regular(name))
    except FileNotFoundError:
        raise InputError(f"{path} is missing. {REPAIR}") from None


def _parse(text: bytes) -> tuple[IndexMetadata, int]:
    content = parse_object(text)
    require_format(content, Format5Files.FORMAT)
    zone = zone_of_text(content.pop("utm_zone") or "") or UNKNOWN_ZONE
    model = {field.name: content.pop(field.name) for field in fields(ModelConfig)}
    later: dict[str, Any] = {"positions": None, "coding_method": None, "coding_sha256": None}
    later["code_bits"] = CODE_BITS if model["hashing"] else 0
    return IndexMetadata.parse(json.dumps({**content, **later, "model": model, "format": FORMAT}).encode()), zone
