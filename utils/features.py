"""Extraction: photos in, descriptors and packed codes out."""
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.photos import PhotoDataset, collate_photos
from datasets.transforms import normalize
from model import GeoLocalizationNet, HashingOutput, InputError, TwoBranchOutput
from utils import distributed
from utils.signals import ignore_stop_signals

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ExtractionSettings(NamedTuple):
    """How photos become features: size (H, W) in pixels; photos a batch; reading processes; a PRECISIONS name."""

    size: tuple[int, int] = (322, 322)
    antialias: bool = True
    batch_size: int = 16
    num_workers: int = 0
    device: str = "cpu"
    precision: str = "fp32"


class Features(NamedTuple):
    """Of N photos: codes [N, 64] uint8, 512 bits packed (np.packbits order), and descriptors [N, dim] float32; None where the model has none."""

    codes: np.ndarray | None
    descriptors: np.ndarray | None

    def split(self, n: int) -> tuple["Features", "Features"]:
        """The first n photos' and the others'."""
        return tuple(Features(*(a[part] if a is not None else None for a in self)) for part in (slice(n), slice(n, None)))


def extract(model: GeoLocalizationNet, paths: Sequence[Path], settings: ExtractionSettings, float_branch: bool = True) -> Features | None:
    """Features of the photos, by a model in eval mode on the settings' device; without descriptors where `float_branch` is False.

    Under torchrun each rank extracts its share, and the main process gets them all; the others get None. Raises InputError for a photo
    that cannot be read.
    """
    first, last = (len(paths) * rank // distributed.world_size() for rank in (distributed.rank(), distributed.rank() + 1))
    batches = []
    with tqdm(total=last - first, desc="Extracting", unit="photo", disable=not distributed.is_main()) as bar:
        for batch in extract_batches(model, paths[first:last], settings, float_branch):
            batches.append(batch)
            bar.update(len(next(array for array in batch if array is not None)))
    shares = distributed.gather_to_main(batches)
    if shares is None:
        return None
    codes, descriptors = zip(*(batch for share in shares for batch in share), strict=True)
    return Features(*(np.concatenate(arrays) if arrays[0] is not None else None for arrays in (codes, descriptors)))


def extract_batches(model: GeoLocalizationNet, paths: Sequence[Path], settings: ExtractionSettings, float_branch: bool) -> Iterator[Features]:
    """Features of one batch after another, in the order of the photos."""
    device = torch.device(settings.device)
    loader = DataLoader(PhotoDataset(paths, settings.size, settings.antialias), settings.batch_size, num_workers=settings.num_workers,
                        collate_fn=collate_photos, pin_memory=device.type == "cuda", worker_init_fn=ignore_stop_signals)
    for images in loader:
        if isinstance(images, InputError):
            raise images
        with torch.inference_mode(), torch.autocast(device.type, PRECISIONS[settings.precision], enabled=settings.precision != "fp32"):
            output = model(normalize(images.to(device, non_blocking=True)), float_branch)
        yield _to_features(output)


def pack_codes(codes: Tensor) -> Tensor:
    """[B, 8*b] of -1 and +1 -> [B, b] uint8 on the same device, +1 as bit 1, the first as the highest bit (np.packbits order)."""
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=codes.device)
    return ((codes > 0).unflatten(1, (-1, 8)) * weights).sum(dim=2, dtype=torch.uint8)


def _to_features(output: Tensor | HashingOutput | TwoBranchOutput) -> Features:
    if isinstance(output, Tensor):
        return Features(None, output.cpu().numpy())
    descriptor = getattr(output, "descriptor", None)
    return Features(pack_codes(output.code).cpu().numpy(), descriptor.cpu().numpy() if descriptor is not None else None)
