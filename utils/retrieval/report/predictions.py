"""Files of predictions: predictions.csv, and the pictures and lists in the folder preds."""

import csv
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.retrieval.config import ReportConfig
from utils.retrieval.report.outcome import Outcome
from utils.retrieval.report.pictures import Painter, arrange, save_picture
from utils.runtime.atomic_files import atomic_write, make_folder

PREDICTIONS = "predictions.csv"
CSV_COLUMNS = ["query", "rank", "database_photo", "distance", "correct", "metric"]
PICTURE_COLUMNS = 10  # predictions side by side


def write_predictions(path: Path, outcome: Outcome) -> None:
    """One row per query and rank: query, rank from 1, database photo, distance, correct (0 or 1), metric.

    The column correct is empty without labels. Images below the benchmark's folder are named relative to it, others by
    their absolute paths.
    """
    benchmark, result, correct = outcome.benchmark, outcome.last, outcome.last_correct
    marks = np.full(result.indices.shape, "") if correct is None else correct.astype(int)
    with atomic_write(path) as file:
        rows = csv.writer(file)
        rows.writerow(CSV_COLUMNS)
        for query, *columns in zip(benchmark.queries.paths, result.distances, result.indices, marks, strict=True):
            query = outcome.name(query)
            for rank, (distance, index, mark) in enumerate(zip(*columns, strict=True)):
                image = outcome.name(benchmark.database.paths[index])
                rows.writerow([query, rank + 1, image, f"{distance:.6g}", mark, result.metric[rank]])


def save_pictures(folder: Path, outcome: Outcome, config: ReportConfig) -> None:
    """For each query, or with `only_wrong` for those whose first prediction is wrong, a picture and a list: 000.jpg,
    000.txt, numbered by the query. The list is the one that VPR-methods-evaluation writes.
    """
    make_folder(folder)
    painter = Painter(exif_orientation=config.exif_orientation)
    correct = outcome.last_correct
    queries = np.arange(len(outcome.benchmark.queries))
    if config.only_wrong and correct is not None:
        queries = np.flatnonzero(~correct[:, 0])
    for query in tqdm(queries.tolist(), desc="Saving pictures", unit="query", leave=False):
        left = [outcome.shown_query(query), *([outcome.shown_positive(query)] if outcome.correct else [])]
        stages = [outcome.shown_matches(name, query, config.num_pictures) for name in outcome.stages]
        picture = painter.draw(arrange(left, stages, PICTURE_COLUMNS))
        save_picture(picture, folder / f"{query:03d}.jpg")
        _write_list(folder / f"{query:03d}.txt", outcome, query, count=config.num_pictures)


def _write_list(path: Path, outcome: Outcome, query: int, *, count: int) -> None:
    """The paths of the query, its predictions and, with labels, its positives."""
    benchmark = outcome.benchmark
    database = benchmark.database.paths
    parts = {
        "Query path:": [benchmark.queries.paths[query]],
        "Predictions paths:": [database[i] for i in outcome.last.indices[query, :count]],
    }
    if outcome.correct:
        parts["Positives paths:"] = [database[i] for i in benchmark.positives[query]]
    with atomic_write(path) as file:
        file.write("\n".join(f"{heading}\n" + "\n".join(map(str, paths)) + "\n" for heading, paths in parts.items()))
