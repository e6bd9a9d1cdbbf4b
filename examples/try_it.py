"""`make try`: an index, a search and an evaluation with the small model and the photos in assets/try.

    python -m examples.try_it [--no_browser]

It runs the repository's own scripts, prints their command lines, and downloads nothing. The index goes to the folder
`try`, the report to `logs/try`.
"""

import argparse
import os
import shutil
import sys
import time
import webbrowser
from pathlib import Path

from examples.demo import newest, run
from examples.try_model import ASSETS, IMAGES, MODEL
from utils.runtime.flags import ArgumentParser
from utils.runtime.script import cli_main

HERE = Path()
INDEX = Path("try") / "index"


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no_browser", action="store_true", help="print where the report is, and do not open it")
    args = parser.parse_args()
    started = time.perf_counter()
    database, queries, model, datasets = (
        os.path.relpath(path) for path in (IMAGES / "database", IMAGES / "queries", MODEL, ASSETS.parent)
    )
    common = [f"--model={model}", "--num_workers=0", "--device=cpu"]

    print("1. Describe a photo of each place by a binary code, 64 bytes, and a float descriptor, 512 numbers.")
    if INDEX.exists():  # that of the last time
        shutil.rmtree(INDEX)
    INDEX.parent.mkdir(exist_ok=True)
    run(HERE, "build_index.py", database, f"--index={INDEX}", *common)

    print("\n2. Where were these taken, on a rainy night and in snow? The nearest codes, ordered by descriptors.")
    night, snow = (str(next(Path(queries).glob(f"*@{place:07d}_*"))) for place in (24, 32))
    run(HERE, "search.py", night, snow, f"--index={INDEX}", "--results=3", "--device=cpu")

    print("\n3. How many of all queries are found, within 25 metres?")
    test = [f"--datasets_folder={datasets}", f"--dataset_name={ASSETS.name}", f"--load_index={INDEX}"]
    settings = ["--recall_values", "1", "5", "10", "--save_dir=try"]
    run(HERE, "eval_rerank.py", *test, *common, *settings)

    report = (newest(HERE, "try") / "report.html").absolute()
    opened = has_display() and not args.no_browser and webbrowser.open(report.as_uri())
    python = os.path.relpath(sys.executable)
    print(f"\nThat took {time.perf_counter() - started:.0f} s. The queries and their matches{' (opened)' * opened}:")
    print(f"  {report}")
    print("\nThis model has seen drawn streets only. To search photos of yours, a published model is downloaded once:")
    print(f"  {python} build_index.py my_photos --index=my_index")
    print(f"  {python} search.py photo.jpg --index=my_index --save_pictures=found")
    print("To evaluate a model on a benchmark, or to train one: docs/evaluate.md, docs/train.md")


def has_display() -> bool:
    """Whether a browser can open a window. Without one, webbrowser would start a browser in the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


if __name__ == "__main__":
    cli_main(main)
