"""A model as a safetensors file, with the model's configuration in its metadata."""

import json
from dataclasses import asdict
from pathlib import Path

from model import GeoLocalizationNet, InputError
from utils.runtime.atomic_files import atomic_write


def export_safetensors(model: GeoLocalizationNet, output: Path) -> None:
    """Writes the model's entries, which --resume and --init_from read.

    Raises InputError if the package safetensors is not installed, or the file cannot be written.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise InputError(
            "Writing a safetensors file needs the package safetensors: pip install -r requirements-safetensors.txt"
        ) from error
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    metadata = {"format": "pt", "model_config": json.dumps(asdict(model.config))}
    with atomic_write(output, "wb") as file:
        file.write(safetensors.torch.save(state, metadata=metadata))
