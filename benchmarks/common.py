"""What the benchmarks share: two ways of doing the same measured in turn, and tables of the outcome.

A benchmark is run as `python -m benchmarks.bench_NAME [--threads N] [--json FILE] [--gpu]`.
"""
import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from model.errors import InputError
from utils.arguments import positive_int
from utils.files import atomic_write
from utils.logs import LIBRARIES


class Row(NamedTuple):
    """A line of a table: what is compared, the plain way's and our figure in `unit`, and how many times better ours is.

    target: the ratio that is wanted, None where none is. plain_mb, ours_mb: what each adds to the resident memory at its peak, None
    where it was not measured. note: a remark for below the table.
    """

    what: str
    plain: float
    ours: float
    unit: str
    ratio: float
    target: float | None = None
    plain_mb: float | None = None
    ours_mb: float | None = None
    note: str = ""


def parse_arguments(description: str, gpu_help: str | None = None, large_help: str | None = None, threads: int = 1) -> argparse.Namespace:
    """--threads (set for PyTorch here), --json, and --gpu and --large for a benchmark that says what they add.

    Raises InputError for --gpu without CUDA.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--threads", type=positive_int, default=threads, help="that PyTorch computes with")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    if gpu_help is not None:
        parser.add_argument("--gpu", action="store_true", help=gpu_help)
    if large_help is not None:
        parser.add_argument("--large", action="store_true", help=large_help)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if gpu_help is not None and args.gpu and not torch.cuda.is_available():
        raise InputError(f"--gpu needs a CUDA device, and PyTorch {torch.__version__} finds none here")
    return args


def measure(plain: Callable[[], object], ours: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each, called in turn `rounds` times (plain, ours, plain, ...) after one call each that does not count.

    In turn, so that what else the machine does falls on both alike. A function that computes on a GPU has to wait for it itself.
    """
    functions = (plain, ours)
    for function in functions:
        function()
    seconds = ([], [])
    for _ in range(rounds):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def peak_memory_mb(function: Callable[[], object], warm: bool = True) -> float:
    """MB (10^6 bytes) of resident memory that a call of the function adds at its peak, in a forked process and on one thread. Linux (glibc) only.

    With `warm` what it keeps from one call to the next (caches, the pages of libraries) does not count: it is called once before. One thread,
    because OpenMP's do not live on in a forked process; CUDA cannot be used in one either. Raises RuntimeError where the process fails.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(function, sender, warm))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError("the process that measures memory failed") from None
    finally:
        process.join()


def compare(what: str, plain: Callable[[], object], ours: Callable[[], object], rounds: int, target: float | None = None, note: str = "",
            memory: bool = True) -> Row:
    """A row of the median times of both, in milliseconds, with the peak memory of both unless `memory` is False."""
    plain_time, our_time = measure(plain, ours, rounds)
    peaks = (peak_memory_mb(plain), peak_memory_mb(ours)) if memory else (None, None)
    return Row(what, 1e3 * plain_time, 1e3 * our_time, "ms", plain_time / our_time, target, *peaks, note)


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Prints the rows as a table in columns, and their notes below it."""
    lines = [("", "plain", "ours", "ratio", "wanted", "plain MB", "ours MB")]
    for row in rows:
        wanted = "" if row.target is None else f">= {row.target:g}{'' if row.ratio >= row.target else ' MISSED'}"
        lines.append((row.what, f"{row.plain:.4g} {row.unit}", f"{row.ours:.4g} {row.unit}", f"{row.ratio:.2f}", wanted,
                      *("" if mb is None else f"{mb:.1f}" for mb in (row.plain_mb, row.ours_mb))))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"{title} ({torch.get_num_threads()} thread(s), {cpu_name()})")
    for what, *figures in lines:
        print("  ".join([what.ljust(widths[0]), *(figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True))]).rstrip())
    for row in rows:
        if row.note:
            print(f"{row.what}: {row.note}")


def write_json(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Writes title, machine, versions, date and rows. Raises InputError where the file cannot be written."""
    content = {"title": title, "machine": machine(), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
               "rows": [row._asdict() for row in rows]}
    with atomic_write(path) as file:
        json.dump(content, file, indent=2)


def report(title: str, rows: Sequence[Row], path: Path | None) -> None:
    """Prints the table, and writes it where a path is given."""
    print_table(title, rows)
    if path is not None:
        write_json(path, title, rows)


def machine() -> dict[str, object]:
    """What the figures were measured on: CPU, its cores, PyTorch's threads, GPU if there is one, and versions."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "versions": {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}},
    }


def cpu_name() -> str:
    """The CPU's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def _send_peak(function: Callable[[], object], sender, warm: bool) -> None:
    """What the forked process does: sends what the call, with `warm` the second one, adds at its peak."""
    torch.set_num_threads(1)
    if warm:
        function()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the first call freed is not to serve the second unseen
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM, the peak, to what is resident now
    before = _status_mb("VmRSS")
    function()
    sender.send(max(_status_mb("VmHWM") - before, 0.0))


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6
