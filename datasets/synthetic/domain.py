"""What may occur in a city: kinds of buildings, views, light, months and lenses."""

from dataclasses import dataclass
from typing import Any

from model.errors import InputError
from utils.runtime.flags import flag

CHOICES: dict[str, tuple[Any, ...]] = {
    "windows": ("sash", "arched", "ribbon", "shutters", "balcony", "casement"),
    "roofs": ("gable", "stepped", "parapet", "mansard", "hip"),
    "views": ("across", "along", "indoors"),
    "lights": ("noon", "evening", "overcast", "dusk", "night", "rain", "fog", "snow"),
    "months": tuple(range(1, 13)),
    "lenses": ("straight", "fisheye"),
}


def kinds_flag(name: str, help: str, *, default: tuple[str, ...] | None = None) -> Any:
    """A field with some of CHOICES[name], by default all; on the command line in any order."""
    choices = CHOICES[name]
    return flag(
        help,
        type=type(choices[0]),
        nargs="+",
        choices=choices,
        default=default or choices,
        convert=lambda kinds: sorted(kinds, key=choices.index),
    )


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What may occur in a city. By default, all that is outdoors, through a straight lens.

    Raises InputError for an empty choice, an unknown name or a repeated one.
    """

    windows: tuple[str, ...] = kinds_flag("windows", "windows of the buildings")
    roofs: tuple[str, ...] = kinds_flag("roofs", "roofs of the buildings")
    views: tuple[str, ...] = kinds_flag(
        "views",
        "photos look across the street, along it, or along a corridor inside a building",
        default=("across", "along"),
    )
    lights: tuple[str, ...] = kinds_flag("lights", "light and weather outdoors")
    months: tuple[int, ...] = kinds_flag("months", "months of the photos; the leaves depend on them")
    lenses: tuple[str, ...] = kinds_flag(
        "lenses",
        "straight: keeps straight lines straight; fisheye: shows a circle of 150 to 184 degrees",
        default=("straight",),
    )

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(choices):
                given, allowed = (", ".join(map(str, values)) for values in (chosen, choices))
                raise InputError(f"{name} are {given or 'empty'}; give one or more of {allowed}, each once")


DEFAULT_DOMAIN = Domain()
