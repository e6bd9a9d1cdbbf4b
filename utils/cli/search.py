"""The flags of build_index.py and search.py."""

from dataclasses import dataclass, replace
from pathlib import Path

from datasets.config import POSITION_SOURCES, PositionConfig
from model import InputError
from model.zoo import DEFAULT_MODEL
from utils.cli.evaluation import require_file
from utils.cli.model import MODEL_HELP, TrainedModel, model_name_flag
from utils.retrieval.config import (
    EngineAddress,
    ExtractionConfig,
    IndexConfig,
    SearchConfig,
    check_folder_flag,
    index_location,
)
from utils.runtime.devices import warn_if_slow
from utils.runtime.flags import flag, part, positive_float, positive_int, switch

READ_UPRIGHT = switch(
    "ignore the images' EXIF orientation; by default they are turned upright",
    name="ignore_exif_orientation",
    inverse=True,
)
OBSOLETE_IN_SEARCH = {"--ignore_exif_orientation": "queries are turned as the images of the index were"}
FIXED_SETTINGS = {"compile": False, "memory_share": 0.5}


def fps_flag() -> float:
    """The field fps."""
    return flag("frames per second that are taken of a video", group="data", type=positive_float, default=1.0)


@dataclass(frozen=True, kw_only=True)
class BuildIndexArguments:
    """The command line of build_index.py."""

    folder: Path = flag("folder of images, also in subfolders; or a video", metavar="IMAGES", positional=True)
    fps: float = fps_flag()
    index_to_write: IndexConfig = part("index")
    positions: str | None = flag(
        "where positions come from: file names (@easting@northing@...), EXIF GPS, or names and otherwise EXIF GPS "
        "(auto, the default)",
        group="data",
        choices=POSITION_SOURCES,
        default_from=lambda flags: None if flags["positions_csv"] else "auto",
    )
    positions_csv: Path | None = flag(
        "positions: a CSV file with the columns image, easting, northing or image, latitude, longitude",
        group="data",
        default=None,
    )
    model: TrainedModel = part(
        "model",
        fixed={"required": False},
        changed={"name": model_name_flag(f"{MODEL_HELP} (default: {DEFAULT_MODEL})")},
    )
    extraction: ExtractionConfig = part("images", fixed=FIXED_SETTINGS, changed={"exif_orientation": READ_UPRIGHT})

    def __post_init__(self) -> None:
        require_file("resume" if self.model.resume else "model", self.model.file)
        require_file("positions_csv", self.positions_csv)
        if self.positions and self.positions_csv:
            raise InputError("--positions_csv gives the positions. Give either that or --positions.")
        warn_if_slow(self.extraction.device, self.extraction.precision)

    @property
    def position_config(self) -> PositionConfig:
        """Where positions come from."""
        return PositionConfig(source=self.positions or "auto", csv=self.positions_csv)

    @property
    def index(self) -> IndexConfig:
        """The index to write, which names the weights."""
        return replace(self.index_to_write, weights=self.model.file)


@dataclass(frozen=True, kw_only=True)
class SearchArguments:
    """The command line of search.py. images: files, folders, patterns. model, resume: None for the weights that the
    index names. Raises InputError for both of them.
    """

    images: tuple[str, ...] = flag(
        'image files to locate, folders of them, videos, or patterns in quotes, such as "trip/*.jpg"',
        nargs="+",
        metavar="IMAGE",
        positional=True,
    )
    fps: float = fps_flag()
    index: Path | EngineAddress = flag(
        "an index built by build_index.py or eval*.py --save_index, or milvus://HOST:PORT/NAME",
        group="index",
        type=index_location,
    )
    trust_index: bool = switch("skip checksum verification of --index; saves time with a large one", group="index")
    allow_incomplete_index: bool = switch("search --index even if building it was interrupted", group="index")
    model: str | None = model_name_flag(
        "the index's model, if its file is no longer at the path that the index stores", group="index"
    )
    resume: Path | None = flag("the same, as before", group="index", default=None)
    search: SearchConfig = part("search", fixed={"ivf": None})
    results: int = flag("matches to print for each image", group="report", type=positive_int, default=5)
    save_pictures: Path | None = flag("save a PNG of each image with its matches in DIR", group="report", default=None)
    json: bool = switch(
        "print one JSON object in place of tables; all other messages go to standard error", group="report"
    )
    extraction: ExtractionConfig = part(
        "images",
        fixed={  # the index states the first three
            "resize": None,
            "antialias": None,
            "exif_orientation": False,
            "num_workers": 0,
            **FIXED_SETTINGS,
        },
    )

    def __post_init__(self) -> None:
        if self.model and self.resume:
            raise InputError("--model names the model. Give either that or --resume.")
        for name in ("trust_index", "allow_incomplete_index"):
            check_folder_flag(name, getattr(self, name), self.index)
        warn_if_slow(self.extraction.device, self.extraction.precision)
