"""The ground truth of VPR-Bench (Zaffar et al., IJCV 2021): ground_truth_new.npy, beside the folders query and ref."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.file_names import order_in_sequence
from datasets.layouts import VPR_BENCH_TRUTH
from datasets.npy_files import read_npy
from model.errors import InputError

DATABASE_FOLDER, QUERIES_FOLDER = "ref", "query"
WAY_OUT = "Expected a row for each query, with its number and a list of numbers. Or list pairs with --matches_csv."


def right_images(path: Path, queries: Sequence[str], database: Sequence[str]) -> dict[str, list[str]]:
    """{query: its right database images}, as the file says by numbers from 0 in the order of the names.

    queries, database: the sorted paths of all images in the folders query and ref. Raises InputError if the file cannot
    be read, is not about so many images, or the order of the names is ambiguous.
    """
    for images in (queries, database):
        _check_order(images)
    right: dict[str, list[str]] = {}
    for row in read_npy(path):
        query, numbers = _parse(path, row, most=len(database))
        if not 0 <= query < len(queries) or queries[query] in right:
            raise InputError(
                f"{path}: a row is about query {query}, and {QUERIES_FOLDER} has {len(queries)} images, from 0. "
                f"{WAY_OUT}"
            )
        wrong = [number for number in numbers if not 0 <= number < len(database)]
        if wrong:
            raise InputError(
                f"{path}: query {query} belongs to images such as number {wrong[0]}, and "
                f"{DATABASE_FOLDER} has {len(database)} images, from 0. Check that it is complete."
            )
        right[queries[query]] = [database[number] for number in numbers]
    if len(right) < len(queries):
        raise InputError(f"{path} has {len(right)} rows, and {QUERIES_FOLDER} has {len(queries)} images. {WAY_OUT}")
    return right


def _parse(path: Path, row: Any, *, most: int) -> tuple[int, list[int]]:
    """The number of a query and those of its right images, at most so many, of which one may stand alone."""
    query, numbers = row if isinstance(row, (list, tuple)) and len(row) == 2 else (None, None)
    numbers = numbers if isinstance(numbers, (list, tuple)) else [numbers]
    if type(query) is not int or len(numbers) > most or not all(type(number) is int for number in numbers):
        raise InputError(f"{path} has a row that is not a number and a list of at most {most} numbers. {WAY_OUT}")
    return query, list(numbers)


def _check_order(paths: Sequence[str]) -> None:
    """Raises InputError if images come in another order by their numbers than by their letters."""
    for path, other in zip(paths, sorted(paths, key=order_in_sequence), strict=True):
        if path != other:
            raise InputError(
                f"The order of the images is ambiguous: {path} or {other} comes first. {VPR_BENCH_TRUTH} goes by their "
                "order. Rename them, so that all numbers have the same number of digits."
            )
