"""Files of predictions: predictions.csv, and the pictures and lists in the folder preds."""

import csv
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.retrieval.config import ReportConfig
from utils.retrieval.report.evaluation import Evaluation
from utils.runtime.atomic_files import atomic_write, make_folder


def write_predictions(path: Path, evaluation: Evaluation) -> None:
    """One row per query and rank: query, rank from 1, database photo, distance, correct (0 or 1), metric.

    The column correct is empty without labels. Images below the benchmark's folder are named relative to it, others by
    their absolute paths.
    """
    benchmark, result, correct = evaluation.benchmark, evaluation.last, evaluation.last_correct
    marks = np.full(result.indices.shape, "") if correct is None else correct.astype(int)
    with atomic_write(path) as file:
        rows = csv.writer(file)
        rows.writerow(["query", "rank", "database_photo", "distance", "correct", "metric"])
        for query, *columns in zip(benchmark.queries.paths, result.distances, result.indices, marks, strict=True):
            query = evaluation.name(query)
            for rank, (distance, index, mark) in enumerate(zip(*columns, strict=True)):
                image = evaluation.name(benchmark.database.paths[index])
                rows.writerow([query, rank + 1, image, f"{distance:.6g}", mark, result.metric[rank]])


def save_pictures(folder: Path, evaluation: Evaluation, config: ReportConfig) -> None:
    """For each query, or with `only_wrong` for those whose first prediction is wrong, a picture and a list: 000.jpg,
    000.txt, numbered by the query. The list is the one that VPR-methods-evaluation writes.
    """
    from utils.visualization import draw_predictions  # loads matplotlib

    make_folder(folder)
    correct = evaluation.last_correct
    queries = np.arange(len(evaluation.benchmark.queries))
    if config.only_wrong and correct is not None:
        queries = np.flatnonzero(~correct[:, 0])
    for query in tqdm(queries.tolist(), desc="Saving pictures", unit="query", leave=False):
        picture = _picture(evaluation, query, config.num_pictures)
        draw_predictions(folder / f"{query:03d}.jpg", *picture, exif_orientation=config.exif_orientation)
        _write_list(folder / f"{query:03d}.txt", evaluation, query, count=config.num_pictures)


def _picture(evaluation: Evaluation, query: int, count: int) -> tuple:
    """The arguments of draw_predictions: the framed images on the left, and {stage: those of its predictions}."""
    from utils.visualization import Framed

    benchmark = evaluation.benchmark
    left = [Framed(benchmark.queries.paths[query], ("Query", Path(benchmark.queries.paths[query]).name), "query")]
    if evaluation.correct:
        nearest = evaluation.nearest_positive(query)
        if nearest is None:
            nothing = f"no positive within {benchmark.config.threshold:g} m"
            left.append(Framed(None, ("Nearest positive", nothing), "positive"))
        else:
            captions = (f"Nearest positive, {format_metres(nearest.metres)}", evaluation.describe_rank(nearest))
            left.append(Framed(benchmark.database.paths[nearest.image], captions, "positive"))
    rows = {}
    for name, stage in evaluation.stages.items():
        indices = stage.indices[query, :count]
        metres = evaluation.metres(query, indices)
        row = []
        for rank, index in enumerate(indices):
            captions = (f"{rank + 1}: {stage.distances[query, rank]:.4g} ({stage.metric[rank]})", "")
            kind = "unknown"
            if evaluation.correct:
                kind = "correct" if evaluation.correct[name][query, rank] else "wrong"
                captions = (captions[0], format_metres(metres[rank]))
            row.append(Framed(benchmark.database.paths[index], captions, kind))
        rows[name] = row
    return left, rows


def format_metres(metres: float) -> str:
    """For example "3.4 m", "1,234 m"."""
    return f"{metres:.1f} m" if metres < 100 else f"{metres:,.0f} m"


def _write_list(path: Path, evaluation: Evaluation, query: int, *, count: int) -> None:
    """The paths of the query, its predictions and, with labels, its positives."""
    benchmark = evaluation.benchmark
    database = benchmark.database.paths
    parts = {
        "Query path:": [benchmark.queries.paths[query]],
        "Predictions paths:": [database[i] for i in evaluation.last.indices[query, :count]],
    }
    if evaluation.correct:
        parts["Positives paths:"] = [database[i] for i in benchmark.positives[query]]
    with atomic_write(path) as file:
        file.write("\n".join(f"{heading}\n" + "\n".join(map(str, paths)) + "\n" for heading, paths in parts.items()))
