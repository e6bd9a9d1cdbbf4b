"""Reference parameters and images, checkpoints in the published form, and two ways to run the project's code apart
from the tests.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import socket
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from model import GeoLocalizationNet, ModelConfig

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
MODES = {"float": {}, "hashing": {"hashing": True}, "two_branch": {"hashing": True, "rerank": True}}
PRELOADED = [  # in the process that scripts are forked from
    *("torch", "torchvision.transforms.v2.functional", "faiss", "sklearn.neighbors", "PIL.Image", "tqdm"),
    *("utils.cli", "utils.retrieval.evaluation", "utils.retrieval.report", "utils.training.trainer"),
    *("utils.training.validation", "utils.visualization"),
]
NOT_TORCH = ("faiss", "matplotlib", "numpy", "PIL", "pytorch_metric_learning", "sklearn", "torchvision")


def build(backbone: str = "vit-tiny", aggregation: str = "gem", **flags: bool) -> GeoLocalizationNet:
    """A model at the start of training."""
    return GeoLocalizationNet(ModelConfig(backbone=backbone, aggregation=aggregation, **flags))


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Reference value of a state-dict entry; the same for the same name and shape, whatever the model."""
    kind = name.split(".")[-1]
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_var":
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if kind in ("p", "dust_bin"):
        return np.full(shape, {"p": 3, "dust_bin": 1}[kind], np.float32)
    normal = random.standard_normal(shape)
    if kind == "weight" and len(shape) == 1:
        kind = "norm"
    spread = {
        "running_mean": (0, 0.1),
        "gamma": (0.3, 0.05),
        "bias": (0, 0.02),
        "in_proj_bias": (0, 0.02),
        "norm": (1, 0.1),
        "cls_token": (0, 0.3),
        "pos_embed": (0, 0.3),
        "mask_token": (0, 0.3),
        "queries": (0, 0.3),
    }
    if kind in spread:
        mean, deviation = spread[kind]
        return (mean + deviation * normal).astype(np.float32)
    inputs = np.prod(shape[1:], dtype=int) if len(shape) > 1 else shape[0]
    return (normal / np.sqrt(inputs)).astype(np.float32)


def image_batch(seed: int, batch: int, height: int, width: int) -> np.ndarray:
    """Reference images [B, 3, H, W], float32, normalised already: an 8 x 8 mosaic each, and noise."""
    random = np.random.default_rng(seed)
    mosaic = random.standard_normal((batch, 3, 8, 8)).repeat(-(-height // 8), axis=2).repeat(-(-width // 8), axis=3)
    return (mosaic[..., :height, :width] + 0.3 * random.standard_normal((batch, 3, height, width))).astype(np.float32)


def filled(model: torch.nn.Module, cache: dict | None = None) -> torch.nn.Module:
    """The model, one built on the "meta" device too, with reference parameters and in eval mode; `cache` keeps them
    for the next model.
    """
    cache = {} if cache is None else cache
    for name, value in model.state_dict().items():
        key = name, tuple(value.shape)
        if key not in cache:
            cache[key] = torch.from_numpy(fill(*key))
    state = {name: cache[name, tuple(value.shape)] for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def save_published(state: dict[str, torch.Tensor], path: Path, numpy_version: int = 2) -> Path:
    """Saves a checkpoint as the published ones are: `module.` before each name, NumPy objects beside the model."""
    torch.save(
        {
            "epoch_num": 3,
            "model_state_dict": {f"module.{name}": value for name, value in state.items()},
            "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 4e-4, "params": [0]}]},
            "recalls": np.array([90.5, 95.25, 96.5]),
            "best_r5": np.float64(95.25),
            "not_improved_num": 0,
        },
        path,
    )
    old, new = (b"numpy._core.", b"numpy.core.") if numpy_version == 1 else (b"numpy.core.", b"numpy._core.")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("/data.pkl") else content)
    return path


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
    argv = [str(ROOT / script) if str(script).endswith(".py") else script, *map(str, flags)]
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


def run_two_ranks(script: str | Path, *flags: object, cwd: Path, prelude: str = "") -> list[Result]:
    """Runs a script to its end in two processes that work together, as torchrun would start them, but sooner."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        start_script(script, *flags, cwd=cwd, env={**env, "RANK": rank, "LOCAL_RANK": rank}, prelude=prelude)
        for rank in ("0", "1")
    ]
    return [rank.result() for rank in ranks]


def run_python(
    code: str, *flags: object, cwd: Path, without: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> Result:
    """Runs Python code in a fresh interpreter in which the packages `without` cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n"
    process = subprocess.run(
        [sys.executable, "-c", blocked + code, *map(str, flags)],
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
    sys.path[:0] = [str(ROOT)]
    sys.argv[:] = argv
    exec(prelude, {})
    if argv[0].endswith(".py"):
        runpy.run_path(argv[0], run_name="__main__")
    else:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
