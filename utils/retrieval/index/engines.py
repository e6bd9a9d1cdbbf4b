"""Search engines that hold a copy of an index, for databases that outgrow one machine."""

import abc
import importlib
from typing import NamedTuple, Protocol, cast

import numpy as np

from utils.retrieval.config import EngineAddress
from utils.retrieval.index.reader import Index, OpenIndex

ENGINES = {"milvus": "utils.integrations.milvus"}  # {scheme of an address: module, an Engine}


class Exported(NamedTuple):
    """What an export has changed: the images that it copied, and those of the copy that it removed."""

    copied: int
    removed: int


class EngineIndex(OpenIndex):
    """An index in a search engine, opened for reading. A method raises InputError if the engine does not answer."""

    @abc.abstractmethod
    def ids_of(self, images: np.ndarray) -> np.ndarray:
        """The ids [n] of images [n], which they have in the folder and keep for ever, int64."""

    @abc.abstractmethod
    def images_of(self, ids: np.ndarray) -> np.ndarray:
        """The images [n] with these ids, int64; -1 where there is none."""

    @abc.abstractmethod
    def has_changed(self) -> bool:
        """Whether it was changed, or removed, since it was opened."""


class Engine(Protocol):
    """A module with these functions. Both raise InputError if the engine cannot be used, or holds something else under
    the address's name.
    """

    def open_index(self, address: EngineAddress) -> EngineIndex:
        """The index at an address. Its images have EnginePositions, and its features may stay in the engine."""

    def export_index(
        self, index: Index, address: EngineAddress, *, append: bool = False, shards: int | None = None
    ) -> Exported:
        """Copies an index; or, with `append`, brings a copy in step with it."""


class EnginePositions(Protocol):
    """Positions [N, 2], or their zones [N], of images that an engine holds, in place of an array of an ImageSet."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: slice | np.ndarray) -> np.ndarray:
        """Reads those of some images."""

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Reads all of them."""


def engine_of(address: EngineAddress) -> Engine:
    """The engine of an address. Its module imports the engine's client when it connects."""
    return cast(Engine, importlib.import_module(ENGINES[address.engine]))
