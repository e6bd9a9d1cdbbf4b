"""Principal component analysis of float descriptors."""

import numpy as np

from model.errors import InputError
from utils.retrieval.features import Features, as_array


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

    def project_features(self, features: Features) -> Features:
        """The same with projected descriptors."""
        return features._replace(descriptors=self.project(as_array(features.descriptors)))

    def to_bytes(self) -> bytes:
        """Mean and components, row by row, as little-endian float32."""
        return b"".join(array.astype("<f4").tobytes() for array in (self.mean, self.components))

    @staticmethod
    def from_bytes(data: bytes, width: int) -> "PCA":
        """What `to_bytes` gives, for descriptors of this dimension d."""
        mean, *components = np.frombuffer(data, "<f4").reshape(-1, width)
        return PCA(mean, np.array(components))


def fit_pca(descriptors: np.ndarray, dim: int, seed: int = 0) -> PCA:
    """The first `dim` principal components of descriptors [N, d], by a full singular value decomposition.

    Raises InputError if there are fewer samples or dimensions.
    """
    from sklearn.decomposition import PCA as SklearnPCA  # slow to import, and --help does not need it

    check_pca_dim(dim, *descriptors.shape)
    fitted = SklearnPCA(dim, svd_solver="full", random_state=seed).fit(descriptors)
    return PCA(fitted.mean_, fitted.components_)


def check_pca_dim(dim: int, samples: int, width: int) -> None:
    """Raises InputError if samples [samples, width] do not have `dim` principal components."""
    if dim > min(samples, width):
        raise InputError(
            f"--pca_dim {dim} is too large: {samples} images with {width}-dimensional descriptors allow at most "
            f"{min(samples, width)}."
        )
