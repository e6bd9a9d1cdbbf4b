"""What an evaluation reports: recalls on the terminal, results.json and predictions.csv."""

import csv
import logging
import os
from pathlib import Path

import numpy as np

from datasets.benchmark import Benchmark
from utils.retrieval.metrics import correct_predictions, format_recalls, recalls_at
from utils.retrieval.search import SearchResult
from utils.runtime.atomic_files import atomic_write
from utils.runtime.run_dir import RunDir


def report(
    run: RunDir, benchmark: Benchmark, stages: dict[str, SearchResult], *, recall_values: list[int], descriptor_dim: int
) -> None:
    """Prints the recalls of each stage, the last stage's on the last line, and writes results.json and predictions.csv.

    The recalls come first: if a file cannot be written, they are not lost. predictions.csv holds the last stage.
    """
    k = max(recall_values)
    correct = {
        name: correct_predictions(result.first(k).indices, benchmark.positives) for name, result in stages.items()
    }
    recalls = {name: recalls_at(stage, recall_values) for name, stage in correct.items()}
    *first, last = stages
    without_positives = sum(len(positives) == 0 for positives in benchmark.positives)
    if without_positives:
        logging.info("%d of %d queries have no positive and count as missed", without_positives, len(benchmark.queries))
    for name in first:
        logging.info("%s: %s", name, format_recalls(recalls[name]))
    logging.info(format_recalls(recalls[last]))

    results = {
        "recalls": recalls[last],
        "first_stage_recalls": recalls[first[0]] if first else None,
        "dataset": benchmark.name,
        "database": len(benchmark.database),
        "queries": len(benchmark.queries),
        "queries_without_positives": without_positives,
        "descriptor_dim": descriptor_dim,
    }
    write_predictions(run.folder / "predictions.csv", benchmark, stages[last].first(k), correct=correct[last])
    run.write_json("results.json", results)


def write_predictions(path: Path, benchmark: Benchmark, result: SearchResult, *, correct: np.ndarray) -> None:
    """One row per query and rank: query, rank from 1, database photo, distance, correct (0 or 1), metric.

    Images below the benchmark's folder are named relative to it, others by their absolute paths.
    """
    folder = os.path.join(os.path.abspath(benchmark.folder), "")
    with atomic_write(path) as file:
        rows = csv.writer(file)
        rows.writerow(["query", "rank", "database_photo", "distance", "correct", "metric"])
        for query, *columns in zip(benchmark.queries.paths, result.distances, result.indices, correct, strict=True):
            query = os.path.abspath(query).removeprefix(folder)
            for rank, (distance, index, is_correct) in enumerate(zip(*columns, strict=True)):
                image = os.path.abspath(benchmark.database.paths[index]).removeprefix(folder)
                rows.writerow([query, rank + 1, image, f"{distance:.6g}", int(is_correct), result.metric[rank]])
