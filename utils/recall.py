"""Recall@N and the files that report it."""
from collections.abc import Sequence

import numpy as np


def correct_predictions(predictions: np.ndarray, positives: Sequence[np.ndarray]) -> np.ndarray:
    """predictions [Q, K] of database photos, best first; positives, an array a query -> bool [Q, K]."""
    rows = [np.isin(row, right) for row, right in zip(predictions, positives, strict=True)]
    return np.array(rows, dtype=bool).reshape(predictions.shape)


def recalls_at(correct: np.ndarray, recall_values: Sequence[int]) -> dict[int, float]:
    """correct [Q, K] -> {N: percent of the queries with a correct one among their first N}.

    A query without positives counts as missed. K may be smaller than N, where the database is.
    """
    return {n: 100.0 * float(correct[:, :n].any(axis=1).mean()) for n in recall_values}


def format_recalls(recalls: dict[int, float]) -> str:
    """"R@1: 27.9, R@5: 50.5"."""
    return ", ".join(f"R@{n}: {value:.1f}" for n, value in recalls.items())
