"""What the service answers, as JSON: the names are those of search.py --json."""

from pathlib import PurePath
from typing import Annotated

from pydantic import BaseModel, Field

from model import Match, Place
from utils.runtime.terminal import printable
from utils.service.library import Found

Metres = Annotated[float | None, Field(description="in metres; null where unknown")]
Degrees = Annotated[float | None, Field(description="in degrees, WGS 84; null where unknown")]


class MatchAnswer(BaseModel):
    """An image of the index that was found."""

    rank: int = Field(description="from 1", examples=[1])
    id: int = Field(description="of the image: GET /images/{id} shows it", examples=[17])
    name: str | None = Field(description="its file name, or the name that it was given", examples=["street.jpg"])
    distance: float = Field(examples=[0.62])
    metric: str = Field(description="of the distance: l2 or hamming", examples=["l2"])
    easting: Metres = None
    northing: Metres = None
    latitude: Degrees = None
    longitude: Degrees = None

    @staticmethod
    def of(rank: int, match: Match, *, show_paths: bool) -> "MatchAnswer":
        """The answer for a match. show_paths: with the folders of its file."""
        (easting, northing), (latitude, longitude) = (pair or (None, None) for pair in (match.position, match.degrees))
        name = match.name
        return MatchAnswer(
            rank=rank,
            id=match.id,
            name=None if name is None else printable(name if show_paths else PurePath(name).name or name),
            distance=match.distance,
            metric=match.metric,
            easting=easting,
            northing=northing,
            latitude=latitude,
            longitude=longitude,
        )


class PlaceAnswer(BaseModel):
    """Where the image was probably taken, by the first ten matches."""

    easting: Metres = None
    northing: Metres = None
    latitude: Degrees = None
    longitude: Degrees = None
    radius: float | None = Field(None, description="metres around it, right in 90 % of cases; null if not calibrated")
    matches: int = Field(description="that agree")

    @staticmethod
    def of(place: Place) -> "PlaceAnswer":
        """The answer for a place."""
        (easting, northing), (latitude, longitude) = (pair or (None, None) for pair in (place.position, place.degrees))
        return PlaceAnswer(
            easting=easting,
            northing=northing,
            latitude=latitude,
            longitude=longitude,
            radius=place.radius,
            matches=place.matches,
        )


class SearchAnswer(BaseModel):
    """accepted: whether the first match is near enough; null without a threshold. max_distance: the threshold."""

    accepted: bool | None = Field(description="false: an unknown place; null: no threshold is known", examples=[True])
    max_distance: float | None = Field(description="up to which first matches are accepted", examples=[0.9])
    place: PlaceAnswer | None = Field(description="null: unknown")
    matches: list[MatchAnswer] = Field(description="best first")
    seconds: dict[str, float] = Field(
        description="by part", examples=[{"receive": 0.001, "prepare": 0.012, "describe": 0.9, "search": 0.002}]
    )

    @staticmethod
    def of(found: Found, seconds: dict[str, float], *, show_paths: bool) -> "SearchAnswer":
        """The answer for what a search has found. show_paths: with the folders of files."""
        limit = found.limit
        return SearchAnswer(
            accepted=None if limit is None else bool(found.matches) and found.matches[0].distance <= limit,
            max_distance=limit,
            place=found.place and PlaceAnswer.of(found.place),
            matches=[MatchAnswer.of(i + 1, match, show_paths=show_paths) for i, match in enumerate(found.matches)],
            seconds=seconds,
        )


class AddedAnswer(BaseModel):
    """An image that was added, and is on the disk."""

    id: int = Field(examples=[400])


class HealthAnswer(BaseModel):
    """status: "ok", or "stale" if the index is damaged, or has changed and could not be opened; the log says why."""

    status: str = Field(examples=["ok"])
    images: int = Field(description="in the index", examples=[400])


class ErrorAnswer(BaseModel):
    """What is wrong, what is expected, and what to do."""

    error: str = Field(examples=["The request has no image. Send one as the body, or as a file of a form."])
