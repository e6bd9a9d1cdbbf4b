"""Where the time of extraction goes: the parts of the forward pass, of the model and of the prepared model.

    python -m benchmarks.bench_parts [--threads N] [--json [FILE]]

dinov2-base with gem at 322 x 322, random weights, on the CPU, in fp32 and, if the CPU has instructions for it, bf16.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench_extract import BATCH, SIZE, make_model
from benchmarks.common import Row, parse_arguments, report
from benchmarks.machine import fast_precisions
from model import GeoLocalizationNet, prepare_for_inference
from model.adapter import MulConvAdapter
from model.inference import FusedAdapter, dtype_of
from model.vision_transformer import Attention, Mlp, PatchEmbed
from utils.runtime.memory import keep_freed_memory
from utils.runtime.script import cli_main

ROUNDS = 6
PARTS: dict[str, tuple[type[nn.Module], ...]] = {
    "patch embedding": (PatchEmbed,),
    "attention": (Attention,),
    "MLP": (Mlp,),
    "adapters": (MulConvAdapter, FusedAdapter),
    "LayerNorm": (nn.LayerNorm,),
}
REST = "LayerScale, sums, head"


def seconds_by_part(network: GeoLocalizationNet, forward: Callable[[], object]) -> dict[str, float]:
    """Seconds that each of PARTS, and the rest, take in a call of `forward` on the CPU."""
    seconds = dict.fromkeys(PARTS, 0.0)
    with ExitStack() as hooks:
        for name, kinds in PARTS.items():
            for module in network.modules():
                if isinstance(module, kinds):
                    _measure(module, name, seconds, hooks)
        start = time.perf_counter()
        forward()
        total = time.perf_counter() - start
    return seconds | {REST: total - sum(seconds.values())}


def _measure(module: nn.Module, name: str, seconds: dict[str, float], hooks: ExitStack) -> None:
    """Adds the time of each call of the module to seconds[name], until `hooks` is closed."""

    def before(*_: object) -> None:
        seconds[name] -= time.perf_counter()

    def after(*_: object) -> None:
        seconds[name] += time.perf_counter()

    hooks.callback(module.register_forward_pre_hook(before).remove)
    hooks.callback(module.register_forward_hook(after).remove)


def part_rows(precision: str) -> list[Row]:
    """The parts in one precision, of the fastest of ROUNDS calls each, in turn."""
    model, images = make_model("dinov2-base", "cpu"), torch.rand(BATCH, 3, *SIZE)
    prepared = prepare_for_inference(model, dtype_of(precision))

    def plain(images: Tensor) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", dtype_of(precision), enabled=precision != "fp32"):
            return model(images)

    runs: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for _ in range(ROUNDS):
        runs[0].append(seconds_by_part(model, lambda: plain(images)))
        runs[1].append(seconds_by_part(prepared.network, lambda: prepared(images)))
    baseline, ours = (min(run, key=lambda parts: sum(parts.values())) for run in runs)
    totals = {"all": (sum(baseline.values()), sum(ours.values()))}
    figures = totals | {name: (baseline[name], ours[name]) for name in baseline}
    return [
        Row(
            name=f"{precision}, {name}" if name == "all" else f"  {precision}, {name}",
            baseline=1e3 * before / BATCH,
            ours=1e3 * after / BATCH,
            unit="ms/image",
            ratio=before / after,
        )
        for name, (before, after) in figures.items()
    ]


def main() -> None:
    args = parse_arguments("The parts of the forward pass.", threads=None)
    keep_freed_memory()
    rows = [row for precision in fast_precisions("cpu") for row in part_rows(precision)]
    report(f"Parts of the forward pass at {SIZE[0]} x {SIZE[1]}, batches of {BATCH}", rows, args.json)


if __name__ == "__main__":
    cli_main(main)
