"""Matches of sequences of frames in place of single ones, after SeqSLAM (Milford and Wyeth, ICRA 2012)."""

from typing import NamedTuple

import numpy as np

SPEEDS = (0.8, 1.0, 1.25)  # of the queries' recording, relative to the database's
MATCHES = 100  # of each frame, from which those of sequences are found
SHIFTS = np.array([[speed] for speed in (*SPEEDS, *(-speed for speed in SPEEDS))])  # [D, 1]; and the other way


class Frames(NamedTuple):
    """When N images were taken: the recording that each belongs to, [N] int64, and the time in it, [N] float64, in
    seconds or in numbers of frames, but in the same unit for queries and database.
    """

    recording: np.ndarray
    time: np.ndarray


def match_sequences(
    distances: np.ndarray, indices: np.ndarray, *, queries: Frames, database: Frames, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The K best database images of each query by the mean distance over the query and the length - 1 frames before it.

    distances, indices: [Q, K], the K nearest database images of each single frame, nearest first, by one metric. A
    match of an earlier frame speaks for the database image that was recorded as much later as the query, at one of
    SPEEDS, or as much earlier, if the way was the opposite one. A frame of which no match speaks for an image counts
    with the distance of its last match, so that no others need be known. The best speed and direction counts. Frames of
    other recordings are left out: at the beginning of a recording, sequences are shorter.

    Returns distances [Q, K] float32 and indices [Q, K] int64. Of equal distances the smaller index comes first.
    """
    timeline = _Timeline(database)
    found = np.empty(indices.shape, np.float32), np.empty(indices.shape, np.int64)
    for query, window in enumerate(_windows(queries, length)):
        delays = queries.time[query] - queries.time[window]
        spoken_for = [timeline.later(indices[i], SHIFTS * delay) for i, delay in zip(window, delays, strict=True)]
        images = np.unique(spoken_for)
        images = images[images >= 0]
        below_last = np.zeros((len(SHIFTS), len(images)))  # the sum of what matches are nearer than the last one
        for i, expected in zip(window, spoken_for, strict=True):
            of_frame = np.zeros_like(below_last)
            shift, rank = np.nonzero(expected >= 0)
            column = images.searchsorted(expected[shift, rank])
            np.minimum.at(of_frame, (shift, column), (distances[i] - distances[i, -1])[rank])
            below_last += of_frame
        means = (below_last.min(axis=0) + distances[window, -1].sum(dtype=np.float64)) / len(window)
        order = np.lexsort((images, means))[: indices.shape[1]]
        found[0][query], found[1][query] = means[order], images[order]
    return found


def metric_of(metric: str, length: int) -> str:
    """The name of the distance between sequences of so many frames: thresholds for other lengths do not apply to it."""
    return metric if length == 1 else f"{metric}_mean{length}"


def _windows(frames: Frames, length: int) -> list[list[int]]:
    """For each frame, itself and up to length - 1 frames before it in its recording, latest first."""
    order = np.lexsort((frames.time, frames.recording)).tolist()
    windows: list[list[int]] = [[] for _ in order]
    for place, frame in enumerate(order):
        window = order[max(0, place - length + 1) : place + 1][::-1]
        windows[frame] = [i for i in window if frames.recording[i] == frames.recording[frame]]
    return windows


class _Timeline:
    """All images of a database on one axis of time, one recording after another."""

    def __init__(self, frames: Frames) -> None:
        self._recording = frames.recording
        order = np.lexsort((frames.time, frames.recording))
        self._clock, self._step = np.empty(len(order)), np.empty(len(order))  # of each image; the latter: see `later`
        recordings = np.split(order, np.flatnonzero(np.diff(frames.recording[order])) + 1)
        for images in recordings:
            self._step[images] = np.median(np.diff(frames.time[images])) if len(images) > 1 else 0
        start, gap = 0.0, 2 * self._step.max() + 1  # so wide that nothing is nearest in another recording
        for images in recordings:
            self._clock[images] = start + frames.time[images] - frames.time[images[0]]
            start = self._clock[images[-1]] + gap
        self._order = np.concatenate([[-1], order, [-1]])
        self._ticks = np.concatenate([[-np.inf], self._clock[order], [np.inf]])

    def later(self, images: np.ndarray, delays: np.ndarray) -> np.ndarray:
        """The images [D, K] of the same recordings that were recorded `delays` [D, 1] after these [K]: the nearest in
        time, the earlier of two; -1 where none is nearer than the usual time between two images of the recording.
        """
        target = self._clock[images] + delays
        right = self._ticks.searchsorted(target)
        is_left = target - self._ticks[right - 1] <= self._ticks[right] - target
        nearest = right - is_left
        found = self._order[nearest]
        is_near = np.abs(self._ticks[nearest] - target) <= self._step[images]
        is_same = self._recording[found] == self._recording[images]
        return np.where(delays == 0, images, np.where(is_near & is_same, found, -1))
