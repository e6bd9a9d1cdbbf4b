"""Several evaluations of the same queries side by side: which of them finds which query."""

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError
from utils.retrieval.metrics import recalls_at
from utils.retrieval.report.charts import escape
from utils.retrieval.report.evaluation_page import COLUMNS
from utils.retrieval.report.page import Gallery, Page, Section, cell, choose_evenly, table
from utils.runtime.text_files import CsvRow, read_csv

RECALL_VALUES = (1, 5, 10, 20, 50, 100)
CSV_COLUMNS = {"query", "rank", "database_photo", "distance", "correct", "metric"}


@dataclass(frozen=True, kw_only=True, slots=True)  # there may be millions
class Prediction:
    """A row of predictions.csv."""

    image: str
    distance: float
    metric: str
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's folder holds. predictions: {query: its K predictions, best first}; folder: of the images, or None if
    the run does not say; arguments: its flags.
    """

    name: str
    folder: str | None
    arguments: dict[str, Any]
    predictions: dict[str, list[Prediction]]

    def correct(self, queries: list[str]) -> np.ndarray:
        """Which predictions are correct, bool [Q, K]."""
        return np.array([[prediction.correct for prediction in self.predictions[query]] for query in queries])

    def path(self, image: str) -> str:
        """Where an image lies, if the run says so; otherwise its name."""
        return os.path.join(self.folder, image) if self.folder else image


def read_run(folder: Path) -> Run:
    """The results of an evaluation. Raises InputError if there are none, they are damaged, or they have no labels."""
    path = folder / "predictions.csv"
    if not path.is_file():
        parts = sorted(part.parent.name for part in folder.glob("*/predictions.csv"))
        hint = f"It evaluated several datasets; choose one of its folders {', '.join(parts)}." if parts else ""
        raise InputError(f"No predictions.csv in {folder}. {hint or 'Expected the folder of an evaluation, logs/...'}")
    columns, rows = read_csv(path, other_bytes=True)
    if not set(columns) >= CSV_COLUMNS:
        raise InputError(f"{path} has the columns {', '.join(columns)}. Expected {', '.join(sorted(CSV_COLUMNS))}.")
    predictions: dict[str, list[Prediction]] = {}
    for row in rows:
        predictions.setdefault(row.values["query"] or "", []).append(_parse(path, row))
    lengths = Counter(map(len, predictions.values()))
    if len(lengths) != 1:
        raise InputError(f"{path} does not have the same number of rows for each query. Evaluate again.")
    results = _read_results(folder / "results.json")
    return Run(
        name=str(folder),
        folder=results.get("folder"),
        arguments=results.get("arguments", {}),
        predictions=predictions,
    )


def _parse(path: Path, row: CsvRow) -> Prediction:
    values = row.values
    if values["correct"] == "":
        raise InputError(f"{path} has no labels, so that no run is better. Evaluate without --no_labels.")
    try:
        distance = float(values["distance"] or "")
    except ValueError:
        distance = math.nan
    if values["correct"] not in ("0", "1") or not math.isfinite(distance) or not values["database_photo"]:
        raise InputError(f"{path}, line {row.line}: not a row of predictions.csv. Evaluate again.")
    correct = values["correct"] == "1"
    return Prediction(image=values["database_photo"], distance=distance, metric=values["metric"] or "", correct=correct)


def _read_results(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {error}. Expected the folder of a complete evaluation.") from None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs, and the queries that all of them have, in order. correct: [run][Q, K] bool."""

    runs: list[Run]
    queries: list[str]
    correct: list[np.ndarray]

    @property
    def firsts(self) -> np.ndarray:
        """Whether the first prediction of each run is right, bool [runs, Q]."""
        return np.array([correct[:, 0] for correct in self.correct])

    def recall_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: Recall@N of each run, on the queries that all have."""
        values = [n for n in RECALL_VALUES if n <= min(correct.shape[1] for correct in self.correct)]
        rows = [
            [run.name, *(f"{value:.1f}" for value in recalls_at(correct, values).values())]
            for run, correct in zip(self.runs, self.correct, strict=True)
        ]
        return ["run", *(f"R@{n}" for n in values)], rows

    def win_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: how many queries the run of the row gets right, and that of the column wrong."""
        firsts = self.firsts
        rows = [
            [f"{i + 1}: {run.name}", *(str(int((firsts[i] & ~other).sum())) for other in firsts)]
            for i, run in enumerate(self.runs)
        ]
        return ["right where another is wrong", *(f"wrong: {i + 1}" for i in range(len(self.runs)))], rows


def compare(runs: list[Run]) -> Comparison:
    """The queries that all runs have. Raises InputError if there are none."""
    queries = [query for query in runs[0].predictions if all(query in run.predictions for run in runs)]
    if not queries:
        names = ", ".join(run.name for run in runs)
        raise InputError(f"No query is in all of {names}. Compare evaluations of the same dataset.")
    return Comparison(runs=runs, queries=queries, correct=[run.correct(queries) for run in runs])


def comparison_page(comparison: Comparison, *, num_queries: int) -> Page:
    """The page of a comparison with pictures of at most `num_queries` queries, those on which runs differ first."""
    content = table(f"Recall@N in % on the {len(comparison.queries):,} common queries", *comparison.recall_table())
    if len(comparison.runs) > 1:
        content += table("First predictions: wins of the row over the column", *comparison.win_table())
    sections = [Section(anchor="settings", heading="Settings that differ", content=_differences(comparison.runs))]
    left_out = max(len(run.predictions) for run in comparison.runs) - len(comparison.queries)
    note = f" {left_out:,} queries of the largest are not in all runs and left out." if left_out else ""
    return Page(
        title="Comparison of runs",
        heading="Comparison of runs",
        header=f'<p class="soft">{len(comparison.queries):,} queries.{note}</p>',
        before=[Section(anchor="recalls", heading="Recalls", content=f'<div class="columns">{content}</div>')],
        gallery=_gallery(comparison, num_queries),
        after=sections if len(comparison.runs) > 1 else [],
    )


def _differences(runs: list[Run]) -> str:
    names = sorted({name for run in runs for name in run.arguments})
    rows = []
    for name in names:
        values = [str(run.arguments.get(name, "")) for run in runs]
        if len(set(values)) > 1:
            rows.append([name, *values])
    header = ["flag", *(run.name for run in runs)]
    return table("Flags with different values", header, rows) if rows else "<p>All flags have the same values.</p>"


def _gallery(comparison: Comparison, num_queries: int) -> Gallery:
    firsts = comparison.firsts
    differ = np.flatnonzero(firsts.any(axis=0) & ~firsts.all(axis=0))
    shown = choose_evenly(differ, num_queries)
    others = choose_evenly(np.setdiff1d(np.arange(len(comparison.queries)), differ), num_queries - len(shown))
    note = (
        f"{len(shown):,} of {len(differ):,} queries on which the runs differ, and {len(others):,} of "
        f"{len(comparison.queries) - len(differ):,} others, evenly spaced."
    )
    gallery = Gallery(
        heading="Queries",
        note=f'<p class="soft">{escape(note)}</p>',
        rows=[
            f"{i + 1}: {run.name} ({run.predictions[comparison.queries[0]][0].metric})"
            for i, run in enumerate(comparison.runs)
        ],
    )
    for query in np.concatenate([shown, others]).tolist():
        gallery.queries.append(_gallery_query(comparison, query, gallery))
    names = {f"only {i}": f"only {run.name} is right" for i, run in enumerate(comparison.runs)}
    if len(comparison.runs) > 2:
        names |= {f"except {i}": f"all but {run.name} are right" for i, run in enumerate(comparison.runs)}
    gallery.add_filter("Show", {**names, "all": "all right", "none": "all wrong"})
    gallery.sorts = [
        {"label": "differences first", "key": 0, "descending": False},
        {"label": "order of the dataset", "key": 1, "descending": False},
    ]
    return gallery


def _gallery_query(comparison: Comparison, query: int, gallery: Gallery) -> dict[str, Any]:
    name, right = comparison.queries[query], comparison.firsts[:, query]
    rows = []
    for run in comparison.runs:
        row = []
        for prediction in run.predictions[name][:COLUMNS]:
            image = gallery.image(run.path(prediction.image), prediction.image)
            row.append(cell(image, [f"{prediction.distance:.4g}"], prediction.correct))
        rows.append(row)
    tags = {len(right): ["all"], 0: ["none"]}.get(int(right.sum()), [])
    tags += [f"only {i}" for i in np.flatnonzero(right)] if right.sum() == 1 else []
    tags += [f"except {i}" for i in np.flatnonzero(~right)] if (~right).sum() == 1 and len(right) > 2 else []
    marks = [
        {"kind": "correct" if value else "wrong", "text": f"{'✔' if value else '✘'} {i + 1}"}
        for i, value in enumerate(right)
    ]
    return {
        "number": query,
        "image": gallery.image(comparison.runs[0].path(name), name),
        "marks": marks,
        "tags": tags,
        "positive": None,
        "rows": rows,
        "sort": [len(gallery.queries), query],
    }
