"""Settings of extraction, index and search."""

import argparse
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.config import CROP_METHODS, TEST_METHODS
from datasets.layouts import NO_DATASETS_FOLDER, datasets_folder_flag
from model.config import (
    CODE_BITS,
    CODE_METHODS,
    DESCRIPTOR_DTYPES,
    PRECISIONS,
    ImageConfig,
    check_code_bits,
)
from model.errors import InputError
from utils.engines import ENGINES, ONNX_PROVIDERS
from utils.runtime.devices import PRECISION_HELP, device_flag
from utils.runtime.flags import (
    fixed,
    flag,
    fraction,
    non_negative_float,
    non_negative_int,
    part,
    positive_int,
    seed_flag,
    switch,
    user_path,
)

DEFAULT_REPORT_QUERIES = 100
DEFAULT_RERANK_NUM = 100
ACCEPT_PRECISIONS = ("95", "99", "100")  # the keys of model.calibration.PRECISIONS, which imports NumPy
DEFAULT_MAJORITY_WEIGHT = 0.01
ENGINE_ADDRESS = re.compile(
    r"(?P<engine>milvus)(?P<tls>\+tls)?://(?P<host>[\w.-]+|\[[\da-fA-F:.]+\]):(?P<port>\d{1,5})"
    r"/(?P<name>[A-Za-z_][A-Za-z0-9_]{0,199})"
)


def exif_orientation_flag() -> Any:
    """The field exif_orientation."""
    text = "turn images upright as their EXIF data says; the reference ignores it"
    return switch(text, name="exif_orientation")


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """How images become features.

    resize: (H, W) in pixels, which the model must take; antialias: of the resizing; None: not stated, see `over`;
    exif_orientation: turn images as their EXIF data says; batch_size: in images; num_workers: processes that read
    images; device: such as "cuda:0"; precision: a key of PRECISIONS; compile: the model; engine: one of ENGINES, and
    onnx_provider a key of ONNX_PROVIDERS or None, see utils.engines. Float descriptors that take
    more than `memory_share` of the machine's memory go to a temporary file in `temporary_folder` (None: the system's).
    test_method: one of TEST_METHODS; the database is always extracted with "hard_resize". Raises InputError for other
    values.
    """

    resize: tuple[int, int] | None = flag(
        "size of images in pixels (height width) for extraction and evaluation, multiples of 14 but for hub models "
        f"(default: that of the index, or of the model, otherwise {' '.join(map(str, ImageConfig.resize))})",
        type=positive_int,
        nargs=2,
        default=None,
        metavar=("H", "W"),
    )
    antialias: bool | None = switch(
        "resize without antialiasing, as torchvision before 0.17 did (default: as the index or the model states)",
        name="no_antialias",
        inverse=True,
        default=None,
    )
    exif_orientation: bool = exif_orientation_flag()
    batch_size: int = flag(
        "images per batch in extraction",
        name="infer_batch_size",
        group="speed",
        type=positive_int,
        default=16,
        may_change=True,
    )
    num_workers: int = flag(
        "processes that read images; 0: the main one does (default: one per core, at most 8)",
        group="speed",
        type=non_negative_int,
        default=0,
        default_from=lambda _: min(8, os.cpu_count() or 1),
        may_change=True,
    )
    device: str = device_flag()
    precision: str = flag(PRECISION_HELP, group="speed", choices=tuple(PRECISIONS), default="fp32")
    compile: bool = switch("torch.compile the model: slow at the start, faster afterwards", group="speed")
    engine: str = flag(
        "what runs the model. auto, the default: OpenVINO on x86 CPUs where it is installed and there is enough to do, "
        "otherwise PyTorch; an ONNX file by OpenVINO where it is installed, otherwise by onnxruntime",
        group="speed",
        choices=ENGINES,
        default="torch",
        default_from=lambda _: "auto",
    )
    onnx_provider: str | None = flag(
        "run an ONNX file by onnxruntime with this provider (default: cpu, if onnxruntime runs it)",
        group="speed",
        choices=tuple(ONNX_PROVIDERS),
        default=None,
    )
    memory_share: float = flag(
        "share of RAM that the float descriptors of a set of images may take; larger ones go to a temporary file",
        group="speed",
        type=fraction,
        default=0.5,
        metavar="SHARE",
        may_change=True,
    )
    temporary_folder: Path | None = fixed(None)
    test_method: str = fixed("hard_resize")

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"Unknown precision {self.precision!r}. Choose from: {', '.join(PRECISIONS)}.")
        if self.test_method not in TEST_METHODS:
            raise InputError(f"Unknown test method {self.test_method!r}. Choose from: {', '.join(TEST_METHODS)}.")
        if self.compile and self.engine not in ("auto", "torch"):
            raise InputError(f"--compile applies to PyTorch, not to --engine {self.engine}. Leave it out.")
        if self.onnx_provider and self.engine not in ("auto", "onnxruntime"):
            raise InputError(f"--onnx_provider applies to onnxruntime, not to --engine {self.engine}. Leave it out.")

    @property
    def image_config(self) -> ImageConfig:
        """What images are resized to: `resize` and `antialias`, or ImageConfig's defaults where these are None."""
        return self.over(ImageConfig())

    def over(self, images: ImageConfig) -> ImageConfig:
        """`resize` and `antialias`, or those of a model or an index where these are None."""
        antialias = images.antialias if self.antialias is None else self.antialias
        return ImageConfig(resize=self.resize or images.resize, antialias=antialias)


def image_flags(images: ImageConfig) -> dict[str, Any]:
    """{flag: value} of what images are resized to, as JSON and checkpoints hold them."""
    return {"resize": list(images.resize), "no_antialias": not images.antialias}


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """An index to write: its folder; whether it may exist already and be extended; a key of DESCRIPTOR_DTYPES; the
    file of the model's weights, which the index names, or None for the published ones; the folder that paths are stored
    relative to, or None for absolute paths; where positions come from, as IndexMetadata has it; whether files count as
    changed by their content, rather than by size and time.
    """

    folder: Path = flag("the folder to write; see docs/index_format.md", name="index")
    append: bool = switch("add missing images to --index, or continue if building it was interrupted")
    descriptor_dtype: str = flag("number format of the descriptors", choices=tuple(DESCRIPTOR_DTYPES), default="fp32")
    weights: Path | None = fixed(None)
    root: Path | None = fixed(None)
    positions: str | None = fixed(None)
    check_content: bool = fixed(False)

    def __post_init__(self) -> None:
        if self.descriptor_dtype not in DESCRIPTOR_DTYPES:
            choices = ", ".join(DESCRIPTOR_DTYPES)
            raise InputError(f"Unknown descriptor type {self.descriptor_dtype!r}. Choose from: {choices}.")


@dataclass(frozen=True, kw_only=True)
class EngineAddress:
    """Where a search engine holds an index: milvus://HOST:PORT/NAME, or milvus+tls:// for an encrypted connection.

    token: "" without authentication. tls_ca: the file with the certificate that signed the server's; None for those
    that the client trusts by itself. Neither is part of the text.
    """

    engine: str
    host: str
    port: int
    name: str
    tls: bool = False
    token: str = field(default="", repr=False)
    tls_ca: Path | None = None

    @staticmethod
    def parse(text: str, *, token: str = "", tls_ca: Path | None = None) -> "EngineAddress":
        """Raises InputError if this is not such an address."""
        match = ENGINE_ADDRESS.fullmatch(text)
        if not match or not 1 <= int(match["port"]) <= 65535:
            raise InputError(
                f"{text!r} is not the address of an index. Expected milvus://HOST:PORT/NAME, or milvus+tls://..., with "
                "a NAME of letters, digits and underscores that does not begin with a digit."
            )
        return EngineAddress(
            engine=match["engine"],
            host=match["host"],
            port=int(match["port"]),
            name=match["name"],
            tls=bool(match["tls"]),
            token=token,
            tls_ca=tls_ca,
        )

    def __post_init__(self) -> None:
        if self.tls_ca and not self.tls:
            raise InputError(f"The certificate {self.tls_ca} is given, but {self} is not encrypted. Use milvus+tls://.")
        if self.tls_ca and not self.tls_ca.is_file():
            raise InputError(f"No file {self.tls_ca} with a certificate. Check --tls_ca, or MILVUS_TLS_CA.")

    def __str__(self) -> str:
        return f"{self.engine}{'+tls' if self.tls else ''}://{self.host}:{self.port}/{self.name}"


def index_location(text: str) -> Path | EngineAddress:
    """An argparse type: a folder, or the address of an index in a search engine."""
    return engine_address(text) if "://" in text else user_path(text)


def index_folder(text: str) -> Path:
    """An argparse type: a folder, where the address of a search engine does not apply."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is not a folder. The evaluations and search.py search such an index; export.py milvus writes one."
        )
    return user_path(text)


def engine_address(text: str) -> EngineAddress:
    """An argparse type. What else the connection needs comes from the environment."""
    tls_ca = os.environ.get("MILVUS_TLS_CA")
    try:
        return EngineAddress.parse(
            text, token=os.environ.get("MILVUS_TOKEN", ""), tls_ca=user_path(tls_ca) if tls_ca else None
        )
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class IndexFlags:
    """The index of an evaluation: one to write, one to search instead of the database's images, or none.

    Raises InputError for values that do not go together.
    """

    save_index: Path | None = flag("save the database's features to a new folder", type=index_folder, default=None)
    load_index: Path | EngineAddress | None = flag(
        "search this index, or milvus://HOST:PORT/NAME; database images are not read", type=index_location, default=None
    )
    append: bool = switch("add missing images to the existing index of --save_index")
    trust_index: bool = switch("skip checksum verification of --load_index; saves time with a large one")
    allow_incomplete_index: bool = switch("search --load_index even if building it was interrupted")
    descriptor_dtype: str | None = flag(
        "number format of the descriptors in --save_index (default: fp32)",
        choices=tuple(DESCRIPTOR_DTYPES),
        default=None,
    )

    def __post_init__(self) -> None:
        if self.save_index and self.load_index:
            raise InputError("--save_index writes an index and --load_index searches one. Give one of them.")
        for name in ("append", "descriptor_dtype"):
            if getattr(self, name) and not self.save_index:
                raise InputError(f"--{name} applies to the index of --save_index DIR; give that too.")
        for name in ("trust_index", "allow_incomplete_index"):
            if getattr(self, name) and not self.load_index:
                raise InputError(f"--{name} applies to the index of --load_index DIR; give that too.")
            check_folder_flag(name, getattr(self, name), self.load_index)

    @property
    def location(self) -> Path | EngineAddress | None:
        """The index that is written or searched, if there is one."""
        return self.save_index or self.load_index

    @property
    def folder(self) -> Path | None:
        """Its folder, if it is in one."""
        return self.location if isinstance(self.location, Path) else None

    def to_write(self, weights: Path | None) -> IndexConfig | None:
        """The index to write, if there is one, by the model of these weights (None: the published ones)."""
        if self.save_index is None:
            return None
        dtype = self.descriptor_dtype or "fp32"
        return IndexConfig(folder=self.save_index, append=self.append, descriptor_dtype=dtype, weights=weights)


def check_folder_flag(name: str, value: object, location: Path | EngineAddress | None) -> None:
    """Raises InputError if a flag that applies to an index in a folder is given for one in a search engine."""
    if value and isinstance(location, EngineAddress):
        raise InputError(f"--{name} applies to an index in a folder, not to {location}. Leave it out.")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How queries are cut to size: one of TEST_METHODS; the weight of a vote of "maj_voting", else None.

    Raises InputError for values that do not go together.
    """

    test_method: str = flag(
        "how queries are resized or cropped: see docs/datasets.md", choices=TEST_METHODS, default="hard_resize"
    )
    majority_weight: float | None = flag(
        f"weight of a vote, with --test_method maj_voting (default: {DEFAULT_MAJORITY_WEIGHT})",
        type=non_negative_float,
        default=None,
        default_from=lambda flags: DEFAULT_MAJORITY_WEIGHT if flags["test_method"] == "maj_voting" else None,
        metavar="WEIGHT",
    )

    def __post_init__(self) -> None:
        if self.majority_weight is not None and self.test_method != "maj_voting":
            raise InputError("--majority_weight applies to --test_method maj_voting; give that too.")
        if self.majority_weight is None and self.test_method == "maj_voting":
            raise InputError(
                f"The test method maj_voting needs a majority_weight. Give one, such as {DEFAULT_MAJORITY_WEIGHT}."
            )

    @property
    def are_merged(self) -> bool:
        """Whether each crop of a query is searched, and the results are merged."""
        return self.test_method in ("nearest_crop", "maj_voting")

    def model_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) of what the model takes: the database's images, which are resized to `size`, and crops of queries."""
        return [size, (min(size), min(size))] if self.test_method in CROP_METHODS else [size]


@dataclass(frozen=True, kw_only=True)
class PCAConfig:
    """PCA of float descriptors to `dim` dimensions (None: no PCA), fitted to at most `max_images` images in
    `subfolder` of `datasets_folder`, which are drawn at random with `seed`.

    Raises InputError for values that do not go together.
    """

    dim: int | None = flag("reduce descriptors to N dimensions by PCA", name="pca_dim", type=positive_int, default=None)
    subfolder: Path | None = flag(
        "fit PCA to images below this folder in --datasets_folder, such as pitts30k/images/train",
        name="pca_dataset_folder",
        default=None,
        metavar="FOLDER",
    )
    datasets_folder: Path | None = datasets_folder_flag()
    seed: int = seed_flag()
    max_images: int = fixed(16_384)

    def __post_init__(self) -> None:
        if (self.dim is None) != (self.subfolder is None):
            raise InputError("PCA needs both --pca_dim and --pca_dataset_folder.")
        if self.dim and self.datasets_folder is None:
            raise InputError(f"{NO_DATASETS_FOLDER} --pca_dataset_folder lies in it.")

    @property
    def folder(self) -> Path:
        """The folder of the images."""
        assert self.datasets_folder is not None and self.subfolder is not None, "only with PCA"
        return self.datasets_folder / self.subfolder


def code_source(text: str) -> str | Path:
    """An argparse type: a method that makes codes, or a file."""
    return text if text in CODE_METHODS else user_path(text)


@dataclass(frozen=True, kw_only=True)
class CodesConfig:
    """Codes that are made of float descriptors: by one of CODE_METHODS, which is fitted to at most `max_images` images
    of the database, drawn at random with `seed`; or by the file of train_codes.py. source: None for no codes. bits:
    None for those of the file, or CODE_BITS.

    Raises InputError for values that do not go together, and a file that does not exist.
    """

    source: str | Path | None = flag(
        "search by binary codes of the float descriptors, and re-rank what they find by these: itq, random, or a file "
        "of train_codes.py; see docs/codes.md",
        name="codes",
        type=code_source,
        default=None,
        metavar="itq|random|FILE",
    )
    bits: int | None = flag(
        f"bits of --codes, a multiple of 8; of itq, at most the dimension (default: {CODE_BITS})",
        name="code_bits",
        type=positive_int,
        default=None,
    )
    seed: int = seed_flag()
    max_images: int = fixed(4096)

    def __post_init__(self) -> None:
        if self.bits is not None:
            if not isinstance(self.source, str):
                reason = "the file states them" if self.source else "give --codes, too"
                raise InputError(f"--code_bits applies to --codes itq and random: {reason}.")
            check_code_bits(self.bits)
        if isinstance(self.source, Path) and not self.source.is_file():
            methods = ", ".join(CODE_METHODS)
            raise InputError(f"--codes: no file {self.source}. Choose from: {methods}; or the file of train_codes.py.")


@dataclass(frozen=True, kw_only=True)
class IVFConfig:
    """An approximate search: codes are sorted into `nlist` lists; a query searches the `nprobe` nearest."""

    nlist: int
    nprobe: int

    def __post_init__(self) -> None:
        if not 1 <= self.nprobe <= self.nlist:
            raise InputError(f"--ivf {self.nlist} {self.nprobe}: NPROBE must not exceed NLIST ({self.nlist}).")

    def check_size(self, codes: int) -> None:
        """Raises InputError if there are fewer codes than lists."""
        if self.nlist > codes:
            raise InputError(f"--ivf: {self.nlist} lists need at least as many codes, but the database has {codes}.")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How a database is searched: first-stage results to re-rank (0: there is no second stage); approximately, if ivf
    is given; by how many frames in a row.
    """

    rerank_num: int = flag(
        "first-stage results to re-rank", type=positive_int, default=DEFAULT_RERANK_NUM, may_change=True
    )
    ivf: IVFConfig | None = flag(
        "approximate search: sort codes into NLIST lists, search NPROBE; pays off from about 10 million images",
        type=positive_int,
        nargs=2,
        default=None,
        convert=lambda pair: IVFConfig(nlist=pair[0], nprobe=pair[1]),
        metavar=("NLIST", "NPROBE"),
    )
    sequence: int = flag(
        "match each query together with the N - 1 frames before it; the last numbers in the names of images order them",
        type=positive_int,
        default=1,
    )


@dataclass(frozen=True, kw_only=True)
class AcceptConfig:
    """Which first matches to accept: up to max_distance, or up to what an evaluation, whose calibration.json or
    results.json `file` is, found for a precision, a key of ACCEPT_PRECISIONS; None: neither is given.

    Raises InputError for values that do not go together.
    """

    file: Path | None = flag(
        "accept first matches up to the distance in this calibration.json, or results.json, of an evaluation; other "
        "images show an unknown place (default: calibration.json in the folder of --index, if there is one)",
        name="accept",
        default=None,
    )
    precision: str | None = flag(
        "percentage of right ones among accepted matches, in that evaluation (default: 99)",
        name="accept_precision",
        choices=ACCEPT_PRECISIONS,
        default=None,
    )
    max_distance: float | None = flag(
        "accept first matches up to this distance instead", type=non_negative_float, default=None
    )

    def __post_init__(self) -> None:
        if self.max_distance is not None and (self.file or self.precision):
            raise InputError("--max_distance is the threshold. Give either that or --accept and --accept_precision.")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What an evaluation writes.

    recall_values: the N of Recall@N, ascending. num_pictures: pictures of the first N predictions of each query, or
    (only_wrong) of those queries whose first one is wrong. page_queries: queries with pictures in report.html; None:
    no page. exif_orientation as for load_image. Raises InputError for values that do not go together.
    """

    recall_values: tuple[int, ...] = flag(
        "report Recall@N for these N",
        type=positive_int,
        nargs="+",
        default=(1, 5, 10, 100),
        convert=lambda values: sorted(set(values)),
        may_change=True,
    )
    num_pictures: int = flag(
        "save a picture of each query with its first N predictions, and a list of their paths, in preds",
        name="num_preds_to_save",
        type=non_negative_int,
        default=0,
    )
    only_wrong: bool = switch(
        "with --num_preds_to_save: only queries whose first prediction is wrong", name="save_only_wrong_preds"
    )
    no_page: bool = switch("do not write report.html", name="no_report", may_change=True)
    page_queries: int | None = flag(
        f"queries with pictures in report.html, failures first (default: {DEFAULT_REPORT_QUERIES})",
        name="report_queries",
        type=non_negative_int,
        default=None,
        default_from=lambda flags: None if flags["no_report"] else DEFAULT_REPORT_QUERIES,
        may_change=True,
    )
    exif_orientation: bool = exif_orientation_flag()

    def __post_init__(self) -> None:
        if self.only_wrong and not self.num_pictures:
            raise InputError("--save_only_wrong_preds applies to the pictures of --num_preds_to_save N; give that too.")
        depth = max(self.recall_values)
        if self.num_pictures > depth:
            raise InputError(
                f"--num_preds_to_save {self.num_pictures}: each query has {depth} predictions, the largest of "
                "--recall_values. Save fewer, or add a larger value there."
            )
        if self.no_page and self.page_queries is not None:
            raise InputError("--report_queries applies to report.html, which --no_report leaves out.")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What an evaluation does with each dataset. Raises InputError for values that do not go together."""

    extraction: ExtractionConfig = part("images", fixed={"temporary_folder": Path("logs")})
    crops: CropConfig = part("images", default=CropConfig())
    pca: PCAConfig = part("descriptors", default=PCAConfig())
    codes: CodesConfig = part("descriptors", default=CodesConfig())
    index: IndexFlags = part("index", default=IndexFlags())
    search: SearchConfig = part("search")
    report: ReportConfig = part("report")

    def __post_init__(self) -> None:
        if self.pca.dim and self.index.load_index:
            raise InputError(
                "--pca_dim does not apply to --load_index: the index states how its descriptors were reduced."
            )
        if self.codes.source and self.index.load_index:
            raise InputError("--codes does not apply to --load_index: the index states which codes it has.")
        check_folder_flag("ivf", self.search.ivf, self.index.load_index)
        check_folder_flag("sequence", self.search.sequence > 1, self.index.load_index)
