"""Principal component analysis of float descriptors, fitted on images of another dataset."""

from functools import partial
from typing import Any

import numpy as np

from datasets.benchmark import ImageSet
from datasets.layouts import list_images
from model import GeoLocalizationNet, InputError
from utils.retrieval.config import ExtractionConfig, PCAConfig
from utils.retrieval.extraction import extract
from utils.retrieval.features import DiskArray, Features
from utils.runtime import distributed

BLOCK_BYTES = 256 << 20


class PCA:
    """A projection without whitening: `mean` [d] is subtracted, then `components` [dim, d] are applied."""

    def __init__(self, mean: np.ndarray, components: np.ndarray) -> None:
        self.mean = mean
        self.components = components

    def project(self, descriptors: np.ndarray | DiskArray) -> np.ndarray:
        """[N, d] -> [N, dim] float32."""
        dim, width = self.components.shape
        projected = np.empty((len(descriptors), dim), np.float32)
        block = max(1, BLOCK_BYTES // (4 * width))
        for start in range(0, len(descriptors), block):
            rows = np.asarray(descriptors[start : start + block], np.float32)
            projected[start : start + block] = (rows - self.mean) @ self.components.T
        return projected

    def project_features(self, features: Features) -> Features:
        """The same with projected descriptors. Those of several crops, [N, C, d], become [N, C, dim]."""
        descriptors: Any = features.descriptors
        if len(descriptors.shape) == 2:
            return features._replace(descriptors=self.project(descriptors))
        projected = self.project(np.asarray(descriptors[:]).reshape(-1, descriptors.shape[-1]))
        return features._replace(descriptors=projected.reshape(*descriptors.shape[:-1], -1))


def fit_pca(descriptors: np.ndarray, dim: int, seed: int = 0) -> PCA:
    """The first `dim` principal components of descriptors [N, d], by a full singular value decomposition.

    Raises InputError if there are fewer samples or dimensions.
    """
    from sklearn.decomposition import PCA as SklearnPCA  # slow to import, and --help does not need it

    check_pca_dim(dim, *descriptors.shape)
    fitted = SklearnPCA(dim, svd_solver="full", random_state=seed).fit(descriptors)
    return PCA(fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32))


def check_pca_dim(dim: int, samples: int, width: int) -> None:
    """Raises InputError if samples [samples, width] do not have `dim` principal components."""
    if dim > min(samples, width):
        raise InputError(
            f"--pca_dim {dim} is too large: {samples} images with {width}-dimensional descriptors allow at most "
            f"{min(samples, width)}."
        )


def fit_pca_to_images(model: GeoLocalizationNet, extraction: ExtractionConfig, config: PCAConfig) -> PCA | None:
    """Fits PCA to the model's descriptors of random images of a folder; None on all but the main rank.

    Raises InputError if the folder holds no images, or too few.
    """
    paths = distributed.run_on_main(partial(list_images, config.folder))
    if len(paths) > config.max_images:
        chosen = np.random.default_rng(config.seed).choice(len(paths), config.max_images, replace=False)
        paths = [paths[i] for i in np.sort(chosen)]
    check_pca_dim(config.dim, len(paths), model.descriptor_dim)  # before the extraction
    features = extract(model, ImageSet.without_positions(paths), extraction)
    return fit_pca(np.asarray(features.descriptors[:]), config.dim, config.seed) if features else None
