"""Reading what an evaluation left in its folder: predictions.csv and results.json."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import read_regular
from utils.retrieval.report.predictions import CSV_COLUMNS, PREDICTIONS
from utils.runtime.text_files import read_csv

RESULTS = "results.json"
RANK = re.compile("[1-9][0-9]{0,8}")
MAX_RESULTS_BYTES = 1 << 26
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
    """What the folder of an evaluation holds. model: its description; images_folder: to which the names of images are
    relative; arguments: the flags; predictions: {query: its K predictions, best first}.
    """

    folder: Path
    model: str
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
    model = results.get("model")  # which older versions did not store
    return SavedRun(
        folder=folder,
        model=model if isinstance(model, str) else str(folder),
        images_folder=results["folder"],
        arguments=results["arguments"],
        predictions=_read_predictions(path, depth),
    )


def read_results(folder: Path) -> dict[str, Any]:
    """The content of results.json. Raises InputError if it is missing or damaged."""
    path = folder / RESULTS
    try:
        results = json.loads(read_regular(path, MAX_RESULTS_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"Cannot read {path}: {error}. Evaluate again.") from None
    kinds = {"folder": str, "arguments": dict}
    if not isinstance(results, dict) or not all(isinstance(results.get(n), kind) for n, kind in kinds.items()):
        raise InputError(f"{path} does not hold the results of an evaluation: folder and arguments. Evaluate again.")
    return results


def _read_predictions(path: Path, depth: int | None) -> dict[str, list[Prediction]]:
    """Each query's predictions in the order of their ranks: programs that edit tables may have sorted the rows."""
    ranked: dict[str, dict[int, Prediction | None]] = {}
    for row in read_csv(path, CSV_COLUMNS, file_names=True)[1]:
        query, rank, image, distance, mark, metric = (row.values[column] or "" for column in CSV_COLUMNS)
        ranks = ranked.setdefault(query, {})
        is_complete = query and image and metric and mark in MARKS and _is_finite(distance) and RANK.fullmatch(rank)
        if not is_complete or int(rank) in ranks:
            raise row.error(
                "expected the predictions of a query, with different ranks from 1 on, distances, and correct as 0 or "
                "1. Evaluate again."
            )
        is_wanted = depth is None or int(rank) <= depth  # there may be millions
        prediction = Prediction(image=image, distance=float(distance), metric=metric, correct=MARKS[mark])
        ranks[int(rank)] = prediction if is_wanted else None
    if len({size for ranks in ranked.values() for size in (len(ranks), max(ranks))}) != 1:
        raise InputError(f"{path} does not have the same number of rows for each query. Evaluate again.")
    return {query: [found for _, found in sorted(ranks.items()) if found] for query, ranks in ranked.items()}


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
