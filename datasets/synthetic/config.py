"""What a city is made of: counts, names, size and seed."""

from dataclasses import dataclass

from datasets.synthetic.domain import DEFAULT_DOMAIN, Domain

CITIES = tuple(
    "Alder Birch Cedar Dogwood Elm Fir Ginkgo Hazel Ilex Juniper Katsura Linden Maple Nutmeg Olive Poplar".split()
)
MIN_SIZE = 32  # pixels; smaller photos do not show a window


@dataclass(frozen=True, kw_only=True)
class CityConfig:
    """Which city to make.

    cities: names of the training cities. places: training places in all, shared out over the cities.
    val_places, test_places: places of the benchmark's splits. photos_per_place: photos of each training place.
    database_photos, queries: photos of each benchmark place. size: (width, height) of the photos in pixels.
    seed: 0 or more. domain: which buildings, views, light and months occur. Raises ValueError for values out of range.
    """

    cities: tuple[str, ...] = CITIES[:4]
    places: int = 400
    val_places: int = 60
    test_places: int = 100
    photos_per_place: int = 8
    database_photos: int = 2
    queries: int = 1
    size: tuple[int, int] = (160, 120)
    seed: int = 0
    domain: Domain = DEFAULT_DOMAIN

    def __post_init__(self) -> None:
        for name in ("places", "val_places", "test_places", "photos_per_place", "database_photos", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if not 1 <= len(self.cities) <= self.places:
            raise ValueError(
                f"{len(self.cities)} cities for {self.places} places; give 1 city or more, and a place for each"
            )
        if len(set(self.cities)) < len(self.cities) or {"val", "test"} & set(self.cities):
            names = ", ".join(self.cities)
            raise ValueError(f"the names of the cities, {names}, must differ and be neither val nor test")
        if min(self.size) < MIN_SIZE:
            raise ValueError(f"the size is {self.size[0]} x {self.size[1]} pixels; both must be {MIN_SIZE} or more")

    @property
    def num_photos(self) -> int:
        """Photos in all."""
        benchmark_places = self.val_places + self.test_places
        return self.places * self.photos_per_place + benchmark_places * (self.database_photos + self.queries)

    def places_of(self, city: str) -> int:
        """Training places of one of the cities. The first cities take what cannot be divided evenly."""
        share, rest = divmod(self.places, len(self.cities))
        return share + (self.cities.index(city) < rest)
