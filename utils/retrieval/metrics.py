"""Recall@N, mean average precision, and precision and recall over the match distance."""

from collections.abc import Sequence
from typing import NamedTuple

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


class PrecisionRecall(NamedTuple):
    """What accepting first matches up to a distance gives, for each of the T distinct distances, ascending.

    distance [T]; precision [T]: how many of the accepted matches are correct; recall [T]: how many of the correct
    matches are accepted, 0 if there are none; accepted [T]: how many of all queries are. Fractions, float64.
    """

    distance: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    accepted: np.ndarray

    @property
    def auc(self) -> float | None:
        """The area under the curve from recall 0, precision 1, by trapezoids. None if no first match is correct."""
        if self.recall[-1] == 0:
            return None
        recall, precision = np.append(0, self.recall), np.append(1, self.precision)
        return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())

    def at_precision(self, precision: float) -> dict[str, float] | None:
        """The largest distance up to which at least this fraction of matches is correct, with the three fractions
        there. None if there is no such distance.
        """
        sufficient = np.flatnonzero(self.precision >= precision)
        return (
            {name: float(values[sufficient[-1]]) for name, values in self._asdict().items()}
            if len(sufficient)
            else None
        )


def precision_recall(distances: np.ndarray, correct: np.ndarray) -> PrecisionRecall:
    """distances [Q] of the first matches of Q > 0 queries, and whether they are correct [Q] (VPR-Bench, IJCV 2021).

    Equal distances are accepted together. A query without positives counts like any other.
    """
    order = distances.argsort(kind="stable")
    ascending = distances[order]
    last = np.append(ascending[1:] != ascending[:-1], True)  # of each run of equal distances
    accepted, hits = np.arange(1, len(order) + 1)[last], correct[order].cumsum()[last]
    return PrecisionRecall(ascending[last], hits / accepted, hits / max(hits[-1], 1), accepted / len(order))
