"""Images that two sets have in common: one file in both, under one name or two, or files of equal content."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

SAMPLE_BYTES = 4096
ABSENT = -1  # in place of the size of a file that cannot be asked


class SharedImages(NamedTuple):
    """Of images that were compared with a database: the ascending indices [n], int64, of those that are in it too, and
    how many of the database's files are absent, so that nothing can be compared with them.
    """

    indices: np.ndarray
    absent: int


def find_shared(paths: Sequence[str | Path], database: Sequence[str | Path]) -> SharedImages:
    """Which of the images are in the database too, by the content of their files.

    Files of one size are compared by some bytes in their middle, and where these are equal by their SHA-256. Of all
    other files, only the size is asked for: some microseconds each. Empty files are no images, and equal none.
    """
    ours, theirs = _sizes(paths), _sizes(database)
    absent = int((theirs == ABSENT).sum())
    sizes = np.intersect1d(ours[ours > 0], theirs)
    mine, others = np.flatnonzero(np.isin(ours, sizes)), np.flatnonzero(np.isin(theirs, sizes))
    for content in (_middle, _sha256):
        own_keys, other_keys = _keys(paths, mine, content), _keys(database, others, content)
        both = {*own_keys.values()} & {*other_keys.values()} - {None}
        mine, others = (
            np.array([i for i, key in keys.items() if key in both], np.int64) for keys in (own_keys, other_keys)
        )
    return SharedImages(mine, absent)


def _sizes(paths: Sequence[str | Path]) -> np.ndarray:
    """[N] int64, in bytes, or ABSENT."""
    return np.fromiter((_size(path) for path in paths), np.int64, len(paths))


def _size(path: str | Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return ABSENT


def _keys(
    paths: Sequence[str | Path], indices: np.ndarray, content: Callable[[str | Path], bytes]
) -> dict[int, bytes | None]:
    """{index: what the function gives for that file, None if it cannot be read}."""
    keys: dict[int, bytes | None] = {}
    for i in indices.tolist():
        try:
            keys[i] = content(paths[i])
        except OSError:  # reported when the image is read
            keys[i] = None
    return keys


def _middle(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(os.fstat(file.fileno()).st_size // 2)
        return file.read(SAMPLE_BYTES)


def _sha256(path: str | Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
