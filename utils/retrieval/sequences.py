"""Sequences of frames in the results of a search: the order of images comes from their names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.benchmark import ImageSet
from datasets.file_names import frame_of
from model import InputError
from model.sequences import Frames, match_sequences, metric_of
from utils.retrieval.features import SearchResult


def search_sequences(frames: SearchResult, queries: ImageSet, database: ImageSet, *, length: int) -> SearchResult:
    """The best images for each query by its sequence: its frame and the length - 1 before it.

    frames: the results of single frames, of which those count that have the first one's metric. Raises InputError if no
    query, or hardly any database image, has a frame before it.
    """
    first = frames.first(frames.metric.count(frames.metric[0]))
    distances, indices = match_sequences(
        first.distances,
        first.indices,
        queries=_frames(queries.paths, "queries", least=1),
        database=_frames(database.paths, "database images", least=len(database) // 2),
        length=length,
    )
    return SearchResult(distances, indices, [metric_of(name, length) for name in first.metric])


def _frames(paths: Sequence[str | Path], what: str, *, least: int) -> Frames:
    """The recordings and times of images. Raises InputError if fewer than `least` images have another before them."""
    names, times = zip(*map(frame_of, paths), strict=True)
    recordings, recording = np.unique(np.array(names), return_inverse=True)
    if len(paths) - len(recordings) < least:
        raise InputError(
            f"--sequence needs frames of recordings: {what} whose names differ in their last number alone, such as "
            f"tour_0007.jpg, or benchmark names with a timestamp. Those of {len(paths)} {what}, such as {paths[0]}, "
            f"make {len(recordings)} recordings."
        )
    return Frames(recording.astype(np.int64), np.array(times))
