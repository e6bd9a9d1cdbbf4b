"""The unified training dataset, from MSLS, Pitts30k and SF-XL, in the GSV-Cities format.

Example: `python -m datasets.unified OUTPUT --msls DIR --pitts30k DIR --sf_xl DIR`.
Run the same command again to continue after an interruption. Existing files are never changed.
"""

from collections.abc import Sequence
from dataclasses import astuple, fields

from datasets.unified.builder import build
from datasets.unified.config import UnifiedConfig
from datasets.unified.planning import CitySummary
from utils.runtime.parser import parse
from utils.runtime.script import cli_main


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises InputError, or OSError, as `build` does."""
    config = parse(UnifiedConfig, __doc__, argv=argv, module="datasets.unified")
    summaries, num_new = build(config)
    print(format_summary(summaries))
    total = sum(summary.groups for summary in summaries)
    print(f"\n{total} cities are complete in {config.output}; {num_new} of them are new.")


def format_summary(summaries: Sequence[CitySummary]) -> str:
    """A table with a line for each source city, and the sums."""
    header = [field.name.replace("_", " ") for field in fields(CitySummary)]
    counts = [astuple(summary) for summary in summaries]
    total = ("total", *(sum(column) for column in list(zip(*counts, strict=True))[1:]))
    rows = [header, *([city, *(f"{number:,}" for number in numbers)] for city, *numbers in [*counts, total])]
    width, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    cells = ([row[0].ljust(width), *map(str.rjust, row[1:], widths)] for row in rows)
    return "\n".join(map("  ".join, cells))


if __name__ == "__main__":
    cli_main(main, when_stopped="run the same command again to continue")
