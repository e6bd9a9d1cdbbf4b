"""The official validation queries of Mapillary Street-Level Sequences (Warburg et al., CVPR 2020), derived from the
CSV files that MSLS publishes.
"""

from pathlib import Path

import numpy as np

from datasets.ground import find_positives
from datasets.msls import read_tables
from datasets.msls_layout import DATABASE, QUERIES, VAL_CITIES
from datasets.protocols.recognition import keys_sha256
from model.errors import InputError

THRESHOLD = 25.0  # metres


def derive_queries(raw: Path, *, expected_sha256: str) -> list[str]:
    """The sorted keys: queries of the subtask "all", without panoramas and those with no database image within 25 m.

    Reads `<raw>/train_val/{cph,sf}/{query,database}/{raw,postprocessed,subtask_index}.csv`. Raises InputError if a file
    or a column is missing, a line cannot be parsed, or the keys are not those with the expected checksum.
    """
    keys: list[str] = []
    for city in VAL_CITIES:
        database, queries = (raw / "train_val" / city / part for part in (DATABASE, QUERIES))
        images, asked = read_tables(database), read_tables(queries, subtasks=("all",))
        chosen = np.flatnonzero(~asked.is_panorama & asked.subtasks[:, 0])
        positives = find_positives(images.utms[~images.is_panorama], asked.utms[chosen], THRESHOLD)
        keys += [asked.keys[i] for i, found in zip(chosen, positives, strict=True) if len(found)]
    if keys_sha256(keys) != expected_sha256:
        raise InputError(
            f"The CSV files in {raw} yield {len(keys)} queries, which are not the official 740 (by their "
            "checksum). Expected the files as MSLS publishes them."
        )
    return sorted(keys)
