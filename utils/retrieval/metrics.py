"""Recall@N and mean average precision."""

from collections.abc import Sequence

import numpy as np


def correct_predictions(indices: np.ndarray, positives: Sequence[np.ndarray]) -> np.ndarray:
    """indices [Q, K] of database images, best first, and an array of positives for each query -> bool [Q, K]."""
    rows = [np.isin(row, positive) for row, positive in zip(indices, positives, strict=True)]
    return np.array(rows, dtype=bool).reshape(indices.shape)


def recalls_at(correct: np.ndarray, recall_values: Sequence[int]) -> dict[int, float]:
    """correct [Q, K] -> {N: percentage of queries with a correct prediction among their first N}.

    A query without positives counts as missed. K may be smaller than N if the database is.
    """
    return {n: 100.0 * float(correct[:, :n].any(axis=1).mean()) for n in recall_values}


def format_recalls(recalls: dict[int, float]) -> str:
    """For example "R@1: 27.9, R@5: 50.5"."""
    return ", ".join(f"R@{n}: {value:.1f}" for n, value in recalls.items())


def average_precision_at(
    correct: np.ndarray, positives: Sequence[np.ndarray], values: Sequence[int]
) -> dict[int, float]:
    """correct [Q, K] and the positives of each query -> {N: mAP@N in percent}, as MSLS defines it (CVPR 2020).

    The average precision of a query is the sum, over its first N predictions that are correct, of the precision up to
    there, divided by min(N, number of positives); 0 for a query without positives.
    """
    precision = correct.cumsum(axis=1) / np.arange(1, correct.shape[1] + 1)
    counts = np.array([len(found) for found in positives])
    scores = {}
    for n in values:
        total = (precision * correct)[:, :n].sum(axis=1)
        scores[n] = 100.0 * float((total / np.clip(counts, 1, n)).mean())
    return scores
