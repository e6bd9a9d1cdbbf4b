"""The files of an index, opened for reading."""

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..files import open_regular, read_regular
from ..video_files import frame_of
from .manifest import CHUNK_SIZE, MANIFEST, MAX_ID, Header, Manifest
from .metadata import MAX_METADATA_BYTES, MAX_METRES, MAX_ZONE, METADATA, REPAIR, IndexMetadata, damaged

PATHS = "paths.txt"
READ_BLOCK = 1 << 20  # bytes of paths that are scanned at a time
PATHS_AT_ONCE = 1 << 13  # that are decoded at a time
POSITION_LIMITS = {("easting", "northing"): (MAX_METRES, MAX_METRES), ("latitude", "longitude"): (90, 180)}
ATTEMPTS = 10  # to open files that another process compacts meanwhile


class DiskArray:
    """Rows [N, ...] of a binary file. `array[start:stop]` and `array[indices]` read them into a new NumPy array.

    Each access maps the file anew: a long-lived mapping would count every page read as the process's memory. Raises
    InputError if the file has become shorter meanwhile.
    """

    def __init__(self, file: IO[bytes] | Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self.file, self.dtype, self.shape = file, dtype, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if not len(self):
            return np.empty(self.shape, self.dtype)[rows]
        try:
            mapped = np.memmap(self.file, self.dtype, "r", shape=self.shape)  # type: ignore[call-overload]
        except ValueError as error:  # too few bytes
            name = self.file if isinstance(self.file, Path) else Path(self.file.name)
            raise damaged(name, "it has become shorter since it was opened") from error
        return np.array(mapped[rows])


class JoinedRows:
    """The rows [n] of one array after those of another, as parts (array [N, dim], rows; None for all). Reads like a
    DiskArray.
    """

    def __init__(self, parts: Sequence[tuple[Any, np.ndarray | None]]) -> None:
        self._parts = parts
        self._bounds = np.cumsum([0, *(len(array if rows is None else rows) for array, rows in parts)])
        self.shape = int(self._bounds[-1]), *parts[0][0].shape[1:]
        self.dtype = np.result_type(*(array.dtype for array, _ in parts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: slice | np.ndarray) -> np.ndarray:
        if isinstance(indices, slice):
            indices = np.arange(*indices.indices(len(self)))
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for (array, rows), start, end in zip(self._parts, self._bounds, self._bounds[1:], strict=False):
            of_part = (start <= indices) & (indices < end)
            if of_part.any():
                places = indices[of_part] - start
                found[of_part] = array[places if rows is None else rows[places]]
        return found


class PathList(Sequence[str]):
    """The paths that a file lists, read on demand: as strings, the paths of millions of images would take gigabytes.

    root: the folder of those that begin with "./". Raises InputError if there are not `count` lines in the first `size`
    bytes, or one contains a NUL byte.
    """

    def __init__(self, file: IO[bytes], size: int, count: int, *, root: str = "") -> None:
        self._prefix = os.path.join(root, "") if root else "./"
        ends = [np.empty(0, np.int64)]
        file.seek(0)
        for start in range(0, size, READ_BLOCK):  # read rather than mapped, so that the pages do not stay in memory
            block = np.frombuffer(file.read(min(READ_BLOCK, size - start)), np.uint8)
            if not block.all():  # no system opens such a path
                raise damaged(Path(file.name), "a path contains a NUL byte")
            ends.append(np.flatnonzero(block == ord("\n")) + start)
        self._text: Any = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        self._ends = np.concatenate(ends)
        if len(self._ends) != count or (count and self._ends[-1] != size - 1):
            raise damaged(Path(file.name), f"it does not hold one line for each of {count} images")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: Any) -> Any:
        """The path, or the name, of an image; "" for one that has none."""
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        return self._path_of(self.stored(i))

    def __iter__(self) -> Iterator[str]:
        """All of them, in a fraction of the time that they take one by one."""
        for start in range(0, len(self), PATHS_AT_ONCE):
            first = self._ends[start - 1] + 1 if start else 0
            last = self._ends[min(start + PATHS_AT_ONCE, len(self)) - 1]
            yield from map(self._path_of, os.fsdecode(self._text[first:last]).split("\n"))

    def _path_of(self, name: str) -> str:
        return self._prefix + name[2:] if name.startswith("./") else name

    def stored(self, i: int) -> str:
        """A line: a path in the root begins with "./"."""
        end = self._ends[i]
        start = self._ends[i - 1] + 1 if i % len(self) else 0
        return os.fsdecode(self._text[start:end])


class JoinedPaths(Sequence[str]):
    """The paths at rows [n] of one list after those of another, as parts (paths, rows)."""

    def __init__(self, parts: Sequence[tuple[Sequence[str], np.ndarray]]) -> None:
        self._parts = parts
        self._bounds = np.cumsum([0, *(len(rows) for _, rows in parts)])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        index = range(len(self))[i]
        part = int(np.searchsorted(self._bounds, index, "right")) - 1
        paths, rows = self._parts[part]
        return paths[rows[index - self._bounds[part]]]


class FileState(NamedTuple):
    """A file's size in bytes, and when it was changed, in nanoseconds; -1 for what is no file."""

    size: int
    mtime_ns: int


def file_state(path: str) -> FileState:
    """The state of a file now; of the frame of a video, that of the video."""
    frame = frame_of(path)
    try:
        status = os.stat(frame.video if frame else path)
    except OSError:
        return FileState(-1, -1)
    return FileState(status.st_size, status.st_mtime_ns)


def data_file(name: str, generation: int) -> str:
    """The name of a file of images: with the number of the generation, if the index was compacted."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}.{generation}{suffix}" if generation else name


def _open_to_read(path: Path) -> IO[bytes]:
    return open(path, "rb", opener=lambda name, _: open_regular(name))


def require_root(folder: Path, header: Header) -> None:
    """Raises InputError for an index whose paths are absolute, so that another root of its images says nothing."""
    if not header.root:
        raise InputError(
            f"--image_root: the paths of the index {folder} are absolute. build_index.py --merge {folder} --index NEW "
            "--image_root DIR makes an index whose paths are relative to the folder DIR."
        )


def check_lengths(folder: Path, metadata: IndexMetadata, manifest: Manifest) -> None:
    """Raises InputError if a file is missing or shorter than the manifest says, or longer by more than a chunk."""
    generation = manifest.header.generation
    for name, row_bytes in [*metadata.row_bytes.items(), ("paths", 0)]:
        path = folder / data_file(f"{name}.bin" if row_bytes else PATHS, generation)
        size = manifest.rows * row_bytes if row_bytes else manifest.path_bytes
        actual = path.stat().st_size if path.is_file() else 0
        if actual < size:
            state = "truncated" if path.is_file() else "missing"
            raise InputError(f"{path} is {state}: {actual} of {size} bytes. {REPAIR}")
        if row_bytes and actual > size + (manifest.rows_behind + CHUNK_SIZE) * row_bytes:
            raise InputError(  # lines of the manifest are missing
                f"{folder / MANIFEST} is missing or truncated: {path} holds {actual // row_bytes} images, but the "
                f"manifest lists {manifest.rows}. Copy the index again, or rebuild it."
            )


def problem_of(records: np.ndarray) -> str | None:
    """What is wrong with records [N] of images, if anything: a value that no image has."""
    for names, limits in POSITION_LIMITS.items():
        pair = np.stack([records[name] for name in names], axis=1)
        unknown = np.isnan(pair)
        bad = np.flatnonzero((np.abs(pair) > limits).any(axis=1) | (unknown[:, 0] != unknown[:, 1]))
        if len(bad):
            return f"the position of image {bad[0]} is {pair[bad[0]].tolist()}"
    bad = np.flatnonzero(np.abs(records["zone"].astype(int)) > MAX_ZONE)
    if len(bad):
        return f"the position of image {bad[0]} is in zone {records['zone'][bad[0]]}"
    ids = records["id"]
    if len(ids) and (ids[0] < 0 or ids[-1] >= MAX_ID or (np.diff(ids) <= 0).any()):
        return "its ids do not ascend, or are too large"
    return "a time is infinite" if np.isinf(records["time"]).any() else None


class IndexFiles:
    """The files of an index as they are at one moment: what is added, removed or compacted later does not change them.

    Attributes: folder, metadata, manifest; columns, {name: DiskArray}; paths. root: the folder of the images, if it is
    no longer the one that the index names. With `unmarked`, what an unfinished change has added belongs to it too.
    Raises InputError if the folder is not an index, has another format, or lacks a part.
    """

    def __init__(self, folder: Path, *, unmarked: bool = False, root: Path | None = None) -> None:
        self.folder = folder
        self.metadata = IndexMetadata.read(folder)
        for attempt in range(ATTEMPTS):
            self.manifest = Manifest.read(folder, unmarked=unmarked)
            try:
                check_lengths(folder, self.metadata, self.manifest)
                if not self.manifest.chunks and not self.manifest.is_marked:
                    message = "The index %s is empty, probably because building it was interrupted. Rebuild it."
                    raise InputError(message % folder)
                self._files = {name: _open_to_read(self._path(name)) for name in self._row_bytes}
                break
            except (InputError, FileNotFoundError):  # another process has changed it since the manifest was read
                if attempt + 1 == ATTEMPTS or Manifest.read(folder, unmarked=unmarked).sha256 == self.manifest.sha256:
                    raise
        self._check_metadata()
        rows, header = self.manifest.rows, self.manifest.header
        self.columns = {
            name: DiskArray(self._files[f"{name}.bin"], dtype, (rows, *shape))
            for name, (dtype, shape) in self.metadata.columns.items()
        }
        if root is not None:
            require_root(folder, header)
        where = header.root if root is None else os.path.abspath(root)
        self.paths = PathList(self._files[PATHS], self.manifest.path_bytes, rows, root=where)

    @property
    def _row_bytes(self) -> dict[str, int | None]:
        """{file: bytes per image}, None for paths."""
        return {**{f"{name}.bin": size for name, size in self.metadata.row_bytes.items()}, PATHS: None}

    def _path(self, name: str) -> Path:
        return self.folder / data_file(name, self.manifest.header.generation)

    def _check_metadata(self) -> None:
        """Raises InputError if the checksum of metadata.json differs."""
        expected = hashlib.sha256(read_regular(self.folder / METADATA, MAX_METADATA_BYTES)).hexdigest()
        if any(chunk["sha256"].get(METADATA) != expected for chunk in self.manifest.chunks):
            raise damaged(self.folder / METADATA, f"its checksum differs from {MANIFEST}")

    def verify(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, int]]:
        """Reads files, all or some, and compares the checksum of each chunk. Yields a file's name, and how many of its
        images have been read. Raises InputError, which names the file, at the first checksum that differs.
        """
        for name in names or self._row_bytes:
            row_bytes, done = self._row_bytes[name], 0
            file = self._files[name]
            file.seek(0)
            for chunk in self.manifest.chunks:
                data = file.read(chunk["path_bytes"] if row_bytes is None else chunk["images"] * row_bytes)
                last = done + chunk["images"] - 1
                if hashlib.sha256(data).hexdigest() != chunk["sha256"].get(name):
                    problem = f"the checksum of images {done} to {last} differs from {MANIFEST}"
                    raise damaged(self._path(name), problem)
                done = last + 1
                yield name, done

    def records(self) -> np.ndarray:
        """What images.bin says of each row: [rows] of RECORD. Raises InputError for values that no image has."""
        records = self.columns["images"][:]
        problem = problem_of(records)
        if problem:
            raise damaged(self._path("images.bin"), problem)
        return records
