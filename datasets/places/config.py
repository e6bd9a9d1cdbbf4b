"""What to make of a folder of photos, and where."""

from dataclasses import dataclass
from pathlib import Path

from datasets.config import PositionConfig
from datasets.unified.places import MIN_IMAGES, STREET_GRID
from model.errors import InputError
from utils.runtime.devices import AUTO, DEVICES, device
from utils.runtime.flags import flag, part, positive_int, switch

HEADING_SOURCES = ("auto", "names", "csv", "exif", "none")
MAX_VIEWS = 36
MIN_PLACES = 100  # of a group on average: batches of one group must not always hold the same places
NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


@dataclass(frozen=True, kw_only=True)
class OwnPhotosConfig:
    """Which photos, what is known about them, and what to make of them. Raises InputError for values out of range."""

    folder: Path = flag("photos, in subfolders too", metavar="FOLDER", positional=True)
    output: Path = flag(
        "new folder; gets gsv_cities/, NAME/images/{val,test}/, photos.csv and places.html", metavar="DIR"
    )
    name: str = flag("of the cities (NAME0, NAME1, ...) and of the benchmark", default="photos")
    positions: PositionConfig = part("data", default=PositionConfig())
    headings: str = flag(
        "where the direction of view comes from: file names, the column heading of --positions_csv, EXIF, or whichever "
        "has it (auto); none: a place is what lies in one cell",
        choices=HEADING_SOURCES,
        default="auto",
    )
    model: str | None = flag(
        "without headings: divide the photos of a cell by what this model finds alike; a published model, or a file",
        default=None,
        metavar="NAME_OR_FILE",
    )
    panorama_views: int = flag(
        "cut panoramas (images twice as wide as high) into so many views; 12 is usual", type=int, default=0
    )
    cell_size: int = flag("side of a cell in metres", type=positive_int, default=15)
    cell_groups: int | None = flag(
        f"every so manieth cell along an axis is in one group (default: {STREET_GRID.cell_groups}, or less, so that "
        f"groups have {MIN_PLACES} places)",
        type=positive_int,
        default=None,
    )
    max_images: int = flag("photos of a place at most, evenly over time", type=positive_int, default=40)
    val_fraction: float = flag("part of the area for validation", type=float, default=0.1)
    test_fraction: float = flag("part of the area for the test", type=float, default=0.1)
    symlink: bool = switch("link to the photos, which must then stay in place, instead of copying them")
    device: str = flag(
        f"of --model: {', '.join(DEVICES)}; auto, the default, is a GPU if there is one",
        group="speed",
        type=device,
        default=AUTO,  # until the model is loaded: without one, nothing needs PyTorch
        metavar="DEVICE",
    )
    workers: int = flag("threads that read and copy", type=positive_int, default=4, group="speed")

    def __post_init__(self) -> None:
        if not self.name or not set(self.name) <= NAME_CHARACTERS or self.name[-1].isdigit():
            raise InputError(
                f"--name {self.name!r}: expected letters, digits and -, and no digit at the end: the numbers of groups "
                "follow it."
            )
        if self.output.absolute().is_relative_to(self.folder.absolute()):
            raise InputError(
                f"--output {self.output} lies in the folder of photos {self.folder}. Choose another place."
            )
        if self.positions.source == "none":
            raise InputError("--positions none leaves no places. Choose names, exif or auto, or give --positions_csv.")
        if self.headings == "csv" and not self.positions.csv:
            raise InputError("--headings csv: the headings are the column heading of --positions_csv. Give that file.")
        if self.panorama_views not in (0, *range(2, MAX_VIEWS + 1)):
            raise InputError(f"--panorama_views {self.panorama_views}: expected 2 to {MAX_VIEWS}, or 0 for no views.")
        if self.max_images < MIN_IMAGES:
            raise InputError(f"--max_images {self.max_images}: expected {MIN_IMAGES} or more, which each place has.")
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise InputError(f"--{name} {getattr(self, name):g}: expected a number from 0 to 0.5.")
