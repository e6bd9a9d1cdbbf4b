"""The command lines: flags become typed, checked settings before anything is read."""

import argparse
import contextlib
import dataclasses
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from datasets.cities import TRAINING_DATASETS, training_order
from datasets.folder import POSITION_SOURCES, PositionConfig
from datasets.gsv_cities import PlacesConfig
from datasets.layouts import BenchmarkConfig
from datasets.views import CROP_METHODS, TEST_METHODS
from model import AGGREGATIONS, BACKBONES, InputError, ModelChoice, ModelConfig
from model.network import check_image_size
from utils.retrieval.config import (
    DESCRIPTOR_DTYPES,
    FLOAT_DTYPES,
    PRECISIONS,
    EngineAddress,
    ExtractionConfig,
    IndexConfig,
    IVFConfig,
    PCAConfig,
    ReportConfig,
)
from utils.retrieval.extraction import cpu_supports
from utils.retrieval.test_methods import DEFAULT_MAJORITY_WEIGHT, MERGING_METHODS
from utils.training.config import DEFAULT_WEIGHT_DECAY, SCHEDULES, TrainingConfig

T = TypeVar("T")
MAX_INT = 2**31 - 1
PRECISION_HELP = "number format of the forward pass; bf16 and fp16 are slow on CPUs that lack instructions for them"
DEFAULT_THRESHOLD = 25  # metres
DEFAULT_REPORT_QUERIES = 100
NO_DATASETS_FOLDER = "Give --datasets_folder, or set the environment variable DATASETS_FOLDER."
BRANCH_SCRIPTS = {(): "eval.py", ("--hashing",): "eval_hashing.py", ("--hashing", "--rerank"): "eval_rerank.py"}
WEIGHTS_DEFAULT = "that of --resume; with --pretrained {}"  # of flags for the model
NO_EFFECT_IN_REFERENCE = (  # flags that the reference accepts
    "criterion margin train_positives_dist_threshold lr_crn_net brightness contrast saturation hue rand_perspective "
    "horizontal_flip random_resized_crop random_rotation"
).split()
INDEX_FLAGS = {"trust_index", "allow_incomplete_index"}
EXPORTS = {  # {(source, format): the flags that apply}
    ("index", "hloc"): {"image_root", "descriptor_dtype", *INDEX_FLAGS},
    ("index", "npy"): {"image_root", "descriptor_dtype", *INDEX_FLAGS},
    ("index", "pairs"): {"image_root", "num_matched", "rerank_num", *INDEX_FLAGS},
    ("run", "pairs"): {"image_root", "num_matched"},
    ("run", "msls"): {"num_matched"},
}
CHANGEABLE = (  # flags that may differ on resume: they affect paths, speed or reports, not the model
    "resume init_from save_dir datasets_folder gsv_cities_folder dataset_name foundation_model_path "
    "patience num_workers infer_batch_size memory_share device compile recall_values rerank_num tensorboard"
).split()


def _number(kind: Callable[[str], Any], least: float, expected: str, most: float) -> Callable:
    """An argparse type."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}.")
        return value

    return parse


positive_int = _number(int, 1, f"a whole number from 1 to {MAX_INT}", most=MAX_INT)
non_negative_int = _number(int, 0, f"a whole number from 0 to {MAX_INT}", most=MAX_INT)
positive_float = _number(float, sys.float_info.min, "a number above 0", most=sys.float_info.max)
non_negative_float = _number(float, 0, "a number of 0 or more", most=sys.float_info.max)
decay = _number(float, sys.float_info.min, "a number above 0 and below 1", most=1 - sys.float_info.epsilon)
fraction = _number(float, sys.float_info.min, "a number above 0 and at most 1", most=1.0)
max_shards = _number(int, 1, "a whole number from 1 to 16", most=16)


def index_location(text: str) -> Path | EngineAddress:
    """An argparse type: a folder, or the address of an index in a search engine."""
    return engine_address(text) if "://" in text else Path(text)


def index_folder(text: str) -> Path:
    """An argparse type: a folder, where the address of a search engine does not apply."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is not a folder. Only eval_hashing.py, eval_rerank.py and search.py "
            "search such an index; export_index.py writes one."
        )
    return Path(text)


def engine_address(text: str) -> EngineAddress:
    """An argparse type. What else the connection needs comes from the environment."""
    tls_ca = os.environ.get("MILVUS_TLS_CA")
    try:
        return EngineAddress.parse(
            text, token=os.environ.get("MILVUS_TOKEN", ""), tls_ca=Path(tls_ca) if tls_ca else None
        )
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments:
    """The flags of an evaluation script. resume: None for the published weights. flags: all, as plain values."""

    model: ModelChoice
    resume: Path | None
    benchmarks: list[BenchmarkConfig]
    extraction: ExtractionConfig
    test_method: str = "hard_resize"
    majority_weight: float = DEFAULT_MAJORITY_WEIGHT
    pca: PCAConfig | None = None
    save_index: IndexConfig | None = None
    load_index: Path | EngineAddress | None = None
    trust_index: bool = False
    allow_incomplete_index: bool = False
    ivf: IVFConfig | None = None
    rerank_num: int = 0
    recall_values: list[int]
    report: ReportConfig = ReportConfig()
    save_dir: str
    compile: bool = False
    seed: int = 0
    flags: dict[str, Any]

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """(H, W) of what the model takes: the database's images, and crops of queries."""
        size = self.extraction.resize
        return [size, (min(size), min(size))] if self.test_method in CROP_METHODS else [size]

    @property
    def index_folder(self) -> Path | None:
        """The folder of the index that is saved or loaded, if any."""
        if self.save_index:
            return self.save_index.folder
        return self.load_index if isinstance(self.load_index, Path) else None

    @property
    def merges_crops(self) -> bool:
        """Whether the test method searches each crop of a query and merges the results."""
        return self.test_method in MERGING_METHODS


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """The flags of a training script. flags: all, as plain values. must_match: those that a resumed run must repeat."""

    model: ModelChoice
    resume: Path | None
    init_from: Path | None = None
    foundation_model_path: Path | None = None
    gsv_cities_folder: Path
    places: PlacesConfig
    training: TrainingConfig
    pair_fraction: float = 1.0
    select_by: str = "final"
    val_benchmarks: list[BenchmarkConfig]
    test_benchmark: BenchmarkConfig
    extraction: ExtractionConfig
    rerank_num: int = 0
    recall_values: list[int]
    save_dir: str
    must_match: dict[str, Any]
    flags: dict[str, Any]

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """(H, W) of what the model takes: images in training and in evaluation."""
        return [self.places.image_size, self.extraction.resize]


@dataclass(frozen=True, kw_only=True)
class BuildIndexArguments:
    """The flags of build_index.py. resume: None for the published weights."""

    folder: Path
    positions: PositionConfig
    model: ModelChoice
    resume: Path | None
    extraction: ExtractionConfig
    index: IndexConfig


@dataclass(frozen=True, kw_only=True)
class SearchArguments:
    """The flags of search.py. images: files, folders, patterns. resume: None for the weights that the index names."""

    images: list[str]
    index: Path | EngineAddress
    trust_index: bool
    allow_incomplete_index: bool
    resume: Path | None
    results: int
    rerank_num: int
    save_pictures: Path | None
    json: bool
    infer_batch_size: int
    device: str
    precision: str
    exif_orientation: bool


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """The flags of export_features.py. Either index or run is None. format and output: the values of --to.
    descriptor_dtype: None for the default of the format.
    """

    index: Path | None
    run: Path | None
    format: str
    output: Path
    image_root: Path | None
    num_matched: int
    rerank_num: int
    descriptor_dtype: str | None
    trust_index: bool
    allow_incomplete_index: bool


@dataclass(frozen=True, kw_only=True)
class ExportIndexArguments:
    """The flags of export_index.py. shards: None for the default of a new copy, or those of an existing one."""

    index: Path
    to: EngineAddress
    append: bool
    shards: int | None


@dataclass(frozen=True, kw_only=True)
class OnnxArguments:
    """The flags of export_onnx.py. resume: None for the published weights.

    settings: resize, antialias and precision of the file. normalize: within the file.
    """

    model: ModelChoice
    resume: Path | None
    output: Path
    settings: ExtractionConfig
    normalize: bool


@dataclass(frozen=True, kw_only=True)
class SafetensorsArguments:
    """The flags of export_safetensors.py. resume: None for the published weights."""

    model: ModelChoice
    resume: Path | None
    output: Path


class _Refused(argparse.Action):
    """A flag that is an error, which `const` explains: that the flag is unknown would not be helpful."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.error(f"{self.option_strings[0]} {self.const}")


def parse_evaluation(description: str | None, *, hashing: bool = False, rerank: bool = False) -> EvaluationArguments:
    """The flags of a script for float models (neither), hashing-only models (hashing) or two-branch models (both).

    Exits with status 2 if they are not valid.
    """
    parser, add = _parser(description)
    _add_model(add, hashing, rerank, default=WEIGHTS_DEFAULT)
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument(
        "--resume", type=Path, metavar="FILE", help="checkpoint to evaluate: ours, published, or bare weights"
    )
    weights.add_argument("--pretrained", action="store_true", help="use the published checkpoint, downloaded once")
    _add_dataset(add, several=True)
    _add_images(add)
    _add_test_method(add, pca=rerank or not hashing)
    for flag in ("--pca_dim", "--pca_dataset_folder") if hashing and not rerank else ():
        _refuse(parser, flag, "applies to float descriptors, which hashing-only models do not have.")
    add("--save_dir", "results go to logs/NAME/<time>/", default="eval", metavar="NAME")
    if rerank:
        add("--rerank_num", "first-stage results to re-rank", type=positive_int, default=100, metavar="N")
    _add_index(parser, add, codes=hashing, descriptors=rerank or not hashing)
    if hashing:
        text = "approximate search: sort codes into NLIST lists, search NPROBE; pays off from about 10 million images"
        add("--ivf", text, type=positive_int, nargs=2, metavar=("NLIST", "NPROBE"))
    _add_report(add)
    _add_extraction(add)
    add("--precision", PRECISION_HELP, choices=tuple(PRECISIONS), default="fp32")
    args = parser.parse_args()
    with _errors_of(parser):
        _check_branches(parser, args, (hashing, rerank))
        benchmarks = _benchmarks(args)
        _resolve_common(args)
        _check_test_method(args)
        save_index = _index_config(args)
        ivf = getattr(args, "ivf", None)
        model, extraction = _build(ModelChoice, args), _extraction(args, args.precision)
        pca = None
        if getattr(args, "pca_dim", None):
            pca = PCAConfig(folder=args.datasets_folder / args.pca_dataset_folder, dim=args.pca_dim, seed=args.seed)
        settings = _build(
            EvaluationArguments,
            args,
            model=model,
            benchmarks=benchmarks,
            pca=pca,
            extraction=extraction,
            report=_report_config(args),
            save_index=save_index,
            ivf=IVFConfig(nlist=ivf[0], nprobe=ivf[1]) if ivf else None,
            flags=_plain_values(args),
        )
        _check_image_sizes(settings)
        return settings


def parse_training(description: str | None, *, hashing: bool = False, rerank: bool = False) -> TrainingArguments:
    """The flags of a script that trains float models (neither), hashing-only (hashing) or two-branch models (both).

    Exits with status 2 if they are not valid.
    """
    parser, add = _parser(description)
    _add_model(add, hashing, rerank, default="that of --resume" + " or --init_from, otherwise {}" * (not rerank))
    if rerank:
        text = "a trained float model to start from, or this script's last_model.pth to resume a run"
        add("--resume", text, type=Path, metavar="FILE", required=True)
        add("--rerank_num", "first-stage results to re-rank", type=positive_int, default=100, metavar="N")
        text = "recall that selects the best model: after re-ranking, or of the binary codes alone"
        add("--select_by", text, choices=("reranked", "binary"), default="reranked")
    else:
        add("--resume", "last_model.pth of the run to resume", type=Path, metavar="FILE")
        add("--init_from", "start a new run from the weights of a trained model", type=Path, metavar="FILE")
        add("--foundation_model_path", "DINOv2 weights (default: download them)", type=Path, metavar="FILE")
        add("--train_backbone", "train the backbone too (vit-tiny and vit-nano: from scratch)", action="store_true")
    _add_dataset(add)
    _add_training(add)
    if hashing:
        add("--pair_fraction", "fraction of the mined pairs in the similarity constraint", type=fraction, default=1.0)
    _add_extraction(add)
    add("--precision", f"{PRECISION_HELP} (default: fp16 on CUDA, otherwise fp32)", choices=tuple(PRECISIONS))
    add("--eval_precision", "--precision of validation and test", choices=tuple(PRECISIONS), default="fp32")
    args = parser.parse_args()
    with _errors_of(parser):
        _check_branches(parser, args, (hashing, rerank))
        if args.datasets_folder is None:
            raise InputError(NO_DATASETS_FOLDER)
        if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise InputError("--tensorboard needs the package tensorboard: pip install -r requirements-tensorboard.txt")
        _resolve_common(args)
        if getattr(args, "init_from", None) and args.foundation_model_path:
            raise InputError("--init_from contains the backbone; give either that or --foundation_model_path.")
        args.cities = training_order(args.cities or TRAINING_DATASETS[args.training_dataset])
        args.gsv_cities_folder = args.gsv_cities_folder or args.datasets_folder / "gsv_cities"
        args.precision = args.precision or ("fp16" if args.device.startswith("cuda") else "fp32")
        args.val_datasets = [] if args.val_datasets == ["none"] else args.val_datasets
        benchmark = {"datasets_folder": args.datasets_folder, "threshold": args.val_positive_dist_threshold}
        if args.weight_decay is None:
            args.weight_decay = DEFAULT_WEIGHT_DECAY[args.optim]
        flags = _plain_values(args)
        model, extraction = _build(ModelChoice, args), _extraction(args, args.eval_precision)
        places = _build(PlacesConfig, args, cities=tuple(args.cities), image_size=tuple(args.image_size))
        settings = _build(
            TrainingArguments,
            args,
            model=model,
            places=places,
            val_benchmarks=[BenchmarkConfig(name=name, split="val", **benchmark) for name in args.val_datasets],
            test_benchmark=BenchmarkConfig(name=args.dataset_name, **benchmark),
            training=_build(TrainingConfig, args, batch_size=args.train_batch_size),
            extraction=extraction,
            flags=flags,
            must_match={name: value for name, value in flags.items() if name not in CHANGEABLE},
        )
        _check_image_sizes(settings)
        return settings


def parse_build_index(description: str | None) -> BuildIndexArguments:
    """The flags of build_index.py. Exits with status 2 if they are not valid."""
    parser, add = _parser(description)
    add("folder", "folder of images, also in subfolders", type=Path, metavar="IMAGES")
    add("--index", "the folder to write; see docs/index_format.md", type=Path, required=True, metavar="DIR")
    add("--append", "add missing images to --index, or continue if building it was interrupted", action="store_true")
    _add_any_model(parser, add, "index with")
    positions = parser.add_mutually_exclusive_group()
    text = (
        "where positions come from: file names (@easting@northing@...), EXIF GPS, or names and otherwise EXIF GPS "
        "(auto, the default)"
    )
    positions.add_argument("--positions", choices=POSITION_SOURCES, default="auto", help=text)
    text = "positions: a CSV file with the columns image, easting, northing or image, latitude, longitude"
    positions.add_argument("--positions_csv", type=Path, metavar="FILE", help=text)
    add("--descriptor_dtype", "number format of the descriptors", choices=tuple(DESCRIPTOR_DTYPES), default="fp32")
    _add_ignore_exif(parser)
    _add_reading(add)
    _add_device(add)
    add("--precision", PRECISION_HELP, choices=tuple(PRECISIONS), default="fp32")
    args = parser.parse_args()
    with _errors_of(parser):
        for flag in ("resume", "positions_csv"):
            _require_file(args, flag)
        _resolve_device(args)
        return _build(
            BuildIndexArguments,
            args,
            positions=PositionConfig(source=args.positions, csv=args.positions_csv),
            model=_any_model(args),
            extraction=_extraction(args, args.precision),
            index=_build(IndexConfig, args, folder=args.index, weights=args.resume),
        )


def parse_search(description: str | None) -> SearchArguments:
    """The flags of search.py. Exits with status 2 if they are not valid."""
    parser, add = _parser(description)
    text = 'image files to locate, folders of them, or patterns in quotes, such as "trip/*.jpg"'
    add("images", text, nargs="+", metavar="IMAGE")
    text = "an index built by build_index.py or eval*.py --save_index, or milvus://HOST:PORT/NAME"
    add("--index", text, type=index_location, required=True, metavar="DIR")
    add("--resume", "checkpoint, if it is no longer at the path that the index stores", type=Path, metavar="FILE")
    add("--results", "matches to print for each image", type=positive_int, default=5, metavar="N")
    text = "first-stage results to re-rank; ignored for models other than two-branch ones"
    add("--rerank_num", text, type=positive_int, default=100, metavar="N")
    add("--save_pictures", "save a PNG of each image with its matches in DIR", type=Path, metavar="DIR")
    add(
        "--json",
        "print one JSON object in place of tables; all other messages go to standard error",
        action="store_true",
    )
    add("--trust_index", "skip checksum verification of --index; saves time with a large one", action="store_true")
    add("--allow_incomplete_index", "search --index even if building it was interrupted", action="store_true")
    add("--infer_batch_size", "images per batch", type=positive_int, default=16, metavar="N")
    _add_device(add)
    add("--precision", PRECISION_HELP, choices=tuple(PRECISIONS), default="fp32")
    _add_ignore_exif(parser)
    args = parser.parse_args()
    with _errors_of(parser):
        _check_engine_flags(args, args.index)
        _resolve_device(args)
        return _build(SearchArguments, args)


def parse_export_features(description: str | None) -> ExportArguments:
    """The flags of export_features.py. Exits with status 2 if they are not valid."""
    parser, add = _parser(description)
    source = parser.add_mutually_exclusive_group(required=True)
    text = "an index built by build_index.py or eval*.py --save_index"
    source.add_argument("--index", type=index_folder, metavar="DIR", help=text)
    source.add_argument("--run", type=Path, metavar="DIR", help="the folder of an evaluation, with predictions.csv")
    text = (
        "what to write, and the new file or folder. Of an index: hloc FILE, its descriptors; npy DIR, its descriptors, "
        "codes and names; pairs FILE, each image with the nearest others. Of a run: pairs FILE, each query with its "
        "first predictions; msls FILE, the same as MSLS keys"
    )
    add("--to", text, nargs=2, required=True, metavar=("FORMAT", "OUTPUT"))
    text = "images are named relative to this folder (default: the deepest folder above all of them)"
    add("--image_root", text, type=Path, metavar="DIR")
    add("--num_matched", "matches of each image or query (default: 20)", type=positive_int, metavar="N")
    text = "first-stage results to re-rank, for pairs from the index of a two-branch model (default: 100)"
    add("--rerank_num", text, type=positive_int, metavar="N")
    text = "number format of the descriptors (default: fp16 for hloc; for npy that of the index, or fp32 for int8)"
    add("--descriptor_dtype", text, choices=tuple(FLOAT_DTYPES))
    add("--trust_index", "skip checksum verification of --index; saves time with a large one", action="store_true")
    add("--allow_incomplete_index", "export --index even if building it was interrupted", action="store_true")
    args = parser.parse_args()
    with _errors_of(parser):
        _check_export(args)
        numbers = {"num_matched": args.num_matched or 20, "rerank_num": args.rerank_num or 100}
        return _build(ExportArguments, args, **numbers)


def parse_export_index(description: str | None) -> ExportIndexArguments:
    """The flags of export_index.py. Exits with status 2 if they are not valid."""
    parser, add = _parser(description)
    text = "a complete index built by eval_hashing.py or eval_rerank.py --save_index; its checksums are verified"
    add("--index", text, type=index_folder, required=True, metavar="DIR")
    text = "milvus://HOST:PORT/NAME, or milvus+tls:// for an encrypted connection"
    add("--to", text, type=engine_address, required=True, metavar="ADDRESS")
    add("--append", "add the images that --index has more than the copy", action="store_true")
    add("--shards", "shards of a new copy (default: 1)", type=max_shards, metavar="N")
    text = "USER:PASSWORD; visible to other users of this machine, unlike the environment variable MILVUS_TOKEN"
    add("--token", text)
    text = "certificate that signed the server's, for milvus+tls (or set the environment variable MILVUS_TLS_CA)"
    add("--tls_ca", text, type=Path, metavar="FILE")
    args = parser.parse_args()
    with _errors_of(parser):
        options = {name: getattr(args, name) for name in ("token", "tls_ca") if getattr(args, name)}
        return _build(ExportIndexArguments, args, to=dataclasses.replace(args.to, **options))


def parse_export_onnx(description: str | None) -> OnnxArguments:
    """The flags of export_onnx.py. Exits with status 2 if they are not valid."""
    parser, add = _parser(description)
    _add_any_model(parser, add, "export")
    text = "size of the images that the file takes in pixels (height width), multiples of 14"
    add("--resize", text, type=positive_int, nargs=2, default=[322, 322], metavar=("H", "W"))
    text = "state in the file that images are resized without antialiasing; by default with it"
    add("--no_antialias", text, action="store_true")
    text = "the file takes normalised images; by default it takes values in [0, 1] and normalises them"
    add("--no_normalization", text, action="store_true")
    add("--fp16", "weights and computation in half precision; inputs and outputs stay float32", action="store_true")
    add("--output", "the file to write", type=Path, metavar="FILE.onnx", required=True)
    args = parser.parse_args()
    with _errors_of(parser):
        _check_new_file(args.output)
        return OnnxArguments(
            model=_any_model(args),
            resume=args.resume,
            output=args.output,
            settings=ExtractionConfig(
                resize=tuple(args.resize),
                antialias=not args.no_antialias,
                precision="fp16" if args.fp16 else "fp32",
            ),
            normalize=not args.no_normalization,
        )


def parse_export_safetensors(description: str | None) -> SafetensorsArguments:
    """The flags of export_safetensors.py. Exits with status 2 if they are not valid."""
    parser, add = _parser(description)
    _add_any_model(parser, add, "export")
    add("--output", "the file to write", type=Path, metavar="FILE.safetensors", required=True)
    args = parser.parse_args()
    with _errors_of(parser):
        _check_new_file(args.output)  # which may be the checkpoint itself
        return SafetensorsArguments(model=_any_model(args), resume=args.resume, output=args.output)


# ---- Groups of flags


def _add_model(add: Callable, hashing: bool, rerank: bool, default: str) -> None:
    _add_architecture(add, default, ("gem",) if hashing and not rerank else tuple(AGGREGATIONS))
    for flag, is_on in (("--hashing", hashing), ("--rerank", rerank)):
        text = "always on here (accepted for compatibility)" if is_on else "not supported by this script"
        add(flag, text, action="store_true")


def _add_architecture(add: Callable, default: str, aggregations: tuple[str, ...]) -> None:
    """default: what applies if a flag is not given, in words; {} stands for ModelConfig's default."""
    text = f"vision transformer (default: {default.format(ModelConfig.backbone)})"
    add("--backbone", text, choices=tuple(BACKBONES))
    text = f"aggregation of the float descriptor (default: {default.format(ModelConfig.aggregation)})"
    add("--aggregation", text, choices=aggregations)


def _add_any_model(parser: argparse.ArgumentParser, add: Callable, purpose: str) -> None:
    """The model of a checkpoint, of whatever branches, or a published one; see _any_model."""
    weights = parser.add_mutually_exclusive_group(required=True)
    text = f"checkpoint to {purpose}: ours, published, or bare weights; the model is recognised"
    weights.add_argument("--resume", type=Path, metavar="FILE", help=text)
    text = f"{purpose} the published checkpoint, downloaded once; the flags below choose the model"
    weights.add_argument("--pretrained", action="store_true", help=text)
    _add_architecture(add, WEIGHTS_DEFAULT, tuple(AGGREGATIONS))
    add("--hashing", "a hashing-only model or, with --rerank, a two-branch model", action="store_true")
    add("--rerank", "with --hashing: a two-branch model", action="store_true")


def _add_dataset(add: Callable, several: bool = False) -> None:
    text = "folder of the datasets (or set the environment variable DATASETS_FOLDER)"
    add("--datasets_folder", text, type=Path, default=os.environ.get("DATASETS_FOLDER"))
    if several:
        text = "names of the datasets' folders in --datasets_folder; with several, a table follows (default: pitts30k)"
        add("--dataset_name", text, nargs="+", metavar="NAME")
    else:
        add("--dataset_name", "name of the dataset's folder in --datasets_folder", default="pitts30k")
    text = "a database image within this distance of a query counts as correct, in validation and test"
    if several:  # None shows that it was not given, so that --no_labels can refuse it
        add("--val_positive_dist_threshold", f"{text} (default: 25)", type=positive_float, metavar="METRES")
    else:
        add("--val_positive_dist_threshold", text, type=positive_float, default=DEFAULT_THRESHOLD, metavar="METRES")
    text = "report Recall@N for these N"
    add("--recall_values", text, type=positive_int, nargs="+", default=[1, 5, 10, 100], metavar="N")


def _add_images(add: Callable) -> None:
    """Which images of a dataset, or of which folders, are evaluated."""
    add("--split", "split of the datasets (default: test)")
    text = "folders of queries beside the database (default: queries), such as queries_night of SVOX or SF-XL"
    add("--queries_subfolder", text, nargs="+", metavar="NAME")
    text = "any folder as database; with --queries_folder, instead of --datasets_folder and --dataset_name"
    add("--database_folder", text, type=Path, metavar="DIR")
    add("--queries_folder", "any folder of queries; see --database_folder", type=Path, metavar="DIR")
    text = "evaluate only these queries: a file with MSLS keys or paths, one per line or separated by spaces"
    add("--queries_list", text, type=Path, metavar="FILE")
    text = "positions: a CSV file with the columns image, easting, northing or image, latitude, longitude"
    add("--positions_csv", text, type=Path, metavar="FILE")
    add("--no_labels", "no positions are known: write predictions without recalls", action="store_true")
    text = "turn images upright as their EXIF data says; the reference ignores it"
    add("--exif_orientation", text, action="store_true")


def _add_test_method(add: Callable, pca: bool) -> None:
    text = "how queries are resized or cropped: see docs/datasets.md"
    add("--test_method", text, choices=TEST_METHODS, default="hard_resize")
    text = f"weight of a vote, with --test_method maj_voting (default: {DEFAULT_MAJORITY_WEIGHT})"
    add("--majority_weight", text, type=non_negative_float, metavar="WEIGHT")
    if pca:
        add("--pca_dim", "reduce descriptors to N dimensions by PCA", type=positive_int, metavar="N")
        text = "fit PCA to images below this folder in --datasets_folder, such as pitts30k/images/train"
        add("--pca_dataset_folder", text, type=Path, metavar="FOLDER")


def _add_index(parser: argparse.ArgumentParser, add: Callable, codes: bool, descriptors: bool) -> None:
    index = parser.add_mutually_exclusive_group()
    text = "save the database's features to a new folder"
    index.add_argument("--save_index", type=index_folder, metavar="DIR", help=text)
    text = "search this index" + ", or milvus://HOST:PORT/NAME" * codes + "; database images are not read"
    index.add_argument("--load_index", type=index_location if codes else index_folder, metavar="DIR", help=text)
    add("--append", "add missing images to the existing index of --save_index", action="store_true")
    add("--trust_index", "skip checksum verification of --load_index; saves time with a large one", action="store_true")
    add("--allow_incomplete_index", "search --load_index even if building it was interrupted", action="store_true")
    if descriptors:
        text = "number format of the descriptors in --save_index (default: fp32)"
        add("--descriptor_dtype", text, choices=tuple(DESCRIPTOR_DTYPES))


def _add_report(add: Callable) -> None:
    text = "save a picture of each query with its first N predictions, and a list of their paths, in preds"
    add("--num_preds_to_save", text, type=non_negative_int, default=0, metavar="N")
    text = "with --num_preds_to_save: only queries whose first prediction is wrong"
    add("--save_only_wrong_preds", text, action="store_true")
    text = f"queries with pictures in report.html, failures first (default: {DEFAULT_REPORT_QUERIES})"
    add("--report_queries", text, type=non_negative_int, metavar="N")
    add("--no_report", "do not write report.html", action="store_true")


def _add_training(add: Callable) -> None:
    add("--training_dataset", "cities to train on", choices=tuple(TRAINING_DATASETS), default="gsv_cities")
    add("--gsv_cities_folder", "folder with Dataframes and Images (default: <datasets_folder>/gsv_cities)", type=Path)
    add("--cities", "train on these cities instead of those of --training_dataset", nargs="+", metavar="CITY")
    text = "validation datasets (split val), or the word none; R@1 + R@5 of the last one selects the best model"
    add("--val_datasets", text, nargs="+", default=["pitts30k", "msls"], metavar="NAME")
    add("--epochs_num", "epochs; 0: test the initial model", type=non_negative_int, default=25, metavar="N")
    add("--patience", "stop after N epochs without improvement", type=positive_int, default=12, metavar="N")
    add("--train_batch_size", "places per batch, over all ranks", type=positive_int, default=120, metavar="N")
    add("--images_per_place", "images per place; smaller places are skipped", type=positive_int, default=4, metavar="N")
    text = "size of training images in pixels (height width), multiples of 14"
    add("--image_size", text, type=positive_int, nargs=2, default=[224, 224], metavar=("H", "W"))
    add("--randaugment_ops", "RandAugment operations per image", type=non_negative_int, default=3, metavar="N")
    add("--exact_decoding", "decode JPEGs at full, not at reduced size; slower", action="store_true")
    add("--optim", "optimizer", choices=tuple(DEFAULT_WEIGHT_DECAY), default="adam")
    add("--lr", "initial learning rate", type=positive_float, default=4e-4)
    text = "of the learning rate. step: halved every 3 epochs; cosine: falls to 0 over --epochs_num"
    add("--schedule", text, choices=SCHEDULES, default="step")
    text = "steps over which the learning rate rises to --lr at the start"
    add("--warmup_steps", text, type=non_negative_int, default=0, metavar="N")
    text = "validate, save and test an exponential moving average of the weights with this decay, such as 0.99"
    add("--ema", text, type=decay, metavar="DECAY")
    add("--weight_decay", "weight decay (default: 0.01 for adamw, 0 for adam and sgd)", type=non_negative_float)
    add("--save_dir", "a new run goes to logs/NAME/<time>/", default="train", metavar="NAME")
    text = "also write the curves for TensorBoard, to the run's folder; needs requirements-tensorboard.txt"
    add("--tensorboard", text, action="store_true")


def _add_reading(add: Callable, when: str = "") -> None:
    """How images are read and resized."""
    text = f"size of images{when} in pixels (height width), multiples of 14"
    add("--resize", text, type=positive_int, nargs=2, default=[322, 322], metavar=("H", "W"))
    add("--no_antialias", "resize without antialiasing, as torchvision before 0.17 did", action="store_true")
    add("--infer_batch_size", f"images per batch{when}", type=positive_int, default=16, metavar="N")
    text = "processes that read images; 0: the main one does"
    add("--num_workers", text, type=non_negative_int, default=min(8, os.cpu_count() or 1), metavar="N")


def _add_extraction(add: Callable) -> None:
    _add_reading(add, " in evaluation")
    text = "share of RAM that the float descriptors of a set of images may take; larger ones go to a temporary file"
    add("--memory_share", text, type=fraction, default=0.5, metavar="SHARE")
    _add_device(add)
    add(
        "--compile",
        "torch.compile the model, in training the steps alone: slow at the start, faster afterwards",
        action="store_true",
    )
    add("--seed", "random seed", type=non_negative_int, default=0)


def _add_device(add: Callable) -> None:
    add("--device", "auto: a GPU if there is one", choices=("auto", "cuda", "mps", "cpu"), default="auto")


def _add_ignore_exif(parser: argparse.ArgumentParser) -> None:
    text = "ignore the images' EXIF orientation; by default they are turned upright"
    parser.add_argument("--ignore_exif_orientation", dest="exif_orientation", action="store_false", help=text)


# ---- From flags to settings


def _any_model(args: argparse.Namespace) -> ModelChoice:
    """The model of the flags of `_add_any_model`. Raises InputError if there is no such model."""
    branches = {"hashing": args.hashing, "rerank": args.rerank} if args.hashing or args.rerank else {}
    choice = ModelChoice(backbone=args.backbone, aggregation=args.aggregation, **branches)
    if args.pretrained:
        choice.resolve()
    return choice


def _check_image_sizes(settings: EvaluationArguments | TrainingArguments) -> None:
    """Raises InputError for a size that the model cannot take, as far as it is known before reading the checkpoint."""
    for size in settings.image_sizes:
        check_image_size(settings.model.resolve(), size)


def _parser(description: str | None) -> tuple[argparse.ArgumentParser, Callable]:
    """A parser, and its function to add a flag, whose default the help shows if it says anything."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for name in NO_EFFECT_IN_REFERENCE:
        _refuse(parser, f"--{name}", "had no effect in the reference; remove it.")

    def add(flag: str, text: str, **options: Any) -> None:
        shown = not any(options.get("default") is value for value in (None, False))
        parser.add_argument(flag, help=text + " (default: %(default)s)" * shown, **options)

    return parser, add


def _refuse(parser: argparse.ArgumentParser, flag: str, reason: str) -> None:
    """Makes a flag an error with this reason, whatever its values."""
    hidden = argparse.SUPPRESS
    parser.add_argument(flag, action=_Refused, nargs="*", const=reason, help=hidden, default=hidden)


@contextlib.contextmanager
def _errors_of(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Ends the script as argparse does, with status 2, if settings are not valid."""
    try:
        yield
    except InputError as error:
        parser.error(str(error))


def _build(settings: Callable[..., T], args: argparse.Namespace, **others: Any) -> T:
    """Builds a dataclass of settings from the flags of the same names; `others` are the remaining fields."""
    names = {field.name for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return settings(**{name: value for name, value in vars(args).items() if name in names} | others)


def _check_branches(parser: argparse.ArgumentParser, args: argparse.Namespace, branches: tuple[bool, bool]) -> None:
    """Rejects branch flags of another script, naming it; otherwise sets args.hashing and args.rerank."""
    hashing, rerank = branches
    given = tuple(flag for flag, is_given in (("--hashing", args.hashing), ("--rerank", args.rerank)) if is_given)
    if (args.hashing and not hashing) or (args.rerank and not rerank):
        kind = parser.prog.split("_")[0].removesuffix(".py")
        script = BRANCH_SCRIPTS.get(given, "eval_rerank.py").replace("eval", kind)
        raise InputError(f"{' '.join(given)} does not apply to {parser.prog}; use {script}.")
    args.hashing, args.rerank = hashing, rerank


def _require_file(args: argparse.Namespace, flag: str) -> None:
    """Raises InputError if a flag names a file that does not exist."""
    path = getattr(args, flag)
    if path and (path.is_dir() or not path.exists()):
        raise InputError(f"--{flag}: no file {path}.")


def _benchmarks(args: argparse.Namespace) -> list[BenchmarkConfig]:
    """The datasets or folders to evaluate. Sets args.dataset_name and args.split to their defaults."""
    for flag in ("queries_list", "positions_csv"):
        _require_file(args, flag)
    if args.no_labels and args.val_positive_dist_threshold is not None:
        raise InputError("--val_positive_dist_threshold applies to labels, which --no_labels leaves out.")
    args.val_positive_dist_threshold = args.val_positive_dist_threshold or DEFAULT_THRESHOLD
    options = {
        "queries_list": args.queries_list,
        "positions_csv": args.positions_csv,
        "labels": not args.no_labels,
        "threshold": args.val_positive_dist_threshold,
    }
    if args.database_folder or args.queries_folder:
        return [
            BenchmarkConfig(
                name=_check_given_folders(args),
                queries_folder=args.queries_folder,
                database_folder=args.database_folder,
                queries_subfolders=tuple(args.queries_subfolder or ()),
                **options,
            )
        ]
    if args.datasets_folder is None:
        raise InputError(f"{NO_DATASETS_FOLDER} Or give any two folders with --database_folder and --queries_folder.")
    args.dataset_name = args.dataset_name or ["pitts30k"]
    args.split = args.split or "test"
    if len(set(args.dataset_name)) < len(args.dataset_name):
        raise InputError(f"--dataset_name {' '.join(args.dataset_name)}: a dataset is named more than once.")
    if len(args.dataset_name) > 1:
        for flag in ("queries_list", "positions_csv", "queries_subfolder", "save_index", "load_index"):
            if getattr(args, flag):
                count = len(args.dataset_name)
                raise InputError(
                    f"--{flag} applies to one dataset, but --dataset_name names {count}. Run it separately."
                )
    return [
        BenchmarkConfig(
            name=name,
            datasets_folder=Path(args.datasets_folder),
            split=args.split,
            queries_subfolders=tuple(args.queries_subfolder or ()),
            **options,
        )
        for name in args.dataset_name
    ]


def _check_given_folders(args: argparse.Namespace) -> str:
    """Rejects flags that do not go with given folders. Returns the name under which their results are reported."""
    if not args.queries_folder or not (args.database_folder or args.load_index):
        raise InputError("Give both --database_folder and --queries_folder (with --load_index, only the latter).")
    if args.database_folder and args.load_index:
        raise InputError("--load_index replaces the database; give either that or --database_folder.")
    for flag in ("dataset_name", "split"):
        if getattr(args, flag):
            raise InputError(f"--{flag} selects images of a dataset and cannot be combined with --queries_folder.")
    return str(args.queries_folder)


def _check_engine_flags(args: argparse.Namespace, location: Path | EngineAddress | None) -> None:
    """Rejects flags that apply to an index in a folder, if it is in a search engine."""
    for flag in ("ivf", "trust_index", "allow_incomplete_index"):
        if isinstance(location, EngineAddress) and getattr(args, flag, None):
            raise InputError(f"--{flag} applies to an index in a folder, not to {location}. Leave it out.")


def _index_config(args: argparse.Namespace) -> IndexConfig | None:
    """The index to save, if any. Rejects flags that apply to an index that is not given."""
    _check_engine_flags(args, args.load_index)
    if args.append and not args.save_index:
        raise InputError("--append adds to the index of --save_index DIR; give that too.")
    for flag in ("trust_index", "allow_incomplete_index"):
        if getattr(args, flag) and not args.load_index:
            raise InputError(f"--{flag} applies to the index of --load_index DIR; give that too.")
    dtype = getattr(args, "descriptor_dtype", None)
    if dtype and not args.save_index:
        raise InputError("--descriptor_dtype applies to the index of --save_index DIR; give that too.")
    if not args.save_index:
        return None
    options = {"append": args.append, "descriptor_dtype": dtype or "fp32", "weights": args.resume}
    return IndexConfig(folder=args.save_index, **options)


def _check_export(args: argparse.Namespace) -> None:
    """Rejects exports that do not exist, and flags that do not apply to them. Sets args.format and args.output."""
    source = "index" if args.index else "run"
    args.format, args.output = args.to[0], Path(args.to[1])
    formats = [name for kind, name in EXPORTS if kind == source]
    if args.format not in formats:
        raise InputError(f"--to {args.format} is not possible with --{source}. Choose from: {', '.join(formats)}.")
    flags = set().union(*EXPORTS.values())
    for flag in sorted(flags - EXPORTS[source, args.format]):
        if getattr(args, flag):
            raise InputError(f"--{flag} does not apply to --{source} with --to {args.format}. Leave it out.")
    _check_new_file(args.output)


def _check_new_file(path: Path) -> None:
    """Raises InputError if a file or folder of that name exists, or if its folder does not."""
    if os.path.lexists(path):
        raise InputError(f"{path} exists already. Delete it, or choose another name.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"No folder {path.parent} for the file {path.name}. Create it.")


def _report_config(args: argparse.Namespace) -> ReportConfig:
    """Pictures and page. Rejects flags that have no effect together. Sets the default of args.report_queries."""
    if args.save_only_wrong_preds and not args.num_preds_to_save:
        raise InputError("--save_only_wrong_preds applies to the pictures of --num_preds_to_save N; give that too.")
    if args.save_only_wrong_preds and args.no_labels:
        raise InputError("--save_only_wrong_preds needs labels, which --no_labels leaves out.")
    depth = max(args.recall_values)
    if args.num_preds_to_save > depth:
        raise InputError(
            f"--num_preds_to_save {args.num_preds_to_save}: each query has {depth} predictions, the largest of "
            "--recall_values. Save fewer, or add a larger value there."
        )
    if args.no_report and args.report_queries is not None:
        raise InputError("--report_queries applies to report.html, which --no_report leaves out.")
    if args.report_queries is None:
        args.report_queries = DEFAULT_REPORT_QUERIES
    return ReportConfig(
        num_pictures=args.num_preds_to_save,
        only_wrong=args.save_only_wrong_preds,
        page_queries=None if args.no_report else args.report_queries,
        exif_orientation=args.exif_orientation,
    )


def _check_test_method(args: argparse.Namespace) -> None:
    """Rejects flags of test methods and PCA that have no effect together. Sets the default of args.majority_weight."""
    if args.majority_weight is not None and args.test_method != "maj_voting":
        raise InputError("--majority_weight applies to --test_method maj_voting; give that too.")
    if args.majority_weight is None:
        args.majority_weight = DEFAULT_MAJORITY_WEIGHT
    pca_dim, pca_folder = getattr(args, "pca_dim", None), getattr(args, "pca_dataset_folder", None)
    if (pca_dim is None) != (pca_folder is None):
        raise InputError("PCA needs both --pca_dim and --pca_dataset_folder.")
    if pca_dim and args.load_index:
        raise InputError("--pca_dim does not apply to --load_index: the index states how its descriptors were reduced.")
    if pca_dim and args.datasets_folder is None:
        raise InputError(f"{NO_DATASETS_FOLDER} --pca_dataset_folder lies in it.")


def _resolve_common(args: argparse.Namespace) -> None:
    if args.datasets_folder is not None:
        args.datasets_folder = Path(args.datasets_folder)
    args.recall_values = sorted(set(args.recall_values))
    _resolve_device(args)


def _resolve_device(args: argparse.Namespace) -> None:
    args.device = resolve_device(args.device)
    for precision in {args.precision or "fp32", getattr(args, "eval_precision", "fp32")}:
        warn_if_slow(args.device, precision)


def resolve_device(name: str) -> str:
    """The device for a --device; under torchrun, cuda is this rank's GPU. Raises InputError if it is absent."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in available if available[device])
    if not available[name]:
        choices = ", ".join(device for device in available if available[device])
        raise InputError(f"--device {name}: PyTorch {torch.__version__} finds no such device. Available: {choices}.")
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


def warn_if_slow(device: str, precision: str) -> None:
    """Warns if the CPU has no instructions for the precision (measured slowdown: 4x for bf16, 200x for fp16)."""
    if device == "cpu" and not cpu_supports(precision):
        message = "--precision %s: this CPU has no instructions for it and will be many times slower than with fp32."
        logging.warning(message, precision)


def _extraction(args: argparse.Namespace, precision: str) -> ExtractionConfig:
    return _build(
        ExtractionConfig,
        args,
        resize=tuple(args.resize),
        antialias=not args.no_antialias,
        batch_size=args.infer_batch_size,
        precision=precision,
        temporary_folder=Path("logs"),
        test_method="hard_resize",  # of the database; --test_method is that of the queries
    )


def _plain_values(args: argparse.Namespace) -> dict[str, Any]:
    """All flags as JSON and checkpoints can hold them."""
    plain = (Path, EngineAddress)
    return {name: str(value) if isinstance(value, plain) else value for name, value in vars(args).items()}
