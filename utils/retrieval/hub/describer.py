"""A hub model as the pipeline takes it: what it needs is found by trials."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import InputError
from model.config import HubConfig, check_image_size
from model.index.metadata import MAX_DESCRIPTOR_DIM
from model.inference import dtype_of, pytorch
from model.network import state_fingerprint
from utils.retrieval.config import ExtractionConfig
from utils.retrieval.hub.config import HubChoice
from utils.retrieval.hub.isolation import ForeignModules
from utils.retrieval.hub.repository import find_repository, foreign_code
from utils.runtime import distributed

Size = tuple[int, int]  # (H, W) in pixels
SQUARES = (200, 208, 210, 224, 256, 300, 320, 322, 384, 448, 518)
TRIAL_SIZES: tuple[Size, ...] = (*((side, side) for side in SQUARES), (480, 640))
DIVISORS = (32, 16, 14, 8)  # no two of them divide the same trial sizes
BATCH = 4  # images of a trial
TOLERANCE = 1e-3  # of a distance of descriptors, or of a length; rounding makes some 1e-6


class HubModel:
    """A hub model, ready to be called: a Describer of unit descriptors. network: in eval mode, on the device; modules:
    those of its repository. It computes in the precision of the settings, with PyTorch's autocast.
    """

    def __init__(
        self, network: nn.Module, config: HubConfig, settings: ExtractionConfig, modules: ForeignModules
    ) -> None:
        self.config, self.descriptor_dim = config, 0
        self.device, self.dtype = torch.device(settings.device), dtype_of(settings.precision)
        self._network, self._modules = network, modules
        self._weights_sha256 = state_fingerprint(network.state_dict())  # now: some networks count their calls in it

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the state, and of what else the descriptors depend on: the code, and the arguments."""
        described = asdict(replace(self.config, repository="anywhere"))
        content = json.dumps([described, self._weights_sha256], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def engine(self) -> str:
        """PyTorch, its version, and the number format."""
        return pytorch(self.dtype)

    def __call__(self, images: Tensor, float_branch: bool = True) -> Tensor:
        """Images [B, 3, H, W], normalised, to descriptors [B, D], float32, of length 1.

        Raises InputError if the network fails, such as for images of another size than those of the trials.
        """
        is_fp32 = self.dtype == torch.float32
        with (
            self.running(),
            contextlib.nullcontext() if is_fp32 else torch.autocast(self.device.type, self.dtype),
        ):
            return F.normalize(self.raw(images), dim=1)

    @property
    def name(self) -> str:
        """REPO:ENTRY."""
        return f"{self.config.repository}:{self.config.entry}"

    def running(self) -> contextlib.AbstractContextManager[None]:
        """While this is entered, what the network raises becomes an InputError."""
        return foreign_code(self._modules.folder, self.name)

    def raw(self, images: Tensor) -> Tensor:
        """Descriptors [B, D], float32, as the network gives them. Raises InputError if it gives something else."""
        with torch.no_grad(), self._modules.importable():
            output = self._network(images)
        return _descriptors_in(output, len(images)).float()


def load_hub_model(choice: HubChoice, config: ExtractionConfig, sizes: Sequence[Size]) -> HubModel:
    """A hub model, which has described trial images of each of the sizes.

    Raises InputError if it cannot be loaded, does not give one descriptor an image, cannot take images of these sizes,
    or if the descriptor of an image depends on the others of its batch and the user does not allow that. Warns if
    descriptors are not of length 1.
    """
    repository = find_repository(choice)
    modules = ForeignModules(repository.folder)
    network = repository.load(choice, modules)
    while isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        network = network.module
    with foreign_code(repository.folder, str(choice)), modules.importable():
        network = network.to(config.device).eval()
    hub_config = HubConfig(
        repository=repository.name, commit=repository.commit, entry=choice.entry, arguments=choice.keywords
    )
    for size in sizes:
        check_image_size(hub_config, size)
    model = HubModel(network, hub_config, config, modules)
    _try(model, choice, sizes)
    if config.compile:
        network.compile()
    return model


def hub_model_on_all_ranks(choice: HubChoice, config: ExtractionConfig, sizes: Sequence[Size]) -> HubModel:
    """The same, on every rank. The main rank loads it first, so that it alone downloads; the others the same commit."""
    loaded: Any = distributed.run_on_main(lambda: load_hub_model(choice, config, sizes), share=False)
    commit = distributed.broadcast_object(loaded.config.commit if loaded else None)
    return loaded or load_hub_model(replace(choice, commit=commit), config, sizes)


def _try(model: HubModel, choice: HubChoice, sizes: Sequence[Size]) -> None:
    """Completes the model by what trial images tell of it. Raises InputError as load_hub_model does."""
    for size in sizes:
        _require_size(model, size)
    images = trial_images(BATCH, sizes[0]).to(model.device)
    with model.running(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        together, alone = model.raw(images), model.raw(images[:1])
    model.descriptor_dim = together.shape[1]
    lengths = together.norm(dim=1)
    if (lengths - 1).abs().max() > TOLERANCE and distributed.is_main():
        low, high = float(lengths.min()), float(lengths.max())
        logging.warning("The descriptors of %s have lengths of %.3g to %.3g: they are normalised.", choice, low, high)
    change = float((F.normalize(together[:1], dim=1) - F.normalize(alone, dim=1)).norm())
    if change > TOLERANCE:
        if not choice.allow_batch_dependence:
            raise InputError(
                f"The descriptor that {choice} gives an image depends on the other images of its batch: it moves by "
                f"{change:.2g} of its length, so that results depend on the order of images and on --infer_batch_size. "
                "Add --allow_batch_dependence to go on all the same."
            )
        model.config = replace(model.config, batch_dependent=True)


def trial_images(count: int, size: Size) -> Tensor:
    """Smooth random images [count, 3, H, W], normalised: the same whenever they are made, and unlike each other."""
    patterns = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return F.interpolate(patterns, size, mode="bilinear")


def _require_size(model: HubModel, size: Size) -> None:
    """Raises InputError, which states the sizes that the network takes, if this is none of them."""
    problem = _problem_with(model, size)
    if problem is None:
        return
    taken = [] if isinstance(problem, ImportError) else [s for s in TRIAL_SIZES if _problem_with(model, s) is None]
    if not taken:
        with model.running():
            raise problem
    raise InputError(
        f"{model.name} does not take images of {size[0]} x {size[1]} pixels. {_size_rule(taken, size)}"
    ) from problem


def _problem_with(model: HubModel, size: Size) -> Exception | None:
    """What the network raises for an image of this size."""
    try:
        model.raw(trial_images(1, size).to(model.device))
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        return error
    return None


def _size_rule(taken: list[Size], size: Size) -> str:
    """The rule behind the trial sizes that a network takes, and the flag to add in place of this size."""
    for divisor in DIVISORS:
        if taken == [trial for trial in TRIAL_SIZES if not any(side % divisor for side in trial)]:
            height, width = (max(1, round(side / divisor)) * divisor for side in size)
            return f"Both sides must be multiples of {divisor}: add --resize {height} {width}."
    if len(taken) == 1:
        ((height, width),) = taken
        return f"It takes {height} x {width} only: add --resize {height} {width}."
    names = ", ".join(f"{height} x {width}" for height, width in taken)
    return f"In a trial it took {names}: add one of these, such as --resize {taken[0][0]} {taken[0][1]}."


def _descriptors_in(output: Any, count: int) -> Tensor:
    """The descriptors [count, D] in what a network gives for so many images: the output, or the first part of a tuple
    that can be them. Raises InputError if there are none.
    """
    for part in output if isinstance(output, (tuple, list)) else (output,):
        if isinstance(part, Tensor) and part.is_floating_point():
            rows = part[None] if count == 1 and part.ndim == 1 else part  # some models squeeze a batch of one
            if rows.ndim == 2 and len(rows) == count and 0 < rows.shape[1] <= MAX_DESCRIPTOR_DIM:
                return rows
    raise InputError(
        f"For a batch of {count} the hub model gives {_describe(output)}. Expected descriptors of shape [{count}, D], "
        f"with D up to {MAX_DESCRIPTOR_DIM}, or a tuple with them. Choose another entry or other --hub_args."
    )


def _describe(output: Any) -> str:
    """What a network gave, in a few words."""
    if isinstance(output, Tensor):
        kind = "a map of features" if output.ndim == 4 else "a tensor"
        return f"{kind} of shape {list(output.shape)} and type {output.dtype}"
    if isinstance(output, dict):
        return f"a {type(output).__name__} with the keys {', '.join(map(str, output))[:200]}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {'; '.join(map(_describe, output[:4]))}"
    return "nothing (None)" if output is None else f"a {type(output).__name__}"
