"""The paper's claims in miniature.

    python -m benchmarks.claims [--work FOLDER] [--threads N]

Everything goes to the work folder, which also keeps the result of each finished run. After a kill, the same command
continues with the interrupted run. The results so far are written after each seed.
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import torch

from benchmarks.claims.experiments import Laboratory
from benchmarks.claims.plan import perform
from benchmarks.claims.settings import QUICK, Settings
from benchmarks.claims.tables import NAME, tables
from benchmarks.machine import machine
from model.saving import lock_folder
from utils.runtime.atomic_files import atomic_write, make_folder
from utils.runtime.flags import ArgumentParser, positive_int
from utils.runtime.script import cli_main


def main() -> None:
    # ---- Arguments
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("logs") / NAME, help="folder for cities, models and runs")
    parser.add_argument("--threads", type=positive_int, default=os.cpu_count(), help="number of CPU threads")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which only show that everything runs")
    text = f"folder for {NAME}.json and {NAME}.png (default: the work folder)"
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=text)
    args = parser.parse_args()
    settings = QUICK if args.quick else Settings()
    output = args.output or args.work
    torch.set_num_threads(args.threads)

    # ---- Cities, and the backbone
    make_folder(args.work, exist_ok=True)
    make_folder(output, exist_ok=True)
    with lock_folder(args.work):
        lab = Laboratory(args.work, settings)
        foundation = lab.prepare()

        # ---- All runs of one seed after those of the other
        for count in range(1, len(settings.seeds) + 1):
            seeds = settings.seeds[:count]
            results = {
                "title": "The paper's claims in miniature",
                "machine": machine(measured=False),
                "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "settings": dataclasses.asdict(settings),
                "seeds": seeds,
                "foundation": foundation,
                "claims": perform(lab, seeds),
            }
            write(results, output)
    print(tables(results))


def write(results: dict, folder: Path) -> None:
    """Writes the results as JSON, and the figure."""
    from benchmarks.claims.figure import draw  # loads matplotlib

    with atomic_write(folder / f"{NAME}.json") as file:
        json.dump(results, file, indent=2)
    draw(results, folder / f"{NAME}.png")


if __name__ == "__main__":
    cli_main(main)
