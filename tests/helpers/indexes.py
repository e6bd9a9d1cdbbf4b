"""Indexes of made-up images."""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.image_set import ImageSet
from model import InputError
from model.calibration import CALIBRATION
from model.index.manifest import MANIFEST
from model.index.metadata import METADATA
from utils.retrieval.config import ExtractionConfig, IndexConfig
from utils.retrieval.features import Features
from utils.retrieval.index import Index, IndexMetadata, IndexWriter

SETTINGS = ExtractionConfig(resize=(56, 56))


def make_chunk(first, count):
    """The features of made-up images."""
    random = np.random.default_rng([first, count])
    paths = [f"/images/é {i}\t.jpg" for i in range(first, first + count)]
    zones = np.array([(32, -56, 0)[i % 3] for i in range(first, first + count)], np.int8)
    images = ImageSet.at_utms(paths, random.uniform(0, 1e6, (count, 2)), zones)
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
    """{file: bytes}, without the end marks of earlier states, and what an evaluation adds."""
    beside = {".lock", CALIBRATION}
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in beside}
    if MANIFEST in files:
        *lines, last = files[MANIFEST].splitlines(keepends=True)
        files[MANIFEST] = b"".join(line for line in lines if not line.startswith(b'{"complete"')) + last
    return files


def features_of(folder: Path, verify: bool = True) -> list:
    """All that an index holds, as lists."""
    images, codes, descriptors, _ = Index(folder, verify=verify).features()
    assert len(images) == len(codes) == len(descriptors)
    return [list(images.paths), images.utms.tolist(), codes.tolist(), descriptors[:].tolist()]


def build_in_pairs(folder: Path, metadata: IndexMetadata, pairs: int) -> Counter:
    """{what two processes that build one index within 5 ms left: how often}, in as many folders as pairs.

    Of each pair one shall succeed, and the other be refused; the index is that of the former, whole.
    """
    outcomes: Counter = Counter()
    for pair in range(pairs):
        index, start = folder / str(pair), time.monotonic() + 0.02
        delays = (0.0, pair % 6 / 1000)
        processes = [
            _fork(partial(_build_at, start + delay, index, metadata, seed)) for seed, delay in enumerate(delays)
        ]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        if sorted(statuses) != [0, 2]:
            outcomes[f"statuses {statuses}"] += 1
            continue
        found, expected = Index(index).features(), make_chunk(7 * statuses.index(0), 5)
        same = found.codes.tobytes() == expected.codes.tobytes() and list(found.images.paths) == expected.images.paths
        leftovers = [path.name for path in index.iterdir() if path.name.endswith(".tmp")]
        outcomes["one index, one error" if same and not leftovers else "a mixture"] += 1
    return outcomes


def _build_at(moment: float, folder: Path, metadata: IndexMetadata, seed: int) -> int:
    while time.monotonic() < moment:
        pass
    try:
        with writer_of(folder, metadata) as writer:
            writer.append(make_chunk(7 * seed, 5))
            writer.features()
    except InputError:
        return 2
    return 0


def _fork(function: Callable[[], int]) -> int:
    process = os.fork()
    if process == 0:
        status = 1
        try:
            status = function()
        finally:
            os._exit(status)
    return process


def write_format5(folder: Path, metadata: IndexMetadata, features: Features, zone: str) -> Path:
    """An index as the version before this one wrote it."""
    folder.mkdir()
    content = {**asdict(metadata), **asdict(metadata.model), "format": 5, "utm_zone": zone}
    for later in ("model", "positions", "code_bits", "coding_method", "coding_sha256"):
        del content[later]
    files = {
        "metadata.json": json.dumps(content, indent=2).encode(),
        "codes.bin": features.codes.tobytes(),
        "descriptors.bin": features.descriptors.tobytes(),
        "utms.bin": features.images.utms.tobytes(),
        "paths.txt": os.fsencode("".join(f"{path}\n" for path in features.images.paths)),
    }
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    chunk = {"images": len(features.images), "path_bytes": len(files["paths.txt"]), "sha256": sums}
    files["manifest.jsonl"] = f"{json.dumps(chunk)}\n{json.dumps({'complete': len(features.images)})}\n".encode()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def forge_metadata(folder: Path, changes: dict[str, Any]) -> None:
    """Changes fields of metadata.json, and its checksum in the manifest."""
    text = json.dumps(json.loads((folder / METADATA).read_text()) | changes)
    before = hashlib.sha256((folder / METADATA).read_bytes()).hexdigest()
    (folder / METADATA).write_text(text)
    manifest = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(manifest.replace(before, hashlib.sha256(text.encode()).hexdigest()))
