"""A place recogniser that a program holds: images in, places or "unknown" out."""

import copy
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .calibration import PRECISIONS, Calibration, DistanceKind, Threshold
from .config import CODE_BITS, ImageConfig, LoopConfig, check_image_size
from .entries import Entries, make_entries
from .errors import InputError
from .images import normalize, rgb_pixels
from .index.home import Home
from .index.metadata import PUBLISHED, UNKNOWN_WEIGHTS, IndexMetadata, read_projections, weights_of
from .index.projections import NO_PROJECTIONS, Projections
from .inference import dtype_of, prepare_for_inference
from .loops import Loop, find_loops
from .network import GeoLocalizationNet
from .places import MATCHES, Place, estimate_place
from .resizing import resize_pixels
from .rows import Description, Rows, Snapshot, search
from .sequences import MATCHES as SEQUENCE_MATCHES
from .sequences import Frames, match_sequences, metric_of
from .weights import load_any_model
from .zoo import PublishedModel, find_model

BATCH = 8  # images that are described at a time


class Match(NamedTuple):
    """An image that was found. id: from `add`; metric: of the distance, "l2" or "hamming"; what `add` was given; and
    degrees, (latitude, longitude), WGS 84, where the index knows them.
    """

    id: int
    distance: float
    metric: str
    name: str | None
    position: tuple[float, float] | None
    time: float | None
    degrees: tuple[float, float] | None


class Prepared(NamedTuple):
    """An image as a model takes it. pixels: [3, H, W] float32 in [0, 1]."""

    pixels: torch.Tensor


class Known(NamedTuple):
    """What is remembered of N images beside their features, in the order of ids. ids: [N] int64; positions: [N, 2],
    eastings and northings in metres; degrees: [N, 2], latitudes and longitudes, WGS 84; times: [N] in seconds; NaN
    where unknown. zones: [N] int8, the UTM zones of the positions, negative south of the equator, 0 where unknown.
    """

    ids: np.ndarray
    positions: np.ndarray
    degrees: np.ndarray
    times: np.ndarray
    zones: np.ndarray


class PlaceRecognizer:
    """Describes images, remembers them, and finds the places of others among them.

    recognizer = PlaceRecognizer("SelaVPRplusplus_base_rerank")
    recognizer.add(["street.jpg", "square.jpg"], names=["street", "square"])
    [matches] = recognizer.search(frame, k=1, max_distance=0.9)  # no match: an unknown place

    model: the name of a published model, a checkpoint file, or a model. device and precision ("fp32", "bf16" or "fp16")
    of the computation. resize: (H, W) that images are resized to, bilinearly; None for what the model states, otherwise
    322 x 322, the paper's. Models with both branches, and indexes with codes of descriptors, are searched by codes,
    and the first `rerank_num` results are re-ranked by descriptors.

    An image is a path, the bytes of an image file, a PIL image, a NumPy array uint8 [H, W, 3] or [H, W], a tensor uint8
    [3, H, W], of any size, or what `prepare` returned; `images` is one of these, or a list. Files and PIL images are
    turned upright as their EXIF data says. Threads may call any method at the same time. What is added is kept in
    memory: 1 byte per 8 bits of a code and 4 bytes per dimension an image, and up to twice that while there is room to
    grow; descriptors of an index that was opened stay on the disk. Attributes: resize; rerank_num.

    Raises InputError for models that do not exist, and settings and images that cannot be used.
    """

    def __init__(
        self,
        model: str | Path | PublishedModel | GeoLocalizationNet = "SelaVPRplusplus_base_rerank",
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
        self._antialias, self._exif_orientation = images.antialias, True
        self._projections = NO_PROJECTIONS
        self._weights_file = _name_of(model)
        check_image_size(network.config, self.resize)
        self.device = torch.device(device)
        self.rerank_num = rerank_num
        self._accepted: dict[int, Threshold] = {}  # {frames of a sequence: the threshold of `accept`}
        self._model = prepare_for_inference(network, dtype, device=self.device)
        self._computing, self._adding = threading.Lock(), threading.Lock()
        self._precision = precision
        self._rows, self._entries = Rows(), Entries()
        self._home: Home | None = None  # the index that was opened, or saved

    def prepare(self, image: Any, *, bgr: bool = False) -> Prepared:
        """An image, decoded and resized, which `describe` takes in its place: a thread can prepare images while another
        describes those before. Takes 12 bytes per pixel of `resize`. Raises InputError as `describe` does.
        """
        pixels = rgb_pixels(image, bgr=bgr, upright=self._exif_orientation)
        return Prepared(resize_pixels([pixels], self.resize, self._antialias))

    def describe(self, images: Any, *, bgr: bool = False) -> Description:
        """The features of images. bgr: the channels of arrays and tensors are in OpenCV's order.

        Raises InputError, which says which image of a list it is, if one cannot be used.
        """
        several = isinstance(images, (list, tuple)) and not isinstance(images, Prepared)
        given: Sequence[Any] = images if several else [images]
        if not given:
            raise InputError("An empty list of images. Give at least one.")
        parts, batch = [], list[torch.Tensor]()
        for i, image in enumerate(given):
            try:
                prepared = image if isinstance(image, Prepared) else self.prepare(image, bgr=bgr)
                batch.append(prepared.pixels)
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

        names: [N] strings; without them, files have their absolute paths, and other images None. positions: [N, 2],
        easting and northing in metres. times: [N], in seconds. If one of the images cannot be used, none is added, and
        InputError says which.
        """
        features = self._features(images, bgr=bgr)
        entries = make_entries(images, len(features), names, positions, times)
        with self._adding:
            count = len(self._entries)
            self._entries.extend(entries)  # before the rows, so that what a search finds has an entry
            try:
                return list(self._rows.append(features))
            except BaseException:
                self._entries.truncate(count)
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
        mask = None if among is None else _mask(snapshot, among)
        return [
            [
                Match(int(snapshot.ids[row]), distance, found.metric, *self._entries[row][:4])
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
            entries = make_entries(features, length, None, None, times)
            own, known = np.array([entry.time for entry in entries]), self._times(count)
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
            Match(int(snapshot.ids[row]), distance, metric, *self._entries[row][:4])
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
        """Where each image was taken; None for an unknown place, whose nearest match is beyond
        max_distance (None: that of `accept`, if it was called), and where no match has a position.

        See estimate_place. A place has a radius if `accept` has read one for the threshold that applies.
        """
        return [
            self.place_of(matches, max_distance=max_distance)
            for matches in self.search(images, MATCHES, max_distance=np.inf, bgr=bgr)
        ]

    def place_of(self, matches: Sequence[Match], *, max_distance: float | None = None) -> Place | None:
        """Where the image was taken that has these matches: as `locate`, after a search of its own for at least MATCHES
        matches, whose max_distance was infinity.
        """
        limit = self._limit(max_distance, frames=1)
        if not matches or (limit is not None and matches[0].distance > limit):
            return None
        radius = self._accepted[1].radius if max_distance is None and 1 in self._accepted else None
        unknown = (np.nan, np.nan)
        positions = np.array([match.position or unknown for match in matches])
        degrees = np.array([match.degrees or unknown for match in matches])
        distances = np.array([match.distance for match in matches])
        zones = self._entries.zones(self._rows.snapshot().rows_of([match.id for match in matches]))
        return estimate_place(positions, distances, radius, degrees=degrees, zones=zones)

    def known(self) -> Known:
        """What is remembered of all images beside their features."""
        snapshot = self._rows.snapshot()
        rows = np.flatnonzero(~snapshot.removed)
        records = self._entries.records(rows.tolist())
        positions, degrees = (
            np.stack([records[name] for name in names], axis=1)
            for names in (("easting", "northing"), ("latitude", "longitude"))
        )
        return Known(snapshot.ids[rows], positions, degrees, records["time"], records["zone"])

    def image_file(self, i: int) -> str | None:
        """The path of the file that an image with this id was described from; None where it was no file, such as an
        array with a name that looks like one. Raises InputError for an id that is unknown, or removed.
        """
        (row,) = _rows_of(i, self._rows.snapshot())
        return self._entries[row].name if self._entries.records([row])["size"][0] >= 0 else None

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
        config = LoopConfig(max_distance=max_distance, min_gap=min_gap, suppress=suppress, k=k)
        snapshot = self._rows.snapshot()
        chosen = np.flatnonzero(~snapshot.removed).tolist() if ids is None else _rows_of(ids, snapshot)
        return find_loops(snapshot, chosen, config, rerank_num=self.rerank_num)

    def find_loops_between(
        self, ids: int | Sequence[int], others: Sequence[int], *, max_distance: float, suppress: int = 25, k: int = 1
    ) -> list[Loop]:
        """Images of a sequence that show a place of another one, such as of a second camera or an earlier day: the k
        nearest of each among the other sequence, within max_distance. Suppression as in find_loops.

        ids, others: of the images of the two sequences, each in its order. `earlier` of a loop is one of the others.
        Raises InputError for an id that is unknown, or removed.
        """
        config = LoopConfig(max_distance=max_distance, suppress=suppress, k=k)
        snapshot = self._rows.snapshot()
        among = np.zeros(len(snapshot.removed), bool)
        among[_rows_of(others, snapshot)] = True
        return find_loops(snapshot, _rows_of(ids, snapshot), config, rerank_num=self.rerank_num, among=among)

    def remove(self, ids: int | Sequence[int]) -> None:
        """Forgets images. Raises InputError, and forgets none, if an id is unknown, or removed already."""
        self._rows.remove(_list_ids(ids))

    def restore(self, ids: int | Sequence[int]) -> None:
        """Remembers images again that `remove` has forgotten since the last `save`, which has failed, say. Raises
        InputError, and remembers none, if an id is unknown, or was not removed.
        """
        self._rows.restore(_list_ids(ids))

    def save(self, folder: str | Path) -> None:
        """Writes an index, which `open`, search.py and build_index.py read. The folder must not exist yet; where it is
        that of `open` or of the last `save`, it gets what was added and removed since.

        A program that is killed meanwhile leaves what was there before. `add` waits, and searches do not. Raises
        InputError if the folder holds something else, was changed by another program, or cannot be written.
        """
        if "\0" in str(folder):
            raise InputError(f"{str(folder)!r} is not the name of a folder.")
        with self._adding:
            snapshot = self._rows.snapshot()
            if self._home and self._home.is_at(folder):
                self._home = self._home.update(snapshot, self._entries, self._rows.next_id)
            else:
                metadata = self._home.metadata if self._home else self._metadata()
                self._home = Home.create(
                    Path(folder),
                    metadata,
                    projections=self._projections,
                    snapshot=snapshot,
                    entries=self._entries,
                    next_id=self._rows.next_id,
                )

    @staticmethod
    def open(
        folder: str | Path,
        model: str | Path | GeoLocalizationNet | None = None,
        *,
        device: str = "cpu",
        rerank_num: int = 100,
        verify: bool = True,
        image_root: str | Path | None = None,
    ) -> "PlaceRecognizer":
        """A recogniser that remembers the images of an index, of `save`, build_index.py or eval*.py --save_index.

        model: None for the one that the index names. Codes are in memory, descriptors stay on the disk. verify: compare
        the checksum of every file. image_root: the folder of the images, where they are no longer in the one that the
        index names. Raises InputError if there is no index, it is incomplete or damaged, or is another model's.
        """
        root = None if image_root is None else Path(image_root)
        home, files = Home.open(Path(folder), verify=verify, image_root=root)
        options: dict[str, Any] = {"device": device, "rerank_num": rerank_num}
        opened = PlaceRecognizer.of_kind(home.metadata, folder, model, **options)
        opened._home, opened._rows, opened._entries = home, *home.load(files)
        return opened

    @staticmethod
    def of_kind(
        metadata: IndexMetadata,
        index: object,
        model: str | Path | GeoLocalizationNet | None = None,
        *,
        device: str = "cpu",
        rerank_num: int = 100,
        projections: Projections | None = None,
    ) -> "PlaceRecognizer":
        """A recogniser that describes images as those of an index were, and remembers none.

        index: its folder, or what names one in messages. projections: of one that has no folder. Otherwise as `open`.
        """
        made = PlaceRecognizer(
            weights_of(metadata, index) if model is None else model,
            device=device,
            precision=metadata.precision,
            resize=metadata.image_config.resize,
            rerank_num=rerank_num,
        )
        made._antialias, made._exif_orientation = metadata.antialias, metadata.exif_orientation
        made._projections = read_projections(Path(str(index)), metadata) if projections is None else projections
        metadata.require_compatible(made._metadata(), index)
        return made

    def has_changed_on_disk(self) -> bool:
        """Whether another program has changed the index of `open`, or of the last `save`, since then. Reads its
        manifest, and raises InputError if that is damaged.
        """
        return self._home is not None and self._home.has_changed()

    def reopened(self, *, verify: bool = True) -> "PlaceRecognizer":
        """A recogniser of the same index as its files are now, which shares the model and thresholds of this one. What
        this one holds, and was not saved, is not in it. verify: as for `open`, which it raises InputError as.
        """
        if self._home is None:
            raise InputError("There is no index to open again. Call `save` first.")
        home, files = Home.open(self._home.folder, verify=verify, image_root=self._home.image_root)
        opened = copy.copy(self)  # with the lock of the model
        opened._adding, opened._accepted = threading.Lock(), dict(self._accepted)
        opened._projections = read_projections(home.folder, home.metadata)
        home.metadata.require_compatible(opened._metadata(), home.folder)
        opened._home, opened._rows, opened._entries = home, *home.load(files)
        return opened

    def __len__(self) -> int:
        """The number of images that are remembered."""
        return len(self._rows)

    def _metadata(self) -> IndexMetadata:
        """How an index of this recogniser is made."""
        return IndexMetadata.of(
            self._model,
            ImageConfig(resize=self.resize, antialias=self._antialias),
            self._projections,
            weights_file=self._weights_file,
            precision=self._precision,
            exif_orientation=self._exif_orientation,
            positions=None,
            descriptor_dtype="fp32",
        )

    def _features(self, images: Any, *, bgr: bool) -> Description:
        """The features of images, or the Description that was given in their place.

        Raises InputError if it is not one of this model's.
        """
        if not isinstance(images, Description):
            return self.describe(images, bgr=bgr)
        dim = self._projections.descriptor_dim(self._model.descriptor_dim)
        code_bits = self._projections.code_bits(self._model.config.code_bits)
        expected = {
            "code": (np.dtype(np.uint8), code_bits // 8) if code_bits else None,
            "descriptor": (np.dtype(np.float32), dim) if dim else None,
        }
        given = {
            name: None if a is None else (a.dtype, a.shape[-1] if a.ndim == 2 else a.shape)
            for name, a in images._asdict().items()
        }
        if given != expected or len({len(a) for a in images if a is not None}) != 1:
            raise InputError(f"A Description with {given} is not one of this model, whose are {expected}.")
        descriptor = images.descriptor
        has_length_1 = descriptor is None or (np.abs(np.linalg.norm(descriptor, axis=1) - 1) < 1e-2).all()
        if not (has_length_1 or self._projections.pca):
            raise InputError("A Description whose descriptors do not have length 1. Give what `describe` returned.")
        return Description(*(None if a is None else np.ascontiguousarray(a) for a in images))

    def _limit(self, max_distance: float | None, *, frames: int) -> float | None:
        """The largest distance of a match: that of a call, or else of `accept`; None for any."""
        if max_distance is None and frames in self._accepted:
            return self._accepted[frames].distance
        return max_distance

    def _times(self, count: int) -> np.ndarray:
        """The times of the first `count` images. Raises InputError if one is not known."""
        times = self._entries.times(count)
        unknown = np.flatnonzero(np.isnan(times))
        if len(unknown):
            raise InputError(f"Image {unknown[0]} has no time. Give `add` the times of all, or search without.")
        return times

    def _distance_kind(self, frames: int) -> DistanceKind:
        """The kind of the distances that searches give for sequences of so many frames."""
        has_floats = self._model.config.has_float_branch
        return DistanceKind(
            weights_sha256=self._model.fingerprint,
            image_size=self.resize,
            antialias=self._antialias,
            descriptor_dim=self._projections.descriptor_dim(self._model.descriptor_dim) or CODE_BITS,
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
        code, descriptor = arrays.get("code"), arrays.get("descriptor")
        return self._projections.apply(None if code is None else np.packbits(code > 0, axis=1), descriptor)


def _name_of(model: str | Path | PublishedModel | GeoLocalizationNet) -> str:
    """A model as an index names it: "published", a file, or "" for one that is neither."""
    if isinstance(model, GeoLocalizationNet):
        return UNKNOWN_WEIGHTS
    found = find_model(model) if isinstance(model, str) else model
    return os.path.abspath(found) if isinstance(found, Path) else PUBLISHED


def _list_ids(ids: Any) -> list[int]:
    """Ids as a list. Raises InputError for anything else, such as a mask."""
    array = np.atleast_1d(np.asarray(ids))
    if array.size and (array.ndim != 1 or not np.issubdtype(array.dtype, np.integer)):
        raise InputError(
            f"Ids of type {array.dtype} and shape {list(array.shape)}. Expected whole numbers, as of `add`."
        )
    return array.astype(np.int64).tolist()


def _mask(snapshot: Snapshot, ids: Sequence[int]) -> np.ndarray:
    """Bool [N], true at these ids. Raises InputError for an id that is unknown."""
    mask = np.zeros(len(snapshot.removed), bool)
    mask[snapshot.rows_of(_list_ids(ids))] = True
    return mask


def _rows_of(ids: Any, snapshot: Snapshot) -> list[int]:
    """The rows with these ids. Raises InputError for an id that is unknown, or removed."""
    chosen = _list_ids(ids)
    rows = snapshot.rows_of(chosen)
    for i, row in zip(chosen, rows, strict=True):
        if snapshot.removed[row]:
            raise InputError(f"There is no image {i}. Give ids of images that were added, and not removed.")
    return rows


def _each(features: Description) -> list[Description]:
    """The rows of a Description, one by one."""
    return [Description(*(None if a is None else a[i : i + 1] for a in features)) for i in range(len(features))]
