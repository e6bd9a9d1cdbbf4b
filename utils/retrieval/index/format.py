"""The format of an index on disk, and the checks that reading and writing share.

Format 6; little-endian, without pickled data:

    metadata.json    written once: the fields of IndexMetadata
    codes.bin        [N, 64] uint8, 512 bits packed in np.packbits order; for models with a binary branch
    descriptors.bin  [N, dim] float32, float16 or int8; for models with a float branch
    scales.bin       [N] float32, by which descriptors in int8 are multiplied
    pca.bin          written once, with PCA: its mean [D] and components [dim, D], float32
    utms.bin         [N, 2] float64: easting and northing in metres, NaN where unknown
    zones.bin        [N] int8: their UTM zones, negative south of the equator, 0 where unknown
    degrees.bin      [N, 2] float64: latitude and longitude, NaN where unknown
    paths.txt        absolute paths, one per line, in UTF-8 (or as the system's bytes, where they are not UTF-8)
    manifest.jsonl   one line per chunk of up to 1024 images: {"images": count, "path_bytes": bytes in paths.txt,
                     "sha256": {file: checksum of the chunk's bytes in it, and of the whole metadata.json}};
                     after the last chunk {"complete": N}

A chunk belongs to the index once its complete line is in the manifest. Anything beyond that in the other files is an
unfinished chunk, which the next one overwrites. The files are therefore valid at any moment. Without the end mark the
index is incomplete: building it was interrupted, or another process appends to it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from tqdm import tqdm

from model import CODE_BITS, GeoLocalizationNet, ImageConfig, InputError, ModelConfig
from model.config import check_image_size
from model.files import open_regular, read_regular
from utils.retrieval.config import DESCRIPTOR_DTYPES, ExtractionConfig, IndexConfig
from utils.retrieval.features import CHUNK_SIZE
from utils.retrieval.pca import PCA

FORMAT = 6
METADATA, MANIFEST, PATHS, PROJECTION = "metadata.json", "manifest.jsonl", "paths.txt", "pca.bin"
MAX_METADATA_BYTES, MAX_MANIFEST_BYTES = 1 << 20, 1 << 30  # the latter is enough for a billion images
MAX_DESCRIPTOR_DIM = 1 << 16
MAX_PATH_BYTES = 1 << 16  # of a path with its line break, on average over a chunk
REPAIR = "Rebuild the index, or copy it again."
METADATA_ERRORS = (ValueError, TypeError, KeyError, OverflowError)


def damaged(path: Path, problem: str) -> InputError:
    """The error for a file whose content cannot be right."""
    return InputError(f"{path} is damaged: {problem}. {REPAIR}")


class UnknownFormat(ValueError):
    """Metadata of another format. The message names both."""


@dataclass(frozen=True, kw_only=True)
class IndexMetadata:
    """How an index was made.

    The fields of ModelConfig; the weights' checksum, and their file or "published"; resize (H, W), antialias,
    precision and exif_orientation of the extraction; dimension (0: none) and type of the descriptors. Of
    descriptors that PCA reduced: the model's dimension and the checksum of pca.bin; None if PCA was not used.
    """

    backbone: str
    aggregation: str
    hashing: bool
    rerank: bool
    weights_sha256: str
    weights_file: str
    resize: list
    antialias: bool
    precision: str
    descriptor_dim: int
    descriptor_dtype: str
    exif_orientation: bool
    pca_input_dim: int | None
    pca_sha256: str | None

    @staticmethod
    def of(
        model: GeoLocalizationNet,
        config: ExtractionConfig,
        index: IndexConfig | None = None,
        *,
        pca: PCA | None = None,
    ) -> "IndexMetadata":
        """The metadata of an index with this model, these settings, and descriptors that this projection reduced.

        Raises InputError for a number format of descriptors that the model does not have.
        """
        dtype = index.descriptor_dtype if index else "fp32"
        if dtype != "fp32" and not model.config.has_float_branch:
            raise InputError(
                f"--descriptor_dtype {dtype} applies to float descriptors, which hashing-only models do not have. "
                "Leave it out."
            )
        return IndexMetadata(
            **asdict(model.config),
            weights_sha256=fingerprint(model),
            weights_file=str(index.weights.absolute()) if index and index.weights else "published",
            resize=list(config.image_config.resize),
            antialias=config.image_config.antialias,
            precision=config.precision,
            descriptor_dim=pca.dim if pca else model.descriptor_dim,
            descriptor_dtype=dtype,
            exif_orientation=config.exif_orientation,
            pca_input_dim=model.descriptor_dim if pca else None,
            pca_sha256=hashlib.sha256(pca.to_bytes()).hexdigest() if pca else None,
        )

    @staticmethod
    def read(folder: Path) -> "IndexMetadata":
        """Raises InputError if metadata.json is missing, damaged or of another format."""
        path = folder / METADATA
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
            return IndexMetadata.parse(text)
        except UnknownFormat as error:
            raise InputError(f"The index {folder} has {error}. Rebuild the index with build_index.py.") from None
        except METADATA_ERRORS as error:
            raise damaged(path, repr(error)) from error

    @staticmethod
    def parse(text: bytes) -> "IndexMetadata":
        """The content of metadata.json. Raises UnknownFormat, or one of METADATA_ERRORS if it is damaged."""
        content = parse_object(text)
        number = content.pop("format")
        if type(number) is not int:
            raise TypeError("a format that is not a number")
        if number != FORMAT:
            raise UnknownFormat(f"format {number}; this version reads format {FORMAT}")
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
        ExtractionConfig(precision=self.precision)
        check_image_size(self.model_config, self.image_config.resize)
        np.dtype(DESCRIPTOR_DTYPES[self.descriptor_dtype])
        if self.model_config.has_float_branch != (0 < self.descriptor_dim <= MAX_DESCRIPTOR_DIM):
            raise ValueError(f"descriptors of dimension {self.descriptor_dim}")
        if (self.pca_input_dim is None) != (self.pca_sha256 is None):
            raise ValueError("one of the fields of PCA without the other")
        if self.pca_input_dim is not None and not 0 < self.descriptor_dim <= self.pca_input_dim <= MAX_DESCRIPTOR_DIM:
            raise ValueError(f"descriptors reduced from {self.pca_input_dim} to {self.descriptor_dim} dimensions")

    @property
    def has_pca(self) -> bool:
        """Whether descriptors were reduced by PCA."""
        return self.pca_sha256 is not None

    @property
    def is_quantized(self) -> bool:
        """Whether descriptors are stored as quantization.quantize gives them."""
        return self.descriptor_dtype == "int8" and self.descriptor_dim > 0

    @property
    def model_config(self) -> ModelConfig:
        """The model that made the index."""
        return ModelConfig(**{field.name: getattr(self, field.name) for field in fields(ModelConfig)})

    @property
    def image_config(self) -> ImageConfig:
        """What its images were resized to."""
        height, width = self.resize
        return ImageConfig(resize=(height, width), antialias=self.antialias)

    @property
    def columns(self) -> dict[str, tuple[np.dtype, int]]:
        """{name: (dtype, width)} of the files <name>.bin, which hold a row per image."""
        columns: dict[str, tuple[np.dtype, int]] = {
            "utms": (np.dtype("<f8"), 2),
            "zones": (np.dtype("|i1"), 1),
            "degrees": (np.dtype("<f8"), 2),
        }
        if self.hashing:
            columns["codes"] = (np.dtype("|u1"), CODE_BITS // 8)
        if self.descriptor_dim:
            columns["descriptors"] = (np.dtype(DESCRIPTOR_DTYPES[self.descriptor_dtype]), self.descriptor_dim)
            if self.is_quantized:
                columns["scales"] = (np.dtype("<f4"), 1)
        return columns

    @property
    def row_bytes(self) -> dict[str, int]:
        """{file: bytes per image}."""
        return {f"{name}.bin": dtype.itemsize * width for name, (dtype, width) in self.columns.items()}

    def with_orientation(self, config: ExtractionConfig) -> ExtractionConfig:
        """The settings of queries, which are turned as the index's images were.

        Raises InputError for queries that are to be turned upright although those images were not.
        """
        if config.exif_orientation and not self.exif_orientation:
            raise InputError(
                "The images of the index were read as they are stored, and so are queries. Leave --exif_orientation "
                "out."
            )
        return replace(config, exif_orientation=self.exif_orientation)

    def require_same(self, other: "IndexMetadata", ignore: set[str], message: str) -> None:
        """Raises InputError, which begins with the message and lists the differences, if another index differs."""
        saved, now = asdict(self), asdict(other)
        changed = [f"{k} {saved[k]} (now {now[k]})" for k in saved if saved[k] != now[k] and k not in ignore]
        if changed:
            raise InputError(f"{message}: {', '.join(changed)}. Check the weights (--model) and these flags.")


class Manifest(NamedTuple):
    """The chunks of an index; whether the end mark, and nothing else, follows; the bytes of the chunks' lines."""

    chunks: list[dict[str, Any]]
    complete: bool
    size: int

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """The complete lines. Raises InputError if one of them is not a chunk, or the end mark has another number."""
        path = folder / MANIFEST
        data = read_regular(path, MAX_MANIFEST_BYTES) if path.exists() else b""
        *lines, rest = data.split(b"\n")
        try:
            entries = list(map(parse_object, lines))
            ended = bool(entries) and "complete" in entries[-1]
            chunks = entries[:-1] if ended else entries
            for chunk in chunks:
                _check_chunk(chunk)
            images = sum(chunk["images"] for chunk in chunks)
            if ended and (type(entries[-1]["complete"]) is not int or entries[-1] != {"complete": images}):
                raise ValueError(f"the end mark is {entries[-1]}, but the chunks have {images} images")
        except ValueError as error:
            raise damaged(path, repr(error)) from error
        return Manifest(chunks, ended and not rest, sum(len(line) + 1 for line in lines[: len(chunks)]))

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(chunk["images"] for chunk in self.chunks)

    @property
    def path_bytes(self) -> int:
        """Size of their paths in paths.txt."""
        return sum(chunk["path_bytes"] for chunk in self.chunks)


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


def _check_chunk(chunk: dict[str, Any]) -> None:
    """Raises ValueError for a line of the manifest that no chunk has."""
    if chunk.keys() != {"images", "path_bytes", "sha256"}:
        raise ValueError(f"a chunk with the fields {', '.join(chunk)}")
    images, path_bytes = chunk["images"], chunk["path_bytes"]
    if type(images) is not int or not 1 <= images <= CHUNK_SIZE:
        raise ValueError(f"a chunk of {images} images")
    if type(path_bytes) is not int or not 2 * images <= path_bytes <= MAX_PATH_BYTES * images:
        raise ValueError(f"a chunk of {images} images whose paths have {path_bytes} bytes")
    if not isinstance(chunk["sha256"], dict):
        raise ValueError("a chunk without checksums")


def fingerprint(model: GeoLocalizationNet) -> str:
    """SHA-256 of a model's state: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def check_sizes(folder: Path, metadata: IndexMetadata, manifest: Manifest) -> None:
    """Raises InputError if a file is missing or shorter than the manifest says, or is longer.

    While an index is incomplete, its files may be longer by a chunk.
    """
    expected = {name: manifest.images * row for name, row in metadata.row_bytes.items()} | {PATHS: manifest.path_bytes}
    for name, size in expected.items():
        path = folder / name
        actual = path.stat().st_size if path.is_file() else 0
        if actual < size:
            state = "truncated" if path.is_file() else "missing"
            raise InputError(f"{path} is {state}: {actual} of {size} bytes. {REPAIR}")
        if actual > size and manifest.complete:
            raise damaged(path, f"it has {actual} bytes, but {MANIFEST} lists {size}")
        row = metadata.row_bytes.get(name)
        if row and actual > size + CHUNK_SIZE * row:  # lines of the manifest are missing
            raise InputError(
                f"{folder / MANIFEST} is missing or truncated: {path} holds {actual // row} images, but the manifest "
                f"lists {manifest.images}. Copy the index again, or rebuild it."
            )


def read_pca(folder: Path, metadata: IndexMetadata) -> PCA | None:
    """The projection of the descriptors; None if PCA was not used. Raises InputError if it is missing or damaged."""
    if metadata.pca_input_dim is None:
        return None
    path = folder / PROJECTION
    size = 4 * (1 + metadata.descriptor_dim) * metadata.pca_input_dim
    actual = path.stat().st_size if path.is_file() else 0
    if actual != size:
        state = "damaged" if path.is_file() else "missing"
        raise InputError(f"{path} is {state}: {actual} of {size} bytes. {REPAIR}")
    data = read_regular(path, size)
    pca = PCA.from_bytes(data, metadata.pca_input_dim)
    if hashlib.sha256(data).hexdigest() != metadata.pca_sha256:
        raise damaged(path, f"its checksum differs from {METADATA}")
    if not (np.isfinite(pca.mean).all() and np.isfinite(pca.components).all()):
        raise damaged(path, "it contains NaN or infinity")
    return pca


def verify_metadata(folder: Path, manifest: Manifest) -> None:
    """Raises InputError if the checksum of metadata.json differs."""
    expected = hashlib.sha256(read_regular(folder / METADATA, MAX_METADATA_BYTES)).hexdigest()
    if any(chunk["sha256"].get(METADATA) != expected for chunk in manifest.chunks):
        raise damaged(folder / METADATA, f"its checksum differs from {MANIFEST}")


def verify_checksums(folder: Path, metadata: IndexMetadata, manifest: Manifest) -> None:
    """Raises InputError, which names the file, at the first checksum of a chunk that differs."""
    sizes = metadata.row_bytes
    for name in (*sizes, PATHS) if manifest.chunks else ():
        progress = tqdm(total=manifest.images, desc=f"Verifying {name}", unit="image", leave=False)
        with open(open_regular(folder / name), "rb") as file, progress:
            for chunk in manifest.chunks:
                data = file.read(chunk["path_bytes"] if name == PATHS else chunk["images"] * sizes[name])
                if hashlib.sha256(data).hexdigest() != chunk["sha256"].get(name):
                    last = progress.n + chunk["images"] - 1
                    problem = f"the checksum of images {progress.n} to {last} differs from {MANIFEST}"
                    raise damaged(folder / name, problem)
                progress.update(chunk["images"])
