"""The index that a service answers from, as it is on the disk."""

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from model import Description, InputError, PlaceRecognizer
from model.calibration import CALIBRATION
from model.index.manifest import MANIFEST
from utils.retrieval.config import AcceptConfig


class CannotWrite(Exception):
    """A change could not be written to the index, and was taken back. The log says why."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """What is known about an image that is added: see PlaceRecognizer.add."""

    name: str | None = None
    position: tuple[float, float] | None = None
    time: float | None = None


class FileMark(NamedTuple):
    """What tells whether a file has changed."""

    inode: int
    size: int
    mtime_ns: int


NEVER = FileMark(-1, -1, -1)  # of no file


class Library:
    """A recogniser of the images of an index, and another one when the index has changed: take `recognizer` once for
    each request.

    Attributes: recognizer; max_distance, of first matches that are accepted, None for that of the recogniser, or any;
    has_limit: whether there is one; problem: why the index as it is now could not be opened, or None; reopened: how
    often it was.
    """

    def __init__(self, recognizer: PlaceRecognizer, folder: Path, accept: AcceptConfig) -> None:
        """Raises InputError if `accept` names a threshold that the index cannot have."""
        self.recognizer, self.folder = recognizer, folder
        self.max_distance = accept.max_distance
        file = accept.file or (folder / CALIBRATION if (folder / CALIBRATION).exists() else None)
        self._calibrated: float | None = None
        if self.max_distance is None and file:
            self._calibrated = recognizer.accept(file, precision=int(accept.precision or 99))
        self.problem: str | None = None
        self.reopened = 0
        self._changing = threading.Lock()
        self._mark: FileMark | None = NEVER

    @property
    def limit(self) -> float | None:
        """The largest distance of a first match that is accepted, or None for any."""
        return self._calibrated if self.max_distance is None else self.max_distance

    def refresh(self) -> None:
        """Opens the index again if another program has changed it. Where it cannot be opened, what was read before
        stays, and `problem` says why.
        """
        with self._changing:
            self._refresh()

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
            before = self.recognizer
            try:
                self.recognizer = before.reopened(verify=False)  # so that a failure can be taken back
                self.recognizer.remove(i)
                self._save()
            except BaseException:
                self.recognizer = before
                raise

    def _refresh_to_write(self) -> None:
        """Raises CannotWrite if the index on the disk is not the one that is held."""
        self._refresh()
        if self.problem:
            raise CannotWrite

    def _save(self) -> None:
        try:
            self.recognizer.save(self.folder)
        except InputError as error:
            logging.warning("%s", error)
            raise CannotWrite from error

    def _refresh(self) -> None:
        mark = self._read_mark()  # before the look at the file: it may change again meanwhile
        if mark == self._mark:
            self.problem = None
            return
        try:
            if self.recognizer.has_changed_on_disk():
                self.recognizer = self.recognizer.reopened(verify=False)
                self.reopened += 1
            self.problem, self._mark = None, mark
        except InputError as error:
            if self.problem != str(error):
                logging.warning("The index has changed, and cannot be opened: %s", error)
            self.problem = str(error)

    def _read_mark(self) -> FileMark | None:
        """None for a manifest that is gone."""
        try:
            status = os.stat(self.folder / MANIFEST)
        except OSError:
            return None
        return FileMark(status.st_ino, status.st_size, status.st_mtime_ns)
