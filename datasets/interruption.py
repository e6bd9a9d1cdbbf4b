"""Stop signals, and how the commands that make datasets are stopped."""

import os
import signal
import threading
import time

EXIT_STATUS = {  # Windows has not all of them. SIGUSR1: clusters send it before they kill
    getattr(signal, name): status
    for name, status in {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143, "SIGQUIT": 143, "SIGUSR1": 143}.items()
    if hasattr(signal, name)
}


class Terminated(KeyboardInterrupt):
    """A stop signal arrived. Attribute: signal, its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.signal = number


def raise_on_stop_signals() -> None:
    """Makes the first stop signal raise Terminated. Those that are ignored stay so (nohup ignores SIGHUP)."""
    for number in EXIT_STATUS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise_terminated)


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
    for other in EXIT_STATUS:  # so that nothing interrupts the cleanup
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(number)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
