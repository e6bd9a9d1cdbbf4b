"""Losses of a batch. They use [B, B] matrices and masks of fixed shape, so that the GPU never waits for the CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model import HashingOutput

ALPHA, BETA, BASE = 1.0, 50.0, 0.0
EPSILON = 0.1
CONSTRAINT_WEIGHT = 0.1


class Losses(NamedTuple):
    """Scalars of a batch: total = multi_similarity + 0.1 * constraint; the number of mined positive and negative
    pairs (ordered: i, j and j, i both count); mined_pair_fraction, their share of all pairs.
    """

    total: Tensor
    multi_similarity: Tensor
    constraint: Tensor
    positives: Tensor
    negatives: Tensor
    mined_pair_fraction: Tensor


def mine_pairs(similarity: Tensor, labels: Tensor, epsilon: float = EPSILON) -> tuple[Tensor, Tensor]:
    """Multi-similarity miner (Wang et al., CVPR 2019, equations 11 and 12).

    similarity [B, B], labels [B] -> masks [B, B] of positive and negative pairs. Row i keeps the positives that are
    less than epsilon more similar than its most similar negative, and the negatives that are less than epsilon less
    similar than its least similar positive.
    """
    positives, negatives = _pairs(labels)
    most_similar_negative = similarity.masked_fill(~negatives, -torch.inf).amax(dim=1, keepdim=True)
    least_similar_positive = similarity.masked_fill(~positives, torch.inf).amin(dim=1, keepdim=True)
    # "not >=" instead of "<", so that NaN similarities stay selected and make the loss NaN.
    return (
        positives & ~(similarity - epsilon >= most_similar_negative),
        negatives & ~(similarity + epsilon <= least_similar_positive),
    )


def multi_similarity_loss(similarity: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Multi-similarity loss (Wang et al., CVPR 2019, equation 15) of similarity and masks [B, B]: mean over rows.

    0 without pairs.
    """
    attraction = _log_one_plus_sum_exp(ALPHA * (BASE - similarity), positives) / ALPHA
    repulsion = _log_one_plus_sum_exp(BETA * (similarity - BASE), negatives) / BETA
    return (attraction + repulsion).mean()


def similarity_constraint(logits: Tensor, codes: Tensor, pairs: Tensor) -> Tensor:
    """Mean of (z_i.z_j - c_i.c_j / bits)^2 over pairs (paper, section III-C); [B, bits] twice, mask [B, B].

    0 without pairs.
    """
    difference = logits @ logits.T - codes @ codes.T / codes.shape[1]
    return (difference.square() * pairs).sum() / pairs.sum().clamp(min=1)


def float_losses(descriptors: Tensor, labels: Tensor) -> Losses:
    """Stage one: multi-similarity of L2-normalised descriptors [B, dim] on the pairs mined among them."""
    similarity = _cosine_similarity(descriptors)
    positives, negatives = mine_pairs(similarity.detach(), labels)
    loss = multi_similarity_loss(similarity, positives, negatives)
    return _losses(loss, torch.zeros_like(loss), (positives, negatives, labels))


def hashing_losses(
    output: HashingOutput, labels: Tensor, *, pair_fraction: float = 1.0, generator: torch.Generator | None = None
) -> Losses:
    """Binary branch: multi-similarity of the codes on the pairs mined among them, plus the similarity constraint on
    `pair_fraction` of these pairs. A fraction below 1 is drawn from `generator`, on the CPU.
    """
    similarity = _cosine_similarity(output.code)
    positives, negatives = mine_pairs(similarity.detach(), labels)
    pairs = positives | negatives
    if pair_fraction < 1:
        drawn = torch.rand(pairs.shape, generator=generator) < pair_fraction
        # From pageable memory, the copy would wait for the GPU.
        pairs = pairs & (drawn.pin_memory().to(pairs.device, non_blocking=True) if pairs.is_cuda else drawn)
    constraint = similarity_constraint(output.logits, output.code, pairs)
    return _losses(multi_similarity_loss(similarity, positives, negatives), constraint, (positives, negatives, labels))


class Loss(NamedTuple):
    """What a training step minimises. criterion: (descriptors, or HashingOutput; labels [B]) -> Losses; branch: the
    one that it trains, "float" or "binary"; generator: what the criterion draws from, if anything.
    """

    criterion: Callable[[Any, Tensor], Losses]
    branch: str
    generator: torch.Generator | None = None


FLOAT_LOSS = Loss(float_losses, "float")


def binary_loss(pair_fraction: float) -> Loss:
    """hashing_losses with a generator of its own, which the trainer seeds in each step."""
    generator = torch.Generator()
    return Loss(partial(hashing_losses, pair_fraction=pair_fraction, generator=generator), "binary", generator)


def _losses(multi_similarity: Tensor, constraint: Tensor, mined: tuple[Tensor, Tensor, Tensor]) -> Losses:
    positives, negatives, labels = mined
    all_pairs = torch.stack([mask.sum() for mask in _pairs(labels)]).sum()
    count = positives.sum() + negatives.sum()
    total = multi_similarity + CONSTRAINT_WEIGHT * constraint
    return Losses(
        total=total,
        multi_similarity=multi_similarity,
        constraint=constraint,
        positives=positives.sum(),
        negatives=negatives.sum(),
        mined_pair_fraction=count / all_pairs.clamp(min=1),
    )


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def _cosine_similarity(x: Tensor) -> Tensor:
    x = F.normalize(x, dim=1)
    return x @ x.T


def _log_one_plus_sum_exp(x: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum of exp(x) where mask), along dim 1."""
    return F.pad(x.masked_fill(~mask, -torch.inf), (1, 0)).logsumexp(dim=1)
