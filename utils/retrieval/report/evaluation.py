"""What an evaluation found, as its files, pictures and page show it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from datasets.benchmark import Benchmark
from utils.retrieval.metrics import correct_predictions
from utils.retrieval.search import SearchResult


class NearestPositive(NamedTuple):
    """The positive of a query that is the nearest on the ground: its place in the database, its distance in metres, its
    rank from 1 among the results, and its distance there; the last two are None if it is not among them.
    """

    image: int
    metres: float
    rank: int | None
    distance: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A benchmark and the K best results of each stage, in order. The last stage is the one that counts."""

    benchmark: Benchmark
    stages: dict[str, SearchResult]

    @property
    def last(self) -> SearchResult:
        """The results of the last stage."""
        return list(self.stages.values())[-1]

    @cached_property
    def correct(self) -> dict[str, np.ndarray]:
        """{stage: which results are correct, bool [Q, K]}; empty without labels."""
        if not self.benchmark.config.labels:
            return {}
        return {n: correct_predictions(stage.indices, self.benchmark.positives) for n, stage in self.stages.items()}

    @property
    def last_correct(self) -> np.ndarray | None:
        """Which results of the last stage are correct, bool [Q, K]; None without labels."""
        return list(self.correct.values())[-1] if self.correct else None

    def metres(self, query: int, images: Sequence[int] | np.ndarray) -> np.ndarray:
        """The distances on the ground of database images to a query. NaN without labels."""
        difference = self.benchmark.database.utms[images] - self.benchmark.queries.utms[query]
        return np.hypot(difference[:, 0], difference[:, 1])

    def nearest_positive(self, query: int) -> NearestPositive | None:
        """None if the query has no positive."""
        positives = self.benchmark.positives[query]
        if not len(positives):
            return None
        metres = self.metres(query, positives)
        image = int(positives[metres.argmin()])
        ranks = np.flatnonzero(self.last.indices[query] == image)
        found = len(ranks) > 0
        return NearestPositive(
            image,
            float(metres.min()),
            int(ranks[0]) + 1 if found else None,
            float(self.last.distances[query, ranks[0]]) if found else None,
        )

    def describe_rank(self, nearest: NearestPositive) -> str:
        """For example "rank 7, 0.523", "not among the first 100"."""
        if nearest.rank is None:
            return f"not among the first {self.last.indices.shape[1]}"
        return f"rank {nearest.rank}, {nearest.distance:.4g}"

    def name(self, path: object) -> str:
        """The path of an image relative to the benchmark's folder, or, outside of it, the absolute one."""
        return os.path.abspath(str(path)).removeprefix(os.path.join(os.path.abspath(self.benchmark.folder), ""))
