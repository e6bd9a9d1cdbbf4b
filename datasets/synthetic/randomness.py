"""Repeatable randomness: every street, place and photo has a random stream of its own."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

PLACES_PER_STREET = 8

Option = TypeVar("Option")


class PlaceId(NamedTuple):
    """Identifies a place. `city` names a training city, or is "val" or "test"; `number` counts from 0 in it. Eight
    places in a row share a street.

    Its random streams do not depend on what was drawn before. `part` separates those of one street or place.
    """

    seed: int
    city: str
    number: int

    def street_stream(self, part: int = 0) -> np.random.Generator:
        """A random stream of the street that the place lies in."""
        return self._stream(0, self.number // PLACES_PER_STREET, part)

    def place_stream(self, part: int = 0) -> np.random.Generator:
        """A random stream of the place."""
        return self._stream(1, self.number, part)

    def photo_stream(self, photo: int) -> np.random.Generator:
        """The random stream of a photo of the place."""
        return self._stream(2, self.number, photo)

    def _stream(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(self.city.encode()), *key])


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of the options, all equally likely."""
    return options[int(rng.random() * len(options))]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from the uniform distribution between low and high."""
    return low + (high - low) * rng.random()
