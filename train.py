"""Train a float SelaVPR++ model (stage one): adapters and head beside a frozen DINOv2 trunk."""
import torch

from model import build_model
from utils import distributed
from utils.arguments import parse_training
from utils.checkpoint import read_training_checkpoint
from utils.logs import run_script
from utils.losses import float_losses
from utils.training import Training, load_trunk


def main() -> None:
    # ---- Arguments
    args = parse_training(__doc__)
    args.device = distributed.start(args.device)
    torch.manual_seed(args.seed)

    # ---- Model
    model = build_model(args.backbone, args.aggregation)
    checkpoint = read_training_checkpoint(args.resume) if args.resume else None
    if checkpoint is None:
        load_trunk(model, args.backbone, args.foundation_model_path, args.train_backbone)

    # ---- Run: loss of the descriptors; the float branch trains
    Training(args, model, float_losses, binary_branch=False, train_backbone=args.train_backbone, checkpoint=checkpoint).run()


if __name__ == "__main__":
    run_script(main)
