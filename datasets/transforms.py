"""Normalisation, and the augmentation of training images."""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(images: Tensor) -> Tensor:
    """Images [..., 3, H, W] in [0, 1] -> the same, normalised with the ImageNet mean and standard deviation."""
    mean, std = _mean_and_std(images.device, images.dtype)
    return (images - mean).div_(std)


@lru_cache
def _mean_and_std(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[3, 1, 1] each. Cached: recreating them per batch would force a host-device synchronisation."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(v, dtype=dtype, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return mean, std


def training_transform(size: tuple[int, int], randaugment_ops: int = 3) -> Callable[[Image.Image], Tensor]:
    """RGB image -> [3, H, W] uint8: resized bilinearly to size = (H, W), then RandAugment (Cubuk et al., 2020)."""
    if randaugment_ops == 0:
        return partial(_resize, size)
    from datasets.randaugment import RandAugment  # loads torchvision

    return partial(_resize, size, augment=RandAugment(randaugment_ops))


def _resize(
    size: tuple[int, int], image: Image.Image, augment: Callable[[Image.Image], Image.Image] | None = None
) -> Tensor:
    resized = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(augment(resized) if augment else resized)).permute(2, 0, 1)
