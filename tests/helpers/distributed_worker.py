"""Training steps on a split batch, in one process and on two ranks. Arguments: a file and a device."""

import sys

import torch
from helpers.models import image_batch, reference_model

from model import InputError
from utils.runtime import distributed
from utils.training.config import TrainingConfig
from utils.training.losses import float_losses, hashing_losses
from utils.training.step import TrainingStep, set_training_mode

LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
STEPS = 5


def share(sizes):
    """The part of the batch that this rank takes."""
    first = sum(sizes[: distributed.rank()])
    return slice(first, first + sizes[distributed.rank()])


def train(binary_branch, sizes, device="cpu"):
    """Five steps: (losses of each step, state dict).

    On the CPU, BatchNorm is in eval mode, since its statistics would be those of a rank's share. SGD, since Adam turns
    gradients that are 0 but for rounding into full steps.
    """
    model = reference_model("vit-tiny", "gem", hashing=binary_branch)
    criterion, branch = (hashing_losses, "binary") if binary_branch else (float_losses, "float")
    config = TrainingConfig(optim="sgd", lr=2.0 if binary_branch else 0.1, device=device)
    step = TrainingStep(model, config, criterion=criterion, branch=branch)
    set_training_mode(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and device == "cpu":
            module.eval()
    part = share(sizes)
    images = torch.from_numpy(image_batch(3, len(LABELS), 56, 56))[part].to(device)
    labels = torch.tensor(LABELS)[part].to(device)
    traces = [step(images, labels, sizes) for _ in range(STEPS)]
    losses = torch.tensor([[float(value) for value in losses] for losses in traces])
    return losses, {name: value.cpu() for name, value in model.state_dict().items()}


def gather(sizes):
    """What gather_batch makes of rows of [16, 3], and this rank's gradient for a sum weighted by their numbers."""
    rows = torch.arange(48.0).reshape(16, 3)[share(sizes)].requires_grad_()
    gathered = distributed.gather_batch(rows, sizes)
    (gathered * torch.arange(16.0)[:, None]).sum().backward()
    return gathered.detach(), rows.grad


def broadcast():
    """What broadcast_tensors makes of a number that differs between the ranks."""
    number = torch.tensor([float(distributed.rank() + 5)])
    distributed.broadcast_tensors([number])
    return number


def error_of_main():
    """The InputError that each rank gets when the main rank alone meets one."""

    def fail():
        assert distributed.is_main()
        raise InputError("no such file")

    try:
        distributed.run_on_main(fail)
    except InputError as error:
        return str(error)
    return "no error"


if __name__ == "__main__":
    distributed.init("cpu")  # gloo, which copies what is on a GPU
    _, file, device = sys.argv
    found = {}
    for name, sizes in (("even", [8, 8]), ("uneven", [11, 5])):
        found[name] = {
            "float": train(False, sizes, device),
            "hashing": train(True, sizes, device),
            "gather": gather(sizes),
        }
    found["broadcast"] = broadcast()
    found["error"] = error_of_main()
    everyone = distributed.gather_objects(found)
    if distributed.is_main():
        torch.save(everyone, file)
    distributed.shutdown()
