"""Small sets of real images: what models of this project find in them, beside what other methods find.

    python -m benchmarks.real --datasets_folder=/data/vpr [--models FILE_OR_NAME ...]

Sets: corridor, gardens_point (by day and by night), essex3in1 and ie_tower, as far as they are there. Models: --models,
or those of `make try`, `make demo` and `make corridor-demo`, as far as they have been made. Figures of other methods on
the same images come from benchmarks/real_figures.csv; raw pixels are measured.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import report_table
from datasets.benchmark import Benchmark
from datasets.config import PositionConfig
from datasets.layouts import NO_DATASETS_FOLDER, BenchmarkConfig, datasets_folder_flag
from model import InputError, ModelChoice, ModelConfig
from model.zoo import PublishedModel, find_model
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.evaluation import load_extractor
from utils.retrieval.extraction import Extractor, extract
from utils.retrieval.metrics import correct_predictions, recalls_at
from utils.retrieval.search import search_and_rerank
from utils.runtime.flags import flag, part
from utils.runtime.parser import parse
from utils.runtime.script import cli_main
from utils.runtime.text_files import read_csv

FIGURES = Path(__file__).with_name("real_figures.csv")
COLUMNS = ("set", "method", "recall_1", "recall_5", "recall_10", "source")
RECALL_VALUES = (1, 5, 10)
RERANK_NUM = 100
TITLE = "R@1 (R@5, R@10) on small sets of real images"
MADE = {  # {model: (its file, the command that makes it)}; of a folder of runs, the latest
    "make try": ("assets/try/model.safetensors", "python -m examples.try_model"),
    "make demo, untrained": ("demo/logs/start/*/best_model.pth", "make demo"),
    "make demo": ("demo/logs/stage_two/*/best_model.pth", "make demo"),
    "make corridor-demo": ("demo_indoors/logs/stage_two/*/best_model.pth", "make corridor-demo DATASETS_FOLDER=..."),
}
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class RealSet:
    """A set: its folder; folders of queries, {condition: folder}, of which "" is the only one; the folder of database
    images where it has no images/test; whether positions.csv lies in it.
    """

    folder: str
    conditions: dict[str, str]
    database: str | None = None

    def read(self, datasets_folder: Path) -> Benchmark:
        """Raises InputError if it is not there."""
        folder = datasets_folder / self.folder
        if self.database is None:
            subfolders = tuple(self.conditions.values())
            return Benchmark(
                BenchmarkConfig(name=self.folder, datasets_folder=datasets_folder, queries_subfolders=subfolders)
            )
        (queries,) = self.conditions.values()
        return Benchmark(
            BenchmarkConfig(
                name=self.folder,
                database_folder=folder / self.database,
                queries_folder=folder / queries,
                positions=PositionConfig(source="csv", csv=folder / "positions.csv"),
            )
        )

    def parts(self, benchmark: Benchmark) -> Iterator[tuple[str, Any]]:
        """(Name, indices of the queries) of each condition."""
        for condition, folder in self.conditions.items():
            yield f"{self.folder} {condition}".strip(), benchmark.query_folders[Path(folder).name]


SETS = (
    RealSet(folder="corridor", conditions={"": "queries"}),
    RealSet(folder="gardens_point", conditions={"day": "queries_day", "night": "queries_night"}),
    RealSet(folder="essex3in1", conditions={"": "query"}, database="ref"),
    RealSet(folder="ie_tower", conditions={"": "query"}, database="gallery"),
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line. Raises InputError without a folder of datasets."""

    datasets_folder: Path | None = datasets_folder_flag()
    models: tuple[str, ...] = flag(
        "files of models, or names of published ones", group="data", nargs="+", default=(), metavar="FILE_OR_NAME"
    )
    json: Path | None = flag("write the table to a file, too", group="data", default=None, metavar="FILE")
    extraction: ExtractionConfig = part(
        "images",
        fixed={"exif_orientation": False, "precision": "fp32", "compile": False, "temporary_folder": Path("logs")},
    )

    def __post_init__(self) -> None:
        if self.datasets_folder is None:
            raise InputError(NO_DATASETS_FOLDER)


class Pixels:
    """A Describer: images of 28 x 28 pixels, in grey, of mean 0 and length 1. A floor for every method."""

    config, descriptor_dim, fingerprint, engine = ModelConfig(), 28 * 28, "pixels", "PyTorch"
    size = (28, 28)

    def __call__(self, images: Tensor, float_branch: bool = True) -> Tensor:
        grey = images.mean(dim=1).flatten(1)
        return F.normalize(grey - grey.mean(dim=1, keepdim=True), dim=1)


def main() -> None:
    args = parse(Arguments, __doc__.splitlines()[0])
    assert args.datasets_folder, "or the arguments would be refused"
    sets = read_sets(args.datasets_folder)

    # ---- What others find, what raw pixels find, and what our models find
    pixels = Extractor(model=Pixels(), config=replace(args.extraction, resize=Pixels.size, antialias=True))
    rows = [*stored_figures(sets), {"method": "raw pixels, 28 x 28", **evaluate(pixels, sets)}]
    for name, source in find_models(args.models).items():
        extractor = load_extractor(ModelChoice(), source, args.extraction)
        height, width = extractor.config.image_config.resize
        rows.append({"method": f"{name}, {height} x {width}", **evaluate(extractor, sets)})
    report_table(TITLE, rows, args.json)


def read_sets(datasets_folder: Path) -> dict[RealSet, Benchmark]:
    """The sets that are there. Raises InputError if none is."""
    found = {}
    for each in SETS:
        if (datasets_folder / each.folder).is_dir():
            found[each] = each.read(datasets_folder)
            print(found[each])
        else:
            print(f"{each.folder} is missing: there is no folder {datasets_folder / each.folder}.")
    if not found:
        names = ", ".join(each.folder for each in SETS)
        raise InputError(f"{datasets_folder} holds none of {names}. Give the folder with these, or some of them.")
    return found


def find_models(stated: tuple[str, ...]) -> dict[str, PublishedModel | Path]:
    """{name: model}: the stated ones, or those of MADE that exist. Raises InputError if a stated name is unknown."""
    if stated:
        return {name: find_model(name) for name in stated}
    found: dict[str, PublishedModel | Path] = {}
    for name, (pattern, command) in MADE.items():
        runs = sorted(ROOT.glob(pattern), key=lambda path: path.stat().st_mtime)
        if runs:
            found[name] = runs[-1]
        else:
            print(f"The model of {name} is missing: run `{command}`.")
    return found


def evaluate(extractor: Extractor, sets: dict[RealSet, Benchmark]) -> dict[str, str]:
    """{set: its recalls} of the last stage of the model."""
    cells = {}
    for each, benchmark in sets.items():
        database, queries = extract(extractor, benchmark.database), extract(extractor, benchmark.queries)
        assert database and queries, "this script has one process"
        rerank_num = RERANK_NUM if extractor.model.config.rerank else 0
        found = search_and_rerank(database, queries, max(RECALL_VALUES), rerank_num=rerank_num)[-1]
        correct = correct_predictions(found.first(max(RECALL_VALUES)).indices, benchmark.positives)
        for name, chosen in each.parts(benchmark):
            cells[name] = recall_cell(recalls_at(correct[chosen], RECALL_VALUES).values())
    return cells


def stored_figures(sets: dict[RealSet, Benchmark]) -> list[dict[str, str]]:
    """A row of each method of which figures on these sets are stored."""
    rows: dict[str, dict[str, str]] = {}
    names = {name for each, benchmark in sets.items() for name, _ in each.parts(benchmark)}
    for row in read_csv(FIGURES, COLUMNS)[1]:
        if row.text("set") in names:
            method = f"{row.text('method')} ({row.text('source')})"
            recalls = [row.values[f"recall_{n}"] or None for n in RECALL_VALUES]
            cell = recall_cell(None if value is None else float(value) for value in recalls)
            rows.setdefault(method, {"method": method})[row.text("set")] = cell
    return list(rows.values())


def recall_cell(recalls: Iterable[float | None]) -> str:
    """For example "27.9 (53.2, 81.1)"; "-" for what is not known."""
    first, *others = ("-" if recall is None else f"{recall:.1f}" for recall in recalls)
    return first if set(others) == {"-"} else f"{first} ({', '.join(others)})"


if __name__ == "__main__":
    cli_main(main)
