"""Ctrl-C, SIGTERM and SIGUSR1 (clusters send them before they kill) ask a training run to stop; it does so where nothing is lost."""
import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


class Stopped(BaseException):
    """A stop signal, whose number it holds, came where a run may be broken off."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.signal = number


class StopSignals:
    """Notes the first stop signal, from its making on; a second Ctrl-C ends the process at once.

    Attribute: received, the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._break_off = False
        for number in EXIT_STATUS:
            signal.signal(number, self._note)

    @contextmanager
    def break_off(self) -> Iterator[None]:
        """In the block a stop signal raises Stopped; so does one that came before."""
        self._break_off = True
        try:
            if self.received is not None:
                raise Stopped(self.received)
            yield
        finally:
            self._break_off = False

    def _note(self, number: int, frame: object) -> None:
        if self.received == number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        if self.received is None:
            self.received = number
        if self._break_off:
            raise Stopped(self.received)


def ignore_stop_signals(worker: int = 0) -> None:
    """Lets a worker process outlive them (Ctrl-C reaches every process of the terminal): the main process ends it."""
    for number in EXIT_STATUS:
        signal.signal(number, signal.SIG_IGN)
