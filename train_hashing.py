"""Train a binary SelaVPR++ model alone: adapters and hashing head beside a frozen DINOv2 trunk, 512-bit codes."""
from functools import partial

import torch

from model import build_model
from utils import distributed
from utils.arguments import parse_training
from utils.checkpoint import read_training_checkpoint
from utils.logs import run_script
from utils.losses import hashing_losses
from utils.training import Training, load_trunk


def main() -> None:
    # ---- Arguments
    args = parse_training(__doc__, hashing=True)
    args.device = distributed.start(args.device)
    torch.manual_seed(args.seed)

    # ---- Model
    model = build_model(args.backbone, args.aggregation, hashing=True)
    checkpoint = read_training_checkpoint(args.resume) if args.resume else None
    if checkpoint is None:
        load_trunk(model, args.backbone, args.foundation_model_path, args.train_backbone)

    # ---- Run: loss of the codes and the similarity constraint; the binary branch trains
    generator = torch.Generator()
    criterion = partial(hashing_losses, pair_fraction=args.pair_fraction, generator=generator)
    Training(args, model, criterion, binary_branch=True, train_backbone=args.train_backbone, generator=generator, checkpoint=checkpoint).run()


if __name__ == "__main__":
    run_script(main)
