"""Which unified dataset to build: cities, sources and options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.cities import GROUPED_CITIES, GROUPS, TRAINING_DATASETS
from model.errors import InputError
from utils.runtime.flags import flag, switch

PITTS30K, SF_XL = "pitts30k", "sf_xl"
OUTPUT_NAMES = {city.lower(): city for city in GROUPED_CITIES}  # {source: what its output cities are called}
MSLS_CITIES = tuple(city for city in OUTPUT_NAMES if city != PITTS30K)
CITIES = (*MSLS_CITIES, PITTS30K, SF_XL)


def source_flag(content: str) -> Any:
    """A field with the folder of a source."""
    return flag(f"folder that contains {content}", metavar="DIR", default=None)


@dataclass(frozen=True, kw_only=True)
class UnifiedConfig:
    """What to build, and where. `cities` are kept in the order of CITIES; a source is needed only for its cities.

    Raises InputError for unknown cities and values out of range.
    """

    output: Path = flag("gets Dataframes/ and Images/; may hold GSV-Cities already", metavar="OUTPUT", positional=True)
    msls: Path | None = source_flag("train_val/<city>/{database,query}/{raw.csv,images/}")
    pitts30k: Path | None = source_flag("images/train/{database,queries}/")
    sf_xl: Path | None = source_flag("images/train/")
    cities: tuple[str, ...] = flag("what to build", default=CITIES, metavar="CITY")
    copy: bool = switch("copy the images, which is the default")
    symlink: bool = switch("link to the images, which must then stay in place")
    workers: int = flag("threads that copy", type=int, default=4)
    allow_name_collisions: bool = switch(
        "as the original builder: list every image of SF-XL, even where a later one replaces its file"
    )

    def __post_init__(self) -> None:
        unknown = [city for city in self.cities if city not in CITIES]
        if unknown or not self.cities:
            problem = f"Unknown city {', '.join(unknown)}" if unknown else "No city"
            raise InputError(f"--cities: {problem}. Choose from: {', '.join(CITIES)}.")
        if self.copy and self.symlink:
            raise InputError("--copy and --symlink exclude each other. Give one of them.")
        if self.workers < 1:
            raise InputError(f"--workers {self.workers}: expected 1 or more.")
        object.__setattr__(self, "cities", tuple(city for city in CITIES if city in self.cities))


def output_names(city: str) -> list[str]:
    """The names that the groups of one of CITIES have in the dataset: Trondheim0, Trondheim1, ...; SFXL alone."""
    if city == SF_XL:
        return ["SFXL"]
    names = [f"{OUTPUT_NAMES[city]}{group}" for group in range(GROUPS)]
    return [name for name in names if name in TRAINING_DATASETS["unified_dataset"]]
