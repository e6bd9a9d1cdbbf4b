"""Check the paper's table: evaluate the published models, and compare their R@1 with published figures.

    python -m benchmarks.reproduce --datasets_folder=/data/vpr --msls_queries_list=msls_740.txt

Datasets: Pitts30k (test), MSLS (val, the official 740 queries) and Nordland (test), as far as they are there. A figure
is compared only with one of the same protocol. Published figures are read from benchmarks/published_recalls.csv.
Exit status: 0, or 1 if a figure differs by more than 0.2.
"""

import argparse
import csv
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

import eval as eval_float
import eval_rerank
from datasets.benchmark import Benchmark
from datasets.layouts import BenchmarkConfig
from model import InferenceModel, InputError, ModelChoice
from model.weights import load_model
from model.zoo import MODEL_ZOO, PublishedModel
from utils.cli import EvaluationArguments, non_negative_int, positive_int, resolve_device
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.extraction import prepare
from utils.runtime.atomic_files import atomic_write
from utils.runtime.run_dir import RunDir
from utils.runtime.script import cli_main

PUBLISHED = Path(__file__).with_name("published_recalls.csv")
COLUMNS = ("model", "protocol", "R@1")
TOLERANCE = 0.2  # percentage points
RECALL_VALUES = [1, 5, 10]
RERANK_NUM = 100
DOWNLOADER = "https://github.com/gmberton/VPR-datasets-downloader"
REPRODUCED, DIFFERS = "reproduced", "differs"
NOT_COMPARABLE, NO_FIGURE, MISSING = "not comparable (protocol)", "no published figure", "missing"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A dataset of the paper's table: its folder's name and split; how its protocols' names begin; how to get it."""

    dataset: str
    split: str
    protocols: str
    how_to_get: str


TARGETS = (
    Target(
        dataset="pitts30k",
        split="test",
        protocols="Pitts30k test",
        how_to_get=f"{DOWNLOADER} downloads it",
    ),
    Target(
        dataset="msls",
        split="val",
        protocols="MSLS val",
        how_to_get=f"download it from mapillary.com/dataset/places, then convert it with {DOWNLOADER}",
    ),
    Target(dataset="nordland", split="test", protocols="Nordland", how_to_get=f"{DOWNLOADER} downloads it"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table. R@1 in percent, or None; `remedy`: what to do about something missing."""

    model: str
    dataset: str
    verdict: str
    protocol: str = ""
    measured: float | None = None
    published: float | None = None
    remedy: str = ""

    def cells(self) -> list[str]:
        """model, dataset, protocol, measured, published, difference, verdict, as the table shows them."""
        figures = [self.measured, self.published]
        difference = "" if None in figures else f"{self.measured - self.published:+.1f}"  # type: ignore[operator]
        shown = ["" if figure is None else f"{figure:.1f}" for figure in figures]
        verdict = f"{self.verdict} ({self.remedy})" if self.remedy else self.verdict
        return [self.model, self.dataset, self.protocol, *shown, difference, verdict]


def main() -> None:
    args = parse_arguments()
    published = read_published(args.published)
    run = RunDir("reproduce", {name: str(value) for name, value in vars(args).items()})

    # ---- The datasets that are there
    benchmarks: dict[str, Benchmark | InputError] = {}
    for target in TARGETS:
        try:
            benchmarks[target.dataset] = read_benchmark(target, args.datasets_folder, args.msls_queries_list)
            logging.info("%s", benchmarks[target.dataset])
        except InputError as error:
            logging.info("%s is missing: %s", target.dataset, error)
            benchmarks[target.dataset] = error

    # ---- Every model on every dataset
    rows = []
    for entry in MODEL_ZOO:
        rows += list(evaluate_model(entry, benchmarks, args, run=run, published=published))

    # ---- Measured against published
    header = ["model", "dataset", "protocol", "measured R@1", "published R@1", "difference", "verdict"]
    logging.info("\n| %s |\n|%s", " | ".join(header), " --- |" * len(header))
    for row in rows:
        logging.info("| %s |", " | ".join(row.cells()))
    with atomic_write(run.folder / "reproduction.csv") as file:
        csv.writer(file).writerows([header, *(row.cells() for row in rows)])
    compared = [row for row in rows if row.verdict in (REPRODUCED, DIFFERS)]
    differing = sum(row.verdict == DIFFERS for row in compared)
    logging.info("\n%d of %d figures compared with published ones; %d differ", len(compared), len(rows), differing)
    if differing:
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "folder of the datasets (or set the environment variable DATASETS_FOLDER)"
    default = os.environ.get("DATASETS_FOLDER")
    parser.add_argument("--datasets_folder", type=Path, default=default, required=not default, metavar="DIR", help=text)
    text = "keys of the official 740 MSLS queries: see docs/datasets.md"
    parser.add_argument("--msls_queries_list", type=Path, metavar="FILE", help=text)
    text = (
        f"published figures, a CSV file with the columns {', '.join(COLUMNS)} (default: {PUBLISHED.name} beside this)"
    )
    parser.add_argument("--published", type=Path, default=PUBLISHED, metavar="FILE", help=text)
    text = "size of the images in pixels (default: 322 322)"
    parser.add_argument("--resize", type=positive_int, nargs=2, default=[322, 322], metavar=("H", "W"), help=text)
    parser.add_argument("--no_antialias", action="store_true", help="resize without antialiasing")
    parser.add_argument("--infer_batch_size", type=positive_int, default=16, metavar="N", help="images per batch")
    text = "processes that read images (default: one per CPU, at most 8)"
    parser.add_argument(
        "--num_workers", type=non_negative_int, default=min(8, os.cpu_count() or 1), metavar="N", help=text
    )
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    args = parser.parse_args()
    if not args.datasets_folder.is_dir():
        parser.error(f"--datasets_folder: no folder {args.datasets_folder}.")
    if args.msls_queries_list and not args.msls_queries_list.is_file():
        parser.error(f"--msls_queries_list: no file {args.msls_queries_list}.")
    return args


def read_published(path: Path) -> dict[tuple[str, str], float]:
    """{(model, protocol): R@1 in percent}. Raises InputError if a column is missing or a number is invalid."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        if list(rows.fieldnames or ()) != list(COLUMNS):
            found = ", ".join(rows.fieldnames or ()) or "(none)"
            raise InputError(f"{path} has the columns {found}. Expected {', '.join(COLUMNS)}.")
        published = {}
        for row in rows:
            try:
                published[row["model"], row["protocol"]] = float(row["R@1"])
            except (TypeError, ValueError):
                raise InputError(f"{path}, line {rows.line_num}: R@1 is {row['R@1']!r}, not a number.") from None
    return published


def read_benchmark(target: Target, datasets_folder: Path, msls_queries_list: Path | None) -> Benchmark:
    """A dataset of the table. Raises InputError if it is missing."""
    queries_list = msls_queries_list if target.dataset == "msls" else None
    return Benchmark(
        BenchmarkConfig(
            name=target.dataset, datasets_folder=datasets_folder, split=target.split, queries_list=queries_list
        )
    )


def evaluate_model(
    entry: PublishedModel,
    benchmarks: dict[str, Benchmark | InputError],
    args: argparse.Namespace,
    *,
    run: RunDir,
    published: dict[tuple[str, str], float],
) -> Iterator[Row]:
    """A model's row for each dataset. A model that cannot be downloaded is missing."""
    settings = evaluation_arguments(entry, args)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    model: InferenceModel | None = None
    for target in TARGETS:
        row = partial(Row, model=entry.name, dataset=target.dataset)
        benchmark = benchmarks[target.dataset]
        if isinstance(benchmark, InputError):
            yield row(verdict=MISSING, remedy=f"dataset: {target.how_to_get}")
            continue
        try:
            model = model or prepare(load_model(entry.config, None), settings.extraction)
        except InputError as error:
            logging.info("%s is missing: %s", entry.name, error)
            yield row(verdict=MISSING, remedy=f"weights: save {entry.urls[0]} in {cache}")
            continue
        logging.info("\n%s on %s", entry.name, benchmark)
        folder = run.subfolder(f"{entry.name}_{target.dataset}")
        if entry.config.rerank:
            results = eval_rerank.evaluate(benchmark, folder, args=settings, model=model, pca=None)
        else:
            results = eval_float.evaluate(benchmark, folder, args=settings, model=model, pca=None)
        assert results is not None, "this script has one process"
        measured, protocol = results["recalls"][1], results["protocol"]
        figure = published.get((entry.name, protocol))
        comparable = [name for model, name in published if model == entry.name and name.startswith(target.protocols)]
        yield row(
            verdict=verdict(measured, figure, has_other_protocol=bool(comparable)),
            protocol=protocol,
            measured=measured,
            published=figure,
        )


def verdict(measured: float, published: float | None, *, has_other_protocol: bool) -> str:
    """How a measured R@1 compares with the published one of its protocol (None: there is none)."""
    if published is None:
        return NOT_COMPARABLE if has_other_protocol else NO_FIGURE
    return REPRODUCED if abs(measured - published) <= TOLERANCE + 1e-9 else DIFFERS


def evaluation_arguments(entry: PublishedModel, args: argparse.Namespace) -> EvaluationArguments:
    """The settings of the evaluation scripts that the published figures are compared with."""
    return EvaluationArguments(
        model=ModelChoice(**asdict(entry.config)),
        resume=None,
        benchmarks=[],
        extraction=ExtractionConfig(
            resize=tuple(args.resize),
            antialias=not args.no_antialias,
            batch_size=args.infer_batch_size,
            num_workers=args.num_workers,
            device=resolve_device(args.device),
            temporary_folder=Path("logs"),
        ),
        rerank_num=RERANK_NUM,
        recall_values=RECALL_VALUES,
        save_dir="reproduce",
        flags={},
    )


if __name__ == "__main__":
    cli_main(main)
