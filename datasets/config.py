"""Settings of training data, of positions, and of how queries are cut to size. Importing them needs no torch."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from datasets.cities import training_cities, training_order
from model.config import patch_grid
from model.errors import InputError
from utils.runtime.flags import flag, non_negative_float, non_negative_int, positive_int, seed_flag, switch

POSITION_SOURCES, CSV_SOURCE = ("auto", "names", "exif", "none"), "csv"
CROP_METHODS = ("five_crops", "nearest_crop", "maj_voting")
TEST_METHODS = ("hard_resize", "single_query", "central_crop", *CROP_METHODS)


@dataclass(frozen=True, kw_only=True)
class PlacesConfig:
    """How training batches are made of places: of one city after the other, in the order of `cities`.

    Raises InputError for values out of range.
    """

    cities: tuple[str, ...] = flag(
        "train on these cities instead of those of --training_dataset",
        nargs="+",
        default=MISSING,
        default_from=lambda flags: training_cities(flags["training_dataset"], flags["gsv_cities_folder"]),
        convert=training_order,
        metavar="CITY",
    )
    image_size: tuple[int, int] = flag(
        "size of training images in pixels (height width), multiples of 14",
        type=positive_int,
        nargs=2,
        default=(224, 224),
        metavar=("H", "W"),
    )
    images_per_place: int = flag("images per place; smaller places are skipped", type=positive_int, default=4)
    randaugment_ops: int = flag("RandAugment operations per image", type=non_negative_int, default=3)
    exact_decoding: bool = switch("decode JPEGs at full, not at reduced size; slower", group="speed")
    seed: int = seed_flag()

    def __post_init__(self) -> None:
        try:
            patch_grid(*self.image_size)
        except InputError as error:
            raise InputError(f"--image_size: {error}") from None
        if self.images_per_place < 2:
            raise InputError(
                f"--images_per_place {self.images_per_place}: a positive pair needs at least 2 images of a place."
            )


POSITIONS_HELP = (
    "where positions come from: file names (@easting@northing@...), EXIF GPS, or names and otherwise EXIF GPS (auto)"
)
POSITIONS_CSV_HELP = (
    "positions: a CSV file with the columns image, latitude, longitude or image, easting, northing (and zone)"
)


def positions_flag(source: str) -> Any:
    """The field source of PositionConfig, with this default."""
    return flag(
        f"{POSITIONS_HELP} (default: {source})",
        name="positions",
        choices=POSITION_SOURCES,
        default=source,
        default_from=lambda flags: CSV_SOURCE if flags["positions_csv"] else source,
    )


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """Where positions come from: one of POSITION_SOURCES, or "csv", a CSV file which lists all images.

    "auto": file names, or EXIF GPS where the names hold none.
    """

    source: str = positions_flag("auto")
    csv: Path | None = flag(
        POSITIONS_CSV_HELP,
        name="positions_csv",
        default=None,
    )

    @staticmethod
    def parse(text: str) -> "PositionConfig":
        """What str() gives."""
        return (
            PositionConfig(source=text)
            if text in POSITION_SOURCES
            else PositionConfig(source=CSV_SOURCE, csv=Path(text))
        )

    def __str__(self) -> str:
        """The source, or the path of the CSV file."""
        return str(self.csv.absolute()) if self.csv else self.source

    def __post_init__(self) -> None:
        if self.source not in (*POSITION_SOURCES, CSV_SOURCE):
            raise InputError(
                f"Unknown source of positions {self.source!r}. Choose from: {', '.join(POSITION_SOURCES)}."
            )
        if (self.source == CSV_SOURCE) != (self.csv is not None):
            raise InputError("--positions_csv gives the positions. Give either that or --positions.")


@dataclass(frozen=True, kw_only=True)
class GroundTruthConfig:
    """Which database images are right for a query, where it is not their distance that decides: what a CSV file says,
    or numbers of frames, of which `frame_tolerance` may lie between them. Without either it is the distance.
    """

    matches_csv: Path | None = flag(
        "which database images are right, in place of distances: a CSV file with the columns query, database; or "
        "image, label (the same label is right); or image, frame (with --frame_tolerance)",
        default=None,
    )
    frame_tolerance: float | None = flag(
        "frames up to N apart are right, in place of distances; numbers of frames are the last ones in the names of "
        "images, or those of --matches_csv",
        type=non_negative_float,
        default=None,
        metavar="N",
    )

    @property
    def is_given(self) -> bool:
        """Whether something else than distances decides."""
        return self.matches_csv is not None or self.frame_tolerance is not None
