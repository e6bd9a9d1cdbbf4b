"""Writing an index of image files."""

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.image_set import ImageSet
from model import GeoLocalizationNet, InputError, ModelConfig
from model.index.files import PATHS, FileState, IndexFiles, file_state
from model.index.manifest import Header
from model.index.metadata import METADATA, ORIGINS, PUBLISHED, RECORD, UNKNOWN_WEIGHTS, IndexMetadata
from model.index.projections import CODING_FILE, NO_PROJECTIONS, PCA_FILE, Projections
from model.index.quantization import quantize
from model.index.writing import RowWriter
from model.inference import Describer
from model.video_files import frame_of, frame_time
from utils.retrieval.config import ExtractionConfig, IndexConfig
from utils.retrieval.features import Features, as_array
from utils.retrieval.index.reader import Index, image_set, verify_files
from utils.runtime.atomic_files import make_folder

SAME_POSITION_METRES, SAME_POSITION_DEGREES = 0.01, 1e-7  # what is less is rounding, in file names to centimetres
RECENT_NS = 1_000_000_000  # a file that was changed less than so long ago may change again within a tick of its clock
READERS, FILES_AT_ONCE = 8, 16  # threads that read files for their digests; files that each takes, which saves time


class Changes(NamedTuple):
    """Image files beside an index: those that it lacks; those that were changed since they were described, {file: rows
    in the index}; those that were not, {file: row}; and the ids of files that are gone.
    """

    new: list[int]
    changed: dict[int, list[int]]
    unchanged: dict[int, int]
    gone: list[int]

    def summary(self, *, prune: bool) -> str:
        """How many there are of each, in words. prune: whether those that are gone are taken out."""
        counts = {"new": len(self.new), "changed": len(self.changed), "unchanged": len(self.unchanged)}
        parts = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        verdict = "taken out" if prune else "gone; --prune takes them out"
        return f"{parts}. Of the index: {len(self.gone)} {verdict}." if self.gone else f"{parts}."


def metadata_of(
    model: Describer | GeoLocalizationNet,
    config: ExtractionConfig,
    index: IndexConfig | None = None,
    *,
    projections: Projections = NO_PROJECTIONS,
) -> IndexMetadata:
    """The metadata of an index with this model, these settings, and descriptors to which these projections were
    applied.

    Raises InputError for a number format of descriptors that the model does not have.
    """
    dtype = index.descriptor_dtype if index else "fp32"
    if dtype != "fp32" and not model.config.has_float_branch:
        raise InputError(
            f"--descriptor_dtype {dtype} applies to float descriptors, which hashing-only models do not have. "
            "Leave it out."
        )
    not_in_a_file = PUBLISHED if isinstance(model.config, ModelConfig) else UNKNOWN_WEIGHTS
    return IndexMetadata.of(
        model,
        config.image_config,
        projections,
        weights_file=str(index.weights.absolute()) if index and index.weights else not_in_a_file,
        precision=config.precision,
        exif_orientation=config.exif_orientation,
        positions=index.positions if index else None,
        descriptor_dtype=dtype,
    )


class IndexWriter:
    """Builds an index, or with `append` continues one. A context manager that locks out other writers.

    projections: those that the metadata describes, which a new index stores. They have been applied to chunks already.

    Raises InputError if the folder is in use, cannot be written, contains something else, or contains an index that is
    damaged or was built with another model, resize, precision, descriptor type or projections.
    """

    def __init__(self, config: IndexConfig, metadata: IndexMetadata, projections: Projections = NO_PROJECTIONS) -> None:
        self.config, self.folder = config, config.folder
        check_folder(config.folder, append=config.append)
        make_folder(config.folder, exist_ok=True)
        header = Header(root=os.path.abspath(config.root) if config.root else "")
        options: dict[str, Any] = {"append": config.append, "header": header, "projections": projections}
        self._rows = rows = RowWriter(config.folder, metadata, **options)
        try:
            message = f"--append: the index {config.folder} was built differently"
            rows.metadata.require_same(metadata, ORIGINS, message)
            if rows.files:  # what the comparison with the files relies on
                verify_files(rows.files, ["images.bin", PATHS])
        except BaseException:
            rows.close()
            raise
        self.metadata = rows.metadata
        self._states: dict[str, FileState] = {}
        self._replaced: dict[str, list[int]] = {}

    def to_extract(self, images: ImageSet) -> np.ndarray:
        """The indices of the images that the index does not contain in their present state."""
        paths = [os.path.abspath(path) for path in images.paths]
        for path in paths:
            if "\n" in path:
                raise InputError(
                    f"The path {path!r} contains a line break, which an index cannot store. Rename the file or folder."
                )
        changes = find_changes(self._rows.files, paths, check_content=self.config.check_content)
        self._replaced = {paths[i]: rows for i, rows in changes.changed.items()}
        chosen = sorted([*changes.new, *changes.changed])
        self._warn_of_other_positions(changes.unchanged, paths, images)
        self._states = {paths[i]: file_state(paths[i]) for i in chosen}
        return np.array(chosen, int)

    def _warn_of_other_positions(self, rows: dict[int, int], paths: list[str], images: ImageSet) -> None:
        """Warns if the index contains images, {index: row}, with other positions than these, where known."""
        known = [i for i in np.flatnonzero(images.is_located).tolist() if i in rows]
        if not known or self._rows.files is None:
            return
        saved = image_set((), self._rows.files.columns["images"][np.array([rows[i] for i in known])])
        same = np.ones(len(known), bool)
        for name, tolerance in (("utms", SAME_POSITION_METRES), ("degrees", SAME_POSITION_DEGREES)):
            old, new = getattr(saved, name), getattr(images, name)[known]
            same &= np.isclose(old, new, rtol=0, atol=tolerance, equal_nan=True).all(axis=1)
        if not same.all():
            message = (
                "%d images are in the index %s already, with other positions or none, such as %s. The index keeps "
                "those. Build a new index to change them."
            )
            logging.warning(message, (~same).sum(), self.folder, paths[known[int(same.argmin())]])

    def append(self, chunk: Features) -> None:
        """Adds the features of up to CHUNK_SIZE images, in place of earlier ones of the same files: all of them or, if
        the process dies, none.

        Raises InputError if it cannot write.
        """
        paths = [os.path.abspath(path) for path in chunk.images.paths]
        columns = {"images": self._records(paths, chunk.images)}
        if chunk.codes is not None:
            columns["codes"] = as_array(chunk.codes)
        if chunk.descriptors is not None:
            columns["descriptors"] = as_array(chunk.descriptors)
            if self.metadata.is_quantized:
                columns["descriptors"], columns["scales"] = quantize(columns["descriptors"])
        replaced = [row for path in paths for row in self._replaced.get(path, ())]
        self._rows.append(paths, columns, replaced=replaced)

    def _records(self, paths: list[str], images: ImageSet) -> np.ndarray:
        records = np.zeros(len(paths), RECORD)
        records["id"] = self._rows.next_id + np.arange(len(paths))
        times = map(frame_time, paths)
        records["time"] = [np.nan if time is None else time for time in times]
        records["easting"], records["northing"] = images.utms.T
        records["latitude"], records["longitude"] = images.degrees.T
        records["zone"] = images.zones
        states = [self._states.get(path) or file_state(path) for path in paths]
        records["size"], records["mtime_ns"] = np.array(states, np.int64).reshape(-1, 2).T
        parts = [slice(start, start + FILES_AT_ONCE) for start in range(0, len(paths), FILES_AT_ONCE)]
        with ThreadPoolExecutor(READERS) as pool:
            digests = pool.map(_digests_of_states, (paths[part] for part in parts), (states[part] for part in parts))
            records["digest"] = list(chain.from_iterable(digests))
        is_recent = records["mtime_ns"] > time.time_ns() - RECENT_NS
        records["mtime_ns"][is_recent & (records["digest"] != 0)] = 0
        return records

    def features(self) -> Features:
        """Makes what was added the state that readers see, and returns the features of all images."""
        self._rows.mark()
        return Index(self.folder, verify=False).features()

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._rows.close()


def find_changes(
    files: IndexFiles | None, paths: Sequence[str], *, folder: Path | None = None, check_content: bool = False
) -> Changes:
    """Compares the images of an index with files, by absolute paths: by size and time of change or, with
    `check_content`, by their content.

    A file that cannot be looked at is not changed: reading it will say why. folder: where the paths were listed, or the
    video of which they are frames; None for files of any folder, of which none is gone.
    """
    if files is None:
        return Changes(list(range(len(paths))), {}, {}, [])
    records = files.records()
    pairs = zip(files.paths, files.manifest.removed.tolist(), strict=True)
    rows, earlier = dict[str, int](), dict[str, list[int]]()
    for row, (path, removed) in enumerate(pairs):
        if not removed:
            if path in rows:  # a program may remember a file twice
                earlier.setdefault(path, []).append(rows[path])
            rows[path] = row
    found = np.array([rows.get(path, -1) for path in paths], np.int64)
    known = np.flatnonzero(found >= 0)
    is_changed = _are_changed([paths[i] for i in known.tolist()], records[found[known]], check_content=check_content)
    changed, unchanged = (known[chosen].tolist() for chosen in (is_changed, ~is_changed))
    is_listed = np.zeros(len(records), bool)
    is_listed[found[known]] = True
    listed, gone = is_listed.tolist(), list[int]()
    if folder:
        within = f"{os.path.abspath(folder)}{'#' if folder.is_file() else os.sep}"
        absent = [path for path, row in rows.items() if not listed[row] and path.startswith(within)]
        absent = [path for path in absent if folder.is_file() or not _is_frame_of_a_file(path)]
        gone = [row for path in absent for row in (rows[path], *earlier.get(path, ()))]
    return Changes(
        new=np.flatnonzero(found < 0).tolist(),
        changed={i: [int(found[i]), *earlier.get(paths[i], ())] for i in changed},
        unchanged={i: int(found[i]) for i in unchanged},
        gone=records["id"][gone].tolist(),
    )


def _is_frame_of_a_file(path: str) -> bool:
    """Whether a path names a frame of a video that is there: listing its folder does not list it."""
    frame = frame_of(path)
    return frame is not None and os.path.exists(frame.video)


def _are_changed(paths: Sequence[str], records: np.ndarray, *, check_content: bool) -> np.ndarray:
    """Whether each file differs from its record: bool [N]."""
    states: np.ndarray = np.fromiter(map(file_state, paths), np.dtype((np.int64, 2)), len(paths))
    other_size, other_time = states[:, 0] != records["size"], states[:, 1] != records["mtime_ns"]
    by_content = (records["digest"] != 0) & (check_content | (records["mtime_ns"] == 0))
    is_comparable = states[:, 0] >= 0  # those that were no files when they were described have changed
    is_changed = is_comparable & (other_size | (other_time & ~by_content))
    for i in np.flatnonzero(is_comparable & by_content & ~other_size).tolist():
        is_changed[i] = digest_of(paths[i]) != records["digest"][i]
    return is_changed


def digest_of(path: str) -> int:
    """64 bits of the BLAKE2 hash of a file's content, never 0; 0 if it cannot be read."""
    try:
        with open(path, "rb") as file:
            content = hashlib.blake2b(file.read(), digest_size=8).digest()
    except OSError:
        return 0
    return int.from_bytes(content, "little") or 1


def _digests_of_states(paths: Sequence[str], states: Sequence[FileState]) -> list[int]:
    """The digests of files that are still in these states; of others 0, which is compared with nothing."""
    digests = []
    for path, state in zip(paths, states, strict=True):
        digest = (
            digest_of(path) if state.size >= 0 and not frame_of(path) else 0
        )  # a video would be read for each frame
        digests.append(digest if file_state(path) == state else 0)
    return digests


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
    if append and entries and {*entries} <= {PCA_FILE, CODING_FILE}:
        return  # killed before it wrote the metadata
    if "header.json" in entries:
        IndexMetadata.read(folder)  # raises the error for an index of version 0.1.0
    if entries and METADATA not in entries:
        raise InputError(
            f"{folder} contains {', '.join(entries[:5])} but no {METADATA}: it is neither empty nor an index. "
            "Choose a new folder."
        )
