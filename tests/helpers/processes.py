"""Runs the project's code apart from the tests: forked scripts, two ranks, torchrun, fresh interpreters."""

import contextlib
import io
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from model import InputError

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = [  # in the process that scripts are forked from
    *("torch", "torchvision.transforms.v2.functional", "faiss", "sklearn.neighbors", "PIL.Image", "tqdm"),
    *("utils.cli.evaluate", "utils.cli.search", "utils.cli.train", "utils.training.curves"),
]
NOT_TORCH = ("faiss", "matplotlib", "PIL", "pytorch_metric_learning", "sklearn", "torchvision")


class Result(NamedTuple):
    """How a script ended."""

    status: int
    stdout: str
    stderr: str


class Running(NamedTuple):
    """A script that runs, the leader of a session of its own, and the files with what it prints."""

    process: multiprocessing.process.BaseProcess
    stdout: Path
    stderr: Path

    def result(self, timeout: float = 240) -> Result:
        """Waits for the end. Raises TimeoutError, and kills the script, if it takes longer than that many seconds."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"{self.process.name} still ran after {timeout} seconds")
        result = Result(self.process.exitcode, *(path.read_text(errors="replace") for path in self[1:]))
        self.stdout.unlink()
        self.stderr.unlink()
        return result


def last_of_each(words: Iterable[object]) -> list[str]:
    """A command line without the flags that a later word repeats: defaults of a test, and what replaces them."""
    texts = list(map(str, words))
    last = {text.partition("=")[0]: i for i, text in enumerate(texts) if text.startswith("--")}
    kept, keep = [], True
    for i, text in enumerate(texts):
        if text.startswith("--"):
            keep = last[text.partition("=")[0]] == i
        if keep:
            kept.append(text)
        keep = keep or "=" in text  # what follows is no value of it
    return kept


def start_script(
    script: str | Path,
    *flags: object,
    cwd: Path,
    env: dict[str, str] | None = None,
    prelude: str = "",
    threads: int = 1,
) -> Running:
    """Starts a script of the repository in a process of its own, forked from one that has the libraries loaded (several
    seconds less each).

    script: a file, or a module such as datasets.unified. prelude: Python code that runs before the script, such as
    limits of the process. threads: of PyTorch; for tiny photos and models a second one costs more than it gives.
    """
    context = multiprocessing.get_context("forkserver")
    _start_server(context)
    rank = (env or {}).get("RANK", "")
    captured = cwd / f"stdout{rank}.captured", cwd / f"stderr{rank}.captured"
    argv = [str(ROOT / script) if str(script).endswith(".py") else script, *last_of_each(flags)]
    process = context.Process(target=_run, args=(argv, cwd, env or {}, prelude, threads, captured), name=str(argv))
    process.start()
    return Running(process, *captured)


def _start_server(context: multiprocessing.context.ForkServerContext) -> None:
    """Starts the process that scripts are forked from, unless it runs already."""
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # so that it finds the project's modules
        multiprocessing.forkserver.ensure_running()


def run_script(
    script: str | Path,
    *flags: object,
    cwd: Path,
    env: dict[str, str] | None = None,
    file_limit: int | None = None,
    threads: int = 1,
    timeout: float = 240,
) -> Result:
    """Runs a script to its end; see start_script.

    file_limit: the most bytes that any file written may have, as if the disk were full after them.
    """
    prelude = ""
    if file_limit is not None:  # `resource` does not exist on Windows
        prelude = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({file_limit}, {file_limit}))"
    return start_script(script, *flags, cwd=cwd, env=env, prelude=prelude, threads=threads).result(timeout)


def run_here(script: str, *flags: object, cwd: Path, env: dict[str, str] | None = None) -> Result:
    """Runs a script in this process, a second less than in one of its own: where it refuses what it is given."""
    out, err, logger = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers = logger.handlers[:]
    printed = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with pytest.MonkeyPatch.context() as patch, printed[0], printed[1]:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [str(ROOT / script), *last_of_each(flags)])
        patch.delenv("DATASETS_FOLDER", raising=False)
        patch.setattr("utils.runtime.script.cli_main", lambda main, **_: main())  # which would end this process
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        try:
            run = runpy.run_path if script.endswith(".py") else runpy.run_module
            run(str(ROOT / script) if script.endswith(".py") else script, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
        except (InputError, OSError) as error:
            status = 2
            print(f"error: {error}", file=sys.stderr)
        finally:
            for handler in set(logger.handlers).difference(handlers):
                handler.close()
            logger.handlers[:] = handlers
    return Result(status, out.getvalue(), err.getvalue())


def run_two_ranks(
    script: str | Path, *flags: object, cwd: Path, prelude: str = "", preludes: Sequence[str] = ()
) -> list[Result]:
    """Runs a script to its end in two processes that work together, as torchrun would start them, but sooner.

    preludes: one for each rank, in place of `prelude`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        start_script(script, *flags, cwd=cwd, env={**env, "RANK": rank, "LOCAL_RANK": rank}, prelude=own)
        for rank, own in zip(("0", "1"), preludes or (prelude, prelude), strict=True)
    ]
    return [rank.result() for rank in ranks]


def run_python(
    code: str, *flags: object, cwd: Path, without: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> Result:
    """Runs Python code in a fresh interpreter in which the packages `without` cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n"
    process = subprocess.run(
        [sys.executable, "-c", blocked + code, *last_of_each(flags)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(env or {})},
    )
    return Result(process.returncode, process.stdout, process.stderr)


def _run(
    argv: list[str], cwd: Path, env: dict[str, str], prelude: str, threads: int, captured: tuple[Path, Path]
) -> None:
    """What the forked process does: becomes the script, as `python script flags` would be."""
    for path, number in zip(captured, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.setsid()
    os.chdir(cwd)
    for name in ("DATASETS_FOLDER", "PYTHONPATH"):
        os.environ.pop(name, None)
    os.environ.update(env)
    multiprocessing.set_start_method(None, force=True)  # the platform's own again, for the script's DataLoader
    torch.set_num_threads(threads)
    sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).is_relative_to(ROOT / "tests"))]
    sys.argv[:] = argv
    exec(prelude, {})
    if argv[0].endswith(".py"):
        runpy.run_path(argv[0], run_name="__main__")
    else:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def torchrun(script, *flags, cwd):
    """Runs a script in two processes with torchrun itself; what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import runpy; runpy.run_module('torch.distributed.run', run_name='__main__')"
    result = run_python(code, "--nproc_per_node=2", f"--master_port={port}", script, *last_of_each(flags), cwd=cwd)
    assert result.status == 0, result.stderr
    return result.stdout
