"""From decoded photos to the tensors that a model takes."""
from collections.abc import Callable

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize_photo(photo: Image.Image, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """RGB photo -> [3, H, W] float32 in [0, 1], resized bilinearly to size = (H, W)."""
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float().div(255)
    return TF.resize(image, list(size), antialias=antialias)


def normalize(images: Tensor) -> Tensor:
    """Images [..., 3, H, W] in [0, 1] -> the same by ImageNet's mean and deviation, as models take them."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def training_transform(size: tuple[int, int], randaugment_ops: int = 3) -> Callable[[Image.Image], Tensor]:
    """RGB photo -> [3, H, W] uint8: resized bilinearly to size = (H, W), then RandAugment (Cubuk et al., 2020)."""
    return v2.Compose([
        v2.Resize(list(size), interpolation=v2.InterpolationMode.BILINEAR),
        v2.RandAugment(num_ops=randaugment_ops, interpolation=v2.InterpolationMode.BILINEAR),
        v2.PILToTensor(),
    ])
