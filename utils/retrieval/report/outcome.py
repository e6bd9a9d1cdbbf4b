"""The outcome of an evaluation, as its files, pictures and page show it."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.benchmark import Benchmark
from utils.retrieval.metrics import correct_predictions
from utils.retrieval.report.pictures import Shown
from utils.retrieval.search import SearchResult


class NearestPositive(NamedTuple):
    """The positive of a query that is the nearest on the ground or, if no distance is known, the first among the
    results: its place in the database, its distance in metres, NaN if unknown, and its rank from 1 among the results,
    or None.
    """

    image: int
    metres: float
    rank: int | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
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

    def nearest_positive(self, query: int) -> NearestPositive | None:
        """None if the query has no positive."""
        positives = self.benchmark.positives[query]
        if not len(positives):
            return None
        metres = self.benchmark.ground.metres(query, positives)
        found = self.last.indices[query]
        nearest = int(np.where(np.isnan(metres), np.inf, metres).argmin())
        if np.isnan(metres).all():
            ranked = np.flatnonzero(np.isin(found, positives))
            nearest = int(np.searchsorted(positives, found[ranked[0]])) if len(ranked) else 0
        ranks = (np.flatnonzero(found == positives[nearest]) + 1).tolist()
        return NearestPositive(int(positives[nearest]), float(metres[nearest]), ranks[0] if ranks else None)

    def shown_query(self, query: int) -> Shown:
        """A query."""
        queries = self.benchmark.queries
        path = queries.paths[query]
        (place,) = self.benchmark.ground.on_map(queries[query : query + 1])
        return Shown(path, ("Query", Path(path).name), "query", place)

    def shown_positive(self, query: int) -> Shown:
        """The nearest positive of a query, or an empty frame if there is none."""
        nearest = self.nearest_positive(query)
        if nearest is None:
            assert self.benchmark.truth, "with labels"
            captions = ("Nearest positive", f"none {self.benchmark.truth.criterion}")
            return Shown(None, captions, "positive")
        rank = f"not among the first {self.last.indices.shape[1]}"
        if nearest.rank is not None:
            rank = f"rank {nearest.rank}, {self.last.distances[query, nearest.rank - 1]:.4g}"
        database = self.benchmark.database
        is_known = not np.isnan(nearest.metres)
        captions = (f"Nearest positive, {format_metres(nearest.metres)}" if is_known else "A positive", rank)
        (place,) = self.benchmark.ground.on_map(database[np.array([nearest.image])])
        return Shown(database.paths[nearest.image], captions, "positive", place)

    def shown_matches(self, name: str, query: int, count: int) -> list[Shown]:
        """The first `count` results of a query in a stage: with their distances and, with labels, metres. The heading
        is the stage, with its metric where the name does not say it.
        """
        stage, database, shown = self.stages[name], self.benchmark.database, []
        indices = stage.indices[query, :count]
        ground = self.benchmark.ground
        places = ground.on_map(database[indices])
        metres = ground.metres(query, indices) if self.correct else ()
        for rank, index in enumerate(indices):
            captions, kind = [f"{stage.distances[query, rank]:.4g}"], "unknown"
            if stage.metric[rank] != stage.metric[0]:  # beyond --rerank_num
                captions[0] += f" {stage.metric[rank]}"
            if self.correct:
                captions += [] if np.isnan(metres[rank]) else [format_metres(metres[rank])]
                kind = "correct" if self.correct[name][query, rank] else "wrong"
            heading = "" if rank else self.heading(name)
            shown.append(Shown(database.paths[index], captions, kind, places[rank], heading))
        return shown

    def heading(self, name: str) -> str:
        """A stage with its metric, for example "Re-ranked (l2)"; "First stage, Hamming" says it already."""
        metric = self.stages[name].metric[0]
        return name if metric in name.lower() else f"{name} ({metric})"

    def name(self, path: object) -> str:
        """The path of an image relative to the benchmark's folder, or, outside of it, the absolute one."""
        return os.path.abspath(str(path)).removeprefix(os.path.join(os.path.abspath(self.benchmark.folder), ""))


def format_metres(metres: float) -> str:
    """For example "3.4 m", "1,234 m"."""
    return f"{metres:.1f} m" if metres < 100 else f"{metres:,.0f} m"
