"""Train a hashing-only SelaVPR++ model: adapters and a head for 512-bit codes beside a frozen DINOv2 backbone."""

from functools import partial

import torch

from eval_hashing import evaluate
from utils.cli.parser import parse
from utils.cli.training import HashingTraining, open_trainer, read_data, stage_one_model
from utils.runtime.script import cli_main
from utils.training.losses import hashing_losses
from utils.training.step import TrainingStep


def main() -> None:
    args = parse(HashingTraining, __doc__)

    # ---- Model: DINOv2's backbone with new adapters, or a trained model (--init_from), or that of the run to resume
    model, checkpoint = stage_one_model(args)

    # ---- Data: batches of places with several images each; datasets to validate and to test on
    data = read_data(args)

    # ---- Training: the loss is that of the codes, with the similarity constraint. Only the binary branch learns
    generator = torch.Generator()  # of the pairs; seeded in each step
    criterion = partial(hashing_losses, pair_fraction=args.pair_fraction, generator=generator)
    training_step = TrainingStep(model, args.training, criterion=criterion, branch="binary", generator=generator)
    trainer = open_trainer(args, training_step, data, checkpoint)
    for _ in trainer.epochs():
        for images, labels, rank_sizes in trainer.batches():
            # Forward, loss over all ranks, backward, update; the losses go to the log
            trainer.record(training_step(images, labels, rank_sizes))
        trainer.finish_epoch()  # validation, metrics, the best model, a checkpoint

    # ---- Test: the best model, as eval_hashing.py does
    trainer.test(data.test, args.evaluation, evaluate)


if __name__ == "__main__":
    cli_main(main)
