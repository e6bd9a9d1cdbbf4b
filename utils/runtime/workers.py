"""The processes that read or draw images: how they start, fail and end."""

import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
import time

from utils.runtime.signals import ignore_stop_signals


def leave_stopping_to_the_main_process() -> None:
    """The initializer of a pool's processes: they ignore stop signals, and end soon after the main process has ended.

    Ctrl-C reaches every process of a terminal.
    """
    ignore_stop_signals()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def start_worker(worker: int = 0) -> None:
    """The worker_init_fn of a DataLoader.

    A batch that cannot be sent, without memory or threads, ends the process. By itself it would drop the batch, for
    which the main process would wait forever.
    """
    leave_stopping_to_the_main_process()
    # A hook of Python for subclasses, called in the thread that sends. The queue of a DataLoader cannot be subclassed.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_process)  # type: ignore[attr-defined]


def kill_workers() -> None:
    """Ends the worker processes. They ignore stop signals, and exiting would wait for them forever."""
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises an error for a killed worker
    for process in multiprocessing.active_children():
        process.kill()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _end_process(error: Exception, batch: object) -> None:
    print(f"A process that reads images cannot send a batch: {type(error).__name__}: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
