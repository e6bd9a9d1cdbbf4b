"""The demo: draws a synthetic city, trains SelaVPR++ on it with a vision transformer from scratch, and
evaluates it on unseen places.

    python -m examples.demo [--seed N]
    python -m examples.demo --real_photos DATASETS_FOLDER DATASET_NAME [--indoors] [FLAGS]

With --real_photos it trains longer, on larger images and with RandAugment, and evaluates on that dataset, split test,
none of whose images it trains on. FLAGS are those by which evaluations choose images and say which are right, such as
--queries_subfolder or --matches_csv; with --database_folder and --queries_folder, no dataset is named. With --indoors,
the city consists of corridors that a fisheye lens sees. It runs the repository's own scripts and prints their command
lines. Everything goes to the folder `demo`, `demo_real` or `demo_indoors`.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from utils.cli.evaluation import BenchmarkFlags
from utils.runtime.flags import ArgumentParser, non_negative_int
from utils.runtime.parser import build_parser, declared_flags, settings_from
from utils.runtime.script import cli_main

ROOT = Path(__file__).resolve().parents[1]
CITIES = ("Alder", "Birch", "Cedar", "Dogwood")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the demos differ in: folder; flags of the city, of all scripts, of both trainings, and of each."""

    folder: Path
    city: list[str]
    common: list[str]
    training: list[str]
    stage_one: list[str]
    stage_two: list[str]

    @property
    def all_scripts(self) -> list[str]:
        """The flags that trainings and evaluations share."""
        return [*COMMON, *self.common]


QUICK = Recipe(
    folder=Path("demo"),
    city="--places=2000 --photos_per_place=4 --queries=4 --size 112 84".split(),
    common="--backbone=vit-nano --resize 42 56".split(),
    training=(
        "--image_size 42 56 --train_batch_size=20 --randaugment_ops=0 --lr=0.0015 --schedule=cosine --warmup_steps=30 "
        "--ema=0.97"
    ).split(),
    stage_one=["--epochs_num=7"],
    stage_two=["--epochs_num=1"],
)
LONG = Recipe(
    folder=Path("demo_real"),
    city=["--places=2000", "--photos_per_place=4", "--queries=2"],
    common="--backbone=vit-tiny --resize 112 154".split(),
    training=["--image_size", "84", "112", "--train_batch_size=40"],
    stage_one=["--epochs_num=6", "--lr=0.002"],
    stage_two=["--epochs_num=2", "--lr=0.002"],
)
INDOORS = Recipe(
    folder=Path("demo_indoors"),
    city="--places=3000 --photos_per_place=4 --queries=2 --views indoors --lenses fisheye".split(),
    common="--backbone=vit-tiny --resize 112 154".split(),
    training="--image_size 98 126 --train_batch_size=40 --schedule=cosine --warmup_steps=50 --ema=0.98".split(),
    stage_one=["--epochs_num=5", "--lr=0.002"],
    stage_two=["--epochs_num=2", "--lr=0.002"],
)
CITY_SEED = 1
CITY = f"--val_places=40 --test_places=100 --database_photos=4 --seed={CITY_SEED} --cities={len(CITIES)}".split()
COMMON = "--aggregation=gem --infer_batch_size=32 --num_workers=0 --recall_values 1 5 10 --device=cpu".split()
SYNTHETIC = ["--datasets_folder=city", "--dataset_name=synthetic"]
DATASET = ("--datasets_folder", "--dataset_name")
TRAINING = ["--val_datasets=synthetic", "--cities", *CITIES]


def main() -> None:
    # ---- Arguments
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--real_photos",
        nargs="*",
        metavar=("DATASETS_FOLDER", "DATASET_NAME"),
        help="train longer, and evaluate on this dataset",
    )
    parser.add_argument("--indoors", action="store_true", help="with --real_photos: train on corridors, not on streets")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the trainings (default: %(default)s)")
    args, more = parser.parse_known_args()
    is_real = args.real_photos is not None
    if not is_real and (args.indoors or more):
        parser.error(f"{'--indoors' if args.indoors else more[0]} needs --real_photos")
    if is_real and len(args.real_photos) not in (0, 2):
        parser.error("--real_photos takes a folder of datasets and the name of one, or neither")
    recipe = INDOORS if args.indoors else LONG if is_real else QUICK
    common = recipe.all_scripts
    test = SYNTHETIC
    if is_real:
        test = checked_flags([*map("=".join, zip(DATASET, args.real_photos, strict=False)), *more])
    folder = recipe.folder
    started = time.perf_counter()

    # ---- A city, the model before training, and the training. Each run of a training script ends with a test of its
    # best model
    draw_city(recipe)
    start = ["--train_backbone", "--epochs_num=0", "--save_dir=start"]
    run(folder, "train.py", *training_flags(recipe, args.seed), *start)
    train(recipe, args.seed)

    # ---- Evaluation, with a report. On real photos, also of the models before
    names = ["start", "stage_one", "two_stage"]
    if is_real:
        names = ["untrained", "float", "two_stage"]
        for model, name in (("start", "untrained"), ("stage_one", "float")):
            run(folder, "eval.py", *common, *test, f"--model={best_model(folder, model)}", f"--save_dir={name}")
    model = f"--model={best_model(folder, 'stage_two')}"
    run(folder, "eval_rerank.py", *common, *test, model, "--save_dir=two_stage")

    # ---- Results
    print_table(*(results(folder, name) for name in names))
    print(f"The demo took {time.perf_counter() - started:.0f} s. Places of the city: {folder / 'contact_sheet.png'}")
    print(f"Report: {newest(folder, 'two_stage') / 'report.html'}")
    if recipe is QUICK:
        print(f"Find photos of it in a page: {os.path.relpath(sys.executable)} -m examples.serve_demo")


def checked_flags(words: list[str]) -> list[str]:
    """The flags by which an evaluation chooses images, with absolute paths: the scripts run in another folder.

    Exits with status 2 if they are not valid, and raises InputError if the images cannot be evaluated.
    """
    from datasets.benchmark import Benchmark  # slow to import

    parser = build_parser(BenchmarkFlags, None, module="examples.demo --real_photos")
    args = parser.parse_args(words)
    if args.no_labels:
        parser.error("--no_labels leaves no recalls, which the demo prints; leave it out.")
    for config in settings_from(parser, BenchmarkFlags, args).benchmarks:
        print(Benchmark(config))
    flags = []
    for name in (declared.name for declared in declared_flags(BenchmarkFlags, "data")):
        value = getattr(args, name)
        if value is not None and value is not False and value != ():  # a tolerance of 0 is one
            values = value if isinstance(value, (list, tuple)) else [] if value is True else [value]
            flags += [f"--{name}", *(str(v.absolute() if isinstance(v, Path) else v) for v in values)]
    return flags


def draw_city(recipe: Recipe) -> None:
    """Draws the recipe's city, unless it is there: places to train on, and others to validate and test on."""
    recipe.folder.mkdir(parents=True, exist_ok=True)
    if not (recipe.folder / "city").exists():
        sheet = "--contact_sheet=contact_sheet.png"
        run(recipe.folder, "-m", "datasets.synthetic", "city", *recipe.city, *CITY, sheet)


def train(recipe: Recipe, seed: int) -> None:
    """Trains the two-branch model, in logs/stage_one and logs/stage_two of the recipe's folder."""
    folder, training = recipe.folder, training_flags(recipe, seed)

    # ---- Stage one: the float branch, and the backbone, which has no published weights
    run(folder, "train.py", *training, *recipe.stage_one, "--train_backbone", "--save_dir=stage_one")

    # ---- Stage two: the binary branch beside the float one, which stays as it is
    start = f"--init_from={best_model(folder, 'stage_one')}"
    run(folder, "train_rerank.py", *training, *recipe.stage_two, start, "--save_dir=stage_two")


def training_flags(recipe: Recipe, seed: int) -> list[str]:
    """The flags of both trainings."""
    return [*recipe.all_scripts, *SYNTHETIC, *TRAINING, *recipe.training, f"--seed={seed}"]


def run(folder: Path, *command: str) -> None:
    """Prints a command and runs it in a folder: a script or module of the repository. Exits with its status
    if it fails.
    """
    print(f"\n$ python {shlex.join(command)}", flush=True)
    program = command if command[0] == "-m" else (str(ROOT / command[0]), *command[1:])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    status = subprocess.run([sys.executable, *program], cwd=folder, env=environment, check=False).returncode
    if status:
        sys.exit(status)


def newest(folder: Path, save_dir: str) -> Path:
    """The folder of the last run."""
    return max((folder / "logs" / save_dir).iterdir(), key=lambda path: path.stat().st_mtime)


def best_model(folder: Path, save_dir: str) -> Path:
    """The best model of the last run, relative to the demo's folder."""
    return (newest(folder, save_dir) / "best_model.pth").relative_to(folder)


def results(folder: Path, save_dir: str) -> dict:
    """The results.json of the last run."""
    return json.loads((newest(folder, save_dir) / "results.json").read_text())


def print_table(untrained: dict, floats: dict, two_stage: dict) -> None:
    """Prints recalls, bytes per database image, and milliseconds of search per query."""
    float_bytes, code_bytes = 4 * floats["descriptor_dim"], 64
    rows = (
        ("untrained", untrained["recalls"], float_bytes, untrained, ("search",)),
        ("float", floats["recalls"], float_bytes, floats, ("search",)),
        ("binary alone", two_stage["first_stage_recalls"], code_bytes, two_stage, ("search",)),
        ("two-stage", two_stage["recalls"], code_bytes + float_bytes, two_stage, ("search", "rerank")),
    )
    counts = f"{floats['queries']} queries, {floats['database']} database images"
    print(f"\n{floats['dataset']}: {counts}, of places that were not trained on")
    print(f"{'':14}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'bytes/image':>13}{'ms/query':>10}")
    for name, recalls, size, source, phases in rows:
        milliseconds = 1000 * sum(source["seconds"][phase] for phase in phases) / source["queries"]
        figures = "".join(f"{recalls[n]:7.1f}" for n in ("1", "5", "10"))
        print(f"{name:14}{figures}{size:13}{milliseconds:10.2f}")


if __name__ == "__main__":
    cli_main(main)
