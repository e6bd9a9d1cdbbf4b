"""Settings of training."""

from dataclasses import dataclass

from model.config import PRECISIONS
from model.errors import InputError
from utils.runtime.devices import PRECISION_HELP, device_flag
from utils.runtime.flags import (
    decay,
    flag,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    seed_flag,
    switch,
)

DEFAULT_WEIGHT_DECAY = {"adam": 0.0, "adamw": 0.01, "sgd": 0.0}
SCHEDULES = ("step", "cosine")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained. The learning rate is `lr` at the start, and `schedule` lowers it after the warm-up.

    `ema` is the decay of a moving average of the weights, which takes the place of the latest weights (None: no
    average).
    """

    batch_size: int = flag("places per batch, over all ranks", name="train_batch_size", type=positive_int, default=120)
    epochs_num: int = flag("epochs; 0: test the initial model", type=non_negative_int, default=25)
    patience: int = flag("stop after N epochs without improvement", type=positive_int, default=12, may_change=True)
    optim: str = flag("optimizer", choices=tuple(DEFAULT_WEIGHT_DECAY), default="adam")
    lr: float = flag("initial learning rate", type=positive_float, default=4e-4)
    schedule: str = flag(
        "of the learning rate. step: halved every 3 epochs; cosine: falls to 0 over --epochs_num",
        choices=SCHEDULES,
        default="step",
    )
    warmup_steps: int = flag(
        "steps over which the learning rate rises to --lr at the start", type=non_negative_int, default=0
    )
    weight_decay: float = flag(
        "weight decay (default: 0.01 for adamw, 0 for adam and sgd)",
        type=non_negative_float,
        default=0.0,
        default_from=lambda flags: DEFAULT_WEIGHT_DECAY[flags["optim"]],
    )
    ema: float | None = flag(
        "validate, save and test an exponential moving average of the weights with this decay, such as 0.99",
        type=decay,
        default=None,
        metavar="DECAY",
    )
    precision: str = flag(
        f"{PRECISION_HELP} (default: fp16 on CUDA, otherwise fp32)",
        group="speed",
        choices=tuple(PRECISIONS),
        default="fp32",
        default_from=lambda flags: "fp16" if flags["device"].startswith("cuda") else "fp32",
    )
    train_backbone: bool = switch("train the backbone too (vit-tiny: from scratch)")
    compile: bool = switch(
        "torch.compile the training steps: slow at the start, faster afterwards", group="speed", may_change=True
    )
    tensorboard: bool = switch(
        "also write the curves for TensorBoard, to the run's folder; needs requirements-tensorboard.txt",
        group="report",
        may_change=True,
    )
    device: str = device_flag()
    seed: int = seed_flag()

    def __post_init__(self) -> None:
        if self.optim not in DEFAULT_WEIGHT_DECAY:
            raise InputError(f"Unknown optimizer {self.optim!r}. Choose from: {', '.join(DEFAULT_WEIGHT_DECAY)}.")
        if self.schedule not in SCHEDULES:
            raise InputError(f"Unknown schedule {self.schedule!r}. Choose from: {', '.join(SCHEDULES)}.")
        if self.warmup_steps < 0:
            raise InputError(f"{self.warmup_steps} warm-up steps; there must be 0 or more.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"The decay of the average is {self.ema}; it must be above 0 and below 1.")
