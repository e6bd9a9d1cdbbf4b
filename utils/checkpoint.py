"""Training checkpoints: everything that a run needs to go on from the very next batch."""
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from model import GeoLocalizationNet, InputError
from model.weights import describe, guess_config, load_float_branch, load_state, model_state, read_checkpoint
from utils.files import atomic_write

# What else may change when a run goes on: where data lie, how fast they are read, how long to train.
CHANGEABLE = {"resume", "save_dir", "datasets_folder", "gsv_cities_folder", "dataset_name", "foundation_model_path", "epochs_num", "patience",
              "num_workers", "infer_batch_size", "device", "compile", "recall_values", "rerank_num"}
ADDED = {"exact_decoding": True}  # arguments that older checkpoints lack, with what those runs did


@dataclass
class Progress:
    """Where a run stands. The next batch is number `batch` of `epoch` (from 0); batch == batches of an epoch: validation is due.

    Everything random is drawn from the seed and these positions. history: a row of metrics.csv for each finished epoch; sums: of the
    current epoch's losses so far.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_score: float = -1.0
    not_improved: int = 0
    history: list[dict] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)


def save_checkpoint(path: Path, model: GeoLocalizationNet, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, progress: Progress,
                    arguments: dict) -> None:
    """Writes a checkpoint; the file is whole or the old one. Raises InputError where it cannot be written."""
    write_tensors(path, {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scaler_state_dict": scaler.state_dict(),
        "progress": asdict(progress),
        "arguments": arguments,
    })


def write_tensors(path: Path, content: dict) -> None:
    """torch.save by way of a temporary file. Raises InputError where it cannot be written."""
    try:
        with atomic_write(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # how PyTorch's zip writer reports a full disk
        raise InputError(f"cannot write {path}: {error}") from error


def read_training_checkpoint(path: Path) -> dict:
    """A checkpoint of `save_checkpoint`. Raises InputError where the file is none."""
    checkpoint = read_checkpoint(path)
    if "progress" not in checkpoint:
        raise InputError(f"{path} holds no state of training: --resume goes on with a run's last_model.pth. The file "
                         f"{describe(model_state(checkpoint, path))}")
    return checkpoint


def read_stage_two_start(path: Path, model: GeoLocalizationNet) -> dict | None:
    """The checkpoint of a two-branch run to go on with; or None, once a float model is loaded into the two-branch `model` to start from.

    Raises InputError where the file is neither.
    """
    checkpoint = read_checkpoint(path)
    state = model_state(checkpoint, path)
    _, _, hashing, rerank = guess_config(state) or (None, None, False, False)
    if rerank:
        return read_training_checkpoint(path)
    if hashing:
        raise InputError(f"{path} {describe(state)}; stage two starts from a trained float model")
    load_float_branch(model, state, path)
    return None


def restore(checkpoint: dict, source: Path, model: GeoLocalizationNet, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
            arguments: dict) -> Progress:
    """Puts everything back. Raises InputError where arguments that change the model or the schedule differ, naming them."""
    saved = ADDED | checkpoint["arguments"]
    changed = [f"--{name} {arguments[name]} (was {saved.get(name)})" for name in arguments
               if name not in CHANGEABLE and arguments[name] != saved.get(name)]
    if changed:
        raise InputError(f"{source} cannot go on with other arguments that change the model or the schedule: {', '.join(changed)}")
    load_state(model, checkpoint["model_state_dict"], source)
    optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    scaler.load_state_dict(checkpoint["scaler_state_dict"])
    return Progress(**checkpoint["progress"])
