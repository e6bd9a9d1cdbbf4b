"""Recall@N."""

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
