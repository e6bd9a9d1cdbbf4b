"""How every script runs and ends: errors as one or two lines, and meaningful exit statuses."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

from model.errors import InputError
from model.versions import check_torch_version
from utils.runtime import distributed
from utils.runtime.memory import keep_freed_memory
from utils.runtime.signals import EXIT_STATUS, Stopped, repeat_swallowed_signals


def cli_main(main: Callable[[], None]) -> None:
    """Runs a script and exits: status 0, 2 for bad input or a failing file, 130 after Ctrl-C, 143 after SIGTERM.

    No temporary files are left behind.
    """
    if "RANK" not in os.environ:  # under torchrun Python's handlers do not run while a rank waits in a collective
        signal.signal(signal.SIGTERM, _raise_stopped)
    repeat_swallowed_signals()
    keep_freed_memory()
    try:
        status = _run(main)
    finally:
        _kill_workers()
    sys.exit(status)


def _run(main: Callable[[], None]) -> int:
    try:
        check_torch_version()
        main()
        distributed.shutdown()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):  # the disk may be full, and the message is on the terminal already
            logging.debug("The script ended with:", exc_info=error)
        return 2
    except BaseException as error:
        interruption = _find_interruption(error)
        if interruption is None:
            raise
        if isinstance(interruption, Stopped):
            return EXIT_STATUS[signal.Signals(interruption.signal)]
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _find_interruption(error: BaseException | None) -> Stopped | KeyboardInterrupt | None:
    """The interruption among an error and its causes. Extension modules turn it into an ImportError while they load."""
    while error is not None and not isinstance(error, (Stopped, KeyboardInterrupt)):
        error = error.__context__
    return error


def _kill_workers() -> None:
    """Ends the processes that read images. They ignore stop signals, and exiting would wait for them forever."""
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises an error for a killed worker
    for process in multiprocessing.active_children():
        process.kill()


def _raise_stopped(number: int, frame: object) -> None:
    raise Stopped(number)
