"""Stop signals: what ends a script early, and when it may."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS = {  # Windows has not all of them. SIGUSR1: clusters send it before they kill
    getattr(signal, name): status
    for name, status in {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143, "SIGQUIT": 143, "SIGUSR1": 143}.items()
    if hasattr(signal, name)
}
CLEANUP_SECONDS = 5.0


class Stopped(BaseException):
    """A stop signal arrived. Attribute: signal, its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.signal = number


class StopSignals:
    """Raises Stopped when a stop signal arrives: at once, or later where the process must not be interrupted.

    Files are written in `delayed` blocks. Training is deferred, so that a step is finished and saved, except in
    `interruptible` blocks; a second Ctrl-C does not wait for the step. While Stopped ends the script, further signals
    do not disturb its cleanup for CLEANUP_SECONDS. Attribute: received, the number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._ctrl_c = 0
        self._delays = 0
        self._deferred = False
        self._raised = -math.inf  # when, on the monotonic clock
        self._process: int | None = None

    def install(self) -> None:
        """Handles the stop signals of this process. A SIGHUP that nohup ignores stays ignored."""
        self._process = os.getpid()
        sys.unraisablehook = self._repeat_if_lost
        for number in EXIT_STATUS:
            if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                continue
            signal.signal(number, self._handle)

    def defer(self) -> None:
        """From now on, signals take effect in `interruptible` blocks only."""
        self._deferred = True

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block in which a deferred signal takes effect, including one that arrived before."""
        deferred, self._deferred = self._deferred, False
        try:
            self._raise_received()
            yield
        finally:
            self._deferred = deferred

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """A short block that no signal interrupts. One that arrives takes effect at its end, unless it fails."""
        self._delays += 1
        try:
            yield
        finally:
            self._delays -= 1
        self._raise_received()

    @contextmanager
    def left_to_the_system(self) -> Iterator[None]:
        """A block in which a signal ends the process without a trace: Python's handlers would wait for its end."""
        handlers = {number: signal.getsignal(number) for number in EXIT_STATUS}
        for number, handler in handlers.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def repeat(self, lost: Stopped) -> None:
        """Sends this process a signal again whose exception was lost."""
        self._raised = -math.inf
        os.kill(os.getpid(), lost.signal)

    def _repeat_if_lost(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """The sys.unraisablehook: Python discards exceptions that are raised inside a finalizer or a fork hook, where a
        signal may well arrive, since processes that read or draw images are forked.
        """
        if isinstance(unraisable.exc_value, Stopped):
            # Later, and from another thread: raised here, it would be lost again.
            threading.Timer(0.05, self.repeat, (unraisable.exc_value,)).start()
        else:
            sys.__unraisablehook__(unraisable)

    def _raise_received(self) -> None:
        is_forced = self._ctrl_c > 1
        if self.received is None or self._delays or (self._deferred and not is_forced):
            return
        if time.monotonic() - self._raised > CLEANUP_SECONDS:
            self._raised = time.monotonic()
            raise Stopped(self.received)

    def _handle(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a worker that was forked just now
            return
        self.received = self.received or number
        # torchrun repeats the Ctrl-C that the terminal sent to all processes, so the second is not the user's.
        if number == signal.SIGINT and "RANK" not in os.environ:
            self._ctrl_c += 1
            if self._deferred and self._ctrl_c == 1:  # os.write, because print is not safe in a signal handler
                os.write(2, b"\nStopping after this step. Press Ctrl-C again to stop at once, without saving.\n")
        self._raise_received()


stop_signals = StopSignals()  # of this process


def ignore_stop_signals() -> None:
    """For a script that is ending, and for worker processes, which the main process ends."""
    for number in EXIT_STATUS:
        signal.signal(number, signal.SIG_IGN)
