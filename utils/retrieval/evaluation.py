"""Evaluating one dataset, or several in one run."""

import csv
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.benchmark import Benchmark, ImageSet
from datasets.layouts import BenchmarkConfig, list_images
from model import InferenceModel, InputError, ModelChoice
from model.network import check_image_size
from model.weights import load_model
from utils.models import model_on_all_ranks
from utils.retrieval.config import ExtractionConfig, PCAConfig
from utils.retrieval.extraction import extract, prepare
from utils.retrieval.index import IndexMetadata
from utils.retrieval.index.format import METADATA, read_pca
from utils.retrieval.pca import PCA, check_pca_dim, fit_pca
from utils.runtime import distributed
from utils.runtime.atomic_files import atomic_write
from utils.runtime.run_dir import RunDir

Results = dict[str, Any]  # the content of results.json


def load_model_on_all_ranks(
    choice: ModelChoice,
    path: Path | None,
    *,
    extraction: ExtractionConfig,
    image_sizes: list[tuple[int, int]],
    compiled: bool = False,
) -> InferenceModel:
    """The model with the weights of a file, or (path None) the published ones, prepared for this extraction.

    The main rank reads the file. Raises InputError if the weights are missing or another model's, or if the model
    cannot take images of one of the sizes (H, W).
    """
    model = model_on_all_ranks(partial(load_model, choice, path))
    for size in image_sizes:
        check_image_size(model.config, size)
    return prepare(model.eval(), extraction, compiled=compiled)


def find_pca(
    model: InferenceModel, extraction: ExtractionConfig, config: PCAConfig | None, *, index: Path | None
) -> PCA | None:
    """The projection of float descriptors: that of the index, if there is one in this folder; otherwise fitted.

    None on all but the main rank, and without PCA. Raises InputError if the index has another dimension, or its
    projection is damaged; or if the folder of images holds none, or too few.
    """
    stored = distributed.run_on_main(partial(_stored_pca, index, config), share=False) if index else None
    if config and distributed.broadcast_object(stored is None):
        return _fit_pca_to_images(model, extraction, config)
    return stored


def _stored_pca(index: Path, config: PCAConfig | None) -> PCA | None:
    if not (index / METADATA).exists():
        return None
    metadata = IndexMetadata.read(index)
    pca = read_pca(index, metadata)
    if config and config.dim != (pca.dim if pca else None):
        content = f"that PCA reduced to {pca.dim} dimensions" if pca else "that are not reduced"
        raise InputError(
            f"--pca_dim {config.dim}: the index {index} holds descriptors {content}, and --append keeps to that. Leave "
            "--pca_dim out, or choose a new folder."
        )
    return pca


def _fit_pca_to_images(model: InferenceModel, extraction: ExtractionConfig, config: PCAConfig) -> PCA | None:
    """Fits PCA to the model's descriptors of random images of a folder."""
    paths = distributed.run_on_main(partial(list_images, config.folder))
    if len(paths) > config.max_images:
        chosen = np.random.default_rng(config.seed).choice(len(paths), config.max_images, replace=False)
        paths = [paths[i] for i in np.sort(chosen)]
    check_pca_dim(config.dim, len(paths), model.descriptor_dim)  # before the extraction
    features = extract(model, ImageSet.without_positions(paths), extraction)
    return fit_pca(np.asarray(features.descriptors[:]), config.dim, config.seed) if features else None


def read_benchmarks(configs: list[BenchmarkConfig], *, has_database: bool) -> dict[str, Benchmark | InputError]:
    """{name: benchmark, or the error if it cannot be read}. Raises InputError if that is so for all of them.

    The main rank lists the images.
    """
    return distributed.run_on_main(partial(_read_benchmarks, configs, has_database))


def _read_benchmarks(configs: list[BenchmarkConfig], has_database: bool) -> dict[str, Benchmark | InputError]:
    benchmarks: dict[str, Benchmark | InputError] = {}
    for config in configs:
        try:
            benchmarks[config.name] = Benchmark(config, has_database=has_database)
        except InputError as error:
            benchmarks[config.name] = error
    errors = [str(benchmark) for benchmark in benchmarks.values() if isinstance(benchmark, InputError)]
    if len(errors) == len(benchmarks):
        raise InputError("\n".join(errors))
    return benchmarks


def evaluate_each(
    benchmarks: dict[str, Benchmark | InputError], run: RunDir, evaluate: Callable[[Benchmark, RunDir], Results | None]
) -> None:
    """Calls `evaluate` with each benchmark and the folder of its results: the run's, or one in it if there are several.

    Of several, one that fails does not keep the others from being evaluated. At the end there is a table of all, on
    the terminal and in summary.csv, and an InputError that names those that failed.
    """
    if len(benchmarks) == 1:
        (benchmark,) = benchmarks.values()
        assert isinstance(benchmark, Benchmark), "read_benchmarks raises if none can be read"
        logging.info("%s", benchmark)
        evaluate(benchmark, run)
        return
    outcomes: dict[str, Results | InputError | OSError] = {}
    for name, benchmark in benchmarks.items():
        if isinstance(benchmark, InputError):
            outcomes[name] = benchmark
            continue
        logging.info("\n%s", benchmark)
        try:
            outcomes[name] = evaluate(benchmark, run.subfolder(name)) or {}
        except (InputError, OSError) as error:
            if distributed.world_size() > 1:  # the other ranks would wait for this one
                raise
            logging.info("%s failed: %s", name, error)
            outcomes[name] = error
    if distributed.is_main():
        _report_summary(run.folder / "summary.csv", outcomes)


def _report_summary(path: Path, outcomes: dict[str, Results | InputError | OSError]) -> None:
    """Prints a Markdown table, writes the same as CSV, and raises InputError if a dataset failed."""
    failed = [name for name, outcome in outcomes.items() if not isinstance(outcome, dict)]
    evaluated = [outcome for outcome in outcomes.values() if isinstance(outcome, dict)]
    values = list(next((results["recalls"] for results in evaluated if "recalls" in results), {}))
    header = ["dataset", "protocol", "database", "queries", *(f"R@{n}" for n in values), "status"]
    rows = [_summary_row(name, outcome, values) for name, outcome in outcomes.items()]
    logging.info("\n| %s |", " | ".join(header))
    logging.info("|%s", " --- |" * len(header))
    for row in rows:
        logging.info("| %s |", " | ".join(row))
    with atomic_write(path) as file:
        csv.writer(file).writerows([header, *rows])
    if failed:
        raise InputError(f"{len(failed)} of {len(outcomes)} datasets failed: {', '.join(failed)}. See above.")


def _summary_row(name: str, outcome: Results | InputError | OSError, values: list[int]) -> list[str]:
    if not isinstance(outcome, dict):
        return [name, "", "", "", *([""] * len(values)), f"failed: {' '.join(str(outcome).split())}"]
    recalls = [f"{outcome['recalls'][n]:.1f}" if "recalls" in outcome else "" for n in values]
    counts = [str(outcome[field]) for field in ("database", "queries")]
    return [name, outcome.get("protocol", "no labels"), *counts, *recalls, "evaluated"]
