"""The flags of the evaluation scripts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.config import GroundTruthConfig, PositionConfig, positions_flag
from datasets.layouts import NO_DATASETS_FOLDER, BenchmarkConfig, datasets_folder_flag, folder_above
from model import InputError
from utils.cli.model import HUB, TrainedModel
from utils.retrieval.config import (
    DEFAULT_RERANK_NUM,
    CodesConfig,
    EvaluationConfig,
    IndexFlags,
    PCAConfig,
    SearchConfig,
)
from utils.runtime.devices import warn_if_slow
from utils.runtime.flags import Values, all_flags, fixed, flag, part, positive_float, positive_int, seed_flag, switch

OWN_CODES_FLAGS = dict.fromkeys(  # which eval_hashing.py and eval_rerank.py refuse
    ("--codes", "--code_bits"),
    "makes codes of float descriptors, and this model gives codes of its own. Leave it out, or use eval.py with a "
    "float model.",
)
DEFAULT_THRESHOLD = 25  # metres; an int, as results.json shows it
WITHOUT_DISTANCE = ("no_labels", "matches_csv", "frame_tolerance")  # flags by which distances do not matter
FLOAT_FLAGS = dict.fromkeys(  # which eval_hashing.py refuses
    ("--pca_dim", "--pca_dataset_folder"), "applies to float descriptors, which hashing-only models do not have."
)
SINGLE = "applies to one dataset, but --dataset_name names {}. Run it separately."


def _leaves_distances_out(flags: Values) -> bool:
    """Whether one of WITHOUT_DISTANCE is given: --frame_tolerance may be 0."""
    return any(flags[name] is not None and flags[name] is not False for name in WITHOUT_DISTANCE)


@dataclass(frozen=True, kw_only=True)
class BenchmarkFlags:
    """The datasets, or the two folders, to evaluate. Raises InputError for values that do not go together."""

    datasets_folder: Path | None = datasets_folder_flag()
    dataset_name: tuple[str, ...] | None = flag(
        "names of the datasets' folders in --datasets_folder; with several, a table follows (default: pitts30k)",
        nargs="+",
        default_from=lambda flags: None if flags["queries_folder"] or flags["database_folder"] else ("pitts30k",),
        metavar="NAME",
    )
    split: str | None = flag(
        "split of the datasets (default: test)",
        default_from=lambda flags: None if flags["queries_folder"] or flags["database_folder"] else "test",
    )
    queries_subfolder: tuple[str, ...] = flag(
        "folders of queries beside the database (default: queries), such as queries_night of SVOX or SF-XL",
        nargs="+",
        default=(),
        metavar="NAME",
    )
    database_folder: Path | None = flag(
        "any folder as database; with --queries_folder, instead of --datasets_folder and --dataset_name", default=None
    )
    queries_folder: Path | None = flag("any folder of queries; see --database_folder", default=None)
    queries_list: Path | None = flag(
        "evaluate only these queries: a file with MSLS keys or paths, one per line or separated by spaces", default=None
    )
    positions: PositionConfig = part("data", changed={"source": positions_flag("names")})
    ground_truth: GroundTruthConfig = part("data", default=GroundTruthConfig())
    per_city: bool = switch(
        "search each query among the images of its city alone, as MSLS names them; its test set is always searched so"
    )
    no_labels: bool = switch("it is not known which images are right: write predictions without recalls")
    threshold: float | None = flag(
        "a database image within this distance of a query counts as correct (default: 25)",
        name="val_positive_dist_threshold",
        type=positive_float,
        default_from=lambda flags: None if _leaves_distances_out(flags) else DEFAULT_THRESHOLD,
        metavar="METRES",
    )

    def __post_init__(self) -> None:
        matches = self.ground_truth
        files = {"positions_csv": self.positions.csv, "matches_csv": matches.matches_csv}
        single = {"queries_list": self.queries_list, **files}
        for name, path in single.items():
            require_file(name, path)
        if self.no_labels and self.threshold is not None:
            raise InputError("--val_positive_dist_threshold applies to labels, which --no_labels leaves out.")
        if matches.is_given and self.threshold is not None:
            given = "matches_csv" if matches.matches_csv else "frame_tolerance"
            raise InputError(f"--{given} decides in place of distances; leave --val_positive_dist_threshold out.")
        if self.given_folders:
            for name in ("dataset_name", "split"):
                if getattr(self, name):
                    raise InputError(f"--{name} selects images of a dataset. It does not apply to --queries_folder.")
            return
        if self.datasets_folder is None:
            raise InputError(
                f"{NO_DATASETS_FOLDER} Or give any two folders with --database_folder and --queries_folder."
            )
        names = self.dataset_name or ()
        if len(set(names)) < len(names):
            raise InputError(f"--dataset_name {' '.join(names)}: a dataset is named more than once.")
        for name, value in {**single, "queries_subfolder": self.queries_subfolder}.items():
            if len(names) > 1 and value:
                raise InputError(f"--{name} {SINGLE.format(len(names))}")

    @property
    def given_folders(self) -> bool:
        """Whether two folders are evaluated, rather than datasets."""
        return self.database_folder is not None or self.queries_folder is not None

    @property
    def benchmarks(self) -> list[BenchmarkConfig]:
        """The datasets; or the two folders, under the name of the folder above both."""
        options: dict[str, Any] = {
            "queries_subfolders": self.queries_subfolder,
            "queries_list": self.queries_list,
            "positions": self.positions,
            "labels": not self.no_labels,
            "threshold": self.threshold or DEFAULT_THRESHOLD,
            "ground_truth": self.ground_truth,
            "per_city": self.per_city,
        }
        if self.queries_folder:
            options |= {"queries_folder": self.queries_folder, "database_folder": self.database_folder}
            above = folder_above(self.queries_folder, self.database_folder)
            return [BenchmarkConfig(name=above.name or self.queries_folder.name, **options)]
        options |= {"datasets_folder": self.datasets_folder, "split": self.split or "test"}
        return [BenchmarkConfig(name=name, **options) for name in self.dataset_name or ()]


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments(EvaluationConfig):
    """The command line of an evaluation script. flags: all, as plain values."""

    model: TrainedModel = part("model")
    data: BenchmarkFlags = part("data")
    save_dir: str = flag("results go to logs/NAME/<time>/", default="eval", group="report", metavar="NAME")
    seed: int = seed_flag()
    flags: dict[str, Any] = all_flags()

    def __post_init__(self) -> None:
        super().__post_init__()
        data, index = self.data, self.index
        if data.given_folders and (not data.queries_folder or not (data.database_folder or index.load_index)):
            raise InputError("Give both --database_folder and --queries_folder (with --load_index, only the latter).")
        if data.database_folder and index.load_index:
            raise InputError("--load_index replaces the database; give either that or --database_folder.")
        count = len(data.benchmarks)  # raises InputError for images that cannot be selected so
        for name in ("save_index", "load_index"):
            if getattr(index, name) and count > 1:
                raise InputError(f"--{name} {SINGLE.format(count)}")
        if self.report.only_wrong and data.no_labels:
            raise InputError("--save_only_wrong_preds needs labels, which --no_labels leaves out.")
        for size in self.crops.model_sizes(self.extraction.image_config.resize):  # as far as they are known by now
            self.model.check_image_size(size)
        warn_if_slow(self.extraction.device, self.extraction.precision)


@dataclass(frozen=True, kw_only=True)
class FloatEvaluation(EvaluationArguments):
    """The command line of eval.py. rerank_num: 0 where an index decides whether there are codes."""

    model: TrainedModel = part("model", fixed={"kind": "float"}, changed=HUB)
    search: SearchConfig = part(
        "search",
        fixed={"ivf": None},
        changed={
            "rerank_num": flag(
                f"with --codes, or an index with codes: first-stage results to re-rank (default: {DEFAULT_RERANK_NUM})",
                type=positive_int,
                default_from=lambda flags: DEFAULT_RERANK_NUM if flags["codes"] else 0,
                may_change=True,
            )
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search.rerank_num and not (self.codes.source or self.index.load_index or self.index.append):
            raise InputError("--rerank_num applies to a search by codes; give --codes, or an index with codes.")


@dataclass(frozen=True, kw_only=True)
class HashingEvaluation(EvaluationArguments):
    """The command line of eval_hashing.py."""

    model: TrainedModel = part("model", fixed={"kind": "hashing"})
    index: IndexFlags = part("index", fixed={"descriptor_dtype": None})
    pca: PCAConfig = fixed(PCAConfig())
    codes: CodesConfig = fixed(CodesConfig())
    search: SearchConfig = part("search", fixed={"rerank_num": 0})


@dataclass(frozen=True, kw_only=True)
class TwoBranchEvaluation(EvaluationArguments):
    """The command line of eval_rerank.py."""

    codes: CodesConfig = fixed(CodesConfig())

    model: TrainedModel = part("model", fixed={"kind": "two-branch"})


def require_file(name: str, path: Path | None) -> None:
    """Raises InputError if a flag names a file that does not exist."""
    if path and (path.is_dir() or not path.exists()):
        raise InputError(f"--{name}: no file {path}.")
