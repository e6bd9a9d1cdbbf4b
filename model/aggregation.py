"""Aggregations of a ViT's tokens into one descriptor: GeM, BoQ (Ali-bey et al., CVPR 2024) and SALAD (Izquierdo and
Civera, CVPR 2024).

Tokens are [B, p+h*w, D]: the class token first, then registers if the backbone has any, then the patch tokens.
Everything after the last matrix product is computed in float32, also under autocast. To add an aggregation, write a
module and list it in AGGREGATIONS at the end of this file (docs/extending.md).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError


class L2Norm(nn.Module):
    """[B, C, ...] -> the same shape, L2-normalised over the channels, float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=1)


class GeM(nn.Module):
    """Generalised mean over the grid (Radenovic et al., TPAMI 2019), [B, C, h, w] -> [B, C], float32; p is learned."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        p = self.p.float()
        return x.float().clamp(min=self.eps).pow(p).mean(dim=(-2, -1)).pow(1 / p)


def patch_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens [B, p+h*w, D] -> map of the patch tokens [B, D, h, w]."""
    return tokens[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)


class BoQBlock(nn.Module):
    """One bag of learned queries: tokens [B, n, C] -> (query outputs [B, Q, C], encoded tokens [B, n, C])."""

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        heads = dim // 64
        self.encoder = nn.TransformerEncoderLayer(dim, heads, dim_feedforward=4 * dim, dropout=0.0, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim))
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm_q = nn.LayerNorm(dim)
        self.cross_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encoder(tokens)
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        queries = self.norm_q(queries + self.self_attn(queries, queries, queries, need_weights=False)[0])
        outputs = self.norm_out(self.cross_attn(queries, tokens, tokens, need_weights=False)[0])
        return outputs, tokens


class BoQ(nn.Module):
    """Bag of learnable queries: tokens [B, p+h*w, D] -> [B, output_dim], L2-normalised, float32."""

    def __init__(
        self, dim: int, proj_channels: int = 384, num_queries: int = 64, num_blocks: int = 2, row_dim: int = 32
    ) -> None:
        super().__init__()
        self.output_dim = proj_channels * row_dim
        self.proj_c = nn.Conv2d(dim, proj_channels, 3, padding=1)
        self.norm_input = nn.LayerNorm(proj_channels)
        self.boqs = nn.ModuleList(BoQBlock(proj_channels, num_queries) for _ in range(num_blocks))
        self.fc = nn.Linear(num_blocks * num_queries, row_dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.norm_input(self.proj_c(patch_map(tokens, grid)).flatten(2).transpose(1, 2))
        outputs = []
        for boq in self.boqs:
            output, x = boq(x)
            outputs.append(output)
        rows = self.fc(torch.cat(outputs, dim=1).transpose(1, 2))
        return F.normalize(rows.flatten(1).float(), dim=1)


class SALAD(nn.Module):
    """Sinkhorn algorithm for local descriptors: tokens [B, p+n, D] -> [B, output_dim], L2-normalised, float32.

    Raises InputError for n <= 64 patches, because the dust bin receives a mass of n - 64, which must be positive.
    """

    def __init__(self, dim: int, num_clusters: int = 64, cluster_dim: int = 128, token_dim: int = 256) -> None:
        super().__init__()
        hidden, dropout = 512, 0.3
        self.num_clusters = num_clusters
        self.output_dim = token_dim + num_clusters * cluster_dim
        self.token_features = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, token_dim))
        self.cluster_features = _patch_mlp(dim, hidden, cluster_dim, dropout=dropout)
        self.score = _patch_mlp(dim, hidden, num_clusters, dropout=dropout)
        self.dust_bin = nn.Parameter(torch.tensor(1.0))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if grid[0] * grid[1] <= self.num_clusters:
            raise InputError(
                f"SALAD needs more than {self.num_clusters} patches for its {self.num_clusters} clusters, but these "
                f"images have {grid[0]} x {grid[1]} = {grid[0] * grid[1]}. Use larger images, such as 126 x 126 pixels."
            )
        patches = patch_map(tokens, grid)
        features = self.cluster_features(patches).flatten(2).float()
        scores = self.score(patches).flatten(2).float()
        assignment = sinkhorn_assignment(scores, self.dust_bin.float())
        with torch.autocast(tokens.device.type, enabled=False):
            clusters = features @ assignment.transpose(1, 2)  # [B, 128, 64], a matrix product: no [B, 128, 64, n]
        token = F.normalize(self.token_features(tokens[:, 0]).float(), dim=1)
        return F.normalize(torch.cat([token, F.normalize(clusters, dim=1).flatten(1)], dim=1), dim=1)


def sinkhorn_assignment(scores: Tensor, dust_bin: Tensor, iterations: int = 3) -> Tensor:
    """Soft assignment of n patches to m clusters by optimal transport in the log domain; float32.

    scores [B, m, n]; dust_bin, a scalar, is the score of an extra row for patches that belong to no cluster. Returns
    [B, m, n]. Each patch has a total mass of 1 over the clusters and the dust bin. Source: SALAD, section 3.2.
    """
    B, m, n = scores.shape
    scores = torch.cat([scores, dust_bin.expand(B, 1, n)], dim=1)
    log_total = math.log(n + m)
    log_rows = scores.new_full((m + 1,), -log_total)
    log_rows[m] = math.log(n - m) - log_total
    v = scores.new_zeros(B, 1, n)
    for _ in range(iterations):
        u = log_rows[:, None] - torch.logsumexp(scores + v, dim=2, keepdim=True)
        v = -log_total - torch.logsumexp(scores + u, dim=1, keepdim=True)
    return torch.exp(scores + u + v + log_total)[:, :m]


def _patch_mlp(dim: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.Dropout(dropout), nn.ReLU(), nn.Conv2d(hidden, out, 1))


def gem_pooling(dim: int) -> nn.Module:
    """Pooling of `gem`, map [B, D, h, w] -> [B, D]. The network puts a linear layer before and after it."""
    return nn.Sequential(L2Norm(), GeM())


# Each is constructed with the tokens' width D, is called with tokens [B, p+h*w, D] and grid (h, w), returns
# L2-normalised float32 descriptors [B, output_dim], and has `output_dim` as an attribute. gem is the exception: see
# gem_pooling.
AGGREGATIONS: dict[str, Callable[[int], nn.Module]] = {
    "gem": gem_pooling,
    "boq": BoQ,
    "salad": SALAD,
}
