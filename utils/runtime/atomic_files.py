"""Files and folders that are either complete or absent, also after a stop signal."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from model.errors import InputError
from model.files import require_regular
from model.saving import NewFolder, input_errors, new_file
from utils.runtime.signals import stop_signals


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", *, interruptible: bool = False, new: bool = False) -> Iterator[IO]:
    """`model.saving.new_file`, in which a stop signal takes effect afterwards; with `interruptible`, for blocks that
    take long, at once.
    """
    with (
        contextlib.nullcontext() if interruptible else stop_signals.delayed(),
        new_file(Path(path), mode, new=new) as f,
    ):
        yield f


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Creates a temporary folder beside `path`, and moves it to `path` if the block succeeds; otherwise removes it.

    A stop signal takes effect at once, but does not disturb the removal. Raises InputError, which names the folder, if
    it cannot be written.
    """
    folder: NewFolder | None = None
    with input_errors(path):
        try:
            with stop_signals.delayed():
                folder = NewFolder(path)
            yield folder.temporary
            folder.finish()
        finally:
            with stop_signals.delayed():
                if folder:
                    folder.discard()


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


def require_new_folder(path: Path) -> None:
    """Raises InputError unless `atomic_folder` can create this folder: it may exist if it is empty."""
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists and is not an empty folder. Name a new one.")


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
