"""How long each part of a model's forward pass takes."""

import time
from collections.abc import Callable
from contextlib import ExitStack

from torch import nn

from model import GeoLocalizationNet
from model.adapter import MulConvAdapter
from model.inference import FusedAdapter
from model.vision_transformer import Attention, LayerScale, Mlp, PatchEmbed

PARTS: dict[str, tuple[type[nn.Module], ...]] = {
    "patch embedding": (PatchEmbed,),
    "attention": (Attention,),
    "MLP": (Mlp,),
    "adapters": (MulConvAdapter, FusedAdapter),
    "LayerNorm": (nn.LayerNorm,),
    "LayerScale": (LayerScale,),
}
REST = "head and sums"


def seconds_by_part(model: GeoLocalizationNet, forward: Callable[[], object], rounds: int) -> dict[str, float]:
    """Seconds that each of PARTS, and the rest, take in the fastest of `rounds` calls of `forward` on the CPU."""
    runs = []
    for _ in range(rounds):
        seconds = dict.fromkeys(PARTS, 0.0)
        with ExitStack() as hooks:
            for name, kinds in PARTS.items():
                for module in model.modules():
                    if isinstance(module, kinds):
                        _measure(module, name, seconds, hooks)
            start = time.perf_counter()
            forward()
            total = time.perf_counter() - start
        runs.append(seconds | {REST: total - sum(seconds.values())})
    return min(runs, key=lambda run: sum(run.values()))


def _measure(module: nn.Module, name: str, seconds: dict[str, float], hooks: ExitStack) -> None:
    """Adds the time of each call of the module to seconds[name], until `hooks` is closed."""

    def before(*_: object) -> None:
        seconds[name] -= time.perf_counter()

    def after(*_: object) -> None:
        seconds[name] += time.perf_counter()

    hooks.callback(module.register_forward_pre_hook(before).remove)
    hooks.callback(module.register_forward_hook(after).remove)
