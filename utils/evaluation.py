"""What the evaluation scripts share: loading, extraction of a benchmark, the report."""
import csv
import logging
from pathlib import Path

import numpy as np

from datasets.benchmark import Benchmark
from datasets.photos import PhotoDataset
from model import GeoLocalizationNet, build_model
from model.weights import load_published, load_weights
from utils.features import Features, extract
from utils.files import atomic_write
from utils.logs import Run
from utils.recall import correct_predictions, format_recalls, recalls_at


def load_model(backbone: str, aggregation: str, hashing: bool, rerank: bool, resume: Path | None, device: str) -> GeoLocalizationNet:
    """The model with the weights of the file `resume`, or the published ones where it is None, in eval mode on the device.

    Raises InputError where the weights are missing or another model's.
    """
    model = build_model(backbone, aggregation, hashing, rerank)
    if resume is None:
        load_published(model, backbone, aggregation, hashing, rerank)
    else:
        load_weights(model, resume)
    return model.eval().to(device)


def extract_benchmark(model: GeoLocalizationNet, benchmark: Benchmark, size: tuple[int, int], antialias: bool, batch_size: int,
                      num_workers: int, device: str, precision: str) -> tuple[Features, Features]:
    """Features of the database and of the queries, extracted as one stream of batches."""
    photos = PhotoDataset(benchmark.database_paths + benchmark.queries_paths, size, antialias)
    features = extract(model, photos, batch_size, num_workers, device, precision)
    return features.split(len(benchmark.database_paths))


def report(run: Run, benchmark: Benchmark, distances: np.ndarray, predictions: np.ndarray, recall_values: list[int], descriptor_dim: int,
           reranked: int = 0, first_stage: np.ndarray | None = None, metric: str = "l2") -> None:
    """Writes predictions.csv and results.json into the run's folder and prints the recalls; first the first stage's, where there is one.

    distances and predictions [Q, K]; the first `reranked` columns are L2 distances, the others of the kind `metric` ("l2" or "hamming").
    """
    correct = correct_predictions(predictions, benchmark.positives)
    recalls = recalls_at(correct, recall_values)
    first_stage_recalls = None
    if first_stage is not None:
        first_stage_recalls = recalls_at(correct_predictions(first_stage, benchmark.positives), recall_values)
    write_predictions(run.folder / "predictions.csv", benchmark, distances, predictions, correct, reranked, metric)
    run.write_json("results.json", {
        "recalls": recalls,
        "first_stage_recalls": first_stage_recalls,
        "dataset": benchmark.name,
        "database": len(benchmark.database_paths),
        "queries": len(benchmark.queries_paths),
        "queries_without_positives": benchmark.queries_without_positives,
        "descriptor_dim": descriptor_dim,
    })
    if benchmark.queries_without_positives:
        logging.info("%d of %d queries have no positive and count as missed", benchmark.queries_without_positives, len(predictions))
    if first_stage_recalls is not None:
        logging.info("First stage, Hamming: %s", format_recalls(first_stage_recalls))
    logging.info(format_recalls(recalls))


def write_predictions(path: Path, benchmark: Benchmark, distances: np.ndarray, predictions: np.ndarray, correct: np.ndarray,
                      reranked: int, metric: str) -> None:
    """One row for each query and rank: query, rank from 1, database photo, distance, correct (0 or 1), metric of the distance."""
    database = [path.relative_to(benchmark.folder) for path in benchmark.database_paths]
    queries = [path.relative_to(benchmark.folder) for path in benchmark.queries_paths]
    with atomic_write(path) as file:
        rows = csv.writer(file)
        rows.writerow(["query", "rank", "database_photo", "distance", "correct", "metric"])
        for query, query_distances, query_predictions, query_correct in zip(queries, distances, predictions, correct, strict=True):
            for rank, (distance, prediction, right) in enumerate(zip(query_distances, query_predictions, query_correct, strict=True)):
                kind = "l2" if rank < reranked else metric
                rows.writerow([query, rank + 1, database[prediction], f"{distance:.6g}", int(right), kind])
