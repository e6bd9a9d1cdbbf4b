"""Derives the list of the official MSLS validation queries from the CSV files of MSLS itself.

Example: `python -m datasets.protocols msls_val --raw /data/mapillary_sls --output msls_740.txt`.
"""

from collections.abc import Sequence
from pathlib import Path

from datasets.protocols.msls_val import derive_queries
from datasets.protocols.table import MSLS_740_SHA256
from utils.runtime.atomic_files import atomic_write, check_output
from utils.runtime.flags import ArgumentParser
from utils.runtime.script import cli_main


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises InputError if the CSV files cannot be used, or the list cannot be written."""
    parser = ArgumentParser(prog="python -m datasets.protocols", description=__doc__)
    text = "the keys of the official 740 queries of the MSLS validation set, for --queries_list"
    parser.add_argument("protocol", choices=("msls_val",), help=text)
    text = "MSLS as published: contains train_val/cph and train_val/sf"
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR", help=text)
    text = "list to write (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("msls_740.txt"), metavar="FILE", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the list if it exists")
    args = parser.parse_args(argv)
    check_output(args.output, overwrite=args.overwrite)
    keys = derive_queries(args.raw, expected_sha256=MSLS_740_SHA256)
    with atomic_write(args.output, new=not args.overwrite) as file:
        file.writelines(f"{key}\n" for key in keys)
    print(f"{args.output}: the {len(keys)} official queries. Evaluate them with --queries_list {args.output}.")


if __name__ == "__main__":
    cli_main(main)
