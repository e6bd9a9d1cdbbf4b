"""Processes of scripts from outside: their sessions, workers and signal handlers, as /proc shows them (Linux)."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.processes import ROOT, last_of_each, start_script

MARK = "FAULT_TRIAL"  # environment variable by which the ranks of torchrun, in sessions of their own, are recognised
PRELUDE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it\n"
GRACE = 10.0  # seconds in which everything must be gone


@dataclass(frozen=True)
class Subject:
    """A script that runs, and the processes that it started.

    pid: also its session; cwd: gets stdout.captured and stderr.captured; wait: waits for at most so many seconds and
    returns the exit status, None if there is none yet.
    """

    pid: int
    cwd: Path
    wait: Callable[[float], int | None]

    @property
    def stdout(self) -> str:
        return (self.cwd / "stdout.captured").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return (self.cwd / "stderr.captured").read_text(errors="replace")

    def processes(self) -> list[int]:
        """The process, unless it has ended, and those that it started."""
        mark = f"{MARK}={self.cwd}".encode()
        return [pid for pid in all_processes() if session_of(pid) == self.pid or mark in environment_of(pid)]

    def workers(self) -> list[int]:
        """The processes that it started."""
        return [pid for pid in self.processes() if pid != self.pid]

    def signal(self, number: int, pids: Sequence[int]) -> None:
        """Sends a signal to those of the processes that still exist."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def started(self) -> bool:
        """Whether the script itself runs: it has a handler for SIGTERM, or has made a file. Before that, a signal meets
        the interpreter, which is starting.
        """
        made = (path for path in self.cwd.iterdir() if not path.name.endswith(".captured"))
        return catches(self.pid, signal.SIGTERM) or any(made)

    def wait_for_start(self) -> None:
        """Waits until the script itself runs, or has ended."""
        wait_until(lambda: self.started() or self.wait(0) is not None, 60)

    def ranks(self) -> list[int]:
        """The ranks of torchrun, without their workers."""
        return [pid for pid in self.workers() if parent_of(pid) == self.pid and b"\0RANK=" in environment_of(pid)]

    def end(self, seconds: float = GRACE) -> list[str]:
        """Waits for the end of all its processes, and kills the rest. The problems, if any were left."""
        deadline = time.monotonic() + seconds
        problems = []
        if self.wait(seconds) is None:
            problems.append(f"still ran after {seconds:g} seconds")
        elif not wait_until(lambda: not self.processes(), max(deadline - time.monotonic(), 0.5)):
            problems.append(f"left processes behind for {seconds:g} seconds")
        self.signal(signal.SIGKILL, self.processes())
        self.wait(GRACE)
        return problems


def start_forked(script: str, flags: Sequence[object], cwd: Path, prelude: str = "") -> Subject:
    """Starts a script or module by helpers.processes.start_script; `prelude` is Python code that runs before it."""
    cwd.mkdir(parents=True, exist_ok=True)
    process = start_script(script, *flags, cwd=cwd, prelude=PRELUDE + prelude).process

    def wait(seconds: float) -> int | None:
        process.join(seconds)
        return process.exitcode

    return Subject(process.pid, cwd, wait)


def start_command(command: Sequence[object], cwd: Path) -> Subject:
    """Starts a command in a fresh process, as a user does."""
    cwd.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "DATASETS_FOLDER"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), MARK: str(cwd)}
    with open(cwd / "stdout.captured", "w") as out, open(cwd / "stderr.captured", "w") as err:
        options = {"cwd": cwd, "stdout": out, "stderr": err, "env": environment, "start_new_session": True}
        # Background jobs ignore SIGINT.
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(list(map(str, command)), **options)

    def wait(seconds: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.returncode

    return Subject(process.pid, cwd, wait)


def python_command(script: str, flags: Sequence[object]) -> list[object]:
    """The command that starts a script or module in a fresh interpreter."""
    return [sys.executable, *([ROOT / script] if script.endswith(".py") else ["-m", script]), *last_of_each(flags)]


def start_torchrun(script: str, flags: Sequence[object], cwd: Path) -> Subject:
    """Starts a script in two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--nproc_per_node=2", f"--master_port={port}"]
    return start_command([sys.executable, "-m", "torch.distributed.run", *options, ROOT / script, *flags], cwd)


def all_processes() -> list[int]:
    """The process ids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def session_of(pid: int) -> int | None:
    """The session of a process; None if it has ended, though nobody has asked for its status yet."""
    with contextlib.suppress(OSError):
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:4]
        return None if state in "ZX" else int(session)
    return None


def parent_of(pid: int) -> int | None:
    """The parent of a process; None if it has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return None


def environment_of(pid: int) -> bytes:
    """The environment with which a process was started; empty if it has ended or is another user's."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    return _is_in_mask(pid, "SigCgt", number)


def ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal."""
    return _is_in_mask(pid, "SigIgn", number)


def _is_in_mask(pid: int, mask: str, number: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{mask}:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Waits until the condition holds, and says whether it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def temporary_files(folder: Path) -> list[str]:
    """The names of unfinished files below a folder."""
    return sorted(path.name for path in folder.rglob("*") if path.name.endswith(".tmp") or ".partial" in path.name)
