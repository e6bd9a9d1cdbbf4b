"""Runs of the training scripts on the tiny city, and what they leave."""

import csv

import torch
from helpers.evaluations import SIZE
from helpers.processes import run_script


def flags_for(city, *more):
    """A command line for two epochs of six batches; `more` comes last and overrides."""
    data = [f"--datasets_folder={city}", "--dataset_name=synthetic", "--val_datasets", "synthetic"]
    data += ["--cities", "Alder", "Birch", "--image_size", 56, 56, "--train_batch_size=4", "--images_per_place=2"]
    return [*data, "--backbone=vit-tiny", "--epochs_num=2", *SIZE, *more]


def run_well(script, flags, cwd):
    """Runs a script that is to end well; its printed lines and its run folder."""
    cwd.mkdir(exist_ok=True)
    result = run_script(script, *flags, cwd=cwd)
    assert result.status == 0, result.stderr
    return result.stdout.splitlines(), the_folder(cwd)


def the_folder(cwd):
    """The only run folder below cwd."""
    (folder,) = cwd.glob("logs/*/*")
    return folder


def load(path):
    return torch.load(path, weights_only=True)


def best_model(folder):
    """The entries of best_model.pth."""
    return load(folder / "best_model.pth")["model_state_dict"]


def metrics_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def same(left, right):
    """Whether two nests of dicts and lists hold the same, tensors to the last bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def outcome(folder):
    """What must be the same after an interruption: all but times, memory, and arguments that may change."""
    checkpoint = load(folder / "last_model.pth")
    for row in checkpoint["train_state"]["history"]:
        row["seconds"] = row["peak_memory_mb"] = 0
    return checkpoint, best_model(folder), (folder / "predictions.csv").read_text()
