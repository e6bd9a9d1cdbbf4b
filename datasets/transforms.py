"""The augmentation of training images."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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
