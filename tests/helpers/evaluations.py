"""Runs of the evaluation scripts on the tiny benchmark, and how they end."""

import csv
import json
import os

from helpers.processes import run_script

SCRIPTS = {"float": "eval.py", "hashing": "eval_hashing.py", "two_branch": "eval_rerank.py"}
FILES = ["calibration.json", "log.txt", "predictions.csv", "report.html", "results.json"]
SIZE = ["--resize", 56, 56, "--num_workers=0", "--device=cpu"]


def flags_for(datasets, checkpoint, *more):
    """A command line for the tiny benchmark; `more` comes last and overrides."""
    data = [f"--datasets_folder={datasets}", "--dataset_name=tiny"]
    return [*data, "--backbone=vit-tiny", f"--resume={checkpoint}", *SIZE, *more]


class Outcome:
    """What a run that ended well left: printed lines, except for the last, which names the page; results.json; the rows
    of predictions.csv; and its folder.
    """

    def __init__(self, result, cwd, save_dir="eval"):
        assert result.status == 0, result.stderr
        *self.lines, report = result.stdout.splitlines()
        (self.folder,) = (cwd / "logs" / save_dir).iterdir()
        assert report == f"Report: {self.folder.relative_to(cwd) / 'report.html'}"
        self.results = json.loads((self.folder / "results.json").read_text())
        files = FILES if "recalls" in self.results else [name for name in FILES if name != "calibration.json"]
        assert sorted(path.name for path in self.folder.iterdir()) == files
        with open(self.folder / "predictions.csv", newline="") as file:
            self.rows = list(csv.DictReader(file))
        self.log = (self.folder / "log.txt").read_text()


def run_mode(mode, datasets, checkpoints, cwd, *more):
    """Runs the script of the mode on the tiny benchmark."""
    cwd.mkdir(exist_ok=True)
    return Outcome(run_script(SCRIPTS[mode], *flags_for(datasets, checkpoints[mode], *more), cwd=cwd), cwd)


def expect_refusal(result, cwd, *words):
    """Status 2, a short clear message with these words on stderr, no traceback, and no file but the log."""
    assert result.status == 2, result
    assert "Traceback" not in result.stdout + result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    assert 1 <= len(message.splitlines()) <= 2, result.stderr
    assert len(message) < 1000
    for word in words:
        assert str(word) in message, (word, message)
    left = [path for path in cwd.rglob("*") if path.is_file() and path.name != "log.txt"]
    assert left == []


def predictions(cwd):
    """predictions.csv of the last run in this folder."""
    return max(cwd.glob("logs/eval/*/predictions.csv"), key=os.path.getmtime).read_text()


def evaluate(mode, datasets, checkpoint, cwd, *more):
    result = run_script(SCRIPTS[mode], *flags_for(datasets, checkpoint, *more), cwd=cwd)
    assert result.status == 0, result.stderr
    return predictions(cwd)
