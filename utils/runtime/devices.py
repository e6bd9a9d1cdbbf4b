"""Devices and number formats of a forward pass: which exist, and which are slow."""

import argparse
import logging
import os
from typing import Any

from utils.runtime.flags import Values, flag

PRECISION_HELP = "number format of the forward pass; bf16 and fp16 are slow on CPUs that lack instructions for them"
AUTO = "auto"
DEVICES = (AUTO, "cuda", "mps", "cpu")
CPU_INSTRUCTIONS = {  # names of torch.cpu.get_capabilities(): two for x86, one for ARM
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def device(name: str) -> str:
    """An argparse type: the device for a --device; under torchrun, cuda is this rank's GPU.

    Raises ArgumentTypeError if there is no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == AUTO:
        name = next(device for device in available if available[device])
    if not available.get(name):
        choices = ", ".join([AUTO, *(device for device in available if available[device])])
        raise argparse.ArgumentTypeError(f"PyTorch {torch.__version__} finds no device {name!r}. Available: {choices}.")
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


def _automatic_device(_: Values) -> str:
    return device(AUTO)


def device_flag() -> Any:
    """The field device."""
    return flag(
        f"{', '.join(DEVICES)}; auto, the default, is a GPU if there is one",
        group="speed",
        type=device,
        default="cpu",
        default_from=_automatic_device,
        metavar="DEVICE",
        may_change=True,
    )


def cpu_supports(precision: str) -> bool:
    """Whether this CPU has instructions for the precision. PyTorch emulates it otherwise, slowly.

    True if PyTorch is too old to tell (2.8 is).
    """
    if precision == "fp32":
        return True
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):
        return True
    return any(torch.cpu.get_capabilities().get(name, False) for name in CPU_INSTRUCTIONS[precision])


def warn_if_slow(device: str, precision: str) -> None:
    """Warns if the CPU has no instructions for the precision (measured slowdown: 4x for bf16, 200x for fp16)."""
    if device == "cpu" and not cpu_supports(precision):
        message = "--precision %s: this CPU has no instructions for it and will be many times slower than with fp32."
        logging.warning(message, precision)
