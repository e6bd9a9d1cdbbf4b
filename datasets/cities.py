"""The cities of the training datasets, and the file names of the GSV-Cities format (Ali-bey et al., 2022)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from model.errors import InputError

COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
GSV_CITIES = (
    "Bangkok BuenosAires LosAngeles MexicoCity OSL Rome Barcelona Chicago Madrid Miami Phoenix TRT Boston Lisbon "
    "Medellin Minneapolis PRG WashingtonDC Brussels London Melbourne Osaka PRS"
).split()
GROUPS = 18
GROUPED_CITIES = (  # of the unified dataset, each split into GROUPS groups
    "Trondheim Amsterdam Helsinki Tokyo Toronto Saopaulo Moscow Zurich Paris Budapest Austin Berlin Ottawa Goa Amman "
    "Nairobi Manila bangkok boston london melbourne phoenix Pitts30k"
).split()
WITHOUT_GROUP_17 = ("Amman", "Nairobi")
# Same order as the authors' code. It matters, because batches are cut from this sequence: two groups of one city hold
# neighbouring cells of a grid, that is, nearly the same places under different labels. Group by group,
# they are far apart.
TRAINING_DATASETS = {
    "gsv_cities": list(GSV_CITIES),
    "unified_dataset": [
        "SFXL",
        *GSV_CITIES,
        *(f"{c}{g}" for g in range(GROUPS) for c in GROUPED_CITIES if not (g == 17 and c in WITHOUT_GROUP_17)),
    ],
}
ALL = "all"  # in place of one of TRAINING_DATASETS: the cities of which there are CSV files


def training_cities(dataset: str, folder: Path | None) -> list[str]:
    """The cities of one of TRAINING_DATASETS or, of ALL, those in `<folder>/Dataframes`: group by group, as numbers at
    the end of names count. Raises InputError if there are none.
    """
    if dataset != ALL or folder is None:
        return TRAINING_DATASETS.get(dataset, [])
    names = [path.stem for path in (folder / "Dataframes").glob("*.csv") if not path.name.startswith(".")]
    if not names:
        raise InputError(
            f"--training_dataset {ALL}: there is no {folder / 'Dataframes'}/<City>.csv. Give the folder with "
            "Dataframes and Images with --gsv_cities_folder."
        )
    return training_order(sorted(names, key=_group_and_name))


def _group_and_name(city: str) -> tuple[int, str]:
    name = city.rstrip("0123456789")
    return int(city[len(name) :] or 0), name


def training_order(cities: Sequence[str]) -> list[str]:
    """The cities in the order of the unified dataset, once each. Other cities come first, as given."""
    position = {city: i for i, city in enumerate(TRAINING_DATASETS["unified_dataset"])}
    return sorted(dict.fromkeys(cities), key=lambda city: position.get(city, -1))


def image_name(row: Mapping[str, str]) -> str:
    """The file name of the image that a row of a CSV file describes. Raises ValueError if a number is invalid."""
    place, year, month, north = (int(row[column]) for column in ("place_id", "year", "month", "northdeg"))
    city, lat, lon = row["city_id"], float(row["lat"]), float(row["lon"])
    return f"{city}_{place:07d}_{year:04d}_{month:02d}_{north:03d}_{lat}_{lon}_{row['panoid']}.jpg"
