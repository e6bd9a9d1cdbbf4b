"""A place recogniser that a program holds: images in, places or "unknown" out."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .calibration import PRECISIONS, Calibration, DistanceKind, Threshold
from .config import ImageConfig, check_image_size
from .errors import InputError
from .fingerprint import fingerprint
from .images import normalize, rgb_pixels
from .inference import dtype_of, prepare_for_inference
from .network import CODE_BITS, GeoLocalizationNet
from .places import MATCHES, Place, estimate_place
from .resizing import resize_pixels
from .rows import Description, Rows, search
from .sequences import MATCHES as SEQUENCE_MATCHES
from .sequences import Frames, match_sequences, metric_of
from .weights import load_any_model

BATCH = 8  # images that are described at a time


class Match(NamedTuple):
    """An image that was found. id: from `add`; metric: of the distance, "l2" or "hamming"; and what `add` was given."""

    id: int
    distance: float
    metric: str
    name: str | None
    position: tuple[float, float] | None
    time: float | None


class Loop(NamedTuple):
    """The same place at two moments: ids of a later and an earlier image, and the distance of the two."""

    id: int
    earlier: int
    distance: float


class Entry(NamedTuple):
    """What a program says about an image: a name, a position in metres, a time in seconds."""

    name: str | None
    position: tuple[float, float] | None
    time: float | None


class PlaceRecognizer:
    """Describes images, remembers them, and finds the places of others among them.

    recognizer = PlaceRecognizer("SelaVPRplusplus_base_rerank")
    recognizer.add(["street.jpg", "square.jpg"], names=["street", "square"])
    [matches] = recognizer.search(frame, k=1, max_distance=0.9)  # no match: an unknown place

    model: the name of a published model, a checkpoint file, or a model. device and precision ("fp32", "bf16" or "fp16")
    of the computation. resize: (H, W) that images are resized to, bilinearly; None for what the model states, otherwise
    322 x 322, the paper's. Models with both branches search by codes, and re-rank the first `rerank_num` results by
    descriptors.

    An image is a path, a PIL image, a NumPy array uint8 [H, W, 3] or [H, W], or a tensor uint8 [3, H, W], of any size;
    `images` is one of these, or a list. Files and PIL images are turned upright as their EXIF data says. Threads may
    call any method at the same time. Everything is kept in memory: 64 bytes and 4 bytes per dimension an image, and up
    to twice that while there is room to grow. Attributes: resize; rerank_num.

    Raises InputError for models that do not exist, and settings and images that cannot be used.
    """

    def __init__(
        self,
        model: str | Path | GeoLocalizationNet = "SelaVPRplusplus_base_rerank",
        *,
        device: str = "cpu",
        precision: str = "fp32",
        resize: tuple[int, int] | None = None,
        rerank_num: int = 100,
    ) -> None:
        dtype = dtype_of(precision)
        if rerank_num < 1:
            raise InputError(f"rerank_num is {rerank_num}. Expected 1 or more.")
        network = model if isinstance(model, GeoLocalizationNet) else load_any_model(model)
        images = network.image_config or ImageConfig()
        self.resize = images.resize if resize is None else (int(resize[0]), int(resize[1]))
        self._antialias = images.antialias
        check_image_size(network.config, self.resize)
        self.device = torch.device(device)
        self.rerank_num = rerank_num
        self._accepted: dict[int, Threshold] = {}  # {frames of a sequence: the threshold of `accept`}
        self._model = prepare_for_inference(network, dtype, device=self.device)
        self._computing, self._adding = threading.Lock(), threading.Lock()
        self._rows = Rows()
        self._entries: list[Entry] = []

    def describe(self, images: Any, *, bgr: bool = False) -> Description:
        """The features of images. bgr: the channels of arrays and tensors are in OpenCV's order.

        Raises InputError, which says which image of a list it is, if one cannot be used.
        """
        several = isinstance(images, (list, tuple))
        given: Sequence[Any] = images if several else [images]
        if not given:
            raise InputError("An empty list of images. Give at least one.")
        parts, batch = [], list[torch.Tensor]()
        for i, image in enumerate(given):
            try:
                batch.append(resize_pixels([rgb_pixels(image, bgr=bgr)], self.resize, self._antialias))
            except InputError as error:
                raise InputError(f"Image {i} of {len(given)}: {error}") from error if several else error
            if len(batch) == BATCH or i == len(given) - 1:
                parts.append(self._forward(torch.stack(batch)))
                batch.clear()
        code, descriptor = (
            None if arrays[0] is None else np.concatenate(arrays) for arrays in zip(*parts, strict=True)
        )
        return Description(code, descriptor)

    def add(
        self,
        images: Any,
        *,
        names: Any = None,
        positions: Any = None,
        times: Any = None,
        bgr: bool = False,
    ) -> list[int]:
        """Remembers images, or a Description of them, and returns their ids: numbers in the order of addition.

        names: [N] strings; without them, files have their paths, and other images None. positions: [N, 2], easting and
        northing in metres. times: [N], in seconds. If one of the images cannot be used, none is added, and InputError
        says which.
        """
        features = self._features(images, bgr=bgr)
        entries = _entries(len(features), _paths(images) if names is None else names, positions, times)
        with self._adding:
            count = len(self._entries)
            self._entries += entries  # before the rows, so that what a search finds has an entry
            try:
                return list(self._rows.append(features))
            except BaseException:
                del self._entries[count:]
                raise

    def search(
        self,
        images: Any,
        k: int = 5,
        *,
        max_distance: float | None = None,
        among: Sequence[int] | None = None,
        bgr: bool = False,
    ) -> list[list[Match]]:
        """The k nearest of the remembered images to each image, or to each row of a Description; nearest first.

        There are fewer matches if fewer images are remembered, or within max_distance (None: that of `accept`, if it
        was called): none means an unknown place.
        among: ids to search among. Equal distances are in the order of ids.
        """
        if k < 1:
            raise InputError(f"k is {k}. Expected 1 or more.")
        limit = self._limit(max_distance, frames=1)
        features = self._features(images, bgr=bgr)
        snapshot = self._rows.snapshot()
        mask = None if among is None else self._mask(among, len(snapshot.removed))
        return [
            [
                Match(row, distance, found.metric, *self._entries[row])
                for row, distance in zip(found.rows.tolist(), found.distances.tolist(), strict=True)
                if limit is None or distance <= limit
            ]
            for found in (
                search(snapshot, query, k, rerank_num=self.rerank_num, among=mask) for query in _each(features)
            )
        ]

    def search_sequence(
        self, frames: Any, k: int = 5, *, times: Any = None, max_distance: float | None = None, bgr: bool = False
    ) -> list[Match]:
        """The k best of the remembered images for the last of some frames, by the mean distance of all: see
        match_sequences. There are fewer within max_distance, as in `search`.

        frames: the latest ones of a recording, in order, or a Description of them. Without times, the remembered images
        count as recorded in the order of ids, as often as the frames; times: [N] of the frames, in the unit of those
        that `add` was given. Raises InputError if one is not known.
        """
        if k < 1:
            raise InputError(f"k is {k}. Expected 1 or more.")
        features = self._features(frames, bgr=bgr)
        snapshot, length, depth = self._rows.snapshot(), len(features), max(k, SEQUENCE_MATCHES)
        found = [search(snapshot, frame, depth, rerank_num=self.rerank_num, among=None) for frame in _each(features)]
        if not len(found[0].rows):
            return []
        count = len(snapshot.removed)
        if times is None:
            own, known = np.arange(length), np.arange(count)
        else:
            own, known = np.array([entry.time for entry in _entries(length, None, None, times)]), self._times(count)
        distances, rows = match_sequences(
            np.stack([each.distances for each in found]),
            np.stack([each.rows for each in found]),
            queries=Frames(np.zeros(length, np.int64), own),
            database=Frames(np.zeros(count, np.int64), known),
            length=length,
        )
        last = int(own.argmax())
        limit, metric = self._limit(max_distance, frames=length), metric_of(found[0].metric, length)
        return [
            Match(row, distance, metric, *self._entries[row])
            for row, distance in zip(rows[last, :k].tolist(), distances[last, :k].tolist(), strict=True)
            if limit is None or distance <= limit
        ]

    def accept(self, calibration: str | Path, *, precision: int = 99, frames: int = 1) -> float:
        """Takes the threshold up to which first matches of an evaluation had this precision, in percent: 95, 99 or 100.
        From then on it is the max_distance of calls that state none: of `search` and `locate`, or of search_sequence
        with so many frames, the --sequence of the evaluation. Returns it.

        calibration: the evaluation's calibration.json, or results.json. Raises InputError if it is about another model,
        resize, metric or number of frames, or if no distance reached the precision.
        """
        if str(precision) not in PRECISIONS:
            raise InputError(f"precision is {precision}. Choose from: {', '.join(PRECISIONS)}.")
        threshold = Calibration.read(calibration, self._distance_kind(frames)).thresholds[str(precision)]
        if threshold is None:
            raise InputError(
                f"{calibration}: no distance reached {precision} % precision. Choose a lower one, or give max_distance."
            )
        self._accepted[frames] = threshold
        return threshold.distance

    def locate(self, images: Any, *, max_distance: float | None = None, bgr: bool = False) -> list[Place | None]:
        """Where each image was taken, in the metres of `add`; None for an unknown place, whose nearest match is beyond
        max_distance (None: that of `accept`, if it was called), and where no match has a position.

        See estimate_place. A place has a radius if `accept` has read one for the threshold that applies.
        """
        limit = self._limit(max_distance, frames=1)
        radius = self._accepted[1].radius if max_distance is None and 1 in self._accepted else None
        places = list[Place | None]()
        for matches in self.search(images, MATCHES, max_distance=np.inf, bgr=bgr):
            is_known = bool(matches) and (limit is None or matches[0].distance <= limit)
            positions = np.array([match.position or (np.nan, np.nan) for match in matches]).reshape(-1, 2)
            distances = np.array([match.distance for match in matches])
            places.append(estimate_place(positions, distances, radius) if is_known else None)
        return places

    def find_loops(
        self,
        ids: int | Sequence[int] | None = None,
        *,
        max_distance: float,
        min_gap: int = 50,
        suppress: int = 25,
        k: int = 1,
    ) -> list[Loop]:
        """Images of a sequence that show a place of an earlier one: the k nearest of each, at least min_gap ids before
        it and within max_distance. Of loops whose ids both differ by less than `suppress`, the nearest one stays.

        ids: of the images to compare with the earlier ones, such as the latest one in a program that runs; None for all
        that are remembered. In the order of ids. Raises InputError for an id that is unknown, or removed.
        """
        if k < 1 or min_gap < 1:
            raise InputError(f"k is {k}, and min_gap {min_gap}. Expected 1 or more.")
        snapshot = self._rows.snapshot()
        chosen = np.flatnonzero(~snapshot.removed).tolist() if ids is None else _list_ids(ids)
        for i in chosen:
            if not 0 <= i < len(snapshot.removed) or snapshot.removed[i]:
                raise InputError(f"There is no image {i}. Give ids of images that were added, and not removed.")
        loops = []
        for i in chosen:
            code = None if snapshot.words is None else np.ascontiguousarray(snapshot.words[:, i]).view(np.uint8)[None]
            descriptor = None if snapshot.descriptors is None else snapshot.descriptors[i : i + 1]
            earlier = np.arange(len(snapshot.removed)) <= i - min_gap
            found = search(snapshot, Description(code, descriptor), k, rerank_num=self.rerank_num, among=earlier)
            loops += [
                Loop(i, row, distance)
                for row, distance in zip(found.rows.tolist(), found.distances.tolist(), strict=True)
                if distance <= max_distance
            ]
        kept = list[Loop]()
        for loop in sorted(loops, key=lambda loop: loop.distance):
            if all(abs(loop.id - o.id) >= suppress or abs(loop.earlier - o.earlier) >= suppress for o in kept):
                kept.append(loop)
        return sorted(kept)

    def remove(self, ids: int | Sequence[int]) -> None:
        """Forgets images. Raises InputError, and forgets none, if an id is unknown, or removed already."""
        self._rows.remove(_list_ids(ids))

    def __len__(self) -> int:
        """The number of images that are remembered."""
        return len(self._rows)

    def _features(self, images: Any, *, bgr: bool) -> Description:
        """The features of images, or the Description that was given in their place.

        Raises InputError if it is not one of this model's.
        """
        if not isinstance(images, Description):
            return self.describe(images, bgr=bgr)
        config, dim = self._model.config, self._model.descriptor_dim
        expected = {
            "code": (np.dtype(np.uint8), CODE_BITS // 8) if config.hashing else None,
            "descriptor": (np.dtype(np.float32), dim) if dim else None,
        }
        given = {
            name: None if a is None else (a.dtype, a.shape[-1] if a.ndim == 2 else a.shape)
            for name, a in images._asdict().items()
        }
        if given != expected or len({len(a) for a in images if a is not None}) != 1:
            raise InputError(f"A Description with {given} is not one of this model, whose are {expected}.")
        descriptor = images.descriptor
        if descriptor is not None and not (np.abs(np.linalg.norm(descriptor, axis=1) - 1) < 1e-2).all():
            raise InputError("A Description whose descriptors do not have length 1. Give what `describe` returned.")
        return Description(*(None if a is None else np.ascontiguousarray(a) for a in images))

    def _limit(self, max_distance: float | None, *, frames: int) -> float | None:
        """The largest distance of a match: that of a call, or else of `accept`; None for any."""
        if max_distance is None and frames in self._accepted:
            return self._accepted[frames].distance
        return max_distance

    def _times(self, count: int) -> np.ndarray:
        """The times of the first `count` images. Raises InputError if one is not known."""
        times = [entry.time for entry in self._entries[:count]]
        if None in times:
            raise InputError(f"Image {times.index(None)} has no time. Give `add` the times of all, or search without.")
        return np.array(times)

    def _distance_kind(self, frames: int) -> DistanceKind:
        """The kind of the distances that searches give for sequences of so many frames."""
        has_floats = self._model.config.has_float_branch
        return DistanceKind(
            weights_sha256=fingerprint(self._model.original),
            image_size=self.resize,
            antialias=self._antialias,
            descriptor_dim=self._model.descriptor_dim or CODE_BITS,
            test_method="hard_resize",
            metric=metric_of("l2" if has_floats else "hamming", frames),
        )

    def _forward(self, images: torch.Tensor) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Codes and descriptors of images [B, 3, H, W] in [0, 1]."""
        with self._computing:  # a prepared model must not be entered by two threads
            output = self._model(normalize(images.to(self.device)))
        parts = {"descriptor": output} if isinstance(output, torch.Tensor) else output._asdict()
        arrays = {name: part.cpu().numpy() for name, part in parts.items()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise InputError("The model's output contains NaN or infinity. Check the weights, or try precision='bf16'.")
        code = arrays.get("code")
        return None if code is None else np.packbits(code > 0, axis=1), arrays.get("descriptor")

    def _mask(self, ids: Sequence[int], count: int) -> np.ndarray:
        """Bool [count], true at these ids. Raises InputError for an id that is unknown."""
        mask = np.zeros(count, bool)
        for i in _list_ids(ids):
            if not 0 <= i < count:
                raise InputError(f"There is no image {i}. Give ids that `add` returned.")
            mask[i] = True
        return mask


def _list_ids(ids: Any) -> list[int]:
    """Ids as a list. Raises InputError for anything else, such as a mask."""
    array = np.atleast_1d(np.asarray(ids))
    if array.size and (array.ndim != 1 or not np.issubdtype(array.dtype, np.integer)):
        raise InputError(
            f"Ids of type {array.dtype} and shape {list(array.shape)}. Expected whole numbers, as of `add`."
        )
    return array.astype(np.int64).tolist()


def _paths(images: Any) -> list[str | None] | None:
    """The paths among images; None if there are none."""
    given = images if isinstance(images, (list, tuple)) and not isinstance(images, Description) else [images]
    paths = [os.fspath(image) if isinstance(image, (str, os.PathLike)) else None for image in given]
    return paths if any(paths) else None


def _each(features: Description) -> list[Description]:
    """The rows of a Description, one by one."""
    return [Description(*(None if a is None else a[i : i + 1] for a in features)) for i in range(len(features))]


def _entries(count: int, names: Any, positions: Any, times: Any) -> list[Entry]:
    """Raises InputError if there is not one of each for each image, or a number is not finite."""
    columns: list[list[Any]] = [[None] * count] * 3
    for i, (what, given, shape) in enumerate(
        (("names", names, (count,)), ("positions", positions, (count, 2)), ("times", times, (count,)))
    ):
        if given is None:
            continue
        try:
            values = np.asarray(given, object if what == "names" else np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{what}: {error}. Expected {list(shape)} numbers.") from error
        if count == 1:  # given for a single image, not in a list
            values = values.reshape(shape) if values.size == np.prod(shape) else values
        if values.shape != shape:
            raise InputError(f"{what} {list(values.shape)} for {count} images. Expected {list(shape)}: one per image.")
        if what != "names" and not np.isfinite(values).all():
            raise InputError(f"{what} contains NaN or infinity. Expected metres and seconds.")
        columns[i] = [tuple(row) for row in values.tolist()] if what == "positions" else values.tolist()
    return list(map(Entry, *columns))
