"""Check the paper's table: evaluate the published models, and compare their recalls with published figures.

    python -m benchmarks.reproduce --datasets_folder=/data/vpr --msls_queries_list=msls_740.txt

Datasets: Pitts30k (test), MSLS (val, the official 740 queries), Nordland (test) and Tokyo 24/7 (test), as far as they
are there. Every figure of benchmarks/published_recalls.csv gets a verdict. Exit status: 0; 1 if a recall differs from
its figure by more than 0.2; 3 if none could be compared.
"""

import csv
import logging
import sys
from collections import Counter
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
from utils.cli.training import ONLY_TORCH
from utils.retrieval.config import EvaluationConfig, ExtractionConfig, ReportConfig, SearchConfig, image_flags
from utils.retrieval.evaluation import Pipeline
from utils.retrieval.extraction import Extractor, prepare
from utils.runtime.atomic_files import atomic_write
from utils.runtime.flags import all_flags, flag, part
from utils.runtime.parser import parse
from utils.runtime.run_dir import RunDir
from utils.runtime.script import cli_main
from utils.runtime.text_files import read_csv

PUBLISHED = Path(__file__).with_name("published_recalls.csv")
COLUMNS = ("model", "protocol", "n", "recall", "kind", "source", "note")
TOLERANCE = 0.2  # percentage points
RECALL_VALUES = (1, 5, 10)
RERANK_NUM = 100
EXPECTED_FOLDER = "Give the folder that holds pitts30k, msls, nordland and tokyo247, or some of them."
DOWNLOADER = "https://github.com/gmberton/VPR-datasets-downloader"
EQUAL, ABOVE, BELOW, NOT_COMPARED, NO_FIGURE = "equal", "above", "below", "not compared", "no published figure"
VERDICTS = (EQUAL, ABOVE, BELOW, NOT_COMPARED)  # of a published figure
NOTHING_COMPARED = 3  # exit status


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
        fixed={
            "exif_orientation": False,
            "precision": "fp32",
            "compile": False,
            **ONLY_TORCH,
            "temporary_folder": Path("logs"),
        },
    )
    flags: dict[str, Any] = all_flags()

    def __post_init__(self) -> None:
        if self.datasets_folder is None:
            raise InputError(NO_DATASETS_FOLDER)
        if not self.datasets_folder.is_dir():
            raise InputError(f"--datasets_folder: there is no folder {self.datasets_folder}. {EXPECTED_FOLDER}")
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
    Target(
        dataset="tokyo247",
        split="test",
        protocols="Tokyo 24/7",
        how_to_get=f"ask its authors for it, then convert it with {DOWNLOADER}",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A published recall in percent. kind: first-hand or second-hand. note: why it cannot be compared, or ""."""

    model: str
    protocol: str
    n: int
    recall: float
    kind: str
    source: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the evaluation of a model on a dataset gave: {N: R@N in percent}."""

    model: str
    dataset: str
    protocol: str
    recalls: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """What was measured, and {dataset or model: what to do about its absence}."""

    measured: list[Measured]
    missing: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: recalls in percent, or None; why: the reason if nothing was compared."""

    model: str
    protocol: str
    n: int
    verdict: str
    measured: float | None = None
    published: float | None = None
    kind: str = ""
    why: str = ""

    def cells(self) -> list[str]:
        """The cells under HEADER."""
        figures = [self.measured, self.published]
        difference = "" if None in figures else f"{self.measured - self.published:+.1f}"  # type: ignore[operator]
        shown = ["" if figure is None else f"{figure:.1f}" for figure in figures]
        verdict = f"{self.verdict}: {self.why}" if self.why else self.verdict
        return [self.model, self.protocol, f"R@{self.n}", *shown, difference, self.kind, verdict]


HEADER = ["model", "protocol", "recall", "measured", "published", "difference", "published figure is", "verdict"]


def main() -> None:
    args = parse(Arguments, __doc__.splitlines()[0])
    figures = read_figures(args.published)
    run = RunDir("reproduce", args.flags | image_flags(args.extraction.image_config))

    # ---- Every model on every dataset that is there
    evaluations = evaluate_models(read_benchmarks(args), args.extraction, run=run)

    # ---- Measured against published
    rows = [compare(figure, evaluations) for figure in figures]
    rows += without_figure(evaluations.measured, figures)
    logging.info("\n| %s |\n|%s", " | ".join(HEADER), " --- |" * len(HEADER))
    for row in rows:
        logging.info("| %s |", " | ".join(row.cells()))
    with atomic_write(run.folder / "reproduction.csv") as file:
        csv.writer(file).writerows([HEADER, *(row.cells() for row in rows)])
    counts = Counter(row.verdict for row in rows)
    logging.info("\n%d published figures: %s", len(figures), ", ".join(f"{counts[name]} {name}" for name in VERDICTS))
    if counts[ABOVE] or counts[BELOW]:
        sys.exit(1)
    if not counts[EQUAL]:
        logging.info("Nothing was compared. The verdicts say what is missing.")
        sys.exit(NOTHING_COMPARED)


def read_figures(path: Path) -> list[Figure]:
    """The published figures. Raises InputError if a column is missing, or a number invalid."""
    figures = []
    for row in read_csv(path, COLUMNS)[1]:
        n = row.number("n")
        if n not in RECALL_VALUES:
            raise row.error(f"n is {n:g}. Expected one of {', '.join(map(str, RECALL_VALUES))}.")
        names = {name: row.text(name) for name in ("model", "protocol", "kind", "source")}
        recall = row.number("recall", (0, 100))
        figures.append(Figure(n=int(n), recall=recall, note=row.values["note"] or "", **names))
    return figures


def read_benchmarks(args: Arguments) -> dict[str, Benchmark | InputError]:
    """{dataset: its images, or why they cannot be read} for each of TARGETS."""
    benchmarks: dict[str, Benchmark | InputError] = {}
    for target in TARGETS:
        config = BenchmarkConfig(
            name=target.dataset,
            datasets_folder=args.datasets_folder,
            split=target.split,
            queries_list=args.msls_queries_list if target.dataset == "msls" else None,
        )
        try:
            benchmarks[target.dataset] = Benchmark(config)
            logging.info("%s", benchmarks[target.dataset])
        except InputError as error:
            logging.info("%s is missing: %s", target.dataset, error)
            benchmarks[target.dataset] = error
    return benchmarks


def evaluate_models(
    benchmarks: dict[str, Benchmark | InputError], extraction: ExtractionConfig, *, run: RunDir
) -> Evaluations:
    """Evaluates each published model on each benchmark. No weights are downloaded without one, nor tried twice."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    found = {name: benchmark for name, benchmark in benchmarks.items() if isinstance(benchmark, Benchmark)}
    missing = {target.dataset: target.how_to_get for target in TARGETS if target.dataset not in found}
    measured = []
    for entry in MODEL_ZOO if found else []:
        try:
            pipeline = load_pipeline(entry, extraction)
        except InputError as error:
            logging.info("%s is missing: %s", entry.name, error)
            missing[entry.name] = f"save {entry.urls[0]} in {cache}"
            continue
        for dataset, benchmark in found.items():
            logging.info("\n%s on %s", entry.name, benchmark)
            results = pipeline.evaluate(benchmark, run.subfolder(f"{entry.name}_{dataset}"))
            assert results is not None, "this script has one process"
            recalls, protocol = results["recalls"], results["protocol"]
            measured.append(Measured(model=entry.name, dataset=dataset, protocol=protocol, recalls=recalls))
    return Evaluations(measured=measured, missing=missing)


def load_pipeline(entry: PublishedModel, extraction: ExtractionConfig) -> Pipeline:
    """The evaluation that the published figures of a model are compared with. Raises InputError without its weights."""
    config = EvaluationConfig(
        extraction=extraction,
        search=SearchConfig(rerank_num=RERANK_NUM if entry.config.rerank else 0),
        report=ReportConfig(recall_values=RECALL_VALUES),
    )
    extractor = Extractor(model=prepare(load_model(entry.config, entry), extraction), config=extraction)
    search = eval_rerank.search_in_two_stages if entry.config.rerank else eval_float.search_descriptors
    return Pipeline(extractor, config, search)


def compare(figure: Figure, evaluations: Evaluations) -> Row:
    """The verdict on a published figure."""
    row = partial(
        Row, model=figure.model, protocol=figure.protocol, n=figure.n, published=figure.recall, kind=figure.kind
    )
    why = why_not_compared(figure, evaluations)
    if why:
        return row(verdict=NOT_COMPARED, why=why)
    same = (each for each in evaluations.measured if (each.model, each.protocol) == (figure.model, figure.protocol))
    measured = next(same).recalls[figure.n]
    return row(verdict=verdict(measured, figure.recall), measured=measured)


def why_not_compared(figure: Figure, evaluations: Evaluations) -> str:
    """What is missing for the comparison with a figure; "" if nothing is."""
    missing, models = evaluations.missing, [entry.name for entry in MODEL_ZOO]
    if figure.note:
        return figure.note
    if figure.model not in models:
        return f"there is no published model of this name, only {', '.join(models)}"
    target = next((target for target in TARGETS if figure.protocol.startswith(target.protocols)), None)
    if target is None:
        return f"no dataset of this script has the protocol, only {', '.join(each.dataset for each in TARGETS)}"
    if target.dataset in missing:
        return f"{target.dataset} is missing ({missing[target.dataset]})"
    if figure.model in missing:
        return f"the weights are missing ({missing[figure.model]})"
    found = {each.protocol for each in evaluations.measured if each.dataset == target.dataset}
    return "" if figure.protocol in found else f"{target.dataset} has another protocol here: {', '.join(found)}"


def verdict(measured: float, published: float) -> str:
    """How a measured recall compares with the published one of its protocol."""
    if abs(measured - published) <= TOLERANCE + 1e-9:
        return EQUAL
    return ABOVE if measured > published else BELOW


def without_figure(measured: list[Measured], figures: list[Figure]) -> list[Row]:
    """A row for each measured R@1 of whose model and protocol nothing is published."""
    published = {(figure.model, figure.protocol) for figure in figures}
    return [
        Row(model=each.model, protocol=each.protocol, n=1, verdict=NO_FIGURE, measured=each.recalls[1])
        for each in measured
        if (each.model, each.protocol) not in published
    ]


if __name__ == "__main__":
    cli_main(main)
