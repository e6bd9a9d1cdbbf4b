"""An evaluation with made-up results, for the tests of what evaluations write."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.benchmark import Benchmark
from datasets.layouts import BenchmarkConfig
from utils.retrieval.features import SearchResult
from utils.retrieval.report.outcome import Outcome

MODEL = {
    "model": "vit-tiny, two-branch (m.pth)",
    "weights_sha256": "0" * 64,
    "image_size": (56, 70),
    "antialias": True,
    "descriptor_dim": 512,
    "test_method": "hard_resize",
}
STAGES = ("First stage, Hamming", "Re-ranked")


def read_tiny(datasets: Path, **options) -> Benchmark:
    """The benchmark "tiny" in a datasets folder."""
    return Benchmark(replace(BenchmarkConfig(datasets_folder=datasets, name="tiny"), **options))


def make_results(benchmark: Benchmark, *, k: int = 8, seed: int = 0) -> dict[str, SearchResult]:
    """Two stages of random results. The second finds the first positive of every other query first."""
    random = np.random.default_rng(seed)
    shape = (len(benchmark.queries), k)
    indices = np.array([random.permutation(len(benchmark.database))[:k] for _ in range(shape[0])])
    codes = np.sort(random.integers(60, 200, shape), axis=1).astype(np.int32)
    reranked = indices.copy()
    for query in range(0, shape[0], 2):
        positives = benchmark.positives[query]
        if len(positives):
            rest = [index for index in indices[query] if index != positives[0]]
            reranked[query] = [positives[0], *rest[: k - 1]]
    distances = np.sort(random.uniform(0.2, 1.4, shape), axis=1).astype(np.float32)
    return {
        STAGES[0]: SearchResult(codes, indices, ["hamming"] * k),
        STAGES[1]: SearchResult(distances, reranked, ["l2"] * k),
    }


def make_outcome(datasets: Path, **options) -> Outcome:
    """The tiny benchmark with made-up results."""
    benchmark = read_tiny(datasets, **options)
    labelled = benchmark if benchmark.config.labels else read_tiny(datasets)
    return Outcome(benchmark=benchmark, stages=make_results(labelled))


def copy_with_hostile_names(datasets: Path, target: Path) -> Path:
    """A copy of the datasets folder whose first query and first database image have names that are markup."""
    shutil.copytree(datasets, target)
    for part in ("queries", "database"):
        folder = target / "tiny" / "images" / "test" / part
        path = min(folder.iterdir())
        (folder / "<!--<script><").mkdir()
        text = "script><script>document.title='owned'<\x1b[31m&amp;\u202e{{data}}.jpg"
        path.rename(folder / "<!--<script><" / f"{path.name.removesuffix('.jpg')}{text}")
    return target
