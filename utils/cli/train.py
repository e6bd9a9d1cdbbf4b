"""What every training script does with its flags: the model at the start, the data, the trainer."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch

from datasets.benchmark import Benchmark
from datasets.gsv_cities import GSVCities
from datasets.layouts import BenchmarkConfig
from model import GeoLocalizationNet
from model.config import check_image_size
from utils.cli.training import StageOneArguments, TrainingArguments, TwoBranchTraining
from utils.models import model_on_all_ranks
from utils.runtime import distributed
from utils.training.checkpoints import (
    RunCheckpoint,
    TrainState,
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
    return _start(args, partial(read_run_checkpoint, args.resume) if args.resume else None, build)


def stage_two_model(args: TwoBranchTraining) -> StartModel:
    """The float model with a copy of its adapters as the binary branch, or that of the run to resume."""
    build = partial(two_branch_model, args.model.choice, args.resume)
    return _start(args, partial(read_two_branch_checkpoint, args.resume), build)


def _start(
    args: TrainingArguments,
    read: Callable[[], RunCheckpoint | None] | None,
    build: Callable[[], GeoLocalizationNet],
) -> StartModel:
    """Joins the ranks and sets the seed first, as everything random in a model is drawn from it."""
    distributed.init(args.training.device)
    torch.manual_seed(args.training.seed)
    checkpoint = distributed.run_on_main(read) if read else None
    model = checkpoint.new_model(args.model.choice) if checkpoint else model_on_all_ranks(build)
    for size in (args.places.image_size, args.extraction.resize):
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
    model_fields = asdict(start.model.config)
    must_match, checkpoint = args.must_match | model_fields, start.checkpoint
    state = restore(checkpoint, training_step, must_match) if checkpoint else TrainState(arguments=must_match)
    run = open_run(args.save_dir, args.flags | model_fields, checkpoint)
    return Trainer(training_step, data, args.training, run=run, state=state)
