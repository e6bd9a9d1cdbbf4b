"""Codes of float descriptors: recalls of each way to make them, on the demo's city and real photos among distractors;
and what the two stages cost, against a search of all descriptors.

    python -m benchmarks.bench_codes DEMO DATASETS_FOLDER --distractors FOLDER ... [--threads N] [--json [FILE]]
    python -m benchmarks.bench_codes DEMO DATASETS_FOLDER --costs [--threads N] [--json [FILE]]

DEMO is the folder of `make demo`; DATASETS_FOLDER holds corridor, gardens_point, essex3in1 and ie_tower, as far as they
are there. Distractors are photos of other places, such as those of `python -m datasets.synthetic` with another seed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch

from benchmarks.common import Row, add_json_flag, json_file, measure_in_child, report, report_table
from datasets.benchmark import Benchmark
from datasets.config import PositionConfig
from datasets.image_set import ImageSet
from datasets.layouts import BenchmarkConfig, list_images
from model import ModelChoice
from model.index.coding import Coding
from utils.retrieval.codes import encode_all, fit_coding, sample_rows
from utils.retrieval.config import CodesConfig, ExtractionConfig
from utils.retrieval.evaluation import load_extractor
from utils.retrieval.extraction import Extractor, extract
from utils.retrieval.features import Features, SearchResult, as_array
from utils.retrieval.metrics import correct_predictions, recalls_at
from utils.retrieval.search import rerank, search
from utils.runtime.flags import ArgumentParser, positive_int
from utils.runtime.script import cli_main
from utils.training.codes import place_labels, train_coding
from utils.training.codes_config import CodeTrainingConfig

BITS, SEEDS = (128, 256, 512, 1024), (0, 1, 2)
K, DEPTHS = 100, (20, 100)  # results of a search; of these re-ranked
WIDE, LATENT, IMAGES, IMAGES_PER_PLACE, QUERIES = 4096, 128, 100_000, 10, 100  # of the made-up descriptors
NOISE = 1.0  # of an image, as long as what its place gives
EMPTY = ImageSet.without_positions([])


class Set(NamedTuple):
    """A dataset: the features of its database and queries, and the positives of each query."""

    name: str
    database: Features
    queries: Features
    positives: list[np.ndarray]


# ---- Data


def configs(demo: Path, folder: Path) -> Iterator[BenchmarkConfig]:
    """The datasets that are there."""
    yield BenchmarkConfig(name="synthetic", datasets_folder=demo / "city")
    if (folder / "corridor").exists():
        yield BenchmarkConfig(name="corridor", datasets_folder=folder)
    if (folder / "gardens_point").exists():
        for time_of_day in ("day", "night"):
            queries = (f"queries_{time_of_day}",)
            yield BenchmarkConfig(name="gardens_point", datasets_folder=folder, queries_subfolders=queries)
    for name, database in (("essex3in1", "ref"), ("ie_tower", "gallery")):
        if (folder / name).exists():
            yield BenchmarkConfig(
                name=name,
                database_folder=folder / name / database,
                queries_folder=folder / name / "query",
                positions=PositionConfig(source="csv", csv=folder / name / "positions.csv"),
            )


def describe(extractor: Extractor, images: ImageSet) -> Features:
    """Features in memory."""
    features = extract(extractor, images)
    assert features is not None, "one process"
    return features


def read_sets(extractor: Extractor, demo: Path, folder: Path) -> list[Set]:
    """The datasets, described."""
    sets = []
    for config in configs(demo, folder):
        benchmark = Benchmark(config)
        database, queries = (describe(extractor, images) for images in (benchmark.database, benchmark.queries))
        name = " ".join([config.name, *config.queries_subfolders]).replace("queries_", "")
        sets.append(Set(name, database, queries, benchmark.positives))
    return sets


def join(first: Features, second: Features) -> Features:
    """The features of two sets of images, one after the other."""
    arrays = [np.concatenate([as_array(a), as_array(b)]) for a, b in zip(first[1:3], second[1:3], strict=True)]
    return Features(EMPTY, arrays[0], arrays[1])


# ---- Recalls


def found_by(one: Set, database: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """Recalls of a search by codes, and after re-ranking."""
    described = Features(EMPTY, database, one.database.descriptors), Features(EMPTY, queries, one.queries.descriptors)
    candidates = search(*described, K)
    figures = {f"codes R@{n}": value for n, value in recalls(one, candidates, (1, 20, 100)).items()}
    for depth in DEPTHS:
        results = rerank(candidates, *described, rerank_num=depth)
        figures |= {f"{depth} re-ranked R@{n}": value for n, value in recalls(one, results, (1, 20)).items()}
    return figures


def recalls(one: Set, results: SearchResult, values: tuple[int, ...]) -> dict[int, float]:
    """Recall@N of a dataset."""
    return recalls_at(correct_predictions(results.indices, one.positives), values)


def by_coding(one: Set, coding: Coding) -> dict[str, float]:
    """Those of a coding."""
    database, queries = (encode_all(coding, as_array(part.descriptors)) for part in (one.database, one.queries))
    return found_by(one, database, queries)


def summary(runs: list[dict[str, float]]) -> dict[str, str]:
    """The mean of the seeds, with the smallest and the largest."""
    cells = {}
    for heading in runs[0]:
        values = [run[heading] for run in runs]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        cells[heading] = f"{np.mean(values):.1f}{spread}"
    return cells


def rows_of(one: Set, trained: dict[int, list[Coding]]) -> Iterator[dict[str, Any]]:
    """The rows of a dataset."""
    descriptors = as_array(one.database.descriptors)
    database, queries = (part._replace(codes=None) for part in (one.database, one.queries))
    floats = recalls(one, search(database, queries, K), (1, 20, 100))
    name = f"{one.name}: {len(one.queries.images)} queries, {len(descriptors):,} images"
    yield {"": name, "codes": f"none: float, {descriptors.shape[1]}", **cells_of_floats(floats)}
    signs = [np.packbits(as_array(part.descriptors) >= 0, axis=1) for part in (one.database, one.queries)]
    branch = [as_array(part.codes) for part in (one.database, one.queries)]
    yield {"": one.name, "codes": f"binary branch, {8 * branch[0].shape[1]}", **summary([found_by(one, *branch)])}
    yield {"": one.name, "codes": f"signs, {8 * signs[0].shape[1]}", **summary([found_by(one, *signs)])}
    sample = descriptors[sample_rows(len(descriptors), CodesConfig(source="random"))]
    for bits in BITS:
        for method in ("random", "itq"):
            if method == "random" or bits <= descriptors.shape[1]:
                runs = [by_coding(one, fit_coding(sample, method, bits, seed)) for seed in SEEDS]
                yield {"": one.name, "codes": f"{method}, {bits}", **summary(runs)}
        yield {"": one.name, "codes": f"trained, {bits}", **summary([by_coding(one, each) for each in trained[bits]])}


def cells_of_floats(values: dict[int, float]) -> dict[str, str]:
    """The recalls of a float search, in the columns of those that re-ranking can reach."""
    return {f"codes R@{n}": "" for n in (1, 20, 100)} | {
        f"{depth} re-ranked R@{n}": f"{values[n]:.1f}" for depth in DEPTHS for n in (1, 20)
    }


def train(extractor: Extractor, demo: Path) -> dict[int, list[Coding]]:
    """{bits: a trained coding for each seed}, on the demo's training places."""
    paths = [str(path) for path in list_images(demo / "city" / "gsv_cities" / "Images")]
    descriptors, labels = describe(extractor, ImageSet.without_positions(paths)).descriptors, place_labels(paths)
    assert descriptors is not None
    return {
        bits: [train_coding(descriptors, labels, CodeTrainingConfig(bits=bits, seed=seed)) for seed in SEEDS]
        for bits in BITS
    }


# ---- Costs


def make_descriptors(sets: list[Set]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Made-up descriptors of 10 images of each place, and after them the real ones, turned into as many dimensions,
    which keeps their distances: database [N, 4096]; queries; positives. float32, of length 1.
    """
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.standard_normal((WIDE, 512)))[0].astype(np.float32)
    spread = random.standard_normal((LATENT, WIDE), np.float32) * 0.97 ** np.arange(LATENT, dtype=np.float32)[:, None]
    places = random.standard_normal((IMAGES // IMAGES_PER_PLACE, LATENT), np.float32) @ spread

    def views(numbers: np.ndarray) -> np.ndarray:
        rows = places[numbers]
        noise = random.standard_normal(rows.shape, np.float32)
        rows += NOISE * np.linalg.norm(rows, axis=1, keepdims=True) / np.sqrt(WIDE) * noise
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    database = np.empty((IMAGES, WIDE), np.float32)
    for start in range(0, IMAGES, 10_000):
        database[start : start + 10_000] = views(np.arange(start, start + 10_000) // IMAGES_PER_PLACE)
    asked = random.choice(len(places), QUERIES, replace=False)
    parts, queries = [database], [views(asked)]
    positives = [np.arange(place * IMAGES_PER_PLACE, (place + 1) * IMAGES_PER_PLACE) for place in asked]
    for one in sets:
        positives += [rows + sum(map(len, parts)) for rows in one.positives]
        parts.append(as_array(one.database.descriptors) @ directions.T)
        queries.append(as_array(one.queries.descriptors) @ directions.T)
    return np.concatenate(parts), np.concatenate(queries), positives


def costs(sets: list[Set]) -> list[Row]:
    """A search of all descriptors, and the two stages with ITQ, on the same descriptors."""
    database, queries, positives = make_descriptors(sets)
    started = time.perf_counter()
    coding = fit_coding(database[sample_rows(len(database), CodesConfig(source="itq"))], "itq", 512)
    fitted = time.perf_counter()
    codes = encode_all(coding, database)
    encoded = time.perf_counter()
    floats = Features(EMPTY, None, database), Features(EMPTY, None, queries)
    coded = Features(EMPTY, codes, database), Features(EMPTY, coding.encode(queries), queries)

    def two_stages(some: Features) -> SearchResult:
        return rerank(search(coded[0], some, K), coded[0], some, rerank_num=K)

    def of(features: Features, rows: slice) -> Features:
        code = None if features.codes is None else as_array(features.codes)[rows]
        return Features(EMPTY, code, as_array(features.descriptors)[rows])

    note = f"fitted in {fitted - started:.0f} s, {len(database):,} images encoded in {encoded - fitted:.1f} s"
    rows = [
        timed_row(f"search of {len(queries)} queries", lambda: search(*floats, K), lambda: two_stages(coded[1]), note),
        timed_row(
            "a single query",
            lambda: search(floats[0], of(floats[1], slice(1)), K),
            lambda: two_stages(of(coded[1], slice(1))),
        ),
    ]
    found = search(*floats, K), two_stages(coded[1])
    parts = {"made-up": slice(QUERIES), "real": slice(QUERIES, None)}
    for name, part in parts.items():
        for n in (1, 20):
            figures = [recalls_at(correct_predictions(each.indices[part], positives[part]), [n])[n] for each in found]
            ratio = figures[1] / max(figures[0], 1e-9)
            rows.append(Row(name=f"R@{n}, {name}", baseline=figures[0], ours=figures[1], unit="%", ratio=ratio))
    read = (database.nbytes / 1e6, codes.nbytes / 1e6)
    rows.append(Row(name="read for each query", baseline=read[0], ours=read[1], unit="MB", ratio=read[0] / read[1]))
    return rows


def timed_row(name: str, baseline: Callable[[], object], ours: Callable[[], object], note: str = "") -> Row:
    """Median times of three calls each, in turn, and peak memory."""
    seconds: list[list[float]] = [[], []]
    for _ in range(3):
        for function, times in zip((baseline, ours), seconds, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    first, second = (float(np.median(times)) for times in seconds)
    memory = [measure_in_child(function, warm=False)[1] for function in (baseline, ours)]
    return Row(
        name=name,
        baseline=1e3 * first,
        ours=1e3 * second,
        unit="ms",
        ratio=first / second,
        baseline_mb=memory[0],
        ours_mb=memory[1],
        note=note,
    )


def main() -> None:
    # ---- Arguments
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of the demo")
    parser.add_argument("datasets_folder", type=Path, help="folder of real datasets")
    parser.add_argument("--distractors", type=Path, nargs="*", default=[], help="folders of photos of other places")
    parser.add_argument("--costs", action="store_true", help="measure time, memory and recall of both searches")
    parser.add_argument("--threads", type=positive_int, default=1, help="number of CPU threads")
    add_json_flag(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)

    # ---- Features, by the demo's two-branch model
    checkpoint = max(args.demo.glob("logs/stage_two/*/best_model.pth"), key=lambda path: path.stat().st_mtime)
    choice = ModelChoice(hashing=True, rerank=True)
    extractor = load_extractor(choice, checkpoint, ExtractionConfig(batch_size=32, num_workers=0, device="cpu"))
    sets = read_sets(extractor, args.demo, args.datasets_folder)
    if args.costs:
        title = f"Two stages with ITQ, 512 bits, against a search of all descriptors, {WIDE} dimensions"
        report(title, costs(sets[:2]), json_file(args.json, "codes_costs"))
        return

    # ---- Recalls of each dataset among distractors
    paths = [str(path) for folder in args.distractors for path in list_images(folder)]
    trained = train(extractor, args.demo)
    rows: list[dict[str, Any]] = []
    distractors = describe(extractor, ImageSet.without_positions(paths)) if paths else None
    for one in sets:
        crowded = one._replace(database=join(one.database, distractors)) if distractors else one
        rows += rows_of(crowded, trained)
        print(rows[-1], file=sys.stderr, flush=True)
    title = f"Codes of descriptors of {sets[0].database.dim} dimensions, {len(paths):,} distractors: recalls in %"
    report_table(title, rows, json_file(args.json, "codes"))


if __name__ == "__main__":
    cli_main(main)
