"""Stop signals: Ctrl-C, SIGTERM and SIGUSR1, which clusters send before they kill. Training stops once it has saved."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    EXIT_STATUS[signal.SIGUSR1] = 143


class Stopped(BaseException):
    """A stop signal arrived. Attribute: signal, its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.signal = number


class StopSignals:
    """Catches stop signals and remembers the first. A second Ctrl-C ends the process at once.

    Attribute: received, the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interruptible = False
        for number in EXIT_STATUS:
            signal.signal(number, self._handle)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within the block, a stop signal raises Stopped, including one that arrived before."""
        self._interruptible = True
        try:
            if self.received is not None:
                raise Stopped(self.received)
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: object) -> None:
        if self._interruptible:
            self.received = self.received or number
            raise Stopped(self.received)
        if self.received == number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.received = self.received or number
        if number == signal.SIGINT:  # os.write, because print is not safe in a signal handler
            os.write(2, b"\nStopping after this step. Press Ctrl-C again to stop at once, without saving.\n")


def repeat_swallowed_signals() -> None:
    """Repeats a stop signal, or Ctrl-C, whose exception was lost.

    Python discards exceptions raised inside a finalizer or a fork hook, where a signal may well arrive: DataLoader
    forks its workers.
    """

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if isinstance(error, (Stopped, KeyboardInterrupt)):
            # Later and from another thread, because a signal raised here would be lost in the same place.
            number = error.signal if isinstance(error, Stopped) else signal.SIGINT
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


def ignore_stop_signals(worker: int = 0) -> None:
    """For worker processes, which the main process ends: Ctrl-C reaches every process of the terminal."""
    for number in EXIT_STATUS:
        signal.signal(number, signal.SIG_IGN)
