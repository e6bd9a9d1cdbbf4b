"""Indexes over time: random histories of a folder and its index, with kills at every moment, against a dictionary."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.indexes import SETTINGS
from helpers.kills import KILLED, run_and_kill
from helpers.models import build

from datasets.image_set import ImageSet
from model import InputError
from model.index.files import IndexFiles
from model.index.manifest import Manifest
from utils.retrieval.config import IndexConfig
from utils.retrieval.features import Features
from utils.retrieval.index import Index, IndexWriter, maintenance, metadata_of, open_indexes
from utils.retrieval.search import search_hamming


@pytest.fixture(scope="module")
def metadata():
    torch.manual_seed(0)
    return metadata_of(build("vit-tiny", "gem", hashing=True, rerank=True), SETTINGS)


def features_of(paths: list[str]) -> Features:
    """Made-up features that a file's content decides."""
    seeds = [int(hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8], 16) for path in paths]
    codes = np.stack([np.random.default_rng(seed).integers(0, 256, 64, dtype=np.uint8) for seed in seeds])
    descriptors = np.stack([np.random.default_rng(seed).standard_normal(512).astype(np.float32) for seed in seeds])
    return Features(ImageSet.without_positions(paths), codes, descriptors)


class History:
    """A folder of files, its index, and what the index should say: {path: content}. Kills end a step at any moment."""

    def __init__(self, folder: Path, metadata, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder, self.index, self.metadata = folder / "photos", folder / "index", metadata
        self.folder.mkdir(parents=True)
        self.files: dict[str, str] = {}
        self.described: dict[str, str] = {}
        self.unfinished: set[str] = set()  # contents of files when a step was killed
        self.half_pruned: set[str] = set()  # paths that a killed step may have removed, which the next one completes
        self.elsewhere: dict[str, str] = {}  # of an index that was merged: pruning leaves them alone
        self.clock = 10**18
        self.count = 0

    def write(self, path: str) -> None:
        self.count += 1
        self.files[path] = f"content {self.count}"
        Path(path).write_text(self.files[path])
        self.clock += self.random.choice([1, 10**9, -(10**6)])  # clocks go backwards, too
        os.utime(path, ns=(self.clock, self.clock))

    def add(self) -> None:
        for _ in range(self.random.randint(1, 5)):
            self.write(str(self.folder / f"{self.count}.jpg"))

    def change(self) -> None:
        for path in self.random.sample(sorted(self.files), min(2, len(self.files))):
            self.write(path)

    def delete(self) -> None:
        for path in self.random.sample(sorted(self.files), min(2, len(self.files))):
            Path(path).unlink()
            del self.files[path]

    def append(self, prune: bool = False) -> None:
        before, after = self.described, {**self.described, **self.files}
        if prune:
            after = {**self.files, **self.elsewhere}
        self.in_a_process(lambda: self.update(prune=prune), before, after, is_pruned=prune)

    def prune(self) -> None:
        self.append(prune=True)

    def compact(self) -> None:
        if not self.described:
            return
        if Manifest.read(self.index, unmarked=True).is_marked:
            self.in_a_process(lambda: maintenance.compact(self.index), self.described, self.described)
        else:
            with pytest.raises(InputError, match="is incomplete. Continue building it with --append first"):
                maintenance.compact(self.index)

    def merge(self) -> None:
        """With an index of a few other files, and one of the same."""
        if not self.described:
            return
        other = History(self.folder.parent / f"other{self.count}", self.metadata, self.count)
        other.count = self.count
        other.add()
        self.count = other.count  # so that each content is there once
        other.update(prune=False)
        target = self.folder.parent / f"merged{self.count}"
        both = open_indexes([self.index, other.index])
        self.in_a_process(lambda: maintenance.merge([self.index, other.index, self.index], target), None, None)
        if not target.exists():  # killed
            return
        merged = Index(target)
        assert list(both.images.paths) == list(merged.images.paths)
        np.testing.assert_array_equal(both.features().codes, merged.features().codes)
        np.testing.assert_array_equal(both.features().descriptors[:], merged.features().descriptors[:])
        shutil.rmtree(self.index)
        target.rename(self.index)
        self.described = {**self.described, **other.files}
        self.elsewhere |= other.files

    def update(self, *, prune: bool) -> None:
        """As build_index.py does, with made-up features."""
        paths = sorted(self.files)
        changes = maintenance.changes_since(self.index, paths, self.folder, check_content=False)
        chosen = [paths[i] for i in sorted([*changes.new, *changes.changed])]
        if chosen:
            config = IndexConfig(folder=self.index, append=True, root=self.folder)
            with IndexWriter(config, self.metadata) as writer:
                images = ImageSet.without_positions(chosen)
                remaining = images[writer.to_extract(images)].paths
                for start in range(0, len(remaining), 2):
                    writer.append(features_of(remaining[start : start + 2]))
                writer.features()
        if (self.index / "metadata.json").exists():
            maintenance.finish(self.index, changes.gone if prune else [])

    def in_a_process(
        self, step: Callable[[], object], before: dict | None, after: dict | None, *, is_pruned: bool = False
    ) -> None:
        """Runs a step. In two of three histories it may be killed, and then its effect is there as a whole or not."""
        kill_at = self.random.randint(1, 40) if self.random.random() < 0.6 else 0
        status = run_and_kill(step, kill_at, self.random)
        assert status in ((0, KILLED) if kill_at else (0,))
        if after is not None:
            found = self.contents()
            if (
                not is_pruned
            ):  # what a killed step had described of files that are gone since stays, as all gone ones do
                after = {**{path: text for path, text in found.items() if text in self.unfinished}, **after}
                after = {path: text for path, text in after.items() if path in found or path not in self.half_pruned}
            if status == KILLED:
                self.unfinished |= set(self.files.values())
                self.half_pruned |= set(before or {}) - set(self.files) if is_pruned else set()
            between = {**(before or {}), **self.files}  # pruning comes after adding
            assert found == after or (status == KILLED and found in (before, between)), (found, before, after)
            self.described = found

    def contents(self) -> dict[str, str]:
        """What the index says, {path: content}, found by searching it for every content there ever was."""
        if not (self.index / "metadata.json").exists() or not self.is_readable():
            return {}
        index = Index(self.index)
        features = index.features()
        assert (np.diff(index.ids) > 0).all() and len(set(index.images.paths)) == len(index)
        known = {code_of(f"content {i}"): f"content {i}" for i in range(1, self.count + 1)}
        found = {
            str(path): known[code.tobytes()] for path, code in zip(index.images.paths, features.codes, strict=True)
        }
        queries = np.stack([np.frombuffer(code_of(content), np.uint8) for content in found.values()])
        results = search_hamming(features.codes, queries, 1)
        assert (results.distances == 0).all() and results.indices[:, 0].tolist() == list(range(len(found)))
        return found

    def is_readable(self) -> bool:
        """Whether the first build has come to its end, and not all images were pruned."""
        try:
            files = IndexFiles(self.index)
        except Exception as error:
            assert "is empty" in str(error), error
            return False
        return files.manifest.is_marked and files.manifest.images > 0


def code_of(content: str) -> bytes:
    seed = int(hashlib.sha256(content.encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).integers(0, 256, 64, dtype=np.uint8).tobytes()


def run_history(folder: Path, metadata, seed: int, steps: int) -> None:
    history = History(folder, metadata, seed)
    history.add()
    for _ in range(steps):
        names = ["add", "change", "delete", "append", "append", "prune", "compact", "merge"]
        getattr(history, history.random.choice(names))()
        assert history.contents() == history.described
    history.update(prune=True)  # undisturbed
    assert history.contents() == {**history.files, **history.elsewhere}
    assert not list(history.index.glob("*.tmp"))


def test_random_histories_give_what_a_dictionary_gives(tmp_path, metadata):
    for seed in range(4):
        run_history(tmp_path / str(seed), metadata, seed, steps=10)


@pytest.mark.proof
def test_a_thousand_random_histories_give_what_a_dictionary_gives(tmp_path, metadata):
    for seed in range(1000, 2000):
        run_history(tmp_path / str(seed), metadata, seed, steps=10)
        shutil.rmtree(tmp_path / str(seed))
