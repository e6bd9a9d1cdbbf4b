"""Extraction: photos in, descriptors and packed codes out."""
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.photos import PhotoDataset, collate_photos
from datasets.transforms import normalize
from model import GeoLocalizationNet, HashingOutput, InputError, TwoBranchOutput

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Features(NamedTuple):
    """Of N photos: codes [N, 64] uint8, 512 bits packed (np.packbits order), and descriptors [N, dim] float32; None where the model has none."""

    codes: np.ndarray | None
    descriptors: np.ndarray | None

    def split(self, n: int) -> tuple["Features", "Features"]:
        """The first n photos' and the others'."""
        return tuple(Features(*(a[part] if a is not None else None for a in self)) for part in (slice(n), slice(n, None)))


def extract(model: GeoLocalizationNet, photos: PhotoDataset, batch_size: int, num_workers: int = 0, device: torch.device | str = "cpu",
            precision: str = "fp32", progress: bool = True) -> Features:
    """Features of all photos. The model must be in eval mode on `device`. Raises InputError for a photo that cannot be read."""
    codes = np.empty((len(photos), 64), np.uint8) if model.hashing else None
    descriptors = np.empty((len(photos), model.descriptor_dim), np.float32) if model.descriptor_dim else None
    with tqdm(total=len(photos), desc="Extracting", unit="photo", disable=not progress) as bar:
        start = 0
        for batch in extract_batches(model, photos, batch_size, num_workers, device, precision):
            stop = start + len(batch.codes if batch.codes is not None else batch.descriptors)
            if codes is not None:
                codes[start:stop] = batch.codes
            if descriptors is not None:
                descriptors[start:stop] = batch.descriptors
            bar.update(stop - start)
            start = stop
    return Features(codes, descriptors)


def extract_batches(model: GeoLocalizationNet, photos: PhotoDataset, batch_size: int, num_workers: int, device: torch.device | str,
                    precision: str) -> Iterator[Features]:
    """Features of one batch after another, in the order of the photos."""
    device = torch.device(device)
    loader = DataLoader(photos, batch_size, num_workers=num_workers, collate_fn=collate_photos, pin_memory=device.type == "cuda")
    for images in loader:
        if isinstance(images, InputError):
            raise images
        with torch.inference_mode(), torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
            output = model(normalize(images.to(device, non_blocking=True)))
        yield _features(output)


def pack_codes(codes: Tensor) -> Tensor:
    """[B, 8*b] of -1 and +1 -> [B, b] uint8 on the same device, +1 as bit 1, the first as the highest bit (np.packbits order)."""
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=codes.device)
    return ((codes > 0).unflatten(1, (-1, 8)) * weights).sum(dim=2, dtype=torch.uint8)


def _features(output: Tensor | HashingOutput | TwoBranchOutput) -> Features:
    if isinstance(output, Tensor):
        return Features(None, output.cpu().numpy())
    descriptor = getattr(output, "descriptor", None)
    return Features(pack_codes(output.code).cpu().numpy(), descriptor.cpu().numpy() if descriptor is not None else None)
