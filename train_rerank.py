"""Train the binary branch of a two-branch SelaVPR++ model (stage two), starting from a trained float model."""

from utils.cli.training import TwoBranchTraining
from utils.runtime.parser import parse

if __name__ == "__main__":
    args = parse(TwoBranchTraining, __doc__)  # before the imports that take seconds

from functools import partial

from eval_rerank import search_in_two_stages
from utils.cli.train import open_trainer, read_data, stage_two_model
from utils.runtime.script import cli_main
from utils.training.losses import binary_loss


def main(args: TwoBranchTraining) -> None:
    # ---- Model: the float model with a copy of its adapters as the binary branch, or that of the run to resume
    start = stage_two_model(args)

    # ---- Training on batches of places with several images each: the loss is that of the codes, with the similarity
    # constraint. Only the binary branch is computed and learns
    rerank_num = args.search.rerank_num if args.select_by == "reranked" else 0  # in validation
    data = read_data(args, rerank_num=rerank_num)
    trainer = open_trainer(args, start, data, binary_loss(args.pair_fraction))
    for batch in trainer.batches():  # after each epoch: validation, metrics, a checkpoint
        trainer.record(trainer.training_step(*batch))  # forward, loss over all ranks, backward, update

    # ---- Test: the best model, as eval_rerank.py does
    trainer.test(args.evaluation, search_in_two_stages)


if __name__ == "__main__":
    cli_main(partial(main, args))
