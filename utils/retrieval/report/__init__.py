"""What an evaluation reports: protocol and recalls on the terminal, results.json, predictions.csv, pictures, a page."""

import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from datasets.benchmark import Benchmark
from datasets.ground_truth import NearPositions
from datasets.image_set import ImageSet
from datasets.protocols import Recognition, recognise
from model.calibration import CALIBRATION, PRECISIONS, precision_recall
from model.places import MATCHES, calibrated_radius
from utils.retrieval.config import ReportConfig
from utils.retrieval.features import SearchResult
from utils.retrieval.matches import estimate_places
from utils.retrieval.metrics import average_precision_at, format_recalls, recalls_at, wilson_interval
from utils.retrieval.report.evaluation_page import evaluation_page
from utils.retrieval.report.outcome import Outcome
from utils.retrieval.report.predictions import save_pictures, write_predictions
from utils.runtime.atomic_files import atomic_write
from utils.runtime.run_dir import RunDir

PAGE = "report.html"
CALIBRATION_FIELDS = (  # of results.json: what model.calibration reads, and what tells a person where it is from
    *("dataset", "database", "queries", "model", "weights_sha256", "image_size", "antialias", "descriptor_dim"),
    *("test_method", "first_match"),
)
Results = dict[str, Any]  # the content of results.json


def report(
    run: RunDir,
    benchmark: Benchmark,
    stages: dict[str, SearchResult],
    *,
    model: dict[str, Any],
    config: ReportConfig,
    subtasks: dict[str, dict[str, Any]] | None = None,
) -> Results:
    """Prints the recalls of each stage, the last stage's on the last line, and writes results.json and predictions.csv.

    subtasks: the figures of MSLS's subtasks, if there are any. model: what results.json says of it: its name, and the
    fields of DistanceKind but for the metric. Then come calibration.json, and the pictures and the page
    that `config` asks for. Without labels there are no recalls and no calibration, only predictions.
    What matters most comes first: if a file cannot be written, nothing before it is lost. Conditions, mAP and
    predictions.csv refer to the last stage. Returns the content of results.json.
    """
    recall_values = config.recall_values
    first = {name: stage.first(max(recall_values)) for name, stage in stages.items()}
    outcome = Outcome(benchmark=benchmark, stages=first)
    results: dict[str, Any] = {
        "dataset": benchmark.name,
        "folder": os.path.abspath(benchmark.folder),  # to which the names in predictions.csv are relative
        "database": len(benchmark.database),
        "queries": len(benchmark.queries),
        **model,
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }
    if outcome.correct:
        results = {"subtasks": _print_subtasks(subtasks or {})} | results
        results = _report_recalls(outcome, recall_values) | results
        results["first_match"] = _describe_first_matches(outcome, list(stages.values())[-1])
    else:
        logging.info("%d queries searched without labels: predictions only, no recalls", len(benchmark.queries))
    write_predictions(run.folder / "predictions.csv", outcome)
    results = run.write_json("results.json", results)
    if outcome.correct:
        with atomic_write(run.folder / CALIBRATION) as file:
            json.dump({name: results[name] for name in CALIBRATION_FIELDS}, file, indent=2)
    if config.num_pictures:
        save_pictures(run.folder / "preds", outcome, config)
    if config.page_queries is not None:
        start = time.perf_counter()
        page = evaluation_page(outcome, results, num_queries=config.page_queries)
        page.write(run.folder / PAGE, exif_orientation=config.exif_orientation)
        logging.debug("report.html took %.1f s", time.perf_counter() - start)
    return results


def announce(runs: Iterable[RunDir]) -> None:
    """Prints the path of the page of each run that has one: the last that a script says."""
    for run in runs:
        if (run.folder / PAGE).is_file():
            logging.info("Report: %s", run.folder / PAGE)


def _report_recalls(outcome: Outcome, recall_values: Sequence[int]) -> dict[str, Any]:
    """Prints protocol, recalls by condition, mAP and recalls."""
    benchmark, correct = outcome.benchmark, list(outcome.correct.values())[-1]
    assert benchmark.truth, "with labels"
    protocol = _recognise(benchmark, benchmark.queries)
    if not isinstance(benchmark.truth, NearPositions):
        logging.info("Right: images %s", benchmark.truth.criterion)
    if benchmark.cities:
        logging.info("Each query is searched in its city alone: %s", ", ".join(benchmark.cities.names))
    if str(protocol):
        logging.info("Protocol: %s", protocol)
    without_positives = sum(len(positives) == 0 for positives in benchmark.positives)
    if without_positives:
        logging.info("%d of %d queries have no positive and count as missed", without_positives, len(benchmark.queries))
    recalls = {name: recalls_at(stage, recall_values) for name, stage in outcome.correct.items()}
    conditions = _recalls_by_condition(outcome, recall_values)
    precisions = average_precision_at(correct, benchmark.positives, recall_values)
    logging.info(", ".join(f"mAP@{n}: {value:.1f}" for n, value in precisions.items()))
    *earlier, (_, final) = recalls.items()
    shared = benchmark.queries_in_database
    without = recalls_at(np.delete(correct, shared, axis=0), recall_values) if len(shared) else None
    if without:
        message = "Without the %d queries that are also database images: %s"
        logging.info(message, len(shared), format_recalls(without))
    for name, values in earlier:
        logging.info("%s: %s", name, format_recalls(values))
    logging.info(format_recalls(final))
    return {
        "recalls": final,
        "recall_intervals": {n: wilson_interval(value, len(correct)) for n, value in final.items()},
        "stage_recalls": recalls,
        "first_stage_recalls": earlier[0][1] if earlier else None,
        "mean_average_precision": precisions,
        "conditions": conditions,
        "per_city": benchmark.cities is not None,
        "queries_without_positives": without_positives,
        "queries_in_database": len(shared),
        "recalls_without_queries_in_database": without,
        "right": benchmark.truth.criterion,
        "threshold": benchmark.config.threshold if isinstance(benchmark.truth, NearPositions) else None,
        **_describe(protocol),
    }


def _print_subtasks(subtasks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Prints the recalls and mAP of each subtask of MSLS and stage, and returns them."""
    for name, figures in subtasks.items():
        for stage, values in figures["stages"].items():
            precisions = ", ".join(f"mAP@{n}: {value:.1f}" for n, value in values["mean_average_precision"].items())
            recalls = format_recalls(values["recalls"])
            logging.info("Subtask %s (%d queries), %s: %s, %s", name, figures["queries"], stage, recalls, precisions)
    return subtasks


def _describe_first_matches(outcome: Outcome, last: SearchResult) -> dict[str, Any]:
    """Area under the precision-recall curve of the first matches, the distances up to which to accept them, and the
    radius of the places that the accepted ones, and those after them in the last stage, give.
    """
    assert outcome.last_correct is not None, "with labels"
    distances, benchmark = last.distances[:, 0], outcome.benchmark
    curve = precision_recall(distances, outcome.last_correct[:, 0])
    places = estimate_places(last, benchmark.database)
    utms, degrees = (
        np.array([(place and getattr(place, name)) or (np.nan, np.nan) for place in places])
        for name in ("position", "degrees")
    )
    errors = benchmark.ground.metres_to_places(utms, degrees)
    has_matches = last.distances.shape[1] >= min(MATCHES, len(benchmark.database))  # as many as a search takes
    points: dict[str, dict[str, float | None] | None] = {}
    for name, precision in PRECISIONS.items():
        point = curve.at_precision(precision)
        points[name] = None
        if point:
            accepted = errors[distances <= point["distance"]]
            points[name] = {**point, "radius": calibrated_radius(accepted) if has_matches else None}
    return {
        "metric": outcome.last.metric[0],
        "auc": curve.auc,
        "recall_at_100_precision": curve.recall_at_100_precision,
        "at_precision": points,
    }


def _recalls_by_condition(outcome: Outcome, recall_values: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Prints and returns the recalls of each stage, the number of queries and the protocol of the queries of each
    condition.
    """
    benchmark, conditions = outcome.benchmark, {}
    for name, indices in benchmark.conditions.items():
        stages = {stage: recalls_at(correct[indices], recall_values) for stage, correct in outcome.correct.items()}
        *earlier, (_, final) = stages.items()
        for stage, recalls in earlier:
            logging.info("%s, %s: %s", name, stage, format_recalls(recalls))
        logging.info("%s (%d queries): %s", name, len(indices), format_recalls(final))
        conditions[name] = {"queries": len(indices), "recalls": final, "stage_recalls": stages}
        if name in benchmark.query_folders and not benchmark.cities:
            protocol = _recognise(benchmark, benchmark.queries[indices], name)
            if str(protocol):
                logging.info("Protocol of %s: %s", name, protocol)
            conditions[name] |= _describe(protocol)
    return conditions


def _recognise(benchmark: Benchmark, queries: ImageSet, folder: str | None = None) -> Recognition:
    config = benchmark.config
    if not isinstance(benchmark.truth, NearPositions):  # which published recalls refer to
        return Recognition(None)
    names = (config.name, config.split, folder) if config.datasets_folder else ()
    return recognise(benchmark.database, queries, config.threshold, names)


def _describe(recognition: Recognition) -> dict[str, Any]:
    """The fields of results.json about the protocol."""
    protocol = recognition.protocol
    return {
        "protocol": recognition.name,
        "protocol_counts_verified": protocol.verified if protocol else None,
        "protocol_note": (protocol.note if protocol else recognition.reason) or None,
        "seasons": dict(zip(("database", "queries"), protocol.seasons, strict=True))
        if protocol and protocol.seasons
        else None,
    }
