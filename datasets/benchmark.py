"""VPR benchmarks on disk: a database and queries with UTM positions in their file names."""

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from model.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images: their paths, and their positions `utms` [N, 2], float64, easting and northing in metres."""

    paths: Sequence[str | Path]
    utms: np.ndarray

    @staticmethod
    def without_positions(paths: Sequence[str | Path]) -> "ImageSet":
        """Images whose positions are unknown (NaN)."""
        return ImageSet(paths, np.full((len(paths), 2), np.nan))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, selection: slice | np.ndarray) -> "ImageSet":
        indices = range(len(self))[selection] if isinstance(selection, slice) else selection
        return ImageSet([self.paths[i] for i in indices], self.utms[selection])


class Benchmark:
    """One split of a dataset:
    `<datasets_folder>/<name>/images/<split>/{database,queries}/**/@<utm_easting>@<utm_northing>@...@.jpg`.

    Attributes: name; folder, the split's; database and queries, in sorted order; threshold, the distance in metres up
    to which (inclusive) a database image is a positive of a query. With `has_database=False` the database folder is
    not read and `database` is empty, for evaluations of an index. Raises InputError if a folder is missing or empty,
    or a file name holds no position.
    """

    def __init__(
        self, datasets_folder: str | Path, name: str, split: str, *, threshold: float = 25.0, has_database: bool = True
    ) -> None:
        self.name = name
        self.threshold = threshold
        self.folder = _existing_folder(Path(datasets_folder), name, split)
        self.database = read_image_set(self.folder / "database") if has_database else ImageSet([], np.empty((0, 2)))
        self.queries = read_image_set(self.folder / "queries")

    def with_database(self, database: ImageSet) -> "Benchmark":
        """The same queries against another database, such as the images of an index."""
        benchmark = copy.copy(self)
        benchmark.database = database
        benchmark.__dict__.pop("positives", None)
        return benchmark

    @cached_property
    def positives(self) -> list[np.ndarray]:
        """For each query, the indices of its positives in the database, int64, ascending."""
        return find_positives(self.database.utms, self.queries.utms, self.threshold)

    def __str__(self) -> str:
        database = f"{len(self.database)} database images, " if len(self.database) else ""
        return f"{self.name} ({self.folder}): {database}{len(self.queries)} queries"


def read_image_set(folder: Path) -> ImageSet:
    """The images below a folder, with the positions in their names. Raises InputError if one has none."""
    paths = list_images(folder)
    return ImageSet(paths, np.array([utm_position(path) for path in paths]))


def list_images(folder: Path) -> list[str]:
    """The paths of the images below a folder, sorted. Raises InputError if the folder is missing or contains none.

    Paths are strings: for a database of millions of images, Path objects would take gigabytes.
    """
    if not folder.is_dir():
        raise InputError(f"No folder {folder}.")
    paths = sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES)
    )
    if not paths:
        raise InputError(f"No images in {folder}. Looked for {', '.join(IMAGE_SUFFIXES)} in it and its subfolders.")
    return paths


def utm_position(path: str | Path) -> tuple[float, float]:
    """(easting, northing) in metres from `@<easting>@<northing>@...`. Raises InputError, which names the file."""
    fields = os.path.basename(path).split("@")
    try:
        position = float(fields[1]), float(fields[2])
        if not all(map(math.isfinite, position)):
            raise ValueError
    except (IndexError, ValueError):
        raise InputError(
            f"No UTM position in the file name {path}. Expected @<utm_easting>@<utm_northing>@...@.jpg with two "
            "numbers."
        ) from None
    return position


def find_positives(database_utms: np.ndarray, query_utms: np.ndarray, threshold: float) -> list[np.ndarray]:
    """For each query [Q, 2], the ascending indices of the database images [N, 2] at most `threshold` metres away."""
    from sklearn.neighbors import NearestNeighbors  # slow to import, and --help does not need it

    neighbours = NearestNeighbors(radius=threshold).fit(database_utms)
    indices = neighbours.radius_neighbors(query_utms, return_distance=False)
    return [np.sort(positives) for positives in indices]


def _existing_folder(datasets_folder: Path, name: str, split: str) -> Path:
    """The split's folder. Raises InputError, which says which part of the path is missing and what exists instead."""
    folder = datasets_folder
    for part in ("", name, "images", split):
        parent, folder = folder, folder / part
        if not folder.is_dir():
            actual = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else None
            contents = f"{parent} contains {', '.join(actual[:10]) or 'no folders'}. " if actual is not None else ""
            raise InputError(
                f"No folder {folder}. {contents}"
                "Expected <datasets_folder>/<dataset_name>/images/<split>/{database,queries}."
            )
    return folder
