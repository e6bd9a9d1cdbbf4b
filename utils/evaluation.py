"""Evaluation of a model on a benchmark: extract, search, re-rank, report."""
import csv
import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.benchmark import Benchmark, find_positives
from model import CODE_BITS, GeoLocalizationNet, build_model
from model.weights import load_published, load_weights
from utils import distributed
from utils.features import ExtractionSettings, Features, extract, extract_pieces
from utils.files import atomic_write
from utils.index import Index, IndexWriter, pieces_of
from utils.logs import Run
from utils.recall import correct_predictions, format_recalls, recalls_at
from utils.retrieval import build_inverted_file, check_lists, rerank, search_float, search_hamming, search_inverted_file


class Store(NamedTuple):
    """Which index holds the database: one to load; one to save, anew or appending; with neither, one for as long as the evaluation.

    header: what `make_header` says of the model and the settings; an index to load or append to must have been made with the same.
    check: whether every byte of an index to load is checked.
    """

    header: dict
    save: Path | None = None
    append: bool = False
    load: Path | None = None
    check: bool = True


class InvertedFile(NamedTuple):
    """Approximate search by codes: so many lists, of which so many are looked through for each query."""

    lists: int
    probes: int


class Found(NamedTuple):
    """Results of a search, best first: distances and predictions [Q, K]; metric of the distances, "l2" or "hamming"."""

    distances: np.ndarray
    predictions: np.ndarray
    metric: str


def load_model(backbone: str, aggregation: str, hashing: bool, rerank: bool, resume: Path | None, device: str,
               compiled: bool = False) -> GeoLocalizationNet:
    """The model with the weights of the file `resume`, or the published ones where it is None, in eval mode on the device.

    Raises InputError where the weights are missing or another model's.
    """
    model = build_model(backbone, aggregation, hashing, rerank)
    if resume is None:
        load_published(model, backbone, aggregation, hashing, rerank)
    else:
        load_weights(model, resume)
    if compiled:
        model.compile()
    return model.eval().to(device)


def evaluate(run: Run | None, model: GeoLocalizationNet, benchmark: Benchmark, settings: ExtractionSettings, recall_values: list[int],
             store: Store, rerank_num: int = 0, inverted_file: InvertedFile | None = None) -> None:
    """Evaluates a model the way its outputs ask for: a float model by L2 distance, a binary one by Hamming distance, a two-branch model by
    Hamming distance and then, for the first `rerank_num`, by L2 distance. The run's folder gets predictions.csv and results.json.

    The database is what the index holds in the end: where photos were appended to others, all of them. `run` is None in processes other
    than the main one.
    """
    if run is None:
        extract_benchmark(model, benchmark, settings, store, None)
        return
    run.log(benchmark)
    most = max(recall_values)
    with tempfile.TemporaryDirectory(prefix=".index_", dir=run.folder, ignore_cleanup_errors=True) as scratch:

        # ---- Features
        with run.phase("extraction"):
            index, queries = extract_benchmark(model, benchmark, settings, store, Path(scratch), inverted_file.lists if inverted_file else 0)

        # ---- Search
        if inverted_file is None:
            with run.phase("search"):
                first = search(index.features(), queries, max(most, rerank_num))
        else:
            with run.phase("inverted_file"):
                lists = build_inverted_file(index.codes, inverted_file.lists)
            with run.phase("search"):
                first = Found(*search_inverted_file(lists, queries.codes, max(most, rerank_num), inverted_file.probes), "hamming")
        found = first

        # ---- Re-ranking
        if model.rerank:
            with run.phase("rerank"):
                found = Found(*rerank(first.distances, first.predictions, index.descriptors, queries.descriptors, rerank_num), first.metric)

        # ---- Report
        found, first = (Found(f.distances[:, :most], f.predictions[:, :most], f.metric) for f in (found, first))
        report(run, benchmark, index, found, recall_values, model.descriptor_dim or CODE_BITS, rerank_num, first if model.rerank else None)


def extract_benchmark(model: GeoLocalizationNet, benchmark: Benchmark, settings: ExtractionSettings, store: Store,
                      scratch: Path | None, lists: int = 0) -> tuple[Index | None, Features | None]:
    """The database's index and the queries' features; None in processes other than the main one.

    Database photos that the index does not hold yet and queries are extracted as one stream, the database's features going to the index
    piece by piece. `scratch` is the folder for an index that is not kept. Raises InputError, before anything is extracted, where the
    index will hold fewer photos than an inverted file is to have lists.
    """
    if store.load is not None:
        index = None
        if distributed.is_main():
            index = Index(store.load, store.check)
            index.check_made_by(store.header)
            check_lists(lists, len(index))
        return index, extract(model, benchmark.queries_paths, settings)
    if not distributed.is_main():
        for _ in extract_pieces(model, *_photos_and_pieces(benchmark, distributed.from_main(None)), settings):
            pass
        return None, None
    folder = store.save or scratch
    with IndexWriter(folder, store.header, store.append) as writer:
        photos = [os.path.abspath(path) for path in benchmark.database_paths]
        new = [i for i, photo in enumerate(photos) if photo not in writer.known]
        check_lists(lists, len(writer.known) + len(new))
        distributed.from_main(new)
        paths, pieces = _photos_and_pieces(benchmark, new)
        with closing(extract_pieces(model, paths, pieces, settings)) as features:
            for piece in pieces[:-1]:
                numbers = new[piece.start:piece.stop]
                writer.append([photos[i] for i in numbers], benchmark.database_utms[numbers], next(features))
            queries = next(features)
    return Index(folder, check=False), queries


def _photos_and_pieces(benchmark: Benchmark, new: list[int]) -> tuple[list[str], list[range]]:
    """The database photos of these numbers, then the queries; and the pieces of an index, the last being the queries."""
    paths = [benchmark.database_paths[i] for i in new] + benchmark.queries_paths
    return paths, [*pieces_of(len(new)), range(len(new), len(paths))]


def validate(model: GeoLocalizationNet, benchmark: Benchmark, settings: ExtractionSettings, recall_values: list[int],
             float_branch: bool) -> dict[int, float]:
    """{N: Recall@N in percent} of the float model, or (`float_branch` False) of the binary branch alone, in every process."""
    paths = benchmark.database_paths + benchmark.queries_paths
    pieces = [range(len(benchmark.database_paths)), range(len(benchmark.database_paths), len(paths))]
    database, queries = extract_pieces(model, paths, pieces, settings, float_branch)
    recalls = None
    if database is not None:
        found = search(database, queries, max(recall_values))
        recalls = recalls_at(correct_predictions(found.predictions, benchmark.positives), recall_values)
    return distributed.from_main(recalls)


def search(database: Features, queries: Features, k: int, progress: bool = True) -> Found:
    """The k nearest: by Hamming distance where there are codes, else by L2 distance."""
    if database.codes is not None:
        return Found(*search_hamming(database.codes, queries.codes, k, progress), "hamming")
    return Found(*search_float(database.descriptors, queries.descriptors, k, progress), "l2")


def report(run: Run, benchmark: Benchmark, index: Index, found: Found, recall_values: list[int], descriptor_dim: int, reranked: int,
           first_stage: Found | None) -> None:
    """Writes predictions.csv and results.json and prints the recalls; before them the first stage's, where there is one.

    The first `reranked` distances of each query are L2, whatever the metric of the others.
    """
    positives = find_positives(index.utms, benchmark.queries_utms, benchmark.threshold)
    without_positives = sum(len(right) == 0 for right in positives)
    correct = correct_predictions(found.predictions, positives)
    recalls = recalls_at(correct, recall_values)
    first_stage_recalls = None
    if first_stage is not None:
        first_stage_recalls = recalls_at(correct_predictions(first_stage.predictions, positives), recall_values)
    write_predictions(run.folder / "predictions.csv", benchmark, index.photos, found, correct, reranked)
    run.write_json("results.json", {
        "recalls": recalls,
        "first_stage_recalls": first_stage_recalls,
        "dataset": benchmark.name,
        "database": len(index),
        "queries": len(benchmark.queries_paths),
        "queries_without_positives": without_positives,
        "descriptor_dim": descriptor_dim,
    })
    if without_positives:
        logging.info("%d of %d queries have no positive and count as missed", without_positives, len(correct))
    if first_stage_recalls is not None:
        logging.info("First stage, Hamming: %s", format_recalls(first_stage_recalls))
    logging.info(format_recalls(recalls))


def write_predictions(path: Path, benchmark: Benchmark, photos: Sequence[str], found: Found, correct: np.ndarray, reranked: int) -> None:
    """One row for each query and rank: query, rank from 1, database photo, distance, correct (0 or 1), metric of the distance.

    Photos below the benchmark's folder are named from there, others by their absolute paths.
    """
    folder = os.path.join(os.path.abspath(benchmark.folder), "")
    with atomic_write(path) as file:
        rows = csv.writer(file)
        rows.writerow(["query", "rank", "database_photo", "distance", "correct", "metric"])
        for query, *columns in zip(benchmark.queries_paths, found.distances, found.predictions, correct, strict=True):
            for rank, (distance, prediction, right) in enumerate(zip(*columns, strict=True)):
                metric = "l2" if rank < reranked else found.metric
                rows.writerow([os.path.abspath(query).removeprefix(folder), rank + 1, photos[prediction].removeprefix(folder),
                               f"{distance:.6g}", int(right), metric])
