"""VPR benchmarks on disk: a database and queries with UTM positions in their file names."""
import math
import os
from functools import cached_property
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors

from model.errors import InputError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")


class Benchmark:
    """The photos of one split, in sorted order, their positions, and which database photos are right for each query.

    `<datasets_folder>/<name>/images/<split>/{database,queries}/**/@<utm_easting>@<utm_northing>@...@.jpg`

    Attributes: folder, the split's; database_paths, queries_paths; database_utms, queries_utms, [N, 2] float64 in metres; threshold, within
    which (inclusive) a database photo is right for a query, in metres. With `has_database` False the database folder is not looked at: an
    index stands in for it. Raises InputError where a folder is missing or empty, or a file name holds no position.
    """

    def __init__(self, datasets_folder: str | Path, name: str, split: str, threshold: float = 25.0, has_database: bool = True) -> None:
        self.name = name
        self.threshold = threshold
        self.folder = _existing_folder(Path(datasets_folder), name, split)
        self.database_paths = list_photos(self.folder / "database") if has_database else []
        self.queries_paths = list_photos(self.folder / "queries")
        self.database_utms = np.array([utm_position(path) for path in self.database_paths]).reshape(-1, 2)
        self.queries_utms = np.array([utm_position(path) for path in self.queries_paths])

    @cached_property
    def positives(self) -> list[np.ndarray]:
        """For each query the sorted numbers, int64, of the database photos that are right for it."""
        return find_positives(self.database_utms, self.queries_utms, self.threshold)

    def __str__(self) -> str:
        database = f"{len(self.database_paths)} database photos, " if self.database_paths else ""
        return f"{self.name} ({self.folder}): {database}{len(self.queries_paths)} queries"


def list_photos(folder: Path) -> list[str]:
    """The paths of the photos below a folder, sorted. Raises InputError where the folder is missing or holds none.

    Strings: of a database of millions, Path objects would take gigabytes.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    paths = sorted(os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names if name.lower().endswith(PHOTO_SUFFIXES))
    if not paths:
        raise InputError(f"no photos in {folder}: looked for {', '.join(PHOTO_SUFFIXES)} in it and below")
    return paths


def utm_position(path: str | Path) -> tuple[float, float]:
    """(easting, northing) in metres from `@<easting>@<northing>@...`. Raises InputError, which names the file."""
    fields = os.path.basename(path).split("@")
    try:
        position = float(fields[1]), float(fields[2])
        if not all(map(math.isfinite, position)):
            raise ValueError
    except (IndexError, ValueError):
        raise InputError(f"no UTM position in the file name {path}: expected @<utm_easting>@<utm_northing>@...@.jpg with two numbers") from None
    return position


def find_positives(database_utms: np.ndarray, queries_utms: np.ndarray, threshold: float) -> list[np.ndarray]:
    """For each query [Q, 2] the sorted numbers of the database photos [N, 2] at most `threshold` metres away."""
    neighbours = NearestNeighbors(radius=threshold).fit(database_utms)
    found = neighbours.radius_neighbors(queries_utms, return_distance=False)
    return [np.sort(positives) for positives in found]


def _existing_folder(datasets_folder: Path, name: str, split: str) -> Path:
    """The split's folder, or an InputError that says which part of the path is missing and what is there instead."""
    folder = datasets_folder
    for part in (".", name, "images", split):
        parent, folder = folder, folder / part
        if not folder.is_dir():
            there = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
            raise InputError(f"no folder {folder}; {parent} has {', '.join(there[:10]) if there else 'no folders'}. "
                             "Expected <datasets_folder>/<dataset_name>/images/<split>/{database,queries}")
    return folder
