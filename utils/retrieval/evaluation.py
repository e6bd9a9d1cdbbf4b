"""Evaluating one dataset, or several in one run."""

import csv
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets.benchmark import Benchmark
from datasets.layouts import BenchmarkConfig
from model import GeoLocalizationNet, InputError, ModelConfig
from model.weights import load_any_model, load_trained
from utils.runtime import distributed
from utils.runtime.atomic_files import atomic_write
from utils.runtime.run_dir import RunDir

Results = dict[str, Any]  # the content of results.json


def load_model_on_all_ranks(
    config: ModelConfig | None, path: Path | None, *, device: str, compiled: bool = False
) -> GeoLocalizationNet:
    """The model with the weights of a file, or (path None) the published ones, in eval mode on the device.

    config: None for whatever model the file contains. The main rank reads the file. Raises InputError if the weights
    are missing or another model's.
    """
    if config is None:
        loaded: Any = distributed.run_on_main(partial(load_any_model, str(path)), share=False)
        recognised: Any = distributed.broadcast_object(loaded.config if loaded else None)
        model = loaded or GeoLocalizationNet(recognised)
        distributed.broadcast_tensors(model.state_dict().values())
    else:
        model = GeoLocalizationNet(config)
        distributed.load_on_main(model, partial(load_trained, model, path))
    if compiled:
        model.compile()
    return model.eval().to(device)


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
