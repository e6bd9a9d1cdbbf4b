"""Predictions of an evaluation for the evaluation of MSLS: lines of keys."""

import re
from collections.abc import Sequence
from pathlib import Path

from datasets.file_names import image_key
from datasets.msls import published_key
from model.errors import InputError
from utils.integrations.pairs import Pairs
from utils.runtime.atomic_files import atomic_write

MSLS_KEY = re.compile(r"[A-Za-z0-9_-]+")


def export_msls(queries: Sequence[Pairs], output: Path) -> None:
    """Writes what MSLS's evaluation code reads: lines of a query's key and the keys of its predictions. The server that
    took them is gone; the ground truth of its test set is public since 2026-04-13.

    Raises InputError if the name of an image holds no Mapillary key, or two images have the same.
    """
    images: dict[str, str] = {}  # {key: path}

    def key_of(path: str) -> str:
        key = published_key(path) or image_key(path)
        if not MSLS_KEY.fullmatch(key):
            raise InputError(
                f"No Mapillary key in the file name {path}. Expected a file of MSLS, as it is published, or as "
                "VPR-datasets-downloader names it: @<6 fields>@<key>@...@.jpg. Use export.py pairs for other datasets."
            )
        if images.setdefault(key, path) != path:
            raise InputError(
                f"{images[key]} and {path} have the same key, {key}. Expected a dataset in which keys are unique, "
                "such as MSLS. Use export.py pairs."
            )
        return key

    with atomic_write(output, interruptible=True, new=True) as file:
        for query, predictions in queries:
            file.write(" ".join(map(key_of, [query, *predictions])) + "\n")
