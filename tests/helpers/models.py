"""Models with reference parameters, and reference images."""

import functools
import zlib
from pathlib import Path

import numpy as np
import torch

from model import GeoLocalizationNet, ModelConfig

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MOST_KEPT = 300_000  # numbers
MODES = {"float": {}, "hashing": {"hashing": True}, "two_branch": {"hashing": True, "rerank": True}}


def build(backbone: str = "vit-tiny", aggregation: str = "gem", **flags: bool) -> GeoLocalizationNet:
    """A model at the start of training."""
    return GeoLocalizationNet(ModelConfig(backbone=backbone, aggregation=aggregation, **flags))


def sketched(backbone: str = "vit-tiny", aggregation: str = "gem", **flags: bool) -> GeoLocalizationNet:
    """A model of shapes without values, on the device "meta"."""
    with torch.device("meta"):
        return build(backbone, aggregation, **flags)


def reference_model(backbone: str = "vit-tiny", aggregation: str = "gem", **flags: bool) -> GeoLocalizationNet:
    """A model with reference parameters, in eval mode."""
    return filled(sketched(backbone, aggregation, **flags))


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
    spread = {"running_mean": (0, 0.1), "gamma": (0.3, 0.05), "norm": (1, 0.1)}
    spread |= dict.fromkeys(("bias", "in_proj_bias"), (0, 0.02))
    spread |= dict.fromkeys(("cls_token", "pos_embed", "mask_token", "queries"), (0, 0.3))
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


@functools.cache
def small_value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The reference value of an entry that is kept for the next model: those of vit-tiny take 25 MB."""
    return torch.from_numpy(fill(name, shape))


def filled(model: torch.nn.Module, cache: dict | None = None) -> torch.nn.Module:
    """The model (also one on "meta") with reference parameters in eval mode; `cache` keeps them for the next."""
    cache = {} if cache is None else cache
    for name, value in model.state_dict().items():
        key = name, tuple(value.shape)
        if key not in cache:
            is_small = value.numel() < MOST_KEPT
            cache[key] = small_value(*key).clone() if is_small else torch.from_numpy(fill(*key))
    state = {name: cache[name, tuple(value.shape)] for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.eval()
