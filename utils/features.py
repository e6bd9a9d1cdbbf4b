"""Extraction: photos in, descriptors and packed codes out."""
import logging
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
from utils.retrieval import NOT_FINITE
from utils.signals import ignore_stop_signals

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_INSTRUCTIONS = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith")}  # x86, x86, ARM


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


def extract(model: GeoLocalizationNet, paths: Sequence[str | Path], settings: ExtractionSettings, float_branch: bool = True) -> Features | None:
    """Features of the photos, kept in memory, by a model in eval mode on the settings' device; no descriptors where `float_branch` is False.

    Under torchrun each rank extracts its share, and the main process gets them all; the others get None. Raises InputError for a photo
    that cannot be read.
    """
    (features,) = extract_pieces(model, paths, [range(len(paths))], settings, float_branch)
    return features


def extract_pieces(model: GeoLocalizationNet, paths: Sequence[str | Path], pieces: Sequence[range], settings: ExtractionSettings,
                   float_branch: bool = True) -> Iterator[Features | None]:
    """Features of one piece after another, ranges of the photos' numbers, out of one stream of batches that does not stop between them.

    A batch holds photos of one piece, so that a piece's features do not depend on the pieces before it. Under torchrun each rank extracts
    its share of each piece; the main process gets the whole, the others None. Raises InputError for a photo that cannot be read.
    """
    shares = [piece[len(piece) * distributed.rank() // distributed.world_size():len(piece) * (distributed.rank() + 1) // distributed.world_size()]
              for piece in pieces]
    batches = [[share[i:i + settings.batch_size] for i in range(0, len(share), settings.batch_size)] for share in shares]
    loader = DataLoader(PhotoDataset(paths, settings.size, settings.antialias), batch_sampler=[batch for piece in batches for batch in piece],
                        num_workers=settings.num_workers, collate_fn=collate_photos, pin_memory=settings.device.startswith("cuda"),
                        worker_init_fn=ignore_stop_signals)
    most = settings.batch_size
    loaded = iter(loader)
    with tqdm(total=sum(map(len, shares)), desc="Extracting", unit="photo", disable=not distributed.is_main()) as bar:
        for piece in batches:
            own = []
            for batch in piece:
                images = next(loaded)
                if isinstance(images, InputError):
                    raise InputError(*images.args)  # a new one: a frame that holds its own error would keep the loader's processes from ending
                features, most = extract_batch(model, images, settings, float_branch, most)
                own.append(features)
                bar.update(len(batch))
            gathered = distributed.gather_to_main(own)
            yield None if gathered is None else _concatenate([batch for share in gathered for batch in share])


def extract_batch(model: GeoLocalizationNet, images: Tensor, settings: ExtractionSettings, float_branch: bool, most: int) -> tuple[Features, int]:
    """Features of images [B, 3, H, W] in [0, 1], by at most `most` at once; where a GPU's memory does not hold them, by half as many.

    Returns with them how many at once did fit.
    """
    while True:
        try:
            return _concatenate([_forward(model, part, settings, float_branch) for part in images.split(most)]), most
        except torch.OutOfMemoryError:
            if most == 1:
                raise
        # Out of the except block: the error holds the frames, and so the tensors, that filled the memory.
        torch.cuda.empty_cache()
        logging.warning("The GPU's memory does not hold %d photos at once: going on with %d (--infer_batch_size)", most, -(-most // 2))
        most = -(-most // 2)


def cpu_computes(precision: str) -> bool:
    """Whether this CPU has instructions for products in a PRECISIONS name. Without, PyTorch computes the same, but slower than in fp32."""
    return precision == "fp32" or any(torch.cpu.get_capabilities().get(name, False) for name in CPU_INSTRUCTIONS[precision])


def pack_codes(codes: Tensor) -> Tensor:
    """[B, 8*b] of -1 and +1 -> [B, b] uint8 on the same device, +1 as bit 1, the first as the highest bit (np.packbits order)."""
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=codes.device)
    return ((codes > 0).unflatten(1, (-1, 8)) * weights).sum(dim=2, dtype=torch.uint8)


def _forward(model: GeoLocalizationNet, images: Tensor, settings: ExtractionSettings, float_branch: bool) -> Features:
    device = torch.device(settings.device)
    with torch.inference_mode(), torch.autocast(device.type, PRECISIONS[settings.precision], enabled=settings.precision != "fp32"):
        return _to_features(model(normalize(images.to(device, non_blocking=True)), float_branch))


def _to_features(output: Tensor | HashingOutput | TwoBranchOutput) -> Features:
    """Raises InputError for what is not finite: an index would keep it, and codes do not show it."""
    numbers = (output,) if isinstance(output, Tensor) else (output.logits, getattr(output, "descriptor", output.logits))
    if not all(bool(tensor.isfinite().all()) for tensor in numbers):
        raise InputError(NOT_FINITE)
    if isinstance(output, Tensor):
        return Features(None, output.cpu().numpy())
    descriptor = getattr(output, "descriptor", None)
    return Features(pack_codes(output.code).cpu().numpy(), descriptor.cpu().numpy() if descriptor is not None else None)


def _concatenate(parts: list[Features]) -> Features:
    return Features(*(np.concatenate(arrays) if arrays[0] is not None else None for arrays in zip(*parts, strict=True)))
