"""Training runs: what each is, and its loop."""

import math
import statistics
from dataclasses import dataclass

from tqdm import tqdm

from benchmarks.claims.domains import DOMAINS, TARGET
from benchmarks.claims.variants import HASHING_LOSSES, NETWORKS, hashing
from model import GeoLocalizationNet, InputError
from utils.training.config import TrainingConfig
from utils.training.loader import PlaceLoader
from utils.training.losses import float_losses
from utils.training.step import TrainingStep, learning_rate, set_training_mode

UNTRAINED = ("pooled", "foundation")  # networks that are tested only


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run, and its test on the domains `tested_on`.

    network: a key of NETWORKS, "hashing" or "two_branch". loss: a key of HASHING_LOSSES, or "float". bits: of the
    codes, or dimensions of the descriptor. domains: trained on.
    """

    network: str
    rate: float
    seed: int
    loss: str = "float"
    bits: int = 512
    domains: tuple[str, ...] = (TARGET,)
    tested_on: tuple[str, ...] = (TARGET,)

    @property
    def name(self) -> str:
        """Of the run's files."""
        domains = "+".join(self.domains)
        return f"{self.network}_{self.loss}_{self.bits}_{domains}_rate{self.rate:g}_seed{self.seed}"

    def build(self) -> GeoLocalizationNet:
        """The network at the start of training."""
        return hashing(self.bits) if self.network == "hashing" else NETWORKS[self.network]()


def multiconv_run(rate: float, seed: int, domains: tuple[str, ...] = (TARGET,)) -> Run:
    """The paper's float model."""
    return Run(network="multiconv", rate=rate, seed=seed, domains=domains, tested_on=tuple(DOMAINS))


def hashing_run(loss: str, bits: int, rate: float, seed: int) -> Run:
    """A hashing-only model."""
    return Run(network="hashing", rate=rate, seed=seed, loss=loss, bits=bits)


def float_run(network: str, rate: float, seed: int) -> Run:
    """A float model of any network."""
    return multiconv_run(rate, seed) if network == "multiconv" else Run(network=network, rate=rate, seed=seed)


def training_config(run: Run, batch_size: int) -> TrainingConfig:
    """The settings of a run's training."""
    return TrainingConfig(batch_size=batch_size, lr=run.rate, seed=run.seed, train_backbone=run.network == "full")


def make_step(model: GeoLocalizationNet, run: Run, batch_size: int) -> TrainingStep:
    """The training step of a run."""
    config = training_config(run, batch_size)
    criterion = float_losses if run.loss == "float" else HASHING_LOSSES[run.loss]
    return TrainingStep(model, config, criterion=criterion, branch="float" if run.loss == "float" else "binary")


def train(model: GeoLocalizationNet, run: Run, loader: PlaceLoader, epochs: int) -> list[float]:
    """Trains a model with the training scripts' step and schedule. Returns the mean loss of each epoch."""
    step, config = make_step(model, run, loader.config.batch_size), training_config(run, loader.config.batch_size)
    means, number = [], 0
    with tqdm(total=epochs * loader.num_batches, desc=run.name, unit="batch", leave=False) as bar:
        for epoch in range(epochs):
            set_training_mode(model)
            losses = []
            for batch in loader.batches(epoch, 0):
                assert batch is not None  # the cities' images are readable
                for group in step.optimizer.param_groups:
                    group["lr"] = learning_rate(number, config, loader.num_batches)
                total = float(step(batch.images, batch.labels).total)
                if not math.isfinite(total):
                    raise InputError(f"{run.name}: the loss is {total} in batch {number}.")
                losses.append(total)
                number += 1
                bar.update()
            means.append(statistics.mean(losses))
    return means
