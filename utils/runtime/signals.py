"""Stop signals: what ends a script early, and when it may."""

import math
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS = {  # Windows has not all of them. SIGUSR1: clusters send it before they kill
    getattr(signal, name): status
    for name, status in {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143, "SIGQUIT": 143, "SIGUSR1": 143}.items()
    if hasattr(signal, name)
}
CLEANUP_SECONDS = 5.0
STOPPING = "Stopping after this step. Press Ctrl-C again to stop at once, without saving."


class Stopped(BaseException):
    """A stop signal arrived. Attribute: signal, its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.signal = number


class StopSignals:
    """Raises Stopped when a stop signal arrives: at once, or later where the process must not be interrupted.

    Files are written in `delayed` blocks. Training is deferred, so that a step is finished and saved, except in
    `interruptible` blocks; a second Ctrl-C does not wait for the step. While Stopped ends the script, further signals
    do not disturb its cleanup for CLEANUP_SECONDS. Python and its extension modules discard exceptions that are raised
    in a finalizer, a fork hook or a library that is loading: a Stopped that vanishes before the script has ended is
    raised again. Attributes: received, the number of the first signal, or None; is_lost, whether a Stopped has vanished
    and was not raised again yet.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_lost = False
        self._ctrl_c = 0
        self._delays = 0
        self._deferred, self._notice = False, STOPPING
        self._raised = -math.inf  # when, on the monotonic clock
        self._process: int | None = None
        self._last: weakref.ref[Stopped] | None = None

    def install(self) -> None:
        """Handles the stop signals of this process. A SIGHUP that nohup ignores stays ignored."""
        self._process = os.getpid()
        sys.unraisablehook = _print_unless_stopped
        threading.excepthook = _print_of_thread_unless_stopped
        for number in EXIT_STATUS:
            if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                continue
            signal.signal(number, self._handle)

    def defer(self, notice: str = STOPPING) -> None:
        """From now on, signals take effect in `interruptible` blocks only. notice: what the first Ctrl-C prints."""
        self._deferred, self._notice = True, notice

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

    def raise_lost(self) -> None:
        """Raises Stopped again if it has vanished."""
        if self.is_lost:
            self._raise_received()

    def _note_loss(self, _: object) -> None:
        """Called when a Stopped is freed, wherever that may be: the signal is sent again after a moment, from another
        thread, because an exception raised here would be lost, too.
        """
        if os.getpid() == self._process:  # not in a worker that was forked with the exception
            self.is_lost = True
            repeat = threading.Timer(0.05, self._send_again)
            repeat.daemon = True
            repeat.start()

    def _send_again(self) -> None:
        if self.is_lost and self.received and signal.getsignal(self.received) == self._handle:
            os.kill(os.getpid(), self.received)

    def _raise_received(self) -> None:
        is_forced = self._ctrl_c > 1
        if self.received is None or self._delays or (self._deferred and not is_forced):
            return
        if self.is_lost or time.monotonic() - self._raised > CLEANUP_SECONDS:
            self.is_lost = False
            self._raised = time.monotonic()
            stopped = Stopped(self.received)
            self._last = weakref.ref(stopped, self._note_loss)
            try:
                raise stopped
            finally:
                del stopped  # its traceback knows this frame: a cycle would keep it alive

    def _handle(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a worker that was forked just now
            return
        self.received = self.received or number
        # torchrun repeats the Ctrl-C that the terminal sent to all processes, so the second is not the user's.
        if number == signal.SIGINT and "RANK" not in os.environ:
            self._ctrl_c += 1
            if self._deferred and self._ctrl_c == 1:  # os.write, because print is not safe in a signal handler
                os.write(2, f"\n{self._notice}\n".encode())
        self._raise_received()


def _print_unless_stopped(unraisable: "sys.UnraisableHookArgs") -> None:
    """The sys.unraisablehook: says nothing of a Stopped, which is raised again, nor of what finalizers that meet a
    script in the middle of something, such as DataLoader's, raise after a stop signal.
    """
    if stop_signals.received is None and not isinstance(unraisable.exc_value, Stopped):
        sys.__unraisablehook__(unraisable)


def _print_of_thread_unless_stopped(failed: "threading.ExceptHookArgs") -> None:
    """The threading.excepthook: as for finalizers."""
    if stop_signals.received is None:
        threading.__excepthook__(failed)


stop_signals = StopSignals()  # of this process


def ignore_stop_signals() -> None:
    """For a script that is ending, and for worker processes, which the main process ends."""
    for number in EXIT_STATUS:
        signal.signal(number, signal.SIG_IGN)
