"""Writes benchmarks/README.md: the text of README.template.md with tables of the measurements in results/.

    python -m benchmarks.readme

In the template, a line "<!-- results: NAME -->" stands for the tables of all files results/*/NAME.json, and a line
"<!-- not shown: NAME -->" states that those files are left out on purpose.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.claims import tables as claims
from benchmarks.common import HEADINGS, RESULTS, Row, markdown_table
from benchmarks.machine import describe
from model.errors import InputError
from utils.runtime.atomic_files import atomic_write
from utils.runtime.flags import ArgumentParser
from utils.runtime.script import cli_main

FOLDER = Path(__file__).parent
TEMPLATE, README = FOLDER / "README.template.md", FOLDER / "README.md"
SHOWN = re.compile(r"^<!-- results: (\w+) -->$", re.MULTILINE)
NOT_SHOWN = re.compile(r"^<!-- not shown: (\w+) -->\n\n?", re.MULTILINE)
LIBRARIES = {"torch": "PyTorch", "onnxruntime": "onnxruntime"}  # whose versions are shown; the JSON has others
HEADER = "<!-- Written by `python -m benchmarks.readme`. Edit README.template.md instead. -->\n\n"


def render(template: str, results: Path = RESULTS) -> str:
    """The page. Raises InputError if a table has no measurements, or if measurements are neither shown nor left out."""
    measured = {path.stem for path in results.glob("*/*.json")}
    shown, left_out = set(SHOWN.findall(template)), set(NOT_SHOWN.findall(template))
    if missing := measured ^ (shown | left_out):
        names = ", ".join(sorted(missing))
        raise InputError(f"{TEMPLATE.name} and {results} must name the same results. Only one of them has: {names}.")
    return HEADER + SHOWN.sub(lambda match: tables(match[1], results), NOT_SHOWN.sub("", template))


def tables(name: str, results: Path) -> str:
    """The tables of results/*/NAME.json. Files with the same title share one, in which lines of machines alternate."""
    paths = sorted(results.glob(f"*/{name}.json"))
    if name == claims.NAME:
        return "\n\n".join(claims.tables(json.loads(path.read_text())) for path in paths)
    titles: dict[str, dict[str, Any]] = {}
    for path in paths:
        result = json.loads(path.read_text())
        titles.setdefault(result["title"], {})[path.parent.name] = result
    return "\n\n".join(one_table(title, by_kind) for title, by_kind in titles.items())


def one_table(title: str, by_kind: dict[str, Any]) -> str:
    """A table with its title, the machines above it and its notes below it. by_kind: {kind of machine: result}."""
    machines = "\n".join(f"* `{kind}`: {conditions(result)}" for kind, result in by_kind.items())
    if "baseline" in next(iter(by_kind.values()))["rows"][0]:
        rows, notes = comparison(by_kind)
    else:
        rows, notes = [labelled(row, kind) for kind, result in by_kind.items() for row in result["rows"]], []
    if len(by_kind) == 1:
        rows = [{heading: value for heading, value in row.items() if heading != "machine"} for row in rows]
    parts = [f"**{title}**", machines, markdown_table(rows), "\n".join(f"* {note}" for note in notes)]
    return "\n\n".join(filter(None, parts))


def conditions(result: dict[str, Any]) -> str:
    """On what, when and how a result was measured."""
    machine = result["machine"]
    versions = [f"{name} {machine['versions'][key]}" for key, name in LIBRARIES.items() if key in machine["versions"]]
    cores = f"{machine['threads']} of {machine['cores']} cores"
    text = "; ".join([describe(machine), cores, *versions, result["date"][:10]])
    return f"{text}. {result.get('remark', '')}".strip()


def comparison(by_kind: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of benchmarks that compare a baseline and ours, and their notes. Rows of the same name are adjacent.

    Raises InputError if a benchmark has two rows of the same name.
    """
    measured = [(kind, Row(**row)) for kind, result in by_kind.items() for row in result["rows"]]
    if len({(kind, row.name) for kind, row in measured}) < len(measured):
        raise InputError(
            f"Rows of the same name in the results for {', '.join(by_kind)}. Each needs a name of its own."
        )
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for name in dict.fromkeys(row.name for _, row in measured):
        same = [(kind, row) for kind, row in measured if row.name == name]
        rows += [labelled(dict(zip(HEADINGS, row.cells(), strict=True)), kind) for kind, row in same]
        notes += notes_of(name, same)
    return rows, notes


def labelled(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """The row with the kind of machine in its second column. Two spaces that indent the first become wider ones."""
    (heading, first), *others = row.items()
    return {heading: first.replace("  ", "&emsp;"), "machine": f"`{kind}`", **dict(others)}


def notes_of(name: str, rows: list[tuple[str, Row]]) -> Iterator[str]:
    """The notes on a row of several machines: once if they are the same on all."""
    notes = {kind: row.note for kind, row in rows if row.note}
    if len(set(notes.values())) <= 1:
        notes = dict(list(notes.items())[:1])
    for kind, note in notes.items():
        yield f"*{name.strip()}*{f' (`{kind}`)' if len(notes) > 1 else ''}: {note}"


def main() -> None:
    ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    text = render(TEMPLATE.read_text())
    with atomic_write(README) as file:
        file.write(text)


if __name__ == "__main__":
    cli_main(main)
