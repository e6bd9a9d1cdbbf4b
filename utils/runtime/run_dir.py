"""The folder of a run: log, settings, results."""

import contextlib
import copy
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import open_regular, remove_leftovers
from model.saving import lock_folder
from utils.runtime import distributed
from utils.runtime.atomic_files import atomic_write, make_folder
from utils.runtime.signals import stop_signals
from utils.runtime.terminal import PrintableFormatter

LIBRARIES = {
    "torch": "torch",
    "numpy": "numpy",
    "faiss": "faiss",
    "sklearn": "scikit-learn",
    "PIL": "pillow",
}
LOG = "log.txt"


class RunDir:
    """The folder `logs/<save_dir>/<time>/` with `log.txt`: terminal output and tracebacks.

    A resumed run continues in its existing `folder`. A run that can be resumed locks out other processes and removes
    what a killed one left. Only the main rank writes. Attributes: folder, the same on every rank; flags; seconds,
    {phase: seconds}. Raises InputError if the folder cannot be created, or another process holds its lock.
    """

    def __init__(
        self, save_dir: str, flags: dict[str, Any], *, folder: Path | None = None, resumable: bool = False
    ) -> None:
        self.flags = flags
        self.seconds: dict[str, float] = {}
        self.folder = distributed.run_on_main(
            lambda: self._open(folder or _new_folder(Path("logs") / save_dir), resumable, is_new=folder is None)
        )

    def _open(self, folder: Path, resumable: bool, is_new: bool) -> Path:
        if resumable:
            self._lock = lock_folder(folder)
        _start_logging(folder / LOG)
        logging.info("Run folder: %s", folder)
        logging.debug("Command: %s", " ".join(sys.argv))
        logging.debug("Flags: %s", self.flags)
        logging.debug("Versions: %s", library_versions())  # also loads the libraries before anything is timed
        if resumable:  # a run that was killed before it could be resumed is followed by a new one beside it
            for log in sorted(folder.parent.glob(f"*/{LOG}")) if is_new else [folder / LOG]:
                remove_leftovers(log.parent)
        return folder

    def subfolder(self, name: str) -> "RunDir":
        """The folder `name` in the run's, with its own seconds and the run's log. Raises InputError as for a run."""
        part = copy.copy(self)
        part.seconds = {}
        part.folder = self.folder / name.replace(os.sep, "_")
        distributed.run_on_main(lambda: make_folder(part.folder))
        return part

    def untimed(self) -> "RunDir":
        """The run, for phases whose seconds do not count among its own."""
        part = copy.copy(self)
        part.seconds = {}
        return part

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures the seconds that the block takes; those of several blocks of one name add up."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - start, 3)

    def write_json(self, name: str, content: dict[str, Any]) -> dict[str, Any]:
        """Writes and returns the content, then seconds per phase, arguments and library versions, as JSON."""
        content = {**content, "seconds": self.seconds, "arguments": self.flags, "versions": library_versions()}
        with atomic_write(self.folder / name) as file:
            json.dump(content, file, indent=2)
        return content


class _StrictFileHandler(logging.FileHandler):
    """A log that cannot be written ends the run, like any other file. It is not written through a link."""

    def _open(self) -> Any:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        return open(open_regular(self.baseFilename, flags), self.mode, encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        """Raises the error that logging would only print."""
        raise  # noqa: PLE0704 - called while the error is being handled


def library_versions() -> dict[str, str]:
    """{library: version} of Python and the libraries, which this loads, except torchvision: that would take seconds.

    Read from the modules, because the name of the package that provides faiss depends on where it came from.
    """
    with stop_signals.delayed():  # a library that is loading may catch the exception of a signal
        versions = {name: importlib.import_module(module).__version__ for module, name in LIBRARIES.items()}
    torchvision = importlib.metadata.version("torchvision")
    return {"python": platform.python_version(), "torchvision": torchvision, **versions}


def _new_folder(parent: Path) -> Path:
    started = time.strftime("%Y-%m-%d_%H-%M-%S")
    for name in (started, *(f"{started}_{i}" for i in range(2, 1000))):
        with contextlib.suppress(FileExistsError):  # another run started in the same second
            return make_folder(parent / name)
    raise InputError(f"Cannot create the folder {parent / started}: a thousand folders of that name exist.")


def _start_logging(path: Path) -> None:
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setLevel(logging.INFO)
    terminal.setFormatter(PrintableFormatter("%(message)s"))
    file = _StrictFileHandler(path, encoding="utf-8")
    file.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG, handlers=[terminal, file], force=True)
    for library in ("PIL", "matplotlib", "faiss", "filelock"):
        logging.getLogger(library).setLevel(logging.WARNING)
