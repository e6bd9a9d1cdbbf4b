"""The projection of float descriptors by principal component analysis."""

import numpy as np


class PCA:
    """A projection without whitening: `mean` [d] is subtracted, then `components` [dim, d] are applied; float32."""

    def __init__(self, mean: np.ndarray, components: np.ndarray) -> None:
        # In one layout, whether fitted or read from an index: BLAS may round differently for another one.
        self.mean = np.array(mean, np.float32, order="C")
        self.components = np.array(components, np.float32, order="C")

    @property
    def dim(self) -> int:
        """Dimension of projected descriptors."""
        return len(self.components)

    def project(self, descriptors: np.ndarray) -> np.ndarray:
        """[..., d] -> [..., dim] float32."""
        rows = np.asarray(descriptors, np.float32).reshape(-1, len(self.mean))
        return ((rows - self.mean) @ self.components.T).reshape(*descriptors.shape[:-1], self.dim)

    def to_bytes(self) -> bytes:
        """Mean and components, row by row, as little-endian float32."""
        return b"".join(array.astype("<f4").tobytes() for array in (self.mean, self.components))

    @staticmethod
    def from_bytes(data: bytes, width: int) -> "PCA":
        """What `to_bytes` gives, for descriptors of this dimension d."""
        mean, *components = np.frombuffer(data, "<f4").reshape(-1, width)
        return PCA(mean, np.array(components))
