"""Stop signals, and how the commands that make datasets are stopped."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

EXIT_STATUS = {  # Windows has not all of them. SIGUSR1: clusters send it before they kill
    getattr(signal, name): status
    for name, status in {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143, "SIGQUIT": 143, "SIGUSR1": 143}.items()
    if hasattr(signal, name)
}


_was_raised = False


class Terminated(KeyboardInterrupt):
    """A stop signal arrived. Attribute: signal, its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.signal = number


def run_command(main: Callable[[], int]) -> None:
    """Runs a command that makes a dataset, and exits with its status. The first stop signal raises Terminated in it.

    Signals that are ignored stay so (nohup ignores SIGHUP).
    """
    for number in EXIT_STATUS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise_terminated)
    repeat_if_lost(Terminated, _repeat)
    try:
        status = main()
    except KeyboardInterrupt as error:  # before it could say anything
        status = exit_status(error)
    for number in EXIT_STATUS:  # nothing is left to be stopped
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def repeat_if_lost(kind: type[BaseException], repeat: Callable[[Any], None]) -> None:
    """Calls `repeat` with an exception of this kind that was lost, soon, and from another thread.

    Python discards exceptions raised inside a finalizer or a fork hook, where a signal may well arrive: processes that
    read or draw images are forked. A signal raised there again would be lost too.
    """

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, kind):
            threading.Timer(0.05, repeat, (unraisable.exc_value,)).start()
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


def leave_stopping_to_the_main_process() -> None:
    """For worker processes: ignores stop signals, and ends the process soon after the main process has ended."""
    for number in EXIT_STATUS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def is_running(process: int) -> bool:
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


def exit_status(interruption: KeyboardInterrupt) -> int:
    """143 for signals other than Ctrl-C, 130 after that."""
    return EXIT_STATUS[signal.Signals(interruption.signal)] if isinstance(interruption, Terminated) else 130


def _raise_terminated(number: int, frame: object) -> None:
    global _was_raised
    if not _was_raised:  # nothing interrupts the cleanup
        _was_raised = True
        raise Terminated(number)


def _repeat(lost: Terminated) -> None:
    global _was_raised
    _was_raised = False
    os.kill(os.getpid(), lost.signal)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
