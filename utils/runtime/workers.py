"""The processes that read images for a DataLoader: how they start, fail and end."""

import multiprocessing
import multiprocessing.queues
import os
import signal
import sys

from utils.runtime.signals import ignore_stop_signals


def start_worker(worker: int = 0) -> None:
    """A DataLoader's worker_init_fn. Stop signals are left to the main process: Ctrl-C reaches every process.

    A batch that cannot be sent, without memory or threads, ends the process. By itself it would drop the batch, for
    which the main process would wait forever.
    """
    ignore_stop_signals()
    # A hook of Python for subclasses, called in the thread that sends. The queue of a DataLoader cannot be subclassed.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_process)  # type: ignore[attr-defined]


def kill_workers() -> None:
    """Ends the worker processes. They ignore stop signals, and exiting would wait for them forever."""
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises an error for a killed worker
    for process in multiprocessing.active_children():
        process.kill()


def _end_process(error: Exception, batch: object) -> None:
    print(f"A process that reads images cannot send a batch: {type(error).__name__}: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
