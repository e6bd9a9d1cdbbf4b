"""Bilinear resizing with sparse matrices: equal to F.interpolate up to rounding, and faster (benchmarks/README.md)."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def resize_image_reference(image: Image.Image, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """What `resize_image` computes, in one line of PyTorch."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=antialias)[0]


def resize_image(image: Image.Image, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """RGB image -> [3, H, W] float32 in [0, 1], resized bilinearly to size = (H, W).

    Each axis is resized by a product with a sparse matrix. Rows come first, since the pixels then need no reordering.
    The result equals `resize_image_reference` up to rounding.
    """
    pixels = torch.from_numpy(np.array(image))
    (height, width, _), (new_height, new_width) = pixels.shape, size
    rows = resizing_matrix(height, new_height, antialias) @ pixels.view(height, width * 3).float()
    columns = resizing_matrix(width, new_width, antialias) @ rows.t().reshape(width, 3 * new_height)
    return columns.view(new_width, 3, new_height).permute(1, 2, 0).contiguous().div_(255)


@lru_cache(maxsize=256)
def resizing_matrix(old: int, new: int, antialias: bool) -> Tensor:
    """Sparse [new, old] float32: bilinear interpolation of an axis of `old` pixels as a matrix."""
    with torch.inference_mode(False):  # the cached matrix must also serve outside of inference mode
        return F.interpolate(torch.eye(old)[None, None], (new, old), mode="bilinear", antialias=antialias)[
            0, 0
        ].to_sparse()
