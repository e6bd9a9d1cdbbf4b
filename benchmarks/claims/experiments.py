"""The training runs, and what is measured of each. A finished run is kept in a file and never repeated."""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.claims.domains import DOMAINS, FOUNDATION, TARGET, benchmark, draw_cities, training_places
from benchmarks.claims.runs import UNTRAINED, Run, make_step, train
from benchmarks.claims.settings import Settings
from benchmarks.claims.variants import NETWORKS, two_branch
from benchmarks.common import peak_memory_mb, time_in_turn
from datasets.benchmark import Benchmark
from datasets.image_set import ImageSet
from model import GeoLocalizationNet, InputError
from model.checkpoint_files import read_checkpoint
from model.weights import load_float_branch, load_state
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import Extractor, extract, prepare
from utils.retrieval.features import Features, SearchResult, as_array
from utils.retrieval.metrics import correct_predictions, recalls_at
from utils.retrieval.search import rerank, search, search_and_rerank
from utils.runtime.atomic_files import atomic_write, make_folder, save_tensors
from utils.training.config import TrainingConfig
from utils.training.loader import PlaceLoader
from utils.training.step import set_training_mode

RECALL_VALUES = [1, 5, 10]
FAR_AWAY = 1e6  # metres; no position in a city is as far from another


class Laboratory:
    """Runs experiments in a folder, which keeps their results: cities, the backbone, a file for each finished run.

    Raises InputError if the folder holds experiments with other settings.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.cities, self.runs = folder / "cities", folder / "runs"
        make_folder(self.runs, exist_ok=True)
        described = json.loads(json.dumps(dataclasses.asdict(settings)))
        if self._cached("settings", lambda: described) != described:
            raise InputError(f"{folder} holds experiments of other sizes. Choose another --work folder, or delete it.")

    def prepare(self) -> dict[str, Any]:
        """Draws the cities and trains the backbone, unless they are there. Returns its losses, and the recalls with the
        head that it was trained with.
        """
        draw_cities(self.cities, self.settings)
        return self._cached("foundation", self._train_foundation)

    def result(self, run: Run) -> dict[str, Any]:
        """What a run resulted in. Trains and tests it if it is not finished."""
        return self._cached(run.name, lambda: self._perform(run))

    def costs(self) -> dict[str, dict[str, float]]:
        """Memory (MB) and time (ms) of a training step, {network: {"step_mb", "step_ms"}}."""
        return self._cached("costs", self._measure_steps)

    def two_stage(self, float_run: Run, rate: float) -> dict[str, Any]:
        """Recall and time of the two-stage search. Its binary branch is trained, at this rate, beside a float model.

        The database holds the target's test images and, because these are few, its training images. Times are those of
        the same features, repeated up to the size of settings.timed_database.
        """
        return self._cached(f"two_stage_seed{float_run.seed}", lambda: self._two_stage(float_run, rate))

    # ---- Files

    def _cached(self, name: str, make: Callable[[], Any]) -> Any:
        """The content of a JSON file, which is made if it is missing."""
        path = self.runs / f"{name}.json"
        if not path.exists():
            content = make()
            with atomic_write(path) as file:
                json.dump(content, file, indent=2)
            tqdm.write(f"Finished: {name}", file=sys.stderr)
        return json.loads(path.read_text())

    def _weights(self, name: str) -> Path:
        return self.runs / f"{name}.pth"

    # ---- Training

    def _train_foundation(self) -> dict[str, Any]:
        torch.manual_seed(0)
        model = NETWORKS["foundation"]()
        run = Run(network="full", rate=max(self.settings.learning_rates), seed=0, domains=(FOUNDATION,))
        losses = self._train(model, run, self.settings.foundation_epochs)
        save_tensors(self._weights("foundation"), model.state_dict())
        return {"loss": losses, "recalls": {name: self._recalls(model, name, "test") for name in DOMAINS}}

    def _perform(self, run: Run) -> dict[str, Any]:
        started = time.perf_counter()
        torch.manual_seed(run.seed)
        model = run.build()
        self._load_backbone(model, with_head=run.network == "foundation")
        losses, trained = [], 0
        if run.network not in UNTRAINED:
            losses = self._train(model, run, self.settings.epochs)
            trained = _count_trainable(model)
        model.eval()
        if run.network == "multiconv" and run.domains == (TARGET,):  # stage two starts from it
            save_tensors(self._weights(run.name), model.state_dict())
        return {
            "run": dataclasses.asdict(run),
            "loss": losses,
            "trained_parameters": trained,
            "validation": self._recalls(model, run.domains[0], "val"),
            "recalls": {domain: self._recalls(model, domain, "test") for domain in run.tested_on},
            "seconds": time.perf_counter() - started,
        }

    def _load_backbone(self, model: GeoLocalizationNet, *, with_head: bool = False) -> None:
        """Loads the backbone, or with `with_head` its head too, into a new model."""
        path = self._weights("foundation")
        trained = read_checkpoint(path)
        if not with_head:
            trained = {name: value for name, value in trained.items() if name.startswith("backbone.")}
        load_state(model, {**model.state_dict(), **trained}, path)

    def _train(self, model: GeoLocalizationNet, run: Run, epochs: int) -> list[float]:
        """Trains a model. Returns the mean loss of each epoch."""
        return train(model, run, self._loader(run), epochs)

    def _loader(self, run: Run) -> PlaceLoader:
        places = training_places(self.cities, run.domains, self.settings, run.seed)
        return PlaceLoader(places, TrainingConfig(batch_size=self.settings.batch_size, seed=run.seed))

    # ---- Tests

    def _extract(self, model: GeoLocalizationNet, images: ImageSet) -> Features:
        config = ExtractionConfig(resize=self.settings.image_size, batch_size=64)
        features = extract(Extractor(model=prepare(model.eval(), config), config=config), images)
        assert features is not None  # there is one rank
        return features

    def _recalls(self, model: GeoLocalizationNet, domain: str, split: str) -> dict[int, float]:
        dataset = benchmark(self.cities, domain, split)
        database, queries = self._extract(model, dataset.database), self._extract(model, dataset.queries)
        return recalls(search(database, queries, max(RECALL_VALUES)), dataset)

    def _two_stage(self, float_run: Run, rate: float) -> dict[str, Any]:
        settings = self.settings
        self.result(float_run)
        torch.manual_seed(float_run.seed)
        model, path = two_branch(), self._weights(float_run.name)
        load_float_branch(model, read_checkpoint(path), path)
        stage_two = Run(network="two_branch", rate=rate, seed=float_run.seed, loss="both")
        losses = self._train(model, stage_two, settings.epochs)
        dataset = with_distractors(benchmark(self.cities, TARGET, "test"), self._loader(stage_two))
        database, queries = self._extract(model, dataset.database), self._extract(model, dataset.queries)
        candidates = search(database, queries, max(settings.rerank_nums))
        found = {"float": search(database._replace(codes=None), queries, max(RECALL_VALUES)), "0": candidates}
        for count in settings.rerank_nums:
            found[str(count)] = rerank(candidates, database, queries, rerank_num=count)
        return {
            "loss": losses,
            "database": len(database.images),
            "recalls": {name: recalls(result, dataset) for name, result in found.items()},
            "ms": time_searches(database, queries, settings),
        }

    # ---- Costs

    def _measure_steps(self) -> dict[str, dict[str, float]]:
        steps = {name: self._step(name) for name in ("head", "full", "multiconv")}
        times = time_in_turn(steps, self.settings.rounds)
        return {
            name: {"step_mb": peak_memory_mb(step), "step_ms": 1e3 * statistics.median(times[name])}
            for name, step in steps.items()
        }

    def _step(self, network: str) -> Callable[[], object]:
        """A training step of a network on random images."""
        settings = self.settings
        labels = torch.arange(settings.batch_size).repeat_interleave(settings.photos_per_place)
        images = torch.randn(len(labels), 3, *settings.image_size)
        step = make_step(NETWORKS[network](), Run(network=network, rate=1e-6, seed=0), settings.batch_size)
        set_training_mode(step.model)
        return lambda: step(images, labels)


# ---- Recalls


def recalls(found: SearchResult, dataset: Benchmark) -> dict[int, float]:
    """{N: Recall@N} of a search."""
    return recalls_at(correct_predictions(found.indices, dataset.positives), RECALL_VALUES)


def with_distractors(dataset: Benchmark, loader: PlaceLoader) -> Benchmark:
    """The same queries against a database that holds the training images too, far from all queries."""
    names = [name for place in loader.places.places for name in place]
    paths = [loader.places.folder / "Images" / name for name in names]
    distractors = ImageSet.at_utms(paths, np.full((len(paths), 2), FAR_AWAY))
    return dataset.with_database(ImageSet.joined([dataset.database, distractors]))


# ---- Times


def time_searches(database: Features, queries: Features, settings: Settings) -> dict[str, float]:
    """Milliseconds per query: "float", the search by descriptors; for each number, by codes with re-ranking."""
    repeats = -(-settings.timed_database // len(database.images))
    codes, descriptors = (np.tile(as_array(part), (repeats, 1)) for part in (database.codes, database.descriptors))
    images = database.images[np.tile(np.arange(len(database.images)), repeats)]
    large = Features(images, codes, descriptors)
    functions: dict[str, Callable[[], object]] = {
        str(n): partial(search_and_rerank, large, queries, n, rerank_num=n) for n in settings.rerank_nums
    }
    functions["float"] = partial(search, large._replace(codes=None), queries, max(RECALL_VALUES))
    times = time_in_turn(functions, settings.rounds)
    return {name: 1e3 * statistics.median(values) / len(queries.images) for name, values in times.items()}


def _count_trainable(model: GeoLocalizationNet) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
