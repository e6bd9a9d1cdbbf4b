"""Compares evaluations of the same queries: recalls, which queries one wins and another loses, how sure that
is, and a page of both.

Example: `python -m utils.retrieval.report logs/eval/RUN_A logs/eval/RUN_B`.
"""

from pathlib import Path

from utils.retrieval.config import DEFAULT_REPORT_QUERIES
from utils.retrieval.report.comparison import compare, comparison_page
from utils.retrieval.report.saved_run import read_run
from utils.runtime.atomic_files import check_output
from utils.runtime.flags import ArgumentParser, non_negative_int
from utils.runtime.script import cli_main
from utils.runtime.terminal import printable


def main() -> None:
    """Prints the tables, and writes the page."""
    parser = ArgumentParser(
        prog="python -m utils.retrieval.report",
        description="Compare evaluations of the same queries: which ones one wins, and how sure that is.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of an evaluation, logs/<name>/<time>")
    parser.add_argument("--output", type=Path, default=Path("comparison.html"), metavar="FILE", help="page to write")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="of the runs, in their order (default: their models)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the page if it exists")
    text = "queries with pictures in the page, those on which the runs differ first (default: %(default)s)"
    parser.add_argument(
        "--report_queries", type=non_negative_int, default=DEFAULT_REPORT_QUERIES, metavar="N", help=text
    )
    args = parser.parse_args()
    check_output(args.output, overwrite=args.overwrite)

    comparison = compare([read_run(folder) for folder in args.runs], args.names)
    print(f"{len(comparison.queries)} queries that all runs have")
    tables = [comparison.recall_table()] + [comparison.difference_table()] * (len(comparison.runs) > 1)
    for header, rows in tables:
        print(printable(f"\n| {' | '.join(header)} |\n|{' --- |' * len(header)}"))
        for row in rows:
            print(printable(f"| {' | '.join(row)} |"))
    turned = any(run.arguments.get("exif_orientation") for run in comparison.runs)
    comparison_page(comparison, num_queries=args.report_queries).write(args.output, exif_orientation=turned)
    print(printable(f"\nReport: {args.output}"))


if __name__ == "__main__":
    cli_main(main)
