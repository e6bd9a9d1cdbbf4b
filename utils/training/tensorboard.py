"""Curves of a training run for TensorBoard."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.errors import InputError

EPOCH_LOSSES = ("epoch", "step", "loss", "multi_similarity", "constraint", "mined_pair_fraction", "learning_rate")


class TensorBoard:
    """Writes to a folder what TensorBoard shows. Needs the package tensorboard.

    first_step: where the run goes on, counted from 0. What the folder contains of later steps is replaced. Raises
    InputError if the folder is a link.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an optional package

        if folder.is_symlink():
            raise InputError(f"{folder} is a symbolic link. Expected a folder of the run. Remove it.")
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def add_step(self, step: int, losses: dict[str, float], *, learning_rate: float) -> None:
        """The losses after `step` steps, as Losses names them."""
        for name in ("total", "multi_similarity", "constraint"):
            self.writer.add_scalar(f"loss/{name}", losses[name], step)
        self.writer.add_scalar("training/mined_pair_fraction", losses["mined_pair_fraction"], step)
        self.writer.add_scalar("training/learning_rate", learning_rate, step)

    def add_epoch(self, row: dict[str, Any], curves: Path) -> None:
        """A row of metrics.csv, except for the losses, which add_step writes; and the picture curves.png."""
        for name, value in row.items():
            if name not in EPOCH_LOSSES:
                group = "validation" if "R@" in name else "epoch"
                self.writer.add_scalar(f"{group}/{name}", value, row["step"])
        with Image.open(curves) as image:
            self.writer.add_image("curves", np.asarray(image.convert("RGB")), row["step"], dataformats="HWC")

    def flush(self) -> None:
        """Writes everything to the disk."""
        self.writer.flush()
