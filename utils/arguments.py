"""The command lines. A script takes the flags it uses and no others; what it takes is checked here before anything is read."""
import argparse
import os
from pathlib import Path

import torch

from model import AGGREGATIONS, BACKBONES, InputError
from model.vision_transformer import patch_grid
from utils.features import PRECISIONS

BRANCH_SCRIPTS = {(): "eval.py", ("--hashing",): "eval_hashing.py", ("--hashing", "--rerank"): "eval_rerank.py"}


def parse_evaluation(description: str, hashing: bool = False, rerank: bool = False) -> argparse.Namespace:
    """Arguments of an evaluation script for a float (neither), binary (hashing) or two-branch model (both). Exits with status 2 on bad ones."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_model_arguments(parser, hashing, rerank)
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--resume", type=Path, metavar="FILE", help="checkpoint: ours, a published one or a bare state dict")
    weights.add_argument("--pretrained", action="store_true", help="download the published checkpoint (once)")
    add_dataset_arguments(parser)
    parser.add_argument("--split", default="test", help="split of the dataset")
    parser.add_argument("--save_dir", default="eval", help="results go to logs/<save_dir>/<time>/")
    if rerank:
        parser.add_argument("--rerank_num", type=positive_int, default=100, help="how many of the first stage's results are re-ranked")
    add_extraction_arguments(parser)
    args = parser.parse_args()
    check_branch_flags(parser, args, hashing, rerank)
    check_common(parser, args)
    return args


def add_model_arguments(parser: argparse.ArgumentParser, hashing: bool, rerank: bool) -> None:
    """--backbone, --aggregation and the branch flags. A binary model knows gem only."""
    parser.add_argument("--backbone", choices=BACKBONES, default="dinov2-large", help="the frozen trunk")
    aggregations = ("gem",) if hashing and not rerank else AGGREGATIONS
    parser.add_argument("--aggregation", choices=aggregations, default="gem", help="of the patch tokens into a descriptor")
    implied = "implied by this script" if hashing else "of other scripts"
    parser.add_argument("--hashing", action="store_true", help=implied)
    parser.add_argument("--rerank", action="store_true", help="implied by this script" if rerank else "of other scripts")


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """--datasets_folder (or DATASETS_FOLDER), --dataset_name and what counts as right."""
    parser.add_argument("--datasets_folder", type=Path, default=os.environ.get("DATASETS_FOLDER"),
                        help="folder of the datasets; the environment variable DATASETS_FOLDER stands in for it")
    parser.add_argument("--dataset_name", default="pitts30k", help="folder of the dataset in it")
    parser.add_argument("--val_positive_dist_threshold", type=positive_float, default=25, metavar="METRES",
                        help="a database photo at most this far from a query is right for it")
    parser.add_argument("--recall_values", type=positive_int, nargs="+", default=[1, 5, 10, 100], metavar="N", help="the N of Recall@N")


def add_extraction_arguments(parser: argparse.ArgumentParser) -> None:
    """How photos become descriptors, and on what machine."""
    parser.add_argument("--resize", type=positive_int, nargs=2, default=[322, 322], metavar=("H", "W"),
                        help="photos are resized to this for evaluation; multiples of 14")
    parser.add_argument("--no_antialias", action="store_true", help="resize as torchvision before 0.17 did with tensors")
    parser.add_argument("--infer_batch_size", type=positive_int, default=16, help="photos a batch in evaluation")
    parser.add_argument("--num_workers", type=non_negative_int, default=min(8, os.cpu_count() or 1), help="processes that read photos; 0: none")
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="of the matrix products")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")


def check_branch_flags(parser: argparse.ArgumentParser, args: argparse.Namespace, hashing: bool, rerank: bool) -> None:
    """Refuses branch flags that contradict the script, naming the script for them; then sets both to what the script does."""
    given = tuple(flag for flag, is_given in (("--hashing", args.hashing), ("--rerank", args.rerank)) if is_given)
    if (args.hashing and not hashing) or (args.rerank and not rerank):
        stage = parser.prog.split("_")[0].removesuffix(".py")
        other = BRANCH_SCRIPTS.get(given, "eval_rerank.py").replace("eval", stage)
        parser.error(f"{' '.join(given)} is not for {parser.prog}: use {other}")
    args.hashing, args.rerank = hashing, rerank


def check_common(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Checks what every script takes: the datasets folder, sizes, the device; sorts --recall_values; resolves --device auto."""
    if args.datasets_folder is None:
        parser.error("no --datasets_folder given, and no environment variable DATASETS_FOLDER set")
    args.datasets_folder = Path(args.datasets_folder)
    args.recall_values = sorted(set(args.recall_values))
    try:
        patch_grid(*args.resize)
        args.device = resolve_device(args.device)
    except InputError as error:
        parser.error(str(error))


def resolve_device(name: str) -> str:
    """"cuda", "mps" or "cpu" for one of these or "auto". Raises InputError where it is absent."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device in present if present[device])
    if not present[name]:
        raise InputError(f"--device {name}: PyTorch {torch.__version__} finds no such device here; there are: "
                         f"{', '.join(device for device in present if present[device])}")
    return name


def positive_int(text: str) -> int:
    """argparse type: an integer of 1 or more."""
    return _number(text, int, 1, "a whole number of 1 or more")


def non_negative_int(text: str) -> int:
    """argparse type: an integer of 0 or more."""
    return _number(text, int, 0, "a whole number of 0 or more")


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    return _number(text, float, 1e-300, "a number above 0")


def _number(text: str, kind: type, least: float, allowed: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} given, {allowed} needed")
    return value
