"""Which unified dataset to build: cities, sources and options."""

from dataclasses import dataclass
from pathlib import Path

from datasets.cities import GROUPED_CITIES, GROUPS, TRAINING_DATASETS
from model.errors import InputError

PITTS30K, SF_XL = "pitts30k", "sf_xl"
OUTPUT_NAMES = {city.lower(): city for city in GROUPED_CITIES}  # {source: what its output cities are called}
MSLS_CITIES = tuple(city for city in OUTPUT_NAMES if city != PITTS30K)
CITIES = (*MSLS_CITIES, PITTS30K, SF_XL)


@dataclass(frozen=True, kw_only=True)
class UnifiedConfig:
    """What to build, and where.

    output: the dataset's folder, which may hold GSV-Cities already. msls, pitts30k, sf_xl: folders of the sources,
    needed only for the cities chosen. cities: some of CITIES, kept in that order. symlink: link to the images instead
    of copying them. workers: threads that copy. allow_name_collisions: let images of SF-XL share a file name, as the
    original builder does. Raises InputError for unknown cities and values out of range.
    """

    output: Path
    msls: Path | None = None
    pitts30k: Path | None = None
    sf_xl: Path | None = None
    cities: tuple[str, ...] = CITIES
    symlink: bool = False
    workers: int = 4
    allow_name_collisions: bool = False

    def __post_init__(self) -> None:
        unknown = [city for city in self.cities if city not in CITIES]
        if unknown or not self.cities:
            problem = f"Unknown city {', '.join(unknown)}" if unknown else "No city"
            raise InputError(f"--cities: {problem}. Choose from: {', '.join(CITIES)}.")
        if self.workers < 1:
            raise InputError(f"--workers {self.workers}: expected 1 or more.")
        object.__setattr__(self, "cities", tuple(city for city in CITIES if city in self.cities))


def output_names(city: str) -> list[str]:
    """The names that the groups of one of CITIES have in the dataset: Trondheim0, Trondheim1, ...; SFXL alone."""
    if city == SF_XL:
        return ["SFXL"]
    names = [f"{OUTPUT_NAMES[city]}{group}" for group in range(GROUPS)]
    return [name for name in names if name in TRAINING_DATASETS["unified_dataset"]]
