"""How the commands that make datasets are stopped."""

import signal

OTHER_SIGNALS = [  # than Ctrl-C; Windows has not all of them
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1") if hasattr(signal, name)
]


class Terminated(KeyboardInterrupt):
    """A stop signal other than Ctrl-C arrived."""


def raise_on_stop_signals() -> None:
    """Makes stop signals raise Terminated, except those that are ignored (nohup ignores SIGHUP)."""
    for number in OTHER_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise_terminated)


def leave_stop_signals_to_the_main_process() -> None:
    """For worker processes, which the main process stops."""
    for number in (signal.SIGINT, *OTHER_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


def exit_status(interruption: KeyboardInterrupt) -> int:
    """143 for Terminated, 130 after Ctrl-C."""
    return 143 if isinstance(interruption, Terminated) else 130


def _raise_terminated(number: int, frame: object) -> None:
    raise Terminated
