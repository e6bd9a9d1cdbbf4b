"""Train the binary branch of a two-branch SelaVPR++ model (stage two), starting from a trained float model, which stays as it is."""
from functools import partial

import torch

from model import build_model
from utils import distributed
from utils.arguments import parse_training
from utils.checkpoint import read_stage_two_start
from utils.logs import run_script
from utils.losses import hashing_losses
from utils.training import Training


def main() -> None:
    # ---- Arguments
    args = parse_training(__doc__, hashing=True, rerank=True)
    args.device = distributed.start(args.device)
    torch.manual_seed(args.seed)

    # ---- Model: the float model's, or the run's to go on with
    model = build_model(args.backbone, args.aggregation, hashing=True, rerank=True)
    checkpoint = read_stage_two_start(args.resume, model)

    # ---- Run: loss of the codes and the similarity constraint; the binary branch trains, the float branch is not computed
    generator = torch.Generator()
    criterion = partial(hashing_losses, pair_fraction=args.pair_fraction, generator=generator)
    Training(args, model, criterion, binary_branch=True, generator=generator, checkpoint=checkpoint).run()


if __name__ == "__main__":
    run_script(main)
