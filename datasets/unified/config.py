"""Which unified dataset to build: cities, sources and options."""

from dataclasses import dataclass
from pathlib import Path

from model.errors import InputError

MSLS_CITIES = tuple(
    "trondheim amsterdam helsinki tokyo toronto saopaulo moscow zurich paris budapest austin berlin ottawa goa amman "
    "nairobi manila bangkok boston london melbourne phoenix".split()
)
PITTS30K, SF_XL = "pitts30k", "sf_xl"
CITIES = (*MSLS_CITIES, PITTS30K, SF_XL)
# GSV-Cities has cities of these names. Without the capital letter the two stay apart.
LOWER_CASE_CITIES = ("bangkok", "boston", "london", "melbourne", "phoenix")
MAX_GROUPS = 18
MAX_GROUPS_OF_CITY = {"amman": 17, "nairobi": 17}  # as in the published dataset


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
    name = city if city in LOWER_CASE_CITIES else city.capitalize()
    return [f"{name}{group}" for group in range(MAX_GROUPS_OF_CITY.get(city, MAX_GROUPS))]
