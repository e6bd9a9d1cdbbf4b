"""Pairs of images to match, for hloc and COLMAP: lines of two names."""

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.errors import InputError
from utils.integrations.shared import relative_name, require_utf8
from utils.retrieval.features import Features, SearchResult, as_array
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
