"""Which protocol a benchmark follows."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.file_names import image_key
from datasets.image_set import ImageSet
from datasets.msls import published_key
from datasets.protocols.table import PROTOCOLS, Protocol

SEASONS = ("spring", "summer", "fall", "winter")


@dataclass(frozen=True)
class Recognition:
    """The protocol of a benchmark, or None; `reason`: what keeps it from being one whose counts or name it has;
    by_counts: whether nothing but the counts tells the protocol, so that other images may have them too.

    As text it is the name or the reason, and empty for images of one's own.
    """

    protocol: Protocol | None
    reason: str = ""
    by_counts: bool = False

    @property
    def name(self) -> str | None:
        """The protocol's name, after "looks like" if the counts alone tell it."""
        if self.protocol is None:
            return None
        return f"looks like {self.protocol.name}" if self.by_counts else self.protocol.name

    def __str__(self) -> str:
        if self.protocol is None:
            return f"none known: {self.reason}" if self.reason else ""
        details = [] if self.protocol.frames is not None else [f"{self.protocol.threshold:g} m"]
        details += [] if self.protocol.verified else ["counts unverified"]
        details += ["by its counts alone"] if self.by_counts else []
        return f"{self.name} ({', '.join(details)})" if details else str(self.name)


def recognise(database: ImageSet, queries: ImageSet, threshold: float, names: Sequence[str | None] = ()) -> Recognition:
    """The protocol with these counts, file names, positions and threshold in metres.

    names: of the dataset, its split and the folder of queries, as far as known; they tell which counts to expect.
    """
    reasons = []
    for protocol in PROTOCOLS:
        if _matches(len(database), protocol.database) and _matches(len(queries), protocol.queries):
            reason = _difference(protocol, database, queries, threshold=threshold)
            if not reason:
                is_told = (
                    protocol.keys_sha256 or protocol.frames is not None or protocol in _protocols_named(*names[:1])
                )
                return Recognition(protocol, by_counts=not is_told)
            reasons.append(f"counts of {protocol.name}, but {reason}")
    named = [] if reasons else _protocols_named(*names)
    if named:
        expected = " or ".join(f"{_count(p.database)} and {_count(p.queries)} ({p.name})" for p in named)
        reasons = [f"{len(database):,} database images and {len(queries):,} queries found, expected are {expected}"]
    return Recognition(None, "; ".join(reasons))


def keys_sha256(keys: Sequence[str]) -> str:
    """The checksum by which a set of Mapillary keys is recognised: of the sorted keys, joined by line breaks."""
    return hashlib.sha256("\n".join(sorted(keys)).encode(errors="surrogateescape")).hexdigest()


def _protocols_named(dataset: str | None = None, *parts: str | None) -> list[Protocol]:
    """Those of a dataset, such as "sf_xl", and of these parts of it, as far as their names tell them apart."""
    key = _letters(dataset or "")
    found = [p for p in PROTOCOLS if len(key) >= len("msls") and _letters(p.name).startswith(key)]
    for part in parts:
        word = (part or "").removeprefix("queries_")
        found = [p for p in found if word in p.name.lower().replace(",", "").split()] or found
    return found


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _count(expected: int | range) -> str:
    return f"{expected:,}" if isinstance(expected, int) else f"{expected[0]:,} to {expected[-1]:,}"


def _matches(count: int, expected: int | range) -> bool:
    return count in expected if isinstance(expected, range) else count == expected


def _difference(protocol: Protocol, database: ImageSet, queries: ImageSet, *, threshold: float) -> str:
    """What distinguishes a benchmark with the protocol's counts from the protocol; "" if nothing does."""
    if protocol.frames is None and threshold != protocol.threshold:
        return f"with {threshold:g} m instead of {protocol.threshold:g} m"
    if protocol.keys_sha256:
        keys = [published_key(path) or image_key(path) for path in queries.paths]
        if keys_sha256(keys) != protocol.keys_sha256:
            return "other queries"
    if protocol.frames is not None:
        frames = _frame_tolerance(database.utms, threshold)
        if frames != protocol.frames:
            found = (
                "positions that do not form a sequence"
                if frames is None
                else f"within {frames} frame{'' if frames == 1 else 's'}"
            )
            return f"{found} instead of within {protocol.frames}"
    parts = (("database", database), ("queries", queries))
    for (which, images), season in zip(parts, protocol.seasons or (), strict=False):
        others = _seasons(images) - {season}
        if others:
            return f"{which} of {', '.join(sorted(others))} instead of {season}"
    return ""


def _frame_tolerance(utms: np.ndarray, threshold: float) -> int | None:
    """How many frames of a sequence with even distances lie within the threshold. None if it is not such a sequence."""
    steps = np.diff(utms[np.lexsort(utms.T)], axis=0)
    lengths = np.hypot(*steps.T)
    spacing = float(np.median(lengths)) if len(lengths) else 0.0
    if not spacing > 0 or np.abs(lengths - spacing).max() > 0.05 * max(spacing, 1):
        return None
    return int(threshold / spacing + 1e-6)


def _seasons(images: ImageSet) -> set[str]:
    """The seasons that the first and the last file name mention, the folder's name included."""
    ends = [images.paths[0], images.paths[-1]]
    texts = ["/".join(str(path).lower().split(os.sep)[-2:]) for path in ends]
    return {season for season in SEASONS for text in texts if season in text}
