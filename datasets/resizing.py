"""Resizing of Pillow's images."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model.resizing import resize_pixels

MAX_BLOCK_PIXELS = 2**24  # of an image that are copied at a time


def resize_image_reference(image: Image.Image, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """What `resize_image` computes, in one line of PyTorch."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=antialias)[0]


def resize_image(image: Image.Image, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """RGB image -> [3, H, W] float32 in [0, 1], resized bilinearly to size = (H, W).

    The result equals `resize_image_reference` up to rounding.
    """
    width, height = image.size
    block = max(MAX_BLOCK_PIXELS // height, 1)
    boxes = [(left, 0, min(left + block, width), height) for left in range(0, width, block)]
    parts = (image.crop(box) for box in boxes) if len(boxes) > 1 else [image]
    return resize_pixels(map(np.asarray, parts), size, antialias)
