"""What the evaluation scripts share: datasets, the model, features of database and queries, and a summary."""

import csv
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.benchmark import Benchmark
from datasets.image_set import ImageSet
from datasets.layouts import BenchmarkConfig, list_images
from model import ImageConfig, InputError, ModelChoice, sequences
from model.calibration import CALIBRATION
from model.config import HubConfig, ModelConfig, check_image_size
from model.index.metadata import METADATA, IndexMetadata, read_projections
from model.index.pca import PCA
from model.zoo import PublishedModel
from utils.engines.onnx_file import OnnxDescriber, is_onnx
from utils.retrieval.cities import SUBTASK_VALUES, evaluate_subtasks, search_by_city
from utils.retrieval.codes import fit_to_features, with_codes
from utils.retrieval.config import (
    DEFAULT_RERANK_NUM,
    CropConfig,
    EngineAddress,
    EvaluationConfig,
    ExtractionConfig,
    IndexFlags,
    IVFConfig,
    PCAConfig,
)
from utils.retrieval.extraction import Extractor, extract, load_describer, settle_images
from utils.retrieval.features import Features, SearchResult, as_array
from utils.retrieval.hub.config import HubChoice
from utils.retrieval.hub.describer import hub_model_on_all_ranks
from utils.retrieval.index import OpenIndex, metadata_of, open_index, turned_as, weights_of
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
        is_two_stage = database.codes is not None and database.descriptors is not None
        self.rerank_num = config.search.rerank_num or (DEFAULT_RERANK_NUM if is_two_stage else 0)
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
        self._refuse_ivf_by_city(dataset)
        with run.phase("extraction"):  # under torchrun, of every rank's share
            extractor, database = self._database(dataset)
            # An index may hold other images than the dataset. What is wrong with them is said before the queries' turn.
            against = distributed.run_on_main(partial(self._against, dataset, database), share=False)
            queries = extract(extractor.for_queries(self.config.crops), dataset.queries)
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
        described = {
            **_names_of(self.extractor.model.config, self.weights),
            "weights_sha256": self.extractor.model.fingerprint,
            "engine": self.extractor.model.engine,
            "image_size": list(self.extractor.config.image_config.resize),
            "antialias": self.extractor.config.image_config.antialias,
            "descriptor_dim": database.dim,
            "test_method": self.config.crops.test_method,
        }
        coding = extractor.projections.coding
        if coding:
            described["codes"] = {"method": coding.method, "bits": coding.bits}
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

    def _against(self, dataset: Benchmark, database: Features | None) -> Benchmark | None:
        """The dataset with this database. Raises InputError if it cannot be searched so."""
        if database is None:
            return None
        if database.codes is None and self.config.search.rerank_num:
            raise InputError("--rerank_num applies to a search by codes, and the index has none. Leave it out.")
        against = dataset.with_database(database.images)
        self._refuse_ivf_by_city(against)
        return against

    def _refuse_ivf_by_city(self, dataset: Benchmark) -> None:
        """Raises InputError, before an extraction, for an approximate search of a dataset that goes city by city."""
        if self.config.search.ivf and dataset.cities:
            raise InputError(
                f"--ivf searches the whole database, and the queries of {dataset.name} are searched city by city. "
                "Leave it out."
            )

    def _search_part(self, database: Features, queries: Features, *, run: RunDir, least: int = 1) -> Stages:
        """The results of queries in a database, at least so many for each query."""
        evaluation = Evaluation(database, queries, self.config, run)
        evaluation.k = max(evaluation.k, least)
        return self.search(evaluation)

    def _database(self, dataset: Benchmark) -> tuple[Extractor, Features | None]:
        """The features of the database, on the main rank, and what extracts those of queries like them."""
        extractor = self.extractor
        index, ivf = self.config.index, self.config.search.ivf
        if index.load_index:
            opened = distributed.run_on_main(partial(_open_compatible, index, extractor), share=False)
            if opened is None:
                return extractor, None
            return replace(extractor, projections=opened.projections), opened.features()
        if ivf and not index.folder:
            ivf.check_size(len(dataset.database))  # fails now, not after extraction; an index would keep the features
        to_write = index.to_write(self.weights)
        if to_write:
            positions = str(dataset.config.positions)
            to_write = replace(to_write, root=dataset.database_folder, positions=positions)
        extractor = with_codes(extractor, self.config.codes, dataset.database, index=index.folder)
        database = extract(extractor, dataset.database, save_to=to_write)
        if database and self.config.codes.source and not extractor.projections.coding:
            return fit_to_features(extractor, self.config.codes, database)
        return extractor, database

    def _with_inverted_file(self, database: Features, ivf: IVFConfig) -> Features:
        """The inverted file of the codes, which searches them approximately, takes their place."""
        codes = open_inverted_file(as_array(database.codes), ivf, self.config.index.folder)
        return database._replace(codes=codes)


def _names_of(model: ModelConfig | HubConfig, weights: Path | None) -> dict[str, Any]:
    """What results.json says of the model: it in words, and the facts of a hub model."""
    if isinstance(model, HubConfig):
        return {"model": f"{model.label} (commit {model.commit})", "hub": asdict(model)}
    return {"model": f"{model.label} ({weights or 'published weights'})"}


def settings_of_index(flags: IndexFlags, config: ExtractionConfig) -> ExtractionConfig:
    """The settings, with the orientation of the images in the index to search, if there is one."""
    location = flags.load_index
    if location is None:
        return config
    metadata = IndexMetadata.read(location) if isinstance(location, Path) else open_index(location).metadata
    return turned_as(metadata, config)


def _open_compatible(flags: IndexFlags, extractor: Extractor) -> OpenIndex:
    assert flags.load_index, "or there is nothing to read"
    index = open_index(flags.load_index, verify=not flags.trust_index, allow_incomplete=flags.allow_incomplete_index)
    index.metadata.require_compatible(
        metadata_of(extractor.model, extractor.config, projections=index.projections), index
    )
    return index


def load_extractor(
    choice: ModelChoice,
    source: PublishedModel | Path | HubChoice,
    config: ExtractionConfig,
    *,
    index: Path | EngineAddress | None = None,
    crops: CropConfig | None = None,
    num_images: int = 0,
) -> Extractor:
    """The model with the weights of `source`, or the hub model, prepared on every rank, and the settings with the
    images of the index, if there is one already, or of the model, where they leave these open.

    num_images: how many it will describe, about. The main rank reads files. Raises InputError if the weights are
    missing or another model's, or if the model or its engine cannot take such images, or such crops of them.
    """
    stored = distributed.run_on_main(partial(_images_of, index)) if index else None
    crops = crops or CropConfig()
    if isinstance(source, HubChoice):
        if config.engine not in ("auto", "torch") or config.onnx_provider:
            raise InputError("PyTorch runs hub models. Leave --engine and --onnx_provider out.")
        config = settle_images(config, stored)
        hub_model = hub_model_on_all_ranks(source, config, crops.model_sizes(config.image_config.resize))
        return Extractor(model=hub_model, config=config)
    if crops.test_method == "single_query":
        config = _for_many_sizes(source, config)
    model, images, config = load_describer(choice, source, config, num_images=num_images)
    config = settle_images(config, stored or images)
    for size in crops.model_sizes(config.image_config.resize):
        check_image_size(model.config, size)
        if isinstance(model, OnnxDescriber):
            model.check_size(size)
    return Extractor(model=model, config=config)


def _for_many_sizes(source: PublishedModel | Path, config: ExtractionConfig) -> ExtractionConfig:
    """The settings with PyTorch as the engine. Raises InputError if the user states one that converts the model for
    each size of images, or a file that was.
    """
    if is_onnx(source) or config.engine not in ("auto", "torch"):
        raise InputError(
            "--test_method single_query keeps the sizes of queries, and only PyTorch takes images of any size. Give a "
            "checkpoint, and --engine torch; or choose another method."
        )
    return replace(config, engine="torch")


def model_of(
    metadata: IndexMetadata, index: object, hub: HubChoice, stated: PublishedModel | Path | None = None
) -> tuple[ModelChoice, PublishedModel | Path | HubChoice]:
    """The model of an index, as load_extractor takes it. hub: whether a hub model's code is trusted, and where it is,
    if not where the index says; stated: weights in place of those that the index names.

    Raises InputError if they are not there, or if the code is not trusted.
    """
    if isinstance(metadata.model, HubConfig):
        if stated is not None:
            raise InputError(f"The index {index} was built with {metadata.model.flags}. Leave --model out.")
        return ModelChoice(), hub.of_index(metadata.model, index)
    if hub.name:
        raise InputError(f"The index {index} was built with {metadata.model.flags}. Leave --hub out.")
    weights = weights_of(metadata, index, stated)
    return ModelChoice(**asdict(metadata.model)), weights


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
    pca = read_projections(index, metadata).pca
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
