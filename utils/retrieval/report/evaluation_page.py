"""report.html: the page of one evaluation."""

from typing import Any

import numpy as np

from utils.retrieval.metrics import PrecisionRecall, format_recalls, precision_recall, recalls_at
from utils.retrieval.report.charts import Axis, MapFrame, escape, line_chart, mirrored_histogram, success_map
from utils.retrieval.report.outcome import Outcome
from utils.retrieval.report.page import Gallery, Page, Section, choose_evenly, settings_table, table
from utils.retrieval.report.pictures import Shown

COLUMNS = 5  # predictions of a query and stage with pictures
BINS = 24
PRECISIONS = (0.95, 0.99)
FAILURE_SHARE = 0.8  # of the gallery, where there are enough failures and successes
OUTCOMES = {
    "wrong": "wrong first prediction",
    "right": "right first prediction",
    "corrected": "corrected by re-ranking",
    "spoilt": "spoilt by re-ranking",
    "none": "no positive exists",
}


def evaluation_page(outcome: Outcome, results: dict[str, Any], *, num_queries: int) -> Page:
    """The page of an evaluation with pictures of at most `num_queries` queries. results: what results.json holds."""
    benchmark = outcome.benchmark
    title, before, after = f"{benchmark.name}: predictions", [], []
    frame = None
    if outcome.correct:
        first = list(results["recalls"].items())[:3]
        title = f"{benchmark.name}: {', '.join(f'R@{n} {value:.1f}' for n, value in first)}"
        frame = MapFrame(np.concatenate([benchmark.database.utms, benchmark.queries.utms]))
        before.append(_recall_section(outcome, list(results["recalls"])))
        after.append(_map_section(outcome, frame))
        after.append(_distance_section(outcome))
        if results["conditions"]:
            after.append(_condition_section(results))
    return Page(
        title=title,
        heading=benchmark.name,
        header=_header(outcome, results),
        before=before,
        gallery=_gallery(outcome, frame, num_queries),
        after=[*after, _settings_section(results)],
    )


def _header(outcome: Outcome, results: dict[str, Any]) -> str:
    counts = f"{results['queries']:,} queries, {results['database']:,} database images"
    lines = [f'<p class="soft">{escape(counts)}. {escape(results["folder"])}</p>']
    if outcome.correct:
        note = f" ({results['protocol_note']})" if results["protocol_note"] else ""
        lines.insert(0, f"<p>Protocol: {escape(results['protocol'] + note)}</p>")
        missing = results["queries_without_positives"]
        if missing:
            lines.append(f"<p>{missing:,} queries have no positive and count as missed.</p>")
        without = results["recalls_without_queries_in_database"]
        if without:
            shared = f"{results['queries_in_database']:,} queries are also database images"
            lines.append(f"<p>{shared}. Without them: {format_recalls(without)}.</p>")
        figures = "".join(
            f"<li><strong>{value:.1f}</strong>R@{n}</li>" for n, value in list(results["recalls"].items())[:4]
        )
        lines.append(f'<ul class="figures">{figures}</ul>')
    else:
        lines.append("<p>No labels: predictions only, no recalls.</p>")
    return "".join(lines)


# ---- Recalls


def _recall_section(outcome: Outcome, values: list[int]) -> Section:
    depth = outcome.last.indices.shape[1]
    every = range(1, depth + 1)
    rows, lines = [], {}
    for name, correct in outcome.correct.items():
        rows.append([name, *(f"{value:.1f}" for value in recalls_at(correct, values).values())])
        curve = recalls_at(correct, every)
        lines[name] = (_log_positions(np.array(every), depth), np.array(list(curve.values())) / 100)
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n <= depth]
    x = Axis("N (logarithmic)", [(float(_log_positions(np.array(n), depth)), str(n)) for n in ticks])
    y = Axis("Recall@N in %", [(value / 100, str(value)) for value in range(0, 101, 20)])
    recalls = table("Recall@N in %", ["stage", *(f"R@{n}" for n in values)], rows)
    chart = f"<div>{line_chart('Recall@N over N of each stage', lines, x=x, y=y)}</div>"
    return Section(anchor="recalls", heading="Recalls", content=f'<div class="columns">{recalls}{chart}</div>')


def _log_positions(n: np.ndarray, depth: int) -> np.ndarray:
    """1 to depth -> 0 to 1."""
    return np.log(n) / max(np.log(depth), 1e-9)


def _condition_section(results: dict[str, Any]) -> Section:
    header = ["condition", "queries", *(f"R@{n}" for n in results["recalls"])]
    rows = [
        [name, f"{condition['queries']:,}", *(f"{value:.1f}" for value in condition["recalls"].values())]
        for name, condition in results["conditions"].items()
    ]
    content = table("Recall@N in % by condition, last stage", header, rows)
    return Section(anchor="conditions", heading="Conditions", content=content)


# ---- Map


def _map_section(outcome: Outcome, frame: MapFrame) -> Section:
    correct = outcome.last_correct
    assert correct is not None, "the map shows what is correct"
    right = int(correct[:, 0].sum())
    wrong = len(correct) - right
    name = f"Map, north up: {right} queries whose first prediction is right, {wrong} whose first one is wrong"
    benchmark = outcome.benchmark
    picture = success_map(
        name, frame, benchmark.database.utms, queries=benchmark.queries.utms, correct=correct[:, 0].astype(bool)
    )
    legend = (
        f'<p class="hint"><span class="tag correct">● right ({right:,})</span> '
        f'<span class="tag wrong">✘ wrong ({wrong:,})</span> <span class="tag">· database</span> '
        "A click on a query with pictures selects it: a line leads to its first prediction.</p>"
    )
    back = '<p><button type="button" id="map-back" hidden>Show the selected query in the gallery</button></p>'
    return Section(anchor="map-section", heading="Map", content=legend + picture + back)


# ---- Match distance


def _distance_section(outcome: Outcome) -> Section:
    histograms, rows, lines = [], [], {}
    lowest = 1.0
    for name, stage in outcome.stages.items():
        correct = outcome.correct[name][:, 0]
        histograms.append(_histogram(name, stage.distances[:, 0], correct, unit=stage.metric[0]))
        curve = precision_recall(stage.distances[:, 0], correct)
        for precision in PRECISIONS:
            rows.append(_threshold_row(outcome.heading(name), curve, precision))
        if curve.auc is not None:
            lines[name] = (np.append(0, curve.recall), np.append(1, curve.precision))
            lowest = min(lowest, float(curve.precision.min()))
    header = ["stage", "AUC", "precision", "accept up to", "accepts", "of right matches"]
    thresholds = table("Distance up to which first matches reach a precision", header, rows)
    content = '<div class="columns">' + "".join(histograms)
    if lines:
        step = next(step for step in (0.02, 0.1, 0.2) if lowest >= 1 - 5 * step - 1e-9)
        low = 1 - 5 * step
        scaled = {name: (recall, (precision - low) / (1 - low)) for name, (recall, precision) in lines.items()}
        x = Axis("recall: right matches that are accepted, in %", [(v / 100, str(v)) for v in range(0, 101, 20)])
        y = Axis("precision in %", [(i / 5, f"{100 * (low + i * step):.0f}") for i in range(6)])
        chart = line_chart("Precision over recall of the first matches of each stage", scaled, x=x, y=y)
        content += f"<div><h3>Precision and recall</h3>{chart}</div>"
    note = (
        '<p class="hint">Bars: shares of the right, and of the wrong, first matches. A first match is accepted if its '
        "distance is at most the threshold. Precision: how many of these are right. "
        "Thresholds chosen on these queries are optimistic for others.</p>"
    )
    return Section(anchor="distances", heading="Match distance", content=f"{content}</div>{thresholds}{note}")


def _threshold_row(name: str, curve: PrecisionRecall, precision: float) -> list[str]:
    auc = "undefined" if curve.auc is None else f"{curve.auc:.4f}"
    point = curve.at_precision(precision)
    if point is None:
        return [name, auc, f"{precision:.0%}", "never reached", "", ""]
    reached = [f"{point['distance']:.4g}", f"{point['accepted']:.1%}", f"{point['recall']:.1%}"]
    return [name, auc, f"{precision:.0%}", *reached]


def _histogram(name: str, distances: np.ndarray, correct: np.ndarray, *, unit: str) -> str:
    edges = np.linspace(distances.min(), max(distances.max(), distances.min() + 1e-9), BINS + 1)
    shares = [np.histogram(distances[group], edges)[0] / max(group.sum(), 1) for group in (correct, ~correct)]
    highest = max(float(share.max()) for share in shares)
    ticks = [(float(t), f"{edges[0] + t * (edges[-1] - edges[0]):.3g}") for t in np.linspace(0, 1, 5)]
    right, wrong = int(correct.sum()), int((~correct).sum())
    chart = mirrored_histogram(
        f"{name}: distances of {right} right first matches above, of {wrong} wrong ones below the line",
        (f"✔ right\n{right:,}", shares[0] / highest),
        (f"✘ wrong\n{wrong:,}", shares[1] / highest),
        x=Axis(f"distance of the first match ({unit})", ticks),
    )
    return f"<div><h3>{escape(name)}</h3>{chart}</div>"


# ---- Settings


def _settings_section(results: dict[str, Any]) -> Section:
    arguments = {name: value for name, value in results["arguments"].items() if value is not None}
    parts = {"Seconds": results["seconds"], "Versions": results["versions"], "Arguments": arguments}
    content = f'<div class="columns">{"".join(settings_table(*part) for part in parts.items())}</div>'
    return Section(anchor="settings", heading="Settings, versions, times", content=content)


# ---- Gallery


def _gallery(outcome: Outcome, frame: MapFrame | None, num_queries: int) -> Gallery:
    total = len(outcome.benchmark.queries)
    correct = outcome.last_correct
    if correct is None:
        failures, chosen = np.empty(0, int), choose_evenly(np.arange(total), num_queries)
        heading, note = "Predictions", f"{len(chosen):,} of {total:,} queries, evenly spaced."
    else:
        failures, successes = choose_queries(correct[:, 0], num_queries)
        chosen = np.concatenate([failures, successes])
        wrong = int((~correct[:, 0]).sum())
        heading = "Failures and successes"
        note = (
            f"{len(failures):,} of {wrong:,} failures and {len(successes):,} of {total - wrong:,} successes have "
            "pictures here, evenly spaced. predictions.csv holds all."
        )
    gallery = Gallery(
        heading=heading,
        note=f'<p class="soft">{escape(note)}</p>',
        rows=[outcome.heading(name) for name in outcome.stages],
    )
    conditions = {name: set(indices.tolist()) for name, indices in outcome.benchmark.conditions.items()}
    for query in chosen.tolist():
        gallery.queries.append(_gallery_query(outcome, query, gallery, frame=frame))
        gallery.queries[-1]["tags"] += [f"condition {name}" for name, members in conditions.items() if query in members]
    gallery.add_filter("Condition", {f"condition {name}": name for name in conditions})
    gallery.add_filter("Show", OUTCOMES)
    if correct is not None:
        gallery.add_sort("failures first", 0)
    gallery.add_sort("order of the dataset", 1)
    gallery.add_sort("nearest first match", 2)
    gallery.add_sort("most distant first match", 2, descending=True)
    if correct is not None:
        gallery.add_sort("largest error in metres", 3, descending=True)
    return gallery


def choose_queries(correct: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Failures and successes to show, at most `count`: all if possible, otherwise mostly failures, each evenly spaced.

    correct: bool [Q].
    """
    failures, successes = np.flatnonzero(~correct), np.flatnonzero(correct)
    room = max(count - len(successes), int(count * FAILURE_SHARE))
    shown = choose_evenly(failures, room)
    return shown, choose_evenly(successes, count - len(shown))


def _gallery_query(outcome: Outcome, query: int, gallery: Gallery, *, frame: MapFrame | None) -> dict[str, Any]:
    """A query with the first predictions of each stage. frame: of the map; None without one."""

    def add(shown: Shown) -> dict[str, Any]:
        place = frame(shown.position[None])[0] if frame and shown.position is not None else None
        return gallery.cell(shown, outcome.name(shown.image), place)

    image = add(outcome.shown_query(query))["image"]
    rows = [[add(shown) for shown in outcome.shown_matches(name, query, COLUMNS)] for name in outcome.stages]
    tags, marks, positive, error = [], [], None, None
    if outcome.correct:
        positive = add(outcome.shown_positive(query))
        firsts = [bool(correct[query, 0]) for correct in outcome.correct.values()]
        tags = _tags(firsts, has_positive=positive["image"] is not None)
        marks = [{"kind": "correct", "text": "✔ right"} if firsts[-1] else {"kind": "wrong", "text": "✘ wrong"}]
        error = round(float(outcome.metres(query, outcome.last.indices[query, :1])[0]), 1)
    return {
        "number": query,
        "image": image,
        "marks": marks,
        "tags": tags,
        "positive": positive,
        "rows": rows,
        "sort": [len(gallery.queries), query, float(f"{outcome.last.distances[query, 0]:.6g}"), error],
    }


def _tags(firsts: list[bool], has_positive: bool) -> list[str]:
    """Keys of OUTCOMES. firsts: whether the first prediction of each stage is right."""
    tags = ["right" if firsts[-1] else "wrong"]
    if firsts[-1] != firsts[0]:
        tags.append("corrected" if firsts[-1] else "spoilt")
    return tags if has_positive else [*tags, "none"]
