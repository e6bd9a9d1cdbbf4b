"""Indexes over time: what changed among the images, images that are gone, files without them, several made one."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from model import InputError
from model.image_files import load_image
from model.index import METADATA
from model.index.files import FileState, IndexFiles, file_state, require_root
from model.index.manifest import CHUNK_SIZE, Header, Manifest
from model.index.metadata import ORIGINS, IndexMetadata, UnknownFormat, read_metadata, read_projections
from model.index.projections import Projections
from model.index.writing import Columns, RowWriter
from model.saving import LOCK
from utils.retrieval.index.format5 import Format5Files
from utils.retrieval.index.reader import distinct_rows, verify_files
from utils.retrieval.index.writer import Changes, find_changes
from utils.runtime.atomic_files import atomic_folder


def stored_metadata(folder: Path) -> IndexMetadata | None:
    """The metadata of an index; None if there is none in the folder yet."""
    return IndexMetadata.read(folder) if (folder / METADATA).exists() else None


def changes_since(index: Path, paths: Sequence[str], folder: Path, *, check_content: bool) -> Changes:
    """What changed among the image files of a folder since an index was built, or continued.

    Raises InputError if it is damaged, as far as this reads it.
    """
    has_rows = (index / METADATA).exists() and Manifest.read(index, unmarked=True).chunks
    files = IndexFiles(index, unmarked=True) if has_rows else None
    absolute = [os.path.abspath(path) for path in paths]
    return find_changes(files, absolute, folder=folder, check_content=check_content)


def move(index: Path, root: Path) -> None:
    """Makes `root` the folder that the paths of an index are relative to. Raises InputError if it does not exist."""
    if not root.is_dir():
        raise InputError(f"--image_root: no folder {root}.")
    with RowWriter(index, IndexMetadata.read(index), append=True) as writer:
        require_root(index, writer.header)
        writer.replace_header(root=os.path.abspath(root))


def known_root(index: Path, folder: Path) -> Path:
    """The folder of images as the index names it: its root, if the folder is the same one under another name.

    Raises InputError if the root does not exist: its images would all be new ones, and those of the index gone.
    """
    root = Manifest.read(index, unmarked=True).header.root
    if root and not os.path.isdir(root):
        raise InputError(
            f"The images of the index {index} were in {root}, which does not exist. If they were moved, give their "
            "folder with --image_root."
        )
    is_alias = root not in ("", os.path.abspath(folder)) and os.path.realpath(root) == os.path.realpath(folder)
    return Path(root) if is_alias else folder


def is_complete(index: Path) -> bool:
    """Whether there is an index, and no change of it was interrupted."""
    return (index / METADATA).exists() and Manifest.read(index, unmarked=True).is_marked


def finish(index: Path, gone: Iterable[int]) -> int:
    """Takes images, by their ids, out of an index, and marks it as complete. Returns how many it holds."""
    with RowWriter(index, IndexMetadata.read(index), append=True) as writer:
        writer.remove(writer.rows_of(gone))
        writer.mark()
        return writer.images


def compact(index: Path) -> int:
    """Frees the space of images that are gone, and makes full chunks of small ones. Returns how many were gone.

    Raises InputError for an incomplete index.
    """
    with RowWriter(index, IndexMetadata.read(index), append=True) as writer:
        if not writer.is_marked:
            raise InputError(f"--compact: the index {index} is incomplete. Continue building it with --append first.")
        gone = writer.rows - writer.images
        if gone or writer.chunks > 1 + 2 * writer.rows // CHUNK_SIZE:
            with tqdm(total=writer.images, desc="Compacting", unit="image", leave=False) as bar:
                for done in writer.compact():
                    bar.update(done - bar.n)
        return gone


class MergedFiles(Protocol):
    """What merging asks of an index, whatever its format."""

    folder: Path
    metadata: IndexMetadata
    projections: Projections

    @property
    def root(self) -> str:
        """The folder that its paths are relative to, or ""."""

    def live_rows(self) -> np.ndarray:
        """The rows of its images."""

    def path(self, row: int) -> str:
        """A path."""

    def read(self, rows: np.ndarray) -> Columns:
        """The columns of these rows."""


class Format6Files:
    """An index of this format, as merging reads it. Raises InputError if it is damaged or incomplete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = files = IndexFiles(folder)
        if not files.manifest.is_marked:
            raise InputError(f"--merge: the index {folder} is incomplete. Continue building it with --append first.")
        verify_files(files)
        self.metadata, self.root = files.metadata, files.manifest.header.root
        self.projections = read_projections(folder, files.metadata)

    def path(self, row: int) -> str:
        """A path."""
        return self._files.paths[row]

    def live_rows(self) -> np.ndarray:
        """The rows of its images."""
        return np.flatnonzero(~self._files.manifest.removed)

    def read(self, rows: np.ndarray) -> Columns:
        """The columns of these rows."""
        return {name: column[rows] for name, column in self._files.columns.items()}


def _open_to_merge(folder: Path) -> MergedFiles:
    try:
        read_metadata(folder, IndexMetadata.parse)
    except UnknownFormat as error:
        if error.number == Format5Files.FORMAT:
            return Format5Files(folder)
    return Format6Files(folder)


def merge(sources: Sequence[Path], target: Path, root: Path | None = None) -> int:
    """Makes one index of several, in a new folder. Returns the number of its images.

    root: the folder that its paths are relative to; None for that of all of them, if it is the same. An image that
    several hold, by its path, is that of the first. Ids begin at 0. If the process dies, nothing is left. Raises
    InputError if one of them is damaged, or they were not built with the same model and settings.
    """
    if os.path.lexists(target):
        raise InputError(f"--merge: {target} exists already. Choose a new folder for --index.")
    parts = [_open_to_merge(source) for source in sources]
    metadata = parts[0].metadata
    for part in parts[1:]:
        message = f"--merge: the indexes {parts[0].folder} and {part.folder} were built differently"
        metadata.require_same(part.metadata, ORIGINS, message)
    roots = {part.root for part in parts}
    live = [part.live_rows() for part in parts]
    chosen = distinct_rows([list(map(part.path, rows.tolist())) for part, rows in zip(parts, live, strict=True)])
    total = sum(map(len, chosen))
    projections = parts[0].projections
    with atomic_folder(target) as temporary, tqdm(total=total, desc="Merging", unit="image", leave=False) as bar:
        header = Header(root=os.path.abspath(root) if root else roots.pop() if len(roots) == 1 else "")
        with RowWriter(temporary, metadata, append=False, header=header, projections=projections) as writer:
            for part, rows, indices in zip(parts, live, chosen, strict=True):
                for start in range(0, len(indices), CHUNK_SIZE):
                    chunk = rows[indices[start : start + CHUNK_SIZE]]
                    columns = part.read(chunk)
                    columns["images"]["id"] = writer.next_id + np.arange(len(chunk))
                    writer.append(list(map(part.path, chunk.tolist())), columns)
                    bar.update(len(chunk))
            writer.mark()
        (temporary / LOCK).unlink()
    return total


class Watcher:
    """Tells which of the changed files of a folder can be described now.

    A file that was changed less than `seconds` ago may still be written. Once a round has failed, each file is tried,
    and one that cannot be read is named, and left out until it has changed.
    """

    def __init__(self, seconds: float, now: Callable[[], float]) -> None:
        self._seconds, self._now = seconds, now
        self._unreadable: dict[str, FileState] = {}
        self.tries_files = False

    def is_settled(self, path: str) -> bool:
        """Whether a file is there, and was not changed in the last round."""
        state = file_state(path)
        return state.size >= 0 and not 0 <= self._now() - state.mtime_ns / 1e9 < self._seconds  # clocks may go back

    def is_ready(self, path: str) -> bool:
        """Whether a file can be described."""
        state = file_state(path)
        if not self.is_settled(path) or self._unreadable.get(path) == state:
            return False
        if not self.tries_files:
            return True
        try:
            load_image(path)
        except InputError as error:
            logging.warning("%s It is left out until it changes.", error)
            self._unreadable[path] = state
            return False
        return True
