"""Evaluation of a model on a benchmark: extract, search, re-rank, report."""
import csv
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.benchmark import Benchmark
from model import CODE_BITS, GeoLocalizationNet, build_model
from model.weights import load_published, load_weights
from utils import distributed
from utils.features import ExtractionSettings, Features, extract
from utils.files import atomic_write
from utils.logs import Run
from utils.recall import correct_predictions, format_recalls, recalls_at
from utils.retrieval import rerank, search_float, search_hamming


class Found(NamedTuple):
    """Results of a search, best first: distances and predictions [Q, K]; metric of the distances, "l2" or "hamming"."""

    distances: np.ndarray
    predictions: np.ndarray
    metric: str


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


def evaluate(run: Run | None, model: GeoLocalizationNet, benchmark: Benchmark, settings: ExtractionSettings, recall_values: list[int],
             rerank_num: int = 0) -> None:
    """Evaluates a model the way its outputs ask for: a float model by L2 distance, a binary one by Hamming distance, a two-branch model by
    Hamming distance and then, for the first `rerank_num`, by L2 distance. The run's folder gets predictions.csv and results.json.

    `run` is None in processes other than the main one.
    """
    if run is None:
        extract_benchmark(model, benchmark, settings)
        return
    run.log(benchmark)
    most = max(recall_values)

    # ---- Features
    with run.phase("extraction"):
        database, queries = extract_benchmark(model, benchmark, settings)

    # ---- Search
    with run.phase("search"):
        first = found = search(database, queries, max(most, rerank_num))

    # ---- Re-ranking
    if model.rerank:
        with run.phase("rerank"):
            found = Found(*rerank(first.distances, first.predictions, database.descriptors, queries.descriptors, rerank_num), first.metric)

    # ---- Report
    found, first = (Found(f.distances[:, :most], f.predictions[:, :most], f.metric) for f in (found, first))
    report(run, benchmark, found, recall_values, model.descriptor_dim or CODE_BITS, rerank_num, first if model.rerank else None)


def extract_benchmark(model: GeoLocalizationNet, benchmark: Benchmark, settings: ExtractionSettings,
                      float_branch: bool = True) -> tuple[Features, Features] | None:
    """Features of the database and of the queries, extracted as one stream; None in processes other than the main one."""
    features = extract(model, benchmark.database_paths + benchmark.queries_paths, settings, float_branch)
    return features.split(len(benchmark.database_paths)) if features is not None else None


def validate(model: GeoLocalizationNet, benchmark: Benchmark, settings: ExtractionSettings, recall_values: list[int],
             float_branch: bool) -> dict[int, float]:
    """{N: Recall@N in percent} of the float model, or (`float_branch` False) of the binary branch alone, in every process."""
    features = extract_benchmark(model, benchmark, settings, float_branch)
    recalls = None
    if features is not None:
        found = search(*features, max(recall_values))
        recalls = recalls_at(correct_predictions(found.predictions, benchmark.positives), recall_values)
    return distributed.from_main(recalls)


def search(database: Features, queries: Features, k: int) -> Found:
    """The k nearest: by Hamming distance where there are codes, else by L2 distance."""
    if database.codes is not None:
        return Found(*search_hamming(database.codes, queries.codes, k), "hamming")
    return Found(*search_float(database.descriptors, queries.descriptors, k), "l2")


def report(run: Run, benchmark: Benchmark, found: Found, recall_values: list[int], descriptor_dim: int, reranked: int,
           first_stage: Found | None) -> None:
    """Writes predictions.csv and results.json and prints the recalls; before them the first stage's, where there is one.

    The first `reranked` distances of each query are L2, whatever the metric of the others.
    """
    correct = correct_predictions(found.predictions, benchmark.positives)
    recalls = recalls_at(correct, recall_values)
    first_stage_recalls = None
    if first_stage is not None:
        first_stage_recalls = recalls_at(correct_predictions(first_stage.predictions, benchmark.positives), recall_values)
    write_predictions(run.folder / "predictions.csv", benchmark, found, correct, reranked)
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
        logging.info("%d of %d queries have no positive and count as missed", benchmark.queries_without_positives, len(correct))
    if first_stage_recalls is not None:
        logging.info("First stage, Hamming: %s", format_recalls(first_stage_recalls))
    logging.info(format_recalls(recalls))


def write_predictions(path: Path, benchmark: Benchmark, found: Found, correct: np.ndarray, reranked: int) -> None:
    """One row for each query and rank: query, rank from 1, database photo, distance, correct (0 or 1), metric of the distance."""
    database = [path.relative_to(benchmark.folder) for path in benchmark.database_paths]
    queries = [path.relative_to(benchmark.folder) for path in benchmark.queries_paths]
    with atomic_write(path) as file:
        rows = csv.writer(file)
        rows.writerow(["query", "rank", "database_photo", "distance", "correct", "metric"])
        for query, *columns in zip(queries, found.distances, found.predictions, correct, strict=True):
            for rank, (distance, prediction, right) in enumerate(zip(*columns, strict=True)):
                metric = "l2" if rank < reranked else found.metric
                rows.writerow([query, rank + 1, database[prediction], f"{distance:.6g}", int(right), metric])
