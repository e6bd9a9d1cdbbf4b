"""Settings of extraction, index and search."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from datasets.views import TEST_METHODS
from model.errors import InputError
from model.vision_transformer import patch_grid

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOAT_DTYPES = {"fp32": "<f4", "fp16": "<f2"}
DESCRIPTOR_DTYPES = {**FLOAT_DTYPES, "int8": "|i1"}
ENGINE_ADDRESS = re.compile(
    r"(?P<engine>milvus)(?P<tls>\+tls)?://(?P<host>[\w.-]+|\[[\da-fA-F:.]+\]):(?P<port>\d{1,5})"
    r"/(?P<name>[A-Za-z_][A-Za-z0-9_]{0,199})"
)


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """How images become features.

    resize: (H, W) in pixels, multiples of 14; antialias: of the resizing; batch_size: in images; num_workers:
    processes that read images; device: such as "cuda:0"; precision: a key of PRECISIONS. Float descriptors that take
    more than `memory_share` of the machine's memory go to a temporary file in `temporary_folder` (None: the
    system's). test_method: one of TEST_METHODS; the database is always extracted with "hard_resize". exif_orientation:
    turn images as their EXIF data says. Raises InputError for other values.
    """

    resize: tuple[int, int] = (322, 322)
    antialias: bool = True
    batch_size: int = 16
    num_workers: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    memory_share: float = 0.5
    temporary_folder: Path | None = None
    test_method: str = "hard_resize"
    exif_orientation: bool = False

    def __post_init__(self) -> None:
        try:
            patch_grid(*self.resize)
        except InputError as error:
            raise InputError(f"--resize: {error}") from None
        if self.precision not in PRECISIONS:
            raise InputError(f"Unknown precision {self.precision!r}. Choose from: {', '.join(PRECISIONS)}.")
        if self.test_method not in TEST_METHODS:
            raise InputError(f"Unknown test method {self.test_method!r}. Choose from: {', '.join(TEST_METHODS)}.")

    def for_queries(self, test_method: str) -> "ExtractionConfig":
        """The same settings for queries. Those of "single_query" differ in size, so that each is a batch of its own."""
        batch_size = 1 if test_method == "single_query" else self.batch_size
        return dataclasses.replace(self, test_method=test_method, batch_size=batch_size)


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """An index to write: its folder; whether it may exist already and be extended; a key of DESCRIPTOR_DTYPES; the
    file of the model's weights, which the index names, or None for the published ones.
    """

    folder: Path
    append: bool = False
    descriptor_dtype: str = "fp32"
    weights: Path | None = None

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


@dataclass(frozen=True, kw_only=True)
class PCAConfig:
    """PCA of float descriptors to `dim` dimensions, fitted to at most `max_images` images below `folder`, which are
    drawn at random with `seed`.
    """

    folder: Path
    dim: int
    seed: int = 0
    max_images: int = 16_384


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
class ReportConfig:
    """What an evaluation writes beside its figures: pictures of the first `num_pictures` predictions of each query, or
    of those queries only whose first one is wrong; a page with the pictures of at most `page_queries` queries, or none
    (None). exif_orientation as for load_image.
    """

    num_pictures: int = 0
    only_wrong: bool = False
    page_queries: int | None = None
    exif_orientation: bool = False
