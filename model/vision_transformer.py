"""DINOv2 vision transformer with adapter branches beside it. Entry names are those of Meta's published weights."""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapter import MulConvAdapter
from model.errors import InputError

PATCH_SIZE = 14
POSITION_GRID = 37  # DINOv2 was trained at 518 x 518, that is 37 x 37 patches
CPU_TOKENS = 1024  # that a block takes at once on a CPU: 7 to 10 % faster there than whole batches of 8 or 16, whose buffers are larger


class Trunk(NamedTuple):
    """Size of a trunk. `num_adapters` adapters stand beside its last blocks (paper: 12 of 12, 16 of 24)."""

    embed_dim: int
    depth: int
    num_heads: int
    num_adapters: int


TRUNKS = {
    "dinov2-base": Trunk(768, 12, 12, 12),
    "dinov2-large": Trunk(1024, 24, 16, 16),
    "dinov2-small": Trunk(384, 12, 6, 12),
    "vit-tiny": Trunk(192, 12, 3, 12),
}


class BranchTokens(NamedTuple):
    """Normalised tokens of the branches, each [B, 1+n, D] or None where the branch was not computed; grid is (h, w), n = h*w."""

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
    """DINOv2 trunk, and one row of MultiConv adapters for each branch asked for (paper, section III-B).

    A branch starts from the tokens before its first adapter and walks beside the trunk: `y = y + adapter_i(y + x_i)`,
    x_i being the output of block i. Gradients reach the adapters through y alone: with a frozen trunk, autograd keeps
    no graph of the trunk.
    """

    def __init__(self, trunk: Trunk, float_branch: bool = True, binary_branch: bool = False) -> None:
        super().__init__()
        dim = trunk.embed_dim
        self.embed_dim = dim
        self.first_adapted_block = trunk.depth - trunk.num_adapters
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + POSITION_GRID**2, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # unused; DINOv2's weights hold it
        self.patch_embed = PatchEmbed(dim)
        self.blocks = nn.ModuleList(Block(dim, trunk.num_heads) for _ in range(trunk.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        self.adapters = _adapters(trunk) if float_branch else None
        self.adapters_hashing = _adapters(trunk) if binary_branch else None
        self.apply(_init_linear)
        for adapter in [*(self.adapters or []), *(self.adapters_hashing or [])]:
            adapter.reset_parameters()

    def position_embedding(self, h: int, w: int) -> Tensor:
        """Position embedding for an h x w patch grid, [1, 1+h*w, D]."""
        if (h, w) == (POSITION_GRID, POSITION_GRID):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, POSITION_GRID, POSITION_GRID, -1).permute(0, 3, 1, 2)
        # The 0.1 is part of DINOv2's published behaviour: it shifts the sampling points a little.
        scale = ((h + 0.1) / POSITION_GRID, (w + 0.1) / POSITION_GRID)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def trunk_parameters(self) -> list[nn.Parameter]:
        """The parameters that DINOv2 has too: everything but the adapters."""
        return [p for name, p in self.named_parameters() if not name.startswith(("adapters.", "adapters_hashing."))]

    def forward(self, images: Tensor, float_branch: bool = True) -> BranchTokens:
        """[B, 3, 14h, 14w] normalised images -> the branches' tokens.

        `float_branch=False` leaves the float branch out, for training the binary branch of a two-branch model.
        Raises InputError where height or width is no multiple of 14.
        """
        h, w = patch_grid(*images.shape[-2:])
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.position_embedding(h, w)
        adapters = self.adapters if float_branch else None
        float_tokens = binary_tokens = None
        for i, block in enumerate(self.blocks):
            j = i - self.first_adapted_block
            if j == 0:
                float_tokens = x if adapters is not None else None
                binary_tokens = x if self.adapters_hashing is not None else None
            x = _run_block(block, x)
            if j >= 0 and float_tokens is not None:
                float_tokens = float_tokens + adapters[j](float_tokens + x, (h, w))
            if j >= 0 and binary_tokens is not None:
                binary_tokens = binary_tokens + self.adapters_hashing[j](binary_tokens + x, (h, w))
        return BranchTokens(
            self.norm(float_tokens) if float_tokens is not None else None,
            self.norm(binary_tokens) if binary_tokens is not None else None,
            (h, w),
        )


def patch_grid(height: int, width: int) -> tuple[int, int]:
    """Patches (h, w) of an image of that many pixels. Raises InputError where either is no multiple of 14."""
    if height < PATCH_SIZE or width < PATCH_SIZE or height % PATCH_SIZE or width % PATCH_SIZE:
        near = [max(1, round(side / PATCH_SIZE)) * PATCH_SIZE for side in (height, width)]
        raise InputError(
            f"images of {height} x {width} pixels (height x width): both must be multiples of {PATCH_SIZE}, "
            f"the size of a patch; the nearest is {near[0]} x {near[1]}"
        )
    return height // PATCH_SIZE, width // PATCH_SIZE


def _run_block(block: Block, x: Tensor) -> Tensor:
    """block(x), on a CPU without a graph a few images at a time. A compiler gets it whole: it would unroll the parts."""
    if x.device.type != "cpu" or x.requires_grad or torch.compiler.is_compiling():
        return block(x)
    images = max(1, round(CPU_TOKENS / x.shape[1]))
    return torch.cat([block(part) for part in x.split(images)])


def _adapters(trunk: Trunk) -> nn.ModuleList:
    return nn.ModuleList(MulConvAdapter(trunk.embed_dim) for _ in range(trunk.num_adapters))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
