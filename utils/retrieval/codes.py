"""Codes that are made of float descriptors: fitted to those of a database, or by the file of train_codes.py."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from datasets.image_set import ImageSet
from model.config import CODE_BITS
from model.errors import InputError
from model.index import METADATA
from model.index.coding import Coding
from model.index.metadata import IndexMetadata, read_projections
from utils.retrieval.code_file import read_code_file
from utils.retrieval.config import CodesConfig
from utils.retrieval.extraction import Extractor, extract
from utils.retrieval.features import Descriptors, Features, as_array
from utils.retrieval.index import metadata_of
from utils.runtime import distributed

ITERATIONS = 50  # of ITQ, as its authors use
BLOCK = 1 << 14  # descriptors that are encoded at a time
OWN_CODES = (
    "--codes makes codes of float descriptors. This model gives codes of its own: leave --codes out, or take a float "
    "model."
)


def fit_coding(descriptors: np.ndarray, method: str, bits: int, seed: int = 0) -> Coding:
    """A coding fitted to descriptors [N, dim].

    "random": the mean, and random directions, of which each `dim` in a row are orthogonal. "itq": iterative
    quantisation (Gong and Lazebnik, CVPR 2011): the first `bits` principal components, rotated so that the rotated
    values are close to their signs. Raises InputError as check_fit does.
    """
    check_fit(method, bits, *descriptors.shape)
    mean = descriptors.mean(axis=0, dtype=np.float64).astype(np.float32)
    random = np.random.default_rng(seed)
    if method == "random":
        widths = [min(len(mean), bits - start) for start in range(0, bits, len(mean))]
        return Coding(method, mean, np.hstack([_random_directions(random, len(mean), width) for width in widths]))
    centred = descriptors - mean
    axes = principal_axes(centred, bits)
    values, rotation = centred @ axes, _random_directions(random, bits, bits)
    for _ in range(ITERATIONS):
        signs = np.where(values @ rotation >= 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd(values.T @ signs)  # the rotation that brings the values next to these signs
        rotation = left @ right
    return Coding(method, mean, axes @ rotation)


def principal_axes(centred: np.ndarray, count: int) -> np.ndarray:
    """The `count` <= min(N, dim) principal axes [dim, count] of centred descriptors [N, dim], first the one with the
    largest variance.
    """
    rows, dim = centred.shape
    if rows < dim:  # the smaller of the two products has the same eigenvalues
        _, vectors = np.linalg.eigh(centred @ centred.T)
        axes = centred.T @ vectors[:, ::-1][:, :count]
        return axes / np.linalg.norm(axes, axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return vectors[:, ::-1][:, :count]


def _random_directions(random: np.random.Generator, dim: int, count: int) -> np.ndarray:
    """`count` <= dim orthonormal columns [dim, count] float32, uniformly distributed."""
    axes, triangle = np.linalg.qr(random.standard_normal((dim, count)))
    return (axes * np.sign(np.diagonal(triangle))).astype(np.float32)


def check_fit(method: str, bits: int, count: int, dim: int) -> None:
    """Raises InputError if codes of this length cannot be fitted to `count` descriptors of this dimension."""
    if method == "itq" and bits > dim:
        raise InputError(
            f"--code_bits {bits} is too large: ITQ of {dim}-dimensional descriptors gives at most {dim // 8 * 8} bits. "
            "Choose fewer, or --codes random."
        )
    least = bits + 1 if method == "itq" else 2
    if count < least:
        raise InputError(
            f"--codes {method} with {bits} bits cannot be fitted to {count} images; it needs {least}. Choose a smaller "
            "--code_bits, --codes random, or the file of train_codes.py."
        )


def sample_rows(count: int, config: CodesConfig) -> np.ndarray:
    """The images to fit to, of `count`: all, or max_images at random, in order."""
    if count <= config.max_images:
        return np.arange(count)
    return np.sort(np.random.default_rng(config.seed).choice(count, config.max_images, replace=False))


def encode_all(coding: Coding, descriptors: Descriptors) -> np.ndarray:
    """The codes [N, bits / 8] of descriptors [N, dim], a block at a time."""
    codes = np.empty((len(descriptors), coding.bits // 8), np.uint8)
    for start in range(0, len(codes), BLOCK):
        codes[start : start + BLOCK] = coding.encode(descriptors[start : start + BLOCK])
    return codes


def with_codes(extractor: Extractor, config: CodesConfig, images: ImageSet, *, index: Path | None) -> Extractor:
    """An extractor that makes codes as the index states, if there is one in this folder; otherwise as the settings do,
    by a file, or fitted to random ones of these images. Those are described first for an index to be written; without
    one, `fit_to_features` fits codes to what is described anyway, and the extractor still makes none.

    The coding is on the main rank alone. Raises InputError if the index has other codes than the settings state, or its
    coding is damaged; if the model has codes of its own; or if there are too few images.
    """
    find = partial(_find_coding, extractor, config, index, len(images))
    coding = distributed.run_on_main(find, share=False)
    is_to_be_fitted = config.source is not None and index is not None and coding is None
    if distributed.broadcast_object(is_to_be_fitted):
        features = extract(extractor, images[sample_rows(len(images), config)])
        coding = _fit(config, as_array(features.descriptors)) if features else None
    return _with(extractor, coding)


def fit_to_features(extractor: Extractor, config: CodesConfig, database: Features) -> tuple[Extractor, Features]:
    """An extractor that makes codes, fitted to the descriptors of a database, and the database with codes."""
    descriptors = database.descriptors
    assert descriptors is not None, "with_codes has refused a model without them"
    coding = _fit(config, np.asarray(descriptors[sample_rows(len(descriptors), config)], np.float32))
    return _with(extractor, coding), database._replace(codes=encode_all(coding, descriptors))


def _with(extractor: Extractor, coding: Coding | None) -> Extractor:
    return replace(extractor, projections=extractor.projections._replace(coding=coding))


def _fit(config: CodesConfig, descriptors: np.ndarray) -> Coding:
    assert isinstance(config.source, str), "a file needs no fit"
    return fit_coding(descriptors, config.source, config.bits or CODE_BITS, config.seed)


def _find_coding(extractor: Extractor, config: CodesConfig, index: Path | None, images: int) -> Coding | None:
    """The coding of the index or of the file; None if there is none, or it is to be fitted to so many images."""
    if config.source is not None and extractor.model.config.code_bits:
        raise InputError(OWN_CODES)
    stated = None
    if isinstance(config.source, Path):
        described = metadata_of(extractor.model, extractor.config, projections=extractor.projections)
        stated = read_code_file(config.source, described)
    if index is not None and (index / METADATA).exists():
        stored = read_projections(index, IndexMetadata.read(index)).coding
        _require_stated(stored, stated, config, index)
        return stored
    if isinstance(config.source, str):
        count = min(images, config.max_images)
        dim = extractor.projections.descriptor_dim(extractor.model.descriptor_dim)
        check_fit(config.source, config.bits or CODE_BITS, count, dim)  # before the extraction
    return stated


def _require_stated(stored: Coding | None, stated: Coding | None, config: CodesConfig, index: Path) -> None:
    """Raises InputError if the settings state other codes than an index has."""
    if config.source is None:
        return
    if stored is None:
        is_same = False
    elif stated:
        is_same = np.array_equal(stored.rows, stated.rows)
    else:
        is_same = stored.method == config.source and config.bits in (None, stored.bits)
    if not is_same:
        content = f"codes of {stored.bits} bits ({stored.method})" if stored else "no codes of descriptors"
        bits = f" --code_bits {config.bits}" if config.bits else ""
        raise InputError(
            f"--codes {config.source}{bits}: the index {index} holds {content}, and --append keeps to that. Leave "
            "--codes out, or choose a new folder."
        )
