"""Indexes of made-up images for Milvus, and their copies."""

import numpy as np

from datasets.image_set import ImageSet
from model.index.manifest import Manifest
from model.index.metadata import RECORD
from model.index.writing import RowWriter
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


class LivingIndex:
    """An index of made-up images that changes at random, and never holds none."""

    def __init__(self, folder, metadata, seed):
        self.folder, self.metadata, self.random = folder, metadata, np.random.default_rng(seed)
        self.count = 0
        folder.mkdir()
        self.change("add")

    def change(self, kind=None):
        """Adds, replaces or removes some images, or compacts the files."""
        with RowWriter(self.folder, self.metadata, append=True) as writer:
            live = np.flatnonzero(~Manifest.read(self.folder).removed)
            some = self.random.permutation(live)[: self.random.integers(1, 30)].tolist()
            kind = kind or self.random.choice(["add", "replace", "remove", "compact"])
            if kind == "add":
                names = [f"/images/{i}.jpg" for i in range(self.count, self.count + self.random.integers(1, 60))]
                self.count += len(names)
                writer.append(names, self._columns(writer, len(names)))
            elif kind == "replace":
                names = [writer.files.paths[row] for row in some]
                writer.append(names, self._columns(writer, len(some)), replaced=some)
            elif kind == "remove":
                writer.remove(some[: len(live) - 1])
            elif kind == "compact":
                list(writer.compact())
            writer.mark()

    def _columns(self, writer, count):
        records = np.zeros(count, RECORD)
        records["id"] = writer.next_id + np.arange(count)
        for name in ("easting", "latitude"):
            records[name] = np.where(self.random.random(count) < 0.1, np.nan, self.random.random(count))
        records["northing"], records["longitude"] = 2 * records["easting"], 3 * records["latitude"]
        records["zone"] = self.random.integers(-60, 61, count)
        codes = np.zeros((count, 64), np.uint8)
        codes[:, :2] = self.random.integers(0, 2, (count, 2))
        descriptors = self.random.standard_normal((count, self.metadata.descriptor_dim), np.float32)
        return {"images": records, "codes": codes, "descriptors": descriptors}


def is_copy(index, copy):
    """Whether the copy holds the images of an index: those of a larger one may have the same number."""
    return list(index.images.paths) == list(copy.images.paths) and np.array_equal(
        index.images.utms, np.asarray(copy.images.utms), equal_nan=True
    )


def assert_equal(actual, expected):
    """Two search results are."""
    for left, right in zip(actual[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype
    assert actual.metric == expected.metric


def assert_same_results(index, copy, k):
    """Search, re-ranking, paths and positions are equal, in every bit and in the same order."""
    ours, theirs = index.features(), copy.features()
    rows = np.minimum([0, 7, 2000], len(index) - 1)
    queries = ours.codes[rows] ^ np.array([[0], [1], [2]], np.uint8)
    expected, actual = (search_hamming(features.codes, queries, k) for features in (ours, theirs))
    assert_equal(actual, expected)
    if index.metadata.descriptor_dim:
        reranked = Features(ours.images[rows], None, ours.descriptors[rows] + 0.01)
        expected = rerank(expected, ours, reranked, rerank_num=50)
        assert_equal(rerank(actual, theirs, reranked, rerank_num=50), expected)
    found = expected.indices[:, ::7].ravel()
    assert [ours.images.paths[i] for i in found] == [theirs.images.paths[i] for i in found]
    for name in ("utms", "zones", "degrees"):
        expected, actual = (getattr(images, name)[found] for images in (ours.images, theirs.images))
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == expected.dtype
