"""The folders of MSLS as it is published: one for each city. Without NumPy, which `--help` does not wait for."""

import logging
from collections.abc import Sequence
from pathlib import Path

TEST_CITIES = ("miami", "athens", "buenosaires", "stockholm", "bengaluru", "kampala")
VAL_CITIES = ("cph", "sf")
DATABASE, QUERIES, IMAGES = "database", "query", "images"


def find_cities(folder: Path, names: Sequence[str] | None = None) -> list[Path]:
    """The folders of cities (of these names) in that of a split, sorted; none if it has another layout."""
    found = sorted(path for path in folder.iterdir() if names is None or path.name in names)
    cities = [path for path in found if (path / DATABASE / IMAGES).is_dir()]
    return [city for city in cities if (city / QUERIES / IMAGES).is_dir()]


def warn_of_missing(cities: Sequence[Path]) -> None:
    """Warns if some of MSLS's test cities are there, and others not."""
    missing = sorted({*TEST_CITIES} - {city.name for city in cities})
    if len(missing) < len(TEST_CITIES) and missing:
        message = "%s lacks %s of the six cities of MSLS's test set: the figures are not those of the test set."
        logging.warning(message, cities[0].parent, ", ".join(missing))
