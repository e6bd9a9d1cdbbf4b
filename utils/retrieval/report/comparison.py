"""Several evaluations of the same queries side by side: which of them finds which query."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from model.errors import InputError
from utils.retrieval.metrics import paired_difference, recalls_at
from utils.retrieval.report.charts import escape
from utils.retrieval.report.evaluation_page import COLUMNS
from utils.retrieval.report.page import Gallery, Page, Section, choose_evenly, table
from utils.retrieval.report.pictures import Shown
from utils.retrieval.report.saved_run import SavedRun

RECALL_VALUES = (1, 5, 10, 20, 50, 100)
DIFFERENCES = (
    "Differences of R@1 in points, intervals by bootstrap over the queries; queries that one run alone gets right"
)
KINDS = {True: "correct", False: "wrong", None: "unknown"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs with their names, and the queries that all of them have, in order. correct: [run][Q, K] bool."""

    runs: list[SavedRun]
    names: list[str]
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
            [name, *(f"{value:.1f}" for value in recalls_at(correct, values).values())]
            for name, correct in zip(self.names, self.correct, strict=True)
        ]
        return ["run", *(f"R@{n}" for n in values)], rows

    def difference_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: for each pair of runs, how much better the second is, and how sure that is."""
        rows = []
        for (name, first), (other, second) in combinations(zip(self.names, self.firsts, strict=True), 2):
            found = paired_difference(second, first)
            low, high = found.interval
            figures = [f"{found.difference:+.1f}", f"{low:+.1f} to {high:+.1f}", f"{found.p_value:.2g}"]
            rows.append([f"{other} against {name}", *figures, f"{found.only_first:,}", f"{found.only_second:,}"])
        return ["R@1", "difference", "95 % interval", "McNemar's p", "only right", "only wrong"], rows


def compare(runs: list[SavedRun], names: Sequence[str] | None = None) -> Comparison:
    """The queries that all runs have. names: of the runs; by default their models, with the folder where these are
    equal. Raises InputError if there are no such queries, a run has no labels, or the names do not fit.
    """
    if names is None:
        models = [run.model for run in runs]
        names = [m if models.count(m) == 1 else f"{m}, {run.folder}" for m, run in zip(models, runs, strict=True)]
    if len(names) != len(runs):
        raise InputError(f"--names gives {len(names)} names for {len(runs)} runs. Give one for each.")
    queries = [query for query in runs[0].predictions if all(query in run.predictions for run in runs)]
    if not queries:
        folders = ", ".join(str(run.folder) for run in runs)
        raise InputError(f"No query is in all of {folders}. Compare evaluations of the same dataset.")
    return Comparison(runs=runs, names=list(names), queries=queries, correct=[_correct(run, queries) for run in runs])


def _correct(run: SavedRun, queries: list[str]) -> np.ndarray:
    """Which predictions of a run are correct, bool [Q, K]."""
    correct = [[prediction.correct for prediction in run.predictions[query]] for query in queries]
    if any(None in of_query for of_query in correct):
        raise InputError(f"{run.folder} has no labels, so that no run is better. Evaluate without --no_labels.")
    return np.array(correct, bool)


def comparison_page(comparison: Comparison, *, num_queries: int) -> Page:
    """The page of a comparison with pictures of at most `num_queries` queries, those on which runs differ first."""
    content = table(f"Recall@N in % on the {len(comparison.queries):,} common queries", *comparison.recall_table())
    if len(comparison.runs) > 1:
        content += table(DIFFERENCES, *comparison.difference_table())
    sections = [Section(anchor="settings", heading="Settings that differ", content=_differences(comparison))]
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


def _differences(comparison: Comparison) -> str:
    runs = comparison.runs
    names = sorted({name for run in runs for name in run.arguments})
    rows = []
    for name in names:
        values = [str(run.arguments.get(name, "")) for run in runs]
        if len(set(values)) > 1:
            rows.append([name, *values])
    header = ["flag", *comparison.names]
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
            f"{i + 1}: {name} ({run.predictions[comparison.queries[0]][0].metric})"
            for i, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True))
        ],
    )
    for query in np.concatenate([shown, others]).tolist():
        gallery.queries.append(_gallery_query(comparison, query, gallery))
    names = {f"only {i}": f"only {name} is right" for i, name in enumerate(comparison.names)}
    if len(comparison.runs) > 2:
        names |= {f"except {i}": f"all but {name} are right" for i, name in enumerate(comparison.names)}
    gallery.add_filter("Show", {**names, "all": "all right", "none": "all wrong"})
    gallery.add_sort("differences first", 0)
    gallery.add_sort("order of the dataset", 1)
    return gallery


def _gallery_query(comparison: Comparison, query: int, gallery: Gallery) -> dict[str, Any]:
    name, right = comparison.queries[query], comparison.firsts[:, query]
    image = gallery.cell(Shown(comparison.runs[0].path(name), ()), name)["image"]
    rows = [
        [
            gallery.cell(Shown(run.path(found.image), [f"{found.distance:.4g}"], KINDS[found.correct]), found.image)
            for found in run.predictions[name][:COLUMNS]
        ]
        for run in comparison.runs
    ]
    tags = {len(right): ["all"], 0: ["none"]}.get(int(right.sum()), [])
    tags += [f"only {i}" for i in np.flatnonzero(right)] if right.sum() == 1 else []
    tags += [f"except {i}" for i in np.flatnonzero(~right)] if (~right).sum() == 1 and len(right) > 2 else []
    marks = [
        {"kind": "correct" if value else "wrong", "text": f"{'✔' if value else '✘'} {i + 1}"}
        for i, value in enumerate(right)
    ]
    return {
        "number": query,
        "image": image,
        "marks": marks,
        "tags": tags,
        "positive": None,
        "rows": rows,
        "sort": [len(gallery.queries), query],
    }
