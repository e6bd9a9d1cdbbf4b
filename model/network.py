"""The whole network: trunk, adapters, float head, binary head."""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.aggregation import SALAD, BoQ, GeM, L2Norm, patch_map
from model.vision_transformer import Trunk, VisionTransformer

CODE_BITS = 512
AGGREGATIONS = ("gem", "boq", "salad")
GEM_DIMS = {192: 512, 384: 1024, 768: 2048, 1024: 4096}  # of the float descriptor, by trunk width


class HashingOutput(NamedTuple):
    """Binary branch: logits [B, 512], L2-normalised; code [B, 512], each -1 or +1. Both float32."""

    logits: Tensor
    code: Tensor


class TwoBranchOutput(NamedTuple):
    """Both branches: logits and code as in HashingOutput; descriptor [B, dim], L2-normalised. All float32."""

    logits: Tensor
    code: Tensor
    descriptor: Tensor


class STE_binary(torch.autograd.Function):
    """Sign with the straight-through estimator: forward sign(x) in {-1, +1}, sign(0) = +1; backward the identity."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """The sign."""
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """The identity."""
        return gradient


class GeoLocalizationNet(nn.Module):
    """SelaVPR++: images [B, 3, 14h, 14w], normalised by ImageNet's mean and deviation, to descriptors.

    | hashing | rerank | returns |
    | --- | --- | --- |
    | no  | no  | descriptor [B, descriptor_dim], L2-normalised |
    | yes | no  | HashingOutput (logits, code) |
    | yes | yes | TwoBranchOutput (logits, code, descriptor) |
    """

    def __init__(self, trunk: Trunk, aggregation: str = "gem", hashing: bool = False, rerank: bool = False) -> None:
        super().__init__()
        self.hashing = hashing
        self.rerank = rerank
        has_float_branch = rerank or not hashing
        dim = trunk.embed_dim
        self.backbone = VisionTransformer(trunk, float_branch=has_float_branch, binary_branch=hashing)
        self.linear1 = self.linear2 = self.aggregation = None
        self.descriptor_dim = 0
        if has_float_branch and aggregation == "gem":
            self.descriptor_dim = GEM_DIMS[dim]
            self.aggregation = nn.Sequential(L2Norm(), GeM())
            self.linear1 = nn.Linear(dim, dim)
            self.linear2 = nn.Linear(dim, self.descriptor_dim)
        elif has_float_branch:
            self.aggregation = {"boq": BoQ, "salad": SALAD}[aggregation](dim)
            self.descriptor_dim = self.aggregation.output_dim
        if hashing:
            self.aggregation_hashing = nn.Sequential(L2Norm(), GeM())
            self.linear3 = nn.Linear(dim, dim)
            self.linear4 = nn.Linear(dim, CODE_BITS)

    def forward(self, images: Tensor, float_branch: bool = True) -> Tensor | HashingOutput | TwoBranchOutput:
        """`float_branch=False` makes a two-branch model return HashingOutput, without computing its float branch.

        Raises InputError for sizes that are no multiple of 14, and from SALAD for 64 patches or fewer.
        """
        tokens = self.backbone(images, float_branch)
        descriptor = None
        if tokens.float_tokens is not None:
            descriptor = self._float_head(tokens.float_tokens, tokens.grid)
        if not self.hashing:
            return descriptor
        logits = self._binary_head(tokens.binary_tokens, tokens.grid)
        code = STE_binary.apply(logits)
        return HashingOutput(logits, code) if descriptor is None else TwoBranchOutput(logits, code, descriptor)

    def _float_head(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.linear1 is None:
            return self.aggregation(tokens, grid)
        pooled = self.aggregation(patch_map(self.linear1(tokens), grid))
        return F.normalize(self.linear2(pooled).float(), dim=1)

    def _binary_head(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        pooled = self.aggregation_hashing(patch_map(self.linear3(tokens), grid))
        return F.normalize(self.linear4(pooled).float(), dim=1)
