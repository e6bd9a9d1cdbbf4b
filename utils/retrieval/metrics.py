"""Recall@N and how sure it is, and mean average precision. Of match distances: model.calibration."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000  # of the bootstrap


def correct_predictions(indices: np.ndarray, positives: Sequence[np.ndarray]) -> np.ndarray:
    """indices [Q, K] of database images, best first, and an array of positives for each query -> bool [Q, K]."""
    rows = [np.isin(row, positive) for row, positive in zip(indices, positives, strict=True)]
    return np.array(rows, dtype=bool).reshape(indices.shape)


def recalls_at(correct: np.ndarray, recall_values: Sequence[int]) -> dict[int, float]:
    """correct [Q, K] -> {N: percentage of queries with a correct prediction among their first N}.

    A query without positives counts as missed. K may be smaller than N if the database is.
    """
    return {n: 100.0 * float(correct[:, :n].any(axis=1).mean()) for n in recall_values}


def wilson_interval(recall: float, queries: int) -> tuple[float, float]:
    """The 95 % confidence interval (Wilson, 1927) of a percentage of so many queries, in percent."""
    share, z = recall / 100, 1.959963984540054  # the 97.5 % quantile of the normal distribution
    centre = share + z * z / (2 * queries)
    reach = z * math.sqrt(share * (1 - share) / queries + z * z / (4 * queries**2))
    low, high = ((centre + sign * reach) / (1 + z * z / queries) for sign in (-1, 1))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


class PairedDifference(NamedTuple):
    """R@1 of one run minus that of another on the same queries, in percentage points, its 95 % interval by bootstrap
    over the queries, and the p-value of McNemar's exact test that both runs are equally good.

    only_first, only_second: queries that this run alone gets right.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    only_first: int
    only_second: int


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0) -> PairedDifference:
    """Compares the first predictions of two runs on Q > 0 queries: whether they are correct, bool [Q] each."""
    total, wins, losses = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    # Queries drawn with replacement are one multinomial draw of how many of each of the three outcomes there are.
    shares = np.array([wins, losses, total - wins - losses]) / total
    drawn = np.random.default_rng(seed).multinomial(total, shares, size=RESAMPLES)
    low, high = np.percentile(100 / total * (drawn[:, 0] - drawn[:, 1]), (2.5, 97.5)).tolist()
    difference = 100 * (wins - losses) / total
    return PairedDifference(difference, (low, high), _sign_test(wins, losses), wins, losses)


def _sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of so many wins among wins + losses fair coin tosses."""
    total, fewer = wins + losses, min(wins, losses)
    i = np.arange(1, fewer + 1)
    logarithms = np.cumsum(np.log((total - i + 1) / i))  # of the binomial coefficients: these would overflow
    tail = np.logaddexp.reduce(np.append(0.0, logarithms)) - total * math.log(2)
    return min(1.0, 2 * math.exp(tail))


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
