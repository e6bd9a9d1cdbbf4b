"""A set of images and where they were taken."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.zones import degrees_of_utm


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images: their paths, and their positions in two forms, of which an image may have one, both or none.

    utms [N, 2], float64: easting and northing in metres, as a dataset gives them; NaN where unknown. zones [N], int8:
    the UTM zones of these, as in datasets.zones; 0 where unknown. degrees [N, 2], float64: latitude and longitude, WGS
    84; NaN where unknown. Those of a search engine are no arrays, but read like them: see
    utils.retrieval.index.engines.
    """

    paths: Sequence[str | Path]
    utms: np.ndarray
    zones: np.ndarray
    degrees: np.ndarray

    @staticmethod
    def without_positions(paths: Sequence[str | Path]) -> "ImageSet":
        """Images whose positions are unknown."""
        return ImageSet.at_degrees(paths, np.full((len(paths), 2), np.nan))

    @staticmethod
    def at_degrees(paths: Sequence[str | Path], degrees: np.ndarray) -> "ImageSet":
        """Images at latitudes and longitudes [N, 2]."""
        return ImageSet(paths, np.full((len(paths), 2), np.nan), zones=np.zeros(len(paths), np.int8), degrees=degrees)

    @staticmethod
    def at_utms(paths: Sequence[str | Path], utms: np.ndarray, zones: np.ndarray | None = None) -> "ImageSet":
        """Images at metres [N, 2], and at the latitudes and longitudes of these where zones [N] are known."""
        zones = np.zeros(len(paths), np.int8) if zones is None else zones
        return ImageSet(paths, utms, zones=zones, degrees=degrees_of_utm(utms, zones))

    @staticmethod
    def joined(parts: Iterable["ImageSet"]) -> "ImageSet":
        """The images of several sets, one after the other."""
        sets = list(parts)
        return ImageSet(
            [path for part in sets for path in part.paths],
            np.concatenate([part.utms for part in sets]),
            zones=np.concatenate([part.zones for part in sets]),
            degrees=np.concatenate([part.degrees for part in sets]),
        )

    @property
    def is_located(self) -> np.ndarray:
        """Whether the position of each image is known in one form at least, bool [N]."""
        return np.isfinite(self.utms).all(axis=1) | np.isfinite(self.degrees).all(axis=1)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, selection: slice | np.ndarray) -> "ImageSet":
        indices = range(len(self))[selection] if isinstance(selection, slice) else selection
        paths = [self.paths[i] for i in indices]
        return ImageSet(paths, self.utms[selection], zones=self.zones[selection], degrees=self.degrees[selection])
