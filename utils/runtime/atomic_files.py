"""Files that are either complete or absent, in folders that one process writes to."""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from model.errors import InputError
from model.files import new_temporary, open_regular, require_regular, temporary_path, try_lock
from utils.runtime.signals import stop_signals

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
def atomic_write(path: str | Path, mode: str = "w", *, interruptible: bool = False, new: bool = False) -> Iterator[IO]:
    """Opens a temporary file beside `path`, and moves it to `path` if the block succeeds; otherwise removes it.

    A stop signal takes effect afterwards; with `interruptible`, for blocks that take long, at once. new: `path` must
    not exist by then. Raises InputError, which names the file, if it cannot be written (disk full, no permission), or
    is a link, a pipe, a device or a folder.
    """
    path = Path(path)
    with contextlib.nullcontext() if interruptible else stop_signals.delayed(), _input_errors(path):
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


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Creates a temporary folder beside `path`, and moves it to `path` if the block succeeds; otherwise removes it.

    A stop signal takes effect at once, but does not disturb the removal. Raises InputError, which names the folder, if
    it cannot be written.
    """
    temporary: Path | None = None
    with _input_errors(path):
        try:
            with stop_signals.delayed():
                temporary, descriptor = new_temporary(path, _make_folder)
                _held.add(descriptor)
            yield temporary
            os.replace(temporary, path)
        finally:
            with stop_signals.delayed():
                if temporary and temporary.exists():
                    # Under another name first: a worker that has not ended yet can then add no files.
                    shutil.rmtree(temporary.rename(temporary_path(path)))
                if temporary:
                    _held.remove(descriptor)
                    os.close(descriptor)


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
def _input_errors(path: Path) -> Iterator[None]:
    """Turns the OSErrors of a block that writes a file or folder into InputErrors that name it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error


def save_tensors(path: Path, content: dict) -> None:
    """torch.save through a temporary file. Raises InputError if the file cannot be written."""
    import torch  # takes seconds, which --help need not wait for

    with atomic_write(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # PyTorch's zip writer hides the system's error behind one of its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


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


def check_output(path: Path, *, overwrite: bool | None = None) -> None:
    """Raises InputError unless an output can be written to `path`: in a folder that exists, and over nothing or, with
    `overwrite`, a regular file. overwrite: None where there is no such flag.
    """
    if os.path.lexists(path) and not overwrite:
        remedy = "Delete it" if overwrite is None else "Delete it, replace it with --overwrite"
        raise InputError(f"{path} exists already. {remedy}, or choose another name.")
    require_regular(path)
    if not path.absolute().parent.is_dir():
        raise InputError(f"No folder {path.parent} for the file {path.name}. Create it.")


def make_folder(path: Path, exist_ok: bool = False) -> Path:
    """Creates a folder and its parents. Raises InputError, or FileExistsError if it exists and must not."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if not exist_ok:
            raise
        raise InputError(f"Cannot create the folder {path}: there is a file of that name.") from None
    except OSError as error:
        raise InputError(f"Cannot create the folder {path}: {error.strerror or error}.") from error
    return path
