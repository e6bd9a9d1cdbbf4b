"""PCA of descriptors against the eigenvectors of their covariance, on random input."""

import re

import numpy as np
import pytest

from model.errors import InputError
from model.index.pca import PCA
from utils.retrieval.pca import fit_pca

SEEDS = range(4)


def random_descriptors(random, rows, dim):
    """L2-normalised descriptors about a common mean, with variances that fall from component to component."""
    axes, _ = np.linalg.qr(random.standard_normal((dim, dim)))
    scales = 0.8 ** np.arange(dim)
    descriptors = 1 + (random.standard_normal((rows, dim)) * scales) @ axes.T
    return (descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)).astype(np.float32)


def naive_pca(descriptors, dim):
    """The mean [d] and the eigenvectors [d, dim] of the covariance of most variance, in float64."""
    rows = descriptors.astype(np.float64)
    mean = rows.sum(0) / len(rows)
    covariance = sum(np.outer(row - mean, row - mean) for row in rows) / len(rows)
    values, vectors = np.linalg.eigh(covariance)
    return mean, vectors[:, np.argsort(-values)[:dim]]


def pairwise(rows):
    return np.linalg.norm(rows[:, None].astype(np.float64) - rows[None], axis=-1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("rows", "components", "dim"), [(200, 16, 1), (200, 16, 5), (200, 16, 16), (60, 40, 12), (20, 48, 10), (17, 48, 16)]
)
def test_pca_projects_on_the_eigenvectors_of_the_covariance(rows, components, dim, seed):
    random = np.random.default_rng(seed)
    # As for real descriptors, others than those that were fitted are projected.
    everything = random_descriptors(random, rows + 30, components)
    fitted, others = everything[:rows], everything[rows:]
    before = fitted.copy()
    mean, axes = naive_pca(fitted, dim)
    pca = fit_pca(fitted, dim)
    for descriptors in (fitted, others):
        projected = pca.project(descriptors)
        expected = (descriptors - mean) @ axes
        assert isinstance(projected, np.ndarray) and projected.dtype == np.float32
        assert projected.shape == (len(descriptors), dim)
        np.testing.assert_allclose(np.abs(projected), np.abs(expected), rtol=0, atol=2e-5)
        np.testing.assert_allclose(pairwise(projected), pairwise(expected), rtol=0, atol=2e-5)
    np.testing.assert_array_equal(fitted, before)


def test_pca_with_as_many_dimensions_as_samples():
    """Centred, ten samples span nine dimensions: nothing is left for the tenth."""
    descriptors = random_descriptors(np.random.default_rng(0), 10, 30)
    projected = fit_pca(descriptors, 10).project(descriptors)
    assert projected.shape == (10, 10) and np.isfinite(projected).all()
    np.testing.assert_allclose(pairwise(projected), pairwise(descriptors), atol=2e-5)
    assert np.abs(projected[:, 9]).max() < 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pca_projects_each_crop(dtype):
    descriptors = random_descriptors(np.random.default_rng(0), 300, 8).astype(dtype)
    pca = fit_pca(descriptors[:100].astype(np.float32), 3)
    crops = pca.project(descriptors.reshape(100, 3, 8))
    assert crops.dtype == np.float32 and crops.shape == (100, 3, 3)
    mean, axes = naive_pca(descriptors[:100], 3)
    expected = (descriptors - mean) @ axes
    np.testing.assert_allclose(np.abs(crops), np.abs(expected.reshape(100, 3, 3)), rtol=0, atol=2e-5)


def test_a_stored_pca_projects_to_the_same_bits():
    descriptors = random_descriptors(np.random.default_rng(0), 200, 32)
    pca = fit_pca(descriptors, 8)
    stored = PCA.from_bytes(pca.to_bytes(), 32)
    np.testing.assert_array_equal(stored.project(descriptors), pca.project(descriptors))
    for name in ("mean", "components"):
        assert getattr(stored, name).flags.c_contiguous and getattr(pca, name).flags.c_contiguous


@pytest.mark.parametrize(("rows", "components", "dim"), [(10, 30, 11), (40, 16, 17), (10, 16, 30)])
def test_pca_refuses_more_dimensions_than_there_are(rows, components, dim):
    descriptors = random_descriptors(np.random.default_rng(0), rows, components)
    with pytest.raises(InputError) as error:
        fit_pca(descriptors, dim)
    assert {str(rows), str(components), str(dim)} <= set(re.findall(r"\d+", str(error.value)))
