"""Training checkpoints: everything that a run needs to continue from the very next batch."""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import torch

from model import GeoLocalizationNet, InputError, ModelChoice
from model.checkpoint_files import read_checkpoint
from model.weights import (
    check_state,
    describe,
    find_config,
    load_float_branch,
    load_foundation,
    load_state,
    model_content,
    model_file,
    model_state,
    new_model,
)
from model.zoo import FOUNDATIONS
from utils.runtime import distributed
from utils.runtime.atomic_files import save_tensors
from utils.runtime.run_dir import RunDir
from utils.training.step import TrainingStep

BEST_MODEL, LAST_MODEL = "best_model.pth", "last_model.pth"
LATEST = Path("latest")


@dataclass
class TrainState:
    """Position of a run: next comes `batch` of `epoch` (both from 0) or, after an epoch's last batch, validation.

    Everything random is drawn from the seed and this position. arguments: those that change the model or the
    schedule, which a resumed run must repeat; history: the rows of metrics.csv; sums: the current epoch's losses so
    far; losses: the loss of each step, NaN if it was not finite; world_size: number of processes, which determines the
    random numbers; data_sha256: of the places to train on, empty in a checkpoint of an earlier version.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_score: float = -1.0
    not_improved: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    world_size: int = field(default_factory=distributed.world_size)
    data_sha256: str = ""

    @staticmethod
    def parse(content: Any) -> "TrainState":
        """The state in a checkpoint. Raises ValueError or TypeError for one that `asdict` does not give."""
        state = TrainState(**content)
        for item in fields(TrainState):
            value, kind = getattr(state, item.name), get_origin(item.type) or item.type
            if type(value) is not kind and (kind, type(value)) != (float, int):
                raise TypeError(f"{item.name} is a {type(value).__name__}")
            if kind is int and value < 0 or kind is float and not math.isfinite(value):
                raise ValueError(f"{item.name} is {value}")
        for row in (*state.history, state.sums):
            if type(row) is not dict or not all(type(name) is str and _is_number(row[name]) for name in row):
                raise TypeError("the history is not a list of rows of numbers")
        if not all(map(_is_number, state.losses)):
            raise TypeError("the losses are not numbers")
        if any(row.keys() != state.history[0].keys() for row in state.history):
            raise ValueError("the rows of the history have different columns")
        return state


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def save_checkpoint(path: Path, step: TrainingStep, state: TrainState) -> None:
    """Writes a checkpoint atomically. Raises InputError, and keeps the old file, if that fails."""
    save_tensors(path, model_content(step.model) | step.state_dict() | {"train_state": asdict(state)})


class RunCheckpoint(NamedTuple):
    """A checkpoint of `save_checkpoint`, its file, and when that was written (ns). best_model.pth lies beside it."""

    path: Path
    content: dict[str, Any]
    written: int


def find_run(resume: Path, save_dir: str) -> Path:
    """The checkpoint that --resume names: a file, the last_model.pth in the folder of a run, or (latest) the newest
    last_model.pth of the runs in logs/<save_dir>.

    Raises InputError if there is none of these runs.
    """
    if resume != LATEST or resume.exists():
        return resume / LAST_MODEL if resume.is_dir() else resume
    folder = Path("logs") / save_dir
    found = max(folder.glob(f"*/{LAST_MODEL}"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if found is None:
        raise InputError(
            f"--resume latest: no run in {folder} has a {LAST_MODEL}. Give the run's --save_dir, or its folder with "
            "--resume, or leave --resume out to start a new run."
        )
    return found


def open_run(save_dir: str, flags: dict[str, Any], checkpoint: RunCheckpoint | None) -> RunDir:
    """The folder of a new run, or that of the run to resume. Other processes are locked out.

    Raises InputError if another process continues the run, or has continued it since the checkpoint was read.
    """
    run = RunDir(save_dir, flags, folder=checkpoint.path.parent if checkpoint else None, resumable=True)
    if checkpoint and distributed.run_on_main(lambda: checkpoint.path.stat().st_mtime_ns) != checkpoint.written:
        raise InputError(f"Another process has continued the run of {checkpoint.path}. Repeat the command to go on.")
    return run


def read_run_checkpoint(path: Path) -> RunCheckpoint:
    """The run to resume.

    Raises InputError, which names the right flag, for a file with weights only, and if best_model.pth is missing
    or of another model.
    """
    checkpoint, written = _read_with_time(path)
    if "train_state" not in checkpoint:
        raise InputError(
            f"{path} holds weights but no training state: --resume continues a run from its last_model.pth. To start "
            f"a new run from these weights, use --init_from. The file {describe(model_state(checkpoint, path))}."
        )
    return _with_best_model(path, checkpoint, written)


def read_two_branch_checkpoint(path: Path, *, may_start: bool) -> RunCheckpoint | None:
    """The two-branch run to resume; None if the file holds a float model, which a new run starts from (may_start).

    Raises InputError for the file of any other model, and if best_model.pth is missing.
    """
    checkpoint, written = _read_with_time(path)
    state, config = model_state(checkpoint, path), find_config(checkpoint, path)
    if config is not None and config.rerank and "train_state" in checkpoint:
        return _with_best_model(path, checkpoint, written)
    if config is not None and config.rerank:
        raise InputError(
            f"{path} holds the weights of a two-branch model but no training state. Resume a run from its "
            f"last_model.pth, or start from a trained float model. The file {describe(state)}."
        )
    if config is not None and config.hashing:
        raise InputError(f"{path} {describe(state)}. Stage two starts from a trained float model.")
    if not may_start:
        raise InputError(
            f"{path} {describe(state)}, and is no run of stage two. To start a new run from it, name it with "
            "--init_from, and leave --resume out."
        )
    return None


def initial_model(
    choice: ModelChoice, *, init_from: str | None, foundation: Path | None, train_backbone: bool
) -> GeoLocalizationNet:
    """The model at the start of a new run: a trained one, or DINOv2's backbone, from a file or by download, with new
    adapters and head. init_from: as model_file takes it.

    A backbone without published weights (vit-tiny) starts from scratch if it is trained. Raises InputError for a file
    that does not fit, and, naming the right flag, for the checkpoint of a run.
    """
    if init_from is not None:
        path = model_file(init_from)
        checkpoint = read_checkpoint(path)
        if "train_state" in checkpoint:
            raise InputError(
                f"{init_from} is the checkpoint of a training run, which --resume continues. --init_from starts a "
                "new run from weights, such as the run's best_model.pth."
            )
        model = new_model(choice, checkpoint, path)
        load_state(model, model_state(checkpoint, path), path)
        return model
    model = GeoLocalizationNet(choice.resolve())
    if foundation is not None or model.config.backbone in FOUNDATIONS or not train_backbone:
        load_foundation(model, foundation)
    return model


def two_branch_model(choice: ModelChoice, source: str | Path) -> GeoLocalizationNet:
    """The two-branch model at the start of stage two: a trained float model, with its adapters in both branches.

    source: as model_file takes it. Raises InputError if it is no such model.
    """
    path = model_file(source)
    checkpoint = read_checkpoint(path)
    model = new_model(choice, checkpoint, path)
    load_float_branch(model, model_state(checkpoint, path), path)
    return model


def restore(checkpoint: RunCheckpoint, step: TrainingStep, new: TrainState) -> TrainState:
    """Restores weights, their average, optimizer and position.

    new: the state at the start of a new run of these arguments and places. Raises InputError if arguments, places or
    the number of processes differ, or something in the checkpoint is not what `save_checkpoint` writes.
    """
    source, content = checkpoint.path, checkpoint.content
    try:
        state = TrainState.parse(content["train_state"])
    except (TypeError, ValueError) as error:
        raise _damaged(source, f"train_state: {error}") from None
    saved, arguments = state.arguments, new.arguments
    different = [name for name in {**saved, **arguments} if arguments.get(name) != saved.get(name)]
    if "epochs_num" in different and not saved.get("schedule") == arguments.get("schedule") == "cosine":
        different.remove("epochs_num")  # the cosine schedule alone depends on it
    changed = [f"--{name} {arguments.get(name)} (was {saved.get(name)})" for name in different]
    if changed:
        raise InputError(
            f"{source} cannot be resumed with different values of flags that change the model or the schedule: "
            f"{', '.join(changed)}."
        )
    if state.data_sha256 not in ("", new.data_sha256):
        raise InputError(
            f"{source} cannot be resumed with other training data: the CSV files of the cities list other places or "
            "images than when the run began. Restore them, or start a new run from its best_model.pth with --init_from."
        )
    if state.world_size != distributed.world_size():
        raise InputError(
            f"{source} belongs to a run with {state.world_size} processes and cannot be resumed with "
            f"{distributed.world_size()}: the random numbers would change. Use the same number."
        )
    load_state(step.model, content["model_state_dict"], source)
    try:
        step.load_state_dict({name: content[name] for name in content if name.endswith("_state_dict")})
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(source, str(error)) from None
    return state


def _damaged(source: Path, problem: str) -> InputError:
    return InputError(
        f"{source} is damaged, or was not written by this project: {problem[:300]}. Take another copy of it, or start "
        "a new run from weights with --init_from."
    )


def _read_with_time(path: Path) -> tuple[dict[str, Any], int]:
    written = path.stat().st_mtime_ns if path.exists() else 0  # before, so that a later change is noticed
    return read_checkpoint(path), written


def _with_best_model(path: Path, content: dict[str, Any], written: int) -> RunCheckpoint:
    best = path.parent / BEST_MODEL
    if not best.exists():
        raise InputError(
            f"There is no {BEST_MODEL} beside {path}. A run is resumed in its own folder, which holds both."
        )
    with torch.device("meta"):
        model = new_model(ModelChoice(), content, path)
    check_state(
        model, model_state(read_checkpoint(best), best), best
    )  # now: the run tests it at its end, and may not replace it
    return RunCheckpoint(path, content, written)
