"""The command that makes a procedural city.

Example: `python -m datasets.synthetic OUTPUT --places 400 --val_places 60 --test_places 100 --seed 0`.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor

from datasets.interruption import exit_status, run_command
from datasets.synthetic.city import contact_sheet, make_city
from datasets.synthetic.config import CITIES, CityConfig
from datasets.synthetic.domain import CHOICES, Domain

DESCRIPTION = "A procedural city of street places, in the GSV-Cities format and in the benchmark format."
COUNTS = {
    "places": "training places, over all cities",
    "val_places": "places of the benchmark's val split",
    "test_places": "places of the benchmark's test split",
    "photos_per_place": "photos of each training place",
    "database_photos": "database photos of each benchmark place",
    "queries": "queries of each benchmark place",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line. Its defaults are those of CityConfig."""
    default = CityConfig()
    parser = argparse.ArgumentParser(
        prog="python -m datasets.synthetic",
        description=DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("output", help="new or empty folder; gets gsv_cities/ and synthetic/")
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
    parser.add_argument("--contact_sheet", metavar="FILE", help="also draw eight places in one picture")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit status: 0, 2 after an error, 130 after an interrupt."""
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
        if args.contact_sheet:
            contact_sheet(args.contact_sheet, config)
    except (OSError, ValueError, BrokenExecutor) as error:
        is_anonymous = isinstance(error, OSError) and error.filename is None  # from Pillow
        print(f"error: {f'Cannot write to {args.output}: ' if is_anonymous else ''}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("interrupted; nothing was written", file=sys.stderr)
        return exit_status(error)
    return 0


if __name__ == "__main__":
    run_command(main)
