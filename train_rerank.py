"""Train the binary branch of a two-branch SelaVPR++ model (stage two), starting from a trained float model."""

from dataclasses import asdict
from functools import partial

import torch

from datasets.benchmark import Benchmark
from datasets.gsv_cities import GSVCities
from model.network import check_image_size
from utils.cli import parse_training
from utils.models import model_on_all_ranks
from utils.retrieval.extraction import extract, prepare
from utils.retrieval.report import report
from utils.retrieval.search import rerank, search_hamming
from utils.runtime import distributed
from utils.runtime.script import cli_main
from utils.training.checkpoints import TrainState, open_run, read_two_branch_checkpoint, restore, two_branch_model
from utils.training.loader import PlaceLoader
from utils.training.losses import hashing_losses
from utils.training.step import TrainingStep
from utils.training.trainer import Trainer
from utils.training.validation import Validator, validation_sets


def main() -> None:
    args = parse_training(__doc__, hashing=True, rerank=True)
    distributed.init(args.training.device)
    torch.manual_seed(args.training.seed)

    # ---- Model: the float model with a copy of its adapters as the binary branch, or that of the run to resume
    assert args.resume, "--resume is required here"
    checkpoint = distributed.run_on_main(partial(read_two_branch_checkpoint, args.resume))
    if checkpoint:
        model = checkpoint.new_model(args.model)
    else:
        model = model_on_all_ranks(partial(two_branch_model, args.model, args.resume))
    for size in args.image_sizes:
        check_image_size(model.config, size)

    # ---- Data: batches of places with several images each; datasets to validate and to test on
    places = distributed.run_on_main(partial(GSVCities, args.gsv_cities_folder, args.places))
    loader = PlaceLoader(places, args.training, args.extraction.num_workers)
    validation = distributed.run_on_main(partial(validation_sets, args.val_benchmarks))
    validate = Validator(
        validation,
        args.extraction,
        rerank_num=args.rerank_num if args.select_by == "reranked" else 0,
    )
    test = distributed.run_on_main(partial(Benchmark, args.test_benchmark))

    # ---- Training: the loss is that of the codes, with the similarity constraint. Only the binary branch is computed
    # and learns
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

    # ---- Test: the best model, as eval_rerank.py does
    with trainer.interruptible():
        trainer.load_best_model()
        with run.phase("extraction"):
            prepared = prepare(model, args.extraction)
            database = extract(prepared, test.database, args.extraction)
            queries = extract(prepared, test.queries, args.extraction)
        if database is None or queries is None:  # only the main rank receives the features
            return
        with run.phase("search"):
            candidates = search_hamming(database.codes, queries.codes, max(args.rerank_num, *args.recall_values))
        with run.phase("rerank"):
            found = rerank(candidates, database.descriptors, queries.descriptors, rerank_num=args.rerank_num)
        stages = {"First stage, Hamming": candidates, "Re-ranked": found}
        report(run, test, stages, recall_values=args.recall_values, descriptor_dim=model.descriptor_dim)


if __name__ == "__main__":
    cli_main(main)
