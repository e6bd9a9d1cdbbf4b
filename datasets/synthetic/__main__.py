"""The command that makes a procedural city.

Example: `python -m datasets.synthetic OUTPUT --places 400 --val_places 60 --test_places 100 --seed 0`.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

from datasets.synthetic.city import contact_sheet, make_city
from datasets.synthetic.config import CITIES, CityConfig
from datasets.synthetic.domain import CHOICES, Domain
from model.errors import InputError
from utils.runtime.flags import ArgumentParser
from utils.runtime.script import cli_main

DESCRIPTION = "A procedural city of street places, in the GSV-Cities format and in the benchmark format."
COUNTS = {
    "places": "training places, over all cities",
    "val_places": "places of the benchmark's val split",
    "test_places": "places of the benchmark's test split",
    "photos_per_place": "photos of each training place",
    "database_photos": "database photos of each benchmark place",
    "queries": "queries of each benchmark place",
}


def build_parser() -> ArgumentParser:
    """The parser of the command line. Its defaults are those of CityConfig."""
    default = CityConfig()
    parser = ArgumentParser(
        prog="python -m datasets.synthetic",
        description=DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("output", type=Path, help="new or empty folder; gets gsv_cities/ and synthetic/")
    for name, subject in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name), help=subject)
    parser.add_argument(
        "--cities",
        type=int,
        default=len(default.cities),
        choices=range(1, len(CITIES) + 1),
        metavar="N",
        help=f"training cities, 1 to {len(CITIES)}",
    )
    parser.add_argument("--size", type=int, nargs=2, default=default.size, metavar=("WIDTH", "HEIGHT"), help="pixels")
    parser.add_argument("--seed", type=int, default=default.seed, help="0 or more; the same seed gives the same bytes")
    for name, choices in CHOICES.items():
        parser.add_argument(
            f"--{name}",
            type=type(choices[0]),
            nargs="+",
            default=getattr(default.domain, name),
            choices=choices,
            metavar="KIND",
            help=f"{name} that may occur, of {', '.join(map(str, choices))}",
        )
    parser.add_argument("--contact_sheet", type=Path, metavar="FILE", help="also draw eight places in one picture")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises InputError if the output cannot be written, or a process that draws was killed."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        kinds = {name: tuple(sorted(getattr(args, name), key=choices.index)) for name, choices in CHOICES.items()}
        config = CityConfig(
            cities=CITIES[: args.cities],
            size=tuple(args.size),
            seed=args.seed,
            domain=Domain(**kinds),
            **{name: getattr(args, name) for name in COUNTS},
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        make_city(args.output, config)
    except BrokenExecutor as error:
        raise InputError(f"A process that draws was killed, probably because memory ran out. {error}") from error
    if args.contact_sheet:
        try:
            contact_sheet(args.contact_sheet, config)
        except (OSError, ValueError) as error:
            raise InputError(f"Cannot write {args.contact_sheet}: {error}.") from error


if __name__ == "__main__":
    cli_main(main, when_stopped="nothing was written")
