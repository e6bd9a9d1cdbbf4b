"""What the file names of Mapillary Street-Level Sequences (MSLS) tell, as VPR-datasets-downloader writes them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

KEY_FIELD, NOTE_FIELD = 7, 14  # of the file name, split at "@"
NOTE = re.compile(r"(?P<light>day|night)_(?P<view>forward|backward|sideways)_(?P<city>.+)")


def image_key(path: str | Path) -> str:
    """The Mapillary key of an image; "" if its name holds none."""
    return _field(path, KEY_FIELD)


def mapillary_conditions(paths: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """{condition: indices of the images}: day and night, direction of view, and city, as the names' notes say.

    Empty if a name has no such note.
    """
    notes = [NOTE.fullmatch(_field(path, NOTE_FIELD)) for path in paths]
    conditions: dict[str, list[int]] = {}
    for group in ("light", "view", "city"):
        for value in sorted({note[group] for note in notes if note}):
            conditions[value] = [i for i, note in enumerate(notes) if note and note[group] == value]
    return {name: np.array(indices) for name, indices in conditions.items()} if all(notes) else {}


def _field(path: str | Path, number: int) -> str:
    fields = os.path.basename(path).split("@")
    return fields[number] if len(fields) > number + 1 else ""  # the last field is the suffix
