"""One training step: forward, loss of the whole batch, backward, update."""

import math
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model import GeoLocalizationNet, HashingOutput
from model.inference import dtype_of, prepare_frozen_backbone
from model.vision_transformer import VisionTransformer, patch_grid
from utils.runtime import distributed
from utils.training.average import WeightAverage
from utils.training.config import TrainingConfig
from utils.training.losses import Losses

EPOCHS_PER_HALVING = 3
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
OPTIMIZER_ENTRIES: dict[type, Collection[str]] = {  # of the state of a parameter
    torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}


class TrainingStep:
    """A callable that does one optimisation step on this rank's normalised images [B, 3, H, W] and labels [B].

    branch: "float" or "binary", the branch that is trained; the binary branch of a two-branch model is trained
    without computing the float one. criterion: the loss, called with the output for the whole batch and its labels.
    generator: what the criterion draws from, if anything; the trainer seeds it.
    Everything else is frozen and stays in eval mode, the backbone too unless config.train_backbone. The model moves
    to config.device. All images have the same size. Attributes: model, branch, optimizer, scaler, parameters (the
    trainable ones), average (of the weights; None without config.ema), copies_backbone (whether a copy with weights in
    half precision computes the frozen backbone), frozen_backbone (that copy; None before the first step).
    """

    def __init__(
        self,
        model: GeoLocalizationNet,
        config: TrainingConfig,
        *,
        criterion: Callable[[Any, Tensor], Losses],
        branch: str,
        generator: torch.Generator | None = None,
    ) -> None:
        if distributed.world_size() > 1 and config.device.startswith("cuda"):
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # before the optimizer takes the parameters
        self.model = model.to(config.device)
        self.criterion, self.generator = criterion, generator
        self.branch = branch
        self.precision = config.precision
        self.parameters = set_trainable(model, branch, config.train_backbone)
        if config.compile:
            self.model.compile()  # in place, so that the names in checkpoints stay the same
        optimizer = OPTIMIZERS[config.optim]
        self.optimizer = optimizer(self.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        # Beside fp16 the scale is always 1: the scaler then skips non-finite steps, and nothing else.
        constant: dict[str, Any] = (
            {} if config.precision == "fp16" else {"init_scale": 1.0, "growth_interval": 2**31 - 1}
        )
        self.scaler = torch.amp.GradScaler(torch.device(config.device).type, **constant)
        self.average = None if config.ema is None else WeightAverage(model, config.ema)
        self.copies_backbone = config.precision != "fp32" and not config.train_backbone
        self.frozen_backbone: VisionTransformer | None = None

    def __call__(self, images: Tensor, labels: Tensor, rank_sizes: list[int] | None = None) -> Losses:
        """The losses of the whole batch, float32. rank_sizes: B of each rank, if there are several."""
        float_branch = self.branch == "float"
        if self.copies_backbone and self.frozen_backbone is None:  # not earlier: a checkpoint may be loaded before
            grid = patch_grid(*images.shape[-2:])
            self.frozen_backbone = prepare_frozen_backbone(self.model.backbone, dtype_of(self.precision), grid)
        with torch.autocast(images.device.type, dtype_of(self.precision), enabled=self.precision != "fp32"):
            output = self.model(images, float_branch, self.frozen_backbone)
        if rank_sizes is not None and len(rank_sizes) > 1:
            labels = distributed.gather_batch(labels, rank_sizes)
            gathered = [distributed.gather_batch(part, rank_sizes) for part in ([output] if float_branch else output)]
            output = gathered[0] if float_branch else HashingOutput(*gathered)
        losses = self.criterion(output, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses.total).backward()
        distributed.sum_gradients(self.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update()
        return Losses(*(value.detach() for value in losses))

    def state_dict(self) -> dict[str, Any]:
        """What load_state_dict restores: everything but the model."""
        states = {"optimizer_state_dict": self.optimizer.state_dict(), "scaler_state_dict": self.scaler.state_dict()}
        return states | ({"average_state_dict": self.average.state_dict()} if self.average else {})

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Restores the states of the same model and settings. Raises KeyError, TypeError or ValueError for others."""
        own, saved = self.optimizer.state_dict(), states["optimizer_state_dict"]["state"]
        names, parameters = OPTIMIZER_ENTRIES[type(self.optimizer)], dict(enumerate(self.parameters))
        for i, entries in dict(saved).items():  # a parameter that had no gradient has none
            _require_keys(entries, names, f"the optimizer's state of parameter {i}")
            for name, value in entries.items():
                shape = torch.Size() if name == "step" else parameters[i].shape
                _require_floats(value, shape, f"the optimizer's {name} of parameter {i}")
        # The settings of the group are those of the arguments, which are compared, but for the latest learning rate.
        rate = states["optimizer_state_dict"]["param_groups"][0]["lr"]
        if type(rate) is not float or not 0 <= rate < math.inf:
            raise ValueError(f"the optimizer's learning rate is {rate!r}")
        self.optimizer.load_state_dict({"state": saved, "param_groups": [own["param_groups"][0] | {"lr": rate}]})
        scaler = states["scaler_state_dict"]
        _require_keys(scaler, self.scaler.state_dict(), "the scaler's state")
        for name, value in scaler.items():
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
                raise ValueError(f"the scaler's {name} is {value!r}")
        self.scaler.load_state_dict(scaler)
        if self.average:
            average = states["average_state_dict"]
            _require_keys(average, self.average.state_dict(), "the average's state")
            if type(average["updates"]) is not int or average["updates"] < 0:
                raise ValueError(f"the number of the average's updates is {average['updates']!r}")
            _require_keys(average["entries"], self.average.entries, "the average's entries")
            for name, tensor in self.average.entries.items():
                _require_floats(average["entries"][name], tensor.shape, f"the average's entry {name}")
            self.average.load_state_dict(average)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """A block in which the model has the averaged weights, if there is an average."""
        return self.average.applied() if self.average else nullcontext()


def _require_keys(found: Any, expected: Collection[Any], what: str) -> None:
    if type(found) is not dict or found.keys() != set(expected):
        raise ValueError(f"{what} is not that of the model and the optimizer of this run")


def _require_floats(value: Any, shape: torch.Size, what: str) -> None:
    """Raises ValueError unless this is a tensor of finite numbers of this shape."""
    if not isinstance(value, Tensor) or value.shape != shape or value.is_complex() or not value.isfinite().all():
        raise ValueError(f"{what} is not a tensor of finite numbers of shape {tuple(shape)}")


def set_trainable(model: GeoLocalizationNet, branch: str, train_backbone: bool) -> list[nn.Parameter]:
    """Makes one branch, and the backbone if asked, trainable and nothing else. Returns these parameters."""
    for name, parameter in model.named_parameters():
        parts = {branch, "backbone"} if train_backbone and name != "backbone.mask_token" else {branch}
        parameter.requires_grad_(model.branch_of(name) in parts)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_training_mode(module: nn.Module) -> None:
    """Training mode for what trains and its parameterless parts (dropout), eval mode for what is frozen."""
    module.training = any(parameter.requires_grad for parameter in module.parameters())
    for child in module.children():
        if any(True for _ in child.parameters()):
            set_training_mode(child)
        else:
            child.train(module.training)


def learning_rate(step: int, config: TrainingConfig, batches_per_epoch: int) -> float:
    """The learning rate at a step, counted from 0: linear warm-up, times config.schedule."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        total = config.epochs_num * batches_per_epoch
        return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * step / total))
    return config.lr * warmup * 0.5 ** (step // (EPOCHS_PER_HALVING * batches_per_epoch))
