"""Train a float SelaVPR++ model (stage one): adapters and head beside a frozen DINOv2 backbone."""

from eval import evaluate
from utils.cli.parser import parse
from utils.cli.training import FloatTraining, open_trainer, read_data, stage_one_model
from utils.runtime.script import cli_main
from utils.training.losses import float_losses
from utils.training.step import TrainingStep


def main() -> None:
    args = parse(FloatTraining, __doc__)

    # ---- Model: DINOv2's backbone with new adapters, or a trained model (--init_from), or that of the run to resume
    model, checkpoint = stage_one_model(args)

    # ---- Data: batches of places with several images each; datasets to validate and to test on
    data = read_data(args)

    # ---- Training: the loss is that of the descriptors. Only the float branch learns, unless --train_backbone is given
    training_step = TrainingStep(model, args.training, criterion=float_losses, branch="float")
    trainer = open_trainer(args, training_step, data, checkpoint)
    for _ in trainer.epochs():
        for images, labels, rank_sizes in trainer.batches():
            # Forward, loss over all ranks, backward, update; the losses go to the log
            trainer.record(training_step(images, labels, rank_sizes))
        trainer.finish_epoch()  # validation, metrics, the best model, a checkpoint

    # ---- Test: the best model, as eval.py does
    trainer.test(data.test, args.evaluation, evaluate)


if __name__ == "__main__":
    cli_main(main)
