"""Which database images are right for a query: those near it, those that a file lists, those with its label, or those
of the same frames.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from datasets.config import GroundTruthConfig
from datasets.file_names import frame_of
from datasets.ground import Ground, find_positives
from datasets.image_rows import ImageRows, image_names, shared_row_error
from datasets.image_set import ImageSet
from model.errors import InputError
from utils.runtime.text_files import CsvRow, NameTable, read_csv, shorten

PAIRS, LABELS, FRAMES = ("query", "database"), ("image", "label"), ("image", "frame")
SEPARATOR = ";"  # of several database images in a row
COLUMNS = " or ".join(map(", ".join, (PAIRS, LABELS, FRAMES)))
NUMBERED = "Give the frames of all images in a CSV file, with the columns image and frame (--matches_csv)."


class Folders(NamedTuple):
    """The folders to which names of images may be relative: that above all others, the database's and the queries'."""

    above: Path
    database: Sequence[Path]
    queries: Sequence[Path]


class GroundTruth(Protocol):
    """Which database images are right for which query. criterion: as reports state it, such as "within 25 m"."""

    @property
    def criterion(self) -> str: ...

    def positives(self, database: ImageSet, queries: ImageSet) -> list[np.ndarray]:
        """For each query, the ascending indices of the right database images, int64. Raises InputError if what is known
        does not suffice for that.
        """


class NearPositions:
    """Right is what was taken at most `threshold` metres away."""

    def __init__(self, threshold: float) -> None:
        self.threshold, self.criterion = threshold, f"within {threshold:g} m"

    def positives(self, database: ImageSet, queries: ImageSet) -> list[np.ndarray]:
        """As GroundTruth."""
        return Ground(database, queries).positives(self.threshold)


class ListedMatches:
    """Right is what a list says, by the names of images.

    matches: {query: database images, each text one name, or several that SEPARATOR separates}.
    """

    def __init__(self, source: Path, matches: dict[str, list[str]], folders: Folders) -> None:
        self.source, self.matches, self.folders = source, matches, folders
        self.criterion = f"as listed in {source.name}"

    def positives(self, database: ImageSet, queries: ImageSet) -> list[np.ndarray]:
        """As GroundTruth."""
        listed = NameTable((name, name) for name in self.matches)
        folders = [self.folders.above, *self.folders.database]
        known = NameTable((name, i) for i, path in enumerate(database.paths) for name in image_names(path, folders))
        positives: list[np.ndarray] = []
        used: dict[str, str] = {}  # {row: the query that it belongs to}
        for query in queries.paths:
            rows = listed.find(*image_names(query, [self.folders.above, *self.folders.queries]))
            if not rows:
                raise InputError(
                    f"{self.source} does not list the query {query}. Give each query a row; if it has no right image, "
                    "leave the column database empty."
                )
            for row in rows:
                other = used.setdefault(row, os.path.abspath(query))
                if other != os.path.abspath(query):
                    raise shared_row_error(self.source, (other, query), self.folders.above)
            indices = [i for row in rows for text in self.matches[row] for i in self._indices(text, query, known)]
            positives.append(np.unique(np.array(indices, np.int64)))
        if len(used) < len(self.matches):
            message = "%s lists %d queries, of which %d are evaluated."
            logging.info(message, self.source, len(self.matches), len(used))
        return positives

    def _indices(self, text: str, query: str | Path, known: NameTable[int]) -> list[int]:
        """The database images of a text."""
        names = [text] if known.find(os.path.normpath(text)) else [*filter(None, map(str.strip, text.split(SEPARATOR)))]
        indices: list[int] = []
        for name in names:
            found = known.find(os.path.normpath(name))
            if len(found) != 1:
                problem = f"stands for {len(found)} database images" if found else "is not in the database"
                database = ", or to the folder of the database" if self.folders.database else ""  # or of an index
                raise InputError(
                    f"{self.source}: {shorten(name)}, which it lists for {query}, {problem}. Expected a path relative "
                    f"to {self.folders.above}{database}, or an absolute one."
                )
            indices += found
        return indices


class SameLabel:
    """Right is what has the query's label. An empty label equals no other."""

    def __init__(self, rows: ImageRows, labels: Sequence[str], folders: Folders) -> None:
        self.rows, self.labels, self.folders = rows, labels, folders
        self.criterion = f"with the same label in {rows.path.name}"

    def positives(self, database: ImageSet, queries: ImageSet) -> list[np.ndarray]:
        """As GroundTruth."""
        members: dict[str, list[int]] = {}
        for i, path in enumerate(database.paths):
            members.setdefault(self.labels[self.rows.row_of(path, self.folders.database)], []).append(i)
        members.pop("", None)
        labels = [self.labels[self.rows.row_of(path, self.folders.queries)] for path in queries.paths]
        return [np.array(members.get(label, ()), np.int64) for label in labels]


class NearFrames:
    """Right is a frame of a sequence at most `tolerance` away. rows, frames: of a CSV file; None: names state them."""

    def __init__(
        self, tolerance: float, folders: Folders, *, rows: ImageRows | None = None, frames: Sequence[float] = ()
    ) -> None:
        self.tolerance, self.folders, self.rows, self.frames = tolerance, folders, rows, frames
        self.criterion = f"within {tolerance:g} frame{'' if tolerance == 1 else 's'}"

    def positives(self, database: ImageSet, queries: ImageSet) -> list[np.ndarray]:
        """As GroundTruth."""
        known = self._frames(database.paths, self.folders.database, recordings=1)
        asked = self._frames(queries.paths, self.folders.queries, recordings=len(queries))
        if self.rows is None and len(queries) > 1 and (asked == asked[0]).all():  # such as the 720 of a_720p.jpg
            message = "--frame_tolerance: the last number in the names of all %d queries, such as %s, is %g. %s"
            logging.warning(message, len(queries), queries.paths[0], asked[0], NUMBERED)
        return find_positives(known[:, None], asked[:, None], self.tolerance)

    def _frames(self, paths: Sequence[str | Path], folders: Sequence[Path], *, recordings: int) -> np.ndarray:
        """The numbers of the frames, [N] float64, of at most so many recordings where names state them."""
        if self.rows:
            return np.array([self.frames[self.rows.row_of(path, folders)] for path in paths])
        names, numbers = zip(*map(frame_of, paths), strict=True)
        without = [name for path, name in zip(paths, names, strict=True) if name == str(path)]
        if without:
            raise InputError(f"--frame_tolerance: the name of {without[0]} has no number, its frame. {NUMBERED}")
        if len(set(names)) > recordings:
            first, second, *_ = sorted(set(names))
            raise InputError(
                f"--frame_tolerance: the names of database images are those of several recordings, such as {first} and "
                f"{second}, whose frames have the same numbers. {NUMBERED}"
            )
        return np.array(numbers)


def read_ground_truth(config: GroundTruthConfig, folders: Folders) -> GroundTruth:
    """The ground truth of a CSV file, or of frames. Raises InputError if the file's columns say none."""
    path, tolerance = config.matches_csv, config.frame_tolerance
    if path is None:
        assert tolerance is not None, "either a file or frames"
        return NearFrames(tolerance, folders)
    header, lines = read_csv(path, file_names=True)
    kinds = [columns for columns in (PAIRS, LABELS, FRAMES) if {*columns} <= {*header}]
    if tolerance is None and kinds == [FRAMES]:
        raise InputError(f"{path} has numbers of frames. Say how many frames apart is still right: --frame_tolerance.")
    if tolerance is not None and FRAMES not in kinds:
        raise InputError(f"--frame_tolerance needs the columns image and frame in {path}. Leave one of both out.")
    if tolerance is None and len(kinds) != 1:
        raise InputError(
            f"{path} has the columns {shorten(', '.join(header)) or '(none)'}. Expected those of one kind: {COLUMNS}."
        )
    if kinds == [PAIRS]:
        return ListedMatches(path, _matches(lines), folders)
    rows = list(lines)
    images = partial(ImageRows, path, [row.text("image") for row in rows], folder=folders.above)
    if tolerance is not None:
        frames = [row.number("frame") for row in rows]
        return NearFrames(tolerance, folders, rows=images(content="frame"), frames=frames)
    return SameLabel(images(content="label"), [(row.values["label"] or "").strip() for row in rows], folders)


def _matches(rows: Iterable[CsvRow]) -> dict[str, list[str]]:
    """{query: cells of the column database}."""
    matches: dict[str, list[str]] = {}
    for row in rows:
        cells = matches.setdefault(os.path.normpath(row.text("query")), [])
        if row.values["database"]:
            cells.append(row.values["database"])
    return matches
