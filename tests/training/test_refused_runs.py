"""Trainings that cannot start or continue, as far as no run is needed to see it."""

import os
from pathlib import Path

import pytest

from model import InputError
from utils.training.checkpoints import find_run, read_two_branch_checkpoint


def test_the_run_that_resume_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seconds, name in enumerate(("train/2", "train/1", "other/3")):  # as they saved, one after the other
        file = Path("logs") / name / "last_model.pth"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (seconds, seconds))
    Path("logs/train/4").mkdir()  # a run that has not saved yet
    newest = Path("logs/train/1/last_model.pth")
    assert find_run(Path("latest"), "train") == newest
    assert find_run(newest.parent, "other") == find_run(newest, "other") == newest
    with pytest.raises(InputError, match="--resume latest: no run in logs/stage_two has a last_model.pth.* --save_dir"):
        find_run(Path("latest"), "stage_two")
    Path("latest").symlink_to("logs/other/3")
    assert find_run(Path("latest"), "train") == Path("latest/last_model.pth")


def test_stage_two_does_not_resume_a_run_of_a_float_model(checkpoints):
    assert read_two_branch_checkpoint(checkpoints["float"], may_start=True) is None
    with pytest.raises(InputError, match="float.pth looks like .* and is no run of stage two.*--init_from"):
        read_two_branch_checkpoint(checkpoints["float"], may_start=False)
