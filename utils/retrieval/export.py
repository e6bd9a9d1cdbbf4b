"""Exports of an index or of an evaluation's predictions, in the formats that other programs read.

Each of these functions writes a complete file or folder, or nothing. They read an index in blocks.
"""

import json
import os
import re
from collections.abc import Generator, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.file_names import image_key
from model.errors import InputError
from utils.retrieval.config import FLOAT_DTYPES
from utils.retrieval.features import CHUNK_SIZE, Features
from utils.retrieval.index import Index
from utils.retrieval.search import SearchResult, block_starts, rerank, search
from utils.runtime.atomic_files import TEXT_OPTIONS, atomic_folder, atomic_write
from utils.runtime.text_files import read_csv, shorten

QUERY_BLOCK = 4096  # images whose neighbours are searched at a time: at most 200 MB of descriptors
MSLS_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Match(NamedTuple):
    """An image, and the database images that match it, best first: absolute paths."""

    query: str
    images: list[str]


# ---- Names of images


def common_folder(paths: Iterable[str | Path]) -> str:
    """The deepest folder above all of these absolute paths. Raises InputError if there is none."""
    folders = {os.path.dirname(path) for path in paths}
    try:
        return os.path.commonpath(folders)
    except ValueError as error:  # relative paths, or several drives
        raise InputError(f"The images have no common folder: {error}. Give --image_root.") from None


def relative_name(path: str | Path, root: str | Path) -> str:
    """The path of an image relative to a folder above it, with forward slashes. Raises InputError outside of it."""
    above = os.path.join(os.path.abspath(root), "")
    if not str(path).startswith(above):
        raise InputError(
            f"{path} is not below {root}. Expected the folder of all images. Give a folder above them as --image_root."
        )
    return str(path).removeprefix(above).replace(os.sep, "/")


# ---- From an index


def export_hloc(index: Index, output: Path, root: str | Path, *, dtype: str) -> None:
    """Writes the descriptors to an HDF5 file, in hloc's layout: <name>/global_descriptor, [dim], float16 or float32.

    dtype: a key of FLOAT_DTYPES. Raises InputError if h5py is not installed, the index has no descriptors, or a
    name is not UTF-8 or occurs twice.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(
            "--to hloc needs the package h5py. Install it with: pip install -r requirements-export.txt"
        ) from None
    descriptors = _require_descriptors(index)
    # HDF5 writes to a Python file, because its own file access hides a full disk until the process crashes.
    with (
        atomic_write(output, "w+b", interruptible=True) as file,
        h5py.File(file, "w", libver="latest") as features,
    ):
        for start in block_starts(len(index), CHUNK_SIZE, "Exporting"):
            block = descriptors[start : start + CHUNK_SIZE].astype(FLOAT_DTYPES[dtype])
            for i, descriptor in enumerate(block, start):
                name = _require_utf8(relative_name(index.images.paths[i], root))
                if name in features:
                    raise InputError(f"The index {index.folder} holds {name} twice. Rebuild it.")
                features.create_dataset(f"{name}/global_descriptor", data=descriptor)


def export_npy(index: Index, folder: Path, root: str | Path, *, dtype: str | None) -> None:
    """Writes a folder with database_descriptors.npy [N, dim] and database_codes.npy [N, 64] uint8, as far as the index
    has them, and database_paths.txt: the names of the images in the same order.

    dtype: a key of FLOAT_DTYPES; None: that of the index, or float32 for int8. Raises InputError if it is given, but
    the index has no descriptors.
    """
    if dtype:
        _require_descriptors(index)
    features = index.features()
    with atomic_folder(folder) as temporary:
        if features.codes is not None:
            _write_array(temporary / "database_codes.npy", features.codes, features.codes.dtype)
        if features.descriptors is not None:
            file_dtype = np.dtype(FLOAT_DTYPES[dtype]) if dtype else features.descriptors.dtype
            _write_array(temporary / "database_descriptors.npy", features.descriptors, file_dtype)
        with open(temporary / "database_paths.txt", "w", **TEXT_OPTIONS) as file:
            file.writelines(f"{relative_name(path, root)}\n" for path in features.images.paths)
            _flush_to_disk(file)


def nearest_others(index: Index, num_matched: int, *, rerank_num: int) -> Generator[Match, None, None]:
    """Each image of an index with the `num_matched` nearest other ones.

    By Hamming distance if there are codes, else by L2 distance; of a two-branch model, the first `rerank_num` results
    are re-ranked. Raises InputError if there are fewer other images.
    """
    if len(index) <= num_matched:
        raise InputError(
            f"The index {index.folder} holds {len(index)} images, so that each has {len(index) - 1} others, but "
            f"--num_matched is {num_matched}. Give a smaller --num_matched."
        )
    database = index.features()
    paths = database.images.paths
    is_two_branch = index.metadata.rerank
    k = max(num_matched, rerank_num) if is_two_branch else num_matched
    for start in block_starts(len(index), QUERY_BLOCK, "Exporting"):
        rows = slice(start, start + QUERY_BLOCK)
        queries = Features(database.images[rows], *(None if part is None else part[rows] for part in database[1:]))
        own = np.arange(start, start + len(queries.images))
        results = _leave_out(search(database, queries, k + 1), own)
        if is_two_branch:
            results = rerank(results, database.descriptors, queries.descriptors, rerank_num=rerank_num)
        for i, matches in zip(own.tolist(), results.first(num_matched).indices.tolist(), strict=True):
            yield Match(str(paths[i]), [str(paths[match]) for match in matches])


def _leave_out(results: SearchResult, own: np.ndarray) -> SearchResult:
    """Results [Q, K] without the image own[q] in row q, or without the last one where that does not occur: [Q, K-1].

    It does not occur among K images that are equal to it.
    """
    keep = results.indices != own[:, None]
    keep[keep.all(axis=1), -1] = False
    shape = len(own), keep.shape[1] - 1
    return SearchResult(
        results.distances[keep].reshape(shape), results.indices[keep].reshape(shape), results.metric[: shape[1]]
    )


def _require_descriptors(index: Index) -> Any:
    descriptors = index.features().descriptors
    if descriptors is None:
        raise InputError(
            f"The index {index.folder} has codes only, and no float descriptors. Use an index of eval.py or "
            "eval_rerank.py, or export the codes with --to npy, without --descriptor_dtype."
        )
    return descriptors


def _write_array(path: Path, array: Any, dtype: np.dtype) -> None:
    """Writes rows [N, d], of an array or read from the disk, as np.save does, in blocks."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in block_starts(len(array), CHUNK_SIZE, f"Exporting {path.name}"):
            file.write(array[start : start + CHUNK_SIZE].astype(dtype).tobytes())
        _flush_to_disk(file)


def _flush_to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


# ---- From an evaluation


def read_predictions(run: Path, num_matched: int) -> list[Match]:
    """The queries of an evaluation with their first `num_matched` predictions.

    Raises InputError if the folder has no predictions, has fewer of them, or its files are damaged.
    """
    path = run / "predictions.csv"
    if not path.is_file():
        others = sorted(file.parent.name for file in run.glob("*/predictions.csv"))
        hint = f"Choose one of its folders: {', '.join(others)}." if others else "Expected logs/<save_dir>/<time>."
        raise InputError(f"No predictions in {run}: {path} is missing. {hint}")
    folder = _images_folder(run / "results.json")
    columns, rows = read_csv(path, other_bytes=True)
    if not {"query", "rank", "database_photo"} <= set(columns):
        raise InputError(
            f"{path} has the columns {shorten(', '.join(columns))}. Expected those of an evaluation, such as query, "
            "rank and database_photo. Evaluate again."
        )
    matches = []
    for query, group in groupby(rows, lambda row: row.values["query"]):
        predictions = list(group)
        images = [row.values["database_photo"] for row in predictions]
        ranks = [row.values["rank"] for row in predictions]
        if not query or not all(images) or ranks != [str(i + 1) for i in range(len(ranks))]:
            raise InputError(
                f"{path}, line {predictions[0].line}: expected the predictions of a query, with ranks from 1 on. "
                "Evaluate again."
            )
        if len(images) < num_matched:
            raise InputError(
                f"{path} has {len(images)} predictions for each query, but --num_matched is {num_matched}. Give a "
                f"smaller --num_matched, or evaluate again with --recall_values {num_matched}."
            )
        first = [os.path.join(folder, image or "") for image in images[:num_matched]]
        matches.append(Match(os.path.join(folder, query), first))
    return matches


def export_msls(matches: list[Match], output: Path) -> None:
    """Writes what the MSLS evaluation reads: lines of a query's key and the keys of its predictions.

    Raises InputError if the name of an image holds no Mapillary key, or two images have the same.
    """
    images: dict[str, str] = {}  # {key: path}

    def key_of(path: str) -> str:
        key = image_key(path)
        if not MSLS_KEY.fullmatch(key):
            raise InputError(
                f"No Mapillary key in the file name {path}. Expected a file of MSLS, as VPR-datasets-downloader names "
                "it: @<6 fields>@<key>@...@.jpg. Use --to pairs for other datasets."
            )
        if images.setdefault(key, path) != path:
            raise InputError(
                f"{images[key]} and {path} have the same key, {key}. Expected a dataset in which keys are unique, "
                "such as MSLS. Use --to pairs."
            )
        return key

    with atomic_write(output, interruptible=True) as file:
        for query, predictions in matches:
            file.write(" ".join(map(key_of, [query, *predictions])) + "\n")


def _images_folder(path: Path) -> str:
    """The folder to which the names in predictions.csv are relative, from the run's results.json."""
    try:
        folder = json.loads(path.read_bytes())["folder"]
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} does not tell the folder of the images: {error!r}. Evaluate again.") from None
    if not isinstance(folder, str):
        raise InputError(f"{path} does not tell the folder of the images: it is {folder!r}. Evaluate again.")
    return folder


# ---- From either


def export_pairs(matches: Iterable[Match], output: Path, root: str | Path) -> None:
    """Writes what hloc and COLMAP read: lines of a query's name and the name of a match.

    Raises InputError for names that such a file cannot hold.
    """
    with atomic_write(output, interruptible=True) as file:
        for query, images in matches:
            name = _require_word(relative_name(query, root))
            file.writelines(f"{name} {_require_word(relative_name(image, root))}\n" for image in images)


def _require_word(name: str) -> str:
    """Raises InputError for a name that is not read back from a line of names separated by spaces."""
    if name.split() != [name] or name.startswith("#"):
        raise InputError(
            f"A list of pairs cannot hold the name {name!r}: spaces separate the names, and # begins a comment. Rename "
            "the file or folder."
        )
    return _require_utf8(name)


def _require_utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"The name {name!r} is not UTF-8, which hloc and COLMAP expect. Rename the file.") from None
    return name
