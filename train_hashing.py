"""Train a hashing-only SelaVPR++ model: adapters and a head for 512-bit codes beside a frozen DINOv2 backbone."""

from utils.cli.training import HashingTraining
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(HashingTraining, __doc__)  # before the imports that take seconds

from functools import partial

from eval_hashing import search_codes
from utils.cli.train import open_trainer, read_data, stage_one_model
from utils.runtime.script import cli_main
from utils.training.losses import binary_loss


def main(args: HashingTraining) -> None:
    # ---- Model: DINOv2's backbone with new adapters, or a trained model (--init_from), or that of the run to resume
    start = stage_one_model(args)

    # ---- Training on batches of places with several images each: the loss is that of the codes, with the similarity
    # constraint. Only the binary branch learns
    trainer = open_trainer(args, start, read_data(args), binary_loss(args.pair_fraction))
    for batch in trainer.batches():  # after each epoch: validation, metrics, a checkpoint
        trainer.record(trainer.training_step(*batch))  # forward, loss over all ranks, backward, update

    # ---- Test: the best model, as eval_hashing.py does
    trainer.test(args.evaluation, search_codes)


if __name__ == "__main__":
    cli_main(partial(main, args))
