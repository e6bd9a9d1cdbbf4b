"""Makes what `make try` runs on: a small trained model and photos of places that it was not trained on.

    python -m examples.try_model [--seed N]

It draws the demo's city, trains the backbone `vit-pico` on it by the demo's recipe, writes the model in half precision
and the photos to the folder `assets/try`, and evaluates that model on the city's test places. Everything else goes to
the folder `demo/try`.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from datasets.synthetic.city import write_benchmark_place
from datasets.synthetic.config import CityConfig
from examples.demo import CITY_SEED, QUICK, ROOT, SYNTHETIC, best_model, draw_city, run, train
from utils.runtime.flags import ArgumentParser, non_negative_int
from utils.runtime.script import cli_main

ASSETS = ROOT / "assets" / "try"
MODEL = ASSETS / "model.safetensors"
IMAGES = ASSETS / "images" / "test"  # the benchmark layout
SIZE = ["--resize", "42", "56"]
RECIPE = replace(QUICK, folder=Path("demo") / "try", common=["--backbone=vit-pico", *SIZE])
PLACES = range(0, 96, 8)  # of the city's 100 test places, the first of each street
PHOTOS = CityConfig(database_photos=1, queries=1, size=(320, 240), seed=CITY_SEED)  # larger than the demo's: to look at


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the trainings (default: %(default)s)")
    args = parser.parse_args()

    # ---- Train
    draw_city(RECIPE)
    train(RECIPE, args.seed)

    # ---- Write the model and the photos
    if ASSETS.exists():
        shutil.rmtree(ASSETS)
    for name in ("database", "queries"):
        (IMAGES / name).mkdir(parents=True)
    trained = f"--model={best_model(RECIPE.folder, 'stage_two')}"
    run(RECIPE.folder, "export.py", "safetensors", trained, "--fp16", f"--output={MODEL}")
    for number in PLACES:
        write_benchmark_place(number, images=IMAGES, split="test", config=PHOTOS)

    # ---- Evaluate what was written
    run(RECIPE.folder, "eval_rerank.py", *RECIPE.all_scripts, *SYNTHETIC, f"--model={MODEL}", "--save_dir=two_stage")


if __name__ == "__main__":
    cli_main(main)
