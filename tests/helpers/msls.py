"""Made-up cities in the layout of Mapillary Street-Level Sequences."""

import csv

import numpy as np

from datasets.msls import SUBTASKS


def make_msls(split, cities, *, database=14, queries=7, seed=0, write=lambda path, random: path.touch()):
    """Cities along the same metres, so that an image has others of its position in every city. One image in seven is a
    panorama, and each belongs to a random half of the subtasks. write: makes an image file.

    Returns {(city, "query" or "database"): {key: (easting, {subtasks}), without panoramas}}.
    """
    random, made = np.random.default_rng(seed), {}
    for city in cities:
        for part, count in (("database", database), ("query", queries)):
            folder = split / city / part
            (folder / "images").mkdir(parents=True)
            tables = {
                "raw": [["", "key", "lon", "lat", "pano"]],
                "postprocessed": [["", "key", "easting", "northing", "night"]],
                "subtask_index": [["", *SUBTASKS]],
            }
            images = made[city, part] = {}
            for i in range(count):
                key, is_panorama = f"{city[:3]}{part[0]}_{random.integers(1 << 40):x}", i % 7 == 3
                easting = float(random.integers(0, 300))
                members = [bool(random.random() < 0.5) for _ in SUBTASKS]
                members[0] = True
                tables["raw"].append([i, key, 0, 0, is_panorama])
                tables["postprocessed"].append([i, key, easting, 5e6, False])
                tables["subtask_index"].append([i, *members])
                write(folder / "images" / f"{key}.jpg", random)
                if not is_panorama:
                    images[key] = easting, {name for name, member in zip(SUBTASKS, members, strict=True) if member}
            for name, rows in tables.items():
                with open(folder / f"{name}.csv", "w", newline="") as file:
                    csv.writer(file).writerows(rows)
    return made
