"""The whole network: backbone, adapters, float head, binary head."""

import hashlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aggregation import AGGREGATIONS, GeM, L2Norm, patch_map
from .config import BACKBONES, CODE_BITS, ImageConfig, ModelConfig
from .versions import check_torch_version
from .vision_transformer import VisionTransformer


class HashingOutput(NamedTuple):
    """Binary branch: logits [B, 512], L2-normalised; code [B, 512], each -1 or +1. Both float32."""

    logits: Tensor
    code: Tensor


class TwoBranchOutput(NamedTuple):
    """Both branches: logits and code as in HashingOutput; descriptor [B, dim], L2-normalised. All float32."""

    logits: Tensor
    code: Tensor
    descriptor: Tensor


def sign(x: Tensor) -> Tensor:
    """-1 or +1 of the dtype of x; +1 for 0."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def state_fingerprint(state: dict[str, Any]) -> str:
    """SHA-256 of the names, dtypes, shapes and values of the tensors in a state dict."""
    digest = hashlib.sha256()
    for name, value in state.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    return digest.hexdigest()


class STE_binary(torch.autograd.Function):
    """Sign with the straight-through estimator: forward sign(x) in {-1, +1}, sign(0) = +1; backward the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class GeoLocalizationNet(nn.Module):
    """SelaVPR++: images [B, 3, 14h, 14w], normalised with the ImageNet mean and standard deviation, to descriptors.

    Newly constructed, its adapters and heads are initialised for training and its backbone is random; model.weights
    loads weights. What it returns depends on `config`:

    | hashing | rerank | returns |
    | --- | --- | --- |
    | no  | no  | descriptor [B, descriptor_dim], L2-normalised |
    | yes | no  | HashingOutput (logits, code) |
    | yes | yes | TwoBranchOutput (logits, code, descriptor) |

    The names of submodules (linear1 to linear4, aggregation, aggregation_hashing) are fixed by the published weights.
    Attributes: config; image_config, the images at which it was validated, or None where its checkpoint does not say;
    descriptor_dim, 0 for a hashing-only model. Raises InputError if PyTorch is too old.
    """

    def __init__(self, config: ModelConfig) -> None:
        check_torch_version()
        super().__init__()
        self.config = config
        self.image_config: ImageConfig | None = None
        vit = BACKBONES[config.backbone]
        dim = vit.embed_dim
        self.backbone = VisionTransformer(vit, float_branch=config.has_float_branch, binary_branch=config.hashing)
        self.aggregation: Any = None
        self.linear1: Any = None
        self.linear2: Any = None
        self.descriptor_dim = 0
        if config.has_float_branch:
            self.aggregation = AGGREGATIONS[config.aggregation](dim)
            if config.aggregation == "gem":
                self.descriptor_dim = vit.gem_dim
                self.linear1 = nn.Linear(dim, dim)
                self.linear2 = nn.Linear(dim, self.descriptor_dim)
            else:
                self.descriptor_dim = self.aggregation.output_dim
        if config.hashing:
            self.aggregation_hashing = nn.Sequential(L2Norm(), GeM())
            self.linear3 = nn.Linear(dim, dim)
            self.linear4 = nn.Linear(dim, CODE_BITS)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, dtypes, shapes and values of the state: it tells whether features and thresholds are this
        model's.
        """
        return state_fingerprint(self.state_dict())

    @staticmethod
    def branch_of(entry: str) -> str:
        """The part of the model that a state-dict entry belongs to: "backbone", "binary" or "float" (branch)."""
        if entry.startswith(("backbone.adapters_hashing.", "aggregation_hashing.", "linear3.", "linear4.")):
            return "binary"
        if entry.startswith("backbone.") and not entry.startswith("backbone.adapters."):
            return "backbone"
        return "float"

    def forward(
        self, images: Tensor, float_branch: bool = True, frozen_backbone: VisionTransformer | None = None
    ) -> Tensor | HashingOutput | TwoBranchOutput:
        """With `float_branch=False` a two-branch model returns HashingOutput and does not compute its float branch.

        frozen_backbone: see VisionTransformer.forward. Raises InputError for sizes that are not multiples of 14, and
        from SALAD for 64 patches or fewer.
        """
        tokens = self.backbone(images, float_branch, frozen_backbone)
        descriptor: Any = None
        if tokens.float_tokens is not None:
            descriptor = self._float_head(tokens.float_tokens, tokens.grid)
        if not self.config.hashing:
            return descriptor
        logits = self._binary_head(tokens.binary_tokens, tokens.grid)
        # Without gradients, an operator that torch.jit.trace and exporters know.
        code = STE_binary.apply(logits) if logits.requires_grad else sign(logits)
        return HashingOutput(logits, code) if descriptor is None else TwoBranchOutput(logits, code, descriptor)

    def _float_head(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.linear1 is None:
            return self.aggregation(tokens, grid)
        pooled = self.aggregation(patch_map(self.linear1(tokens), grid))
        return F.normalize(self.linear2(pooled.to(self.linear2.weight.dtype)).float(), dim=1)

    def _binary_head(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        pooled = self.aggregation_hashing(patch_map(self.linear3(tokens), grid))
        return F.normalize(self.linear4(pooled.to(self.linear4.weight.dtype)).float(), dim=1)
