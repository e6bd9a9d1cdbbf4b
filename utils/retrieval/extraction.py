"""Extraction: images in, descriptors and packed codes out."""

import contextlib
import logging
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.image_set import ImageSet
from datasets.images import ImageDataset, collate_images
from model import GeoLocalizationNet, ImageConfig, InputError, ModelChoice, prepare_for_inference
from model.config import patch_grid
from model.images import normalize
from model.index.manifest import CHUNK_SIZE
from model.index.projections import NO_PROJECTIONS, Projections
from model.inference import Describer, dtype_of
from model.network import sign
from model.weights import load_model
from model.zoo import PublishedModel
from utils.engines.onnx_file import is_onnx, load_onnx, read_onnx
from utils.engines.openvino import HINTS, OpenVINODescriber, is_installed
from utils.models import model_on_all_ranks
from utils.retrieval.config import CropConfig, ExtractionConfig, IndexConfig
from utils.retrieval.crops import average_crops
from utils.retrieval.features import FeatureBuffer, Features, as_array
from utils.retrieval.index import IndexWriter, metadata_of
from utils.runtime import distributed
from utils.runtime.memory import memory_bytes
from utils.runtime.workers import start_worker

Arrays = tuple[
    np.ndarray | None, np.ndarray | None
]  # codes [B, 64] uint8, descriptors [B, dim] float32; or [B, 3, ...]
OPENVINO_WORK = 1e13  # operations, of 100 images by dinov2-base: below, its conversion takes longer than it saves
MAX_NAMED = 200  # damaged images in a message
NOT_FINITE = "The model's output contains NaN or infinity. The weights may be damaged, or fp16 overflows (try bf16)."
OTHER_IMAGES = (
    "Images are resized to %s. The model, or the index, states %s: leave out --resize and --no_antialias for that."
)
DEAD = (
    "The images differ, but the model gives them all one and the same {}, so that results would come in the order of "
    "the files. The weights or their export are broken."
)
IGNORED_ORIENTATION = (
    "%d of %d images carry an EXIF orientation, which is ignored, as in the reference. eval*.py --exif_orientation "
    "turns them upright."
)


def settle_images(config: ExtractionConfig, stored: ImageConfig | None) -> ExtractionConfig:
    """The settings, with the images that a model or an index states where the user leaves them open.

    Warns if the user states others.
    """
    images = config.over(stored or ImageConfig())
    if stored not in (None, images) and distributed.is_main():
        logging.warning(OTHER_IMAGES, images, stored)
    return replace(config, resize=images.resize, antialias=images.antialias)


class Loaded(NamedTuple):
    """A model as the functions below take it; the images that it states, or None; and the settings, which say where it
    takes images and in which precision it computes.
    """

    model: Describer
    images: ImageConfig | None
    config: ExtractionConfig


def load_describer(
    choice: ModelChoice, source: PublishedModel | Path, config: ExtractionConfig, *, num_images: int
) -> Loaded:
    """The model with the weights of `source`, or that an ONNX file holds, prepared on every rank. The main rank reads
    files. num_images: see choose_engine.

    Raises InputError if the file is missing or another model's, or if its engine is not installed.
    """
    if is_onnx(source):
        assert isinstance(source, Path), "as is_onnx says"
        if config.compile:
            raise InputError(f"--compile applies to PyTorch, and {source} is an ONNX file. Leave it out.")
        content = distributed.run_on_main(partial(read_onnx, source))
        described = load_onnx(
            content, source, engine=config.engine, provider=config.onnx_provider, precision=config.precision
        )
        described.require(choice.resolve(described.config), source)
        settings = replace(config, device="cpu", precision=described.precision)
        return Loaded(described, described.metadata.images, settings)
    model = model_on_all_ranks(partial(load_model, choice, source)).eval()
    return Loaded(prepare(model, config, num_images=num_images), model.image_config, config)


def prepare(model: GeoLocalizationNet, config: ExtractionConfig, *, num_images: int = 0) -> Describer:
    """A model in eval mode as the functions below take it, on the device and in the precision of the settings.

    num_images: see choose_engine. Raises InputError as that does.
    """
    if choose_engine(model, config, num_images) == "openvino":
        return OpenVINODescriber(model, config.precision)
    return prepare_for_inference(model, dtype_of(config.precision), device=config.device, compiled=config.compile)


def choose_engine(model: GeoLocalizationNet, config: ExtractionConfig, num_images: int) -> str:
    """The engine of a model with weights, "torch" or "openvino". "auto" is the latter where that is installed and ends
    sooner with so many images.

    Raises InputError for settings of ONNX files, and if OpenVINO cannot compute so.
    """
    if config.engine == "onnxruntime" or config.onnx_provider:
        raise InputError(
            "--engine onnxruntime and --onnx_provider apply to ONNX files. Leave them out, or export the model with "
            "export.py onnx, and give that file."
        )
    on_cpu = torch.device(config.device).type == "cpu"
    if config.engine == "openvino" and not on_cpu:
        raise InputError(f"--engine openvino runs on the CPU, not on {config.device}. Give --device cpu too.")
    if config.engine != "auto":
        return config.engine
    height, width = patch_grid(*config.over(model.image_config or ImageConfig()).resize)
    weights = sum(parameter.numel() for parameter in model.parameters())
    work = 2 * weights * height * width * num_images  # multiplications and additions
    is_better = platform.machine().lower() in ("x86_64", "amd64") and work >= OPENVINO_WORK
    can = on_cpu and not config.compile and config.precision in HINTS and is_installed()
    return "openvino" if can and is_better else "torch"


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """What makes features of images: a prepared model, settings, and what is applied to descriptors, which the main
    rank alone needs. merging: of queries whose crops are searched one by one.
    """

    model: Describer
    config: ExtractionConfig
    projections: Projections = NO_PROJECTIONS
    merging: CropConfig | None = None

    def for_queries(self, crops: CropConfig) -> "Extractor":
        """The extractor of queries that are cropped so."""
        # Images of "single_query" differ in size, so that each is a batch of its own.
        batch_size = 1 if crops.test_method == "single_query" else self.config.batch_size
        config = replace(self.config, test_method=crops.test_method, batch_size=batch_size)
        return replace(self, config=config, merging=crops if crops.are_merged else None)


def extract(
    extractor: Extractor, images: ImageSet, *, float_branch: bool = True, save_to: IndexConfig | None = None
) -> Features | None:
    """Extracts features. Without `float_branch`: the codes only.

    With `save_to`, the features go to that index, which may already contain some of the images, or others. Everything
    that it then contains is returned. Under torchrun each rank extracts its share; the main rank returns the features,
    the others None. Raises InputError as extract_chunks does; an index then keeps the chunks before.
    """
    projections, merging = extractor.projections, extractor.merging
    with _open_store(extractor, images, save_to) as store:
        indices: Any = store.to_extract(images) if store else None
        remaining = images[distributed.broadcast_object(indices)]
        for chunk in extract_chunks(extractor.model, remaining, extractor.config, float_branch=float_branch):
            if store and chunk:
                store.append(project(projections, chunk))
        return store.features()._replace(merging=merging) if store else None


def project(projections: Projections, features: Features) -> Features:
    """Features of a chunk as they are stored: descriptors that are projected, and codes that are made of them."""
    arrays = [None if part is None else as_array(part) for part in (features.codes, features.descriptors)]
    codes, descriptors = projections.apply(arrays[0], arrays[1])
    return features._replace(codes=codes, descriptors=descriptors)


def extract_chunks(
    model: Callable[[Tensor, bool], Any], images: ImageSet, config: ExtractionConfig, *, float_branch: bool = True
) -> Iterator[Features | None]:
    """The features of CHUNK_SIZE images at a time, as `extract` stores them; None on all but the main rank.

    Logs at the end how many images carry an EXIF orientation that was not applied. Raises InputError, which names them,
    if images cannot be read: once all have been tried, so that they need not be found one by one. And if images that
    differ all get the same descriptor or logits.

    A batch never spans two chunks, so that the features of a chunk do not depend on the chunks before it.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    chunks = [range(start, min(start + CHUNK_SIZE, len(images))) for start in range(0, len(images), CHUNK_SIZE)]
    shares = [chunk[len(chunk) * rank // world_size : len(chunk) * (rank + 1) // world_size] for chunk in chunks]
    batches = [[s[i : i + config.batch_size] for i in range(0, len(s), config.batch_size)] for s in shares]
    loader = DataLoader(
        ImageDataset(
            images.paths,
            config.image_config.resize,
            antialias=config.image_config.antialias,
            method=config.test_method,
            exif_orientation=config.exif_orientation,
        ),
        batch_sampler=[list(batch) for share in batches for batch in share],
        num_workers=config.num_workers,
        collate_fn=collate_images,
        pin_memory=config.device.startswith("cuda"),
        worker_init_fn=start_worker,
    )
    forward = Forward(model, config, float_branch)
    loaded = iter(loader)
    num_turned, errors = 0, list[InputError]()
    with tqdm(total=sum(map(len, shares)), desc="Extracting", unit="image", disable=not distributed.is_main()) as bar:
        for chunk, share in zip(chunks, batches, strict=True):
            local = []
            for batch_indices in share:
                batch = next(loaded)
                bar.update(len(batch_indices))
                if isinstance(batch, list):
                    errors += batch
                elif not errors:  # the rest is only read
                    local.append(forward(batch.pixels))
                    num_turned += batch.num_turned
            gathered = distributed.gather_objects((local, len(errors)))
            if gathered is None or any(count for _, count in gathered):
                yield None
            else:
                codes, descriptors = _concatenate([arrays for part, _ in gathered for arrays in part])
                yield Features(images[chunk.start : chunk.stop], codes, descriptors)
    _raise_all(errors, len(images))
    for name, output in (("descriptor", "descriptor"), ("code", "logits")):
        if not distributed.any_rank(not forward.is_dead(output)):
            raise InputError(DEAD.format(name))
    num_turned = sum(distributed.all_gather_int(num_turned))
    if num_turned and distributed.is_main():
        logging.warning(IGNORED_ORIENTATION, num_turned, len(images))


def _raise_all(errors: list[InputError], num_images: int) -> None:
    """Raises one InputError for those of all ranks, on every rank, if there are any."""
    gathered = distributed.gather_objects(list(map(str, errors)))
    problems = [problem for part in distributed.broadcast_object(gathered) or () for problem in part]
    if not problems:
        return
    first, *others = problems
    if others:
        named = "; ".join(others[:MAX_NAMED]) + f"; and {len(others) - MAX_NAMED} more" * (len(others) > MAX_NAMED)
        first += f"\n{len(others)} more of the {num_images} images cannot be used: {named}"
    raise InputError(first)


class Constancy:
    """Whether all rows that it has been shown are equal: two or more. It stops to compare at the first that differs."""

    def __init__(self) -> None:
        self.count, self.differs = 0, False
        self.first: Tensor | None = None

    def show(self, rows: Tensor) -> None:
        """Rows [B, ...]."""
        self.count += len(rows)
        if self.differs:
            return
        if self.first is None:
            self.first = rows[:1].clone()
        self.differs = rows.shape[1:] != self.first.shape[1:] or not bool((rows == self.first).all())

    @property
    def holds(self) -> bool:
        """Whether there were several rows, and none differed."""
        return self.count > 1 and not self.differs


class Forward:
    """Images [B, 3, H, W] in [0, 1] -> NumPy (codes, descriptors).

    Of images with three crops, [B, 3, 3, H, W], "five_crops" averages descriptors and logits; the other methods keep
    the features of each crop. A batch that does not fit into the GPU's memory is halved, and so are all that follow.
    """

    def __init__(
        self, model: Callable[[Tensor, bool], Any], config: ExtractionConfig, float_branch: bool = True
    ) -> None:
        self.model = model
        self.device = torch.device(config.device)
        self.averages_crops = config.test_method == "five_crops"
        self.float_branch = float_branch
        self.max_batch = config.batch_size
        self.pixels, self.outputs = Constancy(), defaultdict[str, Constancy](Constancy)

    def is_dead(self, output: str) -> bool:
        """Whether an output, "descriptor" or "logits", was the same for all images, although these differed."""
        return self.pixels.differs and self.outputs[output].holds

    def __call__(self, images: Tensor) -> Arrays:
        while True:
            try:
                return _concatenate([self._forward(part) for part in images.split(self.max_batch)])
            except torch.OutOfMemoryError:
                if self.max_batch == 1:
                    raise
            # Outside the except block: the exception holds the frames, and so the tensors, that filled the memory.
            torch.cuda.empty_cache()
            smaller = -(-self.max_batch // 2)
            logging.warning("GPU out of memory at batch size %d; retrying with %d.", self.max_batch, smaller)
            self.max_batch = smaller

    def _forward(self, images: Tensor) -> Arrays:
        crops = images.flatten(0, -4)  # one per image, unless a test method makes several
        output = self.model(normalize(crops.to(self.device, non_blocking=True)), self.float_branch)
        parts = {"descriptor": output} if isinstance(output, Tensor) else output._asdict()
        if images.ndim == 5:
            parts = {name: part.unflatten(0, images.shape[:2]) for name, part in parts.items()}
            if self.averages_crops:
                parts = {name: average_crops(part) for name, part in parts.items()}
                if "logits" in parts:
                    parts["code"] = sign(parts["logits"])
        if not all(
            bool(part.isfinite().all()) for part in parts.values()
        ):  # sign() would turn NaN into a valid-looking code
            raise InputError(NOT_FINITE)
        self.pixels.show(images)
        for name in {"descriptor", "logits"} & parts.keys():
            self.outputs[name].show(parts[name])
        code, descriptor = parts.get("code"), parts.get("descriptor")
        return (
            pack_codes(code).cpu().numpy() if code is not None else None,
            descriptor.cpu().numpy() if descriptor is not None else None,
        )


def pack_codes(codes: Tensor) -> Tensor:
    """[..., 8*b] of -1 and +1 -> [..., b] uint8 on the same device, in np.packbits order, +1 as bit 1."""
    # int32, because ONNX cannot sum uint8.
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int32, device=codes.device)
    return ((codes > 0).unflatten(-1, (-1, 8)) * weights).sum(dim=-1, dtype=torch.int32).to(torch.uint8)


def _open_store(
    extractor: Extractor, images: ImageSet, save_to: IndexConfig | None
) -> contextlib.AbstractContextManager[IndexWriter | FeatureBuffer | None]:
    """Where the main rank stores features: in the index `save_to`, or in a buffer. None on the other ranks."""
    config, projections = extractor.config, extractor.projections

    def open_on_main() -> contextlib.AbstractContextManager[IndexWriter | FeatureBuffer]:
        if save_to is not None:
            metadata = metadata_of(extractor.model, config, save_to, projections=projections)
            return IndexWriter(save_to, metadata, projections)
        max_bytes = config.memory_share * memory_bytes()
        return contextlib.nullcontext(FeatureBuffer(images, max_bytes, config.temporary_folder))

    return distributed.run_on_main(open_on_main, share=False) or contextlib.nullcontext()


def _concatenate(parts: list[Arrays]) -> Arrays:
    codes, descriptors = (
        np.concatenate(arrays) if arrays[0] is not None else None for arrays in zip(*parts, strict=True)
    )
    return codes, descriptors
