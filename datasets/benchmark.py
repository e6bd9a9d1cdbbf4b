"""VPR benchmarks: a database and queries, their positions, and which database images are right for each query."""

import copy
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from datasets.file_names import image_key, mapillary_conditions
from datasets.folder import locate_images, require_positions
from datasets.ground import Ground, warn_of_far
from datasets.ground_truth import Folders, GroundTruth, ListedMatches, NearPositions, read_ground_truth
from datasets.image_set import ImageSet
from datasets.layouts import DATABASE_FOLDERS, BenchmarkConfig, Layout, database_folder, find_layout, list_images
from datasets.msls import Cities, cities_of, key_of, match_images, published_key, read_subtasks
from datasets.msls_layout import DATABASE, IMAGES, TEST_CITIES
from datasets.positions import PositionTable
from datasets.shared_images import find_shared
from datasets.vpr_bench import right_images
from model.errors import InputError
from utils.runtime.text_files import NameTable, read_lines


class Benchmark:
    """The images that a BenchmarkConfig selects.

    Attributes: config; name; folder, above all images; database_folder; database and queries, in sorted order; truth,
    which says what is right, None without labels; query_folders, {name: indices of the queries in that folder};
    queries_in_database, the ascending indices of the queries whose image the database holds too, of which a warning
    tells. With `has_database=False` the database folder is not read and `database` is empty, for evaluations of an
    index. Raises InputError if a folder is missing or empty; and with labels if it is not known which images are right,
    as distances to images without a position are not, or all queries are in the database.
    """

    def __init__(self, config: BenchmarkConfig, *, has_database: bool = True) -> None:
        self.config = config
        self.name = config.name
        layout = find_layout(config, has_database=has_database)
        self.folder, self.database_folder = layout.folder, layout.database
        table = PositionTable(config.positions.csv, self.folder) if config.positions.csv else None
        has_matches = config.ground_truth.is_given or bool(layout.vpr_bench and not config.positions.csv)

        def read(folder: Path) -> ImageSet:
            images = locate_images(list_images(folder), folder, config.positions, table)
            if config.labels and not has_matches:
                require_positions(images, folder, config.positions)
            return images

        self._subtasks: dict[str, np.ndarray] = {}

        def read_city(folder: Path) -> ImageSet:
            found = match_images(folder, list_images(folder / IMAGES), labels=config.labels)
            self._subtasks |= found.subtasks
            return found.images

        self.database = ImageSet.without_positions([])
        if layout.database:
            cities = [read_city(city / DATABASE) for city in layout.cities]
            self.database = ImageSet.joined(cities) if cities else read(layout.database)
        elif config.labels:  # the images of an index, of which the CSV files tell the subtasks
            for city in layout.cities:
                self._subtasks |= read_subtasks(city / DATABASE)
        parts = {folder: (read_city if layout.cities else read)(folder) for folder in layout.queries}
        self.truth = self._read_truth(layout, parts, has_matches=has_matches) if config.labels else None
        if config.queries_list:
            parts = select_queries(parts, config.queries_list, self.folder)
        bounds = np.cumsum([0, *map(len, parts.values())])
        self.query_folders = {
            (folder.parent if layout.cities else folder).name: np.arange(start, stop)
            for folder, start, stop in zip(parts, bounds, bounds[1:], strict=False)
        }
        self.queries = ImageSet.joined(parts.values())
        _ = self.cities  # raises InputError
        self._require_truth()
        if not self.ground.is_flat:
            warn_of_far(ImageSet.joined([self.database, self.queries]), self.folder)
        self.queries_in_database = np.empty(0, np.int64)
        self._find_queries_in_database()

    def with_database(self, database: ImageSet) -> "Benchmark":
        """The same queries against another database, such as the images of an index.

        With labels, raises InputError if it is not known which are right, or if all queries are in it.
        The images of a search engine are not compared with the queries: that would ask for all their paths.
        """
        if database is self.database:
            return self
        benchmark = copy.copy(self)
        benchmark.database = database
        for cached in ("ground", "positives", "cities"):
            benchmark.__dict__.pop(cached, None)
        if not isinstance(database.utms, np.ndarray):
            benchmark.queries_in_database = np.empty(0, np.int64)
        benchmark._require_truth()
        if isinstance(database.utms, np.ndarray):
            benchmark._find_queries_in_database()
        return benchmark

    def _read_truth(self, layout: Layout, parts: dict[Path, ImageSet], *, has_matches: bool) -> GroundTruth:
        """parts: all queries of each folder."""
        if not has_matches:
            return NearPositions(self.config.threshold)
        database = [layout.database] if layout.database else []
        if not database and not self.config.queries_folder:  # the dataset that the index was made of
            database = [layout.folder / name for name in DATABASE_FOLDERS]
        folders = Folders(layout.folder, database, layout.queries)
        if self.config.ground_truth.is_given:
            return read_ground_truth(self.config.ground_truth, folders)
        assert layout.vpr_bench, "or there are no matches"
        if self.config.threshold != BenchmarkConfig.threshold:
            raise InputError(
                f"{layout.vpr_bench} decides in place of distances; leave --val_positive_dist_threshold out, or give "
                "positions (--positions_csv)."
            )
        # Absolute, as image_names states them: relative ones count from another folder
        queries = [os.path.abspath(path) for part in parts.values() for path in part.paths]
        images = list(map(os.path.abspath, list_images(layout.database or database_folder(layout.folder))))
        matches = right_images(layout.vpr_bench, queries, images)
        return ListedMatches(layout.vpr_bench, matches, folders)

    def _require_truth(self) -> None:
        """Raises InputError if it is not known which images of the database, if it is read by now, are right."""
        if isinstance(self.truth, NearPositions):
            self.ground.require_positions()
        elif self.truth and len(self.database):
            _ = self.positives

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
    def ground(self) -> Ground:
        """The distances between database and queries."""
        return Ground(self.database, self.queries)

    @cached_property
    def positives(self) -> list[np.ndarray]:
        """For each query, the indices of its positives in the database, int64, ascending."""
        assert self.truth, "with labels"
        positives = self.truth.positives(self.database, self.queries)
        if not self.cities:
            return positives
        _, database, queries = self.cities  # metres of different zones may be equal
        return [found[database[found] == city] for found, city in zip(positives, queries, strict=True)]

    @cached_property
    def cities(self) -> Cities | None:
        """The cities in which alone queries are searched: with per_city, and for MSLS's test set. None otherwise.

        Raises InputError if the cities of images are unknown, or the database lacks that of a query.
        """
        if not len(self.database):  # not read by now
            return None
        found = cities_of(self.database.paths, self.queries.paths)
        if self.config.per_city and not found:
            raise InputError(
                "--per_city needs the cities of all images: MSLS as it is published, or the names that "
                f"VPR-datasets-downloader writes. Those of images in {self.folder} do not state any."
            )
        is_test = found is not None and {*found.names} <= {*TEST_CITIES}
        return found if self.config.per_city or is_test else None

    def subtasks(self, images: ImageSet) -> np.ndarray | None:
        """Which of datasets.msls.SUBTASKS images of the database, or queries, belong to, bool [N, 7]; None if this is
        not known, as it is of MSLS as it is published alone.
        """
        rows = [self._subtasks.get(key_of(path)) for path in images.paths] if self._subtasks else []
        known = [row for row in rows if row is not None]
        return np.array(known) if len(known) == len(images) else None

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """{name: indices of the queries}: those of each folder, if there are several, and the notes of MSLS."""
        folders = self.query_folders if len(self.query_folders) > 1 else {}
        return {**folders, **mapillary_conditions(self.queries.paths)}

    def __str__(self) -> str:
        database = f"{len(self.database)} database images, " if len(self.database) else ""
        return f"{self.name} ({self.folder}): {database}{len(self.queries)} queries"


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
    return {*relative, os.path.basename(path), os.path.abspath(path), image_key(path), published_key(path)} - {""}
