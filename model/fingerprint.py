"""A checksum of a model's weights, which tells whether features and thresholds are its own."""

import hashlib

from .network import GeoLocalizationNet


def fingerprint(model: GeoLocalizationNet) -> str:
    """SHA-256 of a model's state: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()
