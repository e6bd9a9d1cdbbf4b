"""The official validation queries of Mapillary Street-Level Sequences (Warburg et al., CVPR 2020), derived from the
CSV files that MSLS publishes.
"""

from pathlib import Path

import numpy as np

from datasets.ground import find_positives
from datasets.protocols.recognition import keys_sha256
from model.errors import InputError
from utils.runtime.text_files import CsvRow, read_csv

CITIES = ("cph", "sf")
THRESHOLD = 25.0  # metres


def derive_queries(raw: Path, *, expected_sha256: str) -> list[str]:
    """The sorted keys: queries of the subtask "all", without panoramas and those with no database image within 25 m.

    Reads `<raw>/train_val/{cph,sf}/{query,database}/{raw,postprocessed,subtask_index}.csv`. Raises InputError if a file
    or a column is missing, a line cannot be parsed, or the keys are not those with the expected checksum.
    """
    keys: list[str] = []
    for city in CITIES:
        database, queries = (raw / "train_val" / city / part for part in ("database", "query"))
        query_keys, query_utms = _read_images(queries, subtask="all")
        _, database_utms = _read_images(database)
        positives = find_positives(database_utms, query_utms, THRESHOLD)
        keys += [key for key, found in zip(query_keys, positives, strict=True) if len(found)]
    if keys_sha256(keys) != expected_sha256:
        raise InputError(
            f"The CSV files in {raw} yield {len(keys)} queries, which are not the official 740 (by their "
            "checksum). Expected the files as MSLS publishes them."
        )
    return sorted(keys)


def _read_images(folder: Path, subtask: str | None = None) -> tuple[list[str], np.ndarray]:
    """Keys and positions [N, 2] of the images of a folder that are no panoramas (and belong to the subtask)."""
    rows = _read_rows(folder / "raw.csv", ("key", "pano"))
    positions = _read_rows(folder / "postprocessed.csv", ("key", "easting", "northing"))
    subtasks = _read_rows(folder / "subtask_index.csv", (subtask,)) if subtask else rows
    if not len(rows) == len(positions) == len(subtasks):
        raise InputError(
            f"The CSV files in {folder} have {len(rows)}, {len(positions)} and {len(subtasks)} rows. Expected the same "
            "number of rows in each."
        )
    keys, utms = [], []
    for row, position, member in zip(rows, positions, subtasks, strict=True):
        key = row.text("key")
        if position.values["key"] != key:
            raise position.error(f"the key is {position.values['key']}, but {key} in raw.csv.")
        if _is_true(row, "pano") or (subtask and not _is_true(member, subtask)):
            continue
        utms.append((position.number("easting"), position.number("northing")))
        keys.append(key)
    return keys, np.array(utms).reshape(-1, 2)


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[CsvRow]:
    if not path.is_file():
        raise InputError(
            f"No file {path}. Expected MSLS as it is published, not converted: "
            "<raw>/train_val/{cph,sf}/{query,database}."
        )
    return list(read_csv(path, columns)[1])


def _is_true(row: CsvRow, column: str) -> bool:
    return row.text(column).strip().lower() == "true"
