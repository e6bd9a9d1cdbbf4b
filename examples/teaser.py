"""The picture at the top of README.md: queries of an evaluation, and below each the first match that was found for it.

    python -m examples.teaser logs/try/<time> --queries 0 4 6 8 --output assets/teaser.jpg

It takes any evaluation, of photos of your own too. Without --queries it shows queries whose first match is right,
evenly spaced among all of these in the order of predictions.csv.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model import InputError
from utils.retrieval.report.page import choose_evenly
from utils.retrieval.report.pictures import Painter, Shown, save_picture
from utils.retrieval.report.saved_run import SavedRun, read_run
from utils.runtime.atomic_files import make_folder
from utils.runtime.flags import ArgumentParser, non_negative_int
from utils.runtime.script import cli_main

COLUMNS = 4  # queries
KINDS = {True: "correct", False: "wrong", None: "unknown"}


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of an evaluation, logs/<name>/<time>")
    text = "their numbers in predictions.csv, from 0"
    parser.add_argument("--queries", type=non_negative_int, nargs="+", metavar="N", help=text)
    parser.add_argument("--output", type=Path, default=Path("teaser.jpg"), metavar="FILE", help="a JPEG or PNG")
    args = parser.parse_args()

    run = read_run(args.run, depth=1)
    queries = list(run.predictions)
    chosen = [queries[i] for i in choose_queries(run, args.queries)]
    above = [Shown(run.path(query), [], "query", heading="Where is this?" * (i == 0)) for i, query in enumerate(chosen)]
    below = [first_match(run, query, heading="Found" * (i == 0)) for i, query in enumerate(chosen)]
    painter = Painter(cell=(320, 240), font_size=28, exif_orientation=bool(run.arguments.get("exif_orientation")))
    make_folder(args.output.parent, exist_ok=True)
    save_picture(painter.draw([above, below]), args.output)
    print(f"Picture: {args.output} ({args.output.stat().st_size / 1000:.0f} kB)")


def choose_queries(run: SavedRun, numbers: Sequence[int] | None) -> list[int]:
    """The numbers of the queries to show. Raises InputError for a number that is too large, and if none is right."""
    found = list(run.predictions.values())
    if numbers:
        if max(numbers) >= len(found):
            raise InputError(f"--queries {max(numbers)}: {run.folder} has {len(found)} queries, from 0.")
        return list(numbers)
    right = [i for i, predictions in enumerate(found) if predictions[0].correct]
    if not right:
        raise InputError(f"No query of {run.folder} has a right first match. Name some with --queries.")
    return choose_evenly(np.array(right), COLUMNS).tolist()


def first_match(run: SavedRun, query: str, *, heading: str) -> Shown:
    """The first match of a query, in a green frame if it is right."""
    (match,) = run.predictions[query]
    return Shown(run.path(match.image), [], KINDS[match.correct], heading=heading)


if __name__ == "__main__":
    cli_main(main)
