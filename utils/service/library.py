"""The index that a service answers from, as it is now."""

import abc
import logging
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from model import Description, InputError, Known, Match, Place, PlaceRecognizer
from model.calibration import CALIBRATION
from model.index.manifest import MANIFEST
from model.places import MATCHES
from utils.retrieval.config import AcceptConfig


class CannotSearch(Exception):
    """The index cannot be searched at the moment. The log says why."""


class CannotWrite(Exception):
    """A change could not be written to the index, and was taken back. The log says why."""


class Found(NamedTuple):
    """What a search has found. matches: best first; place: None if it is unknown; limit: the largest distance of a
    first match that is accepted, None for any.
    """

    matches: list[Match]
    place: Place | None
    limit: float | None


@dataclass(frozen=True, kw_only=True)
class Details:
    """What is known about an image that is added: see PlaceRecognizer.add."""

    name: str | None = None
    position: tuple[float, float] | None = None
    time: float | None = None


class Library(abc.ABC):
    """An index that is searched, and opened again when it has changed. Safe in threads.

    Attributes: recognizer, which prepares and describes images for it; problem: why the index as it is now could not be
    opened, or None; reopened: how often it was.
    """

    recognizer: PlaceRecognizer
    problem: str | None = None
    reopened = 0

    @abc.abstractmethod
    def find(self, description: Description, k: int, max_distance: float | None) -> Found:
        """The k best matches of an image, and its place. max_distance: of a first match that is accepted; None: that of
        the library. Raises CannotSearch.
        """

    @abc.abstractmethod
    def refresh(self) -> None:
        """Opens the index again if another program has changed it. Where it cannot be opened, what was read before
        stays, and `problem` says why.
        """

    @abc.abstractmethod
    def known(self) -> Known:
        """What is known of the images beside their features; of a large index that is remote, of some."""

    @abc.abstractmethod
    def image_file(self, i: int) -> str | None:
        """The path of the file of an image, None for one that was none. Raises InputError for an id that is unknown,
        and CannotSearch.
        """

    @property
    @abc.abstractmethod
    def state(self) -> object:
        """Differs when the images do."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    def _note(self, error: InputError, what: str) -> None:
        """Logs a problem, once as long as it lasts."""
        if self.problem != str(error):
            logging.warning("%s: %s", what, error)
        self.problem = str(error)


class FileMark(NamedTuple):
    """What tells whether a file has changed."""

    inode: int
    size: int
    mtime_ns: int


NEVER = FileMark(-1, -1, -1)  # of no file


class FolderLibrary(Library):
    """An index in a folder. `recognizer` remembers its images, and is another one when it was opened again."""

    def __init__(self, recognizer: PlaceRecognizer, folder: Path, accept: AcceptConfig) -> None:
        """Raises InputError if `accept` names a threshold that the index cannot have."""
        self.recognizer, self.folder = recognizer, folder
        self._max_distance = accept.max_distance
        file = accept.file or (folder / CALIBRATION if (folder / CALIBRATION).exists() else None)
        self._calibrated: float | None = None
        if self._max_distance is None and file:
            self._calibrated = recognizer.accept(file, precision=int(accept.precision or 99))
        self._changing = threading.Lock()
        self._mark: FileMark | None = NEVER
        self._damage: str | None = None  # that a search has met; only another index mends it
        self._changes = 0  # that this service has written

    def find(self, description: Description, k: int, max_distance: float | None) -> Found:
        """As Library. A file that was whole when it was opened may have been cut since."""
        recognizer = self.recognizer  # another thread may replace it
        try:
            [matches] = recognizer.search(description, max(k, MATCHES), max_distance=math.inf)
        except InputError as error:
            with self._changing:
                if recognizer is self.recognizer:
                    self._note(error, "A search failed")
                    self._damage = self.problem
            raise CannotSearch from error
        stated = self._max_distance if max_distance is None else max_distance
        place = recognizer.place_of(matches, max_distance=stated)
        return Found(matches[:k], place, self._calibrated if stated is None else stated)

    def refresh(self) -> None:
        """As Library."""
        with self._changing:
            self._refresh()

    def known(self) -> Known:
        """As Library."""
        return self.recognizer.known()

    def image_file(self, i: int) -> str | None:
        """As Library."""
        return self.recognizer.image_file(i)

    @property
    def state(self) -> object:
        """As Library."""
        return self.reopened, self._changes

    def __len__(self) -> int:
        return len(self.recognizer)

    def add(self, description: Description, details: Details) -> int:
        """Adds an image to the index on the disk, and returns its id.

        Raises InputError for details that cannot be used, and CannotWrite.
        """
        with self._changing:
            self._refresh_to_write()
            names, positions, times = (
                None if value is None else [value] for value in (details.name, details.position, details.time)
            )
            ids = self.recognizer.add(description, names=names, positions=positions, times=times)
            try:
                self._save()
            except CannotWrite:
                self.recognizer.remove(ids)
                raise
            return ids[0]

    def remove(self, i: int) -> None:
        """Removes an image from the index on the disk. Raises InputError for an id that is unknown, and CannotWrite."""
        with self._changing:
            self._refresh_to_write()
            self.recognizer.remove(i)
            try:
                self._save()
            except CannotWrite:
                self.recognizer.restore(i)
                raise

    def _refresh_to_write(self) -> None:
        """Raises CannotWrite if the index on the disk is not the one that is held."""
        self._refresh()
        if self.problem:
            raise CannotWrite

    def _save(self) -> None:
        self._changes += 1
        try:
            self.recognizer.save(self.folder)
        except InputError as error:
            logging.warning("%s", error)
            raise CannotWrite from error

    def _refresh(self) -> None:
        mark = self._read_mark()  # before the look at the file: it may change again meanwhile
        if mark == self._mark:
            self.problem = self._damage
            return
        try:
            if self.recognizer.has_changed_on_disk():
                self.recognizer = self.recognizer.reopened(verify=False)
                self.reopened += 1
                self._damage = None
            self.problem, self._mark = self._damage, mark
        except InputError as error:
            self._note(error, "The index has changed, and cannot be opened")

    def _read_mark(self) -> FileMark | None:
        """None for a manifest that is gone."""
        try:
            status = os.stat(self.folder / MANIFEST)
        except OSError:
            return None
        return FileMark(status.st_ino, status.st_size, status.st_mtime_ns)
