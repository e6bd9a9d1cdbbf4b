"""Train a float SelaVPR++ model (stage one): adapters and head beside a frozen DINOv2 backbone."""

from utils.cli.training import FloatTraining
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(FloatTraining, __doc__)  # before the imports that take seconds

from functools import partial

from eval import search_descriptors
from utils.cli.train import open_trainer, read_data, stage_one_model
from utils.runtime.script import cli_main
from utils.training.losses import FLOAT_LOSS


def main(args: FloatTraining) -> None:
    # ---- Model: DINOv2's backbone with new adapters, or a trained model (--init_from), or that of the run to resume
    start = stage_one_model(args)

    # ---- Training on batches of places with several images each: the loss is that of the descriptors. Only the float
    # branch learns, unless --train_backbone is given
    trainer = open_trainer(args, start, read_data(args), FLOAT_LOSS)
    for batch in trainer.batches():  # after each epoch: validation, metrics, a checkpoint
        trainer.record(trainer.training_step(*batch))  # forward, loss over all ranks, backward, update

    # ---- Test: the best model, as eval.py does
    trainer.test(args.evaluation, search_descriptors)


if __name__ == "__main__":
    cli_main(partial(main, args))
