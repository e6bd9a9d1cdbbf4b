"""One process or several (torchrun): which rank writes, and how batches and gradients are combined."""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from model.errors import InputError
from utils.runtime.signals import stop_signals

T = TypeVar("T")
START_SECONDS = 120  # in which all ranks must have loaded their libraries
ROOMS = ("model", "datasets", "utils")
LIBRARIES = ("torch", "torchvision", "numpy", "pillow")  # that decide results
_cpu_group: Any = None  # gloo, for Python objects and CPU tensors: NCCL handles only GPU tensors


def init(device: str) -> None:
    """Joins the processes that torchrun started, if any. `device` is this rank's own, such as cuda:1.

    Raises InputError if they do not all start within START_SECONDS, or differ in code, command line or versions.
    """
    global _cpu_group
    if "RANK" not in os.environ or dist.is_initialized():
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    with stop_signals.left_to_the_system():  # a rank may wait for one that was stopped
        store, rank, world_size = _meet()
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world_size)
        # The main rank may read files for hours while the others wait. torchrun ends them if it dies.
        _cpu_group = dist.new_group(backend="gloo", timeout=timedelta(days=7))


def _meet() -> tuple[dist.Store, int, int]:
    """The ranks' store, this rank and their number, once all ranks have started and are the same."""
    seconds, own = timedelta(seconds=START_SECONDS), _fingerprint()
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=seconds))
        store.set(f"rank {rank}", json.dumps(own))
        names = [f"rank {other}" for other in range(world_size)]
        store.wait(names, seconds)
        others = [json.loads(store.get(name)) for name in names]
        problems = [
            f"{name} has another {what} than rank 0 ({_difference(found[what], others[0][what])})"
            for name, found in zip(names, others, strict=True)
            for what in own
            if found[what] != others[0][what]
        ]
        # The rank that keeps the store must not end before all have read it. Where they differ, it ends soon after.
        store.set(f"read by {rank}", "")
        with contextlib.suppress(dist.DistError) if problems else contextlib.nullcontext():
            store.wait([f"read by {other}" for other in range(world_size)], seconds)
    except dist.DistError as error:
        raise InputError(
            f"Rank {os.environ['RANK']} has waited for the other ranks for {START_SECONDS} seconds at most. See why "
            f"they have not started, or have ended. ({str(error).splitlines()[0][:200]})"
        ) from None
    if problems:
        raise InputError(f"The ranks do not run the same: {'; '.join(problems)}. Start all of them alike.")
    return store, rank, world_size


def _fingerprint() -> dict[str, list[str]]:
    """What must be the same on all ranks, as {name: lines}."""
    folder = Path(__file__).parents[2]
    files = [*folder.glob("*.py"), *(path for room in ROOMS for path in (folder / room).rglob("*.py"))]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return {
        "code": [digest.hexdigest()[:16]],
        "command line": sys.argv[1:],
        "version of a library": [
            f"python {platform.python_version()}",
            *(f"{library} {_version(library)}" for library in LIBRARIES),
        ],
    }


def _version(library: str) -> str:
    """The installed version. A substitute, such as pillow-simd, has another package's name."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "of another package"


def _difference(found: list[str], expected: list[str]) -> str:
    """What one of two lists has in place of the other's."""
    pairs = itertools.zip_longest(found, expected, fillvalue="nothing")
    return ", ".join(f"{a} instead of {b}" for a, b in pairs if a != b)[:300]


def shutdown() -> None:
    """Leaves the process group, and ends gloo's threads: one that outlives the interpreter aborts the process."""
    global _cpu_group
    if dist.is_initialized():
        # PyTorch 2.6 destroys the group while it holds the interpreter's lock, and waits for gloo's threads. One that
        # is still releasing the tensors of the last collective needs that lock: give it time, or both wait forever.
        time.sleep(0.2)
        dist.destroy_process_group()
        _cpu_group = None


def rank() -> int:
    """The number of this process; 0 if there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return any(all_gather_int(int(flag)))


def broadcast_object(value: T) -> T:
    """The main rank's value, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_cpu_group)
    return values[0]


def run_on_main(function: Callable[[], T], *, share: bool = True) -> T:
    """What the function returns, or the InputError or OSError that it raises, on the main rank: on every rank.

    For everything that reads or writes files: the ranks may not share a disk, and files may change in between. With
    share=False the other ranks get None, but the same error.
    """
    outcome: Any = None
    if is_main():
        try:
            outcome = function()
        except (InputError, OSError) as error:
            if world_size() == 1:
                raise
            outcome = error
    is_error = isinstance(outcome, (InputError, OSError))
    shared: Any = broadcast_object(outcome if share or is_error else None)
    if isinstance(shared, (InputError, OSError)):
        raise shared
    return outcome if is_main() else shared


def gather_objects(value: T) -> list[T] | None:
    """Every rank's value, in the order of the ranks, on the main rank; None on the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values, dst=0, group=_cpu_group)
    return values


def all_gather_int(number: int) -> list[int]:
    """Every rank's number, in the order of the ranks, on every rank."""
    if world_size() == 1:
        return [number]
    numbers = [torch.zeros((), dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(numbers, torch.tensor(number), group=_cpu_group)
    return [int(n) for n in numbers]


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrites the tensors with the main rank's values, on every rank."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0, group=None if tensor.is_cuda else _cpu_group)


def gather_batch(tensor: Tensor, sizes: list[int]) -> Tensor:
    """[B_r, ...] of each rank -> all rows, on every rank; B_r = sizes[r]. Gradients flow to this rank's rows."""
    padded = torch.cat([tensor.detach(), tensor.new_zeros(max(sizes) - len(tensor), *tensor.shape[1:])])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    parts[rank()] = tensor
    return torch.cat(parts)


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Adds up the gradients of all ranks. Not their mean: the loss is global, and each rank has its own rows'."""
    if world_size() == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)
