"""The command that builds the unified training dataset.

Example: `python -m datasets.unified OUTPUT --msls DIR --pitts30k DIR --sf_xl DIR`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path

from datasets.interruption import exit_status, run_command
from datasets.unified.builder import build
from datasets.unified.config import CITIES, UnifiedConfig
from datasets.unified.planning import CitySummary
from model.errors import InputError

DESCRIPTION = "The unified training dataset, from MSLS, Pitts30k and SF-XL, in the GSV-Cities format."
EPILOG = "Run the same command again to continue after an interruption. Existing files are never changed."


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line. Its defaults are those of UnifiedConfig."""
    parser = argparse.ArgumentParser(prog="python -m datasets.unified", description=DESCRIPTION, epilog=EPILOG)
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
    transfer.add_argument("--copy", action="store_true", help="copy the images (default)")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit status: 0, 2 after an error, 130 after Ctrl-C, 143 after another signal."""
    args = build_parser().parse_args(argv)
    try:
        config = UnifiedConfig(
            output=args.output,
            msls=args.msls,
            pitts30k=args.pitts30k,
            sf_xl=args.sf_xl,
            cities=tuple(args.cities),
            symlink=args.symlink,
            workers=args.workers,
            allow_name_collisions=args.allow_name_collisions,
        )
        summaries, num_new = build(config)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return exit_status(error)
    print(format_summary(summaries))
    total = sum(summary.groups for summary in summaries)
    print(f"\n{total} cities are complete in {config.output}; {num_new} of them are new.")
    return 0


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
    run_command(main)
