"""The flags of export.py: a class of settings for each sub-command."""

from dataclasses import dataclass, replace
from pathlib import Path

from model import ImageConfig, InputError
from model.config import FLOAT_DTYPES, LoopConfig
from utils.cli.model import TrainedModel
from utils.retrieval.config import EngineAddress, ExtractionConfig, engine_address, index_folder
from utils.runtime.atomic_files import check_output
from utils.runtime.flags import ArgumentParser, flag, non_negative_float, non_negative_int, part, positive_int, switch
from utils.runtime.parser import add_flags, settings_from
from utils.runtime.terminal import accept_any_text, show_warnings

INDEX_HELP = "an index built by build_index.py or eval*.py --save_index"
RUN_HELP = "the folder of an evaluation, with predictions.csv"
UNUSED = {  # by an ONNX file
    "exif_orientation": False,
    "batch_size": 1,
    "num_workers": 0,
    "device": "cpu",
    "compile": False,
    "engine": "torch",
    "onnx_provider": None,
    "memory_share": 0.5,
}


def num_matched_flag() -> int:
    """The field num_matched."""
    return flag("matches of each image or query", type=positive_int, default=20)


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export to a new file or folder. Raises InputError if it exists, or its folder does not."""

    output: Path = flag("the file to write; for npy the folder")

    def __post_init__(self) -> None:
        check_output(self.output)  # it may be the checkpoint itself


@dataclass(frozen=True, kw_only=True)
class ImageExport(Export):
    """An export of an index, whose images it names relative to a folder."""

    index: Path | None = flag(INDEX_HELP, type=index_folder)
    trust_index: bool = switch("skip checksum verification of --index; saves time with a large one")
    allow_incomplete_index: bool = switch("export --index even if building it was interrupted")
    image_root: Path | None = flag(
        "images are named relative to this folder (default: the deepest folder above all of them)", default=None
    )


@dataclass(frozen=True, kw_only=True)
class HlocExport(ImageExport):
    """Descriptors of an index, as hloc's HDF5 file."""

    descriptor_dtype: str = flag("number format of the descriptors", choices=tuple(FLOAT_DTYPES), default="fp16")


@dataclass(frozen=True, kw_only=True)
class NpyExport(ImageExport):
    """Descriptors, codes and names of an index, as a folder of NumPy files."""

    descriptor_dtype: str | None = flag(
        "number format of the descriptors (default: that of the index, or fp32 for int8)",
        choices=tuple(FLOAT_DTYPES),
        default=None,
    )


@dataclass(frozen=True, kw_only=True)
class PairsExport(ImageExport):
    """Pairs of images to match, for hloc and COLMAP: each image of an index with the nearest others, or each query of
    an evaluation with its first predictions; with --max_distance, the loops of a sequence that is indexed.

    Raises InputError for both or none of index and run, and for flags that do not apply.
    """

    index: Path | None = flag(INDEX_HELP, type=index_folder, default=None)
    run: Path | None = flag(RUN_HELP, default=None)
    num_matched: int = flag(
        "matches of each image or query (default: 20; of the images of a sequence 1)",
        type=positive_int,
        default_from=lambda flags: 20 if flags["max_distance"] is None else LoopConfig.k,
    )
    max_distance: float | None = flag(
        "find the loops of a sequence, which --index holds in the order of its names: images within this distance of "
        "an earlier one",
        type=non_negative_float,
        default=None,
    )
    min_gap: int | None = flag(
        f"the images of a loop are at least this many apart in the sequence (default: {LoopConfig.min_gap})",
        type=positive_int,
        default_from=lambda flags: None if flags["max_distance"] is None else LoopConfig.min_gap,
    )
    suppress: int | None = flag(
        "of loops that are less than this many images apart, at both ends, the nearest one is kept; 0 keeps all "
        f"(default: {LoopConfig.suppress})",
        type=non_negative_int,
        default_from=lambda flags: None if flags["max_distance"] is None else LoopConfig.suppress,
    )
    rerank_num: int = flag(
        "first-stage results to re-rank, of the index of a two-branch model (default: 100)",
        type=positive_int,
        default_from=lambda flags: 0 if flags["run"] else 100,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.index) == bool(self.run):
            raise InputError("Give an index with --index DIR, or an evaluation with --run DIR.")
        if self.run and self.max_distance is not None:
            raise InputError("--max_distance finds the loops of an --index, and does not apply to --run. Leave it out.")
        for name in ("min_gap", "suppress"):
            if self.max_distance is None and getattr(self, name) is not None:
                raise InputError(f"--{name} applies to the loops of a sequence. Give --max_distance too.")
        for name in ("rerank_num", "trust_index", "allow_incomplete_index"):
            if self.run and getattr(self, name):
                raise InputError(f"--{name} does not apply to --run. Leave it out.")

    @property
    def loops(self) -> LoopConfig | None:
        """What counts as a loop; None if no loops are to be found."""
        if self.max_distance is None or self.min_gap is None or self.suppress is None:
            return None
        return LoopConfig(
            max_distance=self.max_distance, min_gap=self.min_gap, suppress=self.suppress, k=self.num_matched
        )


@dataclass(frozen=True, kw_only=True)
class MslsExport(Export):
    """Predictions of an evaluation as MSLS keys, for its evaluation code. Its server is gone; the ground truth of its
    test set is public since 2026-04-13, and an evaluation scores it at home.
    """

    run: Path = flag(RUN_HELP)
    num_matched: int = num_matched_flag()


@dataclass(frozen=True, kw_only=True)
class MilvusExport:
    """A copy of an index in Milvus, for databases that outgrow one machine. The folder stays the original."""

    index: Path = flag(
        "a complete index built by build_index.py, eval_hashing.py or eval_rerank.py --save_index",
        type=index_folder,
    )
    trust_index: bool = switch("skip checksum verification of --index; saves time with a large one")
    to: EngineAddress = flag(
        "milvus://HOST:PORT/NAME, or milvus+tls:// for an encrypted connection", type=engine_address, metavar="ADDRESS"
    )
    append: bool = switch("bring the copy in step with --index: add what is missing, remove what is gone")
    shards: int | None = flag("shards of a new copy (default: 1)", type=int, choices=range(1, 17), default=None)
    token: str | None = flag(
        "USER:PASSWORD; visible to other users of this machine, unlike the environment variable MILVUS_TOKEN",
        default=None,
    )
    tls_ca: Path | None = flag(
        "certificate that signed the server's, for milvus+tls (or set the environment variable MILVUS_TLS_CA)",
        default=None,
    )

    def __post_init__(self) -> None:
        _ = self.address  # raises InputError for a certificate without encryption

    @property
    def address(self) -> EngineAddress:
        """Where the copy goes, with what the connection needs."""
        return replace(self.to, token=self.token or self.to.token, tls_ca=self.tls_ca or self.to.tls_ca)


@dataclass(frozen=True, kw_only=True)
class OnnxExport(Export):
    """A model as an ONNX file for images of one size, checked with onnxruntime against PyTorch."""

    model: TrainedModel = part("model")
    extraction: ExtractionConfig = part(
        "images",
        fixed=UNUSED,
        changed={
            "resize": flag(
                "size of the images that the file takes in pixels (height width), multiples of 14 (default: that of "
                f"the model, otherwise {' '.join(map(str, ImageConfig.resize))})",
                type=positive_int,
                nargs=2,
                default=None,
                metavar=("H", "W"),
            ),
            "antialias": switch(
                "state in the file that images are resized without antialiasing (default: as the model states)",
                name="no_antialias",
                inverse=True,
                default=None,
            ),
            "precision": flag(
                "weights and computation in half precision; inputs and outputs stay float32",
                name="fp16",
                action="store_true",
                default=False,
                convert=lambda is_half: "fp16" if is_half else "fp32",
            ),
        },
    )
    normalize: bool = switch(
        "the file takes normalised images; by default it takes values in [0, 1] and normalises them",
        name="no_normalization",
        group="images",
        inverse=True,
    )


@dataclass(frozen=True, kw_only=True)
class SafetensorsExport(Export):
    """A model as a safetensors file, with the configurations of the model and its images in its metadata."""

    model: TrainedModel = part("model")
    half: bool = switch("store the weights in float16, in half the bytes; they load as float32", name="fp16")


AnyExport = HlocExport | NpyExport | PairsExport | MslsExport | MilvusExport | OnnxExport | SafetensorsExport
COMMANDS: dict[str, type[AnyExport]] = {
    "hloc": HlocExport,
    "pairs": PairsExport,
    "npy": NpyExport,
    "msls": MslsExport,
    "milvus": MilvusExport,
    "onnx": OnnxExport,
    "safetensors": SafetensorsExport,
}


def parse_export(description: str | None) -> AnyExport:
    """The settings of the sub-command that the command line states. Exits with status 2 if they are not valid."""
    accept_any_text()
    show_warnings()
    parser = ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {}
    for name, settings in COMMANDS.items():
        text = " ".join((settings.__doc__ or "").split("\n\n")[0].split())
        parsers[name] = commands.add_parser(name, help=text, description=text)
        add_flags(parsers[name], settings)
    args = parser.parse_args()
    return settings_from(parsers[args.command], COMMANDS[args.command], args)
