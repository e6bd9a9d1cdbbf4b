"""A model as a safetensors file, with the model's configuration in its metadata."""

import json
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from model import GeoLocalizationNet, InputError
from utils.runtime.atomic_files import atomic_write


def export_safetensors(model: GeoLocalizationNet, output: Path, *, half: bool = False) -> None:
    """Writes the model's entries, which --resume and --init_from read. half: floating-point ones as float16.

    Raises InputError if the package safetensors is not installed, the file cannot be written, or float16 cannot hold
    an entry, which would be infinite.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise InputError(
            "Writing a safetensors file needs the package safetensors: pip install -r requirements-safetensors.txt"
        ) from error
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if half:
        state = {name: _half(name, value) for name, value in state.items()}
    metadata = {"format": "pt", "model_config": json.dumps(asdict(model.config))}
    with atomic_write(output, "wb") as file:
        file.write(safetensors.torch.save(state, metadata=metadata))


def _half(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    half = value.half()
    if half.isinf().any():
        raise InputError(
            f"The entry {name!r} has values up to {value.abs().max():.3g}, and float16 ends at 65504. Leave --fp16 out."
        )
    return half
