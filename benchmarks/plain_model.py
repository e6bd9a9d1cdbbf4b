"""The model's forward pass as a reader of the paper would write it first, on the same parameters: what the benchmarks call plain."""
import torch
import torch.nn.functional as F
from torch import Tensor

from model import GeoLocalizationNet
from model.adapter import MulConvAdapter
from model.aggregation import patch_map
from model.network import STE_binary
from model.vision_transformer import VisionTransformer, patch_grid


def first_tokens(trunk: VisionTransformer, images: Tensor) -> Tensor:
    """Images [B, 3, 14h, 14w] -> what the first block takes, [B, 1+h*w, D]."""
    x = trunk.patch_embed(images)
    return torch.cat([trunk.cls_token.expand(len(x), -1, -1), x], dim=1) + trunk.position_embedding(*patch_grid(*images.shape[-2:]))


def plain_adapter(adapter: MulConvAdapter, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The adapter by its formulas, on maps with the channels first."""
    u = torch.relu(adapter.D_fc1(tokens))
    patches = u[:, 1:].transpose(1, 2).reshape(len(u), -1, *grid)
    patches = torch.cat([adapter.branch1(patches), adapter.branch2(patches), adapter.branch3(patches)], dim=1)
    return adapter.D_fc2(torch.cat([u[:, :1], patches.flatten(2).transpose(1, 2)], dim=1) + u)


def plain_forward(model: GeoLocalizationNet, images: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Images [B, 3, 14h, 14w] -> (descriptor, logits, code) of a gem model, None where it has no such branch; a whole batch at a time."""
    trunk, grid = model.backbone, patch_grid(*images.shape[-2:])
    x = first_tokens(trunk, images)
    float_tokens = binary_tokens = None
    for i, block in enumerate(trunk.blocks):
        j = i - trunk.first_adapted_block
        if j == 0:
            float_tokens = binary_tokens = x
        x = block(x)
        if j >= 0 and trunk.adapters is not None:
            float_tokens = float_tokens + plain_adapter(trunk.adapters[j], float_tokens + x, grid)
        if j >= 0 and trunk.adapters_hashing is not None:
            binary_tokens = binary_tokens + plain_adapter(trunk.adapters_hashing[j], binary_tokens + x, grid)
    descriptor = logits = code = None
    if trunk.adapters is not None:
        pooled = model.aggregation(patch_map(model.linear1(trunk.norm(float_tokens)), grid))
        descriptor = F.normalize(model.linear2(pooled), dim=1)
    if trunk.adapters_hashing is not None:
        pooled = model.aggregation_hashing(patch_map(model.linear3(trunk.norm(binary_tokens)), grid))
        logits = F.normalize(model.linear4(pooled), dim=1)
        code = STE_binary.apply(logits)
    return descriptor, logits, code
