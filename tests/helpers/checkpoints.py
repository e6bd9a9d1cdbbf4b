"""Checkpoint files in the published form and in others."""

import json
import zipfile
from pathlib import Path

import numpy as np
import torch


def save_published(state: dict[str, torch.Tensor], path: Path, numpy_version: int = 2) -> Path:
    """Saves a checkpoint as the published ones are: `module.` before each name, NumPy objects beside the model."""
    entries = {f"module.{name}": value for name, value in state.items()}
    beside = {"epoch_num": 3, "recalls": np.array([90.5, 95.25, 96.5]), "best_r5": np.float64(95.25)}
    optimizer = {"state": {}, "param_groups": [{"lr": 4e-4, "params": [0]}]}
    torch.save({**beside, "model_state_dict": entries, "optimizer_state_dict": optimizer, "not_improved_num": 0}, path)
    old, new = (b"numpy._core.", b"numpy.core.") if numpy_version == 1 else (b"numpy.core.", b"numpy._core.")
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("/data.pkl") else content)
    return path


def small_checkpoint(path):
    """A checkpoint of every kind of record, whose every byte can be tried. Returns its content."""
    content = {"a": torch.arange(10.0), "b": torch.arange(12).reshape(3, 4), "empty": torch.empty(0), "epoch": 3}
    torch.save(content, path)
    return content


def write_safetensors(path, metadata=None):
    """A safetensors file with one tensor, as its format defines it."""
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header | ({"__metadata__": metadata} if metadata else {})).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
