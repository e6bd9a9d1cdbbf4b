"""Panoramas: images that show all directions, with the height linear in latitude, and views cut out of them."""

import math

import numpy as np
from PIL import Image

VIEW_DEGREES = 60.0  # horizontal, as in Pitts30k, whose 12 views overlap by half
VIEW_SIZE = (640, 480)  # of the largest views (width, height), as in Pitts30k
TOLERANCE = 0.01  # of the aspect ratio


def is_panorama(width: int, height: int) -> bool:
    """Whether an image is twice as wide as high, within 1 %."""
    return abs(width - 2 * height) <= TOLERANCE * 2 * height


def view_of(panorama: Image.Image, yaw: float) -> Image.Image:
    """What a camera with 60 degrees of view sees in an RGB panorama, `yaw` degrees clockwise from its middle column.

    At most 640 x 480 pixels, and no more than the panorama has for these degrees. Bilinear.
    """
    columns, rows = panorama.size
    width = min(VIEW_SIZE[0], max(round(columns * VIEW_DEGREES / 360), 4))
    height = round(width * VIEW_SIZE[1] / VIEW_SIZE[0])
    focal = width / 2 / math.tan(math.radians(VIEW_DEGREES / 2))
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    longitude = np.arctan2(x, focal) + math.radians(yaw)
    latitude = np.arctan2(-y, np.hypot(x, focal))
    column = (longitude / (2 * math.pi) + 0.5) * columns - 0.5
    row = np.clip((0.5 - latitude / math.pi) * rows - 0.5, 0, rows - 1)
    return Image.fromarray(_sample(np.asarray(panorama), column, row))


def _sample(pixels: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Bilinear samples of pixels [H, W, 3], whose columns go on at the other end; rows from 0 to H - 1."""
    left, top = np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
    bottom = np.minimum(top + 1, len(pixels) - 1)
    right_share, bottom_share = (column - left)[..., None].astype(np.float32), (row - top)[..., None].astype(np.float32)
    left, right = left % pixels.shape[1], (left + 1) % pixels.shape[1]
    upper = pixels[top, left] * (1 - right_share) + pixels[top, right] * right_share
    lower = pixels[bottom, left] * (1 - right_share) + pixels[bottom, right] * right_share
    return np.rint(upper * (1 - bottom_share) + lower * bottom_share).astype(np.uint8)
