"""Kills at every moment: a step that ends within a write to the disk, as kill -9 could end it."""

import os
import random
import traceback
from collections.abc import Callable

from model.index.writing import RowWriter

KILLED = 137


def run_and_kill(step: Callable[[], object], kill_at: int, rng: random.Random) -> int:
    """Runs a step in a process of its own, which ends before or within its `kill_at`th write to the disk (0: never).
    Returns its status: 0, 1 for an error, or KILLED.
    """
    child = os.fork()
    if child == 0:
        os._exit(_run_until(step, kill_at, rng))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_until(step: Callable[[], object], kill_at: int, rng: random.Random) -> int:
    count = 0

    def counted(call, partial=None):
        def wrapper(*arguments, **options):
            nonlocal count
            count += 1
            if count == kill_at:
                if partial:
                    partial(*arguments)
                os._exit(KILLED)
            return call(*arguments, **options)

        return wrapper

    def write_a_part(file, data, **_):
        file.write(data[: rng.randrange(len(data) + 1)])

    RowWriter._write_to = staticmethod(counted(RowWriter._write_to, write_a_part))
    for name in ("replace", "unlink", "fsync", "mkdir", "link"):
        setattr(os, name, counted(getattr(os, name)))
    try:
        step()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
