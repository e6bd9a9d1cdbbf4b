"""Search engines that hold a copy of an index, for databases that outgrow one machine.

An engine is a module of this package with two functions:

    open_index(address: EngineAddress) -> OpenIndex
        An index for evaluations and searches. Its `features()` holds objects that stand in for arrays. images.paths:
        a sequence of str; images.utms: [N, 2], with len(), `[indices]` and conversion to an array; codes: a
        `utils.retrieval.search.RemoteCodes`; descriptors: [N, dim], with shape and `[indices]`.
    export_index(index: Index, address: EngineAddress, *, append: bool, shards: int | None) -> int
        Copies an index into the engine, and returns the number of images that it copied.

Both raise InputError if the engine cannot be used, or holds something else under that name.
"""

import importlib
from typing import Any

from utils.retrieval.config import EngineAddress


def engine_of(address: EngineAddress) -> Any:
    """The module of an address's engine. It imports the engine's client when it connects."""
    return importlib.import_module(f"{__name__}.{address.engine}")
