"""The command that builds the unified training dataset.

Example: `python -m datasets.unified OUTPUT --msls DIR --pitts30k DIR --sf_xl DIR`.
"""

from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path

from datasets.unified.builder import build
from datasets.unified.config import CITIES, UnifiedConfig
from datasets.unified.planning import CitySummary
from utils.runtime.flags import ArgumentParser
from utils.runtime.script import cli_main

DESCRIPTION = "The unified training dataset, from MSLS, Pitts30k and SF-XL, in the GSV-Cities format."
EPILOG = "Run the same command again to continue after an interruption. Existing files are never changed."


def build_parser() -> ArgumentParser:
    """The parser of the command line. It fills the fields of UnifiedConfig, whose defaults are its own."""
    parser = ArgumentParser(prog="python -m datasets.unified", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("output", type=Path, help="gets Dataframes/ and Images/; may hold GSV-Cities already")
    for flag, content in (
        ("msls", "train_val/<city>/{database,query}/{raw.csv,images/}"),
        ("pitts30k", "images/train/{database,queries}/"),
        ("sf_xl", "images/train/"),
    ):
        parser.add_argument(f"--{flag}", type=Path, metavar="DIR", help=f"folder that contains {content}")
    parser.add_argument(
        "--cities",
        nargs="+",
        default=CITIES,
        metavar="CITY",
        help=f"what to build (default: everything); some of: {', '.join(CITIES)}",
    )
    transfer = parser.add_mutually_exclusive_group()
    text = "copy the images (default)"
    transfer.add_argument("--copy", dest="symlink", action="store_false", default=False, help=text)
    transfer.add_argument("--symlink", action="store_true", help="link to the images, which must then stay in place")
    parser.add_argument(
        "--workers",
        type=int,
        default=UnifiedConfig.workers,
        metavar="N",
        help="threads that copy (default: %(default)s)",
    )
    parser.add_argument(
        "--allow_name_collisions",
        action="store_true",
        help="as the original builder: list every image of SF-XL, even where a later one replaces its file",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises InputError, or OSError, as `build` does."""
    config = UnifiedConfig(**vars(build_parser().parse_args(argv)))
    summaries, num_new = build(config)
    print(format_summary(summaries))
    total = sum(summary.groups for summary in summaries)
    print(f"\n{total} cities are complete in {config.output}; {num_new} of them are new.")


def format_summary(summaries: Sequence[CitySummary]) -> str:
    """A table with a line for each source city, and the sums."""
    columns = [field.name.replace("_", " ") for field in fields(CitySummary)]
    counts = [astuple(summary) for summary in summaries]
    total = ("total", *(sum(column) for column in list(zip(*counts, strict=True))[1:]))
    lines = [columns, *([row[0], *(f"{count:,}" for count in row[1:])] for row in [*counts, total])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


if __name__ == "__main__":
    cli_main(main, when_stopped="run the same command again to continue")
