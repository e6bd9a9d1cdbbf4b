"""`make serve-demo`: the city of `make demo` in a page, which finds where photos of it were taken.

    python -m examples.serve_demo [--port N]

It runs `make demo` first if that has not been done, and then the repository's own scripts, whose command lines it
prints. The index goes to the folder `demo`.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from examples.demo import QUICK, ROOT, best_model, newest, run
from utils.runtime.flags import ArgumentParser, non_negative_int
from utils.runtime.script import cli_main

FOLDER = QUICK.folder
PHOTOS = Path("city") / "synthetic" / "images" / "test"
INDEX = Path("index")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=non_negative_int, default=8000, help="port of the page (default: %(default)s)")
    args = parser.parse_args()
    if not (FOLDER / "logs" / "two_stage").exists():  # what the demo ends with
        run(Path(), "-m", "examples.demo")
    if not (FOLDER / INDEX).exists():
        model = f"--model={best_model(FOLDER, 'stage_two')}"
        run(FOLDER, "build_index.py", str(PHOTOS / "database"), f"--index={INDEX}", model, "--device=cpu")
    calibration = (newest(FOLDER, "two_stage") / "calibration.json").relative_to(FOLDER)
    command = [
        "serve.py",
        f"--index={INDEX}",
        f"--examples={PHOTOS / 'queries'}",
        f"--accept={calibration}",
        "--accept_precision=95",
        "--device=cpu",
        f"--port={args.port}",
    ]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    os.chdir(FOLDER)
    os.execv(sys.executable, [sys.executable, str(ROOT / command[0]), *command[1:]])  # which gets the stop signals


if __name__ == "__main__":
    cli_main(main)
