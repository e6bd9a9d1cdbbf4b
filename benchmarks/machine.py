"""What a benchmark runs on: the CPU or GPU, its instructions, and its rate of matrix products, the limit of a model.

`python -m benchmarks.machine` prints it.
"""

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from model.config import PRECISIONS
from model.inference import dtype_of
from utils.runtime.flags import ArgumentParser
from utils.runtime.run_dir import library_versions
from utils.runtime.script import cli_main

CPUINFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {  # for products of matrices, strongest first: names of torch.cpu.get_capabilities()
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX512-BF16",
    "bf16": "ARM-BF16",
    "avx512_f": "AVX-512",
    "avx2": "AVX2",
}
BF16_INSTRUCTIONS = {"AMX", "AVX512-BF16", "ARM-BF16"}
FAMILIES = ("epyc", "xeon", "ryzen")
SHAPES = {  # of F.linear: rows, inputs, outputs. A single one would underestimate: which is fastest depends on the CPU
    "cpu": ((4240, 768, 2304), (4240, 3072, 768), (4096, 4096, 4096)),  # 4240: tokens of 8 images of 322 x 322
    "cuda": ((8192, 8192, 8192), (65536, 1024, 4096)),
}
MIN_SECONDS, MIN_CALLS = 0.3, 2
COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}  # more than any cache holds


def machine(*, gpu: bool = False, measured: bool = True) -> dict[str, Any]:
    """The machine as a benchmark's JSON describes it. Measures its matrix products, which takes seconds, on request."""
    device = "cuda" if gpu else "cpu"
    precisions = fast_precisions(device) if measured else []
    return {
        "cpu": cpu_name(),
        "features": cpu_features(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "matrix_gflops": {precision: matrix_gflops(precision, device) for precision in precisions},
        "system": platform.system(),
        "versions": library_versions(),
    }


def cpu_name() -> str:
    """The CPU's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Which of INSTRUCTIONS the CPU has, strongest first."""
    if hasattr(torch.cpu, "get_capabilities"):
        names = {name for name, present in torch.cpu.get_capabilities().items() if present is True}
    else:  # PyTorch 2.8 has no such function
        flags = _cpuinfo("flags") or _cpuinfo("Features")
        names = {flag.replace("avx512f", "avx512_f") for flag in flags.split()}
    return [label for name, label in INSTRUCTIONS.items() if name in names]


def _cpuinfo(field: str) -> str:
    """The first value of a field of /proc/cpuinfo, "" if there is none."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def kind(machine: dict[str, Any]) -> str:
    """The name of the folder for results of machines like this one, such as "xeon-amx"."""
    if machine["gpu"]:
        return re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower())
    name = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", machine["cpu"].lower())).strip("-")
    name = next((family for family in FAMILIES if family in name), name)
    return "-".join([name, *(feature.lower().replace("-", "") for feature in machine.get("features", [])[:1])])


def describe(machine: dict[str, Any]) -> str:
    """CPU or GPU, its strongest instructions and its matrix products, as far as they are known."""
    if machine["gpu"]:
        text = machine["gpu"]
    elif "features" in machine:
        text = f"{machine['cpu']}, {(machine['features'] or ['neither AMX nor AVX-512'])[0]}"
    else:
        text = f"{machine['cpu']}, instructions not recorded"
    rates = [f"{rate:,.0f} in {precision}" for precision, rate in machine.get("matrix_gflops", {}).items()]
    return f"{text}; GFLOP/s of matrix products: {', '.join(rates)}" if rates else text


# ---- Matrix products


def fast_precisions(device: str) -> list[str]:
    """The precisions that the device computes in without emulation."""
    if device == "cuda":
        return list(PRECISIONS)
    return ["fp32", *(["bf16"] if BF16_INSTRUCTIONS.intersection(cpu_features()) else [])]


def matrix_gflops(precision: str, device: str = "cpu") -> float:
    """The rate of matrix products now, in GFLOP/s: the best call of some shapes, with PyTorch's number of threads."""
    return max(_linear_gflops(shape, dtype_of(precision), device) for shape in SHAPES[device])


def _linear_gflops(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> float:
    rows, inputs, outputs = shape
    x, weight = (torch.randn(n, inputs, dtype=dtype, device=device) for n in (rows, outputs))
    return 2e-9 * rows * inputs * outputs / _shortest_seconds(lambda: F.linear(x, weight), device)


def memory_gb_per_s(device: str = "cpu") -> float:
    """The rate of the device's memory now, in GB/s: bytes read and written by the best copy of a large tensor."""
    source = torch.zeros(COPIED_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2e-9 * len(source) / _shortest_seconds(lambda: target.copy_(source), device)


def _shortest_seconds(function: Callable[[], object], device: str) -> float:
    """The time of the fastest of several calls after a first one."""
    seconds: list[float] = []
    function()
    while len(seconds) < MIN_CALLS or sum(seconds) < MIN_SECONDS:
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def synchronize(device: str) -> None:
    """Waits until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    this = machine()
    print(f"{kind(this)}: {describe(this)}; {this['threads']} thread(s)")


if __name__ == "__main__":
    cli_main(main)
