"""What the evaluation scripts share: datasets, the model, features of database and queries, and a summary."""

import csv
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from datasets.benchmark import Benchmark
from datasets.image_set import ImageSet
from datasets.layouts import BenchmarkConfig, list_images
from model import ImageConfig, InputError, ModelChoice, sequences
from model.calibration import CALIBRATION
from model.config import check_image_size
from model.fingerprint import fingerprint
from model.index.metadata import METADATA, IndexMetadata, read_pca
from model.index.pca import PCA
from model.weights import load_model
from model.zoo import PublishedModel
from utils.models import model_on_all_ranks
from utils.retrieval.cities import SUBTASK_VALUES, evaluate_subtasks, search_by_city
from utils.retrieval.config import (
    CropConfig,
    EngineAddress,
    EvaluationConfig,
    ExtractionConfig,
    IndexFlags,
    IVFConfig,
    PCAConfig,
)
from utils.retrieval.extraction import Extractor, extract, prepare, settle_images
from utils.retrieval.features import Features, SearchResult, as_array
from utils.retrieval.index import metadata_of, open_index, turned_as
from utils.retrieval.index.inverted_file import open_inverted_file
from utils.retrieval.pca import check_pca_dim, fit_pca
from utils.retrieval.report import Results, announce, report
from utils.retrieval.sequences import search_sequences
from utils.runtime import distributed
from utils.runtime.atomic_files import atomic_write
from utils.runtime.run_dir import RunDir


class Evaluation:
    """What the search of one dataset needs.

    run: the folder of the results, which times each phase. Attributes: database, queries, their features; k, the number
    of results that the search must give; rerank_num; device.
    """

    def __init__(self, database: Features, queries: Features, config: EvaluationConfig, run: RunDir) -> None:
        self.database, self.queries, self.run = database, queries, run
        self.rerank_num = config.search.rerank_num
        of_sequences = sequences.MATCHES if config.search.sequence > 1 else 1
        self.k = max(self.rerank_num, of_sequences, *config.report.recall_values)
        self.device = config.extraction.device


Stages = dict[str, SearchResult]  # {stage: its results}, in order; the last stage is the one that counts
Search = Callable[[Evaluation], Stages]


class Pipeline:
    """From a dataset to its results: features, the search of an evaluation script, a report.

    weights: the file of the model's weights, which an index to write names; None for the published ones.
    """

    def __init__(
        self, extractor: Extractor, config: EvaluationConfig, search: Search, *, weights: Path | None = None
    ) -> None:
        self.extractor, self.config, self.search, self.weights = extractor, config, search, weights

    def evaluate(self, dataset: Benchmark, run: RunDir) -> Results | None:
        """Writes the results to the run's folder, and returns them; None on all but the main rank."""
        with run.phase("extraction"):  # under torchrun, of every rank's share
            database = self._database(dataset)
            # An index may hold other images than the dataset. What is wrong with them is said before the queries' turn.
            against = distributed.run_on_main(lambda: database and dataset.with_database(database.images), share=False)
            queries = extract(self.extractor.for_queries(self.config.crops), dataset.queries)
        if database is None or against is None or queries is None:  # only the main rank receives the features
            return None
        if self.config.search.ivf:
            with run.phase("inverted_file"):
                database = self._with_inverted_file(database, self.config.search.ivf)
        search, cities = partial(self._search_part, run=run), against.cities
        if cities:
            depth = max(self.config.report.recall_values)
            stages = search_by_city(search, database, queries, cities, depth=depth)
        else:
            stages = search(database, queries)
        length = self.config.search.sequence
        if length > 1:
            with run.phase("sequences"):
                frames = list(stages.values())[-1]
                found = search_sequences(frames, queries.images, database.images, length=length)
                stages = {**stages, f"Sequences of {length}": found}
        model = self.extractor.model.config
        kind = f"{model.kind}, {model.aggregation}" if model.kind == "float" else model.kind
        described = {
            "model": f"{model.backbone}, {kind} ({self.weights or 'published weights'})",
            "weights_sha256": fingerprint(self.extractor.model.original),
            "image_size": list(self.extractor.config.image_config.resize),
            "antialias": self.extractor.config.image_config.antialias,
            "descriptor_dim": database.dim,
            "test_method": self.config.crops.test_method,
        }
        subtasks = {}
        if cities and dataset.config.labels:
            part = partial(self._search_part, run=run.untimed(), least=max(SUBTASK_VALUES))
            with run.phase("subtasks"):
                subtasks = evaluate_subtasks(part, database, queries, against)
        results = report(run, against, stages, model=described, config=self.config.report, subtasks=subtasks)
        if self.config.index.save_index and (run.folder / CALIBRATION).exists():
            with atomic_write(self.config.index.save_index / CALIBRATION, "wb") as file:
                file.write((run.folder / CALIBRATION).read_bytes())
        return results

    def _search_part(self, database: Features, queries: Features, *, run: RunDir, least: int = 1) -> Stages:
        """The results of queries in a database, at least so many for each query."""
        evaluation = Evaluation(database, queries, self.config, run)
        evaluation.k = max(evaluation.k, least)
        return self.search(evaluation)

    def _database(self, dataset: Benchmark) -> Features | None:
        index, ivf = self.config.index, self.config.search.ivf
        if index.load_index:
            return distributed.run_on_main(partial(_features_in_index, index, self.extractor), share=False)
        if ivf and not index.folder:
            ivf.check_size(len(dataset.database))  # fails now, not after extraction; an index would keep the features
        to_write = index.to_write(self.weights)
        if to_write:
            positions = str(dataset.config.positions)
            to_write = replace(to_write, root=dataset.database_folder, positions=positions)
        return extract(self.extractor, dataset.database, save_to=to_write)

    def _with_inverted_file(self, database: Features, ivf: IVFConfig) -> Features:
        """The inverted file of the codes, which searches them approximately, takes their place."""
        codes = open_inverted_file(as_array(database.codes), ivf, self.config.index.folder)
        return database._replace(codes=codes)


def settings_of_index(flags: IndexFlags, config: ExtractionConfig) -> ExtractionConfig:
    """The settings, with the orientation of the images in the index to search, if there is one."""
    location = flags.load_index
    if location is None:
        return config
    metadata = IndexMetadata.read(location) if isinstance(location, Path) else open_index(location).metadata
    return turned_as(metadata, config)


def _features_in_index(flags: IndexFlags, extractor: Extractor) -> Features:
    assert flags.load_index, "or there is nothing to read"
    index = open_index(flags.load_index, verify=not flags.trust_index, allow_incomplete=flags.allow_incomplete_index)
    index.metadata.require_compatible(metadata_of(extractor.model.original, extractor.config, pca=index.pca), index)
    return index.features()


def load_extractor(
    choice: ModelChoice,
    source: PublishedModel | Path,
    config: ExtractionConfig,
    *,
    index: Path | EngineAddress | None = None,
    crops: CropConfig | None = None,
) -> Extractor:
    """The model with the weights of `source`, prepared on every rank, and the settings with the images of the index,
    if there is one already, or of the model, where they leave these open.

    The main rank reads files. Raises InputError if the weights are missing or another model's, or if the model cannot
    take such images, or such crops of them.
    """
    model = model_on_all_ranks(partial(load_model, choice, source))
    stored = distributed.run_on_main(partial(_images_of, index)) if index else None
    config = settle_images(config, stored or model.image_config)
    for size in (crops or CropConfig()).model_sizes(config.image_config.resize):
        check_image_size(model.config, size)
    return Extractor(model=prepare(model.eval(), config), config=config)


def _images_of(index: Path | EngineAddress) -> ImageConfig | None:
    """What the images of an index were resized to; None if there is none in the folder yet."""
    if isinstance(index, EngineAddress):
        return open_index(index).metadata.image_config
    return IndexMetadata.read(index).image_config if (index / METADATA).exists() else None


def find_pca(extractor: Extractor, config: PCAConfig, index: Path | None) -> PCA | None:
    """The projection of float descriptors: that of the index, if there is one in this folder; otherwise fitted.

    None on all but the main rank, and without PCA. Raises InputError if the index has another dimension, or its
    projection is damaged; or if the folder of images holds none, or too few.
    """
    stored = distributed.run_on_main(partial(_stored_pca, index, config.dim), share=False) if index else None
    if config.dim and distributed.broadcast_object(stored is None):
        return _fit_pca_to_images(extractor, config, config.dim)
    return stored


def _stored_pca(index: Path, dim: int | None) -> PCA | None:
    if not (index / METADATA).exists():
        return None
    metadata = IndexMetadata.read(index)
    pca = read_pca(index, metadata)
    if dim and dim != (pca.dim if pca else None):
        content = f"that PCA reduced to {pca.dim} dimensions" if pca else "that are not reduced"
        raise InputError(
            f"--pca_dim {dim}: the index {index} holds descriptors {content}, and --append keeps to that. Leave "
            "--pca_dim out, or choose a new folder."
        )
    return pca


def _fit_pca_to_images(extractor: Extractor, config: PCAConfig, dim: int) -> PCA | None:
    """Fits PCA to the model's descriptors of random images of a folder."""
    paths = distributed.run_on_main(partial(list_images, config.folder))
    if len(paths) > config.max_images:
        chosen = np.random.default_rng(config.seed).choice(len(paths), config.max_images, replace=False)
        paths = [paths[i] for i in np.sort(chosen)]
    check_pca_dim(dim, len(paths), extractor.model.descriptor_dim)  # before the extraction
    features = extract(extractor, ImageSet.without_positions(paths))
    return fit_pca(as_array(features.descriptors), dim, config.seed) if features else None


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
    the terminal and in summary.csv, the paths of the pages, and an InputError that names those that failed.
    """
    if len(benchmarks) == 1:
        (benchmark,) = benchmarks.values()
        assert isinstance(benchmark, Benchmark), "read_benchmarks raises if none can be read"
        logging.info("%s", benchmark)
        evaluate(benchmark, run)
        announce([run])
        return
    outcomes: dict[str, Results | InputError | OSError] = {}
    parts = []
    for name, benchmark in benchmarks.items():
        if isinstance(benchmark, InputError):
            outcomes[name] = benchmark
            continue
        logging.info("\n%s", benchmark)
        try:
            parts.append(run.subfolder(name))
            outcomes[name] = evaluate(benchmark, parts[-1]) or {}
        except (InputError, OSError) as error:
            if distributed.world_size() > 1:  # the other ranks would wait for this one
                raise
            logging.info("%s failed: %s", name, error)
            outcomes[name] = error
    if distributed.is_main():
        _report_summary(run.folder / "summary.csv", outcomes)
        announce(parts)
        failed = [name for name, outcome in outcomes.items() if not isinstance(outcome, dict)]
        if failed:
            raise InputError(f"{len(failed)} of {len(outcomes)} datasets failed: {', '.join(failed)}. See above.")


def _report_summary(path: Path, outcomes: dict[str, Results | InputError | OSError]) -> None:
    """Prints a Markdown table, and writes the same as CSV."""
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


def _summary_row(name: str, outcome: Results | InputError | OSError, values: list[int]) -> list[str]:
    if not isinstance(outcome, dict):
        return [name, "", "", "", *([""] * len(values)), f"failed: {' '.join(str(outcome).split())}"]
    recalls = [f"{outcome['recalls'][n]:.1f}" if "recalls" in outcome else "" for n in values]
    counts = [str(outcome[field]) for field in ("database", "queries")]
    return [name, outcome.get("protocol", "no labels") or "", *counts, *recalls, "evaluated"]
