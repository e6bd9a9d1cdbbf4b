"""Text files that a user writes: CSV files, and lists with one entry per line."""

import csv
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Generic, NamedTuple, TextIO, TypeVar

from model.errors import InputError

MAX_QUOTED = 200  # characters
NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII)
T = TypeVar("T")


def number_of(text: str | None) -> float:
    """The number that a text states, NaN if it states none.

    float() would accept more: 1_000, digits of other scripts, and the words nan and inf.
    """
    return float(text) if text and NUMBER.fullmatch(text) else math.nan


class NameTable(Generic[T]):
    """Values by the names of files, as users list them.

    A name that is not in the table as it is written is found with other spaces around it, or in another Unicode form:
    macOS may store an accented letter as two characters (NFD) where others have one (NFC).
    """

    def __init__(self, pairs: Iterable[tuple[str, T]]) -> None:
        self._values: dict[str, set[T]] = {}
        for name, value in pairs:
            self._values.setdefault(name, set()).add(value)

    def find(self, *names: str) -> set[T]:
        """The values of the names of one file; none if the table lacks them."""
        found = set[T]().union(*(self._values.get(name, ()) for name in names))
        return found or found.union(*(self._plain.get(_plain_form(name), ()) for name in names))

    @cached_property
    def _plain(self) -> dict[str, set[T]]:
        plain: dict[str, set[T]] = {}
        for name, values in self._values.items():
            plain.setdefault(_plain_form(name), set()).update(values)
        return plain


def _plain_form(name: str) -> str:
    """Without spaces around the parts of a path, and composed."""
    return unicodedata.normalize("NFC", "/".join(part.strip() for part in name.split("/")))


class CsvRow(NamedTuple):
    """A row: its file, the number of its first line, from 1, and {column: value}, None where the row is too short."""

    path: Path
    line: int
    values: dict[str, str | None]

    def error(self, problem: str) -> InputError:
        """What is wrong with the row, after its file and line."""
        return InputError(f"{self.path}, line {self.line}: {problem}")

    def text(self, column: str) -> str:
        """The value of a column. Raises InputError if there is none."""
        value = self.values[column]
        if not value:
            raise self.error(f"the column {column} is empty.")
        return value

    def number(self, column: str, limits: tuple[float, float] | None = None) -> float:
        """The value of a column. Raises InputError if it is not a finite number within the limits, both included."""
        low, high = limits or (-math.inf, math.inf)
        text = self.values[column]
        value = number_of(text)
        if not (math.isfinite(value) and low <= value <= high):
            expected = f" from {low:g} to {high:g}" if limits else ""
            raise self.error(f"{column} is {shorten(repr(text))}. Expected a number{expected}.")
        return value


def read_csv(
    path: Path, columns: Sequence[str] = (), *, exact: bool = False, file_names: bool = False
) -> tuple[list[str], Iterator[CsvRow]]:
    """The columns of a CSV file, in lower case, and its rows.

    columns: those that it must have. exact: each row must have as many values as the header; otherwise it may have
    fewer, but not more, as with decimal commas. file_names: values are the names of files, which may begin with a
    space, and contain bytes that are not UTF-8 (read as surrogates). Raises InputError, which names the line, for such
    bytes otherwise, for NUL, for a column that appears twice, and for quotes or fields that are not CSV.
    """
    rows = _csv_rows(path, file_names)
    _, header = next(rows, (1, []))
    header = [name.strip().lower() for name in header]
    missing = [column for column in columns if column not in header]
    if missing:
        found = shorten(", ".join(header)) or "none"
        raise InputError(f"{path} lacks the columns {', '.join(missing)}. It has: {found}.")
    repeated = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    if repeated:
        raise InputError(f"{path} has the column {shorten(', '.join(repeated))} more than once. Keep one of each.")
    blank: dict[str, str | None] = dict.fromkeys(header)

    def read() -> Iterator[CsvRow]:
        for line, values in rows:
            given: dict[str, str | None] = dict(zip(header, values, strict=False))
            row = CsvRow(path, line, given if len(values) >= len(header) else blank | given)
            if len(values) > len(header) or (exact and len(values) < len(header)):
                problem = f"{len(values)} values. Expected {len(header)}, separated by commas, and decimal points."
                raise row.error(problem)
            yield row

    return header, read()


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not blank. Bytes that are not UTF-8 are read as surrogates.

    Raises InputError for NUL, which UTF-16 contains.
    """
    with _open(path) as file:
        lines = _checked_lines(path, file, "text")
        return [line.removesuffix("\n") for line in lines if line.strip()]


def shorten(text: str) -> str:
    """A value as a message quotes it: a broken file may have the rest of it in one value."""
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def _open(path: Path, newline: str | None = None) -> TextIO:
    """The text, without a byte order mark at its start."""
    return open(path, newline=newline, encoding="utf-8-sig", errors="surrogateescape")


def _csv_rows(path: Path, file_names: bool) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, values) of each row, without empty rows."""
    with _open(path, newline="") as file:
        lines = _checked_lines(path, file, "CSV", other_bytes=file_names)
        reader = csv.reader(lines, skipinitialspace=not file_names, strict=True)
        line = 1
        try:
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: {error}. Expected a CSV file in UTF-8. Check its quotes.") from None


def _checked_lines(path: Path, file: TextIO, kind: str, other_bytes: bool = True) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            problem = "a NUL byte"
        elif not (other_bytes or line.isascii() or _is_utf8(line)):
            problem = "bytes that are not UTF-8"
        else:
            yield line
            continue
        raise InputError(
            f"{path}, line {number}: {problem}. Expected a {kind} file in UTF-8. Save it in that encoding."
        )


def _is_utf8(line: str) -> bool:
    """Whether a line read with surrogateescape has none of its surrogates."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True
