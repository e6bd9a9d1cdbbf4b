"""The version of this project, and the oldest PyTorch that is safe and supported."""

import torch

from .errors import InputError

VERSION = "0.2.0"  # pyproject.toml reads it here
OLDEST_TORCH = (2, 6)


def check_torch_version(version: str = torch.__version__) -> None:
    """Raises InputError for a PyTorch before 2.6."""
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        raise InputError(
            f"PyTorch {version} is installed, but SelaVPR++ needs 2.6 or newer: before 2.6, a checkpoint could run "
            "code while it was loaded, even with weights_only=True (CVE-2025-32434). Upgrade torch and torchvision."
        )
