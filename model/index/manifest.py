"""manifest.jsonl: what belongs to an index. A log, to whose end each change adds lines."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_regular
from .metadata import damaged, parse_object

MANIFEST = "manifest.jsonl"
CHUNK_SIZE = 1024  # images that are extracted, and stored, at a time
MAX_MANIFEST_BYTES = 1 << 30  # enough for a billion images
MAX_PATH_BYTES = 1 << 16  # of a path with its line break, on average over a chunk
MAX_ID = 1 << 62
BEGIN = {"begin": True}  # a line: what follows is a change as a whole or, without an end mark, nothing
CHUNK_FIELDS = {"images", "path_bytes", "sha256"}


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first line. generation: how often the index was compacted, which names its files; root: the folder that its
    paths are relative to, "" for absolute paths; next_id: one that no image had when the line was written.
    """

    generation: int = 0
    root: str = ""
    next_id: int = 0

    def __post_init__(self) -> None:
        for value in (self.generation, self.next_id):
            if type(value) is not int or not 0 <= value < MAX_ID:
                raise ValueError(f"a first line with the number {value}")
        if not isinstance(self.root, str) or "\0" in self.root:
            raise ValueError("a first line whose root is no path")

    @staticmethod
    def parse(text: bytes) -> "Header":
        """Raises ValueError or TypeError for a line that no index has."""
        content = parse_object(text)
        checksum = content.pop("sha256", None)
        if checksum != _checksum_of(content):
            raise ValueError("the checksum of the first line differs")
        return Header(**content)

    def to_line(self) -> bytes:
        """As it stands in the file."""
        content = asdict(self)
        return line({**content, "sha256": _checksum_of(content)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """An index at one moment.

    chunks: its lines of images; removed: bool [rows], the images that were taken out; size: the bytes of the lines
    until then, and sha256 their checksum. is_marked: whether an end mark is the last of them: without it, building
    the index was interrupted, or is still in progress. rows_behind: rows of chunks that follow, from a change that
    is not complete.
    """

    header: Header
    chunks: list[dict[str, Any]]
    removed: np.ndarray
    size: int
    sha256: str
    is_marked: bool
    rows_behind: int = 0

    @staticmethod
    def read(folder: Path, *, unmarked: bool = False) -> "Manifest":
        """The state at the last end mark; without an end mark, or with `unmarked`, that of all complete lines, but for
        a change that is all or nothing, and was interrupted.

        Raises InputError for a line that cannot be right.
        """
        path = folder / MANIFEST
        data = read_regular(path, MAX_MANIFEST_BYTES) if path.exists() else b""
        try:
            return _parse(data.split(b"\n")[:-1], unmarked=unmarked)
        except (ValueError, TypeError) as error:
            raise damaged(path, repr(error)) from error

    @property
    def rows(self) -> int:
        """Number of rows in its files, of images that were removed too."""
        return len(self.removed)

    @property
    def images(self) -> int:
        """Number of images."""
        return self.rows - int(self.removed.sum())

    @property
    def path_bytes(self) -> int:
        """Size of the paths of all rows."""
        return sum(chunk["path_bytes"] for chunk in self.chunks)


def _parse(lines: list[bytes], *, unmarked: bool) -> Manifest:
    """Raises ValueError or TypeError for lines that are not those of an index."""
    header = Header.parse(lines[0]) if lines else Header()
    entries = list(map(parse_object, lines[1:]))
    marks = [i for i, entry in enumerate(entries) if "complete" in entry]
    begun = [i for i, entry in enumerate(entries) if entry == BEGIN and i > max(marks, default=-1)]
    last = begun[0] if begun else len(entries)
    end = marks[-1] + 1 if marks and not unmarked else last
    chunks, rows, images = list[dict](), 0, 0
    removed = np.zeros(sum(rows_of(entry) for entry in entries), bool)
    for entry in entries[:end]:
        rows, images = rows + rows_of(entry), images + rows_of(entry)
        if "images" in entry:
            chunks.append(entry)
        for start, stop in _removals_of(entry, rows):
            if removed[start:stop].any():
                raise ValueError(f"rows {start} to {stop - 1} are removed twice")
            removed[start:stop] = True
            images -= stop - start
        if "complete" in entry and (entry != {"complete": images} or type(entry["complete"]) is not int):
            raise ValueError(f"the end mark is {entry}, but there are {images} images")
    text = b"".join(line + b"\n" for line in lines[: 1 + end])
    return Manifest(
        header=header,
        chunks=chunks,
        removed=removed[:rows],
        size=len(text),
        sha256=hashlib.sha256(text).hexdigest(),
        is_marked=bool(marks) and end == marks[-1] + 1,
        rows_behind=len(removed) - rows,
    )


def rows_of(entry: dict[str, Any]) -> int:
    """The number of images in a line. Raises ValueError for a line that no index has."""
    if "complete" in entry or entry.keys() == {"removed"} or entry == BEGIN:
        return 0
    if entry.keys() - {"removed"} != CHUNK_FIELDS:
        raise ValueError(f"a chunk with the fields {', '.join(entry)}")
    images, path_bytes = entry["images"], entry["path_bytes"]
    if type(images) is not int or not 1 <= images <= CHUNK_SIZE:
        raise ValueError(f"a chunk of {images} images")
    if type(path_bytes) is not int or not images <= path_bytes <= MAX_PATH_BYTES * images:
        raise ValueError(f"a chunk of {images} images whose paths have {path_bytes} bytes")
    if not isinstance(entry["sha256"], dict):
        raise ValueError("a chunk without checksums")
    return images


def _removals_of(entry: dict[str, Any], rows: int) -> list[list[int]]:
    """The ranges of rows that a line removes. Raises ValueError if these are not rows before its end, in order."""
    if "removed" not in entry:
        return []
    removed = entry["removed"]
    if not isinstance(removed, dict) or removed.keys() != {"rows", "sha256"} or not isinstance(removed["rows"], list):
        raise ValueError("removed images without rows and a checksum")
    ranges, last = removed["rows"], 0
    for pair in ranges:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(row) is int for row in pair)):
            raise ValueError(f"the removed rows {pair}")
        if not last <= pair[0] < pair[1] <= rows:
            raise ValueError(f"the removed rows {pair} of {rows}")
        last = pair[1]
    if removed["sha256"] != _checksum_of(ranges):
        raise ValueError("the checksum of removed rows differs")
    return ranges


def removal(rows: Iterable[int]) -> dict[str, Any]:
    """The field `removed` of a line, for one row or more."""
    ordered = np.unique(np.fromiter(rows, np.int64))
    breaks = np.flatnonzero(np.diff(ordered) > 1)
    starts, stops = ordered[np.r_[0, breaks + 1]], ordered[np.r_[breaks, len(ordered) - 1]] + 1
    ranges = np.stack([starts, stops], axis=1).tolist()
    return {"rows": ranges, "sha256": _checksum_of(ranges)}


def _checksum_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def line(entry: dict[str, Any]) -> bytes:
    """As it stands in the file."""
    return json.dumps(entry).encode() + b"\n"
