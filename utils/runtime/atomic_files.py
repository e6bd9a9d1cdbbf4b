"""Files that are either complete or absent, in folders that one process writes to."""

import contextlib
import glob
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import filelock  # PyTorch requires it
import torch

from model.errors import InputError
from utils.runtime.signals import stop_signals

TEXT_OPTIONS: dict[str, Any] = {
    "newline": "",
    "encoding": "utf-8",
    "errors": "surrogateescape",
}  # file names may not be UTF-8
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # the names that _temporary gives
LOCK = ".lock"  # the file in a folder that is locked
LOCK_SECONDS = 15  # worker processes of a killed process hold its locks for some seconds


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", *, interruptible: bool = False) -> Iterator[IO]:
    """Opens a temporary file beside `path`, and moves it to `path` if the block succeeds; otherwise removes it.

    A stop signal takes effect afterwards; with `interruptible`, for blocks that take long, at once. Raises InputError,
    which names the file, if it cannot be written (disk full, no permission).
    """
    path = Path(path)
    temporary = _temporary(path)
    with contextlib.nullcontext() if interruptible else stop_signals.delayed():
        try:
            with open(temporary, mode, **({} if "b" in mode else TEXT_OPTIONS)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Creates a temporary folder beside `path`, and moves it to `path` if the block succeeds; otherwise removes it.

    A stop signal takes effect at once, but does not disturb the removal. Raises InputError, which names the folder, if
    it cannot be written.
    """
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        if temporary.exists():
            with stop_signals.delayed():
                # Under another name first: a worker that has not ended yet can then add no files.
                shutil.rmtree(temporary.rename(_temporary(path.with_name(f"{path.name}.removed"))))


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def save_tensors(path: Path, content: dict) -> None:
    """torch.save through a temporary file. Raises InputError if the file cannot be written."""
    with atomic_write(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # PyTorch's zip writer hides the system's error behind one of its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def remove_leftovers(folder: Path, *, name: str | None = None) -> None:
    """Removes the temporary files that a killed process left in a folder. The caller holds the folder's lock.

    name: removes only those of this file or folder. It needs no lock: a process that still runs keeps its own.
    """
    pattern = f".{glob.escape(name)}.*.tmp" if name else "*"
    for path in sorted(path for path in folder.glob(pattern) if TEMPORARY.fullmatch(path.name)):
        if name and _is_running(int(path.name.split(".")[-2])):
            continue
        logging.info("Removing %s (%.1f MB), left by a process that was killed.", path, path.stat().st_size / 1e6)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_running(process: int) -> bool:
    """Whether there is a process of this number on this machine. On Windows always: it cannot be asked there."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def lock_folder(folder: Path) -> filelock.BaseFileLock:
    """Locks out other processes until the lock is released.

    Raises InputError if another one holds the lock, or if it cannot be written.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        raise InputError(f"Another process is writing to {folder}. Wait for it to finish, or stop it.") from None
    except OSError as error:
        raise InputError(f"Cannot write to the folder {folder}: {error.strerror or error}.") from error
    return lock


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
