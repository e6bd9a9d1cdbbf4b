"""What all benchmarks share: the command line, measuring a baseline against our code in turn, and the table of results.

Run a benchmark with `python -m benchmarks.bench_NAME [--threads N] [--json FILE]`.
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
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from model.errors import InputError
from utils.cli import positive_int
from utils.runtime.atomic_files import atomic_write
from utils.runtime.run_dir import library_versions

HEADINGS = ("", "baseline", "ours", "ratio", "target", "baseline MB", "ours MB")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line of a benchmark: number of threads; JSON file to write, if any; whether to run on the GPU, or
    at the largest sizes.
    """

    threads: int
    json: Path | None
    gpu: bool
    large: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table: the figures of the baseline and of our code in `unit`, and how many times better ours is.

    target: the ratio to reach, if there is one. baseline_mb, ours_mb: what each adds to the resident memory at its
    peak, None if this was not measured. note: a remark, printed below the table.
    """

    name: str
    baseline: float
    ours: float
    unit: str
    ratio: float
    target: float | None = None
    baseline_mb: float | None = None
    ours_mb: float | None = None
    note: str = ""

    def per_item(self, count: int, unit: str) -> "Row":
        """The same row with both figures divided by `count`, the number of items that each call processes."""
        return replace(self, baseline=self.baseline / count, ours=self.ours / count, unit=unit)


# ---- Command line


def parse_arguments(
    description: str, *, threads: int | None = 1, gpu_help: str | None = None, large_help: str | None = None
) -> Arguments:
    """Parses the command line and sets PyTorch's number of threads, by default `threads` (None: one for each core).

    --gpu and --large exist if there is a help text for them. Raises InputError for --gpu without CUDA.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    threads = threads or os.cpu_count() or 1
    parser.add_argument("--threads", type=positive_int, default=threads, help="number of CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table to this file")
    for flag, text in (("--gpu", gpu_help), ("--large", large_help)):
        if text is not None:
            parser.add_argument(flag, action="store_true", help=text)
    parser.set_defaults(gpu=False, large=False)
    args = Arguments(**vars(parser.parse_args()))
    torch.set_num_threads(args.threads)
    if args.gpu and not torch.cuda.is_available():
        raise InputError(f"--gpu needs a CUDA device, but PyTorch {torch.__version__} finds none.")
    return args


# ---- Measuring


def measure(baseline: Callable[[], object], ours: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each function. They run in turn `rounds` times (baseline, ours, baseline, ...), after one
    warm-up call each.

    Because they alternate, other load on the machine affects both alike. A function that computes on a GPU has to
    synchronise itself.
    """
    functions = (baseline, ours)
    for function in functions:
        function()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def compare(
    name: str,
    baseline: Callable[[], object],
    ours: Callable[[], object],
    *,
    rounds: int,
    target: float | None = None,
    note: str = "",
) -> Row:
    """A row with the median time of each function, in milliseconds."""
    baseline_time, our_time = measure(baseline, ours, rounds)
    return Row(
        name=name,
        baseline=1e3 * baseline_time,
        ours=1e3 * our_time,
        unit="ms",
        ratio=baseline_time / our_time,
        target=target,
        note=note,
    )


def compare_with_memory(
    name: str,
    baseline: Callable[[], object],
    ours: Callable[[], object],
    *,
    rounds: int,
    target: float | None = None,
    note: str = "",
) -> Row:
    """A row with the median time and the peak memory of each function."""
    row = compare(name, baseline, ours, rounds=rounds, target=target, note=note)
    return replace(row, baseline_mb=peak_memory_mb(baseline), ours_mb=peak_memory_mb(ours))


def peak_memory_mb(function: Callable[[], object], warm: bool = True) -> float:
    """Resident memory in MB (10^6 bytes) that a call of the function adds at its peak. Linux with glibc only.

    The call runs in a forked process on one thread, because OpenMP's threads do not survive a fork. CUDA does not
    either. With `warm` the function is called once before, so that memory which outlives a call (caches, the pages of
    libraries) does not count. Raises RuntimeError if the process fails.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(function, sender, warm))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError("The process that measures the memory failed.") from None
    finally:
        process.join()


def _send_peak(function: Callable[[], object], sender: Connection, warm: bool) -> None:
    """Runs in the forked process: sends what a call of the function, with `warm` the second one, adds at its peak."""
    torch.set_num_threads(1)
    if warm:
        function()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # otherwise the second call reuses freed memory that is still resident
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM, to the current resident memory
    before = _status_mb("VmRSS")
    function()
    sender.send(max(_status_mb("VmHWM") - before, 0.0))


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


# ---- Results


def report(title: str, rows: Sequence[Row], path: Path | None) -> None:
    """Prints the table, and also writes it to `path` if there is one."""
    print_table(title, rows)
    if path is not None:
        write_json(path, title, rows)


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Prints the rows as a table, with their notes below it."""
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"{title} ({torch.get_num_threads()} thread(s), {cpu_name()})")
    for name, *figures in lines:
        aligned = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
    for row in rows:
        if row.note:
            print(f"{row.name}: {row.note}")


def _cells(row: Row) -> tuple[str, ...]:
    target = ""
    if row.target is not None:
        target = f">= {row.target:g}" + (", below target" if row.ratio < row.target else "")
    figures = (f"{figure:.4g} {row.unit}" for figure in (row.baseline, row.ours))
    memory = ("" if mb is None else f"{mb:.1f}" for mb in (row.baseline_mb, row.ours_mb))
    return row.name, *figures, f"{row.ratio:.2f}", target, *memory


def write_json(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Writes title, machine, library versions, date and rows. Raises InputError if the file cannot be written."""
    content = {
        "title": title,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": [asdict(row) for row in rows],
    }
    with atomic_write(path) as file:
        json.dump(content, file, indent=2)


def machine() -> dict[str, object]:
    """What a benchmark ran on: CPU, cores, PyTorch's threads, GPU (if any), and library versions."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "versions": library_versions(),
    }


def cpu_name() -> str:
    """The CPU's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
