"""The demo: makes a procedural city, trains SelaVPR++ on it with a vit-tiny from scratch, and evaluates it on places never trained on.

    python -m utils.demo

It runs the repository's own scripts and shows their command lines. Everything goes to the folder `demo`.
"""
import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from utils.logs import run_script

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("demo")
CITIES = ("Alder", "Birch", "Cedar", "Dogwood")
CITY_FLAGS = ["--places=1000", "--photos_per_place=4", "--val_places=40", "--test_places=100", "--database_photos=4", "--queries=2",
              f"--cities={len(CITIES)}", "--seed=1"]
MODEL = ["--backbone=vit-tiny", "--aggregation=gem"]
DATA = ["--datasets_folder=city", "--dataset_name=synthetic", "--resize", "70", "98", "--infer_batch_size=32", "--num_workers=0",
        "--recall_values", "1", "5", "10", "--device=cpu"]
TRAINING = ["--val_datasets=synthetic", "--cities", *CITIES, "--image_size", "70", "98", "--train_batch_size=40", "--randaugment_ops=0"]
STAGE_ONE = ["--train_backbone", "--epochs_num=8", "--lr=0.002"]
STAGE_TWO = ["--epochs_num=4", "--lr=0.002"]


def main() -> None:
    # ---- Arguments
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    started = time.perf_counter()
    FOLDER.mkdir(exist_ok=True)

    # ---- A city: training places, and others to validate and test on
    if not (FOLDER / "city").exists():
        run("-m", "datasets.synthetic", "city", *CITY_FLAGS, "--contact_sheet=contact_sheet.png")

    # ---- Before training
    run("train.py", *MODEL, *DATA, *TRAINING, "--train_backbone", "--epochs_num=0", "--save_dir=untrained")
    untrained = results("untrained")

    # ---- Stage one: the float branch, and the trunk, which nobody has trained yet
    run("train.py", *MODEL, *DATA, *TRAINING, *STAGE_ONE, "--save_dir=stage_one")
    float_model = newest("stage_one") / "best_model.pth"

    # ---- Stage two: the binary branch beside the float one, which stays as it is
    run("train_rerank.py", *MODEL, *DATA, *TRAINING, *STAGE_TWO, f"--resume={float_model.relative_to(FOLDER)}", "--save_dir=stage_two")
    two_branch_model = newest("stage_two") / "best_model.pth"

    # ---- Evaluation
    run("eval.py", *MODEL, *DATA, f"--resume={float_model.relative_to(FOLDER)}", "--save_dir=float")
    run("eval_rerank.py", *MODEL, *DATA, f"--resume={two_branch_model.relative_to(FOLDER)}", "--save_dir=two_stage")
    print_table(untrained, results("float"), results("two_stage"))
    curves = [str(newest(stage) / "curves.png") for stage in ("stage_one", "stage_two")]
    print(f"Pictures: {FOLDER / 'contact_sheet.png'} (places of the city), {', '.join(curves)}")
    print(f"The demo took {time.perf_counter() - started:.0f} s.")


def run(*command: str) -> None:
    """Runs a script or module of the repository in the demo's folder, showing the command. Exits with its status where it fails."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    program = command if command[0] == "-m" else (str(ROOT / command[0]), *command[1:])
    status = subprocess.run([sys.executable, *program], cwd=FOLDER, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode
    if status:
        sys.exit(status)


def newest(save_dir: str) -> Path:
    """The last run's folder."""
    return max((FOLDER / "logs" / save_dir).iterdir(), key=lambda folder: folder.stat().st_mtime)


def results(save_dir: str) -> dict:
    """The last run's results.json."""
    return json.loads((newest(save_dir) / "results.json").read_text())


def print_table(untrained: dict, floats: dict, two_stage: dict) -> None:
    """Recalls, bytes kept of a database photo, and milliseconds of search a query."""
    float_bytes, code_bytes = 4 * floats["descriptor_dim"], 64
    rows = (
        ("untrained", untrained["recalls"], float_bytes, untrained, ("search",)),
        ("float", floats["recalls"], float_bytes, floats, ("search",)),
        ("binary alone", two_stage["first_stage_recalls"], code_bytes, two_stage, ("search",)),
        ("two-stage", two_stage["recalls"], code_bytes + float_bytes, two_stage, ("search", "rerank")),
    )
    print(f"\n{floats['queries']} queries, {floats['database']} database photos of {floats['queries']} places, none of them trained on")
    print(f"{'':14}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'bytes/photo':>13}{'ms/query':>10}")
    for name, recalls, size, source, phases in rows:
        milliseconds = 1000 * sum(source["seconds"][phase] for phase in phases) / source["queries"]
        print(f"{name:14}" + "".join(f"{recalls[n]:7.1f}" for n in ("1", "5", "10")) + f"{size:13}{milliseconds:10.2f}")


if __name__ == "__main__":
    run_script(main)
