"""What every training script does with its flags: the model at the start, the data, the trainer."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from datasets.benchmark import Benchmark
from datasets.gsv_cities import GSVCities
from datasets.layouts import BenchmarkConfig
from model import GeoLocalizationNet
from model.config import check_image_size
from model.weights import new_model
from utils.cli.training import StageOneArguments, TrainingArguments, TwoBranchTraining
from utils.models import model_on_all_ranks
from utils.retrieval.config import image_flags
from utils.retrieval.extraction import settle_images
from utils.runtime import distributed
from utils.training.checkpoints import (
    RunCheckpoint,
    TrainState,
    find_run,
    initial_model,
    open_run,
    read_run_checkpoint,
    read_two_branch_checkpoint,
    restore,
    two_branch_model,
)
from utils.training.loader import PlaceLoader
from utils.training.losses import Loss
from utils.training.step import TrainingStep
from utils.training.trainer import Trainer, TrainingData
from utils.training.validation import Validator, validation_sets


class StartModel(NamedTuple):
    """The model at the start, and the run to resume, whose weights it does not have yet; None for a new run."""

    model: GeoLocalizationNet
    checkpoint: RunCheckpoint | None


def stage_one_model(args: StageOneArguments) -> StartModel:
    """DINOv2's backbone with new adapters, or a trained model (--init_from), or that of the run to resume."""
    build = partial(
        initial_model,
        args.model.choice,
        init_from=args.init_from,
        foundation=args.foundation_model_path,
        train_backbone=args.training.train_backbone,
    )
    return _start(args, read_run_checkpoint, build)


def stage_two_model(args: TwoBranchTraining) -> StartModel:
    """The float model with a copy of its adapters as the binary branch, or that of the run to resume."""
    source = args.init_from or args.resume
    assert source is not None, "one of them is required"

    def read(path: Path) -> RunCheckpoint | None:
        return read_two_branch_checkpoint(path, may_start=path == source)

    return _start(args, read, partial(two_branch_model, args.model.choice, source))


def _start(
    args: TrainingArguments, read: Callable[[Path], RunCheckpoint | None], build: Callable[[], GeoLocalizationNet]
) -> StartModel:
    """Joins the ranks and sets the seed first, as everything random in a model is drawn from it. The model's images
    become those of the training's validation.
    """
    distributed.init(args.training.device)
    torch.manual_seed(args.training.seed)
    resume, checkpoint = args.resume, None
    if resume:
        checkpoint = distributed.run_on_main(lambda: read(find_run(resume, args.save_dir)))
    if checkpoint:
        model = new_model(args.model.choice, checkpoint.content, checkpoint.path)
    else:
        model = model_on_all_ranks(build)
    model.image_config = settle_images(args.extraction, model.image_config).image_config
    for size in (args.places.image_size, model.image_config.resize):
        check_image_size(model.config, size)
    return StartModel(model, checkpoint)


def read_data(args: TrainingArguments, *, rerank_num: int = 0) -> TrainingData:
    """The data of a training, which the main rank lists. rerank_num: of validation."""
    places = distributed.run_on_main(partial(GSVCities, args.gsv_cities_folder, args.places))
    loader = PlaceLoader(places, args.training, args.extraction.num_workers)
    benchmark = partial(BenchmarkConfig, datasets_folder=args.datasets_folder, threshold=args.threshold)
    validation = [benchmark(name=name, split="val") for name in args.val_datasets]
    benchmarks = distributed.run_on_main(partial(validation_sets, validation))
    validate = Validator(benchmarks, args.extraction, rerank_num=rerank_num)
    test = distributed.run_on_main(partial(Benchmark, benchmark(name=args.dataset_name, split="test")))
    return TrainingData(loader, validate, test)


def open_trainer(args: TrainingArguments, start: StartModel, data: TrainingData, loss: Loss) -> Trainer:
    """The trainer of a new run, or that of the run to resume, where it ended."""
    training_step = TrainingStep(start.model, args.training, **loss._asdict())
    assert start.model.image_config, "set at the start"
    found = asdict(start.model.config) | image_flags(start.model.image_config)
    must_match, checkpoint = args.must_match | found, start.checkpoint
    new = TrainState(arguments=must_match, data_sha256=data.loader.places.fingerprint)
    state = restore(checkpoint, training_step, new) if checkpoint else new
    run = open_run(args.save_dir, args.flags | found, checkpoint)
    return Trainer(training_step, data, args.training, run=run, state=state)
