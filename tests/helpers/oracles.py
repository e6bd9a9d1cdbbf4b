"""Exact search as naive loops, and features of nothing but descriptors for the search that they check."""

import numpy as np

from utils.retrieval.features import Features


def described(descriptors):
    """Features with these descriptors alone."""
    return Features(None, None, descriptors)


def naive_hamming(database, queries, k):
    """Distances and numbers of the k nearest packed codes, by distance, then by number."""
    rows = []
    for query in queries:
        lengths = [sum((int(a) ^ int(b)).bit_count() for a, b in zip(query, code, strict=True)) for code in database]
        rows.append(sorted(zip(lengths, range(len(database)), strict=True))[:k])
    return np.array(rows)[..., 0], np.array(rows)[..., 1]


def naive_length(a, b):
    """L2 distance of two descriptors, in float64."""
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def naive_l2(database, queries, k):
    """Distances and numbers of the k nearest descriptors, in float64."""
    rows = []
    for query in queries:
        lengths = [naive_length(query, row) for row in database]
        rows.append(sorted(zip(lengths, range(len(database)), strict=True))[:k])
    return np.array(rows)[..., 0], np.array(rows)[..., 1].astype(int)


def mapillary_apk(predictions, positives, n):
    """Average precision as Mapillary Street-level Sequences' `apk` has it: a loop over one query's predictions."""
    score, hits = 0.0, 0
    for rank, prediction in enumerate(predictions[:n], start=1):
        if prediction in positives:
            hits += 1
            score += hits / rank
    return score / min(len(positives), n) if len(positives) else 0.0
