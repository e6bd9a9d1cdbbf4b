"""Train a hashing-only SelaVPR++ model: adapters and a head for 512-bit codes beside a frozen DINOv2 backbone."""

from dataclasses import asdict
from functools import partial

import torch

from datasets.benchmark import Benchmark
from datasets.gsv_cities import GSVCities
from model import CODE_BITS
from model.network import check_image_size
from utils.cli import parse_training
from utils.models import model_on_all_ranks
from utils.retrieval.extraction import extract, prepare
from utils.retrieval.report import report
from utils.retrieval.search import search_hamming
from utils.runtime import distributed
from utils.runtime.script import cli_main
from utils.training.checkpoints import TrainState, initial_model, open_run, read_run_checkpoint, restore
from utils.training.loader import PlaceLoader
from utils.training.losses import hashing_losses
from utils.training.step import TrainingStep
from utils.training.trainer import Trainer
from utils.training.validation import Validator, validation_sets


def main() -> None:
    args = parse_training(__doc__, hashing=True)
    distributed.init(args.training.device)
    torch.manual_seed(args.training.seed)

    # ---- Model: DINOv2's backbone with new adapters, or a trained model (--init_from), or that of the run to resume
    checkpoint = distributed.run_on_main(partial(read_run_checkpoint, args.resume)) if args.resume else None
    if checkpoint:
        model = checkpoint.new_model(args.model)
    else:
        build = partial(
            initial_model,
            args.model,
            init_from=args.init_from,
            foundation=args.foundation_model_path,
            train_backbone=args.training.train_backbone,
        )
        model = model_on_all_ranks(build)
    for size in args.image_sizes:
        check_image_size(model.config, size)

    # ---- Data: batches of places with several images each; datasets to validate and to test on
    places = distributed.run_on_main(partial(GSVCities, args.gsv_cities_folder, args.places))
    loader = PlaceLoader(places, args.training, args.extraction.num_workers)
    validation = distributed.run_on_main(partial(validation_sets, args.val_benchmarks))
    validate = Validator(validation, args.extraction)
    test = distributed.run_on_main(partial(Benchmark, args.test_benchmark))

    # ---- Training: the loss is that of the codes, with the similarity constraint. Only the binary branch learns
    generator = torch.Generator()
    criterion = partial(hashing_losses, pair_fraction=args.pair_fraction, generator=generator)
    training_step = TrainingStep(model, args.training, criterion=criterion, branch="binary")
    must_match = args.must_match | asdict(model.config)
    state = restore(checkpoint, training_step, must_match) if checkpoint else TrainState(arguments=must_match)
    run = open_run(args.save_dir, args.flags | asdict(model.config), checkpoint)
    trainer = Trainer(training_step, loader, args.training, run=run, state=state, generator=generator)
    for _ in trainer.epochs():
        for images, labels, rank_sizes in trainer.batches():
            losses = training_step(images, labels, rank_sizes)  # forward, loss over all ranks, backward, update
            trainer.record(losses)
        with trainer.interruptible(), training_step.averaged_weights():  # everything is saved by now
            results = validate(model)
        trainer.finish_epoch(results)  # metrics, the best model, a checkpoint

    # ---- Test: the best model, as eval_hashing.py does
    with trainer.interruptible():
        trainer.load_best_model()
        with run.phase("extraction"):
            prepared = prepare(model, args.extraction)
            database = extract(prepared, test.database, args.extraction)
            queries = extract(prepared, test.queries, args.extraction)
        if database is None or queries is None:  # only the main rank receives the features
            return
        with run.phase("search"):
            found = search_hamming(database.codes, queries.codes, max(args.recall_values))
        report(run, test, {"Binary": found}, recall_values=args.recall_values, descriptor_dim=CODE_BITS)


if __name__ == "__main__":
    cli_main(main)
