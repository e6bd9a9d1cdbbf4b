"""DINOv2 vision transformer with adapter branches beside it. Entry names are those of Meta's published weights."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import MulConvAdapter
from .config import PATCH_SIZE, ViTConfig, patch_grid
from .errors import InputError

POSITION_GRID = 37  # DINOv2 was trained at 518 x 518, that is 37 x 37 patches


class BranchTokens(NamedTuple):
    """Normalised tokens of each branch, [B, p+n, D], or None if it was not computed; grid (h, w), n = h*w.

    The p prefix tokens are the class token and the registers, if there are any. The patch tokens follow row by row.
    """

    float_tokens: Tensor | None
    binary_tokens: Tensor | None
    grid: tuple[int, int]


class PatchEmbed(nn.Module):
    """Images [B, 3, 14h, 14w] -> patch tokens [B, h*w, D]."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, PATCH_SIZE, PATCH_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D))


class Mlp(nn.Module):
    """Two linear layers with exact GELU between, [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """Scales each channel by a learned factor."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale on both residuals, [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """DINOv2 backbone, and a sequence of MultiConv adapters beside it for each branch (paper, section III-B).

    A branch starts from the tokens before its first adapter: `y = y + adapter_i(y + x_i)`, where x_i is the output of
    block i. Gradients reach the adapters through y alone. With a frozen backbone, autograd therefore keeps no graph
    of it. The names adapters (float branch) and adapters_hashing (binary branch) are fixed by the published weights.
    """

    def __init__(self, vit: ViTConfig, float_branch: bool = True, binary_branch: bool = False) -> None:
        super().__init__()
        dim = vit.embed_dim
        self.embed_dim = dim
        self.first_adapted_block = vit.depth - vit.num_adapters
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + POSITION_GRID**2, dim))
        self.position_grid = (POSITION_GRID, POSITION_GRID)  # of pos_embed
        self.register_tokens = nn.Parameter(torch.zeros(1, vit.num_registers, dim)) if vit.num_registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # unused, but part of DINOv2's weights
        self.patch_embed = PatchEmbed(dim)
        self.blocks = nn.ModuleList(Block(dim, vit.num_heads) for _ in range(vit.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.register_tokens):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        self.adapters: Any = _adapters(vit) if float_branch else None
        self.adapters_hashing: Any = _adapters(vit) if binary_branch else None
        self.apply(_init_linear)
        for adapter in [*(self.adapters or []), *(self.adapters_hashing or [])]:
            adapter.reset_parameters()

    def position_embedding(self, h: int, w: int) -> Tensor:
        """Position embedding for an h x w patch grid, [1, 1+h*w, D]."""
        if (h, w) == self.position_grid:
            return self.pos_embed
        if self.position_grid != (POSITION_GRID, POSITION_GRID):
            raise InputError(f"This model was prepared for {self.position_grid} patches, but the image has {(h, w)}.")
        grid = self.pos_embed[:, 1:].reshape(1, POSITION_GRID, POSITION_GRID, -1).permute(0, 3, 1, 2)
        # Both ways are part of DINOv2's published behaviour. The 0.1 shifts the sampling points a little.
        if self.register_tokens is None:
            scale = ((h + 0.1) / POSITION_GRID, (w + 0.1) / POSITION_GRID)
            grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
        else:  # PyTorch has no antialiasing in half precision on the CPU
            grid = F.interpolate(grid.float(), size=(h, w), mode="bicubic", antialias=True).to(grid.dtype)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def fix_positions(self, embedding: nn.Parameter, grid: tuple[int, int]) -> None:
        """Keeps only the position embedding for one patch grid, see position_embedding, so that it is not computed in
        each pass. The model then takes images of that size only.
        """
        self.pos_embed = embedding
        self.position_grid = grid

    def embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Normalised images [B, 3, 14h, 14w] -> tokens [B, p+h*w, D]: see BranchTokens.

        The class token and the patches have a position embedding, the registers between them have none.
        """
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        tokens = tokens + self.position_embedding(*grid)
        if self.register_tokens is None:
            return tokens
        registers = self.register_tokens.expand(patches.shape[0], -1, -1)
        return torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)

    def forward(
        self, images: Tensor, float_branch: bool = True, frozen_backbone: "VisionTransformer | None" = None
    ) -> BranchTokens:
        """Normalised images [B, 3, 14h, 14w] -> the branches' tokens.

        `float_branch=False` skips the float branch, for training the binary branch of a two-branch model.
        frozen_backbone: a copy of this one, for training, whose blocks are used in place of these. Raises InputError if
        height or width is not a multiple of 14.
        """
        h, w = patch_grid(*map(int, images.shape[-2:]))  # int: torch.jit.trace gives tensors
        source: VisionTransformer = self
        precision: AbstractContextManager[Any] = nullcontext()
        if frozen_backbone is not None:
            source, images = frozen_backbone, images.to(frozen_backbone.cls_token.dtype)
            # Under autocast, each LayerNorm would convert to float32 and back.
            precision = torch.autocast(images.device.type, enabled=False)
        with precision:
            x = source.embed(images, (h, w))
        adapters: Any = self.adapters if float_branch else None
        float_tokens = binary_tokens = None
        for i, block in enumerate(source.blocks):
            j = i - self.first_adapted_block
            if j == 0:
                start = x if frozen_backbone is None else x.float()  # what trains is summed in full precision
                float_tokens = start if adapters is not None else None
                binary_tokens = start if self.adapters_hashing is not None else None
            with precision:
                x = block(x)
            if j >= 0 and float_tokens is not None:
                float_tokens = float_tokens + adapters[j](float_tokens + x, (h, w))
            if j >= 0 and binary_tokens is not None:
                binary_tokens = binary_tokens + self.adapters_hashing[j](binary_tokens + x, (h, w))
        return BranchTokens(
            self.norm(float_tokens) if float_tokens is not None else None,
            self.norm(binary_tokens) if binary_tokens is not None else None,
            (h, w),
        )


def _adapters(vit: ViTConfig) -> nn.ModuleList:
    return nn.ModuleList(MulConvAdapter(vit.embed_dim) for _ in range(vit.num_adapters))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
