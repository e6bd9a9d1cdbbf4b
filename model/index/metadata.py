"""metadata.json: how an index was made."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ..config import (
    CODE_METHODS,
    DESCRIPTOR_DTYPES,
    PRECISIONS,
    HubConfig,
    ImageConfig,
    ModelConfig,
    check_code_bits,
    check_image_size,
)
from ..errors import InputError
from ..files import read_regular
from ..zoo import PublishedModel, find_published
from . import METADATA
from .coding import Coding
from .pca import PCA
from .projections import CODING_FILE, NO_PROJECTIONS, PCA_FILE, Projections

if TYPE_CHECKING:
    from ..inference import Describer
    from ..network import GeoLocalizationNet

FORMAT = 6
CODINGS = (*CODE_METHODS, "trained")  # how codes of descriptors were found
MAX_METADATA_BYTES = 1 << 20
MAX_DESCRIPTOR_DIM = 1 << 16
MAX_ZONE = 60  # of UTM
MAX_METRES = 1e8  # of an easting or northing; those of national grids that begin with the zone have eight digits
PUBLISHED, UNKNOWN_WEIGHTS = "published", ""  # in place of the file of a model's weights
REPAIR = "Rebuild the index, or copy it again."
METADATA_ERRORS = (ValueError, TypeError, KeyError, OverflowError)
ORIGINS = {"repository", "weights_file", "positions"}  # where something came from, which may have moved
NOT_COMPARED = {*ORIGINS, "precision", "descriptor_dtype", "exif_orientation"}
CODING = {"code_bits", "coding_method", "coding_sha256"}  # the fields of codes that are made of descriptors
RECORD = np.dtype(  # of an image, in images.bin
    [
        ("id", "<i8"),  # a number that no other image of the index ever has
        ("time", "<f8"),  # seconds; NaN where unknown, as positions are
        ("easting", "<f8"),  # metres, as the dataset gives them
        ("northing", "<f8"),
        ("latitude", "<f8"),  # degrees, WGS 84
        ("longitude", "<f8"),
        ("size", "<i8"),  # of the file when it was described, in bytes; -1 for what is no file
        ("mtime_ns", "<i8"),  # when it was changed, in nanoseconds since 1970; 0: right before, so its digest counts
        ("digest", "<u8"),  # of the file's content; 0 where unknown
        ("zone", "|i1"),  # the UTM zone of easting and northing, negative south of the equator; 0 where unknown
    ]
)


def damaged(path: Path, problem: str) -> InputError:
    """The error for a file whose content cannot be right."""
    return InputError(f"{path} is damaged: {problem}. {REPAIR}")


class UnknownFormat(ValueError):
    """Metadata of another format, `number`. The message names both."""

    def __init__(self, number: int) -> None:
        super().__init__(f"format {number}; this version reads format {FORMAT}")
        self.number = number


@dataclass(frozen=True, kw_only=True)
class IndexMetadata:
    """How an index was made.

    The model; its weights' checksum, and their file, "published", or "" where they have none or the model is a hub
    model; resize (H, W), antialias, precision and exif_orientation of the extraction; positions: where these come from,
    one of POSITION_SOURCES or a CSV file, or None where nobody said; dimension (0: none) and type of the descriptors.
    Of descriptors that PCA reduced: the model's dimension and the checksum of pca.bin; None if PCA was not used. Bits
    of the codes (0: none) and, of codes that are made of descriptors, the method of their Coding and the checksum of
    coding.bin; None for those of a model's binary branch.
    """

    model: ModelConfig | HubConfig
    weights_sha256: str
    weights_file: str
    resize: list
    antialias: bool
    precision: str
    exif_orientation: bool
    positions: str | None
    descriptor_dim: int
    descriptor_dtype: str
    pca_input_dim: int | None
    pca_sha256: str | None
    code_bits: int
    coding_method: str | None
    coding_sha256: str | None

    @staticmethod
    def of(
        model: "Describer | GeoLocalizationNet",
        images: ImageConfig,
        projections: Projections = NO_PROJECTIONS,
        **settings: Any,
    ) -> "IndexMetadata":
        """The metadata of an index with this model, images of this size, descriptors to which these projections were
        applied, and these other fields.
        """
        pca, coding = projections
        checksums = {name: hashlib.sha256(data).hexdigest() for name, data in projections.files.items()}
        return IndexMetadata(
            model=model.config,
            weights_sha256=model.fingerprint,
            resize=list(images.resize),
            antialias=images.antialias,
            descriptor_dim=projections.descriptor_dim(model.descriptor_dim),
            pca_input_dim=model.descriptor_dim if pca else None,
            pca_sha256=checksums.get(PCA_FILE),
            code_bits=projections.code_bits(model.config.code_bits),
            coding_method=coding.method if coding else None,
            coding_sha256=checksums.get(CODING_FILE),
            **settings,
        )

    @staticmethod
    def read(folder: Path) -> "IndexMetadata":
        """Raises InputError if metadata.json is missing, damaged or of another format."""
        try:
            return read_metadata(folder, IndexMetadata.parse)
        except UnknownFormat as error:
            remedy = "Rebuild the index with build_index.py."
            if error.number == FORMAT - 1:
                remedy = f"Convert it: build_index.py --merge {folder} --index NEW"
            raise InputError(f"The index {folder} has {error}. {remedy}") from None

    @staticmethod
    def parse(text: bytes) -> "IndexMetadata":
        """The content of metadata.json. Raises UnknownFormat, or one of METADATA_ERRORS if it is damaged."""
        content = parse_object(text)
        require_format(content, FORMAT)
        content["model"] = _parse_model(content["model"])
        types = {field.name: field.type for field in fields(IndexMetadata)}
        if any(type(value) not in (get_args(types[name]) or (types[name],)) for name, value in content.items()):
            raise TypeError("a value of the wrong type")
        metadata = IndexMetadata(**content)
        metadata._check_values()
        return metadata

    def to_json(self, indent: int | None = None) -> str:
        """What `parse` reads."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=indent)

    def _check_values(self) -> None:
        """Raises ValueError, TypeError, KeyError or OverflowError for values that no index has."""
        if any(type(side) is not int for side in self.resize):
            raise TypeError("a size that is not a number")
        if self.precision not in PRECISIONS:
            raise ValueError(f"the precision {self.precision}")
        check_image_size(self.model, self.image_config.resize)
        np.dtype(DESCRIPTOR_DTYPES[self.descriptor_dtype])
        if self.model.has_float_branch != (0 < self.descriptor_dim <= MAX_DESCRIPTOR_DIM):
            raise ValueError(f"descriptors of dimension {self.descriptor_dim}")
        if (self.pca_input_dim is None) != (self.pca_sha256 is None):
            raise ValueError("one of the fields of PCA without the other")
        if self.pca_input_dim is not None and not 0 < self.descriptor_dim <= self.pca_input_dim <= MAX_DESCRIPTOR_DIM:
            raise ValueError(f"descriptors reduced from {self.pca_input_dim} to {self.descriptor_dim} dimensions")
        if (self.coding_method is None) != (self.coding_sha256 is None):
            raise ValueError("one of the fields of a coding without the other")
        if self.has_coding:
            check_code_bits(self.code_bits)
            if self.model.code_bits or not self.descriptor_dim or self.coding_method not in CODINGS:
                raise ValueError("codes of descriptors, where there are none, or others")
        elif self.code_bits != self.model.code_bits:
            raise ValueError(f"codes of {self.code_bits} bits")

    @property
    def has_pca(self) -> bool:
        """Whether descriptors were reduced by PCA."""
        return self.pca_sha256 is not None

    @property
    def has_coding(self) -> bool:
        """Whether codes were made of the descriptors, rather than by the model."""
        return self.coding_sha256 is not None

    @property
    def is_two_stage(self) -> bool:
        """Whether there are codes to search, and descriptors to re-rank what they find."""
        return self.code_bits > 0 and self.descriptor_dim > 0

    @property
    def is_quantized(self) -> bool:
        """Whether descriptors are stored as quantization.quantize gives them."""
        return self.descriptor_dtype == "int8" and self.descriptor_dim > 0

    @property
    def image_config(self) -> ImageConfig:
        """What its images were resized to."""
        height, width = self.resize
        return ImageConfig(resize=(height, width), antialias=self.antialias)

    @property
    def columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """{name: (dtype, shape of a row)} of the files <name>.bin, which hold a row per image."""
        columns: dict[str, tuple[np.dtype, tuple[int, ...]]] = {"images": (RECORD, ())}
        if self.code_bits:
            columns["codes"] = (np.dtype("|u1"), (self.code_bits // 8,))
        if self.descriptor_dim:
            columns["descriptors"] = (np.dtype(DESCRIPTOR_DTYPES[self.descriptor_dtype]), (self.descriptor_dim,))
            if self.is_quantized:
                columns["scales"] = (np.dtype("<f4"), (1,))
        return columns

    @property
    def row_bytes(self) -> dict[str, int]:
        """{name: bytes per image} of these files."""
        return {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in self.columns.items()}

    def _compared(self) -> dict[str, Any]:
        """The fields, those of the model too."""
        content = asdict(self)
        return content.pop("model") | content

    def require_compatible(self, other: "IndexMetadata", index: object) -> None:
        """Raises InputError, which names the index, if it was built with another model or resize."""
        self.require_same(other, NOT_COMPARED, f"The index {index} was built with another model or resize")

    def require_same(self, other: "IndexMetadata", ignore: set[str], message: str) -> None:
        """Raises InputError, which begins with the message and lists the differences, if another index differs."""
        saved, now = self._compared(), other._compared()
        if type(self.model) is not type(other.model):  # which have other fields
            saved, now = {"model": self.model.flags}, {"model": other.model.flags}
        names = [name for name in saved if saved[name] != now[name] and name not in ignore]
        remedy = "Check the weights (--model) and these flags."
        if names and CODING.issuperset(names):
            remedy = "Each has codes of its own: build both with one file of train_codes.py."
        if names:
            changed = [f"{name} {saved[name]} (now {now[name]})" for name in names]
            raise InputError(f"{message}: {', '.join(changed)}. {remedy}")


def weights_of(
    metadata: IndexMetadata, index: object, stated: PublishedModel | Path | None = None
) -> PublishedModel | Path:
    """The weights of an index's model: those that the user states, or those with which it was built.

    Raises InputError, which names the index, if they are not there.
    """
    if isinstance(metadata.model, HubConfig):
        raise InputError(
            f"The index {index} was built with the model of another project, {metadata.model.flags}. Search it with "
            "search.py --trust_repo, which runs that project's code, and extend it with build_index.py --append "
            "--trust_repo."
        )
    if stated is None and metadata.weights_file == UNKNOWN_WEIGHTS:
        raise InputError(f"The index {index} does not name the weights of its model. Give them with --model.")
    if stated is None and metadata.weights_file == PUBLISHED:
        return find_published(metadata.model)
    source = stated or Path(metadata.weights_file)
    if isinstance(source, Path) and not source.exists():
        raise InputError(f"The model of the index {index} is not at {source}. Give its path with --model.")
    return source


def read_metadata(folder: Path, parse: Callable[[bytes], Any]) -> Any:
    """The content of metadata.json. Raises InputError if it is missing or damaged; UnknownFormat as `parse` does."""
    path = folder / METADATA
    if "\0" in str(folder):
        raise InputError(f"{str(folder)!r} is not the name of a folder.")
    try:
        text = read_regular(path, MAX_METADATA_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        if (folder / "header.json").exists():  # of version 0.1.0
            raise InputError(
                f"The index {folder} has format 1; this version reads format {FORMAT}. Rebuild the index with "
                "build_index.py."
            ) from None
        raise InputError(f"No index in {folder}: {path} is missing. build_index.py creates one.") from None
    try:
        return parse(text)
    except UnknownFormat:
        raise
    except METADATA_ERRORS as error:
        raise damaged(path, repr(error)) from error


def require_format(content: dict[str, Any], expected: int) -> None:
    """Removes the field `format`. Raises UnknownFormat, or TypeError or KeyError, if it is not the expected number."""
    number = content.pop("format")
    if type(number) is not int:
        raise TypeError("a format that is not a number")
    if number != expected:
        raise UnknownFormat(number)


def _parse_model(content: Any) -> ModelConfig | HubConfig:
    """Raises TypeError or InputError if these are not the fields of one of the two."""
    if not isinstance(content, dict):
        raise TypeError("a model that is not an object")
    kind = HubConfig if "repository" in content else ModelConfig
    if content.keys() != {field.name for field in fields(kind)}:
        raise TypeError("a model with other fields")
    if kind is ModelConfig and any(type(content[name]) is not bool for name in ("hashing", "rerank")):
        raise TypeError("a branch that is neither true nor false")
    return kind(**content)


def parse_object(text: bytes) -> dict[str, Any]:
    """Raises ValueError if this is not one JSON object in which each field appears once."""
    try:
        content = json.loads(text, object_pairs_hook=_unique_fields)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a field appears twice")
    return content


def read_projections(folder: Path, metadata: IndexMetadata) -> Projections:
    """What is applied to the descriptors. Raises InputError if a file of it is missing or damaged."""
    pca, coding, dim = None, None, metadata.descriptor_dim
    if metadata.pca_input_dim is not None:
        data = _read_floats(folder / PCA_FILE, (1 + dim) * metadata.pca_input_dim, metadata.pca_sha256)
        pca = PCA.from_bytes(data, metadata.pca_input_dim)
    if metadata.coding_method is not None:
        data = _read_floats(folder / CODING_FILE, (1 + metadata.code_bits) * dim, metadata.coding_sha256)
        coding = Coding.from_rows(metadata.coding_method, np.frombuffer(data, "<f4").reshape(-1, dim))
    return Projections(pca, coding)


def _read_floats(path: Path, count: int, sha256: str | None) -> bytes:
    """A file of so many float32 values, all finite. Raises InputError if it is missing or damaged."""
    actual = path.stat().st_size if path.is_file() else 0
    if actual != 4 * count:
        state = "damaged" if path.is_file() else "missing"
        raise InputError(f"{path} is {state}: {actual} of {4 * count} bytes. {REPAIR}")
    data = read_regular(path, 4 * count)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise damaged(path, f"its checksum differs from {METADATA}")
    if not np.isfinite(np.frombuffer(data, "<f4")).all():
        raise damaged(path, "it contains NaN or infinity")
    return data
