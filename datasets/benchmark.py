"""VPR benchmarks on disk: a database and queries with UTM positions in their file names."""
import math
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors

from model.errors import InputError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")


class Benchmark:
    """The photos of one split, in sorted order, their positions, and which database photos are right for each query.

    `<datasets_folder>/<name>/images/<split>/{database,queries}/**/@<utm_easting>@<utm_northing>@...@.jpg`

    Attributes: folder, the split's; database_paths, queries_paths; database_utms, queries_utms, [N, 2] float64 in metres;
    positives, for each query an int64 array of database photos within `threshold` metres (inclusive), sorted.
    Raises InputError where a folder is missing or empty, or a file name holds no position.
    """

    def __init__(self, datasets_folder: str | Path, name: str, split: str, threshold: float = 25.0) -> None:
        self.name = name
        self.folder = _existing_folder(Path(datasets_folder), name, split)
        self.database_paths = list_photos(self.folder / "database")
        self.queries_paths = list_photos(self.folder / "queries")
        self.database_utms = np.array([utm_position(path) for path in self.database_paths])
        self.queries_utms = np.array([utm_position(path) for path in self.queries_paths])
        self.positives = find_positives(self.database_utms, self.queries_utms, threshold)

    @property
    def queries_without_positives(self) -> int:
        """How many queries no answer can be right for; they count as missed."""
        return sum(len(positives) == 0 for positives in self.positives)

    def __str__(self) -> str:
        return (f"{self.name} ({self.folder}): {len(self.database_paths)} database photos, {len(self.queries_paths)} queries, "
                f"{self.queries_without_positives} of them without a positive")


def list_photos(folder: Path) -> list[Path]:
    """The photos below a folder, sorted by path. Raises InputError where the folder is missing or holds none."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not paths:
        raise InputError(f"no photos in {folder}: looked for {', '.join(PHOTO_SUFFIXES)} in it and below")
    return paths


def utm_position(path: Path) -> tuple[float, float]:
    """(easting, northing) in metres from `@<easting>@<northing>@...`. Raises InputError, which names the file."""
    fields = path.name.split("@")
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
