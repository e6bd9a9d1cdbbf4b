"""Settings of a city: counts, names, size and seed; kinds of buildings, views, light, months and lenses."""

from dataclasses import dataclass
from typing import Any

from model.errors import InputError
from utils.runtime.flags import flag, part

CITIES = tuple(
    "Alder Birch Cedar Dogwood Elm Fir Ginkgo Hazel Ilex Juniper Katsura Linden Maple Nutmeg Olive Poplar".split()
)
MIN_SIZE = 32  # pixels; smaller photos do not show a window
CHOICES: dict[str, tuple[Any, ...]] = {
    "windows": ("sash", "arched", "ribbon", "shutters", "balcony", "casement"),
    "roofs": ("gable", "stepped", "parapet", "mansard", "hip"),
    "views": ("across", "along", "indoors"),
    "lights": ("noon", "evening", "overcast", "dusk", "night", "rain", "fog", "snow"),
    "months": tuple(range(1, 13)),
    "lenses": ("straight", "fisheye"),
}


def kinds_flag(name: str, help: str, *, default: tuple[str, ...] | None = None) -> Any:
    """A field with some of CHOICES[name], by default all; on the command line in any order."""
    choices = CHOICES[name]
    return flag(
        help,
        type=type(choices[0]),
        nargs="+",
        choices=choices,
        default=default or choices,
        convert=lambda kinds: sorted(kinds, key=choices.index),
    )


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What may occur in a city. By default, all that is outdoors, through a straight lens.

    Raises InputError for an empty choice, an unknown name or a repeated one.
    """

    windows: tuple[str, ...] = kinds_flag("windows", "windows of the buildings")
    roofs: tuple[str, ...] = kinds_flag("roofs", "roofs of the buildings")
    views: tuple[str, ...] = kinds_flag(
        "views",
        "photos look across the street, along it, or along a corridor inside a building",
        default=("across", "along"),
    )
    lights: tuple[str, ...] = kinds_flag("lights", "light and weather outdoors")
    months: tuple[int, ...] = kinds_flag("months", "months of the photos; the leaves depend on them")
    lenses: tuple[str, ...] = kinds_flag(
        "lenses",
        "straight: keeps straight lines straight; fisheye: shows a circle of 150 to 184 degrees",
        default=("straight",),
    )

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(choices):
                given, allowed = (", ".join(map(str, values)) for values in (chosen, choices))
                raise InputError(f"{name} are {given or 'empty'}; give one or more of {allowed}, each once")


DEFAULT_DOMAIN = Domain()


@dataclass(frozen=True, kw_only=True)
class CityConfig:
    """Which city to make. `cities` are the names of the training cities; the benchmark's splits are apart from them.

    Raises InputError for values out of range.
    """

    cities: tuple[str, ...] = flag(
        "number of training cities (default: 4)",
        type=int,
        nargs=None,
        choices=range(1, len(CITIES) + 1),
        default=CITIES[:4],
        default_from=lambda _: CITIES[:4],
        convert=lambda number: CITIES[:number],
    )
    places: int = flag("training places, over all cities", type=int, default=400)
    val_places: int = flag("places of the benchmark's val split", type=int, default=60)
    test_places: int = flag("places of the benchmark's test split", type=int, default=100)
    photos_per_place: int = flag("photos of each training place", type=int, default=8)
    database_photos: int = flag("database photos of each benchmark place", type=int, default=2)
    queries: int = flag("queries of each benchmark place", type=int, default=1)
    size: tuple[int, int] = flag(
        "size of the photos in pixels", type=int, default=(160, 120), metavar=("WIDTH", "HEIGHT")
    )
    seed: int = flag("0 or more; the same seed gives the same bytes", type=int, default=0)
    domain: Domain = part("what may occur", default=DEFAULT_DOMAIN)

    def __post_init__(self) -> None:
        for name in ("places", "val_places", "test_places", "photos_per_place", "database_photos", "queries"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be 0 or more")
        if not 1 <= len(self.cities) <= self.places:
            raise InputError(
                f"{len(self.cities)} cities for {self.places} places; give 1 city or more, and a place for each"
            )
        if len(set(self.cities)) < len(self.cities) or {"val", "test"} & set(self.cities):
            names = ", ".join(self.cities)
            raise InputError(f"the names of the cities, {names}, must differ and be neither val nor test")
        if min(self.size) < MIN_SIZE:
            raise InputError(f"the size is {self.size[0]} x {self.size[1]} pixels; both must be {MIN_SIZE} or more")

    @property
    def num_photos(self) -> int:
        """Photos in all."""
        benchmark_places = self.val_places + self.test_places
        return self.places * self.photos_per_place + benchmark_places * (self.database_photos + self.queries)

    def places_of(self, city: str) -> int:
        """Training places of one of the cities. The first cities take what cannot be divided evenly."""
        share, rest = divmod(self.places, len(self.cities))
        return share + (self.cities.index(city) < rest)
