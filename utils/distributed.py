"""One process or many (torchrun): who writes, how batches are put together, how gradients are added up."""
import os
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_host_group = None  # messages between the hosts, gloo where the GPUs speak NCCL


def start(device: str) -> str:
    """Joins the processes that torchrun started, if it did. Returns this process's device: cuda becomes its own GPU."""
    global _host_group
    if "RANK" not in os.environ or dist.is_initialized():
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    _host_group = dist.new_group(backend="gloo")
    return device


def stop() -> None:
    """Leaves the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 where there is one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=_host_group)
    return bool(flags)


def from_main(value: T) -> T:
    """The main process's value, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_host_group)
    return values[0]


def gather_to_main(value: T) -> list[T] | None:
    """Every process's value, by rank, in the main process; None in the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values, dst=0, group=_host_group)
    return values


def all_ranks(number: int) -> list[int]:
    """Every process's number, by rank."""
    if world_size() == 1:
        return [number]
    numbers = [torch.zeros((), dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(numbers, torch.tensor(number), group=_host_group)
    return [int(n) for n in numbers]


def barrier() -> None:
    """Waits for all processes."""
    if world_size() > 1:
        dist.barrier(group=_host_group)


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Gives the tensors the main process's values, in every process."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def gather_batch(tensor: Tensor, sizes: list[int]) -> Tensor:
    """[B_r, ...] of each rank, B_r = sizes[r] -> [sum of B_r, ...] in every process; the gradient flows to this rank's own rows."""
    padded = torch.cat([tensor.detach(), tensor.new_zeros(max(sizes) - len(tensor), *tensor.shape[1:])])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    parts[rank()] = tensor
    return torch.cat(parts)


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Adds up the gradients of all processes: each holds that of its own rows of the batch's one loss."""
    if world_size() == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)
