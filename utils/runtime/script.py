"""How every script runs and ends: errors as one or two lines, and meaningful exit statuses."""

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable

import torch

from model.errors import InputError
from utils.runtime import distributed
from utils.runtime.memory import keep_freed_memory
from utils.runtime.signals import EXIT_STATUS, Stopped, ignore_stop_signals, stop_signals
from utils.runtime.terminal import accept_any_text, printable, show_warnings
from utils.runtime.workers import kill_workers

WORKER_DIED = (
    "A process that reads images died, probably because memory or shared memory (/dev/shm) ran out. Use fewer "
    "--num_workers or a smaller batch."
)
OUT_OF_MEMORY = "Out of memory. Use a smaller batch or fewer --num_workers."
ANOTHER_RANK_ENDED = "another rank has ended. Its message says why."


def cli_main(main: Callable[[], None], *, when_stopped: str = "") -> None:
    """Runs a script and exits. when_stopped: what to say after a stop signal.

    Status 0; 2 for bad input or a failing file; 130 after Ctrl-C, 143 after SIGTERM and the other stop signals; 1 for
    any other error, whose traceback is in the run's log. No temporary files or processes are left behind.
    """
    accept_any_text()
    show_warnings()
    stop_signals.install()
    keep_freed_memory()
    try:
        status = _run(main, when_stopped)
    finally:
        kill_workers()
    if status and distributed.world_size() > 1:
        # Without finalizers, which may wait for the other ranks. These learn of the end as their connections close.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _run(main: Callable[[], None], when_stopped: str) -> int:
    try:
        main()
        distributed.shutdown()
        stop_signals.raise_lost()
        ignore_stop_signals()  # nothing is left to be stopped
    except SystemExit:  # of argparse
        raise
    except BaseException as error:
        ignore_stop_signals()  # torchrun and impatient users repeat them
        with contextlib.suppress(OSError):  # the disk may be full, and a message follows on the terminal
            logging.debug("The script ended with:", exc_info=error)
        stopped = _find_stopped(error)
        if stopped is None:
            return _report(error)
        if stopped == signal.SIGINT or when_stopped:
            print("; ".join(filter(None, ["interrupted", when_stopped])), file=sys.stderr)
        return EXIT_STATUS[signal.Signals(stopped)]
    return 0


def _find_stopped(error: BaseException) -> int | None:
    """The number of the stop signal that an error is due to, or None.

    Extension modules replace Stopped with an ImportError while they load, and the end of another rank, which the signal
    stopped too, is an error of the connection.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Stopped):
        cause = cause.__context__
    if cause is not None:
        return cause.signal
    return stop_signals.received if stop_signals.is_lost or _is_end_of_another_rank(error) else None


def _is_end_of_another_rank(error: BaseException) -> bool:
    lost = ("by peer", "Connection was likely closed", "Broken pipe")
    return distributed.world_size() > 1 and isinstance(error, RuntimeError) and any(text in str(error) for text in lost)


def _report(error: BaseException) -> int:
    """Prints the error in a line or two. The traceback of an unknown one is in the log, or printed without a log."""
    is_input_error = isinstance(error, (InputError, OSError))
    known = str(error) if is_input_error else _explain(error)
    message = known or f"{type(error).__name__}: {error}"
    if distributed.world_size() > 1:
        message = f"rank {distributed.rank()}: {message}"
    log = _log_file()
    if known is None and log is None:
        traceback.print_exception(error)
    print(f"error: {printable(message)}", file=sys.stderr)
    if not is_input_error and log is not None:
        print(f"The traceback is in {log}.", file=sys.stderr)
    return 2 if is_input_error else 1


def _explain(error: BaseException) -> str | None:
    """A message for an error of the libraries whose own says too little; None for others."""
    text = str(error)
    if "Original Traceback (most recent call last)" in text:  # of a process that reads images
        text = text.strip().splitlines()[-1]
        return f"{WORKER_DIED} {text}" if "shared memory" in text else f"A process that reads images failed: {text}"
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid"):
        return f"{WORKER_DIED} {text}"
    shortage = ("allocate memory", "start new thread")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in text for words in shortage):
        return f"{OUT_OF_MEMORY} {text}".rstrip()
    return ANOTHER_RANK_ENDED if _is_end_of_another_rank(error) else None


def _log_file() -> str | None:
    """The run's log.txt; None before a run starts."""
    handlers = logging.getLogger().handlers
    paths = (handler.baseFilename for handler in handlers if isinstance(handler, logging.FileHandler))
    return next((os.path.relpath(path) for path in paths), None)
