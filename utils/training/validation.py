"""Validation between epochs, with the functions that the evaluation scripts use."""

from typing import Any, NamedTuple

from datasets.benchmark import Benchmark
from datasets.image_set import ImageSet
from datasets.layouts import BenchmarkConfig
from model import GeoLocalizationNet, InputError
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import Extractor, extract, prepare, settle_images
from utils.retrieval.features import Features
from utils.retrieval.metrics import correct_predictions, recalls_at
from utils.retrieval.search import search_and_rerank
from utils.runtime import distributed

RECALL_VALUES = [1, 5, 10]


class ValidationResult(NamedTuple):
    """{N: Recall@N} on a dataset. first_stage: those before re-ranking, if there was any."""

    dataset: str
    recalls: dict[int, float]
    first_stage: dict[int, float] | None = None


class Validator:
    """Called with a model in eval mode, it returns the results on each benchmark, on every rank.

    Models with codes are searched by Hamming distance, others by L2. With `rerank_num` the first results of a
    two-branch model are re-ranked. Its float branch is frozen, so that those descriptors are extracted only once.
    """

    def __init__(self, benchmarks: list[Benchmark], config: ExtractionConfig, rerank_num: int = 0) -> None:
        self.benchmarks = benchmarks
        self.config = config
        self.rerank_num = rerank_num
        self._float_features: dict[int, Features | None] = {}  # by the identity of the image set

    def __call__(self, model: GeoLocalizationNet) -> list[ValidationResult]:
        config = settle_images(self.config, model.image_config)
        extractor = Extractor(model=prepare(model, config), config=config)
        return [distributed.broadcast_object(self._validate(extractor, benchmark)) for benchmark in self.benchmarks]

    def _validate(self, extractor: Extractor, benchmark: Benchmark) -> Any:
        database, queries = (self._extract(extractor, images) for images in (benchmark.database, benchmark.queries))
        if database is None or queries is None:
            return None
        stages = search_and_rerank(database, queries, max(RECALL_VALUES), rerank_num=self.rerank_num)
        correct = [correct_predictions(result.indices, benchmark.positives) for result in stages]
        recalls = [recalls_at(stage, RECALL_VALUES) for stage in correct]
        return ValidationResult(benchmark.name, recalls[-1], recalls[0] if self.rerank_num else None)

    def _extract(self, extractor: Extractor, images: ImageSet) -> Features | None:
        if not extractor.model.config.rerank:
            return extract(extractor, images)
        if not self.rerank_num:
            return extract(extractor, images, float_branch=False)
        if id(images) not in self._float_features:
            self._float_features[id(images)] = extract(extractor, images)
            return self._float_features[id(images)]
        features, frozen = extract(extractor, images, float_branch=False), self._float_features[id(images)]
        return features._replace(descriptors=frozen.descriptors) if features and frozen else None


def validation_sets(configs: list[BenchmarkConfig]) -> list[Benchmark]:
    """The validation datasets. Raises InputError if one is missing."""
    try:
        return [Benchmark(config) for config in configs]
    except InputError as error:
        raise InputError(
            f"{error}\nChoose validation sets with --val_datasets NAME [NAME ...], or none with --val_datasets none."
        ) from error
