"""Indexes of made-up images for Milvus, and their copies."""

import numpy as np

from datasets.image_set import ImageSet
from utils.retrieval.config import IndexConfig
from utils.retrieval.features import Features
from utils.retrieval.index import Index, IndexWriter
from utils.retrieval.search import rerank, search_hamming

TOKEN = "root:Milvus"  # a new server's


def write(folder, metadata, rows, seed=0):
    """An index of made-up images, many of which have equal codes, in chunks of 1024. It may exist already."""
    there = len(Index(folder)) if folder.exists() else 0
    with IndexWriter(IndexConfig(folder=folder, append=True), metadata) as writer:
        for start in range(there, rows, 1024):
            random, count = np.random.default_rng([seed, start]), min(1024, rows - start)
            paths = [f"/images/é {i}.jpg" for i in range(start, start + count)]
            zones = random.integers(-60, 61, count, np.int8)
            images = ImageSet.at_utms(paths, random.random((count, 2)) * 1e6, zones)
            images.utms[random.random(count) < 0.1] = np.nan
            images.degrees[random.random(count) < 0.1] = np.nan
            codes = np.zeros((count, 64), np.uint8)
            codes[:, :2] = random.integers(0, 2, (count, 2))  # distances from 0 to 2: hundreds of equal ones
            descriptors = random.standard_normal((count, metadata.descriptor_dim), np.float32)
            writer.append(Features(images, codes, descriptors if metadata.descriptor_dim else None))
        writer.features()
    return Index(folder)


def assert_equal(actual, expected):
    """Two search results are."""
    for left, right in zip(actual[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype
    assert actual.metric == expected.metric


def assert_same_results(index, copy, k):
    """Search, re-ranking, paths and positions are equal, in every bit and in the same order."""
    ours, theirs = index.features(), copy.features()
    queries = ours.codes[[0, 7, 2000]] ^ np.array([[0], [1], [2]], np.uint8)
    expected, actual = (search_hamming(features.codes, queries, k) for features in (ours, theirs))
    assert_equal(actual, expected)
    if index.metadata.descriptor_dim:
        reranked = Features(ours.images[:3], None, ours.descriptors[np.array([0, 7, 2000])] + 0.01)
        expected = rerank(expected, ours, reranked, rerank_num=50)
        assert_equal(rerank(actual, theirs, reranked, rerank_num=50), expected)
    found = expected.indices[:, ::7].ravel()
    assert [ours.images.paths[i] for i in found] == [theirs.images.paths[i] for i in found]
    for name in ("utms", "zones", "degrees"):
        expected, actual = (getattr(images, name)[found] for images in (ours.images, theirs.images))
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == expected.dtype
