"""Bilinear resizing with sparse matrices: equal to F.interpolate up to rounding, and faster (benchmarks/README.md)."""

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_BAND_VALUES = 2**19  # that become float32 numbers at a time: 2 MB, about a core's cache


def resize_pixels(blocks: Iterable[np.ndarray], size: tuple[int, int], antialias: bool = True) -> Tensor:
    """RGB pixels [H, W, 3] uint8 -> [3, H, W] float32 in [0, 1], resized bilinearly to size = (H, W).

    blocks: the image in blocks of columns, from left to right, or whole. A huge image takes less memory in blocks, and
    the result is the same. Each axis is resized by a product with a sparse matrix. Rows come first, since the pixels
    then need no reordering.
    """
    new_height, new_width = size
    rows = torch.cat([_resize_rows(pixels, new_height, antialias) for pixels in blocks], dim=1)
    width = rows.shape[1] // 3
    columns = resizing_matrix(width, new_width, antialias) @ rows.t().reshape(width, 3 * new_height)
    return columns.view(new_width, 3, new_height).permute(1, 2, 0).contiguous().div_(255)


def _resize_rows(pixels: np.ndarray, new_height: int, antialias: bool) -> Tensor:
    """[H, W, 3] uint8 -> [new_height, 3 W] float32."""
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, 3 * width)
    bands = row_bands(height, new_height, antialias, max_rows=MAX_BAND_VALUES // (3 * width))
    return torch.cat([matrix @ torch.from_numpy(rows[band].astype(np.float32)) for band, matrix in bands])


class Band(NamedTuple):
    """Neighbouring rows of an image, and the part of the resizing matrix that makes rows of the result of them."""

    rows: slice
    matrix: Tensor


@lru_cache(maxsize=256)
def row_bands(old: int, new: int, antialias: bool, *, max_rows: int) -> list[Band]:
    """The resizing matrix in bands that read at most max_rows old rows, or as many as one new row needs.

    The parts together give the product with the complete matrix, bit for bit.
    """
    matrix = resizing_matrix(old, new, antialias)
    new_rows, old_rows = matrix.indices().numpy()
    starts = np.searchsorted(new_rows, np.arange(new + 1))  # of the new rows, among the weights
    first, end = old_rows[starts[:-1]], old_rows[starts[1:] - 1] + 1
    bands = []
    top = 0
    while top < new:
        bottom = max(int(np.searchsorted(end, first[top] + max_rows, side="right")), top + 1)
        rows = slice(int(first[top]), int(end[bottom - 1]))
        with torch.inference_mode(False):
            part = matrix.narrow_copy(0, top, bottom - top).narrow_copy(1, rows.start, rows.stop - rows.start)
            bands.append(Band(rows, part.coalesce()))
        top = bottom
    return bands


@lru_cache(maxsize=256)
def resizing_matrix(old: int, new: int, antialias: bool) -> Tensor:
    """Sparse [new, old] float32: bilinear interpolation of an axis of `old` pixels as a matrix.

    It equals F.interpolate of the identity, but needs memory for the non-zero weights only. Without antialiasing,
    kernels of PyTorch 2.6 differ among themselves by rounding, and from this by as much.
    """
    pixels, weights = (_antialiased_weights if antialias else _plain_weights)(old, new)
    rows, columns = weights.nonzero()
    indices = np.stack([rows, pixels[rows, columns]])
    values = torch.from_numpy(weights[rows, columns])
    # The cached matrix must also serve outside of inference mode. PyTorch 2.11 warns although it is told not to check.
    with torch.inference_mode(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse invariant checks")
        # The checks would ask CUDA about pinned memory, which fails in a process forked from one that uses CUDA.
        matrix = torch.sparse_coo_tensor(torch.from_numpy(indices), values, (new, old), check_invariants=False)
        return matrix.coalesce()


def _antialiased_weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For each new pixel, K old pixels [new, K], int64, and their weights [new, K], float32; 0 outside of the image.

    The weights form a triangle around the new pixel's centre. All numbers are rounded to float32 where PyTorch rounds
    them: in 1080 pixels, a rounded coordinate changes a weight by up to 1e-4 of the largest one.
    """
    scale = np.float32(old) / np.float32(new)
    support = max(scale, np.float32(1))  # half the width of the triangle, in old pixels
    centres = (float(scale) * (np.arange(new) + 0.5)).astype(np.float32)[:, None]
    first = np.maximum(((centres - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    end = np.minimum(((centres + support).astype(np.float64) + 0.5).astype(np.int64), old)
    pixels = first + np.arange(2 * math.ceil(support) + 1)
    distances = (pixels.astype(np.float32) - centres).astype(np.float64) + 0.5
    triangle = 1 - np.abs((distances * float(np.float32(1 / float(support)))).astype(np.float32))
    weights = np.where(pixels < end, triangle.clip(0), np.float32(0))
    return pixels, weights / weights.cumsum(axis=1)[:, -1:]  # cumsum adds in PyTorch's order; sum would not


def _plain_weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The same without antialiasing: of the three old pixels that are nearest, at most two have a weight.

    Versions of PyTorch round the coordinates differently, so the weights are read off: pixels 0, 3, 6, ... are 1 in the
    first row of `combs`, 1, 4, 7, ... in the second, 2, 5, 8, ... in the third. Interpolating a row gives the weight of
    the one pixel nearby that is 1.
    """
    combs = F.one_hot(torch.arange(old) % 3, 3).t().float()
    interpolated = F.interpolate(combs[None, None], (3, new), mode="bilinear")[0, 0].numpy()
    nearest = np.rint((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.int64)[:, None]
    pixels = nearest + np.arange(-1, 2)
    return pixels, interpolated[pixels % 3, np.arange(new)[:, None]]
