"""Models prepared for inference: the same outputs up to rounding, faster."""

import contextlib
import copy
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .adapter import MulConvAdapter
from .config import PRECISIONS, HubConfig, ModelConfig
from .errors import InputError
from .network import GeoLocalizationNet
from .vision_transformer import PATCH_SIZE, PatchEmbed, VisionTransformer, patch_grid

KEPT_GRIDS = 16  # position embeddings of a prepared model; one of dinov2-large takes 2 MB at 322 x 322
Module = TypeVar("Module", bound=nn.Module)


class Describer(Protocol):
    """What describes images, ready to be called. config: what it is. descriptor_dim: of its float descriptors;
    0 for none. fingerprint: a SHA-256 that tells whether features and thresholds are its own. engine: what computes, in
    words.
    """

    @property
    def config(self) -> ModelConfig | HubConfig: ...

    @property
    def descriptor_dim(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def engine(self) -> str: ...

    def __call__(self, images: Tensor, float_branch: bool = True) -> Any:
        """Images [B, 3, H, W], normalised, on its device, to what GeoLocalizationNet.forward returns."""


class InferenceModel:
    """A model that was prepared for inference. It is called like the original, with float32 images.

    The outputs carry no gradients. Two threads must not call it with images of different sizes at the same time.
    Attributes: original, the model that it was made from, which is unchanged; network, the prepared copy, whose state
    dict differs; config and descriptor_dim of the original; kept_positions, position embeddings by patch grid (h, w).
    """

    def __init__(self, original: GeoLocalizationNet, network: GeoLocalizationNet, *, compiled: bool) -> None:
        self.original = original
        self.network = network
        self.config = original.config
        self.descriptor_dim = original.descriptor_dim
        self.dtype = network.backbone.cls_token.dtype
        self.compiled = compiled
        self.kept_positions: dict[tuple[int, int], nn.Parameter] = {}

    @cached_property
    def fingerprint(self) -> str:
        """That of the original."""
        return self.original.fingerprint

    @property
    def engine(self) -> str:
        """PyTorch, its version, and the number format."""
        return pytorch(self.dtype) + ", compiled" * self.compiled

    def __call__(self, images: Tensor, float_branch: bool = True) -> Any:
        """See GeoLocalizationNet.forward."""
        backbone, grid = self.network.backbone, patch_grid(*images.shape[-2:])
        with torch.inference_mode(), _frozen_weights() if self.compiled else contextlib.nullcontext():
            if backbone.position_grid != grid:
                backbone.fix_positions(self._positions(grid), grid)
            return self.network(images.to(self.dtype), float_branch)

    def _positions(self, grid: tuple[int, int]) -> nn.Parameter:
        """The same parameter for the same grid: for another one, torch.compile would compile again."""
        kept = self.kept_positions
        if grid not in kept:
            if len(kept) == KEPT_GRIDS:
                del kept[next(iter(kept))]
            embedding = self.original.backbone.position_embedding(*grid).detach()
            kept[grid] = nn.Parameter(embedding.to(self.network.backbone.pos_embed), requires_grad=False)
        return kept[grid]


def pytorch(dtype: torch.dtype) -> str:
    """PyTorch as an engine, in words: its version, and the number format."""
    return f"PyTorch {torch.__version__}, {str(dtype).removeprefix('torch.')}"


def dtype_of(precision: str) -> torch.dtype:
    """PyTorch's number format. Raises InputError for a name that is no key of PRECISIONS."""
    if precision not in PRECISIONS:
        raise InputError(f"Unknown precision {precision!r}. Choose from: {', '.join(PRECISIONS)}.")
    return getattr(torch, PRECISIONS[precision])


def prepare_for_inference(
    model: GeoLocalizationNet,
    dtype: torch.dtype = torch.float32,
    *,
    device: str | torch.device | None = None,
    compiled: bool = False,
) -> InferenceModel:
    """A copy of a model in eval mode that computes in `dtype`, on `device` (None: where the model is).

    BatchNorm becomes part of the adapters' convolutions, the patch embedding and the 1 x 1 convolutions of an adapter
    matrix products, and LayerScale part of the projections before it. The position embeddings of the latest image sizes
    are kept. compiled: the first calls compile the model, with its weights as constants, and so may calls with another
    shape. Weights that stay as they are share the original's memory: if those of the original change, prepare it again.
    Raises InputError in training mode, and for a model of another copy of this package.
    """
    if not isinstance(model, GeoLocalizationNet):
        raise InputError(
            f"The model is a {type(model).__module__}.{type(model).__name__}. Expected a GeoLocalizationNet of this "
            "package, not a wrapper: prepare a model before torch.compile, with prepare_for_inference of the package "
            "or the torch.hub entry that loaded it."
        )
    if any(module.training for module in model.modules()):
        raise InputError("The model is in training mode. Call model.eval() before preparing it for inference.")
    network = _copy(model)
    backbone = network.backbone
    _simplify(backbone)
    for adapters in (backbone.adapters, backbone.adapters_hashing):
        for i, adapter in enumerate(adapters or ()):
            if isinstance(adapter, MulConvAdapter):
                adapters[i] = FusedAdapter(adapter)
    network.to(device, dtype)
    if compiled:
        network.compile()
    return InferenceModel(model, network, compiled=compiled)


def prepare_frozen_backbone(
    backbone: VisionTransformer, dtype: torch.dtype, grid: tuple[int, int]
) -> VisionTransformer:
    """A copy of a frozen backbone without adapters, for VisionTransformer.forward, that computes in `dtype`.

    It takes images with this patch grid only. It shares memory as a prepared model does, and does not follow if the
    original's weights change.
    """
    frozen = _copy(backbone)
    frozen.adapters = frozen.adapters_hashing = None
    frozen.fix_positions(nn.Parameter(frozen.position_embedding(*grid), requires_grad=False), grid)
    _simplify(frozen)
    return frozen.to(dtype)


class FusedAdapter(nn.Module):
    """A MulConvAdapter in eval mode, with less to compute: the same tokens to the same output."""

    def __init__(self, adapter: MulConvAdapter) -> None:
        super().__init__()
        pointwise = [_fused(layer) for layer in (adapter.branch1, adapter.branch2[0], adapter.branch3[0])]
        self.convs = nn.ModuleList(_fused(layer) for layer in (adapter.branch2[1], adapter.branch3[1]))
        self.down, self.up = adapter.D_fc1, adapter.D_fc2
        self.widths = [conv.out_channels for conv in pointwise]
        self.pointwise = _linear(
            torch.cat([conv.weight.flatten(1) for conv in pointwise]), torch.cat([conv.bias for conv in pointwise])
        )

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        u = torch.relu(self.down(tokens))
        n = grid[0] * grid[1]
        # Of all tokens, the prefix too: a part of them is not contiguous, and would be copied.
        wide, *narrow = torch.relu(self.pointwise(u))[:, -n:].split(self.widths, dim=2)
        maps = [x.transpose(1, 2).unflatten(2, grid).contiguous(memory_format=torch.channels_last) for x in narrow]
        convolved = [torch.relu(conv(x)).flatten(2).transpose(1, 2) for conv, x in zip(self.convs, maps, strict=True)]
        return self.up(u + torch.cat([u[:, :-n], torch.cat([wide, *convolved], dim=2)], dim=1))


class LinearPatchEmbed(nn.Module):
    """A PatchEmbed as a matrix product: images [B, 3, 14h, 14w] -> patch tokens [B, h*w, D]."""

    def __init__(self, embed: PatchEmbed) -> None:
        super().__init__()
        assert embed.proj.bias is not None
        self.linear = _linear(embed.proj.weight.flatten(1), embed.proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unflatten(3, (-1, PATCH_SIZE)).unflatten(2, (-1, PATCH_SIZE))  # [B, 3, h, 14, w, 14]
        return self.linear(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


def _fused(layer: Any) -> Any:
    """The convolution of a ConvBnRelu with its BatchNorm."""
    return fuse_conv_bn_eval(layer.conv, layer.bn)


def _copy(module: Module) -> Module:
    """A copy without gradients that shares the memory of parameters and buffers."""
    shared: dict[int, Tensor] = {id(buffer): buffer.detach() for buffer in module.buffers()}
    shared |= {id(value): nn.Parameter(value.detach(), requires_grad=False) for value in module.parameters()}
    return copy.deepcopy(module, shared)


def _simplify(backbone: VisionTransformer) -> None:
    """Makes the patch embedding a matrix product, and each LayerScale part of the projection before it."""
    patch_embed: Any = LinearPatchEmbed(backbone.patch_embed)
    backbone.patch_embed = patch_embed
    blocks: Any = backbone.blocks
    for block in blocks:
        for scale, linear in ((block.ls1, block.attn.proj), (block.ls2, block.mlp.fc2)):
            linear.weight = nn.Parameter(linear.weight * scale.gamma[:, None], requires_grad=False)
            linear.bias = nn.Parameter(linear.bias * scale.gamma, requires_grad=False)
        block.ls1 = block.ls2 = nn.Identity()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    return linear


def _frozen_weights() -> contextlib.AbstractContextManager[Any]:
    """Compiles weights as constants, which PyTorch can then store as its matrix products need them."""
    from torch._inductor import config  # takes a second, and needs packages that PyTorch does not always have

    return config.patch(freezing=True)
