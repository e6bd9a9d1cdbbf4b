"""report.html: the page of one evaluation."""

import math
from typing import Any

import numpy as np

from model.calibration import PRECISIONS, PrecisionRecall, precision_recall
from model.places import MATCHES, SHARE
from utils.retrieval.cities import SUBTASK_VALUES
from utils.retrieval.metrics import format_recalls, recalls_at
from utils.retrieval.report.charts import (
    Axis,
    MapFrame,
    escape,
    line_chart,
    mirrored_histogram,
    on_map,
    round_ticks,
    success_map,
)
from utils.retrieval.report.outcome import Outcome
from utils.retrieval.report.page import Gallery, Page, Section, choose_evenly, settings_table, table
from utils.retrieval.report.pictures import Shown

COLUMNS = 5  # predictions of a query and stage with pictures
BINS = 12  # of a histogram, at most
FAILURE_SHARE = 0.8  # of the gallery, where there are enough failures and successes
OUTCOMES = {
    "wrong": "wrong first prediction",
    "right": "right first prediction",
    "corrected": "corrected after the first stage",
    "spoilt": "spoilt after the first stage",
    "none": "no positive exists",
}


def evaluation_page(outcome: Outcome, results: dict[str, Any], *, num_queries: int) -> Page:
    """The page of an evaluation with pictures of at most `num_queries` queries. results: what results.json holds."""
    benchmark = outcome.benchmark
    title, before, after = f"{benchmark.name}: predictions", [], []
    database, queries = map(benchmark.ground.on_map, (benchmark.database, benchmark.queries))
    known = np.concatenate([places[on_map(places)] for places in (database, queries)])
    frame = MapFrame(known) if len(known) else None
    overview = _map(frame, database, queries, correct=outcome.last_correct) if frame else ""
    if outcome.correct:
        first = list(results["recalls"].items())[:3]
        title = f"{benchmark.name}: {', '.join(f'R@{n} {value:.1f}' for n, value in first)}"
        overview = f'<div class="columns"><div>{_recalls(outcome, results)}</div>{overview}</div>'
        after.append(_distance_section(outcome, results["first_match"]["at_precision"]))
    if overview:
        heading = ["recalls"] * bool(outcome.correct) + ["map"] * bool(frame)
        before.append(Section(anchor="recalls", heading=" and ".join(heading).capitalize(), content=overview))
    return Page(
        title=title,
        heading=benchmark.name,
        header=_header(outcome, results),
        before=before,
        gallery=_gallery(outcome, frame, num_queries),
        after=[*after, _settings_section(results)],
    )


def _header(outcome: Outcome, results: dict[str, Any]) -> str:
    height, width = results["image_size"]
    counts = f"{results['queries']:,} queries, {results['database']:,} database images"
    lines = [f"{results['model']}, images of {height} x {width} pixels, {results['date']}", counts]
    if not outcome.correct:
        lines[1] += ". No labels: predictions only, no recalls."
        return "".join(f"<p>{escape(line)}</p>" for line in lines) + _folder(results)
    lines[1] += f"; right {results['right']}"
    protocol, note = results["protocol"], results["protocol_note"]
    if protocol:
        lines.append(f"Protocol: {protocol} ({note})" if note else f"Protocol: {protocol}")
    elif note:
        lines.append(f"Protocol: none known: {note}")
    if results["queries_without_positives"]:
        lines.append(f"{results['queries_without_positives']:,} queries have no positive and count as missed.")
    without = results["recalls_without_queries_in_database"]
    if without:
        shared = f"{results['queries_in_database']:,} queries are also database images"
        lines.append(f"{shared}. Without them: {format_recalls(without)}.")
    figures = ""
    for n, value in list(results["recalls"].items())[:4]:
        low, high = results["recall_intervals"][n]
        figures += f'<li><strong>{value:.1f}</strong>R@{n} <span class="soft">{low:.1f} to {high:.1f}</span></li>'
    note = '<p class="soft">Recall@N in %, with its 95 % confidence interval (Wilson) over the queries.</p>'
    texts = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'{texts}{_folder(results)}<ul class="figures">{figures}</ul>{note}'


def _folder(results: dict[str, Any]) -> str:
    return f'<p class="soft">{escape(results["folder"])}</p>'


# ---- Recalls and map


def _recalls(outcome: Outcome, results: dict[str, Any]) -> str:
    values = list(results["recalls"])
    rows = [
        [name, *(f"{value:.1f}" for value in recalls_at(correct, values).values())]
        for name, correct in outcome.correct.items()
    ]
    content = table("Recall@N in %", ["stage", *(f"R@{n}" for n in values)], rows)
    if results["conditions"]:
        header = ["condition", "queries", "stage", *(f"R@{n}" for n in values)]
        rows = [
            [name, f"{condition['queries']:,}", stage, *(f"{value:.1f}" for value in recalls.values())]
            for name, condition in results["conditions"].items()
            for stage, recalls in condition["stage_recalls"].items()
        ]
        content += f"<h3>Conditions</h3>{table('Recall@N in % by condition', header, rows)}"
    for name, figures in results["subtasks"].items():
        header = ["stage", *(f"R@{n}" for n in SUBTASK_VALUES), *(f"mAP@{n}" for n in SUBTASK_VALUES)]
        rows = [
            [
                stage,
                *(f"{value:.1f}" for part in ("recalls", "mean_average_precision") for value in found[part].values()),
            ]
            for stage, found in figures["stages"].items()
        ]
        content += table(f"MSLS, subtask {name}: {figures['queries']:,} queries with a positive", header, rows)
    return content


def _map(frame: MapFrame, database: np.ndarray, queries: np.ndarray, *, correct: np.ndarray | None) -> str:
    """The map of the positions [N, 2] and [Q, 2] that are known, with its legend. correct: [Q, K]; None if unknown."""
    if correct is None:
        groups, legend = {"unknown": np.ones(len(queries), bool)}, {"unknown": "query"}
    else:
        groups = {"right": correct[:, 0], "wrong": ~correct[:, 0]}
        legend = {"right": "right", "wrong": "wrong"}
    tags, names = "", []
    for kind, text in legend.items():
        count = f"{text} ({int(groups[kind].sum()):,})"
        names.append(count)
        sign, style = ("✘", "wrong") if kind == "wrong" else ("●", "correct" if kind == "right" else "unknown")
        tags += f'<span class="tag {style}">{sign} {count}</span> '
    places = {kind: queries[members & on_map(queries)] for kind, members in groups.items()}
    picture = success_map(f"Map, north up: {', '.join(names)}", frame, database[on_map(database)], **places)
    hint = "A click on a query with pictures selects it: a line leads to its first prediction."
    return (
        f'<div id="map-section"><p class="hint">{tags}<span class="tag">· database</span> {hint}</p>{picture}'
        '<p><button type="button" id="map-back" hidden>Show the selected query in the gallery</button></p></div>'
    )


# ---- Match distance


def _distance_section(outcome: Outcome, points: dict[str, dict[str, float] | None]) -> Section:
    """points: of the last stage, as results.json holds them."""
    histograms, rows, lines = [], [], {}
    lowest = 1.0
    for name, stage in outcome.stages.items():
        correct = outcome.correct[name][:, 0]
        histograms.append(_histogram(name, stage.distances[:, 0], correct, unit=stage.metric[0]))
        curve = precision_recall(stage.distances[:, 0], correct)
        for precision in PRECISIONS.values():
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
        '<p class="hint">A first match is accepted if its distance is at most the threshold. Precision: how many of '
        "these are right. The share of right matches that 100% precision accepts is VPR-Bench's R@100P. Thresholds "
        "chosen on these queries are optimistic for others.</p>"
    )
    radii = [
        f"{point['radius']:.3g} m with {name}% precision" for name, point in points.items() if point and point["radius"]
    ]
    if radii:
        places = f"the place estimated from its first {MATCHES} matches lies within {'; '.join(radii)}"
        note += f'<p class="hint">Of {SHARE:.0%} of the accepted queries of the last stage, {places}.</p>'
    return Section(anchor="distances", heading="Match distance", content=f"{content}</div>{thresholds}{note}")


def _threshold_row(name: str, curve: PrecisionRecall, precision: float) -> list[str]:
    auc = "undefined" if curve.auc is None else f"{curve.auc:.4f}"
    point = curve.at_precision(precision)
    if point is None:
        return [name, auc, f"{precision:.0%}", "never reached", "", ""]
    distance = math.ceil(1e4 * point["distance"]) / 1e4  # rounded up, so that it accepts what it says
    reached = [f"{distance:.4f}", f"{point['accepted']:.1%}", f"{point['recall']:.1%}"]
    return [name, auc, f"{precision:.0%}", *reached]


def _histogram(name: str, distances: np.ndarray, correct: np.ndarray, *, unit: str) -> str:
    edges = round_ticks(float(distances.min()), float(distances.max()), BINS, least=1 if unit == "hamming" else 0)
    counts = [np.histogram(distances[group], edges)[0] for group in (correct, ~correct)]
    places = (edges - edges[0]) / (edges[-1] - edges[0])
    ticks = [(float(place), f"{edge:.6g}") for place, edge in zip(places[::2], edges[::2], strict=True)]
    right, wrong = int(correct.sum()), int((~correct).sum())
    chart = mirrored_histogram(
        f"{name}: distances of {right} right first matches above, of {wrong} wrong ones below the line",
        (f"✔ right\n{right:,}", counts[0]),
        (f"✘ wrong\n{wrong:,}", counts[1]),
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
            f"pictures here{', evenly spaced' * (len(chosen) < total)}. predictions.csv holds all."
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
    if any(query["sort"][3] is not None for query in gallery.queries):
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
        place = None
        if frame and shown.position is not None and on_map(shown.position[None])[0]:
            place = frame(shown.position[None])[0]
        return gallery.cell(shown, outcome.name(shown.image), place)

    image = add(outcome.shown_query(query))["image"]
    rows = [[add(shown) for shown in outcome.shown_matches(name, query, COLUMNS)] for name in outcome.stages]
    tags, marks, positive, error = [], [], None, None
    if outcome.correct:
        positive = add(outcome.shown_positive(query))
        firsts = [bool(correct[query, 0]) for correct in outcome.correct.values()]
        tags = _tags(firsts, has_positive=positive["image"] is not None)
        marks = [{"kind": "correct", "text": "✔ right"} if firsts[-1] else {"kind": "wrong", "text": "✘ wrong"}]
        metres = float(outcome.benchmark.ground.metres(query, outcome.last.indices[query, :1])[0])
        error = None if math.isnan(metres) else round(metres, 1)
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
