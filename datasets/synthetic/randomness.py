"""Repeatable randomness: every street, place and photo has a random stream of its own."""

import zlib
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeVar

import numpy as np

PLACES_PER_STREET = 8

Option = TypeVar("Option")


class Purpose(IntEnum):
    """What a random stream is for."""

    STREET = 0
    PLACE = 1
    PHOTO = 2


class PlaceId(NamedTuple):
    """Identifies a place. `city` names a training city, or is "val" or "test"; `number` counts from 0 in it."""

    seed: int
    city: str
    number: int

    @property
    def street(self) -> int:
        """Number of the street that the place lies in. Eight places in a row share a street."""
        return self.number // PLACES_PER_STREET


def random_stream(seed: int, city: str, *, purpose: Purpose, number: int, part: int = 0) -> np.random.Generator:
    """The random stream of street, place or photo series `number`. It does not depend on what was drawn before.

    `part` separates the streams that serve the same purpose; of a photo series it is the number of the photo.
    """
    return np.random.default_rng([seed, zlib.crc32(city.encode()), int(purpose), number, part])


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of the options, all equally likely."""
    return options[int(rng.random() * len(options))]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from the uniform distribution between low and high."""
    return low + (high - low) * rng.random()
