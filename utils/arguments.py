"""The command lines. A script takes the flags it uses and no others; what it takes is checked here before anything is read."""
import argparse
import logging
import os
import sys
from pathlib import Path

import torch

from datasets.gsv_cities import TRAINING_DATASETS
from model import AGGREGATIONS, BACKBONES, GeoLocalizationNet, InputError
from model.vision_transformer import patch_grid
from utils.evaluation import InvertedFile, Store
from utils.features import PRECISIONS, ExtractionSettings, cpu_computes
from utils.index import DESCRIPTOR_DTYPES, make_header

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
    add_index_arguments(parser, hashing, rerank)
    add_extraction_arguments(parser)
    args = parser.parse_args()
    check_branch_flags(parser, args, hashing, rerank)
    check_common(parser, args)
    if args.append and not args.save_index:
        parser.error("--append adds to the index of --save_index DIR: give that too")
    if args.trust_index and not args.load_index:
        parser.error("--trust_index is about the index of --load_index DIR: give that too")
    if args.load_index and getattr(args, "descriptor_dtype", None):
        parser.error("--descriptor_dtype is about descriptors to keep; those of --load_index are kept already")
    if hashing and args.ivf:
        args.ivf = InvertedFile(*args.ivf)
        if args.ivf.probes > args.ivf.lists:
            parser.error(f"--ivf {args.ivf.lists} {args.ivf.probes}: no more than the {args.ivf.lists} lists can be looked through")
    warn_of_slow_precision(args.device, args.precision)
    return args


def parse_search(description: str) -> argparse.Namespace:
    """Arguments of search.py. Exits with status 2 on bad ones."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="photos to find the places of")
    parser.add_argument("--index", type=Path, required=True, metavar="DIR", help="an index that eval*.py --save_index made")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="the index's model, where it is no longer at the place that the index names")
    parser.add_argument("--results", type=positive_int, default=5, help="matches to print for each photo")
    parser.add_argument("--rerank_num", type=positive_int, default=100,
                        help="how many of the first stage's results are re-ranked, with an index of a two-branch model")
    parser.add_argument("--save_pictures", type=Path, metavar="DIR", help="draw each photo beside its matches, as a PNG in this folder")
    parser.add_argument("--trust_index", action="store_true", help="do not check every byte of the index: faster with large ones")
    parser.add_argument("--infer_batch_size", type=positive_int, default=16, help="photos a batch")
    add_device_arguments(parser)
    args = parser.parse_args()
    try:
        args.device = resolve_device(args.device)
    except InputError as error:
        parser.error(str(error))
    warn_of_slow_precision(args.device, args.precision)
    return args


def parse_training(description: str, hashing: bool = False, rerank: bool = False) -> argparse.Namespace:
    """Arguments of a training script for a float (neither), binary (hashing) or two-branch model (both). Exits with status 2 on bad ones."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_model_arguments(parser, hashing, rerank)
    if rerank:
        parser.add_argument("--resume", type=Path, metavar="FILE", required=True,
                            help="a trained float model to start from, or this script's last_model.pth to go on from")
        parser.add_argument("--rerank_num", type=positive_int, default=100, help="how many of the first stage's results are re-ranked in the test")
    else:
        parser.add_argument("--resume", type=Path, metavar="FILE", help="this script's last_model.pth to go on from")
        parser.add_argument("--foundation_model_path", type=Path, metavar="FILE", help="DINOv2 weights; downloaded where not given")
        parser.add_argument("--train_backbone", action="store_true", help="train the trunk too; vit-tiny then starts from scratch")
    add_dataset_arguments(parser)
    add_training_arguments(parser)
    if hashing:
        parser.add_argument("--pair_fraction", type=fraction, default=1.0, help="share of the mined pairs in the similarity constraint")
    add_extraction_arguments(parser)
    parser.set_defaults(save_dir="train", precision=None)
    args = parser.parse_args()
    check_branch_flags(parser, args, hashing, rerank)
    check_common(parser, args)
    check_training(parser, args)
    warn_of_slow_precision(args.device, args.precision)
    return args


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train on, for how long, how."""
    parser.add_argument("--training_dataset", choices=tuple(TRAINING_DATASETS), default="gsv_cities", help="which cities to train on")
    parser.add_argument("--gsv_cities_folder", type=Path, help="folder with Dataframes and Images (default: <datasets_folder>/gsv_cities)")
    parser.add_argument("--cities", nargs="+", metavar="CITY", help="train on these cities instead of all of the training dataset")
    parser.add_argument("--val_datasets", nargs="+", default=["pitts30k", "msls"], metavar="NAME",
                        help="datasets to validate on, split val; R@1 + R@5 of the last one decides which model is the best; none: the latest")
    parser.add_argument("--epochs_num", type=non_negative_int, default=25, help="epochs; 0 evaluates the start of training")
    parser.add_argument("--patience", type=positive_int, default=12, help="epochs without a better model before training ends")
    parser.add_argument("--train_batch_size", type=positive_int, default=120, help="places a batch, over all GPUs")
    parser.add_argument("--images_per_place", type=positive_int, default=4, help="photos of each place in a batch; places with fewer are left out")
    parser.add_argument("--image_size", type=positive_int, nargs=2, default=[224, 224], metavar=("H", "W"),
                        help="of training photos; multiples of 14")
    parser.add_argument("--randaugment_ops", type=non_negative_int, default=3, help="operations of RandAugment on each training photo; 0: none")
    parser.add_argument("--exact_decoding", action="store_true", help="decode training photos at full size before they are resized; slower")
    parser.add_argument("--optim", choices=("adam", "adamw", "sgd"), default="adam", help="optimizer")
    parser.add_argument("--lr", type=positive_float, default=4e-4, help="learning rate at the start, halved every 3 epochs")
    parser.add_argument("--save_dir", help="a new run goes to logs/<save_dir>/<time>/; a resumed one goes on in its own folder")


def add_index_arguments(parser: argparse.ArgumentParser, hashing: bool, rerank: bool) -> None:
    """Where the database's features are kept, and an approximate search for codes."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--save_index", type=Path, metavar="DIR", help="keep the database's features there: a new folder, or with --append an index")
    place.add_argument("--load_index", type=Path, metavar="DIR", help="search this index; the database's photos are not touched")
    parser.add_argument("--append", action="store_true", help="add photos that the index of --save_index lacks, or go on where that was broken off")
    parser.add_argument("--trust_index", action="store_true", help="do not check every byte of the index to load: faster with large ones")
    if rerank or not hashing:
        parser.add_argument("--descriptor_dtype", choices=tuple(DESCRIPTOR_DTYPES),
                            help="of the float descriptors kept (default: fp32; an index to load has its own)")
    if hashing:
        parser.add_argument("--ivf", type=positive_int, nargs=2, metavar=("NLIST", "NPROBE"),
                            help="approximate search, for 10 million photos or more: sort the codes into NLIST lists and look through NPROBE of them")


def index_store(args: argparse.Namespace, model: GeoLocalizationNet) -> Store:
    """The index that the flags of `add_index_arguments` ask for, for this model."""
    dtype = getattr(args, "descriptor_dtype", None) or "fp32"
    header = make_header(model, args.backbone, args.aggregation, args.resume, extraction_settings(args), dtype)
    return Store(header, args.save_index, args.append, args.load_index, not args.trust_index)


def extraction_settings(args: argparse.Namespace) -> ExtractionSettings:
    """The settings that the flags of `add_extraction_arguments` give."""
    return ExtractionSettings(tuple(args.resize), not args.no_antialias, args.infer_batch_size, args.num_workers, args.device, args.precision)


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
    add_device_arguments(parser)
    parser.add_argument("--compile", action="store_true", help="compile the model: a minute at the start, then faster")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """What computes, and how exactly."""
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32",
                        help="of matrix products; bf16 and fp16 are for GPUs, and CPUs made for them; training on CUDA: fp16 by default")


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


def check_training(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Checks what training scripts take; fills in the cities, the folder of the training data and the precision."""
    try:
        patch_grid(*args.image_size)
    except InputError as error:
        parser.error(f"--image_size: {error}")
    if args.images_per_place < 2:
        parser.error(f"--images_per_place {args.images_per_place}: a place needs 2 photos or more to make a positive pair")
    args.cities = list(dict.fromkeys(args.cities or TRAINING_DATASETS[args.training_dataset]))
    args.gsv_cities_folder = args.gsv_cities_folder or args.datasets_folder / "gsv_cities"
    args.precision = args.precision or ("fp16" if args.device == "cuda" else "fp32")
    if args.val_datasets == ["none"]:
        args.val_datasets = []


def resolve_device(name: str) -> str:
    """"cuda", "mps" or "cpu" for one of these or "auto". Raises InputError where it is absent."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device in present if present[device])
    if not present[name]:
        raise InputError(f"--device {name}: PyTorch {torch.__version__} finds no such device here; there are: "
                         f"{', '.join(device for device in present if present[device])}")
    return name


def warn_of_slow_precision(device: str, precision: str) -> None:
    """Warns where the CPU has no instructions for the precision: on one such, extraction in bf16 took 4 times as long as in fp32,
    and a matrix product in fp16 200 times."""
    if device == "cpu" and not cpu_computes(precision):
        logging.warning("--precision %s: this CPU has no instructions for it and computes it in software, many times slower than fp32", precision)


def positive_int(text: str) -> int:
    """argparse type: an integer of 1 or more."""
    return _number(text, int, 1, "a whole number of 1 or more")


def non_negative_int(text: str) -> int:
    """argparse type: an integer of 0 or more."""
    return _number(text, int, 0, "a whole number of 0 or more")


def fraction(text: str) -> float:
    """argparse type: a number above 0, at most 1."""
    return _number(text, float, 1e-300, "a number above 0, at most 1", most=1.0)


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    return _number(text, float, 1e-300, "a number above 0")


def _number(text: str, kind: type, least: float, allowed: str, most: float = sys.float_info.max):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} given, {allowed} needed")
    return value
