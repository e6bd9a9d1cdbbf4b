"""Descriptors in 8 bits: a quarter of the space of float32."""

import numpy as np

from .files import DiskArray

MAX_CODE = 127


def quantize(descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite descriptors [N, d] -> codes [N, d] int8 from -127 to 127, and scales [N, 1] float32: max|x| / 127.

    codes * scales differs from the descriptors by at most scales / 2, but for the rounding of float32.
    """
    descriptors = np.asarray(descriptors, np.float32)
    scales = np.abs(descriptors).max(axis=1, keepdims=True) / np.float32(MAX_CODE)
    codes = np.rint(descriptors / np.where(scales > 0, scales, 1))  # a descriptor of zeros has the scale 0
    return codes.astype(np.int8), scales


class QuantizedArray:
    """Rows [N, d] of `quantize`'s codes and scales, which reads like a DiskArray: `array[rows]` gives float32."""

    dtype = np.dtype(np.float32)

    def __init__(self, codes: DiskArray, scales: np.ndarray) -> None:
        self.codes, self.scales, self.shape = codes, scales, codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        descriptors = self.codes[rows].astype(np.float32)
        descriptors *= self.scales[rows]
        return descriptors
