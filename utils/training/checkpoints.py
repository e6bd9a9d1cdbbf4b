"""Training checkpoints: everything that a run needs to continue from the very next batch."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from model import GeoLocalizationNet, InputError, ModelChoice
from model.checkpoint_files import read_checkpoint
from model.weights import (
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
    random numbers.
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


def save_checkpoint(path: Path, step: TrainingStep, state: TrainState) -> None:
    """Writes a checkpoint atomically. Raises InputError, and keeps the old file, if that fails."""
    states = {
        "optimizer_state_dict": step.optimizer.state_dict(),
        "scaler_state_dict": step.scaler.state_dict(),
        "train_state": asdict(state),
    }
    if step.average:
        states["average_state_dict"] = step.average.state_dict()
    save_tensors(path, model_content(step.model) | states)


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

    Raises InputError, which names the right flag, for a file with weights only, and if best_model.pth is missing.
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


def restore(checkpoint: RunCheckpoint, step: TrainingStep, arguments: dict[str, Any]) -> TrainState:
    """Restores weights, their average, optimizer and position. Raises InputError if arguments or the number of
    processes differ.
    """
    source, content = checkpoint.path, checkpoint.content
    state = TrainState(**content["train_state"])
    saved = state.arguments
    different = [name for name in {**saved, **arguments} if arguments.get(name) != saved.get(name)]
    if "epochs_num" in different and not saved.get("schedule") == arguments.get("schedule") == "cosine":
        different.remove("epochs_num")  # the cosine schedule alone depends on it
    changed = [f"--{name} {arguments.get(name)} (was {saved.get(name)})" for name in different]
    if changed:
        raise InputError(
            f"{source} cannot be resumed with different values of flags that change the model or the schedule: "
            f"{', '.join(changed)}."
        )
    if state.world_size != distributed.world_size():
        raise InputError(
            f"{source} belongs to a run with {state.world_size} processes and cannot be resumed with "
            f"{distributed.world_size()}: the random numbers would change. Use the same number."
        )
    load_state(step.model, content["model_state_dict"], source)
    step.optimizer.load_state_dict(content["optimizer_state_dict"])
    step.scaler.load_state_dict(content["scaler_state_dict"])
    if step.average:
        step.average.load_state_dict(content["average_state_dict"])
    return state


def _read_with_time(path: Path) -> tuple[dict[str, Any], int]:
    written = path.stat().st_mtime_ns if path.exists() else 0  # before, so that a later change is noticed
    return read_checkpoint(path), written


def _with_best_model(path: Path, content: dict[str, Any], written: int) -> RunCheckpoint:
    if not (path.parent / BEST_MODEL).exists():
        raise InputError(
            f"There is no {BEST_MODEL} beside {path}. A run is resumed in its own folder, which holds both."
        )
    return RunCheckpoint(path, content, written)
