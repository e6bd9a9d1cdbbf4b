"""What a run continues from: forged and damaged states are errors, and so are other places to train on."""

import copy

import pytest
import torch
from helpers.models import build

from datasets.gsv_cities import GSVCities, PlacesConfig
from model import InputError
from utils.training.checkpoints import RunCheckpoint, TrainState, read_run_checkpoint, restore, save_checkpoint
from utils.training.config import TrainingConfig
from utils.training.losses import float_losses
from utils.training.step import TrainingStep, set_training_mode

ROW = {"epoch": 1, "step": 3, "loss": 0.5, "seconds": 1.0}
STATE = TrainState(arguments={"lr": 0.1}, epoch=1, step=3, history=[ROW], sums={"total": 1.0}, data_sha256="a")


def new_step(optim):
    return TrainingStep(build("vit-tiny"), TrainingConfig(optim=optim, ema=0.9), criterion=float_losses, branch="float")


@pytest.fixture(scope="module", params=["adam", "adamw", "sgd"])
def saved(request, tmp_path_factory):
    """The optimizer's name, and the content of a checkpoint after a step."""
    step = new_step(request.param)
    set_training_mode(step.model)
    step(torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1]))
    path = tmp_path_factory.mktemp("run") / "last_model.pth"
    save_checkpoint(path, step, STATE)
    return request.param, path, torch.load(path, weights_only=True)


def restored(saved, content, new=STATE):
    optim, path, _ = saved
    step = new_step(optim)
    return restore(RunCheckpoint(path, content, 0), step, new), step


def test_what_was_saved_comes_back(saved):
    state, step = restored(saved, saved[2])
    assert state == STATE
    for name, value in step.state_dict().items():
        torch.testing.assert_close(value, saved[2][name], atol=0, rtol=0)


def first(content):
    return content["optimizer_state_dict"]["state"][0]


def forge(name):
    """Changes one thing of a checkpoint."""

    def change(content):
        part, _, what = name.partition(" ")
        if part == "optimizer":
            entry = next(reversed(first(content)))
            values = {
                "shape": torch.ones(3),
                "type": "text",
                "NaN": torch.full_like(first(content)[entry], float("nan")),
                "None": None,
            }
            if what in values:
                first(content)[entry] = values[what]
            elif what == "entry":
                del first(content)[entry]
            elif what == "index":
                content["optimizer_state_dict"]["state"][10**6] = first(content)
            elif what == "list":
                content["optimizer_state_dict"]["state"] = [1, 2]
            elif what == "groups":
                content["optimizer_state_dict"]["param_groups"] = []
            elif what == "rate":
                content["optimizer_state_dict"]["param_groups"][0]["lr"] = float("inf")
            else:
                del content["optimizer_state_dict"]
        elif part == "scaler":
            content["scaler_state_dict"] = {
                "empty": {},
                "text": {**content["scaler_state_dict"], "scale": "2"},
                "infinite": {**content["scaler_state_dict"], "scale": float("inf")},
                "list": [],
            }[what]
        elif part == "average":
            average = content["average_state_dict"]
            entry = next(iter(average["entries"]))
            if what == "updates":
                average["updates"] = "9"
            elif what == "entry":
                del average["entries"][entry]
            elif what == "shape":
                average["entries"][entry] = torch.ones(2, 3, 4)
            else:
                content["average_state_dict"] = None
        else:
            content["train_state"] = {
                "history": {**content["train_state"], "history": "none"},
                "row": {**content["train_state"], "history": [7]},
                "columns": {**content["train_state"], "history": [ROW, {"epoch": 2}]},
                "value": {**content["train_state"], "history": [{"loss": [1]}]},
                "sums": {**content["train_state"], "sums": {"total": "x"}},
                "epoch": {**content["train_state"], "epoch": -1},
                "step": {**content["train_state"], "step": 1.5},
                "bool": {**content["train_state"], "batch": True},
                "score": {**content["train_state"], "best_score": float("nan")},
                "arguments": {**content["train_state"], "arguments": [1]},
                "field": {**content["train_state"], "other": 1},
                "list": [1],
                "none": None,
            }[what]

    return change


FORGED = [
    *(
        f"optimizer {what}"
        for what in ("shape", "type", "NaN", "None", "entry", "index", "list", "groups", "rate", "all")
    ),
    *(f"scaler {what}" for what in ("empty", "text", "infinite", "list")),
    *(f"average {what}" for what in ("updates", "entry", "shape", "none")),
    *(f"state {what}" for what in ("history", "row", "columns", "value", "sums", "epoch", "step", "bool", "score")),
    *(f"state {what}" for what in ("arguments", "field", "list", "none")),
]


@pytest.mark.parametrize("name", FORGED)
def test_what_no_run_writes_is_an_error(saved, name):
    content = copy.deepcopy(saved[2])
    forge(name)(content)
    with pytest.raises(InputError, match="last_model.pth is damaged, or was not written by this project"):
        restored(saved, content)


def test_other_training_data_is_refused_and_an_older_checkpoint_goes_on(saved):
    other = TrainState(arguments=STATE.arguments, data_sha256="b")
    with pytest.raises(InputError, match="cannot be resumed with other training data"):
        restored(saved, saved[2], other)
    content = copy.deepcopy(saved[2])
    del content["train_state"]["data_sha256"]
    assert restored(saved, content, other)[0].step == 3


def test_the_fingerprint_of_places_changes_with_each_of_their_images(city):
    folder = city / "gsv_cities" if (city / "gsv_cities").exists() else city
    config = PlacesConfig(cities=("Alder", "Birch"), images_per_place=2)
    prints = []
    for change in (lambda places: None, lambda places: places[3].pop(), lambda places: places[0].reverse()):
        data = GSVCities(folder, config)
        change(data.places)
        prints.append(data.fingerprint)
    assert len(set(prints)) == 3 and prints[0] == GSVCities(folder, config).fingerprint


def test_best_model_is_read_when_a_run_is_resumed(saved):
    _, path, content = saved
    best = path.with_name("best_model.pth")
    torch.save({"model_state_dict": content["model_state_dict"]}, best)
    assert read_run_checkpoint(path).path == path
    torch.save({"model_state_dict": build("vit-tiny", "gem", hashing=True).state_dict()}, best)
    with pytest.raises(InputError, match="best_model.pth looks like a model for.*hashing"):
        read_run_checkpoint(path)
    best.write_bytes(b"half")
    with pytest.raises(InputError, match="best_model.pth is not a checkpoint"):
        read_run_checkpoint(path)
