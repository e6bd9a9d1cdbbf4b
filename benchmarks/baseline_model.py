"""The baseline of the benchmarks: the model's forward pass, as one would first write it from the paper. It computes
with the same parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model import GeoLocalizationNet
from model.adapter import MulConvAdapter
from model.aggregation import patch_map
from model.network import STE_binary
from model.vision_transformer import VisionTransformer, patch_grid


def baseline_forward(model: GeoLocalizationNet, images: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Images [B, 3, 14h, 14w] -> (descriptor, logits, code) of a gem model; None for a branch that the model lacks."""
    backbone, grid = model.backbone, patch_grid(*images.shape[-2:])
    x = first_tokens(backbone, images)
    float_tokens = binary_tokens = x
    for i, block in enumerate(backbone.blocks):
        j = i - backbone.first_adapted_block
        if j == 0:
            float_tokens = binary_tokens = x
        x = block(x)
        if j >= 0 and backbone.adapters is not None:
            float_tokens = float_tokens + baseline_adapter(backbone.adapters[j], float_tokens + x, grid)
        if j >= 0 and backbone.adapters_hashing is not None:
            binary_tokens = binary_tokens + baseline_adapter(backbone.adapters_hashing[j], binary_tokens + x, grid)
    descriptor = logits = code = None
    if backbone.adapters is not None:
        pooled = model.aggregation(patch_map(model.linear1(backbone.norm(float_tokens)), grid))
        descriptor = F.normalize(model.linear2(pooled), dim=1)
    if backbone.adapters_hashing is not None:
        pooled = model.aggregation_hashing(patch_map(model.linear3(backbone.norm(binary_tokens)), grid))
        logits = F.normalize(model.linear4(pooled), dim=1)
        code = STE_binary.apply(logits)
    return descriptor, logits, code


def first_tokens(backbone: VisionTransformer, images: Tensor) -> Tensor:
    """Images [B, 3, 14h, 14w] -> the tokens that enter the first block, [B, 1+h*w, D]."""
    x = backbone.patch_embed(images)
    x = torch.cat([backbone.cls_token.expand(len(x), -1, -1), x], dim=1)
    return x + backbone.position_embedding(*patch_grid(*images.shape[-2:]))


def baseline_adapter(adapter: MulConvAdapter, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The adapter as in the paper's formulas, on channels-first maps: [B, 1+h*w, D] -> [B, 1+h*w, D]."""
    u = torch.relu(adapter.D_fc1(tokens))
    patches = u[:, 1:].transpose(1, 2).reshape(len(u), -1, *grid)
    patches = torch.cat([adapter.branch1(patches), adapter.branch2(patches), adapter.branch3(patches)], dim=1)
    return adapter.D_fc2(torch.cat([u[:, :1], patches.flatten(2).transpose(1, 2)], dim=1) + u)
