"""Check the paper's table: evaluate the published models, and compare their R@1 with published figures.

    python -m benchmarks.reproduce --datasets_folder=/data/vpr --msls_queries_list=msls_740.txt

Datasets: Pitts30k (test), MSLS (val, the official 740 queries) and Nordland (test), as far as they are there. A figure
is compared only with one of the same protocol. Published figures are read from benchmarks/published_recalls.csv.
Exit status: 0, or 1 if a figure differs by more than 0.2.
"""

import csv
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import eval as eval_float
import eval_rerank
from datasets.benchmark import Benchmark
from datasets.layouts import NO_DATASETS_FOLDER, BenchmarkConfig, datasets_folder_flag
from model import InputError
from model.weights import load_model
from model.zoo import MODEL_ZOO, PublishedModel
from utils.cli.evaluation import require_file
from utils.retrieval.config import EvaluationConfig, ExtractionConfig, ReportConfig, SearchConfig
from utils.retrieval.evaluation import Pipeline
from utils.retrieval.extraction import Extractor, prepare
from utils.runtime.atomic_files import atomic_write
from utils.runtime.flags import all_flags, flag, part
from utils.runtime.parser import parse
from utils.runtime.run_dir import RunDir
from utils.runtime.script import cli_main
from utils.runtime.text_files import read_csv

PUBLISHED = Path(__file__).with_name("published_recalls.csv")
COLUMNS = ("model", "protocol", "r@1")
TOLERANCE = 0.2  # percentage points
RECALL_VALUES = (1, 5, 10)
RERANK_NUM = 100
DOWNLOADER = "https://github.com/gmberton/VPR-datasets-downloader"
REPRODUCED, DIFFERS = "reproduced", "differs"
NOT_COMPARABLE, NO_FIGURE, MISSING = "not comparable (protocol)", "no published figure", "missing"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line. flags: all, as plain values."""

    datasets_folder: Path | None = datasets_folder_flag()
    msls_queries_list: Path | None = flag(
        "keys of the official 740 MSLS queries: see docs/datasets.md",
        group="data",
        type=Path,
        default=None,
        metavar="FILE",
    )
    published: Path = flag(
        f"published figures, a CSV file with the columns {', '.join(COLUMNS)} (default: {PUBLISHED.name} beside this)",
        group="data",
        type=Path,
        default_from=lambda _: PUBLISHED,
        metavar="FILE",
    )
    extraction: ExtractionConfig = part(
        "images",
        fixed={"exif_orientation": False, "precision": "fp32", "compile": False, "temporary_folder": Path("logs")},
    )
    flags: dict[str, Any] = all_flags()

    def __post_init__(self) -> None:
        if self.datasets_folder is None:
            raise InputError(NO_DATASETS_FOLDER)
        if not self.datasets_folder.is_dir():
            raise InputError(f"--datasets_folder: no folder {self.datasets_folder}.")
        for name in ("msls_queries_list", "published"):
            require_file(name, getattr(self, name))


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
class Reproduction:
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
    args = parse(Arguments, __doc__.splitlines()[0])
    published = read_published(args.published)
    run = RunDir("reproduce", args.flags)

    # ---- The datasets that are there
    benchmarks: dict[str, Benchmark | InputError] = {}
    for target in TARGETS:
        try:
            benchmarks[target.dataset] = read_benchmark(target, args)
            logging.info("%s", benchmarks[target.dataset])
        except InputError as error:
            logging.info("%s is missing: %s", target.dataset, error)
            benchmarks[target.dataset] = error

    # ---- Every model on every dataset
    rows = []
    for entry in MODEL_ZOO:
        rows += list(evaluate_model(entry, benchmarks, args.extraction, run=run, published=published))

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


def read_published(path: Path) -> dict[tuple[str, str], float]:
    """{(model, protocol): R@1 in percent}. Raises InputError if a column is missing or a number is invalid."""
    rows = read_csv(path, COLUMNS)[1]
    return {(row.text("model"), row.text("protocol")): row.number("r@1") for row in rows}


def read_benchmark(target: Target, args: Arguments) -> Benchmark:
    """A dataset of the table. Raises InputError if it is missing."""
    queries_list = args.msls_queries_list if target.dataset == "msls" else None
    return Benchmark(
        BenchmarkConfig(
            name=target.dataset, datasets_folder=args.datasets_folder, split=target.split, queries_list=queries_list
        )
    )


def evaluate_model(
    entry: PublishedModel,
    benchmarks: dict[str, Benchmark | InputError],
    extraction: ExtractionConfig,
    *,
    run: RunDir,
    published: dict[tuple[str, str], float],
) -> Iterator[Reproduction]:
    """A model's row for each dataset. A model that cannot be downloaded is missing."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    pipeline: Pipeline | None = None
    for target in TARGETS:
        row = partial(Reproduction, model=entry.name, dataset=target.dataset)
        benchmark = benchmarks[target.dataset]
        if isinstance(benchmark, InputError):
            yield row(verdict=MISSING, remedy=f"dataset: {target.how_to_get}")
            continue
        try:
            if pipeline is None:
                model = prepare(load_model(entry.config, None), extraction)
                search = eval_rerank.search_in_two_stages if entry.config.rerank else eval_float.search_descriptors
                extractor = Extractor(model=model, config=extraction)
                pipeline = Pipeline(extractor, evaluation_config(entry, extraction), search)
        except InputError as error:
            logging.info("%s is missing: %s", entry.name, error)
            yield row(verdict=MISSING, remedy=f"weights: save {entry.urls[0]} in {cache}")
            continue
        logging.info("\n%s on %s", entry.name, benchmark)
        folder = run.subfolder(f"{entry.name}_{target.dataset}")
        results = pipeline.evaluate(benchmark, folder)
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


def evaluation_config(entry: PublishedModel, extraction: ExtractionConfig) -> EvaluationConfig:
    """The settings of the evaluation that the published figures are compared with."""
    return EvaluationConfig(
        extraction=extraction,
        search=SearchConfig(rerank_num=RERANK_NUM if entry.config.rerank else 0),
        report=ReportConfig(recall_values=RECALL_VALUES),
    )


if __name__ == "__main__":
    cli_main(main)
