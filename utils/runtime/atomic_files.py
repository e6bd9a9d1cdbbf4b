"""Files that are either complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from model.errors import InputError

TEXT_OPTIONS: dict[str, Any] = {
    "newline": "",
    "encoding": "utf-8",
    "errors": "surrogateescape",
}  # file names may not be UTF-8


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path`, and moves it to `path` if the block succeeds; otherwise removes it.

    Raises InputError, which names the file, if it cannot be written (disk full, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def save_tensors(path: Path, content: dict) -> None:
    """torch.save through a temporary file. Raises InputError if the file cannot be written."""
    try:
        with atomic_write(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # PyTorch's zip writer reports a full disk this way
        raise InputError(f"Cannot write {path}: {error}") from error


def make_folder(path: Path, exist_ok: bool = False) -> Path:
    """Creates a folder and its parents. Raises InputError, or FileExistsError if it exists and must not."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise InputError(f"Cannot create the folder {path}: {error.strerror or error}.") from error
    return path
