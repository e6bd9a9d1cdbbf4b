"""Binary codes of float descriptors."""

import numpy as np


class Coding:
    """How descriptors become codes: bit j is 1 where (x - mean) @ matrix[:, j] >= 0. mean: [dim]; matrix: [dim, bits];
    float32. method: how they were found, one of metadata.CODINGS.
    """

    def __init__(self, method: str, mean: np.ndarray, matrix: np.ndarray) -> None:
        # In one layout, whether fitted or read: BLAS may round differently for another one.
        self.method = method
        self.mean = np.array(mean, np.float32, order="C")
        self.matrix = np.array(matrix, np.float32, order="C")

    @property
    def dim(self) -> int:
        """Dimension of the descriptors."""
        return len(self.mean)

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self.matrix.shape[1]

    def encode(self, descriptors: np.ndarray) -> np.ndarray:
        """[..., dim] -> [..., bits / 8] uint8, in np.packbits order."""
        rows = np.asarray(descriptors, np.float32).reshape(-1, self.dim)
        codes = np.packbits((rows - self.mean) @ self.matrix >= 0, axis=1)
        return codes.reshape(*descriptors.shape[:-1], self.bits // 8)

    @property
    def rows(self) -> np.ndarray:
        """The mean, then what each bit is computed with: [1 + bits, dim] float32."""
        return np.vstack([self.mean, self.matrix.T])

    @staticmethod
    def from_rows(method: str, rows: np.ndarray) -> "Coding":
        """The coding with these `rows`."""
        return Coding(method, rows[0], rows[1:].T)
