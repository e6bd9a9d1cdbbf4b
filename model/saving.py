"""Files and folders that are either complete or absent, and locks of folders that one process writes to."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import InputError
from .files import new_temporary, open_regular, require_regular, temporary_path, try_lock

TEXT_OPTIONS: dict[str, Any] = {
    "newline": "",
    "encoding": "utf-8",
    "errors": "surrogateescape",
}  # file names may not be UTF-8
LOCK = ".lock"  # the file in a folder that is locked
LOCK_SECONDS = 15  # worker processes of a killed process hold its locks for some seconds
REQUIRE_LOCKS = "SELAVPR_REQUIRE_LOCKS"  # set to 1: a folder that cannot be locked is refused
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


@contextmanager
def new_file(path: Path, mode: str = "w", *, new: bool = False) -> Iterator[IO]:
    """Opens a temporary file beside `path`, and moves it to `path` if the block succeeds; otherwise removes it.

    new: `path` must not exist by then. Raises InputError, which names the file, if it cannot be written (disk full, no
    permission), or is a link, a pipe, a device or a folder.
    """
    with input_errors(path):
        require_regular(path)
        temporary, descriptor = new_temporary(path, lambda name: open_regular(name, NEW))
        try:
            options = {} if "b" in mode else TEXT_OPTIONS
            with open(temporary, mode, opener=lambda *_: descriptor, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if os.name == "nt":  # an open file cannot be moved there; elsewhere the lock lasts until it is moved
                    file.close()
                (_move_to_new if new else os.replace)(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


class NewFolder:
    """A temporary folder beside `path`, which `finish` moves there and `discard` removes. The constructor and `finish`
    raise OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.temporary, self._descriptor = new_temporary(path, _make_folder)
        _held.add(self._descriptor)

    def finish(self) -> None:
        """Moves the folder to its place, which must not exist, or be an empty folder."""
        os.replace(self.temporary, self._path)

    def discard(self) -> None:
        """Removes the folder unless it is in its place."""
        if self.temporary.exists():
            # Under another name first: a worker that has not ended yet can then add no files.
            shutil.rmtree(self.temporary.rename(temporary_path(self._path)))
        _held.remove(self._descriptor)
        os.close(self._descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Creates a temporary folder beside `path`, and moves it to `path` if the block succeeds; otherwise removes it.

    Raises InputError, which names the folder, if it cannot be written.
    """
    with input_errors(path):
        folder = NewFolder(path)
        try:
            yield folder.temporary
            folder.finish()
        finally:
            folder.discard()


_held = set[int]()  # descriptors that hold the locks of temporary folders


def _make_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path if os.name != "nt" else os.devnull, os.O_RDONLY)


def _release_held() -> None:
    """In a process that was forked: it must not keep the locks, and so the leftovers, of one that is killed."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_held)


def _move_to_new(temporary: Path, path: Path) -> None:
    """Moves a file to a name that does not exist, in one step. Raises InputError if it does."""
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: the name is claimed first
            os.close(os.open(path, NEW))
            os.replace(temporary, path)
    except FileExistsError:
        raise InputError(f"{path} exists already. Delete it, or choose another name.") from None


@contextmanager
def input_errors(path: Path) -> Iterator[None]:
    """Turns the OSErrors of a block that writes a file or folder into InputErrors that name it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error


class FolderLock:
    """The lock of a folder, which other processes cannot get until `release`, or until this process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Ends the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    __del__ = release


def lock_folder(folder: Path) -> FolderLock:
    """Locks out other processes until the lock is released.

    Where the file system has no locks (some network disks and containers) it only warns or, if the environment variable
    SELAVPR_REQUIRE_LOCKS is 1, raises InputError. Raises InputError, too, if another process holds the lock, or
    it cannot be written.
    """
    try:
        lock = FolderLock(descriptor := open_regular(folder / LOCK, os.O_RDWR | os.O_CREAT))
        deadline = time.monotonic() + LOCK_SECONDS
        while (is_locked := try_lock(descriptor)) is False:
            if time.monotonic() > deadline:
                raise InputError(f"Another process is writing to {folder}. Wait for it to finish, or stop it.")
            time.sleep(0.05)
    except OSError as error:
        raise InputError(f"Cannot write to the folder {folder}: {error.strerror or error}.") from error
    if is_locked is None:
        problem = f"The file system of {folder} has no locks, so a second process that writes there is not noticed."
        if os.environ.get(REQUIRE_LOCKS) == "1":
            raise InputError(f"{problem} Choose a folder on another disk, or unset {REQUIRE_LOCKS}.")
        logging.warning("%s Start only one. %s=1 refuses such folders.", problem, REQUIRE_LOCKS)
    return lock
