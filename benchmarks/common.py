"""What all benchmarks share: the command line, measuring a baseline against our code in turn, and the table of results.

Run a benchmark with `python -m benchmarks.bench_NAME [--threads N] [--json [FILE]]`.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe, kind, machine, matrix_gflops, memory_gb_per_s, synchronize
from model.errors import InputError
from utils.runtime.atomic_files import atomic_write
from utils.runtime.flags import ArgumentParser, positive_int

HEADINGS = ("", "baseline", "ours", "ratio", "target", "share of limit", "baseline MB", "ours MB")
RESULTS = Path(__file__).parent / "results"
MIN_SAMPLES, MAX_SAMPLES, STEADY = 5, 15, 0.01
NAME_LENGTH = 60  # of an operation in a profile
DEFAULT_FILE = Path()  # --json without FILE


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

    baseline, ratio: None where there is nothing to compare with. target: the ratio to reach, if there is one.
    baseline_mb, ours_mb: what each adds to the resident memory at its peak, None if this was not measured. gflops: the
    rate of the operations in our code; matrix_gflops: the limit, which is the machine's rate of matrix products in the
    same precision right after it; None if the operations were not counted. gb_per_s, memory_gb_per_s: the same for the
    bytes that our code has to read, and for the rate of the device's memory. share_target: the share of the limit to
    reach, if there is one. note: a remark, printed below the table.
    """

    name: str
    ours: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    target: float | None = None
    baseline_mb: float | None = None
    ours_mb: float | None = None
    gflops: float | None = None
    matrix_gflops: float | None = None
    gb_per_s: float | None = None
    memory_gb_per_s: float | None = None
    share_target: float | None = None
    note: str = ""

    def per_item(self, count: int, unit: str) -> "Row":
        """The same row with both figures divided by `count`, the number of items that each call processes."""
        baseline = None if self.baseline is None else self.baseline / count
        return replace(self, baseline=baseline, ours=self.ours / count, unit=unit)

    def against(self, baseline: float) -> "Row":
        """The same row with this baseline, a time in `unit`."""
        return replace(self, baseline=baseline, ratio=baseline / self.ours)

    def with_share(self, gflop: float, precision: str, device: str = "cpu") -> "Row":
        """The same row with its share of the limit, which is measured now. gflop: of our code, per `unit`, in ms."""
        return replace(self, gflops=1e3 * gflop / self.ours, matrix_gflops=matrix_gflops(precision, device))

    def with_memory_share(self, gbytes: float, device: str = "cpu") -> "Row":
        """The same row with its share of the memory's rate, measured now. gbytes: 10^9 bytes, per `unit`, in ms."""
        return replace(self, gb_per_s=1e3 * gbytes / self.ours, memory_gb_per_s=memory_gb_per_s(device))

    @property
    def share(self) -> float | None:
        """The share of the limit that our code reaches, None if it was not measured."""
        if self.gflops is not None and self.matrix_gflops is not None:
            return self.gflops / self.matrix_gflops
        if self.gb_per_s is not None and self.memory_gb_per_s is not None:
            return self.gb_per_s / self.memory_gb_per_s
        return None

    @property
    def is_below_share(self) -> bool:
        """Whether there is a share of the limit to reach, and our code does not."""
        return self.share_target is not None and self.share is not None and self.share < self.share_target

    def cells(self) -> tuple[str, ...]:
        """The row as text, one cell for each of HEADINGS."""
        target = ""
        if self.target is not None and self.ratio is not None:
            target = f">= {self.target:g}" + (", below target" if self.ratio < self.target else "")
        figures = ("" if figure is None else f"{number(figure)} {self.unit}" for figure in (self.baseline, self.ours))
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        memory = ("" if mb is None else f"{mb:,.1f}" for mb in (self.baseline_mb, self.ours_mb))
        return self.name, *figures, ratio, target, self._share_cell(), *memory

    def _share_cell(self) -> str:
        if self.share is None:
            return ""
        limit = f"{self.matrix_gflops:,.0f} GFLOP/s" if self.gflops is not None else f"{self.memory_gb_per_s:,.0f} GB/s"
        below = f", below {100 * self.share_target:.0f} %" if self.share_target and self.is_below_share else ""
        return f"{100 * self.share:.0f} % of {limit}{below}"


def number(value: float) -> str:
    """Four digits, or all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def short_name(backbone: str) -> str:
    """As the rows name it, such as "base"."""
    return backbone.removeprefix("dinov2-")


# ---- Command line


def parse_arguments(
    description: str, *, threads: int | None = 1, gpu_help: str | None = None, large_help: str | None = None
) -> Arguments:
    """Parses the command line and sets PyTorch's number of threads, by default `threads` (None: one for each core).

    --gpu and --large exist if there is a help text for them. Raises InputError for --gpu without CUDA.
    """
    parser = ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    threads = threads or os.cpu_count() or 1
    parser.add_argument("--threads", type=positive_int, default=threads, help="number of CPU threads")
    add_json_flag(parser)
    for flag, text in (("--gpu", gpu_help), ("--large", large_help)):
        if text is not None:
            parser.add_argument(flag, action="store_true", help=text)
    parser.set_defaults(gpu=False, large=False)
    args = Arguments(**vars(parser.parse_args()))
    torch.set_num_threads(args.threads)
    if args.gpu and not torch.cuda.is_available():
        raise InputError(f"--gpu needs a CUDA device, but PyTorch {torch.__version__} finds none.")
    name = Path(sys.argv[0]).stem.removeprefix("bench_") + ("_large" if args.large else "")
    return replace(args, json=json_file(args.json, name, gpu=args.gpu))


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --json [FILE]. Pass its value through json_file."""
    parser.add_argument(
        "--json",
        nargs="?",
        const=DEFAULT_FILE,
        type=Path,
        metavar="FILE",
        help="also write the table to this file; without FILE, to benchmarks/results/<kind of machine>/",
    )


def json_file(given: Path | None, name: str, *, gpu: bool = False) -> Path | None:
    """The file to write: None without --json, the default one with --json alone."""
    return RESULTS / kind(machine(gpu=gpu, measured=False)) / f"{name}.json" if given == DEFAULT_FILE else given


# ---- Measuring


def measure(baseline: Callable[[], object], ours: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each function, which run in turn. See time_in_turn."""
    seconds = time_in_turn({"baseline": baseline, "ours": ours}, rounds)
    return statistics.median(seconds["baseline"]), statistics.median(seconds["ours"])


def time_in_turn(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of `rounds` calls of each function, after one warm-up call each.

    Because they alternate, other load on the machine affects all alike. A function that computes on a GPU has to
    synchronise itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def steady_seconds(
    function: Callable[[], object], device: str, *, calls: int = 1, warm_up: int = 1, most: float = math.inf
) -> float:
    """Median seconds of a call, of as few samples of `calls` calls as give a steady median (see is_steady), or as fit
    into `most` seconds, at least one. Within a sample the host runs ahead of the device, as in a training.
    """
    for _ in range(warm_up):
        function()
    samples: list[float] = []
    while not is_steady(samples) and (not samples or calls * sum(samples) < most):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            function()
        synchronize(device)
        samples.append((time.perf_counter() - start) / calls)
    return statistics.median(samples)


def is_steady(samples: Sequence[float]) -> bool:
    """Whether the last two of five samples or more moved the median by at most 1 %. Of MAX_SAMPLES, any."""
    if len(samples) < MIN_SAMPLES or len(samples) >= MAX_SAMPLES:
        return len(samples) >= MAX_SAMPLES
    now, before = statistics.median(samples), statistics.median(samples[:-2])
    return abs(now - before) <= STEADY * now


def top_ten(function: Callable[[], object], device: str) -> str:
    """The ten operations (on a GPU, kernels) that a call spends most time in: a profile, as text."""
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        function()
        synchronize(device)
    times = {
        event.key: event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    most = sorted(times, key=times.__getitem__, reverse=True)[:10]
    shares = (f"{100 * times[key] / sum(times.values()):.0f} % {key[:NAME_LENGTH]}" for key in most)
    return f"{sum(times.values()) / 1e3:.1f} ms of work in a call: {', '.join(shares)}"


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


def count_gflop(function: Callable[[], object], device: str = "cpu") -> float:
    """10^9 floating-point operations in the matrix products and convolutions of a call, attention's included."""
    # FlopCounterMode does not know the CPU's fused attention. Unfused, it consists of matrix products.
    attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext()
    with attention, FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def peak_memory_mb(function: Callable[[], object], warm: bool = True) -> float:
    """Resident memory in MB (10^6 bytes) that a call of the function adds at its peak. See measure_in_child."""
    return measure_in_child(function, warm)[1]


def measure_in_child(function: Callable[[], object], warm: bool = True) -> tuple[float, float]:
    """Seconds of a call of the function, and the resident memory in MB (10^6 bytes) that it adds at its peak. Linux
    with glibc only.

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
    """Runs in the forked process: sends time and memory of a call of the function, with `warm` the second one."""
    torch.set_num_threads(1)
    if warm:
        function()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # otherwise the second call reuses freed memory that is still resident
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM, to the current resident memory
    before, start = _status_mb("VmRSS"), time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    sender.send((seconds, max(_status_mb("VmHWM") - before, 0.0)))


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def resident_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes). Linux only."""
    return _status_mb("VmRSS")


# ---- Results


def report(title: str, rows: Sequence[Row], path: Path | None, *, gpu: bool = False) -> None:
    """Prints the machine and the table, and also writes them to `path` if there is one."""
    this = machine(gpu=gpu)
    print(f"{title} ({torch.get_num_threads()} thread(s))\n{describe(this)}")
    print_table(rows)
    if path is not None:
        write_json(path, title, this, rows=[asdict(row) for row in rows])


def print_table(rows: Sequence[Row]) -> None:
    """Prints the rows as a table, with their notes below it."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *figures in lines:
        aligned = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
    for row in rows:
        if row.note:
            print(f"{row.name}: {row.note}")


def report_table(title: str, rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """As `report`, for a table of other columns: rows {heading: value}, printed as Markdown."""
    this = machine()
    print(f"{title}\n{describe(this)}\n\n{markdown_table(rows)}")
    if path is not None:
        write_json(path, title, this, rows=rows)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows {heading: value}, without columns that are empty in all rows."""
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    columns = {heading: [cell(row.get(heading)) for row in rows] for heading in headings}
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: object) -> str:
    """A value as text: "" for None, `number` for a number, commas between the values of a list."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    return number(value) if isinstance(value, int | float) else str(value)


def write_json(
    path: Path, title: str, this: Mapping[str, Any], *, rows: Sequence[Mapping[str, Any]], remark: str = ""
) -> None:
    """Writes title, machine (see benchmarks.machine), date, rows and the remark. benchmarks.readme reads such files.

    rows: Row as a dictionary; or, for other tables, {heading: value}. Raises InputError if the file cannot be written.
    """
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        content = {"title": title, "machine": this, "date": date, "remark": remark, "rows": rows}
        json.dump(content, file, indent=2)
        file.write("\n")
