"""The flags of build_index.py and search.py."""

from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.config import POSITION_SOURCES, POSITIONS_CSV_HELP, POSITIONS_HELP
from model import InputError
from model.config import DESCRIPTOR_DTYPES, PRECISIONS
from model.index import METADATA
from model.zoo import DEFAULT_MODEL
from utils.cli.evaluation import require_file
from utils.cli.model import HUB, MODEL_HELP, TrainedModel, model_name_flag
from utils.retrieval.config import (
    AcceptConfig,
    CodesConfig,
    EngineAddress,
    ExtractionConfig,
    IndexConfig,
    SearchConfig,
    check_folder_flag,
    index_location,
)
from utils.retrieval.hub.config import HubChoice
from utils.runtime.devices import PRECISION_HELP, warn_if_slow
from utils.runtime.flags import flag, part, positive_float, positive_int, switch, user_path

OBSOLETE_IN_SEARCH = {"--ignore_exif_orientation": "queries are turned as the images of the index were"}
if TYPE_CHECKING:
    from model.index.metadata import IndexMetadata  # needs NumPy, which --help does not wait for

FIXED_SETTINGS = {"compile": False, "memory_share": 0.5}


def fps_flag() -> float:
    """The field fps."""
    return flag("frames per second that are taken of a video", group="data", type=positive_float, default=1.0)


@dataclass(frozen=True, kw_only=True)
class BuildIndexArguments:
    """The command line of build_index.py."""

    folder: Path | None = flag(
        "folder of images, also in subfolders, or a video; none for --merge, or --compact alone",
        metavar="IMAGES",
        positional=True,
        nargs="?",
        default=None,
    )
    fps: float = fps_flag()
    index_folder: Path = flag("the folder of the index; see docs/index_format.md", name="index")
    append: bool = switch(
        "bring --index up to date: add new images, describe changed ones again, or continue an interrupted build"
    )
    prune: bool = switch("with --append, take images out of the index whose files are gone", group="upkeep")
    check_content: bool = switch(
        "with --append, compare files by their content, not by size and time of change; slower", group="upkeep"
    )
    watch: float | None = flag(
        "keep --index in step with IMAGES: look for new, changed and gone images every so many seconds until stopped",
        group="upkeep",
        type=positive_float,
        default=None,
        metavar="SECONDS",
    )
    compact: bool = switch("free the disk space of images that were taken out of --index", group="upkeep")
    merge: tuple[Path, ...] | None = flag(
        "make --index, a new one, of these indexes; one of the format before this is converted",
        group="upkeep",
        type=user_path,
        nargs="+",
        default=None,
        metavar="INDEX",
    )
    image_root: Path | None = flag(
        "the folder that the index stores paths relative to (default: IMAGES); give it again where images were moved",
        group="index",
        default=None,
    )
    descriptor_dtype: str | None = flag(
        "number format of the descriptors (default: that of the index, or fp32)",
        group="index",
        choices=tuple(DESCRIPTOR_DTYPES),
        default=None,
    )
    codes: CodesConfig = part("descriptors", default=CodesConfig(), fixed={"seed": 0})
    precision: str | None = flag(
        f"{PRECISION_HELP} (default: that of the index, or fp32)",
        group="speed",
        choices=tuple(PRECISIONS),
        default=None,
    )
    exif_orientation: bool | None = switch(
        "ignore the images' EXIF orientation; by default they are turned upright, or as the index says",
        name="ignore_exif_orientation",
        inverse=True,
        default=None,
        group="images",
    )
    positions: str | None = flag(
        f"{POSITIONS_HELP} (default: as for the images of the index, or auto)",
        group="data",
        choices=POSITION_SOURCES,
        default=None,
    )
    positions_csv: Path | None = flag(POSITIONS_CSV_HELP, group="data", default=None)
    model: TrainedModel = part(
        "model",
        fixed={"required": False},
        changed={"name": model_name_flag(f"{MODEL_HELP} (default: {DEFAULT_MODEL})"), **HUB},
    )
    extraction: ExtractionConfig = part(
        "images", fixed={"precision": "fp32", "exif_orientation": True, **FIXED_SETTINGS}
    )

    def __post_init__(self) -> None:
        self._check_task()
        require_file("resume" if self.model.resume else "model", self.model.file)
        require_file("positions_csv", self.positions_csv)
        if self.extraction.resize:
            self.model.check_image_size(self.extraction.resize)
        if self.positions and self.positions_csv:
            raise InputError("--positions_csv gives the positions. Give either that or --positions.")
        warn_if_slow(self.extraction.device, self.precision or "fp32")

    def _check_task(self) -> None:
        """Raises InputError for flags that do not go together."""
        if self.merge:
            if self.folder or self.append or self.compact or self.watch:
                raise InputError(
                    "--merge makes a new index of others. Leave IMAGES, --append, --compact and --watch out."
                )
        elif self.append and not self.folder:
            raise InputError("--append compares the index with IMAGES; give that folder too.")
        elif not self.folder and not self.compact:
            raise InputError("Give IMAGES, a folder of images; or --merge, or --compact.")
        if self.watch and (self.compact or not self.folder):
            raise InputError("--watch goes on with IMAGES until it is stopped. Give that folder, and no --compact.")
        if not self.folder:
            self._require_no_settings_of_images()
        if not self.append:
            for name in ("prune", "check_content"):
                if getattr(self, name):
                    raise InputError(f"--{name} brings an index up to date; give --append too.")

    def _require_no_settings_of_images(self) -> None:
        """Raises InputError for flags that say how images are described, where none are."""
        given = {
            "model": self.model.is_stated or None,
            "resize": self.extraction.resize,
            "no_antialias": self.extraction.antialias,
            "ignore_exif_orientation": self.exif_orientation,
            "precision": self.precision,
            "descriptor_dtype": self.descriptor_dtype,
            "codes": self.codes.source,
            "positions": self.positions,
            "positions_csv": self.positions_csv,
            "image_root": None if self.merge else self.image_root,
        }
        unused = [f"--{name}" for name, value in given.items() if value is not None]
        if unused:
            raise InputError(f"{', '.join(unused)}: no images are described. Leave it out, or give IMAGES, a folder.")

    @property
    def _folder_of_images(self) -> Path | None:
        """The folder that IMAGES is, or, of a video, that it is in."""
        return self.folder.parent if self.folder and self.folder.is_file() else self.folder

    def settings(self, stored: "IndexMetadata | None") -> tuple[ExtractionConfig, IndexConfig]:
        """The settings of the extraction, and of the index; those of the index, if there is one already.

        Raises InputError for flags that state something else than the index.
        """
        extraction, positions = self.extraction, self.positions or "auto"
        given = {
            "resize": list(extraction.resize) if extraction.resize else None,
            "antialias": extraction.antialias,
            "precision": self.precision,
            "descriptor_dtype": self.descriptor_dtype,
            "exif_orientation": self.exif_orientation,
        }
        values: dict[str, Any] = {"precision": "fp32", "descriptor_dtype": "fp32", "exif_orientation": True}
        if stored:
            different = [
                f"{name} {getattr(stored, name)} (now {value})"
                for name, value in given.items()
                if value is not None and value != getattr(stored, name)
            ]
            if different:
                raise InputError(
                    f"--append: the index {self.index_folder} was built differently: {', '.join(different)}. Leave "
                    "these flags out, or build a new index."
                )
            values = {name: getattr(stored, name) for name in values}
            positions = self.positions or stored.positions or "auto"
        values |= {name: given[name] for name in values if given[name] is not None}
        if self.positions_csv:
            positions = str(self.positions_csv.absolute())
        dtype = values.pop("descriptor_dtype")
        return replace(extraction, **values), IndexConfig(
            folder=self.index_folder,
            append=self.append,
            descriptor_dtype=dtype,
            weights=self.model.file,
            root=self.image_root or self._folder_of_images,
            positions=positions,
            check_content=self.check_content,
        )


@dataclass(frozen=True, kw_only=True)
class SearchArguments:
    """The command line of search.py. first_images: files, folders, patterns; locations: indexes, and more images.
    model, resume: None for the weights that the index names. Raises InputError for both of them.
    """

    first_images: tuple[str, ...] = flag(
        'image files to locate, folders of them, videos, or patterns in quotes, such as "trip/*.jpg"',
        nargs="*",
        metavar="IMAGE",
        positional=True,
        default=(),
    )
    fps: float = fps_flag()
    locations: tuple[Path | EngineAddress, ...] = flag(
        "an index built by build_index.py or eval*.py --save_index, or several that are searched as one; or "
        "milvus://HOST:PORT/NAME",
        name="index",
        group="index",
        type=index_location,
        nargs="+",
        metavar="INDEX",
    )
    image_root: Path | None = flag(
        "the folder of the index's images, if they are no longer where the index says", group="index", default=None
    )
    trust_index: bool = switch("skip checksum verification of --index; saves time with a large one", group="index")
    allow_incomplete_index: bool = switch("search --index even if building it was interrupted", group="index")
    model: str | None = model_name_flag(
        "the index's model, if its file is no longer at the path that the index stores", group="index"
    )
    resume: Path | None = flag("the same, as before", group="index", default=None)
    hub: HubChoice = part(
        "index",
        default=HubChoice(),
        fixed={"arguments": (), "allow_batch_dependence": False},  # the index states them
        changed={
            "name": flag(
                "of an index that was built with --hub: its model, if its repository is no longer where the index says",
                name="hub",
                default=None,
                metavar="REPO:ENTRY",
            )
        },
    )
    search: SearchConfig = part("search", fixed={"ivf": None})
    results: int = flag("matches to print for each image", group="report", type=positive_int, default=5)
    accept: AcceptConfig = part("report", default=AcceptConfig())
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
        if not self.images:
            raise InputError("Give IMAGE, the files to locate, or folders of them.")
        if self.model and self.resume:
            raise InputError("--model names the model. Give either that or --resume.")
        for index in self.indexes:
            for name in ("trust_index", "allow_incomplete_index", "image_root"):
                check_folder_flag(name, getattr(self, name), index)
            check_folder_flag("sequence", self.search.sequence > 1, index)
        warn_if_slow(self.extraction.device, self.extraction.precision)

    @property
    def indexes(self) -> list[Path | EngineAddress]:
        """The index, or several. Images may follow it on the command line: what is no index is one of them."""
        first, *others = self.locations
        return [first, *takewhile(_is_index, others)]

    @property
    def images(self) -> list[str]:
        """The images to locate."""
        return [*self.first_images, *map(str, self.locations[len(self.indexes) :])]


def _is_index(location: Path | EngineAddress) -> bool:
    return isinstance(location, EngineAddress) or (location / METADATA).exists()
