"""Training of codes of stored float descriptors: a linear layer with the losses of the binary branch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model import HashingOutput
from model.errors import InputError
from model.index.coding import Coding
from model.network import STE_binary
from utils.retrieval.codes import fit_coding, sample_rows
from utils.retrieval.config import CodesConfig
from utils.retrieval.features import Descriptors
from utils.training.codes_config import CodeTrainingConfig
from utils.training.losses import hashing_losses


def place_labels(paths: Sequence[str]) -> np.ndarray:
    """The places of images by their names, <city>_<place>_..., as in GSV-Cities: numbers [N] int64. Raises InputError
    for another name.
    """
    places = dict[tuple[str, ...], int]()
    labels = np.empty(len(paths), np.int64)
    for i, path in enumerate(paths):
        parts = Path(path).name.split("_")
        if len(parts) < 3 or not parts[1].isdecimal():
            raise InputError(
                f"The name of {path} states no place. Expected the names of GSV-Cities, <city>_<place>_..., in an "
                "index of its folder Images."
            )
        labels[i] = places.setdefault((parts[0], parts[1]), len(places))
    return labels


def train_coding(descriptors: Descriptors, labels: np.ndarray, config: CodeTrainingConfig) -> Coding:
    """A coding trained on descriptors [N, dim] of places [N] with at least `images_per_place` images.

    It starts as a random one (see fit_coding). Each batch, of places in a random order, minimises the multi-similarity
    loss of the codes and the similarity constraint (paper, section III-C) through the straight-through sign. Of a
    place, each epoch draws other images. The same seed gives the same codes. Raises InputError for too few places.
    """
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    members = [rows for rows in members if len(rows) >= config.images_per_place]
    if len(members) < 2:
        raise InputError(
            f"{len(members)} places have {config.images_per_place} images or more. Train on more, or choose a smaller "
            "--images_per_place."
        )
    sample = sample_rows(len(labels), CodesConfig(source="random", seed=config.seed))
    start = fit_coding(np.asarray(descriptors[sample], np.float32), "random", config.bits, config.seed)
    layer = CodeLayer(start)
    optimizer = torch.optim.Adam(layer.parameters(), lr=config.lr)
    steps = -(-len(members) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * config.epochs_num)
    for epoch in (bar := tqdm(range(config.epochs_num), "Training", unit="epoch")):
        random = np.random.default_rng([config.seed, epoch])
        total = 0.0
        for places in np.array_split(random.permutation(len(members)), steps):
            rows = np.concatenate([random.choice(members[i], config.images_per_place, replace=False) for i in places])
            batch = torch.from_numpy(np.asarray(descriptors[rows], np.float32))
            loss = hashing_losses(layer(batch), torch.from_numpy(labels[rows])).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        bar.set_postfix(loss=f"{total / steps:.4f}")
    return Coding("trained", start.mean, layer.matrix.detach().numpy())


class CodeLayer(nn.Module):
    """A coding whose matrix [dim, bits] learns: descriptors [B, dim] -> HashingOutput."""

    def __init__(self, start: Coding) -> None:
        super().__init__()
        self.mean = torch.from_numpy(start.mean)
        self.matrix = nn.Parameter(torch.from_numpy(start.matrix.copy()))

    def forward(self, descriptors: Tensor) -> HashingOutput:
        logits = F.normalize((descriptors - self.mean) @ self.matrix, dim=1)
        return HashingOutput(logits, STE_binary.apply(logits))
