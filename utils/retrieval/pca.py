"""Principal component analysis of float descriptors."""

import numpy as np

from model.errors import InputError
from model.index.pca import PCA


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
