"""The flags of the training scripts."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.cities import ALL, TRAINING_DATASETS
from datasets.config import PlacesConfig
from datasets.layouts import NO_DATASETS_FOLDER, datasets_folder_flag
from model import InputError
from model.config import PRECISIONS, check_image_size
from model.zoo import find_model
from utils.cli.evaluation import DEFAULT_THRESHOLD
from utils.cli.model import Architecture
from utils.retrieval.config import EvaluationConfig, ExtractionConfig, ReportConfig, SearchConfig
from utils.runtime.devices import warn_if_slow
from utils.runtime.flags import all_flags, fixed, flag, fraction, part, positive_float
from utils.runtime.parser import changeable_flags
from utils.training.config import TrainingConfig

ONLY_TORCH = {"engine": "torch", "onnx_provider": None}
NO_PICTURES = {"num_pictures": 0, "only_wrong": False, "exif_orientation": False}


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """The command line of a training script. flags: all, as plain values."""

    datasets_folder: Path | None = datasets_folder_flag()
    training_dataset: str = flag(
        "cities to train on; all: those in --gsv_cities_folder",
        group="data",
        choices=(*TRAINING_DATASETS, ALL),
        default="gsv_cities",
    )
    gsv_cities_folder: Path = flag(
        "folder with Dataframes and Images (default: <datasets_folder>/gsv_cities)",
        group="data",
        default_from=lambda flags: flags["datasets_folder"] and flags["datasets_folder"] / "gsv_cities",
        may_change=True,
    )
    places: PlacesConfig = part("data")
    val_datasets: tuple[str, ...] = flag(
        "validation datasets (split val), or the word none; R@1 + R@5 of the last one selects the best model",
        group="data",
        nargs="+",
        default=("pitts30k", "msls"),
        convert=lambda names: [] if list(names) == ["none"] else names,
        metavar="NAME",
    )
    dataset_name: str = flag(
        "name of the test dataset's folder in --datasets_folder",
        group="data",
        default="pitts30k",
        metavar="NAME",
        may_change=True,
    )
    threshold: float = flag(
        "a database image within this distance of a query counts as correct, in validation and test",
        name="val_positive_dist_threshold",
        group="data",
        type=positive_float,
        default=DEFAULT_THRESHOLD,
        metavar="METRES",
    )
    model: Architecture = part("model")
    resume: Path | None = flag(
        "the run to resume: its folder, its last_model.pth, or latest, the newest in logs/<save_dir>",
        group="model",
        default=None,
        may_change=True,
        metavar="RUN",
    )
    init_from: str | None = flag(
        "start a new run from the weights of a trained model, a published one or a file; for stage two a float model",
        group="model",
        default=None,
        may_change=True,
        metavar="NAME_OR_FILE",
    )
    training: TrainingConfig = part("training")
    extraction: ExtractionConfig = part(
        "images",
        fixed={"temporary_folder": Path("logs"), "exif_orientation": False, "compile": False, **ONLY_TORCH},
        changed={
            "precision": flag(
                "--precision of validation and test",
                name="eval_precision",
                group="speed",
                choices=tuple(PRECISIONS),
                default="fp32",
            )
        },
    )
    search: SearchConfig = fixed(SearchConfig(rerank_num=0))
    report: ReportConfig = part("report", fixed=NO_PICTURES)
    save_dir: str = flag(
        "a new run goes to logs/NAME/<time>/", default="train", group="report", metavar="NAME", may_change=True
    )
    flags: dict[str, Any] = all_flags()

    def __post_init__(self) -> None:
        if self.datasets_folder is None:
            raise InputError(NO_DATASETS_FOLDER)
        if self.training.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise InputError("--tensorboard needs the package tensorboard: pip install -r requirements-tensorboard.txt")
        for size in (self.places.image_size, self.extraction.image_config.resize):
            check_image_size(self.model.choice.resolve(), size)
        if self.init_from:
            find_model(self.init_from)
        for precision in dict.fromkeys((self.training.precision, self.extraction.precision)):
            warn_if_slow(self.training.device, precision)

    @property
    def evaluation(self) -> EvaluationConfig:
        """The evaluation of the test dataset."""
        return EvaluationConfig(extraction=self.extraction, search=self.search, report=self.report)

    @property
    def must_match(self) -> dict[str, Any]:
        """The flags that a resumed run must repeat."""
        may_change = changeable_flags(type(self))
        return {name: value for name, value in self.flags.items() if name not in may_change}


@dataclass(frozen=True, kw_only=True)
class StageOneArguments(TrainingArguments):
    """The command line of trainings that start from DINOv2's backbone, or from another model."""

    foundation_model_path: Path | None = flag(
        "DINOv2 weights (default: download them)", group="model", default=None, may_change=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from and self.foundation_model_path:
            raise InputError("--init_from contains the backbone; give either that or --foundation_model_path.")


def pair_fraction_flag() -> Any:
    """The field pair_fraction."""
    text = "fraction of the mined pairs in the similarity constraint"
    return flag(text, group="training", type=fraction, default=1.0, metavar="FRACTION")


@dataclass(frozen=True, kw_only=True)
class FloatTraining(StageOneArguments):
    """The command line of train.py."""

    model: Architecture = part("model", fixed={"kind": "float"})


@dataclass(frozen=True, kw_only=True)
class HashingTraining(StageOneArguments):
    """The command line of train_hashing.py."""

    model: Architecture = part("model", fixed={"kind": "hashing"})
    pair_fraction: float = pair_fraction_flag()


@dataclass(frozen=True, kw_only=True)
class TwoBranchTraining(TrainingArguments):
    """The command line of train_rerank.py."""

    model: Architecture = part("model", fixed={"kind": "two-branch"})
    training: TrainingConfig = part("training", fixed={"train_backbone": False})
    pair_fraction: float = pair_fraction_flag()
    select_by: str = flag(
        "recall that selects the best model: after re-ranking, or of the binary codes alone",
        group="training",
        choices=("reranked", "binary"),
        default="reranked",
    )
    search: SearchConfig = part("search", fixed={"ivf": None, "sequence": 1})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.init_from or self.resume):
            raise InputError(
                "Give the trained float model to start from with --init_from NAME_OR_FILE (in the reference --resume "
                "FILE, which is accepted too), or the run to resume with --resume RUN."
            )
