"""Several crops of each query (VG benchmark, Berton et al., CVPR 2022): averaging features, and merging results."""

import numpy as np
import torch
from torch import Tensor

from utils.retrieval.config import CropConfig
from utils.retrieval.features import SearchResult

CROP_COUNTS = (2, 1, 2)  # how many of the five crops the crops of datasets.views stand for: start, centre, end
VOTING_RANKS = (1, 5, 10)


def average_crops(outputs: Tensor) -> Tensor:
    """[B, 3, d] -> [B, d]: the mean over the five crops, not normalised."""
    weights = torch.tensor(CROP_COUNTS, dtype=outputs.dtype, device=outputs.device) / sum(CROP_COUNTS)
    return (outputs * weights[:, None]).sum(dim=1)


def merge_crops(result: SearchResult, config: CropConfig, k: int, *, code_bits: int = 0) -> SearchResult:
    """The results of the crops, in rows 3q to 3q + 2 for query q, merged into the k best images of each query.

    Images come in the order of their smallest distance to a crop; among equal ones the smaller index comes first. With
    "maj_voting", images that several crops retrieve get smaller distances before that: see `vote`. At most K remain.
    code_bits: of the codes, where these were searched.
    """
    k = min(k, result.indices.shape[1])
    indices = result.indices.reshape(-1, len(CROP_COUNTS), result.indices.shape[1])
    distances = result.distances.reshape(indices.shape)
    metric = result.metric[:k]
    if config.majority_weight is not None:
        is_hamming = "hamming" in metric
        # Codes of +-1/sqrt(bits) at Hamming distance h have the squared L2 distance 4 h / bits.
        squares = distances / (code_bits / 4) if is_hamming else distances.astype(np.float64) ** 2
        distances = np.stack([vote(*query, config.majority_weight) for query in zip(squares, indices, strict=True)])
        metric = ["hamming_voted" if is_hamming else "squared_l2_voted"] * len(metric)
    merged = [_merge(d.ravel(), i.ravel(), k) for d, i in zip(distances, indices, strict=True)]
    return SearchResult(np.stack([d for d, _ in merged]), np.stack([i for _, i in merged]), metric)


def vote(distances: np.ndarray, indices: np.ndarray, majority_weight: float) -> np.ndarray:
    """The distances [3, K] of a query's crops, less a bonus for images that several of the five crops retrieve.

    For n = 1, 5 and 10, an image that occurs c > 1 times in the first n results of all five crops gets
    majority_weight * c / n subtracted at each of these occurrences.
    """
    voted = distances.copy()
    for n in VOTING_RANKS:
        first = indices[:, :n]
        images, inverse = np.unique(first, return_inverse=True)
        inverse = inverse.reshape(first.shape)
        counts = np.bincount(inverse.ravel(), np.repeat(CROP_COUNTS, first.shape[1]), len(images))[inverse]
        voted[:, :n] -= np.where(counts > 1, majority_weight * counts / n, 0)
    return voted


def _merge(distances: np.ndarray, indices: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((indices, distances))
    _, first = np.unique(indices[order], return_index=True)  # the first occurrence of each image
    kept = order[np.sort(first)[:k]]
    return distances[kept], indices[kept]
