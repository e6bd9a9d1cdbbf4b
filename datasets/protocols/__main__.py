"""Derives the list of the official MSLS validation queries from the CSV files of MSLS itself.

Example: `python -m datasets.protocols msls_val --raw /data/mapillary_sls --output msls_740.txt`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.protocols.msls_val import derive_queries, write_list
from datasets.protocols.table import MSLS_740_SHA256
from model.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit status: 0, or 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m datasets.protocols", description=__doc__)
    text = "the keys of the official 740 queries of the MSLS validation set, for --queries_list"
    parser.add_argument("protocol", choices=("msls_val",), help=text)
    text = "MSLS as published: contains train_val/cph and train_val/sf"
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR", help=text)
    text = "list to write (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("msls_740.txt"), metavar="FILE", help=text)
    args = parser.parse_args(argv)
    try:
        keys = derive_queries(args.raw, expected_sha256=MSLS_740_SHA256)
        write_list(args.output, keys)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: the {len(keys)} official queries. Evaluate them with --queries_list {args.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
