"""What may occur in a city: kinds of buildings, views, light, months and lenses."""

from dataclasses import dataclass
from typing import Any

CHOICES: dict[str, tuple[Any, ...]] = {
    "windows": ("sash", "arched", "ribbon", "shutters", "balcony", "casement"),
    "roofs": ("gable", "stepped", "parapet", "mansard", "hip"),
    "views": ("across", "along", "indoors"),
    "lights": ("noon", "evening", "overcast", "dusk", "night", "rain", "fog", "snow"),
    "months": tuple(range(1, 13)),
    "lenses": ("straight", "fisheye"),
}


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What may occur in a city. By default, all that is outdoors, through a straight lens.

    windows, roofs: of the buildings. views: photos look along the street, across it, or along a corridor inside a
    building. lights: light and weather outdoors. months: 1 to 12, of the photos; the leaves depend on them. lenses:
    "straight" keeps straight lines straight, "fisheye" shows a circle of 150 to 184 degrees. Raises ValueError for an
    empty choice, an unknown name or a repeated one.
    """

    windows: tuple[str, ...] = CHOICES["windows"]
    roofs: tuple[str, ...] = CHOICES["roofs"]
    views: tuple[str, ...] = ("across", "along")
    lights: tuple[str, ...] = CHOICES["lights"]
    months: tuple[int, ...] = CHOICES["months"]
    lenses: tuple[str, ...] = ("straight",)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(choices):
                given, allowed = (", ".join(map(str, values)) for values in (chosen, choices))
                raise ValueError(f"{name} are {given or 'empty'}; give one or more of {allowed}, each once")


DEFAULT_DOMAIN = Domain()
