"""Trainings that cannot start or continue, as far as no run is needed to see it."""

import pytest
import torch

from model import InputError
from utils.training.checkpoints import read_run_checkpoint


def test_a_run_is_resumed_beside_its_best_model_only(tmp_path):
    path = tmp_path / "last_model.pth"
    torch.save({"train_state": {}}, path)
    with pytest.raises(InputError, match="no best_model.pth beside .*last_model.pth"):
        read_run_checkpoint(path)
    (tmp_path / "best_model.pth").touch()
    assert read_run_checkpoint(path).path == path
