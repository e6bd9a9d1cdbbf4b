"""Settings of training."""

from dataclasses import dataclass

from model.errors import InputError

DEFAULT_WEIGHT_DECAY = {"adam": 0.0, "adamw": 0.01, "sgd": 0.0}
SCHEDULES = ("step", "cosine")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained.

    batch_size: places per batch, over all ranks; epochs_num; patience: epochs without a better model before training
    ends; optim: adam, adamw or sgd; lr: learning rate at the start, before `schedule` lowers it: "step" halves it
    every 3 epochs, "cosine" lets it fall to 0 over epochs_num epochs; warmup_steps: steps at the start in which it
    rises from 0; weight_decay; ema: decay of the moving average of the weights, which is validated, saved and tested in
    place of the latest weights (None: no average); precision: of the forward pass; train_backbone: train the backbone
    too; compile: compile the model; tensorboard: also write the curves for TensorBoard; device; seed. Raises InputError
    for other values.
    """

    batch_size: int = 120
    epochs_num: int = 25
    patience: int = 12
    optim: str = "adam"
    lr: float = 4e-4
    schedule: str = "step"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    ema: float | None = None
    precision: str = "fp32"
    train_backbone: bool = False
    compile: bool = False
    tensorboard: bool = False
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optim not in DEFAULT_WEIGHT_DECAY:
            raise InputError(f"Unknown optimizer {self.optim!r}. Choose from: {', '.join(DEFAULT_WEIGHT_DECAY)}.")
        if self.schedule not in SCHEDULES:
            raise InputError(f"Unknown schedule {self.schedule!r}. Choose from: {', '.join(SCHEDULES)}.")
        if self.warmup_steps < 0:
            raise InputError(f"{self.warmup_steps} warm-up steps; there must be 0 or more.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"The decay of the average is {self.ema}; it must be above 0 and below 1.")
