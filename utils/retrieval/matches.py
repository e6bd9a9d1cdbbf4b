"""What a search reports of each match: on the terminal, below its picture, and as JSON."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.image_set import ImageSet
from datasets.zones import zone_text
from model.places import MATCHES, SHARE, Place, estimate_place
from utils.retrieval.search import SearchResult
from utils.runtime.terminal import printable

UTM_COLUMNS = ("easting", 12, 2), ("northing", 12, 2)  # name, width, digits after the point
DEGREE_COLUMNS = ("latitude", 11, 6), ("longitude", 11, 6)


class Match(NamedTuple):
    """An image that was found. rank: from 1. metric: of the distance. easting, northing: in metres, in the UTM zone,
    such as "32N"; latitude, longitude: in degrees, WGS 84; None where unknown.
    """

    rank: int
    path: str
    distance: float
    metric: str
    easting: float | None
    northing: float | None
    utm_zone: str | None
    latitude: float | None
    longitude: float | None

    @property
    def captions(self) -> list[str]:
        """Rank, distance and position, in at most three lines."""
        lines = [f"{self.rank}: {self.distance:.4g}"]
        if self.easting is not None:
            lines.append(f"{self.easting:.0f} E  {self.northing:.0f} N")
        if self.latitude is not None:
            lines.append(f"{self.latitude:.5f}, {self.longitude:.5f}")
        return lines


class Answer(NamedTuple):
    """What a search says of an image. picture: the file that shows it with its matches, if one is wanted. accepted:
    whether the first match is near enough; None without a threshold. place: None where it is unknown.
    """

    image: str
    picture: Path | None
    accepted: bool | None
    place: "EstimatedPlace | None"
    matches: list[Match]

    @property
    def verdict(self) -> str:
        """ "accepted", "unknown place", or nothing without a threshold."""
        return {True: "accepted", False: "unknown place", None: ""}[self.accepted]

    @property
    def captions(self) -> list[str]:
        """The lines below its picture."""
        return ["Query", Path(self.image).name, *([self.verdict] if self.verdict else [])]

    def to_json(self) -> dict[str, Any]:
        """What --json prints of it."""
        return {
            **self._asdict(),
            "picture": self.picture and str(self.picture),
            "place": self.place and self.place._asdict(),
            "matches": [match._asdict() for match in self.matches],
        }


class EstimatedPlace(NamedTuple):
    """Where an image was probably taken. easting, northing: in metres; latitude, longitude: in degrees; None where the
    matches have none; radius, matches: those of Place.
    """

    easting: float | None
    northing: float | None
    latitude: float | None
    longitude: float | None
    radius: float | None
    matches: int

    @staticmethod
    def of(place: Place | None) -> "EstimatedPlace | None":
        """A place, if it is known."""
        if place is None:
            return None
        easting, northing = place.position or (None, None)
        latitude, longitude = place.degrees or (None, None)
        return EstimatedPlace(easting, northing, latitude, longitude, place.radius, place.matches)

    def __str__(self) -> str:
        metres = f"{self.easting:.2f} E {self.northing:.2f} N" if self.easting is not None else ""
        degrees = f"{self.latitude:.6f}, {self.longitude:.6f}" if self.latitude is not None else ""
        both = f"{metres} ({degrees})" if metres and degrees else metres or degrees
        radius = f" +- {self.radius:.3g} m, in {SHARE:.0%} of cases" if self.radius is not None else ""
        return f"Estimated place: {both}{radius}"


def estimate_places(results: SearchResult, images: ImageSet, radius: float | None = None) -> list[Place | None]:
    """Where each query was taken, by its first matches: those whose distances have the metric of the first one's."""
    first = results.first(min(MATCHES, results.metric.count(results.metric[0])))
    places = []
    for distances, indices in zip(first.distances, first.indices, strict=True):
        utms, zones, degrees = (np.asarray(column[indices]) for column in (images.utms, images.zones, images.degrees))
        places.append(estimate_place(utms, distances, radius, degrees=degrees, zones=zones))
    return places


def list_matches(results: SearchResult, images: ImageSet) -> list[list[Match]]:
    """The matches of each query, best first."""
    return [
        [
            Match(rank + 1, str(images.paths[i]), distances[rank].item(), results.metric[rank], *position)
            for rank, (i, position) in enumerate(zip(indices, _positions(images, indices), strict=True))
        ]
        for distances, indices in zip(results.distances, results.indices, strict=True)
    ]


def _positions(images: ImageSet, indices: np.ndarray) -> list[tuple[Any, ...]]:
    """(easting, northing, utm_zone, latitude, longitude) of each of these images."""
    numbers = np.hstack([images.utms[indices], images.degrees[indices]])
    rows = [[value if np.isfinite(value) else None for value in row] for row in numbers.tolist()]
    zones = map(zone_text, images.zones[indices].tolist())
    return [(*row[:2], zone, *row[2:]) for row, zone in zip(rows, zones, strict=True)]


def table_lines(matches: list[Match], *, metres: bool, degrees: bool) -> list[str]:
    """The table of one query's matches, with or without columns for eastings and northings, and for degrees."""
    columns = [*(UTM_COLUMNS if metres else ()), *(DEGREE_COLUMNS if degrees else ())]
    names = "".join(f"  {name:>{width}}" for name, width, _ in columns)
    wide = max([len("hamming"), *(len(match.metric) for match in matches)])
    lines = [f"{'rank':>4}  {'distance':>{9 + wide}}{names}  image"]
    for match in matches:
        numbers = [getattr(match, name) for name, *_ in columns]
        texts = [
            f"  {number:>{width}.{digits}f}" if number is not None else f"  {'unknown':>{width}}"
            for number, (_, width, digits) in zip(numbers, columns, strict=True)
        ]
        distance = f"{match.distance:>8.4g} {match.metric:<{wide}}"
        lines.append(f"{match.rank:>4}  {distance}{''.join(texts)}  {printable(match.path)}")
    return lines
