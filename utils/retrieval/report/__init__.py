"""What an evaluation reports: the protocol and recalls on the terminal, results.json and predictions.csv."""

import csv
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.benchmark import Benchmark
from datasets.protocols import Recognition, recognise
from utils.retrieval.metrics import average_precision_at, correct_predictions, format_recalls, recalls_at
from utils.retrieval.search import SearchResult
from utils.runtime.atomic_files import atomic_write
from utils.runtime.run_dir import RunDir


def report(
    run: RunDir, benchmark: Benchmark, stages: dict[str, SearchResult], *, recall_values: list[int], descriptor_dim: int
) -> dict[str, Any]:
    """Prints the recalls of each stage, the last stage's on the last line, and writes results.json and predictions.csv.

    Without labels there are no recalls, only predictions. The recalls come first: if a file cannot be written, they are
    not lost. Conditions, mAP and predictions.csv refer to the last stage. Returns the content of results.json.
    """
    k = max(recall_values)
    last = list(stages.values())[-1].first(k)
    results: dict[str, Any] = {
        "dataset": benchmark.name,
        "folder": os.path.abspath(benchmark.folder),  # to which the names in predictions.csv are relative
        "database": len(benchmark.database),
        "queries": len(benchmark.queries),
        "descriptor_dim": descriptor_dim,
    }
    correct = None
    if benchmark.config.labels:
        correct = correct_predictions(last.indices, benchmark.positives)
        results = _report_recalls(benchmark, stages, correct, recall_values=recall_values) | results
    else:
        logging.info("%d queries searched without labels: predictions only, no recalls", len(benchmark.queries))
    write_predictions(run.folder / "predictions.csv", benchmark, last, correct=correct)
    run.write_json("results.json", results)
    return results


def _report_recalls(
    benchmark: Benchmark, stages: dict[str, SearchResult], correct: np.ndarray, *, recall_values: list[int]
) -> dict[str, Any]:
    """Prints protocol, recalls by condition, mAP and recalls. correct [Q, K]: of the last stage."""
    protocol = recognise(benchmark.database, benchmark.queries, benchmark.config.threshold)
    logging.info("Protocol: %s", protocol)
    without_positives = sum(len(positives) == 0 for positives in benchmark.positives)
    if without_positives:
        logging.info("%d of %d queries have no positive and count as missed", without_positives, len(benchmark.queries))
    recalls = {
        name: recalls_at(
            correct_predictions(stage.first(max(recall_values)).indices, benchmark.positives), recall_values
        )
        for name, stage in list(stages.items())[:-1]
    }
    conditions = _recalls_by_condition(benchmark, correct, recall_values)
    precisions = average_precision_at(correct, benchmark.positives, recall_values)
    logging.info(", ".join(f"mAP@{n}: {value:.1f}" for n, value in precisions.items()))
    final = recalls_at(correct, recall_values)
    for name, values in recalls.items():
        logging.info("%s: %s", name, format_recalls(values))
    logging.info(format_recalls(final))
    return {
        "recalls": final,
        "first_stage_recalls": next(iter(recalls.values()), None),
        "mean_average_precision": precisions,
        "conditions": conditions,
        "queries_without_positives": without_positives,
        "threshold": benchmark.config.threshold,
        **_describe(protocol),
    }


def _recalls_by_condition(
    benchmark: Benchmark, correct: np.ndarray, recall_values: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Prints and returns the recalls, the number of queries and the protocol of the queries of each condition."""
    conditions = {}
    for name, indices in benchmark.conditions.items():
        recalls = recalls_at(correct[indices], recall_values)
        logging.info("%s (%d queries): %s", name, len(indices), format_recalls(recalls))
        conditions[name] = {"queries": len(indices), "recalls": recalls}
        if name in benchmark.query_folders:
            protocol = recognise(benchmark.database, benchmark.queries[indices], benchmark.config.threshold)
            logging.info("Protocol of %s: %s", name, protocol)
            conditions[name] |= _describe(protocol)
    return conditions


def _describe(recognition: Recognition) -> dict[str, Any]:
    """The fields of results.json about the protocol."""
    protocol = recognition.protocol
    return {
        "protocol": recognition.name,
        "protocol_counts_verified": protocol.verified if protocol else None,
        "protocol_note": (protocol.note if protocol else recognition.reason) or None,
        "seasons": dict(zip(("database", "queries"), protocol.seasons, strict=True))
        if protocol and protocol.seasons
        else None,
    }


def write_predictions(path: Path, benchmark: Benchmark, result: SearchResult, *, correct: np.ndarray | None) -> None:
    """One row per query and rank: query, rank from 1, database photo, distance, correct (0 or 1), metric.

    correct: [Q, K]; None, and the column is empty, without labels. Images below the benchmark's folder are named
    relative to it, others by their absolute paths.
    """
    folder = os.path.join(os.path.abspath(benchmark.folder), "")
    marks = np.full(result.indices.shape, "") if correct is None else correct.astype(int)
    with atomic_write(path) as file:
        rows = csv.writer(file)
        rows.writerow(["query", "rank", "database_photo", "distance", "correct", "metric"])
        for query, *columns in zip(benchmark.queries.paths, result.distances, result.indices, marks, strict=True):
            query = os.path.abspath(query).removeprefix(folder)
            for rank, (distance, index, mark) in enumerate(zip(*columns, strict=True)):
                image = os.path.abspath(benchmark.database.paths[index]).removeprefix(folder)
                rows.writerow([query, rank + 1, image, f"{distance:.6g}", mark, result.metric[rank]])
