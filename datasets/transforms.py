"""From decoded photos to the tensors that a model takes."""
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize_photo(photo: Image.Image, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """RGB photo -> [3, H, W] float32 in [0, 1], resized bilinearly to size = (H, W).

    Each axis is resized by a sparse matrix product, rows first, which need no reordering; the result is F.interpolate's but for rounding.
    """
    pixels = torch.from_numpy(np.array(photo))
    (height, width, _), (new_height, new_width) = pixels.shape, size
    rows = resizing_matrix(height, new_height, antialias) @ pixels.view(height, width * 3).float()
    columns = resizing_matrix(width, new_width, antialias) @ rows.t().reshape(width, 3 * new_height)
    return columns.view(new_width, 3, new_height).permute(1, 2, 0).contiguous().div_(255)


@lru_cache(maxsize=256)
def resizing_matrix(old: int, new: int, antialias: bool) -> Tensor:
    """Sparse [new, old] float32: what F.interpolate makes of an axis of `old` pixels, as a matrix."""
    with torch.inference_mode(False):  # what is kept is to serve outside of it too
        return F.interpolate(torch.eye(old)[None, None], (new, old), mode="bilinear", antialias=antialias)[0, 0].to_sparse()


def normalize(images: Tensor) -> Tensor:
    """Images [..., 3, H, W] in [0, 1] -> the same by ImageNet's mean and deviation, as models take them."""
    mean, std = _mean_and_std(images.device, images.dtype)
    return (images - mean).div_(std)


@lru_cache
def _mean_and_std(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[3, 1, 1] each. Made anew for each batch, they would have the host wait for the GPU each time."""
    with torch.inference_mode(False):
        return tuple(torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))


def training_transform(size: tuple[int, int], randaugment_ops: int = 3) -> Callable[[Image.Image], Tensor]:
    """RGB photo -> [3, H, W] uint8: resized bilinearly to size = (H, W), then RandAugment (Cubuk et al., 2020)."""
    return partial(_augment, size, _RandAugment(num_ops=randaugment_ops, interpolation=v2.InterpolationMode.BILINEAR))


def _augment(size: tuple[int, int], randaugment: v2.RandAugment, photo: Image.Image) -> Tensor:
    height, width = size
    return v2.functional.pil_to_tensor(randaugment(photo.resize((width, height), Image.Resampling.BILINEAR)))


class _RandAugment(v2.RandAugment):
    """torchvision's, pixel for pixel. Translation, always by whole pixels, is a crop here, not an interpolation, which takes far longer."""

    def _apply_image_or_video_transform(self, image: Image.Image, transform_id: str, magnitude: float, *args, **kwargs) -> Image.Image:
        if not transform_id.startswith("Translate"):
            return super()._apply_image_or_video_transform(image, transform_id, magnitude, *args, **kwargs)
        x, y = (int(magnitude), 0) if transform_id == "TranslateX" else (0, int(magnitude))
        return image.crop((-x, -y, image.width - x, image.height - y))
