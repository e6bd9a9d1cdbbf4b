"""Images as a program has them, and as the model takes them."""

import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EXPECTED = (
    "Expected a path, the bytes of an image file, a PIL image, a NumPy array uint8 [H, W, 3] or [H, W], or a tensor "
    "uint8 [3, H, W]; or a list of these."
)


def rgb_pixels(image: Any, *, bgr: bool = False, upright: bool = True) -> np.ndarray:
    """An image as a program has it -> RGB pixels [H, W, 3] uint8; `upright` as its EXIF data says, where it has any.

    image: a path, the bytes of an image file, a PIL image, a NumPy array uint8 [H, W, 3] or [H, W] (grey), or a tensor
    uint8 [3, H, W] on any device. bgr: the channels of arrays and tensors are in OpenCV's order. Pillow is needed for
    files and its own images only. Raises InputError, which says what came, for anything else, and for files that cannot
    be read.
    """
    if isinstance(image, (str, os.PathLike, bytes)):
        from .image_files import load_image  # needs Pillow, which a program with arrays may lack

        source = image if isinstance(image, bytes) else os.fspath(image)
        return np.array(load_image(source, exif_orientation=upright))
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            raise InputError(f"A tensor {image.dtype} {list(image.shape)} is not an image. {EXPECTED}{_hint(image)}")
        pixels = image.permute(1, 2, 0).cpu().numpy()
    elif isinstance(image, np.ndarray):
        is_grey = image.ndim == 2
        if image.dtype != np.uint8 or not (is_grey or image.ndim == 3 and image.shape[2] == 3) or not image.size:
            raise InputError(f"An array {image.dtype} {list(image.shape)} is not an image. {EXPECTED}{_hint(image)}")
        pixels = np.repeat(image[:, :, None], 3, axis=2) if is_grey else image
    elif hasattr(image, "getexif"):  # without an import of Pillow
        return _from_pillow(image, upright)
    else:
        raise InputError(f"An object of type {type(image).__name__} is not an image. {EXPECTED}")
    return np.ascontiguousarray(pixels[:, :, ::-1] if bgr else pixels)


def normalize(images: Tensor) -> Tensor:
    """Images [..., 3, H, W] in [0, 1] -> the same, normalised with the ImageNet mean and standard deviation."""
    mean, std = _mean_and_std(images.device, images.dtype)
    return (images - mean).div_(std)


def _from_pillow(image: Any, upright: bool) -> np.ndarray:
    from .image_files import DAMAGED, TURNS, exif_orientation_of, to_rgb

    try:
        rgb = to_rgb(image.copy())  # which may change what it is given
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"Cannot read the image {image}: {error}. It may be damaged or truncated.") from error
    turn = TURNS.get(exif_orientation_of(image)) if upright else None
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _hint(image: Any) -> str:
    """What to do with the arrays that come most often."""
    if "float" in str(image.dtype):
        return " Multiply values from 0 to 1 by 255, round them, and convert them to uint8."
    if image.ndim == 4:
        return " Of a batch, give a list."
    return ""


@lru_cache
def _mean_and_std(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[3, 1, 1] each. Cached: recreating them per batch would force a host-device synchronisation."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(v, dtype=dtype, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return mean, std
