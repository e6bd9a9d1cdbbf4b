"""VPR benchmarks: a database and queries, their positions, and which database images are correct for each query."""

import copy
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from datasets.file_names import (
    common_utm_zone,
    find_utm_position,
    image_key,
    mapillary_conditions,
    utm_position,
    utm_zone,
)
from datasets.layouts import BenchmarkConfig, find_layout, list_images
from datasets.positions import PositionTable
from datasets.shared_images import find_shared
from model.errors import InputError
from utils.runtime.text_files import NameTable, read_lines


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images: their paths, and their positions `utms` [N, 2], float64, easting and northing in metres; the UTM zone
    of these, such as "32N" (N or S of the equator), if it is known.
    """

    paths: Sequence[str | Path]
    utms: np.ndarray
    utm_zone: str | None = None

    @staticmethod
    def without_positions(paths: Sequence[str | Path]) -> "ImageSet":
        """Images whose positions are unknown (NaN)."""
        return ImageSet(paths, np.full((len(paths), 2), np.nan))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, selection: slice | np.ndarray) -> "ImageSet":
        indices = range(len(self))[selection] if isinstance(selection, slice) else selection
        return ImageSet([self.paths[i] for i in indices], self.utms[selection], self.utm_zone)


class Benchmark:
    """The images that a BenchmarkConfig selects.

    Attributes: config; name; folder, above all images; database and queries, in sorted order; query_folders, {name:
    indices of the queries in that folder}; queries_in_database, the ascending indices of the queries whose image the
    database holds too, of which a warning tells. With `has_database=False` the database folder is not read and
    `database` is empty, for evaluations of an index. Without labels, positions are those of the file names, if all in a
    folder have one, and otherwise NaN. Raises InputError if a folder is missing or empty, if an image has no position,
    if database and queries state different UTM zones, or (with labels) if all queries are in the database.
    """

    def __init__(self, config: BenchmarkConfig, *, has_database: bool = True) -> None:
        self.config = config
        self.name = config.name
        layout = find_layout(config, has_database=has_database)
        self.folder = layout.folder
        positions = PositionTable(config.positions_csv, self.folder) if config.positions_csv else None

        def read(folder: Path) -> ImageSet:
            paths = list_images(folder)
            if not config.labels and not (paths and all(find_utm_position(path) for path in paths)):
                return ImageSet.without_positions(paths)
            if positions and config.labels:
                return ImageSet(paths, positions.utms(paths, folder), positions.zone)
            return ImageSet(paths, np.array([utm_position(path) for path in paths]), common_utm_zone(paths))

        self.database = read(layout.database) if layout.database else ImageSet([], np.empty((0, 2)))
        parts = {folder: read(folder) for folder in layout.queries}
        if config.queries_list:
            parts = select_queries(parts, config.queries_list, self.folder)
        bounds = np.cumsum([0, *map(len, parts.values())])
        self.query_folders = {
            folder.name: np.arange(start, stop) for folder, start, stop in zip(parts, bounds, bounds[1:], strict=False)
        }
        zones = {part.utm_zone for part in parts.values()}
        self.queries = ImageSet(
            [path for part in parts.values() for path in part.paths],
            np.concatenate([part.utms for part in parts.values()]),
            zones.pop() if len(zones) == 1 else None,
        )
        if config.labels:
            _check_zones(self.database, self.queries)
        self.queries_in_database = np.empty(0, np.int64)
        self._find_queries_in_database()

    def with_database(self, database: ImageSet) -> "Benchmark":
        """The same queries against another database, such as the images of an index.

        With labels, raises InputError if its positions are unknown or in another UTM zone, or if all queries are in it.
        The images of a search engine are not compared with the queries: that would ask for all their paths.
        """
        if database is self.database:
            return self
        benchmark = copy.copy(self)
        benchmark.database = database
        benchmark.__dict__.pop("positives", None)
        if not isinstance(database.utms, np.ndarray):
            benchmark.queries_in_database = np.empty(0, np.int64)
        if self.config.labels and np.isnan(database.utms).any():
            raise InputError("The index holds images without positions, so that no recall is defined. Use --no_labels.")
        if self.config.labels:
            _check_zones(database, self.queries)
        if isinstance(database.utms, np.ndarray):
            benchmark._find_queries_in_database()
        return benchmark

    def _find_queries_in_database(self) -> None:
        found, absent = find_shared(self.queries.paths, self.database.paths)
        if absent:
            message = "%d of %d database images are no longer at their paths. Queries are not compared with them."
            logging.warning(message, absent, len(self.database))
        known, self.queries_in_database = self.queries_in_database, found
        if not len(found) or np.array_equal(found, known):  # an index of the images that were compared before
            return
        problem = (
            f"{len(found)} of {len(self.queries)} queries are also database images, such as "
            f"{self.queries.paths[found[0]]}. Each finds itself"
        )
        if self.config.labels and len(found) == len(self.queries):
            raise InputError(
                f"{problem}, so recalls would say nothing. Choose folders of database and queries that have no image "
                "in common, or evaluate without recalls (--no_labels)."
            )
        logging.warning("%s%s", problem, ": recalls are also given without them." if self.config.labels else ".")

    @cached_property
    def positives(self) -> list[np.ndarray]:
        """For each query, the indices of its positives in the database, int64, ascending."""
        found = find_positives(self.database.utms, self.queries.utms, self.config.threshold)
        is_one_zone = self.config.positions_csv or (self.database.utm_zone and self.queries.utm_zone)
        if is_one_zone or not isinstance(self.database.utms, np.ndarray):  # a search engine would be asked for names
            return found
        return [self._in_zone_of(path, images) for path, images in zip(self.queries.paths, found, strict=True)]

    def _in_zone_of(self, query: str | Path, images: np.ndarray) -> np.ndarray:
        """Those of the database images that lie in the UTM zone that the query's name states, as far as both are known:
        metres of two zones cannot be compared.
        """
        zone, common = utm_zone(query), self.database.utm_zone
        if zone is None:
            return images
        return images[[(common or utm_zone(self.database.paths[i])) in (zone, None) for i in images]]

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """{name: indices of the queries}: those of each folder, if there are several, and the notes of MSLS."""
        folders = self.query_folders if len(self.query_folders) > 1 else {}
        return {**folders, **mapillary_conditions(self.queries.paths)}

    def __str__(self) -> str:
        database = f"{len(self.database)} database images, " if len(self.database) else ""
        return f"{self.name} ({self.folder}): {database}{len(self.queries)} queries"


def _check_zones(database: ImageSet, queries: ImageSet) -> None:
    """Raises InputError if the UTM zones of positions are known and differ."""
    if database.utm_zone and queries.utm_zone and database.utm_zone != queries.utm_zone:
        raise InputError(
            f"The positions of the database lie in UTM zone {database.utm_zone}, but those of the queries in zone "
            f"{queries.utm_zone}, so distances would be wrong. Give the positions of all images in one CSV file "
            "(--positions_csv), or evaluate without them (--no_labels)."
        )


def select_queries(parts: dict[Path, ImageSet], queries_list: Path, above: Path) -> dict[Path, ImageSet]:
    """The queries that a file lists, by their MSLS key, or their path relative to `above` or to their own folder.

    The file has one entry per line, or all on one line with spaces between. {folder: queries} in and out. Raises
    InputError if an entry is unknown, ambiguous or listed twice.
    """
    lines = read_lines(queries_list)
    entries = lines[0].split() if len(lines) == 1 else lines
    if not entries:
        raise InputError(f"{queries_list} lists no queries.")
    known = NameTable(
        (name, (folder, i))
        for folder, images in parts.items()
        for i, path in enumerate(images.paths)
        for name in _names_of_query(path, (above, folder))
    )
    unknown = [entry for entry in entries if not known.find(entry)]
    if unknown:
        raise InputError(
            f"{queries_list}: {len(unknown)} of {len(entries)} entries are not queries in "
            f"{', '.join(map(str, parts))}, such as {', '.join(unknown[:3])}. Expected MSLS keys, or paths relative to "
            "that folder."
        )
    selected: dict[Path, list[int]] = {folder: [] for folder in parts}
    for entry in entries:
        found = known.find(entry)
        if len(found) > 1:
            raise InputError(f"{queries_list}: {entry} stands for {len(found)} queries. Give paths instead.")
        ((folder, i),) = found
        if i in selected[folder]:
            raise InputError(f"{queries_list} lists {entry} more than once.")
        selected[folder].append(i)
    return {folder: parts[folder][np.array(sorted(indices))] for folder, indices in selected.items() if indices}


def _names_of_query(path: str | Path, folders: Sequence[Path]) -> set[str]:
    relative = {os.path.relpath(path, folder) for folder in folders}
    return {*relative, os.path.basename(path), os.path.abspath(path), image_key(path)} - {""}


def find_positives(database_utms: np.ndarray, query_utms: np.ndarray, threshold: float) -> list[np.ndarray]:
    """For each query [Q, 2], the ascending indices of the database images [N, 2] at most `threshold` metres away."""
    from sklearn.neighbors import NearestNeighbors  # slow to import, and --help does not need it

    # A k-d tree compares coordinates. The default for small sets subtracts their squares, which are rounded; it hung
    # when memory ran out.
    neighbours = NearestNeighbors(radius=threshold, algorithm="kd_tree").fit(database_utms)
    indices = neighbours.radius_neighbors(query_utms, return_distance=False)
    return [np.sort(positives) for positives in indices]
