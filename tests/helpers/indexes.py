"""Indexes of made-up images."""

from pathlib import Path

import numpy as np

from datasets.benchmark import ImageSet
from utils.retrieval.config import ExtractionConfig, IndexConfig
from utils.retrieval.features import Features
from utils.retrieval.index import Index, IndexWriter

SETTINGS = ExtractionConfig(resize=(56, 56))


def make_chunk(first, count):
    """The features of made-up images."""
    random = np.random.default_rng([first, count])
    images = ImageSet([f"/images/é {i}\t.jpg" for i in range(first, first + count)], random.uniform(0, 1e6, (count, 2)))
    codes = random.integers(0, 256, (count, 64), dtype=np.uint8)
    return Features(images, codes, random.standard_normal((count, 512)).astype(np.float32))


def writer_of(folder, metadata, append=False):
    return IndexWriter(IndexConfig(folder=folder, append=append), metadata)


def write(folder, metadata, sizes, append=False, first=0):
    """A complete index of chunks of these sizes."""
    with writer_of(folder, metadata, append) as writer:
        for size in sizes:
            writer.append(make_chunk(first, size))
            first += size
        writer.features()
    return folder


def content(folder):
    """{file: bytes}."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def features_of(folder: Path, verify: bool = True) -> list:
    """All that an index holds, as lists."""
    images, codes, descriptors, _ = Index(folder, verify=verify).features()
    assert len(images) == len(codes) == len(descriptors)
    return [list(images.paths), images.utms.tolist(), codes.tolist(), descriptors[:].tolist()]
