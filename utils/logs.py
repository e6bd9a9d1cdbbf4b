"""A run: its folder, its log, its timings; and how a script ends."""
import contextlib
import json
import logging
import os
import platform
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from model.errors import InputError
from utils import distributed
from utils.files import atomic_write, make_folder
from utils.signals import EXIT_STATUS, Stopped

LIBRARIES = ("torch", "torchvision", "numpy", "faiss-cpu", "scikit-learn", "pillow")


class Run:
    """The folder `logs/<save_dir>/<time>/`, with `log.txt` (what the terminal shows, and tracebacks) and what the script adds.

    A run that goes on in its `folder` gets no new one. Attributes: folder; arguments, plain values by name; seconds, {phase: seconds}.
    Raises InputError where the folder cannot be made.
    """

    def __init__(self, arguments: Namespace, folder: Path | None = None) -> None:
        self.arguments = plain_values(arguments)
        self.folder = folder or _new_folder(Path("logs") / arguments.save_dir)
        self.seconds: dict[str, float] = {}
        _start_logging(self.folder / "log.txt")
        logging.info("Run folder: %s", self.folder)
        logging.debug("Command: %s", " ".join(sys.argv))
        logging.debug("Arguments: %s", self.arguments)

    def log(self, message: object) -> None:
        """Prints a message and writes it to the log."""
        logging.info("%s", message)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures the seconds that the block takes."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)

    def write_json(self, name: str, content: dict) -> None:
        """Writes a JSON file into the folder: the content, then seconds per phase, arguments and versions."""
        versions = {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}}
        content = {**content, "seconds": self.seconds, "arguments": self.arguments, "versions": versions}
        with atomic_write(self.folder / name) as file:
            json.dump(content, file, indent=2)


class _StrictFileHandler(logging.FileHandler):
    """A log that cannot be written stops the run, as any other file does."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raises the error that logging would only have printed."""
        raise


def plain_values(arguments: Namespace) -> dict[str, str | int | float | bool | list | None]:
    """Arguments as JSON and checkpoints can hold them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's main function. Bad input and failing files end it with one or two lines and status 2, Ctrl-C with 130, SIGTERM with 143,
    with no temporary files left."""
    if "RANK" not in os.environ:  # a rank of several may be waiting for others, where no handler of Python's would run
        signal.signal(signal.SIGTERM, _stop)
    status = _status(main)
    # Only here is the error freed, and with it the frames that it went through: a loader in one of them ends its processes now. Exit would
    # wait for them for ever.
    sys.exit(status)


def _stop(number: int, frame: object) -> None:
    raise Stopped(number)


def _status(main: Callable[[], None]) -> int:
    try:
        main()
        distributed.stop()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):  # the disk may be full: the user has been told above
            logging.debug("The script ended with:", exc_info=error)
        return 2
    except Stopped as stopped:
        return EXIT_STATUS[stopped.signal]
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _new_folder(parent: Path) -> Path:
    started = time.strftime("%Y-%m-%d_%H-%M-%S")
    for name in (started, *(f"{started}_{i}" for i in range(2, 1000))):
        with contextlib.suppress(FileExistsError):  # runs started in the same second
            return make_folder(parent / name)
    raise InputError(f"cannot make a folder {parent / started}: a thousand of its name exist")


def _start_logging(path: Path) -> None:
    terminal = logging.StreamHandler(sys.stdout)
    terminal.setLevel(logging.INFO)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    file = _StrictFileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG, handlers=[terminal, file], force=True)
    for library in ("PIL", "matplotlib"):
        logging.getLogger(library).setLevel(logging.WARNING)
