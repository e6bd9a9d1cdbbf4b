"""SelaVPR++ models. Needs PyTorch and NumPy; the recogniser also Pillow, for files and PIL images.

Imports within this package are relative: hubconf.py loads it under a name of its own, and `pip install` calls it
selavprplusplus. What needs torch, which takes seconds to import, is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .config import BACKBONES, CODE_BITS, ImageConfig, ModelChoice, ModelConfig
from .errors import InputError

if TYPE_CHECKING:
    from .aggregation import AGGREGATIONS
    from .inference import InferenceModel, prepare_for_inference
    from .loops import Loop
    from .network import GeoLocalizationNet, HashingOutput, TwoBranchOutput
    from .places import Place
    from .recognizer import Known, Match, PlaceRecognizer, Prepared
    from .rows import Description
    from .weights import load_any_model

_MODULES = {  # {name: the module that has it}
    "AGGREGATIONS": "aggregation",
    "Description": "rows",
    "GeoLocalizationNet": "network",
    "HashingOutput": "network",
    "InferenceModel": "inference",
    "Known": "recognizer",
    "Loop": "loops",
    "Match": "recognizer",
    "Place": "places",
    "PlaceRecognizer": "recognizer",
    "Prepared": "recognizer",
    "TwoBranchOutput": "network",
    "load_any_model": "weights",
    "prepare_for_inference": "inference",
}

__all__ = [
    "AGGREGATIONS",
    "BACKBONES",
    "CODE_BITS",
    "Description",
    "GeoLocalizationNet",
    "HashingOutput",
    "ImageConfig",
    "InferenceModel",
    "InputError",
    "Known",
    "Loop",
    "Match",
    "ModelChoice",
    "ModelConfig",
    "Place",
    "PlaceRecognizer",
    "Prepared",
    "TwoBranchOutput",
    "load_any_model",
    "prepare_for_inference",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
