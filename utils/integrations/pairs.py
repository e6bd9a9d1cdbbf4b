"""Pairs of images to match, for hloc and COLMAP: lines of two names."""

from collections.abc import Generator, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.file_names import order_in_sequence
from model.config import LoopConfig
from model.errors import InputError
from model.loops import find_loops
from model.rows import Snapshot, words_of
from utils.integrations.shared import relative_name, require_utf8
from utils.retrieval.features import Descriptors, Features, SearchResult, as_array
from utils.retrieval.index import Index
from utils.retrieval.report.saved_run import read_run
from utils.retrieval.search import rerank, search, with_progress
from utils.runtime.atomic_files import atomic_write

QUERY_BLOCK = 4096  # images whose neighbours are searched at a time: at most 200 MB of descriptors


class Pairs(NamedTuple):
    """An image, and those to match it with, best first: absolute paths."""

    query: str
    images: list[str]


def nearest_others(index: Index, num_matched: int, *, rerank_num: int) -> Generator[Pairs, None, None]:
    """Each image of an index with the `num_matched` nearest other ones.

    By Hamming distance if there are codes, else by L2 distance; with descriptors, too, the first `rerank_num` results
    are re-ranked. Raises InputError if there are fewer other images.
    """
    if len(index) <= num_matched:
        raise InputError(
            f"The index {index.folder} holds {len(index)} images, so that each has {len(index) - 1} others, but "
            f"--num_matched is {num_matched}. Give a smaller --num_matched."
        )
    database = index.features()
    paths = database.images.paths
    is_two_branch = index.metadata.is_two_stage
    k = max(num_matched, rerank_num) if is_two_branch else num_matched
    for start in with_progress(range(0, len(index), QUERY_BLOCK), "Exporting"):
        rows = slice(start, start + QUERY_BLOCK)
        codes = None if database.codes is None else as_array(database.codes)[rows]
        descriptors = None if database.descriptors is None else database.descriptors[rows]
        queries = Features(database.images[rows], codes, descriptors)
        own = np.arange(start, start + len(queries.images))
        results = _leave_out(search(database, queries, k + 1), own)
        if is_two_branch:
            results = rerank(results, database, queries, rerank_num=rerank_num)
        for i, matches in zip(own.tolist(), results.first(num_matched).indices.tolist(), strict=True):
            yield Pairs(str(paths[i]), [str(paths[match]) for match in matches])


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


def sequence_loops(index: Index, config: LoopConfig, *, rerank_num: int) -> list[Pairs]:
    """The loops of a sequence, the images of an index in the order of their names: each later image with the earlier
    ones, as `PlaceRecognizer.find_loops` finds them.

    All codes are read into memory, and the descriptors of a float model as float32. Raises InputError if the sequence
    is too short for a loop, or these descriptors were projected by PCA, after which they do not have length 1.
    """
    if len(index) <= config.min_gap:
        raise InputError(
            f"The index {index.folder} holds {len(index)} images, so that none are {config.min_gap} images apart. Give "
            "a smaller --min_gap."
        )
    images, codes, descriptors, _ = index.features()
    if codes is None and index.projections.pca:
        raise InputError(
            f"The descriptors of the index {index.folder} were projected by PCA, among which loops are not searched. "
            "Build one without --pca_dim, or with --codes, or of a two-branch model."
        )
    paths = list(map(str, images.paths))
    order = np.array(sorted(range(len(paths)), key=lambda i: order_in_sequence(paths[i])))
    words: np.ndarray | None = None
    ordered: Any = None if descriptors is None else OrderedDescriptors(descriptors, order)
    if codes is None:
        ordered = ordered[:]
    else:
        words = words_of(as_array(codes)[order])
    snapshot = Snapshot(np.arange(len(paths)), words, ordered, np.zeros(len(paths), bool))
    loops = find_loops(snapshot, with_progress(range(len(paths)), "Searching"), config, rerank_num=rerank_num)
    return [
        Pairs(paths[order[later]], [paths[order[loop.earlier]] for loop in each])
        for later, each in groupby(loops, key=lambda loop: loop.id)
    ]


class OrderedDescriptors:
    """Descriptors [N, dim] in another order. They are read when they are asked for, as float32."""

    def __init__(self, descriptors: Descriptors, order: np.ndarray) -> None:
        self.descriptors, self.order = descriptors, order

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.descriptors[self.order[rows]].astype(np.float32)


def predicted_pairs(folder: Path, num_matched: int) -> list[Pairs]:
    """The queries of an evaluation, in the folder of its results, with their first `num_matched` predictions.

    Raises InputError as read_run does, and if there are fewer predictions.
    """
    run = read_run(folder, depth=num_matched)
    depth = len(next(iter(run.predictions.values())))
    if depth < num_matched:
        raise InputError(
            f"The run {folder} has {depth} predictions for each query, but --num_matched is {num_matched}. Give a "
            f"smaller --num_matched, or evaluate again with --recall_values {num_matched}."
        )
    return [
        Pairs(run.path(query), [run.path(prediction.image) for prediction in predictions])
        for query, predictions in run.predictions.items()
    ]


def export_pairs(pairs: Iterable[Pairs], output: Path, root: str | Path) -> None:
    """Writes what hloc and COLMAP read: lines of a query's name and the name of a match.

    Raises InputError for names that such a file cannot hold.
    """
    with atomic_write(output, interruptible=True, new=True) as file:
        for query, images in pairs:
            name = _require_word(relative_name(query, root))
            file.writelines(f"{name} {_require_word(relative_name(image, root))}\n" for image in images)


def _require_word(name: str) -> str:
    """Raises InputError for a name that is not read back from a line of names separated by spaces."""
    if name.split() != [name] or name.startswith("#"):
        raise InputError(
            f"A list of pairs cannot hold the name {name!r}: spaces separate the names, and # begins a comment. Rename "
            "the file or folder."
        )
    return require_utf8(name)
