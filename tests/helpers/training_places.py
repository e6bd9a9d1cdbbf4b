"""Training places in the format of GSV-Cities."""

import csv

from datasets.cities import COLUMNS


def image_name(city, place, number):
    """The name that DESIGN.md gives for `row_of` the same photo."""
    return f"{city}/{city}_{place:07d}_2013_{number + 1:02d}_{10 * number:03d}_59.5_-10.25_pano{number}.jpg"


def row_of(city, place, number):
    return [place, 2013, number + 1, 10 * number, city, "59.50", "-10.250", f"pano{number}"]


def write_csv(folder, city, rows, columns=COLUMNS):
    (folder / "Dataframes").mkdir(parents=True, exist_ok=True)
    with open(folder / "Dataframes" / f"{city}.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
