"""A procedural city of street places, in the GSV-Cities format and in the benchmark format.

Example: `python -m datasets.synthetic OUTPUT --places 400 --val_places 60 --test_places 100 --seed 0`.
"""

from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path

from datasets.synthetic.city import contact_sheet, make_city
from datasets.synthetic.config import CityConfig
from model.errors import InputError
from utils.runtime.flags import flag, part
from utils.runtime.parser import parse
from utils.runtime.script import cli_main


@dataclass(frozen=True, kw_only=True)
class CityArguments:
    """The command line."""

    output: Path = flag("new or empty folder; gets gsv_cities/ and synthetic/", metavar="OUTPUT", positional=True)
    city: CityConfig = part("city")
    contact_sheet: Path | None = flag("also draw eight places in one picture", default=None)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises InputError if the output cannot be written, or a process that draws was killed."""
    args = parse(CityArguments, __doc__, argv=argv, module="datasets.synthetic")
    try:
        make_city(args.output, args.city)
    except BrokenExecutor as error:
        raise InputError(f"A process that draws was killed, probably because memory ran out. {error}") from error
    if args.contact_sheet:
        try:
            contact_sheet(args.contact_sheet, args.city)
        except (OSError, ValueError) as error:
            raise InputError(f"Cannot write {args.contact_sheet}: {error}.") from error


if __name__ == "__main__":
    cli_main(main, when_stopped="nothing was written")
