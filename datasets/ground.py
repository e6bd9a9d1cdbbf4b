"""Distances on the ground: between database images and queries, and of images from all others."""

import logging
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from datasets.image_set import ImageSet
from datasets.zones import common_zone
from model.errors import InputError
from model.geodesy import distance_metres, earth_centred, local_metres
from utils.runtime.text_files import shorten

FAR_METRES, CELL_METRES = 100_000, 1000


class Ground:
    """Distances in metres between two sets of images, and a map of both.

    The positions are metres as the dataset gives them (flat), of which those in different UTM zones are not compared;
    unless images have latitudes and longitudes alone, or the zones of database and queries differ throughout. Then all
    distances are those of latitudes and longitudes on the Earth's ellipsoid.
    """

    def __init__(self, database: ImageSet, queries: ImageSet) -> None:
        self.database, self.queries = database, queries

    @cached_property
    def is_flat(self) -> bool:
        """Whether distances are those of metres in the plane."""
        sets = self.database, self.queries
        if any((np.isnan(images.utms) & np.isfinite(images.degrees)).any() for images in sets):
            return False
        zones = {common_zone(np.asarray(images.zones)) for images in sets}
        return len(zones - {0}) < 2

    def require_positions(self) -> None:
        """Raises InputError if the distances between some images are unknown."""
        sets = self.database, self.queries
        if not all(images.is_located.all() for images in sets):
            raise InputError(
                "The database, or the index, holds images without positions, so that no recall is defined. Use "
                "--no_labels."
            )
        for images in () if self.is_flat else sets:
            unknown = np.flatnonzero(np.isnan(images.degrees).any(axis=1))
            if len(unknown):
                raise InputError(
                    f"The positions of {len(unknown)} of {len(images)} images are metres without a UTM zone, such as "
                    f"{images.paths[int(unknown[0])]}, and those of others are latitudes and longitudes, or lie in "
                    "another zone. There are no distances between them. Give the positions of all images in one CSV "
                    "file (--positions_csv), or evaluate without them (--no_labels)."
                )

    def positives(self, threshold: float) -> list[np.ndarray]:
        """For each query, the ascending indices of the database images at most `threshold` metres away, int64."""
        if not self.is_flat:
            # Straight lines instead of geodesics: shorter by less than 1 cm per km up to 98 km.
            database, queries = (earth_centred(images.degrees) for images in (self.database, self.queries))
            return find_positives(database, queries, threshold)
        found = find_positives(np.asarray(self.database.utms), self.queries.utms, threshold)
        zones = np.asarray(self.database.zones)
        return [
            images[np.isin(zones[images], (zone, 0))] if zone else images
            for images, zone in zip(found, self.queries.zones.tolist(), strict=True)
        ]

    def metres(self, query: int, images: np.ndarray) -> np.ndarray:
        """The distances [n], float64, of database images to a query; NaN where one is unknown."""
        database, queries = self.database, self.queries
        if not self.is_flat:
            return distance_metres(database.degrees[images], queries.degrees[query])
        difference = database.utms[images] - queries.utms[query]
        metres = np.hypot(difference[:, 0], difference[:, 1])
        zones, zone = database.zones[images], queries.zones[query]
        is_elsewhere = (zones != zone) & (zones != 0) & (zone != 0)
        if is_elsewhere.any():
            metres[is_elsewhere] = distance_metres(database.degrees[images][is_elsewhere], queries.degrees[query])
        return metres

    def metres_to_places(self, utms: np.ndarray, degrees: np.ndarray) -> np.ndarray:
        """The distance [Q] of each query to a place of its own, in metres [Q, 2] and degrees [Q, 2]; NaN if unknown."""
        if self.is_flat:
            return np.linalg.norm(utms - self.queries.utms, axis=1)
        return distance_metres(degrees, self.queries.degrees)

    def on_map(self, images: ImageSet) -> np.ndarray:
        """Metres [n, 2] east and north on a map of both sets; NaN where unknown."""
        if self.is_flat:
            return np.asarray(images.utms)
        return local_metres(images.degrees, self._origin)

    @cached_property
    def _origin(self) -> np.ndarray:
        """Latitude and longitude [2] of the image that lies most in the middle; NaN if none is known."""
        degrees = np.concatenate([self.database.degrees, self.queries.degrees])
        degrees = degrees[np.isfinite(degrees).all(axis=1)]
        if not len(degrees):
            return np.full(2, np.nan)
        points = earth_centred(degrees)
        return degrees[np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()]


def find_positives(database: np.ndarray, queries: np.ndarray, threshold: float) -> list[np.ndarray]:
    """For each query [Q, D], the ascending indices of the database images [N, D] at most `threshold` metres away."""
    from sklearn.neighbors import NearestNeighbors  # slow to import, and --help does not need it

    # A k-d tree compares coordinates. The default for small sets subtracts their squares, which are rounded; it hung
    # when memory ran out.
    neighbours = NearestNeighbors(radius=threshold, algorithm="kd_tree").fit(database)
    indices = neighbours.radius_neighbors(queries, return_distance=False)
    return [np.sort(positives) for positives in indices]


def warn_of_far(images: ImageSet, folder: Path) -> None:
    """Warns of images that are far from all others: their positions are probably wrong."""
    far = find_far(images.degrees)
    if len(far):
        names = ", ".join(os.path.relpath(images.paths[i], folder) for i in far[:100].tolist())
        message = "%d of %d images in %s lie more than %d km from all others: %s. Check the letters and signs of their "
        message += "positions, and the order of latitude and longitude."
        logging.warning(message, len(far), len(images), folder, FAR_METRES // 1000, shorten(names))


def find_far(degrees: np.ndarray) -> np.ndarray:
    """The ascending indices of latitudes and longitudes [N, 2] that have no other within 100 km, give or take one.

    None if that is so for half of them or more: then the images are spread over the world.
    """
    known = np.flatnonzero(np.isfinite(degrees).all(axis=1))
    # Millions of images lie in few cells of this size. A number for each cell is sorted in a tenth of the time.
    grid = (earth_centred(degrees[known]) / CELL_METRES).round().astype(np.int64)
    numbers = grid @ np.array([1 << 40, 1 << 20, 1])
    _, first, cell_of, counts = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
    cells = grid[first]
    if len(cells) < 2:
        return known[:0]
    from sklearn.neighbors import NearestNeighbors  # slow to import

    neighbours = NearestNeighbors(n_neighbors=2, algorithm="kd_tree").fit(cells)
    distances = neighbours.kneighbors(cells)[0][:, 1] * CELL_METRES
    far = known[((counts == 1) & (distances > FAR_METRES))[cell_of]]
    return far if 2 * len(far) < len(known) else known[:0]
