"""Search city by city, and the subtasks of Mapillary Street-Level Sequences (Warburg et al., CVPR 2020)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from datasets.benchmark import Benchmark
from datasets.msls import SUBTASKS, Cities
from model.errors import InputError
from utils.retrieval.features import Descriptors, Features, SearchResult, as_array
from utils.retrieval.metrics import average_precision_at, correct_predictions, recalls_at

SUBTASK_VALUES = (1, 5, 10, 20)  # of recall and mAP, as MSLS reports them
SearchPart = Callable[[Features, Features], dict[str, SearchResult]]  # of queries in a database: {stage: its results}


class SelectedDescriptors:
    """Those descriptors [N, dim] of others that `indices` [N] selects. They are read when they are asked for."""

    def __init__(self, descriptors: Descriptors, indices: np.ndarray) -> None:
        self.descriptors, self.indices = descriptors, indices
        self.shape = (len(indices), *descriptors.shape[1:])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        return self.descriptors[self.indices[rows]]


def select(features: Features, indices: np.ndarray) -> Features:
    """The features of some images. Raises InputError for codes that a search engine or an inverted file holds."""
    codes, descriptors = features.codes, features.descriptors
    if codes is not None and hasattr(codes, "search"):
        raise InputError(
            "A search city by city needs the codes themselves, not those in a search engine or an inverted file. Leave "
            "--ivf out, or give the folder of an index."
        )
    return features._replace(
        images=features.images[indices],
        codes=None if codes is None else as_array(codes)[indices],
        descriptors=None if descriptors is None else SelectedDescriptors(descriptors, indices),
    )


def search_by_city(
    search: SearchPart, database: Features, queries: Features, cities: Cities, *, depth: int
) -> dict[str, SearchResult]:
    """The results of each query in its city alone. indices: of the whole database.

    depth: the results that each query must have. Raises InputError if a city has fewer images, or codes cannot be
    selected.
    """
    counts = np.bincount(cities.database, minlength=len(cities.names))
    asked = np.unique(cities.queries)
    smallest = int(asked[counts[asked].argmin()])
    if counts[smallest] < depth:
        raise InputError(
            f"The database has {counts[smallest]} images of {cities.names[smallest]}, where each query needs {depth}: "
            "queries are searched city by city. Give smaller --recall_values."
        )
    found = []
    for city in asked:
        rows, own = (np.flatnonzero(numbers == city) for numbers in (cities.database, cities.queries))
        found.append((rows, own, search(select(database, rows), select(queries, own))))
    return {name: _joined([(rows, own, stages[name]) for rows, own, stages in found]) for name in found[0][2]}


def _joined(parts: list[tuple[np.ndarray, np.ndarray, SearchResult]]) -> SearchResult:
    """One result of those of several cities: (indices of database images, of queries, result of these)."""
    k = min(result.indices.shape[1] for *_, result in parts)
    order = np.concatenate([own for _, own, _ in parts]).argsort()
    distances = np.concatenate([result.distances[:, :k] for *_, result in parts])[order]
    indices = np.concatenate([rows[result.indices[:, :k]] for rows, _, result in parts])[order]
    return SearchResult(distances, indices, parts[0][2].metric[:k])


def evaluate_subtasks(
    search: SearchPart, database: Features, queries: Features, benchmark: Benchmark
) -> dict[str, dict[str, Any]]:
    """{subtask: queries, and {stage: recalls and mean_average_precision}} of a benchmark that knows its subtasks.

    As MSLS's own evaluation has it: queries and database of a subtask are its members; each city is searched by itself;
    queries without a positive in it are left out; figures are means over all queries. A subtask without queries is left
    out.
    """
    members = benchmark.subtasks(benchmark.database), benchmark.subtasks(benchmark.queries)
    cities = benchmark.cities
    if members[0] is None or members[1] is None or cities is None:
        return {}
    results = {}
    for number, name in enumerate(SUBTASKS):
        parts = []
        for city in range(len(cities.names)):
            rows = np.flatnonzero((cities.database == city) & members[0][:, number])
            own = np.flatnonzero((cities.queries == city) & members[1][:, number])
            positives = [np.flatnonzero(np.isin(rows, benchmark.positives[query])) for query in own]
            has_positive = np.array([len(found) > 0 for found in positives], bool)
            if has_positive.any():
                stages = search(select(database, rows), select(queries, own[has_positive]))
                parts.append((stages, [found for found in positives if len(found)]))
        if parts:
            results[name] = _means(parts)
    return results


def _means(parts: list[tuple[dict[str, SearchResult], list[np.ndarray]]]) -> dict[str, Any]:
    """The figures over all queries of several cities: (results of each stage, positives of each query)."""
    counts = [len(positives) for _, positives in parts]
    figures: dict[str, Any] = {"queries": sum(counts), "stages": {}}
    for stage in parts[0][0]:
        recalls, precisions = [], []
        for stages, positives in parts:
            correct = correct_predictions(stages[stage].indices, positives)
            recalls.append(list(recalls_at(correct, SUBTASK_VALUES).values()))
            precisions.append(list(average_precision_at(correct, positives, SUBTASK_VALUES).values()))
        figures["stages"][stage] = {
            name: dict(zip(SUBTASK_VALUES, np.average(values, axis=0, weights=counts).tolist(), strict=True))
            for name, values in (("recalls", recalls), ("mean_average_precision", precisions))
        }
    return figures
