"""SelaVPR++ models. Needs PyTorch and NumPy; the recogniser also Pillow, for files and PIL images.

Imports within this package are relative: hubconf.py loads it under a name of its own, and `pip install` calls it
selavprplusplus.
"""

from .aggregation import AGGREGATIONS
from .config import BACKBONES, ModelChoice, ModelConfig
from .errors import InputError
from .inference import InferenceModel, prepare_for_inference
from .network import CODE_BITS, GeoLocalizationNet, HashingOutput, TwoBranchOutput
from .recognizer import Loop, Match, PlaceRecognizer
from .rows import Description
from .weights import load_any_model

__all__ = [
    "AGGREGATIONS",
    "BACKBONES",
    "CODE_BITS",
    "Description",
    "GeoLocalizationNet",
    "HashingOutput",
    "InferenceModel",
    "InputError",
    "Loop",
    "Match",
    "ModelChoice",
    "ModelConfig",
    "PlaceRecognizer",
    "TwoBranchOutput",
    "load_any_model",
    "prepare_for_inference",
]
