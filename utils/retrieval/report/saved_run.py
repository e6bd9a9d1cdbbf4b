"""Reading what an evaluation left in its folder: predictions.csv and results.json."""

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from utils.retrieval.report.predictions import CSV_COLUMNS, PREDICTIONS
from utils.runtime.text_files import read_csv

RESULTS = "results.json"
MARKS = {"": None, "0": False, "1": True}  # of the column correct


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A row of predictions.csv. correct: None without labels."""

    image: str
    distance: float
    metric: str
    correct: bool | None


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What the folder of an evaluation holds. name: of that folder; images_folder: to which the names of images are
    relative; arguments: the flags; predictions: {query: its K predictions, best first}.
    """

    name: str
    images_folder: str
    arguments: dict[str, Any]
    predictions: dict[str, list[Prediction]]

    def path(self, image: str) -> str:
        """Where an image lies."""
        return os.path.join(self.images_folder, image)


def read_run(folder: Path, depth: int | None = None) -> SavedRun:
    """The results of an evaluation, with the first `depth` predictions of each query, or all of them.

    Raises InputError if there are none, or they are damaged.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        parts = sorted(part.parent.name for part in folder.glob(f"*/{PREDICTIONS}"))
        hint = f"Choose one of its folders: {', '.join(parts)}." if parts else "Expected logs/<save_dir>/<time>."
        raise InputError(f"No predictions in {folder}: {path} is missing. {hint}")
    results = read_results(folder)
    return SavedRun(
        name=str(folder),
        images_folder=results["folder"],
        arguments=results["arguments"],
        predictions=_read_predictions(path, depth),
    )


def read_results(folder: Path) -> dict[str, Any]:
    """The content of results.json. Raises InputError if it is missing or damaged."""
    path = folder / RESULTS
    try:
        results = json.loads(path.read_bytes())
        if not isinstance(results["folder"], str) or not isinstance(results["arguments"], dict):
            raise TypeError("a value of the wrong type")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"Cannot read {path}: {error!r}. Expected results of an evaluation. Evaluate again.") from None
    return results


def _read_predictions(path: Path, depth: int | None) -> dict[str, list[Prediction]]:
    predictions: dict[str, list[Prediction]] = {}
    counts: Counter[str] = Counter()
    for row in read_csv(path, CSV_COLUMNS, file_names=True)[1]:
        query, rank, image, distance, mark, metric = (row.values[column] or "" for column in CSV_COLUMNS)
        counts[query] += 1
        is_complete = query and image and metric and mark in MARKS and _is_finite(distance)
        if not is_complete or rank != str(counts[query]):
            raise row.error(
                "expected the predictions of a query, with ranks from 1 on, distances, and correct as 0 or 1. Evaluate "
                "again."
            )
        if depth is None or counts[query] <= depth:  # there may be millions
            prediction = Prediction(image=image, distance=float(distance), metric=metric, correct=MARKS[mark])
            predictions.setdefault(query, []).append(prediction)
    if len(set(counts.values())) != 1:
        raise InputError(f"{path} does not have the same number of rows for each query. Evaluate again.")
    return predictions


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
