"""The variants that are compared: adapters, networks and losses. The method of the paper is the model's own."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baseline_model import first_tokens
from model import BACKBONES, GeoLocalizationNet, HashingOutput, ModelConfig
from model.adapter import ConvBnRelu, MulConvAdapter
from model.aggregation import gem_pooling, patch_map
from model.vision_transformer import VisionTransformer, patch_grid
from utils.training.losses import (
    CONSTRAINT_WEIGHT,
    Losses,
    float_losses,
    hashing_losses,
    mine_pairs,
    similarity_constraint,
)

BACKBONE = "vit-tiny"

# ---- Adapters. Each is called with tokens [B, 1+n, D] and the grid (h, w), and returns [B, 1+n, D], zero at the start.


class BottleneckAdapter(nn.Module):
    """A plain bottleneck: two linear layers with ReLU between. `hidden` gives it the size of the MultiConv adapter."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = round((_size(MulConvAdapter(dim)) - dim) / (2 * dim + 1))
        self.down, self.up = _down_and_up(dim, hidden)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.up(torch.relu(self.down(tokens)))


class OneSizeAdapter(nn.Module):
    """The MultiConv adapter with one branch, of k x k convolutions, in place of three, and of the same size."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        hidden = dim // 2
        self.down, self.up = _down_and_up(dim, hidden)
        # Parameters of the branch with `reduced` channels inside: 1x1 and its BatchNorm, k x k and its BatchNorm.
        outside = 3 * hidden
        each = hidden + 3 + kernel_size**2 * hidden
        convolutions = _size(MulConvAdapter(dim)) - _size(self.down) - _size(self.up)
        reduced = round((convolutions - outside) / each)
        self.branch = nn.Sequential(ConvBnRelu(hidden, reduced, 1), ConvBnRelu(reduced, hidden, kernel_size))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        u = torch.relu(self.down(tokens))
        patches = self.branch(u[:, 1:].transpose(1, 2).unflatten(2, grid))
        convolved = torch.cat([u[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
        return self.up(convolved + u)


def constant_start(adapter: nn.Module) -> nn.Module:
    """The adapter with its convolutions at 1e-5, where those of the MultiConv adapter start."""
    for convolution in _convolutions(adapter):
        nn.init.constant_(convolution.weight, 1e-5)
        nn.init.constant_(convolution.bias, 1e-5)  # type: ignore[arg-type]
    return adapter


def random_start(adapter: nn.Module) -> nn.Module:
    """The adapter with its convolutions at random, as PyTorch initialises them.

    From a constant, the channels between the two convolutions of a branch get equal gradients and stay equal.
    """
    for convolution in _convolutions(adapter):
        convolution.reset_parameters()
    return adapter


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


def _down_and_up(dim: int, hidden: int) -> tuple[nn.Linear, nn.Linear]:
    """The linear layers of an adapter, initialised as those of the MultiConv adapter."""
    down, up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
    nn.init.trunc_normal_(down.weight, std=0.02)
    for parameter in (down.bias, up.weight, up.bias):
        nn.init.zeros_(parameter)
    return down, up


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


ADAPTERS: dict[str, Callable[[int], nn.Module]] = {
    "bottleneck": BottleneckAdapter,
    "conv3": lambda dim: constant_start(OneSizeAdapter(dim, 3)),
    "multiconv_random": lambda dim: random_start(MulConvAdapter(dim)),
    "conv3_random": lambda dim: OneSizeAdapter(dim, 3),
}


# ---- Networks


class PlainNet(GeoLocalizationNet):
    """A float model without adapters: its head takes the backbone's own tokens."""

    def __init__(self) -> None:
        super().__init__(ModelConfig(backbone=BACKBONE))
        self.backbone.adapters = None

    def forward(
        self, images: Tensor, float_branch: bool = True, frozen_backbone: VisionTransformer | None = None
    ) -> Tensor:
        """Normalised images [B, 3, 14h, 14w] -> descriptors [B, descriptor_dim]."""
        x = first_tokens(self.backbone, images)
        for block in self.backbone.blocks:
            x = block(x)
        return self._float_head(self.backbone.norm(x), patch_grid(*images.shape[-2:]))


class PooledTokens(nn.Module):
    """GeM pooling of patch tokens, without anything to train: tokens [B, 1+n, D] -> [B, D], L2-normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.pooling = gem_pooling(BACKBONES[BACKBONE].embed_dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return F.normalize(self.pooling(patch_map(tokens, grid)), dim=1)


def pooled_backbone() -> GeoLocalizationNet:
    """The backbone with pooled tokens as descriptors."""
    model = PlainNet()
    model.aggregation, model.linear1, model.linear2 = PooledTokens(), None, None
    return model


def adapted(adapter: str | None = None) -> GeoLocalizationNet:
    """The float model, with the adapters of a key of ADAPTERS in place of its own."""
    model = GeoLocalizationNet(ModelConfig(backbone=BACKBONE))
    if adapter:
        dim, count = model.backbone.embed_dim, len(model.backbone.adapters)
        model.backbone.adapters = nn.ModuleList(ADAPTERS[adapter](dim) for _ in range(count))
    return model


def hashing(bits: int) -> GeoLocalizationNet:
    """The hashing-only model with codes of `bits` bits."""
    model = GeoLocalizationNet(ModelConfig(backbone=BACKBONE, hashing=True))
    model.linear4 = nn.Linear(model.backbone.embed_dim, bits)
    return model


def two_branch() -> GeoLocalizationNet:
    """The two-branch model."""
    return GeoLocalizationNet(ModelConfig(backbone=BACKBONE, hashing=True, rerank=True))


NETWORKS: dict[str, Callable[[], GeoLocalizationNet]] = {
    "pooled": pooled_backbone,
    "foundation": PlainNet,
    "head": PlainNet,
    "full": PlainNet,
    "multiconv": adapted,
    **{name: partial(adapted, name) for name in ADAPTERS},
}


# ---- Losses of the hashing-only model


def sign_after_losses(output: HashingOutput, labels: Tensor) -> Losses:
    """Multi-similarity of the float logits. The codes, their signs, play no part in training."""
    return float_losses(output.logits, labels)


def straight_through_losses(output: HashingOutput, labels: Tensor) -> Losses:
    """Multi-similarity of the codes, whose gradient passes straight through to the logits. No constraint."""
    return float_losses(output.code, labels)


def constraint_losses(output: HashingOutput, labels: Tensor) -> Losses:
    """Multi-similarity of the float logits, plus the similarity constraint. No gradient passes through the codes."""
    losses = float_losses(output.logits, labels)
    positives, negatives = mine_pairs((output.logits @ output.logits.T).detach(), labels)
    constraint = similarity_constraint(output.logits, output.code.detach(), positives | negatives)
    return losses._replace(total=losses.total + CONSTRAINT_WEIGHT * constraint, constraint=constraint)


HASHING_LOSSES: dict[str, Callable[[HashingOutput, Tensor], Losses]] = {
    "sign_after": sign_after_losses,
    "straight_through": straight_through_losses,
    "constraint": constraint_losses,
    "both": hashing_losses,
}
