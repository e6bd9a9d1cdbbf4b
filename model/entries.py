"""What a program, or an index, says about images beside their features."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .errors import InputError
from .index.files import FileState, file_state
from .index.metadata import MAX_METRES, RECORD
from .index.writing import require_storable
from .video_files import frame_time

NO_FILE = FileState(-1, -1)
MAX_DEGREES = 180
SMALL = (
    "All positions are small. If they are degrees, give metres instead, such as those of geodesy.local_metres; if they "
    "are metres of a map around an origin, all is well."
)


class Entry(NamedTuple):
    """What is known about an image: a name; a position, (easting, northing) in metres; a time in seconds; degrees,
    (latitude, longitude), WGS 84. state: of the file that was described.
    """

    name: str | None
    position: tuple[float, float] | None
    time: float | None
    degrees: tuple[float, float] | None = None
    state: FileState = NO_FILE


class Entries:
    """The entry of each row: those of an index, which stay in its files, and others that were added."""

    def __init__(self, names: Sequence[str] = (), records: np.ndarray | None = None) -> None:
        self._names = names
        self._records = np.empty(0, RECORD) if records is None else records
        self._added: list[Entry] = []

    def __len__(self) -> int:
        return len(self._records) + len(self._added)

    def __getitem__(self, row: int) -> Entry:
        if row >= len(self._records):
            return self._added[row - len(self._records)]
        record: Any = self._records[row]
        return Entry(
            self._names[row] or None,
            _known_pair(record["easting"], record["northing"]),
            None if np.isnan(record["time"]) else float(record["time"]),
            _known_pair(record["latitude"], record["longitude"]),
        )

    def extend(self, entries: Sequence[Entry]) -> None:
        """Adds entries."""
        self._added += entries

    def truncate(self, count: int) -> None:
        """Takes back those that were added beyond this number."""
        del self._added[count - len(self._records) :]

    def times(self, count: int) -> np.ndarray:
        """The times of the first `count` rows, NaN where unknown: [count] float64."""
        stored, added = self._records["time"][:count], self._added[: max(0, count - len(self._records))]
        return np.concatenate([stored, np.array([np.nan if e.time is None else e.time for e in added])])

    def zones(self, rows: Sequence[int]) -> np.ndarray:
        """The UTM zones of the positions of rows, as in an index, 0 where unknown: [N] int8."""
        stored = len(self._records)
        return np.array([self._records["zone"][row] if row < stored else 0 for row in rows], np.int8)

    def names(self, rows: Sequence[int]) -> list[str]:
        """The names of rows as an index stores them: "" for images that have none."""
        return [self[row].name or "" for row in rows]

    def records(self, rows: Sequence[int]) -> np.ndarray:
        """What images.bin says of rows, but for their ids."""
        chosen, stored = np.asarray(rows, np.int64), len(self._records)
        records = np.zeros(len(rows), RECORD)
        records[chosen < stored] = self._records[chosen[chosen < stored]]
        for i in np.flatnonzero(chosen >= stored).tolist():
            record, entry = records[i], self._added[rows[i] - stored]
            record["time"] = np.nan if entry.time is None else entry.time
            record["easting"], record["northing"] = entry.position or (np.nan, np.nan)
            record["latitude"], record["longitude"] = entry.degrees or (np.nan, np.nan)
            record["size"], record["mtime_ns"] = entry.state
        return records


def make_entries(images: Any, count: int, names: Any, positions: Any, times: Any) -> list[Entry]:
    """The entries of images. Without names, files have their paths.

    Raises InputError if there is not one of each for each image, or a value cannot be used.
    """
    paths = _paths(images, count)
    states = [NO_FILE if path is None else file_state(path) for path in paths]
    texts = paths if names is None else _column("names", names, (count,))
    for text in texts:
        if text is not None and (not isinstance(text, str) or not text or text.startswith("./")):
            raise InputError(f"The name {text!r}: expected a text that does not begin with ./, or None.")
        if text is not None:
            require_storable(text)
    metres = [None] * count if positions is None else list(map(tuple, _column("positions", positions, (count, 2))))
    for position in metres:  # no index with others would be read
        if position is not None and max(map(abs, position)) > MAX_METRES:
            raise InputError(f"The position {position}: expected metres, eastings and northings up to {MAX_METRES:g}.")
    shown = [None if path is None else frame_time(path) for path in paths]  # frames of videos have times
    if positions is not None:
        _warn_of_degrees(np.array(metres))
    seconds = shown if times is None else _column("times", times, (count,))
    return [
        Entry(text, position, time, None, state if text == path else NO_FILE)
        for text, position, time, path, state in zip(texts, metres, seconds, paths, states, strict=True)
    ]


def _warn_of_degrees(positions: np.ndarray) -> None:
    """Warns, once, of positions [N, 2] that look like degrees. Those of a map that begins near its origin do not."""
    if (np.abs(positions) <= MAX_DEGREES).all() and (np.abs(positions).max(axis=1) > 1).all():
        warnings.warn(SMALL, stacklevel=4)


def _known_pair(first: float, second: float) -> tuple[float, float] | None:
    return None if np.isnan(first) else (float(first), float(second))


def _paths(images: Any, count: int) -> list[str | None]:
    """The absolute path of each image that is a file."""
    given = images if isinstance(images, (list, tuple)) else [images]
    paths = [os.path.abspath(image) if isinstance(image, (str, os.PathLike)) else None for image in given]
    return paths if len(paths) == count else [None] * count  # of a Description


def _column(what: str, given: Any, shape: tuple[int, ...]) -> list[Any]:
    """Raises InputError if there is not one value for each image, or a number is not finite."""
    try:
        values = np.asarray(given, object if what == "names" else np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: {error}. Expected {list(shape)} numbers.") from error
    if shape[0] == 1:  # given for a single image, not in a list
        values = values.reshape(shape) if values.size == np.prod(shape) else values
    if values.shape != shape:
        raise InputError(f"{what} {list(values.shape)} for {shape[0]} images. Expected {list(shape)}: one per image.")
    most = MAX_METRES if what == "positions" else np.inf
    if what != "names" and not (np.isfinite(values).all() and (np.abs(values) <= most).all()):
        expected = f"metres up to {MAX_METRES:g}" if what == "positions" else "seconds"
        raise InputError(f"{what} contains NaN, infinity, or metres beyond the largest. Expected {expected}.")
    return values.tolist()
