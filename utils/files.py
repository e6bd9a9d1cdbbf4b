"""Files that are whole or not there."""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from model.errors import InputError

TEXT = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # file names may hold bytes that are no UTF-8


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path` and moves it there when the block ends well; else removes it.

    Raises InputError where it cannot be written (disk full, no permission), naming the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, **({} if "b" in mode else TEXT)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path, exist_ok: bool = False) -> Path:
    """Makes a folder and its parents. Raises InputError where it may not."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror or error}") from error
    return path
