"""A session of measurements on a machine that is lent for minutes: what a kill or the end of the time has left out, the
same command measures next.
"""

import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Row, print_table, write_json
from benchmarks.machine import describe, machine, synchronize
from model.errors import InputError

REPEATED_SECONDS = 10.0  # until OverTime is raised again: a finalizer may have swallowed it


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What gives one row, whose name it is, and the most seconds that this may take."""

    name: str
    seconds: float
    measure: Callable[[], Row]


class OverTime(BaseException):
    """A measurement took longer than it may. No Exception, which libraries catch."""


def run(measurements: Sequence[Measurement], path: Path, *, title: str, device: str, minutes: float) -> bool:
    """Measures what `path` does not have yet, as far as the time suffices, and writes the file after each row.

    A row that fails, or takes too long, does not end the session: the next run tries it again. Returns whether all rows
    are there. Raises InputError if the file is of another machine, or of other versions.
    """
    end = time.monotonic() + 60 * minutes
    this, rows = _earlier(path, device)
    problems: dict[str, str] = {}
    for measurement in measurements:
        if measurement.name in rows:
            continue
        if time.monotonic() + measurement.seconds > end:
            problems[measurement.name] = "no time left"
            continue
        print(f"{measurement.name}: at most {measurement.seconds:g} s", flush=True)
        try:
            with _time_limit(measurement.seconds):
                rows[measurement.name] = replace(measurement.measure(), name=measurement.name)
        except OverTime:
            problems[measurement.name] = f"took longer than {measurement.seconds:g} s"
        except Exception as error:
            traceback.print_exc()
            problems[measurement.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        ordered = [rows[one.name] for one in measurements if one.name in rows]
        remark = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        remark = f"Not measured: {remark}." if problems else ""
        write_json(path, title, this, rows=[asdict(row) for row in ordered], remark=remark)
        torch.compiler.reset()  # of the models that are gone: PyTorch compiles one class a few times only
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            synchronize(device)  # raises where an error has left the GPU unusable for this process
    print(f"{title}\n{describe(this)}")
    print_table([rows[one.name] for one in measurements if one.name in rows])
    for name, problem in problems.items():
        print(f"NOT MEASURED: {name}: {problem}. The same command tries it again.")
    return not problems


def _earlier(path: Path, device: str) -> tuple[dict[str, Any], dict[str, Row]]:
    """The machine, and the rows that the file has."""
    gpu = device == "cuda"
    if not path.exists():
        return machine(gpu=gpu), {}
    content, this = json.loads(path.read_text()), machine(gpu=gpu, measured=False)
    differing = [key for key in this if key != "matrix_gflops" and this[key] != content["machine"][key]]
    if differing:
        raise InputError(
            f"{path} was measured with other {', '.join(differing)}. Move it away to measure anew, or name another "
            "file with --json."
        )
    return content["machine"], {row["name"]: Row(**row) for row in content["rows"]}


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """A block that OverTime ends after so many seconds, as soon as it runs Python code."""

    def stop(*_: Any) -> None:
        raise OverTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, REPEATED_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
